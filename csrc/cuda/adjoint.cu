// The adjoint of the projection on CUDA, for sums in FASTFOOD_TYPE: the mirror image of project.cu.
// Tiles of the gradients are transformed, highest levels first, until each thread holds consecutive
// rows, which it multiplies by fresh normals and sums up in registers. If a block is longer than a
// tile, passes over columns come first. Each partial sum takes its tiles in a fixed order, whatever
// the device, and the partial sums are added in a fixed order.
#include <algorithm>
#include <vector>

#include "columns.cuh"
#include "normals.cuh"
#include "transform.h"

namespace fastfood::cuda {

namespace {

// --- Pieces --------------------------------------------------------------------------------------

constexpr int kMostPieces = 64;  // in one launch, of whose parameters they are a part

template <class C>
struct PieceList {
  struct Item {
    const void* g;
    int64_t start, end;  // rows
    int64_t tiles;       // of this piece and those before it
    int64_t skipped;  // tile t of the list, if it belongs to this piece, is tile t + skipped of all
    C factor;
    Type type;
  };
  int size = 0;
  Item items[kMostPieces];
};
static_assert(sizeof(PieceList<double>) < 3600,
              "with the table it fits a launch's 4 KB of parameters");

template <class T, class C>
__device__ __forceinline__ C read_as(const void* g, int64_t i) {
  return static_cast<C>(widen(static_cast<const T*>(g)[i]));
}
template <class C>
__device__ __forceinline__ C read_any(const void* g, Type type, int64_t i) {
  if (type == Type::f16) return read_as<__half, C>(g, i);
  if (type == Type::bf16) return read_as<__nv_bfloat16, C>(g, i);
  if constexpr (sizeof(C) == 8)
    if (type == Type::f64) return read_as<double, C>(g, i);
  return read_as<float, C>(g, i);
}

// A thread's values in layout L of a tile that lies in a piece as a whole; p is their first entry.
template <class T, class L, class C>
__device__ __forceinline__ void read_tile(const T* p, C (&r)[L::kValues]) {
  if constexpr (L::kLow > 0) {
    if (reinterpret_cast<uintptr_t>(p) % (2 * sizeof(T)) == 0) {
#pragma unroll
      for (int i = 0; i < L::kValues; i += 2) {
        const auto pair = *reinterpret_cast<const Run<2, T>*>(p + L::of_value(i));
        r[i] = static_cast<C>(widen(pair.x[0]));
        r[i + 1] = static_cast<C>(widen(pair.x[1]));
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < L::kValues; ++i) r[i] = static_cast<C>(widen(p[L::of_value(i)]));
}

template <class L, class C>
__device__ __forceinline__ void read_whole(const void* g, Type type, int64_t i,
                                           C (&r)[L::kValues]) {
  if (sizeof(C) == 8 && type == Type::f64) {
    read_tile<double, L>(static_cast<const double*>(g) + i, r);
  } else if (type == Type::f32) {
    read_tile<float, L>(static_cast<const float*>(g) + i, r);
  } else if (type == Type::f16) {
    read_tile<__half, L>(static_cast<const __half*>(g) + i, r);
  } else {
    read_tile<__nv_bfloat16, L>(static_cast<const __nv_bfloat16*>(g) + i, r);
  }
}

// A thread's values in layout L of the tile whose first row is `first`, times the factor.
template <class S, class L, class C>
__device__ __forceinline__ void load_piece(const typename PieceList<C>::Item& item, int64_t first,
                                           int thread, Shared<C> memory, C (&r)[S::kValues]) {
  const int mine = L::of_thread(thread);
  const int64_t i = first - item.start;
  if (i >= 0 && first + (1 << S::kTileLog) <= item.end) {
    read_whole<L>(item.g, item.type, i + mine, r);
  } else {
    constexpr int kFlight = 8;  // loads in flight
#pragma unroll 1
    for (int from = 0; from < S::kValues; from += kFlight) {
      C values[kFlight];
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const int64_t row = first + mine + L::of_value(from + k);
        const bool there = row >= item.start && row < item.end;
        values[k] = there ? read_any<C>(item.g, item.type, row - item.start) : C{0};
      }
#pragma unroll
      for (int k = 0; k < kFlight; ++k) memory[S::place(mine + L::of_value(from + k))] = values[k];
    }
    get<S, L>(r, memory, thread);
  }
  if (item.factor != C{1}) {
#pragma unroll
    for (int k = 0; k < S::kValues; ++k) r[k] *= item.factor;
  }
}

// The Load of a pass over columns: entries of whole blocks from row `first` on, zero outside of all
// pieces. These are in ascending order and do not overlap.
template <class C>
struct LoadPieces {
  PieceList<C> pieces;
  int64_t first;

  struct Cursor {
    const LoadPieces& p;
    int piece = 0;
    __device__ __forceinline__ C one(int64_t index) {
      const int64_t row = p.first + index;
      while (piece < p.pieces.size && row >= p.pieces.items[piece].end) ++piece;
      if (piece == p.pieces.size || row < p.pieces.items[piece].start) return C{0};
      const auto& item = p.pieces.items[piece];
      return read_any<C>(item.g, item.type, row - item.start) * item.factor;
    }
  };
  __device__ __forceinline__ Cursor begin(int64_t) const { return {*this}; }
};

// --- Kernels -------------------------------------------------------------------------------------

template <int kLevels, class C>
struct AdjointTile {
  static constexpr int kTileLog = adjoint_tile_log(kLevels);
  static constexpr int kValuesLog = 5;
  using S = Stages<C, kTileLog, kValuesLog, kValuesLog, kValuesLog, kValuesLog, kLevels,
                   kTileLog == 10 ? 0 : 1>;
  static constexpr int kTiles = S::kThreads == kLanes ? 4 : 1;
  static constexpr int kThreads = kTiles * S::kThreads;
  static constexpr int kFit = kProjectWarps * kLanes / kThreads / (sizeof(C) == 8 ? 2 : 1);
  static constexpr int kResident = kFit > 1 ? kFit : 1;
  struct Memory {
    NormalCoefficients table;
    alignas(16) C tile[kTiles][S::kRoom];
  };
};

// How the tiles of a list are dealt to `parts` partial sums: sum p takes tiles p, p + parts, ...
// They all lie at the same place within their blocks of L.
struct Deal {
  int64_t L, tiles, parts;
  bool add;  // whether to add to the partial sums, instead of setting them
};

// If L < 2^10, some lanes of a warp hold sums for the same places of a block. Adds these up.
template <int kValues, class C>
__device__ __forceinline__ void fold_lanes(C (&sum)[kValues], int64_t L) {
#pragma unroll 1
  for (int distance = static_cast<int>(L) / kValues; distance < kLanes; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], distance);
  }
}

template <int kLevels, class C>
__global__ void __launch_bounds__(AdjointTile<kLevels, C>::kThreads,
                                  AdjointTile<kLevels, C>::kResident)
    adjoint_kernel(const __grid_constant__ PieceList<C> pieces, C* partial, uint64_t seed,
                   const __grid_constant__ NormalTable table, const __grid_constant__ Deal deal) {
  using Tile = AdjointTile<kLevels, C>;
  using S = typename Tile::S;
  constexpr int kTileLog = Tile::kTileLog;
  auto& shared = *shared_memory<typename Tile::Memory>();
  shared.table.copy(table);
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / S::kThreads;
  const int thread = static_cast<int>(threadIdx.x) % S::kThreads;
  const Shared<C> memory(shared.tile[group]);
  const int mine = S::First::of_thread(thread);
  for (int64_t part = int64_t{blockIdx.x} * Tile::kTiles + group; part < deal.parts;
       part += int64_t{gridDim.x} * Tile::kTiles) {
    C sum[S::kValues] = {};
    int piece = 0;
    for (int64_t tile = part; tile < deal.tiles; tile += deal.parts) {
      while (tile >= pieces.items[piece].tiles) ++piece;
      const int64_t first = (tile + pieces.items[piece].skipped) << kTileLog;
      barrier<S::kThreads>();  // all threads have read the previous tile
      C r[1][S::kValues];
      load_piece<S, typename S::Last, C>(pieces.items[piece], first, thread, memory, r[0]);
      transform_tile_backwards<S>(r, memory, thread);
#pragma unroll
      for (int i = 0; i < S::kValues; i += kNormalsPerCall) {
        C g[kNormalsPerCall];
        draw_g(seed, call_of(first + mine), i, shared.table, g);
#pragma unroll
        for (int k = 0; k < kNormalsPerCall; ++k) sum[i + k] = fma(g[k], r[0][i + k], sum[i + k]);
      }
    }
    const int length = deal.L < (1 << kTileLog) ? static_cast<int>(deal.L) : 1 << kTileLog;
    if constexpr (Tile::kTiles > 1) fold_lanes(sum, deal.L);
    if (mine >= length) continue;
    C* out = partial + part * length + mine;
    if (deal.add) {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i) sum[i] = out[i] + sum[i];
    }
#pragma unroll
    for (int i = 0; i < S::kValues; i += kPacket<C>)
      *reinterpret_cast<uint4*>(out + i) = narrow_packet<C>(&sum[i]);
  }
}

// z[j] = the sum of entries j of `rows` rows: 32 sums of every 32nd row, then their sum, in order.
constexpr int kSumColumns = 8;
constexpr int kSumThreads = 256;

template <class C>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const C* rows_of, C* z, int64_t rows, int64_t L) {
  constexpr int kGroups = kSumThreads / kSumColumns;
  const Shared<C> sums(shared_memory<C>());
  const int thread = static_cast<int>(threadIdx.x), group = thread / kSumColumns;
  for (int64_t column = int64_t{blockIdx.x} * kSumColumns; column < L;
       column += int64_t{gridDim.x} * kSumColumns) {
    const C* x = rows_of + column + thread % kSumColumns;
    C sum = 0;
#pragma unroll 8
    for (int64_t row = group; row < rows; row += kGroups) sum += x[row * L];
    sums[thread] = sum;
    __syncthreads();
    if (thread < kSumColumns) {
      for (int i = 1; i < kGroups; ++i) sum += sums[i * kSumColumns + thread];
      z[column + thread] = sum;
    }
    __syncthreads();
  }
}

// --- Launches ------------------------------------------------------------------------------------

// The most levels that a tile can do with this device's shared memory.
template <class C, int kLevels = kAdjointLevelsMost<C>>
int most_levels(const Device& device) {
  if constexpr (kLevels > kLevelsLeast) {
    if (static_cast<int64_t>(sizeof(typename AdjointTile<kLevels, C>::Memory)) > device.shared)
      return most_levels<C, kLevels - 1>(device);
  }
  return kLevels;
}

// How an adjoint is computed. `cut` is set only if blocks of L are longer than a tile.
template <class C>
struct Plan {
  int tile_log, levels;  // of the tiles; passes over columns do the levels above
  bool is_long;
  Cut cut;
  int64_t parts;  // partial sums of `length` entries each
  int64_t length;
  int64_t wave = 0;  // entries of workspace for the passes

  Plan(const Adjoint& a, const Device& device) {
    const int log_L = log2_of(a.L), most = most_levels<C>(device);
    is_long = log_L > most;
    if (is_long) cut = cut_row(log_L, 11 < most ? 11 : most, most, most_column_levels<C>(device));
    levels = is_long ? cut.tile_log : log_L;
    tile_log = adjoint_tile_log(levels);
    const int64_t tile = int64_t{1} << tile_log, places = a.L > tile ? a.L / tile : 1;
    length = a.L < tile ? a.L : tile;
    int64_t tiles = 0, longest = 0;
    for (int64_t i = 0; i < a.size; ++i) {
      const Piece& p = a.pieces[i];
      if (p.count == 0) continue;
      tiles += divide_up(p.start + p.count, tile) - p.start / tile;
      longest += divide_up(p.start + p.count, a.L) * a.L - p.start / a.L * a.L;
    }
    // Four tiles or more for each sum, as many sums as there is room for.
    const int64_t room = limits().partials / (tile * places), wanted = tiles / 4 / places;
    parts = places * std::max<int64_t>(1, std::min(room, wanted));
    if (is_long) wave = wave_size(a.L, longest);
  }
  int64_t rows(int64_t L) const { return parts * length / L; }
};

template <class C>
void add_piece(PieceList<C>& list, const Piece& p, int tile_log) {
  auto& item = list.items[list.size];
  const int64_t before = list.size ? list.items[list.size - 1].tiles : 0;
  const int64_t first = p.start >> tile_log;
  item = {p.g,
          p.start,
          p.start + p.count,
          before + divide_up(p.start + p.count, int64_t{1} << tile_log) - first,
          first - before,
          static_cast<C>(p.factor),
          p.type};
  ++list.size;
}

template <class C, int kLevels = kLevelsLeast>
const char* launch_tiles(const PieceList<C>& list, const Adjoint& a, const Plan<C>& plan,
                         C* partial, bool add, Stream stream) {
  if constexpr (kLevels < kAdjointLevelsMost<C>) {
    if (plan.levels > kLevels)
      return launch_tiles<C, kLevels + 1>(list, a, plan, partial, add, stream);
  }
  using Tile = AdjointTile<kLevels, C>;
  const Deal deal{a.L, list.items[list.size - 1].tiles, plan.parts, add};
  return Launch<adjoint_kernel<kLevels, C>>::run(
      "adjoint_kernel",
      {divide_up(plan.parts, Tile::kTiles), Tile::kThreads, sizeof(typename Tile::Memory), stream},
      list, partial, a.seed, kNormalTable, deal);
}

// Blocks that a tile holds: all pieces of a list in one launch.
template <class C>
const char* adjoint_short(const Adjoint& a, const Plan<C>& plan, C* partial, bool& any,
                          Stream stream) {
  PieceList<C> list;
  for (int64_t i = 0; i <= a.size; ++i) {
    if (list.size == kMostPieces || (i == a.size && list.size > 0)) {
      if (const char* error = launch_tiles(list, a, plan, partial, any, stream)) return error;
      any = true;
      list.size = 0;
    }
    if (i < a.size && a.pieces[i].count > 0) add_piece(list, a.pieces[i], plan.tile_log);
  }
  return nullptr;
}

// One wave: rows [first, end), which are whole blocks, of the pieces of a list.
template <class C>
const char* adjoint_wave(const PieceList<C>& list, const Adjoint& a, const Plan<C>& plan, C* work,
                         int64_t first, int64_t end, bool add, Stream stream) {
  int log = log2_of(a.L);
  for (int pass = plan.cut.passes - 1; pass >= 0; --pass) {
    const int levels = plan.cut.levels[pass];
    log -= levels;
    const char* error = pass == plan.cut.passes - 1
                            ? transform_columns<C>(LoadPieces<C>{list, first}, Work<C>{work},
                                                   end - first, log, levels, stream)
                            : transform_work<C>(work, end - first, log, levels, stream);
    if (error) return error;
  }
  PieceList<C> whole;
  add_piece(whole, {work, type_of<C>, 1.0, first, end - first}, plan.tile_log);
  return launch_tiles(whole, a, plan, work + plan.wave, add, stream);
}

// Blocks longer than a tile: pieces in ascending order, neighbours together, wave by wave.
template <class C>
const char* adjoint_long(const Adjoint& a, const Plan<C>& plan, C* work, bool& any, Stream stream) {
  std::vector<Piece> left;
  for (int64_t i = 0; i < a.size; ++i)
    if (a.pieces[i].count > 0) left.push_back(a.pieces[i]);
  std::stable_sort(left.begin(), left.end(),
                   [](const Piece& x, const Piece& y) { return x.start < y.start; });
  while (!left.empty()) {
    PieceList<C> list;
    std::vector<Piece> later;  // pieces that overlap, or begin beyond the next block
    const int64_t begin = left[0].start / a.L * a.L;
    int64_t row = begin, end = begin;
    for (const Piece& p : left) {
      if (list.size == kMostPieces || p.start < row || p.start / a.L * a.L > end) {
        later.push_back(p);
        continue;
      }
      add_piece(list, p, plan.tile_log);
      row = p.start + p.count;
      end = divide_up(row, a.L) * a.L;
    }
    for (int64_t first = begin; first < end; first += plan.wave) {
      const int64_t stop = std::min(first + plan.wave, end);
      const char* error = adjoint_wave(list, a, plan, work, first, stop, any, stream);
      if (error) return error;
      any = true;
    }
    left.swap(later);
  }
  return nullptr;
}

}  // namespace

template <class C>
int64_t adjoint_workspace_of(const Adjoint& a, int device) {
  const Plan<C> plan(a, device_facts(device));
  return (plan.wave + plan.parts * plan.length) * static_cast<int64_t>(sizeof(C));
}

template <class C>
const char* adjoint_of(const Adjoint& a, void* workspace, Stream stream) {
  const Plan<C> plan(a, device_facts(stream.device));
  C* work = static_cast<C*>(workspace);
  C* partial = work + plan.wave;
  bool any = false;
  const char* error = plan.is_long ? adjoint_long(a, plan, work, any, stream)
                                   : adjoint_short(a, plan, partial, any, stream);
  if (error) return error;
  return Launch<sum_kernel<C>>::run(
      "sum_kernel",
      {divide_up(a.L, kSumColumns), kSumThreads, kSumThreads * int64_t{sizeof(C)}, stream}, partial,
      static_cast<C*>(a.z), any ? plan.rows(a.L) : 0, a.L);
}

template int64_t adjoint_workspace_of<FASTFOOD_TYPE>(const Adjoint&, int);
template const char* adjoint_of<FASTFOOD_TYPE>(const Adjoint&, void*, Stream);

}  // namespace fastfood::cuda
