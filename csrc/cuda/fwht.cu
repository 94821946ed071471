// hadamard_transform on CUDA for rows of 2^k entries of one storage type: short rows within a warp,
// rows that shared memory holds as one tile, longer ones by tiles and passes over columns. Compiled
// once for each type, FASTFOOD_TYPE, so that a build uses all cores.
#include "columns.cuh"
#include "pitched.cuh"
#include "rows.cuh"
#include "transform.h"

namespace fastfood::cuda {

// Each compilation defines these for its own type, and calls those of the others.
extern template const char* transform_rows<float>(const Transform&, void*, Stream);
extern template const char* transform_rows<double>(const Transform&, void*, Stream);
extern template const char* transform_work<float>(float*, int64_t, int, int, Stream);
extern template const char* transform_work<double>(double*, int64_t, int, int, Stream);

namespace {

// The Store of the last pass over columns: applies the scale, then `after`.
template <class T>
struct StoreColumn {
  T* out;
  Arithmetic<T> scale;
  Diagonal<Arithmetic<T>> after;
  __device__ __forceinline__ StoreColumn begin(int64_t) const { return *this; }
  __device__ __forceinline__ Nothing fetch(int64_t) const { return {}; }
  __device__ __forceinline__ void one(int64_t index, Arithmetic<T> y, Nothing) const {
    y *= scale;
    out[index] = narrow<T>(after.values ? y * after.at(index) : y);
  }
};

// work[i] = before * x[i], in the type that is computed in.
template <class T>
__global__ void __launch_bounds__(256)
    widen_kernel(const __grid_constant__ LoadAny<T> load, Arithmetic<T>* work) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < load.end; i += all_threads()) work[i] = load.one(i);
}

// Some rows of one call. `t` describes them, but for their number and where they begin.
template <class T>
struct Rows {
  using C = Arithmetic<T>;
  const Transform& t;
  const T* x;
  T* out;
  int64_t rows;

  int log_n() const { return log2_of(t.n); }
  int64_t total() const { return rows * t.n; }
  C scale() const { return static_cast<C>(t.scale); }
  Diagonal<C> before() const { return {static_cast<const C*>(t.before), t.before_rows * t.n - 1}; }
  Diagonal<C> after() const { return {static_cast<const C*>(t.after), t.after_rows * t.n - 1}; }
  bool has_diagonals() const { return t.before || t.after; }
  bool has_long_diagonals() const { return t.before_rows > 1 || t.after_rows > 1; }
  bool aligned() const {
    return is_aligned(x, 16) && is_aligned(out, 16) && is_aligned(t.before, 16);
  }
};

template <int kLog, class T, class Load, class Store>
const char* launch_tiles(const Load& load, const Store& store, int64_t tiles, Stream stream) {
  using R = RowTile<kLog, T, typename Store::Storage>;
  if (tiles == 0) return nullptr;
  if constexpr (R::kShape.prefetch && !std::is_same_v<Load, LoadAny<T>>) {
    const Device device = device_facts(stream.device);
    if (R::bytes(true) <= device.shared) {
      const int64_t blocks = int64_t{device.multiprocessors} * R::kShape.resident;
      return Launch<tile_kernel<kLog, true, Load, Store>>::run(
          "tile_kernel", {tiles < blocks ? tiles : blocks, R::S::kThreads, R::bytes(true), stream},
          load, store, tiles);
    }
  }
  return Launch<tile_kernel<kLog, false, Load, Store>>::run(
      "tile_kernel", {tiles, R::S::kThreads, R::bytes(false), stream}, load, store, tiles);
}

// Rows that a tile holds: whole tiles at aligned addresses go the fast way, all else the slow one.
template <int kLog, class T>
const char* transform_tiles_of(const Rows<T>& rows, Stream stream) {
  using C = Arithmetic<T>;
  constexpr Shape kShape = shape_of<T>(kLog);
  const bool fast = rows.aligned() && (!rows.has_long_diagonals() || kShape.tile_log == kLog);
  const int64_t whole = fast ? rows.total() >> kShape.tile_log : 0;
  const int64_t done = whole << kShape.tile_log;
  const Diagonal<C> before = rows.before(), after = rows.after();
  const char* error =
      rows.has_diagonals()
          ? launch_tiles<kLog, T>(
                LoadWhole<T, kShape.once, kLog>{rows.x, before.values,
                                                static_cast<int>(before.mask)},
                StoreWhole<T, kShape.once, kLog>{rows.out, rows.scale(), after.values,
                                                 static_cast<int>(after.mask)},
                whole, stream)
          : launch_tiles<kLog, T>(
                LoadWhole<T, kShape.once, kNoDiagonals>{rows.x, nullptr, 0},
                StoreWhole<T, kShape.once, kNoDiagonals>{rows.out, rows.scale(), nullptr, 0}, whole,
                stream);
  const int64_t left = rows.total() - done;
  if (error || left == 0) return error;
  return launch_tiles<kLog, T>(LoadAny<T>{rows.x + done, left, rows.before()},
                               StoreAny<T>{rows.out + done, left, rows.scale(), rows.after()},
                               divide_up(left, int64_t{1} << kShape.tile_log), stream);
}

template <int kLog, class T>
const char* transform_short(const Rows<T>& rows, Stream stream) {
  const int64_t packets = divide_up(rows.total(), kPacket<T>);
  if (rows.aligned() && !rows.has_diagonals() && rows.total() % kPacket<T> == 0)
    return Launch<short_kernel<kLog, T>>::run(
        "short_kernel", {divide_up(packets, 2 * kShortThreads), kShortThreads, 0, stream}, rows.x,
        rows.out, packets, rows.scale());
  const bool whole = rows.aligned() && is_aligned(rows.t.after, 16) && kLog >= kPacketLog<T>;
  return Launch<short_any_kernel<T>>::run(
      "short_any_kernel", {divide_up(packets, kShortThreads), kShortThreads, 0, stream},
      LoadAny<T>{rows.x, rows.total(), rows.before(), whole},
      StoreAny<T>{rows.out, rows.total(), rows.scale(), rows.after(), whole}, kLog);
}

// Calls f(std::integral_constant) for `log`, which is one of kFrom ... kTo.
template <int kFrom, int kTo, class F>
const char* with_log(int log, F f) {
  if constexpr (kFrom > kTo) {
    __builtin_trap();
  } else {
    return log == kFrom ? f(std::integral_constant<int, kFrom>())
                        : with_log<kFrom + 1, kTo>(log, f);
  }
}

// The levels below tile_log of long rows, tile by tile and without the scale, to `work`, which may
// be the output.
template <class T>
const char* transform_low_levels(const Rows<T>& rows, Arithmetic<T>* work, int tile_log,
                                 Stream stream) {
  using C = Arithmetic<T>;
  constexpr int kLeast = sizeof(T) == 8 ? 8 : 9;
  const bool direct = is_aligned(rows.x, 16) && is_aligned(work, 16) && !rows.t.before;
  if (direct)
    return with_log<kLeast, kTileLogMost<T>>(tile_log, [&](auto log) {
      constexpr Shape kShape = shape_of<T>(log);
      return launch_tiles<log, T>(LoadWhole<T, kShape.once, kNoDiagonals>{rows.x, nullptr, 0},
                                  StoreWhole<C, kShape.once, kNoDiagonals>{work, C{1}, nullptr, 0},
                                  rows.total() >> kShape.tile_log, stream);
    });
  const char* error =
      Launch<widen_kernel<T>>::run("widen_kernel", {divide_up(rows.total(), 256), 256, 0, stream},
                                   LoadAny<T>{rows.x, rows.total(), rows.before()}, work);
  if (error) return error;
  const int64_t n = int64_t{1} << tile_log;
  return transform_rows<C>({work, work, type_of<C>, rows.total() / n, n, 1.0}, nullptr, stream);
}

// Rows longer than a tile. If they are computed in their own type, `work` is the output.
template <class T>
const char* transform_long(const Rows<T>& rows, Arithmetic<T>* work, const Cut& cut,
                           Stream stream) {
  using C = Arithmetic<T>;
  const char* error = transform_low_levels(rows, work, cut.tile_log, stream);
  for (int pass = 0, log = cut.tile_log; pass < cut.passes && !error; ++pass) {
    const int levels = cut.levels[pass];
    error = pass + 1 < cut.passes
                ? transform_work<C>(work, rows.total(), log, levels, stream)
                : transform_columns<C>(Work<C>{work},
                                       StoreColumn<T>{rows.out, rows.scale(), rows.after()},
                                       rows.total(), log, levels, stream);
    log += levels;
  }
  return error;
}

// log2 of the longest rows that one tile holds on this device.
template <class T>
int longest_tile(const Device& device) {
  int log = 0;
  const auto try_log = [&](auto candidate) {
    if (RowTile<candidate, T, T>::bytes(false) <= device.shared) log = candidate;
    return static_cast<const char*>(nullptr);
  };
  for (int candidate = kShortLog<T> + 1; candidate <= kTileLogMost<T>; ++candidate)
    with_log<kShortLog<T> + 1, kTileLogMost<T>>(candidate, try_log);
  return log;
}

template <class T>
Cut cut_long_row(int log_n, const Device& device) {
  using C = Arithmetic<T>;
  const int most = longest_tile<T>(device), best = sizeof(T) == 8 ? 12 : 13;
  return cut_row(log_n, best < most ? best : most, most, most_column_levels<C>(device));
}

// Rows that follow each other. If they are longer than a tile, all of them have the same diagonals.
template <class T>
const char* transform_by_length(const Transform& t, void* workspace, Stream stream) {
  using C = Arithmetic<T>;
  const Rows<T> all{t, static_cast<const T*>(t.x), static_cast<T*>(t.out), t.rows};
  const int log_n = all.log_n();
  if (log_n <= kShortLog<T>)
    return with_log<0, kShortLog<T>>(
        log_n, [&](auto log) { return transform_short<log, T>(all, stream); });
  const Device device = device_facts(stream.device);
  if (log_n <= longest_tile<T>(device))
    return with_log<kShortLog<T> + 1, kTileLogMost<T>>(
        log_n, [&](auto log) { return transform_tiles_of<log, T>(all, stream); });
  const Cut cut = cut_long_row<T>(log_n, device);
  const int64_t wave = std::is_same_v<T, C> ? t.rows : wave_size(t.n, all.total()) / t.n;
  for (int64_t row = 0; row < t.rows; row += wave) {
    const int64_t here = row + wave < t.rows ? wave : t.rows - row;
    const Rows<T> rows{t, all.x + row * t.n, all.out + row * t.n, here};
    C* work = static_cast<C*>(workspace);
    if constexpr (std::is_same_v<T, C>) work = rows.out;
    if (const char* error = transform_long(rows, work, cut, stream)) return error;
  }
  return nullptr;
}

}  // namespace

template <class T>
int64_t rows_workspace(const Transform& t, int device) {
  using C = Arithmetic<T>;
  if (std::is_same_v<T, C> || log2_of(t.n) <= longest_tile<T>(device_facts(device))) return 0;
  return wave_size(t.n, t.rows * t.n) * static_cast<int64_t>(sizeof(C));
}

template <class T>
const char* transform_rows(const Transform& t, void* workspace, Stream stream) {
  const int log_n = log2_of(t.n);
  const bool one_tile = log_n <= longest_tile<T>(device_facts(stream.device));
  if (has_neighbours(t) &&
      (one_tile ? is_power_of_two(t.before_rows) && is_power_of_two(t.after_rows)
                : t.before_rows == 1 && t.after_rows == 1))
    return transform_by_length<T>(t, workspace, stream);
  bool fits = false;
  const char* error = transform_pitched<T>(t, log_n, stream, &fits);
  for (int64_t row = 0; row < t.rows && !fits && !error; ++row)
    error = transform_by_length<T>(row_of<T>(t, row), workspace, stream);
  return error;
}

// Only for the types that rows are computed in.
template <class C>
const char* transform_work(C* work, int64_t total, int log, int levels, Stream stream) {
  if constexpr (std::is_same_v<C, Arithmetic<C>>)
    return transform_columns<C>(Work<C>{work}, Work<C>{work}, total, log, levels, stream);
  __builtin_trap();
}

template const char* transform_work<FASTFOOD_TYPE>(FASTFOOD_TYPE*, int64_t, int, int, Stream);
template int64_t rows_workspace<FASTFOOD_TYPE>(const Transform&, int);
template const char* transform_rows<FASTFOOD_TYPE>(const Transform&, void*, Stream);

}  // namespace fastfood::cuda
