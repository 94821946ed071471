// Kernels for rows of 2^k entries that a tile or a warp holds, and the Loads and Stores of their
// entries. Whole tiles at aligned addresses go without any test, with or without diagonals;
// everything else has a slower Load and Store.
#pragma once

#include <math.h>

#include "shapes.h"
#include "tile.cuh"

namespace fastfood::cuda {

// The factors of mask + 1 entries, of one row or of several, after which they begin anew. Null
// values stand for ones.
template <class C>
struct Diagonal {
  const C* values;
  int64_t mask;
  __device__ __forceinline__ C at(int64_t index) const { return values[index & mask]; }

  // Multiplies neighbours of one row, whose factors are aligned.
  template <int kCount>
  __device__ __forceinline__ void multiply(C (&r)[kCount], int64_t index) const {
    if (!values) return;
    C factors[kCount];
#pragma unroll
    for (int k = 0; k < kCount; k += kPacket<C>)
      widen_packet<C>(*reinterpret_cast<const uint4*>(values + (index & mask) + k), factors + k);
#pragma unroll
    for (int k = 0; k < kCount; ++k) r[k] *= factors[k];
  }
};

// Multiplies a thread's values of a tile in layout L by the factors of rows of 2^kRowLog entries.
// Bits of values and bits of threads are disjoint, so each address is one register and a constant.
// `mask` is kMask, or a larger one if a diagonal spans several rows and a tile has no more than
// one.
template <int kRowLog, class L, class C>
__device__ __forceinline__ void multiply(C (&r)[L::kValues], const C* diagonal, int mask,
                                         int64_t first, int thread) {
  constexpr int kMask = (1 << kRowLog) - 1;
  constexpr int kRun = (1 << L::kLow) < kPacket<C> ? 1 : kPacket<C>;
  const C* d = diagonal + ((static_cast<int>(first) | L::of_thread(thread)) & mask);
#pragma unroll
  for (int i = 0; i < L::kValues; i += kRun) {
    C factors[kRun];
    if constexpr (kRun > 1) {
      widen_packet<C>(*reinterpret_cast<const uint4*>(d + (L::of_value(i) & kMask)), factors);
    } else {
      factors[0] = d[L::of_value(i) & kMask];
    }
#pragma unroll
    for (int k = 0; k < kRun; ++k) r[i + k] *= factors[k];
  }
}
constexpr int kNoDiagonals = -1;  // instead of kRowLog

// --- Loads: run() fills a thread's values in layout L of the tile that begins at entry `first` ---

// Whole tiles at 16-byte aligned addresses; the diagonal is aligned as well.
template <class T, bool kOnce, int kRowLog>
struct LoadWhole {
  using Storage = T;
  using C = Arithmetic<T>;
  const T* x;
  const C* before;
  int mask;

  template <class S, class L>
  __device__ __forceinline__ void run(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C>) const {
    static_assert(L::kLow >= kPacketLog<T>, "a thread has whole packets");
    const T* p = x + first + L::of_thread(thread);
    uint4 packets[S::kValues / kPacket<T>];
#pragma unroll
    for (int i = 0; i < S::kValues; i += kPacket<T>)
      packets[i / kPacket<T>] =
          read_global<kOnce>(reinterpret_cast<const uint4*>(p + L::of_value(i)));
#pragma unroll
    for (int i = 0; i < S::kValues; i += kPacket<T>)
      widen_packet<T>(packets[i / kPacket<T>], &r[i]);
    scale<L>(r, first, thread);
  }
  template <class L>
  __device__ __forceinline__ void scale(C (&r)[L::kValues], int64_t first, int thread) const {
    if constexpr (kRowLog != kNoDiagonals)
      if (before) multiply<kRowLog, L>(r, before, mask, first, thread);
  }
};

constexpr int kFlight = 8;  // loads of single entries that a thread has in flight

// Any address and any end: entry by entry, through those places of the tile in shared memory that
// no other thread uses.
template <class T>
struct LoadAny {
  using Storage = T;
  using C = Arithmetic<T>;
  const T* x;
  int64_t end;
  Diagonal<C> before;
  bool packets = false;  // whether all is aligned and each packet lies in one row

  __device__ __forceinline__ C one(int64_t index) const {
    const C value = index < end ? widen(x[index]) : C{0};
    return before.values ? value * before.at(index) : value;
  }
  __device__ __forceinline__ void packet(C (&r)[kPacket<T>], int64_t index) const {
    if (packets && index + kPacket<T> <= end) {
      widen_packet<T>(*reinterpret_cast<const uint4*>(x + index), r);
      before.multiply(r, index);
    } else {
#pragma unroll
      for (int k = 0; k < kPacket<T>; ++k) r[k] = one(index + k);
    }
  }
  template <class S, class L>
  __device__ __forceinline__ void run(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C> memory) const {
    const int mine = L::of_thread(thread);
#pragma unroll 1
    for (int i = 0; i < S::kValues; i += kFlight) {
      C values[kFlight];
#pragma unroll
      for (int k = 0; k < kFlight; ++k) values[k] = one(first + mine + L::of_value(i + k));
#pragma unroll
      for (int k = 0; k < kFlight; ++k) memory[S::place(mine + L::of_value(i + k))] = values[k];
    }
    get<S, L>(r, memory, thread);
  }
};

// --- Stores: run() writes a thread's values in layout L, times scale and diagonal ----------------

template <class T, bool kOnce, int kRowLog>
struct StoreWhole {
  using Storage = T;
  using C = Arithmetic<T>;
  T* out;
  C scale;
  const C* after;
  int mask;

  template <class S, class L>
  __device__ __forceinline__ void run(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C>) const {
    T* p = out + first + L::of_thread(thread);
#pragma unroll
    for (int i = 0; i < S::kValues; ++i) r[i] *= scale;
    if constexpr (kRowLog != kNoDiagonals)
      if (after) multiply<kRowLog, L>(r, after, mask, first, thread);
    if constexpr (kIsHalf<T> && L::kLow > 0) {
#pragma unroll
      for (int i = 0; i < S::kValues; i += 2)
        write_global<kOnce>(reinterpret_cast<uint32_t*>(p + L::of_value(i)),
                            narrow_pair<T>(r[i], r[i + 1]));
    } else {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i) write_global<kOnce>(p + L::of_value(i), narrow<T>(r[i]));
    }
  }
};

template <class T>
struct StoreAny {
  using Storage = T;
  using C = Arithmetic<T>;
  T* out;
  int64_t end;
  C scale;
  Diagonal<C> after;
  bool packets = false;

  __device__ __forceinline__ void one(int64_t index, C y) const {
    if (index >= end) return;
    y *= scale;
    out[index] = narrow<T>(after.values ? y * after.at(index) : y);
  }
  __device__ __forceinline__ void packet(C (&r)[kPacket<T>], int64_t index) const {
    if (packets && index + kPacket<T> <= end) {
#pragma unroll
      for (int k = 0; k < kPacket<T>; ++k) r[k] *= scale;
      after.multiply(r, index);
      *reinterpret_cast<uint4*>(out + index) = narrow_packet<T>(r);
    } else {
#pragma unroll
      for (int k = 0; k < kPacket<T>; ++k) one(index + k, r[k]);
    }
  }
  template <class S, class L>
  __device__ __forceinline__ void run(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C> memory) const {
    put<S, L>(r, memory, thread);
    const int mine = L::of_thread(thread);
#pragma unroll 1
    for (int i = 0; i < S::kValues; ++i)
      one(first + mine + L::of_value(i), memory[S::place(mine + L::of_value(i))]);
  }
};

// --- Kernels -------------------------------------------------------------------------------------

// How a tile of rows of 2^kLog entries, loaded as In and stored as Out, is dealt to threads.
template <int kLog, class In, class Out>
struct RowTile {
  static constexpr Shape kShape = shape_of<In>(kLog);
  static_assert(kShape.tile_log >= kLog, "a tile holds whole rows");
  static_assert(kShape.halves == 1 || kShape.halves == 2,
                "a tile goes through shared memory whole or by halves");
  static constexpr int kHalvesLog = kShape.halves == 2 ? 1 : 0;
  static constexpr int kPartLog = kShape.tile_log - kHalvesLog;
  static constexpr int kEnd = kLog < kPartLog ? kLog : kPartLog;
  static constexpr int kLow = kPacketLog<In>;
  using C = Arithmetic<In>;
  using S = Stages<C, kPartLog, kShape.values_log, kLow, kPartLog - (kShape.values_log - kLow),
                   kLow, kEnd, kIsHalf<Out> ? kShape.out_low : 0>;
  static constexpr int kPackets = S::kValues * kShape.halves / kPacket<In>;  // of a thread
  static constexpr int64_t kTileBytes = int64_t{S::kRoom} * sizeof(C);
  static constexpr int64_t bytes(bool prefetch) {
    return kTileBytes + (prefetch ? int64_t{sizeof(In)} << kShape.tile_log : 0);
  }
};

// Asynchronous copies of the next tile's packets to shared memory, in flight while a tile is worked
// on. A thread takes only what it has fetched itself, so no barrier is needed.
template <class R, class T>
struct Prefetch {
  const T* x;
  Shared<uint4> slots;
  int thread;

  __device__ __forceinline__ void fetch(int64_t first) const {
    using L = typename R::S::First;
#pragma unroll
    for (int i = 0; i < R::kPackets; ++i) {
      constexpr int kPart = R::S::kValues / kPacket<T>;
      const T* part = x + first + (int64_t{i / kPart} << R::kPartLog);
      copy_async(slots + (i * R::S::kThreads + thread),
                 reinterpret_cast<const uint4*>(part + L::of_thread(thread) +
                                                L::of_value(i % kPart * kPacket<T>)));
    }
  }
  __device__ __forceinline__ void take(typename R::C (&r)[R::kShape.halves][R::S::kValues]) const {
    await_copies();
#pragma unroll
    for (int i = 0; i < R::kPackets; ++i) {
      constexpr int kPart = R::S::kValues / kPacket<T>;
      uint4 packet;
      load_run<1, uint4>(slots + (i * R::S::kThreads + thread), &packet);
      widen_packet<T>(packet, &r[i / kPart][i % kPart * kPacket<T>]);
    }
  }
};

// Rows of 2^kLog entries, one tile of one or several rows at a time.
template <int kLog, bool kPrefetch, class Load, class Store>
__global__ void __launch_bounds__(
    RowTile<kLog, typename Load::Storage, typename Store::Storage>::S::kThreads,
    resident_here(shape_of<typename Load::Storage>(kLog).resident))
    tile_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                int64_t tiles) {
  using T = typename Load::Storage;
  using R = RowTile<kLog, T, typename Store::Storage>;
  using S = typename R::S;
  using C = typename R::C;
  const int thread = static_cast<int>(threadIdx.x);
  const Shared<C> memory(shared_memory<C>());
  const Prefetch<R, T> next{load.x, Shared<uint4>(shared_memory<uint4>() + R::kTileBytes / 16),
                            thread};
  if (kPrefetch) next.fetch(int64_t{blockIdx.x} << R::kShape.tile_log);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile << R::kShape.tile_log;
    C r[R::kShape.halves][S::kValues];
    if (tile != blockIdx.x) barrier<S::kThreads>();  // all threads have read the previous tile
    if constexpr (kPrefetch) {
      next.take(r);
#pragma unroll
      for (int k = 0; k < R::kShape.halves; ++k)
        load.template scale<typename S::First>(r[k], first + (int64_t{k} << R::kPartLog), thread);
      if (tile + gridDim.x < tiles) next.fetch((tile + gridDim.x) << R::kShape.tile_log);
    } else {
#pragma unroll
      for (int k = 0; k < R::kShape.halves; ++k)
        load.template run<S, typename S::First>(r[k], first + (int64_t{k} << R::kPartLog), thread,
                                                memory);
    }
    transform_tiles<S>(r, memory, thread);
    if constexpr (R::kShape.halves == 2) {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i) {
        const C a = r[0][i], b = r[1][i];
        r[0][i] = a + b;
        r[1][i] = a - b;
      }
    }
#pragma unroll
    for (int k = 0; k < R::kShape.halves; ++k)
      store.template run<S, typename S::Last>(r[k], first + (int64_t{k} << R::kPartLog), thread,
                                              memory);
  }
}

constexpr int kShortThreads = 128;

// The levels within a thread's packet in registers, those above it by shuffles between lanes.
template <class T>
__device__ __forceinline__ void transform_packet(Arithmetic<T> (&r)[kPacket<T>], int lane,
                                                 int levels) {
  using C = Arithmetic<T>;
  using L = Layout<kPacketLog<T>, kPacketLog<T>, kPacketLog<T>>;
  butterflies<L>(r, 0, levels);
#pragma unroll
  for (int level = kPacketLog<T>; level < kShortLog<T>; ++level) {
    if (level >= levels) continue;
    const int distance = 1 << (level - kPacketLog<T>);
    const C sign = lane & distance ? C{-1} : C{1};
#pragma unroll
    for (int k = 0; k < kPacket<T>; ++k)
      r[k] = fma(sign, r[k], __shfl_xor_sync(0xFFFFFFFFu, r[k], distance));
  }
}

// Rows of 2^kLog entries that a warp holds, each lane a packet. Whole packets at aligned addresses,
// without diagonals.
template <int kLog, class T>
__global__ void __launch_bounds__(kShortThreads)
    short_kernel(const T* x, T* out, int64_t packets, Arithmetic<T> scale) {
  constexpr int kPackets = 2;  // packets that a thread has in flight
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const auto* in = reinterpret_cast<const uint4*>(x);
  auto* to = reinterpret_cast<uint4*>(out);
  const int64_t sweep = all_threads() / kLanes * (kLanes * kPackets);
  for (int64_t i = thread_index() / kLanes * (kLanes * kPackets) + lane; i - lane < packets;
       i += sweep) {
    uint4 packet[kPackets] = {};
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (i + p * kLanes < packets) packet[p] = in[i + p * kLanes];
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      Arithmetic<T> r[kPacket<T>];
      widen_packet<T>(packet[p], r);
      transform_packet<T>(r, lane, kLog);
#pragma unroll
      for (int k = 0; k < kPacket<T>; ++k) r[k] *= scale;
      if (i + p * kLanes < packets) to[i + p * kLanes] = narrow_packet<T>(r);
    }
  }
}

// The same for any address, any number of rows, and diagonals.
template <class T>
__global__ void __launch_bounds__(kShortThreads)
    short_any_kernel(const __grid_constant__ LoadAny<T> load,
                     const __grid_constant__ StoreAny<T> store, int levels) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  constexpr int64_t kWarpEntries = int64_t{kLanes} * kPacket<T>;
  for (int64_t first = thread_index() / kLanes * kWarpEntries; first < load.end;
       first += all_threads() / kLanes * kWarpEntries) {
    const int64_t index = first + lane * kPacket<T>;
    Arithmetic<T> r[kPacket<T>];
    load.packet(r, index);
    transform_packet<T>(r, lane, levels);
    store.packet(r, index);
  }
}

}  // namespace fastfood::cuda
