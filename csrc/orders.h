// Hadamard matrices of the orders K that are no powers of two.
#pragma once

#include "kernels.h"

namespace fastfood {

constexpr int64_t kLargestOrder = 1020;

// The matrix of order K, or its transpose; null if K is none of the orders in orders.cpp. It is
// made at the first call and kept. Any thread may call.
const SignMatrix* sign_matrix(int64_t K, bool transpose);

// Fills factors[0] and factors[1] of a Transform for K: one matrix if K is an order, else those of
// two orders, K = K_1 K_0 with K_0 >= K_1 and the smallest sum. False if there is neither.
bool factor(int64_t K, bool transpose, const SignMatrix* factors[2]);

}  // namespace fastfood
