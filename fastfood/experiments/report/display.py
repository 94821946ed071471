"""How the results of a study are named and marked wherever they are shown: methods, models, numbers
as text, the d90 of a measure with its interval, and the d90s that the paper published."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..settings.measurement import Settings
from ..trials.curves import Point
from .results import MeasureResults

METHOD_NAMES = {
    "full": "full",
    "did": "DID",
    "said": "SAID",
    "lora": "LoRA",
    "vera": "VeRA",
    "unilora": "Uni-LoRA",
    "tinylora": "TinyLoRA",
}

# Aghajanyan, Gupta and Zettlemoyer (ACL 2021), Table 1: {(task, model): {method: d90}}
PAPER_D90 = {
    (task, model): {"said": said, "did": did}
    for task, rows in {
        "glue/mrpc": {
            "BERT-base": (1608, 1861),
            "BERT-large": (1037, 2493),
            "RoBERTa-base": (896, 1000),
            "RoBERTa-large": (207, 322),
        },
        "glue/qqp": {
            "BERT-base": (8030, 9295),
            "BERT-large": (1200, 1389),
            "RoBERTa-base": (896, 1389),
            "RoBERTa-large": (774, 774),
        },
    }.items()
    for model, (said, did) in rows.items()
}
_PAPER_MODELS = {
    f"{name.lower()}{case}": (name, owner)
    for name, owner, cases in [
        ("BERT-base", "google-bert", ("-cased", "-uncased")),
        ("BERT-large", "google-bert", ("-cased", "-uncased")),
        ("RoBERTa-base", "FacebookAI", ("",)),
        ("RoBERTa-large", "FacebookAI", ("",)),
    ]
    for case in cases
}


class Mark(NamedTuple):
    """Where a d90 is drawn: its value and interval, cut to the tested d, and the side ("above",
    "below" or None) on which the tested d cut it off."""

    value: float
    low: float
    high: float
    censored: str | None
    open_high: bool  # the interval goes on above the largest tested d
    so_far: bool = False  # runs are to come that could move it

    def shifted(self, factor: float) -> "Mark":
        """The mark at a little larger or smaller d."""
        value, low, high = (factor * end for end in self[:3])
        return self._replace(value=value, low=low, high=high)


def d90_mark(measure: MeasureResults, method: str) -> Mark | None:
    """The mark of a method's d90; None where there is no d90 to draw."""
    d90 = measure.summary.d90.get(method)
    tested = [point.d for point in measure.points if point.method == method]
    if d90 is None or not tested or d90.value is None:
        return None
    value = min(d90.value, max(tested))
    censored = "below" if value <= min(tested) else None
    if d90.value == math.inf:
        censored = "above"
    low, high = (min(max(end, min(tested)), max(tested)) for end in (d90.low, d90.high))
    return Mark(value, low, high, censored, d90.high == math.inf, d90.so_far)


def accuracies(point: Point) -> list[float]:
    """A point's test accuracies by seed; its test scores where accuracies were not kept."""
    return list(point.test if None in point.test_accuracy else point.test_accuracy)


def gaps(point: Point) -> list[float]:
    """A point's relative generalization gaps by seed, (train - test) / (1 - test) in accuracies
    (Aghajanyan et al. 2021, section 5.1); [] where no training rows were scored."""
    if None in point.train_accuracy or max(accuracies(point)) == 1:
        return []
    pairs = zip(point.train_accuracy, accuracies(point), strict=True)
    return [(train - test) / (1 - test) for train, test in pairs]


def seeds(point: Point) -> str:
    """How many seeds a point rests on, "2 of 3" where runs are to come that could change it."""
    return f"{len(point.seeds)}" + ("" if point.whole else f" of {point.seeds_asked}")


def paper_model(settings: Settings) -> str | None:
    """The paper's name of the model, such as "RoBERTa-base", or None when it is another one.

    A hub name counts with its owner (google-bert, FacebookAI) or without one, a folder by its own
    name; a revision is another model.
    """
    if settings.model is None or settings.revision:
        return None
    path = Path(settings.model)
    name, owner = _PAPER_MODELS.get(path.name.lower(), (None, None))
    of_owner = str(path.parent) in (".", owner)
    return name if of_owner or path.is_dir() or path.is_absolute() else None


def paper_d90(settings: Settings) -> dict[str, int]:
    """The paper's d90 by method for a measure's task and model; {} where it has none."""
    if settings.metric not in (None, "accuracy"):
        return {}
    return PAPER_D90.get((settings.task, paper_model(settings)), {})


def task_name(task: str) -> str:
    """A task as short as it can be told from the others: "mrpc", "digits"."""
    return Path(task).name


def typeset(text: str) -> str:
    """A d90's text with one character for its sign."""
    return text.replace("<= ", "≤ ").replace(">= ", "≥ ")


def literal(text: str) -> str:
    """A text for a figure, with its dollars as characters, which else begin a formula."""
    return text.replace("$", r"\$")


def short(value: float) -> str:
    """A count in three digits: 20000 as "20k", 110e6 as "110M"."""
    for least, unit, letter in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a person reads it, or a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as "42 s", "12 min" or "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def seeds_done(points: Sequence[Point]) -> str:
    """How many seeds points rest on that are not whole: "1 to 2 of 3 seeds"."""
    counts = [len(point.seeds) for point in points]
    least, most = min(counts), max(counts)
    asked = max(point.seeds_asked for point in points)
    done = f"{least}" if least == most else f"{least} to {most}"
    return f"{done} of {asked} seed{'s' if asked > 1 else ''}"


def spread(shares: Sequence[float]) -> str:
    """The sample standard deviation of shares over seeds, in percentage points; a dash for one."""
    return f"{100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else "–"
