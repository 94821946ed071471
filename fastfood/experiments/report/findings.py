"""The report of a study as blocks: its words, figures and tables, made from its results alone."""

import math

from . import display
from .display import STATES
from .headline import all_d90, full_accuracy, full_gap, headline, paper_rows
from .pages import Code, Figure, Folded, Heading, Items, Table, Text

PAPER = "Aghajanyan, Gupta and Zettlemoyer, ACL 2021, arXiv 2012.13255"
OPEN_ROWS = 40  # tables of points are folded where the study has more rows than this
CAPTIONS = {
    "figure1": "Test score against the number of trained parameters: the mean over seeds with "
    "their range, full fine-tuning, its 90 % line and the majority class. Circles mark d90, the "
    "bars below its 95 % interval; an arrow says that the interval goes on beyond the tested d.",
    "figure2": "d90 against the pre-training step, with 95 % intervals; filled arrows are d90s "
    "beyond the tested d.",
    "figure3": "d90 against the number of parameters of the model, with 95 % intervals; filled "
    "arrows are d90s beyond the tested d.",
    "figure4": "Test accuracy of full fine-tuning (range of its seeds) against d90 (95 % "
    "interval); thin lines join the steps of a pre-training.",
    "figure5": "Relative generalization gap, (train - test) / (1 - test) in accuracies, against "
    "d90 (95 % interval): filled marks are full fine-tuning (range of its seeds), hollow ones the "
    "method at its d90. Thin lines join the steps of a pre-training.",
    "table1": "d90 of each measurement with its 95 % interval, and the paper's where it has the "
    "model and the task.",
}


def report_blocks(results: dict) -> list:
    """The report: what was found, figures, d90s, data, points, settings, cost and versions."""
    blocks = [Heading(1, results["title"])]
    blocks += [Text(sentence, lead=True) for sentence in headline(results)]
    blocks += [Text(results["note"])] if results.get("note") else []
    several = len(results["measures"]) > 1
    own = [results["kind"]] if results["kind"] not in ("d90", "figure1") else []
    blocks += [Figure(stem, CAPTIONS[stem]) for stem in own]
    blocks.append(Figure("figure1", CAPTIONS["figure1"], wide=several))
    blocks += [Heading(2, "d90"), *_d90_tables(results)]
    if results["kind"] in ("figure4", "figure5"):
        blocks += [Heading(2, "Full fine-tuning and d90"), _accuracy_table(results)]
    blocks += [Heading(2, "Data"), *_data(results)]
    blocks += [Heading(2, "Points"), *_points(results)]
    blocks += [Heading(2, "Settings"), *_settings(results)]
    blocks += [Heading(2, "Cost"), *_cost(results)]
    blocks += [Heading(2, "Made with"), *_environment(results)]
    return blocks


# d90 and what stands beside it


def _d90_tables(results: dict) -> list:
    rows = []
    for measure, method, d90 in all_d90(results):
        size, value = measure["facts"]["D"], d90["value"]
        measured = value is not None and math.isfinite(value)
        rows.append(
            [
                measure["label"],
                display.METHOD_NAMES[method],
                display.typeset(d90["text"]),
                f"{100 * value / size:.2g} %" if measured else "–",
                f"{size:,}",
                display.percent(measure["summary"]["full"]),
                display.percent(d90["line"]),
                display.percent(measure["facts"]["majority"]),
            ]
        )
    header = ["measurement", "method", "d90 [95 % interval]", "of D", "D", "full", "90 % line"]
    blocks = [Table([*header, "majority"], rows, "llrrrrrr")] if rows else [Text("None yet.")]
    remarks = [
        f"{measure['label']}: {remark}" if len(results["measures"]) > 1 else remark
        for measure in results["measures"]
        for remark in measure["summary"]["remarks"]
    ]
    remarks += _rate_remarks(results)
    blocks += [Items(remarks)] if remarks else []
    return blocks + _paper_table(results)


def _rate_remarks(results: dict) -> list[str]:
    """Remarks on methods whose best rate was often the first or the last of those tried."""
    edges = {}
    for measure in results["measures"]:
        for point in measure["points"]:
            edges.setdefault(point["method"], []).append(_edge(point))
    return [
        f"{display.METHOD_NAMES[method]}: the {side} rate tried was best at "
        f"{sides.count(side)} of {len(sides)} points; a better one may lie beyond it"
        for method, sides in edges.items()
        for side in ("lowest", "highest")
        if side in sides
    ]


def _edge(point: dict) -> str | None:
    """Whether the chosen rate lies at an end of those tried; None too where only one was."""
    rates = point["rates"]
    if len(rates) == 1 or point["learning_rate"] not in (rates[0], rates[-1]):
        return None
    return "lowest" if point["learning_rate"] == rates[0] else "highest"


def _paper_table(results: dict) -> list:
    rows = [
        [
            measure["label"],
            display.paper_model(measure["settings"]),
            display.METHOD_NAMES[method],
            f"{theirs:,}",
            display.typeset(ours["text"]),
            "–" if ratio is None else f"{ratio:.2g}",
        ]
        for measure, method, theirs, ours, ratio in paper_rows(results)
    ]
    if not rows:
        return []
    header = ["measurement", "the paper's model", "method", "paper", "ours", "ours / paper"]
    note = (
        f"The paper's d90s are those of its Table 1 ({PAPER}). Models are matched by name, cased "
        "or uncased; the paper's steps, rates and values of d may differ from those below."
    )
    return [Heading(3, "Beside the paper"), Table(header, rows, "lllrrr"), Text(note)]


def _accuracy_table(results: dict) -> Table:
    rows = []
    for measure, method, d90 in all_d90(results):
        own = [p for p in measure["points"] if (p["method"], p["d"]) == (method, d90["value"])]
        at_d90 = display.mean(display.gaps(own[0])) if own else None
        rows.append(
            [
                measure["label"],
                display.METHOD_NAMES[method],
                display.typeset(d90["text"]),
                display.percent(full_accuracy(measure)),
                *("–" if gap is None else f"{gap:.3f}" for gap in (full_gap(measure), at_d90)),
            ]
        )
    header = ["measurement", "method", "d90", "full, test accuracy", "full, gap", "gap at d90"]
    return Table(header, rows, "llrrrr")


# data, points, settings, cost


def _data(results: dict) -> list:
    rows, notes = {}, {}
    for measure in results["measures"]:
        settings, facts = measure["settings"], measure["facts"]
        sizes = [facts["sizes"].get(part) for part in ("train", "validation", "test")]
        overlap = facts.get("overlap")
        rows[settings["task"], facts["data_hash"]] = [
            settings["task"],
            *("–" if size is None else f"{size:,}" for size in sizes),
            display.percent(facts["majority"]),
            "–" if overlap is None else f"{overlap:,}",
            facts["data_hash"],
        ]
        notes |= {
            f"{settings['task']}, {part}: {text}": None for part, text in facts["splits"].items()
        }
        notes |= {f"{settings['task']}: {note}": None for note in facts.get("contamination", [])}
    header = ["task", "train", "validation", "test", "majority", "test rows in train", "hash"]
    return [Table(header, list(rows.values()), "lrrrrrl"), Items(list(notes))]


def _points(results: dict) -> list:
    total = sum(len(measure["points"]) for measure in results["measures"])
    blocks = []
    order = list(display.METHOD_NAMES)
    for measure in results["measures"]:
        points = sorted(measure["points"], key=lambda p: (order.index(p["method"]), p["d"]))
        table = Table(
            [
                "method",
                "size",
                "d",
                "trained",
                "test",
                "seeds",
                "± sd",
                "validation",
                "rate",
                "",
                "s / run",
            ],
            [_point_row(point) for point in points],
            "lrrrrrrrrlr",
        )
        title = f"{measure['label']}: {len(points)} points"
        inner = [table] if points else [Text("No point yet.")]
        blocks.append(Folded(title, inner, opened=total <= OPEN_ROWS))
    note = (
        "d counts what the method trains (a PEFT baseline's head only where the settings say "
        "inside), trained counts all. Rates are chosen on validation; test is the mean over seeds."
    )
    return [Text(note), *blocks]


def _point_row(point: dict) -> list[str]:
    edge = _edge(point)
    seconds = [second for second in point["seconds"] if second is not None]
    return [
        display.METHOD_NAMES[point["method"]],
        "" if point["size"] is None else f"{point['size']}",
        f"{point['d']:,}",
        "–" if point["trained"] is None else f"{point['trained']:,}",
        display.percent(point["mean"]),
        f"{len(point['test'])}",
        display.spread(point["test"]),
        display.percent(point["validation"]),
        f"{point['learning_rate']:g}",
        f"{edge} tried" if edge else "only one tried" if len(point["rates"]) == 1 else "",
        f"{display.mean(seconds):.1f}" if seconds else "–",
    ]


def _settings(results: dict) -> list:
    every = [measure["settings"] for measure in results["measures"]]
    same = [name for name in every[0] if all(s.get(name) == every[0][name] for s in every)]
    differing = [name for name in every[0] if name not in same]
    blocks = [Table(["setting", "value"], [[n, _value(every[0][n])] for n in same], "ll")]
    if differing:
        rows = [
            [m["label"], *(_value(m["settings"][n]) for n in differing)]
            for m in results["measures"]
        ]
        blocks.append(Table(["measurement", *differing], rows, "l" * (1 + len(differing))))
    return blocks


def _value(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _cost(results: dict) -> list:
    rows = []
    for place in [*results["measures"], None]:
        progress = results["progress"] if place is None else place["progress"]
        mean = progress["seconds"] / max(1, progress["timed"])
        rows.append(
            [
                "all" if place is None else place["label"],
                f"{progress['asked']:,}",
                *(f"{progress[name]:,}" for name in STATES),
                display.duration(mean) if progress["timed"] else "–",
                f"{progress['seconds'] / 3600:.2f}",
            ]
        )
    header = ["measurement", "trials", *STATES, "mean run", "hours"]
    blocks = [Table(header, rows[:-1] if len(rows) == 2 else rows, "l" + "r" * (len(header) - 1))]
    errors = {}
    for measure in results["measures"]:
        for error, count in measure["progress"]["errors"].items():
            errors[error] = errors.get(error, 0) + count
    listed = [
        f"{count} times: {error}" for error, count in sorted(errors.items(), key=lambda e: -e[1])
    ]
    note = (
        "Failed, diverged and pruned runs have no score and count for no rate; their time is in "
        "the hours."
    )
    return [*blocks, Text(note), *([Items(listed[:10])] if listed else [])]


def _environment(results: dict) -> list:
    rows = [["study", f"{results['name']}, {results['kind']}, scale {results['scale']}"]]
    rows.append(["record", f"{results['study']} in {results['storage'] or 'trials.db'}"])
    rows += [["commit", results["git_commit"] or "not from a source tree"]]
    for place in results["environments"]:
        told = {**place.get("hardware", {}), **place.get("versions", {})}
        listed = ", ".join(f"{name} {value}" for name, value in told.items())
        rows.append([f"{place['trials']:,} trials", listed])
    rows.append(["report written", results["written"]])
    return [Table(["", ""], rows, "ll"), Text("Made by:"), Code(results["command"])]
