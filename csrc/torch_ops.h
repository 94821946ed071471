// The registered operators, once for both backends: they check their arguments, allocate, and fill
// a descriptor of kernels.h from tensors. A Backend has the static functions transform, words,
// normals, project and adjoint, each of which takes a descriptor and a tensor on the device at
// hand. Included by torch_cpu.cpp and torch_cuda.cpp alone.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "kernels.h"
#include "orders.h"
#include "places.h"

namespace fastfood {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    case ScalarType::Half: return Type::f16;
    case ScalarType::BFloat16: return Type::bf16;
    default:
      STD_TORCH_CHECK(false, name, ": wanted float32, float64, float16 or bfloat16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

// The type that values stored as `type` are computed in.
inline ScalarType arithmetic(Type type) {
  return type == Type::f64 ? ScalarType::Double : ScalarType::Float;
}

inline void check_type(const Tensor& x, const char* name, ScalarType wanted) {
  STD_TORCH_CHECK(x.scalar_type() == wanted, name, ": wanted ", torch::headeronly::toString(wanted),
                  ", got ", torch::headeronly::toString(x.scalar_type()));
}

inline void check_same_device(const Tensor& x, const char* name, const Tensor& out) {
  STD_TORCH_CHECK(x.device() == out.device(), name, ": wanted the device of the other tensors");
}

inline void check_vector(const Tensor& x, const char* name, int64_t size) {
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == size && x.is_contiguous(), name,
                  ": wanted a contiguous vector of ", size, " entries");
}

inline void check_block_length(int64_t L) {
  STD_TORCH_CHECK(L >= 256 && is_power_of_two(L), "L: wanted a power of two of at least 256, got ",
                  L);
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

inline Tensor make_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// An uninitialised contiguous tensor of the shape, type and device of x. Not made through torch's
// dispatcher, which would take longer than a small transform.
inline Tensor empty_as(const Tensor& x) {
  int32_t type = 0, device = 0;
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
  std::vector<int64_t> strides;
  if (!x.is_contiguous()) {
    strides.resize(static_cast<size_t>(x.dim()));
    int64_t stride = 1;
    for (int64_t d = x.dim() - 1; d >= 0; --d) {
      strides[static_cast<size_t>(d)] = stride;
      stride *= x.size(d) > 1 ? x.size(d) : 1;
    }
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      x.dim(), x.sizes().data(), strides.empty() ? x.strides().data() : strides.data(), type,
      device, x.get_device_index(), &made));
  return Tensor(made);
}

inline std::vector<int64_t> with_last(const Tensor& x, int64_t last) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(last);
  return shape;
}

inline const char* at_row(const Tensor& x, int64_t row, int64_t length) {
  return static_cast<const char*>(x.const_data_ptr()) +
         row * length * static_cast<int64_t>(x.element_size());
}
inline char* at_row(Tensor& x, int64_t row, int64_t length) {
  return static_cast<char*>(x.mutable_data_ptr()) +
         row * length * static_cast<int64_t>(x.element_size());
}

// Checks a diagonal and returns its entries, or null if there is none. It has n entries, the same
// for every row, or an entry for each of the `whole` of the last dimension; then it spans several
// rows, and *rows becomes their number.
inline const void* diagonal(const std::optional<Tensor>& values, const char* name, int64_t whole,
                            int64_t n, Type type, const Tensor& x, int64_t* rows) {
  if (!values) return nullptr;
  if (values->dim() != 1 || values->size(0) != n) *rows = whole / n;
  check_vector(*values, name, *rows * n);
  check_type(*values, name, arithmetic(type));
  check_same_device(*values, name, x);
  return values->const_data_ptr();
}

// Whether the rows of n entries along the last dimension follow each other or `places`, which is
// filled then, can describe where they lie.
inline bool has_places(const Tensor& x, int64_t n, Places* places) {
  if (x.is_contiguous()) return true;
  const int64_t last = x.dim() - 1;
  return (x.size(last) == 1 || x.stride(last) == 1) &&
         find_places(x.sizes().data(), x.strides().data(), x.dim(), n, places);
}

inline void check_apart(const Tensor& x, const char* name) {
  for (int64_t d = 0; d < x.dim(); ++d)
    STD_TORCH_CHECK(x.size(d) < 2 || x.stride(d) > 0, name,
                    ": wanted entries that share no memory, got dimension ", d, " of stride 0");
}

template <class Backend>
void hadamard_transform_out(const Tensor& x, Tensor out, double scale, int64_t K, bool transpose,
                            const std::optional<Tensor>& before, const std::optional<Tensor>& after,
                            std::optional<int64_t> block) {
  check_type(out, "out", x.scalar_type());
  check_same_device(x, "x", out);
  STD_TORCH_CHECK(out.sizes().equals(x.sizes()), "out: wanted a tensor of the shape of x");
  if (!out.is_contiguous()) check_apart(out, "out");
  const Type type = type_of(x, "x");
  STD_TORCH_CHECK(x.dim() > 0, "x: wanted at least one dimension, got a scalar");
  const int64_t whole = x.size(x.dim() - 1), n = block.value_or(whole);
  Transform t{nullptr, nullptr, type, n > 0 ? x.numel() / n : 0, n, scale};
  STD_TORCH_CHECK(K == 1 || factor(K, transpose, t.factors), "K: wanted 1 or an order, got ", K);
  STD_TORCH_CHECK(n % K == 0 && is_power_of_two(n / K), block ? "block" : "x", ": wanted ",
                  block ? "" : "a last dimension that is ", K, " times a power of two, got ", n);
  STD_TORCH_CHECK(whole % n == 0, "block: wanted a divisor of the ", whole,
                  " entries of the last dimension of x, got ", n);
  t.before = diagonal(before, "before", whole, n, type, x, &t.before_rows);
  t.after = diagonal(after, "after", whole, n, type, x, &t.after_rows);
  if (x.numel() == 0) return;
  const Tensor from = has_places(x, n, &t.x_places) ? x : make_contiguous(x);
  const bool direct = has_places(out, n, &t.out_places) && are_apart(t.out_places, n);
  Tensor to = direct ? out : empty_as(x);
  if (!direct) t.out_places = {};
  t.x = from.const_data_ptr();
  t.out = to.mutable_data_ptr();
  Backend::transform(t, x);
  if (!direct) torch::stable::copy_(out, to);
}

template <class Backend>
Tensor hadamard_transform(const Tensor& x, double scale, int64_t K, bool transpose,
                          const std::optional<Tensor>& before, const std::optional<Tensor>& after,
                          std::optional<int64_t> block) {
  Tensor out = empty_as(x);
  hadamard_transform_out<Backend>(x, out, scale, K, transpose, before, after, block);
  return out;
}

inline Draw draw(int64_t seed, int64_t stream, int64_t first, int64_t count) {
  STD_TORCH_CHECK(stream >= 0 && stream < (int64_t{1} << 32), "stream: wanted 0 ... 2^32 - 1, got ",
                  stream);
  STD_TORCH_CHECK(first >= 0 && count >= 0, "first, count: wanted no negative number, got ", first,
                  ", ", count);
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(stream), static_cast<uint64_t>(first),
          count};
}

template <class Backend>
Tensor philox_words(const Tensor& like, int64_t seed, int64_t stream, int64_t first,
                    int64_t count) {
  const Draw d = draw(seed, stream, first, count);
  Tensor out = new_tensor(like, {4 * count}, ScalarType::Int);
  if (count > 0) Backend::words(d, static_cast<uint32_t*>(out.mutable_data_ptr()), like);
  return out;
}

template <class Backend>
Tensor normals(const Tensor& like, int64_t seed, int64_t stream, int64_t first, int64_t count) {
  const Draw d = draw(seed, stream, first, count);
  Tensor out = new_tensor(like, {8 * count}, ScalarType::Float);
  if (count > 0) Backend::normals(d, static_cast<float*>(out.mutable_data_ptr()), like);
  return out;
}

// Writes the rows of the projection from `start` on to `out`, which is contiguous and has v's shape
// but for the last dimension.
template <class Backend>
void project_into(Tensor& out, const Tensor& v_in, int64_t seed, int64_t start) {
  const Type type = type_of(out, "out");
  check_type(v_in, "v", arithmetic(type));
  check_same_device(v_in, "v", out);
  const int64_t L = v_in.size(v_in.dim() - 1), count = out.size(out.dim() - 1);
  check_block_length(L);
  STD_TORCH_CHECK(start >= 0, "start: wanted no negative number, got ", start);
  if (out.numel() == 0) return;
  const Tensor v = make_contiguous(v_in);
  for (int64_t row = 0; row < v.numel() / L; ++row)
    Backend::project({at_row(out, row, count), nullptr, at_row(v, row, L), nullptr, nullptr, 0,
                      type, L, start, count, static_cast<uint64_t>(seed)},
                     v);
}

template <class Backend>
Tensor project_rows(const Tensor& v, int64_t seed, int64_t start, int64_t stop) {
  STD_TORCH_CHECK(v.dim() > 0, "v: wanted at least one dimension, got a scalar");
  STD_TORCH_CHECK(start <= stop, "start, stop: wanted start <= stop, got ", start, ", ", stop);
  Tensor out = new_tensor(v, with_last(v, stop - start), v.scalar_type());
  project_into<Backend>(out, v, seed, start);
  return out;
}

template <class Backend>
void project_rows_out(const Tensor& v, Tensor out, int64_t seed, int64_t start) {
  STD_TORCH_CHECK(v.dim() > 0, "v: wanted at least one dimension, got a scalar");
  STD_TORCH_CHECK(out.is_contiguous() && out.dim() == v.dim() &&
                      out.sizes().slice(0, out.dim() - 1).equals(v.sizes().slice(0, v.dim() - 1)),
                  "out: wanted a contiguous tensor of v's shape but for the last dimension");
  project_into<Backend>(out, v, seed, start);
}

// The type of the adjoint of gradients of `type`.
inline Type sum_type(Type type) { return type == Type::f64 ? Type::f64 : Type::f32; }

template <class Backend>
Tensor project_rows_adjoint(const Tensor& g_in, int64_t L, int64_t seed, int64_t start) {
  const Type type = type_of(g_in, "g");
  check_block_length(L);
  STD_TORCH_CHECK(g_in.dim() > 0, "g: wanted at least one dimension, got a scalar");
  STD_TORCH_CHECK(start >= 0, "start: wanted no negative number, got ", start);
  const Tensor g = make_contiguous(g_in);
  const int64_t count = g.size(g.dim() - 1);
  Tensor z = new_tensor(g, with_last(g, L), arithmetic(type));
  for (int64_t row = 0; row < z.numel() / L; ++row) {
    const Piece piece{at_row(g, row, count), type, 1.0, start, count};
    Adjoint a{&piece, 1};
    a.z = at_row(z, row, L);
    a.type = sum_type(type);
    a.L = L;
    a.seed = static_cast<uint64_t>(seed);
    Backend::adjoint(a, g);
  }
  return z;
}

template <class Backend>
Tensor project_rows_adjoint_sum(std::vector<Tensor> gs, std::vector<int64_t> starts,
                                std::vector<double> factors, int64_t L, int64_t seed) {
  STD_TORCH_CHECK(!gs.empty(), "gs: wanted at least one tensor, got none");
  STD_TORCH_CHECK(starts.size() == gs.size() && factors.size() == gs.size(),
                  "starts, factors: wanted one for each of ", gs.size(), " tensors, got ",
                  starts.size(), " and ", factors.size());
  check_block_length(L);
  Type sums = Type::f32;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < gs.size(); ++i) {
    const Type type = type_of(gs[i], "gs");
    STD_TORCH_CHECK(starts[i] >= 0, "starts: wanted no negative number, got ", starts[i]);
    check_same_device(gs[i], "gs", gs[0]);
    if (!gs[i].is_contiguous()) gs[i] = make_contiguous(gs[i]);
    if (type == Type::f64) sums = Type::f64;
    pieces.push_back({gs[i].const_data_ptr(), type, factors[i], starts[i], gs[i].numel()});
  }
  Tensor z = new_tensor(gs[0], {L}, arithmetic(sums));
  Adjoint a{pieces.data(), static_cast<int64_t>(pieces.size())};
  a.z = z.mutable_data_ptr();
  a.type = sums;
  a.L = L;
  a.seed = static_cast<uint64_t>(seed);
  Backend::adjoint(a, gs[0]);
  return z;
}

// Checks the arguments that the two operators below share. `bounds`, which errors call `name`, has
// `entries` entries; these lie on the device and are not read here.
inline void check_perturbation(const Tensor& v, const Tensor& bounds, const char* name,
                               const Tensor& scales, Type type, int64_t entries,
                               const Tensor& out) {
  check_block_length(v.numel());
  check_vector(v, "v", v.numel());
  check_type(v, "v", arithmetic(type));
  check_vector(scales, "scales", scales.numel());
  check_type(scales, "scales", arithmetic(type));
  STD_TORCH_CHECK(scales.numel() > 0, "scales: wanted at least one segment, got none");
  check_vector(bounds, name, entries);
  check_type(bounds, name, ScalarType::Long);
  check_same_device(v, "v", out);
  check_same_device(bounds, name, out);
  check_same_device(scales, "scales", out);
}

template <class Backend>
void perturb_(Tensor out, const Tensor& base, const Tensor& v, const Tensor& offsets,
              const Tensor& scales, int64_t seed, int64_t start) {
  const Type type = type_of(out, "out");
  const int64_t count = out.numel(), segments = scales.numel();
  check_vector(out, "out", count);
  check_vector(base, "base", count);
  check_type(base, "base", out.scalar_type());
  check_same_device(base, "base", out);
  check_perturbation(v, offsets, "offsets", scales, type, segments + 1, out);
  STD_TORCH_CHECK(start >= 0, "start: wanted no negative number, got ", start);
  if (count == 0) return;
  Backend::project({out.mutable_data_ptr(), base.const_data_ptr(), v.const_data_ptr(),
                    static_cast<const int64_t*>(offsets.const_data_ptr()), scales.const_data_ptr(),
                    segments, type, v.numel(), start, count, static_cast<uint64_t>(seed)},
                   out);
}

template <class Backend>
std::vector<Tensor> perturbed(std::vector<Tensor> bases, const Tensor& v, const Tensor& bounds,
                              const Tensor& scales, int64_t seed, std::vector<int64_t> starts,
                              std::vector<int64_t> places) {
  const size_t size = bases.size();
  STD_TORCH_CHECK(size > 0, "bases: wanted at least one tensor, got none");
  STD_TORCH_CHECK(starts.size() == size && places.size() == size,
                  "starts, places: wanted one for each of ", size, " tensors, got ", starts.size(),
                  " and ", places.size());
  const Type type = type_of(bases[0], "bases");
  check_perturbation(v, bounds, "bounds", scales, type, 2, bases[0]);
  std::vector<Tensor> made;
  for (size_t i = 0; i < size; ++i) {
    check_type(bases[i], "bases", bases[0].scalar_type());
    check_same_device(bases[i], "bases", bases[0]);
    STD_TORCH_CHECK(starts[i] >= 0, "starts: wanted no negative number, got ", starts[i]);
    STD_TORCH_CHECK(places[i] >= 0 && places[i] < scales.numel(), "places: wanted 0 ... ",
                    scales.numel() - 1, ", got ", places[i]);
    const Tensor base = make_contiguous(bases[i]);
    Tensor out = empty_as(base);
    if (base.numel() > 0)
      Backend::project(
          {out.mutable_data_ptr(), base.const_data_ptr(), v.const_data_ptr(),
           static_cast<const int64_t*>(bounds.const_data_ptr()), at_row(scales, places[i], 1), 1,
           type, v.numel(), starts[i], base.numel(), static_cast<uint64_t>(seed)},
          out);
    made.push_back(out);
  }
  return made;
}

template <class Backend>
void register_operators(torch::stable::detail::StableLibrary& m) {
  m.impl("hadamard_transform", TORCH_BOX(&hadamard_transform<Backend>));
  m.impl("hadamard_transform_out", TORCH_BOX(&hadamard_transform_out<Backend>));
  m.impl("philox_words", TORCH_BOX(&philox_words<Backend>));
  m.impl("normals", TORCH_BOX(&normals<Backend>));
  m.impl("project_rows", TORCH_BOX(&project_rows<Backend>));
  m.impl("project_rows_out", TORCH_BOX(&project_rows_out<Backend>));
  m.impl("project_rows_adjoint", TORCH_BOX(&project_rows_adjoint<Backend>));
  m.impl("project_rows_adjoint_sum", TORCH_BOX(&project_rows_adjoint_sum<Backend>));
  m.impl("perturb_", TORCH_BOX(&perturb_<Backend>));
  m.impl("perturbed", TORCH_BOX(&perturbed<Backend>));
}

}  // namespace fastfood
