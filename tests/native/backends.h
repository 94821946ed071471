// Both backends for a program without torch: memory of the device with guards around it, and calls
// that return when they are done. Only this file and module.cpp know how kernels.h wants to be
// called. nvcc compiles it for a GPU; another compiler for the emulator, with the host's memory.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/kernels.h"
#include "../../csrc/orders.h"
#include "plain.cuh"

namespace fastfood::compare {

// --- The device ----------------------------------------------------------------------------------

inline std::string running;  // the case that runs now, for messages

// Ends the program if there is an error: after one of the device no further result would count.
inline void stop_at(const char* error, const char* what) {
  if (!error) return;
  std::printf("%s: %s %s\n", what, error, running.c_str());
  std::exit(2);
}

#if defined(__CUDACC__)

inline void check(cudaError_t error, const char* what) {
  stop_at(error == cudaSuccess ? nullptr : cudaGetErrorString(error), what);
}
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes), "cudaMalloc");
  return p;
}
inline void release(void* p) { check(cudaFree(p), "cudaFree"); }
inline void copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}
inline void fill(void* p, int byte, size_t bytes) { check(cudaMemset(p, byte, bytes), "memset"); }
inline void synchronize() { check(cudaDeviceSynchronize(), "a kernel"); }
inline std::string device_name() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "no GPU");
  return properties.name;
}

#else

inline void* allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
inline void release(void* p) { std::free(p); }
inline void copy(void* to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(to, from, bytes);
}
inline void fill(void* p, int byte, size_t bytes) { std::memset(p, byte, bytes); }
inline void synchronize() {}
inline std::string device_name() { return "emulator"; }

#endif

// --- Memory with guards --------------------------------------------------------------------------

using Bytes = std::vector<unsigned char>;

// A mistake made on purpose in every result, to show that comparisons notice it.
enum class Spoil { nothing, value, guard };

struct Settings {
  size_t guard = 256;  // bytes before and after each array; 0 if a sanitizer is to see its end
  Spoil spoil = Spoil::nothing;
};
inline Settings settings;

// `size` bytes of the device that begin `shift` bytes after an aligned address. Bytes that have not
// been written are 0xFF, which is NaN in every type.
class Array {
 public:
  explicit Array(size_t size, size_t shift = 0)
      : begin_(settings.guard + shift), size_(size), whole_(begin_ + size + settings.guard) {
    memory_ = static_cast<unsigned char*>(allocate(whole_ + (whole_ == 0)));
    fill(memory_, 0xFF, whole_);
  }
  explicit Array(const Bytes& values, size_t shift = 0) : Array(values.size(), shift) {
    copy(data(), values.data(), values.size());
  }
  Array(const Array&) = delete;
  ~Array() { release(memory_); }

  void* data() const { return memory_ + begin_; }

  // Returns the contents, once the device is done; sets `intact` to false if a guard has been
  // written to.
  Bytes take(bool& intact) const {
    if (settings.spoil == Spoil::value && size_) fill(data(), 0xFF, std::min<size_t>(size_, 8));
    if (settings.spoil == Spoil::guard && settings.guard) fill(memory_ + begin_ + size_, 0, 1);
    Bytes all(whole_);
    copy(all.data(), memory_, whole_);
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(begin_);
    const auto end = begin + static_cast<std::ptrdiff_t>(size_);
    const auto untouched = [](unsigned char byte) { return byte == 0xFF; };
    if (!std::all_of(all.begin(), begin, untouched) || !std::all_of(end, all.end(), untouched))
      intact = false;
    return Bytes(begin, end);
  }

 private:
  size_t begin_, size_, whole_;
  unsigned char* memory_;
};

// --- Calls ---------------------------------------------------------------------------------------

// A ParallelFor over all threads of the processor.
inline int64_t processors() { return std::max(1u, std::thread::hardware_concurrency()); }

inline void parallel(int64_t count, int64_t grain, cpu::Body body, void* context) {
  const int64_t ranges = std::max<int64_t>(1, std::min(processors(), count / grain));
  std::vector<std::thread> running;
  for (int64_t i = 1; i < ranges; ++i)
    running.emplace_back(body, count * i / ranges, count * (i + 1) / ranges, context);
  body(0, count / ranges, context);
  for (std::thread& thread : running) thread.join();
}

inline void on_cpu(const Transform& t) { cpu::kernels().transform(t, parallel, processors); }
inline void on_cpu(const Projection& p) { cpu::kernels().project(p, parallel); }
inline void on_cpu(const Adjoint& a) { cpu::kernels().adjoint(a, parallel); }
inline void on_cpu(const Draw& d, uint32_t* out) { cpu::kernels().words(d, out, parallel); }
inline void on_cpu(const Draw& d, float* out) { cpu::kernels().normals(d, out, parallel); }

constexpr cuda::Stream kStream = {nullptr, 0};

inline int64_t workspace(const Transform& t) { return cuda::transform_workspace(t, 0); }
inline int64_t workspace(const Projection& p) { return cuda::project_workspace(p, 0); }
inline int64_t workspace(const Adjoint& a) { return cuda::adjoint_workspace(a, 0); }
inline const char* launch(const Transform& t, void* w) { return cuda::transform(t, w, kStream); }
inline const char* launch(const Projection& p, void* w) { return cuda::project(p, w, kStream); }
inline const char* launch(const Adjoint& a, void* w) { return cuda::adjoint(a, w, kStream); }
inline const char* launch(const Draw& d, uint32_t* out) { return cuda::words(d, out, kStream); }
inline const char* launch(const Draw& d, float* out) { return cuda::normals(d, out, kStream); }

// Calls f with the descriptor of the adjoint of one gradient. It points to a Piece that exists
// during the call only.
template <class F>
void with_adjoint(const void* g, void* z, Type type, int64_t L, int64_t start, int64_t count,
                  uint64_t seed, F f) {
  const Piece piece{g, type, 1.0, start, count};
  f(Adjoint{&piece, 1, z, type == Type::f64 ? Type::f64 : Type::f32, L, seed});
}

// Runs a call whose pointers are the device's, with a workspace. Returns whether the workspace's
// guards are intact.
template <class Call>
bool on_device(const Call& call) {
  const Array memory(static_cast<size_t>(workspace(call)));
  stop_at(launch(call, memory.data()), "launch");
  synchronize();
  bool intact = true;
  memory.take(intact);
  return intact;
}

template <class Out>
void on_device(const Draw& draw, Out* out) {
  stop_at(launch(draw, out), "launch");
  synchronize();
}

inline void plain_on_device(const Transform& t, void* work) {
  stop_at(plain::transform(t, work), "plain kernel");
  synchronize();
}

}  // namespace fastfood::compare
