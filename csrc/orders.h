// Hadamard matrices of the orders K that are not powers of two.
#pragma once

#include "kernels.h"

namespace fastfood {

constexpr int64_t kLargestOrder = 1020;

// The matrix of order K, or its transpose; null if orders.cpp has no construction for K. It is made
// at the first call and kept. Any thread may call.
const SignMatrix* sign_matrix(int64_t K, bool transpose);

// Fills factors[0] and factors[1] of a Transform for K. If K is an order, that is its one matrix;
// else the matrices of two orders, K = K_1 K_0 with K_0 >= K_1 and the smallest sum. Returns false
// if there is neither.
bool factor(int64_t K, bool transpose, const SignMatrix* factors[2]);

}  // namespace fastfood
