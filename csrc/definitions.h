// Format 1 of the random matrices, as pure functions of (seed, stream, index): all that one
// needs to write the projection again. Saved adapters depend on every bit of it.
//
// Sizes: 1 <= d, 1 <= D, 0 <= seed < 2^64. n is the least power of two >= d. L is a power of two of
// at least max(n, 256), which is its default. Between indices, / is an integer division.
//
// The projection of theta (d entries) to D entries, with b = 0 ... ceil(D / L) - 1:
//
//   v        = Pi tile_{L/n}(c H_n (B * pad_n(theta)))     c = (D L)^(-1/2)
//   P theta  = stack_b(H_L (G_b * v))[: D]
//
// pad_n appends zeros, tile_{L/n} repeats the whole vector L / n times, * goes entry by entry.
// It is computed in fp32, or in fp64 if theta is fp64; c is computed in fp64, rounded once to that
// type, and multiplied with each entry after H_n. Every product, sum and difference is rounded
// once, to nearest even, subnormal numbers kept; only `normal` has fused operations. H is the
// Sylvester matrix, applied by butterflies (x, y) -> (x + y, x - y) of entries `stride` apart, for
// strides 1, 2, 4, ... in order.
//
// On weights: base + scale * y with y = (P theta)[r], scale and base in the type of y, the
// product and the sum rounded one after the other, the sum then to base's own type, to nearest
// even.
//
// Call k of a stream is philox4x32 of the counter (k low, k high, stream, 0) under the key (seed
// low, seed high): four 32-bit words. Bit m of a call is bit m % 32 of word m / 32.
//
// B[i]     -1 if bit i % 128 of call i / 128 of stream B is set, else +1.
// Pi       (Pi x)[j] = x[p[j]]; p sorts L unsigned 64-bit keys in ascending order, equal ones as
//          they stand. Key i: words 2 (i % 2), the low half, and 2 (i % 2) + 1 of call i / 2 of
//          stream Pi.
// G_b[j]   normal number b L + j of stream G.
// Normals  number i is `normal` of half i % 2 (0: the low 16 bits) of word (i / 2) % 4 of call i
//          / 8.
// Dense    P[i, k] = D^(-1/2) times normal number i d + k of stream Dense.
// Sparse   R = ceil(sqrt(D)). In rows [t R, (t + 1) R), t = 0 ... ceil(D / R) - 1, column k has
//          one entry: with w = word (t d + k) % 4 of call (t d + k) / 4 of stream Sparse,
//          +-sqrt(R / D) in row t R + ((w >> 1) R >> 31), a 64-bit product, negative if w is odd.
//          It is left out if that row is >= D.
//
// For Dense and Sparse this format defines the matrices, not the bits of their products with a
// vector.
#pragma once

#include <math.h>

#include "philox.h"

namespace fastfood {

// Lengths is not part of the projection: features.py draws lengths of frequencies from it.
enum class Stream : uint32_t { G = 0, B = 1, Pi = 2, Dense = 3, Sparse = 4, Lengths = 5 };

constexpr int kNormalsPerCall = 8;  // two for each of a call's words

FASTFOOD_HD Words stream_call(uint64_t seed, uint32_t stream, uint64_t call) {
  return philox4x32({{static_cast<uint32_t>(call), static_cast<uint32_t>(call >> 32), stream, 0u}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Sixteen bits k stand for a standard normal: bit 15 is the sign and q = 2 (k % 2^15) + 1 gives the
// magnitude -Phi^-1(q / 2^17), divided by the root mean square over all k so that the variance is
// 1. It is a polynomial of degree 4 in q whose coefficients depend on q's leading bit, within 3e-5
// of the exact value. `normal` is the plainest way to compute it; the kernels have faster ones that
// give the same bits.
struct NormalTable {
  float c[5][16];  // c[power][floor(log2 q)]
};

constexpr NormalTable kNormalTable = {{
    {0x1.14cc2ep+2f, 0x1.04e13cp+2f, 0x1.0a28d8p+2f, 0x1.0c7576p+2f, 0x1.0636dcp+2f, 0x1.f7e3f4p+1f,
     0x1.e26576p+1f, 0x1.cbfc7ap+1f, 0x1.b48eeap+1f, 0x1.9bfedep+1f, 0x1.822538p+1f, 0x1.66cff2p+1f,
     0x1.49bfbcp+1f, 0x1.2aa45cp+1f, 0x1.0916e2p+1f, 0x1.c80f72p+0f},
    {0.0f, 0.0f, -0x1.4c8392p-5f, -0x1.f61462p-5f, -0x1.5ba81cp-5f, -0x1.6d1000p-6f,
     -0x1.7e98eep-7f, -0x1.9220b8p-8f, -0x1.a847a4p-9f, -0x1.c203d2p-10f, -0x1.e0921ep-11f,
     -0x1.02d752p-11f, -0x1.19fad4p-12f, -0x1.37c676p-13f, -0x1.5faa4ap-14f, -0x1.941184p-15f},
    {0.0f, 0.0f, 0.0f, 0x1.497ce2p-9f, 0x1.5af356p-10f, 0x1.6dd860p-12f, 0x1.7eec96p-14f,
     0x1.91644cp-16f, 0x1.a5a890p-18f, 0x1.bc8822p-20f, 0x1.d6da92p-22f, 0x1.f59220p-24f,
     0x1.0ce112p-25f, 0x1.223022p-27f, 0x1.3a7360p-29f, 0x1.49237cp-31f},
    {0.0f, 0.0f, 0.0f, -0x1.83fd4ep-15f, -0x1.9edf60p-16f, -0x1.b77820p-19f, -0x1.cc20b2p-22f,
     -0x1.e24cfcp-25f, -0x1.fa4f48p-28f, -0x1.0a98a4p-30f, -0x1.19fcb6p-33f, -0x1.2be5acp-36f,
     -0x1.4107cap-39f, -0x1.5a4dfap-42f, -0x1.78f88ep-45f, -0x1.8c29dcp-48f},
    {0.0f, 0.0f, 0.0f, 0.0f, 0x1.a0063ap-23f, 0x1.ba25dep-27f, 0x1.cedf66p-31f, 0x1.e530e2p-35f,
     0x1.fd301ep-39f, 0x1.0bfa16p-42f, 0x1.1b432cp-46f, 0x1.2d0328p-50f, 0x1.41e948p-54f,
     0x1.5ac5a4p-58f, 0x1.7797f0p-62f, 0x1.67e138p-66f},
}};

inline float normal(uint32_t k, const NormalTable& table) {
  const uint32_t q = ((k << 1) & 0xFFFFu) | 1u;
  const float x = static_cast<float>(q);
  const int e = 31 - __builtin_clz(q);
  float z = table.c[4][e];
  for (int power = 3; power >= 0; --power) z = fmaf(z, x, table.c[power][e]);
  return (k & 0x8000u) ? -z : z;
}

}  // namespace fastfood
