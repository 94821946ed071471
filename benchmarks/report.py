"""Measures how long the report of a study with 10,000 trials takes: seconds in all, and the shares
of reading its record, of the statistics, of drawing and of writing.

    python benchmarks/report.py [--trials 10000] [--keep DIR]
"""

import argparse
import json
import sqlite3
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import optuna

from fastfood.experiments.report import figures, writer
from fastfood.experiments.settings.measurement import complete, read_settings
from fastfood.experiments.settings.trial import Facts, Score, Trial
from fastfood.experiments.trials.folder import (
    DATABASE,
    DESCRIPTION,
    STUDY,
    DescribedMeasurement,
    Description,
    open_record,
    read_description,
)
from fastfood.experiments.trials.plan import trials

MODELS = {"bert-base-cased": 108, "bert-large-cased": 333, "roberta-base": 124}
ENVIRONMENT = "environment of the benchmark"


def describe(folder: Path, count: int) -> list[Trial]:
    """Writes the study.json of a table with about `count` trials and returns the trials."""
    measures, asked = [], []
    for task in ("glue/mrpc", "glue/qqp"):
        for model, millions in MODELS.items():
            dims = max(2, round(count / (len(MODELS) * 2 * 2 * 4 * 5)))
            values = {"task": task, "model": model, "dims": f"10:10000:{dims}", "seeds": 5}
            values |= {"lr_factors": "2,4,8,16", "full_lrs": "1e-5,2e-5", "out": str(folder)}
            settings = complete(read_settings(values))
            facts = Facts(
                device="cpu",
                D=10**6 * millions,
                m=14,
                num_labels=2,
                splits={},
                sizes={"train": 3000, "validation": 400, "test": 1700},
                majority=0.6,
                overlap=0,
                contamination=[],
                data_hash=task,
                model_hash=model,
                counts={},
            )
            measures.append({"label": f"{model}, {task}", "settings": settings, "facts": facts})
            asked += trials(settings, facts, {})
    description = Description(
        name="benchmark",
        title="10,000 trials",
        kind="table1",
        scale="full",
        command="benchmarks/report.py",
        storage=None,
        study=STUDY,
        measures=[DescribedMeasurement(x=None, **measure) for measure in measures],
    )
    (folder / DESCRIPTION).write_text(description.model_dump_json())
    return asked


def fill(folder: Path, asked: list[Trial]) -> None:
    """Writes a finished row for each trial, as a driver would have, in one transaction."""
    open_record(folder, read_description(folder).measures[0].settings)  # makes the tables
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{folder / DATABASE}")
    study.set_user_attr(ENVIRONMENT, {"versions": {"torch": "2.10"}, "hardware": {"cores": 2}})
    start = datetime(2026, 1, 1)
    rows, attributes = [], []
    for number, trial in enumerate(asked):
        noise = int(trial.key[:4], 16) / 0xFFFF * 0.02
        share = 0.6 + 0.3 * trial.d / (trial.d + 400) + noise
        score = Score(share, share, share, trained=trial.d, seconds=60.0, seconds_per_step=0.2)
        rows.append((number + 1, number, 1, "COMPLETE", start, start + timedelta(seconds=61)))
        for name, value in {
            "key": trial.key,
            "config": asdict(trial),
            "result": asdict(score) | {"environment": ENVIRONMENT},
        }.items():
            attributes.append((number + 1, name, json.dumps(value)))
    with sqlite3.connect(folder / DATABASE) as database:
        database.executemany(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, "
            "datetime_complete) VALUES (?, ?, ?, ?, ?, ?)",
            [(*row[:4], *map(str, row[4:])) for row in rows],
        )
        database.executemany(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
            attributes,
        )


def measure(folder: Path) -> dict[str, float]:
    """The processor's seconds for each part of one report, which other processes do not change."""
    settings = read_description(folder).measures[0].settings
    times = [time.process_time()]
    record = open_record(folder, settings)
    times.append(time.process_time())
    results = writer.gather(folder, record)
    times.append(time.process_time())
    drawn = figures.draw(results, folder)
    times.append(time.process_time())
    writer.write_results(results, folder)  # draws once more
    times.append(time.process_time())
    reading, statistics, drawing, all_files = (
        b - a for a, b in zip(times, times[1:], strict=False)
    )
    assert drawn
    writing = max(0.0, all_files - drawing)
    return {"reading": reading, "statistics": statistics, "drawing": drawing, "writing": writing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="leave the study in this folder")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as room:
        folder = arguments.keep or Path(room)
        folder.mkdir(parents=True, exist_ok=True)
        asked = describe(folder, arguments.trials)
        fill(folder, asked)
        start = time.perf_counter()
        seconds = measure(folder)
        wall = time.perf_counter() - start - seconds["drawing"]  # which ran twice
    total = sum(seconds.values())
    print(f"{len(asked):,} trials: {total:.1f} s of the processor, some {wall:.1f} s by the clock")
    for part, value in seconds.items():
        print(f"  {part:<10} {value:6.2f} s  {value / total:4.0%}")


if __name__ == "__main__":
    main()
