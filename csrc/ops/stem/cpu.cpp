#include "ops/stem/cpu.h"

#include <algorithm>
#include <vector>

#include "platform/threads.h"

namespace asng::cpu {

template <class T>
Stem<T>::Stem(const StemShape& shape, const T* weight) : shape_(shape), weight_(weight) {}

// A product of the windows, whose values are ordered by kernel element and then by channel; weights
// are the other way round, (channels, in_channels, kernel elements).
template <class T>
PointwiseBatch<T> Stem<T>::projection(const T* x, T* saved) const {
  PointwiseBatch<T> p(shape_.images, shape_.height, shape_.width, shape_.channels);
  Source<T> source;
  source.x = x;
  source.channels = padded_channels(kStemKernelElements * shape_.in_channels);
  source.window_channels = shape_.in_channels;
  source.height = shape_.height;
  source.width = shape_.width;
  p.sources = {source};
  p.columns = {{0, 0, kStemKernelElements * shape_.in_channels, 0, shape_.channels}};
  p.weight_stride = kStemKernelElements * shape_.in_channels;
  p.norm = {saved, saved + shape_.padded};
  p.stored = p.norm.affine();
  p.z = saved + 2 * shape_.padded;
  return p;
}

// Calls visit(position in the weight, position in the matrix of that product).
template <class Visit>
void for_each_weight(const StemShape& s, Visit visit) {
  for (int64_t o = 0; o < s.channels; ++o) {
    for (int64_t c = 0; c < s.in_channels; ++c) {
      for (int64_t k = 0; k < kStemKernelElements; ++k) {
        visit((o * s.in_channels + c) * kStemKernelElements + k,
              (o * kStemKernelElements + k) * s.in_channels + c);
      }
    }
  }
}

template <class T>
void Stem<T>::forward(const T* x, const T* scale, const T* bias, T* y, T* saved) {
  PointwiseBatch<T> p = projection(x, saved);
  const int64_t columns = p.weight_stride, splits = split_count(shape_.images);
  std::vector<T> weight(static_cast<size_t>(shape_.channels * columns));
  for_each_weight(shape_, [&](int64_t from, int64_t to) { weight[to] = weight_[from]; });
  p.weight = weight.data();
  std::vector<T> packed(static_cast<size_t>(p.packed_size()));
  p.packed = packed.data();
  p.pack_forward();
  PartialSums sums(splits, shape_.padded);
  run_tasks(splits, [&](int64_t i) { p.forward(split(shape_.images, i), i, sums); });
  finish_norm(sums, p.pixels(), shape_.padded, p.norm);
  std::vector<T> affine(static_cast<size_t>(2 * shape_.padded));
  for (int64_t c = 0; c < shape_.channels; ++c) {
    affine[c] = p.norm.scale[c] * scale[c];
    affine[shape_.padded + c] = p.norm.shift[c] * scale[c] + bias[c];
  }
  run_tasks(splits, [&](int64_t i) {
    const Split range = split(shape_.images, i);
    const int64_t first = range.first * shape_.out_size() / shape_.images;
    Term<T> term;
    term.normalized = true;
    term.x = p.z + first;
    term.affine = {affine.data(), affine.data() + shape_.padded};
    term.height = shape_.height;
    term.width = shape_.width;
    Combine<T> task;
    task.terms = &term;
    task.term_count = 1;
    task.images = range.count;
    task.out_height = shape_.height;
    task.out_width = shape_.width;
    task.channels = shape_.padded;
    task.out = y + first;
    kernels<T>().combine_forward(task);
  });
}

template <class T>
void Stem<T>::backward(const T* x, const T* scale, const T* grad_y, T* saved, T* grad_weight,
                       T* grad_scale, T* grad_bias) {
  PointwiseBatch<T> p = projection(x, saved);
  const int64_t splits = split_count(shape_.images), columns = p.weight_stride;
  p.grads = {grad_y};
  PartialSums sums(splits, shape_.padded);
  run_tasks(splits, [&](int64_t i) { p.reduce(split(shape_.images, i), i, sums); });
  std::vector<T> coefficients(static_cast<size_t>(3 * shape_.padded));
  p.norm_gradient = finish_norm_gradient(sums, p.pixels(), shape_.padded, p.norm.scale, p.stored,
                                         T(1), coefficients.data());
  for (int64_t c = 0; c < shape_.padded; ++c) {
    const bool real = c < shape_.channels;
    for (int64_t k = 0; k < 3; ++k) {
      coefficients[k * shape_.padded + c] *= real ? scale[c] : T(0);
    }
    if (!real) continue;
    grad_bias[c] += static_cast<T>(sums.first_total(c));
    grad_scale[c] += static_cast<T>(sums.second_total(c));
  }
  // The images need no gradient, so neither does this product need a weight.
  std::vector<T> grad_splits(static_cast<size_t>(splits * p.packed_size()));
  p.grad_splits = grad_splits.data();
  run_tasks(splits, [&](int64_t i) { p.backward(split(shape_.images, i), i); });
  std::vector<T> grad(static_cast<size_t>(shape_.channels * columns));
  p.add_weight_gradient(grad.data());
  for_each_weight(shape_, [&](int64_t to, int64_t from) { grad_weight[to] += grad[from]; });
}

template class Stem<float>;
template class Stem<double>;

}  // namespace asng::cpu
