// The random numbers of definitions.h, vectorised: each lane is a call of the generator.
#pragma once

#include "../definitions.h"
#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

// kNormalTable in another order: the coefficients for a leading bit e are entry (127 + e) % 16, the
// last four bits of a float's exponent.
struct RotatedTable {
  alignas(64) float c[5][16];
};
constexpr RotatedTable rotate(const NormalTable& table) {
  RotatedTable r{};
  for (int power = 0; power < 5; ++power)
    for (int e = 0; e < 16; ++e) r.c[power][(127 + e) % 16] = table.c[power][e];
  return r;
}
constexpr RotatedTable kRotated = rotate(kNormalTable);

// As many calls of one stream as a vector has lanes of 32 bits, `step` apart. The even ones and the
// odd ones have a vector each, of 64-bit lanes, which have room for 64-bit products.
class Calls {
 public:
  Calls(uint64_t seed, uint32_t stream, uint64_t step) : stream_(stream) {
    for (int k = 0; k < kLanes<float>; ++k) lanes_[k % 2][k / 2] = static_cast<uint64_t>(k) * step;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const uint32_t i = static_cast<uint32_t>(round);
      keys_[round][0] = static_cast<uint32_t>(seed) + i * kPhiloxW0;
      keys_[round][1] = static_cast<uint32_t>(seed >> 32) + i * kPhiloxW1;
    }
  }

  // Lane k gets the words of call `call` + k step. The sum must not carry into the upper 32 bits of
  // `call`.
  FASTFOOD_INLINE_MEMBER void words(uint64_t call, U32 out[4]) const {
    U64 even[4], odd[4];
    half(lanes_[0] + call, call >> 32, even);
    half(lanes_[1] + call, call >> 32, odd);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) out[i] = interleave_low_halves(even[i], odd[i]);
  }

 private:
  // philox4x32 of the counter (lower half of `low`, high, stream, 0) in each lane. Only the lower
  // halves of the results count.
  FASTFOOD_INLINE_MEMBER void half(U64 low, uint64_t high, U64 out[4]) const {
    U64 x0 = low, x1 = U64{} + high, x2 = U64{} + stream_, x3 = U64{};
#pragma GCC unroll 7
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const U64 p0 = multiply_low_halves(x0, kPhiloxM0), p1 = multiply_low_halves(x2, kPhiloxM1);
      x0 = (p1 >> 32) ^ x1 ^ keys_[round][0];
      x1 = p1;
      x2 = (p0 >> 32) ^ x3 ^ keys_[round][1];
      x3 = p0;
    }
    out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
  }

  U64 lanes_[2];
  uint64_t keys_[kPhiloxRounds][2];
  uint64_t stream_;
};

// `normal` of definitions.h for the low (half = 0) or high (half = 1) 16 bits of each word.
template <int half>
FASTFOOD_INLINE Float normals_of(U32 words) {
  const U32 q = ((half ? words >> 15 : words << 1) & 0xFFFFu) | 1u;
  const Float x = __builtin_convertvector((IntegersOf<4>::Signed)q, Float);
  const U32 exponent = (U32)x >> 23;
  Float z = look_up_16(kRotated.c[4], exponent);
#pragma GCC unroll 4
  for (int power = 3; power >= 0; --power)
    z = multiply_add(z, x, look_up_16(kRotated.c[power], exponent));
  return (Float)((U32)z ^ ((half ? words : words << 16) & 0x80000000u));
}

// The eight normals of each lane's call.
FASTFOOD_INLINE void normals_of_words(const U32 words[4], Float out[kNormalsPerCall]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = normals_of<0>(words[i]);
    out[2 * i + 1] = normals_of<1>(words[i]);
  }
}

}  // namespace fastfood::FASTFOOD_ISA
