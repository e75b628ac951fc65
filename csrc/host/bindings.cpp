// asng_ext._host: the optimizer for NumPy arrays. Input is checked in Python; the checks here are
// the backstop that keeps memory safe.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "compat.h"
#include "optimizer.h"
#include "toy_bindings.h"

namespace py = pybind11;

namespace asng::host {

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
Array<T> copy(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void require(bool condition, const char* message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

// A C-contiguous array of exactly T, as it is: no copy, no conversion.
template <typename T>
T* data_of(const py::array& array, std::int64_t size, const char* name) {
  const bool matches = py::isinstance<py::array_t<T>>(array) && array.size() == size &&
                       (array.flags() & py::array::c_style) != 0;
  if (!matches) {
    throw std::invalid_argument(std::string(name) + " must be a C-contiguous array of " +
                                std::to_string(size) + " elements of the expected type");
  }
  return static_cast<T*>(const_cast<void*>(array.data()));
}

// The same for input that users may have made themselves: other integer or floating types and
// strides are converted into `converted`, which keeps the memory.
template <typename T>
const T* converted_data_of(const py::array& array, std::int64_t rows, std::int64_t columns,
                           const char* name, std::optional<Array<T>>& converted) {
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns) {
    throw std::invalid_argument(std::string(name) + " must have shape (" + std::to_string(rows) +
                                ", " + std::to_string(columns) + ")");
  }
  if (py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) != 0) {
    return static_cast<const T*>(array.data());
  }
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u' && !(kind == 'f' && std::is_floating_point_v<T>)) {
    throw py::type_error(std::string(name) + " must hold numbers of another type, got dtype " +
                         std::string(py::str(array.dtype())));
  }
  converted.emplace(array);
  return converted->data();
}

Layout make_layout(const std::vector<std::int64_t>& sizes, std::int64_t stride,
                   const std::vector<double>& low, const std::vector<double>& high,
                   const std::vector<double>& std_min) {
  require(low.size() == high.size() && low.size() == std_min.size(),
          "low, high and std_min must have one entry per Gaussian variable");
  for (std::int64_t size : sizes) {
    require(size >= 1 && (stride == 0 || size <= stride), "sizes must be in [1, stride]");
  }
  return Layout(sizes, stride, low, high, std_min);
}

// What all optimizers are made from, by name.
Layout read_layout(const py::dict& common) {
  const auto numbers = [&](const char* name) { return common[name].cast<std::vector<double>>(); };
  Layout layout = make_layout(common["sizes"].cast<std::vector<std::int64_t>>(), 0, numbers("low"),
                              numbers("high"), numbers("std_min"));
  layout.variance_ratio_min = common["variance_ratio_min"].cast<double>();
  return layout;
}

std::vector<double> read_margin(const py::dict& common) {
  auto margin = common["margin"].cast<std::vector<double>>();
  require(margin.size() == py::len(common["sizes"]), "margin must have one entry per size");
  return margin;
}

std::int64_t read_lambda(const py::dict& common) {
  const auto lambda = common["population_size"].cast<std::int64_t>();
  require(lambda >= 2, "population_size must be at least 2");
  return lambda;
}

std::uint64_t read_seed(const py::dict& common) { return common["seed"].cast<std::uint64_t>(); }

py::tuple ask(Optimizer& optimizer) {
  const Layout& layout = optimizer.layout();
  py::array_t<std::int64_t> categorical({optimizer.lambda(), layout.n_categorical()});
  py::array_t<double> gaussian({optimizer.lambda(), layout.n_gaussian()});
  optimizer.ask(categorical.mutable_data(), gaussian.mutable_data());
  return py::make_tuple(std::move(categorical), std::move(gaussian));
}

bool tell(Optimizer& optimizer, const py::array& categorical, const py::array& gaussian,
          const py::object& losses, bool negate) {
  static thread_local std::vector<double> buffer;
  buffer.clear();
  if (PyList_CheckExact(losses.ptr()) != 0) {
    const Py_ssize_t count = PyList_GET_SIZE(losses.ptr());
    for (Py_ssize_t k = 0; k < count; ++k) {
      buffer.push_back(PyFloat_AsDouble(PyList_GET_ITEM(losses.ptr(), k)));
    }
    if (PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
  } else {
    const Array<double> values(losses);
    buffer.assign(values.data(), values.data() + values.size());
  }
  if (negate) {
    for (double& loss : buffer) {
      loss = -loss;
    }
  }
  const auto lambda = static_cast<std::int64_t>(buffer.size());
  const Layout& layout = optimizer.layout();
  std::optional<Array<std::int64_t>> converted_categorical;
  std::optional<Array<double>> converted_gaussian;
  return optimizer.tell({lambda,
                         converted_data_of(categorical, lambda, layout.n_categorical(),
                                           "samples.categorical", converted_categorical),
                         converted_data_of(gaussian, lambda, layout.n_gaussian(),
                                           "samples.numerical", converted_gaussian),
                         buffer.data()});
}

// (loss, generation, categories, numbers) or None.
py::object best(Optimizer& optimizer) {
  const Best& best = optimizer.state().best;
  if (std::isinf(best.loss)) {
    return py::none();
  }
  return py::make_tuple(best.loss, best.generation, best.categorical, best.gaussian);
}

void set_best(Optimizer& optimizer, const py::object& value) {
  Best best;
  if (!value.is_none()) {
    const auto parts = value.cast<
        std::tuple<double, std::uint64_t, std::vector<std::int64_t>, std::vector<double>>>();
    std::tie(best.loss, best.generation, best.categorical, best.gaussian) = parts;
  }
  optimizer.state().best = std::move(best);
}

void assign(std::vector<double>& target, const Array<double>& values, const char* name) {
  if (static_cast<std::size_t>(values.size()) != target.size()) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(target.size()) +
                                " elements, got " + std::to_string(values.size()));
  }
  std::copy(values.data(), values.data() + values.size(), target.begin());
}

// The categories of one-hot samples of whatever numeric type the caller keeps them in.
const std::int64_t* categories(CompatUpdate& update, const py::array& one_hot,
                               std::int64_t lambda) {
  const std::int64_t size = lambda * update.layout().n_categorical() * update.stride();
  const auto read = [&]<typename T>(T) {
    return update.categories(data_of<T>(one_hot, size, "samples"), lambda);
  };
  switch (one_hot.dtype().char_()) {
    case '?':
      return read(bool{});
    case 'i':
      return read(std::int32_t{});
    case 'd':
      return read(double{});
    default: {
      const Array<double> converted(one_hot);
      return update.categories(data_of<double>(converted, size, "samples"), lambda);
    }
  }
}

CompatUpdate::Arrays compat_arrays(const CompatUpdate& update, const py::array& theta,
                                   const py::array& mean, const py::array& second_moment) {
  const Layout& layout = update.layout();
  return {data_of<double>(theta, layout.theta_size, "theta"),
          data_of<double>(mean, layout.n_gaussian(), "mean"),
          data_of<double>(second_moment, layout.n_gaussian(), "second_moment")};
}

Population compat_population(CompatUpdate& update, const py::array& one_hot,
                             const py::array& gaussian, const Array<double>& losses) {
  const std::int64_t lambda = losses.size();
  return {lambda, categories(update, one_hot, lambda),
          data_of<double>(gaussian, lambda * update.layout().n_gaussian(), "numerical"),
          losses.data()};
}

py::tuple compat_adapt(CompatUpdate& update, const py::array& theta, const py::array& mean,
                       const py::array& second_moment, const py::array& s, double gamma,
                       double Delta, const py::array& one_hot, const py::array& gaussian,
                       const Array<double>& losses, bool range_restriction, double offset,
                       bool offset_in_accumulation) {
  StepSize step;
  step.gamma = gamma;
  step.Delta = Delta;
  const CompatUpdate::Adapted result =
      update.adapt(compat_arrays(update, theta, mean, second_moment),
                   data_of<double>(s, update.layout().n_theta(), "s"), step,
                   compat_population(update, one_hot, gaussian, losses), range_restriction, offset,
                   offset_in_accumulation);
  return py::make_tuple(result.moved, result.step.gamma, result.step.Delta, result.delta,
                        result.eps);
}

double compat_step(CompatUpdate& update, const py::array& theta, double delta,
                   const py::array& one_hot, const Array<double>& losses, bool range_restriction,
                   double offset) {
  const py::array_t<double> none(0);
  return update.step(compat_arrays(update, theta, none, none), delta,
                     compat_population(update, one_hot, none, losses), range_restriction, offset);
}

bool compat_step_adam(CompatUpdate& update, const py::array& theta, const py::array& first_moment,
                      const py::array& second_moment, double step_size, double beta1, double beta2,
                      std::uint64_t updates, const py::array& one_hot, const Array<double>& losses,
                      bool range_restriction) {
  const py::array_t<double> none(0);
  const std::int64_t size = update.layout().theta_size;
  return update.step_adam(
      compat_arrays(update, theta, none, none), data_of<double>(first_moment, size, "m"),
      data_of<double>(second_moment, size, "v"), {step_size, beta1, beta2}, updates,
      compat_population(update, one_hot, none, losses), range_restriction);
}

py::array_t<bool> compat_one_hot(const CompatUpdate& update, const py::array& theta,
                                 const py::array& uniforms) {
  const Layout& layout = update.layout();
  py::array_t<bool> out({layout.n_categorical(), update.stride()});
  update.one_hot(data_of<double>(theta, layout.theta_size, "theta"),
                 data_of<double>(uniforms, layout.n_categorical(), "uniforms"), out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Optimizers on the CPU, over NumPy arrays.";

  py::class_<Optimizer>(module, "Optimizer")
      .def("ask", &ask)
      .def("tell", &tell)
      .def_property(
          "theta", [](Optimizer& self) { return copy(self.state().theta); },
          [](Optimizer& self, const Array<double>& values) {
            assign(self.state().theta, values, "theta");
          })
      .def_property(
          "mean", [](Optimizer& self) { return copy(self.state().mean); },
          [](Optimizer& self, const Array<double>& values) {
            assign(self.state().mean, values, "mean");
          })
      .def_property(
          "variance", [](Optimizer& self) { return copy(self.state().variance); },
          [](Optimizer& self, const Array<double>& values) {
            assign(self.state().variance, values, "variance");
          })
      .def_property(
          "seed", [](Optimizer& self) { return self.state().seed; },
          [](Optimizer& self, std::uint64_t value) { self.state().seed = value; })
      .def_property(
          "asked", [](Optimizer& self) { return self.state().asked; },
          [](Optimizer& self, std::uint64_t value) { self.state().asked = value; })
      .def_property(
          "generation", [](Optimizer& self) { return self.state().generation; },
          [](Optimizer& self, std::uint64_t value) { self.state().generation = value; })
      .def_property(
          "evaluations", [](Optimizer& self) { return self.state().evaluations; },
          [](Optimizer& self, std::uint64_t value) { self.state().evaluations = value; })
      .def_property(
          "moved", [](Optimizer& self) { return self.state().moved; },
          [](Optimizer& self, std::uint64_t value) { self.state().moved = value; })
      .def_property("best", &best, &set_best)
      .def_property_readonly("margin", [](Optimizer& self) { return copy(self.margin()); })
      .def_property_readonly("n_theta", [](Optimizer& self) { return self.layout().n_theta(); });

  py::class_<Asng, Optimizer>(module, "ASNG")
      .def(py::init([](const py::dict& common, double alpha, double delta_init, double Delta_max) {
             return std::make_unique<Asng>(read_layout(common), read_margin(common),
                                           read_lambda(common), read_seed(common), alpha,
                                           delta_init, Delta_max);
           }),
           py::arg("common"), py::arg("alpha"), py::arg("delta_init"), py::arg("delta_max"))
      .def_property(
          "s", [](Asng& self) { return copy(self.s); },
          [](Asng& self, const Array<double>& values) { assign(self.s, values, "s"); })
      .def_property(
          "gamma", [](Asng& self) { return self.step.gamma; },
          [](Asng& self, double value) { self.step.gamma = value; })
      .def_property(
          "Delta", [](Asng& self) { return self.step.Delta; },
          [](Asng& self, double value) { self.step.Delta = value; })
      .def_property_readonly("delta", [](Asng& self) { return self.step.delta(self.settings()); });

  py::class_<Sng, Optimizer>(module, "SNG")
      .def(py::init([](const py::dict& common, double delta) {
             return std::make_unique<Sng>(read_layout(common), read_margin(common),
                                          read_lambda(common), read_seed(common), delta);
           }),
           py::arg("common"), py::arg("delta"));

  py::class_<NaturalAdam, Optimizer>(module, "NaturalAdam")
      .def(py::init([](const py::dict& common, double step_size, double beta1, double beta2) {
             return std::make_unique<NaturalAdam>(read_layout(common), read_margin(common),
                                                  read_lambda(common), read_seed(common),
                                                  AdamSettings{step_size, beta1, beta2});
           }),
           py::arg("common"), py::arg("step_size"), py::arg("beta1"), py::arg("beta2"))
      .def_property(
          "first_moment", [](NaturalAdam& self) { return copy(self.first_moment); },
          [](NaturalAdam& self, const Array<double>& values) {
            assign(self.first_moment, values, "first_moment");
          })
      .def_property(
          "second_moment", [](NaturalAdam& self) { return copy(self.second_moment); },
          [](NaturalAdam& self, const Array<double>& values) {
            assign(self.second_moment, values, "second_moment");
          })
      .def_readwrite("updates", &NaturalAdam::updates);

  py::class_<CompatUpdate>(module, "CompatUpdate")
      .def(py::init([](const std::vector<std::int64_t>& sizes, std::int64_t stride,
                       std::vector<double> margin, const std::vector<double>& low,
                       const std::vector<double>& high, const std::vector<double>& std_min,
                       double alpha, double delta_init, double Delta_max) {
             require(margin.size() == sizes.size(), "margin must have one entry per size");
             return CompatUpdate(make_layout(sizes, stride, low, high, std_min), std::move(margin),
                                 alpha, delta_init, Delta_max);
           }),
           py::kw_only(), py::arg("sizes"), py::arg("stride"), py::arg("margin"), py::arg("low"),
           py::arg("high"), py::arg("std_min"), py::arg("alpha"), py::arg("delta_init"),
           py::arg("delta_max"))
      .def("adapt", &compat_adapt)
      .def("step", &compat_step)
      .def("step_adam", &compat_step_adam)
      .def("one_hot", &compat_one_hot);

  bind_toy(module);
}

}  // namespace asng::host
