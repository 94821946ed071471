"""Conducts a study: pre-trains what it needs, looks at every model and data set, runs the trials
with a bar of progress, and reports. What a study is stands in OUT/study.json from then on."""

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .config import Settings
from .files import whole
from .plan import Measure
from .recipes import Planned

DATABASE, DESCRIPTION, LOCK, STUDY = "trials.db", "study.json", "study.lock", "fastfood"


def conduct(planned: Planned) -> int:
    """Runs a study and returns the exit code: 0, 1 when trials failed, 130 when interrupted.

    Raises ValueError naming the argument for what can be seen before training.
    """
    console = Console()
    shared, record = planned.measures[0][2].storage is not None, None
    try:
        if not planned.pretrainings:  # before anything is written
            measures = _inspect(console, planned)
            record = open_record(planned.out, planned.measures[0][2]) if shared else None
        with locked_folder(planned.out, shared):
            if planned.pretrainings:
                _pretrain(console, planned)
                measures = _inspect(console, planned)
            record = record or open_record(planned.out, planned.measures[0][2])
            describe(planned, measures)
            failed = _run(console, measures, record)
            _report(console, planned.out, record)
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here", style="yellow")
        return 130
    if failed:
        console.print(f"{failed} trials failed; the same command tries them again", style="red")
    return 1 if failed else 0


@contextmanager
def locked_folder(out: Path, shared: bool) -> Iterator[None]:
    """Makes the folder and, unless it is shared by drivers of one database, holds its lock.

    Raises ValueError when another process holds it, when the folder cannot be written, and when
    files of the names that a study gives its own are in it that are none of a study.
    """
    names = (DATABASE, DESCRIPTION, "results.json", "report.md", "report.html")
    other = [name for name in names if (out / name).exists()]
    if other and not (out / LOCK).exists():
        wanted = "the folder of a study, or one without files of its names"
        raise ValueError(f"out: wanted {wanted}, got {out}, whose {other[0]} is another's")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("a+", errors="replace")
    except OSError as error:
        raise ValueError(f"out: wanted a writable folder, got {out} ({error})") from error
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            wanted = "a folder that no other run uses"
            raise ValueError(f"out: wanted {wanted}, got {out} (process {owner})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def open_record(out: Path, settings: Settings):
    """The record of the study in `out`: a file of its own, or one of a shared database."""
    from . import database, record

    if settings.storage is None:
        return record.open_record(database.sqlite_url(out / DATABASE), STUDY)  # the lock is held
    return record.open_record(settings.storage, settings.name or out.name, settings.heartbeat)


def describe(planned: Planned, measures: list[Measure]) -> None:
    """Writes OUT/study.json in one step: all that a report needs beside the record."""
    settings = measures[0].settings
    storage = settings.storage and _without_password(settings.storage)
    command = shlex.join(["fastfood", *sys.argv[1:]])
    if settings.storage:
        command = command.replace(settings.storage, storage)
    description = {
        "name": planned.name,
        "title": planned.title,
        "kind": planned.kind,
        "scale": planned.scale,
        "note": planned.note,
        "command": command,
        "storage": storage,
        "study": STUDY if settings.storage is None else settings.name or planned.out.name,
        "pretrainings": [asdict(pretraining) for pretraining in planned.pretrainings],
        "measures": [
            {
                "label": m.label,
                "x": m.x,
                "settings": asdict(m.settings) | {"storage": storage},
                "facts": m.facts,
            }
            for m in measures
        ],
    }
    with whole(planned.out / DESCRIPTION) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n")


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True).replace(":***@", "@", 1)


def _pretrain(console: Console, planned: Planned) -> None:
    from .pretrain import run

    for pretraining in planned.pretrainings:
        with console.status(f"pre-training {escape(Path(pretraining.out).name)} ..."):
            run(pretraining)


def _inspect(console: Console, planned: Planned) -> list[Measure]:
    measures = []
    for label, x, settings in planned.measures:
        with console.status(f"loading the data and the model of {escape(label)} ..."):
            from .run import inspect  # takes seconds, the first time

            measures.append(Measure(label, settings, inspect(settings), x))
    return measures


def _run(console: Console, measures: list[Measure], record) -> int:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .run import run_study

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=24 * 3600,
    )
    with progress:
        bar = progress.add_task("training", total=None)

        def on_event(done: int, asked: int, measure, trial: dict | None, outcome: str) -> None:
            progress.update(bar, completed=done, total=asked)
            if trial is None:  # the start
                progress.advance(bar, 0)  # the time left is judged from here on
                if done:
                    console.print(f"{done} of {asked} trials are already done")
                return
            name = "{method} d = {d} rate {learning_rate:g} seed {seed}".format(**trial)
            if len(measures) > 1:
                name = f"{measure.label}: {name}"
            if outcome.startswith("failed"):
                console.print(f"{name}: {outcome}", style="red", markup=False)
            elif not console.is_terminal:  # a log file shows no bar
                print(f"{done}/{asked} {name}: {outcome}", flush=True)

        return run_study(measures, record, on_event)


def _report(console: Console, out: Path, record) -> None:
    from .report import writer

    written = writer.write_report(out, record)
    writer.print_report(console, out)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)
