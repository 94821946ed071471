// hadamard_transform on the CPU: rows of a power of two, one after the other, each lane level in a
// register and the levels above over whole vectors. Sixteen-bit rows are transformed in a float
// copy and rounded once.
#include "fwht.h"

namespace fastfood::FASTFOOD_ISA {

namespace {

// The level of one stride inside a vector: lane i gets x[i] + x[i ^ stride], or x[i ^ stride] -
// x[i] if i & stride.
template <int stride, class V>
FASTFOOD_INLINE V lane_level(V x) {
  V sign;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(x[0])); ++i)
    sign[i] = (i & stride) ? -0.0f : 0.0f;
  using Bits = typename IntegersOf<sizeof(x[0])>::Unsigned;
  return swap_lanes<stride>(x) + (V)((Bits)x ^ (Bits)sign);
}

// The levels of all strides below min(n, lanes of V).
template <class V>
FASTFOOD_INLINE V lane_levels(V x, int64_t n) {
  constexpr int lanes = sizeof(V) / sizeof(x[0]);
  if (n > 1) x = lane_level<1>(x);
  if constexpr (lanes > 2)
    if (n > 2) x = lane_level<2>(x);
  if constexpr (lanes > 4)
    if (n > 4) x = lane_level<4>(x);
  if constexpr (lanes > 8)
    if (n > 8) x = lane_level<8>(x);
  return x;
}

// `count` values, a multiple of n, from x to out, with scale: for n up to one vector, in which
// several rows may lie.
template <class S>
void transform_short_rows(const S* x, S* out, int64_t count, int64_t n, Arithmetic<S> scale) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t here = count - i < lanes ? count - i : lanes;
    Vector<T> r{};
    for (int k = 0; k < here; ++k) r[k] = widen(x[i + k]);
    r = lane_levels(r, n) * scale;
    for (int k = 0; k < here; ++k) narrow(r[k], &out[i + k]);
  }
}

// One row longer than a vector; `row` holds it in the arithmetic type and may be `out`.
template <class S>
void transform_long_row(const S* x, Arithmetic<S>* row, S* out, int64_t n, Arithmetic<S> scale) {
  using T = Arithmetic<S>;
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < n; i += lanes) {
    Vector<T> r;
    for (int k = 0; k < lanes; ++k) r[k] = widen(x[i + k]);
    store(row + i, lane_levels(r, n));
  }
  transform_vectors(row, n / lanes);
  if (scale == T{1} && std::is_same<S, T>::value) return;
  for (int64_t i = 0; i < n; ++i) narrow(row[i] * scale, &out[i]);
}

template <class S>
void transform_rows(const Transform& t, cpu::ParallelFor parallel) {
  using T = Arithmetic<S>;
  const S* x = static_cast<const S*>(t.x);
  S* out = static_cast<S*>(t.out);
  const T scale = static_cast<T>(t.scale);
  auto body = [&](int64_t begin, int64_t end) {
    if (t.n <= kLanes<T>) {
      transform_short_rows(x + begin * t.n, out + begin * t.n, (end - begin) * t.n, t.n, scale);
      return;
    }
    Scratch scratch(std::is_same<S, T>::value ? 0 : t.n * static_cast<int64_t>(sizeof(T)));
    for (int64_t i = begin; i < end; ++i) {
      S* row = out + i * t.n;
      T* buffer = std::is_same<S, T>::value ? reinterpret_cast<T*>(row) : scratch.as<T>();
      transform_long_row(x + i * t.n, buffer, row, t.n, scale);
    }
  };
  constexpr int64_t kGrain = 32768;  // entries that are worth a thread
  for_each_range(parallel, t.rows, t.n >= kGrain ? 1 : kGrain / t.n, body);
}

}  // namespace

void transform(const Transform& t, cpu::ParallelFor parallel) {
  dispatch(t.type, [&](auto s) { transform_rows<decltype(s)>(t, parallel); });
}

}  // namespace fastfood::FASTFOOD_ISA
