// hadamard_transform on the CPU. A row is transformed in phases: first chunks of consecutive
// entries, in registers and then depth first in cache; then the higher levels, over columns; the
// matrices of order K last. The last phase applies the scale and `after` and rounds on its way to
// the output. Each thread takes rows of its own; a row larger than a cache is worked on by all
// threads, phase by phase.
#include "fwht.h"

#include "mix.h"
#include "rows.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

// --- Rows in registers ---------------------------------------------------------------------------

// The levels of all strides in [stride, n) inside each of N vectors. Each level is done for all of
// them before the next one, so that the processor always has independent work.
template <int n, int stride = 1, int N, class V>
FASTFOOD_INLINE void lane_levels(V (&x)[N]) {
  if constexpr (stride < n) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = lane_level<stride>(x[i]);
    lane_levels<n, 2 * stride>(x);
  }
}

// All levels of one tile, of kVectors vectors: loads entries first, first + 1, ... and stores them
// as entries to, to + 1, ...
template <int kVectors, class T, class Load, class Store>
FASTFOOD_INLINE void transform_tile(const Load& load_entries, int64_t first, const Store& store,
                                    int64_t to) {
  constexpr int lanes = kLanes<T>;
  load_entries.template fetch<kVectors>(first);
  Vector<T> r[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) r[i] = load_entries.first_level(first + i * lanes);
  lane_levels<lanes, 2>(r);
  butterflies<kVectors>(r);
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) store(to + i * lanes, r[i]);
}

// Calls f(std::integral_constant) for `value`, a power of two of at most kMost.
template <int kMost, int k = 1, class F>
FASTFOOD_INLINE void with_power(int64_t value, F f) {
  if (value == k) return f(std::integral_constant<int, k>{});
  if constexpr (k < kMost) with_power<kMost, 2 * k>(value, f);
}

// Fills one vector with the factors of entries first, first + 1, ... of `count`, in rows of n. With
// pitch 0 all rows have the same n factors, else each entry has its own.
template <class T>
void repeat_factors(const T* diagonal, int64_t pitch, int64_t n, int64_t first, int64_t count,
                    T* factors) {
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const int64_t place = pitch ? first + i : i % n;
    factors[i] = place < count ? diagonal[place] : T{0};
  }
}

// Neighbouring rows of at most one vector, several of them in each vector. The last vector is
// filled up with zeros.
template <class S>
void transform_short_rows(const Transform& t, const Stretch& s) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  const int64_t count = s.rows * t.n, whole = count / lanes * lanes, rest = count - whole;
  const auto transform_all = [&](const Transform& of, const Stretch& at, int64_t end) {
    with_power<lanes>(t.n, [&](auto n) {
      with_diagonals<S>(of, at, 0, [&](const auto& load_entries, const auto& store_entries) {
        for (int64_t i = 0; i < end; i += lanes) {
          load_entries.template fetch<1>(i);
          Vector<T> r[1] = {load_entries(i)};
          lane_levels<decltype(n)::value>(r);
          store_entries(i, r[0]);
        }
      });
    });
  };
  Transform of = t;
  Stretch at = s;
  T before[lanes], after[lanes];
  // Replaces a diagonal by one vector of factors, unless it is null or long enough as it is.
  const auto repeat = [&](int64_t first, const void* given, int64_t pitch, int64_t from, T* factors,
                          const void** values, int64_t* place) {
    if (!given || (pitch && first < whole)) return;
    repeat_factors(static_cast<const T*>(given) + from, pitch, t.n, first, count, factors);
    *values = factors;
    *place = 0;
  };
  const auto repeat_both = [&](int64_t first) {
    repeat(first, t.before, s.before_pitch, s.before, before, &of.before, &at.before);
    repeat(first, t.after, s.after_pitch, s.after, after, &of.after, &at.after);
  };
  repeat_both(0);
  if (whole) transform_all(of, at, whole);
  if (!rest) return;
  S last[lanes] = {};
  const S* x = static_cast<const S*>(t.x) + s.x + whole;
  S* out = static_cast<S*>(t.out) + s.out + whole;
  for (int64_t i = 0; i < rest; ++i) last[i] = x[i];
  repeat_both(whole);
  of.x = of.out = last;
  at.x = at.out = 0;
  transform_all(of, at, rest);
  for (int64_t i = 0; i < rest; ++i) out[i] = last[i];
}

// --- Phases of a row -----------------------------------------------------------------------------

// The sizes of a row, n = K_1 K_0 m entries with m a power of two, and of the chunks into which its
// first phase cuts m.
template <class T>
struct RowSizes {
  int64_t n, m, chunk;
  explicit RowSizes(const Transform& t, int64_t chunk_bytes = cpu::caches().second)
      : n(t.n), m(t.n) {
    for (const SignMatrix* factor : t.factors)
      if (factor) m /= factor->K;
    chunk = chunk_of<T>(m, chunk_bytes);
  }
};

// Distances from one chunk to the next, in a row or in a stretch of rows that are a chunk each.
struct Pitches {
  int64_t x, out, before, after;
};

// Chunks [begin, end) of kTiles tiles of kVectors vectors; chunk p is worked on at work + p * step.
// Arguments are passed by value: vectors are may_alias, so the compiler would load whatever is
// reached by reference again after every store.
template <int kVectors, int kTiles, class T, class Load, class Store>
__attribute__((noinline)) void transform_small(T* work, int64_t step, int64_t begin, int64_t end,
                                               Load load_entries, Store store, Pitches pitches) {
  constexpr int64_t kTile = kVectors * kLanes<T>, kChunk = kTiles * kTile;
  for (int64_t p = begin; p < end; ++p) {
    const Load from = load_entries.from(p * pitches.x, p * pitches.before);
    const Store to = store.from(p * pitches.out, p * pitches.after);
    if constexpr (kTiles == 1) {
      transform_tile<kVectors, T>(from, 0, to, 0);
    } else {
      T* here = work + p * step;
      for (int64_t j = 0; j < kChunk; j += kTile)
        transform_tile<kVectors, T>(from, j, StoreWork<T>{here}, j);
      radix_pass<kTiles, true>(here, 0, kTile, kTile, kTile, to);
    }
  }
}

// Chunks of at most this many entries pass through registers once or twice.
template <class T>
constexpr int64_t kSmall = kRadix * kRadix * kLanes<T>;

// The levels of strides below `chunk`, at least one vector, for chunks [begin, end). `work` and
// `step` as above; chunks of more than kSmall entries have to be those of one row, with step ==
// chunk.
template <class T, class Load, class Store>
void transform_chunks(T* work, int64_t step, int64_t chunk, int64_t begin, int64_t end,
                      Load load_entries, Store store, Pitches pitches) {
  constexpr int64_t kTile = kRadix * kLanes<T>;
  if (chunk <= kTile) {
    with_power<kRadix>(chunk / kLanes<T>, [=](auto vectors) {
      transform_small<decltype(vectors)::value, 1>(work, step, begin, end, load_entries, store,
                                                   pitches);
    });
  } else if (chunk <= kSmall<T>) {
    with_power<kRadix>(chunk / kTile, [=](auto tiles) {
      transform_small<kRadix, decltype(tiles)::value>(work, step, begin, end, load_entries, store,
                                                      pitches);
    });
  } else {
    const auto tile = [=](int64_t i) {
      transform_tile<kRadix, T>(load_entries, i, StoreWork<T>{work}, i);
    };
    for (int64_t i = begin * chunk; i < end * chunk; i += chunk)
      transform_levels(work, i, kTile, chunk, tile, store);
  }
}

// One row, phase by phase: the last phase stores to the output, the others to `work`.
template <class T, class Load, class Store, class Phases>
void transform_row(const Transform& t, T* work, const Load& load_entries,
                   const Store& store_entries, Phases phases) {
  const RowSizes<T> sizes(t, phases.chunk_bytes(t.n * static_cast<int64_t>(sizeof(T))));
  int64_t stride = sizes.chunk;
  const auto phase = [&](int64_t count, int64_t next, auto body) {
    stride = next;
    phases(count, [&](int64_t begin, int64_t end) {
      if (next == t.n)
        body(begin, end, store_entries);
      else
        body(begin, end, StoreWork<T>{work});
    });
  };
  phase(t.n / stride, stride, [&](int64_t begin, int64_t end, auto store) {
    transform_chunks(work, sizes.chunk, sizes.chunk, begin, end, load_entries, store,
                     Pitches{sizes.chunk, sizes.chunk, sizes.chunk, sizes.chunk});
  });
  while (stride < sizes.m) {
    const int64_t here = stride, radix = phase_radix<T>(here, sizes.m);
    phase(t.n / radix / kLanes<T>, here * radix, [&](int64_t begin, int64_t end, auto store) {
      transform_columns(work, here, radix, begin, end, store);
    });
  }
  for (const SignMatrix* factor : t.factors) {
    if (!factor) continue;
    const int64_t here = stride;
    phase(t.n / factor->K / kLanes<T>, here * factor->K,
          [&](int64_t begin, int64_t end, auto store) {
            mix_columns(work, *factor, here, begin, end, store);
          });
  }
}

// --- Rows side by side ---------------------------------------------------------------------------

// Where rows [first, first + count) and their diagonals begin, one row for each lane.
template <class S>
struct Lanes {
  using T = Arithmetic<S>;
  int64_t n, count;
  const S* x[kLanes<T>];
  S* out[kLanes<T>];
  const T *before[kLanes<T>], *after[kLanes<T>];

  Lanes(const Transform& t, int64_t first, int64_t rows) : n(t.n), count(rows) {
    for (int64_t k = 0; k < rows; ++k) {
      const Stretch s = stretch_of(t, first + k, 1);
      x[k] = static_cast<const S*>(t.x) + s.x;
      out[k] = static_cast<S*>(t.out) + s.out;
      before[k] = t.before ? static_cast<const T*>(t.before) + s.before : nullptr;
      after[k] = t.after ? static_cast<const T*>(t.after) + s.after : nullptr;
    }
  }
};

// Copies entry i of row k, times before[i], to lane k of vector i; lanes without a row get zeros.
template <class S, class T>
void rows_to_vectors(const Lanes<S>& rows, T* work) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = rows.n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    Vector<T> r[lanes];
    for (int64_t k = 0; k < lanes; ++k) {
      r[k] = k < rows.count ? load_wide(rows.x[k] + i) : Vector<T>{};
      if (k < rows.count && rows.before[k]) r[k] *= load(rows.before[k] + i);
    }
    store_lanes(r, i, work);
  }
  for (int64_t i = whole; i < rows.n; ++i)
    for (int64_t k = 0; k < lanes; ++k) {
      const T value = k < rows.count ? widen(rows.x[k][i]) : T{0};
      work[i * lanes + k] = k < rows.count && rows.before[k] ? value * rows.before[k][i] : value;
    }
}

// Copies lane k of vector i back to entry i of row k, times scale and after[i].
template <class S, class T>
void vectors_to_rows(const T* work, T scale, const Lanes<S>& rows) {
  constexpr int lanes = kLanes<T>;
  const int64_t whole = rows.n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    Vector<T> r[lanes];
    load_lanes(work, i, r);
    for (int64_t k = 0; k < rows.count; ++k) {
      const Vector<T> scaled = r[k] * scale;
      store_narrow(rows.out[k] + i, rows.after[k] ? scaled * load(rows.after[k] + i) : scaled);
    }
  }
  for (int64_t i = whole; i < rows.n; ++i)
    for (int64_t k = 0; k < rows.count; ++k) {
      const T value = work[i * lanes + k] * scale;
      narrow(rows.after[k] ? value * rows.after[k][i] : value, &rows.out[k][i]);
    }
}

// Rows whose chunks are shorter than a vector, because m is: as many rows side by side as a vector
// has lanes.
template <class S>
void transform_side_by_side(const Transform& t, int64_t first, int64_t count, Arithmetic<S>* work) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  const RowSizes<T> sizes(t);
  const Lanes<S> rows(t, first, count);
  rows_to_vectors(rows, work);
  for (int64_t i = 0; i < t.n; i += sizes.m) transform_vectors(work + i * lanes, sizes.m);
  int64_t stride = sizes.m;
  for (const SignMatrix* factor : t.factors) {
    if (!factor) continue;
    mix_columns(work, *factor, stride * lanes, 0, t.n / factor->K, StoreWork<T>{work});
    stride *= factor->K;
  }
  vectors_to_rows(work, static_cast<T>(t.scale), rows);
}

// --- All rows ------------------------------------------------------------------------------------

// Rows [begin, end) of 2^k entries, at least one vector and at most kSmall.
template <class S>
void transform_small_rows(const Transform& t, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  // Whether rows are worked on in the output itself; if not, all of them share one place.
  constexpr bool own = std::is_same<S, T>::value;
  alignas(64) T shared[own ? 1 : kSmall<T>];
  for_each_stretch(t, begin, end, [&](const Stretch& s) {
    T* work = own ? reinterpret_cast<T*>(static_cast<S*>(t.out) + s.out) : shared;
    with_diagonals<S>(t, s, -1, [=](const auto& load_entries, const auto& store_entries) {
      transform_chunks<T>(work, own ? s.out_pitch : 0, t.n, 0, s.rows, load_entries, store_entries,
                          Pitches{s.x_pitch, s.out_pitch, s.before_pitch, s.after_pitch});
    });
  });
}

// Memory to work on `entries` values in the type that they are computed in: the output itself, if
// it has that type.
template <class S>
class WorkSpace {
 public:
  using T = Arithmetic<S>;
  explicit WorkSpace(int64_t entries)
      : scratch_(std::is_same<S, T>::value ? 0 : entries * static_cast<int64_t>(sizeof(T))) {}
  T* at(S* out) const {
    if constexpr (std::is_same<S, T>::value) return out;
    return scratch_.template as<T>();
  }

 private:
  Scratch scratch_;
};

// Rows [begin, end), one after the other.
template <class S, class Phases>
void transform_long_rows(const Transform& t, int64_t begin, int64_t end, Phases phases) {
  const WorkSpace<S> work(t.n);
  for_each_stretch(t, begin, end, [&](const Stretch& s) {
    S* out = static_cast<S*>(t.out) + s.out;
    with_diagonals<S>(t, s, -1, [&](const auto& load_entries, const auto& store_entries) {
      for (int64_t row = 0; row < s.rows; ++row)
        transform_row(t, work.at(out + row * s.out_pitch),
                      load_entries.from(row * s.x_pitch, row * s.before_pitch),
                      store_entries.from(row * s.out_pitch, row * s.after_pitch), phases);
    });
  });
}

// Chooses by the length of rows how they are transformed, and gives them to the threads.
template <class S>
void transform_rows(const Transform& t, cpu::ParallelFor parallel, cpu::Threads threads) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  const RowSizes<T> sizes(t);
  const int64_t grain = t.n >= kGrain ? 1 : kGrain / t.n;

  if (sizes.m == t.n && t.n <= lanes) {  // several rows in a vector
    auto body = [&](int64_t begin, int64_t end) {
      for_each_run(t, begin, end, [&](const Stretch& s) { transform_short_rows<S>(t, s); });
    };
    return for_each_range(parallel, t.rows, grain, body);
  }
  if (sizes.m < lanes) {  // no whole vector before the matrices of order K
    auto body = [&](int64_t begin, int64_t end) {
      Scratch scratch(t.n * kVectorBytes);
      for (int64_t row = begin * lanes; row < end * lanes && row < t.rows; row += lanes)
        transform_side_by_side<S>(t, row, t.rows - row < lanes ? t.rows - row : lanes,
                                  scratch.as<T>());
    };
    return for_each_range(parallel, (t.rows + lanes - 1) / lanes, (grain + lanes - 1) / lanes,
                          body);
  }
  if (t.n == sizes.m && t.n <= kSmall<T>) {  // one chunk, two passes through registers
    auto body = [&](int64_t begin, int64_t end) { transform_small_rows<S>(t, begin, end); };
    return for_each_range(parallel, t.rows, grain, body);
  }
  if (fits<T>(t.n, cpu::caches().second)) {  // a row in the cache of one thread
    auto body = [&](int64_t begin, int64_t end) { transform_long_rows<S>(t, begin, end, Alone{}); };
    return for_each_range(parallel, t.rows, grain, body);
  }
  transform_long_rows<S>(t, 0, t.rows, Together{parallel, threads()});
}

}  // namespace

void transform(const Transform& t, cpu::ParallelFor parallel, cpu::Threads threads) {
  with_type(t.type, [&](auto s) { transform_rows<decltype(s)>(t, parallel, threads); });
}

}  // namespace fastfood::FASTFOOD_ISA
