"""Every shape of the CUDA kernels (csrc/cuda/shapes.h) under the emulator, bit for bit, with the
shared memory of small and large GPUs. Its accesses must take as many cycles as without any bank
conflict."""

import re

import numpy as np
import pytest
from native_calls import (
    Array,
    Base,
    Transform,
    check_adjoint,
    diagonals_for,
    random,
    run_adjoint,
    run_project,
)
from numpy_model import BF16, F16, F32, F64, NAMES, native, projection

SMALL, LARGE = 48 * 1024, 227 * 1024  # what every GPU has, and what an H200 has
TILES = {F64: range(7, 14), F32: range(8, 16), F16: range(9, 16), BF16: range(9, 16)}
TILED = [(kind, log_n) for kind, logs in TILES.items() for log_n in logs]
BLOCKS = [(kind, log_L) for kind in NAMES for log_L in range(8, 14 if kind == F64 else 16)]


def configure(shared, blocks=3, wave=2**15, partials=3 << 10):
    native.configure(blocks, wave, partials, shared, False)


def names(cases):
    return [f"{NAMES[kind]}-{log}" for kind, log in cases]


def no_conflicts():
    """Whether accesses since count_cycles() took as few cycles as possible, and there were any."""
    taken, least = native.cycles()
    return taken == least > 0


# --- Transform ---


@pytest.mark.parametrize("kind, log_n", TILED, ids=names(TILED))
def test_tiles(kind, log_n):
    """Whole tiles, more than blocks, and rows behind the last whole one."""
    n = 2**log_n
    for rows in (2 ** max(0, 10 - log_n) * 7, 2 ** max(0, 10 - log_n) * 4 + 1):
        x, diagonals = random(rows * n, kind), diagonals_for(n, kind)
        configure(LARGE)
        Transform(kind, n, in_place=rows % 2 == 1).check(True, x)
        Transform(kind, n, diagonals).check(True, x)


@pytest.mark.parametrize("kind, log_n", TILED, ids=names(TILED))
def test_tiles_have_no_bank_conflicts(kind, log_n):
    configure(LARGE)
    x = random(8 << max(log_n, 10), kind)
    native.count_cycles()
    Transform(kind, 2**log_n).check(True, x)
    assert no_conflicts()


@pytest.mark.parametrize("kind", [F32, F16], ids=["f32", "f16"])
@pytest.mark.parametrize("shared", [64 * 1024, 100 * 1024, 160 * 1024])
def test_the_longest_tiles_without_room_to_prefetch(kind, shared):
    """Turing, consumer GPUs and an A100: halves, one tile after the other, or two passes."""
    configure(shared)
    for log_n in (14, 15):
        Transform(kind, 2**log_n).check(True, random(3 << log_n, kind))


@pytest.mark.parametrize("levels", [5, 7, 9, 11])
@pytest.mark.parametrize("more", [0, 2])
def test_passes_over_columns(levels, more):
    """Against the last levels of a whole transform, by the plain sums over columns."""
    log = {5: 7, 7: 5, 9: 5, 11: 4}[levels] + more
    total = 2 << (log + levels)
    x = random(total, F32)
    wanted = x.reshape(-1, 2**levels, 2**log)
    for level in range(levels):
        a, b = np.moveaxis(wanted.reshape(len(wanted), -1, 2, 2**level, 2**log), 2, 0)
        wanted = np.stack([a + b, a - b], 2).reshape(wanted.shape)
    configure(LARGE)
    memory = Array(x)
    native.count_cycles()
    native.columns(memory.address, total, log, levels)
    assert no_conflicts() or levels == 5  # in registers alone
    np.testing.assert_array_equal(memory.take(), wanted.ravel())


@pytest.mark.parametrize("kind, log_n", [(F32, 17), (F16, 18), (F64, 16), (BF16, 16)])
def test_long_rows(kind, log_n):
    """Several rows and waves of them, from misaligned addresses as well, with diagonals."""
    n = 2**log_n
    x, diagonals = random(2 * n, kind), diagonals_for(n, kind)
    configure(LARGE, wave=n)
    Transform(kind, n, shifts=(0, 1)).check(True, x)
    Transform(kind, n, diagonals, shifts=(1, 0), in_place=True).check(True, x)


def test_how_rows_are_cut():
    """Tiles and passes that are there, whatever the shared memory, with as few passes as can be."""
    for best, most, most_levels in [
        *((13, most, levels) for most in (13, 14, 15) for levels in (7, 9, 11)),
        *((best, most, levels) for best in (11, 12) for most in (12, 13, 14) for levels in (7, 9)),
        (11, 15, 11),
    ]:
        for row_log in range(most + 1, 32):
            tile_log, levels = native.cut_row(row_log, best, most, most_levels)
            assert tile_log + sum(levels) == row_log
            assert 8 + (most > 12) <= tile_log <= most, (row_log, best, most, most_levels)
            assert all(5 <= level <= most_levels and level % 2 for level in levels)
            assert len(levels) == -(-(row_log - most) // most_levels)


# --- Projection and adjoint ---


@pytest.mark.parametrize("kind, log_L", BLOCKS, ids=names(BLOCKS))
def test_projection_tiles(kind, log_L):
    configure(LARGE)
    L = 2**log_L
    v = random(L, F64 if kind == F64 else F32, seed=1)
    for start, count, shifts in [
        (0, 9 * L if L < 2**12 else 3 * L, (0, 0, 0)),
        (L - 3, L, (1, 1, 0)),
    ]:
        out = run_project(True, v, kind, start, count, shifts=shifts)
        np.testing.assert_array_equal(out, projection(v, kind, start, count))
        offsets = np.array([0, count // 3, count // 3, count])
        scales = random(3, arithmetic_kind(kind), seed=3)
        base = Base(random(count, kind, seed=4), offsets, scales)
        out = run_project(True, v, kind, start, count, base, shifts)
        np.testing.assert_array_equal(out, projection(v, kind, start, count, *base))


def arithmetic_kind(kind):
    return F64 if kind == F64 else F32


@pytest.mark.parametrize("kind", [F32, F64, BF16], ids=["f32", "f64", "bf16"])
def test_projection_of_long_blocks(kind):
    L = 2**16
    v = random(L, arithmetic_kind(kind), seed=1)
    configure(LARGE, wave=L)
    out = run_project(True, v, kind, L - 5, L + 9)
    np.testing.assert_array_equal(out, projection(v, kind, L - 5, L + 9))


@pytest.mark.parametrize("kind, log_L", BLOCKS, ids=names(BLOCKS))
def test_adjoint_tiles(kind, log_L):
    configure(LARGE)
    L = 2**log_L
    for start, count, shift in [(0, 9 * L if L < 2**12 else 3 * L, 0), (L - 3, L, 1)]:
        g = random(count, kind, seed=5)
        check_adjoint(run_adjoint(True, g, kind, L, start, shift), g, kind, L, start)


@pytest.mark.parametrize("kind, log_L", BLOCKS, ids=names(BLOCKS))
def test_whole_tiles_have_no_bank_conflicts(kind, log_L):
    configure(LARGE)
    L, count = 2**log_L, 2 * max(2**log_L, 2**11)
    for run, argument in [
        (lambda v: run_project(True, v, kind, 0, count), random(L, arithmetic_kind(kind))),
        (lambda g: run_adjoint(True, g, kind, L, 0), random(count, kind)),
    ]:
        native.count_cycles()
        run(argument)
        assert no_conflicts()


# --- The emulator's own mistakes ---


@pytest.mark.parametrize(
    "mistake, said",
    [
        ("not aligned", "not aligned"),
        ("a copy that is not awaited", "before it came"),
        ("no warp barrier", "another one writes|no thread has written"),
        ("none but a warp barrier", "^$"),
        ("half a product", "its end"),
    ],
)
def test_the_emulator_finds_mistakes(mistake, said):
    configure(SMALL)
    assert re.search(said, native.run_faulty(mistake))


def test_the_emulator_counts_conflicts():
    """Two warps write 32 entries each, of which every two share a bank."""
    configure(SMALL)
    native.count_cycles()
    assert native.run_faulty("bank conflict") == ""
    assert native.cycles() == (4, 2)
