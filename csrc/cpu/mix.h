// The matrices of order K on the CPU: entries a stride apart, whole vectors of columns at a time.
// The terms of a sum come one after the other, so that its bits are defined; four sums of two
// vectors each run side by side, which keeps both multiply-add units busy.
#pragma once

#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

// Sums `a`, ... a + 3 of the K rows of kColumns vectors at x, to store(row, column, sum).
template <int kColumns, class T, class Store>
FASTFOOD_INLINE void mix_four(const Vector<T>* x, const SignMatrix& matrix, int64_t a,
                              const Store& store) {
  Vector<T> sums[4][kColumns] = {};
  const float* signs = matrix.signs + a * matrix.K;
  for (int64_t b = 0; b < matrix.K; ++b) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector<T> sign = Vector<T>{} + static_cast<T>(signs[i * matrix.K + b]);
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c)
        sums[i][c] = add_signed(sums[i][c], x[b * kColumns + c], sign);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int c = 0; c < kColumns; ++c) store(a + i, c, sums[i][c]);
}

// Vectors [begin, end) of columns of a row, those of its first K stride entries first: entry j + a
// stride becomes the sum over b of H[a][b] times entry j + b stride.
template <class T, class Store>
void mix_columns(const T* work, const SignMatrix& matrix, int64_t stride, int64_t begin,
                 int64_t end, const Store& store) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t K = matrix.K, vectors = stride / lanes;
  Scratch scratch(2 * K * kVectorBytes);
  Vector<T>* x = scratch.as<Vector<T>>();
  const auto mix = [&](auto columns, int64_t first) {
    constexpr int kColumns = decltype(columns)::value;
    for (int64_t b = 0; b < K; ++b)
      for (int c = 0; c < kColumns; ++c)
        x[b * kColumns + c] = load(work + first + b * stride + c * lanes);
    for (int64_t a = 0; a < K; a += 4)
      mix_four<kColumns, T>(x, matrix, a, [&](int64_t row, int c, Vector<T> sum) {
        store(first + row * stride + c * lanes, sum);
      });
  };
  for (int64_t i = begin; i < end;) {
    const int64_t first = i / vectors * K * stride + i % vectors * lanes;
    const bool two = i + 1 < end && i % vectors + 1 < vectors;
    if (two)
      mix(std::integral_constant<int, 2>{}, first);
    else
      mix(std::integral_constant<int, 1>{}, first);
    i += two ? 2 : 1;
  }
}

}  // namespace fastfood::FASTFOOD_ISA
