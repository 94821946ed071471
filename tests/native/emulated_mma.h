// The instructions of csrc/cuda/mma.cuh on the emulator, with the layouts of the PTX manual. All
// lanes of a warp have to come to each of them.
#pragma once

#include <array>
#include <cmath>

#include "emulator.h"

namespace emulator {

// Lane l gives row l % 8 of matrix l / 8, and gets of each matrix two entries of one column.
inline void load_matrices(Shared<uint4> row, uint32_t (&r)[4]) {
  std::array<uint16_t, 8> own;
  std::memcpy(own.data(), row.touch(1, false), sizeof(own));
  const auto rows = meet(own, __FILE__, __LINE__);
  const int lane = this_lane(), g = lane / 4, c = lane % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto entry = [&](int i) { return uint32_t{rows[8 * matrix + i][g]}; };
    r[matrix] = entry(2 * c) | entry(2 * c + 1) << 16;
  }
}

// A lane's entries of the two factors.
struct Factors {
  std::array<float, 8> a;
  std::array<float, 4> b;
};

// The sum of terms as tensor cores are allowed to compute it: each term loses what lies below 24
// bits of the largest one, and their sum what lies below its own 24 bits. GPUs from sm_80 on keep
// more.
inline float truncated_sum(const std::array<float, 17>& terms) {
  float most = 0, plain = 0;
  for (const float term : terms) {
    most = std::max(most, std::fabs(term));
    plain += term;
  }
  if (most == 0 || !std::isfinite(plain)) return plain;
  const double unit = std::ldexp(1.0, std::ilogb(most) - 23);
  int64_t sum = 0;
  for (const float term : terms) sum += static_cast<int64_t>(term / unit);
  int64_t below = 1;
  while (std::abs(sum / below) >= int64_t{1} << 24) below *= 2;
  return static_cast<float>(static_cast<double>(sum / below * below) * unit);
}

inline void multiply_matrices(std::array<float*, 4> sums, const Factors& factors) {
  const auto lanes = meet(factors, __FILE__, __LINE__);
  const int lane = this_lane(), g = lane / 4, c = lane % 4;
  // The factors of the lanes that hold rows g and g + 8, and of those that hold two columns.
  std::array<Factors, 4> rows, columns[2];
  for (int i = 0; i < 4; ++i) {
    rows[i] = lanes[4 * g + i];
    columns[0][i] = lanes[4 * (2 * c) + i];
    columns[1][i] = lanes[4 * (2 * c + 1) + i];
  }
  for (int i = 0; i < 4; ++i) {
    std::array<float, 17> terms;
    terms[16] = *sums[i];
    for (int k = 0; k < 16; ++k) {
      const int of = k % 8 / 2, right = k / 8, half = k % 2;
      terms[k] =
          rows[of].a[4 * right + 2 * (i / 2) + half] * columns[i % 2][of].b[2 * right + half];
    }
    *sums[i] = truncated_sum(terms);
  }
}

}  // namespace emulator
