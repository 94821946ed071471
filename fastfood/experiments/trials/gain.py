"""The scores of a relative metric, such as a loss, as shares of what full fine-tuning gains over
the base model: 0 is the base model's score and 1 the full run's, so that 90 % of it is a line like
that of any other metric. The scores as they were recorded stay beside them."""

import math
from collections.abc import Collection
from dataclasses import replace

from .curves import Point, Summary, curves_of, no_d90, point_of, summarise


def summarise_gain(
    points: list[Point], unfinished: Collection[str], trivial: str
) -> tuple[list[Point], Summary]:
    """The points with shares of the gain for scores, and what `summarise` says of them.

    A share is (score - base) / (full - base), with the mean scores of the base model and of the
    full run on the same part, validation or test. There are no points, no line and no d90 until
    both are known, nor where the full run does not beat the base model.
    """
    base, full = point_of(points, "base"), point_of(points, "full")
    if base is None or full is None:
        missing = summarise([p for p in (base, full) if p is not None], None, unfinished, trivial)
        return [], Summary(None, None, {}, missing.remarks)
    absolute = (base.mean, full.mean)
    if full.mean <= base.mean:
        remark = (
            f"full fine-tuning does not beat the {trivial}: "
            "there is no d90; try other full rates or more steps"
        )
        none = no_d90(trivial, "full" in unfinished)
        curves = dict.fromkeys(curves_of(points), none)
        return [], Summary(None, None, curves, (remark,), absolute=absolute)
    shares = [_as_share(point, base, full) for point in points]
    summary = summarise(shares, None, unfinished, trivial)
    return shares, replace(summary, full=1.0, absolute=absolute)


def _as_share(point: Point, base: Point, full: Point) -> Point:
    test = tuple(_share(score, base.mean, full.mean) for score in point.test)
    return replace(
        point,
        validation=_share(point.validation, base.validation, full.validation),
        test=test,
        mean=_share(point.mean, base.mean, full.mean),
    )


def _share(score: float, base: float, full: float) -> float:
    """The share of the gain from `base` to `full` that a score has; nan where there is no gain, as
    it may be on validation alone."""
    return (score - base) / (full - base) if full > base else math.nan
