// The Walsh-Hadamard transform of rows of 2^k entries, whatever they come from and whatever becomes
// of them: a Load makes entries out of their index, a Store takes them. Rows up to a tile pass
// through registers and shared memory once. Longer rows are cut into tiles for the low levels; the
// high ones are passes over a workspace in global memory, four levels at a time. Levels run in
// ascending stride order everywhere, so every result is that of the CPU, bit for bit.
#pragma once

#include "../definitions.h"
#include "launch.cuh"

namespace fastfood::cuda {

constexpr int kRadix = 16;  // values that a thread holds, four levels
constexpr int kRadixLog = 4;
constexpr int kPassThreads = 256;
constexpr int kSmallTile = 11;  // log2 of the entries that a block of threads holds
template <class C>
constexpr int kLargeTile = sizeof(C) == 8 ? 12 : 13;

// Threads that fit on a multiprocessor beside each other, by the registers that they take.
template <class C>
constexpr int kResident = sizeof(C) == 8 ? 512 : 1024;

// --- Loads and stores ----------------------------------------------------------------------------

template <class T>
struct alignas(16) Packet {
  T x[16 / sizeof(T)];
};

// kCount entries from or to memory, 16 bytes at a time where the address allows it.
template <int kCount, class T>
__device__ __forceinline__ void read_all(const T* p, Arithmetic<T>* r) {
  constexpr int kPacket = 16 / sizeof(T);
  static_assert(kCount % kPacket == 0, "whole packets");
  if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPacket) {
      const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(p + i);
#pragma unroll
      for (int k = 0; k < kPacket; ++k) r[i + k] = widen(packet.x[k]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) r[i] = widen(p[i]);
  }
}

template <class T>
__device__ __forceinline__ void write_packet(T* p, const Arithmetic<T>* r) {
  constexpr int kPacket = 16 / sizeof(T);
  Packet<T> packet;
#pragma unroll
  for (int k = 0; k < kPacket; ++k) narrow(r[k], packet.x[k]);
  if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
    *reinterpret_cast<Packet<T>*>(p) = packet;
  } else {
#pragma unroll
    for (int k = 0; k < kPacket; ++k) p[k] = packet.x[k];
  }
}

// Entries [begin, end) lie at x, the others are zero.
template <class T>
struct Read {
  using Value = Arithmetic<T>;
  static constexpr int kRun = 16 / sizeof(T);  // consecutive entries that a thread reads at once
  const T* x;
  int64_t begin, end;

  __device__ __forceinline__ void prepare(NormalTable&) const {}
  __device__ __forceinline__ void run(int64_t index, Value* r, const NormalTable&) const {
    run(index, r);
  }
  __device__ __forceinline__ void run(int64_t index, Value* r) const {
    if (index >= begin && index + kRun <= end) {
      read_all<kRun>(x + (index - begin), r);
    } else {
#pragma unroll
      for (int k = 0; k < kRun; ++k) r[k] = one(index + k);
    }
  }
  __device__ __forceinline__ Value one(int64_t index) const {
    return index >= begin && index < end ? widen(x[index - begin]) : Value{0};
  }
};

// Writes entries [begin, end), times `scale`, to x; the others are dropped.
template <class T>
struct Write {
  using Value = Arithmetic<T>;
  static constexpr int kRun = 16 / sizeof(T);
  T* x;
  int64_t begin, end;
  Value scale;

  __device__ __forceinline__ void run(int64_t index, const Value* r) const {
    if (index >= begin && index + kRun <= end) {
      Value scaled[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) scaled[k] = r[k] * scale;
      write_packet(x + (index - begin), scaled);
    } else {
#pragma unroll
      for (int k = 0; k < kRun; ++k) one(index + k, r[k]);
    }
  }
  __device__ __forceinline__ void one(int64_t index, Value y) const {
    if (index >= begin && index < end) narrow(y * scale, x[index - begin]);
  }
};

// --- A tile in registers and shared memory -------------------------------------------------------

// Levels [from, to) over a thread's values; value i is entry i of a row of kRadix.
template <class C>
__device__ __forceinline__ void butterflies(C (&r)[kRadix], int from, int to) {
#pragma unroll
  for (int level = 0; level < kRadixLog; ++level) {
    if (level < from || level >= to) continue;
#pragma unroll
    for (int i = 0; i < kRadix; ++i) {
      if (i & (1 << level)) continue;
      const C a = r[i], b = r[i | (1 << level)];
      r[i] = a + b;
      r[i | (1 << level)] = a - b;
    }
  }
}

// Shared memory of a block; one entry in seventeen is left out, which spreads every stride over the
// banks.
template <class C, int kLog>
struct TileMemory {
  NormalTable table;
  C tile[(1 << kLog) / kRadix * (kRadix + 1)];
};
__device__ __forceinline__ int padded(int position) { return position + position / kRadix; }

// Where value i of a thread lies in shared memory. Either in runs of kRun consecutive entries,
// those of neighbouring threads next to each other ...
template <int kLog, int kRun>
__device__ __forceinline__ int position_in_runs(int thread, int i) {
  return (thread + (i / kRun << (kLog - kRadixLog))) * kRun + i % kRun;
}
template <int kLog, int kRun>
struct Runs {
  static_assert(kRadix % kRun == 0, "no run lies across a gap");
  const int base = padded(static_cast<int>(threadIdx.x) * kRun);
  __device__ __forceinline__ int operator()(int i) const {
    return base + padded(position_in_runs<kLog, kRun>(0, i));
  }
};
// ... or 2^log apart, with log 0, which is Runs<kLog, kRadix>, or at least kRadixLog.
struct Strides {
  int base, step;
  __device__ __forceinline__ explicit Strides(int log) {
    const int thread = static_cast<int>(threadIdx.x);
    base = padded((thread >> log << (log + kRadixLog)) + (thread & ((1 << log) - 1)));
    step = padded(1 << log);
  }
  __device__ __forceinline__ int operator()(int i) const { return base + i * step; }
};

// Hands each thread the values at `to` for those at `from`. What a thread writes is what it read
// last, so one barrier is enough between exchanges; before the first one of a tile the caller has
// another.
template <class C, class From, class To>
__device__ __forceinline__ void exchange(C (&r)[kRadix], C* tile, const From& from, const To& to) {
#pragma unroll
  for (int i = 0; i < kRadix; ++i) tile[from(i)] = r[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRadix; ++i) r[i] = tile[to(i)];
}

// The lowest `levels` levels of a tile that comes in runs of kIn and leaves in runs of kOut.
template <int kLog, int kIn, int kOut, class C>
__device__ __forceinline__ void transform_tile(C (&r)[kRadix], int levels, C* tile) {
  static_assert(kLog >= 2 * kRadixLog, "the last four levels have a stride of at least kRadix");
  if (kIn != kRadix) exchange(r, tile, Runs<kLog, kIn>(), Strides(0));
  butterflies(r, 0, levels);
  int log = 0;
  while (log + kRadixLog < levels) {
    const int done = log + kRadixLog, next = done < kLog - kRadixLog ? done : kLog - kRadixLog;
    exchange(r, tile, Strides(log), Strides(next));
    butterflies(r, done - next, levels - next);
    log = next;
  }
  if (kOut != kRadix || log > 0) exchange(r, tile, Strides(log), Runs<kLog, kOut>());
}

template <int kLog, class Load>
__device__ __forceinline__ void load_tile(const Load& load, int64_t first,
                                          typename Load::Value (&r)[kRadix],
                                          const NormalTable& table) {
#pragma unroll
  for (int i = 0; i < kRadix; i += Load::kRun)
    load.run(first + position_in_runs<kLog, Load::kRun>(threadIdx.x, i), r + i, table);
}

// --- Kernels -------------------------------------------------------------------------------------

template <int kLog, class Load, class Store>
__global__ void __launch_bounds__((1 << kLog) / kRadix,
                                  kResident<typename Load::Value> / ((1 << kLog) / kRadix))
    tile_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                int64_t first_tile, int64_t tiles, int levels) {
  using C = typename Load::Value;
  auto& memory = shared_memory<TileMemory<C, kLog>>();
  load.prepare(memory.table);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    __syncthreads();  // the table is there, and the last tile has been read
    const int64_t first = (first_tile + tile) << kLog;
    C r[kRadix];
    load_tile<kLog>(load, first, r, memory.table);
    transform_tile<kLog, Load::kRun, Store::kRun>(r, levels, memory.tile);
#pragma unroll
    for (int i = 0; i < kRadix; i += Store::kRun)
      store.run(first + position_in_runs<kLog, Store::kRun>(threadIdx.x, i), r + i);
  }
}

// Levels [log + from, log + kRadixLog) of entries [first, first + kRadix * columns), each thread a
// column of kRadix entries 2^log apart.
template <class Load, class Store>
__global__ void __launch_bounds__(kPassThreads)
    pass_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                int64_t first, int64_t columns, int log, int from) {
  for (int64_t j = thread_index(); j < columns; j += all_threads()) {
    const int64_t index = first + (j >> log << (log + kRadixLog)) + (j & ((int64_t{1} << log) - 1));
    typename Load::Value r[kRadix];
#pragma unroll
    for (int i = 0; i < kRadix; ++i) r[i] = load.one(index + (static_cast<int64_t>(i) << log));
    butterflies(r, from, kRadixLog);
#pragma unroll
    for (int i = 0; i < kRadix; ++i) store.one(index + (static_cast<int64_t>(i) << log), r[i]);
  }
}

// --- Launches ------------------------------------------------------------------------------------

inline int log2_of(int64_t n) { return 63 - __builtin_clzll(static_cast<unsigned long long>(n)); }

// Tiles that cover entries [first, end), from the multiple of the tile's size below `first` on.
template <int kLog, class Load, class Store>
const char* launch_tiles(const Load& load, const Store& store, int64_t first, int64_t end,
                         int levels, StreamHandle stream) {
  using Memory = TileMemory<typename Load::Value, kLog>;
  static_assert(sizeof(Memory) <= 48 * 1024, "what a block gets without asking");
  const int64_t first_tile = first >> kLog, tiles = divide_up(end, int64_t{1} << kLog) - first_tile;
  return launch("tile_kernel", tile_kernel<kLog, Load, Store>, tiles, (1 << kLog) / kRadix,
                sizeof(Memory), stream, load, store, first_tile, tiles, levels);
}

template <class C>
bool fits_tile(int64_t n) {
  return n <= int64_t{1} << kLargeTile<C>;
}

// Entries [0, limits().wave) or one row of n, if that is more: what is worked on at a time.
inline int64_t wave_size(int64_t n, int64_t total) {
  const int64_t wave = limits().wave > n ? limits().wave / n * n : n;
  return total < wave ? total : wave;
}

// Rows of n = 2^log_n entries, those with indices [first, end). Rows longer than a tile are whole,
// and `work` has room for all of them.
template <class Load, class Store>
const char* transform_range(const Load& load, const Store& store, typename Load::Value* work,
                            int64_t first, int64_t end, int log_n, StreamHandle stream) {
  using C = typename Load::Value;
  constexpr int kLarge = kLargeTile<C>;
  if (log_n <= kSmallTile) return launch_tiles<kSmallTile>(load, store, first, end, log_n, stream);
  if (log_n <= kLarge) return launch_tiles<kLarge>(load, store, first, end, log_n, stream);
  const Read<C> from_work{work, first, end};
  const Write<C> to_work{work, first, end, C{1}};
  if (const char* error = launch_tiles<kLarge>(load, to_work, first, end, kLarge, stream))
    return error;
  const int64_t columns = (end - first) / kRadix, blocks = divide_up(columns, kPassThreads);
  for (int done = kLarge; done < log_n; done += kRadixLog) {
    const bool last = done + kRadixLog >= log_n;
    const int log = last ? log_n - kRadixLog : done;
    const char* error =
        last ? launch("pass_kernel", pass_kernel<Read<C>, Store>, blocks, kPassThreads, 0, stream,
                      from_work, store, first, columns, log, done - log)
             : launch("pass_kernel", pass_kernel<Read<C>, Write<C>>, blocks, kPassThreads, 0,
                      stream, from_work, to_work, first, columns, log, 0);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace fastfood::cuda
