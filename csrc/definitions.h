// Format 1 of the random matrices, as pure functions of (seed, stream, index). Saved adapters
// depend on every bit of this file. The projection of theta (d entries) to D entries in blocks of L
// rows, with n the power of two >= d and b = 0 ... ceil(D / L) - 1, is
//
//   v        = (D L)^(-1/2) Pi tile_{L/n}( H_n (B * pad_n(theta)) )
//   P theta  = stack_b( H_L (G_b * v) ) [: D]
//
// B[i]        = +1 or -1: bit i % 128 of call i / 128 of stream B; a set bit is -1.
// Pi          : (Pi x)[j] = x[p[j]], p the stable argsort of L unsigned 64-bit keys; key i is made
// of words
//               2 (i % 2) (low half) and 2 (i % 2) + 1 (high half) of call i / 2 of stream Pi.
// G_b[j]      = normal number b L + j of stream G.
// Normals     : number i is half i % 2 (0 the low one) of word (i / 2) % 4 of call i / 8 of its
// stream, read
//               as 16 bits by `normal`.
// Dense P     : P[i, k] = D^(-1/2) times normal number i d + k of stream Dense.
// Sparse P    : with R = ceil(sqrt(D)), each column has one entry +-sqrt(R / D) in every R rows.
// For rows
//               [t R, (t + 1) R) and column k it is decided by w = word (t d + k) % 4 of call
//               (t d + k) / 4 of stream Sparse: row t R + ((w >> 1) R >> 31), negative if w is odd;
//               an entry whose row is >= D is left out.
//
// Call c of a stream is philox4x32 of the counter (c low, c high, stream, 0) under the key (seed
// low, seed high). Bit 0 of a call is the lowest bit of its word 0. Every H is the Sylvester
// matrix, its butterfly levels in the order of strides 1, 2, 4, ...; every sum, difference and
// product below is rounded once.
#pragma once

#include <math.h>

#include "philox.h"

namespace fastfood {

// Lengths are those of random Fourier features, which features.py describes.
enum class Stream : uint32_t { G = 0, B = 1, Pi = 2, Dense = 3, Sparse = 4, Lengths = 5 };

FASTFOOD_HD Words stream_call(uint64_t seed, uint32_t stream, uint64_t call) {
  return philox4x32({{static_cast<uint32_t>(call), static_cast<uint32_t>(call >> 32), stream, 0u}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Sixteen bits k stand for a standard normal: bit 15 is the sign and q = 2 (k % 2^15) + 1 gives the
// magnitude -Phi^-1(q / 2^17), divided by the root mean square over all k so that the variance
// is 1. It is a polynomial of degree 4 in q with the coefficients of q's leading bit, within 3e-5
// of the exact value.
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

FASTFOOD_HD float normal(uint32_t k, const NormalTable& table) {
  const uint32_t q = ((k << 1) & 0xFFFFu) | 1u;
  const float x = static_cast<float>(q);
  int e = 0;
#if defined(__CUDA_ARCH__)
  e = 31 - __clz(static_cast<int>(q));
#else
  e = 31 - __builtin_clz(q);
#endif
  float z = table.c[4][e];
  for (int power = 3; power >= 0; --power) z = fmaf(z, x, table.c[power][e]);
  return (k & 0x8000u) ? -z : z;
}

// Row r of a plain projection is y = (H_L (G_b * v))[r % L]; added to weights it is base + (scale *
// y), the product and the sum rounded one after the other, in fp32 (in fp64 if theta is), then to
// base's type.

}  // namespace fastfood
