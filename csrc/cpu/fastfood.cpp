// The Fastfood projection on the CPU (definitions.h): blocks of G * v are transformed and written,
// in the layout of blocks.h; and the generator itself.
#include "blocks.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

// --- Forward -------------------------------------------------------------------------------------

// Writes rows of a projection, as far as they are wanted: base + scale * y, or y alone.
template <class S, bool kBase, bool kStream>
class Emit {
 public:
  using T = Arithmetic<S>;
  static constexpr int lanes = kLanes<T>;
  explicit Emit(const Projection& p)
      : p_(p),
        out_(static_cast<S*>(p.out)),
        base_(static_cast<const S*>(p.base)),
        rows_(p.L / lanes) {}

  // To be called before the squares of a block, which is entry `here` of the output.
  void begin_block(int64_t here) {
    here_ = here;
    const bool same = uniform_ && here >= 0 && here + p_.L <= end_[0];  // segment as the last
    for (int k = 0; !same && k < lanes; ++k) enter(k, here + k * rows_);
    uniform_ = segment_[0] == segment_[lanes - 1];
    look_ahead();
  }

  // Squares [begin, end) of vectors of a block's sub-blocks.
  __attribute__((noinline)) void squares(const T* x, int64_t begin, const int64_t end) {
    for (int64_t j = begin * lanes; j < end * lanes; j += lanes) {
      Vector<T> r[lanes];
      load_lanes(x, j, r);
      square(r, j);
    }
  }

  // Rows j, j + 1, ... of all sub-blocks, transposed.
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
  // Up to which row all vectors of a square are wanted, each in the segment of its sub-block.
  void look_ahead() {
    plain_ = here_ < 0 ? -1 : end_[0] - here_ - lanes;
    for (int k = 1; k < lanes; ++k) {
      const int64_t here = end_[k] - here_ - k * rows_ - lanes;
      if (here < plain_) plain_ = here;
    }
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

  // Rows that are not all wanted, or not all in one segment, entry by entry.
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

// Makes kRadix vectors of the block that begins at `row`, from entry i of `work` on: G * v and the
// levels between them. v is in lanes. Where `emit` is not null, as much of the block before, which
// lies finished at `done`, is written meanwhile.
template <class T, class Emit>
struct Prepare {
  static constexpr int lanes = kLanes<T>;
  const Calls& calls;
  const T* v;
  int64_t row;
  T* work;
  Emit* emit;
  const T* done;

  FASTFOOD_INLINE_MEMBER void make(int64_t i, Vector<T>* r) const {
    draw<kRadix, T>(calls, row + i / lanes, r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) r[k] *= load(v + i + k * lanes);
    butterflies<kRadix>(r);
  }
  FASTFOOD_INLINE_MEMBER void operator()(int64_t i) const {
    constexpr int64_t square = lanes * lanes;
    if (emit) emit->squares(done, i / square, (i + kRadix * lanes) / square);
    Vector<T> r[kRadix];
    make(i, r);
#pragma GCC unroll 16
    for (int k = 0; k < kRadix; ++k) store(work + i + k * lanes, r[k]);
  }
};

// Blocks [begin, end) that registers hold: a square each.
template <class T, class Emit>
__attribute__((noinline)) void project_squares(const Projection& p, const Calls& calls, const T* v,
                                               int64_t begin, int64_t end, Emit& emit) {
  constexpr int64_t L = kRadix * kLanes<T>;
  for (int64_t row = begin * L; row < end * L; row += L) {
    Vector<T> r[kRadix];
    Prepare<T, Emit>{calls, v, row, nullptr, nullptr, nullptr}.make(0, r);
    transpose<T>(r);
    emit.begin_block(row - p.start);
    emit.square(r, 0);
  }
}

// Blocks [begin, end), each written while the next is made, so that memory is never waited for.
template <class T, class Emit>
void project_in_turn(const Projection& p, const Calls& calls, const T* v, int64_t begin,
                     int64_t end, Emit& emit) {
  constexpr int lanes = kLanes<T>;
  if constexpr (kRadix == lanes)
    if (p.L == kRadix * lanes) return project_squares(p, calls, v, begin, end, emit);
  const Scratch scratch(2 * p.L * static_cast<int64_t>(sizeof(T)));
  T *x = scratch.as<T>(), *done = x + p.L;
  for (int64_t block = begin; block <= end; ++block) {
    if (block > begin) emit.begin_block((block - 1) * p.L - p.start);
    if (block == end) return emit.squares(done, 0, p.L / lanes / lanes);
    const Prepare<T, Emit> prepare{calls, v, block * p.L, x, block > begin ? &emit : nullptr, done};
    transform_in_phases(x, kRadix * lanes, p.L, prepare, Alone{});
    T* const made = x;
    x = done;
    done = made;
  }
}

// Blocks [begin, end), one after the other, each by all threads.
template <class T, class Emit>
void project_together(const Projection& p, const Calls& calls, const T* v, int64_t begin,
                      int64_t end, Emit& emit, Together phases) {
  constexpr int lanes = kLanes<T>;
  const Scratch scratch(p.L * static_cast<int64_t>(sizeof(T)));
  T* x = scratch.as<T>();
  for (int64_t block = begin; block < end; ++block) {
    const Prepare<T, Emit> prepare{calls, v, block * p.L, x, nullptr, nullptr};
    transform_in_phases(x, kRadix * lanes, p.L, prepare, phases);
    emit.begin_block(block * p.L - p.start);
    phases(p.L / lanes / lanes, [&](int64_t from, int64_t to) {
      Emit own = emit;
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
  if (piece_of<T>(p.L) < p.L) {
    Emit<S, kBase, kStream> emit(p);
    return project_together(p, calls, v, first, last + 1, emit, Together{parallel});
  }
  auto body = [&](int64_t begin, int64_t end) {
    Emit<S, kBase, kStream> emit(p);
    project_in_turn(p, calls, v, first + begin, first + end, emit);
  };
  for_each_range(parallel, last + 1 - first, 1 + kGrain / p.L, body);
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
      if constexpr (std::is_same<S, Arithmetic<S>>::value) {
        // Streams go to whole vectors of memory: those of a block are, if its first row is one.
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
