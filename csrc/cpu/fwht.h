// The Walsh-Hadamard butterflies over long arrays: whole vectors, at strides from one vector on.
// Levels run in ascending stride order, several at a time in registers and depth first, so that
// every piece is finished while it is in cache.
#pragma once

#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

constexpr int kRadix = kVectorBytes == 64 ? 16 : 8;  // vectors that registers hold, with room left

// Entries of a first-level cache, within which levels run one after the other.
template <class T>
constexpr int64_t kInCache = 32768 / static_cast<int64_t>(sizeof(T));

constexpr int64_t kPieceBytes = 1024 * 1024;  // a second-level cache

// The largest part of n entries that fits it, as transform_levels divides them.
template <class T>
FASTFOOD_INLINE int64_t piece_of(int64_t n) {
  while (n * static_cast<int64_t>(sizeof(T)) > kPieceBytes) n /= 8;
  return n;
}

// The ways to do a phase, which is f(begin, end) for all of [0, count): in this thread, or in many.
struct Alone {
  template <class F>
  void operator()(int64_t count, F f) const {
    f(0, count);
  }
};
struct Together {
  cpu::ParallelFor parallel;
  template <class F>
  void operator()(int64_t count, F f) const {
    for_each_range(parallel, count, 1 + count / 256, f);
  }
};

// Leaves entry i of the transform at work[i].
template <class T>
struct Keep {
  T* work;
  FASTFOOD_INLINE_MEMBER void operator()(int64_t i, Vector<T> r) const { store(work + i, r); }
  Keep from(int64_t i) const { return {work + i}; }
};

// The levels of strides 1, 2, ... N / 2 over N values.
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

// The levels of strides stride, ... R stride / 2 for columns [first, end) of R rows of `stride`
// entries.
template <int R, class T, class Store>
FASTFOOD_INLINE void radix_pass(const T* work, int64_t first, int64_t end, int64_t stride,
                                Store store) {
  for (int64_t j = first; j < end; j += kLanes<T>) {
    Vector<T> r[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) r[i] = load(work + i * stride + j);
    butterflies<R>(r);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) store(i * stride + j, r[i]);
  }
}

// The same for a radix known at run time: 2, 4, 8 or kRadix.
template <class T, class Store>
__attribute__((noinline)) void run_pass(const T* work, int64_t first, int64_t end, int64_t stride,
                                        int64_t radix, Store store) {
  if (radix == 2) return radix_pass<2>(work, first, end, stride, store);
  if (radix == 4) return radix_pass<4>(work, first, end, stride, store);
  if (radix == 8) return radix_pass<8>(work, first, end, stride, store);
  radix_pass<kRadix>(work, first, end, stride, store);
}

FASTFOOD_INLINE int log2_of(int64_t power) {
  return __builtin_ctzll(static_cast<unsigned long long>(power));
}

// The radix of the next pass, where those of all strides in [stride, n) are to come. From 4 KB on
// all rows fall into one set of the first-level cache, which holds eight.
template <class T>
FASTFOOD_INLINE int64_t next_radix(int64_t stride, int64_t n) {
  const int most = stride * static_cast<int64_t>(sizeof(T)) < 4096 && kRadix == 16 ? 4 : 3;
  const int levels = log2_of(n) - log2_of(stride);
  const int passes = (levels + most - 1) / most;
  return int64_t{1} << (levels + passes - 1) / passes;
}

// The levels of strides in [from, n) over entries [first, first + n): prepare(i) makes those below
// in work[i, i + from), and what is done goes to `store`. n > from >= one vector.
template <class T, class Prepare, class Store>
static void transform_levels(T* work, int64_t first, int64_t from, int64_t n, Prepare prepare,
                             Store store) {
  int64_t stride = n > kInCache<T> && n / 8 >= from ? n / 8 : from;
  for (int64_t i = first; i < first + n; i += stride) {
    if (stride == from)
      prepare(i);
    else
      transform_levels(work, i, from, stride, prepare, Keep<T>{work});
  }
  while (stride < n) {
    const int64_t radix = next_radix<T>(stride, n);
    for (int64_t i = first; i < first + n; i += radix * stride) {
      if (radix * stride < n)
        run_pass(work, i, i + stride, stride, radix, Keep<T>{work});
      else
        run_pass(work, i, i + stride, stride, radix, store);
    }
    stride *= radix;
  }
}

// The levels of strides stride, ... radix stride / 2 over vectors [begin, end) of columns, those of
// a row's first radix stride entries first.
template <class T, class Store>
static void transform_columns(const T* work, int64_t stride, int64_t radix, int64_t begin,
                              int64_t end, const Store& store) {
  constexpr int64_t lanes = kLanes<T>;
  const int log = log2_of(stride / lanes);
  while (begin < end) {
    const int64_t row = begin >> log, next = (row + 1) << log, stop = next < end ? next : end;
    const int64_t column = (row * (radix - 1) << log);
    run_pass(work, (begin + column) * lanes, (stop + column) * lanes, stride, radix, store);
    begin = stop;
  }
}

// The levels of strides in [from, n) over n entries, phase by phase; prepare as above.
template <class T, class Prepare, class Phases>
static void transform_in_phases(T* work, int64_t from, int64_t n, Prepare prepare, Phases phases) {
  const int64_t piece = piece_of<T>(n);
  phases(n / piece, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      transform_levels(work, i * piece, from, piece, prepare, Keep<T>{work});
  });
  for (int64_t stride = piece; stride < n;) {
    const int64_t radix = next_radix<T>(stride, n);
    phases(n / radix / kLanes<T>, [=](int64_t begin, int64_t end) {
      transform_columns(work, stride, radix, begin, end, Keep<T>{work});
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
