// hadamard_transform on CUDA.
#include "fwht.cuh"

namespace fastfood::cuda {

// Rows longer than a tile are transformed in `out` itself, if it has the type that they are
// computed in.
int64_t transform_workspace(const Transform& t) {
  return with_type(t.type, [&](auto* element) -> int64_t {
    using T = std::remove_pointer_t<decltype(element)>;
    using C = Arithmetic<T>;
    if (fits_tile<C>(t.n) || std::is_same_v<T, C>) return 0;
    return wave_size(t.n, t.rows * t.n) * static_cast<int64_t>(sizeof(C));
  });
}

const char* transform(const Transform& t, void* workspace, StreamHandle stream) {
  return with_type(t.type, [&](auto* element) -> const char* {
    using T = std::remove_pointer_t<decltype(element)>;
    using C = Arithmetic<T>;
    const int64_t total = t.rows * t.n, wave = fits_tile<C>(t.n) ? total : wave_size(t.n, total);
    const Read<T> load{static_cast<const T*>(t.x), 0, total};
    const Write<T> store{static_cast<T*>(t.out), 0, total, static_cast<C>(t.scale)};
    for (int64_t first = 0; first < total; first += wave) {
      const int64_t end = first + wave < total ? first + wave : total;
      C* work = std::is_same_v<T, C> ? static_cast<C*>(t.out) + first : static_cast<C*>(workspace);
      if (const char* error = transform_range(load, store, work, first, end, log2_of(t.n), stream))
        return error;
    }
    return nullptr;
  });
}

}  // namespace fastfood::cuda
