// The normals of definitions.h on a GPU: the same bits by cheaper instructions, for conversions
// between integers and floats, and counting leading zeros, run at a sixteenth of the rate of an
// addition.
#pragma once

#include "../definitions.h"
#include "storage.cuh"

namespace fastfood::cuda {

// The polynomials' coefficients in shared memory, laid out so that two loads get all five of one.
struct NormalCoefficients {
  Run<4, float> low[16];
  float high[16];

  // To be called by all threads of a block; a barrier has to follow.
  __device__ __forceinline__ void copy(const NormalTable& table) {
    const int e = static_cast<int>(threadIdx.x);
    if (e >= 16) return;
#pragma unroll
    for (int power = 0; power < 4; ++power) low[e].x[power] = table.c[power][e];
    high[e] = table.c[4][e];
  }
};

// normal(k) for the low or the high sixteen bits k of a word.
template <bool kHigh>
__device__ __forceinline__ float normal_of(uint32_t word, const NormalCoefficients& table) {
  const uint32_t q = (kHigh ? word >> 15 & 0xFFFEu : word << 1 & 0xFFFEu) | 1u;
  // A float of exponent 23 with q as its last bits is 2^23 + q; q's leading bit is its exponent.
  const float x = bits_as<float>(0x4B000000u | q) - 8388608.0f;
  const uint32_t e = (bits_as<uint32_t>(x) >> 23) - 127u;
  const Run<4, float> c = table.low[e];
  float z = fmaf(table.high[e], x, c.x[3]);
#pragma unroll
  for (int power = 2; power >= 0; --power) z = fmaf(z, x, c.x[power]);
  const uint32_t sign = (kHigh ? word : word << 16) & 0x80000000u;
  return bits_as<float>(bits_as<uint32_t>(z) ^ sign);
}

// The eight normals of one call of a stream.
template <class C>
__device__ __forceinline__ void draw_normals(uint64_t seed, uint32_t stream, uint64_t call,
                                             const NormalCoefficients& table, C* z) {
  const Words words = stream_call(seed, stream, call);
#pragma unroll
  for (int k = 0; k < kNormalsPerCall; k += 2) {
    z[k] = normal_of<false>(words.w[k / 2], table);
    z[k + 1] = normal_of<true>(words.w[k / 2], table);
  }
}

// The call that gives G for rows `row` ... row + 7, row a multiple of eight.
__device__ __forceinline__ uint64_t call_of(int64_t row) {
  return static_cast<uint64_t>(row) / kNormalsPerCall;
}

// Eight entries of G, those of rows first_row + i ... + 7, where call `first` begins at first_row.
// i is a multiple of eight, and first_row of a power of two above i: so the call's number is an
// `or`, no sum.
template <class C>
__device__ __forceinline__ void draw_g(uint64_t seed, uint64_t first, int i,
                                       const NormalCoefficients& table, C* g) {
  draw_normals(seed, static_cast<uint32_t>(fastfood::Stream::G),
               first | static_cast<uint64_t>(i / kNormalsPerCall), table, g);
}

}  // namespace fastfood::cuda
