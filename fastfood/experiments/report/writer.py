"""What a study leaves behind, made from its folder's study.json and its record alone, at any time:
results.json, the figures, report.md and report.html; and the tables on the terminal."""

import math
import time
from dataclasses import replace
from pathlib import Path

from ..files import whole
from ..settings.measurement import DAY
from ..settings.options import require
from ..trials.folder import Description, open_record, read_description
from . import display
from .results import Results, collect, results_json

RESULTS, MARKDOWN, PAGE = "results.json", "report.md", "report.html"


def write_report(folder: Path, record=None, storage: str | None = None) -> list[Path]:
    """Writes the report of the study in `folder` and returns the paths of its files.

    Every file is replaced in one step, so a reader never sees half of one. `record` is an open
    record, by default the one that the study names; `storage` is its database's URL where that
    has a password, which study.json does not keep. Raises ValueError when `folder` holds no study.
    """
    return write_results(gather(folder, record, storage), folder)


def watch(folder: Path, every: float = 30.0, storage: str | None = None) -> None:
    """Writes the report, and again whenever the study changed, until no trial is missing.

    `every` is in seconds, between two looks; as long as it goes on the page loads itself anew.
    Stopped by Ctrl-C or an exit it leaves a page that does not, and raises what stopped it. Raises
    ValueError when `folder` holds no study.
    """
    require(0 < every <= DAY, "every", "seconds above 0, at most a day", every)
    record, seen = _open(folder, read_description(folder), storage), None
    try:
        while True:
            results = gather(folder, record)
            unwritten = replace(results, written="")
            if unwritten != seen:
                write_results(results, folder, reload=math.ceil(every))
                seen = unwritten
            if not results.progress.missing:
                return
            time.sleep(every)
    except (KeyboardInterrupt, SystemExit):
        write_report(folder, record)
        raise


def write_results(results: Results, folder: Path, reload: int | None = None) -> list[Path]:
    """Writes the report of what `gather` returned; with `reload` its page loads itself anew every
    so many seconds, unless no trial is missing."""
    from . import figures
    from .findings import report_blocks
    from .pages import to_html, to_markdown

    folder, blocks = Path(folder), report_blocks(results)
    paths = [_replace(folder / RESULTS, results_json(results)), *figures.draw(results, folder)]
    paths.append(_replace(folder / MARKDOWN, to_markdown(blocks)))
    reload = reload if results.progress.missing else None
    page = to_html(results.title, blocks, folder, reload)
    return [*paths, _replace(folder / PAGE, page)]


def gather(folder: Path, record=None, storage: str | None = None) -> Results:
    """All results of the study in `folder`, as its record has them now."""
    description = read_description(folder)
    record = record or _open(folder, description, storage)
    record.read()
    return collect(description, record)


def _replace(path: Path, text: str) -> Path:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _open(folder: Path, description: Description, storage: str | None):
    settings = description.measures[0].settings
    return open_record(Path(folder), settings.replaced(storage=storage or settings.storage))


def print_report(console, results: Results) -> None:
    """Prints the results to a rich console: for each measure the points, the d90s and the
    remarks."""
    from rich.markup import escape
    from rich.table import Table

    for measure in results.measures:
        column = "share" if measure.metric.relative else f"{measure.settings.metric}"
        title = f"{measure.label}: {display.score_name(measure)} in %, rates chosen on validation"
        table = Table(title=escape(title), title_justify="left")
        partial = not all(point.whole for point in measure.points)
        for name in ("method", "d", column, "±", *(["seeds"] if partial else []), "rate"):
            table.add_column(name, justify="left" if name == "method" else "right")
        for point in sorted(measure.points, key=lambda point: (point.d, point.method)):
            table.add_row(
                display.METHOD_NAMES[point.method],
                f"{point.d:,}",
                f"{100 * point.mean:.1f}",
                display.spread(point.test),
                *([display.seeds(point)] if partial else []),
                "–" if point.method == "base" else f"{point.learning_rate:g}",
            )
        console.print(table)
        summary = measure.summary
        if summary.line is not None:
            base = "" if summary.base is None else f"base model {summary.base:.1%}, "
            line = "90 % line" if summary.base is None else display.line_name(measure)
            console.print(f"{base}full {summary.full:.1%}, {line} {summary.line:.1%}")
        for method, d90 in summary.d90.items():
            text = f"d90 {display.METHOD_NAMES[method]}: {d90.text}"
            console.print(text, markup=False, highlight=False)
        for remark in display.remarks(measure):
            console.print(f"note: {remark}", style="yellow", markup=False)
