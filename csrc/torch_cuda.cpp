// The CUDA implementations of the operators that torch_cpu.cpp declares. Each call finds torch's
// current stream, gets a workspace from torch's allocator, and turns an error text into an
// exception.
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "torch_ops.h"

// A function of libtorch_cuda, which torch's header declares only if that torch was built with
// CUDA.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                             void** ret_stream);

namespace fastfood {

namespace {

// Calls launch(workspace, stream) on the device of `like`; bytes(device) says how large the
// workspace has to be.
template <class Bytes, class Launch>
void run(const Tensor& like, Bytes bytes, Launch launch) {
  const auto device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  cuda::Stream stream{nullptr, device};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream.handle));
  const int64_t size = bytes(device);
  const auto workspace =
      size > 0 ? std::optional(new_tensor(like, {size}, ScalarType::Byte)) : std::nullopt;
  const char* error = launch(workspace ? workspace->mutable_data_ptr() : nullptr, stream);
  STD_TORCH_CHECK(!error, "fastfood on CUDA: ", error);
}

int64_t nothing(int) { return 0; }

struct Cuda {
  static void transform(const Transform& t, const Tensor& like) {
    run(
        like, [&](int device) { return cuda::transform_workspace(t, device); },
        [&](void* workspace, cuda::Stream stream) {
          return cuda::transform(t, workspace, stream);
        });
  }
  static void words(const Draw& d, uint32_t* out, const Tensor& like) {
    run(like, nothing, [&](void*, cuda::Stream stream) { return cuda::words(d, out, stream); });
  }
  static void normals(const Draw& d, float* out, const Tensor& like) {
    run(like, nothing, [&](void*, cuda::Stream stream) { return cuda::normals(d, out, stream); });
  }
  static void project(const Projection& p, const Tensor& like) {
    run(
        like, [&](int device) { return cuda::project_workspace(p, device); },
        [&](void* workspace, cuda::Stream stream) { return cuda::project(p, workspace, stream); });
  }
  static void adjoint(const Adjoint& a, const Tensor& like) {
    run(
        like, [&](int device) { return cuda::adjoint_workspace(a, device); },
        [&](void* workspace, cuda::Stream stream) { return cuda::adjoint(a, workspace, stream); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastfood, CUDA, m) { register_operators<Cuda>(m); }

}  // namespace fastfood
