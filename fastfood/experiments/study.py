"""Conducts a study: pre-trains the models it needs, inspects every model and data set, writes the
study's description to OUT/study.json, runs the trials with a progress bar, and reports."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .settings.study import Measurement, Planned
from .settings.trial import Trial
from .trials.folder import describe, locked_folder, open_record


def conduct(planned: Planned) -> int:
    """Runs a study and returns the exit code: 0, 1 when trials failed, 130 when interrupted.

    Raises ValueError naming the argument for every mistake that can be seen before training.
    """
    console = Console()
    settings, record = planned.measurements[0].settings, None
    shared = settings.storage is not None
    try:
        if not planned.pretrainings:  # before anything is written
            measurements = _inspect(console, planned)
            record = open_record(planned.out, settings) if shared else None
        with locked_folder(planned.out, shared):
            if planned.pretrainings:
                _pretrain(console, planned)
                measurements = _inspect(console, planned)
            record = record or open_record(planned.out, settings)
            describe(planned, measurements)
            failed = _run(console, measurements, record)
            _report(console, planned.out, record)
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here", style="yellow")
        return 130
    if failed:
        console.print(f"{failed} trials failed; the same command tries them again", style="red")
    return 1 if failed else 0


def _pretrain(console: Console, planned: Planned) -> None:
    from .training.pretrain import run

    for pretraining in planned.pretrainings:
        with console.status(f"pre-training {escape(Path(pretraining.out).name)} ..."):
            run(pretraining)


def _inspect(console: Console, planned: Planned) -> list[Measurement]:
    measurements = []
    for measurement in planned.measurements:
        with console.status(f"loading the data and the model of {escape(measurement.label)} ..."):
            from .trials.facts import inspect  # importing it takes seconds

            measurements.append(replace(measurement, facts=inspect(measurement.settings)))
    return measurements


def _run(console: Console, measurements: list[Measurement], record) -> int:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .trials.run import run_study

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

        def on_event(
            done: int, asked: int, measure: Measurement | None, trial: Trial | None, outcome: str
        ) -> None:
            progress.update(bar, completed=done, total=asked)
            if measure is None or trial is None:  # the study starts
                progress.advance(bar, 0)  # the time left is estimated from here on
                if done:
                    console.print(f"{done} of {asked} trials are already done")
                return
            name = f"{trial.method} d = {trial.d} rate {trial.learning_rate:g} seed {trial.seed}"
            if len(measurements) > 1:
                name = f"{measure.label}: {name}"
            if outcome.startswith("failed"):
                console.print(f"{name}: {outcome}", style="red", markup=False)
            elif not console.is_terminal:  # a log file shows no bar
                print(f"{done}/{asked} {name}: {outcome}", flush=True)

        return run_study(measurements, record, on_event)


def _report(console: Console, out: Path, record) -> None:
    from .report import writer

    results = writer.gather(out, record)
    written = writer.write_results(results, out)
    writer.print_report(console, results)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)
