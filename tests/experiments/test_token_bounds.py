"""The bounds in bits per token agree with values worked out by hand and with another way to them,
and hold as often as they say on problems whose risks are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from fastfood.experiments.bound.formulas import (
    empirical_bernstein_mean,
    finite_hypothesis_mean,
    kl_inverse,
    kl_inverse_mean,
    kl_of_bits,
)
from fastfood.experiments.bound.tokens import (
    ALPHA_BITS,
    ALPHAS,
    Tokens,
    best_smoothing,
    interval,
    row_losses,
    token_bounds,
)

NAMES = ["finite hypothesis", "kl-inverse", "empirical Bernstein"]


def tokens_of(vocabulary, *rows):
    """Tokens from rows of probabilities."""
    p = torch.tensor([p for row in rows for p in row], dtype=torch.float64)
    return Tokens(p.log(), torch.tensor([len(row) for row in rows]), vocabulary)


# values worked out by hand


def test_losses_by_hand():
    # V = 4, alpha = 1/2: p_alpha = p / 2 + 1/8
    low, high = interval(0.5, 4)
    assert low == pytest.approx(-math.log2(5 / 8), rel=1e-14)  # p = 1
    assert high == 3.0  # p = 0: 1/8
    assert high - low == pytest.approx(math.log2(5), rel=1e-14)  # log2(1 + (1/2) 4 / (1/2))
    # p = 1 and p = 1/4: (log2(8/5) + 2) / 2; p = 0: 3
    losses = row_losses(tokens_of(4, [1, 0.25], [0]), 0.5)
    assert losses.tolist() == pytest.approx([(math.log2(1.6) + 2) / 2, 3], rel=1e-14)
    # V = 8, alpha = 1/8, p = 1/8: uniform guessing stays uniform at every alpha
    assert row_losses(tokens_of(8, [1 / 8] * 3), 1 / 8).tolist() == pytest.approx([3], rel=1e-14)


def test_bounds_by_hand():
    # V = 4, alpha = 1/2: low = log2(8/5), width = log2(5). 3 bits and delta = 1/2:
    # KL + ln(1 / (delta / 2)) = 3 ln 2 + 2 ln 2 = 5 ln 2
    low, width = math.log2(1.6), math.log2(5)

    def bound(name, m, share, variance=0.0):
        mean, variance = low + width * share, variance * width**2
        return (token_bounds(m, mean, variance, 0.5, 4, 3, 0.5)[name] - low) / width

    # m = 10: 1/4 + sqrt(5 ln 2 / 20) = 1/4 + sqrt(0.173287) = 1/4 + 0.416277
    assert bound("finite hypothesis", 10, 0.25) == pytest.approx(0.666277, abs=1e-6)
    # m = 5: kl(1/2 || p) = -ln(4 p (1 - p)) / 2 = ln 2 at 4 p (1 - p) = 1/4
    assert bound("kl-inverse", 5, 0.5) == pytest.approx((1 + math.sqrt(0.75)) / 2, rel=1e-12)
    # m = 5, mean 0: -ln(1 - p) = ln 2
    assert bound("kl-inverse", 5, 0.0) == pytest.approx(0.5, rel=1e-12)
    # m = 101, v = 0.01: L = 3 ln 2 + ln(2 / (1/4)) = 6 ln 2 = 4.158883,
    # sqrt(2 x 0.01 x 4.158883 / 101) + 7 x 4.158883 / 300 = 0.028697 + 0.097041
    assert bound("empirical Bernstein", 101, 0.25, 0.01) == pytest.approx(0.375738, abs=1e-6)
    assert bound("empirical Bernstein", 1, 0.25) == 1.0  # one row has no variance


def test_the_grid_is_charged_in_full():
    assert len(ALPHAS) == 2**ALPHA_BITS == len(set(ALPHAS))
    assert ALPHAS[0] == pytest.approx(math.sqrt(0.5)) and ALPHAS[-1] == 2.0**-16


# another way to the same numbers


def _smoothed_in_a_loop(rows, alpha, vocabulary):
    losses = []
    for row in rows:
        bits = [-math.log2((1 - alpha) * p + alpha / vocabulary) for p in row]
        losses.append(sum(bits) / len(bits))
    return losses


def _kl_inverse_by_its_dual(mean, most):
    """kl(q || p) is the largest over C of -ln(1 - p (1 - e^-C)) - C q, so the largest p with
    kl(q || p) <= c is the least over C of (1 - e^(-C q - c)) / (1 - e^-C)."""

    def value(log_c):
        c = math.exp(log_c)
        return math.expm1(-c * mean - most) / math.expm1(-c)

    found = minimize_scalar(value, bounds=(-12, 8), method="bounded", options={"xatol": 1e-10})
    return min(1.0, found.fun)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=2, max_size=8),
    st.integers(0, len(ALPHAS) - 1),
    st.integers(2, 200_000),
    st.integers(0, 400),
    st.floats(0.001, 0.5),
)
def test_agrees_with_another_way(rows, index, vocabulary, bits, delta):
    alpha, m = ALPHAS[index], len(rows)
    losses = _smoothed_in_a_loop(rows, alpha, vocabulary)
    assert row_losses(tokens_of(vocabulary, *rows), alpha).tolist() == pytest.approx(losses)
    mean, variance = float(np.mean(losses)), float(np.var(losses, ddof=1))
    low, width = (
        -math.log2(1 - alpha + alpha / vocabulary),
        math.log2(1 + (1 - alpha) * vocabulary / alpha),
    )
    log = bits * math.log(2) + math.log(2 / delta)
    most = low + width
    share = min(1.0, max(0.0, (mean - low) / width))
    bernstein = math.sqrt(2 * variance * (log + math.log(2)) / m)
    expected = {
        "finite hypothesis": min(most, mean + width * math.sqrt(log / (2 * m))),
        "kl-inverse": low + width * _kl_inverse_by_its_dual(share, log / m),
        "empirical Bernstein": min(
            most, mean + bernstein + width * 7 * (log + math.log(2)) / (3 * (m - 1))
        ),
    }
    found = token_bounds(m, mean, variance, alpha, vocabulary, bits, delta)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert low - 1e-9 <= mean <= found["kl-inverse"] + 1e-9
    assert found["kl-inverse"] <= found["finite hypothesis"] + 1e-9


def test_a_share_of_errors_is_a_mean_loss():
    assert kl_inverse_mean(300, 60 / 300, 12.0, 0.05) == kl_inverse(300, 60, 12.0, 0.05)


def test_the_alpha_of_the_least_bound_is_chosen():
    generator = torch.Generator().manual_seed(0)
    log_p = -3 * torch.rand(900, generator=generator)
    tokens = Tokens(log_p, torch.tensor([2, 1, 3] * 150), 1000)
    found = best_smoothing(450, tokens, 40, 0.05)
    least = []
    for alpha in ALPHAS:
        losses = row_losses(tokens, alpha)
        numbers = losses.mean().item(), losses.var().item()
        least.append(min(token_bounds(450, *numbers, alpha, 1000, 40, 0.05).values()))
    assert found.place == int(np.argmin(least)) and found.bounds[found.best] == min(least)
    assert 0 < found.place < len(ALPHAS) - 1 and found.alpha == ALPHAS[found.place]
    assert found.mean == row_losses(tokens, found.alpha).mean().item()


# limits


def test_all_smoothing_is_uniform_guessing_exactly():
    for vocabulary in (3, 1000, 32_000, 151_936):
        uniform = math.log2(vocabulary)
        assert interval(1, vocabulary) == (uniform, uniform)
        assert row_losses(tokens_of(vocabulary, [0.3, 0], [1]), 1).tolist() == [uniform, uniform]
        bounds = token_bounds(10, uniform, 0.0, 1, vocabulary, 50, 0.05)
        assert bounds == dict.fromkeys(NAMES, uniform)
        nearly = token_bounds(10, uniform, 0.0, 1 - 1e-12, vocabulary, 50, 0.05)
        assert all(value == pytest.approx(uniform, abs=1e-6) for value in nearly.values())


def test_without_bits_and_rows_without_end_the_bounds_are_the_mean():
    for name, value in token_bounds(10**9, 2.0, 0.5, 0.01, 1000, 0, 0.05).items():
        assert value == pytest.approx(2.0, abs=2e-3), name


def test_a_row_counts_once_whatever_its_length():
    # one token at 1 bit and three at 3 bits: the rows' mean is 2, the tokens' 2.5
    losses = row_losses(tokens_of(8, [0.5], [0.125] * 3), 0)
    assert losses.mean().item() == pytest.approx(2, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_bounds_grow_with_loss_and_bits_and_fall_with_rows_and_delta(name):
    def bound(m=20000, mean=2.0, variance=0.5, alpha=0.01, vocabulary=1000, bits=300, delta=0.05):
        return token_bounds(m, mean, variance, alpha, vocabulary, bits, delta)[name]

    start = bound()
    assert bound(mean=2.1) > start < bound(bits=301) and bound(delta=0.04) > start
    assert bound(m=20001) < start
    assert (bound(variance=0.6) > start) == (name == "empirical Bernstein")


def test_rounding_beyond_the_interval_is_no_error_and_more_is():
    low, high = interval(0.1, 50)
    assert token_bounds(10, low - 1e-12, 0.0, 0.1, 50, 0, 0.05)["kl-inverse"] > low
    assert token_bounds(10, high + 1e-12, 0.0, 0.1, 50, 0, 0.05)["kl-inverse"] == pytest.approx(
        high
    )
    assert row_losses(Tokens(torch.tensor([1e-7]), torch.tensor([1]), 50), 0.1).item() == low


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"m": 0}, "m"),
        ({"mean": 0.0}, "mean"),
        ({"mean": 30.0}, "mean"),
        ({"mean": math.nan}, "mean"),
        ({"variance": -1.0}, "variance"),
        ({"variance": math.nan}, "variance"),
        ({"bits": -1}, "kl"),
        ({"delta": 0.0}, "delta"),
    ],
)
def test_impossible_numbers_are_refused(changes, name):
    given = {"m": 10, "mean": 2.0, "variance": 0.5, "alpha": 0.1, "vocabulary": 100}
    with pytest.raises(ValueError, match=f"^{name}: wanted .*, got "):
        token_bounds(**(given | {"bits": 9, "delta": 0.05} | changes))


@pytest.mark.parametrize(
    ("log_p", "lengths", "name"),
    [
        ([-1.0, -2.0], [1], "lengths"),
        ([-1.0, -2.0], [2, 0], "lengths"),
        ([-1.0, 0.5], [2], "log_p"),
        ([-1.0, math.nan], [2], "log_p"),
    ],
)
def test_impossible_rows_are_refused(log_p, lengths, name):
    with pytest.raises(ValueError, match=f"^{name}: wanted .*, got "):
        row_losses(Tokens(torch.tensor(log_p), torch.tensor(lengths), 100), 0.1)


def test_a_mean_outside_the_unit_interval_is_refused():
    for bound in (finite_hypothesis_mean, kl_inverse_mean):
        with pytest.raises(ValueError, match="^mean: wanted .*, got 1.1"):
            bound(10, 1.1, 1.0, 0.05)
    with pytest.raises(ValueError, match="^mean: wanted .*, got -0.1"):
        empirical_bernstein_mean(10, -0.1, 0.1, 1.0, 0.05)


# coverage

MESSAGES, TYPES, VOCABULARY, M = 256, 60, 1000, 2000
DRAWS, DELTA = 3000, 0.1
GRID = (0.5, 0.05, 0.001, 0.00001)  # two bits


def _losses(alpha):
    """(messages, types of row): row losses of models that each know half of the types. A row has
    one to three tokens, all of which a model gives 0.9, or all 1e-10."""
    rng = np.random.default_rng(1)
    lengths = torch.tensor([1 + i % 3 for i in range(TYPES)])
    tables = []
    for _ in range(MESSAGES):
        known = torch.tensor(rng.random(TYPES) < 0.5)
        log_p = torch.where(known, math.log(0.9), math.log(1e-10)).repeat_interleave(lengths)
        tables.append(row_losses(Tokens(log_p, lengths, VOCABULARY), alpha))
    return torch.stack(tables).numpy()


def _violations(name, bits):
    """On how many of the draws of M rows the bound fails that is luckiest for its rows: of all
    messages and alphas, the one whose mean loss is furthest below its risk, in widths."""
    rng = np.random.default_rng(2)
    weights = rng.dirichlet(np.ones(TYPES))
    counts = rng.multinomial(M, weights, size=DRAWS)
    means, squares, risks, gaps = [], [], [], []
    for alpha in GRID:
        losses = _losses(alpha)
        low, high = interval(alpha, VOCABULARY)
        means.append(counts @ losses.T / M)
        squares.append(counts @ losses.T**2 / M)
        risks.append(losses @ weights)
        gaps.append((risks[-1] - means[-1]) / (high - low))
    luckiest = np.stack(gaps, axis=1).reshape(DRAWS, -1).argmax(1)
    wrong = 0
    for draw, (a, i) in enumerate(zip(*divmod(luckiest, MESSAGES), strict=True)):
        mean = means[a][draw, i]
        variance = (squares[a][draw, i] - mean**2) * M / (M - 1)
        bounds = token_bounds(M, mean, variance, GRID[a], VOCABULARY, bits, DELTA)
        wrong += risks[a][i] > bounds[name]
    return wrong


def _slack():
    """How far violations may exceed DELTA x DRAWS: four standard deviations of as many coins."""
    return 4 * math.sqrt(DRAWS * DELTA * (1 - DELTA))


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_is_wrong_no_more_often_than_delta(name):
    bits = math.log2(MESSAGES) + math.log2(len(GRID))
    assert _violations(name, bits) <= DELTA * DRAWS + _slack()


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_that_does_not_pay_for_the_search_is_seen_to_be_wrong(name):
    assert _violations(name, 0) > DELTA * DRAWS + _slack()


@pytest.mark.parametrize(
    ("draw", "mean", "count"),
    [
        (lambda rng, m: rng.random(m) ** 3, 0.25, 40),
        (lambda rng, m: rng.beta(0.2, 1.8, m), 0.1, 40),
        (lambda rng, m: (rng.random(m) < 0.03).astype(float), 0.03, 40),
    ],
    ids=["cubes", "beta", "coins"],
)
def test_inequalities_hold_for_one_model_of_any_losses_in_the_unit_interval(draw, mean, count):
    rng, delta = np.random.default_rng(3), 0.2
    samples = draw(rng, (4000, count))
    wrong = np.zeros(3)
    for losses in samples:
        found = float(losses.mean()), float(losses.var(ddof=1))
        wrong += [
            mean > finite_hypothesis_mean(count, found[0], 0.0, delta),
            mean > kl_inverse_mean(count, found[0], 0.0, delta),
            mean > empirical_bernstein_mean(count, *found, 0.0, delta),
        ]
    assert (wrong <= 4000 * delta + 4 * math.sqrt(4000 * delta * (1 - delta))).all()
    # a bound of no width is seen to be wrong
    assert sum(mean > samples.mean(1)) > 4000 * delta + 4 * math.sqrt(4000 * delta * (1 - delta))


def test_the_bits_are_charged_as_nats():
    bounds = [token_bounds(50, 3.0, 1.0, 0.1, 100, bits, 0.05) for bits in (7, 8)]
    low, high = interval(0.1, 100)
    shares = [((b["finite hypothesis"] - 3.0) / (high - low)) ** 2 * 100 for b in bounds]
    assert shares[1] - shares[0] == pytest.approx(kl_of_bits(1), rel=1e-9)
