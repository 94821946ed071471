"""Rows that lie apart in memory, and diagonals that span several rows, in the native kernels
without torch: the CPU's, and the CUDA sources on the emulator, bit for bit against the numpy model
where it defines every bit. No entry beside the rows may be written."""

import math

import numpy as np
import pytest
from native_calls import Array, garbage, random
from numpy_model import (
    BF16,
    F16,
    F32,
    F64,
    NAMES,
    STORAGE,
    native,
    transform,
    transform_of_orders,
    widen,
)

SMALL, LARGE = 48 * 1024, 227 * 1024  # the shared memory of every GPU, and of an H200


def entries(levels, rows, n):
    """The index of each entry of each row; levels are (size, stride), the outermost first."""
    begins = np.zeros(1, np.int64)
    for size, stride in levels or [(rows, n)]:
        begins = (begins[:, None] + np.arange(size) * stride).ravel()
    return begins[:, None] + np.arange(n)


def check(
    cuda, kind, n, rows, x_levels, out_levels, periods=None, K=1, shifts=(0, 0), in_place=False
):
    x_entries, out_entries = entries(x_levels, rows, n), entries(out_levels, rows, n)
    x = random(int(x_entries.max()) + 1, kind)
    source = Array(x, shifts[0])
    out = source if in_place else garbage(int(out_entries.max()) + 1, STORAGE[kind], shifts[1])
    expected = out.values.copy()
    wide = F64 if kind == F64 else F32
    factors = [random(p * n, wide, seed) for seed, p in enumerate(periods or ())]
    memory = [Array(f) for f in factors]
    native.transform(
        *(cuda, source.address, out.address, kind, rows, n, 0.3),
        *([m.address for m in memory] or [0, 0]),
        *(K, False, *(periods or (1, 1)), x_levels, out_levels),
    )
    got = out.take()
    each = [f.reshape(-1, n)[np.arange(rows) % (len(f) // n)] for f in factors]
    if K == 1:
        wanted = transform(x[x_entries].ravel(), kind, n, 0.3, each)
        expected[out_entries.ravel()] = wanted
        np.testing.assert_array_equal(got, expected)
        return
    wanted, error = transform_of_orders(x[x_entries].ravel(), kind, n, 0.3, (K,), False, each)
    found = widen(got[out_entries], kind)
    assert (abs(found - wanted) <= error).all()
    beside = np.ones(len(got), bool)
    beside[out_entries.ravel()] = False
    np.testing.assert_array_equal(got[beside], expected[beside])


def layouts(n):
    """(rows, levels of x, levels of out, rows that each diagonal spans, shifts)."""
    packet = 16
    return [
        (12, [], [], (4, 1), (0, 0)),  # blocks of a row, before and after of either kind
        (12, [], [], (1, 4), (1, 0)),
        (12, [], [], (3, 3), (0, 0)),
        (9, [], [], (3, 1), (0, 1)),
        (5, [(5, 2 * n + packet)], [], None, (0, 0)),  # a slice
        (5, [(5, n + 3)], [(5, n + 1)], (1, 1), (0, 0)),  # at odd addresses
        (12, [(3, 4 * n + packet), (4, n)], [], (4, 4), (0, 0)),  # blocks of a slice
        (30, [(2, 15 * n), (3, n), (5, 3 * n)], [], (1, 1), (0, 0)),  # three heads
        (30, [], [(2, 15 * n), (3, n), (5, 3 * n)], (5, 15), (0, 0)),
        (6, [(3, 0), (2, n)], [(3, 2 * n + packet), (2, n)], None, (0, 0)),  # expanded
        (24, [(2, 60 * n), (3, 8 * n), (2, 3 * n), (2, n)], [(24, n + 16)], (2, 2), (0, 0)),
    ]


@pytest.mark.parametrize("log_n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13])
@pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
def test_rows_that_lie_apart(cuda, kind, log_n):
    native.configure(3, 2**15, 3 << 10, SMALL, log_n % 2 == 1)
    n = 1 << log_n
    for rows, x, out, periods, shifts in layouts(n)[:: 1 if n < 4096 else 3]:
        check(cuda, kind, n, rows, x, out, periods, shifts=shifts)
        if x == out:
            check(cuda, kind, n, rows, x, out, periods, shifts=shifts, in_place=True)


@pytest.mark.parametrize("kind, log_n", [(F32, 14), (F16, 15), (F64, 13), (BF16, 14)])
@pytest.mark.parametrize("shared", [SMALL, LARGE])
def test_long_rows_that_lie_apart(shared, kind, log_n):
    """In shared memory where it is large, else row by row."""
    native.configure(3, 2**15, 3 << 10, shared, False)
    n = 1 << log_n
    for cuda in (False, True):
        check(cuda, kind, n, 3, [(3, n + 16)], [], (1, 3))
        check(cuda, kind, n, 4, [(2, 3 * n), (2, n)], [(4, n + 3)], (2, 2))
        check(cuda, kind, n, 2, [], [], (2, 2), in_place=True)


@pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
@pytest.mark.parametrize("K, log_m", [(12, 0), (20, 2), (12, 5), (28, 9)])
def test_rows_of_orders_that_lie_apart(K, log_m, cuda, kind):
    native.configure(3, 2**15, 3 << 10, SMALL, False)
    n = K << log_m
    for rows, x, out, periods, shifts in layouts(n)[:: 1 if n < 1000 else 4]:
        check(cuda, kind, n, rows, x, out, periods, K, shifts)


def test_blocks_take_the_fast_kernels():
    """As many cycles of shared memory as rows take, with diagonals that span a power of two."""
    native.configure(3, 2**15, 3 << 10, LARGE, False)
    for kind in (F32, BF16):
        cycles = []
        for periods in [(1, 1), (4, 4), (8, 1)]:
            native.count_cycles()
            check(True, kind, 1024, 8, [], [], periods)
            cycles.append(native.cycles())
        assert cycles[0] == cycles[1] == cycles[2] and math.prod(cycles[0]) > 0
