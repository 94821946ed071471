"""The folder of a study: its lock, its record, and study.json, which says what the study is."""

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import whole
from ..settings.measurement import Settings
from ..settings.study import Measurement, Planned

DATABASE, DESCRIPTION, LOCK, STUDY = "trials.db", "study.json", "study.lock", "fastfood"


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


def describe(planned: Planned, measures: list[Measurement]) -> None:
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
        "pretrainings": [pretraining.model_dump() for pretraining in planned.pretrainings],
        "measures": [
            {
                "label": m.label,
                "x": m.x,
                "settings": m.settings.model_dump() | {"storage": storage},
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
