// The generator's words and normals by themselves (definitions.h) on CUDA: a call for each thread.
#include "normals.cuh"

namespace fastfood::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    words_kernel(uint64_t seed, uint32_t stream, uint64_t first, int64_t count, uint32_t* out) {
#pragma unroll 1
  for (int64_t i = thread_index(); i < count; i += all_threads()) {
    const Words words = stream_call(seed, stream, first + static_cast<uint64_t>(i));
#pragma unroll
    for (int k = 0; k < 4; ++k) out[4 * i + k] = words.w[k];
  }
}

__global__ void __launch_bounds__(kThreads)
    normals_kernel(uint64_t seed, uint32_t stream, uint64_t first, int64_t count,
                   const __grid_constant__ NormalTable table, float* out) {
  NormalCoefficients& shared = *shared_memory<NormalCoefficients>();
  shared.copy(table);
  __syncthreads();
#pragma unroll 1
  for (int64_t i = thread_index(); i < count; i += all_threads()) {
    float z[kNormalsPerCall];
    draw_normals(seed, stream, first + static_cast<uint64_t>(i), shared, z);
#pragma unroll
    for (int k = 0; k < kNormalsPerCall; ++k) out[kNormalsPerCall * i + k] = z[k];
  }
}

}  // namespace

const char* words(const Draw& d, uint32_t* out, Stream stream) {
  if (d.count == 0) return nullptr;
  return Launch<words_kernel>::run("words_kernel",
                                   {divide_up(d.count, kThreads), kThreads, 0, stream}, d.seed,
                                   d.stream, d.first, d.count, out);
}

const char* normals(const Draw& d, float* out, Stream stream) {
  if (d.count == 0) return nullptr;
  return Launch<normals_kernel>::run(
      "normals_kernel",
      {divide_up(d.count, kThreads), kThreads, sizeof(NormalCoefficients), stream}, d.seed,
      d.stream, d.first, d.count, kNormalTable, out);
}

}  // namespace fastfood::cuda
