"""Turns the scores of a measurement into curves of accuracy against d and into d90: rates are
chosen on validation, the curve is made monotone by isotonic regression, and seeds are resampled for
the interval. What the tested d or the scores cannot tell is said in words, and what rests on a part
of the runs is marked as such."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..settings.trial import Score, Trial

LINE_SHARE = 0.9
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Point:
    """One method at one d, at the learning rate that was best on validation. Scores, accuracies and
    seconds stand by seed, in the order of `seeds`; None where a score lacks them."""

    method: str
    d: int
    size: int | None
    learning_rate: float
    rates: tuple[float, ...]  # all that were tried, ascending
    seeds: tuple[int, ...]
    validation: float  # its mean over the seeds
    test: tuple[float, ...]
    mean: float  # of test
    test_accuracy: tuple[float | None, ...]
    train_accuracy: tuple[float | None, ...]
    seconds: tuple[float | None, ...]
    trained: int | None
    seeds_asked: int
    whole: bool  # no run is to come that could change the point


@dataclass(frozen=True)
class D90:
    """d90 of one method with its bootstrap interval. The numbers are inf where no tested d reaches
    the line, and None where there is no line."""

    line: float | None
    value: float | None
    low: float | None
    high: float | None
    unstable: bool  # the interval is open on both sides
    text: str  # as a person reads it: "300 [300, 1000]", "<= 10", "> 3000 so far"
    so_far: bool = False  # runs are to come that could change it
    has_interval: bool = False  # low and high are the value otherwise


@dataclass(frozen=True)
class Summary:
    """What the points of a measurement say: the full score, the line that d90 reaches, d90 by
    method, remarks on what makes them doubtful, and of a model that writes the base model's score.
    Where scores are shares of a gain, `absolute` has the two between which it lies, (base, full)
    as they were recorded."""

    full: float | None
    line: float | None
    d90: dict[str, D90]
    remarks: tuple[str, ...]
    base: float | None = None
    absolute: tuple[float, float] | None = None


class _Run(NamedTuple):
    seed: int
    score: Score | None
    to_come: bool


def curve_points(
    trials: Sequence[Trial], scores: Sequence[Score | None], to_come: Sequence[bool] | None = None
) -> list[Point]:
    """One point for each method and d that has a score, at its best rate.

    `scores` go with `trials`, None for a missing one, and `to_come` says which of the missing ones
    may still come (by default none). A rate with a score that never comes is out. The others are
    compared by their mean validation score over the seeds that all of them with any score share, so
    that no rate wins by an easier seed; where they share none, over the one seed that most of them
    have (of equals the smallest), and those without it wait. Of equal rates the smallest wins. The
    point then holds all seeds that the chosen rate has so far.
    """
    cells: dict[tuple[str, int, int | None], dict[float, list[_Run]]] = defaultdict(
        lambda: defaultdict(list)
    )
    waiting = [False] * len(trials) if to_come is None else to_come
    for trial, score, waits in zip(trials, scores, waiting, strict=True):
        cell = trial.method, trial.d, trial.size
        cells[cell][trial.learning_rate].append(_Run(trial.seed, score, waits))
    points = (_point(*cell, rates) for cell, rates in cells.items())
    return [point for point in points if point is not None]


def _point(method: str, d: int, size: int | None, rates: dict[float, list[_Run]]) -> Point | None:
    """The point of one method and d from the runs of each rate; None where no rate has a score."""
    possible = {
        rate: runs
        for rate, runs in rates.items()
        if all(run.score is not None or run.to_come for run in runs)
    }
    scored = {
        rate: {run.seed: run.score for run in runs if run.score is not None}
        for rate, runs in possible.items()
    }
    compared = _compared_seeds([set(scores) for scores in scored.values() if scores])
    means = {
        rate: _mean(score.validation for seed, score in scores.items() if seed in compared)
        for rate, scores in scored.items()
        if scores and compared <= scores.keys()
    }
    if not means:
        return None
    rate = max(sorted(means), key=means.__getitem__)
    chosen = list(scored[rate].values())
    return Point(
        method=method,
        d=d,
        size=size,
        learning_rate=rate,
        rates=tuple(sorted(r for r, runs in rates.items() if not all(run.to_come for run in runs))),
        seeds=tuple(scored[rate]),
        validation=_mean(score.validation for score in chosen),
        test=tuple(score.test for score in chosen),
        mean=_mean(score.test for score in chosen),
        test_accuracy=tuple(score.test_accuracy for score in chosen),
        train_accuracy=tuple(score.train_accuracy for score in chosen),
        seconds=tuple(score.seconds for score in chosen),
        trained=next((score.trained for score in chosen if score.trained), None),
        seeds_asked=len(rates[rate]),
        whole=not any(run.to_come for runs in possible.values() for run in runs),
    )


def _compared_seeds(seeds: list[set[int]]) -> set[int]:
    """The seeds over which rates are compared that have these, at least one each."""
    shared = set.intersection(*seeds) if seeds else set()
    if seeds and not shared:
        counts = Counter(seed for some in seeds for seed in some)
        shared = {min(counts, key=lambda seed: (-counts[seed], seed))}
    return shared


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def line_between(base: float, full: ArrayLike) -> ArrayLike:
    """The score that d90 reaches: 90 % of the way from `base` to `full`. The base is 0 where models
    classify, which makes it 90 % of the full score (Li et al., 2018)."""
    return base + LINE_SHARE * (full - base)


def first_reaching(dims: Sequence[int], means: ArrayLike, line: ArrayLike) -> np.ndarray:
    """The smallest of the ascending `dims` whose isotonic fit reaches `line`; inf if none does.

    `means` (..., len(dims)) and `line` (...) may hold many curves. The fit first reaches `line` at
    the index that minimises the running sum of (mean - line): pooled means are below the line
    before it and not below it from there on, since the fit is the slope of that sum's greatest
    convex minorant (Barlow et al., 1972).
    """
    # sums of equal accuracies differ in the last bit
    above = np.asarray(means) - (np.asarray(line)[..., None] - 1e-9)
    sums = np.insert(np.cumsum(above, axis=-1), 0, 0.0, axis=-1)
    return np.append(np.asarray(dims, dtype=float), math.inf)[np.argmin(sums, axis=-1)]


def d90(
    dims: Sequence[int],
    scores: Sequence[Sequence[float]],
    full: Sequence[float],
    so_far: bool = False,
    base: float = 0.0,
) -> D90:
    """d90 of one method with its 95 % bootstrap interval over seeds.

    `dims` ascends, `scores[i]` are the test scores by seed at `dims[i]`, `full` those of full
    fine-tuning. The full run and every d are resampled on their own, and every resampled full run
    has its own line above `base`, a number that no seed changes. Where one of them has a single
    seed there is no interval: low and high are the value. `so_far` says that runs are to come.
    """
    rng = np.random.default_rng(0)
    line = line_between(base, float(np.mean(full)))
    means = [np.mean(seeds) for seeds in scores]
    value = low = high = _as_count(float(first_reaching(dims, means, line)))
    text, unstable = describe(dims, value), False
    has_interval = min(len(seeds) for seeds in (full, *scores)) > 1  # resampling needs two seeds
    if has_interval:
        full_means = _resampled_means(rng, full)
        curve_means = np.stack([_resampled_means(rng, seeds) for seeds in scores], axis=1)
        values = first_reaching(dims, curve_means, line_between(base, full_means))
        tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = map(_as_count, np.quantile(values, tails, method="inverted_cdf"))
        unstable = len(dims) > 1 and low == dims[0] and high == math.inf
        text += f" [{describe(dims, low)}, {describe(dims, high)}]"
    text = f"unstable: {text}" if unstable else text
    text = f"{text} so far" if so_far else text
    return D90(line, value, low, high, unstable, text, so_far, has_interval)


def _as_count(value: float) -> float:
    return math.inf if value == math.inf else int(value)


def _resampled_means(rng: np.random.Generator, seeds: Sequence[float]) -> np.ndarray:
    return rng.choice(np.asarray(seeds), size=(RESAMPLES, len(seeds))).mean(axis=1)


def describe(dims: Sequence[int], value: float) -> str:
    """Writes a d90 as a person reads it, saying where the tested dims cut it off."""
    if value == math.inf:
        return f"> {dims[-1]}"
    return f"<= {dims[0]}" if value == dims[0] else f"{int(value)}"


def summarise(
    points: list[Point],
    majority: float | None,
    unfinished: Collection[str] = (),
    trivial: str = "majority class",
) -> Summary:
    """The full score, the line, d90 by method, and remarks on what makes them doubtful.

    `unfinished` are the methods, "full" and "base" among them, that have runs to come; their d90s
    are marked "so far", all of them where it is the full run. `majority` is the score of always
    giving the same answer, None where the score of the base model, whose point is among `points`,
    stands in its place; `trivial` names either. The line is 90 % of the full score, or lies at 90 %
    of its gain over the base model. Where the full run does not beat what is trivial there is no
    line and no d90: each method's value, low and high are None, and its text says why.
    """
    full = point_of(points, "full")
    start = point_of(points, "base")
    base = None if start is None else start.mean
    level = majority if base is None else base
    if full is None or level is None:
        missing = ["the full runs are missing"] if full is None else []
        missing += ["the base model's score is missing"] if level is None else []
        return Summary(None if full is None else full.mean, None, {}, tuple(missing), base)
    score, curves = full.mean, curves_of(points)
    if score <= level:
        remark = (
            f"full fine-tuning ({score:.1%}) does not beat the {trivial} ({level:.1%}): "
            "there is no d90; try other full rates or more steps"
        )
        none = no_d90(trivial, "full" in unfinished)
        return Summary(score, None, dict.fromkeys(curves, none), (remark,), base)
    line, remarks = float(line_between(base or 0.0, score)), []
    if base:
        remarks.append(
            "d90 is at 90 % of full fine-tuning's gain over the base model, "
            f"{_percent(base)} + {LINE_SHARE:g} ({_percent(score)} - {_percent(base)})"
        )
    if line <= level:
        remarks.append(
            f"the 90 % line ({line:.1%}) is not above the {trivial} ({level:.1%}): "
            "reaching it takes no learning"
        )
    results, single = {}, False
    for method, curve in curves.items():
        dims, scores = [point.d for point in curve], [point.test for point in curve]
        so_far = bool({"full", method} & set(unfinished))
        results[method] = d90(dims, scores, full.test, so_far, base or 0.0)
        single = single or not results[method].has_interval
    if len(full.seeds) == full.seeds_asked == 1:
        remarks.append("one seed: no interval")
    elif single:
        remarks.append("one seed so far in some points: no interval")
    return Summary(score, line, results, tuple(remarks), base)


def point_of(points: Iterable[Point], method: str) -> Point | None:
    """The only point of full fine-tuning or of the base model; None until there is one."""
    return next((point for point in points if point.method == method), None)


def curves_of(points: Iterable[Point]) -> dict[str, list[Point]]:
    """The points by method with ascending d, without those of the full run and the base model."""
    curves: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        if point.method not in ("base", "full"):
            curves[point.method].append(point)
    return {method: sorted(curve, key=lambda point: point.d) for method, curve in curves.items()}


def no_d90(trivial: str, so_far: bool) -> D90:
    """What stands for a d90 where the full run does not beat what is `trivial`."""
    text = f"none{' so far' if so_far else ''}: the full run does not beat the {trivial}"
    return D90(None, None, None, None, False, text, so_far)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
