"""How the results of a study are named and marked wherever they are shown: methods, models, numbers
as text, the d90 of a measure with its interval, and the d90s that the paper published."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..settings.measurement import SIZED_METHODS, Settings
from ..trials.curves import Point
from ..trials.plan import limits, possible_dims
from .results import MeasureResults

METHOD_NAMES = {
    "base": "base model",
    "full": "full",
    "did": "DID",
    "said": "SAID",
    "lora": "LoRA",
    "vera": "VeRA",
    "unilora": "Uni-LoRA",
    "tinylora": "TinyLoRA",
}

# the relative metrics in absolute terms: their names, signs in the record, and units
ABSOLUTE = {"loss": ("loss per token", -1, " nats"), "reward": ("mean reward", 1, "")}

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


def score_name(measure: MeasureResults) -> str:
    """What test scores are called: "test accuracy", "share of full fine-tuning's gain in loss"."""
    metric = measure.metric
    if metric.relative:
        return f"share of full fine-tuning's gain in {metric.shown}"
    return f"test {metric.shown}"


def line_name(measure: MeasureResults) -> str:
    """What the line is called that d90 reaches."""
    return "90 % of full" if measure.summary.base is None else "90 % of the gain"


def absolute(measure: MeasureResults) -> tuple[str, str, str] | None:
    """What a relative metric measures, and the scores of the base model and of the full run in it:
    ("loss per token", "3.21", "1.02 nats"). None where there are none or none is needed."""
    if measure.summary.absolute is None:
        return None
    name, sign, unit = ABSOLUTE.get(measure.settings.metric, (measure.metric.shown, 1, ""))
    base, full = (f"{sign * score + 0.0:.4g}" for score in measure.summary.absolute)
    return name, base, full + unit


def remarks(measure: MeasureResults) -> list[str]:
    """What a reader of a measure's d90s should know of them."""
    found = absolute(measure)
    gain = [] if found is None else ["{}: base {}, full {}".format(*found)]
    return [*gain, *measure.summary.remarks, *_fallen(measure), *_left_out(measure)]


def _fallen(measure: MeasureResults) -> list[str]:
    """A remark for each method that reaches the line at a d below its d90, and falls below the line
    again, as it may where no rate tried fits a larger d."""
    found = []
    for method, d90 in measure.summary.d90.items():
        points = [p for p in measure.points if p.method == method and d90.line is not None]
        reached = sorted(p.d for p in points if p.mean >= d90.line and p.d < d90.value)
        if reached:
            shown = ", ".join(f"{d}" for d in reached)
            found.append(
                f"{METHOD_NAMES[method]}: d = {shown} reach{'es' if len(reached) == 1 else ''} the "
                "line, but larger d fall below it again, so a curve that never falls does not"
            )
    return found


def _left_out(measure: MeasureResults) -> list[str]:
    """A remark for each method that cannot have some d of the grid."""
    settings, facts = measure.settings, measure.facts
    searched = [name for name in settings.methods if name not in SIZED_METHODS]
    found = []
    for method in searched if settings.search == "grid" else ():
        possible = possible_dims(settings, facts, method)
        left = [f"{d}" for d in settings.dims if d not in possible]
        if not left:
            continue
        least, largest = limits(facts, method)
        reason = f"it trains from {least:,} to {largest:,} numbers"
        if method == "said":
            reason = f"its {facts.m} scale{'s count' if facts.m > 1 else ' counts'} in d"
        verb = "are" if len(left) > 1 else "is"
        text = f"d = {', '.join(left)} {verb} left out, since {reason}"
        found.append(f"{METHOD_NAMES[method]}: {text}")
    return found


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
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


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
