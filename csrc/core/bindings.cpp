#include "core/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/operations.h"
#include "ops/cell/shape.h"

namespace py = pybind11;

namespace asng {
namespace {

py::tuple operations() {
  py::tuple all(kOperationCount);
  for (int i = 0; i < kOperationCount; ++i) all[i] = py::cast(kOperations[i]);
  return all;
}

py::tuple names_of(const std::vector<WeightShape>& weights) {
  py::tuple names(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) names[i] = weights[i].name;
  return names;
}

py::dict shapes_of(const std::vector<WeightShape>& weights) {
  py::dict shapes;
  for (const WeightShape& w : weights) shapes[py::str(w.name)] = py::tuple(py::cast(w.sizes));
  return shapes;
}

py::tuple tuple_of(const SavedUnits& units) {
  return py::make_tuple(units.statistics, units.inputs, units.outputs);
}

}  // namespace

void bind_constants(py::module_& module) {
  py::class_<Operation>(module, "Operation")
      .def_readonly("name", &Operation::name)
      .def_property_readonly(
          "form", [](const Operation& self) { return kFormNames[static_cast<int>(self.form)]; })
      .def_readonly("kernel", &Operation::kernel)
      .def_readonly("dilation", &Operation::dilation)
      .def_readonly("in_paper", &Operation::in_paper)
      .def_property_readonly("weights", [](const Operation& self) {
        const bool separable = self.form == Form::kSeparable;
        return separable ? py::make_tuple("depthwise" + weight_suffix(self),
                                          "pointwise" + weight_suffix(self))
                         : py::tuple();
      });
  module.attr("OPERATIONS") = operations();
  module.attr("OPERATION_WEIGHTS") = names_of(operation_weights(0, 0, 0));
  module.attr("CELL_WEIGHTS") = names_of(cell_weights(0, 0, 0, 0));
  module.attr("CHANNEL_BLOCK") = kChannelBlock;
  module.attr("EPSILON") = kEpsilon;
  module.def("operation_weights", [](int64_t edges, int64_t reductions, int64_t channels) {
    return shapes_of(operation_weights(edges, reductions, channels));
  });
  module.def("cell_weights", [](int64_t nodes, int64_t channels, int64_t prev_prev_channels,
                                int64_t prev_channels) {
    return shapes_of(cell_weights(nodes, channels, prev_prev_channels, prev_channels));
  });
  module.def("node_saved_units", [](int64_t edges) { return tuple_of(node_saved_units(edges)); });
  module.def("cell_saved_units", [](int64_t nodes) { return tuple_of(cell_saved_units(nodes)); });
  module.def("stacked_cell_saved_units",
             [](int64_t nodes) { return tuple_of(stacked_cell_saved_units(nodes)); });
  module.attr("STEM_SAVED_UNITS") = tuple_of(kStemSavedUnits);
}

}  // namespace asng
