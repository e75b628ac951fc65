// Mixtures: dags of one architecture, whose nodes have different numbers of edges, each multiplied
// by a coefficient. What the edges of a node do one after the other is done by the kernels of
// nodes, on a dag in which all nodes have as many edges as that one; here is what they cannot do.
//
// The edges of a node lie together, and those with a normalization come first: first separable
// convolutions, then factorized reductions.
#pragma once

#include "kernels/cuda/dag.h"

namespace asng::cuda {

// What there is to know of an edge beside its PlannedEdge.
struct MixtureEdge {
  int32_t node;
  // Among all edges with a normalization, or among all max pools.
  int32_t place;
  int32_t number;  // of its coefficient
};

template <class V>
struct MixtureTerms {
  using T = Compute<V>;

  const MixtureEdge* edges = nullptr;  // as the dag's plan
  const T* coefficients = nullptr;     // by number
  uint32_t* maxima = nullptr;          // (max pools, out_size / 4); null: they are not kept

  __device__ T coefficient(int e) const { return coefficients[edges[e].number]; }
};

// What a launch takes for so many edges, within the 4 KiB that the parameters of a kernel may have.
inline constexpr int kMixtureItems = 64;

template <class T>
struct MixturePlanJob {
  struct Item {
    int32_t input, operation;
    MixtureEdge edge;
    // Of a separable convolution depthwise and pointwise of both stages, of a factorized reduction
    // that of even and of odd pixels.
    const T* weights[4];
  };

  DagShape shape;
  Item items[kMixtureItems];
  int count = 0, first = 0;  // of the items, and the place of the first among all edges
  PlannedEdge* plan = nullptr;
  MixtureEdge* edges = nullptr;
  T* packed = nullptr;  // (edges with a normalization, slot_weights)
  unsigned* counters = nullptr;
  int counter_count = 0;
  bool backward = false;
};
static_assert(sizeof(MixturePlanJob<double>) <= 4096);

template <class T>
struct MixtureWeightJob {
  struct Item {
    int32_t place, operation;
    T* grads[4];  // as MixturePlanJob's weights
  };

  DagShape shape;
  Item items[kMixtureItems];
  int count = 0;
  const T* weight_splits = nullptr;  // (edges with a normalization, splits, slot_weights)
  int splits = 0;
};
static_assert(sizeof(MixtureWeightJob<double>) <= 4096);

// packed_weights.cu

// Writes what is known of some edges, packs their weights, and clears counters.
template <class T>
void plan_mixture(const MixturePlanJob<T>& job, CudaStream stream);

// combine.cu

// A node as the sum of its edges times their coefficients. The dag and the terms begin with those
// of the node, but for what states are.
template <class V>
void combine_mixture(const Dag<V>& dag, const MixtureTerms<V>& terms, int node, CudaStream stream);

// gather.cu

// ⟨gradient of the node, edge⟩ of every edge, to `grad_coefficients` by number, and the sums for
// the normalizations that end edges. Dag and terms as above.
template <class V>
void reduce_mixture(const Dag<V>& dag, const Gradients<V>& gradients, const MixtureTerms<V>& terms,
                    int node, Compute<V>* grad_coefficients, CudaStream stream);
// The gradient of a state to `to`: what the edges that read it send, `readers` of the `edges` of
// all nodes, and `grad`, where that is not null. `dag`, `gradients` and `terms` are those of all.
template <class V>
void gather_mixture(const Dag<V>& dag, const Gradients<V>& gradients, const MixtureTerms<V>& terms,
                    int edges, int state, int readers, const V* grad, V* to, CudaStream stream);

// weight_gradients.cu

// Sums the splits of the gradients of some edges' weights.
template <class T>
void sum_mixture_weights(const MixtureWeightJob<T>& job, CudaStream stream);

}  // namespace asng::cuda
