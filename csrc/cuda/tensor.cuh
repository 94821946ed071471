// A matrix of order K over entries `stride` apart, by tensor cores, and the butterflies of their
// neighbours with it: a block takes 64 or 128 columns of K entries into shared memory, a warp makes
// some rows of the product, transforms them where the accumulators hold them, and writes them.
//
// Signs are one factor, made from bits as they are needed. Sixteen-bit data is the other as it
// comes. Of f32 values there are three parts of bf16, whose sum they are exactly: the leading eight
// bits, the next eight and the rest. A product of 16 terms loses, of each but the largest, less
// than 2^-23 of the largest, even where tensor cores cut off all below 24 bits and the sum's own as
// well; so K terms lose less than K 2^-23 sum|x|, if the small parts are all added up before the
// leading ones (they lose a 128th of that), and the bound of kernels.h holds. Bits below 2^-133 are
// lost: of values below 2^-110.
#pragma once

#include "mix.cuh"
#include "mma.cuh"

namespace fastfood::cuda {

// A pass over `rows` rows of K stride entries. A tile has the columns of several rows, 2^log of
// each, or some of one row, which is cut into `cuts` tiles, the last one perhaps not whole.
// Diagonals have an entry for each of a row.
template <class In, class Out>
struct Pass {
  const In* x;
  Out* out;
  const float* before;
  const float* after;
  float scale;
  int levels;  // the lowest ones, done here
  Signs signs;
  int log;
  int64_t rows, stride, cuts;
  uint64_t reciprocal;  // of cuts: 2^64 / cuts, rounded up
};

// Which bits of a column's number are where: in the number of a thread's value, and in that of the
// lane. Between the two exchanges of a bit the values' come to be others. Sixteen-bit data lies as
// it came, and a lane stores eight neighbours; the parts of f32 values may lie anyhow, and it
// stores four.
template <int kRun_, int kFirst, int kLane>
struct ColumnBits {
  static constexpr int kRun = kRun_;
  // The level of bit k of a value's number, of bit k of the lane's, and the bit of values' numbers
  // that this one becomes.
  __host__ __device__ static constexpr int of_value(int k) {
    return k == 0 ? 0 : k == 4 ? 6 : kFirst + k - 1;
  }
  __host__ __device__ static constexpr int of_lane(int k) { return kLane + k; }
  __host__ __device__ static constexpr int exchanged(int k) { return kRun == 8 ? 1 + k : 2 + k; }
};
using Bits16 = ColumnBits<8, 3, 1>;  // 0, 3, 4, 5, 6 and 1, 2; then 0, 1, 2, 5, 6 and 3, 4
using Bits32 = ColumnBits<4, 1, 4>;  // 0, 1, 2, 3, 6 and 4, 5; then 0, 1, 4, 5, 6 and 2, 3

// kParts 1: In is of sixteen bits and goes in as it is, without a diagonal. kWhole: all is aligned,
// and the runs of a tile are whole, there or not.
template <class In, int kParts_, int kColumnsLog, bool kWhole_>
struct TensorTile {
  static constexpr bool kWhole = kWhole_;
  using Factor = std::conditional_t<kParts_ == 1, In, __nv_bfloat16>;  // what is multiplied
  using L = std::conditional_t<kParts_ == 1, Bits16, Bits32>;
  static constexpr int kParts = kParts_;
  static constexpr int kColumns = 1 << kColumnsLog;
  // Threads of a block, at most: registers are for two such blocks.
  static constexpr int kThreads = kParts == 1 && kColumnsLog == 6 ? 256 : 192;
  static constexpr int kUnits = kColumns / 8;         // of 16 bytes, in a row of one part
  static constexpr int kGroups = 256 / kColumns;      // of 8 rows that a warp makes at once
  static constexpr int kValues = kColumns / 4;        // of a thread in a group
  static constexpr int kPackets = kValues / L::kRun;  // runs among them
  static constexpr int64_t bytes(int64_t K) { return kParts * divide_up(K, 16) * 16 * kUnits * 16; }
};
template <class Tile>
using Values = float[Tile::kGroups][Tile::kValues];

// Where 16 bytes of row b lie among the units of a part: the eight rows of a matrix of
// load_transposed, 0-3 and 8-11 or 4-7 and 12-15 of sixteen, have banks of their own, and so have
// the stores of load_parts.
template <class Tile>
__device__ __forceinline__ int unit_place(int b, int unit) {
  return b * Tile::kUnits + (unit ^ (unit >> 3) ^ (b & 7) ^ (b >> 1 & 4));
}

// A tile's columns [0, here) in memory: of column c of row b of the tile is at(c) + b stride, for
// diagonals in_row(c) + b stride. Both are sums over c's bits.
template <class Tile>
struct Place {
  int64_t row, first, size;  // first: its first column, in the row; size: of a row
  int log, here;

  template <class In, class Out>
  __device__ __forceinline__ Place(const Pass<In, Out>& pass, int tile)
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

// The columns as they are; those that are not there are zero, as are rows beyond K already.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_columns(const Pass<In, Out>& pass, const Place<Tile>& place,
                                             Shared<uint4> units) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int unit = thread % Tile::kUnits, first = thread / Tile::kUnits;
  const int step = threads / Tile::kUnits, K = pass.signs.K;
  if (unit * 8 < place.here) {
    const In* from = pass.x + (place.at(unit * 8) + first * pass.stride);
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

// Four neighbours of row b, times the diagonal.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_four(const Pass<In, Out>& pass, const Place<Tile>& place,
                                          int b, int column, float (&r)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) r[k] = 0.0f;
  const int64_t below = b * pass.stride;
  if constexpr (Tile::kWhole) {
    if (column >= place.here) return;
    const In* from = pass.x + (place.at(column) + below);
    if constexpr (kIsHalf<In>) {
      const auto packet = *reinterpret_cast<const Run<2, uint32_t>*>(from);
      widen_pair<In>(packet.x[0], r);
      widen_pair<In>(packet.x[1], r + 2);
    } else {
      widen_packet<In>(*reinterpret_cast<const uint4*>(from), r);
    }
    if (pass.before) {
      float factors[4];
      const float* before = pass.before + (place.in_row(column) + below);
      widen_packet<float>(*reinterpret_cast<const uint4*>(before), factors);
#pragma unroll
      for (int k = 0; k < 4; ++k) r[k] *= factors[k];
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (column + k >= place.here) continue;
      r[k] = widen(pass.x[place.at(column + k) + below]);
      if (pass.before) r[k] *= pass.before[place.in_row(column + k) + below];
    }
  }
}

// The leading bits of a pair as bf16, which it is left without.
__device__ __forceinline__ uint32_t take_leading(float& a, float& b) {
  const auto low = bits_as<uint32_t>(a), high = bits_as<uint32_t>(b);
  a -= bits_as<float>(low & 0xFFFF0000u);
  b -= bits_as<float>(high & 0xFFFF0000u);
  return __byte_perm(low, high, 0x7632);  // the upper halves
}

// The parts of the columns, the leading one first. Bits 0, 4, 5, 1, 2, 3 (, 6) of a column's number
// are the bits of its place.
template <class Tile, class In, class Out>
__device__ __forceinline__ void load_parts(const Pass<In, Out>& pass, const Place<Tile>& place,
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
      if (first + i * step < K) load_four(pass, place, first + i * step, 4 * four, r[i]);
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int b = first + i * step;
      if (b >= K) continue;
#pragma unroll
      for (int part = 0; part < Tile::kParts; ++part) {
        const int at = part * part_words + 4 * unit_place<Tile>(b, unit) + word;
        words[at] = take_leading(r[i][0], r[i][1]);
        words[at ^ 4] = take_leading(r[i][2], r[i][3]);  // the unit beside it
      }
    }
  }
}

// --- The product ---------------------------------------------------------------------------------

// The words of signs of a thread's rows, shifted by its column.
template <class Tile>
__device__ __forceinline__ void load_signs(const Signs& signs, int word, int row, int lane,
                                           uint32_t (&bits)[Tile::kGroups]) {
  const uint32_t* from = signs.bits + (word * signs.rows + row);
#pragma unroll
  for (int i = 0; i < Tile::kGroups; ++i) bits[i] = from[8 * i] << (3 - lane % 4);
}

// Adds the product of 16 entries of the columns, those of one half of a word of signs.
template <class Tile, int kHalf>
__device__ __forceinline__ void add_half(const uint32_t (&bits)[Tile::kGroups], Shared<uint4> rows,
                                         int swizzle, Values<Tile>& r) {
  using Factor = typename Tile::Factor;
  uint32_t a[Tile::kGroups / 2][4];
#pragma unroll
  for (int i = 0; i < Tile::kGroups * 2; ++i)
    a[i / 4][i % 4] =
        ((bits[i / 4 * 2 + i % 2] << (12 - i % 4 / 2 * 4 - kHalf * 8)) & 0x80008000u) ^
        kOnes<Factor>;
  const int here = made_here(swizzle);
#pragma unroll
  for (int n = 0; n < Tile::kUnits; n += 2) {
    uint32_t b[4];
    load_transposed(rows + (unit_place<Tile>(0, n) ^ here), b);
#pragma unroll
    for (int g = 0; g < Tile::kGroups; g += 2)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int v = 2 * (n + i);
        multiply_add<Factor>(r[g][v], r[g][v + 1], r[g + 1][v], r[g + 1][v + 1], a[g / 2], b[2 * i],
                             b[2 * i + 1]);
      }
  }
}

// Adds the product with one part to a warp's rows, of which `row` is this lane's first.
template <class Tile>
__device__ __forceinline__ void add_part(const Signs& signs, Shared<uint4> units, int row, int lane,
                                         Values<Tile>& r) {
  // Of each 16 rows, the one that this lane names to load_transposed, in one of two units.
  const int mine = lane / 8 % 2 * 4 + lane % 2 * 8 + lane % 8 / 2;
  const int swizzle = unit_place<Tile>(mine, lane / 16) % Tile::kUnits;
  Shared<uint4> rows = units + mine * Tile::kUnits;
  uint32_t bits[Tile::kGroups], next[Tile::kGroups];
  load_signs<Tile>(signs, 0, row, lane, next);
#pragma unroll 1
  for (int first = 0; first < signs.K; first += 32) {
#pragma unroll
    for (int i = 0; i < Tile::kGroups; ++i) bits[i] = next[i];
    if (first + 32 < signs.K) load_signs<Tile>(signs, first / 32 + 1, row, lane, next);
    add_half<Tile, 0>(bits, rows, swizzle, r);
    if (first + 16 < signs.K) add_half<Tile, 1>(bits, rows + 16 * Tile::kUnits, swizzle, r);
    rows += 32 * Tile::kUnits;
  }
}

// --- Butterflies and stores ----------------------------------------------------------------------

template <class Tile, int kBit>
__device__ __forceinline__ void butterflies_of(Values<Tile>& r) {
#pragma unroll
  for (int g = 0; g < Tile::kGroups; ++g)
#pragma unroll
    for (int i = 0; i < Tile::kValues; ++i) {
      if (i & kBit) continue;
      const float a = r[g][i], b = r[g][i | kBit];
      r[g][i] = a + b;
      r[g][i | kBit] = a - b;
    }
}

// Levels below `levels` of those that a thread's values have, from bit k of their numbers on.
template <class Tile, int k = 0>
__device__ __forceinline__ void value_levels(Values<Tile>& r, int levels) {
  if constexpr (1 << k < Tile::kValues) {
    if (Tile::L::of_value(k) < levels) butterflies_of<Tile, 1 << k>(r);
    value_levels<Tile, k + 1>(r, levels);
  }
}

// Exchanges a bit of the lane's number for one of the values', and does its level if it is below
// `levels`; differences of the lane with that bit set come out as their negatives.
template <class Tile, int kWhich>
__device__ __forceinline__ void lane_level(Values<Tile>& r, int lane, int levels) {
  constexpr int kBit = 1 << Tile::L::exchanged(kWhich);
  const bool upper = lane & (1 << kWhich);
#pragma unroll
  for (int g = 0; g < Tile::kGroups; ++g)
#pragma unroll
    for (int i = 0; i < Tile::kValues; ++i) {
      if (i & kBit) continue;
      float &low = r[g][i], &high = r[g][i | kBit];
      const float own = upper ? high : low;
      const float other = __shfl_xor_sync(0xFFFFFFFFu, upper ? low : high, 1 << kWhich);
      low = own;
      high = other;
    }
  if (Tile::L::of_lane(kWhich) < levels) {
    butterflies_of<Tile, kBit>(r);
    return;
  }
#pragma unroll
  for (int g = 0; g < Tile::kGroups; ++g)
#pragma unroll
    for (int i = 0; i < Tile::kValues; ++i) {
      if (i & kBit) continue;
      const float own = r[g][i], other = r[g][i | kBit];
      r[g][i] = upper ? other : own;
      r[g][i | kBit] = upper ? own : other;
    }
}

// Neighbours from `column` on to memory, times the diagonal: to `index`, in a row to `in_row`.
template <class Tile, int kRun, class In, class Out>
__device__ __forceinline__ void store_run_of(const Pass<In, Out>& pass, int64_t index,
                                             int64_t in_row, float (&y)[kRun]) {
  Out* to = pass.out + index;
  if (pass.after) {
    float factors[kRun];
#pragma unroll
    for (int k = 0; k < kRun; k += 4)
      widen_packet<float>(*reinterpret_cast<const uint4*>(pass.after + in_row + k), factors + k);
#pragma unroll
    for (int k = 0; k < kRun; ++k) y[k] *= factors[k];
  }
  if constexpr (kIsHalf<Out> && kRun == 8) {
    *reinterpret_cast<uint4*>(to) = narrow_packet<Out>(y);
  } else if constexpr (kIsHalf<Out>) {
    *reinterpret_cast<Run<2, uint32_t>*>(to) = {narrow_pair<Out>(y[0], y[1]),
                                                narrow_pair<Out>(y[2], y[3])};
  } else {
    *reinterpret_cast<uint4*>(to) = narrow_packet<Out>(y);
  }
}

// Rows row, row + 8, ... of the product, transformed.
template <class Tile, class In, class Out>
__device__ __forceinline__ void store_rows(const Pass<In, Out>& pass, const Place<Tile>& place,
                                           int row, int lane, Values<Tile>& r) {
  constexpr int kRun = Tile::L::kRun;
  const int column = kRun * (lane % 4);
  const int64_t at = place.at(column), in_row = place.in_row(column);
  float scales[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scales[i] = pass.scale;
    for (int k = 0; k < 2; ++k)
      if (i & lane & (1 << k) && Tile::L::of_lane(k) < pass.levels) scales[i] = -scales[i];
  }
#pragma unroll
  for (int g = 0; g < Tile::kGroups; ++g) {
    const int a = row + 8 * g;
    if (a >= pass.signs.K) continue;
#pragma unroll
    for (int p = 0; p < Tile::kPackets; ++p) {
      float y[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        const int i = p * kRun + k;
        y[k] = r[g][i] *
               scales[(i >> Tile::L::exchanged(0) & 1) | (i >> Tile::L::exchanged(1) & 1) << 1];
      }
      const int64_t below = a * pass.stride;
      if constexpr (Tile::kWhole) {
        if (4 * p * kRun + column >= place.here) continue;
        store_run_of<Tile>(pass, at + below + place.across(4 * p * kRun),
                           in_row + below + (4 * p * kRun & ((1 << place.log) - 1)), y);
      } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          const int c = 4 * p * kRun + column + k;
          if (c >= place.here) continue;
          if (pass.after) y[k] *= pass.after[place.in_row(c) + below];
          pass.out[place.at(c) + below] = narrow<Out>(y[k]);
        }
      }
    }
  }
}

// --- The kernel ----------------------------------------------------------------------------------

// With room for two tiles the next one is on its way while one is worked on, if it is just copied.
template <class Tile, class In, class Out>
__device__ __forceinline__ void run_tiles(const Pass<In, Out>& pass, int tiles, int room) {
  const int buffers = Tile::kParts == 1 ? room : 1;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x), rows = threads / kLanes * 8 * Tile::kGroups;
  const int K = pass.signs.K, part_size = (K + 15) / 16 * 16 * Tile::kUnits;
  const int size = Tile::kParts * part_size;
  const Shared<uint4> memory(shared_memory<uint4>());
  const uint4 zero = {};
  for (int part = 0; part < Tile::kParts * buffers; ++part)
#pragma unroll 1
    for (int i = K * Tile::kUnits + thread; i < part_size; i += threads)
      store_run<1, uint4>(memory + (part * part_size + i), &zero);
  const auto load = [&](int tile, int buffer) {
    const Place<Tile> place(pass, made_here(tile));
    if constexpr (Tile::kParts == 1) {
      load_columns<Tile>(pass, place, memory + buffer * size);
    } else {
      load_parts<Tile>(pass, place,
                       Shared<uint32_t>(shared_memory<uint32_t>()) + buffer * size * 4);
    }
  };
  const int blocks = static_cast<int>(gridDim.x);
  int tile = static_cast<int>(blockIdx.x), buffer = 0;
  if (buffers == 2) load(tile, 0);
  for (; tile < tiles; tile += blocks, buffer ^= buffers - 1) {
    if (buffers == 1) {
      __syncthreads();  // the last columns have been read
      load(tile, 0);
    }
    await_copies();
    __syncthreads();
    if (buffers == 2 && tile + blocks < tiles) load(tile + blocks, buffer ^ 1);
    for (int row = thread / kLanes * 8 * Tile::kGroups; row < K; row += rows) {
      Values<Tile> r = {};
      const int from = made_here(thread % kLanes);
      const Shared<uint4> units = memory + buffer * size;
#pragma unroll 1
      for (int part = Tile::kParts - 1; part >= 0; --part)  // the small ones first
        add_part<Tile>(pass.signs, units + part * part_size, row + from / 4, from, r);
      const int lane = made_here(thread % kLanes);
      value_levels<Tile>(r, pass.levels);
      lane_level<Tile, 0>(r, lane, pass.levels);
      lane_level<Tile, 1>(r, lane, pass.levels);
      store_rows<Tile>(pass, Place<Tile>(pass, made_here(tile)), row + lane / 4, lane, r);
    }
  }
}

template <int kParts, int kColumnsLog, bool kWhole, class In, class Out>
__global__ void __launch_bounds__(TensorTile<In, kParts, kColumnsLog, kWhole>::kThreads,
                                  kWhole ? 2 : 1)
    tensor_kernel(const __grid_constant__ Pass<In, Out> pass, int tiles, int buffers) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  run_tiles<TensorTile<In, kParts, kColumnsLog, kWhole>>(pass, tiles, buffers);
#endif
}

}  // namespace fastfood::cuda
