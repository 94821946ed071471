"""What a study leaves behind, made from its folder's study.json and its record alone, at any time:
results.json, the figures, report.md and report.html; and the tables on the terminal."""

import json
import math
import subprocess
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from ..files import whole
from ..settings.measurement import DAY, read_settings
from ..settings.options import is_plain, require
from ..trials.curves import curve_points, summarise
from ..trials.folder import DESCRIPTION, open_record
from ..trials.plan import trial_key, trials
from . import display
from .description import described

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
    record, seen = _open(folder, _read_description(folder), storage), None
    try:
        while True:
            results = gather(folder, record)
            now = {name: value for name, value in results.items() if name != "written"}
            if now != seen:
                write_results(results, folder, reload=math.ceil(every))
                seen = now
            if not results["progress"]["missing"]:
                return
            time.sleep(every)
    except (KeyboardInterrupt, SystemExit):
        write_report(folder, record)
        raise


def write_results(results: dict, folder: Path, reload: int | None = None) -> list[Path]:
    """Writes the report of what `gather` returned; with `reload` its page loads itself anew every
    so many seconds, unless no trial is missing."""
    from . import figures
    from .findings import report_blocks
    from .pages import to_html, to_markdown

    folder, blocks = Path(folder), report_blocks(results)
    paths = [_replace(folder / RESULTS, results_json(results)), *figures.draw(results, folder)]
    paths.append(_replace(folder / MARKDOWN, to_markdown(blocks)))
    reload = reload if results["progress"]["missing"] else None
    page = to_html(results["title"], blocks, folder, reload)
    return [*paths, _replace(folder / PAGE, page)]


def gather(folder: Path, record=None, storage: str | None = None) -> dict:
    """All results of the study in `folder`: what it is, and for each measure its settings, facts,
    points, summary and progress; and every trial, asked for so far, with its state and result.

    Infinite d90s are math.inf here and null in results.json.
    """
    described = _read_description(folder)
    record = record or _open(folder, described, storage)
    record.read()
    measures, rows = [], []
    for told in described["measures"]:
        measure, own = _measure(told, record)
        measures.append(measure)
        rows += own
    return {
        **{name: described[name] for name in ("name", "title", "kind", "scale", "command")},
        "note": described.get("note", ""),
        "storage": described["storage"],
        "study": described["study"],
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "environments": _environments(rows, record.states()),
        "progress": _sum([measure["progress"] for measure in measures]),
        "measures": measures,
        "trials": rows,
    }


def results_json(results: dict) -> str:
    """The results as JSON, a line a trial; what is not finite becomes null."""
    head = {name: value for name, value in results.items() if name != "trials"}
    rows = ",\n".join("    " + json.dumps(_finite(row)) for row in results["trials"])
    text = json.dumps(_finite(head), indent=2, allow_nan=False)
    return f'{text[:-2]},\n  "trials": [\n{rows}\n  ]\n}}\n'


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> Path:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _read_description(folder: Path) -> dict:
    """study.json; raises ValueError when it is missing or not one of this form."""
    plain = is_plain(str(folder))
    require(plain, "folder", "a text without control characters", str(folder))
    path = Path(folder, DESCRIPTION)
    try:
        return described(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = f"the folder of a study, with a whole {DESCRIPTION}"
        raise ValueError(f"folder: wanted {wanted}, got {folder} ({error!r})") from None


def _open(folder: Path, described: dict, storage: str | None):
    settings = read_settings(described["measures"][0]["settings"])
    return open_record(Path(folder), settings.replaced(storage=storage or settings.storage))


def _measure(told: dict, record) -> tuple[dict, list[dict]]:
    """The results of one measure, and a row for each of its trials."""
    settings, facts = read_settings(told["settings"]), told["facts"]
    known, states = record.known(), record.states()
    asked = trials(settings, facts, record.decided(settings.prune))
    keys = [trial_key(trial) for trial in asked]
    entries = [states.get(key) for key in keys]
    scores = [known.get(key) for key in keys]
    rows = [
        {"key": key, "measure": told["label"], "state": _state(entry), **trial, **(score or {})}
        for key, entry, trial, score in zip(keys, entries, asked, scores, strict=True)
    ]
    points = curve_points(asked, scores)
    trained = {_cell(row): row["trained"] for row in rows if "trained" in row}
    for point in points:
        point["trained"] = trained.get(_cell(point))
    measure = {
        "label": told["label"],
        "x": told["x"],
        "settings": told["settings"],
        "facts": facts,
        "summary": summarise(points, facts["majority"]),
        "points": points,
        "progress": _progress(rows, entries, settings.prune),
    }
    return measure, rows


def _cell(row: dict) -> tuple:
    return row["method"], row["d"], row["size"]


def _state(entry) -> str:
    """A trial's state in a word of `display.STATES`."""
    if entry is None:
        return "waiting"
    return "diverged" if entry.final else entry.state


def _progress(rows: list[dict], entries: list, prune: bool) -> dict:
    """How many trials are asked for, in each state and missing (to be run yet), the seconds of
    those that ran, and the errors with their counts."""
    counts = Counter(row["state"] for row in rows)
    missing = ("failed", "running", "waiting", *(() if prune else ("pruned",)))
    entries = [entry for entry in entries if entry is not None]
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    return {
        "asked": len(rows),
        **{name: counts[name] for name in display.STATES},
        "missing": sum(counts[name] for name in missing),
        "seconds": sum(seconds),
        "timed": len(seconds),
        "errors": dict(Counter(entry.error for entry in entries if entry.error)),
    }


def _sum(parts: list[dict]) -> dict:
    """The progress of all measures together."""
    names = [name for name in parts[0] if name != "errors"]
    errors = sum((Counter(part["errors"]) for part in parts), Counter())
    return {name: sum(part[name] for part in parts) for name in names} | {"errors": dict(errors)}


def _environments(rows: list[dict], states: dict) -> list[dict]:
    """The versions and the hardware that trials ran with, each with its number of trials."""
    found = {}
    for row in rows:
        told = row["state"] == "complete" and states[row["key"]].environment
        if told:
            place = found.setdefault(json.dumps(told, sort_keys=True), {"trials": 0, **told})
            place["trials"] += 1
    return list(found.values())


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


def print_report(console, folder: Path) -> None:
    """Prints what `folder`'s results.json holds to a rich console: for each measure the points,
    the d90s and the remarks."""
    from rich.markup import escape
    from rich.table import Table

    results = json.loads(Path(folder, RESULTS).read_text(encoding="utf-8"))
    for measure in results["measures"]:
        metric = measure["settings"]["metric"]
        title = f"{measure['label']}: test {metric} in %, rates chosen on validation"
        table = Table(title=escape(title), title_justify="left")
        for name in ("method", "d", metric, "±", "rate"):
            table.add_column(name, justify="left" if name == "method" else "right")
        for point in sorted(measure["points"], key=lambda point: (point["d"], point["method"])):
            table.add_row(
                display.METHOD_NAMES[point["method"]],
                f"{point['d']:,}",
                f"{100 * point['mean']:.1f}",
                display.spread(point["test"]),
                f"{point['learning_rate']:g}",
            )
        console.print(table)
        summary = measure["summary"]
        if summary["line"] is not None:
            console.print(f"full {summary['full']:.1%}, 90 % line {summary['line']:.1%}")
        for method, result in summary["d90"].items():
            text = f"d90 {display.METHOD_NAMES[method]}: {result['text']}"
            console.print(text, markup=False, highlight=False)
        for remark in summary["remarks"]:
            console.print(f"note: {remark}", style="yellow", markup=False)
