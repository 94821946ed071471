// How the rows of a transform are loaded and stored: stretch by stretch of evenly spaced rows, each
// entry times its factors of the diagonals.
#pragma once

#include "../places.h"
#include "fwht.h"

namespace fastfood::FASTFOOD_ISA {

// The Load of rows stored as S, times `before` if kDiagonal.
template <class S, bool kDiagonal>
struct LoadRows {
  using T = Arithmetic<S>;
  const S* x;
  const T* before;
  int64_t mask;     // all ones, or zero if one vector of factors serves all entries
  uintptr_t ahead;  // how many bytes ahead to prefetch; zero: not at all

  template <int kVectors>
  FASTFOOD_INLINE_MEMBER void fetch(int64_t i) const {
    if (!ahead) return;
    constexpr int bytes = kVectors * kLanes<T> * static_cast<int>(sizeof(S));
    const char* later = reinterpret_cast<const char*>(x + i) + ahead;
#pragma GCC unroll 16
    for (int k = 0; k < bytes; k += 64) __builtin_prefetch(later + k);
  }
  FASTFOOD_INLINE_MEMBER Vector<T> operator()(int64_t i) const {
    Vector<T> r = load_wide(x + i);
    if constexpr (kDiagonal) r *= load(before + (i & mask));
    return r;
  }
  // Loads a vector and does the level of stride one.
  FASTFOOD_INLINE_MEMBER Vector<T> first_level(int64_t i) const {
    if constexpr (std::is_same<S, T>::value && !kDiagonal)
      return load_first_level(x + i);
    else
      return lane_level<1>((*this)(i));
  }
  // The same for a row i entries further on, whose factors are j further on.
  LoadRows from(int64_t i, int64_t j) const { return {x + i, before + j, mask, ahead}; }
};

// The Store of rows: times scale, times `after` if kDiagonal, and rounded to S.
template <class S, bool kDiagonal>
struct StoreRows {
  using T = Arithmetic<S>;
  S* out;
  const T* after;
  int64_t mask;
  T scale;

  FASTFOOD_INLINE_MEMBER void operator()(int64_t i, Vector<T> r) const {
    r *= scale;
    if constexpr (kDiagonal) r *= load(after + (i & mask));
    store_narrow(out + i, r);
  }
  StoreRows from(int64_t i, int64_t j) const { return {out + i, after + j, mask, scale}; }
};

// Calls f with the Load and the Store of a stretch's first row, specialised for what is there to
// multiply. `mask` is for diagonals that begin anew with each row: entry i has factor i & mask.
template <class S, class F>
FASTFOOD_INLINE void with_diagonals(const Transform& t, const Stretch& s, int64_t mask, F f) {
  using T = Arithmetic<S>;
  const S* x = static_cast<const S*>(t.x) + s.x;
  S* out = static_cast<S*>(t.out) + s.out;
  const T* before = static_cast<const T*>(t.before) + s.before;
  const T* after = static_cast<const T*>(t.after) + s.after;
  const int64_t before_mask = s.before_pitch ? -1 : mask, after_mask = s.after_pitch ? -1 : mask;
  const T scale = static_cast<T>(t.scale);
  const bool far = !fits<S>(t.rows * t.n, cpu::caches().second) && cpu::prefetches();
  const int64_t rows_ahead_bytes = cpu::caches().first / 2 * s.x_pitch / t.n;
  const uintptr_t ahead = far ? static_cast<uintptr_t>(rows_ahead_bytes) : 0;
  const LoadRows<S, true> load_diagonal{x, before, before_mask, ahead};
  const LoadRows<S, false> load_plain{x, before, before_mask, ahead};
  const StoreRows<S, true> store_diagonal{out, after, after_mask, scale};
  const StoreRows<S, false> store_plain{out, after, after_mask, scale};
  const auto with_store = [&](const auto& load_entries) {
    if (t.after)
      f(load_entries, store_diagonal);
    else if (scale != T{1} || !std::is_same<S, T>::value)
      f(load_entries, store_plain);
    else
      f(load_entries, StoreWork<T>{reinterpret_cast<T*>(out)});
  };
  t.before ? with_store(load_diagonal) : with_store(load_plain);
}

// Calls f with stretches that cover rows [begin, end).
template <class F>
void for_each_stretch(const Transform& t, int64_t begin, int64_t end, F f) {
  while (begin < end) {
    const Stretch s = stretch_of(t, begin, end - begin);
    f(s);
    begin += s.rows;
  }
}

// The same with stretches whose rows follow each other without gaps.
template <class F>
void for_each_run(const Transform& t, int64_t begin, int64_t end, F f) {
  for_each_stretch(t, begin, end, [&](Stretch s) {
    if (s.x_pitch == t.n && s.out_pitch == t.n) return f(s);
    const int64_t rows = s.rows;
    s.rows = 1;
    for (int64_t row = 0; row < rows; ++row) {
      f(s);
      s.x += s.x_pitch;
      s.out += s.out_pitch;
      s.before += s.before_pitch;
      s.after += s.after_pitch;
    }
  });
}

}  // namespace fastfood::FASTFOOD_ISA
