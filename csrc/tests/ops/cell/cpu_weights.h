// The weights of a cell one after the other.
#pragma once

#include <cstdint>

#include "ops/cell/cpu.h"

namespace asng::cpu {

// Where each kind of weight begins in an array of them all; null if there is none. Returns how many
// weights there are.
template <class P>
int64_t split(const CellShape& s, P* values, CellWeights<P>& w) {
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    P* part = values == nullptr ? nullptr : values + used;
    used += count;
    return part;
  };
  const int64_t edges = s.nodes * (s.nodes + 3) / 2, c = s.channels;
  w.prev_prev = take(c * s.prev_prev.channels);
  w.prev = take(c * s.prev.channels);
  w.output = take(c * s.nodes * c);
  for (int kind = 0; kind < 2; ++kind) {
    w.operations.depthwise[kind] = take(edges * 2 * c * (kind == 0 ? 9 : 25));
    w.operations.pointwise[kind] = take(edges * 2 * c * c);
  }
  if (s.reduction) w.operations.reduction = take(2 * s.nodes * c * c);
  return used;
}

template <class P>
CellWeights<P> split(const CellShape& s, P* values) {
  CellWeights<P> w;
  split(s, values, w);
  return w;
}

}  // namespace asng::cpu
