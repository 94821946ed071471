// Binds the plain kernel of plain.cuh on the emulator for the tests. Arrays come as addresses.
#include "plain.cuh"

#include <pybind11/pybind11.h>

#include <stdexcept>

namespace fastfood {

void bind_plain(pybind11::module_& m) {
  using Address = uintptr_t;
  const auto at = [](Address address) { return reinterpret_cast<void*>(address); };
  m.def("plain_transform", [at](Address x, Address out, Address work, int type, int64_t rows,
                                int64_t n, double scale, Address before, Address after) {
    const Transform t{at(x),      at(out),  static_cast<Type>(type), rows, n, scale,
                      at(before), at(after)};
    if (const char* error = plain::transform(t, at(work))) throw std::runtime_error(error);
  });
}

}  // namespace fastfood
