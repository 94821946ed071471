// The matrices of order K: their signs as a parameter of a kernel, and the sums they stand for.
#pragma once

#include "storage.cuh"

namespace fastfood::cuda {

// A SignMatrix as a parameter of a kernel.
template <int kWords>
struct Signs {
  int K, words;
  uint32_t bits[kWords];
};
constexpr int kSmallWords = 172 * 6;
constexpr int kLargeWords = 428 * 14;

inline int64_t words_of(const SignMatrix& matrix) { return matrix.K * matrix.words; }

// `matrix` has at most kWords words; null stands for order one.
template <int kWords>
Signs<kWords> copy_signs(const SignMatrix* matrix) {
  Signs<kWords> signs{1, 0, {}};
  if (!matrix) return signs;
  if (words_of(*matrix) > kWords) __builtin_trap();
  signs.K = static_cast<int>(matrix->K);
  signs.words = static_cast<int>(matrix->words);
  for (int64_t i = 0; i < words_of(*matrix); ++i) signs.bits[i] = matrix->bits[i];
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

}  // namespace fastfood::cuda
