// hadamard_transform on CUDA for rows of K 2^k entries of one storage type, FASTFOOD_TYPE. On
// tensor cores one kernel does all, if shared memory holds columns of K 2^s entries: it multiplies
// them by the matrix of order K 2^s and does the other k - s levels on neighbours. Else each factor
// is a pass: the butterflies, over consecutive parts of a row as if these were rows; then each
// matrix over a few columns at a time, by tensor cores or, in fp64 and on sm_75, by plain sums.
#include <algorithm>

#include "columns.cuh"
#include "tensor.cuh"
#include "transform.h"

namespace fastfood::cuda {

// Each compilation defines these for its own type, and calls those of the others.
extern template int64_t orders_workspace<float>(const Transform&, int);
extern template int64_t orders_workspace<double>(const Transform&, int);
extern template const char* transform_orders<float>(const Transform&, void*, Stream);
extern template const char* transform_orders<double>(const Transform&, void*, Stream);

namespace {

constexpr int kMixThreads = 256;

// Rows from row `first` on, of n entries, which need not be a power of two, and one of their
// diagonals.
template <class T>
struct PlacedRows {
  T* at;
  Places places;
  const Arithmetic<std::remove_const_t<T>>* factors;  // null: ones
  int64_t period, n, first;

  // Calls f(the entry in memory, its factor or null) for entry i.
  template <class F>
  __device__ __forceinline__ void visit(int64_t i, F f) const {
    const int64_t row = first + i / n, in_row = i % n;
    f(at[begin_of(places, row, n) + in_row],
      factors ? factors + in_period(row, period, n) + in_row : nullptr);
  }
};

// Copies rows, times `before`, to rows that follow each other.
template <class T>
__global__ void __launch_bounds__(kMixThreads)
    gather_kernel(const __grid_constant__ PlacedRows<const T> rows, Arithmetic<T>* work,
                  int64_t total) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < total; i += all_threads())
    rows.visit(i, [&](const T& entry, const Arithmetic<T>* factor) {
      work[i] = factor ? widen(entry) * *factor : widen(entry);
    });
}

// Copies rows that follow each other back, times `after`.
template <class T>
__global__ void __launch_bounds__(kMixThreads)
    scatter_kernel(const Arithmetic<T>* work, const __grid_constant__ PlacedRows<T> rows,
                   int64_t total) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < total; i += all_threads())
    rows.visit(i, [&](T& entry, const Arithmetic<T>* factor) {
      entry = narrow<T>(factor ? work[i] * *factor : work[i]);
    });
}

template <class T>
const char* launch_gather(const Transform& t, int64_t first, Arithmetic<T>* work, int64_t rows,
                          Stream stream) {
  const PlacedRows<const T> from{static_cast<const T*>(t.x),
                                 t.x_places,
                                 static_cast<const Arithmetic<T>*>(t.before),
                                 t.before_rows,
                                 t.n,
                                 first};
  return Launch<gather_kernel<T>>::run("gather_kernel",
                                       {divide_up(rows * t.n, kMixThreads), kMixThreads, 0, stream},
                                       from, work, rows * t.n);
}

// --- By plain sums -------------------------------------------------------------------------------

template <class T>
struct StoreRow {
  using C = Arithmetic<T>;
  T* out;
  const C* after;
  C scale;
  int64_t n;
  __device__ __forceinline__ void one(int64_t index, C y) const {
    y *= scale;
    out[index] = narrow<T>(after ? y * after[index % n] : y);
  }
};

// The matrix over `columns` neighbouring columns at a time of K entries `stride` apart.
template <class T>
__global__ void __launch_bounds__(kMixThreads)
    mix_kernel(const Arithmetic<T>* work, const __grid_constant__ StoreRow<T> store,
               const __grid_constant__ Signs signs, int64_t total, int64_t stride, int columns) {
  using C = Arithmetic<T>;
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
      for (int i = 0; i < kSums; ++i) store.one(start(j) + (a + i) * stride, sums[i]);
    }
    __syncthreads();  // all have read the columns
  }
}

template <class T>
const char* launch_mix(const Signs& signs, const Arithmetic<T>* work, const StoreRow<T>& store,
                       int64_t total, int64_t stride, Stream stream) {
  constexpr int64_t kSize = sizeof(Arithmetic<T>), kFit = 48 * 1024;
  int columns = 32;
  while (columns > 1 && signs.K * columns * kSize > kFit) columns /= 2;
  return Launch<mix_kernel<T>>::run(
      "mix_kernel",
      {divide_up(total / signs.K, columns), kMixThreads, signs.K * columns * kSize, stream}, work,
      store, signs, total, stride, columns);
}

// --- By tensor cores -----------------------------------------------------------------------------

template <int kParts, int kColumnsLog, bool kWhole, class In, class Out>
const char* launch_tensor(Pass<In, Out> pass, Stream stream) {
  using Tile = TensorTile<In, kParts, kColumnsLog, kWhole>;
  const int64_t K = pass.signs.K, stride = pass.stride, columns = Tile::kColumns;
  const bool several = stride < columns && is_power_of_two(stride);
  pass.log = several ? log2_of(stride) : kColumnsLog;
  pass.cuts = divide_up(stride, columns);
  pass.reciprocal = pass.cuts == 1 ? 0 : ~uint64_t{0} / static_cast<uint64_t>(pass.cuts) + 1;
  const int64_t tiles = several ? divide_up(pass.rows, columns / stride) : pass.rows * pass.cuts;
  const Device device = device_facts(stream.device);
  const int buffers = kParts == 1 && 2 * Tile::bytes(K) <= device.shared ? 2 : 1;
  // As many blocks as shared memory has room for, and as few warps in each as keep a multiprocessor
  // busy, or some more if all warps get the same number of turns then.
  const int64_t items = divide_up(K, 8 * Tile::kGroups), shared = buffers * Tile::bytes(K);
  const int64_t busy = 2 * Tile::kThreads / kLanes,
                room = std::max<int64_t>(device.shared / shared, 1);
  const int64_t most = std::min<int64_t>(Tile::kThreads / kLanes, items);
  int64_t warps = std::min(divide_up(busy, room), most);
  while (warps < most && items % warps) ++warps;
  warps = divide_up(items, divide_up(items, warps));
  const int64_t blocks =
      device.multiprocessors * std::max<int64_t>(std::min(room, busy / warps), 1);
  return Launch<tensor_kernel<kParts, kColumnsLog, kWhole, In, Out>>::run(
      "tensor_kernel",
      {tiles < blocks ? tiles : blocks, static_cast<int>(warps) * kLanes, shared, stream}, pass,
      static_cast<int>(tiles), buffers);
}

// How one kernel does a row of K 2^k entries: a matrix of order K 2^log over 2^levels neighbours.
struct Fused {
  int64_t K = 0;  // of the matrix: 2^log times the factors' orders; zero: it does not fit
  int log = 0, levels = 0,
      parts = 3;  // parts: 3 of bf16 for a value, or the value itself (tensor.cuh)
};

// The cheapest way. A warp makes 32 rows of 64 columns at a time, or 16 of 128, even where the
// matrix has fewer. The weights of a row and of 16 terms of one part are about the time that they
// take on a multiprocessor.
inline Fused choose_fused(int64_t K, int k, int parts, bool whole, int64_t shared) {
  Fused best;
  int64_t least = 0;
  for (int levels = k < 7 ? k : whole ? 7 : 6; levels >= (k < 3 ? k : 3); --levels) {
    const int64_t order = K << (k - levels), rows = levels == 7 ? 16 : 32, columns = 2048 / rows;
    if (parts * divide_up(order, 16) * 16 * columns * 2 > shared) continue;
    const int64_t row = 100 + 12 * parts * divide_up(order, 16);
    const int64_t cost = divide_up(order, rows) * rows * row * 1000 / order;
    if (best.K && cost >= least) continue;
    best = {order, k - levels, levels, parts};
    least = cost;
  }
  return best;
}

// Whether runs of `stride` entries are whole runs of 16 bytes at aligned addresses.
inline bool is_whole(const Transform& t, int64_t stride) {
  return stride % 8 == 0 && is_aligned(t.x, 16) && is_aligned(t.out, 16) &&
         is_aligned(t.before, 16) && is_aligned(t.after, 16);
}

template <class In, class Out>
Pass<In, Out> make_pass(const Transform& t, const In* x, Out* out, int levels, const Signs& signs,
                        int64_t rows, int64_t stride) {
  return {x,
          out,
          static_cast<const float*>(t.before),
          static_cast<const float*>(t.after),
          static_cast<float>(t.scale),
          levels,
          signs,
          0,
          rows,
          stride,
          1,
          0};
}

template <int kParts, int kColumnsLog, class In, class Out>
const char* launch_tensor_by(const Pass<In, Out>& pass, bool whole, Stream stream) {
  return whole ? launch_tensor<kParts, kColumnsLog, true>(pass, stream)
               : launch_tensor<kParts, kColumnsLog, false>(pass, stream);
}

template <class T>
const char* launch_fused(const Transform& t, const Fused& fused, const Signs& signs,
                         Stream stream) {
  const auto pass = make_pass(t, static_cast<const T*>(t.x), static_cast<T*>(t.out), fused.levels,
                              signs, t.rows, int64_t{1} << fused.levels);
  if constexpr (kIsHalf<T>)
    if (fused.parts == 1)
      return fused.levels == 7 ? launch_tensor<1, 7, true>(pass, stream)
                               : launch_tensor<1, 6, true>(pass, stream);
  return fused.levels == 7 ? launch_tensor<3, 7, true>(pass, stream)
                           : launch_tensor_by<3, 6>(pass, is_whole(t, pass.stride), stream);
}

// --- Launches ------------------------------------------------------------------------------------

int64_t whole_bytes(int64_t bytes) { return divide_up(bytes, 256) * 256; }
int64_t sign_bytes(int64_t K) { return whole_bytes(sign_words(K) * int64_t{sizeof(uint32_t)}); }

// How a transform is done: by one kernel, or by its last factor after the transform of the row's
// parts, which all other factors make. The workspace holds the signs of the matrix; then, if T is
// not its own arithmetic type, `wave` rows in that type; then the workspace for the transform of
// the parts.
template <class T>
struct OrderPlan {
  using C = Arithmetic<T>;
  Fused fused;
  const SignMatrix* last;
  bool tensor = false;  // whether the last factor goes to tensor cores
  int64_t wave;         // rows at a time
  Transform parts;

  OrderPlan(const Transform& t, const Device& device)
      : last(t.factors[t.factors[1] ? 1 : 0]),
        wave(wave_size(t.n, t.rows * t.n) / t.n),
        parts{nullptr, nullptr, type_of<C>, wave * last->K, t.n / last->K, 1.0} {
    if (t.factors[1]) parts.factors[0] = t.factors[0];
    // The addresses that the parts will have: which of them are aligned decides how it is done.
    if (std::is_same_v<T, C>) {
      parts.x = t.before ? t.out : t.x;
      parts.out = t.out;
    }
    if (sizeof(T) == 8 || !device.tensor) return;
    tensor = TensorTile<float, 3, 6, true>::bytes(last->K) <= device.shared;
    const int64_t K = last->K * (t.factors[1] ? t.factors[0]->K : 1);
    const bool whole = is_whole(t, t.n / K);
    if (!t.factors[1] || last->K <= kOuterMost)
      fused = choose_fused(K, log2_of(t.n / K), kIsHalf<T> && !t.before && whole ? 1 : 3, whole,
                           device.shared);
  }
  int64_t work_bytes() const {
    return std::is_same_v<T, C> ? 0 : whole_bytes(wave * parts.n * last->K * int64_t{sizeof(C)});
  }
};

// Applies the last factor to the rows in `from`.
template <class T>
const char* launch_last(const Transform& t, const OrderPlan<T>& plan, const Signs& signs,
                        const Arithmetic<T>* from, T* out, int64_t rows, Stream stream) {
  using C = Arithmetic<T>;
  if constexpr (sizeof(T) < 8)
    if (plan.tensor) {
      Transform pass = t;
      pass.x = from;
      pass.out = out;
      pass.before = nullptr;
      return launch_tensor_by<3, 6>(make_pass(pass, from, out, 0, signs, rows, plan.parts.n),
                                    is_whole(pass, plan.parts.n), stream);
    }
  const auto* after = static_cast<const C*>(t.after);
  return launch_mix<T>(signs, from, {out, after, static_cast<C>(t.scale), t.n}, rows * t.n,
                       plan.parts.n, stream);
}

// One wave of rows after the other.
template <class T>
const char* transform_waves(const Transform& t, OrderPlan<T> plan, const Signs& signs,
                            unsigned char* workspace, Stream stream) {
  using C = Arithmetic<T>;
  const auto* before = static_cast<const C*>(t.before);
  void* const left = workspace + plan.work_bytes();
  for (int64_t row = 0; row < t.rows; row += plan.wave) {
    const int64_t rows = std::min(plan.wave, t.rows - row);
    const T* x = static_cast<const T*>(t.x) + row * t.n;
    T* out = static_cast<T*>(t.out) + row * t.n;
    C* work = reinterpret_cast<C*>(workspace);
    const C* from = work;
    if constexpr (std::is_same_v<T, C>) {
      work = out;
      from = before ? work : x;
    }
    const char* error = nullptr;
    if (before || !std::is_same_v<T, C>) error = launch_gather<T>(t, row, work, rows, stream);
    if (!error && plan.parts.n > 1) {
      plan.parts.x = from;
      plan.parts.out = work;
      from = work;
      plan.parts.rows = rows * plan.last->K;
      error = plan.parts.factors[0] ? transform_orders<C>(plan.parts, left, stream)
                                    : transform_rows<C>(plan.parts, nullptr, stream);
    }
    if (!error) error = launch_last<T>(t, plan, signs, from, out, rows, stream);
    if (error) return error;
  }
  return nullptr;
}

// --- Rows that lie apart -------------------------------------------------------------------------

inline bool is_apart(const Transform& t) {
  return !has_neighbours(t) || t.before_rows > 1 || t.after_rows > 1;
}

// The transform of one wave of rows that have been copied to `work`, in the type that is computed
// in, by themselves: diagonals are applied by the copies.
template <class T>
Transform gathered(const Transform& t, void* work) {
  const int64_t rows = wave_size(t.n, t.rows * t.n) / t.n;
  Transform together{work, work, type_of<Arithmetic<T>>, rows, t.n, t.scale};
  std::copy(t.factors, t.factors + 2, together.factors);
  return together;
}

template <class T>
int64_t gathered_bytes(const Transform& together) {
  return whole_bytes(together.rows * together.n * int64_t{sizeof(Arithmetic<T>)});
}

// Rows that lie apart, or whose diagonals span several: copies them to rows that follow each other,
// transforms these, and copies them back.
template <class T>
const char* transform_apart(const Transform& t, void* workspace, Stream stream) {
  using C = Arithmetic<T>;
  Transform together = gathered<T>(t, workspace);
  void* const left = static_cast<unsigned char*>(workspace) + gathered_bytes<T>(together);
  auto* work = static_cast<C*>(workspace);
  for (int64_t row = 0, wave = together.rows; row < t.rows; row += wave) {
    together.rows = std::min(wave, t.rows - row);
    const int64_t total = together.rows * t.n;
    const char* error = launch_gather<T>(t, row, work, together.rows, stream);
    if (!error) error = transform_orders<C>(together, left, stream);
    if (error) return error;
    const PlacedRows<T> to{static_cast<T*>(t.out), t.out_places, static_cast<const C*>(t.after),
                           t.after_rows,           t.n,          row};
    error = Launch<scatter_kernel<T>>::run(
        "scatter_kernel", {divide_up(total, kMixThreads), kMixThreads, 0, stream}, work, to, total);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

template <class T>
int64_t orders_workspace(const Transform& t, int device) {
  using C = Arithmetic<T>;
  if (t.rows == 0) return 0;
  if (is_apart(t)) {
    const Transform together = gathered<T>(t, nullptr);
    return gathered_bytes<T>(together) + orders_workspace<C>(together, device);
  }
  const OrderPlan<T> plan(t, device_facts(device));
  if (plan.fused.K) return sign_bytes(plan.fused.K);
  return sign_bytes(plan.last->K) + plan.work_bytes() +
         (plan.parts.factors[0] ? orders_workspace<C>(plan.parts, device) : 0);
}

template <class T>
const char* transform_orders(const Transform& t, void* workspace, Stream stream) {
  if (t.rows == 0) return nullptr;
  if (is_apart(t)) return transform_apart<T>(t, workspace, stream);
  const OrderPlan<T> plan(t, device_facts(stream.device));
  const Fused& fused = plan.fused;
  auto* bits = static_cast<uint32_t*>(workspace);
  Signs signs;
  const char* error = fused.K
                          ? fill_signs(t.factors[1], *t.factors[0], fused.log, bits, &signs, stream)
                          : fill_signs(nullptr, *plan.last, 0, bits, &signs, stream);
  if (error) return error;
  if constexpr (sizeof(T) < 8) {
    if (fused.K) return launch_fused<T>(t, fused, signs, stream);
  }
  return transform_waves<T>(
      t, plan, signs, static_cast<unsigned char*>(workspace) + sign_bytes(plan.last->K), stream);
}

template int64_t orders_workspace<FASTFOOD_TYPE>(const Transform&, int);
template const char* transform_orders<FASTFOOD_TYPE>(const Transform&, void*, Stream);

}  // namespace fastfood::cuda
