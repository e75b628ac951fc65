// A node by itself: a dag of one node whose sum is stored.
#pragma once

#include <cstdint>

#include "ops/cell/cpu_dag.h"

namespace asng::cpu {

template <class T>
class Node {
 public:
  // Of `shape`, with one node; the rest as in Graph.
  Node(const DagShape& shape, const OperationWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations)
      : shape_(shape), dag_(shape, weights, inputs, operations) {}

  // What the node reads; to be set before the first pass.
  State<T>& input(int64_t arch, int64_t index) { return dag_.state(arch, index); }

  // out (archs, images, out_height, out_width, padded); `saved` has saved_bound() values.
  void forward(T* saved, T* out) {
    place(saved);
    dag_.forward([&](int64_t arch, int64_t, Split images) {
      dag_.combine(arch, 0, images,
                   out + arch * shape_.out_size() + images.first * shape_.image_size());
    });
  }

  // Adds to the gradients of the inputs or writes them, and adds to `grads`.
  void backward(T* saved, const T* grad_out, const OperationWeights<T>& grads) {
    place(saved);
    for (int64_t arch = 0; arch < shape_.archs; ++arch) {
      // Nobody writes the gradient of a node that no node reads.
      dag_.state(arch, shape_.inputs).grad = const_cast<T*>(grad_out) + arch * shape_.out_size();
    }
    const int64_t count = dag_.gradient_bound();
    const Block block = acquire(static_cast<size_t>(count) * sizeof(T));
    Bump<T> memory(static_cast<T*>(block.get()), count);
    dag_.allocate_gradients(memory);
    dag_.backward([](int64_t, int64_t, Split) {}, grads);
  }

 private:
  void place(T* saved) {
    Bump<T> memory(saved, shape_.saved_bound());
    dag_.place(memory);
  }

  DagShape shape_;
  Dag<T> dag_;
};

}  // namespace asng::cpu
