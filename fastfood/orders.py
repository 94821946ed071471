"""The orders K of Hadamard matrices that the transform has beside powers of two, and which of them
serves a size."""

import functools
from collections.abc import Iterable

# The orders of csrc/orders.cpp: 40, and four times an odd number, without the three for which no
# matrix is known. Products of two of them serve as well.
ORDERS = (*(K for K in range(12, 1021, 8) if K not in (668, 716, 892)), 40)
_FIRST = tuple(K for K in ORDERS if K <= 172 or K == 428)  # chosen before all others


def is_power_of_two(n: int) -> bool:
    return n > 0 and not n & (n - 1)


def is_order(K: int) -> bool:
    """Whether K is 1, one of ORDERS, or a product of two of them."""
    return K == 1 or K in ORDERS or any(K % a == 0 and K // a in ORDERS for a in ORDERS)


@functools.cache
def choose_order(n: int) -> int | None:
    """The K of `hadamard_transform_KN` for rows of n entries, or None if there is none."""
    if is_power_of_two(n):
        return 1
    for orders in (_FIRST, ORDERS):
        divisors = [a for a in orders if n % a == 0]
        products = [a * b for a in divisors for b in divisors if n % (a * b) == 0]
        for candidates in (divisors, products):
            fitting = [K for K in candidates if is_power_of_two(n // K)]
            if fitting:
                return min(fitting)
    return None


def nearest_sizes(n: int, orders: Iterable[int] = ()) -> str:
    """The sizes K 2^k next to n, in words, with K among `orders` or, if there are none, any."""
    orders = orders or {1, *ORDERS, *(a * b for a in ORDERS for b in ORDERS)}
    above = min(K << max(0, (-(-n // K) - 1).bit_length()) for K in orders)
    below = max((K << (n // K).bit_length() - 1 for K in orders if K <= n), default=None)
    return f"the next size is {above}" + (f", the one before {below}" if below else "")


def factors_of(K: int) -> list[int]:
    """The orders whose product K is, the one of the smaller stride first, as in csrc/orders.h."""
    if K == 1 or K in ORDERS:
        return [K] if K > 1 else []  # compiled code may have a symbol for K
    pairs = [(a + K // a, K // a, a) for a in ORDERS if K // a in ORDERS and K % a == 0]
    return list(min(pair for pair in pairs if pair[1] >= pair[2])[1:])
