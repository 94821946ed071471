// The generator and the Fastfood projection on CUDA (definitions.h). A block of the projection is a
// row of the transform of fwht.cuh whose load multiplies fresh normals with v, and whose store adds
// the scaled result to the base.
#include "../definitions.h"
#include "fwht.cuh"

namespace fastfood::cuda {

namespace {

constexpr int kHalves = 8;     // normals in one Philox call
constexpr int kFan = 64;       // rows that sum_kernel adds up at a time
constexpr int64_t kSlots = 8;  // partial sums of the adjoint for rows longer than a tile

__device__ __forceinline__ void copy_table(const NormalTable& table, NormalTable& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < 5 * 16; i += static_cast<int>(blockDim.x))
    shared.c[i / 16][i % 16] = table.c[i / 16][i % 16];
}

// The normals of kCount / kHalves calls of a stream.
template <int kCount, class C>
__device__ __forceinline__ void draw_normals(uint64_t seed, uint32_t stream, uint64_t call,
                                             const NormalTable& table, C* z) {
#pragma unroll
  for (int i = 0; i < kCount; i += kHalves) {
    const Words words = stream_call(seed, stream, call + i / kHalves);
#pragma unroll
    for (int k = 0; k < kHalves; ++k) z[i + k] = normal(words.w[k / 2] >> (k % 2 * 16), table);
  }
}

// Entries of G_b for kCount consecutive rows of the projection.
template <int kCount, class C>
__device__ __forceinline__ void draw_g(uint64_t seed, int64_t row, const NormalTable& table, C* g) {
  draw_normals<kCount>(seed, static_cast<uint32_t>(Stream::G), static_cast<uint64_t>(row) / kHalves,
                       table, g);
}

// G_b * v at a row of the projection.
template <class C>
struct Generate {
  using Value = C;
  static constexpr int kRun = kRadix;
  const C* v;
  int64_t L;
  uint64_t seed;
  NormalTable table;

  __device__ __forceinline__ void prepare(NormalTable& shared) const { copy_table(table, shared); }
  __device__ __forceinline__ void run(int64_t row, C* r, const NormalTable& shared) const {
    C g[kRun];
    draw_g<kRun>(seed, row, shared, g);
    read_all<kRun>(v + (row & (L - 1)), r);
#pragma unroll
    for (int k = 0; k < kRun; ++k) r[k] = g[k] * r[k];
  }
};

// base + scales[s] * y for rows [start, start + count) of the projection, or y alone if there is no
// base.
template <class T>
struct Perturb {
  using Value = Arithmetic<T>;
  static constexpr int kRun = 16 / sizeof(T);
  T* out;
  const T* base;
  const int64_t* offsets;
  const Value* scales;
  int64_t segments, start, count;

  struct Segment {
    Value scale;
    int64_t end;
  };
  __device__ __forceinline__ Segment segment_of(int64_t i) const {
    int64_t low = 0, high = segments;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (offsets[middle] <= i) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return {scales[low], offsets[low + 1]};
  }
  __device__ __forceinline__ Write<T> writer() const {
    return {out, start, start + count, Value{1}};
  }
  __device__ __forceinline__ Read<T> reader() const { return {base, start, start + count}; }

  __device__ __forceinline__ void run(int64_t row, const Value* y) const {
    if (row >= start + count || row + kRun <= start) return;
    Value result[kRun];
    if (base) reader().run(row, result);
    Segment segment = base ? segment_of(row - start) : Segment{};
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (base && row - start + k >= segment.end) segment = segment_of(row - start + k);
      result[k] = base ? result[k] + segment.scale * y[k] : y[k];
    }
    writer().run(row, result);
  }
  __device__ __forceinline__ void one(int64_t row, Value y) const {
    if (row < start || row >= start + count) return;
    writer().one(row, base ? reader().one(row) + segment_of(row - start).scale * y : y);
  }
};

// --- Kernels -------------------------------------------------------------------------------------

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    words_kernel(uint64_t seed, uint32_t stream, uint64_t first, int64_t count, uint32_t* out) {
  for (int64_t i = thread_index(); i < count; i += all_threads()) {
    const Words words = stream_call(seed, stream, first + static_cast<uint64_t>(i));
#pragma unroll
    for (int k = 0; k < 4; ++k) out[4 * i + k] = words.w[k];
  }
}

__global__ void __launch_bounds__(kThreads)
    normals_kernel(uint64_t seed, uint32_t stream, uint64_t first, int64_t count,
                   const __grid_constant__ NormalTable table, float* out) {
  NormalTable& shared = *shared_memory<NormalTable>();
  copy_table(table, shared);
  __syncthreads();
  for (int64_t i = thread_index(); i < count; i += all_threads()) {
    float z[kHalves];
    draw_normals<kHalves>(seed, stream, first + static_cast<uint64_t>(i), shared, z);
#pragma unroll
    for (int k = 0; k < kHalves; ++k) out[kHalves * i + k] = z[k];
  }
}

// partial[p] = the sum over tiles p, p + parts, p + 2 parts, ... of G * H_L(g), for rows up to a
// tile.
template <int kLog, class T>
__global__ void __launch_bounds__(1 << kThreadsLog<kLog>, kResident<Arithmetic<T>, kLog>)
    adjoint_kernel(const __grid_constant__ Read<T> g,
                   const __grid_constant__ Generate<Arithmetic<T>> generate, Arithmetic<T>* partial,
                   int64_t first_tile, int64_t tiles, int64_t parts, int levels) {
  using C = Arithmetic<T>;
  auto& memory = *shared_memory<TileMemory<C, kLog>>();
  generate.prepare(memory.table);
  for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
    C sum[kRadix] = {};
    for (int64_t tile = part; tile < tiles; tile += parts) {
      __syncthreads();  // the table is there, and the last tile has been read
      const int64_t first = (first_tile + tile) << kLog;
      C r[kRadix], z[kRadix];
      load_tile<kLog>(g, first, r, memory.table);
      transform_tile<kLog, Read<T>::kRun, kRadix>(r, levels, Shared<C>(memory.tile));
      draw_g<kRadix>(generate.seed, first + position_in_runs<kLog, kRadix>(threadIdx.x, 0),
                     memory.table, z);
#pragma unroll
      for (int i = 0; i < kRadix; ++i) sum[i] += z[i] * r[i];
    }
#pragma unroll
    for (int i = 0; i < kRadix; ++i)
      partial[(part << kLog) + position_in_runs<kLog, kRadix>(threadIdx.x, i)] = sum[i];
  }
}

// The same for whole rows in the workspace, y those from row `first` on: slot s of `partial` takes
// rows s, s + slots, ... of length L, and starts from zero if this is the first wave.
template <class C>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const C* y, const __grid_constant__ Generate<C> generate, C* partial,
                      int64_t first, int64_t rows, int64_t slots, bool first_wave) {
  auto& shared = *shared_memory<NormalTable>();
  generate.prepare(shared);
  __syncthreads();
  const int64_t L = generate.L;
  for (int64_t i = thread_index(); i < slots * L / kHalves; i += all_threads()) {
    C* sums = partial + i * kHalves;
    C sum[kHalves], z[kHalves];
#pragma unroll
    for (int k = 0; k < kHalves; ++k) sum[k] = first_wave ? C{0} : sums[k];
    for (int64_t j = i * kHalves; j < rows * L; j += slots * L) {
      draw_g<kHalves>(generate.seed, first + j, shared, z);
#pragma unroll
      for (int k = 0; k < kHalves; ++k) sum[k] += z[k] * y[j + k];
    }
#pragma unroll
    for (int k = 0; k < kHalves; ++k) sums[k] = sum[k];
  }
}

// Row q of `out` is the sum of rows [kFan q, kFan (q + 1)) of x, in order; rows of length L.
template <class C>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const C* x, C* out, int64_t rows, int64_t sums, int64_t L) {
  for (int64_t i = thread_index(); i < sums * L; i += all_threads()) {
    const int64_t first = i / L * kFan, end = first + kFan < rows ? first + kFan : rows;
    C sum = 0;
    for (int64_t row = first; row < end; ++row) sum += x[row * L + i % L];
    out[i] = sum;
  }
}

// --- Launches ------------------------------------------------------------------------------------

// Entries [first, end) of the projection: the whole blocks of L that hold rows [start, start +
// count).
struct Blocks {
  int64_t first, end;
};
Blocks blocks_around(int64_t start, int64_t count, int64_t L) {
  return {start / L * L, count > 0 ? divide_up(start + count, L) * L : start / L * L};
}

// How an adjoint is cut up: `rows` partial sums of length L, made from waves of `wave` entries of
// workspace, or from tiles of 2^log entries if a tile holds L.
struct Plan {
  Blocks blocks;
  int64_t rows, wave, first_tile, tiles, parts;
  int log;
};
template <class C>
Plan plan_adjoint(const Adjoint& a) {
  Plan plan{};
  plan.blocks = blocks_around(a.start, a.count, a.L);
  const int64_t total = plan.blocks.end - plan.blocks.first;
  if (a.L <= int64_t{1} << kLargeTile<C>) {
    plan.log = a.L <= int64_t{1} << kSmallTile ? kSmallTile : kLargeTile<C>;
    plan.first_tile = plan.blocks.first >> plan.log;
    plan.tiles =
        total > 0 ? divide_up(plan.blocks.end, int64_t{1} << plan.log) - plan.first_tile : 0;
    plan.parts = plan.tiles < limits().parts ? plan.tiles : limits().parts;
    plan.rows = (plan.parts << plan.log) / a.L;
  } else {
    plan.wave = wave_size(a.L, total);
    plan.rows = plan.wave / a.L < kSlots ? plan.wave / a.L : kSlots;
  }
  return plan;
}

// Rows that sum_rows needs: its input's and those of the sums in between.
int64_t rows_of_sums(int64_t rows) {
  int64_t all = rows;
  for (; rows > kFan; all += rows) rows = divide_up(rows, kFan);
  return all;
}

// z = the sum of `rows` rows at x, behind which lies the room for the sums in between; zero if
// there are none.
template <class C>
const char* sum_rows(const C* x, C* z, int64_t rows, int64_t L, StreamHandle stream) {
  while (true) {
    const int64_t sums = rows > kFan ? divide_up(rows, kFan) : 1;
    C* out = sums > 1 ? const_cast<C*>(x) + rows * L : z;
    const char* error = launch("sum_kernel", sum_kernel<C>, divide_up(sums * L, kThreads), kThreads,
                               0, stream, x, out, rows, sums, L);
    if (error || sums == 1) return error;
    x = out;
    rows = sums;
  }
}

template <int kLog, class T>
const char* launch_adjoint(const Adjoint& a, const Plan& plan, const Read<T>& g,
                           const Generate<Arithmetic<T>>& generate, Arithmetic<T>* partial,
                           StreamHandle stream) {
  using Memory = TileMemory<Arithmetic<T>, kLog>;
  return launch("adjoint_kernel", adjoint_kernel<kLog, T>, plan.parts, 1 << kThreadsLog<kLog>,
                sizeof(Memory), stream, g, generate, partial, plan.first_tile, plan.tiles,
                plan.parts, log2_of(a.L));
}

// Transforms a wave of rows in the workspace, adds it to the partial sums behind it, and goes on to
// the next one.
template <class T>
const char* adjoint_waves(const Adjoint& a, const Plan& plan, const Read<T>& g,
                          const Generate<Arithmetic<T>>& generate, Arithmetic<T>* work,
                          StreamHandle stream) {
  using C = Arithmetic<T>;
  C* partial = work + plan.wave;
  for (int64_t first = plan.blocks.first; first < plan.blocks.end; first += plan.wave) {
    const int64_t end = first + plan.wave < plan.blocks.end ? first + plan.wave : plan.blocks.end;
    const Write<C> to_work{work, first, end, C{1}};
    if (const char* error = transform_range(g, to_work, work, first, end, log2_of(a.L), stream))
      return error;
    const char* error = launch("accumulate_kernel", accumulate_kernel<C>,
                               divide_up(plan.rows * a.L, kHalves * kThreads), kThreads,
                               sizeof(NormalTable), stream, work, generate, partial, first,
                               (end - first) / a.L, plan.rows, first == plan.blocks.first);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

const char* words(const Draw& d, uint32_t* out, StreamHandle stream) {
  if (d.count == 0) return nullptr;
  return launch("words_kernel", words_kernel, divide_up(d.count, kThreads), kThreads, 0, stream,
                d.seed, d.stream, d.first, d.count, out);
}

const char* normals(const Draw& d, float* out, StreamHandle stream) {
  if (d.count == 0) return nullptr;
  return launch("normals_kernel", normals_kernel, divide_up(d.count, kThreads), kThreads,
                sizeof(NormalTable), stream, d.seed, d.stream, d.first, d.count, kNormalTable, out);
}

int64_t project_workspace(const Projection& p) {
  const Blocks blocks = blocks_around(p.start, p.count, p.L);
  const int64_t wave = wave_size(p.L, blocks.end - blocks.first);
  if (p.type == Type::f64)
    return fits_tile<double>(p.L) ? 0 : wave * static_cast<int64_t>(sizeof(double));
  return fits_tile<float>(p.L) ? 0 : wave * static_cast<int64_t>(sizeof(float));
}

const char* project(const Projection& p, void* workspace, StreamHandle stream) {
  return with_type(p.type, [&](auto* element) -> const char* {
    using T = std::remove_pointer_t<decltype(element)>;
    using C = Arithmetic<T>;
    const Generate<C> load{static_cast<const C*>(p.v), p.L, p.seed, kNormalTable};
    const Perturb<T> store{static_cast<T*>(p.out),
                           static_cast<const T*>(p.base),
                           p.offsets,
                           static_cast<const C*>(p.scales),
                           p.segments,
                           p.start,
                           p.count};
    const Blocks blocks = blocks_around(p.start, p.count, p.L);
    const int64_t total = blocks.end - blocks.first,
                  wave = fits_tile<C>(p.L) ? total : wave_size(p.L, total);
    for (int64_t first = blocks.first; first < blocks.end; first += wave) {
      const int64_t end = first + wave < blocks.end ? first + wave : blocks.end;
      C* work = static_cast<C*>(workspace);
      if (const char* error = transform_range(load, store, work, first, end, log2_of(p.L), stream))
        return error;
    }
    return nullptr;
  });
}

int64_t adjoint_workspace(const Adjoint& a) {
  return with_type(a.type, [&](auto* element) -> int64_t {
    using C = Arithmetic<std::remove_pointer_t<decltype(element)>>;
    const Plan plan = plan_adjoint<C>(a);
    return (plan.wave + rows_of_sums(plan.rows) * a.L) * static_cast<int64_t>(sizeof(C));
  });
}

const char* adjoint(const Adjoint& a, void* workspace, StreamHandle stream) {
  return with_type(a.type, [&](auto* element) -> const char* {
    using T = std::remove_pointer_t<decltype(element)>;
    using C = Arithmetic<T>;
    const Plan plan = plan_adjoint<C>(a);
    const Read<T> g{static_cast<const T*>(a.g), a.start, a.start + a.count};
    const Generate<C> generate{nullptr, a.L, a.seed, kNormalTable};
    C* work = static_cast<C*>(workspace);
    const char* error = nullptr;
    if (plan.wave > 0) {
      error = adjoint_waves(a, plan, g, generate, work, stream);
    } else if (plan.log == kSmallTile && plan.parts > 0) {
      error = launch_adjoint<kSmallTile>(a, plan, g, generate, work, stream);
    } else if (plan.parts > 0) {
      error = launch_adjoint<kLargeTile<C>>(a, plan, g, generate, work, stream);
    }
    return error ? error : sum_rows(work + plan.wave, static_cast<C*>(a.z), plan.rows, a.L, stream);
  });
}

}  // namespace fastfood::cuda
