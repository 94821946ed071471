"""The random numbers: Philox to its published answers, normals to the bit, and both looked at by
statistics over 2^24 draws. Bounds are five standard deviations; seeds are fixed."""

import math
import pathlib
import re

import numpy as np
import pytest
import torch

from fastfood import ops, random_signs, reference
from fastfood.projection import permutation

DEFINITIONS = pathlib.Path(__file__).parents[2] / "csrc" / "definitions.h"
N = 1 << 24


def test_philox_has_the_published_answers():
    """Known answers of Salmon et al.'s Random123: (rounds, counter, key, words)."""
    ones = [0xFFFFFFFF] * 4
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for rounds, counter, key, words in [
        (7, [0] * 4, [0] * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (7, ones, ones[:2], "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (7, pi, [0xA4093822, 0x299F31D0], "4dfccaba 190a87f0 c47362ba b6b5242a"),
        (10, [0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (10, ones, ones[:2], "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (10, pi, [0xA4093822, 0x299F31D0], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:
        got = reference.philox(
            [torch.tensor(c) for c in counter], [torch.tensor(k) for k in key], rounds
        )
        assert " ".join(f"{int(w):08x}" for w in got) == words


@pytest.mark.parametrize("seed", [0, 1, 0x299F31D0A4093822, 2**64 - 1])
@pytest.mark.parametrize("first, count", [(0, 1), (3, 100), ((1 << 32) - 5, 40), (1 << 40, 17)])
def test_words_are_philox_of_the_counter(seed, first, count, device):
    got = ops.philox_words(seed, 2, first, count, device)
    assert torch.equal(got.cpu(), reference.philox_words(seed, 2, first, count))


def test_normals_meet_the_exact_quantiles(device):
    z = ops.normals(11, 3, 7, 1 << 15, device).cpu().double()
    assert (z - reference.normals(11, 3, 7, 1 << 15)).abs().max() < 3e-5


def sixteen_bit_normals():
    """The 16-bit numbers k that occur in 2^20 draws, and the normals z that they give."""
    words = ops.philox_words(0, 0, 0, 1 << 17).numpy().view(np.uint32)
    k = np.stack([words & 0xFFFF, words >> 16], 1).reshape(-1)
    return k, ops.normals(0, 0, 0, 1 << 17).numpy()


@pytest.mark.skipif(not DEFINITIONS.exists(), reason="needs csrc/definitions.h beside the tests")
def test_normals_are_the_polynomial_of_the_definition_to_the_bit():
    source = DEFINITIONS.read_text().split("kNormalTable = {{")[1].split("}};")[0]
    constants = [
        float.fromhex(c) for c in re.findall(r"-?(?:0x[0-9a-f.]+p[+-]\d+|0\.0)(?=f)", source)
    ]
    table = np.array(constants).reshape(5, 16)
    k, z = sixteen_bit_normals()
    assert len(np.unique(k)) > 65000
    q = ((k << 1) & 0xFFFF) | 1
    row = np.floor(np.log2(q)).astype(int)
    want = table[4, row].astype(np.float32)
    for power in (
        3,
        2,
        1,
        0,
    ):  # the product is exact in the longer type, the sum is rounded to float32
        exact = want.astype(np.longdouble) * q + table[power, row].astype(np.longdouble)
        want = exact.astype(np.float32)
    want = np.where(k & 0x8000, -want, want)
    assert np.array_equal(z.view(np.uint32), want.view(np.uint32))


def test_normals_are_symmetric_with_unit_variance():
    k, z = sixteen_bit_normals()
    value = np.full(1 << 16, np.nan)
    value[k] = z
    known = ~np.isnan(value)
    both = known[:32768] & known[32768:]
    assert np.array_equal(value[:32768][both], -value[32768:][both])
    assert (np.diff(value[:32768][known[:32768]]) < 0).all()
    assert abs(np.square(value[known]).mean() - 1) < 1e-3


# --- statistics ----------------------------------------------------------------------------------


def draws(seed=5, stream=ops.STREAM_G, first=0):
    return ops.normals(seed, stream, first // 8, N // 8)


@pytest.fixture(scope="module")
def z():
    return draws()


def test_moments(z):
    """The fourth moment of 16-bit normals, whose tail ends at 4.3, is 6e-4 below 3."""
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = float(z.double().pow(power).mean()) - mean
        assert abs(error) < 5 * math.sqrt(variance / N) + (power == 4) * 6e-4


def test_kolmogorov_smirnov(z):
    """Steps of 2^-16 and errors of 3e-5 in z are below the bound for N draws at p = 1e-5."""
    cdf = torch.special.ndtr(z.sort().values.double())
    rank = torch.arange(N, dtype=torch.float64)
    distance = torch.maximum((rank + 1) / N - cdf, cdf - rank / N).max()
    assert float(distance) < math.sqrt(-math.log(1e-5 / 2) / 2 / N)


def test_tails(z):
    assert 4.2 < float(z.abs().max()) < 4.4
    for edge in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(edge / math.sqrt(2)) / 2
        step = 2.0**-17 * (edge > 3)  # where a cell of the 16 bits ends
        for tail in (z > edge, z < -edge):
            assert abs(int(tail.sum()) / N - p) < 5 * math.sqrt(p / N) + step


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 16, 128, 256, 1024, 1 << 14, 1 << 20])
def test_no_correlation_between_draws_of_a_stream(z, lag):
    """Lags of 256 and more are the same row of other blocks."""
    a, b = z[lag:], z[:-lag]
    assert abs(float(torch.dot(a, b))) < 5 * math.sqrt(N)
    assert abs(float(torch.dot(a.square() - 1, b.square() - 1))) < 5 * 2 * math.sqrt(N)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"seed": 5 + (1 << 32)},
        {"seed": 5 ^ (1 << 63)},
        {"stream": ops.STREAM_DENSE},
        {"stream": ops.STREAM_LENGTHS},
        {"first": N},
        {"first": 1 << 35},
    ],
    ids=str,
)
def test_no_correlation_between_seeds_streams_and_ranges(z, other):
    y = draws(**other)
    assert abs(float(torch.dot(z, y))) < 5 * math.sqrt(N)
    assert abs(float(torch.dot(z.square() - 1, y.square() - 1))) < 5 * 2 * math.sqrt(N)


@pytest.mark.parametrize("lag", [1, 2, 8, 256])
def test_pairs_of_draws_fill_the_square(lag):
    """Chi-squared over 64 x 64 cells of the uniform numbers behind two draws, `lag` apart."""
    words = ops.philox_words(7, ops.STREAM_G, 0, N // 8).numpy().view(np.uint16)
    cells = (words >> 10).astype(np.int64)
    counts = np.bincount(64 * cells[lag:] + cells[:-lag], minlength=4096)
    expected = (N - lag) / 4096
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 4095) < 5 * math.sqrt(2 * 4095)


def test_signs_are_fair_and_uncorrelated():
    B = random_signs(N, 3)
    assert abs(float(B.sum())) < 5 * math.sqrt(N)
    for lag in (1, 2, 31, 32, 128, 4096):
        assert abs(float(torch.dot(B[lag:], B[:-lag]))) < 5 * math.sqrt(N)


def test_permutations_are_uniform():
    """Of 4,096 seeds: every place is as likely as every other, and pairs keep no order."""
    seeds, L = 4096, 256
    p = torch.stack([permutation(L, seed) for seed in range(seeds)])
    assert torch.equal(p.sort(1).values, torch.arange(L, dtype=torch.int32).expand(seeds, L))
    counts = torch.stack([(p == value).sum(0) for value in range(L)]).double()
    chi = float(((counts - seeds / L) ** 2 / (seeds / L)).sum())
    freedom = (L - 1) ** 2
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)
    rises = (p[:, 1:] > p[:, :-1]).double().mean()
    assert abs(float(rises) - 0.5) < 5 * math.sqrt(1 / 12 / (seeds * (L - 1)))
