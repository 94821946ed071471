"""The results of a study as types, put together from what the study is and from its record, and
their form in results.json."""

import json
import math
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path

from ..settings.measurement import Settings
from ..settings.metrics import METRICS, Metric
from ..settings.study import Measurement
from ..settings.trial import Facts, Score, Trial, TrialState
from ..trials.curves import D90, Point, Summary, curve_points, point_of, summarise
from ..trials.folder import Description
from ..trials.gain import summarise_gain
from ..trials.plan import Known, trials

FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in (Trial, Score)}


@dataclass(frozen=True)
class Progress:
    """How many trials are asked for, how many are in each state, and how many are missing (still to
    be run); the seconds of the timed ones, which ran, and the errors with their counts."""

    asked: int
    complete: int
    failed: int
    diverged: int
    pruned: int
    running: int
    waiting: int
    missing: int
    seconds: float
    timed: int
    errors: dict[str, int]

    def count(self, state: TrialState) -> int:
        return getattr(self, state.value)


@dataclass(frozen=True)
class MeasureResults:
    """The results of one measurement; `x` is its place where measurements form a series."""

    label: str
    x: float | None
    settings: Settings
    facts: Facts
    summary: Summary
    points: list[Point]
    progress: Progress

    def point(self, method: str, d: float | None) -> Point | None:
        """The point of a method at one d, or None."""
        matching = (p for p in self.points if (p.method, p.d) == (method, d))
        return next(matching, None)

    @property
    def full(self) -> Point | None:
        """The point of full fine-tuning, None until one of its runs has finished."""
        return point_of(self.points, "full")

    @property
    def metric(self) -> Metric:
        return metric_of(self.settings)

    @property
    def trivial(self) -> float | None:
        """The score that full fine-tuning has to beat: the base model's or the majority class's."""
        return self.facts.majority if self.summary.base is None else self.summary.base


@dataclass(frozen=True)
class Results:
    """All results of a study. `environments` are what trials ran with, each with the number of its
    trials; `trials` is a flat row for every trial asked for so far, with its state and scores."""

    name: str
    title: str
    kind: str
    scale: str
    command: str
    note: str
    storage: str | None
    study: str
    written: str
    git_commit: str | None
    environments: list[dict]
    progress: Progress
    measures: list[MeasureResults]
    trials: list[dict]


def metric_of(settings: Settings) -> Metric:
    return METRICS[settings.metric or "accuracy"]


def collect(description: Description, record) -> Results:
    """The results of the study that `description` describes, from its record as it was last read.
    Infinite d90s are math.inf here and null in results.json."""
    measures, rows, entries = [], [], record.states()
    decided = {prune: record.decided(prune) for prune in (False, True)}
    for described in description.measures:
        known = decided[described.settings.prune]
        measured, measure_rows = _measure_results(described.measurement(), entries, known)
        measures.append(measured)
        rows += measure_rows
    return Results(
        **description.model_dump(exclude={"measures", "pretrainings"}),
        written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
        environments=_environments(rows, entries),
        progress=_total([measure.progress for measure in measures]),
        measures=measures,
        trials=rows,
    )


def _measure_results(
    measurement: Measurement, entries: dict, known: Known
) -> tuple[MeasureResults, list[dict]]:
    """The results of one measurement, and a row for each of its trials, from what the record has:
    `entries` by key, and the scores that are `known` as the plan wants them."""
    settings, facts = measurement.settings, measurement.known_facts
    asked = trials(settings, facts, known)
    keys = [trial.key for trial in asked]
    scores = [known.get(key) for key in keys]
    to_come = [key not in known for key in keys]
    rows = [
        {"key": key, "measure": measurement.label, "state": _state(entries.get(key))}
        | _flat(trial)
        | (_flat(score) if score else {})
        for key, trial, score in zip(keys, asked, scores, strict=True)
    ]
    points = curve_points(asked, scores, to_come)
    unfinished = {trial.method for trial, waits in zip(asked, to_come, strict=True) if waits}
    metric = metric_of(settings)
    if metric.relative:
        points, summary = summarise_gain(points, unfinished, metric.trivial)
    else:
        summary = summarise(points, facts.majority, unfinished, metric.trivial)
    measured = MeasureResults(
        label=measurement.label,
        x=measurement.x,
        settings=settings,
        facts=facts,
        summary=replace(summary, d90=_in_order(summary.d90, settings.methods)),
        points=points,
        progress=_progress(rows, [entries.get(key) for key in keys], settings.prune),
    )
    return measured, rows


def _in_order(by_method: dict[str, D90], methods: tuple[str, ...]) -> dict[str, D90]:
    """The same in the order of the settings; the smallest d is not every method's."""
    return {method: by_method[method] for method in methods if method in by_method}


def _state(entry) -> str:
    """The state of a trial in a word; `entry` is what the record knows of it, None before any
    attempt."""
    return TrialState.WAITING.value if entry is None else entry.state.value


def _flat(row: Trial | Score) -> dict[str, object]:
    """The fields by name; `asdict` would copy each value, which takes seconds for many trials."""
    return {name: getattr(row, name) for name in FIELDS[type(row)]}


def _progress(rows: list[dict], entries: list, prune: bool) -> Progress:
    counts = Counter(row["state"] for row in rows)
    missing = [TrialState.FAILED, TrialState.RUNNING, TrialState.WAITING]
    missing += [] if prune else [TrialState.PRUNED]
    entries = [entry for entry in entries if entry is not None]
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    return Progress(
        asked=len(rows),
        **{state.value: counts[state.value] for state in TrialState},
        missing=sum(counts[state.value] for state in missing),
        seconds=sum(seconds),
        timed=len(seconds),
        errors=dict(Counter(entry.error for entry in entries if entry.error)),
    )


def _total(parts: list[Progress]) -> Progress:
    """The progress of all measures together."""
    names = [field.name for field in fields(Progress) if field.name != "errors"]
    errors = sum((Counter(part.errors) for part in parts), Counter())
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return Progress(**sums, errors=dict(errors))


def _environments(rows: list[dict], entries: dict) -> list[dict]:
    """The versions and the hardware that trials ran with, each with its number of trials. Records
    of old name the GPU in a trial's score alone, so it is taken from there."""
    environments: dict[str, dict] = {}
    for row in rows:
        environment = row["state"] == TrialState.COMPLETE.value and entries[row["key"]].environment
        if not environment:
            continue
        hardware = environment.get("hardware", {})
        if row.get("accelerator") and not hardware.get("gpus"):
            hardware = {"gpus": [{"name": row["accelerator"]}], **hardware}
            environment = environment | {"hardware": hardware}
        name = json.dumps(environment, sort_keys=True)
        environments.setdefault(name, {"trials": 0, **environment})["trials"] += 1
    return list(environments.values())


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


def results_json(results: Results) -> str:
    """The results as JSON, a line a trial; what is not finite becomes null."""
    head = {field.name: getattr(results, field.name) for field in fields(results)}
    head["progress"] = asdict(results.progress)
    head["measures"] = [
        {field.name: getattr(measure, field.name) for field in fields(measure)}
        | {
            "settings": measure.settings.model_dump(),
            "facts": asdict(measure.facts),
            "summary": asdict(measure.summary),
            "points": [asdict(point) for point in measure.points],
            "progress": asdict(measure.progress),
        }
        for measure in results.measures
    ]
    rows = ",\n".join("    " + json.dumps(_finite(row)) for row in head.pop("trials"))
    text = json.dumps(_finite(head), indent=2, allow_nan=False)
    return f'{text[:-2]},\n  "trials": [\n{rows}\n  ]\n}}\n'


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
