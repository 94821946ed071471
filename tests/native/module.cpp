// fastfood_native_tests: a Python module of both backends without torch. Arrays come as addresses,
// so that the tests choose alignment and guards. `cuda` chooses the backend: the emulated CUDA
// kernels, or the CPU's of the instruction set in FASTFOOD_ISA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../csrc/cuda/columns.cuh"
#include "../../csrc/cuda/mma.cuh"
#include "../../csrc/cuda/transform.h"
#include "../../csrc/definitions.h"
#include "../../csrc/kernels.h"
#include "../../csrc/orders.h"

namespace py = pybind11;

namespace fastfood {

void bind_plain(py::module_&);

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Ranges of the smallest size that is allowed, the last one first: results must depend on neither
// size nor order.
void split_evenly(int64_t count, int64_t grain, cpu::Body body, void* context) {
  for (int64_t begin = (count - 1) / grain * grain; begin >= 0; begin -= grain)
    body(begin, begin + grain < count ? begin + grain : count, context);
}

// How many threads share the ranges; 0: this one does all, as split_evenly divides them.
int threads = 0;

void split(int64_t count, int64_t grain, cpu::Body body, void* context) {
  if (!threads) return split_evenly(count, grain, body, context);
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(threads, count / grain));
  std::vector<std::thread> running;
  for (int64_t i = 0; i < ranges; ++i)
    running.emplace_back(body, count * i / ranges, count * (i + 1) / ranges, context);
  for (std::thread& thread : running) thread.join();
}

// Runs launch(workspace) with a workspace full of NaN, which must not be written beyond its end.
template <class Launch>
void run_emulated(int64_t bytes, Launch launch) {
  constexpr size_t kGuard = 256;
  std::vector<unsigned char> workspace(static_cast<size_t>(bytes) + kGuard, 0xFF);
  sanitizer::forbid(workspace.data() + bytes, kGuard);
  const char* error = launch(workspace.data());
  sanitizer::allow(workspace.data() + bytes, kGuard);
  if (error) throw std::runtime_error(error);
  for (size_t i = static_cast<size_t>(bytes); i < workspace.size(); ++i)
    if (workspace[i] != 0xFF) throw std::runtime_error("written beyond the workspace");
}

// The levels of Places as pairs (size, stride), the outermost first.
using Levels = std::vector<std::pair<int64_t, int64_t>>;

Places places_of(const Levels& levels) {
  Places places;
  for (const auto& [size, stride] : levels) {
    places.sizes[places.levels] = size;
    places.strides[places.levels++] = stride;
  }
  return places;
}

void transform(bool cuda, Address x, Address out, int type, int64_t rows, int64_t n, double scale,
               Address before, Address after, int64_t K, bool transpose, int64_t before_rows,
               int64_t after_rows, const Levels& x_places, const Levels& out_places) {
  Transform t{at<void>(x), at<void>(out), static_cast<Type>(type), rows,
              n,           scale,         at<void>(before),        at<void>(after)};
  t.before_rows = before_rows;
  t.after_rows = after_rows;
  t.x_places = places_of(x_places);
  t.out_places = places_of(out_places);
  if (K != 1 && !factor(K, transpose, t.factors)) throw std::invalid_argument("K is no order");
  if (!cuda)
    return cpu::kernels().transform(t, split, [] { return int64_t{std::max(threads, 1)}; });
  run_emulated(cuda::transform_workspace(t, 0),
               [&](void* w) { return cuda::transform(t, w, {nullptr, 0}); });
}

// The transform with matrices of the caller's: (order, words of signs) of each, the inner one
// first.
void transform_by(Address x, Address out, int type, int64_t rows, int64_t n, double scale,
                  Address before, Address after, std::vector<std::pair<int64_t, Address>> given) {
  Transform t{at<void>(x), at<void>(out), static_cast<Type>(type), rows,
              n,           scale,         at<void>(before),        at<void>(after)};
  SignMatrix matrices[2];
  for (size_t i = 0; i < given.size(); ++i) {
    const int64_t K = given[i].first;
    matrices[i] = {K, (K + 31) / 32, at<uint32_t>(given[i].second)};
    t.factors[i] = &matrices[i];
  }
  run_emulated(cuda::transform_workspace(t, 0),
               [&](void* w) { return cuda::transform(t, w, {nullptr, 0}); });
}

py::object sign_matrix_rows(int64_t K, bool transpose) {
  const SignMatrix* matrix = sign_matrix(K, transpose);
  if (!matrix) return py::none();
  std::vector<std::vector<int>> rows;
  for (int64_t a = 0; a < K; ++a) {
    rows.emplace_back();
    for (int64_t b = 0; b < K; ++b) {
      const bool negative = matrix->bits[a * matrix->words + b / 32] >> b % 32 & 1;
      rows.back().push_back(negative ? -1 : 1);
    }
  }
  return py::cast(rows);
}

void words(bool cuda, uint64_t seed, uint32_t stream, uint64_t first, int64_t count, Address out) {
  const Draw d{seed, stream, first, count};
  if (!cuda) return cpu::kernels().words(d, at<uint32_t>(out), split);
  run_emulated(0, [&](void*) { return cuda::words(d, at<uint32_t>(out), {nullptr, 0}); });
}

void normals(bool cuda, uint64_t seed, uint32_t stream, uint64_t first, int64_t count,
             Address out) {
  const Draw d{seed, stream, first, count};
  if (!cuda) return cpu::kernels().normals(d, at<float>(out), split);
  run_emulated(0, [&](void*) { return cuda::normals(d, at<float>(out), {nullptr, 0}); });
}

void project(bool cuda, Address out, Address base, Address v, Address offsets, Address scales,
             int64_t segments, int type, int64_t L, int64_t start, int64_t count, uint64_t seed) {
  const Projection p{at<void>(out),
                     at<void>(base),
                     at<void>(v),
                     at<int64_t>(offsets),
                     at<void>(scales),
                     segments,
                     static_cast<Type>(type),
                     L,
                     start,
                     count,
                     seed};
  if (!cuda) return cpu::kernels().project(p, split);
  run_emulated(cuda::project_workspace(p, 0),
               [&](void* w) { return cuda::project(p, w, {nullptr, 0}); });
}

// pieces: (address, type, factor, start, count) of each.
void adjoint(bool cuda, py::list pieces, Address z, int type, int64_t L, uint64_t seed) {
  std::vector<Piece> all;
  for (py::handle item : pieces) {
    const auto t = item.cast<std::tuple<Address, int, double, int64_t, int64_t>>();
    all.push_back({at<void>(std::get<0>(t)), static_cast<Type>(std::get<1>(t)), std::get<2>(t),
                   std::get<3>(t), std::get<4>(t)});
  }
  const Adjoint a{
      all.data(), static_cast<int64_t>(all.size()), at<void>(z), static_cast<Type>(type), L, seed};
  if (!cuda) return cpu::kernels().adjoint(a, split);
  run_emulated(cuda::adjoint_workspace(a, 0),
               [&](void* w) { return cuda::adjoint(a, w, {nullptr, 0}); });
}

// Runs a kernel with the mistake of this name; returns what the emulator says of it, or an empty
// string.
std::string run_faulty(const std::string& mistake) {
  constexpr int kThreads = 64;
  static const float kFour[4] = {};
  static const uint4 kPacket = {0x3F800000, 0x3F800000, 0x3F800000, 0x3F800000};
  const char* error = emulator::run(1, kThreads, kThreads * sizeof(float), [&] {
    const cuda::Shared<float> x(cuda::shared_memory<float>());
    const int thread = static_cast<int>(threadIdx.x), next = (thread + 1) % kThreads;
    if (mistake == "unwritten") return static_cast<void>(static_cast<float>(x[thread]));
    if (mistake == "outside") return x[thread + 1] = 0.0f;
    if (mistake == "not aligned") return cuda::store_run<4, float>(x + 1, &kFour[0]);
    if (mistake == "a copy that is not awaited") {
      const cuda::Shared<uint4> slots(cuda::shared_memory<uint4>());
      if (thread < kThreads / 4) cuda::copy_async(slots + thread, &kPacket);
      const float copied = thread < kThreads / 4 ? x[4 * thread] : 1.0f;
      if (copied != 1.0f) emulator::fail("a copy was read before it came");
      return;
    }
    if (mistake == "bank conflict") return x[thread / 2 + thread % 2 * 32] = 1.0f;
    if (mistake == "half a product") {
      const uint32_t ones[4] = {};
      float sums[4] = {};
      if (thread % 32 < 16)
        cuda::multiply_add<__half>(sums[0], sums[1], sums[2], sums[3], ones, 0, 0);
      return;
    }
    if (mistake.find("warp barrier") != std::string::npos) {
      x[thread] = 1.0f;
      if (mistake == "none but a warp barrier") __syncwarp();
      return static_cast<void>(static_cast<float>(x[thread ^ 1]));
    }
    x[mistake == "collision" ? thread / 2 : thread] = 1.0f;
    if (mistake == "barrier in a branch" && thread < 32) return;
    if (mistake != "no barrier") __syncthreads();
    const float read = x[next];
    if (mistake != "no barrier behind") __syncthreads();
    x[thread] = read;
    __shfl_xor_sync(mistake == "half a warp" ? 0xFFFFu : 0xFFFFFFFFu, read,
                    mistake == "another warp" ? 32 : 16);
  });
  return error ? error : "";
}

py::tuple philox(py::tuple counter, uint32_t key0, uint32_t key1, int rounds) {
  Words x;
  for (size_t i = 0; i < 4; ++i) x.w[i] = counter[i].cast<uint32_t>();
  const Words y = philox4x32(x, key0, key1, rounds);
  return py::make_tuple(y.w[0], y.w[1], y.w[2], y.w[3]);
}

}  // namespace

PYBIND11_MODULE(fastfood_native_tests, m) {
  m.def("isa", [] { return cpu::kernels().name; });
  m.def("transform", transform, py::arg("cuda"), py::arg("x"), py::arg("out"), py::arg("type"),
        py::arg("rows"), py::arg("n"), py::arg("scale"), py::arg("before") = 0,
        py::arg("after") = 0, py::arg("K") = 1, py::arg("transpose") = false,
        py::arg("before_rows") = 1, py::arg("after_rows") = 1, py::arg("x_places") = Levels{},
        py::arg("out_places") = Levels{});
  m.def("transform_by", transform_by);
  m.def("sign_matrix", sign_matrix_rows);
  m.def("words", words);
  m.def("normals", normals);
  m.def("project", project);
  m.def("adjoint", adjoint);
  m.def("columns", [](Address x, int64_t total, int log, int levels) {
    const char* error = cuda::transform_work(at<float>(x), total, log, levels, {nullptr, 0});
    if (error) throw std::runtime_error(error);
  });
  m.def("cut_row", [](int row_log, int best, int most, int most_levels) {
    const cuda::Cut cut = cuda::cut_row(row_log, best, most, most_levels);
    return py::make_tuple(cut.tile_log, std::vector<int>(cut.levels, cut.levels + cut.passes));
  });
  bind_plain(m);
  m.def("run_faulty", run_faulty, py::arg("mistake"));
  m.def("philox", philox);
  m.def("normal", [](uint32_t k) { return normal(k, kNormalTable); });
  m.def("use_threads", [](int count) { threads = count; });
  // Sets the emulator's limits: blocks of a launch, entries of the workspace and of the adjoint's
  // partial sums, bytes of shared memory; the order of threads; and whether there are tensor cores.
  m.def(
      "configure",
      [](int64_t blocks, int64_t wave, int64_t partials, int64_t shared, bool backwards,
         bool tensor) {
        emulator::limits = {blocks, wave, partials, shared, tensor};
        emulator::backwards = backwards;
      },
      py::arg("blocks"), py::arg("wave"), py::arg("partials"), py::arg("shared"),
      py::arg("backwards"), py::arg("tensor") = true);
  // cycles() returns what accesses to shared memory took since count_cycles(), and what they would
  // have taken without bank conflicts.
  m.def("count_cycles", [] {
    emulator::counting = true;
    emulator::cycles = {};
  });
  m.def("cycles", [] {
    emulator::counting = false;
    return py::make_tuple(emulator::cycles.taken, emulator::cycles.least);
  });
}

}  // namespace fastfood
