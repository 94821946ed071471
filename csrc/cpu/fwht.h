// The Walsh-Hadamard butterflies over an array of vectors: entry i of the transform is vector i, so
// that each lane is a transform of its own. Levels run in ascending stride order, depth first, so
// that every piece is finished while it is in cache; eight vectors at a time keep three levels in
// registers.
#pragma once

#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

// The levels of strides 1, 2, ... N / 2 over N values.
template <int N, class V>
FASTFOOD_INLINE void butterflies(V* x) {
#pragma GCC unroll 8
  for (int stride = 1; stride < N; stride *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (i & stride) continue;
      const V sum = x[i] + x[i + stride];
      x[i + stride] = x[i] - x[i + stride];
      x[i] = sum;
    }
  }
}

// log2(R) levels over the columns of an R x stride array of vectors at x, which need not be
// aligned.
template <int R, class T>
FASTFOOD_INLINE void radix_pass(T* x, int64_t stride) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < stride; ++j) {
    Vector<T> r[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) r[i] = load(x + (i * stride + j) * lanes);
    butterflies<R>(r);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) store(x + (i * stride + j) * lanes, r[i]);
  }
}

// H_count over the `count` vectors at x, in place; count a power of two.
template <class T>
static void transform_vectors(T* x, int64_t count) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int64_t kInCache = 512;  // vectors: 32 KB at most
  int64_t stride = 1;
  if (count > kInCache) {
    stride = count / (count >= 8 * kInCache ? 8 : count / kInCache);
    for (int64_t i = 0; i < count; i += stride) transform_vectors(x + i * lanes, stride);
  }
  while (stride < count) {
    const int64_t radix = count / stride < 8 ? count / stride : 8;
    for (int64_t i = 0; i < count; i += radix * stride) {
      if (radix == 8) radix_pass<8>(x + i * lanes, stride);
      if (radix == 4) radix_pass<4>(x + i * lanes, stride);
      if (radix == 2) radix_pass<2>(x + i * lanes, stride);
    }
    stride *= radix;
  }
}

}  // namespace fastfood::FASTFOOD_ISA
