// How a block of the projection is worked on: as kLanes sub-blocks of consecutive rows side by
// side. Row k S + j of the block, with S = L / kLanes, is lane k of vector j. One Philox vector
// then serves all sub-blocks, and levels inside them need no shuffles. A square of vectors is
// transposed where it becomes memory: its vectors are then consecutive rows, one of each sub-block,
// and the remaining levels run between them.
#pragma once

#include "fwht.h"
#include "normals.h"

namespace fastfood::FASTFOOD_ISA {

// Calls of stream G for blocks of L: lane k is sub-block k.
template <class T>
static Calls calls_of_blocks(uint64_t seed, int64_t L) {
  return Calls(seed, static_cast<uint32_t>(Stream::G),
               static_cast<uint64_t>(L / kLanes<T> / kHalves));
}

FASTFOOD_INLINE void convert(Float z, Float* out) { *out = z; }
FASTFOOD_INLINE void convert(Float z, Vector<double>* out) {
  for (int i = 0; i < kLanes<double>; ++i) (*out)[i] = z[i];
}

// kCount vectors of G, from row `row` of the projection in lane 0 on.
template <int kCount, class T>
FASTFOOD_INLINE void draw(const Calls& calls, int64_t row, Vector<T>* g) {
  U32 words[kCount / kHalves][4];
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kHalves; ++i)
    calls.words(static_cast<uint64_t>(row) / kHalves + static_cast<uint64_t>(i), words[i]);
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kHalves; ++i) {
    Float z[kHalves];
    normals_of_words(words[i], z);
#pragma GCC unroll 8
    for (int k = 0; k < kHalves; ++k) convert(z[k], &g[i * kHalves + k]);
  }
}

// L entries at x, from rows to lanes or from lanes to rows, at y.
template <class T>
static void rows_to_lanes(const T* x, T* y, int64_t L) {
  const int64_t rows = L / kLanes<T>;
  for (int64_t j = 0; j < rows; j += kLanes<T>) {
    Vector<T> r[kLanes<T>];
    for (int k = 0; k < kLanes<T>; ++k) r[k] = load(x + k * rows + j);
    store_lanes(r, j, y);
  }
}
template <class T>
static void lanes_to_rows(const T* x, T* y, int64_t L) {
  const int64_t rows = L / kLanes<T>;
  for (int64_t j = 0; j < rows; j += kLanes<T>) {
    Vector<T> r[kLanes<T>];
    load_lanes(x, j, r);
    for (int k = 0; k < kLanes<T>; ++k) store(y + k * rows + j, r[k]);
  }
}

}  // namespace fastfood::FASTFOOD_ISA
