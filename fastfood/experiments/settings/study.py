"""A study: its measurements and the pre-trainings that make models for them."""

from dataclasses import dataclass
from pathlib import Path

from .measurement import Settings
from .pretraining import Pretraining
from .trial import Facts


@dataclass(frozen=True)
class Measurement:
    """One model on one task: its name in the report, its settings and, where measurements form a
    series along pre-training, the step x of this one. `facts` are what `trials.facts` found out
    about its data and model, None before it has looked."""

    label: str
    settings: Settings
    x: float | None = None
    facts: Facts | None = None

    @property
    def known_facts(self) -> Facts:
        """`facts`, where somebody has looked; raises ValueError where nobody has."""
        if self.facts is None:
            raise ValueError(f"facts: wanted what was found out of {self.label!r}, got None")
        return self.facts


@dataclass(frozen=True)
class Planned:
    """A study before anything was loaded. `kind` says which figure of the paper its report draws,
    `scale` is "full" or "small", and `out` is its folder."""

    name: str
    title: str
    kind: str
    scale: str
    note: str
    out: Path
    measurements: list[Measurement]
    pretrainings: list[Pretraining]
