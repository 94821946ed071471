"""Bounds on a language model's loss on new rows, in bits per token, as functions of numbers.

A token's loss -log2 p has no upper limit, so the model is smoothed (Lotfi et al., 2024, Non-vacuous
generalization bounds for large language models): with probability alpha a token is drawn uniformly
from the vocabulary of V tokens, p_alpha = (1 - alpha) p + alpha / V. Then every loss lies in an
interval, and so does a row's loss, the mean over the tokens of its completion. The m rows are the
independent draws, and the risk is the expected loss of a new row; tokens of one row depend on each
other, and nothing is assumed of them. A row counts once, whatever its length: the mean over all
tokens of the rows, which weighs a row by its length, is another number where lengths differ.

alpha may be chosen on the rows, since it comes from a grid that is fixed in advance and the message
names it with the same number of bits for each: no alpha of the grid is the likelier one.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .formulas import (
    empirical_bernstein_mean,
    finite_hypothesis_mean,
    kl_inverse_mean,
    kl_of_bits,
)

ALPHA_BITS = 5
ALPHAS = tuple(2.0 ** (-i / 2) for i in range(1, 2**ALPHA_BITS + 1))  # 0.71 to 0.000015


class Tokens(NamedTuple):
    """What a model thinks of the completions of rows.

    log_p: (tokens,), ln p of each token of each completion, one row after the other. lengths: (m,),
    how many tokens each row has, at least 1. vocabulary: V, how many tokens p is spread over.
    """

    log_p: Tensor
    lengths: Tensor
    vocabulary: int


class Smoothed(NamedTuple):
    """What a model's tokens promise at one alpha.

    place: of alpha in ALPHAS. mean: the mean loss of the rows, in bits per token. bounds:
    token_bounds(), in bits per token. best: the name of the least of them.
    """

    place: int
    mean: float
    bounds: dict[str, float]
    best: str

    @property
    def alpha(self) -> float:
        return ALPHAS[self.place]


def interval(alpha: float, vocabulary: int) -> tuple[float, float]:
    """The least and the largest loss of a token in bits, -log2(1 - alpha + alpha / V) and
    log2(V / alpha). Their distance is log2(1 + (1 - alpha) V / alpha).

    alpha: in (0, 1]. vocabulary: V, at least 2. At alpha = 1 both are log2(V). Raises ValueError
    naming the argument, what was wanted and what was got.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: wanted a share in (0, 1], got {alpha!r}")
    if not vocabulary >= 2:
        raise ValueError(f"vocabulary: wanted at least 2 tokens, got {vocabulary!r}")
    uniform = math.log2(vocabulary)
    return uniform - math.log2((1 - alpha) * vocabulary + alpha), uniform - math.log2(alpha)


def row_losses(tokens: Tokens, alpha: float) -> Tensor:
    """The losses of rows in bits per token, (m,) in float64, under prediction smoothing; without
    it at alpha = 0, where they have no upper limit.

    Raises ValueError if the lengths do not fit, or if a ln p is above 0 by more than rounding, or
    no number.
    """
    log_p, lengths, vocabulary = tokens
    if lengths.sum() != len(log_p) or (lengths < 1).any():
        got = f"{lengths.sum().item()} with the shortest of {lengths.min().item()}"
        raise ValueError(
            f"lengths: wanted rows of at least 1 token, {len(log_p)} in all, got {got}"
        )
    if not (log_p <= 1e-3).all():
        raise ValueError(f"log_p: wanted logarithms of probabilities, got {log_p.max().item()}")
    log_p = log_p.double().clamp(max=0)
    losses = -log_p / math.log(2)
    if alpha:
        interval(alpha, vocabulary)
        losses = math.log2(vocabulary) - ((1 - alpha) * vocabulary * log_p.exp() + alpha).log2()
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, rows, losses)
    return sums / lengths


def token_bounds(
    m: int, mean: float, variance: float, alpha: float, vocabulary: int, bits: float, delta: float
) -> dict[str, float]:
    """Every bound on the risk by name, in bits per token.

    m: the number of rows. mean, variance: of their losses at alpha, in bits per token and its
    square; the variance has the divisor m - 1 and is not used if m = 1. bits: of a message in a
    prefix code that names the model and alpha. delta: in (0, 1).

    "finite hypothesis" is the form of Lotfi et al. (2024): mean + width sqrt((KL + ln(1 / delta)) /
    (2 m)), where width is that of interval(). "kl-inverse" is never looser, and wherever it holds
    the first does too. "empirical Bernstein" may fail on other draws of the rows, so it gets one
    half of delta and they the other. All three hold together with probability 1 - delta, and with
    them the least.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    low, high = interval(alpha, vocabulary)
    width = high - low
    if not low - 1e-9 <= mean <= high + 1e-9:
        raise ValueError(f"mean: wanted bits per token in [{low}, {high}], got {mean!r}")
    share = min(1.0, max(0.0, (mean - low) / width)) if width else 0.0
    spread = variance / width**2 if width else 0.0
    kl = kl_of_bits(bits)
    shares = {
        "finite hypothesis": finite_hypothesis_mean(m, share, kl, delta / 2),
        "kl-inverse": kl_inverse_mean(m, share, kl, delta / 2),
        "empirical Bernstein": empirical_bernstein_mean(m, share, spread, kl, delta / 2),
    }
    return {name: low + width * bound for name, bound in shares.items()}


def best_smoothing(m: int, tokens: Tokens, bits: float, delta: float) -> Smoothed:
    """The alpha of ALPHAS at which the least bound is smallest, and its bounds for m rows.

    tokens: of the m rows; those of a part of them tell which message to choose, and bound nothing.
    bits: of the message, ALPHA_BITS of them for alpha.
    """
    tried = []
    for index, alpha in enumerate(ALPHAS):
        losses = row_losses(tokens, alpha)
        mean = losses.mean().item()
        variance = losses.var().item() if len(losses) > 1 else 0.0
        bounds = token_bounds(m, mean, variance, alpha, tokens.vocabulary, bits, delta)
        tried.append(Smoothed(index, mean, bounds, min(bounds, key=bounds.__getitem__)))
    return min(tried, key=lambda smoothed: smoothed.bounds[smoothed.best])
