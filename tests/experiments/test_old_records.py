"""Studies that version 0.1 wrote before trials were a type: their keys stay, their records resume
without training anything again, and their reports say the same numbers."""

import json
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from study_driver import work_in_threads
from study_folders import draw_nothing

from fastfood.experiments.report import figures, writer
from fastfood.experiments.settings.measurement import read_settings
from fastfood.experiments.settings.study import Measurement
from fastfood.experiments.settings.trial import Facts, Trial
from fastfood.experiments.trials import database, record, run
from fastfood.experiments.trials.folder import DATABASE, DESCRIPTION, STUDY

RECORDS = Path(__file__).parents[1] / "fixtures" / "record_0.1.json"
KEPT = json.loads(RECORDS.read_text())


def write(folder, kept, rows):
    """A folder as version 0.1 left it: study.json, and the rows of trials.db as they were."""
    (folder / DESCRIPTION).write_text(json.dumps(kept["study.json"]))
    url = database.sqlite_url(folder / DATABASE)
    study = optuna.create_study(storage=url, study_name=STUDY, direction="maximize")
    for name, value in kept["study_attributes"].items():
        study.set_user_attr(name, value)
    for row in rows:
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState[row["state"]],
            value=row["value"],
            user_attrs=row["attributes"],
        )
        trial.datetime_start = datetime.fromisoformat(row["start"])
        trial.datetime_complete = datetime.fromisoformat(row["complete"])
        study.add_trial(trial)
    return url


def key(config):
    """The key of the trial that a row's JSON is of."""
    as_read = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    return Trial(**as_read).key


def resumed(kept, url):
    """The trials that a driver still runs, by key; their training fails at once."""
    asked = []

    def train(settings, trial, floor):
        asked.append(trial.key)
        raise RuntimeError("not in this test")

    measures = [
        Measurement(m["label"], read_settings(m["settings"]), m["x"], Facts(**m["facts"]))
        for m in kept["study.json"]["measures"]
    ]
    run.run_study(measures, record.open_record(url, STUDY), lambda *event: None, train)
    return asked


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    work_in_threads(monkeypatch)
    monkeypatch.setattr(figures, "draw", draw_nothing)


def test_the_keys_of_trials_are_those_of_version_0_1():
    assert len(KEPT["keys"]) == 17
    for kept in KEPT["keys"]:
        assert key(kept["config"]) == kept["key"]
    for study in KEPT["studies"].values():
        for row in study["rows"]:
            assert key(row["attributes"]["config"]) == row["attributes"]["key"]


@pytest.mark.parametrize("name", KEPT["studies"])
def test_a_record_of_version_0_1_is_reported_to_the_digit(tmp_path, name):
    kept = KEPT["studies"][name]
    write(tmp_path, kept, kept["rows"])
    writer.write_report(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for part in ("measures", "trials"):
        assert len(results[part]) == len(kept["results"][part])
        for ours, theirs in zip(results[part], kept["results"][part], strict=True):
            check(ours, theirs)


def check(ours, theirs):
    """Every value that version 0.1 wrote is there, and the same."""
    if isinstance(theirs, dict):
        for name, value in theirs.items():
            check(ours[name] if value is not None else ours.get(name), value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            check(a, b)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", KEPT["studies"])
def test_a_record_of_version_0_1_resumes(tmp_path, name):
    kept = KEPT["studies"][name]
    assert resumed(kept, write(tmp_path, kept, kept["rows"])) == []


def test_what_a_record_of_version_0_1_lacks_is_run(tmp_path):
    kept = KEPT["studies"]["grid"]
    url = write(tmp_path, kept, kept["rows"][:-2])
    assert resumed(kept, url) == [row["attributes"]["key"] for row in kept["rows"][-2:]]
