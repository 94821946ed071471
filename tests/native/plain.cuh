// The transform of csrc/cuda once more, as plain as a kernel can be, and slow: a block of threads
// for each row, one level after the other in ascending order of strides, a barrier between levels.
// It shares nothing with the fast kernels and has to give the same bits: a place to begin reading,
// and the last one to look for a mistake.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../csrc/cuda/launch.cuh"

namespace fastfood::plain {

// The type that values stored as T are computed in.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float x, float* out) { *out = x; }
__device__ inline void store(double x, double* out) { *out = x; }
__device__ inline void store(float x, __half* out) { *out = __float2half_rn(x); }
__device__ inline void store(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }

// A row of n = 2^k entries, by the threads of a block; `row` is memory for its values in the wide
// type.
template <class Row, class T>
__device__ void transform_row(Row row, const T* x, T* out, int64_t n, Wide<T> scale,
                              const Wide<T>* before, const Wide<T>* after) {
  const int64_t thread = threadIdx.x, threads = blockDim.x;
  for (int64_t i = thread; i < n; i += threads)
    row[i] = before ? widen(x[i]) * before[i] : widen(x[i]);
  for (int64_t stride = 1; stride < n; stride *= 2) {
    __syncthreads();
    for (int64_t pair = thread; pair < n / 2; pair += threads) {
      const int64_t i = pair / stride * 2 * stride + pair % stride;
      const Wide<T> a = row[i], b = row[i + stride];
      row[i] = a + b;
      row[i + stride] = a - b;
    }
  }
  __syncthreads();
  for (int64_t i = thread; i < n; i += threads) {
    const Wide<T> y = row[i] * scale;
    store(after ? y * after[i] : y, out + i);
  }
}

// Rows are worked on in `work`, or in shared memory if that is null. `out` may be `x`.
template <class T>
__global__ void transform_kernel(const T* x, T* out, Wide<T>* work, int64_t n, Wide<T> scale,
                                 const Wide<T>* before, const Wide<T>* after) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * n;
  if (work) {
    transform_row(work + first, x + first, out + first, n, scale, before, after);
  } else {
    const cuda::Shared<Wide<T>> row(cuda::shared_memory<Wide<T>>());
    transform_row(row, x + first, out + first, n, scale, before, after);
  }
}

constexpr int kThreads = 128;

// Launches on stream 0; returns null, or what went wrong. There are no matrices of order K here.
template <class T>
const char* launch(const Transform& t, void* work) {
  const auto* x = static_cast<const T*>(t.x);
  auto* out = static_cast<T*>(t.out);
  auto* rows = static_cast<Wide<T>*>(work);
  const auto scale = static_cast<Wide<T>>(t.scale);
  const auto *before = static_cast<const Wide<T>*>(t.before),
             *after = static_cast<const Wide<T>*>(t.after);
  const size_t shared = work ? 0 : static_cast<size_t>(t.n) * sizeof(Wide<T>);
#if defined(__CUDACC__)
  transform_kernel<T><<<static_cast<unsigned>(t.rows), kThreads, shared>>>(x, out, rows, t.n, scale,
                                                                           before, after);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  return emulator::run(t.rows, kThreads, shared,
                       [=] { transform_kernel<T>(x, out, rows, t.n, scale, before, after); });
#endif
}

inline const char* transform(const Transform& t, void* work) {
  switch (t.type) {
    case Type::f32: return launch<float>(t, work);
    case Type::f64: return launch<double>(t, work);
    case Type::f16: return launch<__half>(t, work);
    case Type::bf16: return launch<__nv_bfloat16>(t, work);
  }
  __builtin_trap();
}

}  // namespace fastfood::plain
