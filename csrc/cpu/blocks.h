// The layout of a block of the projection on the CPU: kLanes sub-blocks of S = L / kLanes
// consecutive rows lie side by side, so that row k S + j of the block is lane k of vector j. One
// vector of Philox calls then serves all sub-blocks, and levels within them need no shuffles. On
// the way to or from memory a square of lanes x lanes entries is transposed. Its vectors then hold
// consecutive rows, one vector for each sub-block, and the remaining levels run between them.
#pragma once

#include "fwht.h"
#include "normals.h"

namespace fastfood::FASTFOOD_ISA {

// The calls of stream G for a block of L: lane k draws for sub-block k.
template <class T>
static Calls calls_of_blocks(uint64_t seed, int64_t L) {
  return Calls(seed, static_cast<uint32_t>(Stream::G),
               static_cast<uint64_t>(L / kLanes<T> / kNormalsPerCall));
}

FASTFOOD_INLINE void convert(Float z, Float* out) { *out = z; }
FASTFOOD_INLINE void convert(Float z, Vector<double>* out) {
  for (int i = 0; i < kLanes<double>; ++i) (*out)[i] = z[i];
}

// Draws kCount consecutive vectors of G. Lane 0 of the first one is row `row` of the projection, a
// multiple of eight.
template <int kCount, class T>
FASTFOOD_INLINE void draw(const Calls& calls, int64_t row, Vector<T>* g) {
  static_assert(kCount % kNormalsPerCall == 0, "draws whole calls");
  U32 words[kCount / kNormalsPerCall][4];
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kNormalsPerCall; ++i)
    calls.words(static_cast<uint64_t>(row) / kNormalsPerCall + static_cast<uint64_t>(i), words[i]);
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kNormalsPerCall; ++i) {
    Float z[kNormalsPerCall];
    normals_of_words(words[i], z);
#pragma GCC unroll 8
    for (int k = 0; k < kNormalsPerCall; ++k) convert(z[k], &g[i * kNormalsPerCall + k]);
  }
}

// Copies L entries from x to y: from the order of rows to the layout above, and back.
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
