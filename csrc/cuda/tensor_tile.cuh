// The tiles of tensor.cuh: which columns of the data each one has, where these lie in shared
// memory, and how they get there, as they are or in parts.
#pragma once

#include "mix.cuh"
#include "mma.cuh"

namespace fastfood::cuda {

// A pass over `rows` rows of K stride entries. A tile has all columns of several rows, 2^log of
// each, or some columns of one row, which is cut into `cuts` tiles, the last of which may be
// smaller. Diagonals have the length of a row.
template <class In, class Out>
struct Pass {
  const In* x;
  Out* out;
  const float* before;
  const float* after;
  float scale;
  int levels;  // the lowest ones, which the pass does as well
  Signs signs;
  int log;
  int64_t rows, stride, cuts;
  uint64_t reciprocal;  // of cuts: 2^64 / cuts, rounded up
};

// Where the bits of a column's number stand: in the index of a thread's value, or in the lane. Each
// of two exchanges swaps a bit of the lane with one of the index (lane_level of tensor.cuh).
// Sixteen-bit data lies in its own order, and a lane stores eight neighbours at a time; the parts
// of f32 values may lie in any order, and a lane stores four.
template <int kRun_, int kFirst, int kLane>
struct ColumnBits {
  static constexpr int kRun = kRun_;
  // The level that bit k of a value's index is, the level that bit k of the lane is, and the bit of
  // the index with which this one is swapped.
  __host__ __device__ static constexpr int of_value(int k) {
    return k == 0 ? 0 : k == 4 ? 6 : kFirst + k - 1;
  }
  __host__ __device__ static constexpr int of_lane(int k) { return kLane + k; }
  __host__ __device__ static constexpr int exchanged(int k) { return kRun == 8 ? 1 + k : 2 + k; }
};
// Bits 0, 3, 4, 5, 6 in the index and 1, 2 in the lane; after the exchanges 0, 1, 2, 5, 6 and 3, 4.
using Bits16 = ColumnBits<8, 3, 1>;
// Bits 0, 1, 2, 3, 6 in the index and 4, 5 in the lane; after the exchanges 0, 1, 4, 5, 6 and 2, 3.
using Bits32 = ColumnBits<4, 1, 4>;

// kParts == 1: In has sixteen bits and is multiplied as it is, without a diagonal. kWhole: all is
// aligned, and each run of neighbours that a lane stores lies inside of the data or outside, never
// across.
template <class In, int kParts_, int kColumnsLog, bool kWhole_>
struct TensorTile {
  static constexpr bool kWhole = kWhole_;
  static_assert(kColumnsLog == 6 || kColumnsLog == 7, "the bits of ColumnBits");
  static_assert(kParts_ == 3 || (kParts_ == 1 && sizeof(In) == 2), "bf16 takes three parts of f32");
  using Factor =
      std::conditional_t<kParts_ == 1, In, __nv_bfloat16>;  // the type that is multiplied
  using L = std::conditional_t<kParts_ == 1, Bits16, Bits32>;
  static constexpr int kParts = kParts_;
  static constexpr int kColumns = 1 << kColumnsLog;
  // The most threads of a block: registers suffice for two such blocks on a multiprocessor.
  static constexpr int kThreads = kParts == 1 && kColumnsLog == 6 ? 256 : 192;
  static constexpr int kUnits = kColumns / 8;         // of 16 bytes, in a row of one part
  static constexpr int kGroups = 256 / kColumns;      // of 8 rows, which a warp makes at once
  static constexpr int kValues = kColumns / 4;        // of a thread in a group
  static constexpr int kPackets = kValues / L::kRun;  // runs among them
  static constexpr int64_t bytes(int64_t K) { return kParts * divide_up(K, 16) * 16 * kUnits * 16; }
};
template <class Tile>
using Values = float[Tile::kGroups][Tile::kValues];

// Where unit `unit`, of 16 bytes, of row b lies among the units of a part. The bits of b swizzle it
// against bank conflicts: the eight rows of one matrix of load_transposed (0-3 and 8-11, or 4-7 and
// 12-15, of sixteen rows) lie in different banks, and so do the stores of load_parts.
template <class Tile>
__device__ __forceinline__ int unit_place(int b, int unit) {
  return b * Tile::kUnits + (unit ^ (unit >> 3) ^ (b & 7) ^ (b >> 1 & 4));
}

// Where a tile's columns [0, here) lie in memory: entry (b, c) is at(c) + b stride, and its factors
// are in_row(c) + b stride in their diagonals. Both can be summed up over disjoint bits of c.
template <class Tile>
struct TileColumns {
  int64_t row, first, size;  // first: its first column, within row `row`; size: of a row
  int log, here;

  template <class In, class Out>
  __device__ __forceinline__ TileColumns(const Pass<In, Out>& pass, int tile)
      : size(pass.signs.K * pass.stride), log(pass.log) {
    const auto product =
        static_cast<unsigned __int128>(pass.reciprocal) * static_cast<uint64_t>(tile);
    const int64_t whole = pass.cuts == 1 ? tile : static_cast<int64_t>(product >> 64);
    row = whole * (Tile::kColumns >> log);
    first = (tile - whole * pass.cuts) * Tile::kColumns;
    const int64_t left = 1 << log < Tile::kColumns ? (pass.rows - row) << log : pass.stride - first;
    here = left < Tile::kColumns ? static_cast<int>(left) : Tile::kColumns;
  }
  __device__ __forceinline__ int64_t across(int column) const {
    return (column >> log) * size + (column & ((1 << log) - 1));
  }
  __device__ __forceinline__ int64_t at(int column) const {
    return row * size + first + across(column);
  }
  __device__ __forceinline__ int64_t in_row(int column) const {
    return first + (column & ((1 << log) - 1));
  }
};

// --- To shared memory ----------------------------------------------------------------------------

// Copies columns as they are, and zeros for those beyond the data. The rows beyond K are zero
// already.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_columns(const Pass<In, Out>& pass,
                                             const TileColumns<Tile>& columns,
                                             Shared<uint4> units) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int unit = thread % Tile::kUnits, first = thread / Tile::kUnits;
  const int step = threads / Tile::kUnits, K = pass.signs.K;
  if (unit * 8 < columns.here) {
    const In* from = pass.x + (columns.at(unit * 8) + first * pass.stride);
#pragma unroll 1
    for (int b = first; b < K; b += step, from += step * pass.stride)
      copy_async(units + unit_place<Tile>(b, unit), reinterpret_cast<const uint4*>(from));
  } else {
    const uint4 zero = {};
#pragma unroll 1
    for (int b = first; b < K; b += step)
      store_run<1, uint4>(units + unit_place<Tile>(b, unit), &zero);
  }
}

// Four neighbours of row b from `column` on, times the diagonal; zeros beyond the data.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_four(const Pass<In, Out>& pass,
                                          const TileColumns<Tile>& columns, int b, int column,
                                          float (&r)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) r[k] = 0.0f;
  const int64_t below = b * pass.stride;
  if constexpr (Tile::kWhole) {
    if (column >= columns.here) return;
    const In* from = pass.x + (columns.at(column) + below);
    if constexpr (kIsHalf<In>) {
      const auto packet = *reinterpret_cast<const Run<2, uint32_t>*>(from);
      widen_pair<In>(packet.x[0], r);
      widen_pair<In>(packet.x[1], r + 2);
    } else {
      widen_packet<In>(*reinterpret_cast<const uint4*>(from), r);
    }
    if (pass.before) {
      float factors[4];
      const float* before = pass.before + (columns.in_row(column) + below);
      widen_packet<float>(*reinterpret_cast<const uint4*>(before), factors);
#pragma unroll
      for (int k = 0; k < 4; ++k) r[k] *= factors[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (column + k >= columns.here) continue;
      r[k] = widen(pass.x[columns.at(column + k) + below]);
      if (pass.before) r[k] *= pass.before[columns.in_row(column + k) + below];
    }
  }
}

// Returns the leading bits of a and b as a pair of bf16, and takes them away from a and b.
__device__ __forceinline__ uint32_t take_leading(float& a, float& b) {
  const auto low = bits_as<uint32_t>(a), high = bits_as<uint32_t>(b);
  a -= bits_as<float>(low & 0xFFFF0000u);
  b -= bits_as<float>(high & 0xFFFF0000u);
  return __byte_perm(low, high, 0x7632);  // the upper halves
}

// Stores the parts of the columns, the leading one first. From the lowest on, the bits of a
// column's place in its row are bits 0, 4, 5, 1, 2, 3 and, of 128 columns, 6 of its number.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_parts(const Pass<In, Out>& pass,
                                           const TileColumns<Tile>& columns,
                                           Shared<uint32_t> words) {
  constexpr int kFours = Tile::kColumns / 4, kFlight = 4;
  const int thread = made_here(static_cast<int>(threadIdx.x));
  const int threads = static_cast<int>(blockDim.x);
  const int four = thread % kFours, step = threads / kFours, K = pass.signs.K;
  const int unit = (four & 3) << 1 | (four & 16) >> 1, word = four >> 2 & 3;
  const int part_words = (K + 15) / 16 * 16 * Tile::kUnits * 4;
#pragma unroll 1
  for (int first = thread / kFours; first < K; first += kFlight * step) {
    float r[kFlight][4];
#pragma unroll
    for (int i = 0; i < kFlight; ++i)
      if (first + i * step < K) load_four(pass, columns, first + i * step, 4 * four, r[i]);
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int b = first + i * step;
      if (b >= K) continue;
#pragma unroll
      for (int part = 0; part < Tile::kParts; ++part) {
        const int at = part * part_words + 4 * unit_place<Tile>(b, unit) + word;
        words[at] = take_leading(r[i][0], r[i][1]);
        words[at ^ 4] = take_leading(r[i][2], r[i][3]);  // bit 1 of the column: the unit beside it
      }
    }
  }
}

}  // namespace fastfood::cuda
