// A pass over columns: some high levels of rows longer than a tile. A block of threads works on
// 2^kLevels entries that lie 2^log apart, for some neighbouring columns at a time, so that accesses
// to global memory are coalesced to whole lines.
//
// A Load and a Store say where the entries come from and where they go. begin(index) makes a
// thread's cursor for entries from that index on. The kernel calls its function `one` in ascending
// order; that of a Store also gets what `fetch` has loaded for the same entry, some entries ahead.
#pragma once

#include "shapes.h"
#include "tile.cuh"

namespace fastfood::cuda {

struct Nothing {};  // the result of `fetch` for a Store that only writes

constexpr int kFetched = 4;  // fetches that a thread has in flight

// A Load and a Store of values of the arithmetic type in memory; each is its own cursor.
template <class C>
struct Work {
  C* x;
  __device__ __forceinline__ Work begin(int64_t) const { return *this; }
  __device__ __forceinline__ C one(int64_t index) const { return x[index]; }
  __device__ __forceinline__ Nothing fetch(int64_t) const { return {}; }
  __device__ __forceinline__ void one(int64_t index, C y, Nothing) const { x[index] = y; }
};

template <int kLevels, class C>
struct ColumnTile {
  static constexpr int kNeighboursLog = neighbours_log<C>(kLevels);
  using S = Stages<C, kLevels + kNeighboursLog, kColumnValuesLog, 0, kNeighboursLog,
                   kNeighboursLog + kColumnValuesLog, kNeighboursLog + kLevels, 0>;
  static constexpr int64_t kBytes = S::kCount > 1 ? int64_t{S::kRoom} * sizeof(C) : 0;
};

// Levels [log, log + kLevels) for `groups` tiles of columns, beginning with entry 0.
template <int kLevels, class C, class Load, class Store>
__global__ void __launch_bounds__(ColumnTile<kLevels, C>::S::kThreads, column_resident<C>(kLevels))
    column_kernel(const __grid_constant__ Load load, const __grid_constant__ Store store,
                  int64_t groups, int log) {
  using S = typename ColumnTile<kLevels, C>::S;
  constexpr int kNeighboursLog = ColumnTile<kLevels, C>::kNeighboursLog;
  const int thread = static_cast<int>(threadIdx.x);
  const Shared<C> memory(S::kCount > 1 ? shared_memory<C>() : nullptr);
  const auto offset = [log](int entry) {
    return (static_cast<int64_t>(entry >> kNeighboursLog) << log) +
           (entry & ((1 << kNeighboursLog) - 1));
  };
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t column = group << kNeighboursLog;
    const int64_t first = (column >> log << (log + kLevels)) + (column & ((int64_t{1} << log) - 1));
    if (group != blockIdx.x) barrier<S::kThreads>();  // all threads have read the previous columns
    C r[1][S::kValues];
    using First = typename S::First;
    const int64_t from = first + offset(First::of_thread(thread));
    auto source = load.begin(from);
#pragma unroll
    for (int i = 0; i < S::kValues; ++i) r[0][i] = source.one(from + offset(First::of_value(i)));
    transform_tiles<S>(r, memory, thread);
    using Last = typename S::Last;
    const int64_t to = first + offset(Last::of_thread(thread));
    auto sink = store.begin(to);
#pragma unroll
    for (int from = 0; from < S::kValues; from += kFetched) {
      decltype(sink.fetch(to)) fetched[kFetched];
#pragma unroll
      for (int k = 0; k < kFetched; ++k)
        fetched[k] = sink.fetch(to + offset(Last::of_value(from + k)));
#pragma unroll
      for (int k = 0; k < kFetched; ++k)
        sink.one(to + offset(Last::of_value(from + k)), r[0][from + k], fetched[k]);
    }
  }
}

template <int kLevels, class C, class Load, class Store>
const char* launch_columns(const Load& load, const Store& store, int64_t total, int log,
                           Stream stream) {
  using Tile = ColumnTile<kLevels, C>;
  const int64_t groups = total >> Tile::S::kTileLog;
  return Launch<column_kernel<kLevels, C, Load, Store>>::run(
      "column_kernel", {groups, Tile::S::kThreads, Tile::kBytes, stream}, load, store, groups, log);
}

// Levels [log, log + levels) of entries [0, total); 5, 7, 9 or 11 (shapes.h) of them.
template <class C, class Load, class Store>
const char* transform_columns(const Load& load, const Store& store, int64_t total, int log,
                              int levels, Stream stream) {
  switch (levels) {
    case 5: return launch_columns<5, C>(load, store, total, log, stream);
    case 7: return launch_columns<7, C>(load, store, total, log, stream);
    case 9: return launch_columns<9, C>(load, store, total, log, stream);
    case 11:
      if constexpr (sizeof(C) == 4) return launch_columns<11, C>(load, store, total, log, stream);
  }
  __builtin_trap();
}

// How many levels a pass may have on this device.
template <class C>
int most_column_levels(const Device& device) {
  if (sizeof(C) == 4 && ColumnTile<11, float>::kBytes <= device.shared) return 11;
  return ColumnTile<9, C>::kBytes <= device.shared ? 9 : 7;
}

// How a long row is cut: the lowest levels by tiles of 2^tile_log entries, the others by passes.
struct Cut {
  int tile_log = 0, passes = 0;
  int levels[6];  // of each pass, the lowest first; six passes of 7 levels reach 2^49 entries
};

// The cut of a row of 2^row_log entries into the fewest passes of at most `most_levels` levels, and
// tiles of at most 2^most entries; of these cuts the one with the largest tiles of at most 2^best
// entries, if there is one.
inline Cut cut_row(int row_log, int best, int most, int most_levels) {
  Cut cut;
  for (cut.passes = 1; row_log - most > cut.passes * most_levels; ++cut.passes) continue;
  // The sum of the passes' levels, each an odd number of at least five.
  int sum = row_log - best > 5 * cut.passes ? row_log - best : 5 * cut.passes;
  sum += (sum - cut.passes) % 2;
  if (sum > cut.passes * most_levels) sum = cut.passes * most_levels;
  cut.tile_log = row_log - sum;
  for (int pass = 0; pass < cut.passes; ++pass) {
    const int left = cut.passes - pass;
    int here = (sum + left - 1) / left;  // about equal, and odd
    here += here % 2 == 0;
    cut.levels[pass] = here < most_levels ? here : most_levels;
    sum -= cut.levels[pass];
  }
  return cut;
}

// Entries per wave: as many whole rows of n as fit limits().wave, at least one.
inline int64_t wave_size(int64_t n, int64_t total) {
  const int64_t wave = limits().wave > n ? limits().wave / n * n : n;
  return total < wave ? total : wave;
}

}  // namespace fastfood::cuda
