#include "kernels/cpu/pointwise_batch.h"

#include <algorithm>

namespace asng::cpu {

template <class T>
int64_t PointwiseBatch<T>::depth() const {
  int64_t total = 0;
  for (const Source<T>& source : sources) total += source.channels;
  return total;
}

namespace {

// Calls visit(row, column of the weight, position among the sources' channels).
template <class T, class Visit>
void for_each_entry(const PointwiseBatch<T>& p, Visit visit) {
  for (const Columns& columns : p.columns) {
    int64_t start = 0;
    for (int64_t s = 0; s < columns.source; ++s) start += p.sources[s].channels;
    for (int64_t r = columns.row; r < columns.row + columns.row_count; ++r) {
      for (int64_t k = 0; k < columns.count; ++k) visit(r, columns.first + k, start + k);
    }
  }
}

// The sources of one split of the batch.
template <class T>
std::vector<Source<T>> sources_from(const PointwiseBatch<T>& p, int64_t first) {
  std::vector<Source<T>> sources = p.sources;
  for (Source<T>& source : sources) {
    const int64_t pixels = first * source.height * source.width;
    source.x += pixels * source.stored_channels();
    if (source.grad != nullptr) source.grad += pixels * source.channels;
  }
  return sources;
}

}  // namespace

template <class T>
void PointwiseBatch<T>::pack_forward() {
  std::fill_n(packed, packed_size(), T(0));
  for_each_entry(*this, [&](int64_t row, int64_t column, int64_t position) {
    packed[position * padded + row] = weight[row * weight_stride + column];
  });
}

template <class T>
void PointwiseBatch<T>::pack_backward() {
  const int64_t width = depth();
  std::fill_n(packed, packed_size(), T(0));
  for_each_entry(*this, [&](int64_t row, int64_t column, int64_t position) {
    packed[row * width + position] = weight[row * weight_stride + column];
  });
}

template <class T>
void PointwiseBatch<T>::forward_from(const std::vector<Source<T>>& from, Split range,
                                     int64_t split_index, PartialSums& sums) const {
  PointwiseForward<T> task;
  task.sources = from.data();
  task.source_count = static_cast<int64_t>(from.size());
  task.images = range.count;
  task.out_height = out_height;
  task.out_width = out_width;
  task.out_channels = padded;
  task.weight = packed;
  task.z = z + range.first * out_height * out_width * padded;
  task.sum = sums.first(split_index);
  task.sum_squares = sums.second(split_index);
  kernels<T>().pointwise_forward(task);
}

template <class T>
void PointwiseBatch<T>::forward(Split range, int64_t split_index, PartialSums& sums) const {
  forward_from(sources_from(*this, range.first), range, split_index, sums);
}

template <class T>
void PointwiseBatch<T>::reduce(Split range, int64_t split_index, PartialSums& sums) const {
  const int64_t offset = range.first * out_height * out_width * padded;
  std::vector<const T*> from = grads;
  for (const T*& grad : from) grad += offset;
  Reduce<T> task;
  task.pixels = range.count * out_height * out_width;
  task.channels = padded;
  task.grads = from.data();
  task.grad_count = static_cast<int64_t>(from.size());
  task.z = z + offset;
  task.affine = stored;
  task.sum = sums.first(split_index);
  task.dot = sums.second(split_index);
  kernels<T>().reduce(task);
}

template <class T>
void PointwiseBatch<T>::clear_gradient() const {
  std::fill_n(grad_splits, split_count(images) * packed_size(), T(0));
}

template <class T>
void PointwiseBatch<T>::backward_from(const std::vector<Source<T>>& from, Split range,
                                      int64_t split_index) const {
  const int64_t offset = range.first * out_height * out_width * padded;
  std::vector<const T*> incoming = grads;
  for (const T*& grad : incoming) grad += offset;
  PointwiseBackward<T> task;
  task.sources = from.data();
  task.source_count = static_cast<int64_t>(from.size());
  task.images = range.count;
  task.out_height = out_height;
  task.out_width = out_width;
  task.out_channels = padded;
  task.grads = incoming.data();
  task.grad_count = static_cast<int64_t>(incoming.size());
  task.z = z + offset;
  task.norm = norm_gradient;
  task.weight = packed;
  task.grad_weight = grad_splits + split_index * packed_size();
  kernels<T>().pointwise_backward(task);
}

template <class T>
void PointwiseBatch<T>::backward(Split range, int64_t split_index) const {
  std::vector<Source<T>> from = sources_from(*this, range.first);
  if (source_sums != nullptr) {
    from[0].sum = source_sums->first(split_index);
    from[0].dot = source_sums->second(split_index);
  }
  backward_from(from, range, split_index);
}

template <class T>
void PointwiseBatch<T>::add_weight_gradient(T* grad) const {
  const int64_t width = depth(), splits = split_count(images);
  for (int64_t p = 1; p < splits; ++p) {
    const T* part_grad = grad_splits + p * packed_size();
    for (int64_t i = 0; i < packed_size(); ++i) grad_splits[i] += part_grad[i];
  }
  for_each_entry(*this, [&](int64_t row, int64_t column, int64_t position) {
    grad[row * weight_stride + column] += grad_splits[row * width + position];
  });
}

template <class T>
void read_factorized(PointwiseBatch<T>& projection, const Source<T>& source, int64_t in_channels) {
  const int64_t odd = projection.channels / 2, even = projection.channels - odd;
  projection.sources = {source, source};
  for (int64_t i = 0; i < 2; ++i) {
    projection.sources[i].stride = 2;
    projection.sources[i].offset = i;
  }
  // The second reader of the same feature map adds to what the first has written.
  projection.sources[1].accumulate = true;
  projection.columns = {{0, 0, in_channels, 0, even}, {1, 0, in_channels, even, odd}};
}

template struct PointwiseBatch<float>;
template struct PointwiseBatch<double>;
template void read_factorized<float>(PointwiseBatch<float>&, const Source<float>&, int64_t);
template void read_factorized<double>(PointwiseBatch<double>&, const Source<double>&, int64_t);

}  // namespace asng::cpu
