// A matrix of order K over entries `stride` apart by tensor cores, and the butterflies of their
// neighbours with it: a block takes 64 or 128 columns of K entries into shared memory
// (tensor_tile.cuh); a warp makes some rows of the product, does the levels of neighbours where the
// accumulators hold them, and stores them.
//
// The signs are one factor of the product, made from bits as they are needed. The data is the
// other: sixteen-bit data as it comes; of f32 values three parts of bf16, of which they are exactly
// the sum, the leading eight bits, the next eight and the rest. Tensor cores may cut off from each
// term of a product of 16, and from its sum, what lies below 24 bits of the largest term. So a term
// loses less than 2^-23 of the largest, and K terms less than K 2^-23 sum|x|, if the small parts
// are all added up before the leading ones (they lose a 128th of that): the bound that
// hadamard_transform promises. Bits below 2^-133 are lost, which only values below 2^-110 have.
#pragma once

#include "tensor_tile.cuh"

namespace fastfood::cuda {

// --- The product ---------------------------------------------------------------------------------

// Loads the words of signs of a thread's rows, and shifts them so that the bits of its own columns
// stand at the same positions in every thread.
template <class Tile>
__device__ __forceinline__ void load_signs(const Signs& signs, int word, int row, int lane,
                                           uint32_t (&bits)[Tile::kGroups]) {
  const uint32_t* from = signs.bits + (word * signs.rows + row);
#pragma unroll
  for (int i = 0; i < Tile::kGroups; ++i) bits[i] = from[8 * i] << (3 - lane % 4);
}

// Adds the product of 16 columns of signs, one half of a word, with 16 rows of the data.
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

// Adds the product of the signs with one part to a warp's rows, the first of which is `row` in this
// lane.
template <class Tile>
__device__ __forceinline__ void add_part(const Signs& signs, Shared<uint4> units, int row, int lane,
                                         Values<Tile>& r) {
  // Of 16 rows, the one whose address this lane passes to load_transposed, in one of two units.
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

// The level that bit kBit of a value's index is.
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

// Those levels below `levels` that are bits of a value's index, from bit k on.
template <class Tile, int k = 0>
__device__ __forceinline__ void value_levels(Values<Tile>& r, int levels) {
  if constexpr (1 << k < Tile::kValues) {
    if (Tile::L::of_value(k) < levels) butterflies_of<Tile, 1 << k>(r);
    value_levels<Tile, k + 1>(r, levels);
  }
}

// Swaps bit kWhich of the lane with a bit of the index of a thread's values, and does its level if
// it is below `levels`. In lanes with that bit set this gives the negative differences, which
// store_rows corrects by its factors.
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

// Stores neighbours as entries index, index + 1, ..., times the factors from `in_row` on.
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

// Stores rows row, row + 8, ... of the product, now transformed, times scale and diagonal.
template <class Tile, class In, class Out>
__device__ __forceinline__ void store_rows(const Pass<In, Out>& pass,
                                           const TileColumns<Tile>& columns, int row, int lane,
                                           Values<Tile>& r) {
  constexpr int kRun = Tile::L::kRun;
  const int column = kRun * (lane % 4);
  const int64_t at = columns.at(column), in_row = columns.in_row(column);
  float scales[4];  // by the two swapped bits of a value's index
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
        if (4 * p * kRun + column >= columns.here) continue;
        store_run_of<Tile>(pass, at + below + columns.across(4 * p * kRun),
                           in_row + below + (4 * p * kRun & ((1 << columns.log) - 1)), y);
      } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          const int c = 4 * p * kRun + column + k;
          if (c >= columns.here) continue;
          if (pass.after) y[k] *= pass.after[columns.in_row(c) + below];
          pass.out[columns.at(c) + below] = narrow<Out>(y[k]);
        }
      }
    }
  }
}

// --- The kernel ----------------------------------------------------------------------------------

// Tile after tile. If tiles are copied as they are and there is room for two, the next one comes
// while one is worked on.
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
    const TileColumns<Tile> columns(pass, made_here(tile));
    if constexpr (Tile::kParts == 1) {
      load_columns<Tile>(pass, columns, memory + buffer * size);
    } else {
      load_parts<Tile>(pass, columns,
                       Shared<uint32_t>(shared_memory<uint32_t>()) + buffer * size * 4);
    }
  };
  const int blocks = static_cast<int>(gridDim.x);
  int tile = static_cast<int>(blockIdx.x), buffer = 0;
  if (buffers == 2) load(tile, 0);
  for (; tile < tiles; tile += blocks, buffer ^= buffers - 1) {
    if (buffers == 1) {
      __syncthreads();  // all threads have read the previous columns
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
      store_rows<Tile>(pass, TileColumns<Tile>(pass, made_here(tile)), row + lane / 4, lane, r);
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
