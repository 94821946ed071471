// Vectors of one instruction set, as GNU vector types: arithmetic is written with + - *, and only
// the few operations that have no operator are spelled out here. Every file that includes this one
// is compiled once for each instruction set, with FASTFOOD_ISA its name; all that it defines lives
// in a namespace of that name, so that no function compiled for a wider set can be linked into a
// narrower one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastfood::FASTFOOD_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <int bytes>
struct IntegersOf {  // the integer vectors whose lanes are `bytes` wide
  typedef VectorOf<int32_t>::type Signed;
  typedef VectorOf<uint32_t>::type Unsigned;
};
template <>
struct IntegersOf<8> {
  typedef VectorOf<int64_t>::type Signed;
  typedef VectorOf<uint64_t>::type Unsigned;
};

using Float = Vector<float>;
using U32 = Vector<uint32_t>;
using U64 = Vector<uint64_t>;

constexpr int64_t kGrain = 32768;  // the fewest entries for which one more thread pays

#if defined(__SANITIZE_ADDRESS__) || \
    defined(__SANITIZE_THREAD__)  // or it would compile for an hour
#define FASTFOOD_INLINE static inline
#define FASTFOOD_INLINE_MEMBER
#else
#define FASTFOOD_INLINE static inline __attribute__((always_inline))
#define FASTFOOD_INLINE_MEMBER __attribute__((always_inline))
#endif

template <class T>
FASTFOOD_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

template <class T>
FASTFOOD_INLINE void store(T* p, Vector<T> x) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = x;
}

// A non-temporal store, past the caches, for large arrays; p is aligned to the vector. Other
// threads see the values only after `end_streams`.
template <class T>
FASTFOOD_INLINE void stream(T* p, Vector<T> x) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)x);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)x);
#else
  store(p, x);
#endif
}
FASTFOOD_INLINE void end_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The low halves of the 64-bit lanes of a and b in turn: a[0], b[0], a[1], b[1], ...
FASTFOOD_INLINE U32 interleave_low_halves(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U32)_mm512_mask_shuffle_epi32((__m512i)a, 0xAAAA, (__m512i)b, _MM_PERM_CCAA);
#else
  return (U32)((a & 0xFFFFFFFFull) | (b << 32));
#endif
}

// The 64-bit products of the low halves of each 64-bit lane.
FASTFOOD_INLINE U64 multiply_low_halves(U64 a, uint32_t b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xFFFFFFFFull) * static_cast<uint64_t>(b);
#endif
}

// a * b + c rounded once. Without the instruction the sum is made in double, which gives the same
// bits for every argument that `normal` can meet (a test goes through all of them).
FASTFOOD_INLINE Float multiply_add(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  Float r;
  for (int i = 0; i < kLanes<float>; ++i)
    r[i] = static_cast<float>(static_cast<double>(a[i]) * b[i] + c[i]);
  return r;
#endif
}

// table[index % 16] for each lane.
FASTFOOD_INLINE Float look_up_16(const float* table, U32 index) {
#if defined(__AVX512F__)
  return (Float)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)index);
  return (Float)_mm256_blendv_ps(low, high, _mm256_castsi256_ps((__m256i)(index << 28)));
#else
  Float r;
  for (int i = 0; i < kLanes<float>; ++i) r[i] = table[index[i] & 15u];
  return r;
#endif
}

// a + b * s for s = +1 or -1 in every lane: one rounding, in one instruction where there is one.
template <class V>
FASTFOOD_INLINE V add_signed(V a, V b, V s) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 8)
    return (V)_mm512_fmadd_pd((__m512d)b, (__m512d)s, (__m512d)a);
  else
    return (V)_mm512_fmadd_ps((__m512)b, (__m512)s, (__m512)a);
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == 8)
    return (V)_mm256_fmadd_pd((__m256d)b, (__m256d)s, (__m256d)a);
  else
    return (V)_mm256_fmadd_ps((__m256)b, (__m256)s, (__m256)a);
#else
  return a + b * s;
#endif
}

// Lane i of the result is lane i ^ stride of x.
template <int stride, class V>
FASTFOOD_INLINE V swap_lanes(V x) {
  typename IntegersOf<sizeof(x[0])>::Signed mask;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(x[0])); ++i) mask[i] = i ^ stride;
  return __builtin_shuffle(x, mask);
}

// One level of the Walsh-Hadamard transform inside a vector: lane i gets x[i] + x[i ^ stride], or
// x[i ^ stride] - x[i] if i & stride.
template <int stride, class V>
FASTFOOD_INLINE V lane_level(V x, V swapped) {
  V signs;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(signs[0])); ++i)
    signs[i] = (i & stride) ? -1 : 1;
  return add_signed(swapped, x, signs);
}
template <int stride, class V>
FASTFOOD_INLINE V lane_level(V x) {
  return lane_level<stride>(x, swap_lanes<stride>(x));
}

// Transposes a square of lanes x lanes entries, held in `lanes` vectors: for stride = 1, 2, 4, ...
// each 2 stride x 2 stride square swaps its two off-diagonal quarters.
template <class T, int stride = 1>
FASTFOOD_INLINE void transpose(Vector<T>* r) {
  constexpr int lanes = kLanes<T>;
  if constexpr (stride < lanes) {
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
    transpose<T, 2 * stride>(r);
  }
}

// Loads the square of vectors j, j + 1, ... of x and transposes it: r[k] holds lane k of each of
// them. store_lanes is the inverse.
template <class T>
FASTFOOD_INLINE void load_lanes(const T* x, int64_t j, Vector<T>* r) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) r[i] = load(x + (j + i) * lanes);
  transpose<T>(r);
}
template <class T>
FASTFOOD_INLINE void store_lanes(Vector<T>* r, int64_t j, T* x) {
  constexpr int lanes = kLanes<T>;
  transpose<T>(r);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(x + (j + i) * lanes, r[i]);
}

// Loads the vector at p and does the level of stride one.
template <class T>
FASTFOOD_INLINE Vector<T> load_first_level(const T* p) {
  return lane_level<1>(load(p));
}
#if defined(__AVX2__)
// Loads that repeat the even or the odd lanes save both shuffles; the compiler would load once and
// shuffle twice.
FASTFOOD_INLINE Float load_first_level(const float* p) {
  typedef VectorOf<float>::unaligned Unaligned;  // `auto` would lose the alignment of one entry
  const Unaligned* x = reinterpret_cast<const Unaligned*>(p);
  Float even, odd;
  asm("vmovsldup %1, %0" : "=v"(even) : "m"(*x));
  asm("vmovshdup %1, %0" : "=v"(odd) : "m"(*x));
  return lane_level<1>(odd, even);
}
#endif

// Storage types narrower than the arithmetic. float16 has two names in C++: GCC on aarch64 knows
// _Float16 only from version 13 on. bfloat16 is the upper half of a float.
#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using Float16 = __fp16;
#else
using Float16 = _Float16;
#endif
struct BFloat16 {
  uint16_t bits;
};

FASTFOOD_INLINE float widen(float x) { return x; }
FASTFOOD_INLINE double widen(double x) { return x; }
FASTFOOD_INLINE float widen(Float16 x) { return static_cast<float>(x); }
FASTFOOD_INLINE float widen(BFloat16 x) {
  return __builtin_bit_cast(float, uint32_t{x.bits} << 16);
}

// Rounds to nearest, ties to even.
FASTFOOD_INLINE void narrow(float x, float* out) { *out = x; }
FASTFOOD_INLINE void narrow(double x, double* out) { *out = x; }
FASTFOOD_INLINE void narrow(float x, Float16* out) { *out = static_cast<Float16>(x); }
FASTFOOD_INLINE void narrow(float x, BFloat16* out) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? (u >> 16) | 0x40u : rounded);
}

// A vector's worth of sixteen-bit values.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), may_alias));
typedef uint16_t UnalignedHalves
    __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));

// load_wide converts consecutive entries to the type that they are computed in; store_narrow
// converts them back, rounded as by `narrow`.
template <class T>
FASTFOOD_INLINE Vector<T> load_wide(const T* p) {
  return load(p);
}
FASTFOOD_INLINE Float load_wide(const BFloat16* p) {
  const Halves h = *reinterpret_cast<const UnalignedHalves*>(p);
  return (Float)(__builtin_convertvector(h, U32) << 16);
}
FASTFOOD_INLINE Float load_wide(const Float16* p) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Float)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Float r;
  for (int i = 0; i < kLanes<float>; ++i) r[i] = widen(p[i]);
  return r;
#endif
}
template <class T>
FASTFOOD_INLINE void store_narrow(T* p, Vector<T> x) {
  store(p, x);
}
FASTFOOD_INLINE void store_narrow(BFloat16* p, Float x) {
  const U32 u = (U32)x, rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const U32 unordered = (U32)(x != x);
  const U32 bits = (rounded & ~unordered) | (((u >> 16) | 0x40u) & unordered);
  *reinterpret_cast<UnalignedHalves*>(p) = __builtin_convertvector(bits, Halves);
}
FASTFOOD_INLINE void store_narrow(Float16* p, Float x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) narrow(x[i], &p[i]);
#endif
}

// Calls f(S{}) with the storage type that `type` names.
template <class F>
FASTFOOD_INLINE void with_type(Type type, F f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::f16: return f(Float16{});
    case Type::bf16: return f(BFloat16{});
  }
  __builtin_trap();
}

// Memory for one task, 64-byte aligned and uninitialised. Large arrays get huge pages: to touch
// small ones for the first time would take longer than the work on them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : p_(__builtin_malloc(static_cast<size_t>(bytes) + 64)) {
    if (!p_) __builtin_trap();
#if defined(__linux__)
    constexpr uintptr_t page = 4096, large = int64_t{1} << 22;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(p_) + page - 1) & ~(page - 1);
    if (static_cast<uintptr_t>(bytes) >= large)
      madvise(reinterpret_cast<void*>(first), static_cast<size_t>(bytes) - page, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { __builtin_free(p_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p_) + 63) & ~uintptr_t{63});
  }

 private:
  void* p_;
};

// Runs parallel(count, grain, f) for a callable f(begin, end). When it returns, the non-temporal
// stores of all ranges can be seen.
template <class F>
FASTFOOD_INLINE void for_each_range(cpu::ParallelFor parallel, int64_t count, int64_t grain, F& f) {
  parallel(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<F*>(context))(begin, end);
        end_streams();
      },
      &f);
}

}  // namespace fastfood::FASTFOOD_ISA
