// The Fastfood projection on the CPU (definitions.h). A block is worked on as kLanes sub-blocks of
// consecutive rows side by side: row k S + j of the block, with S = L / kLanes, is lane k of vector
// j. One Philox vector then serves all sub-blocks, and levels inside them need no shuffles. A
// square of vectors is transposed where it becomes memory: its vectors are then consecutive rows,
// one of each sub-block, and the remaining levels run between them.
#include "fwht.h"
#include "normals.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

constexpr int64_t kParts = 64;              // partial sums of the adjoint, whatever the threads,
constexpr int64_t kPartEntries = 1 << 20;   // and the most that they hold together
constexpr int kSplit = 16;                  // rows apart by L / kSplit start an adjoint
constexpr int64_t kStreamed = 1024 * 1024;  // bytes of output that go past the caches

// Calls of stream G for blocks of L: lane k is sub-block k.
template <class T>
Calls calls_of_blocks(uint64_t seed, int64_t L) {
  return Calls(seed, static_cast<uint32_t>(Stream::G),
               static_cast<uint64_t>(L / kLanes<T> / kHalves));
}

FASTFOOD_INLINE void convert(Float z, Float* out) { *out = z; }
FASTFOOD_INLINE void convert(Float z, Vector<double>* out) {
  for (int i = 0; i < kLanes<double>; ++i) (*out)[i] = z[i];
}

// kCount vectors of G, from row `row` of the projection in lane 0 on.
template <int kCount, class T>
FASTFOOD_INLINE void draw(const Calls& calls, int64_t row, Vector<T>* g) {
  U32 words[kCount / kHalves][4];
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kHalves; ++i)
    calls.words(static_cast<uint64_t>(row) / kHalves + static_cast<uint64_t>(i), words[i]);
#pragma GCC unroll 2
  for (int i = 0; i < kCount / kHalves; ++i) {
    Float z[kHalves];
    normals_of_words(words[i], z);
#pragma GCC unroll 8
    for (int k = 0; k < kHalves; ++k) convert(z[k], &g[i * kHalves + k]);
  }
}

// Transposes a square of as many vectors as they have lanes, from pairs of entries on.
template <class T, int stride = 1>
FASTFOOD_INLINE void transpose(Vector<T>* r) {
  constexpr int lanes = kLanes<T>;
  if constexpr (stride < lanes) {
    typename IntegersOf<sizeof(T)>::Signed low, high;
    for (int k = 0; k < lanes; ++k) {
      low[k] = (k & stride) ? lanes + k - stride : k;
      high[k] = (k & stride) ? lanes + k : k + stride;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (i & stride) continue;
      const Vector<T> a = r[i], b = r[i + stride];
      r[i] = __builtin_shuffle(a, b, low);
      r[i + stride] = __builtin_shuffle(a, b, high);
    }
    transpose<T, 2 * stride>(r);
  }
}

// Square j of a block: transposes it from lanes to rows `apart` entries apart, or back.
template <class T>
FASTFOOD_INLINE void load_lanes(const T* x, int64_t j, Vector<T>* r) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) r[i] = load(x + (j + i) * lanes);
  transpose<T>(r);
}
template <class T>
FASTFOOD_INLINE void store_lanes(Vector<T>* r, int64_t j, T* x) {
  constexpr int lanes = kLanes<T>;
  transpose<T>(r);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(x + (j + i) * lanes, r[i]);
}

// L entries at x, from rows to lanes or from lanes to rows, at y.
template <class T>
void rows_to_lanes(const T* x, T* y, int64_t L) {
  const int64_t rows = L / kLanes<T>;
  for (int64_t j = 0; j < rows; j += kLanes<T>) {
    Vector<T> r[kLanes<T>];
    for (int k = 0; k < kLanes<T>; ++k) r[k] = load(x + k * rows + j);
    store_lanes(r, j, y);
  }
}
template <class T>
void lanes_to_rows(const T* x, T* y, int64_t L) {
  const int64_t rows = L / kLanes<T>;
  for (int64_t j = 0; j < rows; j += kLanes<T>) {
    Vector<T> r[kLanes<T>];
    load_lanes(x, j, r);
    for (int k = 0; k < kLanes<T>; ++k) store(y + k * rows + j, r[k]);
  }
}

// --- Forward -------------------------------------------------------------------------------------

// Writes rows of a projection, as far as they are wanted: base + scale * y, or y alone.
template <class S, bool kBase, bool kStream>
class Emit {
 public:
  using T = Arithmetic<S>;
  static constexpr int lanes = kLanes<T>;
  explicit Emit(const Projection& p)
      : p_(p), out_(static_cast<S*>(p.out)), base_(static_cast<const S*>(p.base)) {}

  // To be called before the squares of a block, which is entry `here` of the output.
  void begin_block(int64_t here) {
    if (uniform_ && here >= 0 && here + p_.L <= end_[0]) return;  // in the last one's segment
    for (int k = 0; k < lanes; ++k) enter(k, here + k * (p_.L / lanes));
    uniform_ = segment_[0] == segment_[lanes - 1];
  }

  // Squares [begin, end) of vectors of a block's sub-blocks of `rows` rows. The arguments are
  // values for the reason that fwht.cpp gives.
  __attribute__((noinline)) void squares(const T* x, const int64_t here, const int64_t rows,
                                         int64_t begin, const int64_t end) {
    for (int64_t j = begin * lanes; j < end * lanes; j += lanes) {
      Vector<T> r[lanes];
      load_lanes(x, j, r);
      butterflies<lanes>(r);
#pragma GCC unroll 16
      for (int k = 0; k < lanes; ++k) {
        const int64_t i = here + k * rows + j;
        if (i < 0 || i + lanes > end_[k])
          edge(k, i, r[k]);
        else
          write(k, i, r[k]);
      }
    }
  }

 private:
  FASTFOOD_INLINE_MEMBER void write(int k, int64_t i, Vector<T> y) {
    if constexpr (kBase) y = load_wide(base_ + i) + scale_[k] * y;
    if constexpr (kStream)
      stream(out_ + i, y);
    else
      store_narrow(out_ + i, y);
  }

  // Makes the segment of entry i, or of the first or last entry, that of sub-block k.
  void enter(int64_t k, int64_t i) {
    end_[k] = p_.count;
    if constexpr (kBase) {
      int64_t low = 0, high = p_.segments;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (p_.offsets[middle] <= i ? low : high) = middle;
      }
      segment_[k] = low;
      if (p_.offsets[low + 1] < p_.count) end_[k] = p_.offsets[low + 1];
      scale_[k] = static_cast<const T*>(p_.scales)[low];
    }
  }

  // Consecutive rows of sub-block k that are not all wanted, or not all in one segment.
  __attribute__((noinline)) void edge(int k, int64_t i, Vector<T> y) {
    for (int64_t e = 0; e < lanes; ++e) {
      if (i + e < 0 || i + e >= p_.count) continue;
      if (kBase && i + e >= end_[k]) enter(k, i + e);
      T value = y[e];
      if constexpr (kBase) value = widen(base_[i + e]) + scale_[k] * value;
      narrow(value, out_ + i + e);
    }
    if (kBase && i + lanes >= end_[k]) enter(k, i + lanes);
  }

  const Projection& p_;
  S* out_;
  const S* base_;
  int64_t end_[lanes], segment_[lanes] = {};
  T scale_[lanes];
  bool uniform_ = false;
};

// Makes kRadix vectors of the block that begins at `row`, from entry i of `work` on: G * v and the
// levels between them. v is in lanes.
template <class T>
struct Prepare {
  const Calls& calls;
  const T* v;
  int64_t row;
  T* work;
  FASTFOOD_INLINE_MEMBER void operator()(int64_t i) const {
    constexpr int lanes = kLanes<T>;
    Vector<T> r[kRadix];
    draw<kRadix, T>(calls, row + i / lanes, r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) r[k] *= load(v + i + k * lanes);
    butterflies<kRadix>(r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) store(work + i + k * lanes, r[k]);
  }
};

// Calls f(begin, end, phases) so that all of [0, count) is done, each the work on one or more
// blocks of L: many side by side, or, where a cache does not hold a block, one after the other by
// all threads.
template <class T, class F>
void for_each_block(int64_t count, int64_t grain, int64_t L, cpu::ParallelFor parallel, F f) {
  if (piece_of<T>(L) < L) return f(0, count, Together{parallel});
  auto body = [&](int64_t begin, int64_t end) { f(begin, end, Alone{}); };
  for_each_range(parallel, count, grain, body);
}

template <class S, bool kBase, bool kStream>
void project_blocks(const Projection& p, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  const int64_t bytes = p.L * static_cast<int64_t>(sizeof(T));
  const Calls calls = calls_of_blocks<T>(p.seed, p.L);
  const Scratch v_scratch(bytes);
  const T* v = v_scratch.as<T>();
  rows_to_lanes(static_cast<const T*>(p.v), v_scratch.as<T>(), p.L);
  const int64_t first = p.start / p.L, blocks = (p.start + p.count - 1) / p.L - first + 1;
  const int64_t grain = 1 + kGrain / p.L;
  for_each_block<T>(blocks, grain, p.L, parallel, [&](int64_t begin, int64_t end, auto phases) {
    const Scratch scratch(bytes);
    T* x = scratch.as<T>();
    Emit<S, kBase, kStream> emit(p);
    for (int64_t block = first + begin; block < first + end; ++block) {
      const Prepare<T> prepare{calls, v, block * p.L, x};
      transform_in_phases(x, kRadix * lanes, p.L, prepare, phases);
      emit.begin_block(block * p.L - p.start);
      phases(p.L / lanes / lanes, [&](int64_t from, int64_t to) {
        auto&& own = phases.own(emit);
        own.squares(x, block * p.L - p.start, p.L / lanes, from, to);
      });
    }
  });
}

// --- Adjoint -------------------------------------------------------------------------------------

// Consecutive entries of the gradient from i on, zero where there are none.
template <class S>
FASTFOOD_INLINE Vector<Arithmetic<S>> take(const Adjoint& a, int64_t i) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  const S* g = static_cast<const S*>(a.g) + i;
  if (i >= 0 && i + lanes <= a.count) return load_wide(g);
  Vector<T> r{};
  for (int64_t e = 0; e < lanes; ++e)
    if (i + e >= 0 && i + e < a.count) r[e] = widen(g[e]);
  return r;
}

// Adds G * H_L g of the block that begins at `row` to sums, in lanes. The levels of the kSplit rows
// come first, before the square is transposed, the others in ascending order behind it.
template <class S, class Phases>
void adjoint_block(const Adjoint& a, const Calls& calls, int64_t row, Arithmetic<S>* x,
                   Arithmetic<S>* sums, Phases phases) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  constexpr int squares = kSplit / lanes;  // each takes every squares-th of the kSplit rows
  const int64_t apart = a.L / kSplit;
  phases(apart / lanes, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * lanes; j < end * lanes; j += lanes) {
      Vector<T> r[kSplit], square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < kSplit; ++i) r[i] = take<S>(a, row - a.start + i * apart + j);
      butterflies<kSplit>(r);
#pragma GCC unroll 16
      for (int q = 0; q < squares; ++q) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) square[i] = r[i * squares + q];
        store_lanes(square, q * apart + j, x);
      }
    }
  });
  for (int q = 0; q < squares; ++q) transform_vectors(x + q * apart * lanes, apart, phases);
  phases(a.L / lanes / kHalves, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * kHalves; j < end * kHalves; j += kHalves) {
      Vector<T> g[kHalves];
      draw<kHalves, T>(calls, row + j, g);
#pragma GCC unroll 8
      for (int i = 0; i < kHalves; ++i) {
        T* sum = sums + (j + i) * lanes;
        store(sum, load(sum) + g[i] * load(x + (j + i) * lanes));
      }
    }
  });
}

template <class S>
void adjoint_blocks(const Adjoint& a, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  const int64_t first = a.start / a.L, blocks = (a.start + a.count - 1) / a.L - first + 1;
  const int64_t most = kPartEntries / a.L < kParts ? kPartEntries / a.L : kParts;
  const int64_t parts = piece_of<T>(a.L) < a.L ? 1 : (blocks < most ? blocks : most);
  const int64_t bytes = a.L * static_cast<int64_t>(sizeof(T));
  const Calls calls = calls_of_blocks<T>(a.seed, a.L);
  const Scratch partial(parts * bytes);
  for_each_block<T>(parts, 1, a.L, parallel, [&](int64_t begin, int64_t end, auto phases) {
    const Scratch scratch(bytes);
    for (int64_t part = begin; part < end; ++part) {
      T* sums = partial.as<T>() + part * a.L;
      for (int64_t j = 0; j < a.L; ++j) sums[j] = T{0};
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
        adjoint_block<S>(a, calls, (first + block) * a.L, scratch.as<T>(), sums, phases);
    }
  });
  T* sum = partial.as<T>();
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < a.L; ++j) sum[j] += partial.as<T>()[part * a.L + j];
  lanes_to_rows(sum, static_cast<T*>(a.z), a.L);
}

// --- Random numbers ------------------------------------------------------------------------------

// Calls take(i, words) for vectors of calls that hold those wanted, lane k being call i + k of
// them.
template <class Take>
FASTFOOD_INLINE void for_each_call(const Draw& d, cpu::ParallelFor parallel, Take take) {
  const Calls calls(d.seed, d.stream, 1);
  const int64_t first = static_cast<int64_t>(d.first), stop = first + d.count;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t call = (first / kW + begin) * kW; call < (first / kW + end) * kW; call += kW) {
      U32 words[4];
      calls.words(static_cast<uint64_t>(call), words);
      take(call - first, words);
    }
  };
  for_each_range(parallel, (stop + kW - 1) / kW - first / kW, 256, body);
}

}  // namespace

void words(const Draw& d, uint32_t* out, cpu::ParallelFor parallel) {
  for_each_call(d, parallel, [&](int64_t i, const U32* words) {
    for (int k = 0; k < kW; ++k)
      for (int w = 0; w < 4; ++w)
        if (i + k >= 0 && i + k < d.count) out[4 * (i + k) + w] = words[w][k];
  });
}

void normals(const Draw& d, float* out, cpu::ParallelFor parallel) {
  for_each_call(d, parallel, [&](int64_t i, const U32* words) {
    Float z[kHalves];
    normals_of_words(words, z);
    for (int k = 0; k < kW; ++k)
      for (int h = 0; h < kHalves; ++h)
        if (i + k >= 0 && i + k < d.count) out[kHalves * (i + k) + h] = z[h][k];
  });
}

void project(const Projection& p, cpu::ParallelFor parallel) {
  dispatch(p.type, [&](auto s) {
    using S = decltype(s);
    const auto run = [&](auto base, auto streamed) {
      project_blocks<S, decltype(base)::value, decltype(streamed)::value>(p, parallel);
    };
    const auto choose = [&](auto base) {
      // Vectors begin at multiples of kRadix rows, which must be whole vectors of memory.
      const auto address =
          reinterpret_cast<uintptr_t>(p.out) - static_cast<uintptr_t>(p.start % p.L) * sizeof(S);
      const bool streamed = std::is_same<S, Arithmetic<S>>::value && address % kVectorBytes == 0 &&
                            p.count * static_cast<int64_t>(sizeof(S)) > kStreamed;
      if constexpr (std::is_same<S, Arithmetic<S>>::value)
        if (streamed) return run(base, std::true_type{});
      run(base, std::false_type{});
    };
    p.base ? choose(std::true_type{}) : choose(std::false_type{});
  });
}

void adjoint(const Adjoint& a, cpu::ParallelFor parallel) {
  dispatch(a.type, [&](auto s) { adjoint_blocks<decltype(s)>(a, parallel); });
}

}  // namespace fastfood::FASTFOOD_ISA
