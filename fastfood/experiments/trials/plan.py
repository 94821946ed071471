"""Which trials a measurement consists of. A trial is a flat dict made from the settings for one
(method, d, learning rate, seed); it holds everything that its score depends on. The list is a pure
function of the settings and of the scores known so far, so that any number of drivers, and a
resumed one, agree on what is to be done."""

import hashlib
import json
import math
from collections.abc import Callable

from ..settings.measurement import (
    DIGITS_ONE_RATE_BELOW,
    LR_FACTORS,
    SIZED_METHODS,
    SUBSPACE_METHODS,
    Settings,
)
from .curves import LINE_SHARE, curve_points

START, STRIDE = 1000, 8  # a bisection's first d, and the ratio of its steps until d90 is bracketed
PRUNE_MARGIN = 0.1  # a trial this far behind another rate at half of its steps is hopeless


def trials(settings: Settings, facts: dict, known: dict[str, dict | None]) -> list[dict]:
    """All trials asked for so far in the order in which they run: full fine-tuning first, then
    seed by seed every d, so that a run stopped early holds whole curves.

    `known` holds the results of finished trials by key, and None for those that gave no score and
    will not run again. A grid does not depend on it; a bisection grows with it.
    """
    full = _full_trials(settings, facts)
    if settings.search == "grid":
        searched = {method: settings.dims for method in settings.methods}
    else:
        line = _line(full, known)
        searched = {
            method: _bisection(settings, facts, method, line, known) for method in settings.methods
        }
    asked = list(full)
    for seed in range(settings.seeds):
        cells = [
            (d, method)
            for method in settings.methods
            for d in (() if method in SIZED_METHODS else searched[method])
        ]
        for d, method in sorted(cells, key=lambda cell: cell[0]):
            asked += _cell(settings, facts, method, d, None, seed)
        for method in settings.methods:
            for size in settings.sizes if method in SIZED_METHODS else ():
                d = facts["counts"][method][str(size)]
                asked += _cell(settings, facts, method, d, size, seed)
    return _without_pruned_rates(asked, known) if settings.prune else asked


def trial_key(trial: dict) -> str:
    """A hash of a trial's configuration; the paths are left out, their contents' hashes are in."""
    identity = {
        name: value
        for name, value in trial.items()
        if name not in ("model", "data") and value is not None
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def theta_rates(settings: Settings, d: int) -> tuple[float, ...]:
    """The learning rates of theta to try at d: `lrs`, or multiples of d^-1/2 in two digits."""
    if settings.lrs is not None:
        return tuple(sorted(set(settings.lrs)))
    factors = settings.lr_factors
    if factors is None:  # digits
        factors = LR_FACTORS[settings.normalization]
        factors = factors[-1:] if d < DIGITS_ONE_RATE_BELOW else factors
    return tuple(sorted({float(f"{factor / math.sqrt(d):.2g}") for factor in factors}))


def floor(
    settings: Settings, trial: dict, asked: list[dict], known: dict[str, dict | None]
) -> float | None:
    """The validation score that a trial must have at half of its steps to go on: `PRUNE_MARGIN`
    below the best that another rate of the same method, d and seed had there. None without
    `prune` and where nothing is known yet."""
    if not settings.prune:
        return None
    cell = [other for other in asked if _cell_of(other) == _cell_of(trial)]
    pruned = {other["learning_rate"] for other in cell if known.get(trial_key(other), 0) is None}
    rivals = [
        known[trial_key(other)]["halfway"]
        for other in cell
        if other["seed"] == trial["seed"]
        and other["learning_rate"] not in {trial["learning_rate"], *pruned}
        and known.get(trial_key(other))
    ]
    rivals = [score for score in rivals if score is not None]
    return max(rivals) - PRUNE_MARGIN if rivals else None


def _common(settings: Settings, facts: dict) -> dict:
    return {
        "task": settings.task,
        "text_columns": settings.text_columns and list(settings.text_columns),
        "label_column": settings.label_column,
        "splits_asked": settings.splits and list(settings.splits),
        "model": settings.model,
        "revision": settings.revision,
        "data": settings.data,
        "model_hash": facts["model_hash"],
        "data_hash": facts["data_hash"],
        "metric": settings.metric,
        "max_steps": settings.max_steps,
        "batch_size": settings.batch_size,
        "max_length": None if settings.task == "digits" else settings.max_length,
        "warmup": settings.warmup,
        "bf16": settings.bf16,
        "device": facts["device"].split(":")[0],
        "eval_rows": settings.eval_rows,
        "gap_rows": settings.gap_rows or None,
    }


def _full_trials(settings: Settings, facts: dict) -> list[dict]:
    own = {"method": "full", "d": facts["D"], "size": None, "normalization": None}
    own |= {"lambda_lr": None, "head": None}
    return [
        _common(settings, facts) | own | {"learning_rate": rate, "seed": seed}
        for seed in range(settings.seeds)
        for rate in sorted(set(settings.full_lrs))
    ]


def _cell(
    settings: Settings, facts: dict, method: str, d: int, size: int | None, seed: int
) -> list[dict]:
    """The trials of one method, d and seed, one a rate."""
    subspace = method in SUBSPACE_METHODS
    own = {
        "method": method,
        "d": d,
        "size": size,
        "normalization": settings.normalization if subspace else None,
        "lambda_lr": settings.lambda_lr if method == "said" else None,
        "head": None if subspace else settings.head,
        "seed": seed,
    }
    rates = theta_rates(settings, d) if subspace else sorted(set(settings.peft_lrs))
    return [_common(settings, facts) | own | {"learning_rate": rate} for rate in rates]


def _cell_of(trial: dict) -> tuple:
    return trial["method"], trial["d"]


def _without_pruned_rates(asked: list[dict], known: dict) -> list[dict]:
    """A rate that was stopped at one seed cannot be chosen, so its other seeds need not run."""
    stopped = {
        (*_cell_of(trial), trial["learning_rate"])
        for trial in asked
        if known.get(trial_key(trial), 0) is None
    }
    return [
        trial
        for trial in asked
        if trial_key(trial) in known or (*_cell_of(trial), trial["learning_rate"]) not in stopped
    ]


def _line(full: list[dict], known: dict) -> float | None:
    """90 % of the full score, or None while full runs are missing or when none came through."""
    keys = [trial_key(trial) for trial in full]
    if not all(key in known for key in keys):
        return None
    points = curve_points(full, [known[key] for key in keys])
    return LINE_SHARE * points[0].mean if points else None


def _bisection(
    settings: Settings, facts: dict, method: str, line: float | None, known: dict
) -> list[int]:
    """The values of d that the search for one method's d90 has come to so far, ascending."""
    if method in SIZED_METHODS or line is None:
        return []
    asked = []

    def reached(d: int) -> bool | None:
        """Whether d's score is on the line; None while it is not known."""
        asked.append(d)
        cell = [
            trial
            for seed in range(settings.seeds)
            for trial in _cell(settings, facts, method, d, None, seed)
        ]
        cell = _without_pruned_rates(cell, known) if settings.prune else cell
        keys = [trial_key(trial) for trial in cell]
        if not all(key in known for key in keys):
            return None
        points = curve_points(cell, [known[key] for key in keys])
        return bool(points) and points[0].mean >= line - 1e-9

    least = max(settings.bracket[0], (facts["m"] or 0) + 1 if method == "said" else 1)
    largest = max(least, min(settings.bracket[1], facts["D"]))
    _bisect(least, largest, settings.precision, reached)
    return sorted(asked)


def _bisect(
    least: int, largest: int, precision: float, reached: Callable[[int], bool | None]
) -> None:
    """Brackets the smallest d that is reached by strides from START, then halves the bracket's
    logarithm until its ends have the ratio `precision`; stops where `reached` says None."""
    d = min(max(START, least), largest)
    low, high = None, None  # the largest d found below the line, the smallest found on it
    while True:
        found = reached(d)
        if found is None:
            return
        low, high = (low, d) if found else (d, high)
        if high is None and low < largest:
            d = min(STRIDE * low, largest)
        elif low is None and high > least:
            d = max(high // STRIDE, least)
        elif low is None or high is None:
            return  # the whole bracket lies on one side
        else:
            d = round(math.sqrt(low * high))
            if high <= precision * low or d in (low, high):
                return
