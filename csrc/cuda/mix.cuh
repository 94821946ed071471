// The matrices of order K on CUDA: their signs as a parameter of a kernel, the sums that they stand
// for, and a kernel that makes those of a few columns at a time.
#pragma once

#include "launch.cuh"

namespace fastfood::cuda {

// A SignMatrix as a parameter of a kernel.
template <int kWords>
struct Signs {
  int K, words;
  uint32_t bits[kWords];
};
constexpr int kSmallWords = 172 * 6;
constexpr int kLargeWords = 428 * 14;

template <int kWords>
Signs<kWords> copy_signs(const SignMatrix* matrix) {
  Signs<kWords> signs{1, 0, {}};
  if (!matrix) return signs;
  signs.K = static_cast<int>(matrix->K);
  signs.words = static_cast<int>(matrix->words);
  for (int64_t i = 0; i < matrix->K * matrix->words; ++i) signs.bits[i] = matrix->bits[i];
  return signs;
}

constexpr int kSums = 4;  // that a thread makes at once, so that each entry read serves four

// Sums a, ... a + kSums - 1 of the K entries x(0), x(1), ...
template <int kWords, class C, class Entry>
__device__ __forceinline__ void signed_sums(const Signs<kWords>& signs, int a, Entry x,
                                            C (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = C{0};
  for (int word = 0; word < signs.words; ++word) {
    uint32_t bits[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) bits[i] = signs.bits[(a + i) * signs.words + word];
    const int end = signs.K - word * 32 < 32 ? signs.K - word * 32 : 32;
    for (int b = 0; b < end; ++b) {
      const C value = x(word * 32 + b);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += bits[i] >> b & 1 ? -value : value;
    }
  }
}

constexpr int kMixThreads = 256;

// The matrix over `columns` neighbouring columns at a time of K entries `stride` apart, in entries
// [first, first + total).
template <int kWords, class Load, class Store>
__global__ void __launch_bounds__(kMixThreads)
    mix_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
               const __grid_constant__ Signs<kWords> signs, int64_t first, int64_t total,
               int64_t stride, int columns) {
  using C = typename Load::Value;
  const Shared<C> tile = shared_memory<C>();
  const int K = signs.K, thread = static_cast<int>(threadIdx.x);
  const int64_t all_columns = total / K;
  for (int64_t group = blockIdx.x; group * columns < all_columns; group += gridDim.x) {
    const int64_t left = all_columns - group * columns;
    const int here = left < columns ? static_cast<int>(left) : columns;
    const auto start = [&](int j) {
      const int64_t column = group * columns + j;
      return first + column / stride * K * stride + column % stride;
    };
    for (int i = thread; i < K * columns; i += kMixThreads)
      if (i % columns < here) tile[i] = load.one(start(i % columns) + i / columns * stride);
    __syncthreads();
    for (int item = thread; item < K / kSums * columns; item += kMixThreads) {
      const int j = item % columns, a = item / columns * kSums;
      if (j >= here) continue;
      C sums[kSums];
      signed_sums(signs, a, [&](int b) { return tile[b * columns + j]; }, sums);
#pragma unroll
      for (int i = 0; i < kSums; ++i) store.one(start(j) + (a + i) * stride, sums[i]);
    }
    __syncthreads();  // all columns are read before the next ones come in
  }
}

template <int kWords, class Load, class Store>
const char* launch_mix(const SignMatrix& matrix, const Load& load, const Store& store,
                       int64_t first, int64_t end, int64_t stride, StreamHandle stream) {
  constexpr int64_t kSize = sizeof(typename Load::Value);
  const int columns = matrix.K * 32 * kSize <= static_cast<int64_t>(kSharedBytes) ? 32 : 8;
  const int64_t blocks = divide_up((end - first) / matrix.K, columns);
  return launch("mix_kernel", mix_kernel<kWords, Load, Store>, blocks, kMixThreads,
                static_cast<size_t>(matrix.K * columns * kSize), stream, load, store,
                copy_signs<kWords>(&matrix), first, end - first, stride, columns);
}

// The same for the size of parameter that the matrix needs.
template <class Load, class Store>
const char* launch_any_mix(const SignMatrix& matrix, const Load& load, const Store& store,
                           int64_t first, int64_t end, int64_t stride, StreamHandle stream) {
  if (matrix.K * matrix.words <= kSmallWords)
    return launch_mix<kSmallWords>(matrix, load, store, first, end, stride, stream);
  return launch_mix<kLargeWords>(matrix, load, store, first, end, stride, stream);
}

}  // namespace fastfood::cuda
