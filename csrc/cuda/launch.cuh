// What the kernels ask of the machine, in one place: launches, limits, shared memory, storage
// types. nvcc compiles the CUDA runtime's; any other compiler gets those of the tests' emulator, so
// that the same kernels run without a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "../kernels.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

namespace fastfood::cuda {

struct Limits {
  int64_t blocks;  // in one launch; kernels loop over what is left
  int64_t wave;    // entries in the workspace of a transform that takes several passes
  int64_t
      parts;  // partial sums of the adjoint: part of its definition, not to be fitted to a device
};

constexpr size_t kSharedBytes = 48 * 1024;  // what a block gets without asking

#if defined(__CUDACC__)

constexpr Limits kLimits = {int64_t{1} << 20, int64_t{1} << 24, 1024};
inline Limits limits() { return kLimits; }

template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char fastfood_shared_memory[];
  return reinterpret_cast<T*>(fastfood_shared_memory);
}

// How kernels point to it: the emulator looks at every access.
template <class T>
using Shared = T*;

// Bytes of shared memory that a block of the current device may have.
inline int64_t shared_limit() {
  int device = 0, bytes = 48 * 1024;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// What the runtime says of an error, and of those that come from the machine what to do. Kept for
// this thread until the next one.
inline const char* explain(cudaError_t error) {
  static thread_local std::string message;
  message = cudaGetErrorString(error);
  if (message.back() == '.') message.pop_back();  // more may follow
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    message += ": wanted a driver for CUDA " + version(CUDART_VERSION) + ", got " +
               (driver ? "one for CUDA " + version(driver) : std::string("none")) +
               "; update it, or install a wheel made with an older CUDA";
  } else if (error == cudaErrorNoKernelImageForDevice) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    message += ": wanted a GPU that this wheel is made for, got one of compute capability " +
               std::to_string(major) + "." + std::to_string(minor) +
               "; build with it in FASTFOOD_CUDA_ARCHS";
  }
  return message.c_str();
}

template <class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads,
                          size_t shared_bytes, StreamHandle stream, Parameters... parameters) {
  void* pointers[] = {&parameters...};
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedBytes)  // more has to be asked for, kernel by kernel
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess)
    error =
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), pointers, shared_bytes,
                         static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, not by the next call that happens to ask
  return explain(error);
}

#else

inline int64_t shared_limit() { return emulator::limits.shared; }

inline Limits limits() {
  return {emulator::limits.blocks, emulator::limits.wave, emulator::limits.parts};
}

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory(sizeof(T)));
}

template <class T>
using Shared = emulator::Shared<T>;

template <class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads,
                          size_t shared_bytes, StreamHandle, Parameters... parameters) {
  return emulator::run(blocks, threads, shared_bytes, [=] { kernel(parameters...); });
}

#endif

// Kept for this thread until its next failure.
inline const char* failure(const char* name, const char* reason) {
  static thread_local std::string message;
  message = std::string(name) + ": " + reason;
  return message.c_str();
}

// Launches `kernel` on at most limits().blocks blocks. Returns null, or `name` and the reason why
// it failed.
template <class... Parameters>
const char* launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
                   size_t shared_bytes, StreamHandle stream,
                   std::common_type_t<Parameters>... parameters) {
  const int64_t most = limits().blocks;
  const char* reason = launch_kernel<Parameters...>(kernel, blocks < most ? blocks : most, threads,
                                                    shared_bytes, stream, parameters...);
  return reason ? failure(name, reason) : nullptr;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of this thread in the launch, and the threads that it has: loops go from one in steps of the
// other.
__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// The type that values stored as T are computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }
__device__ __forceinline__ void narrow(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& out) {
  out = __float2bfloat16_rn(x);
}

// f(T*) with the storage type T that `type` names, for f that returns an error or a size.
template <class F>
auto with_type(Type type, F f) {
  switch (type) {
    case Type::f32: return f(static_cast<float*>(nullptr));
    case Type::f64: return f(static_cast<double*>(nullptr));
    case Type::f16: return f(static_cast<__half*>(nullptr));
    case Type::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  __builtin_trap();
}

}  // namespace fastfood::cuda
