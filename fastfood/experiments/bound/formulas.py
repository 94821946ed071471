"""Bounds on the risk of a model that is described by a short message, as functions of numbers.

The risk R of a classifier is the probability of a wrong answer on a new row. It answers k of m
training rows wrongly, which were drawn independently from the same distribution. For any loss in
[0, 1], R is the expected loss on a new row, and the mean loss on the m rows takes the place of
k / m; the functions whose names end in "mean" are for that. The model is described by a message in
a prefix code that was fixed before the rows were seen. A message of b bits has the prior
probability 2^-b, and a posterior that is concentrated on it has the divergence KL = b ln 2 from the
prior. Every bound below holds for all messages at once with probability 1 - delta over the rows, so
it stays valid whatever was tried on the rows, as long as the message describes the result.
"""

import math

CATONI_ALPHA = 1.01  # fixed in advance: Catoni's grid of parameters is 1, 1.01, 1.01^2, ...

_HALVINGS = 60  # these make an interval in [0, 1] narrower than the spacing of doubles at 1


def length_bits(length: int) -> int:
    """The bits of Elias's delta code of length + 1 (Elias, 1975, Universal codeword sets). Sent
    before a message of `length` bits, it makes the whole a prefix code.

    With N = length + 1 and k = floor(log2 N) it is k + 2 floor(log2(k + 1)) + 1. Kraft's sum over
    all messages, sum over N >= 1 of 2^(N - 1) 2^-(N - 1) 2^-length_bits(N - 1), is exactly 1. The
    often used 2 log2(length) is longer from 128 bits on, and still no code: its sum is pi^2 / 6.

    Raises ValueError for a negative length.
    """
    if length < 0:
        raise ValueError(f"length: wanted at least 0 bits, got {length}")
    k = (length + 1).bit_length() - 1
    return k + 2 * ((k + 1).bit_length() - 1) + 1


def kl_of_bits(bits: float) -> float:
    """ln of one over the prior probability 2^-bits of a message, in nats."""
    return bits * math.log(2)


def paper_order(m: int, k: int, d: int) -> float:
    """k / m + sqrt(d / m): an order of magnitude and no bound.

    Theorem 1 of Aghajanyan et al. (2021) says that the risk is at most k / m + O(sqrt(d / m)) with
    high probability, after Theorem 2.1 of Arora et al. (2018). It gives no constant and no
    confidence; this is its value at the constant 1.
    """
    return k / m + math.sqrt(d / m)


def finite_hypothesis(m: int, k: int, kl: float, delta: float) -> float:
    """R <= k / m + sqrt((KL + ln(1 / delta)) / (2 m)): Hoeffding's inequality and a union over the
    messages (Langford, 2005, section 4; Blumer et al., 1987, Occam's razor)."""
    _check(m, k, kl, delta)
    return finite_hypothesis_mean(m, k / m, kl, delta)


def finite_hypothesis_mean(m: int, mean: float, kl: float, delta: float) -> float:
    """finite_hypothesis() for a mean loss in place of k / m. Hoeffding (1963, Theorem 2) proves it
    for independent variables in [0, 1], which need not be 0 or 1."""
    _check_mean(m, mean, kl, delta)
    return min(1.0, mean + math.sqrt((kl - math.log(delta)) / (2 * m)))


def kl_inverse(m: int, k: int, kl: float, delta: float) -> float:
    """The largest R with kl(k / m || R) <= (KL + ln(1 / delta)) / m, where kl is binary_kl().

    Chernoff's inequality for the binomial tail and a union over the messages (Langford, 2005,
    section 4; for Gibbs classifiers Seeger, 2002, Theorem 1). The ln((m + 1) / delta) or
    ln(2 sqrt(m) / delta) of PAC-Bayes pays for posteriors that spread over several classifiers,
    where R is an average. Here the posterior is concentrated on one message, so ln(1 / delta) is
    enough.
    """
    _check(m, k, kl, delta)
    return kl_inverse_mean(m, k / m, kl, delta)


def kl_inverse_mean(m: int, mean: float, kl: float, delta: float) -> float:
    """kl_inverse() for a mean loss in place of k / m: the largest R with
    kl(mean || R) <= (KL + ln(1 / delta)) / m.

    Chernoff's inequality P[mean <= q] <= exp(-m kl(q || R)) for q <= R holds for all independent
    variables in [0, 1] (Hoeffding, 1963, Theorem 1): exp is convex, so no variable of a given mean
    has a larger moment generating function than the one that is 0 or 1.
    """
    _check_mean(m, mean, kl, delta)
    most = (kl - math.log(delta)) / m
    if mean == 0:
        return -math.expm1(-most)
    return _largest(lambda risk: binary_kl(mean, risk) <= most, mean)


def empirical_bernstein_mean(
    m: int, mean: float, variance: float, kl: float, delta: float
) -> float:
    """R <= mean + sqrt(2 v L / m) + 7 L / (3 (m - 1)) with L = KL + ln(2 / delta), where v is the
    variance of the m losses with the divisor m - 1; 1 for a single row.

    Maurer and Pontil (2009, Theorem 4) and a union over the messages. It is below the kl-inverse
    where losses vary little and rows are many for the bits.
    """
    _check_mean(m, mean, kl, delta)
    if not variance >= 0:
        raise ValueError(f"variance: wanted at least 0, got {variance!r}")
    if m == 1:
        return 1.0
    log = kl + math.log(2 / delta)
    return min(1.0, mean + math.sqrt(2 * variance * log / m) + 7 * log / (3 * (m - 1)))


def binomial_tail(m: int, k: int, kl: float, delta: float) -> float:
    """The largest R with P[Bin(m, R) <= k] >= delta exp(-KL), in log space.

    The Occam's razor bound of Langford (2005, section 4), which is his test set bound (section 3)
    at delta times the prior probability. The union over messages is the only inequality used.
    """
    _check(m, k, kl, delta)
    least = math.log(delta) - kl
    if k == 0:
        return -math.expm1(least / m)
    return _largest(lambda risk: log_binomial_tail(m, k, risk) >= least, k / m)


def catoni(m: int, k: int, kl: float, delta: float, alpha: float = CATONI_ALPHA) -> float:
    """The least over lambda > 1 of (1 - exp(-lambda x / m)) / (1 - exp(-lambda / m)), where
    x = k / m + alpha / lambda (KL + ln(1 / delta) + 2 ln(ln(alpha^2 lambda) / ln(alpha))).

    Catoni (2007, section 1.2), as Lotfi et al. (2022) use it: the last term is the union over
    a grid of lambdas with the ratio alpha > 1, which allows every lambda afterwards.
    """
    _check(m, k, kl, delta)
    if not alpha > 1:
        raise ValueError(f"alpha: wanted above 1, got {alpha}")

    def bound(log_lambda: float) -> float:
        union = 2 * math.log(2 + log_lambda / math.log(alpha))
        lambda_ = math.exp(log_lambda)
        x = k / m + alpha / lambda_ * (kl - math.log(delta) + union)
        return math.expm1(-lambda_ / m * x) / math.expm1(-lambda_ / m)

    steps = 400
    grid = [math.log(100 * m) * (i + 1) / steps for i in range(steps)]
    best = min(range(steps), key=lambda i: bound(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, steps - 1)]
    for _ in range(_HALVINGS):
        third = (high - low) / 3
        if bound(low + third) < bound(high - third):
            high -= third
        else:
            low += third
    return min(1.0, bound((low + high) / 2))


BOUNDS = {
    "finite hypothesis": finite_hypothesis,
    "Catoni": catoni,
    "kl-inverse": kl_inverse,
    "binomial tail": binomial_tail,
}


def all_bounds(m: int, k: int, bits: float, delta: float) -> dict[str, float]:
    """Every bound by name, for k errors in m rows and a message of a prefix code of `bits` bits.

    m: at least 1. k: 0 to m. bits: at least 0. delta: in (0, 1), the chance that rows are drawn on
    which a bound is wrong. Raises ValueError naming the argument, what was wanted and what was got.
    """
    return {name: bound(m, k, kl_of_bits(bits), delta) for name, bound in BOUNDS.items()}


def best_bound(bounds: dict[str, float]) -> str:
    """The name of the least of all_bounds(); it holds at the same 1 - delta as each of them.

    delta need not be split among the bounds: "binomial tail" is always the least, so whenever it
    holds for all messages, the others hold too. By Chernoff, for R >= k / m,
    P[Bin(m, R) <= k] <= exp(-m kl(k / m || R)), so the kl-inverse allows each R that the tail
    allows. By Pinsker's inequality
    the kl-inverse is at most the bound for a finite hypothesis class. And since kl(q || p) is the
    largest over C of -ln(1 - p (1 - e^-C)) - C q (Germain et al., 2009, section 2), it is at most
    Catoni's at any C = lambda / m, even without the union.
    """
    return min(bounds, key=lambda name: (bounds[name], name != "binomial tail"))


def binary_kl(q: float, p: float) -> float:
    """q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)) in nats; infinite where p alone is 0 or 1.

    q, p: in [0, 1]. It stays accurate where q and p are close.
    """
    if p in (0, 1):
        return 0.0 if q == p else math.inf
    return max(0.0, _share(q, p, p - q) + _share(1 - q, 1 - p, q - p))


def _share(q: float, p: float, gap: float) -> float:
    """q ln(q / p), computed from gap = p - q where that is small, to avoid cancellation."""
    if q == 0:
        return 0.0
    return -q * (math.log1p(gap / q) if abs(gap) < q / 2 else math.log(p / q))


def log_binomial_tail(m: int, k: int, p: float) -> float:
    """ln P[Bin(m, p) <= k] for k / m <= p <= 1, 0 <= k <= m.

    The last term is the largest. It is taken in Loader's form (2000, Fast and accurate computation
    of binomial probabilities), which stays accurate at large m; ratios give the others from it.
    """
    if k == m:
        return 0.0
    if p == 1:
        return -math.inf
    if k == 0:
        return m * math.log1p(-p)
    log_last = (
        -m * binary_kl(k / m, p)
        + _stirling_error(m)
        - _stirling_error(k)
        - _stirling_error(m - k)
        - 0.5 * math.log(2 * math.pi * k * (1 - k / m))
    )
    odds, ratio, total = (1 - p) / p, 1.0, 1.0
    for i in range(k, 0, -1):
        ratio *= i / (m - i + 1) * odds
        total += ratio
        if ratio < 1e-17 * total:
            break
    return min(0.0, log_last + math.log(total))


def _stirling_error(n: int) -> float:
    """ln n! minus Stirling's formula, n >= 1."""
    if n < 16:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
    square = 1.0 / (n * n)
    series = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    return series / n


def _largest(allowed, low: float) -> float:
    """The largest allowed risk above `low`, rounded up, by bisection."""
    high = 1.0
    if allowed(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if allowed(middle):
            low = middle
        else:
            high = middle
    return high


def _check(m: int, k: int, kl: float, delta: float) -> None:
    _check_mean(m, 0.0, kl, delta)
    if not (isinstance(k, int) and 0 <= k <= m):
        raise ValueError(f"k: wanted a whole number of errors in 0..{m}, got {k!r}")


def _check_mean(m: int, mean: float, kl: float, delta: float) -> None:
    if not (isinstance(m, int) and m >= 1):
        raise ValueError(f"m: wanted a whole number of rows of at least 1, got {m!r}")
    if not 0 <= mean <= 1:
        raise ValueError(f"mean: wanted a mean loss in [0, 1], got {mean!r}")
    if not (kl >= 0 and math.isfinite(kl)):
        raise ValueError(f"kl: wanted a finite number of at least 0, got {kl!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta: wanted a share in (0, 1), got {delta!r}")
