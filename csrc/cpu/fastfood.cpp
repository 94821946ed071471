// The Fastfood projection on the CPU (definitions.h). As many blocks as a vector has lanes are made
// side by side: entry j of all of them is one vector, so the transform needs no shuffles, and one
// Philox vector serves them all. Rows are turned into memory order, 64 at a time, only when they
// leave for the output or arrive from the gradient.
#include "../definitions.h"
#include "fwht.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

constexpr int kHalves = 8;      // 16-bit halves, that is normals, in one Philox call
constexpr int64_t kRun = 64;    // consecutive rows of a block that are moved at once
constexpr int64_t kTile = 16;   // blocks whose adjoints are summed apart, whatever the vector
constexpr int64_t kParts = 64;  // partial sums of the adjoint, whatever the number of threads
static_assert(kTile % kW == 0 && kRun % kW == 0, "a tile is whole vectors");

// kNormalTable in the order in which the exponent bits 127 + e of a float come, modulo 16.
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

// Philox calls of kW lanes: the even and the odd ones apart, so that 32-bit products find room.
struct Calls {
  U64 even, odd;
};

// Lane k starts at call first + k * step.
FASTFOOD_INLINE Calls calls_of_lanes(uint64_t first, uint64_t step) {
  Calls calls;
  for (int i = 0; i < kW / 2; ++i) {
    calls.even[i] = first + static_cast<uint64_t>(2 * i) * step;
    calls.odd[i] = first + static_cast<uint64_t>(2 * i + 1) * step;
  }
  return calls;
}

// One half of the lanes of philox4x32; the upper 32 bits of each result are left undefined.
FASTFOOD_INLINE void philox_half(U64 call, uint32_t stream, uint32_t key0, uint32_t key1,
                                 U64 out[4]) {
  U64 x0 = call, x1 = call >> 32, x2 = U64{} + stream, x3 = U64{};
#pragma GCC unroll 7
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const U64 p0 = multiply_low_halves(x0, kPhiloxM0), p1 = multiply_low_halves(x2, kPhiloxM1);
    x0 = (p1 >> 32) ^ x1 ^ static_cast<uint64_t>(key0);
    x1 = p1;
    x2 = (p0 >> 32) ^ x3 ^ static_cast<uint64_t>(key1);
    x3 = p0;
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

FASTFOOD_INLINE void philox(Calls calls, uint64_t seed, uint32_t stream, U32 out[4]) {
  U64 even[4], odd[4];
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  philox_half(calls.even, stream, key0, key1, even);
  philox_half(calls.odd, stream, key0, key1, odd);
  for (int i = 0; i < 4; ++i) out[i] = (U32)((even[i] & 0xFFFFFFFFull) | (odd[i] << 32));
}

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
FASTFOOD_INLINE void normals_of_calls(Calls calls, uint64_t seed, uint32_t stream,
                                      Float out[kHalves]) {
  U32 words[4];
  philox(calls, seed, stream, words);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = normals_of<0>(words[i]);
    out[2 * i + 1] = normals_of<1>(words[i]);
  }
}

// The lanes of the arithmetic type that a tile of kLanes<T> blocks uses.
FASTFOOD_INLINE void convert(Float z, Float* out) { *out = z; }
FASTFOOD_INLINE void convert(Float z, Vector<double>* out) {
  for (int i = 0; i < kLanes<double>; ++i) (*out)[i] = z[i];
}

// Calls f(j, G) for every row j of kLanes<T> blocks from `block` on, G the vector of their entries.
template <class T, class F>
FASTFOOD_INLINE void for_each_row(int64_t block, int64_t L, uint64_t seed, F f) {
  const uint64_t calls_per_block = static_cast<uint64_t>(L / kHalves);
  Calls calls = calls_of_lanes(static_cast<uint64_t>(block) * calls_per_block, calls_per_block);
  for (int64_t j = 0; j < L; j += kHalves) {
    Float z[kHalves];
    normals_of_calls(calls, seed, static_cast<uint32_t>(Stream::G), z);
#pragma GCC unroll 8
    for (int i = 0; i < kHalves; ++i) {
      Vector<T> g;
      convert(z[i], &g);
      f(j + i, g);
    }
    calls.even += 1;
    calls.odd += 1;
  }
}

// Transposes a square of as many vectors as they have lanes.
template <class T>
FASTFOOD_INLINE void transpose(Vector<T>* r) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 4
  for (int stride = 1; stride < lanes; stride *= 2) {
    typename IntegersOf<sizeof(T)>::Signed low, high;
    for (int k = 0; k < lanes; ++k) {
      low[k] = (k & stride) ? lanes + k - stride : k;
      high[k] = (k & stride) ? lanes + k : k + stride;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (i & stride) continue;
      const Vector<T> a = r[i], b = r[i + stride];
      r[i] = __builtin_shuffle(a, b, low);
      r[i + stride] = __builtin_shuffle(a, b, high);
    }
  }
}

// kRun rows of kLanes<T> blocks: from one vector a row at x to one row of memory a block at y, or
// back.
template <class T>
FASTFOOD_INLINE void rows_to_blocks(const Vector<T>* x, T* y) {
  constexpr int lanes = kLanes<T>;
  for (int64_t j = 0; j < kRun; j += lanes) {
    Vector<T> r[lanes];
    for (int i = 0; i < lanes; ++i) r[i] = x[j + i];
    transpose<T>(r);
    for (int i = 0; i < lanes; ++i) store(y + i * kRun + j, r[i]);
  }
}
template <class T>
FASTFOOD_INLINE void blocks_to_rows(const T* y, Vector<T>* x) {
  constexpr int lanes = kLanes<T>;
  for (int64_t j = 0; j < kRun; j += lanes) {
    Vector<T> r[lanes];
    for (int i = 0; i < lanes; ++i) r[i] = load(y + i * kRun + j);
    transpose<T>(r);
    for (int i = 0; i < lanes; ++i) x[j + i] = r[i];
  }
}

// The part of rows [row, row + kRun) that lies in [start, start + count), as offsets from `row`.
struct Clip {
  int64_t begin, end;
};
FASTFOOD_INLINE Clip clip(int64_t row, int64_t start, int64_t count) {
  const int64_t begin = start > row ? start - row : 0;
  const int64_t end = start + count - row < kRun ? start + count - row : kRun;
  return {begin, end};
}

// The segment that entry i of the output belongs to.
FASTFOOD_INLINE int64_t segment_of(const Projection& p, int64_t i) {
  int64_t low = 0, high = p.segments;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.offsets[middle] <= i ? low : high) = middle;
  }
  return low;
}

// Writes y, the projection's rows [row, row + kRun), as far as they are wanted.
template <class S, class T>
void emit(const Projection& p, int64_t row, const T* y) {
  const Clip c = clip(row, p.start, p.count);
  if (c.begin >= c.end) return;
  S* out = static_cast<S*>(p.out) + (row - p.start);
  if (!p.base) {
    for (int64_t i = c.begin; i < c.end; ++i) narrow(y[i], &out[i]);
    return;
  }
  const S* base = static_cast<const S*>(p.base) + (row - p.start);
  int64_t i = c.begin;
  for (int64_t s = segment_of(p, row - p.start + i); i < c.end; ++s) {
    const int64_t stop = p.offsets[s + 1] - (row - p.start);
    const int64_t end = stop < c.end ? stop : c.end;
    const T scale = static_cast<const T*>(p.scales)[s];
    for (; i < end; ++i) narrow(widen(base[i]) + scale * y[i], &out[i]);
  }
}

// Reads rows [row, row + kRun) of the gradient, zero where there are none.
template <class S, class T>
void take(const Adjoint& a, int64_t row, T* y) {
  const Clip c = clip(row, a.start, a.count);
  const S* g = static_cast<const S*>(a.g) + (row - a.start);
  for (int64_t i = 0; i < kRun; ++i) y[i] = (i >= c.begin && i < c.end) ? widen(g[i]) : T{0};
}

template <class S>
void project_blocks(const Projection& p, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  const T* v = static_cast<const T*>(p.v);
  const int64_t first = p.start / p.L, blocks = (p.start + p.count - 1) / p.L - first + 1;
  auto body = [&](int64_t begin, int64_t end) {
    Scratch scratch(p.L * kVectorBytes);
    Vector<T>* x = scratch.as<Vector<T>>();
    for (int64_t block = first + begin * lanes; block < first + end * lanes; block += lanes) {
      for_each_row<T>(block, p.L, p.seed, [&](int64_t j, Vector<T> g) { x[j] = g * v[j]; });
      transform_vectors(reinterpret_cast<T*>(x), p.L);
      for (int64_t j = 0; j < p.L; j += kRun) {
        alignas(64) T y[lanes * kRun];
        rows_to_blocks<T>(x + j, y);
        for (int64_t k = 0; k < lanes; ++k) emit<S>(p, (block + k) * p.L + j, y + k * kRun);
      }
    }
  };
  for_each_range(parallel, (blocks + lanes - 1) / lanes, 1, body);
}

// Adds G_b * H_L(g_b) of the tile's blocks to sums: vector j of each of kTile / lanes arrays of L.
template <class S>
void adjoint_tile(const Adjoint& a, int64_t tile, Vector<Arithmetic<S>>* x,
                  Vector<Arithmetic<S>>* sums) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t block = tile; block < tile + kTile; block += lanes, sums += a.L) {
    if (block * a.L >= a.start + a.count) return;
    for (int64_t j = 0; j < a.L; j += kRun) {
      alignas(64) T y[lanes * kRun];
      for (int64_t k = 0; k < lanes; ++k) take<S>(a, (block + k) * a.L + j, y + k * kRun);
      blocks_to_rows<T>(y, x + j);
    }
    transform_vectors(reinterpret_cast<T*>(x), a.L);
    for_each_row<T>(block, a.L, a.seed, [&](int64_t j, Vector<T> g) { sums[j] += g * x[j]; });
  }
}

// z[j] = the sum over the kTile lanes of row j, in pairs, pairs of pairs, ...
template <class T>
void sum_lanes(const Vector<T>* sums, int64_t L, T* z) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < L; ++j) {
    T terms[kTile];
    for (int64_t i = 0; i < kTile; i += lanes) store(terms + i, sums[i / lanes * L + j]);
    for (int64_t width = kTile / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) terms[i] = terms[2 * i] + terms[2 * i + 1];
    z[j] = terms[0];
  }
}

template <class S>
void adjoint_blocks(const Adjoint& a, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  const int64_t first = a.start / a.L, blocks = (a.start + a.count - 1) / a.L - first + 1;
  const int64_t tiles = (blocks + kTile - 1) / kTile, parts = tiles < kParts ? tiles : kParts;
  Scratch partial(parts * a.L * static_cast<int64_t>(sizeof(T)));
  auto body = [&](int64_t begin, int64_t end) {
    Scratch row_scratch(a.L * kVectorBytes),
        sum_scratch(a.L * kTile * static_cast<int64_t>(sizeof(T)));
    Vector<T>* sums = sum_scratch.as<Vector<T>>();
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t i = 0; i < a.L * kTile / kLanes<T>; ++i) sums[i] = Vector<T>{};
      for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile)
        adjoint_tile<S>(a, first + tile * kTile, row_scratch.as<Vector<T>>(), sums);
      sum_lanes<T>(sums, a.L, partial.as<T>() + part * a.L);
    }
  };
  for_each_range(parallel, parts, 1, body);
  T* z = static_cast<T*>(a.z);
  for (int64_t j = 0; j < a.L; ++j) z[j] = partial.as<T>()[j];
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < a.L; ++j) z[j] += partial.as<T>()[part * a.L + j];
}

// Calls f(i, k) with i the offset of a vector of calls from d.first and k running over its lanes
// that are wanted.
template <class Make, class Take>
FASTFOOD_INLINE void for_each_call(const Draw& d, cpu::ParallelFor parallel, Make make,
                                   Take take_lane) {
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kW; i < end * kW && i < d.count; i += kW) {
      const auto values = make(calls_of_lanes(d.first + static_cast<uint64_t>(i), 1));
      for (int k = 0; k < kW && i + k < d.count; ++k) take_lane(i + k, k, values);
    }
  };
  for_each_range(parallel, (d.count + kW - 1) / kW, 256, body);
}

}  // namespace

void words(const Draw& d, uint32_t* out, cpu::ParallelFor parallel) {
  struct Values {
    U32 w[4];
  };
  auto make = [&](Calls calls) {
    Values values;
    philox(calls, d.seed, d.stream, values.w);
    return values;
  };
  for_each_call(d, parallel, make, [&](int64_t i, int k, const Values& values) {
    for (int w = 0; w < 4; ++w) out[4 * i + w] = values.w[w][k];
  });
}

void normals(const Draw& d, float* out, cpu::ParallelFor parallel) {
  struct Values {
    Float z[kHalves];
  };
  auto make = [&](Calls calls) {
    Values values;
    normals_of_calls(calls, d.seed, d.stream, values.z);
    return values;
  };
  for_each_call(d, parallel, make, [&](int64_t i, int k, const Values& values) {
    for (int h = 0; h < kHalves; ++h) out[kHalves * i + h] = values.z[h][k];
  });
}

void project(const Projection& p, cpu::ParallelFor parallel) {
  dispatch(p.type, [&](auto s) { project_blocks<decltype(s)>(p, parallel); });
}

void adjoint(const Adjoint& a, cpu::ParallelFor parallel) {
  dispatch(a.type, [&](auto s) { adjoint_blocks<decltype(s)>(a, parallel); });
}

}  // namespace fastfood::FASTFOOD_ISA
