"""Figure 1: accuracy against the number of trained parameters, a panel a measure, with full
fine-tuning, its 90 % line, the majority class and every method's d90 with its interval. Where a
model writes, the base model stands in place of the majority class."""

import math
import textwrap
from typing import Any

import numpy as np

from ..settings.language import OBJECTIVES
from ..trials.curves import Point
from . import display
from .results import MeasureResults, Results

Style = dict[str, Any]  # what matplotlib draws a line with
# Okabe and Ito's palette: told apart with colour blindness, and by marker and dash in grey print
STYLES: dict[str, Style] = {
    "did": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "said": {"color": "#D55E00", "marker": "s", "linestyle": (0, (5, 1.5))},
    "lora": {"color": "#009E73", "marker": "^", "linestyle": (0, (3, 1, 1, 1))},
    "vera": {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    "unilora": {"color": "#56B4E9", "marker": "v", "linestyle": (0, (6, 1, 1, 1))},
    "tinylora": {"color": "#E69F00", "marker": "P", "linestyle": (0, (2, 2))},
}
PARTIAL = "hollow: seeds or learning rates are missing"
# of the rows of d90 in a panel alone and in one of several, in inches
FIRST_ROW, ROW = {True: 0.12, False: 0.11}, {True: 0.178, False: 0.163}
WIDEST = 46  # characters above a panel of several
ROWS = 3  # that a panel of several has room for; it grows with more


def draw(pyplot, results: Results):
    """Returns the figure: one panel, or small multiples when the study has several measures."""
    measures = results.measures
    alone = len(measures) == 1
    columns = 1 if alone else 2 if len(measures) <= 8 else 3
    rows = -(-len(measures) // columns)
    width, height = (5.8, 4.0) if alone else (3.4, 2.75)
    if not alone:
        most = max(len(measure.settings.methods) + 1 for measure in measures)
        height += ROW[alone] * max(0, most - ROWS)
    size = columns * width, rows * height + 0.25
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    # fixed margins in inches: a layout solver takes seconds for a dozen panels
    left, right, bottom, top, between = 0.55, 0.12, 0.5, 0.33, 0.58
    figure.subplots_adjust(
        left=left / size[0],
        right=1 - right / size[0],
        bottom=bottom / size[1],
        top=1 - top / size[1],
        wspace=(left + right) / (width - left - right),
        hspace=between / (height - between),
    )
    for axes in grid.flat[len(measures) :]:
        axes.set_axis_off()
    for number, (axes, measure) in enumerate(zip(grid.flat, measures, strict=False)):
        _draw_panel(axes, measure, alone)
        if number % columns and display.score_name(measure) == display.score_name(measures[0]):
            axes.set_ylabel("")
        if number < len(measures) - columns:
            axes.set_xlabel("")
    return figure


def _draw_panel(axes, measure: MeasureResults, alone: bool) -> None:
    methods = list(dict.fromkeys(measure.settings.methods))
    curves = {
        method: sorted(
            (point for point in measure.points if point.method == method),
            key=lambda point: point.d,
        )
        for method in methods
    }
    partial = not all(point.whole for curve in curves.values() for point in curve)
    rows = len(curves) + partial
    _set_axes(axes, measure, curves, rows, alone)
    _draw_levels(axes, measure, curves, alone)
    for row, (method, curve) in enumerate(reversed(curves.items())):
        if curve:
            _draw_curve(axes, method, curve, alone)
        _draw_d90(axes, measure, method, curve, _row_height(axes, row, alone), alone)
    if partial:
        _write_beside(axes, PARTIAL, None, _row_height(axes, rows - 1, alone), "0.4", alone)


def _row_height(axes, row: int, alone: bool) -> float:
    """The height of a method's d90 row above the axis, as a share of the panel."""
    return (FIRST_ROW[alone] + row * ROW[alone]) * axes.figure.dpi / axes.bbox.height


def _title(measure: MeasureResults, alone: bool) -> str:
    D = measure.facts.D
    if not alone:
        label = display.literal(textwrap.shorten(measure.label, WIDEST, placeholder="…"))
        size = f", $D$ = {display.short(D)}"
        return label + size if len(measure.label) + len(size) <= WIDEST else label
    count = measure.settings.seeds
    partial = [
        point
        for point in measure.points
        if not point.whole and point.method in measure.settings.methods
    ]
    seeds = display.seeds_done(partial) if partial else f"{count} seed{'s' if count > 1 else ''}"
    single = max((len(point.seeds) for point in partial), default=count) == 1
    shown = seeds if single else f"mean and range of {seeds}"
    settings = measure.settings
    parts = settings.task, settings.model_name, OBJECTIVES[settings.objective]
    name = ", ".join(filter(None, parts))
    return f"{display.literal(name)}, $D$ = {D:,}; {shown}"


def _set_axes(axes, measure: MeasureResults, curves: dict, rows: int, alone: bool) -> None:
    """Sets the titles and the ranges, with room for `rows` rows of d90 below the curves."""
    axes.set_title(_title(measure, alone), loc="left", fontsize=9 if alone else 8, pad=8)
    axes.set_xlabel("$d$, number of trained parameters")
    name = f"{display.score_name(measure)} (%)"
    axes.set_ylabel(name, fontsize=9 if alone or len(name) < 40 else 8)
    axes.set_xscale("log")
    points = [point for curve in curves.values() for point in curve]
    tested = sorted({point.d for point in points}) or list(measure.settings.dims)
    axes.set_xlim(tested[0] / 1.45, tested[-1] * 1.45)
    if alone and len(tested) <= 8 and min(np.diff(np.log(tested)), default=1) > 0.5:
        axes.set_xticks(tested, [f"{d}" for d in tested])
        axes.minorticks_off()
    if not alone:
        axes.minorticks_off()
        axes.tick_params(labelsize=7.5)
    scores = [100 * score for point in points for score in point.test]
    levels = (measure.trivial, measure.summary.full, measure.summary.line)
    scores += [100 * level for level in levels if level is not None]
    scores += [0, 100] if len(set(scores)) < 2 else []
    span = max(scores) - min(scores) + 1
    # room for the rows of d90 below and for the label of the full run above
    below = _row_height(axes, rows, alone) + 0.02
    bottom = min(scores) - span * below / (0.9 - below)
    axes.set_ylim(bottom, max(scores) + 0.08 * span)
    axes.set_yticks([tick for tick in axes.get_yticks() if min(scores) - 1 <= tick <= 100])
    axes.set_ylim(bottom, max(scores) + 0.08 * span)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_levels(axes, measure: MeasureResults, curves: dict, alone: bool) -> None:
    """Draws the full score, its 90 % line and what is trivial, each with its name."""
    summary = measure.summary
    full = "full fine-tuning" if alone else "full"
    if measure.full and not measure.full.whole:
        full += " so far"
    levels = [
        (summary.full, "0.15", "-", full, "left", "bottom", 1),
        (
            summary.line,
            "0.15",
            (0, (4, 3)),
            display.line_name(measure),
            *_place_of_the_line(axes, measure, curves),
        ),
        (measure.trivial, "0.4", (0, (1, 2)), measure.metric.trivial, "right", "bottom", 1),
    ]
    for level, color, linestyle, text, side, edge, up in levels:
        if level is None:
            continue
        axes.axhline(100 * level, color=color, linestyle=linestyle, linewidth=0.9, zorder=1)
        axes.annotate(
            f"{text}, {100 * level:.1f}",
            xy=(0 if side == "left" else 1, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(4 if side == "left" else 0, up),
            textcoords="offset points",
            ha=side,
            va=edge,
            fontsize=7.5 if alone else 6.5,
            color=color,
        )


def _place_of_the_line(axes, measure: MeasureResults, curves: dict) -> tuple[str, str, float]:
    """Where the 90 % line has its name: the side, the edge of the text that lies on the line, and
    its distance in points."""
    middle = math.sqrt(math.prod(axes.get_xlim()))
    low, high = axes.get_ylim()
    early = [p.mean for curve in curves.values() for p in curve if p.d < middle]
    line = measure.summary.line
    if early and line is not None and 100 * (line - max(early)) > 0.12 * (high - low):
        return "left", "top", -2.5
    # a curve that starts below the line leaves the space above it free at the smallest d, one that
    # passes it the space below it at the largest
    marks = [display.d90_mark(measure, method) for method in measure.summary.d90]
    ends = {mark.censored for mark in marks if mark is not None}
    below_right = ends and ("above" not in ends or "below" in ends)
    return ("right", "top", -2.5) if below_right else ("left", "bottom", 1.5)


def _draw_curve(axes, method: str, curve: list[Point], alone: bool) -> None:
    """Draws the means with the range of the seeds; points that are not whole are hollow."""
    d = [point.d for point in curve]
    low = [100 * min(point.test) for point in curve]
    high = [100 * max(point.test) for point in curve]
    style = STYLES[method]
    axes.fill_between(d, low, high, color=style["color"], alpha=0.17, linewidth=0)
    size = (4.5 if alone else 3.5) * min(1, (25 / len(curve)) ** 0.5)
    axes.plot(
        d,
        [100 * point.mean for point in curve],
        linewidth=1.6 if alone else 1.2,
        markersize=size,
        markeredgewidth=0,
        **style,
    )
    partial = [(point.d, 100 * point.mean) for point in curve if not point.whole]
    if partial:
        hollow = {"markerfacecolor": "white", "markeredgewidth": 1, "markersize": size}
        axes.plot(*zip(*partial, strict=True), **(style | hollow | {"linestyle": "none"}))


def _draw_d90(
    axes, measure: MeasureResults, method: str, curve: list[Point], height: float, alone: bool
) -> None:
    """A row near the axis: a bar over the interval of d90, its text, and a dotted line up to the
    curve where d90 was reached."""
    color, marker = STYLES[method]["color"], STYLES[method]["marker"]
    mark = display.d90_mark(measure, method)
    on_axis = {"transform": axes.get_xaxis_transform(), "color": color, "clip_on": False}
    if mark is not None:
        end = axes.get_xlim()[1] if mark.open_high else mark.high
        bar = [mark.low, max(end, mark.value)]
        axes.plot(bar, [height] * 2, lw=2.2, alpha=0.45, solid_capstyle="butt", **on_axis)
        if mark.open_high:
            axes.plot([end], [height], ">", markersize=4.5, mew=0, **on_axis)
        sign = "<" if mark.censored == "below" else marker
        hollow = {"mfc": "white", "mew": 1} if mark.censored == "above" else {"mew": 0}
        axes.plot([mark.value], [height], sign, markersize=4.5, **hollow, **on_axis)
        if mark.censored != "above":
            _join_to_curve(axes, mark.value, height, curve, color)
    d90 = measure.summary.d90.get(method)
    text = "no d90 yet" if d90 is None else display.typeset(d90.text)
    text = f"{display.METHOD_NAMES[method]}: {textwrap.shorten(text, 46, placeholder='…')}"
    _write_beside(axes, text, mark, height, color, alone)


def _write_beside(axes, text: str, mark, height: float, color: str, alone: bool) -> None:
    """Writes a row's text on the side of its bar that has room for it."""
    from matplotlib.colors import to_rgb

    position, side = 0.02, "left"
    if mark is not None:
        left, right = np.log(axes.get_xlim())
        low, high = ((np.log(end) - left) / (right - left) for end in (mark.low, mark.high))
        needed = 0.04 + len(text) * (0.0118 if alone else 0.0175)  # mean width of a letter
        high = 1 if mark.open_high else high
        beside_low = low > needed or low > 1 - high
        position, side = (low - 0.025, "right") if beside_low else (high + 0.025, "left")
        if max(low, 1 - high) < needed:
            position, side = 0.02, "left"
    axes.text(
        position,
        height,
        text,
        transform=axes.transAxes,
        ha=side,
        va="center",
        fontsize=7.5 if alone else 6.5,
        color=[0.72 * part for part in to_rgb(color)],  # dark enough to be read
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
    )


def _join_to_curve(axes, value: float, height: float, curve: list[Point], color: str) -> None:
    bottom, top = axes.get_ylim()
    nearest = min(curve, key=lambda point: abs(np.log(point.d / value)))
    score = 100 * nearest.mean
    start = bottom + height * (top - bottom)
    axes.plot([value] * 2, [start, score], color=color, lw=0.9, linestyle=(0, (1, 3)), zorder=1)
    axes.plot([value], [score], "o", markersize=9, mfc="none", mec=color, mew=1.1, zorder=4)
