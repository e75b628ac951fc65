// What the operators of nodes, cells and the stem keep for the backward pass, without torch.
#pragma once

#include <cstdint>

namespace asng {

// In units: for each architecture so many times P statistics, where P is the padded channels, and
// so many feature maps (B, H, W, P) of the size of an input and of the output.
struct SavedUnits {
  int64_t statistics = 0, inputs = 0, outputs = 0;
};

// Of each edge what its two stages make before normalization, and how to normalize it: a scale and
// a shift.
constexpr SavedUnits node_saved_units(int64_t edges) { return {4 * edges, 0, 2 * edges}; }

// The projections of both inputs, the nodes and what they keep; scale and shift of the projections
// and of the output.
constexpr SavedUnits cell_saved_units(int64_t nodes) {
  const SavedUnits node = node_saved_units(2);
  return {6 + nodes * node.statistics, 2, nodes * (1 + node.outputs)};
}

// In a stack of cells also the output before normalization, with another scale and shift.
constexpr SavedUnits stacked_cell_saved_units(int64_t nodes) {
  const SavedUnits cell = cell_saved_units(nodes);
  return {cell.statistics + 2, cell.inputs, cell.outputs + 1};
}

// The convolution, with scale and shift.
inline constexpr SavedUnits kStemSavedUnits = {2, 0, 1};

// The same in values. They are one array of the weights' type: statistics, then feature maps, whose
// values lie there as they are stored. Both numbers are multiples of kChannelBlock.
struct SavedSize {
  int64_t statistics = 0, feature_maps = 0;

  SavedSize(const SavedUnits& units, int64_t archs, int64_t padded, int64_t in_size,
            int64_t out_size)
      : statistics(archs * units.statistics * padded),
        feature_maps(archs * (units.inputs * in_size + units.outputs * out_size)) {}

  // Where feature maps are of the weights' type.
  int64_t values() const { return statistics + feature_maps; }
};

}  // namespace asng
