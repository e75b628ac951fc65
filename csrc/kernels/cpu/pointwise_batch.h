// A pointwise convolution of concatenated feature maps with its normalization, over the splits of a
// batch.
#pragma once

#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/norm_statistics.h"
#include "platform/memory.h"

namespace asng::cpu {

// Where the columns of a weight matrix (rows, Σ columns) meet the padded channels of the sources.
struct Columns {
  int64_t source;          // index of the source
  int64_t first, count;    // columns of the weight
  int64_t row, row_count;  // rows of the weight that read this source; other entries are zero
};

template <class T>
struct PointwiseBatch {
  PointwiseBatch() = default;
  PointwiseBatch(int64_t images, int64_t out_height, int64_t out_width, int64_t channels)
      : images(images),
        out_height(out_height),
        out_width(out_width),
        channels(channels),
        padded(padded_channels(channels)) {}

  int64_t arch = 0;
  bool of_prev_prev = false;  // reads the prev_prev input of a cell
  int64_t images = 0, out_height = 0, out_width = 0;
  int64_t channels = 0, padded = 0;  // real and padded channels of the output
  std::vector<Source<T>> sources;
  std::vector<Columns> columns;
  const T* weight = nullptr;  // (channels, stride)
  int64_t weight_stride = 0;
  T* z = nullptr;
  Norm<T> norm;
  Affine<T> stored;  // how z reads in the backward pass

  // Working memory of a pass.
  T* packed = nullptr;
  std::vector<const T*> grads;
  PartialSums* source_sums = nullptr;  // of the first source's gradient: see Source
  NormGradient<T> norm_gradient;
  T* grad_splits = nullptr;  // (splits, padded, depth)

  int64_t depth() const;
  int64_t pixels() const { return images * out_height * out_width; }
  int64_t packed_size() const { return padded * depth(); }

  void pack_forward();   // packed: (depth, padded)
  void pack_backward();  // packed: (padded, depth)
  // Some feature maps, all of one split.
  void forward(Split range, int64_t split_index, PartialSums& sums) const;
  void reduce(Split range, int64_t split_index, PartialSums& sums) const;
  void clear_gradient() const;
  void backward(Split range, int64_t split_index) const;
  // The same from sources that begin with the first of these feature maps.
  void forward_from(const std::vector<Source<T>>& from, Split range, int64_t split_index,
                    PartialSums& sums) const;
  void backward_from(const std::vector<Source<T>>& from, Split range, int64_t split_index) const;
  void add_weight_gradient(T* grad) const;  // grad has the layout of `weight`
};

// A factorized reduction: rows of the weight for even pixels come first, then those for odd ones.
template <class T>
void read_factorized(PointwiseBatch<T>& projection, const Source<T>& source, int64_t in_channels);

}  // namespace asng::cpu
