// The shapes of all kernels, by size: how a tile is dealt to threads, how many blocks are to share
// a multiprocessor, which way the data takes. Chosen by measurements on an H200 (guides/cuda.md),
// so the place to try others. Only speed depends on them: every shape gives the same bits.
#pragma once

#include "storage.cuh"

namespace fastfood::cuda {

struct Shape {
  int tile_log;    // log2 of the entries that share a tile; a row, or several short ones
  int values_log;  // log2 of the entries of a thread
  int out_low;     // log2 of the neighbours that a thread stores: 1 makes pairs of 16 bits
  int resident;    // blocks that registers must leave room for on a multiprocessor
  bool once;       // loads and stores that pass by the caches' contents
  int halves;      // 2: the tile goes through the shared memory of half of it
  bool prefetch;   // the next tile is copied to shared memory, where there is room for it
};

// `resident` where so many blocks fit by their number alone.
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

// Rows of 2^k entries that go through a tile at once: from what a warp's lanes do by shuffles to
// what shared memory holds.
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

template <class T>
constexpr Shape shape_of(int row_log) {
  const int row = row_log - kShortLog<T> - 1;
  return sizeof(T) == 8 ? kShapes64[row] : sizeof(T) == 4 ? kShapes32[row] : kShapes16[row];
}

// Passes over the columns of long rows: 2^5, 2^7, 2^9 or 2^11 (not in fp64) entries that lie 2^log
// apart, of 2^neighbours_log columns at a time, so that whole lines of 128 bytes are read, or of 64
// where shared memory holds no more.
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

// Tiles of the projection and its adjoint, for 2^levels rows of a block of L: for few levels a tile
// holds several such. Sixteen warps on a multiprocessor, whatever the tile.
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
