// All that the kernels and their launches ask of the machine: launches, limits, shared memory,
// barriers. nvcc compiles what uses the CUDA runtime; any other compiler gets the tests' emulator
// instead, so that the same kernels run without a GPU.
#pragma once

#include <atomic>
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
  int64_t blocks;    // in one launch; kernels loop over the rest
  int64_t wave;      // entries of a workspace, which take all their passes before the next ones
  int64_t partials;  // entries of the adjoint's partial sums; changing it changes their rounding,
                     // so it is never tuned for a device
};

// Facts about one GPU that never change.
struct Device {
  int64_t shared;  // bytes of shared memory that a block may have
  int multiprocessors;
  bool tensor;  // whether the tensor cores have the instructions of mma.cuh: from sm_80 on
};

struct Grid {
  int64_t blocks;
  int threads;     // of a block
  int64_t shared;  // bytes of a block
  Stream stream;
};

constexpr int kLanes = 32;  // threads of a warp

// kCount neighbouring entries that one access moves.
template <int kCount, class T>
struct alignas(kCount * sizeof(T)) Run {
  T x[kCount];
};

#if defined(__CUDACC__)

constexpr Limits kLimits = {int64_t{1} << 30, int64_t{1} << 26, int64_t{1} << 21};
inline Limits limits() { return kLimits; }

constexpr int kKnownDevices =
    64;  // devices whose facts are kept; the driver is asked anew about others

inline Device ask_device(int index) {
  int shared = 48 * 1024, multiprocessors = 1, major = 0;
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  return {shared, multiprocessors, major >= 8};
}

// Asks the driver once for each device: a launch has no time for it.
inline Device device_facts(int index) {
  static std::atomic<uint64_t> known[kKnownDevices];
  if (index < 0 || index >= kKnownDevices) return ask_device(index);
  uint64_t packed = known[index].load(std::memory_order_relaxed);
  if (!packed) {
    const Device asked = ask_device(index);
    packed = static_cast<uint64_t>(asked.shared) << 32 |
             static_cast<uint32_t>(asked.multiprocessors) << 1 | asked.tensor;
    known[index].store(packed, std::memory_order_relaxed);
  }
  return {static_cast<int64_t>(packed >> 32), static_cast<int>((packed & 0xFFFFFFFFu) >> 1),
          (packed & 1) != 0};
}

template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char fastfood_shared_memory[];
  return reinterpret_cast<T*>(fastfood_shared_memory);
}

// A pointer to shared memory. In the emulator it is a class that checks every access.
template <class T>
using Shared = T*;

// kCount neighbouring entries of shared memory, at most 16 bytes, by one access.
template <int kCount, class T>
__device__ __forceinline__ void load_run(Shared<T> p, T* r) {
  const auto run = *reinterpret_cast<const Run<kCount, T>*>(p);
#pragma unroll
  for (int k = 0; k < kCount; ++k) r[k] = run.x[k];
}
template <int kCount, class T>
__device__ __forceinline__ void store_run(Shared<T> p, const T* r) {
  Run<kCount, T> run;
#pragma unroll
  for (int k = 0; k < kCount; ++k) run.x[k] = r[k];
  *reinterpret_cast<Run<kCount, T>*>(p) = run;
}

// Copies 16 bytes to shared memory while the thread goes on, until await_copies().
__device__ __forceinline__ void copy_async(Shared<uint4> to, const uint4* from) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from));
#else
  *to = *from;
#endif
}
__device__ __forceinline__ void await_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// CUDA's text for `error`, with advice where the driver or the GPU is the cause. It belongs to this
// thread and is valid until the next call.
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

// A kernel that needs more shared memory than this has to ask for it, once on each device.
constexpr int64_t kSharedBytes = 48 * 1024;

inline cudaError_t allow_shared(const void* kernel, const Grid& grid,
                                std::atomic<uint64_t>& allowed) {
  const int device = grid.stream.device;
  const uint64_t bit = device >= 0 && device < kKnownDevices ? uint64_t{1} << device : 0;
  if (grid.shared <= kSharedBytes || (allowed.load(std::memory_order_relaxed) & bit))
    return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(device_facts(device).shared));
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

inline const char* run_on_device(const void* kernel, const Grid& grid, void** parameters,
                                 std::atomic<uint64_t>& allowed) {
  cudaError_t error = allow_shared(kernel, grid, allowed);
  if (error == cudaSuccess)
    error = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(grid.blocks)),
                             dim3(static_cast<unsigned>(grid.threads)), parameters,
                             static_cast<size_t>(grid.shared),
                             static_cast<cudaStream_t>(grid.stream.handle));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, not by the next call that happens to ask
  return explain(error);
}

#else

inline Limits limits() {
  return {emulator::limits.blocks, emulator::limits.wave, emulator::limits.partials};
}
inline Device device_facts(int) { return {emulator::limits.shared, 2, emulator::limits.tensor}; }

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory(sizeof(T)));
}

template <class T>
using Shared = emulator::Shared<T>;

template <int kCount, class T>
void load_run(Shared<T> p, T* r) {
  std::memcpy(r, p.touch(kCount, false), kCount * sizeof(T));
}
template <int kCount, class T>
void store_run(Shared<T> p, const T* r) {
  std::memcpy(p.touch(kCount, true), r, kCount * sizeof(T));
}

inline void copy_async(Shared<uint4> to, const uint4* from) { emulator::copy_later(to, from); }
inline void await_copies() { emulator::await_copies(); }

#endif

// The text `name`: `reason`, which is valid until this thread's next failure.
inline const char* failure(const char* name, const char* reason) {
  static thread_local std::string message;
  message = std::string(name) + ": " + reason;
  return message.c_str();
}

// Launch<kernel>::run(name, grid, arguments ...) launches on at most limits().blocks blocks and
// returns null, or `name` and the reason why it failed.
template <auto kernel>
struct Launch;
template <class... Parameters, void (*kernel)(Parameters...)>
struct Launch<kernel> {
  static const char* run(const char* name, Grid grid, std::remove_cv_t<Parameters>... parameters) {
    if (grid.blocks > limits().blocks) grid.blocks = limits().blocks;
#if defined(__CUDACC__)
    static std::atomic<uint64_t> allowed{0};
    void* pointers[] = {&parameters...};
    const char* reason =
        run_on_device(reinterpret_cast<const void*>(kernel), grid, pointers, allowed);
#else
    const char* reason = emulator::run(grid.blocks, grid.threads, static_cast<size_t>(grid.shared),
                                       [=] { kernel(parameters...); });
#endif
    return reason ? failure(name, reason) : nullptr;
  }
};

// A barrier of the kThreads threads that share a tile: a warp, or the whole block.
template <int kThreads>
__device__ __forceinline__ void barrier() {
  static_assert(kThreads >= kLanes, "a tile has whole warps");
  if constexpr (kThreads == kLanes) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// This thread's index in the launch and the number of threads in it, for grid-stride loops.
__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastfood::cuda
