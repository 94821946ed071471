"""The report of a study as blocks: its words, figures and tables, made from its results alone."""

import math

from ..settings.trial import TrialState
from ..trials.curves import Point
from . import display
from .headline import all_d90, full_accuracy, full_gap, headline, paper_rows, partial_points
from .pages import Block, Code, Figure, Folded, Heading, Items, Table, Text
from .results import Results

PAPER = "Aghajanyan, Gupta and Zettlemoyer, ACL 2021, arXiv 2012.13255"
OPEN_ROWS = 40  # tables of points are folded where the study has more rows than this
MOST_ERRORS = 10  # that are listed, the most frequent first
NO_POINTS: list[Block] = [Text("No point yet.")]
CAPTIONS = {
    "figure1": "{} against the number of trained parameters: the mean over seeds with their range, "
    "full fine-tuning, {}. Circles mark d90, the bars below its 95 % interval; an arrow says that "
    "the interval goes on beyond the tested d.",
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


# what a caption adds where runs are to come
HOLLOW_POINTS = " Hollow points lack seeds or learning rates so far."
HALF_FILLED_D90S = " Half-filled d90s may change, for runs are missing."


def report_blocks(results: Results) -> list[Block]:
    """The report: what was found, figures, d90s, data, points, settings, cost and versions."""
    blocks: list[Block] = [Heading(1, results.title)]
    blocks += [Text(sentence, lead=True) for sentence in headline(results)]
    blocks += [Text(results.note)] if results.note else []
    if results.kind not in ("d90", "figure1"):
        blocks.append(Figure(results.kind, _caption(results, results.kind)))
    several = len(results.measures) > 1
    blocks.append(Figure("figure1", _caption(results, "figure1"), wide=several))
    blocks += [Heading(2, "d90"), *_d90_tables(results)]
    if results.kind in ("figure4", "figure5"):
        blocks += [Heading(2, "Full fine-tuning and d90"), _accuracy_table(results)]
    blocks += [Heading(2, "Data"), *_data(results)]
    blocks += [Heading(2, "Points"), *_points(results)]
    blocks += [Heading(2, "Settings"), *_settings(results)]
    blocks += [Heading(2, "Cost"), *_cost(results)]
    blocks += [Heading(2, "Made with"), *_made_with(results)]
    return blocks


def _caption(results: Results, stem: str) -> str:
    """What a figure shows, and how it marks what is not whole where there is such."""
    if stem == "figure1":
        drawn = CAPTIONS[stem].format(_scores(results), _levels(results))
        return drawn + (HOLLOW_POINTS if partial_points(results) else "")
    so_far = any(d90.so_far for _, _, d90 in all_d90(results))
    return CAPTIONS[stem] + (HALF_FILLED_D90S if so_far else "")


def _scores(results: Results) -> str:
    """What the curves of Figure 1 are of."""
    relative = {measure.metric.relative for measure in results.measures}
    if relative == {True}:
        return "Share of full fine-tuning's gain in the test score over the base model"
    either = "Test score, or the share of full fine-tuning's gain in it,"
    return either if True in relative else "Test score"


def _levels(results: Results) -> str:
    """The levels of Figure 1 beside full fine-tuning."""
    classes = "its 90 % line and the majority class"
    texts = "90 % of its gain over the base model, and the base model"
    writing = {measure.settings.writes for measure in results.measures}
    if writing == {True}:
        return texts
    return f"{classes}; of models that write, {texts}" if True in writing else classes


# d90 and what stands beside it


def _d90_tables(results: Results) -> list[Block]:
    rows = []
    for measure, method, d90 in all_d90(results):
        size = measure.facts.D
        measured = d90.value is not None and math.isfinite(d90.value)
        rows.append(
            [
                measure.label,
                display.METHOD_NAMES[method],
                display.typeset(d90.text),
                f"{100 * d90.value / size:.2g} %" if measured else "–",
                f"{size:,}",
                display.percent(measure.summary.full),
                display.percent(d90.line),
                display.percent(measure.trivial),
            ]
        )
    header = ["measurement", "method", "d90 [95 % interval]", "of D", "D", "full", "90 % line"]
    blocks: list[Block] = [Text("None yet.")]
    if rows:
        blocks = [Table([*header, "to beat"], rows, "llrrrrrr")]
    remarks = [
        f"{measure.label}: {remark}" if len(results.measures) > 1 else remark
        for measure in results.measures
        for remark in display.remarks(measure)
    ]
    remarks += _rate_remarks(results)
    blocks += [Items(remarks)] if remarks else []
    return blocks + _paper_table(results)


def _rate_remarks(results: Results) -> list[str]:
    """Remarks on methods whose best rate was often the first or the last of those tried. Only whole
    points count: the others have rates to come."""
    edges: dict[str, list[str | None]] = {}
    for measure in results.measures:
        for point in measure.points:
            if point.whole:
                edges.setdefault(point.method, []).append(_edge(point))
    return [
        f"{display.METHOD_NAMES[method]}: the {side} rate tried was best at "
        f"{sides.count(side)} of {len(sides)} points; a better one may lie beyond it"
        for method, sides in edges.items()
        for side in ("lowest", "highest")
        if side in sides
    ]


def _edge(point: Point) -> str | None:
    """Whether the chosen rate lies at an end of those tried; None too where only one was."""
    lowest, highest = point.rates[0], point.rates[-1]
    if lowest == highest or point.learning_rate not in (lowest, highest):
        return None
    return "lowest" if point.learning_rate == lowest else "highest"


def _paper_table(results: Results) -> list[Block]:
    rows = [
        [
            measure.label,
            display.paper_model(measure.settings),
            display.METHOD_NAMES[method],
            f"{theirs:,}",
            display.typeset(ours.text),
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


def _accuracy_table(results: Results) -> Table:
    rows = []
    for measure, method, d90 in all_d90(results):
        point = measure.point(method, d90.value)
        at_d90 = display.mean(display.gaps(point)) if point else None
        rows.append(
            [
                measure.label,
                display.METHOD_NAMES[method],
                display.typeset(d90.text),
                display.percent(full_accuracy(measure)),
                *("–" if gap is None else f"{gap:.3f}" for gap in (full_gap(measure), at_d90)),
            ]
        )
    header = ["measurement", "method", "d90", "full, test accuracy", "full, gap", "gap at d90"]
    return Table(header, rows, "llrrrr")


# data, points, settings, cost


def _data(results: Results) -> list[Block]:
    rows = {}
    notes: dict[str, None] = {}  # in order, each once
    for measure in results.measures:
        facts, task = measure.facts, measure.settings.task
        sizes = [facts.sizes.get(part) for part in ("train", "validation", "test")]
        rows[task, facts.data_hash] = [
            task,
            *("–" if size is None else f"{size:,}" for size in sizes),
            display.percent(facts.majority),
            f"{facts.overlap:,}",
            facts.data_hash,
        ]
        notes |= {f"{task}, {part}: {text}": None for part, text in facts.splits.items()}
        notes |= {f"{task}: {note}": None for note in facts.contamination}
    header = ["task", "train", "validation", "test", "majority", "test rows in train", "hash"]
    return [Table(header, list(rows.values()), "lrrrrrl"), Items(list(notes))]


def _points(results: Results) -> list[Block]:
    total = sum(len(measure.points) for measure in results.measures)
    header = ["method", "size", "d", "trained", "test", "seeds", "± sd", "validation", "rate", ""]
    order = list(display.METHOD_NAMES)
    blocks = []
    for measure in results.measures:
        points = sorted(measure.points, key=lambda p: (order.index(p.method), p.d))
        rows = [_point_row(point) for point in points]
        inner = NO_POINTS
        if rows:
            inner = [Table([*header, "s / run"], rows, "lrrrrrrrrlr")]
        title = f"{measure.label}: {len(points)} points"
        blocks.append(Folded(title, inner, opened=total <= OPEN_ROWS))
    note = (
        "d counts what the method trains (a PEFT baseline's head only where the settings say "
        "inside), trained counts all. Rates are chosen on validation; test is the mean over seeds."
    )
    if any(measure.metric.relative for measure in results.measures):
        note += " Of the metrics loss and reward they are shares of full fine-tuning's gain."
    if partial_points(results):
        note += (
            ' "2 of 3" seeds: runs are to come that could change the point. Its rate is the best '
            "so far, over the seeds that all rates with a score share."
        )
    return [Text(note), *blocks]


def _point_row(point: Point) -> list[str]:
    edge, trains = _edge(point), point.method != "base"
    seconds = [second for second in point.seconds if second is not None]
    return [
        display.METHOD_NAMES[point.method],
        "" if point.size is None else f"{point.size}",
        f"{point.d:,}",
        "–" if point.trained is None else f"{point.trained:,}",
        display.percent(point.mean),
        display.seeds(point),
        display.spread(point.test),
        display.percent(point.validation),
        f"{point.learning_rate:g}" if trains else "–",
        f"{edge} tried" if edge else "only one tried" if trains and len(point.rates) == 1 else "",
        f"{display.mean(seconds):.1f}" if seconds else "–",
    ]


def _settings(results: Results) -> list[Block]:
    settings = [measure.settings.model_dump() for measure in results.measures]
    first = settings[0]
    same = [name for name in first if all(other.get(name) == first[name] for other in settings)]
    differing = [name for name in first if name not in same]
    rows = [[name, _in_words(first[name])] for name in same]
    blocks: list[Block] = [Table(["setting", "value"], rows, "ll")]
    if differing:
        rows = [
            [measure.label, *(_in_words(values[name]) for name in differing)]
            for measure, values in zip(results.measures, settings, strict=True)
        ]
        blocks.append(Table(["measurement", *differing], rows, "l" * (1 + len(differing))))
    return blocks


def _in_words(value: object) -> str:
    """A value of a setting as a person reads it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _cost(results: Results) -> list[Block]:
    rows = []
    labelled = [(measure.label, measure.progress) for measure in results.measures]
    for label, progress in [*labelled, *([("all", results.progress)] if labelled[1:] else [])]:
        mean = progress.seconds / max(1, progress.timed)
        rows.append(
            [
                label,
                f"{progress.asked:,}",
                *(f"{progress.count(state):,}" for state in TrialState),
                display.duration(mean) if progress.timed else "–",
                f"{progress.seconds / 3600:.2f}",
            ]
        )
    states = [state.value for state in TrialState]
    header = ["measurement", "trials", *states, "mean run", "hours"]
    note = (
        "Failed, diverged and pruned runs have no score and count for no rate; their time is in "
        "the hours."
    )
    errors = sorted(results.progress.errors.items(), key=lambda error: -error[1])
    listed = [f"{count} times: {error}" for error, count in errors[:MOST_ERRORS]]
    table = Table(header, rows, "l" + "r" * (len(header) - 1))
    return [table, Text(note), *([Items(listed)] if listed else [])]


def _hardware(hardware: dict) -> str:
    """What trials ran on, the GPUs first: "2 × NVIDIA H200 (140 GiB, driver 580, CUDA 13.0); a CPU,
    16 cores; system Linux". Environments are of any version of this program, so none of it need be
    there."""
    gpus = [_gpu(gpu) for gpu in hardware.get("gpus", [])]
    cpu = [hardware["cpu"]] if "cpu" in hardware else []
    cpu += [f"{hardware['cores']} cores"] if "cores" in hardware else []
    rest = {name: hardware[name] for name in hardware if name not in ("gpus", "cpu", "cores")}
    return "; ".join(filter(None, [*gpus, ", ".join(cpu), _named(rest)]))


def _gpu(gpu: dict) -> str:
    count = gpu.get("count", 1)
    known = {
        f"{gpu.get('memory_gib')} GiB": gpu.get("memory_gib"),
        f"driver {gpu.get('driver')}": gpu.get("driver"),
        f"CUDA {gpu.get('cuda')}": gpu.get("cuda"),
    }
    details = ", ".join(text for text, value in known.items() if value)
    name = f"{count} × {gpu['name']}" if count > 1 else gpu["name"]
    return f"{name} ({details})" if details else name


def _named(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _made_with(results: Results) -> list[Block]:
    """What the trials ran on and with, and how the study can be made again."""
    rows = []
    for environment in results.environments:
        hardware = _hardware(environment.get("hardware", {}))
        rows.append([f"{environment['trials']:,} trials on", hardware or "–"])
        rows.append(["with", _named(environment.get("versions", {})) or "–"])
    rows += [
        ["study", f"{results.name}, {results.kind}, scale {results.scale}"],
        ["record", f"{results.study} in {results.storage or 'trials.db'}"],
        ["commit", results.git_commit or "not from a source tree"],
        ["report written", results.written],
    ]
    return [Table(["", ""], rows, "ll"), Text("Made by:"), Code(results.command)]
