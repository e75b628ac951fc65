// A cell of the search space, for all architectures at once: input projections, nodes, output.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/projection.h"
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
  CellInput older, newer;
  int64_t out_height = 0, out_width = 0;
  bool reduction = false;
  bool older_is_larger = false;  // the older input passes a factorized reduction

  int64_t in_size() const { return images * newer.height * newer.width * padded; }
  int64_t out_size() const { return images * out_height * out_width * padded; }
  GraphShape graph() const;
  // Values that the backward pass needs, at most. The function of the same name in
  // asng_ext/ops/cell.py must agree.
  int64_t saved_bound() const;
};

template <class T>
struct CellWeights {
  T* older = nullptr;   // (channels, older channels); factorized: rows for even pixels come first
  T* newer = nullptr;   // (channels, newer channels)
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
  // done. x is what the cell reads, a normalised output of another cell.
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
  void forward(const T* older, const T* newer, T* y, T* saved);

  // grad_older and grad_newer are written, either may be null; `grads` are added to.
  void backward(const T* older, const T* newer, const T* y, const T* grad_y, T* saved,
                T* grad_older, T* grad_newer, const CellWeights<T>& grads);

  // As `forward`, but leaves the output as it is before its normalisation, which goes to `norms`,
  // as in CellImages. `memory` has room for saved_bound() values.
  void run(CellImages<T> older, CellImages<T> newer, T* z, T* norms, Bump<T>& memory, bool save);

  // As `backward`, with the memory of `run`, which must have saved. The output is as `run` left it,
  // or normalised already if `normalised`. `sums` of grad_y and the output by architecture, or
  // null.
  void run_backward(CellImages<T> older, CellImages<T> newer, const T* z, const T* norms,
                    bool normalised, const T* grad_y, const std::vector<PartialSums>* sums,
                    Bump<T>& memory, const InputGradient<T>& grad_older,
                    const InputGradient<T>& grad_newer, const CellWeights<T>& grads);

  // Advances `memory` as `run` does that saves.
  void skip(CellImages<T> older, CellImages<T> newer, Bump<T>& memory);

  void normalise(T* z, const T* norms) const;
  bool reads(int64_t arch, bool older) const { return graph_.reads(arch, older ? 0 : 1); }

 private:
  int64_t parts() const { return part_count(shape_.images); }
  void place_inputs(Bump<T>& memory, CellImages<T> older, CellImages<T> newer);
  void place_outputs(const T* z, const T* norms, bool normalised);
  // Memory for one image of every loose node of an architecture.
  size_t loose_bytes() const {
    return static_cast<size_t>(shape_.nodes * shape_.out_size() / shape_.images) * sizeof(T);
  }
  std::vector<Source<T>> loose_sources(const Projection<T>& p, const T* nodes) const;
  void combine_loose(const Projection<T>& p, int64_t image, T* nodes) const;
  void project_inputs();
  void project_outputs(int64_t arch, int64_t part_index, Part images, PartialSums& sums) const;
  Block pack(std::vector<Projection<T>>& projections, bool backward);
  void finish_gradients(std::vector<Projection<T>>& projections,
                        const std::vector<PartialSums>& sums);
  std::vector<PartialSums> reduce_outputs() const;
  void backward_outputs(int64_t arch, int64_t part_index, Part images) const;
  void backward_inputs(const InputGradient<T>& older, const InputGradient<T>& newer,
                       const CellWeights<T>& grads);

  CellShape shape_;
  CellWeights<const T> weights_;
  Graph<T> graph_;
  std::vector<Projection<T>> inputs_;   // those of the older input come first
  std::vector<Projection<T>> outputs_;  // one for every architecture, of its loose nodes
  std::vector<T> coefficients_;
};

}  // namespace asng::cpu
