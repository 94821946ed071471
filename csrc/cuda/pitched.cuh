// Rows of 2^k entries that lie apart, or whose diagonals begin anew after a number of rows that is
// no power of two: one kernel for all lengths that shared memory holds, slower than those of
// rows.cuh, with the same sums in the same order.
#pragma once

#include "../places.h"
#include "tile.cuh"

namespace fastfood::cuda {

constexpr int kPitchedThreads = 128;
constexpr int kPitchedLog = 11;    // log2 of the fewest entries of a block's tile
constexpr int kPitchedLevels = 4;  // levels of one pass over shared memory

template <class T>
struct Pitched {
  using C = Arithmetic<T>;
  const T* x;
  T* out;
  const C *before, *after;
  C scale;
  int log_n;
  int64_t rows, before_rows, after_rows;
  Places x_places, out_places;
  bool packets;  // whether rows are whole packets at aligned addresses

  __host__ __device__ int tile_log() const { return log_n < kPitchedLog ? kPitchedLog : log_n; }
};

// Padding against bank conflicts: one place stays unused after every 16 entries.
__host__ __device__ __forceinline__ constexpr int pitched_place(int i) { return i + i / 16; }

template <class T>
int64_t pitched_bytes(const Pitched<T>& t) {
  return pitched_place(1 << t.tile_log()) * static_cast<int64_t>(sizeof(Arithmetic<T>));
}

// Where entry `index` of all rows is in x or out, and in its diagonal.
template <class C>
struct PitchedEntry {
  int64_t place;
  const C* factor;  // null: ones

  __device__ __forceinline__ PitchedEntry(const Places& places, const C* diagonal, int64_t period,
                                          int64_t index, int log_n) {
    const int64_t n = int64_t{1} << log_n, row = index >> log_n, i = index & (n - 1);
    place = begin_of(places, row, n) + i;
    factor = diagonal ? diagonal + in_period(row, period, n) + i : nullptr;
  }
};

// Loads a tile, which begins at entry `first` of all rows, kCount neighbours at a time, and zeros
// where there are no more rows.
template <int kCount, class T>
__device__ __forceinline__ void load_pitched(const Pitched<T>& t, int64_t first,
                                             Shared<Arithmetic<T>> x) {
  using C = Arithmetic<T>;
  const int64_t end = t.rows << t.log_n;
  const int tile = 1 << t.tile_log();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) * kCount; i < tile; i += kPitchedThreads * kCount) {
    C r[kCount] = {};
    if (first + i < end) {
      const PitchedEntry<C> from(t.x_places, t.before, t.before_rows, first + i, t.log_n);
      if constexpr (kCount > 1) {
        widen_packet<T>(*reinterpret_cast<const uint4*>(t.x + from.place), r);
      } else {
        r[0] = widen(t.x[from.place]);
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        if (from.factor) r[k] *= from.factor[k];
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[pitched_place(i + k)] = r[k];
  }
}

template <int kCount, class T>
__device__ __forceinline__ void store_pitched(const Pitched<T>& t, int64_t first,
                                              Shared<Arithmetic<T>> x) {
  using C = Arithmetic<T>;
  const int64_t end = t.rows << t.log_n;
  const int tile = 1 << t.tile_log();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) * kCount; i < tile && first + i < end;
       i += kPitchedThreads * kCount) {
    const PitchedEntry<C> to(t.out_places, t.after, t.after_rows, first + i, t.log_n);
    C r[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      r[k] = x[pitched_place(i + k)] * t.scale;
      if (to.factor) r[k] *= to.factor[k];
    }
    if constexpr (kCount > 1) {
      *reinterpret_cast<uint4*>(t.out + to.place) = narrow_packet<T>(r);
    } else {
      t.out[to.place] = narrow<T>(r[0]);
    }
  }
}

// Levels [log, log + kLevels) of a tile.
template <int kLevels, class C>
__device__ __forceinline__ void pitched_pass(Shared<C> x, int tile_log, int log) {
  using L = Layout<kLevels, kLevels, kLevels>;
  for (int j = static_cast<int>(threadIdx.x); j < 1 << (tile_log - kLevels); j += kPitchedThreads) {
    const int base = (j >> log << (log + kLevels)) | (j & ((1 << log) - 1));
    C r[L::kValues];
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) r[i] = x[pitched_place(base + (i << log))];
    butterflies<L>(r, 0, kLevels);
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) x[pitched_place(base + (i << log))] = r[i];
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kPitchedThreads)
    pitched_kernel(const __grid_constant__ Pitched<T> t, int64_t tiles) {
  using C = Arithmetic<T>;
  const Shared<C> x(shared_memory<C>());
  const int tile_log = t.tile_log();
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile << tile_log;
    t.packets ? load_pitched<kPacket<T>>(t, first, x) : load_pitched<1>(t, first, x);
    __syncthreads();
    int log = 0;
    for (; log + kPitchedLevels <= t.log_n; log += kPitchedLevels)
      pitched_pass<kPitchedLevels>(x, tile_log, log);
    if (t.log_n - log == 3) pitched_pass<3>(x, tile_log, log);
    if (t.log_n - log == 2) pitched_pass<2>(x, tile_log, log);
    if (t.log_n - log == 1) pitched_pass<1>(x, tile_log, log);
    t.packets ? store_pitched<kPacket<T>>(t, first, x) : store_pitched<1>(t, first, x);
    __syncthreads();  // all have read the tile
  }
}

// Whether all packets of 16 bytes of these rows are aligned.
template <class T>
bool has_packets(const Places& places, const void* p) {
  if (!is_aligned(p, 16)) return false;
  for (int k = 0; k < places.levels; ++k)
    if (places.strides[k] % kPacket<T>) return false;
  return true;
}

// Returns null also if shared memory does not hold a row; then nothing is launched and `fits`
// becomes false.
template <class T>
const char* transform_pitched(const Transform& t, int log_n, Stream stream, bool* fits) {
  using C = Arithmetic<T>;
  const Pitched<T> rows{static_cast<const T*>(t.x),
                        static_cast<T*>(t.out),
                        static_cast<const C*>(t.before),
                        static_cast<const C*>(t.after),
                        static_cast<C>(t.scale),
                        log_n,
                        t.rows,
                        t.before_rows,
                        t.after_rows,
                        t.x_places,
                        t.out_places,
                        log_n >= kPacketLog<T> && has_packets<T>(t.x_places, t.x) &&
                            has_packets<T>(t.out_places, t.out)};
  *fits = pitched_bytes(rows) <= device_facts(stream.device).shared;
  if (!*fits) return nullptr;
  const int64_t tiles = divide_up(t.rows << log_n, int64_t{1} << rows.tile_log());
  return Launch<pitched_kernel<T>>::run(
      "pitched_kernel", {tiles, kPitchedThreads, pitched_bytes(rows), stream}, rows, tiles);
}

}  // namespace fastfood::cuda
