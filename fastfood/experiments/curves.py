"""Turns the scores of a study into curves of accuracy against d and into d90: rates are chosen on
validation, the curve is made monotone by isotonic regression, and seeds are resampled for the
interval."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

LINE_SHARE = 0.9
RESAMPLES, CONFIDENCE = 2000, 0.95


def curve_points(trials: list[dict], scores: list[dict | None]) -> list[dict]:
    """One point for each method and d, at the rate with the best mean validation accuracy.

    `scores` go with `trials` and hold `validation` and `test`, or are None for a missing one; a
    rate counts only when all its seeds are there, and a point without such a rate is left out. Of
    equal rates the smallest wins. A point holds method, d, learning_rate, seeds, validation (its
    mean), test (accuracies by seed) and mean (of test).
    """
    cells = defaultdict(lambda: defaultdict(list))
    for trial, score in zip(trials, scores, strict=True):
        cells[trial["method"], trial["d"]][trial["learning_rate"]].append((trial["seed"], score))
    points = []
    for (method, d), rates in cells.items():
        whole = {rate: runs for rate, runs in rates.items() if all(score for _, score in runs)}
        means = {
            rate: float(np.mean([score["validation"] for _, score in runs]))
            for rate, runs in whole.items()
        }
        if not means:
            continue
        rate = max(sorted(means), key=means.get)
        points.append(
            {
                "method": method,
                "d": d,
                "learning_rate": rate,
                "seeds": [seed for seed, _ in whole[rate]],
                "validation": means[rate],
                "test": [score["test"] for _, score in whole[rate]],
                "mean": float(np.mean([score["test"] for _, score in whole[rate]])),
            }
        )
    return points


def first_reaching(dims: Sequence[int], means: Sequence[float], line: float) -> float:
    """The smallest of the ascending `dims` whose isotonic fit reaches `line`; inf if none does."""
    from scipy.optimize import isotonic_regression

    fit = isotonic_regression(means).x
    reached = np.flatnonzero(fit >= line - 1e-9)  # sums of equal accuracies differ in the last bit
    return dims[reached[0]] if len(reached) else math.inf


def d90(dims: Sequence[int], scores: Sequence[Sequence[float]], full: Sequence[float]) -> dict:
    """d90 of one method with its 95 % bootstrap interval over seeds.

    `dims` ascends, `scores[i]` are the test accuracies by seed at `dims[i]`, `full` those of full
    fine-tuning. The full run and every d are resampled on their own. Returns line, value, low and
    high (numbers, inf when no tested d reaches the line) and the text a person reads, such as
    "300 [300, 1000]", "<= 10" or "> 3000".
    """
    rng = np.random.default_rng(0)
    line = LINE_SHARE * float(np.mean(full))
    value = first_reaching(dims, [np.mean(seeds) for seeds in scores], line)
    full_means = _resampled_means(rng, full)
    curve_means = np.stack([_resampled_means(rng, seeds) for seeds in scores], axis=1)
    values = [
        first_reaching(dims, means, LINE_SHARE * full_mean)
        for means, full_mean in zip(curve_means, full_means, strict=True)
    ]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = (
        math.inf if value == math.inf else int(value)
        for value in np.quantile(values, tails, method="inverted_cdf")
    )
    text = describe(dims, value)
    if len(full) > 1:
        text += f" [{describe(dims, low)}, {describe(dims, high)}]"
    return {"line": line, "value": value, "low": low, "high": high, "text": text}


def _resampled_means(rng: np.random.Generator, seeds: Sequence[float]) -> np.ndarray:
    return rng.choice(np.asarray(seeds), size=(RESAMPLES, len(seeds))).mean(axis=1)


def describe(dims: Sequence[int], value: float) -> str:
    """Writes a d90 as a person reads it, saying where the tested dims cut it off."""
    if value == math.inf:
        return f"> {dims[-1]}"
    return f"<= {dims[0]}" if value == dims[0] else f"{int(value)}"


def summarise(points: list[dict], majority: float) -> dict:
    """The full score, the 90 % line, d90 by method, and remarks on what makes them doubtful."""
    full = next((point for point in points if point["method"] == "full"), None)
    if full is None:
        return {"full": None, "line": None, "d90": {}, "remarks": ["the full runs are missing"]}
    score = full["mean"]
    line = LINE_SHARE * score
    remarks = []
    if score <= majority:
        remarks.append(
            f"full fine-tuning ({score:.1%}) does not beat the majority class ({majority:.1%}): "
            "d90 says nothing here; try other full rates or more steps"
        )
    elif line <= majority:
        remarks.append(
            f"the 90 % line ({line:.1%}) is not above the majority class ({majority:.1%}): "
            "reaching it takes no learning"
        )
    results = {}
    for method in dict.fromkeys(point["method"] for point in points if point is not full):
        curve = sorted((p for p in points if p["method"] == method), key=lambda p: p["d"])
        dims = [point["d"] for point in curve]
        results[method] = d90(dims, [point["test"] for point in curve], full["test"])
    if len(full["test"]) == 1:
        remarks.append("one seed: no interval")
    return {"full": score, "line": line, "d90": results, "remarks": remarks}
