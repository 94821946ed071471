"""The result of a study in words: what its headline says, and the numbers that it rests on."""

import math
from collections.abc import Callable

from ..trials.curves import D90, Point
from . import display
from .results import MeasureResults, Results

Found = tuple[MeasureResults, str, D90]  # a measure, a method, and the d90 of both


def headline(results: Results) -> list[str]:
    """The result in one or a few sentences, and how much of the study they rest on."""
    progress = results.progress
    sentences = []
    d90s = all_d90(results)
    if not progress.complete:
        sentences.append("Nothing is measured yet.")
    elif not d90s:
        sentences.append("No d90 yet.")
    else:
        say = _say_each if len(results.measures) == 1 else _SAY.get(results.kind, _say_each)
        sentences += say(results, d90s)
    if progress.missing:
        state = "running" if progress.running else "not finished"
        sentences.append(
            f"This study is {state}: {progress.complete:,} of {progress.asked:,} trials are done."
        )
    return sentences + _say_partial(results)


def all_d90(results: Results) -> list[Found]:
    """(measure, method, d90) wherever there is one, also a censored one."""
    return [
        (measure, method, d90)
        for measure in results.measures
        for method, d90 in measure.summary.d90.items()
    ]


def partial_points(results: Results) -> list[Point]:
    """The points of all measures that runs to come could change."""
    return [point for measure in results.measures for point in measure.points if not point.whole]


def _say_partial(results: Results) -> list[str]:
    """How much the points rest on, where some of them are not whole."""
    partial = partial_points(results)
    if not partial:
        return []
    total = sum(len(measure.points) for measure in results.measures)
    return [
        f"Not whole yet, and may change: {len(partial):,} of {total:,} points, which rest on "
        f"{display.seeds_done(partial)} or lack a learning rate."
    ]


def _say_each(results: Results, d90s: list[Found]) -> list[str]:
    sentences = []
    for measure in results.measures[:3]:
        listed = ", ".join(
            f"{display.METHOD_NAMES[method]} {display.typeset(d90.text)}"
            for method, d90 in measure.summary.d90.items()
        )
        if not listed:
            continue
        full, reached = _say_full(measure)
        sentences.append(
            f"{measure.label}: full fine-tuning of D = {measure.facts.D:,} {full}; d90, the "
            f"trained parameters that reach 90 % of {reached}: {listed}."
        )
    more = len(results.measures) - 3
    return sentences + ([f"{more} more measurements are below."] if more > 0 else [])


def _say_full(measure: MeasureResults) -> tuple[str, str]:
    """What full fine-tuning reaches, and what d90 is at 90 % of."""
    summary, found = measure.summary, display.absolute(measure)
    if found is not None:
        return "takes the {} from {} to {}".format(*found), "this gain"
    full = f"reaches {display.percent(summary.full)}"
    if summary.base is None:
        return full, "it"
    return f"{full}, the base model {display.percent(summary.base)}", "the gain"


def _say_change(
    d90s: list[Found],
    position: Callable[[MeasureResults], float | None],
    name: Callable[[MeasureResults], str],
) -> list[str]:
    """For each task and method: d90 at the least and at the largest position, which `name` says in
    words, and whether the intervals tell them apart."""
    sentences = []
    series: dict[tuple[str, str], list[tuple[float, MeasureResults, D90]]] = {}
    for measure, method, d90 in d90s:
        x = position(measure)
        if x is not None and d90.value is not None:
            key = display.task_name(measure.settings.task), method
            series.setdefault(key, []).append((x, measure, d90))
    for (task, method), members in series.items():
        members.sort(key=lambda member: member[0])
        (x0, first, d90_first), (x1, last, d90_last) = members[0], members[-1]
        if x0 == x1:
            continue
        rank = _rank_text([(x, d90.value) for x, _, d90 in members])
        sentences.append(
            f"{display.METHOD_NAMES[method]} on {task}: d90 is {display.typeset(d90_first.text)} "
            f"{name(first)} and {display.typeset(d90_last.text)} {name(last)}: "
            f"{_verdict(d90_first, d90_last)}{rank}."
        )
    return sentences or ["No series of d90s yet."]


def _verdict(first: D90, last: D90) -> str:
    """Whether the intervals of two d90s tell them apart."""
    if first.so_far or last.so_far:
        return "runs are missing, so no change is shown yet"
    if not (first.has_interval and last.has_interval):
        return "one seed has no interval, so no change is shown"
    if last.high < first.low:
        return "it falls, and the intervals do not overlap"
    if last.low > first.high:
        return "it rises, and the intervals do not overlap"
    return "the intervals overlap, so no change is shown"


def _at_step(measure: MeasureResults) -> str:
    return f"at step {measure.x:,g}"


def _for_model(measure: MeasureResults) -> str:
    size = display.short(measure.facts.D)
    return f"for {measure.settings.model_name} (D = {size})"


def _rank_text(pairs: list[tuple[float, float]]) -> str:
    rho = rank_correlation(pairs)
    return (
        "" if rho is None else f"; rank correlation {_signed(rho)} over {len(pairs)} measurements"
    )


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation of (x, y), infinities ranked last; None for fewer than three
    pairs or where one side is constant."""
    from scipy.stats import spearmanr

    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _say_relation(
    d90s: list[Found], value: Callable[[MeasureResults], float | None], name: str
) -> list[str]:
    """The rank correlation between d90 and a value of the full run, by method."""
    sentences = []
    for method in dict.fromkeys(method for _, method, _ in d90s):
        members = [
            (d90, value(measure))
            for measure, other, d90 in d90s
            if other == method and d90.value is not None and value(measure) is not None
        ]
        rho = rank_correlation([(d90.value, full) for d90, full in members])
        text = f"{display.METHOD_NAMES[method]}: over {len(members)} measurements, "
        if rho is None:
            sentences.append(text + f"too few to relate d90 and {name}.")
        else:
            so_far = " so far" if any(d90.so_far for d90, _ in members) else ""
            text += f"the rank correlation of d90 and {name} is {_signed(rho)}"
            sentences.append(f"{text}{so_far}.")
    return sentences


def full_accuracy(measure: MeasureResults) -> float | None:
    return None if measure.full is None else display.mean(display.accuracies(measure.full))


def full_gap(measure: MeasureResults) -> float | None:
    return None if measure.full is None else display.mean(display.gaps(measure.full))


def _say_table1(results: Results, d90s: list[Found]) -> list[str]:
    summaries = [measure.summary.d90 for measure in results.measures]
    both = [(d90["said"], d90["did"]) for d90 in summaries if {"said", "did"} <= d90.keys()]
    both = [(said, did) for said, did in both if None not in (said.value, did.value)]
    sentences = []
    if both:
        below = sum(said.value < did.value for said, did in both)
        apart = sum(
            said.has_interval and did.has_interval and said.high < did.low for said, did in both
        )
        so_far = " so far" if any(d90.so_far for pair in both for d90 in pair) else ""
        sentences.append(
            f"SAID has the smaller d90 in {below} of {len(both)} measurements{so_far}, in {apart} "
            "of them by intervals that do not overlap."
        )
    ratios = [ratio for *_, ratio in paper_rows(results) if ratio is not None]
    if ratios:
        sentences.append(
            f"Of {len(ratios)} d90s that the paper has too, ours are between "
            f"{min(ratios):.2g} and {max(ratios):.2g} times as large."
        )
    return sentences or _say_each(results, d90s)


_SAY: dict[str, Callable[[Results, list[Found]], list[str]]] = {
    "table1": _say_table1,
    "figure2": lambda _, d90s: _say_change(d90s, lambda m: m.x, _at_step),
    "figure3": lambda _, d90s: _say_change(d90s, lambda m: m.facts.D, _for_model),
    "figure4": lambda _, d90s: _say_relation(d90s, full_accuracy, "the accuracy of the full run"),
    "figure5": lambda _, d90s: _say_relation(
        d90s, full_gap, "the relative generalization gap of the full run"
    ),
}


def paper_rows(results: Results) -> list[tuple[MeasureResults, str, int, D90, float | None]]:
    """(measure, method, the paper's d90, ours, ours over the paper's or None) where both are."""
    rows = []
    for measure in results.measures:
        for method, theirs in display.paper_d90(measure.settings).items():
            ours = measure.summary.d90.get(method)
            if ours is not None:
                known = ours.value is not None and math.isfinite(ours.value)
                rows.append((measure, method, theirs, ours, ours.value / theirs if known else None))
    return rows
