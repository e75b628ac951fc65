// asng_ext._host: the optimizer for NumPy arrays. Input is checked in Python; the checks here are
// the backstop that keeps memory safe.
#include "optimizer/toy/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/bindings.h"
#include "core/counters.h"
#include "optimizer/compat.h"
#include "optimizer/cpu.h"

namespace py = pybind11;

namespace asng::host {

namespace {

constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast | kAligned>;

// The most probabilities: far from what overflows, and from what memory holds.
constexpr std::int64_t kMostProbabilities = std::int64_t{1} << 32;

template <typename T>
Array<T> copy(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void require(bool condition, const char* message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

// Whether it can be read as it is: of exactly T, C-contiguous and aligned.
template <typename T>
bool readable(const py::array& array) {
  constexpr int flags = py::array::c_style | kAligned;
  return py::isinstance<py::array_t<T>>(array) && (array.flags() & flags) == flags;
}

void require_numbers(const py::array& array, const char* name) {
  const char kind = array.dtype().kind();
  if (kind != 'b' && kind != 'i' && kind != 'u' && kind != 'f') {
    throw py::type_error(std::string(name) + " must hold numbers, got dtype " +
                         std::string(py::str(array.dtype())));
  }
}

void require_shape(const py::array& array, std::initializer_list<std::int64_t> shape,
                   const char* name) {
  if (!std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim())) {
    std::string text;
    for (std::int64_t size : shape) {
      text.append(text.empty() ? "" : ", ").append(std::to_string(size));
    }
    throw std::invalid_argument(std::string(name) + " must have shape (" + text + "), got " +
                                std::string(py::str(array.attr("shape"))));
  }
}

// As NumPy reads it; an array as it is.
py::array array_of(const py::object& values, const char* name) {
  py::array array = py::isinstance<py::array>(values) ? py::reinterpret_borrow<py::array>(values)
                                                      : py::array::ensure(values);
  if (!array) {
    throw py::type_error(std::string(name) + " must hold numbers");
  }
  return array;
}

// As an array of float64 to read; one that can be read as it is costs nothing.
Array<double> doubles_of(const py::object& values) {
  if (py::isinstance<py::array>(values) &&
      readable<double>(py::reinterpret_borrow<py::array>(values))) {
    return py::reinterpret_borrow<Array<double>>(values);
  }
  return Array<double>(values);
}

// Numbers that an update changes in place: the array itself, so that references to it stay good,
// or a copy where that cannot be, such as of a file that is open for reading.
Array<double> in_place(const py::object& values, std::initializer_list<std::int64_t> shape,
                       const char* name, double least = std::numeric_limits<double>::lowest()) {
  const py::array array = array_of(values, name);
  require_shape(array, shape, name);
  Array<double> own = py::reinterpret_borrow<Array<double>>(array);
  if (!readable<double>(array) || !array.writeable()) {
    require_numbers(array, name);
    const Array<double> converted(array);
    own = Array<double>(std::vector<py::ssize_t>(shape.begin(), shape.end()), converted.data());
  }
  const double* numbers = own.data();
  std::int64_t wrong = 0;
  for (py::ssize_t i = 0; i < own.size(); ++i) {
    wrong += !((numbers[i] >= least) & (numbers[i] <= std::numeric_limits<double>::max()));
  }
  if (wrong != 0) {
    throw std::invalid_argument(std::string(name) + " must hold finite numbers" +
                                (least == 0.0 ? " of at least 0" : ""));
  }
  return own;
}

// Input that users may have made themselves: other integer or floating types and
// strides are converted into `converted`, which keeps the memory.
template <typename T>
const T* converted_data_of(const py::array& array, std::int64_t rows, std::int64_t columns,
                           const char* name, std::optional<Array<T>>& converted) {
  require_shape(array, {rows, columns}, name);
  if (readable<T>(array)) {
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
  std::int64_t probabilities = 0;
  for (std::int64_t size : sizes) {
    require(size >= 1 && size <= kMostProbabilities && stride <= kMostProbabilities &&
                (stride == 0 || size <= stride),
            "sizes must be at least 1 and at most stride and 2^32");
    probabilities += stride > 0 ? stride : size;
    require(probabilities <= kMostProbabilities, "sizes must sum to at most 2^32");
  }
  return Layout(sizes, stride, low, high, std_min);
}

// An optimizer from what all are made from, by name, and settings of its own.
template <typename Kind, typename... Own>
std::unique_ptr<Kind> make(const py::dict& common, Own... own) {
  const auto numbers = [&](const char* name) { return common[name].cast<std::vector<double>>(); };
  Layout layout = make_layout(common["sizes"].cast<std::vector<std::int64_t>>(), 0, numbers("low"),
                              numbers("high"), numbers("std_min"));
  layout.variance_ratio_min = common["variance_ratio_min"].cast<double>();
  require(numbers("margin").size() == layout.sizes.size(), "margin must have one entry per size");
  const auto lambda = common["population_size"].cast<std::int64_t>();
  require(lambda >= 2 && lambda <= kMostSamples, "population_size must be in [2, 2^24]");
  return std::make_unique<Kind>(std::move(layout), numbers("margin"), lambda,
                                common["seed"].cast<std::uint64_t>(), own...);
}

// Whoever reads or changes an optimizer has its turn. Other threads of Python run while one waits
// for it, and while a population of so many numbers is drawn or evaluated that it takes long.
class Turn {
 public:
  explicit Turn(Optimizer& optimizer, std::int64_t numbers = 0)
      : lock_(optimizer.turn(), std::try_to_lock) {
    if (!lock_.owns_lock()) {
      const py::gil_scoped_release others;
      lock_.lock();
    }
    if (numbers >= kMany) {
      others_.emplace();
    }
  }
  ~Turn() { lock_.unlock(); }  // before it waits for the GIL

 private:
  // They take about 20 us.
  static constexpr std::int64_t kMany = 5000;

  std::optional<py::gil_scoped_release> others_;
  std::unique_lock<std::mutex> lock_;
};

std::int64_t numbers_of(const Layout& layout, std::int64_t lambda) {
  return lambda * (layout.n_categorical() + layout.n_gaussian()) + layout.theta_size;
}

py::tuple ask(Optimizer& optimizer) {
  const Layout& layout = optimizer.layout();
  py::array_t<std::int64_t> categorical({optimizer.lambda(), layout.n_categorical()});
  py::array_t<double> gaussian({optimizer.lambda(), layout.n_gaussian()});
  std::int64_t* const categories = categorical.mutable_data();
  double* const numbers = gaussian.mutable_data();
  {
    const Turn turn(optimizer, numbers_of(layout, optimizer.lambda()));
    optimizer.ask(categories, numbers);
  }
  return py::make_tuple(std::move(categorical), std::move(gaussian));
}

// Without the gradient that a tensor may have, of which a conversion warns.
py::object detached(const py::handle& value) {
  const bool tensor = !py::isinstance<py::array>(value) && py::hasattr(value, "detach");
  return tensor ? py::object(value.attr("detach")()) : py::reinterpret_borrow<py::object>(value);
}

// Elements that are no plain numbers run Python code, which may change the list or update this very
// optimizer: hence a copy of the list, and memory of its own.
std::vector<double> converted_numbers(const py::object& list) {
  std::vector<double> numbers;
  for (py::handle item : py::tuple(list)) {
    numbers.push_back(PyFloat_AsDouble(detached(item).ptr()));
    if (PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
  }
  return numbers;
}

// Losses in memory that the next call reuses; all Python code that they run has run by then.
std::vector<double>& read_losses(const py::object& losses) {
  static thread_local std::vector<double> numbers;
  if (PyList_Check(losses.ptr()) == 0 && PyTuple_Check(losses.ptr()) == 0) {
    const Array<double> values = doubles_of(detached(losses));
    numbers.assign(values.data(), values.data() + values.size());
    return numbers;
  }
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(losses.ptr());
  PyObject* const* items = PySequence_Fast_ITEMS(losses.ptr());
  if (std::all_of(items, items + count, [](PyObject* item) { return PyFloat_Check(item) != 0; })) {
    numbers.resize(static_cast<std::size_t>(count));
    std::transform(items, items + count, numbers.begin(),
                   [](PyObject* item) { return PyFloat_AS_DOUBLE(item); });
  } else {
    numbers = converted_numbers(losses);
  }
  return numbers;
}

// `has_categorical` and `has_gaussian` say which variables each sample has, like the samples; null:
// all.
bool tell_some(Optimizer& optimizer, const py::array& categorical, const py::array& gaussian,
               const py::object& losses, bool negate, const Array<bool>* has_categorical,
               const Array<bool>* has_gaussian) {
  std::vector<double>& buffer = read_losses(losses);
  if (negate) {
    for (double& loss : buffer) {
      loss = -loss;
    }
  }
  const auto lambda = static_cast<std::int64_t>(buffer.size());
  const Layout& layout = optimizer.layout();
  std::optional<Array<std::int64_t>> converted_categorical;
  std::optional<Array<double>> converted_gaussian;
  Population population{lambda,
                        converted_data_of(categorical, lambda, layout.n_categorical(),
                                          "samples.categorical", converted_categorical),
                        converted_data_of(gaussian, lambda, layout.n_gaussian(),
                                          "samples.numerical", converted_gaussian),
                        buffer.data()};
  if (has_categorical != nullptr) {
    require_shape(*has_categorical, {lambda, layout.n_categorical()}, "has_categorical");
    require_shape(*has_gaussian, {lambda, layout.n_gaussian()}, "has_numerical");
    population.has_categorical = has_categorical->data();
    population.has_gaussian = has_gaussian->data();
  }
  const Turn turn(optimizer, numbers_of(layout, lambda));
  return optimizer.tell(population);
}

bool tell(Optimizer& optimizer, const py::array& categorical, const py::array& gaussian,
          const py::object& losses, bool negate) {
  return tell_some(optimizer, categorical, gaussian, losses, negate, nullptr, nullptr);
}

// (loss, generation, categories, numbers) or None.
py::object best(Optimizer& optimizer) {
  const Turn turn(optimizer);
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
  const Turn turn(optimizer);
  optimizer.state().best = std::move(best);
}

// A property over a vector, copied both ways; it keeps its size.
template <typename Class, typename Field>
void def_array(Class& bound, const char* name, Field field) {
  using Self = typename Class::type;
  bound.def_property(
      name,
      [=](Self& self) {
        const Turn turn(self);
        return copy(field(self));
      },
      [=](Self& self, const Array<double>& values) {
        const Turn turn(self);
        std::vector<double>& target = field(self);
        if (static_cast<std::size_t>(values.size()) != target.size()) {
          throw std::invalid_argument(std::string(name) + " must have " +
                                      std::to_string(target.size()) + " elements, got " +
                                      std::to_string(values.size()));
        }
        std::copy(values.data(), values.data() + values.size(), target.begin());
      });
}

template <typename Class, typename Field>
void def_number(Class& bound, const char* name, Field field) {
  using Self = typename Class::type;
  using Number = std::remove_reference_t<decltype(field(std::declval<Self&>()))>;
  bound.def_property(
      name,
      [=](Self& self) {
        const Turn turn(self);
        return Number(field(self));
      },
      [=](Self& self, Number value) {
        const Turn turn(self);
        field(self) = value;
      });
}

// The categories of one-hot samples of whatever numeric type the caller keeps them in.
const std::int64_t* categories(CompatUpdate& update, const py::object& samples,
                               std::int64_t lambda) {
  const py::array one_hot = array_of(samples, "samples");
  const Layout& layout = update.layout();
  if (one_hot.size() != lambda * layout.n_categorical() * update.stride()) {
    throw std::invalid_argument("samples must have shape (" + std::to_string(lambda) + ", " +
                                std::to_string(layout.n_categorical()) + ", " +
                                std::to_string(update.stride()) + ")");
  }
  if (readable<bool>(one_hot)) {
    return update.categories(static_cast<const bool*>(one_hot.data()), lambda);
  }
  if (readable<std::int32_t>(one_hot)) {
    return update.categories(static_cast<const std::int32_t*>(one_hot.data()), lambda);
  }
  require_numbers(one_hot, "samples");
  const Array<double> converted(one_hot);
  return update.categories(converted.data(), lambda);
}

// What every update of `compat` reads, with the arrays that keep its memory.
struct CompatCall {
  Array<double> theta;
  CompatUpdate::Arrays arrays{};
  Population population{};

  CompatCall(CompatUpdate& update, const py::object& with_theta, const py::object& one_hot,
             const py::object& losses) {
    const std::vector<double>& numbers = read_losses(losses);  // first, as it may run Python code
    const auto lambda = static_cast<std::int64_t>(numbers.size());
    theta = in_place(with_theta, {update.layout().n_categorical(), update.stride()}, "theta", 0.0);
    arrays.theta = theta.mutable_data();
    population = {lambda, categories(update, one_hot, lambda), nullptr, numbers.data()};
  }
};

// theta_int: (2, n) means and second moments of the n Gaussians; numerical: (lambda, n) draws.
// Neither is read if there are none.
py::tuple compat_adapt(CompatUpdate& update, const py::object& theta, const py::object& theta_int,
                       const py::object& s, double gamma, double Delta, const py::object& one_hot,
                       const py::object& numerical, const py::object& losses,
                       bool range_restriction, double offset, bool offset_in_accumulation) {
  require(std::isfinite(gamma), "gamma must be finite");
  require(std::isfinite(Delta) && Delta > 0.0, "Delta must be finite and above 0");
  CompatCall call(update, theta, one_hot, losses);
  const std::int64_t n = update.layout().n_gaussian();
  py::object gaussians = theta_int;
  const Array<double> draws = doubles_of(numerical);
  if (n > 0) {
    require_shape(draws, {call.population.lambda, n}, "numerical");
    Array<double> moments = in_place(theta_int, {2, n}, "theta_int");
    call.arrays.mean = moments.mutable_data();
    call.arrays.second_moment = call.arrays.mean + n;
    call.population.gaussian = draws.data();
    gaussians = moments;
  }
  Array<double> sums = in_place(s, {update.layout().n_theta()}, "s");
  StepSize step;
  step.gamma = gamma;
  step.Delta = Delta;
  const CompatUpdate::Adapted result =
      update.adapt(call.arrays, sums.mutable_data(), step, call.population, range_restriction,
                   offset, offset_in_accumulation);
  return py::make_tuple(call.theta, gaussians, sums, result.moved, result.step.gamma,
                        result.step.Delta, result.delta, result.eps);
}

py::tuple compat_step(CompatUpdate& update, const py::object& theta, double delta,
                      const py::object& one_hot, const py::object& losses, bool range_restriction,
                      double offset) {
  require(std::isfinite(delta), "delta must be finite");
  require(update.layout().n_gaussian() == 0, "there must be no Gaussian variables");
  CompatCall call(update, theta, one_hot, losses);
  const double eps = update.step(call.arrays, delta, call.population, range_restriction, offset);
  return py::make_tuple(call.theta, eps);
}

py::tuple compat_step_adam(CompatUpdate& update, const py::object& theta,
                           const py::object& first_moment, const py::object& second_moment,
                           double step_size, double beta1, double beta2, std::uint64_t updates,
                           const py::object& one_hot, const py::object& losses,
                           bool range_restriction) {
  require(std::isfinite(step_size), "alpha must be finite");
  require(update.layout().n_gaussian() == 0, "there must be no Gaussian variables");
  CompatCall call(update, theta, one_hot, losses);
  const std::int64_t d = update.layout().n_categorical();
  Array<double> m = in_place(first_moment, {d, update.stride()}, "m");
  Array<double> v = in_place(second_moment, {d, update.stride()}, "v", 0.0);
  const bool moved =
      update.step_adam(call.arrays, m.mutable_data(), v.mutable_data(), {step_size, beta1, beta2},
                       updates, call.population, range_restriction);
  return py::make_tuple(call.theta, m, v, moved);
}

py::array_t<bool> compat_one_hot(const CompatUpdate& update, const py::object& with_theta,
                                 const py::object& with_uniforms) {
  const Layout& layout = update.layout();
  const Array<double> theta = doubles_of(with_theta);
  const Array<double> uniforms = doubles_of(with_uniforms);
  require_shape(theta, {layout.n_categorical(), update.stride()}, "theta");
  require(uniforms.size() == layout.n_categorical(), "uniforms must hold one per variable");
  py::array_t<bool> out({layout.n_categorical(), update.stride()});
  update.one_hot(theta.data(), uniforms.data(), out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Optimizers on the CPU, over NumPy arrays; constants of the operators.";
  bind_constants(module);
  module.attr("COUNTERS") = py::tuple(
      py::cast(std::vector<std::string>(std::begin(kCounterNames), std::end(kCounterNames))));
  module.attr("LARGEST_POPULATION") = kLargestPopulation;
  module.attr("MOST_SAMPLES") = kMostSamples;

  py::class_<Optimizer> optimizer(module, "Optimizer");
  optimizer.def("ask", &ask)
      .def("tell", &tell)
      .def("tell",
           [](Optimizer& self, const py::array& categorical, const py::array& gaussian,
              const py::object& losses, bool negate, const Array<bool>& has_categorical,
              const Array<bool>& has_gaussian) {
             return tell_some(self, categorical, gaussian, losses, negate, &has_categorical,
                              &has_gaussian);
           })
      .def_property("best", &best, &set_best)
      .def_property_readonly("margin", [](Optimizer& self) { return copy(self.margin()); })
      .def_property_readonly("n_theta", [](Optimizer& self) { return self.layout().n_theta(); });
  def_array(optimizer, "theta", [](Optimizer& self) -> auto& { return self.state().theta; });
  def_array(optimizer, "mean", [](Optimizer& self) -> auto& { return self.state().mean; });
  def_array(optimizer, "variance", [](Optimizer& self) -> auto& { return self.state().variance; });
  def_number(optimizer, "seed", [](Optimizer& self) -> auto& { return self.state().seed; });
  def_number(optimizer, "asked", [](Optimizer& self) -> auto& { return self.state().asked; });
  def_number(optimizer, "generation",
             [](Optimizer& self) -> auto& { return self.state().generation; });
  def_number(optimizer, "evaluations",
             [](Optimizer& self) -> auto& { return self.state().evaluations; });
  def_number(optimizer, "moved", [](Optimizer& self) -> auto& { return self.state().moved; });

  py::class_<Asng, Optimizer> adaptive(module, "ASNG");
  adaptive
      .def(py::init(&make<Asng, double, double, double>), py::arg("common"), py::arg("alpha"),
           py::arg("delta_init"), py::arg("delta_max"))
      .def_property_readonly("delta", [](Asng& self) {
        const Turn turn(self);
        return self.step.delta(self.settings());
      });
  def_array(adaptive, "s", [](Asng& self) -> auto& { return self.s; });
  def_number(adaptive, "gamma", [](Asng& self) -> auto& { return self.step.gamma; });
  def_number(adaptive, "Delta", [](Asng& self) -> auto& { return self.step.Delta; });

  py::class_<Sng, Optimizer>(module, "SNG")
      .def(py::init(&make<Sng, double>), py::arg("common"), py::arg("delta"));

  py::class_<NaturalAdam, Optimizer> adam(module, "NaturalAdam");
  adam.def(py::init([](const py::dict& common, double step_size, double beta1, double beta2) {
             return make<NaturalAdam>(common, AdamSettings{step_size, beta1, beta2});
           }),
           py::arg("common"), py::arg("step_size"), py::arg("beta1"), py::arg("beta2"))
      .def_readwrite("updates", &NaturalAdam::updates);
  def_array(adam, "first_moment", [](NaturalAdam& self) -> auto& { return self.first_moment; });
  def_array(adam, "second_moment", [](NaturalAdam& self) -> auto& { return self.second_moment; });

  py::class_<CompatUpdate>(module, "CompatUpdate")
      .def(py::init([](const std::vector<std::int64_t>& sizes, std::int64_t stride,
                       std::vector<double> margin, const std::vector<double>& low,
                       const std::vector<double>& high, const std::vector<double>& std_min,
                       double alpha, double delta_init, double Delta_max) {
             require(margin.size() == sizes.size(), "margin must have one entry per size");
             require(stride >= 1, "stride must be at least 1");
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

  module.def("numbers", [](const py::list& list) { return copy(converted_numbers(list)); });

  bind_toy(module);
}

}  // namespace asng::host
