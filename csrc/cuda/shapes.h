// The shapes of all kernels, by size: how a tile is dealt to threads, how many blocks are to share
// a multiprocessor (occupancy), which way the data takes. They were chosen by measurements on an
// H200 (guides/cuda.md), and this is the place to try others. Only speed depends on them: every
// shape gives the same bits.
#pragma once

#include <iterator>

#include "storage.cuh"

namespace fastfood::cuda {

struct Shape {
  int tile_log;    // log2 of the entries of a tile: of one row, or of several short ones
  int values_log;  // log2 of the entries of a thread
  int out_low;     // log2 of the neighbours that a thread stores: 1 makes pairs of 16 bits
  int resident;    // blocks on a multiprocessor that registers have to suffice for
  bool once;       // whether loads and stores should leave the contents of the caches alone
  int halves;      // 2: the halves of a tile go through shared memory one after the other
  bool prefetch;   // whether the next tile is copied to shared memory, if there is room for it
};

// `resident`, or the most blocks that the architecture lets a multiprocessor hold, if that is less.
constexpr int resident_here(int resident) {
#if defined(__CUDA_ARCH__)
  constexpr int kArch = __CUDA_ARCH__;
  constexpr int kMost = kArch == 750 || kArch == 860 || kArch == 870 ? 16
                        : kArch == 890 || kArch >= 1200              ? 24
                                                                     : 32;
  return resident < kMost ? resident : kMost;
#else
  return resident;
#endif
}

// Rows of 2^k entries up to kShortLog are done by the shuffles of a warp, and from there to
// kTileLogMost by one tile, as far as shared memory holds it.
template <class T>
constexpr int kShortLog = 5 + kPacketLog<T>;
template <class T>
constexpr int kTileLogMost = sizeof(T) == 8 ? 13 : 15;

constexpr Shape kShapes32[] = {
    {10, 5, 0, 32, false, 1, false},  // 2^8
    {9, 4, 0, 32, false, 1, false},   // 2^9
    {10, 5, 0, 32, false, 1, false},  // 2^10
    {11, 5, 0, 16, true, 1, false},   // 2^11
    {12, 6, 0, 8, true, 1, false},    // 2^12
    {13, 6, 0, 4, true, 1, false},    // 2^13
    {14, 6, 0, 2, false, 1, false},   // 2^14
    {15, 5, 0, 1, false, 2, true},    // 2^15
};
constexpr Shape kShapes16[] = {
    {10, 5, 1, 32, false, 1, false},  // 2^9
    {10, 5, 1, 32, false, 1, false},  // 2^10
    {11, 5, 1, 16, true, 1, false},   // 2^11
    {12, 6, 1, 8, true, 1, false},    // 2^12
    {13, 6, 1, 4, true, 1, false},    // 2^13
    {14, 6, 1, 2, false, 1, false},   // 2^14
    {15, 6, 0, 1, false, 1, true},    // 2^15
};
constexpr Shape kShapes64[] = {
    {9, 4, 0, 32, false, 1, false},   // 2^7
    {9, 4, 0, 32, false, 1, false},   // 2^8
    {9, 4, 0, 32, false, 1, false},   // 2^9
    {10, 4, 0, 16, false, 1, false},  // 2^10
    {11, 4, 0, 8, false, 1, false},   // 2^11
    {12, 4, 0, 4, false, 1, false},   // 2^12
    {13, 4, 0, 2, false, 1, false},   // 2^13
};

static_assert(std::size(kShapes32) + kShortLog<float> == kTileLogMost<float>, "one for each size");
static_assert(std::size(kShapes16) + kShortLog<__half> == kTileLogMost<__half>,
              "one for each size");
static_assert(std::size(kShapes64) + kShortLog<double> == kTileLogMost<double>,
              "one for each size");

template <class T>
constexpr Shape shape_of(int row_log) {
  const int row = row_log - kShortLog<T> - 1;
  return sizeof(T) == 8 ? kShapes64[row] : sizeof(T) == 4 ? kShapes32[row] : kShapes16[row];
}

// Passes over the columns of long rows do 5, 7, 9 or 11 levels (11 not in fp64), of
// 2^neighbours_log columns at a time, so that whole lines of 128 bytes are read, or of 64 if shared
// memory holds no more.
constexpr int kColumnValuesLog = 5;
template <class C>
constexpr int neighbours_log(int levels) {
  if (levels == kColumnValuesLog) return 7;  // no exchange: blocks of 128 threads
  return sizeof(C) == 8 || levels == 11 ? 4 : 5;
}
template <class C>
constexpr int column_resident(int levels) {
  if (sizeof(C) == 8) return levels <= 7 ? 3 : 1;
  return levels == 5 ? 4 : levels == 7 ? 8 : levels == 9 ? 2 : 1;
}

// Tiles of the projection and its adjoint do the levels below `levels` of a block of L; if these
// are few a tile holds several times 2^levels rows. Sixteen warps share a multiprocessor, whatever
// the tile.
constexpr int kLevelsLeast = 8;  // L is at least 2^8
template <class T>
constexpr int kProjectLevelsMost = sizeof(T) == 8 ? 13 : 15;
template <class C>
constexpr int kAdjointLevelsMost = sizeof(C) == 8 ? 13 : 14;
template <class T>
constexpr int project_tile_log(int levels) {
  const int least = kIsHalf<T> ? 11 : 10;
  return levels < least ? least : levels;
}
constexpr int adjoint_tile_log(int levels) { return levels < 10 ? 10 : levels; }
template <class T>
constexpr int project_values_log(int tile_log) {
  return sizeof(T) == 8 || tile_log == 10 ? 5 : 6;
}
constexpr int kProjectWarps = 16;

}  // namespace fastfood::cuda
