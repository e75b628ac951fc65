// Weights as the modules keep them and as the kernels read them.
#pragma once

#include "kernels/cuda/dag.h"

namespace asng::cuda {

// A 1×1 weight (rows, columns) and the positions of its entries in a packed matrix of `padded` rows
// and `depth` columns, which belong to the padded channels of the sources one after the other.
struct MatrixShape {
  int rows = 0, padded = 0;
  int sources = 1;
  int channels = 0, padded_channels = 0;  // of one source
  // Factorized: both sources have the same columns; the first ⌈rows/2⌉ rows read the first source.
  bool factorized = false;
  // Of 3×3 windows: a source of 9·window channels, ordered by kernel element and then by channel;
  // the weight's columns are the other way round.
  int window = 0;

  ASNG_HD int columns() const { return factorized ? channels : sources * channels; }
  ASNG_HD int depth() const { return sources * padded_channels; }
  ASNG_HD int even_rows() const { return rows - rows / 2; }
  ASNG_HD int64_t size() const { return static_cast<int64_t>(rows) * columns(); }
  ASNG_HD int64_t packed_size() const { return static_cast<int64_t>(padded) * depth(); }

  // The rows that have weights for a source.
  ASNG_HD int first_row(int source) const { return factorized && source == 1 ? even_rows() : 0; }
  ASNG_HD int end_row(int source) const { return factorized && source == 0 ? even_rows() : rows; }
  // Column of the weight, in those rows; -1 where the packed matrix has zeros.
  ASNG_HD int column(int source, int channel) const {
    if (channel >= channels) return -1;
    if (window != 0) return channel % window * 9 + channel / window;
    return (factorized ? 0 : source * channels) + channel;
  }
};

ASNG_HD inline MatrixShape square_matrix(int channels, int padded) {
  MatrixShape m;
  m.rows = m.channels = channels;
  m.padded = m.padded_channels = padded;
  return m;
}

ASNG_HD inline MatrixShape reduction_matrix(int channels, int padded) {
  MatrixShape m = square_matrix(channels, padded);
  m.sources = 2;
  m.factorized = true;
  return m;
}

// A weight and its packed matrix, (depth, padded) in a forward pass, (padded, depth) in a backward
// pass.
template <class T>
struct Matrix {
  MatrixShape shape;
  const T* weight = nullptr;
  T* packed = nullptr;
};

// Which groups of a gradient's splits have been written; otherwise those that read a state.
inline constexpr int kAllCount = -1;
inline constexpr int kLeafNodes = -2;  // the sources are nodes, and it is the leaf nodes that count

// A gradient, the sum over the groups that have been written and over their splits.
template <class T>
struct MatrixGradient {
  MatrixShape shape;
  const T* weight_splits = nullptr;  // (groups, splits, padded, depth)
  int groups = 0, splits = 0;
  int state = kAllCount;  // if not negative, a group has been written if its architecture reads it
  bool shared = false;    // there is one group, for all architectures
  T* grad = nullptr;
};

}  // namespace asng::cuda
