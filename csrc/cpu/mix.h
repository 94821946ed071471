// The matrices of order K on the CPU, over entries `stride` apart, for whole vectors of columns at
// a time. A sum of four neighbouring terms with signs, +-x[0] +-x[1] +-x[2] +-x[3], has one of
// sixteen values, whatever the row. So a table of these is made once for all rows, and a row adds a
// quarter of K table entries, found by its signs, instead of K terms (the method of the four
// Russians). The entries for one word of signs are added in pairs, the words one after the other.
#pragma once

#include "simd.h"

namespace fastfood::FASTFOOD_ISA {

constexpr int kTerms = 4;               // terms that share a table; K is a multiple of it
constexpr int kPatterns = 1 << kTerms;  // sums in a table, one for each pattern of signs
constexpr int kTables = 32 / kTerms;    // tables for one word of signs

// Makes a table: sums[p kStep] = +-x[0] +-x[1] +-x[2] +-x[3]; bit b of p makes term b negative.
template <int kStep, class T>
FASTFOOD_INLINE void share_sums(const Vector<T> (&x)[kTerms], T* sums) {
  Vector<T> pairs[2][4];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Vector<T> a = x[2 * i], b = x[2 * i + 1];
    pairs[i][0] = a + b;
    pairs[i][1] = b - a;
    pairs[i][2] = a - b;
    pairs[i][3] = -pairs[i][0];
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPatterns; ++p) store(sums + p * kStep, pairs[0][p % 4] + pairs[1][p / 4]);
}

// Adds to each of K sums the entries of kCount tables that four bits each of its row's word of
// signs name. The word of row a is bits[a words]. kFirst: there is nothing in the sums yet.
template <int kColumns, int kCount, bool kFirst, class T>
__attribute__((noinline)) void add_rows(const T* tables, const uint32_t* bits, int64_t words,
                                        int64_t K, T* sums) {
  constexpr int lanes = kLanes<T>, kEntry = kColumns * kVectorBytes;
  constexpr uint64_t kMask = (kPatterns - 1) * kEntry;
  const char* bytes = reinterpret_cast<const char*>(tables);
  for (int64_t a = 0; a < K; ++a) {
    const uint64_t word = bits[a * words];
    Vector<T> sum[kColumns][kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const uint64_t place = (word * kEntry >> kTerms * i) & kMask;
      const T* entry = reinterpret_cast<const T*>(bytes + i * kPatterns * kEntry + place);
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) sum[c][i] = load(entry + c * lanes);
    }
#pragma GCC unroll 2
    for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 3
      for (int apart = 1; apart < kCount; apart *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i + apart < kCount; i += 2 * apart) sum[c][i] += sum[c][i + apart];
      }
      T* to = sums + (a * kColumns + c) * lanes;
      store(to, kFirst ? sum[c][0] : load(to) + sum[c][0]);
    }
  }
}

// The same for a count of tables known at run time.
template <int kColumns, class T, int kCount = kTables>
FASTFOOD_INLINE void add_rows_of(int64_t count, bool first, const T* tables, const uint32_t* bits,
                                 const SignMatrix& matrix, T* sums) {
  if constexpr (kCount > 0) {
    if (count < kCount)
      add_rows_of<kColumns, T, kCount - 1>(count, first, tables, bits, matrix, sums);
    else if (first)
      add_rows<kColumns, kCount, true>(tables, bits, matrix.words, matrix.K, sums);
    else
      add_rows<kColumns, kCount, false>(tables, bits, matrix.words, matrix.K, sums);
  }
}

// Leaves in `sums` the K sums over entries x, x + stride, ... for kColumns neighbouring vectors of
// columns.
template <int kColumns, class T>
FASTFOOD_INLINE void sum_rows(const T* x, const SignMatrix& matrix, int64_t stride, T* sums) {
  constexpr int lanes = kLanes<T>;
  static_assert(32 % kTerms == 0 && kTerms == 4, "a word of signs has whole tables of share_sums");
  alignas(64) T tables[kTables * kPatterns * kColumns * lanes];
  for (int64_t word = 0; word < matrix.words; ++word) {
    const int64_t left = matrix.K / kTerms - word * kTables;
    const int64_t count = left < kTables ? left : kTables;
    for (int64_t t = 0; t < count; ++t) {
      const T* from = x + (word * kTables + t) * kTerms * stride;
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) {
        Vector<T> terms[kTerms];
#pragma GCC unroll 4
        for (int k = 0; k < kTerms; ++k) terms[k] = load(from + k * stride + c * lanes);
        share_sums<kColumns * lanes>(terms, tables + (t * kPatterns * kColumns + c) * lanes);
      }
    }
    add_rows_of<kColumns>(count, word == 0, tables, matrix.bits + word, matrix, sums);
  }
}

// Applies the matrix to vectors [begin, end) of columns: entry j + a stride becomes the sum over b
// of H[a][b] times entry j + b stride. Columns are counted through one group of K * stride entries
// after the other.
template <class T, class Store>
void mix_columns(const T* work, const SignMatrix& matrix, int64_t stride, int64_t begin,
                 int64_t end, const Store& store) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t K = matrix.K, vectors = stride / lanes;
  Scratch scratch(2 * K * kVectorBytes);
  T* sums = scratch.as<T>();
  const auto mix = [&](auto columns, int64_t first) {
    constexpr int kColumns = decltype(columns)::value;
    sum_rows<kColumns>(work + first, matrix, stride, sums);
    for (int64_t a = 0; a < K; ++a)
      for (int c = 0; c < kColumns; ++c)
        store(first + a * stride + c * lanes, load(sums + (a * kColumns + c) * lanes));
  };
  for (int64_t i = begin; i < end;) {
    const int64_t first = i / vectors * K * stride + i % vectors * lanes;
    const bool two = i + 1 < end && i % vectors + 1 < vectors;  // they share the look-up of signs
    if (two)
      mix(std::integral_constant<int, 2>{}, first);
    else
      mix(std::integral_constant<int, 1>{}, first);
    i += two ? 2 : 1;
  }
}

}  // namespace fastfood::FASTFOOD_ISA
