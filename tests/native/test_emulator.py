"""The native kernels without torch and without a GPU, bit for bit against a plain numpy model of
csrc/definitions.h: the CPU's, and the CUDA sources on the emulator of tests/native."""

import hashlib
import itertools
import math
import os
import re
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from native_calls import (
    Array,
    Base,
    Transform,
    check_adjoint,
    check_adjoint_sum,
    diagonals_for,
    garbage,
    random,
    run_adjoint,
    run_adjoint_sum,
    run_project,
)
from numpy_model import (
    BF16,
    F16,
    F32,
    F64,
    NAMES,
    NORMAL,
    SEED,
    STORAGE,
    native,
    normals,
    philox_words,
    projection,
)

TYPES = pytest.mark.parametrize("kind", NAMES, ids=NAMES.values())


@pytest.fixture(params=["cpu", "cuda", "backwards"])
def cuda(request):
    """The kernels to test; the emulated ones run the threads of a block in either order, and with
    limits so small that nothing fits at once."""
    native.configure(3, 2**15, 3 << 10, 48 * 1024, request.param == "backwards")
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
    native.configure(3, 2**15, 3 << 10, 48 * 1024, backwards)
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


LARGE = [(17, F32), (18, BF16), (19, F64), (19, F16)]  # slow, and alike in all types


@pytest.mark.parametrize("log_n, kind", [*itertools.product(range(17), NAMES), *LARGE])
def test_transform(cuda, kind, log_n):
    n = 2**log_n
    rows = {0: 9001, 1: 4097, 2: 2049}.get(log_n, 3 if log_n < 17 else 1)
    x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
    shifts = [(0, 0), (1, 0), (0, 3)][log_n % 3]
    Transform(kind, n, shifts=shifts).check(cuda, x)
    Transform(kind, n, diagonals, shifts=shifts, in_place=True).check(cuda, x)


@TYPES
@pytest.mark.parametrize("log_n", range(13, 17))
def test_transform_with_more_shared_memory(kind, log_n):
    """All tiles: 100 KB is what small GPUs have, 227 KB an H200."""
    x = random(2 << log_n, kind)
    for shared in (100 * 1024, 227 * 1024):
        native.configure(3, 2**15, 3 << 10, shared, False)
        Transform(kind, 2**log_n, diagonals_for(2**log_n, kind)).check(True, x)


def test_transform_of_many_short_rows():
    """Several rows in flight for each thread."""
    native.configure(2**20, 2**15, 3 << 10, 48 * 1024, False)
    Transform(F16, 64, diagonals_for(64, F16)).check(True, random((1 << 22) + 64, F16))


ORDERS = [(12,), (20,), (28,), (36,), (40,), (44,), (60,), (108,), (116,), (156,), (172,)]
ORDERS += [(188,), (260,), (428,), (1020,)]


@TYPES
@pytest.mark.parametrize("orders", [*ORDERS, (12, 12), (76, 36)], ids=str)
def test_transform_of_orders(cuda, kind, orders):
    for log_m, rows, transpose in [(0, 19, True), (1, 2, False), (3, 3, True), (6, 1, False)]:
        n = math.prod(orders) << log_m
        if n > 40000:
            continue
        x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
        Transform(kind, n, diagonals, orders, transpose, (rows % 2, 1)).check(cuda, x)
        Transform(kind, n, (), orders, transpose, in_place=True).check(cuda, x)


@pytest.mark.parametrize("n, orders", [(14336, (28,)), (29568, (84, 44)), (12 << 14, (12,))])
def test_transform_of_orders_with_more_shared_memory(n, orders):
    for shared in (48 * 1024, 227 * 1024):
        native.configure(3, 2**15, 3 << 10, shared, False)
        for kind in (F32, BF16):
            Transform(kind, n, diagonals_for(n, kind), orders).check(True, random(n, kind))


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
        base = Base(random(count, kind, seed=4), offsets, scales)
        out = run_project(cuda, v, kind, start, count, base, shifts)
        np.testing.assert_array_equal(out, projection(v, kind, start, count, *base))


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


def some_pieces(L, kinds, start=0):
    """Pieces of different types and factors: neighbours that share blocks, several in one block,
    and pieces that overlap, are empty, lie before the others, or have many blocks."""
    places = [(70, 100), (170, 3 * L), (170 + 3 * L, 9), (179 + 3 * L, 5), (184 + 3 * L, L)]
    places += [(5 * L, L), (6 * L, 40), (6 * L + 30, 40), (7, 0), (6 * L + 70, 2 * L + 1), (3, 50)]
    kinds = itertools.cycle(kinds)
    return [
        (random(count, kind, seed), kind, (1.0, -0.5, 3.0)[seed % 3], start + first)
        for seed, ((first, count), kind) in enumerate(zip(places, kinds, strict=False))
    ]


MIXES = pytest.mark.parametrize(
    "kinds",
    [[F32], [F64], [F32, F16, BF16], [F32, F64, F16, BF16, F64]],
    ids=["f32", "f64", "narrow", "mixed"],
)


@MIXES
@pytest.mark.parametrize("L", [2**8, 2**10, 2**13, 2**14])
@pytest.mark.parametrize("start", [0, 2**36 + 5])
def test_adjoint_of_pieces(cuda, L, kinds, start):
    pieces = some_pieces(L, kinds, start)
    check_adjoint_sum(run_adjoint_sum(cuda, pieces, L), pieces, L)
    check_adjoint_sum(run_adjoint_sum(cuda, pieces[::-1], L, 1), pieces[::-1], L)


def test_adjoint_of_pieces_of_one_long_block():
    """Longer than a cache: all threads work on each block."""
    for kinds in ([F32, BF16], [F64, F32]):
        pieces = [
            (random(count, kind, seed), kind, factor, start)
            for seed, (count, kind, factor, start) in enumerate(
                zip((300, 2**19, 77), itertools.cycle(kinds), (1.0, 0.5, -2.0), (2, 302, 2**19))
            )
        ]
        check_adjoint_sum(run_adjoint_sum(False, pieces, 2**19), pieces, 2**19)


def test_a_factor_of_one_changes_nothing():
    """And neighbours are as good as one piece, to the bit, where the types are the same."""
    for kind, L in itertools.product(NAMES, (2**8, 2**11)):
        g = random(7 * L, kind, seed=8)
        whole = run_adjoint(False, g, kind, L, 40)
        cut = [(g[a:b], kind, 1.0, 40 + a) for a, b in itertools.pairwise((0, 9, 3 * L, 7 * L))]
        np.testing.assert_array_equal(run_adjoint_sum(False, cut, L), whole)
        half = [(g, kind, 0.5, start) for _, start in ((0, 40), (1, 40))]
        check_adjoint(run_adjoint_sum(False, half, L), g, kind, L, 40)


@pytest.mark.parametrize("L", [2**8, 2**14])
def test_adjoint_does_not_depend_on_the_launch(L):
    g = random(20 * 2**14, F32, seed=6)
    native.configure(3, 2**18, 20 << 10, 48 * 1024, False)
    z = run_adjoint(True, g, F32, L, 5)
    check_adjoint(z, g, F32, L, 5)
    native.configure(100, 2**18, 20 << 10, 48 * 1024, True)
    np.testing.assert_array_equal(run_adjoint(True, g, F32, L, 5), z)


@pytest.mark.parametrize("L", [2**8, 2**13, 2**14])
def test_adjoint_of_no_rows(cuda, L):
    empty = (random(0, F32), F32, 2.0, 300)
    for pieces in ([], [empty], [empty] * 3):
        z = run_adjoint_sum(cuda, pieces, L)
        np.testing.assert_array_equal(z, np.zeros(L, np.float32))


# --- Instruction sets ---


def digest():
    """A hash of all CPU kernels' results in this process."""
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
    for L in (2**8, 2**11, 2**19):
        sha.update(run_adjoint_sum(False, some_pieces(L, [F32, BF16, F16], 77), L))
        sha.update(run_adjoint_sum(False, some_pieces(L, [F64, F32], 77), L))
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


def test_threads_change_nothing():
    alone = digest()
    native.use_threads(4)
    try:
        assert digest() == alone
    finally:
        native.use_threads(0)


if __name__ == "__main__":
    print(native.isa(), digest())
