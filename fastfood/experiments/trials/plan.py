"""Plans which trials a measurement consists of. The list is a pure function of the settings, of the
facts and of the scores known so far, so all drivers of a study, also resumed ones, agree on what is
to be done."""

import math
from collections.abc import Callable, Mapping, Sequence

from ..settings.language import COLUMNS, GRPO_DEFAULTS
from ..settings.measurement import (
    DIGITS_ONE_RATE_BELOW,
    LR_FACTORS,
    SIZED_METHODS,
    SUBSPACE_METHODS,
    Settings,
)
from ..settings.trial import Facts, Score, Trial
from .curves import curve_points, line_between

START, STRIDE = 1000, 8  # a bisection's first d, and the ratio of its steps until d90 is bracketed
PRUNE_MARGIN = 0.1  # a trial scoring this much less than another rate at half-time is stopped

Known = Mapping[str, Score | None]  # by key; None for a trial that will have no score


def trials(settings: Settings, facts: Facts, known: Known) -> list[Trial]:
    """All trials asked for so far in the order in which they run: of a model that writes the base
    model's score, then full fine-tuning, then every d with the first seed, then with the next, so a
    study stopped early has whole curves.

    `known` holds the scores of finished trials by key, and None for trials that ended without a
    score and will not run again. A grid does not depend on it; a bisection grows with it.
    """
    seeds = range(settings.seeds)
    base = cell_trials(settings, facts, "base", 0, seed=0) if settings.writes else []
    full = [
        trial for seed in seeds for trial in cell_trials(settings, facts, "full", facts.D, seed)
    ]
    if settings.search == "grid":
        searched = {name: list(possible_dims(settings, facts, name)) for name in settings.methods}
    else:
        line = _line(base, full, known)
        searched = {
            method: _bisection(settings, facts, method, line, known) for method in settings.methods
        }
    asked = base + full
    for seed in seeds:
        cells = [
            (d, method)
            for method in settings.methods
            for d in (() if method in SIZED_METHODS else searched[method])
        ]
        for d, method in sorted(cells, key=lambda cell: cell[0]):
            asked += cell_trials(settings, facts, method, d, seed)
        for method in settings.methods:
            for size in settings.sizes_of(method) if method in SIZED_METHODS else ():
                d = facts.counts[method][str(size)]
                asked += cell_trials(settings, facts, method, d, seed, size)
    return _without_pruned_rates(asked, known) if settings.prune else asked


def cell_trials(
    settings: Settings, facts: Facts, method: str, d: int, seed: int, size: int | None = None
) -> list[Trial]:
    """The trials of one method, d and seed, one for each learning rate. The method "base", whose d
    is 0, trains nothing: its only rate is 0."""
    subspace = method in SUBSPACE_METHODS
    has_new_head = not (subspace or method in ("base", "full") or settings.writes)
    if method == "base":
        rates = [0.0]
    elif subspace:
        rates = list(theta_rates(settings, d))
    else:
        rates = sorted(set(settings.full_lrs if method == "full" else settings.peft_lrs))
    language = _language_fields(settings, facts) if settings.writes else {}
    return [
        Trial(
            task=settings.task,
            text_columns=settings.text_columns,
            label_column=settings.label_column,
            splits_asked=settings.splits,
            model=settings.model,
            revision=settings.revision,
            data=settings.data,
            model_hash=facts.model_hash,
            data_hash=facts.data_hash,
            metric=settings.metric,
            max_steps=settings.max_steps,
            batch_size=settings.batch_size,
            max_length=None if settings.task == "digits" else settings.max_length,
            warmup=settings.warmup,
            bf16=settings.bf16,
            device=facts.device.split(":")[0],
            eval_rows=settings.eval_rows,
            gap_rows=settings.gap_rows or None,
            method=method,
            d=d,
            size=size,
            normalization=settings.normalization if subspace else None,
            lambda_lr=settings.lambda_lr if method == "said" else None,
            head=settings.head if has_new_head else None,
            seed=seed,
            learning_rate=rate,
            weights=settings.weights if subspace and settings.weights != "resident" else None,
            dtype=None if settings.dtype == "float32" else settings.dtype,
            accumulation=None if settings.accumulation == 1 else settings.accumulation,
            gradient_checkpointing=settings.gradient_checkpointing or None,
            **language,
        )
        for rate in rates
    ]


def _language_fields(settings: Settings, facts: Facts) -> dict:
    """What a trial of a model that writes depends on besides."""
    names = ("objective", *COLUMNS, "answer", "reward", "max_new_tokens", *GRPO_DEFAULTS)
    fields = {name: getattr(settings, name) for name in names}
    return fields | {"chat": settings.chat or None, "reward_hash": facts.reward_hash}


def limits(facts: Facts, method: str) -> tuple[int, float]:
    """The least and the largest d that a method of a given d can have; DID has any, up to D as
    every method does."""
    if method == "said":
        return (facts.m or 0) + 1, math.inf
    if method == "unilora" and facts.unilora is not None:
        return facts.unilora
    return 1, math.inf


def possible_dims(settings: Settings, facts: Facts, method: str) -> tuple[int, ...]:
    """The values of d of a grid that a method can have."""
    least, largest = limits(facts, method)
    return tuple(d for d in settings.dims if least <= d <= largest)


def theta_rates(settings: Settings, d: int) -> tuple[float, ...]:
    """The learning rates of theta to try at d: `lrs`, or multiples of d^-1/2 to two digits."""
    if settings.lrs is not None:
        return tuple(sorted(set(settings.lrs)))
    factors = settings.lr_factors
    if factors is None:  # digits
        factors = LR_FACTORS[settings.normalization]
        factors = factors[-1:] if d < DIGITS_ONE_RATE_BELOW else factors
    return tuple(sorted({float(f"{factor / math.sqrt(d):.2g}") for factor in factors}))


def floor(settings: Settings, trial: Trial, asked: Sequence[Trial], known: Known) -> float | None:
    """The validation score that a trial needs at half of its steps to go on: the best that another
    rate of the same method, d and seed had there, minus `PRUNE_MARGIN`. None if `prune` is off or
    no such score is known yet."""
    if not settings.prune:
        return None
    cell = [other for other in asked if _cell_of(other) == _cell_of(trial)]
    pruned = {other.learning_rate for other in cell if _has_no_score(other, known)}
    rivals = [
        known.get(other.key)
        for other in cell
        if other.seed == trial.seed and other.learning_rate not in {trial.learning_rate, *pruned}
    ]
    scores = [rival.halfway for rival in rivals if rival is not None and rival.halfway is not None]
    return max(scores) - PRUNE_MARGIN if scores else None


def _cell_of(trial: Trial) -> tuple[str, int]:
    return trial.method, trial.d


def _has_no_score(trial: Trial, known: Known) -> bool:
    """Whether the trial ended without a score and will not run again."""
    return trial.key in known and known[trial.key] is None


def _without_pruned_rates(asked: list[Trial], known: Known) -> list[Trial]:
    """Leaves out the trials of rates that were stopped at another seed: these cannot be chosen."""
    stopped = {
        (*_cell_of(trial), trial.learning_rate) for trial in asked if _has_no_score(trial, known)
    }
    return [
        trial
        for trial in asked
        if trial.key in known or (*_cell_of(trial), trial.learning_rate) not in stopped
    ]


def _mean(cell: list[Trial], known: Known) -> float | None:
    """The mean test score of the trials of one method and d at the best of their rates, or None if
    none has a score. Raises KeyError if the result of a trial is not known yet."""
    points = curve_points(cell, [known[trial.key] for trial in cell])
    return points[0].mean if points else None


def _line(base: list[Trial], full: list[Trial], known: Known) -> float | None:
    """90 % of the full score, of a model that writes base + 90 % of (full - base). None if runs of
    them are missing or have no score, or if the full run does not beat the base model."""
    if not all(trial.key in known for trial in (*base, *full)):
        return None
    start = _mean(base, known) if base else 0.0
    mean = _mean(full, known)
    if start is None or mean is None or (base and mean <= start):
        return None
    return line_between(start, mean)


def _bisection(
    settings: Settings, facts: Facts, method: str, line: float | None, known: Known
) -> list[int]:
    """The values of d that the search for one method's d90 has asked for so far, ascending."""
    if method in SIZED_METHODS or line is None:
        return []
    asked = []

    def reached(d: int) -> bool | None:
        """Whether the score at d reaches the line; None while it is not known."""
        asked.append(d)
        cell = [
            trial
            for seed in range(settings.seeds)
            for trial in cell_trials(settings, facts, method, d, seed)
        ]
        cell = _without_pruned_rates(cell, known) if settings.prune else cell
        if not all(trial.key in known for trial in cell):
            return None
        mean = _mean(cell, known)
        return mean is not None and mean >= line - 1e-9

    least, largest = bracket(settings, facts, method)
    _bisect(least, largest, settings.precision, reached)
    return sorted(asked)


def bracket(settings: Settings, facts: Facts, method: str) -> tuple[int, int]:
    """The least and the largest d that a bisection may ask of a method."""
    least, largest = limits(facts, method)
    least = max(settings.bracket[0], least)
    return least, max(least, int(min(settings.bracket[1], facts.D, largest)))


def _bisect(
    least: int, largest: int, precision: float, reached: Callable[[int], bool | None]
) -> None:
    """Searches the smallest d that is `reached`: moves from START by factors of STRIDE until it is
    bracketed, then tries the bracket's geometric mean until the ratio of its ends is at most
    `precision`. Returns early where `reached` returns None."""
    d = min(max(START, least), largest)
    low, high = None, None  # the largest d tried below the line, the smallest tried on it
    while True:
        on_the_line = reached(d)
        if on_the_line is None:
            return
        low, high = (low, d) if on_the_line else (d, high)
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
