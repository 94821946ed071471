"""All figures of a study, as PNG and SVG: Figure 1 with its curves, and what several measures show
together: d90 along pre-training (2), against the model's size (3), accuracy and the generalization
gap against d90 (4, 5), and our d90s beside the paper's (Table 1)."""

import itertools
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import whole
from ..trials.curves import Point
from . import display, figure_curves
from .figure_curves import STYLES, Style
from .results import MeasureResults, Results

DPI = 300
TASK_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPE: Any = {  # matplotlib types each key of its own
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "fastfood",  # the same results make the same file
}
HALF = {  # a d90 that may change
    "fillstyle": "bottom",
    "markerfacecoloralt": "white",
    "markeredgewidth": 1,
    "markersize": 6,
}
HOLLOW: Style = {"markerfacecolor": "white", "markeredgewidth": 1.2, "markersize": 6}
THIN: Style = {"linewidth": 0.7, "alpha": 0.7, "markersize": 0, "zorder": 1}
# offsets in points and alignment of a label, the nearest places around its point first
LABEL_PLACES = [
    (side * across, up, align)
    for distance in (0, 9, 18, 27, 36, 48, 60)
    for up in dict.fromkeys((distance, -distance))
    for across, side, align in (
        (7 if distance < 8 else 4, 1, "left"),
        (7 if distance < 8 else 4, -1, "right"),
        *([(0, 1, "center")] if distance else []),
    )
]
LABEL = {
    "fontsize": 7.5,
    "color": "0.2",
    "arrowprops": {"arrowstyle": "-", "lw": 0.5, "color": "0.55", "shrinkA": 0, "shrinkB": 3},
}
GAP_LABEL = "relative generalization gap,\n(train − test) / (1 − test accuracy)"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws the figures of a study into `folder` and returns their paths, PNG before SVG.

    Each of them is `figure1`, the curves of all measures; a study of another kind has its own
    figure before it. `results` is what `writer.gather` returns. A file is replaced in one step.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kind = results.kind
    drawings = {kind: _DRAWINGS[kind]} if kind in _DRAWINGS else {}
    drawings["figure1"] = figure_curves.draw
    paths = []
    with pyplot.rc_context(SHAPE):
        for name, make in drawings.items():
            figure = make(pyplot, results)
            try:
                figure.draw_without_rendering()
                figure.set_layout_engine("none")  # laid out once for both files
                paths += [_save(figure, Path(folder, f"{name}.{form}")) for form in ("png", "svg")]
            finally:
                pyplot.close(figure)
    return paths


def _save(figure, path: Path) -> Path:
    form = path.suffix[1:]
    options = (
        {"metadata": {"Date": None}}
        if form == "svg"
        else {"dpi": DPI, "pil_kwargs": {"compress_level": 4}}
    )
    with whole(path) as partial:
        figure.savefig(partial, format=form, **options)
    return path


# what the figures of several measures share


def _series(results: Results) -> dict[tuple[str, str], list[MeasureResults]]:
    """The measures that have a d90 to draw, by (task, method)."""
    measures = results.measures
    tasks = dict.fromkeys(measure.settings.task for measure in measures)
    methods = dict.fromkeys(m for measure in measures for m in measure.settings.methods)
    series = {
        (task, method): [
            measure
            for measure in measures
            if measure.settings.task == task and display.d90_mark(measure, method)
        ]
        for task in tasks
        for method in methods
    }
    return {key: members for key, members in series.items() if members}


def _styles(series: dict) -> dict[tuple[str, str], Style]:
    """A style for each series: the method's own, in the task's color when there are several."""
    tasks = list(dict.fromkeys(task for task, _ in series))
    styles = {}
    for task, method in series:
        style = {**STYLES[method], "markeredgewidth": 0, "markersize": 5.5}
        name = display.METHOD_NAMES[method]
        if len(tasks) > 1:
            style["color"] = TASK_COLORS[tasks.index(task) % len(TASK_COLORS)]
            name = f"{display.literal(display.task_name(task))}, {name}"
        styles[task, method] = style | {"label": name}
    return styles


def _axes(pyplot, results: Results, x: str, y: str, size: tuple[float, float] = (5.8, 4.2)):
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    title = "\n".join(textwrap.wrap(display.literal(results.title), 80))
    axes.set_title(title, loc="left", fontsize=9, pad=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _say_nothing_yet(axes, what: str) -> None:
    axes.text(0.5, 0.5, f"no {what} yet", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(figure, results: Results, styles: dict, lines: bool, *extra: dict) -> None:
    """One legend below the axes: the series, the `extra` styles, and how d90s so far are drawn."""
    from matplotlib.lines import Line2D

    dropped = {} if lines else {"linestyle": "none"}
    if any(d90.so_far for measure in results.measures for d90 in measure.summary.d90.values()):
        extra += ({"color": "0.3", "marker": "o", "label": "so far: runs are missing"} | HALF,)
    handles = [Line2D([], [], **(style | dropped)) for style in styles.values()]
    handles += [Line2D([], [], linestyle="none", **style) for style in extra]
    options = {"frameon": False, "fontsize": 8, "handlelength": 2.8 if lines else 1.2}
    figure.legend(handles=handles, loc="outside lower center", ncols=4, **options)


def _log_ticks(axis) -> None:
    """Plain numbers on a log axis; between the decades only where it spans less than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    narrow = math.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: display.short(value)))
    axis.set_minor_formatter(NullFormatter())


def _draw_d90(axes, other: float, mark: display.Mark, style: dict, vertical: bool) -> None:
    """A d90 at `other` of the other axis: its interval as a bar, which ends in an open arrow where
    it goes on, and its marker, a filled arrow where the tested d cut it off; half-filled where the
    d90 may change."""

    def draw(values: list[float], *form, **options) -> None:
        across = [other] * len(values)
        axes.plot(*((across, values) if vertical else (values, across)), *form, **options)

    arrows = {"above": "^" if vertical else ">", "below": "v" if vertical else "<"}
    look = {"color": style["color"], "zorder": 2}
    draw([mark.low, mark.high], lw=1.4, alpha=0.6, solid_capstyle="butt", **look)
    if mark.open_high and mark.censored != "above":
        draw([mark.high], arrows["above"], markersize=5, mfc="white", **look)
    look |= {"markersize": style["markersize"], "markeredgewidth": 0, "zorder": 3}
    look |= HALF if mark.so_far else {}
    draw([mark.value], arrows.get(mark.censored, style["marker"]), **look)


def _along(start: tuple, end: tuple) -> list[tuple]:
    """Points on the line between two points with positive x, as it runs on a log axis of x."""
    (x0, y0), (x1, y1) = start, end
    return [(x0 * (x1 / x0) ** (i / 12), y0 + (y1 - y0) * i / 12) for i in range(13)]


def _place_labels(axes, labels: list[tuple], taken: list[tuple]) -> None:
    """Writes each (x, y, text) at the first place around its point that lies inside the axes and
    covers neither another text nor a point of `taken`; fixes the figure's layout."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    point, inside = figure.dpi / 72, axes.get_window_extent()
    boxes: list[Bbox] = []
    dots = axes.transData.transform(taken)
    for x, y, text in sorted(labels):
        label = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", **LABEL)
        size = Text.get_window_extent(label)
        width, height = size.width + 3 * point, size.height + 3 * point
        x0, y0 = axes.transData.transform((x, y))
        faults, tried = [], []
        for across, up, side in LABEL_PLACES:
            left = x0 + across * point - {"left": 0, "center": 0.5, "right": 1}[side] * width
            box = Bbox.from_bounds(left, y0 + up * point - height / 2, width, height)
            covered = sum(box.overlaps(other) for other in boxes)
            covered += box.padded(2 * point).count_contains(dots)
            covered += 3 * (box.x0 < inside.x0 or box.x1 > inside.x1)
            covered += 3 * (box.y0 < inside.y0 or box.y1 > inside.y1)
            faults.append(covered)
            tried.append(box)
            if not covered:
                break
        best = faults.index(min(faults))
        across, up, side = LABEL_PLACES[best]
        label.set(position=(across, up), ha=side, va="center")
        label.arrow_patch.set_visible(up != 0)
        boxes.append(tried[best])


# the figures


def _figure2(pyplot, results: Results):
    """d90 against the pre-training step."""
    series = _series(results)
    styles = _styles(series)
    figure, axes = _axes(pyplot, results, "pre-training step", "$d_{90}$")
    steps = sorted({m.x for m in results.measures if m.x is not None})
    for row, (key, members) in enumerate(series.items()):
        members = sorted((m for m in members if m.x is not None), key=lambda m: m.x)
        marks = [display.d90_mark(measure, key[1]) for measure in members]
        shift = (row - (len(series) - 1) / 2) * 0.008 * (steps[-1] - steps[0] if steps else 0)
        shifted = [measure.x + shift for measure in members]
        values = [mark.value for mark in marks]
        axes.plot(shifted, values, lw=1.5, **(styles[key] | {"markersize": 0}))
        for step, mark in zip(shifted, marks, strict=True):
            _draw_d90(axes, step, mark, styles[key], vertical=True)
    if not any(axes.lines):
        _say_nothing_yet(axes, "d90")
        return figure
    _log_ticks(axes.yaxis)
    if len(steps) > 2 and steps[0] >= 0 and steps[-1] > 20 * max(1, steps[1]):
        linear = max(1, steps[1])
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_xlim(steps[0] - 0.3 * linear, 1.4 * steps[-1])
        if len(steps) <= 8:
            axes.set_xticks(steps, [f"{step:,g}" for step in steps])
            axes.tick_params(axis="x", which="minor", bottom=False)
    _legend(figure, results, styles, lines=True)
    return figure


def _figure3(pyplot, results: Results):
    """d90 against the number of parameters of the model."""
    series = _series(results)
    styles = _styles(series)
    figure, axes = _axes(pyplot, results, "parameters of the model, $D$", "$d_{90}$")
    tops: dict[str, tuple[float, float]] = {}
    taken = []
    for row, (key, members) in enumerate(series.items()):
        for measure in members:
            mark = display.d90_mark(measure, key[1])
            size = measure.facts.D * 1.03 ** (row - (len(series) - 1) / 2)
            _draw_d90(axes, size, mark, styles[key], vertical=True)
            taken += [(y, x) for x, y in _along((mark.low, size), (mark.high, size))]
            taken.append((size, mark.value))
            name = display.literal(measure.settings.model_name)
            tops[name] = max(tops.get(name, (0, 0)), (mark.value, size))
    if not taken:
        _say_nothing_yet(axes, "d90")
        return figure
    axes.margins(0.15, 0.15)
    _log_ticks(axes.xaxis)
    _log_ticks(axes.yaxis)
    _legend(figure, results, styles, lines=False)
    _place_labels(axes, [(x, y, name) for name, (y, x) in tops.items()], taken)
    return figure


def _figure4(pyplot, results: Results):
    """Test accuracy of full fine-tuning against d90."""
    label = "test accuracy of full fine-tuning (%)"
    return _against_d90(
        pyplot, results, label, lambda point: [100 * share for share in display.accuracies(point)]
    )


def _figure5(pyplot, results: Results):
    """The relative generalization gap against d90: of full fine-tuning, and, hollow, of the method
    at its d90."""
    return _against_d90(pyplot, results, GAP_LABEL, display.gaps, at_d90=True)


def _against_d90(
    pyplot,
    results: Results,
    label: str,
    by_seed: Callable[[Point], list[float]],
    at_d90: bool = False,
):
    """A point a measure and method: d90 across; upward `by_seed` of the full run's point, and with
    `at_d90` of the method's point too. The steps of a pre-training are joined in their order."""
    series = _series(results)
    styles = _styles(series)
    figure, axes = _axes(pyplot, results, "$d_{90}$", label)
    labels, taken = [], []
    for row, ((task, method), members) in enumerate(series.items()):
        style, path = styles[task, method], []
        # d90s of a grid coincide; a small shift keeps their marks apart
        shift = 1.025 ** (row - (len(series) - 1) / 2)
        for measure in sorted(members, key=lambda m: (m.x is None, m.x or 0)):
            mark = display.d90_mark(measure, method)
            point = measure.point(method, mark.value)
            mark = mark.shifted(shift)
            full = by_seed(measure.full)
            if full:
                mean = display.mean(full)
                axes.plot([mark.value] * 2, [min(full), max(full)], color=style["color"], lw=1)
                _draw_d90(axes, mean, mark, style, vertical=False)
                taken += _along((mark.low, mean), (mark.high, mean))
                path.append((mark.value, mean, measure))
            values = by_seed(point) if point and at_d90 and mark.censored != "above" else []
            if values:
                hollow = style | HOLLOW | {"linestyle": "none"}
                axes.plot([mark.value], [display.mean(values)], **hollow)
                taken.append((mark.value, display.mean(values)))
        steps = [stop for stop in path if stop[2].x is not None]
        for before, after in itertools.pairwise(steps):
            ends = before[:2], after[:2]
            axes.plot(*zip(*ends, strict=True), **(style | THIN))
            taken += _along(*ends)
        labels += [(x, y, display.literal(m.label)) for x, y, m in path if m.x is None]
        labels += [(x, y, f"step {m.x:,g}") for x, y, m in (steps[:1] + steps[1:][-1:])]
    if not taken:
        _say_nothing_yet(axes, "full run with a d90" if not at_d90 else "scored training rows")
        return figure
    axes.margins(0.15, 0.12)
    _log_ticks(axes.xaxis)
    of_full = {"color": "0.3", "marker": "o", "label": "full fine-tuning", "markersize": 5.5}
    extra = (
        of_full,
        {"color": "0.3", "marker": "o", "label": "the method at its $d_{90}$"} | HOLLOW,
    )
    _legend(figure, results, styles, False, *(extra if at_d90 else ()))
    _place_labels(axes, _once(labels), taken)
    return figure


def _once(labels: list[tuple]) -> list[tuple]:
    """The labels without those whose text stands at the same height already, as those of two
    methods of one measure do."""
    return list({(y, text): (x, y, text) for x, y, text in reversed(labels)}.values())


def _table1(pyplot, results: Results):
    """Our d90s and the paper's, a row a measure."""
    measures = results.measures
    methods = list(dict.fromkeys(m for measure in measures for m in measure.settings.methods))
    size = (5.8, 1.3 + 0.24 * len(measures) * max(2, len(methods)) / 1.5)
    figure, axes = _axes(pyplot, results, "$d_{90}$", "", size)
    compared = False
    for row, measure in enumerate(measures):
        paper = display.paper_d90(measure.settings)
        for number, method in enumerate(methods):
            height = row + (number - (len(methods) - 1) / 2) * 0.5 / len(methods)
            mark = display.d90_mark(measure, method)
            style = {**STYLES[method], "markersize": 5.5}
            if mark is not None:
                _draw_d90(axes, height, mark, style, vertical=False)
            if method in paper:
                axes.plot([paper[method]], [height], **(style | HOLLOW | {"linestyle": "none"}))
                compared = True
    if not axes.lines:
        _say_nothing_yet(axes, "d90")
        return figure
    labels = [display.literal(measure.label) for measure in measures]
    axes.set_yticks(range(len(measures)), labels)
    axes.set_ylim(len(measures) - 0.4, -0.6)
    axes.margins(x=0.08)
    _log_ticks(axes.xaxis)
    styles = {
        m: {**STYLES[m], "label": display.METHOD_NAMES[m], "markeredgewidth": 0} for m in methods
    }
    theirs = {"color": "0.3", "marker": "o", "label": "the paper, Table 1"} | HOLLOW
    _legend(figure, results, styles, False, *([theirs] if compared else []))
    return figure


_DRAWINGS = {
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
    "table1": _table1,
}
