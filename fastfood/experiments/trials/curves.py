"""Turns the scores of a measurement into curves of accuracy against d and into d90: rates are
chosen on validation, the curve is made monotone by isotonic regression, and seeds are resampled for
the interval. What the tested d or the scores cannot tell is said in words."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

LINE_SHARE = 0.9
RESAMPLES, CONFIDENCE = 2000, 0.95


def curve_points(trials: list[dict], scores: list[dict | None]) -> list[dict]:
    """One point for each method and d, at the rate with the best mean validation score.

    `scores` go with `trials` and hold `validation` and `test`, or are None for a missing one; a
    rate counts only when all its seeds are there, and a point without such a rate is left out. Of
    equal rates the smallest wins. A point holds method, d, size, learning_rate, rates (all that
    were tried), seeds, validation (its mean), test (scores by seed), mean (of test), and by seed
    test_accuracy, train_accuracy and seconds, None where a score lacks them.
    """
    cells = defaultdict(lambda: defaultdict(list))
    for trial, score in zip(trials, scores, strict=True):
        cell = trial["method"], trial["d"], trial.get("size")
        cells[cell][trial["learning_rate"]].append((trial["seed"], score))
    points = []
    for (method, d, size), rates in cells.items():
        whole = {rate: runs for rate, runs in rates.items() if all(score for _, score in runs)}
        means = {
            rate: float(np.mean([score["validation"] for _, score in runs]))
            for rate, runs in whole.items()
        }
        if not means:
            continue
        rate = max(sorted(means), key=means.get)
        chosen = [score for _, score in whole[rate]]
        point = {
            "method": method,
            "d": d,
            "size": size,
            "learning_rate": rate,
            "rates": sorted(rates),
            "seeds": [seed for seed, _ in whole[rate]],
            "validation": means[rate],
            "test": [score["test"] for score in chosen],
            "mean": float(np.mean([score["test"] for score in chosen])),
        }
        for name in ("test_accuracy", "train_accuracy", "seconds"):
            point[name] = [score.get(name) for score in chosen]
        points.append(point)
    return points


def first_reaching(dims: Sequence[int], means: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The smallest of the ascending `dims` whose isotonic fit reaches `line`; inf if none does.

    `means` (..., len(dims)) and `line` (...) may hold many curves. The isotonic fit is on the line
    from right behind the first minimum of the sums of (mean - line) on, since it is the slope of
    those sums' greatest convex minorant (Barlow et al., 1972).
    """
    # sums of equal accuracies differ in the last bit
    above = np.asarray(means) - (np.asarray(line)[..., None] - 1e-9)
    sums = np.insert(np.cumsum(above, axis=-1), 0, 0.0, axis=-1)
    return np.append(np.asarray(dims, dtype=float), math.inf)[np.argmin(sums, axis=-1)]


def d90(dims: Sequence[int], scores: Sequence[Sequence[float]], full: Sequence[float]) -> dict:
    """d90 of one method with its 95 % bootstrap interval over seeds.

    `dims` ascends, `scores[i]` are the test scores by seed at `dims[i]`, `full` those of full
    fine-tuning. The full run and every d are resampled on their own. Returns line, value, low and
    high (numbers, inf when no tested d reaches the line), unstable (whether the interval is open
    on both sides) and the text a person reads, such as "300 [300, 1000]", "<= 10" or "> 3000".
    """
    rng = np.random.default_rng(0)
    line = LINE_SHARE * float(np.mean(full))
    value = _whole(first_reaching(dims, [np.mean(seeds) for seeds in scores], line))
    full_means = _resampled_means(rng, full)
    curve_means = np.stack([_resampled_means(rng, seeds) for seeds in scores], axis=1)
    values = first_reaching(dims, curve_means, LINE_SHARE * full_means)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = map(_whole, np.quantile(values, tails, method="inverted_cdf"))
    text = describe(dims, value)
    unstable = len(dims) > 1 and low == dims[0] and high == math.inf
    if len(full) > 1:
        text += f" [{describe(dims, low)}, {describe(dims, high)}]"
    if unstable:
        text = f"unstable: {text}"
    return {
        "line": line,
        "value": value,
        "low": low,
        "high": high,
        "unstable": unstable,
        "text": text,
    }


def _whole(value: float) -> float:
    return math.inf if value == math.inf else int(value)


def _resampled_means(rng: np.random.Generator, seeds: Sequence[float]) -> np.ndarray:
    return rng.choice(np.asarray(seeds), size=(RESAMPLES, len(seeds))).mean(axis=1)


def describe(dims: Sequence[int], value: float) -> str:
    """Writes a d90 as a person reads it, saying where the tested dims cut it off."""
    if value == math.inf:
        return f"> {dims[-1]}"
    return f"<= {dims[0]}" if value == dims[0] else f"{int(value)}"


def summarise(points: list[dict], majority: float) -> dict:
    """The full score, the 90 % line, d90 by method, and remarks on what makes them doubtful.

    Where the full run does not beat the majority class there is no line and no d90: each method's
    value, low and high are None, and its text says why.
    """
    full = next((point for point in points if point["method"] == "full"), None)
    if full is None:
        return {"full": None, "line": None, "d90": {}, "remarks": ["the full runs are missing"]}
    score = full["mean"]
    curves = defaultdict(list)
    for point in points:
        if point is not full:
            curves[point["method"]].append(point)
    if score <= majority:
        remark = (
            f"full fine-tuning ({score:.1%}) does not beat the majority class ({majority:.1%}): "
            "there is no d90; try other full rates or more steps"
        )
        none = dict.fromkeys(("line", "value", "low", "high"))
        none |= {"unstable": False, "text": "none: the full run does not beat the majority class"}
        results = {method: dict(none) for method in curves}
        return {"full": score, "line": None, "d90": results, "remarks": [remark]}
    line, remarks = LINE_SHARE * score, []
    if line <= majority:
        remarks.append(
            f"the 90 % line ({line:.1%}) is not above the majority class ({majority:.1%}): "
            "reaching it takes no learning"
        )
    results = {}
    for method, curve in curves.items():
        curve.sort(key=lambda point: point["d"])
        dims = [point["d"] for point in curve]
        results[method] = d90(dims, [point["test"] for point in curve], full["test"])
    if len(full["test"]) == 1:
        remarks.append("one seed: no interval")
    return {"full": score, "line": line, "d90": results, "remarks": remarks}
