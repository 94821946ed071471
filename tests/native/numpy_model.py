"""A plain numpy version of csrc/definitions.h and the transform, which the native kernels have to
equal bit for bit. Types are numbered as in csrc/kernels.h; bfloat16 is its bits."""

import math

import numpy as np
import pytest

native = pytest.importorskip("fastfood_native_tests", reason="built with FASTFOOD_TESTS=1")

F32, F64, F16, BF16 = range(4)  # the order of kernels.h
STORAGE = {F32: np.float32, F64: np.float64, F16: np.float16, BF16: np.uint16}
NAMES = {F32: "f32", F64: "f64", F16: "f16", BF16: "bf16"}
SEED = 0x123456789ABCDEF1


def arithmetic(kind):
    return np.float64 if kind == F64 else np.float32


def narrow(x, kind):
    """Rounds to the storage type; bfloat16 is returned as its bits."""
    if kind != BF16:
        return x.astype(STORAGE[kind])
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widen(x, kind):
    if kind != BF16:
        return x.astype(arithmetic(kind))
    return (x.astype(np.uint32) << 16).view(np.float32)


def fwht(x):
    """The transform of x's rows in x's precision, whose levels go in ascending order of strides."""
    rows, n = x.shape
    stride = 1
    while stride < n:
        pairs = x.reshape(rows, n // (2 * stride), 2, stride)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        x = np.stack([a + b, a - b], axis=2).reshape(rows, n)
        stride *= 2
    return x


def philox_words(seed, stream, first, count, rounds=7):
    call = np.uint64(first) + np.arange(count, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    x = [call & low, call >> shift, np.full(count, stream, np.uint64), np.zeros(count, np.uint64)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(rounds):
        p0, p1 = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [
            (p1 >> shift) ^ x[1] ^ np.uint64(key[0]),
            p1 & low,
            (p0 >> shift) ^ x[3] ^ np.uint64(key[1]),
            p0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return np.stack(x, axis=1).astype(np.uint32).ravel()


NORMAL = np.array([native.normal(k) for k in range(2**16)], np.float32)


def normals(seed, stream, first, count):
    return NORMAL[philox_words(seed, stream, first, count).view("<u2")]


def g_rows(seed, start, stop):
    return normals(seed, 0, start // 8, (stop - start) // 8)


def projection(v, kind, start, count, base=None, offsets=None, scales=None):
    L, dtype = len(v), arithmetic(kind)
    first, end = start // L * L, -(-(start + count) // L) * L
    g = g_rows(SEED, first, end).astype(dtype).reshape(-1, L)
    y = fwht(g * v).ravel()[start - first :][:count]
    if base is None:
        return narrow(y, kind)
    return narrow(widen(base, kind) + np.repeat(scales, np.diff(offsets)) * y, kind)


def adjoint(g, L, start):
    first, end = start // L * L, -(-(start + len(g)) // L) * L
    padded = np.zeros(end - first)
    padded[start - first :][: len(g)] = g
    return (g_rows(SEED, first, end).reshape(-1, L) * fwht(padded.reshape(-1, L))).sum(0)


def transform(x, kind, n, scale, diagonals=()):
    """The transform of rows of n = 2^k entries, to the bit."""
    wide = widen(x, kind).reshape(-1, n)
    if diagonals:
        wide = wide * diagonals[0]
    wide = fwht(wide) * arithmetic(kind)(scale)
    return narrow(wide * diagonals[1] if diagonals else wide, kind).ravel()


def transform_of_orders(x, kind, n, scale, orders, transpose, diagonals=()):
    """The transform of rows of n = K 2^k entries in float64, and how far a backend may be from it,
    as it chooses the order of its sums and rounds to sixteen bits once. Orders may be matrices."""
    wide, size = widen(x, kind).reshape(-1, n).astype(np.float64), abs(scale)
    if diagonals:
        wide, size = wide * diagonals[0], size * abs(diagonals[1].astype(np.float64))
    terms = abs(wide).sum(1, keepdims=True)
    matrices = [
        order if isinstance(order, np.ndarray) else np.array(native.sign_matrix(order, transpose))
        for order in orders
    ]
    K = math.prod(map(len, matrices))
    y, m = fwht(wide.reshape(-1, n // K)).reshape(-1, n), n // K
    for H in matrices:
        y = (H.astype(np.float64) @ y.reshape(len(y), -1, len(H), m)).reshape(-1, n)
        m *= len(H)
    y = y * scale * (diagonals[1] if diagonals else 1)
    half_ulp = {F32: 2.0**-24, F64: 2.0**-53, F16: 2.0**-11, BF16: 2.0**-8}[kind]
    sums = (K + math.log2(n)) * 2 * (2.0**-53 if kind == F64 else 2.0**-24)
    return y, sums * terms * size + 1.01 * half_ulp * abs(y) + 2.0**-24
