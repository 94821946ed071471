// Sign matrices of order K on the device: kernels that write them to a workspace, in a layout that
// serves every order, and the plain sums that they stand for.
#pragma once

#include "../orders.h"
#include "storage.cuh"

namespace fastfood::cuda {

// A sign matrix on the device. Bits of bits[w rows + a] are the signs of columns 32 w ... 32 w + 31
// of row a, set for negative entries, and their two middle bytes are exchanged (swap_middle):
// columns 8 apart are then 16 bits apart, so that one shift and one mask make a pair of 16-bit
// numbers of their signs. Bits beyond K are zero.
struct Signs {
  const uint32_t* bits;
  int K, rows;  // rows: K rounded up to a multiple of 32
};

// Exchanges the two bytes in the middle.
__host__ __device__ __forceinline__ uint32_t swap_middle(uint32_t word) {
  return (word & 0xFF0000FFu) | (word & 0xFF00u) << 8 | (word >> 8 & 0xFF00u);
}

inline int64_t padded(int64_t K) { return divide_up(K, 32) * 32; }
inline int64_t sign_words(int64_t K) { return padded(K) / 32 * padded(K); }

// Rows [first, first + count) of a SignMatrix, as a parameter of a kernel.
template <int kWords>
struct SignRows {
  int K, words, first, count;
  uint32_t bits[kWords];
  __device__ __forceinline__ uint32_t at(int a, int b) const {
    return bits[(a - first) * words + b / 32] >> b % 32 & 1;
  }
};
constexpr int kOuterMost = 64;  // the largest order that is combined with another
constexpr int kOuterWords = 2 * kOuterMost;
constexpr int kFewWords = 172 * 6, kManyWords = 7 * 1024;
static_assert(kOuterMost % 32 == 0, "an outer matrix fits kOuterWords");
static_assert(kFewWords < kManyWords && kManyWords >= kLargestOrder / 32 + 1,
              "a launch takes one row of any matrix at least");
static_assert(sizeof(SignRows<kOuterWords>) + sizeof(SignRows<kManyWords>) < 32000,
              "they fit a launch's parameters, 32764 bytes from CUDA 12.1 on");

// As many rows from `first` on as fit. `matrix` null stands for the matrix of order one.
template <int kWords>
SignRows<kWords> copy_signs(const SignMatrix* matrix, int64_t first = 0) {
  if (!matrix) return {1, 1, 0, 1, {}};
  const int64_t fit = kWords / matrix->words, left = matrix->K - first;
  SignRows<kWords> rows{static_cast<int>(matrix->K),
                        static_cast<int>(matrix->words),
                        static_cast<int>(first),
                        static_cast<int>(left < fit ? left : fit),
                        {}};
  memcpy(rows.bits, matrix->bits + first * matrix->words,
         static_cast<size_t>(rows.count * matrix->words) * sizeof(uint32_t));
  return rows;
}

constexpr int kFillThreads = 128;

// Writes those rows of outer (x) inner (x) H_2^log whose row of the inner matrix is in `inner`. A
// thread makes eight signs of a row, which are one byte.
template <int kWords>
__global__ void __launch_bounds__(kFillThreads)
    fill_kernel(const __grid_constant__ SignRows<kOuterWords> outer,
                const __grid_constant__ SignRows<kWords> inner, int log, uint32_t* to, int rows) {
  const int low = (1 << log) - 1, K = outer.K * inner.K << log;
  for (int64_t i = thread_index(); i < int64_t{rows} / 8 * rows; i += all_threads()) {
    const int a = static_cast<int>(i % rows), byte = static_cast<int>(i / rows), first = byte * 8;
    const int inner_a = (a >> log) % inner.K, outer_a = (a >> log) / inner.K;
    if (inner_a < inner.first || inner_a >= inner.first + inner.count) continue;
    int inner_b = (first >> log) % inner.K, outer_b = (first >> log) / inner.K;
    uint32_t signs = 0;
    for (int b = first; a < K && b < first + 8 && b < K; ++b) {
      uint32_t sign = inner.at(inner_a, inner_b) ^ outer.at(outer_a, outer_b);
      for (int both = a & b & low; both; both &= both - 1) sign ^= 1;
      signs |= sign << (b - first);
      if ((b & low) == low && ++inner_b == inner.K) {
        inner_b = 0;
        ++outer_b;
      }
    }
    const int place = byte % 4 == 1 ? 2 : byte % 4 == 2 ? 1 : byte % 4;  // as swap_middle has it
    reinterpret_cast<uint8_t*>(to + byte / 4 * rows + a)[place] = static_cast<uint8_t>(signs);
  }
}

template <int kWords>
const char* launch_fill(const SignMatrix* outer, const SignMatrix& inner, int log, uint32_t* to,
                        int64_t rows, Stream stream) {
  for (int64_t first = 0; first < inner.K; first += kWords / inner.words) {
    const char* error = Launch<fill_kernel<kWords>>::run(
        "fill_kernel", {divide_up(rows / 8 * rows, kFillThreads), kFillThreads, 0, stream},
        copy_signs<kOuterWords>(outer), copy_signs<kWords>(&inner, first), log, to,
        static_cast<int>(rows));
    if (error) return error;
  }
  return nullptr;
}

// Writes outer (x) inner (x) H_2^log to `to`, which has as many words as sign_words of its order.
// Only kernels write it, nothing is copied from the host, so that a CUDA graph can hold the call.
inline const char* fill_signs(const SignMatrix* outer, const SignMatrix& inner, int log,
                              uint32_t* to, Signs* signs, Stream stream) {
  const int64_t K = (outer ? outer->K : 1) * inner.K << log;
  *signs = {to, static_cast<int>(K), static_cast<int>(padded(K))};
  return inner.K * inner.words <= kFewWords
             ? launch_fill<kFewWords>(outer, inner, log, to, padded(K), stream)
             : launch_fill<kManyWords>(outer, inner, log, to, padded(K), stream);
}

constexpr int kSums = 4;  // that a thread computes at once, so that each entry it reads serves four

// Sums a, ... a + kSums - 1 of the K entries x(0), x(1), ...
template <class C, class Entry>
__device__ __forceinline__ void signed_sums(const Signs& signs, int a, Entry x, C (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = C{0};
  for (int first = 0; first < signs.K; first += 32) {
    uint32_t bits[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      bits[i] = swap_middle(signs.bits[first / 32 * signs.rows + a + i]);
    const int end = signs.K - first < 32 ? signs.K - first : 32;
    for (int b = 0; b < end; ++b) {
      const C value = x(first + b);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += bits[i] >> b & 1 ? -value : value;
    }
  }
}

}  // namespace fastfood::cuda
