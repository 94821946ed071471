// The forward projection on CUDA for one storage type, FASTFOOD_TYPE. Each thread of a tile draws
// the normals of consecutive rows and multiplies them by v; then the tile is transformed, and
// stored or added to a base. If a block is longer than a tile, its tiles go to a workspace, where
// passes over columns do the high levels.
#include "columns.cuh"
#include "normals.cuh"
#include "transform.h"

namespace fastfood::cuda {

// A tile of the projection that does the levels below kLevels.
template <int kLevels, class T>
struct ProjectTile {
  using C = Arithmetic<T>;
  static constexpr int kTileLog = project_tile_log<T>(kLevels);
  static constexpr int kValuesLog = project_values_log<T>(kTileLog);
  using S = Stages<C, kTileLog, kValuesLog, kValuesLog, kValuesLog, kValuesLog, kLevels,
                   kIsHalf<T> ? 1 : 0>;
  // A warp that has a tile to itself shares its block, and the table, with three others.
  static constexpr int kTiles = S::kThreads == kLanes ? 4 : 1;
  static constexpr int kThreads = kTiles * S::kThreads;
  static constexpr int kFit = kProjectWarps * kLanes / kThreads;
  static constexpr int kResident = kFit > 1 ? kFit : 1;
  // A thread's entries of v are the same in all tiles: they stay in registers if there are enough.
  static constexpr bool kKeepsV = sizeof(C) == 4 && kValuesLog == 5;
  struct Memory {
    NormalCoefficients table;
    alignas(16) C tile[kTiles][S::kRoom];
  };
};

namespace {

// The Store of the projection: out[i] = base[i] + scales[s] * y for row start + i and its segment
// s, or y alone if base is null.
template <class T>
struct Perturb {
  using C = Arithmetic<T>;
  T* out;
  const T* base;
  const int64_t* offsets;
  const C* scales;
  int64_t segments, start, count;

  // Writes rows in ascending order, and remembers the segment of the last one.
  struct Cursor {
    const Perturb& p;
    int64_t segment, end = -1;
    C scale = 1;
    __device__ __forceinline__ T fetch(int64_t row) const {
      const int64_t i = row - p.start;
      return p.base && i >= 0 && i < p.count ? p.base[i] : T{};
    }
    __device__ __forceinline__ void one(int64_t row, C y, T fetched) {
      const int64_t i = row - p.start;
      if (i < 0 || i >= p.count) return;
      if (p.base) {
        if (i >= end) {
          while (i >= p.offsets[segment + 1]) ++segment;
          end = p.offsets[segment + 1];
          scale = p.scales[segment];
        }
        y = widen(fetched) + scale * y;
      }
      p.out[i] = narrow<T>(y);
    }
  };
  __device__ __forceinline__ Cursor begin(int64_t row) const {
    return {*this, base ? segment_of(row - start, offsets, segments) : 0};
  }

  // r[k] = base + scale * r[k] for rows from i on, all in one segment; pairs are aligned.
  template <class S, class L>
  __device__ __forceinline__ void add_base(C (&r)[S::kValues], int64_t i, C scale) const {
    constexpr int kFlight = 16;  // loads of the base in flight
#pragma unroll
    for (int from = 0; from < S::kValues; from += kFlight) {
      C b[kFlight];
      read_base<L>(b, i, from);
#pragma unroll
      for (int k = 0; k < kFlight; ++k) r[from + k] = b[k] + scale * r[from + k];
    }
  }
  template <class L, int kCount>
  __device__ __forceinline__ void read_base(C (&b)[kCount], int64_t i, int from) const {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int k = 0; k < kCount; k += 2)
        widen_pair<T>(*reinterpret_cast<const uint32_t*>(base + i + L::of_value(from + k)), &b[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) b[k] = base[i + L::of_value(from + k)];
    }
  }
  template <class S, class L>
  __device__ __forceinline__ void store(const C (&r)[S::kValues], int64_t i) const {
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int k = 0; k < S::kValues; k += 2)
        *reinterpret_cast<uint32_t*>(out + i + L::of_value(k)) = narrow_pair<T>(r[k], r[k + 1]);
    } else {
#pragma unroll
      for (int k = 0; k < S::kValues; ++k) out[i + L::of_value(k)] = r[k];
    }
  }

  // The slow way, for tiles that are not wanted whole or lie in several segments: entry by entry,
  // through those places of the tile in shared memory that no other thread uses.
  template <class S, class L>
  __device__ __forceinline__ void any(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C> memory) const {
    put<S, L>(r, memory, thread);
    const int mine = L::of_thread(thread);
    Cursor cursor = begin(first + mine);
#pragma unroll 1
    for (int from = 0; from < S::kValues; from += kFetched) {
      T fetched[kFetched];
#pragma unroll
      for (int k = 0; k < kFetched; ++k)
        fetched[k] = cursor.fetch(first + mine + L::of_value(from + k));
#pragma unroll
      for (int k = 0; k < kFetched; ++k) {
        const int entry = mine + L::of_value(from + k);
        cursor.one(first + entry, memory[S::place(entry)], fetched[k]);
      }
    }
  }

  template <class S, class L>
  __device__ __forceinline__ void run(C (&r)[S::kValues], int64_t first, int thread,
                                      Shared<C> memory) const {
    const int64_t i = first - start, end = i + (1 << S::kTileLog);
    bool plain = i >= 0 && end <= count;
    if constexpr (kIsHalf<T>) plain = plain && aligned_pairs(i);
    C scale = 1;
    if (plain && base) {
      const int64_t segment = segment_of(i, offsets, segments);
      plain = end <= offsets[segment + 1];
      scale = scales[segment];
    }
    if (plain) {
      if (base) add_base<S, L>(r, i + L::of_thread(thread), scale);
      store<S, L>(r, i + L::of_thread(thread));
    } else {
      any<S, L>(r, first, thread, memory);
    }
  }
  __device__ __forceinline__ bool aligned_pairs(int64_t i) const {
    const auto bits = reinterpret_cast<uintptr_t>(out + i) |
                      (base ? reinterpret_cast<uintptr_t>(base + i) : uintptr_t{0});
    return bits % 4 == 0;
  }
};

// v, with one entry for each row of a block of L, at an aligned address.
template <class C>
struct Spread {
  const C* v;
  int64_t L;

  // Loads the entries of v for kCount rows from `row` on, which is a multiple of kCount.
  template <int kCount>
  __device__ __forceinline__ void load(C* r, int64_t row) const {
    const C* p = v + (row & (L - 1));
#pragma unroll
    for (int i = 0; i < kCount; i += kPacket<C>)
      widen_packet<C>(*reinterpret_cast<const uint4*>(p + i), r + i);
  }
};

template <class C>
__global__ void __launch_bounds__(256) copy_kernel(const C* from, C* to, int64_t count) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < count; i += all_threads()) to[i] = from[i];
}

// G_b * v for a thread's consecutive rows from `row` on. `kept` holds their entries of v already,
// or is null.
template <int kValues, class C>
__device__ __forceinline__ void draw_rows(C (&r)[kValues], const C* kept, const Spread<C>& spread,
                                          uint64_t seed, int64_t row,
                                          const NormalCoefficients& table) {
#pragma unroll
  for (int i = 0; i < kValues; i += kNormalsPerCall) {
    C g[kNormalsPerCall], v[kNormalsPerCall];
    draw_g(seed, call_of(row), i, table, g);
    if (!kept) spread.template load<kNormalsPerCall>(v, row + i);
#pragma unroll
    for (int k = 0; k < kNormalsPerCall; ++k) r[i + k] = g[k] * (kept ? kept[i + k] : v[k]);
  }
}

// Rows [begin, end), tile by tile; `begin` is a multiple of the tile's size.
template <int kLevels, class T>
__global__ void __launch_bounds__(ProjectTile<kLevels, T>::kThreads,
                                  ProjectTile<kLevels, T>::kResident)
    project_kernel(const __grid_constant__ Perturb<T> out,
                   const __grid_constant__ Spread<Arithmetic<T>> spread, uint64_t seed,
                   const __grid_constant__ NormalTable table, int64_t begin, int64_t end) {
  using Tile = ProjectTile<kLevels, T>;
  using S = typename Tile::S;
  using C = Arithmetic<T>;
  auto& shared = *shared_memory<typename Tile::Memory>();
  shared.table.copy(table);
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / S::kThreads;
  const int thread = static_cast<int>(threadIdx.x) % S::kThreads;
  const Shared<C> memory(shared.tile[group]);
  const int mine = S::First::of_thread(thread);
  const bool moves = spread.L > (1 << Tile::kTileLog);  // each tile has other entries of v
  C v[S::kValues];
  if (Tile::kKeepsV) spread.template load<S::kValues>(v, mine);
  const int64_t first_of_all =
      begin + ((int64_t{blockIdx.x} * Tile::kTiles + group) << Tile::kTileLog);
  for (int64_t first = first_of_all; first < end;
       first += (int64_t{gridDim.x} * Tile::kTiles) << Tile::kTileLog) {
    C r[1][S::kValues];
    if (Tile::kKeepsV && moves) spread.template load<S::kValues>(v, first + mine);
    draw_rows(r[0], Tile::kKeepsV ? v : nullptr, spread, seed, first + mine, shared.table);
    barrier<S::kThreads>();  // all threads have read the previous tile
    transform_tiles<S>(r, memory, thread);
    out.template run<S, typename S::Last>(r[0], first, thread, memory);
  }
}

// --- Launches ------------------------------------------------------------------------------------

// The rows of all blocks of L that hold any of rows [start, start + count).
struct RowRange {
  int64_t first, end;
};
inline RowRange blocks_around(int64_t start, int64_t count, int64_t L) {
  return {start / L * L, count > 0 ? divide_up(start + count, L) * L : start / L * L};
}

// The most levels that a tile can do with this device's shared memory.
template <class T, int kLevels = kProjectLevelsMost<T>>
int most_levels(const Device& device) {
  if constexpr (kLevels > kLevelsLeast) {
    if (static_cast<int64_t>(sizeof(typename ProjectTile<kLevels, T>::Memory)) > device.shared)
      return most_levels<T, kLevels - 1>(device);
  }
  return kLevels;
}

template <class T, int kLevels = kLevelsLeast>
const char* launch_tiles(const Perturb<T>& out, const Projection& p, int levels, int64_t first,
                         int64_t end, Stream stream) {
  if constexpr (kLevels < kProjectLevelsMost<T>) {
    if (levels > kLevels) return launch_tiles<T, kLevels + 1>(out, p, levels, first, end, stream);
  }
  using C = Arithmetic<T>;
  using Tile = ProjectTile<kLevels, T>;
  const int64_t begin = first >> Tile::kTileLog << Tile::kTileLog;
  const int64_t tiles = divide_up(end - begin, int64_t{1} << Tile::kTileLog);
  const int64_t most = int64_t{device_facts(stream.device).multiprocessors} * Tile::kResident;
  const int64_t blocks = divide_up(tiles, Tile::kTiles);
  return Launch<project_kernel<kLevels, T>>::run(
      "project_kernel",
      {blocks < most ? blocks : most, Tile::kThreads, sizeof(typename Tile::Memory), stream}, out,
      Spread<C>{static_cast<const C*>(p.v), p.L}, p.seed, kNormalTable, begin, end);
}

}  // namespace

// Each compilation defines these for its own type, and calls those of the others.
extern template const char* project_tiles<float>(const Projection&, float*, int, int64_t, int64_t,
                                                 Stream);
extern template const char* project_tiles<double>(const Projection&, double*, int, int64_t, int64_t,
                                                  Stream);

template <class T>
const char* project_tiles(const Projection& p, T* out, int levels, int64_t first, int64_t end,
                          Stream stream) {
  const Perturb<T> plain{out, nullptr, nullptr, nullptr, 0, first, end - first};
  return launch_tiles<T>(plain, p, levels, first, end, stream);
}

namespace {

// Rows [first, end) of blocks longer than a tile: their tiles go to `work`, then passes over
// columns follow.
template <class T>
const char* project_long(const Perturb<T>& out, const Projection& p, const Cut& cut, int64_t first,
                         int64_t end, Arithmetic<T>* work, Stream stream) {
  using C = Arithmetic<T>;
  const char* error = project_tiles<C>(p, work, cut.tile_log, first, end, stream);
  Perturb<T> shifted = out;  // work's first entry is row `first`
  shifted.start -= first;
  for (int pass = 0, log = cut.tile_log; pass < cut.passes && !error; ++pass) {
    const int levels = cut.levels[pass];
    error = pass + 1 < cut.passes
                ? transform_work<C>(work, end - first, log, levels, stream)
                : transform_columns<C>(Work<C>{work}, shifted, end - first, log, levels, stream);
    log += levels;
  }
  return error;
}

template <class C>
Cut cut_block(int log_L, const Device& device) {
  const int most = most_levels<C>(device);
  return cut_row(log_L, 11 < most ? 11 : most, most, most_column_levels<C>(device));
}

}  // namespace

template <class T>
int64_t project_workspace_of(const Projection& p, int device) {
  using C = Arithmetic<T>;
  int64_t entries = is_aligned(p.v, 16) ? 0 : p.L;
  if (log2_of(p.L) > most_levels<T>(device_facts(device))) {
    const RowRange blocks = blocks_around(p.start, p.count, p.L);
    entries += wave_size(p.L, blocks.end - blocks.first);
  }
  return entries * static_cast<int64_t>(sizeof(C));
}

template <class T>
const char* project_rows_of(const Projection& given, void* workspace, Stream stream) {
  using C = Arithmetic<T>;
  if (given.count == 0) return nullptr;
  Projection p = given;
  C* work = static_cast<C*>(workspace);
  if (!is_aligned(p.v, 16)) {
    const char* error =
        Launch<copy_kernel<C>>::run("copy_kernel", {divide_up(p.L, 256), 256, 0, stream},
                                    static_cast<const C*>(p.v), work, p.L);
    if (error) return error;
    p.v = work;
    work += p.L;
  }
  const Perturb<T> out{static_cast<T*>(p.out),
                       static_cast<const T*>(p.base),
                       p.offsets,
                       static_cast<const C*>(p.scales),
                       p.segments,
                       p.start,
                       p.count};
  const Device device = device_facts(stream.device);
  const int log_L = log2_of(p.L);
  if (log_L <= most_levels<T>(device))
    return launch_tiles<T>(out, p, log_L, p.start, p.start + p.count, stream);
  const RowRange blocks = blocks_around(p.start, p.count, p.L);
  const int64_t wave = wave_size(p.L, blocks.end - blocks.first);
  const Cut cut = cut_block<C>(log_L, device);
  for (int64_t first = blocks.first; first < blocks.end; first += wave) {
    const int64_t end = first + wave < blocks.end ? first + wave : blocks.end;
    const char* error = project_long(out, p, cut, first, end, work, stream);
    if (error) return error;
  }
  return nullptr;
}

template const char* project_tiles<FASTFOOD_TYPE>(const Projection&, FASTFOOD_TYPE*, int, int64_t,
                                                  int64_t, Stream);
template int64_t project_workspace_of<FASTFOOD_TYPE>(const Projection&, int);
template const char* project_rows_of<FASTFOOD_TYPE>(const Projection&, void*, Stream);

}  // namespace fastfood::cuda
