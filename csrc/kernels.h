// Entry points of both backends: raw pointers, sizes and, for CUDA, a stream. Nothing here knows
// torch. Sizes count elements; every array but the rows of a transform is contiguous. The callers,
// torch_cpu.cpp and torch_cuda.cpp, check all arguments.
//
// Words that both backends use:
//
//   level    the butterflies (x, y) -> (x + y, x - y) of entries `stride` = 2^level apart
//   tile     the entries that registers hold at once: those of one thread on the CPU, of a group
//            of threads on a GPU
//   pass     one sweep over the data that does several levels, or one matrix of order K
//   columns  neighbouring entries that a pass over entries far apart works on side by side
//   Load     a functor that brings entries to registers; a Store takes results from there to memory
//   block    L consecutive rows of the projection, H_L(G_b * v)
//   piece    one of the gradients that an adjoint sums up
//
// Only the CPU cuts a row into chunks, which one thread works on alone in its cache, and works in
// phases, each of which all threads finish before the next. Only CUDA moves packets of 16 bytes and
// cuts a large call into waves, as large as its workspace, one after the other.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastfood {

constexpr bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }
__attribute__((always_inline)) constexpr int log2_of(int64_t power_of_two) {
  return __builtin_ctzll(static_cast<unsigned long long>(power_of_two));
}

enum class Type { f32, f64, f16, bf16 };

// The type that values stored as T are computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A Hadamard matrix H of order K: entries +1 and -1, H Ht = K I.
struct SignMatrix {
  int64_t K;
  int64_t words;         // in a row
  const uint32_t* bits;  // bit b % 32 of word b / 32 of row a is set where H[a][b] = -1
};

// Where rows begin if they need not follow each other. A row's number is written in digits, one for
// each level of nested loops over rows: digit k is below sizes[k], and each step of it moves the
// row by strides[k] entries. Level 0 is the outermost; sizes[0] is not read.
struct Places {
  static constexpr int kMost = 4;
  int levels = 0;  // 0: each row begins where the one before it ends
  int64_t sizes[kMost] = {}, strides[kMost] = {};
};

// Multiplies each row of n = K_1 K_0 2^k entries by scale diag(after) (H_K_1 (x) H_K_0 (x) H_2^k)
// diag(before), in this order: first each entry is multiplied by `before`; then come the
// butterflies of strides 1, 2, ... 2^(k - 1), then H_K_0 over entries 2^k apart and H_K_1 over
// entries K_0 2^k apart; then the factors scale and `after`. Every product, sum and difference is
// rounded once, so with K = 1 every bit is defined. With K > 1 each backend has its own order of
// summation. `out` may be `x`, with its rows in the same places. No two rows of `out` share an
// entry.
struct Transform {
  const void* x;
  void* out;
  Type type;  // f16 and bf16 are computed in f32 and rounded once, at the end
  int64_t rows, n;
  double scale;
  const void* before = nullptr;  // f64 if `type` is, else f32; null: ones
  const void* after = nullptr;
  const SignMatrix* factors[2] = {nullptr, nullptr};  // of K_0 and K_1; null: order one
  int64_t before_rows = 1, after_rows = 1;  // rows that a diagonal spans: it has before_rows n
                                            // entries and begins anew after so many rows
  Places x_places = {}, out_places = {};
};

// Calls [first, first + count) of a stream of definitions.h: 4 words each, or the 8 normals that
// these stand for.
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

// The gradient of rows [start, start + count) of the projection, to be multiplied by `factor`.
struct Piece {
  const void* g;
  Type type;
  double factor;
  int64_t start, count;
};

// z, of L entries, = the sum over the pieces of factor * sum_b G_b * H_L(g_b), where g_b holds the
// piece's rows of block b and zeros elsewhere. The order of summation is fixed: the bits are the
// same for every number of threads.
struct Adjoint {
  const Piece* pieces;
  int64_t size;  // number of pieces
  void* z = nullptr;
  Type type = Type::f32;  // of z and of the sums: f32 or f64
  int64_t L = 0;
  uint64_t seed = 0;
};

namespace cpu {

// Calls body(begin, end, context) on disjoint ranges that cover [0, count), each at least `grain`
// long.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* context);
// The number of threads among which a ParallelFor divides its ranges.
using Threads = int64_t (*)();

// Bytes of a core's data caches, the last of which it may share with other cores, as powers of two:
// from the system, or from the environment variable FASTFOOD_CACHES ("32,1024,32768", in
// kilobytes). Only speed depends on them. Throws std::runtime_error if the variable is malformed.
struct Caches {
  int64_t first, second, last;
};
const Caches& caches();

// Whether software should prefetch rows from memory. AMD's processors of family 25 (Zen 3 and 4)
// prefetch them in hardware, and lose up to 40 percent if software does it as well.
bool prefetches();

// The kernels of one instruction set. Results are equal bit for bit on all of them.
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

// Each function launches kernels on `stream` and returns null, or a text: the kernel that failed
// and CUDA's reason. `workspace` holds as many bytes as the function's ..._workspace returns; it
// may be used again once the stream has run the kernels.
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
