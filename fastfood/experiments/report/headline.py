"""The result of a study in words: what its headline says, and the numbers that it rests on."""

import math

from ..settings.measurement import model_name
from . import display


def headline(results: dict) -> list[str]:
    """The result in one or a few sentences, and how much of the study they rest on."""
    progress = results["progress"]
    sentences = []
    found = all_d90(results)
    if not progress["complete"]:
        sentences.append("Nothing is measured yet.")
    elif not found:
        sentences.append("No d90 yet.")
    else:
        kind = results["kind"]
        say = _SAY.get(kind, _say_each)
        if len(results["measures"]) == 1:
            say = _say_each
        sentences += say(results, found)
    asked, complete = progress["asked"], progress["complete"]
    if progress["missing"]:
        state = "running" if progress["running"] else "not finished"
        sentences.append(f"This study is {state}: {complete:,} of {asked:,} trials are done.")
    return sentences


def all_d90(results: dict) -> list[tuple[dict, str, dict]]:
    """(measure, method, d90) wherever there is one, also a censored one."""
    return [
        (measure, method, found)
        for measure in results["measures"]
        for method, found in measure["summary"]["d90"].items()
    ]


def _say_each(results: dict, found: list) -> list[str]:
    sentences = []
    for measure in results["measures"][:3]:
        own = [(method, d90) for place, method, d90 in found if place is measure]
        if not own:
            continue
        full = display.percent(measure["summary"]["full"])
        listed = ", ".join(
            f"{display.METHOD_NAMES[method]} {display.typeset(d90['text'])}" for method, d90 in own
        )
        sentences.append(
            f"{measure['label']}: full fine-tuning of D = {measure['facts']['D']:,} reaches "
            f"{full}; d90, the trained parameters that reach 90 % of it: {listed}."
        )
    more = len(results["measures"]) - 3
    return sentences + ([f"{more} more measurements are below."] if more > 0 else [])


def _say_change(results: dict, found: list, place, name) -> list[str]:
    """For each task and method: d90 at the least and at the largest place, and whether the
    intervals tell them apart."""
    sentences = []
    series = {}
    for measure, method, d90 in found:
        if place(measure) is not None and d90["value"] is not None:
            key = display.task_name(measure["settings"]), method
            series.setdefault(key, []).append((place(measure), measure, d90))
    for (task, method), members in series.items():
        members.sort(key=lambda member: member[0])
        (x0, first, a), (x1, last, b) = members[0], members[-1]
        if x0 == x1:
            continue
        verdict = "the intervals overlap, so no change is shown"
        if b["high"] < a["low"]:
            verdict = "it falls, and the intervals do not overlap"
        elif b["low"] > a["high"]:
            verdict = "it rises, and the intervals do not overlap"
        sentences.append(
            f"{display.METHOD_NAMES[method]} on {task}: d90 is {display.typeset(a['text'])} "
            f"{name(first)} and {display.typeset(b['text'])} {name(last)}: "
            f"{verdict}{_rank_text([(m[0], m[2]['value']) for m in members])}."
        )
    return sentences or ["No series of d90s yet."]


def _at_step(measure: dict) -> str:
    return f"at step {measure['x']:,g}"


def _for_model(measure: dict) -> str:
    size = display.short(measure["facts"]["D"])
    return f"for {model_name(measure['settings'])} (D = {size})"


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
    from scipy.stats import rankdata

    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    x, y = (rankdata(side) for side in zip(*pairs, strict=True))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def _say_relation(results: dict, found: list, value, name: str) -> list[str]:
    """The rank correlation between d90 and a value of the full run, by method."""
    sentences = []
    for method in dict.fromkeys(method for _, method, _ in found):
        pairs = [
            (d90["value"], value(measure))
            for measure, own, d90 in found
            if own == method and d90["value"] is not None and value(measure) is not None
        ]
        rho = rank_correlation(pairs)
        text = f"{display.METHOD_NAMES[method]}: over {len(pairs)} measurements, "
        if rho is None:
            sentences.append(text + f"too few to relate d90 and {name}.")
        else:
            sentences.append(text + f"the rank correlation of d90 and {name} is {_signed(rho)}.")
    return sentences


def full_accuracy(measure: dict) -> float | None:
    full = display.full_point(measure)
    return full and display.mean(display.accuracies(full))


def full_gap(measure: dict) -> float | None:
    full = display.full_point(measure)
    return full and display.mean(display.gaps(full))


def _say_table1(results: dict, found: list) -> list[str]:
    both = [
        (measure["summary"]["d90"]["said"], measure["summary"]["d90"]["did"])
        for measure in results["measures"]
        if {"said", "did"} <= set(measure["summary"]["d90"])
        and None not in (measure["summary"]["d90"][m]["value"] for m in ("said", "did"))
    ]
    sentences = []
    if both:
        below = sum(said["value"] < did["value"] for said, did in both)
        apart = sum(said["high"] < did["low"] for said, did in both)
        sentences.append(
            f"SAID has the smaller d90 in {below} of {len(both)} measurements, in {apart} of them "
            "by intervals that do not overlap."
        )
    ratios = [ratio for *_, ratio in paper_rows(results) if ratio is not None]
    if ratios:
        sentences.append(
            f"Of {len(ratios)} d90s that the paper has too, ours are between "
            f"{min(ratios):.2g} and {max(ratios):.2g} times as large."
        )
    return sentences or _say_each(results, found)


_SAY = {
    "table1": _say_table1,
    "figure2": lambda r, f: _say_change(r, f, lambda m: m["x"], _at_step),
    "figure3": lambda r, f: _say_change(r, f, lambda m: m["facts"]["D"], _for_model),
    "figure4": lambda r, f: _say_relation(r, f, full_accuracy, "the accuracy of the full run"),
    "figure5": lambda r, f: _say_relation(
        r, f, full_gap, "the relative generalization gap of the full run"
    ),
}


def paper_rows(results: dict) -> list[tuple[dict, str, int, dict, float | None]]:
    """(measure, method, the paper's d90, ours, ours over the paper's or None) where both are."""
    rows = []
    for measure in results["measures"]:
        for method, theirs in display.paper_d90(measure["settings"]).items():
            ours = measure["summary"]["d90"].get(method)
            if ours is not None:
                known = ours["value"] is not None and math.isfinite(ours["value"])
                rows.append(
                    (measure, method, theirs, ours, ours["value"] / theirs if known else None)
                )
    return rows
