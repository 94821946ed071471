"""Rows of K 2^k entries on CUDA (csrc/cuda/tensor.cuh, mix.cuh) under the emulator, whose tensor
cores cut off all below 24 bits at each addition: within the bound of kernels.h of exact sums, on
GPUs with much and little shared memory, with and without tensor cores."""

import itertools
import math

import numpy as np
import pytest
from native_calls import Array, Transform, diagonals_for, garbage, random
from numpy_model import BF16, F16, F32, F64, NAMES, STORAGE, native, transform_of_orders, widen

TYPES = pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())
SMALL, LARGE = 101_376, 227 * 1024  # of a block on sm_120, and on an H200


def configure(shared, tensor=True, blocks=3, wave=2**15, backwards=False):
    native.configure(blocks, wave, 3 << 10, shared, backwards, tensor)


# k, rows, transpose, shift of the two arrays: a packet, rows that end within a tile, whole tiles
SHAPES = [(0, 19, True, (1, 0)), (2, 3, False, (0, 0)), (3, 9, True, (0, 0)), (5, 3, False, (0, 1))]
ORDERS = [(12,), (20,), (28,), (36,), (44,), (108,), (156,), (172,)]


@TYPES
@pytest.mark.parametrize("orders", [*ORDERS, (20, 12)], ids=str)
def test_orders(kind, orders):
    for i, (k, rows, transpose, shifts) in enumerate(SHAPES[: 2 if len(orders) > 1 else 4]):
        n = math.prod(orders) << k
        x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
        configure((SMALL, LARGE)[i % 2], backwards=i < 2)
        Transform(kind, n, (), orders, transpose, shifts).check(True, x)
        if i % 2:
            Transform(kind, n, diagonals, orders, transpose, in_place=True).check(True, x)


@pytest.mark.parametrize("kind", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("k, orders", [(6, (44,)), (7, (108,)), (9, (28,)), (10, (12,))])
def test_many_neighbours(kind, k, orders):
    """Tiles of 64 and of 128 columns, and matrices of order K 2^s."""
    n = math.prod(orders) << k
    configure(LARGE)
    Transform(kind, n, (), orders, True).check(True, random(n, kind))
    scaled = Transform(kind, n, diagonals_for(n, kind), orders, in_place=True)
    scaled.check(True, random(n, kind))


@pytest.mark.parametrize("kind", [F32, BF16, F64], ids=["f32", "bf16", "f64"])
@pytest.mark.parametrize("k, orders", [(2, (428,)), (1, (84, 44)), (12, (12,)), (0, (40, 36))])
def test_what_fits_no_tile(kind, k, orders):
    """Passes over pieces and factors, several rows at a time and less than one."""
    n = math.prod(orders) << k
    rows = 2 if n < 8000 else 1
    x = random(rows * n, kind)
    configure(48 * 1024, wave=n)
    Transform(kind, n, diagonals_for(n, kind), orders, True, (1, 0)).check(True, x)
    Transform(kind, n, (), orders, in_place=True).check(True, x[:n])


@TYPES
@pytest.mark.parametrize("orders, k", [((12,), 5), ((76,), 0), ((20, 12), 1), ((172,), 3)])
def test_without_tensor_cores(kind, orders, k):
    n = math.prod(orders) << k
    x, diagonals = random(5 * n, kind), diagonals_for(n, kind)
    configure(48 * 1024, tensor=False, wave=2 * n)
    Transform(kind, n, diagonals, orders).check(True, x)
    Transform(kind, n, (), orders, True, (1, 0), in_place=True).check(True, x)


def made_up(K):
    return np.where(np.random.default_rng(K).random((K, K)) < 0.5, -1, 1)


def bits_of(matrix):
    """The signs as bits, as SignMatrix stores them."""
    K = len(matrix)
    padded = np.zeros((K, -(-K // 32) * 32), bool)
    padded[:, :K] = matrix < 0
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


@pytest.mark.parametrize(
    "kind, K, k, shared",
    [
        (F32, 1020, 0, LARGE),
        (BF16, 1020, 3, LARGE),
        (F16, 1020, 0, SMALL),
        (F32, 500, 3, LARGE),
        (F64, 1020, 1, SMALL),
    ],
)
def test_any_matrix(kind, K, k, shared):
    matrix, n, rows = made_up(K), K << k, 2
    x, bits, out = random(rows * n, kind), bits_of(matrix), garbage(rows * n, STORAGE[kind])
    memory = Array(x)
    configure(shared)
    given = [(K, bits.ctypes.data)]
    native.transform_by(memory.address, out.address, kind, rows, n, 0.3, 0, 0, given)
    wanted, error = transform_of_orders(x, kind, n, 0.3, [matrix], False)
    assert (abs(widen(out.take(), kind).reshape(wanted.shape) - wanted) <= error).all()


def test_the_bound_where_sums_are_cut_off():
    """Large entries amid small ones, of which each addition cuts off all it can."""
    n = 172 << 3
    for small in (1.99 * 2.0**-23, 2.0**-9):
        x = np.full(n, np.float32(small)) * (1 + random(n, F32).clip(-1, 1) / 1000)
        x[:: n // 8] = 1.9999999
        configure(LARGE)
        Transform(F32, n, orders=(172,)).check(True, x.astype(np.float32))


def test_small_parts_are_added_before_large_ones():
    """Else each of their terms would be cut off at the last place of the whole sum."""
    K, value = 172, np.float32(2 - 2.0**-23)
    x = np.array(native.sign_matrix(K, False))[0].astype(np.float32) * value
    memory, out = Array(x), garbage(K, np.float32)
    configure(LARGE)
    native.transform(True, memory.address, out.address, F32, 1, K, 1.0, 0, 0, K, False)
    last_place = float(np.spacing(np.float32(K * value)))
    assert abs(out.take()[0] - K * float(value)) < K / 8 * last_place


def test_numbers_that_are_not_finite_spread_over_their_row():
    """In f32 an infinite one has parts that are no numbers, so it may come out as none."""
    n = 28 << 5
    for kind, bad in itertools.product((F16, F32), (np.inf, np.nan)):
        x = random(4 * n, kind)
        x[n + 3] = bad
        memory, out = Array(x), garbage(4 * n, STORAGE[kind])
        configure(LARGE)
        native.transform(True, memory.address, out.address, kind, 4, n, 1.0, 0, 0, 28, False)
        finite = np.isfinite(out.take().reshape(4, n))
        assert not finite[1].any() and finite[[0, 2, 3]].all()


@pytest.mark.parametrize("kind", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("K, k", [(12, 7), (28, 8), (76, 7), (44, 6)])
def test_no_bank_conflicts(kind, K, k):
    n = K << k
    configure(LARGE)
    for diagonals in ((), diagonals_for(n, kind)):
        x = random(n, kind)
        native.count_cycles()
        Transform(kind, n, diagonals, (K,)).check(True, x)
        taken, least = native.cycles()
        assert taken == least > 0
