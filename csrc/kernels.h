// Entry points of both backends: raw pointers, sizes and, for CUDA, a stream. Nothing here knows
// torch. Sizes are elements; every array but a transform's rows is contiguous. Arguments are
// checked by the callers in torch_cpu.cpp and torch_cuda.cpp.
#pragma once

#include <cstdint>

namespace fastfood {

constexpr bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

enum class Type { f32, f64, f16, bf16 };

// A Hadamard matrix H of order K: entries +1 and -1, H Ht = K I.
struct SignMatrix {
  int64_t K;
  int64_t words;         // in a row
  const uint32_t* bits;  // bit b % 32 of word b / 32 of row a is set where H[a][b] = -1
};

// Where rows begin: the digits of a row's number, of which digit k is below sizes[k], each times
// its stride. The first is the outermost, and its size not read.
struct Places {
  static constexpr int kMost = 4;
  int levels = 0;  // none: a row begins where the one before it ends
  int64_t sizes[kMost] = {}, strides[kMost] = {};
};

// Rows of length n = K_1 K_0 2^k, each times scale diag(after) (H_K_1 (x) H_K_0 (x) H_2^k)
// diag(before): the entry is multiplied by `before`; then come the butterflies of strides 1, 2, ...
// 2^(k - 1), then H_K_0 over entries 2^k apart and H_K_1 over entries K_0 2^k apart; then the
// factors scale and `after`, in this order. Every product, sum and difference is rounded once, so
// that with K = 1 every bit is defined. With K > 1 the order of all sums is the backend's own.
// `out` may be `x`, in the same places. Rows of `out` have no entry in common.
struct Transform {
  const void* x;
  void* out;
  Type type;  // f16 and bf16 are computed in f32 and rounded once, at the end
  int64_t rows, n;
  double scale;
  const void* before = nullptr;  // f64 if `type` is, else f32; null: ones
  const void* after = nullptr;
  const SignMatrix* factors[2] = {nullptr, nullptr};  // of K_0 and K_1; null: order one
  int64_t before_rows = 1, after_rows = 1;  // neighbours after which a diagonal begins anew: it has
                                            // so many times n entries
  Places x_places = {}, out_places = {};
};

// Calls [first, first + count) of a stream of definitions.h: 4 words each, or the 8 normals they
// stand for.
struct Draw {
  uint64_t seed;
  uint32_t stream;
  uint64_t first;
  int64_t count;
};

// out[i] = base[i] + scales[s] * y[start + i], y = stack_b(H_L(G_b * v)), for offsets[s] <= i <
// offsets[s + 1]. With base null: out[i] = y[start + i], and offsets and scales are not read.
struct Projection {
  void* out;
  const void* base;
  const void* v;  // L entries, f64 if `type` is, else f32; `scales` has the same type
  const int64_t* offsets;
  const void* scales;
  int64_t segments;
  Type type;  // of out and base
  int64_t L, start, count;
  uint64_t seed;
};

// A gradient of rows [start, start + count), to be multiplied by `factor`.
struct Piece {
  const void* g;
  Type type;
  double factor;
  int64_t start, count;
};

// z = the sum over the pieces of factor * sum_b G_b * H_L(g_b), L entries, g_b the piece's rows of
// block b and zero elsewhere. The order of summation is fixed: the same bits for every number of
// threads.
struct Adjoint {
  const Piece* pieces;
  int64_t size;  // of pieces
  void* z = nullptr;
  Type type = Type::f32;  // of z: f32, or f64, in which the sums are computed then
  int64_t L = 0;
  uint64_t seed = 0;
};

namespace cpu {

// Calls body(begin, end, context) on disjoint ranges that cover [0, count), each at least `grain`
// long.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* context);
// How many threads do that.
using Threads = int64_t (*)();

// Bytes of the caches that a core has, the last one perhaps with others: powers of two, as the
// system says, or the environment variable FASTFOOD_CACHES ("32,1024,32768", in kilobytes).
// Only speed depends on them. Throws std::runtime_error if the variable is malformed.
struct Caches {
  int64_t first, second, last;
};
const Caches& caches();

// Whether rows in memory gain by being asked for in advance. AMD's processors of family 25 (Zen 3
// and 4) do so by themselves, and lose up to 40 percent where it is done twice.
bool prefetches();

// One table for each instruction set; the results of all of them are equal bit for bit.
struct Kernels {
  const char* name;
  void (*transform)(const Transform&, ParallelFor, Threads);
  void (*words)(const Draw&, uint32_t* out, ParallelFor);
  void (*normals)(const Draw&, float* out, ParallelFor);
  void (*project)(const Projection&, ParallelFor);
  void (*adjoint)(const Adjoint&, ParallelFor);
};

// The best table for this processor, or the one named by the environment variable FASTFOOD_ISA
// (avx512, avx2, portable). Throws std::runtime_error if that name is unknown or the processor
// lacks it.
const Kernels& kernels();

}  // namespace cpu

namespace cuda {

struct Stream {
  void* handle;  // a cudaStream_t
  int device;
};

// Each launches on `stream` and returns null, or the name of what failed and CUDA's reason.
// `workspace` holds the bytes that the function of the same prefix asks for; it is free again when
// the stream has passed.
int64_t transform_workspace(const Transform&, int device);
const char* transform(const Transform&, void* workspace, Stream stream);
const char* words(const Draw&, uint32_t* out, Stream stream);
const char* normals(const Draw&, float* out, Stream stream);
int64_t project_workspace(const Projection&, int device);
const char* project(const Projection&, void* workspace, Stream stream);
int64_t adjoint_workspace(const Adjoint&, int device);
const char* adjoint(const Adjoint&, void* workspace, Stream stream);

}  // namespace cuda
}  // namespace fastfood
