// Philox4x32, the only generator of fastfood (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A keyed bijection of a 128-bit counter made of 32-bit multiplications and
// xors: any output can be had without the ones before it, and every compiler computes the same
// bits. Seven rounds are the fewest that pass BigCrush.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTFOOD_HD __host__ __device__ __forceinline__
#else
#define FASTFOOD_HD inline __attribute__((always_inline))
#endif

namespace fastfood {

constexpr int kPhiloxRounds = 7;
constexpr uint32_t kPhiloxM0 = 0xD2511F53u;  // multipliers and key increments of the paper, table 2
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

struct Words {
  uint32_t w[4];
};

FASTFOOD_HD Words philox4x32(Words counter, uint32_t key0, uint32_t key1,
                             int rounds = kPhiloxRounds) {
  uint32_t x0 = counter.w[0], x1 = counter.w[1], x2 = counter.w[2], x3 = counter.w[3];
  for (int round = 0; round < rounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * x0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(p0);
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return {{x0, x1, x2, x3}};
}

}  // namespace fastfood
