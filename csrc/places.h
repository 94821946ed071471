// Where the rows of a transform lie, in a tensor whose last dimension has stride one and in
// diagonals that span several rows, and in which segment a row of a projection lies. Both backends
// find single rows by begin_of; the CPU also takes a Stretch of evenly spaced rows at once.
#pragma once

#include "kernels.h"
#include "philox.h"

namespace fastfood {

// row / size, and the remainder. In 32 bits if both numbers fit, for a 64-bit division takes
// several times as long.
FASTFOOD_HD int64_t split(int64_t row, int64_t size, int64_t* remainder) {
  if ((row | size) >> 32 == 0) {
    const auto a = static_cast<uint32_t>(row), b = static_cast<uint32_t>(size);
    *remainder = a % b;
    return a / b;
  }
  *remainder = row % size;
  return row / size;
}

// The index of the first entry of a row of n entries.
FASTFOOD_HD int64_t begin_of(const Places& places, int64_t row, int64_t n) {
  if (places.levels == 0) return row * n;
  int64_t begin = 0;
  for (int k = places.levels - 1; k > 0; --k) {
    int64_t digit;
    row = split(row, places.sizes[k], &digit);
    begin += digit * places.strides[k];
  }
  return begin + row * places.strides[0];
}

// Where the factors of a row begin in a diagonal that spans `period` rows.
FASTFOOD_HD int64_t in_period(int64_t row, int64_t period, int64_t n) {
  if (period == 1) return 0;
  int64_t place;
  split(row, period, &place);
  return place * n;
}

// Finds the places of the rows of n entries into which the last dimension of a tensor, of stride
// one, is cut. Neighbouring dimensions become one level if one stride serves both. Returns false if
// more than Places::kMost levels are left.
inline bool find_places(const int64_t* sizes, const int64_t* strides, int64_t dim, int64_t n,
                        Places* places) {
  Places inside_out;
  int64_t size = sizes[dim - 1] / n, stride = n;  // of the level at hand, the innermost first
  const auto keep_level = [&] {
    inside_out.sizes[inside_out.levels] = size;
    inside_out.strides[inside_out.levels++] = stride;
  };
  for (int64_t d = dim - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (size > 1 && strides[d] == size * stride) {
      size *= sizes[d];
      continue;
    }
    if (size > 1) {
      if (inside_out.levels + 1 == Places::kMost) return false;
      keep_level();
    }
    size = sizes[d];
    stride = strides[d];
  }
  keep_level();
  *places = {};
  if (inside_out.levels == 1 && (size == 1 || stride == n)) return true;
  for (int k = inside_out.levels - 1; k >= 0; --k) {
    places->sizes[places->levels] = inside_out.sizes[k];
    places->strides[places->levels++] = inside_out.strides[k];
  }
  return true;
}

// Whether no two rows of n entries share an entry. It may return false for some rows that share
// none, but never true for rows that do.
inline bool are_apart(Places places, int64_t n) {
  for (int64_t extent = n; places.levels > 0;) {
    int least = 0;
    for (int k = 1; k < places.levels; ++k)
      if (places.strides[k] < places.strides[least]) least = k;
    if (places.strides[least] < extent) return false;
    extent += (places.sizes[least] - 1) * places.strides[least];
    --places.levels;
    places.sizes[least] = places.sizes[places.levels];
    places.strides[least] = places.strides[places.levels];
  }
  return true;
}

// Evenly spaced rows that lie within one period of each diagonal.
struct Stretch {
  int64_t x, out, before, after;  // where the entries and the factors of the first row begin
  int64_t rows;
  int64_t x_pitch, out_pitch;         // from row to row
  int64_t before_pitch, after_pitch;  // n, or 0 where all rows have the same factors
};

// The longest stretch that begins at `row`, of at most `most` rows.
inline Stretch stretch_of(const Transform& t, int64_t row, int64_t most) {
  Stretch s{begin_of(t.x_places, row, t.n),
            begin_of(t.out_places, row, t.n),
            in_period(row, t.before_rows, t.n),
            in_period(row, t.after_rows, t.n),
            most,
            t.n,
            t.n,
            t.before_rows > 1 ? t.n : 0,
            t.after_rows > 1 ? t.n : 0};
  const auto end_before = [&](int64_t period) {
    const int64_t left = period - row % period;
    if (left < s.rows) s.rows = left;
  };
  const auto keep_pitch = [&](const Places& places, int64_t* pitch) {
    if (places.levels == 0) return;
    *pitch = places.strides[places.levels - 1];
    if (places.levels > 1) end_before(places.sizes[places.levels - 1]);
  };
  keep_pitch(t.x_places, &s.x_pitch);
  keep_pitch(t.out_places, &s.out_pitch);
  if (t.before_rows > 1) end_before(t.before_rows);
  if (t.after_rows > 1) end_before(t.after_rows);
  return s;
}

// The segment of entry i of a projection, the last one that begins at or before it; the first one
// for negative i. `offsets` are those of a Projection.
FASTFOOD_HD int64_t segment_of(int64_t i, const int64_t* offsets, int64_t segments) {
  int64_t low = 0, high = segments;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] <= i) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace fastfood
