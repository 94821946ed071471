// The Walsh-Hadamard transform of rows of 2^k entries, whatever they come from and whatever becomes
// of them: a Load makes entries out of their index, a Store takes them. Rows up to a tile pass
// through registers and shared memory once. Longer rows are cut into tiles for the low levels; the
// high ones are passes over a workspace in global memory, four levels at a time. Levels run in
// ascending stride order everywhere, so every result is that of the CPU, bit for bit.
#pragma once

#include "../definitions.h"
#include "launch.cuh"

namespace fastfood::cuda {

constexpr int kRadix = 16;  // values of a thread in a pass, four levels
constexpr int kRadixLog = 4;
constexpr int kPassThreads = 256;
constexpr int kColumnBytes = 64;  // of neighbouring columns, which keep a memory access whole

// Tiles, by log2 of the entries that a block of threads holds: each thread has 16 of them, of the
// largest tile 64.
constexpr int kSmallTile = 11;
template <class C>
constexpr int kLargeTile = sizeof(C) == 8 ? 12 : 13;  // the largest that every GPU has memory for
template <class C>
constexpr int kMiddleTile = sizeof(C) == 8 ? 13 : 14;
template <class C>
constexpr int kHugeTile = sizeof(C) == 8 ? 13 : 15;
template <int kLog>
constexpr int kValuesLog = kLog == 15 ? 6 : 4;
template <int kLog>
constexpr int kValues = 1 << kValuesLog<kLog>;
template <int kLog>
constexpr int kThreadsLog = kLog - kValuesLog<kLog>;

// Blocks that are to fit on a multiprocessor beside each other, by the registers that they take.
template <class C, int kLog>
constexpr int kResident =
    kLog < (sizeof(C) == 8 ? 13 : 14) ? (1 << (sizeof(C) == 8 ? 13 : 14)) >> kLog : 1;

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

// Levels [from, to) over a thread's values; value i is entry i of a row of N.
template <int N, class C>
__device__ __forceinline__ void butterflies(C (&r)[N], int from, int to) {
#pragma unroll
  for (int level = 0; 1 << level < N; ++level) {
    if (level < from || level >= to) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i & (1 << level)) continue;
      const C a = r[i], b = r[i | (1 << level)];
      r[i] = a + b;
      r[i | (1 << level)] = a - b;
    }
  }
}

// One entry is left out behind as many as a thread has, which spreads every stride over the banks.
template <int kLog>
__host__ __device__ __forceinline__ constexpr int padded(int position) {
  return position + position / kValues<kLog>;
}

// Shared memory of a block.
template <class C, int kLog>
struct TileMemory {
  NormalTable table;
  C tile[padded<kLog>(1 << kLog)];
};

// Where value i of a thread lies in shared memory. Either in runs of kRun consecutive entries,
// those of neighbouring threads next to each other ...
template <int kLog, int kRun>
__device__ __forceinline__ int position_in_runs(int thread, int i) {
  return (thread + (i / kRun << kThreadsLog<kLog>)) * kRun + i % kRun;
}
template <int kLog, int kRun>
struct Runs {
  static_assert(kValues<kLog> % kRun == 0, "no run lies across a gap");
  const int base = padded<kLog>(static_cast<int>(threadIdx.x) * kRun);
  __device__ __forceinline__ int operator()(int i) const {
    return base + padded<kLog>(position_in_runs<kLog, kRun>(0, i));
  }
};
// ... or 2^log apart, with log 0 or at least that of a thread's values.
template <int kLog>
struct Strides {
  int base, step;
  __device__ __forceinline__ explicit Strides(int log) {
    const int thread = static_cast<int>(threadIdx.x);
    base = padded<kLog>((thread >> log << (log + kValuesLog<kLog>)) + (thread & ((1 << log) - 1)));
    step = padded<kLog>(1 << log);
  }
  __device__ __forceinline__ int operator()(int i) const { return base + i * step; }
};

// Hands each thread the values at `to` for those at `from`. What a thread writes is what it read
// last, so one barrier is enough between exchanges; before the first one of a tile the caller has
// another.
template <int N, class C, class From, class To>
__device__ __forceinline__ void exchange(C (&r)[N], Shared<C> tile, const From& from,
                                         const To& to) {
#pragma unroll
  for (int i = 0; i < N; ++i) tile[from(i)] = r[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) r[i] = tile[to(i)];
}

// The lowest `levels` levels of a tile that comes in runs of kIn and leaves in runs of kOut.
template <int kLog, int kIn, int kOut, class C>
__device__ __forceinline__ void transform_tile(C (&r)[kValues<kLog>], int levels, Shared<C> tile) {
  constexpr int kStep = kValuesLog<kLog>, kLast = kLog - kStep;
  static_assert(kLast >= kStep, "the last levels have a stride of at least a thread's values");
  if (kIn != kValues<kLog>) exchange(r, tile, Runs<kLog, kIn>(), Strides<kLog>(0));
  butterflies(r, 0, levels);
  int log = 0;
  while (log + kStep < levels) {
    const int done = log + kStep, next = done < kLast ? done : kLast;
    exchange(r, tile, Strides<kLog>(log), Strides<kLog>(next));
    butterflies(r, done - next, levels - next);
    log = next;
  }
  if (kOut != kValues<kLog> || log > 0) exchange(r, tile, Strides<kLog>(log), Runs<kLog, kOut>());
}

template <int kLog, class Load>
__device__ __forceinline__ void load_tile(const Load& load, int64_t first,
                                          typename Load::Value (&r)[kValues<kLog>],
                                          const NormalTable& table) {
#pragma unroll
  for (int i = 0; i < kValues<kLog>; i += Load::kRun)
    load.run(first + position_in_runs<kLog, Load::kRun>(threadIdx.x, i), r + i, table);
}

// --- Kernels -------------------------------------------------------------------------------------

template <int kLog, class Load, class Store>
__global__ void __launch_bounds__(1 << kThreadsLog<kLog>, kResident<typename Load::Value, kLog>)
    tile_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                int64_t first_tile, int64_t tiles, int levels) {
  using C = typename Load::Value;
  auto& memory = *shared_memory<TileMemory<C, kLog>>();
  load.prepare(memory.table);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    __syncthreads();  // the table is there, and the last tile has been read
    const int64_t first = (first_tile + tile) << kLog;
    C r[kValues<kLog>];
    load_tile<kLog>(load, first, r, memory.table);
    transform_tile<kLog, Load::kRun, Store::kRun>(r, levels, Shared<C>(memory.tile));
#pragma unroll
    for (int i = 0; i < kValues<kLog>; i += Store::kRun)
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

// Levels [log, log + rows_log) of entries [first, first + total), each block kColumns neighbouring
// columns of 2^rows_log entries 2^log apart at a time, in shared memory.
template <class Load, class Store>
__global__ void __launch_bounds__(kPassThreads)
    column_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                  int64_t first, int64_t total, int log, int rows_log) {
  using C = typename Load::Value;
  constexpr int kColumns = kColumnBytes / static_cast<int>(sizeof(C));
  const Shared<C> tile = shared_memory<C>();
  const int thread = static_cast<int>(threadIdx.x), entries = kColumns << rows_log;
  for (int64_t group = blockIdx.x; group < total / entries; group += gridDim.x) {
    const int64_t column = group * kColumns;
    const int64_t start =
        first + (column >> log << (log + rows_log)) + (column & ((int64_t{1} << log) - 1));
    const auto index = [&](int i) {
      return start + (static_cast<int64_t>(i / kColumns) << log) + i % kColumns;
    };
    for (int i = thread; i < entries; i += kPassThreads) tile[i] = load.one(index(i));
    __syncthreads();
    for (int done = 0; done < rows_log; done += kRadixLog) {
      // Item j has the values `step` apart from entry base on; the last pass may repeat no level.
      const int low = done + kRadixLog <= rows_log ? done : rows_log - kRadixLog;
      const int step = kColumns << low;
      for (int j = thread; j < entries / kRadix; j += kPassThreads) {
        C r[kRadix];
        const Shared<C> base = tile + (j / step * kRadix * step + j % step);
#pragma unroll
        for (int i = 0; i < kRadix; ++i) r[i] = base[i * step];
        butterflies(r, done - low, kRadixLog);
#pragma unroll
        for (int i = 0; i < kRadix; ++i) base[i * step] = r[i];
      }
      __syncthreads();
    }
    // A thread overwrites for the next group what it alone reads here: no barrier behind it.
    for (int i = thread; i < entries; i += kPassThreads) store.one(index(i), tile[i]);
  }
}

// --- Launches ------------------------------------------------------------------------------------

inline int log2_of(int64_t n) { return 63 - __builtin_clzll(static_cast<unsigned long long>(n)); }

// log2 of the largest tile that this GPU has the memory for.
template <class C>
int largest_tile() {
  const int64_t limit = shared_limit();
  if (limit >= static_cast<int64_t>(sizeof(TileMemory<C, kHugeTile<C>>))) return kHugeTile<C>;
  if (limit >= static_cast<int64_t>(sizeof(TileMemory<C, kMiddleTile<C>>))) return kMiddleTile<C>;
  return kLargeTile<C>;
}
template <class C>
bool fits_tile(int64_t n) {
  return n <= int64_t{1} << largest_tile<C>();
}

// Tiles that cover entries [first, end), from the multiple of the tile's size below `first` on.
template <int kLog, class Load, class Store>
const char* launch_tiles(const Load& load, const Store& store, int64_t first, int64_t end,
                         int levels, StreamHandle stream) {
  const int64_t first_tile = first >> kLog, tiles = divide_up(end, int64_t{1} << kLog) - first_tile;
  return launch("tile_kernel", tile_kernel<kLog, Load, Store>, tiles, 1 << kThreadsLog<kLog>,
                sizeof(TileMemory<typename Load::Value, kLog>), stream, load, store, first_tile,
                tiles, levels);
}

// The same with the smallest tile that has so many levels.
template <class Load, class Store>
const char* launch_any_tiles(const Load& load, const Store& store, int64_t first, int64_t end,
                             int levels, StreamHandle stream) {
  using C = typename Load::Value;
  constexpr int kLarge = kLargeTile<C>, kMiddle = kMiddleTile<C>, kHuge = kHugeTile<C>;
  if (levels <= kSmallTile)
    return launch_tiles<kSmallTile>(load, store, first, end, levels, stream);
  if (levels <= kLarge) return launch_tiles<kLarge>(load, store, first, end, levels, stream);
  if (levels <= kMiddle) return launch_tiles<kMiddle>(load, store, first, end, levels, stream);
  return launch_tiles<kHuge>(load, store, first, end, levels, stream);
}

// Levels [log, log + levels): in registers if they are few, else in shared memory.
template <class Load, class Store>
const char* launch_pass(const Load& load, const Store& store, int64_t first, int64_t end, int log,
                        int levels, StreamHandle stream) {
  using C = typename Load::Value;
  if (levels > kRadixLog)
    return launch("column_kernel", column_kernel<Load, Store>,
                  (end - first) * static_cast<int64_t>(sizeof(C)) / kColumnBytes >> levels,
                  kPassThreads, static_cast<size_t>(kColumnBytes) << levels, stream, load, store,
                  first, end - first, log, levels);
  const int64_t columns = (end - first) / kRadix;
  return launch("pass_kernel", pass_kernel<Load, Store>, divide_up(columns, kPassThreads),
                kPassThreads, 0, stream, load, store, first, columns, log + levels - kRadixLog,
                kRadixLog - levels);
}

// Entries [0, limits().wave) or one row of n, if that is more: what is worked on at a time.
inline int64_t wave_size(int64_t n, int64_t total) {
  const int64_t wave = limits().wave > n ? limits().wave / n * n : n;
  return total < wave ? total : wave;
}

// Pieces of 2^levels entries, those with indices [first, end). Pieces longer than a tile are whole,
// and `work` has room for all of them.
template <class Load, class Store>
const char* transform_range(const Load& load, const Store& store, typename Load::Value* work,
                            int64_t first, int64_t end, int levels, StreamHandle stream) {
  using C = typename Load::Value;
  const int tile = largest_tile<C>();
  if (levels <= tile) return launch_any_tiles(load, store, first, end, levels, stream);
  const Read<C> from_work{work, first, end};
  const Write<C> to_work{work, first, end, C{1}};
  if (const char* error = launch_any_tiles(load, to_work, first, end, tile, stream)) return error;
  // As few passes as shared memory allows, of about as many levels each.
  const int most = log2_of(shared_limit() / kColumnBytes);
  const int passes = (levels - tile + most - 1) / most;
  for (int pass = 0, done = tile; pass < passes; ++pass) {
    const int here = (levels - done + passes - pass - 1) / (passes - pass);
    const char* error = pass + 1 < passes
                            ? launch_pass(from_work, to_work, first, end, done, here, stream)
                            : launch_pass(from_work, store, first, end, done, here, stream);
    if (error) return error;
    done += here;
  }
  return nullptr;
}

}  // namespace fastfood::cuda
