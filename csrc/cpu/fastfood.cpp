// The Fastfood projection on the CPU (definitions.h): blocks of G * v, in the layout of blocks.h,
// are transformed and written. Also the generator's words and normals by themselves.
#include "../places.h"
#include "blocks.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

// --- Forward -------------------------------------------------------------------------------------

// Writes the rows of blocks that the call asks for: base + scale * y, or y alone without kBase.
// kStream: by non-temporal stores.
template <class S, bool kBase, bool kStream>
class Perturb {
 public:
  using T = Arithmetic<S>;
  static constexpr int lanes = kLanes<T>;
  explicit Perturb(const Projection& p)
      : p_(p),
        out_(static_cast<S*>(p.out)),
        base_(static_cast<const S*>(p.base)),
        rows_(p.L / lanes) {}

  // To be called before the squares of a block. Its first row is entry `here` of the output, or
  // lies before the output if that is negative.
  void begin_block(int64_t here) {
    here_ = here;
    const bool same = uniform_ && here >= 0 && here + p_.L <= end_[0];  // as the block before
    for (int k = 0; !same && k < lanes; ++k) enter(k, here + k * rows_);
    uniform_ = segment_[0] == segment_[lanes - 1];
    look_ahead();
  }

  // Writes squares [begin, end) of the block at x.
  __attribute__((noinline)) void squares(const T* x, int64_t begin, const int64_t end) {
    for (int64_t j = begin * lanes; j < end * lanes; j += lanes) {
      Vector<T> r[lanes];
      load_lanes(x, j, r);
      square(r, j);
    }
  }

  // Writes a square after the levels between sub-blocks: r[k] holds rows j, j + 1, ... of sub-block
  // k.
  FASTFOOD_INLINE_MEMBER void square(Vector<T>* r, int64_t j) {
    butterflies<lanes>(r);
    if (j > plain_) return edges(r, j);
    S* out = out_ + here_ + j;
    const S* base = base_ + here_ + j;
    const int64_t rows = rows_;
#pragma GCC unroll 16
    for (int k = 0; k < lanes; ++k, out += rows, base += rows) {
      if constexpr (kBase) r[k] = load_wide(base) + scale_[k] * r[k];
      if constexpr (kStream)
        stream(out, r[k]);
      else
        store_narrow(out, r[k]);
    }
  }

 private:
  // Sets plain_, the last row j for which a whole square is wanted and each of its vectors lies in
  // its sub-block's current segment.
  void look_ahead() {
    plain_ = here_ < 0 ? -1 : end_[0] - here_ - lanes;
    for (int k = 1; k < lanes; ++k) {
      const int64_t here = end_[k] - here_ - k * rows_ - lanes;
      if (here < plain_) plain_ = here;
    }
  }

  // Looks up the segment of entry i, or of the first or the last entry if i is outside, and keeps
  // its end and scale for sub-block k.
  void enter(int64_t k, int64_t i) {
    end_[k] = p_.count;
    if constexpr (kBase) {
      const int64_t segment = segment_of(i, p_.offsets, p_.segments);
      segment_[k] = segment;
      if (p_.offsets[segment + 1] < p_.count) end_[k] = p_.offsets[segment + 1];
      scale_[k] = static_cast<const T*>(p_.scales)[segment];
    }
  }

  // Writes a square entry by entry: not all of its rows are wanted, or a vector of it lies in
  // several segments.
  __attribute__((noinline)) void edges(const Vector<T>* r, int64_t j) {
    for (int k = 0; k < lanes; ++k) {
      const int64_t first = here_ + k * rows_ + j;
      for (int64_t e = 0; e < lanes; ++e) {
        const int64_t i = first + e;
        if (i < 0 || i >= p_.count) continue;
        if (kBase && i >= end_[k]) enter(k, i);
        T value = r[k][e];
        if constexpr (kBase) value = widen(base_[i]) + scale_[k] * value;
        narrow(value, out_ + i);
      }
      if (kBase && first + lanes >= end_[k]) enter(k, first + lanes);
    }
    look_ahead();
  }

  const Projection& p_;
  S* out_;
  const S* base_;
  int64_t rows_, here_ = 0, plain_ = -1;
  int64_t end_[lanes], segment_[lanes] = {};
  T scale_[lanes];
  bool uniform_ = false;
};

// The first pass over the block that begins at `row`. For kRadix vectors from entry i on it
// computes G * v, with v in the layout of blocks.h, does the levels between these vectors, and
// leaves them in `work`. If `out` is not null, it also writes as much of the block before, which
// lies finished at `done`, so that arithmetic and stores overlap.
template <class T, class Out>
struct Prepare {
  static constexpr int lanes = kLanes<T>;
  const Calls& calls;
  const T* v;
  int64_t row;
  T* work;
  Out* out;
  const T* done;

  FASTFOOD_INLINE_MEMBER void make(int64_t i, Vector<T>* r) const {
    draw<kRadix, T>(calls, row + i / lanes, r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) r[k] *= load(v + i + k * lanes);
    butterflies<kRadix>(r);
  }
  FASTFOOD_INLINE_MEMBER void operator()(int64_t i) const {
    constexpr int64_t square = lanes * lanes;
    if (out) out->squares(done, i / square, (i + kRadix * lanes) / square);
    Vector<T> r[kRadix];
    make(i, r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) store(work + i + k * lanes, r[k]);
  }
};

// Blocks [begin, end) of one square each, which registers hold.
template <class T, class Out>
__attribute__((noinline)) void project_squares(const Projection& p, const Calls& calls, const T* v,
                                               int64_t begin, int64_t end, Out& out) {
  constexpr int64_t L = kRadix * kLanes<T>;
  for (int64_t row = begin * L; row < end * L; row += L) {
    Vector<T> r[kRadix];
    Prepare<T, Out>{calls, v, row, nullptr, nullptr, nullptr}.make(0, r);
    transpose<T>(r);
    out.begin_block(row - p.start);
    out.square(r, 0);
  }
}

// Blocks [begin, end), each written while the next one is computed, so that no store is waited for.
template <class T, class Out>
void project_in_turn(const Projection& p, const Calls& calls, const T* v, int64_t begin,
                     int64_t end, Out& out) {
  constexpr int lanes = kLanes<T>;
  if constexpr (kRadix == lanes)
    if (p.L == kRadix * lanes) return project_squares(p, calls, v, begin, end, out);
  const Scratch scratch(2 * p.L * static_cast<int64_t>(sizeof(T)));
  T *x = scratch.as<T>(), *done = x + p.L;
  for (int64_t block = begin; block <= end; ++block) {
    if (block > begin) out.begin_block((block - 1) * p.L - p.start);
    if (block == end) return out.squares(done, 0, p.L / lanes / lanes);
    const Prepare<T, Out> prepare{calls, v, block * p.L, x, block > begin ? &out : nullptr, done};
    transform_in_phases(x, kRadix * lanes, p.L, prepare, Alone{});
    T* const made = x;
    x = done;
    done = made;
  }
}

// Blocks [begin, end), one after the other, each by all threads.
template <class T, class Out>
void project_together(const Projection& p, const Calls& calls, const T* v, int64_t begin,
                      int64_t end, Out& out, Together phases) {
  constexpr int lanes = kLanes<T>;
  const Scratch scratch(p.L * static_cast<int64_t>(sizeof(T)));
  T* x = scratch.as<T>();
  for (int64_t block = begin; block < end; ++block) {
    const Prepare<T, Out> prepare{calls, v, block * p.L, x, nullptr, nullptr};
    transform_in_phases(x, kRadix * lanes, p.L, prepare, phases);
    out.begin_block(block * p.L - p.start);
    phases(p.L / lanes / lanes, [&](int64_t from, int64_t to) {
      Out own = out;
      own.squares(x, from, to);
    });
  }
}

template <class S, bool kBase, bool kStream>
void project_blocks(const Projection& p, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  const Calls calls = calls_of_blocks<T>(p.seed, p.L);
  const Scratch v_scratch(p.L * static_cast<int64_t>(sizeof(T)));
  T* v = v_scratch.as<T>();
  rows_to_lanes(static_cast<const T*>(p.v), v, p.L);
  const int64_t first = p.start / p.L, last = (p.start + p.count - 1) / p.L;
  if (chunk_of<T>(p.L) < p.L) {
    Perturb<S, kBase, kStream> out(p);
    return project_together(p, calls, v, first, last + 1, out, Together{parallel});
  }
  auto body = [&](int64_t begin, int64_t end) {
    Perturb<S, kBase, kStream> out(p);
    project_in_turn(p, calls, v, first + begin, first + end, out);
  };
  for_each_range(parallel, last + 1 - first, 1 + kGrain / p.L, body);
}

// --- Random numbers ------------------------------------------------------------------------------

// Calls take(i, words) for all vectors of calls that hold wanted ones: lane k is call i + k of the
// draw. Lanes of the first and of the last vector may lie outside of the draw.
template <class Take>
FASTFOOD_INLINE void for_each_call(const Draw& d, cpu::ParallelFor parallel, Take take) {
  constexpr int lanes = kLanes<float>;
  const Calls calls(d.seed, d.stream, 1);
  const int64_t first = static_cast<int64_t>(d.first), stop = first + d.count;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t call = (first / lanes + begin) * lanes; call < (first / lanes + end) * lanes;
         call += lanes) {
      U32 words[4];
      calls.words(static_cast<uint64_t>(call), words);
      take(call - first, words);
    }
  };
  for_each_range(parallel, (stop + lanes - 1) / lanes - first / lanes, 256, body);
}

}  // namespace

void words(const Draw& d, uint32_t* out, cpu::ParallelFor parallel) {
  for_each_call(d, parallel, [&](int64_t i, const U32* words) {
    for (int k = 0; k < kLanes<float>; ++k)
      for (int w = 0; w < 4; ++w)
        if (i + k >= 0 && i + k < d.count) out[4 * (i + k) + w] = words[w][k];
  });
}

void normals(const Draw& d, float* out, cpu::ParallelFor parallel) {
  for_each_call(d, parallel, [&](int64_t i, const U32* words) {
    Float z[kNormalsPerCall];
    normals_of_words(words, z);
    for (int k = 0; k < kLanes<float>; ++k)
      for (int h = 0; h < kNormalsPerCall; ++h)
        if (i + k >= 0 && i + k < d.count) out[kNormalsPerCall * (i + k) + h] = z[h][k];
  });
}

void project(const Projection& p, cpu::ParallelFor parallel) {
  with_type(p.type, [&](auto s) {
    using S = decltype(s);
    const auto run = [&](auto base, auto streamed) {
      project_blocks<S, decltype(base)::value, decltype(streamed)::value>(p, parallel);
    };
    const auto choose = [&](auto base) {
      if constexpr (std::is_same<S, Arithmetic<S>>::value) {
        // Non-temporal stores need aligned vectors. All of a block's are aligned if its first one
        // is.
        const auto block =
            reinterpret_cast<uintptr_t>(p.out) - static_cast<uintptr_t>(p.start % p.L) * sizeof(S);
        if (block % kVectorBytes == 0 && !fits<S>(p.count, cpu::caches().second))
          return run(base, std::true_type{});
      }
      run(base, std::false_type{});
    };
    p.base ? choose(std::true_type{}) : choose(std::false_type{});
  });
}

}  // namespace fastfood::FASTFOOD_ISA
