"""A study: its measurements before and after their data and models were looked at."""

from pathlib import Path
from typing import NamedTuple

from .measurement import Settings
from .pretraining import Pretraining


class Planned(NamedTuple):
    """A study before anything was loaded. `measures` are (label, x, settings)."""

    name: str
    title: str
    kind: str
    scale: str
    note: str
    out: Path
    measures: list[tuple[str, float | None, Settings]]
    pretrainings: list[Pretraining]


class Measure(NamedTuple):
    """A measurement ready to run: its name in the report, its settings, what `trials.facts` found,
    and, where measurements form a series (pre-training steps), its place x."""

    label: str
    settings: Settings
    facts: dict
    x: float | None = None
