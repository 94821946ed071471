"""Calls the native kernels on memory with guards around it, and checks them against the numpy
model. `cuda` chooses the backend: the CUDA sources on the emulator, or the CPU's kernels."""

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy_model import (
    F32,
    F64,
    SEED,
    STORAGE,
    adjoint,
    arithmetic,
    narrow,
    native,
    transform,
    transform_of_orders,
    widen,
)

GUARD = 256  # bytes on each side


def set_guards(array, what):
    """Has AddressSanitizer, where the process runs under it, "poison" or "unpoison" the guards."""
    call = getattr(ctypes.CDLL(None), f"__asan_{what}_memory_region", None)
    if call:
        first = array.bytes.ctypes.data
        for begin, end in ((0, array.begin), (array.end, array.bytes.size)):
            call(ctypes.c_void_p(first + begin), ctypes.c_size_t(end - begin))


class Array:
    """Values `shift` entries after a 64-byte boundary, amid NaN that must not be touched."""

    def __init__(self, values, shift=0):
        self.bytes = np.full(values.nbytes + 2 * GUARD + 128, 0xFF, np.uint8)
        self.begin = -self.bytes.ctypes.data % 64 + GUARD + shift * values.itemsize
        self.end = self.begin + values.nbytes
        self.values = self.bytes[self.begin : self.end].view(values.dtype)
        self.values[:] = values.ravel()
        set_guards(self, "poison")

    def __del__(self):
        set_guards(self, "unpoison")

    @property
    def address(self):
        return self.values.ctypes.data if self.values.size else self.bytes.ctypes.data

    def take(self):
        """A copy of the values, after a check of the guards."""
        set_guards(self, "unpoison")
        assert (self.bytes[: self.begin] == 0xFF).all() and (
            self.bytes[self.end :] == 0xFF
        ).all(), "guard written"
        return self.values.copy()


def garbage(size, dtype, shift=0):
    """An Array for results, full of NaN."""
    return Array(np.full(size * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype), shift)


def random(size, kind, seed=0):
    x = np.random.default_rng([seed, size]).standard_normal(size)
    return narrow(x.astype(arithmetic(kind)), kind)


def diagonals_for(n, kind):
    """Two diagonals of n random entries, in the type in which rows of `kind` are computed."""
    return [random(n, F64 if kind == F64 else F32, seed) for seed in (7, 8)]


@dataclass(frozen=True)
class Transform:
    """One way to call the transform, for any number of rows of n entries."""

    kind: int  # the entries' type, as numpy_model numbers it
    n: int
    diagonals: tuple | list = ()  # before and after the transform, or none
    orders: tuple = ()  # of the sign matrices whose product has order K; none for n = 2^k
    transpose: bool = False  # the sign matrices
    shifts: tuple = (0, 0)  # entries by which source and result lie off a 64-byte boundary
    in_place: bool = False

    def check(self, cuda, x):
        """Runs it on the rows x, and compares with the model: to the bit for n = 2^k, else within
        the model's bound, because a backend chooses the order of its sums over K entries."""
        source, memory = Array(x, self.shifts[0]), [Array(diagonal) for diagonal in self.diagonals]
        out = source if self.in_place else garbage(x.size, STORAGE[self.kind], self.shifts[1])
        scale, before_and_after = 0.3, [a.address for a in memory] or [0, 0]
        arguments = [self.kind, x.size // self.n, self.n, scale, *before_and_after]
        arguments += [math.prod(self.orders), self.transpose]
        native.transform(cuda, source.address, out.address, *arguments)
        if self.orders:
            wanted, error = transform_of_orders(
                x, self.kind, self.n, scale, self.orders, self.transpose, self.diagonals
            )
            got = widen(out.take(), self.kind).reshape(wanted.shape)
            assert (abs(got - wanted) <= error).all()
        else:
            wanted = transform(x, self.kind, self.n, scale, self.diagonals)
            np.testing.assert_array_equal(out.take(), wanted)


class Base(NamedTuple):
    """Weights that rows of the projection are added to: entries offsets[i] ... offsets[i + 1] of
    `values` get scales[i] times their rows."""

    values: np.ndarray
    offsets: np.ndarray
    scales: np.ndarray


def run_project(cuda, v, kind, start, count, base=None, shifts=(0, 0, 0)):
    """Rows start ... start + count of the projection of v, alone or on a Base. The shifts are of
    the result, of v, and of the base's values."""
    out, v = garbage(count, STORAGE[kind], shifts[0]), Array(v, shifts[1])
    rows = [kind, v.values.size, start, count, SEED]
    if base is None:
        native.project(cuda, out.address, 0, v.address, 0, 0, 0, *rows)
        return out.take()
    values, offsets, scales = Array(base.values, shifts[2]), Array(base.offsets), Array(base.scales)
    pointers = [array.address for array in (out, values, v, offsets, scales)]
    native.project(cuda, *pointers, scales.values.size, *rows)
    return out.take()


def run_adjoint_sum(cuda, pieces, L, shift=0):
    """The adjoint of several pieces (g, kind, factor, start), summed into L entries."""
    sources = [Array(g, shift + i) for i, (g, *_) in enumerate(pieces)]
    kind = F64 if any(kind == F64 for _, kind, *_ in pieces) else F32
    z = garbage(L, arithmetic(kind))
    told = [
        (source.address, kind, factor, start, g.size)
        for source, (g, kind, factor, start) in zip(sources, pieces, strict=True)
    ]
    native.adjoint(cuda, told, z.address, kind, L, SEED)
    return z.take()


def run_adjoint(cuda, g, kind, L, start, shift=0):
    return run_adjoint_sum(cuda, [(g, kind, 1.0, start)], L, shift)


def check_adjoint_sum(z, pieces, L):
    """Compares z with the model's sum, within the rounding of sums in z's type."""
    wanted = sum(
        factor * adjoint(widen(g, kind).astype(np.float64), L, start)
        for g, kind, factor, start in pieces
    )
    eps = np.finfo(z.dtype).eps
    assert abs(z - wanted).max() <= 16 * eps * np.sqrt((wanted**2).mean() * np.log2(L))


def check_adjoint(z, g, kind, L, start):
    check_adjoint_sum(z, [(g, kind, 1.0, start)], L)
