// hadamard_transform on CUDA. Rows of 2^k entries: within the lanes of a warp where they are short,
// else as fwht.cuh does it. Rows of K 2^k entries: in shared memory, where they fit, else their
// pieces of 2^k entries as before, and then each matrix of order K over a few columns at a time.
#include "fwht.cuh"
#include "mix.cuh"

namespace fastfood::cuda {

namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kLanes = 32;
constexpr int kWarpThreads = 128;

// --- Diagonals -----------------------------------------------------------------------------------

// One factor for each entry of a row of n, or none.
template <class C>
struct Diagonal {
  const C* values;
  int64_t n;

  template <int kCount>
  __device__ __forceinline__ void multiply(int64_t index, C* r) const {
    if (!values) return;
    const int64_t first = (n & (n - 1)) == 0 ? index & (n - 1) : index % n;
    if (first + kCount <= n) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) r[k] *= values[first + k];
    } else {
      for (int k = 0; k < kCount; ++k) r[k] *= values[(first + k) % n];
    }
  }
};

template <class T>
struct ReadScaled : Read<T> {
  using Value = typename Read<T>::Value;
  Diagonal<Value> before;

  __device__ __forceinline__ void run(int64_t index, Value* r, const NormalTable&) const {
    run(index, r);
  }
  __device__ __forceinline__ void run(int64_t index, Value* r) const {
    Read<T>::run(index, r);
    before.template multiply<Read<T>::kRun>(index, r);
  }
  __device__ __forceinline__ Value one(int64_t index) const {
    Value r = Read<T>::one(index);
    before.template multiply<1>(index, &r);
    return r;
  }
};

// Scales before `after`, as the definition has it; the Write behind it has scale one.
template <class T>
struct WriteScaled : Write<T> {
  using Value = typename Write<T>::Value;
  Diagonal<Value> after;
  Value factor;

  __device__ __forceinline__ void run(int64_t index, const Value* y) const {
    Value r[Write<T>::kRun];
#pragma unroll
    for (int k = 0; k < Write<T>::kRun; ++k) r[k] = y[k] * factor;
    after.template multiply<Write<T>::kRun>(index, r);
    Write<T>::run(index, r);
  }
  __device__ __forceinline__ void one(int64_t index, Value y) const {
    y *= factor;
    after.template multiply<1>(index, &y);
    Write<T>::one(index, y);
  }
};

// --- Short rows ----------------------------------------------------------------------------------

// Rows of 2^log_n entries, at most those of a warp: a thread has kPackets runs, a warp apart. The
// levels within a run are in registers, those above are exchanged between lanes.
template <int kPackets, class T>
__global__ void __launch_bounds__(kWarpThreads)
    warp_kernel(const __grid_constant__ ReadScaled<T> load,
                const __grid_constant__ WriteScaled<T> store, int64_t total, int log_n) {
  using C = Arithmetic<T>;
  constexpr int kRun = Read<T>::kRun, kRunLog = kRun == 8 ? 3 : kRun == 4 ? 2 : 1;
  constexpr int64_t kStep = int64_t{kLanes} * kRun;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t warps = all_threads() / kLanes, sweep = kStep * kPackets;
  for (int64_t i = thread_index() / kLanes * sweep; i < total; i += warps * sweep) {
    C r[kPackets][kRun];
#pragma unroll
    for (int p = 0; p < kPackets; ++p) load.run(i + p * kStep + lane * kRun, r[p]);
#pragma unroll
    for (int p = 0; p < kPackets; ++p) butterflies(r[p], 0, log_n);
    for (int level = kRunLog; level < log_n; ++level) {
      const int distance = 1 << (level - kRunLog);
      const C sign = lane & distance ? C{-1} : C{1};
#pragma unroll
      for (int p = 0; p < kPackets; ++p)
#pragma unroll
        for (int k = 0; k < kRun; ++k)
          r[p][k] = fma(sign, r[p][k], __shfl_xor_sync(kAllLanes, r[p][k], distance));
    }
#pragma unroll
    for (int p = 0; p < kPackets; ++p) store.run(i + p * kStep + lane * kRun, r[p]);
  }
}

// --- Rows of K 2^k entries -----------------------------------------------------------------------

// Where entry i of a row lies in shared memory, so that no stride meets one bank alone.
__host__ __device__ __forceinline__ constexpr int spread(int i) { return i + i / 16; }

// Levels of strides stride, ... R stride / 2 over the n entries of x.
template <int R, class C>
__device__ __forceinline__ void row_pass(Shared<C> x, int n, int stride) {
  for (int j = static_cast<int>(threadIdx.x); j < n / R; j += kMixThreads) {
    const int base = j / stride * R * stride + j % stride;
    C r[R];
#pragma unroll
    for (int i = 0; i < R; ++i) r[i] = x[spread(base + i * stride)];
    butterflies(r, 0, kRadixLog);
#pragma unroll
    for (int i = 0; i < R; ++i) x[spread(base + i * stride)] = r[i];
  }
  __syncthreads();
}

struct RowFactors {
  Signs<kSmallWords> signs[2];
};

// Whole rows of n = K_1 K_0 m entries, one at a time, in shared memory; in twice as much of it if
// K_1 is not one.
template <class T>
__global__ void __launch_bounds__(kMixThreads)
    row_kernel(const __grid_constant__ ReadScaled<T> load,
               const __grid_constant__ WriteScaled<T> store,
               const __grid_constant__ RowFactors factors, int64_t rows, int n, int m) {
  using C = Arithmetic<T>;
  constexpr int kRun = Read<T>::kRun;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    Shared<C> x = shared_memory<C>();
    for (int i = thread * kRun; i < n; i += kMixThreads * kRun) {
      C r[kRun];
      load.run(row * n + i, r);
#pragma unroll
      for (int k = 0; k < kRun; ++k)
        if (i + k < n) x[spread(i + k)] = r[k];
    }
    __syncthreads();
    for (int stride = 1; stride < m;) {
      const int left = m / stride;
      if (left >= 16) row_pass<16>(x, n, stride);
      if (left == 8) row_pass<8>(x, n, stride);
      if (left == 4) row_pass<4>(x, n, stride);
      if (left == 2) row_pass<2>(x, n, stride);
      stride *= left < 16 ? left : 16;
    }
    int stride = m;
    for (int f = 0; f < 2; ++f) {
      const auto& signs = factors.signs[f];
      if (signs.K == 1) continue;
      const bool last = stride * signs.K == n;
      for (int item = thread; item < n / kSums; item += kMixThreads) {
        const int groups = signs.K / kSums, j = item % stride, a = item / stride % groups * kSums;
        const int base = item / stride / groups * signs.K * stride + j;
        C sums[kSums];
        signed_sums(signs, a, [&](int b) { return x[spread(base + b * stride)]; }, sums);
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          const int to = base + (a + i) * stride;
          if (last) {
            store.one(row * n + to, sums[i]);
          } else {
            x[spread(n) + spread(to)] = sums[i];
          }
        }
      }
      __syncthreads();
      x += last ? 0 : spread(n);
      stride *= signs.K;
    }
  }
}

// --- Launches ------------------------------------------------------------------------------------

// Of a transform: the length of its pieces, and what its row takes in shared memory.
template <class C>
struct Shape {
  int64_t m;
  int64_t row_bytes;
  bool mixed, fits_row;
  explicit Shape(const Transform& t) : m(t.n), row_bytes(0), mixed(t.factors[0]) {
    bool small = true;
    for (const SignMatrix* factor : t.factors) {
      if (!factor) continue;
      m /= factor->K;
      small = small && factor->K * factor->words <= kSmallWords;
      row_bytes += (t.n + t.n / 16 + 1) * static_cast<int64_t>(sizeof(C));
    }
    fits_row = mixed && small && row_bytes <= shared_limit();
  }
  bool needs_work() const { return !fits_row && (mixed || !fits_tile<C>(m)); }
};

// Rows of K 2^k entries, those with indices [first, end), by pieces and matrices.
template <class T>
const char* transform_mixed(const Transform& t, const ReadScaled<T>& load,
                            const WriteScaled<T>& store, Arithmetic<T>* work, int64_t first,
                            int64_t end, StreamHandle stream) {
  using C = Arithmetic<T>;
  const Read<C> from_work{work, first, end};
  const Write<C> to_work{work, first, end, C{1}};
  int64_t stride = Shape<C>(t).m;
  const char* error = transform_range(load, to_work, work, first, end, log2_of(stride), stream);
  for (const SignMatrix* factor : t.factors) {
    if (!factor || error) continue;
    error = stride * factor->K == t.n
                ? launch_any_mix(*factor, from_work, store, first, end, stride, stream)
                : launch_any_mix(*factor, from_work, to_work, first, end, stride, stream);
    stride *= factor->K;
  }
  return error;
}

template <class T>
const char* transform_short(const ReadScaled<T>& load, const WriteScaled<T>& store, int64_t total,
                            int log_n, StreamHandle stream) {
  constexpr int64_t kSweep = int64_t{kWarpThreads} * Read<T>::kRun;
  constexpr int kMany = 4;  // runs in flight for each thread, once there are enough for all
  if (total >= int64_t{1} << 22)
    return launch("warp_kernel", warp_kernel<kMany, T>, divide_up(total, kMany * kSweep),
                  kWarpThreads, 0, stream, load, store, total, log_n);
  return launch("warp_kernel", warp_kernel<1, T>, divide_up(total, kSweep), kWarpThreads, 0, stream,
                load, store, total, log_n);
}

template <class T>
const char* transform_rows(const Transform& t, void* workspace, StreamHandle stream) {
  using C = Arithmetic<T>;
  const Shape<C> shape(t);
  const int64_t total = t.rows * t.n;
  const ReadScaled<T> load{{static_cast<const T*>(t.x), 0, total},
                           {static_cast<const C*>(t.before), t.n}};
  const WriteScaled<T> store{{static_cast<T*>(t.out), 0, total, C{1}},
                             {static_cast<const C*>(t.after), t.n},
                             static_cast<C>(t.scale)};
  if (shape.fits_row)
    return launch(
        "row_kernel", row_kernel<T>, t.rows, kMixThreads, static_cast<size_t>(shape.row_bytes),
        stream, load, store,
        RowFactors{{copy_signs<kSmallWords>(t.factors[0]), copy_signs<kSmallWords>(t.factors[1])}},
        t.rows, static_cast<int>(t.n), static_cast<int>(shape.m));
  if (!shape.mixed && t.n <= int64_t{kLanes} * Read<T>::kRun)
    return transform_short(load, store, total, log2_of(t.n), stream);
  const int64_t wave = shape.needs_work() ? wave_size(t.n, total) : total;
  for (int64_t first = 0; first < total; first += wave) {
    const int64_t end = first + wave < total ? first + wave : total;
    C* work = std::is_same_v<T, C> ? static_cast<C*>(t.out) + first : static_cast<C*>(workspace);
    const char* error = shape.mixed
                            ? transform_mixed(t, load, store, work, first, end, stream)
                            : transform_range(load, store, work, first, end, log2_of(t.n), stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

// Rows that take several passes are transformed in `out` itself, if it has the type that they are
// computed in.
int64_t transform_workspace(const Transform& t) {
  return with_type(t.type, [&](auto* element) -> int64_t {
    using T = std::remove_pointer_t<decltype(element)>;
    using C = Arithmetic<T>;
    if (std::is_same_v<T, C> || !Shape<C>(t).needs_work()) return 0;
    return wave_size(t.n, t.rows * t.n) * static_cast<int64_t>(sizeof(C));
  });
}

const char* transform(const Transform& t, void* workspace, StreamHandle stream) {
  return with_type(t.type, [&](auto* element) -> const char* {
    return transform_rows<std::remove_pointer_t<decltype(element)>>(t, workspace, stream);
  });
}

}  // namespace fastfood::cuda
