"""The native kernels without torch and without a GPU, bit for bit against a plain numpy model of
csrc/definitions.h: the CPU's, and the CUDA sources on the emulator of tests/native."""

import hashlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
native = pytest.importorskip("fastfood_native_tests", reason="built with FASTFOOD_TESTS=1")

F32, F64, F16, BF16 = range(4)  # the order of kernels.h
STORAGE = {F32: np.float32, F64: np.float64, F16: np.float16, BF16: np.uint16}
NAMES = {F32: "f32", F64: "f64", F16: "f16", BF16: "bf16"}
TYPES = pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())
SEED = 0x123456789ABCDEF1
GUARD = 256


# --- The model ---


def arithmetic(kind):
    return np.float64 if kind == F64 else np.float32


def narrow(x, kind):
    """Rounds to the storage type; bfloat16 as its bits."""
    if kind != BF16:
        return x.astype(STORAGE[kind])
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widen(x, kind):
    if kind != BF16:
        return x.astype(arithmetic(kind))
    return (x.astype(np.uint32) << 16).view(np.float32)


def fwht(x):
    """Rows of x, in x's own precision, levels in ascending stride order."""
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


# --- Calls, in memory with guards ---


class Array:
    """Values `shift` entries from a 64-byte boundary, amid NaN that is not to be touched."""

    def __init__(self, values, shift=0):
        self.bytes = np.full(values.nbytes + 2 * GUARD + 128, 0xFF, np.uint8)
        self.begin = -self.bytes.ctypes.data % 64 + GUARD + shift * values.itemsize
        self.end = self.begin + values.nbytes
        self.values = self.bytes[self.begin : self.end].view(values.dtype)
        self.values[:] = values.ravel()

    @property
    def address(self):
        return self.values.ctypes.data if self.values.size else self.bytes.ctypes.data

    def take(self):
        assert (self.bytes[: self.begin] == 0xFF).all() and (
            self.bytes[self.end :] == 0xFF
        ).all(), "guard written"
        return self.values.copy()


def garbage(size, dtype, shift=0):
    return Array(np.full(size * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype), shift)


def random(size, kind, seed=0):
    x = np.random.default_rng([seed, size]).standard_normal(size)
    return narrow(x.astype(arithmetic(kind)), kind)


def mix(x, H, stride):
    """H over entries a stride apart, its terms in ascending order."""
    terms = x.reshape(len(x), -1, len(H), stride)
    sums = np.zeros_like(terms)
    for b, column in enumerate(H.T.astype(x.dtype)):
        sums = sums + column[:, None] * terms[:, :, b : b + 1]
    return sums.reshape(x.shape)


def transform(x, kind, n, scale, diagonals, orders, transpose):
    wide = widen(x, kind).reshape(-1, n)
    if diagonals:
        wide = wide * diagonals[0]
    m = n // math.prod(orders)
    wide = fwht(wide.reshape(-1, m)).reshape(-1, n)
    for K in orders:
        wide = mix(wide, np.array(native.sign_matrix(K, transpose), np.int8), m)
        m *= K
    wide = wide * arithmetic(kind)(scale)
    return narrow(wide * diagonals[1] if diagonals else wide, kind).ravel()


def check_transform(
    cuda, x, kind, n, diagonals=(), orders=(), transpose=False, shifts=(0, 0), in_place=False
):
    source, memory = Array(x, shifts[0]), [Array(diagonal) for diagonal in diagonals]
    out = source if in_place else garbage(x.size, STORAGE[kind], shifts[1])
    arguments = [kind, x.size // n, n, 0.3, *([a.address for a in memory] or [0, 0])]
    native.transform(cuda, source.address, out.address, *arguments, math.prod(orders), transpose)
    wanted = transform(x, kind, n, 0.3, diagonals, orders, transpose)
    np.testing.assert_array_equal(out.take(), wanted)


def run_project(
    cuda, v, kind, start, count, base=None, offsets=None, scales=None, shifts=(0, 0, 0)
):
    out, v = garbage(count, STORAGE[kind], shifts[0]), Array(v, shifts[1])
    if base is None:
        native.project(
            cuda, out.address, 0, v.address, 0, 0, 0, kind, v.values.size, start, count, SEED
        )
        return out.take()
    base, offsets, scales = Array(base, shifts[2]), Array(offsets), Array(scales)
    pointers = [array.address for array in (out, base, v, offsets, scales)]
    native.project(cuda, *pointers, scales.values.size, kind, v.values.size, start, count, SEED)
    return out.take()


def run_adjoint(cuda, g, kind, L, start, shift=0):
    source, z = Array(g, shift), garbage(L, arithmetic(kind))
    native.adjoint(cuda, source.address, z.address, kind, L, start, g.size, SEED)
    return z.take()


@pytest.fixture(params=["cpu", "cuda", "backwards"])
def cuda(request):
    """Which kernels; the emulated ones with the threads of a block in either order, and limits so
    small that nothing fits at once."""
    native.configure(3, 2**15, 3, 48 * 1024, request.param == "backwards")
    return request.param != "cpu"


# --- Emulator ---


@pytest.mark.parametrize(
    "mistake, said",
    [
        ("none", "^$"),
        ("unwritten", "what no thread has written"),
        ("outside", "outside of shared memory"),
        ("collision", "two threads write to one place"),
        ("no barrier", "another one|no thread has written"),
        ("no barrier behind", "a thread (reads|writes) what another one"),
        ("barrier in a branch", "its end"),
        ("half a warp", "leaves out lanes"),
        ("another warp", "leaves the warp"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_emulator_finds_mistakes(mistake, said, backwards):
    native.configure(3, 2**15, 3, 48 * 1024, backwards)
    assert re.search(said, native.run_faulty(mistake))


# --- Generator ---


def test_philox_known_answers():
    """Ten rounds, from the authors' kat_vectors."""
    ones = 0xFFFFFFFF
    assert native.philox((0, 0, 0, 0), 0, 0, 10) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert native.philox((ones,) * 4, ones, ones, 10) == (
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    )
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert native.philox(pi, 0xA4093822, 0x299F31D0, 10) == (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    )


def test_normal_is_the_inverse_distribution():
    q = 2 * (np.arange(2**16) % 2**15) + 1
    z = np.array([-NormalDist().inv_cdf(x / 2**17) for x in q]) * np.where(
        np.arange(2**16) < 2**15, 1, -1
    )
    assert abs(NORMAL - z / np.sqrt((z**2).mean())).max() < 3e-5
    assert abs((NORMAL.astype(np.float64) ** 2).mean() - 1) < 1e-7


@pytest.mark.parametrize("first, count", [(0, 1), (2**32 - 5, 1037), (2**45 + 3, 16), (7, 0)])
def test_draws(cuda, first, count):
    out, z = garbage(4 * count, np.uint32), garbage(8 * count, np.float32)
    native.words(cuda, SEED, 3, first, count, out.address)
    native.normals(cuda, SEED, 3, first, count, z.address)
    np.testing.assert_array_equal(out.take(), philox_words(SEED, 3, first, count))
    np.testing.assert_array_equal(z.take(), normals(SEED, 3, first, count))


# --- Transform ---


def diagonals_for(n, kind):
    return [random(n, F64 if kind == F64 else F32, seed) for seed in (7, 8)]


@TYPES
@pytest.mark.parametrize("log_n", range(20))
def test_transform(cuda, kind, log_n):
    n = 2**log_n
    rows = {0: 9001, 1: 4097, 2: 2049}.get(log_n, 3 if log_n < 17 else 1)
    x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
    shifts = [(0, 0), (1, 0), (0, 3)][log_n % 3]
    check_transform(cuda, x, kind, n, shifts=shifts)
    check_transform(cuda, x, kind, n, diagonals, shifts=shifts, in_place=True)


@TYPES
@pytest.mark.parametrize("log_n", range(13, 17))
def test_transform_with_more_shared_memory(kind, log_n):
    """All tiles: 100 KB is what small GPUs have, 227 KB an H200."""
    x = random(2 << log_n, kind)
    for shared in (100 * 1024, 227 * 1024):
        native.configure(3, 2**15, 3, shared, False)
        check_transform(True, x, kind, 2**log_n, diagonals_for(2**log_n, kind))


def test_transform_of_many_short_rows():
    """Several rows in flight for each thread."""
    native.configure(2**20, 2**15, 3, 48 * 1024, False)
    check_transform(True, random((1 << 22) + 64, F16), F16, 64, diagonals_for(64, F16))


ORDERS = [(12,), (20,), (28,), (36,), (40,), (44,), (60,), (108,), (116,), (156,), (172,), (428,)]


@TYPES
@pytest.mark.parametrize("orders", [*ORDERS, (12, 12), (76, 36)], ids=str)
def test_transform_of_orders(cuda, kind, orders):
    for log_m, rows, transpose in [(0, 19, True), (1, 2, False), (3, 3, True), (6, 1, False)]:
        n = math.prod(orders) << log_m
        if n > 40000:
            continue
        x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
        check_transform(cuda, x, kind, n, diagonals, orders, transpose, (rows % 2, 1))
        check_transform(cuda, x, kind, n, (), orders, transpose, in_place=True)


@pytest.mark.parametrize("n, orders", [(14336, (28,)), (29568, (84, 44)), (12 << 14, (12,))])
def test_transform_of_orders_with_more_shared_memory(n, orders):
    for shared in (48 * 1024, 227 * 1024):
        native.configure(3, 2**15, 3, shared, False)
        for kind in (F32, BF16):
            check_transform(True, random(n, kind), kind, n, diagonals_for(n, kind), orders)


@TYPES
def test_transform_of_nothing(kind):
    native.transform(False, 0, 0, kind, 0, 64, 1.0)


# --- Projection ---

BLOCKS = pytest.mark.parametrize("L", [2**8, 2**10, 2**11, 2**12, 2**13, 2**14, 2**15])


@TYPES
@BLOCKS
def test_projection_alone(cuda, kind, L):
    v = random(L, F64 if kind == F64 else F32, seed=1)
    for start, count, shifts in [
        (0, 2 * L, (0, 0)),
        (3 * L + 77, L + 300, (1, 1)),
        (2**36 + 5, 200, (3, 0)),
    ]:
        out = run_project(cuda, v, kind, start, count, shifts=(*shifts, 0))
        np.testing.assert_array_equal(out, projection(v, kind, start, count))


@TYPES
@BLOCKS
def test_projection_on_a_base(cuda, kind, L):
    v = random(L, F64 if kind == F64 else F32, seed=2)
    for start, count, shifts in [(0, 2 * L + 1, (0, 0, 0)), (L - 3, L + 5, (1, 0, 2))]:
        cuts = np.sort(np.random.default_rng(L).integers(0, count, 40))
        offsets = np.concatenate([[0, 0], cuts, cuts[-1:], [count]])  # some of them empty
        scales = random(len(offsets) - 1, F64 if kind == F64 else F32, seed=3)
        base = random(count, kind, seed=4)
        out = run_project(cuda, v, kind, start, count, base, offsets, scales, shifts)
        np.testing.assert_array_equal(out, projection(v, kind, start, count, base, offsets, scales))


def test_projection_of_no_rows(cuda):
    assert run_project(cuda, random(256, F32), F32, 300, 0).size == 0


# --- Adjoint ---


@TYPES
@BLOCKS
def test_adjoint(cuda, kind, L):
    many = 9 * L if L < 2**13 else 3 * L
    for start, count, shift in [(0, many, 0), (2 * L + 77, L + 300, 1), (2**36 + 5, 200, 3)]:
        g = random(count, kind, seed=5)
        check_adjoint(run_adjoint(cuda, g, kind, L, start, shift), g, kind, L, start)


def check_adjoint(z, g, kind, L, start):
    wanted = adjoint(widen(g, kind).astype(np.float64), L, start)
    eps = np.finfo(arithmetic(kind)).eps
    assert abs(z - wanted).max() <= 16 * eps * np.sqrt((wanted**2).mean() * np.log2(L))


@pytest.mark.parametrize("L", [2**8, 2**14])
def test_adjoint_does_not_depend_on_the_launch(L):
    g = random(20 * 2**14, F32, seed=6)
    native.configure(3, 2**18, 20, 48 * 1024, False)
    z = run_adjoint(True, g, F32, L, 5)
    check_adjoint(z, g, F32, L, 5)
    native.configure(100, 2**18, 20, 48 * 1024, True)
    np.testing.assert_array_equal(run_adjoint(True, g, F32, L, 5), z)


@pytest.mark.parametrize("L", [2**8, 2**13, 2**14])
def test_adjoint_of_no_rows(cuda, L):
    np.testing.assert_array_equal(
        run_adjoint(cuda, random(0, F32), F32, L, 300), np.zeros(L, np.float32)
    )


# --- Instruction sets ---


def digest():
    """Of all CPU kernels' results in this process."""
    sha = hashlib.sha256()
    for kind in NAMES:
        for n, K in [(1, 1), (8, 1), (64, 1), (2**10, 1), (2**14, 1), (12, 12), (44 * 64, 44)]:
            x, out = Array(random(3 * n, kind)), garbage(3 * n, STORAGE[kind])
            before, after = map(Array, diagonals_for(n, kind))
            native.transform(
                False, x.address, out.address, kind, 3, n, 0.3, before.address, after.address, K
            )
            sha.update(out.take())
        v = random(1024, F64 if kind == F64 else F32)
        sha.update(run_project(False, v, kind, 700, 50000))
        sha.update(run_adjoint(False, random(50000, kind), kind, 1024, 700))
    z = garbage(8 * 1001, np.float32)
    native.normals(False, SEED, 3, 2**32 - 5, 1001, z.address)
    sha.update(z.take())
    return sha.hexdigest()


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_sets_agree(isa):
    command = [sys.executable, __file__]
    done = subprocess.run(
        command, env={**os.environ, "FASTFOOD_ISA": isa}, capture_output=True, text=True
    )
    if done.returncode and "FASTFOOD_ISA: wanted" in done.stderr:
        pytest.skip(f"this processor lacks {isa}")
    assert done.stdout.split() == [isa, digest()]


if __name__ == "__main__":
    print(native.isa(), digest())
