// Storage types, and how values get from memory to registers: four types, computed in fp32 or fp64,
// moved 16 bytes at a time. Sixteen-bit values are converted in pairs, which takes one instruction
// where two single conversions would take many cycles each.
#pragma once

#include <cstring>
#include <type_traits>

#include "launch.cuh"

namespace fastfood::cuda {

template <class T>
constexpr int kPacket = 16 / static_cast<int>(sizeof(T));  // entries in 16 bytes
template <class T>
constexpr int kPacketLog = sizeof(T) == 8   ? 1
                           : sizeof(T) == 4 ? 2
                                            : 3;
template <class T>
constexpr Type type_of = std::is_same_v<T, double>   ? Type::f64
                         : std::is_same_v<T, float>  ? Type::f32
                         : std::is_same_v<T, __half> ? Type::f16
                                                     : Type::bf16;
template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;  // one of the sixteen-bit types

template <class To, class From>
__host__ __device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// --- One value, or a pair of 16 bits; narrow rounds to nearest even ------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <class T>
__device__ __forceinline__ void widen_pair(uint32_t word, float* r) {
  if constexpr (std::is_same_v<T, __half>) {
    const float2 pair = __half22float2(bits_as<__half2>(word));
    r[0] = pair.x;
    r[1] = pair.y;
  } else {
    r[0] = bits_as<float>(word << 16);
    r[1] = bits_as<float>(word & 0xFFFF0000u);
  }
}

template <class T>
__device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return bits_as<uint32_t>(__floats2half2_rn(low, high));
  } else {
    return bits_as<uint32_t>(__floats2bfloat162_rn(low, high));
  }
}

// --- Packets of 16 bytes -------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void widen_packet(uint4 packet, Arithmetic<T>* r) {
  if constexpr (kIsHalf<T>) {
    widen_pair<T>(packet.x, r);
    widen_pair<T>(packet.y, r + 2);
    widen_pair<T>(packet.z, r + 4);
    widen_pair<T>(packet.w, r + 6);
  } else {
    T x[kPacket<T>];
    memcpy(x, &packet, sizeof(packet));
#pragma unroll
    for (int k = 0; k < kPacket<T>; ++k) r[k] = x[k];
  }
}

template <class T>
__device__ __forceinline__ uint4 narrow_packet(const Arithmetic<T>* r) {
  uint4 packet;
  if constexpr (kIsHalf<T>) {
    packet = {narrow_pair<T>(r[0], r[1]), narrow_pair<T>(r[2], r[3]), narrow_pair<T>(r[4], r[5]),
              narrow_pair<T>(r[6], r[7])};
  } else {
    memcpy(&packet, r, sizeof(packet));
  }
  return packet;
}

// Global memory with a hint for the caches: kOnce says that the data is used once, and so should
// not take the place of other data.
template <bool kOnce, class T>
__device__ __forceinline__ T read_global(const T* p) {
  if constexpr (kOnce) return __ldcs(p);
  return *p;
}
template <bool kOnce, class T>
__device__ __forceinline__ void write_global(T* p, T value) {
  if constexpr (kOnce) {
    __stcs(p, value);
  } else {
    *p = value;
  }
}

inline bool is_aligned(const void* p, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Calls f(T{}) with the storage type T that `type` names, and returns its result.
template <class F>
auto with_type(Type type, F f) {
  switch (type) {
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
    case Type::f16: return f(__half{});
    case Type::bf16: return f(__nv_bfloat16{});
  }
  __builtin_trap();
}

}  // namespace fastfood::cuda
