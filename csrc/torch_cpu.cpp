// The schemas of all operators, and their CPU implementations. Seeds are the bit patterns of
// unsigned 64-bit numbers.
#include "torch_ops.h"

namespace fastfood {

namespace {

void parallel_for(int64_t count, int64_t grain, cpu::Body body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

// Called only for rows larger than a cache: in a small call it would take a large share of the
// time.
int64_t count_threads() { return torch::stable::get_num_threads(); }

struct Cpu {
  static void transform(const Transform& t, const Tensor&) {
    cpu::kernels().transform(t, parallel_for, count_threads);
  }
  static void words(const Draw& d, uint32_t* out, const Tensor&) {
    cpu::kernels().words(d, out, parallel_for);
  }
  static void normals(const Draw& d, float* out, const Tensor&) {
    cpu::kernels().normals(d, out, parallel_for);
  }
  static void project(const Projection& p, const Tensor&) {
    cpu::kernels().project(p, parallel_for);
  }
  static void adjoint(const Adjoint& a, const Tensor&) { cpu::kernels().adjoint(a, parallel_for); }
};

}  // namespace

STABLE_TORCH_LIBRARY(fastfood, m) {
  m.def(
      "hadamard_transform(Tensor x, float scale=1.0, int K=1, bool transpose=False, "
      "Tensor? before=None, Tensor? after=None, SymInt? block=None) -> Tensor");
  m.def(
      "hadamard_transform_out(Tensor x, Tensor(a!) out, float scale=1.0, int K=1, "
      "bool transpose=False, Tensor? before=None, Tensor? after=None, SymInt? block=None) -> ()");
  m.def("philox_words(Tensor like, int seed, int stream, int first, int count) -> Tensor");
  m.def("normals(Tensor like, int seed, int stream, int first, int count) -> Tensor");
  m.def("project_rows(Tensor v, int seed, SymInt start, SymInt stop) -> Tensor");
  m.def("project_rows_out(Tensor v, Tensor(a!) out, int seed, SymInt start) -> ()");
  m.def("project_rows_adjoint(Tensor g, SymInt L, int seed, SymInt start) -> Tensor");
  m.def(
      "project_rows_adjoint_sum(Tensor[] gs, SymInt[] starts, float[] factors, SymInt L, int seed) "
      "-> Tensor");
  m.def(
      "perturb_(Tensor(a!) out, Tensor base, Tensor v, Tensor offsets, Tensor scales, int seed, "
      "SymInt start) -> ()");
  m.def(
      "perturbed(Tensor[] bases, Tensor v, Tensor bounds, Tensor scales, int seed, "
      "SymInt[] starts, int[] places) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastfood, CPU, m) { register_operators<Cpu>(m); }

}  // namespace fastfood
