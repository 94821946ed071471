"""The bounds agree with values worked out by hand and in exact fractions, are ordered as claimed,
and hold as often as they say on problems whose risks are known."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfood.experiments.bound import formulas
from fastfood.experiments.bound.formulas import (
    BOUNDS,
    all_bounds,
    best_bound,
    binary_kl,
    binomial_tail,
    catoni,
    finite_hypothesis,
    kl_inverse,
    kl_of_bits,
    length_bits,
    log_binomial_tail,
    paper_order,
)


def exact_tail(m, k, p):
    """P[Bin(m, p) <= k] as an exact fraction."""
    p = Fraction(p)
    return sum(math.comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(k + 1))


def log(fraction):
    """ln of a positive fraction, also of one far below the least double."""
    bits = 80 + max(0, fraction.denominator.bit_length() - fraction.numerator.bit_length())
    return math.log(int(fraction * 2**bits)) - bits * math.log(2)


# description length


def test_the_code_of_the_length_is_elias_delta():
    # delta(1) = 1, delta(2) = 0100, delta(3) = 0101, delta(4) = 01100, delta(8) = 00100000
    assert [length_bits(n - 1) for n in (1, 2, 3, 4, 7, 8, 15, 16)] == [1, 4, 4, 5, 5, 8, 8, 9]
    assert length_bits(1000) == 16 < 2 * math.log2(1000)


def test_krafts_sum_over_the_messages_is_one_and_that_of_twice_the_logarithm_is_not():
    most = 16
    total = sum(Fraction(1, 2 ** length_bits(n)) for n in range(2**most - 1))
    # what is missing: sum over k >= 16 of 2^k 2^-(k + 2 floor(log2(k + 1)) + 1), tail of a
    # geometric series but for the part of k = 15 ... 30 that is already in
    inside = sum(Fraction(1, 2 ** (2 * ((k + 1).bit_length() - 1) + 1)) for k in range(most))
    assert total == inside <= 1
    whole = inside + sum(Fraction(1, 2**9) for _ in range(16, 31)) + Fraction(1, 32)
    assert whole == 1
    assert sum(n**-2.0 for n in range(1, 1000)) > 1.6


def test_a_bit_is_the_logarithm_of_two():
    assert kl_of_bits(10) == pytest.approx(math.log(1024), rel=1e-15)


# values worked out by hand


def test_values_by_hand():
    # m = 2, k = 1: P[Bin(2, p) <= 1] = 1 - p^2, so p = sqrt(1 - delta / 2^bits)
    assert binomial_tail(2, 1, kl_of_bits(3), 0.5) == pytest.approx(math.sqrt(15 / 16), rel=1e-14)
    # k = 0: (1 - p)^m = delta / 2^bits, and -ln(1 - p) = (KL + ln(1 / delta)) / m
    for bound in (binomial_tail, kl_inverse):
        assert bound(4, 0, kl_of_bits(3), 0.5) == pytest.approx(1 - 0.5, rel=1e-14)
    # k = m: anything is possible
    for bound in BOUNDS.values():
        assert bound(5, 5, 1.0, 0.1) == 1.0
    # m = 8, KL + ln 2 = 4: 1/4 + sqrt(4 / 16)
    assert finite_hypothesis(8, 2, 4 - math.log(2), 0.5) == pytest.approx(0.75, rel=1e-14)
    # q = 1/2: kl = -ln(4 p (1 - p)) / 2 = ln 2 at 4 p (1 - p) = 1/4, p = (1 + sqrt(3/4)) / 2
    expected = (1 + math.sqrt(0.75)) / 2
    assert kl_inverse(2, 1, math.log(2), 0.5) == pytest.approx(expected, rel=1e-14)
    assert paper_order(10000, 500, 400) == pytest.approx(0.05 + 0.2)


def test_catoni_by_hand_and_at_its_best_parameter():
    def value(lambda_, m=1000, k=100, kl=20.0, delta=0.05, alpha=1.01):
        union = 2 * math.log(math.log(alpha**2 * lambda_) / math.log(alpha))
        x = k / m + alpha / lambda_ * (kl + math.log(1 / delta) + union)
        return (1 - math.exp(-lambda_ / m * x)) / (1 - math.exp(-lambda_ / m))

    found = catoni(1000, 100, 20.0, 0.05)
    values = [value(1.001**i) for i in range(1, 12000)]
    assert found <= min(values) and found == pytest.approx(min(values), rel=1e-6)
    # lambda = 300: ln(300) / ln(1.01) = 573.22, the union 2 ln(575.22) = 12.7095,
    # x = 0.1 + 1.01 / 300 (20 + 2.9957 + 12.7095) = 0.22021
    by_hand = (1 - math.exp(-0.3 * 0.22021)) / (1 - math.exp(-0.3))
    assert value(300) == pytest.approx(by_hand, rel=1e-4) and found <= by_hand


@pytest.mark.parametrize(("m", "k"), [(10, 1), (10, 9), (60, 20), (120, 1)])
@pytest.mark.parametrize("bits", [0, 7, 200, 3000])
def test_the_tail_is_inverted_as_exact_fractions_say(m, k, bits):
    delta = 1 / 32
    risk = binomial_tail(m, k, kl_of_bits(bits), delta)
    least = Fraction(1, 2 ** (bits + 5))
    if risk < 1:
        # 60 halvings leave 2^-60; the rounding of 1 + log_last is some 1e-13 of the logarithm
        assert exact_tail(m, k, Fraction(risk) * (1 + Fraction(1, 10**11))) < least
        assert exact_tail(m, k, Fraction(risk) * (1 - Fraction(1, 10**11))) > least


@given(st.integers(2, 120), st.data())
@settings(max_examples=40, deadline=None)
def test_the_logarithm_of_the_tail_is_exact_where_doubles_underflow(m, data):
    k = data.draw(st.integers(0, m - 1))
    p = data.draw(st.floats(k / m, 1, exclude_max=True))
    if p > 0:
        exact = log(exact_tail(m, k, p))
        assert log_binomial_tail(m, k, p) == pytest.approx(exact, rel=1e-11, abs=1e-12)


def test_the_logarithm_of_the_tail_is_exact_next_to_one():
    p = math.nextafter(1, 0)
    assert log_binomial_tail(3, 1, p) == pytest.approx(log(exact_tail(3, 1, p)), rel=1e-14)


def test_stirlings_error_is_that_of_the_logarithm_of_the_factorial():
    for n in range(1, 60):
        stirling = (n + 0.5) * math.log(n) - n + 0.5 * math.log(2 * math.pi)
        exact = math.log(math.factorial(n)) - stirling  # to some roundings of numbers below 200
        assert formulas._stirling_error(n) == pytest.approx(exact, abs=2e-13)


def test_agrees_with_the_beta_distribution_where_that_can_be_computed():
    from scipy.stats import beta

    for m, k in [(1000, 100), (67349, 10000), (10**6, 1), (10**7, 10**6)]:
        upper = beta.ppf(0.95, k + 1, m - k)  # Clopper and Pearson
        assert binomial_tail(m, k, 0.0, 0.05) == pytest.approx(upper, rel=1e-11)


def test_divergence_is_right_where_its_arguments_nearly_meet():
    # kl(q || q + e) = e^2 / (2 q (1 - q)) (1 + O(e)); rounding of its parts is 1e-16 e
    for q in (0.05, 0.3, 0.5, 0.77):
        for e in (1e-7, 3e-8):
            assert binary_kl(q, q + e) == pytest.approx(e * e / (2 * q * (1 - q)), rel=1e-5, abs=0)
    assert binary_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    assert [binary_kl(0, 0), binary_kl(1, 1), binary_kl(0.5, 1)] == [0.0, 0.0, math.inf]


# order


@given(
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(0, 5000),
    st.floats(1e-12, 0.5),
)
@settings(max_examples=300, deadline=None)
def test_the_tail_is_the_least_and_the_kl_inverse_below_the_others(m, share, bits, delta):
    k = round(share * m)
    found = all_bounds(m, k, bits, delta)
    rounding = 1e-9
    assert found["binomial tail"] <= found["kl-inverse"] + rounding
    assert found["kl-inverse"] <= found["finite hypothesis"] + rounding
    assert found["kl-inverse"] <= found["Catoni"] + rounding
    assert k / m <= found["binomial tail"] <= 1


def test_bounds_grow_with_errors_and_bits_and_fall_with_rows_and_delta():
    for bound in BOUNDS.values():
        start = bound(2000, 200, 100.0, 0.05)
        assert bound(2000, 201, 100.0, 0.05) > start
        assert bound(2000, 200, 101.0, 0.05) > start
        assert bound(2000, 200, 100.0, 0.04) > start
        assert bound(4000, 400, 100.0, 0.05) < start


def test_the_best_is_the_tail_also_when_all_are_one():
    assert best_bound(all_bounds(100, 10, 20, 0.05)) == "binomial tail"
    assert best_bound(all_bounds(3, 3, 20, 0.05)) == "binomial tail"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 0, 1.0, 0.05), "m"),
        ((10, 11, 1.0, 0.05), "k"),
        ((10, -1, 1.0, 0.05), "k"),
        ((10, 2.5, 1.0, 0.05), "k"),
        ((10, 1, -1.0, 0.05), "kl"),
        ((10, 1, math.nan, 0.05), "kl"),
        ((10, 1, 1.0, 0.0), "delta"),
        ((10, 1, 1.0, 1.0), "delta"),
    ],
)
def test_impossible_numbers_are_refused(arguments, name):
    for bound in BOUNDS.values():
        with pytest.raises(ValueError, match=f"^{name}: wanted .*, got "):
            bound(*arguments)
    with pytest.raises(ValueError, match="length"):
        length_bits(-1)
    with pytest.raises(ValueError, match="alpha"):
        catoni(10, 1, 1.0, 0.05, alpha=1.0)


# coverage


def violations(name, m, risks, bits, delta, draws):
    """How often the risk of the message whose bound is the least of all is above that bound.

    Each message errs independently with its own risk. Choosing the least bound on the sample is
    the worst that a search can do to a bound that has to hold for all messages at once.
    """
    table = np.array([BOUNDS[name](m, k, kl_of_bits(bits[0]), delta) for k in range(m + 1)])
    tables = {bits[0]: table}
    for b in set(bits) - {bits[0]}:
        tables[b] = np.array([BOUNDS[name](m, k, kl_of_bits(b), delta) for k in range(m + 1)])
    errors = np.random.default_rng(0).binomial(m, risks, size=(draws, len(risks)))
    found = np.stack([tables[b][errors[:, i]] for i, b in enumerate(bits)], axis=1)
    chosen = found.argmin(1)
    return int((risks[chosen] > found[np.arange(draws), chosen]).sum())


SAME = (np.full(64, 0.3), [6] * 64)  # all alike: whatever is chosen is chosen by luck
MIXED = (np.linspace(0.1, 0.5, 40), [length_bits(i) for i in range(40)])
DRAWS, DELTA = 4000, 0.1


def slack(draws, delta):
    """How far violations may exceed delta x draws: four standard deviations of as many coins."""
    return 4 * math.sqrt(draws * delta * (1 - delta))


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("problem", [SAME, MIXED], ids=["same", "mixed"])
def test_a_bound_is_wrong_no_more_often_than_delta(name, problem):
    risks, bits = problem
    assert sum(2.0**-b for b in bits) <= 1
    wrong = violations(name, 300, risks, bits, DELTA, DRAWS)
    assert wrong <= DELTA * DRAWS + slack(DRAWS, DELTA)


def test_the_tail_is_wrong_nearly_as_often_as_it_may():
    # 64 chances of delta / 64, each a little less since errors come whole
    wrong = violations("binomial tail", 300, *SAME, DELTA, DRAWS)
    assert 0.3 * DELTA * DRAWS < wrong


@pytest.mark.parametrize("name", ["kl-inverse", "binomial tail"])
def test_a_bound_that_does_not_pay_for_the_search_is_seen_to_be_wrong(name):
    risks, bits = SAME
    wrong = violations(name, 300, risks, [0] * len(bits), DELTA, DRAWS)
    assert wrong > DELTA * DRAWS + slack(DRAWS, DELTA)


def test_nothing_is_lost_at_a_billion_rows():
    # near the normal approximation: (KL + ln(1 / delta)) / m = kl = e^2 / (2 q (1 - q))
    m, k = 10**9, 10**8
    e = math.sqrt(2 * 0.1 * 0.9 * 100 / m)
    assert kl_inverse(m, k, 100 + math.log(0.05), 0.05) == pytest.approx(0.1 + e, rel=1e-6)
    assert formulas.binomial_tail(m, k, 100.0, 0.05) > 0.1
