"""The folder of a study: its lock, its record, and study.json, which says what the study is."""

import fcntl
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from ..files import whole
from ..settings.measurement import KINDS, SIZED_METHODS, Settings, check, read_settings
from ..settings.options import LARGEST, is_plain, require
from ..settings.study import Measurement, Planned
from ..settings.trial import Facts

DATABASE, DESCRIPTION, LOCK, STUDY = "trials.db", "study.json", "study.lock", "fastfood"


def _plain(text: str) -> str:
    require(is_plain(text.replace("\n", "")), "text", "no control characters", text)
    return text


def _of_kind(kind: str) -> str:
    require(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", kind)
    return kind


def _number(x: float) -> float:
    require(math.isfinite(x) and abs(x) <= LARGEST, "x", "a number", x)
    return x


def _settings(given: object) -> Settings:
    """Settings as they are, or from what study.json has of them, with defaults for the rest."""
    if isinstance(given, Settings):
        return given
    if not isinstance(given, dict):
        raise ValueError(f"wanted a table, got {given!r:.100}")
    settings = read_settings(given)
    check(settings)
    return settings


_Text = Annotated[str, AfterValidator(_plain)]


class DescribedMeasurement(BaseModel):
    """What study.json says of a measurement whose data and model were looked at."""

    label: _Text
    x: Annotated[int | float, AfterValidator(_number)] | None
    settings: Annotated[Settings, BeforeValidator(_settings)]
    facts: Facts

    @model_validator(mode="after")
    def _check_facts(self) -> "DescribedMeasurement":
        facts = self.facts
        labels = facts.num_labels or int(self.settings.writes)  # what writes has no labels
        least = {"D": facts.D, "num_labels": labels, "m": facts.m or 1}
        for method in set(SIZED_METHODS) & set(self.settings.methods):
            sizes = facts.counts.get(method, {})
            least |= {f"{method} {n}": sizes.get(str(n), 0) for n in self.settings.sizes_of(method)}
        for name, count in least.items():
            require(1 <= count <= LARGEST, f"facts.{name}", "a count of at least 1", count)
        for count in (*facts.sizes.values(), facts.overlap):
            require(0 <= count <= LARGEST, "facts", "a count", count)
        share = facts.majority is None or 0 <= facts.majority <= 1
        require(share, "facts.majority", "a share in [0, 1]", facts.majority)
        for count in facts.unilora or ():
            require(1 <= count <= LARGEST, "facts.unilora", "two counts of at least 1", count)
        texts = [*facts.splits, *facts.splits.values(), *facts.contamination]
        for text in (*texts, facts.device, facts.model_hash, facts.data_hash):
            _plain(text)
        return self

    def measurement(self) -> Measurement:
        return Measurement(label=self.label, settings=self.settings, facts=self.facts, x=self.x)


class Description(BaseModel):
    """What study.json says: all that a report needs beside the record."""

    name: _Text
    title: _Text
    kind: Annotated[str, AfterValidator(_of_kind)]
    scale: _Text
    note: _Text = ""
    command: _Text
    storage: _Text | None  # the URL of a shared database, without its password
    study: _Text  # the name of the Optuna study
    pretrainings: list[dict[str, Any]] = []
    measures: list[DescribedMeasurement] = Field(min_length=1)


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


def describe(planned: Planned, measurements: list[Measurement]) -> None:
    """Writes OUT/study.json in one step; raises ValueError for what no reader would take."""
    try:
        description = _description(planned, measurements)
    except ValidationError as error:
        wanted = f"what {DESCRIPTION} can say"
        raise ValueError(f"study: wanted {wanted}, got {_reason(error)}") from None
    with whole(planned.out / DESCRIPTION) as partial:
        partial.write_text(json.dumps(description.model_dump(), indent=2) + "\n")


def _description(planned: Planned, measurements: list[Measurement]) -> Description:
    from .database import without_password

    settings = measurements[0].settings
    storage = settings.storage and without_password(settings.storage)
    command = shlex.join(["fastfood", *sys.argv[1:]])
    if settings.storage and storage:
        command = command.replace(settings.storage, storage)
    return Description(
        name=planned.name,
        title=planned.title,
        kind=planned.kind,
        scale=planned.scale,
        note=planned.note,
        command=command,
        storage=storage,
        study=STUDY if settings.storage is None else settings.name or planned.out.name,
        pretrainings=[pretraining.model_dump() for pretraining in planned.pretrainings],
        measures=[
            DescribedMeasurement(
                label=measurement.label,
                x=measurement.x,
                settings=measurement.settings.replaced(storage=storage),
                facts=measurement.known_facts,
            )
            for measurement in measurements
        ],
    )


def read_description(folder: Path) -> Description:
    """FOLDER/study.json; raises ValueError when it is missing, damaged, or another program's."""
    require(is_plain(str(folder)), "folder", "a text without control characters", str(folder))
    try:
        text = Path(folder, DESCRIPTION).read_text(encoding="utf-8")
        return Description.model_validate_json(text, strict=True)
    except ValidationError as error:
        reason = _reason(error)
    except (OSError, ValueError, TypeError) as error:
        reason = repr(error)
    wanted = f"the folder of a study, with a whole {DESCRIPTION}"
    raise ValueError(f"folder: wanted {wanted}, got {folder} ({reason})")


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.100}"
    reason = first.get("ctx", {}).get("error") or f"{first['msg']}{got}"
    return " ".join(f"{where}: {reason}".split())
