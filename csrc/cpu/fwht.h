// The Walsh-Hadamard butterflies over long arrays, for the levels whose stride is one vector or
// more. They run in ascending order: several levels a pass, in registers, and depth first, so that
// each part of an array is finished while it is in cache. For strides larger than a cache some
// columns at a time are copied to a buffer.
#pragma once

#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

constexpr int kRadix =
    kVectorBytes == 64 ? 16 : 8;  // vectors that fit registers, with some to spare

template <class T>
FASTFOOD_INLINE bool fits(int64_t entries, int64_t cache) {
  return entries * static_cast<int64_t>(sizeof(T)) <= cache;
}

// The entries of a chunk, the part of n entries that one thread works on alone, within so many
// bytes of a cache. If the last cache holds all n, n is cut by eighths, for three levels are one
// pass over it; else by halves, to the largest chunk that fits.
template <class T>
FASTFOOD_INLINE int64_t chunk_of(int64_t n, int64_t bytes = cpu::caches().second) {
  const int64_t parts = fits<T>(n, cpu::caches().last) ? 8 : 2;
  while (!fits<T>(n, bytes)) n /= parts;
  return n;
}

// The two ways to run a phase, which is f(begin, end) for all of [0, count): in this thread, or in
// many threads.
struct Alone {
  template <class F>
  void operator()(int64_t count, F f) const {
    f(0, count);
  }
  int64_t chunk_bytes(int64_t) const { return cpu::caches().second; }
};
struct Together {
  cpu::ParallelFor parallel;
  int64_t threads = 1;
  template <class F>
  void operator()(int64_t count, F f) const {
    for_each_range(parallel, count, 1 + count / 256, f);
  }
  // The bytes that a chunk of a row of row_bytes may have. If threads are few, the share of the
  // last cache that each has is larger than its second cache, and larger chunks leave fewer levels
  // for passes over memory. Each thread gets at least two chunks.
  int64_t chunk_bytes(int64_t row_bytes) const {
    const int64_t quarter = cpu::caches().last / 4, half = row_bytes / 2;
    const int64_t share = (half < quarter ? half : quarter) / threads;
    return share < cpu::caches().second ? cpu::caches().second : share;
  }
};

// A Store without scale and diagonal: entry i of the transform goes to work[i].
template <class T>
struct StoreWork {
  T* work;
  FASTFOOD_INLINE_MEMBER void operator()(int64_t i, Vector<T> r) const { store(work + i, r); }
  StoreWork from(int64_t i, int64_t) const { return {work + i}; }
};

// The levels of strides 1, 2, ... N / 2 over N values in registers.
template <int N, class V>
FASTFOOD_INLINE void butterflies(V* x) {
#pragma GCC unroll 8
  for (int stride = 1; stride < N; stride *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (i & stride) continue;
      const V sum = x[i] + x[i + stride];
      x[i + stride] = x[i] - x[i + stride];
      x[i] = sum;
    }
  }
}

// One pass: the levels of strides stride, 2 stride, ... R stride / 2 for columns [first, end) of R
// rows. Rows lie `stride` entries apart in `work`, and `to` entries apart where `store` puts them.
// kStays says that to == stride, which takes fewer registers.
template <int R, bool kStays, class T, class Store>
FASTFOOD_INLINE void radix_pass(const T* work, int64_t first, int64_t end, int64_t stride,
                                int64_t to, Store store) {
  for (int64_t j = first; j < end; j += kLanes<T>) {
    Vector<T> r[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) r[i] = load(work + i * stride + j);
    butterflies<R>(r);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) store(i * (kStays ? stride : to) + j, r[i]);
  }
}

// The same for a radix known at run time: 2, 4, 8 or kRadix.
template <bool kStays, class T, class Store>
__attribute__((noinline)) void move_pass(const T* work, int64_t first, int64_t end, int64_t stride,
                                         int64_t to, int64_t radix, Store store) {
  if (radix == 2) return radix_pass<2, kStays>(work, first, end, stride, to, store);
  if (radix == 4) return radix_pass<4, kStays>(work, first, end, stride, to, store);
  if (radix == 8) return radix_pass<8, kStays>(work, first, end, stride, to, store);
  radix_pass<kRadix, kStays>(work, first, end, stride, to, store);
}
template <class T, class Store>
FASTFOOD_INLINE void run_pass(const T* work, int64_t first, int64_t end, int64_t stride,
                              int64_t radix, Store store) {
  move_pass<true>(work, first, end, stride, stride, radix, store);
}

// If `levels` levels are to take as few passes as possible, of at most `most` levels each, and
// about as many in each: the radix of the first pass.
FASTFOOD_INLINE int64_t radix_of(int levels, int most) {
  const int passes = (levels + most - 1) / most;
  return int64_t{1} << (levels + passes - 1) / passes;
}

// The most levels of a pass over rows that are 4 KB or more apart. Such rows compete for the same
// sets of a cache.
constexpr int kFarLevels = 3;

// The radix of the next pass if the levels of all strides in [stride, n) are left.
template <class T>
FASTFOOD_INLINE int64_t next_radix(int64_t stride, int64_t n) {
  const bool far = stride * static_cast<int64_t>(sizeof(T)) >= 4096;
  return radix_of(log2_of(n) - log2_of(stride), far ? kFarLevels : log2_of(kRadix));
}

// The levels of strides in [from, n) over entries [first, first + n), depth first. prepare(i)
// leaves entries [i, i + from) in `work` with the levels below done; the last pass gives the
// results to `store`. n > from >= one vector.
template <class T, class Prepare, class Store>
static void transform_levels(T* work, int64_t first, int64_t from, int64_t n, Prepare prepare,
                             Store store) {
  int64_t stride = !fits<T>(n, cpu::caches().first) && n / 8 >= from ? n / 8 : from;
  for (int64_t i = first; i < first + n; i += stride) {
    if (stride == from)
      prepare(i);
    else
      transform_levels(work, i, from, stride, prepare, StoreWork<T>{work});
  }
  while (stride < n) {
    const int64_t radix = next_radix<T>(stride, n);
    for (int64_t i = first; i < first + n; i += radix * stride) {
      if (radix * stride < n)
        run_pass(work, i, i + stride, stride, radix, StoreWork<T>{work});
      else
        run_pass(work, i, i + stride, stride, radix, store);
    }
    stride *= radix;
  }
}

// A Load or a Store whose entry 0 is entry i of f.
template <class F>
struct From {
  F f;
  int64_t i;
  template <class... R>
  FASTFOOD_INLINE_MEMBER auto operator()(int64_t j, R... r) const {
    return f(i + j, r...);
  }
};

constexpr int64_t kColumnBytes = 512;  // of a row, the fewest that are copied at once

FASTFOOD_INLINE int64_t buffer_bytes() { return cpu::caches().second / 2; }

// The radix of the next phase if the levels of all strides in [stride, n) are left. Within the last
// cache one more sweep costs less than copies to a buffer.
template <class T>
FASTFOOD_INLINE int64_t phase_radix(int64_t stride, int64_t n) {
  const bool near = fits<T>(n, cpu::caches().last);
  return radix_of(log2_of(n) - log2_of(stride),
                  near ? kFarLevels : log2_of(buffer_bytes() / kColumnBytes));
}

// The levels of strides stride, ... radix stride / 2 for columns [first, end) of `radix` rows. Some
// neighbouring columns at a time go through a buffer, so that one sweep over memory does all
// levels.
template <class T, class Store>
static void transform_buffered(const T* work, int64_t first, int64_t end, int64_t stride,
                               int64_t radix, Store store) {
  constexpr int64_t kFirst = 1 << kFarLevels, kSize = sizeof(T);
  const int64_t columns = buffer_bytes() / kSize / radix;
  const int64_t pitch = columns + kLanes<T>;  // rows lie in different sets of a cache
  Scratch scratch(radix * pitch * kSize);
  T* buffer = scratch.as<T>();
  for (int64_t j = first; j < end; j += columns) {
    const int64_t here = end - j < columns ? end - j : columns;
    for (int64_t row = 0; row < radix; row += kFirst)
      move_pass<false>(work + row * stride + j, 0, here, stride, pitch, kFirst,
                       StoreWork<T>{buffer + row * pitch});
    for (int64_t rows = kFirst; rows < radix;) {
      const int64_t next = radix_of(log2_of(radix / rows), kFarLevels), block = next * rows;
      for (int64_t k = 0; k < radix / next; ++k) {
        const int64_t row = k / rows * block + k % rows;
        T* from = buffer + row * pitch;
        if (block < radix)
          run_pass(from, 0, here, rows * pitch, next, StoreWork<T>{from});
        else
          move_pass<false>(from, 0, here, rows * pitch, rows * stride, next,
                           From<Store>{store, row * stride + j});
      }
      rows = block;
    }
  }
}

// The levels of strides stride, ... radix stride / 2 for vectors [begin, end) of columns. Columns
// are counted through one group of radix * stride entries after the other.
template <class T, class Store>
static void transform_columns(const T* work, int64_t stride, int64_t radix, int64_t begin,
                              int64_t end, const Store& store) {
  constexpr int64_t lanes = kLanes<T>;
  const int log = log2_of(stride / lanes);
  while (begin < end) {
    const int64_t row = begin >> log, next = (row + 1) << log, stop = next < end ? next : end;
    const int64_t column = (row * (radix - 1) << log);
    const int64_t from = (begin + column) * lanes, to = (stop + column) * lanes;
    if (radix <= int64_t{1} << kFarLevels)
      run_pass(work, from, to, stride, radix, store);
    else
      transform_buffered(work, from, to, stride, radix, store);
    begin = stop;
  }
}

// The levels of strides in [from, n) over n entries, phase by phase; `prepare` as above.
template <class T, class Prepare, class Phases>
static void transform_in_phases(T* work, int64_t from, int64_t n, Prepare prepare, Phases phases) {
  const int64_t chunk = chunk_of<T>(n);
  phases(n / chunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      transform_levels(work, i * chunk, from, chunk, prepare, StoreWork<T>{work});
  });
  for (int64_t stride = chunk; stride < n;) {
    const int64_t radix = phase_radix<T>(stride, n);
    phases(n / radix / kLanes<T>, [=](int64_t begin, int64_t end) {
      transform_columns(work, stride, radix, begin, end, StoreWork<T>{work});
    });
    stride *= radix;
  }
}

// H_count over the `count` vectors at x, in place, each lane a transform of its own; count a power
// of two.
template <class T, class Phases = Alone>
static void transform_vectors(T* x, int64_t count, Phases phases = {}) {
  if (count > 1) transform_in_phases(x, kLanes<T>, count * kLanes<T>, [](int64_t) {}, phases);
}

}  // namespace fastfood::FASTFOOD_ISA
