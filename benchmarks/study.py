"""Measures what driving a study costs: the share of the workers' time that is not training, with
trials that sleep; the driver's processor time per trial, also with many rows in the record; and the
wall time of two workers and of one, with trials that keep a core busy.

    python benchmarks/study.py [--trials 1000] [--seconds 1] [--workers 2] [--rows 10000]
"""

import argparse
import json
import os
import sqlite3
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.study import Measurement
from fastfood.experiments.settings.trial import Facts, Score
from fastfood.experiments.trials.database import sqlite_url
from fastfood.experiments.trials.plan import cell_trials
from fastfood.experiments.trials.record import open_record
from fastfood.experiments.trials.run import run_study

FACTS = Facts(
    device="cpu",
    D=10**6,
    m=4,
    num_labels=2,
    splits={},
    sizes={},
    majority=0.1,
    overlap=0,
    contamination=[],
    data_hash="bb",
    model_hash="aa",
    counts={},
)
SCORE = Score(validation=0.5, test=0.5)


def pause(settings, trial, floor):
    """Replaces training on another device: sleeps for as many seconds as lambda_lr says."""
    time.sleep(settings.lambda_lr)
    return SCORE


def burn(settings, trial, floor):
    """Replaces training on the CPU: keeps a core busy for some seconds."""
    total = 0
    for number in range(int(settings.lambda_lr * 2e7)):
        total += number
    return SCORE


def _measure(folder: Path, trials: int, workers: int, seconds: float) -> list[Measurement]:
    """A grid of one method and rate with `trials` values of d, and one full run."""
    dims = tuple(range(1, trials))
    settings = Settings(methods=("did",), dims=dims, lrs=(0.1,), seeds=1, lambda_lr=seconds)
    settings = complete(settings.replaced(workers=workers, out=str(folder)))
    return [Measurement("made up", settings, facts=FACTS)]


def _fill(path: Path, rows: int) -> None:
    """Adds complete trials of other settings to an empty record, in one transaction."""
    settings = complete(Settings(lrs=(0.1,)))
    now = "2026-01-01 00:00:00.000000"
    with sqlite3.connect(path) as connection:
        for number in range(rows):
            (trial,) = cell_trials(settings, FACTS, "did", -number, seed=0)
            attributes = {"key": trial.key, "config": asdict(trial), "result": asdict(SCORE)}
            row = (number + 1, number, 1, "COMPLETE", now, now)
            connection.execute("insert into trials values (?, ?, ?, ?, ?, ?)", row)
            connection.executemany(
                "insert into trial_user_attributes(trial_id, key, value_json) values (?, ?, ?)",
                [(number + 1, name, json.dumps(value)) for name, value in attributes.items()],
            )


def _run(trials: int, workers: int, seconds: float, train, rows: int = 0) -> tuple[float, float]:
    """The wall time and the driver's processor time between ends of trials, in seconds per trial.

    The first trial of each worker is left out: it waits for the process to start.
    """
    ends = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "trials.db")
        open_record(sqlite_url(path), "made up")
        _fill(path, rows)
        start = time.perf_counter()
        record = open_record(sqlite_url(path), "made up")
        if rows:
            print(f"opening a record of {rows} trials: {time.perf_counter() - start:.2f} s")

        def on_event(done, asked, measure, trial, outcome):
            if trial:
                ends.append((time.perf_counter(), time.process_time()))

        run_study(_measure(Path(name), trials, workers, seconds), record, on_event, train)
    (wall, driver), (last_wall, last_driver) = ends[workers - 1], ends[-1]
    return (last_wall - wall) / (trials - workers), (last_driver - driver) / (trials - workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0, help="training time of a trial")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=10_000, help="finished trials in the record")
    asked = parser.parse_args()
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for trials, rows in ((asked.trials, 0), (max(50, asked.trials // 10), asked.rows)):
        wall, driver = _run(trials, asked.workers, asked.seconds, pause, rows)
        share = wall * asked.workers / asked.seconds - 1
        print(
            f"{trials} trials of {asked.seconds:g} s, {asked.workers} workers, {rows} rows before: "
            f"overhead {share:.2%} of the training time, driver {driver * 1e3:.1f} ms a trial"
        )
    one, two = (_run(16, workers, 1.0, burn)[0] for workers in (1, 2))
    print(
        f"two workers against one, wall time a trial: {two:.2f} s / {one:.2f} s = {two / one:.2f}"
    )


if __name__ == "__main__":
    main()
