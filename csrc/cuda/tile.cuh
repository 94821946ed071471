// A tile of 2^N entries in the registers of a group of threads, and the butterflies over it.
//
// A thread holds 2^V of the entries: those whose numbers agree in all bits but V of them. These are
// the lowest `low` bits, so that a memory access has neighbours, and the others from bit `high` on:
//
//     bits of an entry's number   N-1 .......... high+V-low-1 ... high-1 ...... low-1 ... 0
//                                 |   thread    |     value     |    thread    |   value   |
//
// Only levels whose bit belongs to the value can be done in registers. So the tile passes through a
// few such layouts, from one to the next through shared memory: the first as it comes from memory,
// middle ones of V levels each, the last as it goes to memory. For fp32 with N = 12, V = 5:
//
//     bit        11 10  9  8  7  6  5  4  3  2  1  0
//     first       v  v  v  t  t  t  t  t  t  t  v  v    loads of 16 bytes; levels 0, 1
//     middle      t  t  t  t  t  v  v  v  v  v  t  t    levels 2 ... 6
//     last        v  v  v  v  v  t  t  t  t  t  t  t    levels 7 ... 11; a warp stores 128 bytes
//
// The smallest example, n = 8 (N = 3) by two threads of four values (V = 2), entries by number:
//
//                   first layout         exchange                 last layout
//     registers     r0  r1  r2  r3                                r0  r1  r2  r3
//     thread 0       0   1   2   3       store, barrier, load      0   2   4   6
//     thread 1       4   5   6   7                                 1   3   5   7
//     bits 2, 1, 0   t   v   v                                     v   v   t
//     levels        0 (entries 0 and 1), 1 (0 and 2)              2 (entries 0 and 4)
//
// Levels run in ascending order everywhere, so that every bit of the result is the CPU's. All
// shapes are known when the kernels are compiled: an address is one register and a constant.
#pragma once

#include "storage.cuh"

namespace fastfood::cuda {

constexpr int kBanks = 32;  // of shared memory, four bytes each

template <int kValuesLog, int kLow_, int kHigh>
struct Layout {
  static constexpr int kValues = 1 << kValuesLog;
  static constexpr int kLow = kLow_;  // log2 of the neighbours that a thread holds
  static_assert(kLow <= kValuesLog && kLow <= kHigh, "values have bits low and high");

  // The number of a thread's value i is of_value(i) + of_thread(t). The two have no bit in common.
  __host__ __device__ static constexpr int of_value(int i) {
    return (i & ((1 << kLow) - 1)) | (i >> kLow) << kHigh;
  }
  __host__ __device__ static constexpr int of_thread(int t) {
    return (t & ((1 << (kHigh - kLow)) - 1)) << kLow | (t >> (kHigh - kLow))
                                                           << (kHigh + kValuesLog - kLow);
  }
  // The level that bit k of a value's index is: the bit of the entry's number in which it stands.
  __host__ __device__ static constexpr int level_of(int k) {
    return k < kLow ? k : kHigh + k - kLow;
  }
};

// Those of levels [from, to) that layout L has in registers.
template <class L, class C>
__device__ __forceinline__ void butterflies(C (&r)[L::kValues], int from, int to) {
#pragma unroll
  for (int k = 0; 1 << k < L::kValues; ++k) {
    if (L::level_of(k) < from || L::level_of(k) >= to) continue;
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      if (i & (1 << k)) continue;
      const C a = r[i], b = r[i | (1 << k)];
      r[i] = a + b;
      r[i | (1 << k)] = a - b;
    }
  }
}

// The layouts that a tile of 2^kTileLog values of type C passes through for the levels below kEnd.
// The first one has value bits (kLow, kHigh) and does the levels below kDone; the last one holds
// 2^kOutLow neighbours in a thread.
template <class C_, int kTileLog_, int kValuesLog, int kLow, int kHigh, int kDone, int kEnd,
          int kOutLow>
struct Stages {
  using C = C_;
  static constexpr int kTileLog = kTileLog_;
  static constexpr int kValues = 1 << kValuesLog;
  static constexpr int kThreads = 1 << (kTileLog - kValuesLog);
  static constexpr int kLastLevels = kValuesLog - kOutLow;
  static constexpr int kLeft = kEnd - kDone;
  static constexpr int kMiddle =
      kLeft > kLastLevels ? (kLeft - kLastLevels + kValuesLog - 1) / kValuesLog : 0;
  static constexpr int kCount = kLeft > 0 ? kMiddle + 2 : 1;
  static_assert(kTileLog >= kValuesLog && kEnd <= kTileLog, "levels lie within the tile");

  __host__ __device__ static constexpr int min(int a, int b) { return a < b ? a : b; }
  __host__ __device__ static constexpr int from(int stage) {
    return stage == 0 ? 0 : min(kDone + (stage - 1) * kValuesLog, kEnd);
  }
  __host__ __device__ static constexpr int to(int stage) {
    return stage == 0 ? min(kDone, kEnd) : stage <= kMiddle ? from(stage + 1) : kEnd;
  }

  template <int stage>
  static constexpr auto layout() {
    if constexpr (stage == 0) {
      return Layout<kValuesLog, kLow, kHigh>();
    } else if constexpr (stage <= kMiddle) {
      return Layout<kValuesLog, 0, min(from(stage), kTileLog - kValuesLog)>();
    } else {
      return Layout<kValuesLog, kOutLow, min(from(stage), kTileLog - kLastLevels)>();
    }
  }
  template <int stage>
  using At = decltype(layout<stage>());
  using First = At<0>;
  using Last = At<kCount - 1>;

  // Where entry e lies in shared memory, with padding against bank conflicts. If a thread's runs of
  // neighbours in the first layout are longer than a packet, 16 bytes stay unused after each row of
  // 32 entries, or after each run if that is longer, so that accesses to neighbouring runs differ
  // in their banks. And one run stays unused after every 2^(kLow + kValuesLog) entries, by which
  // threads are apart that differ above the bits of a middle layout. If a and b have no bit in
  // common, then place(a + b) = place(a) + place(b).
  __host__ __device__ static constexpr int place(int e) {
    constexpr int kRun = 1 << kLow, kRowLog = kLow > 5 ? kLow : 5;
    constexpr int kWide = kRun > kPacket<C> ? kPacket<C> : 0, kApart = kRun % kBanks;
    return e + kWide * (e >> kRowLog) + kApart * (e >> (kLow + kValuesLog));
  }
  static constexpr int kPlaces = place((1 << kTileLog) - 1) + 1;
  static constexpr int kRoom = (kPlaces + kPacket<C> - 1) / kPacket<C> * kPacket<C>;
};

// The neighbours that one access to shared memory moves.
template <class L, class C>
constexpr int kTogether = (1 << L::kLow) < kPacket<C> ? 1 << L::kLow : kPacket<C>;

// Stores a thread's values in layout L to the shared memory of a tile; `get` loads them.
template <class S, class L>
__device__ __forceinline__ void put(const typename S::C (&r)[S::kValues],
                                    Shared<typename S::C> memory, int thread) {
  using C = typename S::C;
  constexpr int kRun = kTogether<L, C>;
  const Shared<C> base = memory + S::place(L::of_thread(thread));
#pragma unroll
  for (int i = 0; i < S::kValues; i += kRun)
    store_run<kRun, C>(base + S::place(L::of_value(i)), &r[i]);
}
template <class S, class L>
__device__ __forceinline__ void get(typename S::C (&r)[S::kValues], Shared<typename S::C> memory,
                                    int thread) {
  using C = typename S::C;
  constexpr int kRun = kTogether<L, C>;
  const Shared<C> base = memory + S::place(L::of_thread(thread));
#pragma unroll
  for (int i = 0; i < S::kValues; i += kRun)
    load_run<kRun, C>(base + S::place(L::of_value(i)), &r[i]);
}

// Redistributes tiles, one after the other, through shared memory that holds one: each thread
// stores its values in layout From, then loads those of layout To. It overwrites only what it read
// last itself (the last tile of one exchange is the first of the next), so the barriers within are
// enough; the caller needs one before the first exchange.
template <class S, class From, class To, int kFirst, int kTiles>
__device__ __forceinline__ void exchange(typename S::C (&r)[kTiles][S::kValues],
                                         Shared<typename S::C> memory, int thread) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    const int tile = (kFirst + k) % kTiles;
    if (k > 0) barrier<S::kThreads>();
    put<S, From>(r[tile], memory, thread);
    barrier<S::kThreads>();
    get<S, To>(r[tile], memory, thread);
  }
}

// All levels below S::kEnd, in ascending order, from the first layout to the last one.
template <class S, int stage = 0, int kTiles>
__device__ __forceinline__ void transform_tiles(typename S::C (&r)[kTiles][S::kValues],
                                                Shared<typename S::C> memory, int thread) {
  using L = typename S::template At<stage>;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) butterflies<L>(r[tile], S::from(stage), S::to(stage));
  if constexpr (stage + 1 < S::kCount) {
    exchange<S, L, typename S::template At<stage + 1>, stage % kTiles>(r, memory, thread);
    transform_tiles<S, stage + 1>(r, memory, thread);
  }
}

// The mirror image, for the adjoint: from the last layout to the first one, the levels of the last
// one first.
template <class S, int stage = S::kCount - 1>
__device__ __forceinline__ void transform_tile_backwards(typename S::C (&r)[1][S::kValues],
                                                         Shared<typename S::C> memory, int thread) {
  using L = typename S::template At<stage>;
  butterflies<L>(r[0], S::from(stage), S::to(stage));
  if constexpr (stage > 0) {
    exchange<S, L, typename S::template At<stage - 1>, 0>(r, memory, thread);
    transform_tile_backwards<S, stage - 1>(r, memory, thread);
  }
}

}  // namespace fastfood::cuda
