// The adjoint of the Fastfood projection on the CPU (definitions.h): blocks of gradients are
// transformed, multiplied by G and summed, in the layout of blocks.h.
#include "blocks.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

// The order of the sums, and so every bit, depends on these numbers: they are the same for all
// threads, caches and instruction sets.
constexpr int64_t kParts = 64;             // the most partial sums
constexpr int64_t kPartEntries = 1 << 20;  // the most entries of all partial sums together
constexpr int64_t kAloneBytes = 1 << 20;   // the largest block that one thread works on alone
constexpr int kSplit = 16;                 // the first levels combine rows L / kSplit apart

// A vector of entries i, i + 1, ... of a piece, zero outside of it.
template <class S>
FASTFOOD_INLINE Vector<Arithmetic<S>> take(const Piece& p, int64_t i) {
  using T = Arithmetic<S>;
  constexpr int64_t lanes = kLanes<T>;
  const S* g = static_cast<const S*>(p.g) + i;
  if (i >= 0 && i + lanes <= p.count) return load_wide(g);
  Vector<T> r{};
  for (int64_t e = 0; e < lanes; ++e)
    if (i + e >= 0 && i + e < p.count) r[e] = widen(g[e]);
  return r;
}

// Cuts the block that begins at `row` into kSplit parts and loads rows j, j + 1, ... of each, times
// the piece's factor; then does the levels between the parts.
template <class S>
FASTFOOD_INLINE void take_parts(const Piece& p, int64_t L, int64_t row, int64_t j,
                                Vector<Arithmetic<S>>* r) {
#pragma GCC unroll 16
  for (int i = 0; i < kSplit; ++i) r[i] = take<S>(p, row - p.start + i * (L / kSplit) + j);
  if (p.factor != 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kSplit; ++i) r[i] *= static_cast<Arithmetic<S>>(p.factor);
  }
  butterflies<kSplit>(r);
}

// Adds G * x to `sums` for vectors [j, j + kCount) of the block that begins at `row`.
template <int kCount, class T>
FASTFOOD_INLINE void accumulate(const Calls& calls, int64_t row, int64_t j, const Vector<T>* x,
                                T* sums) {
  Vector<T> g[kCount];
  draw<kCount, T>(calls, row + j, g);
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    T* sum = sums + (j + i) * kLanes<T>;
    store(sum, load(sum) + g[i] * x[i]);
  }
}

// Adds G * H_L g for blocks [begin, end) of a piece to `sums`, in the layout of blocks.h. A block
// is one square, which registers hold.
template <class S>
__attribute__((noinline)) void adjoint_squares(const Piece& p, const Calls& calls, int64_t begin,
                                               int64_t end, Arithmetic<S>* sums) {
  using T = Arithmetic<S>;
  constexpr int64_t L = kSplit * kLanes<T>;
  for (int64_t block = begin; block < end; ++block) {
    const S* later = static_cast<const S*>(p.g) + (block + 8) * L - p.start;
#pragma GCC unroll 16
    for (int i = 0; i < kSplit; ++i) __builtin_prefetch(later + i * kLanes<T>);
    Vector<T> r[kSplit];
    take_parts<S>(p, L, block * L, 0, r);
    transpose<T>(r);
    butterflies<kLanes<T>>(r);
    accumulate<kSplit, T>(calls, block * L, 0, r, sums);
  }
}

// The same for one block of any length. The levels between the kSplit parts come first, as long as
// vectors hold consecutive rows; then squares are transposed and the other levels follow, in
// ascending order.
template <class S, class Phases>
void adjoint_block(const Piece& p, int64_t L, const Calls& calls, int64_t row, Arithmetic<S>* x,
                   Arithmetic<S>* sums, Phases phases) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  constexpr int squares = kSplit / lanes;  // square q holds parts q, q + squares, ...
  static_assert(kSplit % lanes == 0, "the parts make whole squares");
  const int64_t apart = L / kSplit;
  phases(apart / lanes, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * lanes; j < end * lanes; j += lanes) {
      Vector<T> r[kSplit], square[lanes];
      take_parts<S>(p, L, row, j, r);
#pragma GCC unroll 16
      for (int q = 0; q < squares; ++q) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) square[i] = r[i * squares + q];
        store_lanes(square, q * apart + j, x);
      }
    }
  });
  for (int q = 0; q < squares; ++q) transform_vectors(x + q * apart * lanes, apart, phases);
  const S* next = static_cast<const S*>(p.g) + (row + L - p.start);
  phases(L / lanes / kNormalsPerCall, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * kNormalsPerCall; j < end * kNormalsPerCall; j += kNormalsPerCall) {
#pragma GCC unroll 8
      for (int i = 0; i < kNormalsPerCall; ++i) __builtin_prefetch(next + (j + i) * lanes, 0, 2);
      accumulate<kNormalsPerCall, T>(calls, row, j,
                                     reinterpret_cast<const Vector<T>*>(x + j * lanes), sums);
    }
  });
}

// A piece that is not empty, and its blocks [block, stop): all that it has rows of, except the
// first one if the piece before ends in it.
struct PieceSpan {
  Piece piece;
  int64_t block, stop;
  int64_t blocks;  // how many such blocks this span and all before it have
};

// Fills `spans`, which has room for a.size of them, and returns how many there are.
int64_t find_spans(const Adjoint& a, PieceSpan* spans) {
  int64_t size = 0, last = -1, blocks = 0;
  for (const Piece* p = a.pieces; p < a.pieces + a.size; ++p) {
    if (p->count == 0) continue;
    const int64_t first = p->start / a.L, block = first == last ? first + 1 : first;
    last = (p->start + p->count - 1) / a.L;
    blocks += last + 1 - block;
    spans[size++] = {*p, block, last + 1, blocks};
  }
  return size;
}

// The blocks of an adjoint, those of one span after the other, and how they are added to sums.
template <class T, class Phases>
struct Blocks {
  const PieceSpan *spans, *end;
  int64_t L;
  const Calls& calls;
  Phases phases;

  // Adds blocks [from, to), counted over all spans.
  void add(int64_t from, int64_t to, T* sums) const {
    constexpr Type own = std::is_same<T, double>::value ? Type::f64 : Type::f32;
    const Scratch scratch(2 * L * static_cast<int64_t>(sizeof(T)));
    T *x = scratch.as<T>(), *y = x + L;
    for (const PieceSpan* s = spans; s < end && s->blocks - (s->stop - s->block) < to; ++s) {
      const int64_t ahead = s->stop - s->blocks;
      const int64_t first = s->block > from + ahead ? s->block : from + ahead;
      const int64_t stop = s->stop < to + ahead ? s->stop : to + ahead;
      if (first >= stop) continue;
      const PieceSpan* next = after_last_block(s);
      // Blocks [first, block) are this piece's alone; the others are gathered in type T first.
      int64_t block = stop - (stop == s->stop && next > s + 1 ? 1 : 0);
      if ((s->piece.type == Type::f64) != (own == Type::f64)) block = first;
      add_piece(s->piece, first, block, x, sums);
      for (; block < stop; ++block) {
        gather(s, block + 1 == s->stop ? next : s + 1, block * L, y);
        add_piece({y, own, 1.0, block * L, L}, block, block + 1, x, sums);
      }
    }
  }

 private:
  // The first span after s whose piece has no rows of the last block of s.
  const PieceSpan* after_last_block(const PieceSpan* s) const {
    const PieceSpan* next = s + 1;
    while (next < end && next[-1].stop == s->stop && next->block > next->piece.start / L) ++next;
    return next;
  }

  // Adds blocks [begin, stop) of a piece that is computed in T.
  void add_piece(const Piece& p, int64_t begin, int64_t stop, T* x, T* sums) const {
    with_type(p.type, [&](auto s) {
      using S = decltype(s);
      if constexpr (std::is_same<Arithmetic<S>, T>::value) {
        if constexpr (kSplit == kLanes<T>)
          if (L == kSplit * kSplit) return adjoint_squares<S>(p, calls, begin, stop, sums);
        for (int64_t block = begin; block < stop; ++block)
          adjoint_block<S>(p, L, calls, block * L, x, sums, phases);
      }
    });
  }

  // y = the sum of the rows that spans [s, stop) have in the block that begins at `row`, each times
  // its piece's factor.
  void gather(const PieceSpan* s, const PieceSpan* stop, int64_t row, T* y) const {
    phases(L / kLanes<T>, [&](int64_t begin, int64_t end) {
      begin *= kLanes<T>, end *= kLanes<T>;
      for (int64_t i = begin; i < end; ++i) y[i] = 0;
      for (const PieceSpan* one = s; one < stop; ++one) {
        const Piece& p = one->piece;
        const int64_t here = p.start - row, there = here + p.count;
        const int64_t from = begin > here ? begin : here, to = end < there ? end : there;
        with_type(p.type, [&](auto element) {
          const auto* g = static_cast<const decltype(element)*>(p.g) - here;
          const T factor = static_cast<T>(p.factor);
          for (int64_t i = from; i < to; ++i) y[i] += factor * static_cast<T>(widen(g[i]));
        });
      }
    });
  }
};

template <class T>
void sum_adjoint(const Adjoint& a, cpu::ParallelFor parallel) {
  const Scratch memory(a.size * static_cast<int64_t>(sizeof(PieceSpan)));
  PieceSpan* spans = memory.as<PieceSpan>();
  const PieceSpan* end = spans + find_spans(a, spans);
  const Calls calls = calls_of_blocks<T>(a.seed, a.L);
  const int64_t blocks = end > spans ? end[-1].blocks : 0;
  const bool together = a.L * static_cast<int64_t>(sizeof(T)) > kAloneBytes;
  const int64_t most = kPartEntries / a.L < kParts ? kPartEntries / a.L : kParts;
  int64_t parts = (blocks * a.L + kGrain - 1) / kGrain;
  if (parts > most) parts = most;
  if (parts < 1 || together) parts = 1;
  const Scratch partial(parts * a.L * static_cast<int64_t>(sizeof(T)));
  const auto sum_part = [&](int64_t part, auto phases) {
    T* sums = partial.as<T>() + part * a.L;
    for (int64_t j = 0; j < a.L; ++j) sums[j] = T{0};
    const Blocks<T, decltype(phases)> all{spans, end, a.L, calls, phases};
    all.add(blocks * part / parts, blocks * (part + 1) / parts, sums);
  };
  auto body = [&](int64_t begin, int64_t stop) {
    for (int64_t part = begin; part < stop; ++part) sum_part(part, Alone{});
  };
  if (together)
    sum_part(0, Together{parallel});
  else
    for_each_range(parallel, parts, 1, body);
  T* sum = partial.as<T>();
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t j = 0; j < a.L; ++j) sum[j] += partial.as<T>()[part * a.L + j];
  lanes_to_rows(sum, static_cast<T*>(a.z), a.L);
}

}  // namespace

void adjoint(const Adjoint& a, cpu::ParallelFor parallel) {
  a.type == Type::f64 ? sum_adjoint<double>(a, parallel) : sum_adjoint<float>(a, parallel);
}

}  // namespace fastfood::FASTFOOD_ISA
