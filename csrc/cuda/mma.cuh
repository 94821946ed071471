// The tensor cores' instructions, from sm_80 on: sm_75 has neither bf16 nor products of sixteen
// terms. Kernels that use them are compiled for every architecture and have no body on sm_75; the
// host asks device_facts(device).tensor before it launches one. Compilers other than nvcc get the
// emulator's functions instead of the assembler's instructions.
//
// In a product A B + C a lane holds, with g = lane / 4 and c = lane % 4,
//
//     A, 16 x 16   four words: columns 2 c, 2 c + 1 of rows g and g + 8, then the same columns plus
//     8
//                  of these rows; the left one of two neighbours is the low half of a word
//     B, 16 x 8    column g, rows 2 c, 2 c + 1 and 2 c + 8, 2 c + 9: two words
//     C, 16 x 8    row g, then row g + 8, columns 2 c, 2 c + 1
#pragma once

#include "storage.cuh"

#if !defined(__CUDACC__)
#include "emulated_mma.h"
#endif

namespace fastfood::cuda {

// The pair (1, 1) in a type of sixteen bits.
template <class T>
constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3C003C00u : 0x3F803F80u;

#if defined(__CUDACC__)

// Returns `value`, but hides that from the compiler, which then computes whatever depends on it
// after this point, and does not keep it in registers from earlier on.
template <class I>
__device__ __forceinline__ I made_here(I value) {
  if constexpr (sizeof(I) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
  return value;
}

// C += A B for T, summed in f32.
template <class T>
__device__ __forceinline__ void multiply_add(float& c0, float& c1, float& c2, float& c3,
                                             const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Loads four matrices of 8 x 8 entries. Lane l passes the address of one row, of 16 bytes: row l %
// 8 of matrix number l / 8. It gets of each matrix the entries in rows 2 c and 2 c + 1 of column g.
__device__ __forceinline__ void load_transposed(Shared<uint4> row, uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
#endif
}

#else

template <class I>
I made_here(I value) {
  return value;
}

template <class T>
void multiply_add(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                  uint32_t b1) {
  emulator::Factors factors;
  for (int i = 0; i < 4; ++i) widen_pair<T>(a[i], &factors.a[2 * i]);
  widen_pair<T>(b0, &factors.b[0]);
  widen_pair<T>(b1, &factors.b[2]);
  emulator::multiply_matrices({&c0, &c1, &c2, &c3}, factors);
}
inline void load_transposed(Shared<uint4> row, uint32_t (&r)[4]) {
  emulator::load_matrices(row, r);
}

#endif

}  // namespace fastfood::cuda
