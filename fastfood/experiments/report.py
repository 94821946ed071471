"""What a study leaves behind: `results.json`, `figure1.png` (accuracy against d with the 90 % line)
and the table on the terminal."""

import json
import math
import os
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from .config import Settings, trial_key

RESULTS, FIGURE = "results.json", "figure1.png"
# Okabe and Ito's palette: told apart with colour blindness, and by marker and dash in grey print
STYLES = {
    "did": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "said": {"color": "#D55E00", "marker": "s", "linestyle": (0, (5, 1.5))},
}


def write_results(
    settings: Settings,
    facts: dict,
    trials: list[dict],
    scores: list[dict | None],
    points: list[dict],
    summary: dict,
    environment: dict,
) -> Path:
    """Writes results.json in one step (a reader never sees half a file) and returns its path."""
    rows = [
        {"key": trial_key(trial), **trial, **(score or {"validation": None, "test": None})}
        for trial, score in zip(trials, scores, strict=True)
    ]
    d90 = {
        method: {name: None if value == math.inf else value for name, value in result.items()}
        for method, result in summary["d90"].items()
    }
    results = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(settings),
        "facts": facts,
        "git_commit": _git_commit(),
        **environment,
        "summary": summary | {"d90": d90},
        "points": points,
        "trials": rows,
    }
    path = Path(settings.out, RESULTS)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(partial, path)
    return path


def _git_commit() -> str | None:
    """The commit of the source tree that this file is tracked in, "-dirty" when it was changed."""
    here = Path(__file__)
    commands = (
        ["ls-files", "--error-unmatch", here.name],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        for command in commands:
            ran = subprocess.run(
                ["git", "-C", here.parent, *command], capture_output=True, text=True, check=True
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


def draw_figure(settings: Settings, facts: dict, points: list[dict], summary: dict) -> Path:
    """Draws accuracy against d (log axis) with the full score, the 90 % line and d90, and returns
    the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "mathtext.fontset": "dejavusans",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(5.8, 3.8), layout="constrained")
        _set_axes(axes, settings, facts, points, summary)
        _draw_levels(axes, facts, summary)
        for row, (method, result) in enumerate(summary["d90"].items()):
            curve = sorted((p for p in points if p["method"] == method), key=lambda p: p["d"])
            _draw_curve(axes, method, curve, result)
            _draw_d90(axes, method, curve, result, row)
        if summary["d90"]:
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1, 0.16),
                edgecolor="none",
                framealpha=0.9,
                handlelength=2.8,
                title="$d_{90}$ [95 % interval]",
                title_fontsize=8,
                alignment="left",
            )
        path = Path(settings.out, FIGURE)
        partial = path.with_suffix(".png.partial")
        figure.savefig(partial, dpi=300, format="png")
        pyplot.close(figure)
    os.replace(partial, path)
    return path


def _set_axes(axes, settings: Settings, facts: dict, points: list[dict], summary: dict) -> None:
    model = "small ViT" if settings.model is None else Path(settings.model).name
    seeds = "1 seed" if settings.seeds == 1 else f"mean and range of {settings.seeds} seeds"
    title = f"{settings.task}, {model}, $D$ = {facts['D']:,}; {seeds}"
    axes.set_title(title, loc="left", fontsize=9, pad=8)
    axes.set_xlabel("$d$, number of trained parameters")
    axes.set_ylabel("test accuracy (%)")
    axes.set_xscale("log")
    axes.set_xlim(settings.dims[0] / 1.35, settings.dims[-1] * 1.35)
    if len(settings.dims) <= 8:
        axes.set_xticks(settings.dims, [f"{d}" for d in settings.dims])
        axes.minorticks_off()
    scores = [100 * score for point in points for score in point["test"]]
    levels = (facts["majority"], summary["full"], summary["line"])
    scores += [100 * level for level in levels if level is not None]
    span = max(scores) - min(scores) + 1
    # room for the d90 bars below and for the label of the full run above
    axes.set_ylim(min(scores) - 0.17 * span, max(scores) + 0.07 * span)
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_levels(axes, facts: dict, summary: dict) -> None:
    levels = [
        (summary["full"], "0.15", "-", "left", "full fine-tuning"),
        (summary["line"], "0.15", (0, (4, 3)), "left", "90 % of full"),
        (facts["majority"], "0.5", (0, (1, 2)), "right", "majority class"),
    ]
    for level, color, linestyle, side, text in levels:
        if level is None:
            continue
        axes.axhline(100 * level, color=color, linestyle=linestyle, linewidth=0.9, zorder=1)
        axes.annotate(
            f"{text}, {100 * level:.1f}",
            xy=(0 if side == "left" else 1, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(4 if side == "left" else 0, 2.5),
            textcoords="offset points",
            ha=side,
            fontsize=7.5,
            color=color,
        )


def _draw_curve(axes, method: str, curve: list[dict], result: dict) -> None:
    d = [point["d"] for point in curve]
    low = [100 * min(point["test"]) for point in curve]
    high = [100 * max(point["test"]) for point in curve]
    style = STYLES[method]
    axes.fill_between(d, low, high, color=style["color"], alpha=0.17, linewidth=0)
    axes.plot(
        d,
        [100 * point["mean"] for point in curve],
        label=f"{method.upper()}: {_typeset(result['text'])}",
        linewidth=1.6,
        markersize=4.5,
        markeredgewidth=0,
        **style,
    )


def _draw_d90(axes, method: str, curve: list[dict], result: dict, row: int) -> None:
    """A bar over the interval of d90 near the axis, joined to the curve where d90 was reached."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    height = bottom + (0.03 + 0.045 * row) * (top - bottom)
    color, marker = STYLES[method]["color"], STYLES[method]["marker"]
    ends = [min(max(result[name], left), right) for name in ("low", "high")]
    axes.plot(ends, [height] * 2, color=color, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
    if result["value"] == math.inf:
        axes.plot([right], [height], ">", color=color, markersize=5, clip_on=False)
        return
    score = next(100 * point["mean"] for point in curve if point["d"] == result["value"])
    x = [result["value"]] * 2
    axes.plot(x, [height, score], color=color, linewidth=0.9, linestyle=(2 * row, (1, 3)), zorder=1)
    axes.plot(x[:1], [height], marker, color=color, markersize=4.5, markeredgewidth=0)
    axes.plot(x[:1], [score], "o", markersize=10, mfc="none", mec=color, mew=1.1, zorder=4)


def _typeset(text: str) -> str:
    return text.replace("<= ", "≤ ")


def print_report(console, points: list[dict], summary: dict) -> None:
    """Prints the table of points, the d90 lines and the remarks to a rich console."""
    from rich.table import Table

    table = Table(title="test accuracy, rates chosen on validation", title_justify="left")
    for name in ("method", "d", "accuracy", "±", "rate"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for point in sorted(points, key=lambda point: (point["d"], point["method"])):
        test = 100 * np.asarray(point["test"])
        spread = f"{test.std(ddof=1):.1f}" if len(test) > 1 else "-"
        table.add_row(
            point["method"].upper() if point["method"] != "full" else "full",
            f"{point['d']:,}",
            f"{test.mean():.1f}",
            spread,
            f"{point['learning_rate']:g}",
        )
    console.print(table)
    if summary["line"] is not None:
        console.print(f"full {summary['full']:.1%}, 90 % line {summary['line']:.1%}")
    for method, result in summary["d90"].items():
        console.print(f"d90 {method.upper()}: {result['text']}", markup=False, highlight=False)
    for remark in summary["remarks"]:
        console.print(f"note: {remark}", style="yellow", markup=False)
