#include "optimizer/toy/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/counters.h"
#include "optimizer/toy/batch.h"

namespace py = pybind11;

namespace asng::host {

namespace {

void require(bool condition, const char* message) {
  if (!condition) {
    throw std::invalid_argument(message);
  }
}

// The settings by name, in a dictionary that holds all of them.
ToySettings read_settings(const py::dict& values) {
  ToySettings settings;
  const std::string problem = values["problem"].cast<std::string>();
  require(problem == "squared_error" || problem == "ordered_product", "unknown problem");
  settings.problem =
      problem == "squared_error" ? ToyProblem::kSelectiveSquaredError : ToyProblem::kOrderedProduct;
  const std::string rule = values["rule"].cast<std::string>();
  require(rule == "ASNG" || rule == "SNG" || rule == "NaturalAdam", "unknown rule");
  settings.rule = rule == "ASNG"  ? ToyRule::kAsng
                  : rule == "SNG" ? ToyRule::kSng
                                  : ToyRule::kNaturalAdam;
  const auto number = [&](const char* name) { return values[name].cast<double>(); };
  const auto integer = [&](const char* name) { return values[name].cast<std::int64_t>(); };
  settings.variables = integer("variables");
  settings.categories = integer("categories");
  settings.lambda = integer("population_size");
  settings.learning_rate = number("learning_rate");
  settings.momentum = number("momentum");
  settings.noise = number("noise");
  settings.target = number("target");
  settings.iteration_limit = integer("iteration_limit");
  settings.alpha = number("alpha");
  settings.delta = number("delta");
  settings.delta_max = number("delta_max");
  settings.adam = {number("step_size"), number("beta1"), number("beta2")};
  settings.margin = number("margin");
  require(settings.variables >= 1 && settings.variables <= kMostSamples, "variables out of range");
  require(settings.categories >= 2 && settings.categories <= kMostSamples,
          "categories out of range");
  require(settings.lambda >= 2 && settings.lambda <= kMostSamples, "population_size out of range");
  require(settings.variables * settings.categories <= kMostSamples &&
              settings.variables * settings.lambda <= kMostSamples,
          "variables times categories and times population_size must be at most 2^24");
  require(settings.iteration_limit >= 0, "iteration_limit must be at least 0");
  return settings;
}

py::tuple batch(const py::dict& values, std::uint64_t seed, std::uint64_t first, std::int64_t count,
                int threads, const py::object& progress) {
  const ToySettings settings = read_settings(values);
  require(count >= 0 && count <= kMostSamples, "count must be in [0, 2^24]");
  std::vector<ToyOutcome> outcomes(static_cast<std::size_t>(count));
  {
    const py::gil_scoped_release release;
    toy_batch(settings, seed, first, outcomes, threads, [&](const ToyProgress& so_far) {
      const py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) {  // Ctrl-C, among others
        throw py::error_already_set();
      }
      if (!progress.is_none()) {
        progress(so_far.runs, so_far.iterations);
      }
      return true;
    });
  }
  py::array_t<std::int64_t> iterations(count);
  py::array_t<bool> succeeded(count);
  for (std::int64_t i = 0; i < count; ++i) {
    iterations.mutable_at(i) = outcomes[static_cast<std::size_t>(i)].iterations;
    succeeded.mutable_at(i) = outcomes[static_cast<std::size_t>(i)].succeeded;
  }
  return py::make_tuple(std::move(iterations), std::move(succeeded));
}

py::array_t<double> rows(const ToyRun& run, const std::vector<double>& values) {
  py::array_t<double> out({run.settings.variables, run.settings.categories});
  std::copy(values.begin(), values.end(), out.mutable_data());
  return out;
}

template <typename Draw>
py::array_t<double> drawn(std::int64_t count, const Draw& draw) {
  require(count >= 0 && count <= kMostSamples, "count must be in [0, 2^24]");
  py::array_t<double> out(count);
  draw(out.mutable_data());
  return out;
}

}  // namespace

void bind_toy(py::module_& module) {
  py::class_<ToyRun>(module, "ToyRun")
      .def(py::init([](const py::dict& settings, std::uint64_t seed, std::uint64_t run) {
             auto created = std::make_unique<ToyRun>(read_settings(settings));
             created->start(toy_key(seed, run));
             return created;
           }),
           py::arg("settings"), py::arg("seed"), py::arg("run"))
      .def(
          "advance",
          [](ToyRun& self, std::int64_t count) {
            require(count >= 0, "count must be at least 0");
            const py::gil_scoped_release release;
            return self.advance(count);
          },
          py::arg("count"))
      .def_property_readonly("x", [](const ToyRun& self) { return rows(self, self.weights()); })
      .def_property_readonly("theta",
                             [](const ToyRun& self) { return rows(self, self.probabilities()); })
      .def_property_readonly("delta",
                             [](const ToyRun& self) { return self.step.delta(self.step_settings); })
      .def_readonly("iteration", &ToyRun::iteration)
      .def_readonly("succeeded", &ToyRun::succeeded);
  module.def("toy_batch", &batch, py::arg("settings"), py::arg("seed"), py::arg("first"),
             py::arg("count"), py::arg("threads"), py::arg("progress"));
  module.def("toy_key", &toy_key, py::arg("seed"), py::arg("run"));
  module.def(
      "toy_start",
      [](std::uint64_t key, std::int64_t count) {
        return drawn(count, [=](double* out) { toy_start(key, count, out); });
      },
      py::arg("key"), py::arg("count"));
  module.def(
      "toy_noise",
      [](std::uint64_t key, std::uint64_t evaluation, std::int64_t count) {
        return drawn(count, [=](double* out) { toy_noise(key, evaluation, count, out); });
      },
      py::arg("key"), py::arg("evaluation"), py::arg("count"));
}

}  // namespace asng::host
