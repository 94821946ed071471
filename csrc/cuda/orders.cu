// hadamard_transform on CUDA for rows of K 2^k entries of one storage type, FASTFOOD_TYPE: a row at
// a time in shared memory where it fits, else the butterflies of its pieces of 2^k entries as rows
// of their own, and then each matrix of order K over a few columns at a time.
#include "columns.cuh"
#include "mix.cuh"
#include "transform.h"

namespace fastfood::cuda {

namespace {

constexpr int kMixThreads = 256;

// Diagonals of rows of n entries, n not always a power of two, that begin anew after `period` rows.
template <class T>
struct LoadRow {
  using C = Arithmetic<T>;
  const T* x;
  const C* before;
  int64_t n, period = 1;
  Places places = {};  // and the period: of rows that `from` finds, not `one`
  __device__ __forceinline__ LoadRow from(int64_t row) const {
    const C* here = before ? before + in_period(row, period, n) : nullptr;
    return {x + begin_of(places, row, n), here, n};
  }
  __device__ __forceinline__ C one(int64_t row, int64_t i) const {
    const C value = widen(x[row * n + i]);
    return before ? value * before[i] : value;
  }
};
template <class T>
struct StoreRow {
  using C = Arithmetic<T>;
  T* out;
  const C* after;
  C scale;
  int64_t n, period = 1;
  Places places = {};
  __device__ __forceinline__ StoreRow from(int64_t row) const {
    const C* here = after ? after + in_period(row, period, n) : nullptr;
    return {out + begin_of(places, row, n), here, scale, n};
  }
  __device__ __forceinline__ void in_row(int64_t row, int64_t i, C y) const {
    y *= scale;
    out[row * n + i] = narrow<T>(after ? y * after[i] : y);
  }
  __device__ __forceinline__ void one(int64_t index, C y, Nothing) const {
    in_row(index / n, index % n, y);
  }
};

// --- A row in shared memory ----------------------------------------------------------------------

// One place in 17 stays unused, against bank conflicts.
__host__ __device__ __forceinline__ constexpr int spread(int i) { return i + i / 16; }

// A row of n = K_1 K_0 m entries, in shared memory.
struct RowFactors {
  int n, m;
  Signs<kSmallWords> signs[2];
};

template <class T>
__device__ __forceinline__ void load_row(const LoadRow<T>& load, int64_t row,
                                         Shared<Arithmetic<T>> x, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kMixThreads)
    x[spread(i)] = load.one(row, i);
  __syncthreads();
}

// Levels of strides stride, ... 2^(kLevels - 1) stride over the row.
template <int kLevels, class C>
__device__ __forceinline__ void row_pass(Shared<C> x, int n, int stride) {
  using L = Layout<kLevels, kLevels, kLevels>;
  for (int j = static_cast<int>(threadIdx.x); j < n / L::kValues; j += kMixThreads) {
    const int base = j / stride * L::kValues * stride + j % stride;
    C r[L::kValues];
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) r[i] = x[spread(base + i * stride)];
    butterflies<L>(r, 0, kLevels);
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) x[spread(base + i * stride)] = r[i];
  }
  __syncthreads();
}

// All levels below m, four at a time.
template <class C>
__device__ __forceinline__ void transform_row(Shared<C> x, int n, int m) {
  for (int stride = 1; stride < m;) {
    const int left = m / stride;
    if (left >= 16) row_pass<4>(x, n, stride);
    if (left == 8) row_pass<3>(x, n, stride);
    if (left == 4) row_pass<2>(x, n, stride);
    if (left == 2) row_pass<1>(x, n, stride);
    stride *= left < 16 ? left : 16;
  }
}

// put(i, y) for the entries of the matrix over entries `stride` apart.
template <class C, class Put>
__device__ __forceinline__ void mix_row(const Signs<kSmallWords>& signs, Shared<C> x, int n,
                                        int stride, Put put) {
  for (int item = static_cast<int>(threadIdx.x); item < n / kSums; item += kMixThreads) {
    const int groups = signs.K / kSums, j = item % stride, a = item / stride % groups * kSums;
    const int base = item / stride / groups * signs.K * stride + j;
    C sums[kSums];
    signed_sums(signs, a, [&](int b) { return x[spread(base + b * stride)]; }, sums);
#pragma unroll
    for (int i = 0; i < kSums; ++i) put(base + (a + i) * stride, sums[i]);
  }
  __syncthreads();
}

// Row `row` of those that `load` and `store` find.
template <class T>
__device__ __forceinline__ void mix_whole_row(const LoadRow<T>& load, const StoreRow<T>& store,
                                              const RowFactors& factors, int64_t row) {
  using C = Arithmetic<T>;
  const Shared<C> x(shared_memory<C>());
  const Shared<C> mixed = x + spread(factors.n);  // only there if there are two matrices
  const auto to_memory = [&](int i, C y) { store.in_row(row, i, y); };
  load_row(load, row, x, factors.n);
  transform_row(x, factors.n, factors.m);
  if (factors.signs[1].K == 1) {
    mix_row(factors.signs[0], x, factors.n, factors.m, to_memory);
  } else {
    mix_row(factors.signs[0], x, factors.n, factors.m, [&](int i, C y) { mixed[spread(i)] = y; });
    mix_row(factors.signs[1], mixed, factors.n, factors.m * factors.signs[0].K, to_memory);
  }
}

template <class T>
__global__ void __launch_bounds__(kMixThreads)
    row_kernel(const __grid_constant__ LoadRow<T> load, const __grid_constant__ StoreRow<T> store,
               const __grid_constant__ RowFactors factors, int64_t rows) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    mix_whole_row(load, store, factors, row);
}

// The same for rows that lie apart, or whose diagonals span several.
template <class T>
__global__ void __launch_bounds__(kMixThreads)
    pitched_row_kernel(const __grid_constant__ LoadRow<T> load,
                       const __grid_constant__ StoreRow<T> store,
                       const __grid_constant__ RowFactors factors, int64_t rows) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    mix_whole_row(load.from(row), store.from(row), factors, 0);
}

// --- Rows that do not fit ------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kMixThreads)
    widen_row_kernel(const __grid_constant__ LoadRow<T> load, Arithmetic<T>* work, int64_t total) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < total; i += all_threads())
    work[i] = load.one(i / load.n, i % load.n);
}

// The matrix over `columns` neighbouring columns at a time of K entries `stride` apart.
template <int kWords, class C, class Store>
__global__ void __launch_bounds__(kMixThreads)
    mix_kernel(const C* work, const __grid_constant__ Store store,
               const __grid_constant__ Signs<kWords> signs, int64_t total, int64_t stride,
               int columns) {
  const Shared<C> tile(shared_memory<C>());
  const int K = signs.K, thread = static_cast<int>(threadIdx.x);
  const int64_t all_columns = total / K;
  for (int64_t group = blockIdx.x; group * columns < all_columns; group += gridDim.x) {
    const int64_t left = all_columns - group * columns;
    const int here = left < columns ? static_cast<int>(left) : columns;
    const auto start = [&](int j) {
      const int64_t column = group * columns + j;
      return column / stride * K * stride + column % stride;
    };
    for (int i = thread; i < K * columns; i += kMixThreads)
      if (i % columns < here) tile[i] = work[start(i % columns) + i / columns * stride];
    __syncthreads();
    for (int item = thread; item < K / kSums * columns; item += kMixThreads) {
      const int j = item % columns, a = item / columns * kSums;
      if (j >= here) continue;
      C sums[kSums];
      signed_sums(signs, a, [&](int b) { return tile[b * columns + j]; }, sums);
#pragma unroll
      for (int i = 0; i < kSums; ++i) store.one(start(j) + (a + i) * stride, sums[i], {});
    }
    __syncthreads();  // all columns are read before the next ones come in
  }
}

template <int kWords, class C, class Store>
const char* launch_mix(const SignMatrix& matrix, const C* work, const Store& store, int64_t total,
                       int64_t stride, Stream stream) {
  constexpr int64_t kSize = sizeof(C);
  const int columns = matrix.K * 32 * kSize <= 48 * 1024 ? 32 : 8;
  return Launch<mix_kernel<kWords, C, Store>>::run(
      "mix_kernel",
      {divide_up(total / matrix.K, columns), kMixThreads, matrix.K * columns * kSize, stream}, work,
      store, copy_signs<kWords>(&matrix), total, stride, columns);
}

// The same for the size of parameter that the matrix needs.
template <class C, class Store>
const char* launch_any_mix(const SignMatrix& matrix, const C* work, const Store& store,
                           int64_t total, int64_t stride, Stream stream) {
  if (words_of(matrix) <= kSmallWords)
    return launch_mix<kSmallWords, C>(matrix, work, store, total, stride, stream);
  return launch_mix<kLargeWords, C>(matrix, work, store, total, stride, stream);
}

// --- Launches ------------------------------------------------------------------------------------

// Of a transform: the length of its pieces, and what its row takes in shared memory.
struct OrderShape {
  int64_t m, row_bytes = 0;
  bool small = true;
  OrderShape(const Transform& t, int64_t size) : m(t.n) {
    for (const SignMatrix* factor : t.factors) {
      if (!factor) continue;
      m /= factor->K;
      small = small && words_of(*factor) <= kSmallWords;
      row_bytes += (t.n + t.n / 16 + 1) * size;
    }
  }
  bool fits_row(int device) const { return small && row_bytes <= device_facts(device).shared; }
};

// `rows` rows: first their pieces, in work, then each matrix; the last one goes to `store`.
template <class T>
const char* transform_pieces(const Transform& t, int64_t rows, const LoadRow<T>& load,
                             const StoreRow<T>& store, Arithmetic<T>* work, Stream stream) {
  using C = Arithmetic<T>;
  const int64_t total = rows * t.n;
  int64_t stride = OrderShape(t, sizeof(C)).m;
  const char* error = Launch<widen_row_kernel<T>>::run(
      "widen_row_kernel", {divide_up(total, kMixThreads), kMixThreads, 0, stream}, load, work,
      total);
  if (!error && stride > 1)
    error =
        transform_rows<C>({work, work, type_of<C>, total / stride, stride, 1.0}, nullptr, stream);
  for (const SignMatrix* factor : t.factors) {
    if (!factor || error) continue;
    error = stride * factor->K == t.n
                ? launch_any_mix(*factor, work, store, total, stride, stream)
                : launch_any_mix(*factor, work, Work<C>{work}, total, stride, stream);
    stride *= factor->K;
  }
  return error;
}

}  // namespace

template <class T>
int64_t orders_workspace(const Transform& t, int device) {
  using C = Arithmetic<T>;
  if (std::is_same_v<T, C> || OrderShape(t, sizeof(C)).fits_row(device)) return 0;
  return wave_size(t.n, t.rows * t.n) * static_cast<int64_t>(sizeof(C));
}

template <class T>
const char* transform_orders(const Transform& t, void* workspace, Stream stream) {
  using C = Arithmetic<T>;
  const OrderShape shape(t, sizeof(C));
  const bool apart = !has_neighbours(t) || t.before_rows > 1 || t.after_rows > 1;
  const LoadRow<T> load{static_cast<const T*>(t.x), static_cast<const C*>(t.before), t.n,
                        t.before_rows, t.x_places};
  const StoreRow<T> store{static_cast<T*>(t.out),
                          static_cast<const C*>(t.after),
                          static_cast<C>(t.scale),
                          t.n,
                          t.after_rows,
                          t.out_places};
  if (shape.fits_row(stream.device)) {
    const RowFactors factors{
        static_cast<int>(t.n),
        static_cast<int>(shape.m),
        {copy_signs<kSmallWords>(t.factors[0]), copy_signs<kSmallWords>(t.factors[1])}};
    const Grid grid{t.rows, kMixThreads, shape.row_bytes, stream};
    return apart ? Launch<pitched_row_kernel<T>>::run("pitched_row_kernel", grid, load, store,
                                                      factors, t.rows)
                 : Launch<row_kernel<T>>::run("row_kernel", grid, load, store, factors, t.rows);
  }
  if (apart) {
    const char* error = nullptr;
    for (int64_t row = 0; row < t.rows && !error; ++row)
      error = transform_orders<T>(row_of<T>(t, row), workspace, stream);
    return error;
  }
  const int64_t wave = wave_size(t.n, t.rows * t.n) / t.n;
  for (int64_t row = 0; row < t.rows; row += wave) {
    const int64_t here = row + wave < t.rows ? wave : t.rows - row, first = row * t.n;
    C* work = static_cast<C*>(workspace);
    if constexpr (std::is_same_v<T, C>) work = store.out + first;
    const char* error =
        transform_pieces<T>(t, here, {load.x + first, load.before, t.n},
                            {store.out + first, store.after, store.scale, t.n}, work, stream);
    if (error) return error;
  }
  return nullptr;
}

template int64_t orders_workspace<FASTFOOD_TYPE>(const Transform&, int);
template const char* transform_orders<FASTFOOD_TYPE>(const Transform&, void*, Stream);

}  // namespace fastfood::cuda
