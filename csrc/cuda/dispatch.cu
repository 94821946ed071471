// The entry points of kernels.h for CUDA: each finds the functions of the storage type at hand.
#include "storage.cuh"
#include "transform.h"

namespace fastfood::cuda {

int64_t transform_workspace(const Transform& t, int device) {
  return with_type(t.type, [&](auto element) -> int64_t {
    using T = decltype(element);
    return t.factors[0] ? orders_workspace<T>(t, device) : rows_workspace<T>(t, device);
  });
}

const char* transform(const Transform& t, void* workspace, Stream stream) {
  return with_type(t.type, [&](auto element) -> const char* {
    using T = decltype(element);
    return t.factors[0] ? transform_orders<T>(t, workspace, stream)
                        : transform_rows<T>(t, workspace, stream);
  });
}

int64_t project_workspace(const Projection& p, int device) {
  return with_type(p.type, [&](auto element) -> int64_t {
    return project_workspace_of<decltype(element)>(p, device);
  });
}

const char* project(const Projection& p, void* workspace, Stream stream) {
  return with_type(p.type, [&](auto element) -> const char* {
    return project_rows_of<decltype(element)>(p, workspace, stream);
  });
}

int64_t adjoint_workspace(const Adjoint& a, int device) {
  return a.type == Type::f64 ? adjoint_workspace_of<double>(a, device)
                             : adjoint_workspace_of<float>(a, device);
}

const char* adjoint(const Adjoint& a, void* workspace, Stream stream) {
  return a.type == Type::f64 ? adjoint_of<double>(a, workspace, stream)
                             : adjoint_of<float>(a, workspace, stream);
}

}  // namespace fastfood::cuda
