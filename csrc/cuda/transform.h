// The functions of fwht.cu, orders.cu, project.cu and adjoint.cu, which are compiled once for each
// storage type, that call each other and that dispatch.cu calls.
#pragma once

#include <algorithm>

#include "../places.h"
#include "storage.cuh"

namespace fastfood::cuda {

// Whether rows follow each other.
inline bool has_neighbours(const Transform& t) {
  return t.x_places.levels == 0 && t.out_places.levels == 0;
}

// The transform of one row alone.
template <class T>
Transform row_of(const Transform& t, int64_t row) {
  using C = Arithmetic<T>;
  const Stretch s = stretch_of(t, row, 1);
  Transform one{
      static_cast<const T*>(t.x) + s.x, static_cast<T*>(t.out) + s.out, t.type, 1, t.n, t.scale};
  if (t.before) one.before = static_cast<const C*>(t.before) + s.before;
  if (t.after) one.after = static_cast<const C*>(t.after) + s.after;
  std::copy(t.factors, t.factors + 2, one.factors);
  return one;
}

// Rows of 2^k entries; t.factors is not read. If T is the type that rows are computed in, they are
// worked on in t.out itself, else in the workspace, whose bytes rows_workspace returns.
template <class T>
int64_t rows_workspace(const Transform& t, int device);
template <class T>
const char* transform_rows(const Transform& t, void* workspace, Stream stream);

// Levels [log, log + levels) of rows in `work`, in place, by a pass over columns.
template <class C>
const char* transform_work(C* work, int64_t total, int log, int levels, Stream stream);

// Rows of K 2^k entries.
template <class T>
int64_t orders_workspace(const Transform& t, int device);
template <class T>
const char* transform_orders(const Transform& t, void* workspace, Stream stream);

template <class T>
int64_t project_workspace_of(const Projection& p, int device);
template <class T>
const char* project_rows_of(const Projection& p, void* workspace, Stream stream);

// Writes rows [first, end) of the projection to `out` with the levels below `levels` done.
template <class T>
const char* project_tiles(const Projection& p, T* out, int levels, int64_t first, int64_t end,
                          Stream stream);

template <class C>
int64_t adjoint_workspace_of(const Adjoint& a, int device);
template <class C>
const char* adjoint_of(const Adjoint& a, void* workspace, Stream stream);

}  // namespace fastfood::cuda
