// The CUDA implementations of the operators that torch_cpu.cpp declares: current stream, workspace,
// errors.
#include <torch/csrc/stable/accelerator.h>

#include <functional>

#include "torch_ops.h"

// In libtorch_cuda; its header declares it only for builds against a torch with CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);

namespace fastfood {

namespace {

// Calls launch(workspace, stream) on the device of `like`, with as many bytes from torch's caching
// allocator as `bytes` says, which may ask the device.
void run(const Tensor& like, const std::function<int64_t()>& bytes,
         const std::function<const char*(void*, cuda::StreamHandle)>& launch) {
  const auto device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const Tensor workspace = new_tensor(like, {bytes()}, ScalarType::Byte);
  const char* error = launch(workspace.mutable_data_ptr(), stream);
  STD_TORCH_CHECK(!error, "fastfood on CUDA: ", error);
}

struct Cuda {
  static void transform(const Transform& t, const Tensor& like) {
    run(
        like, [&] { return cuda::transform_workspace(t); },
        [&](void* workspace, cuda::StreamHandle stream) {
          return cuda::transform(t, workspace, stream);
        });
  }
  static void words(const Draw& d, uint32_t* out, const Tensor& like) {
    run(
        like, [] { return int64_t{0}; },
        [&](void*, cuda::StreamHandle stream) { return cuda::words(d, out, stream); });
  }
  static void normals(const Draw& d, float* out, const Tensor& like) {
    run(
        like, [] { return int64_t{0}; },
        [&](void*, cuda::StreamHandle stream) { return cuda::normals(d, out, stream); });
  }
  static void project(const Projection& p, const Tensor& like) {
    run(
        like, [&] { return cuda::project_workspace(p); },
        [&](void* workspace, cuda::StreamHandle stream) {
          return cuda::project(p, workspace, stream);
        });
  }
  static void adjoint(const Adjoint& a, const Tensor& like) {
    run(
        like, [&] { return cuda::adjoint_workspace(a); },
        [&](void* workspace, cuda::StreamHandle stream) {
          return cuda::adjoint(a, workspace, stream);
        });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastfood, CUDA, m) { register_operators<Cuda>(m); }

}  // namespace fastfood
