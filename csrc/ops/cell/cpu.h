// A cell of the search space, for all architectures at once: input projections, nodes, output.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pointwise_batch.h"
#include "ops/cell/cpu_dag.h"
#include "platform/memory.h"

namespace asng::cpu {

struct CellInput {
  int64_t archs = 0;  // 1: all architectures share it
  int64_t channels = 0, padded = 0, height = 0, width = 0;
};

struct CellShape {
  int64_t archs = 0, nodes = 0, images = 0;
  int64_t channels = 0, padded = 0;
  CellInput prev_prev, prev;
  int64_t out_height = 0, out_width = 0;
  bool reduction = false;
  bool prev_prev_is_larger = false;  // the prev_prev input passes a factorized reduction

  int64_t in_size() const { return images * prev.height * prev.width * padded; }
  int64_t out_size() const { return images * out_height * out_width * padded; }
  DagShape dag() const;
  // Values that the backward pass needs, at most. The function of the same name in
  // asng_ext/ops/cell.py must agree.
  int64_t saved_bound() const;
};

template <class T>
struct CellWeights {
  T* prev_prev =
      nullptr;        // (channels, prev_prev channels); factorized: rows for even pixels come first
  T* prev = nullptr;  // (channels, prev channels)
  T* output = nullptr;  // (channels, nodes · channels)
  OperationWeights<T> operations;
};

// An input or the output of a cell: images of every architecture, or of all together.
template <class T>
struct CellImages {
  const T* x = nullptr;
  // (archs, 2, padded): how the images of each architecture are to be read; null: as they are.
  const T* norms = nullptr;

  Affine<T> affine(int64_t arch, int64_t padded) const {
    if (norms == nullptr) return {};
    return {norms + 2 * arch * padded, norms + (2 * arch + 1) * padded};
  }
};

// Where the gradient of an input goes.
template <class T>
struct InputGradient {
  T* grad = nullptr;  // null: not wanted
  // By architecture: whether there is a gradient to add to. Set for those that are written.
  std::vector<bool>* written = nullptr;
  // Of each architecture, if not null: Σ grad and Σ grad·x over what grad holds when the cell is
  // done. x is what the cell reads, a normalized output of another cell.
  std::vector<PartialSums>* sums = nullptr;
};

// Zeros for architectures that do not read an input.
template <class T>
void clear_unwritten(const CellShape& shape, const CellInput& input, T* grad,
                     const std::vector<bool>& written);

template <class T>
class Cell {
 public:
  // `inputs` and `operations` are (archs, nodes, 2). Throws std::invalid_argument.
  Cell(const CellShape& shape, const CellWeights<const T>& weights, const int32_t* inputs,
       const int32_t* operations);

  // y (archs, images, out_height, out_width, padded). `saved` has saved_bound() values or is null.
  void forward(const T* prev_prev, const T* prev, T* y, T* saved);

  // grad_prev_prev and grad_prev are written, either may be null; `grads` are added to.
  void backward(const T* prev_prev, const T* prev, const T* y, const T* grad_y, T* saved,
                T* grad_prev_prev, T* grad_prev, const CellWeights<T>& grads);

  // As `forward`, but leaves the output as it is before its normalization, which goes to `norms`,
  // as in CellImages. `memory` has room for saved_bound() values.
  void run(CellImages<T> prev_prev, CellImages<T> prev, T* z, T* norms, Bump<T>& memory, bool save);

  // As `backward`, with the memory of `run`, which must have saved. The output is as `run` left it,
  // or normalized already if `normalized`. `sums` of grad_y and the output by architecture, or
  // null.
  void run_backward(CellImages<T> prev_prev, CellImages<T> prev, const T* z, const T* norms,
                    bool normalized, const T* grad_y, const std::vector<PartialSums>* sums,
                    Bump<T>& memory, const InputGradient<T>& grad_prev_prev,
                    const InputGradient<T>& grad_prev, const CellWeights<T>& grads);

  // Advances `memory` as `run` does that saves.
  void skip(CellImages<T> prev_prev, CellImages<T> prev, Bump<T>& memory);

  void normalize(T* z, const T* norms) const;
  bool reads(int64_t arch, bool prev_prev) const { return dag_.reads(arch, prev_prev ? 0 : 1); }

 private:
  int64_t splits() const { return split_count(shape_.images); }
  void place_inputs(Bump<T>& memory, CellImages<T> prev_prev, CellImages<T> prev);
  void place_outputs(const T* z, const T* norms, bool normalized);
  // Memory for one image of every leaf node of an architecture.
  size_t leaf_bytes() const {
    return static_cast<size_t>(shape_.nodes * shape_.out_size() / shape_.images) * sizeof(T);
  }
  std::vector<Source<T>> leaf_sources(const PointwiseBatch<T>& p, const T* nodes) const;
  void combine_leaf(const PointwiseBatch<T>& p, int64_t image, T* nodes) const;
  void project_inputs();
  void project_outputs(int64_t arch, int64_t split_index, Split images, PartialSums& sums) const;
  Block pack(std::vector<PointwiseBatch<T>>& projections, bool backward);
  void finish_gradients(std::vector<PointwiseBatch<T>>& projections,
                        const std::vector<PartialSums>& sums);
  std::vector<PartialSums> reduce_outputs() const;
  void backward_outputs(int64_t arch, int64_t split_index, Split images) const;
  void backward_inputs(const InputGradient<T>& prev_prev, const InputGradient<T>& prev,
                       const CellWeights<T>& grads);

  CellShape shape_;
  CellWeights<const T> weights_;
  Dag<T> dag_;
  std::vector<PointwiseBatch<T>> inputs_;   // those of the prev_prev input come first
  std::vector<PointwiseBatch<T>> outputs_;  // one for every architecture, of its leaf nodes
  std::vector<T> coefficients_;
};

}  // namespace asng::cpu
