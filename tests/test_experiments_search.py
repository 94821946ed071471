"""Tests of a study's run: `fastfood d90` in a process of its own, with a training function that
only pretends (scores computed from the trial, every start noted in a file), so that kills, resumes
and failures are quick to try."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastfood import experiments
from fastfood.experiments import search
from fastfood.experiments.config import Settings, complete, trial_key, trial_list

# The parent package and the training module, which load torch, are stood in for.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from types import ModuleType

package = ModuleType("fastfood")
package.__path__, package.__version__ = [os.environ["PACKAGE"]], "0"
training = ModuleType("fastfood.experiments.train")
sys.modules.update({package.__name__: package, training.__name__: training})

from fastfood.experiments import cli, search

FACTS = {
    "D": 5000, "m": 4, "device": "cpu", "model_hash": "aa", "data_hash": "bb", "majority": 0.1,
    "splits": {"train": "made up"},
}

def pretend(settings, trial):
    folder = Path(os.environ["NOTES"])
    name = "{method}-{d}-{learning_rate}-{seed}".format(**trial)
    with (folder / "started").open("a") as notes:
        notes.write(f"{name} {os.getpid()}\\n")
    time.sleep(float(os.environ.get("SLEEP", "0")))
    if name.startswith(os.environ.get("FAIL", "nothing")):
        raise RuntimeError("this trial fails")
    if name.startswith(os.environ.get("DIE", "nothing")):
        os._exit(9)
    score = 0.95 if trial["method"] == "full" else 0.95 * trial["d"] / (trial["d"] + 30)
    score += 0.001 * trial["seed"]
    return {"validation": score - 0.1 * trial["learning_rate"], "test": score, "seconds": 1.0}

if __name__ == "__mp_main__" and "IMPORT" in os.environ:  # a worker that takes long to start
    with open(Path(os.environ["NOTES"], "started"), "a") as notes:
        notes.write(f"import {os.getpid()}\\n")
    time.sleep(float(os.environ["IMPORT"]))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    search.inspect = lambda settings: FACTS
    training.train_trial = pretend
    sys.argv[0] = "fastfood"
    cli.main()
"""
OPTIONS = ["d90", "--dims", "10,100,1000", "--lrs", "0.1,0.2", "--workers", "2"]
TRIALS = 2 + 3 * 2 * 2 * 2


@pytest.fixture
def driver(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    package = str(Path(experiments.__file__).parents[1])

    def start(out="study", options=OPTIONS, **variables):
        return subprocess.Popen(
            [sys.executable, "driver.py", *options, "--out", out],
            cwd=tmp_path,
            env=os.environ | {"PACKAGE": package, "NOTES": str(tmp_path)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _finish(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def _started(folder):
    notes = folder / "started"
    return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []


def _states(database):
    if not database.exists():
        return []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        try:
            return [row[0] for row in connection.execute("select state from trials")]
        except sqlite3.OperationalError:  # still being made
            return []


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def _table(folder):
    results = json.loads((folder / "results.json").read_text())
    return results["trials"], results["points"], results["summary"]


def test_a_killed_run_resumes_with_the_same_results_and_nothing_done_twice(driver, tmp_path):
    undisturbed = driver("undisturbed")
    code, out, err = _finish(undisturbed)
    assert code == 0, err
    assert "d90 DID: 1000 [1000, 1000]" in out and f"{TRIALS}/{TRIALS}" in out
    assert len(_started(tmp_path)) == TRIALS
    (tmp_path / "started").unlink()

    database = tmp_path / "study" / "trials.db"
    killed = driver(SLEEP="0.1")
    _wait_for(lambda: len(_states(database)) >= 5)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    workers = {int(pid) for _, pid in _started(tmp_path)}
    _wait_for(lambda: not any(_alive(pid) for pid in workers), seconds=5)
    kept = len(_states(database))
    assert 5 <= kept < TRIALS and not (tmp_path / "study" / "results.json").exists()
    before = [name for name, _ in _started(tmp_path)]

    code, out, err = _finish(driver())
    assert code == 0, err
    assert f"{kept} of {TRIALS} trials are already in" in out
    assert _states(database) == ["COMPLETE"] * TRIALS
    names = [name for name, _ in _started(tmp_path)]
    # only what was running when the kill came started twice: at most one trial a worker
    assert len(names) == len(before) + TRIALS - kept
    assert len(set(names)) == TRIALS and len(before) - kept <= 2
    assert _table(tmp_path / "study") == _table(tmp_path / "undisturbed")


@pytest.mark.parametrize("moment", ["SLEEP", "IMPORT"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_its_workers_and_says_how_to_go_on(
    driver, tmp_path, number, code, moment
):
    stopped = driver(**{moment: "60"})
    _wait_for(lambda: len(_started(tmp_path)) == 2)
    workers = [int(pid) for _, pid in _started(tmp_path)]
    if (
        number == signal.SIGINT
    ):  # a terminal sends it to the workers, too, and they wait to be ended
        for pid in workers:
            os.kill(pid, number)
        time.sleep(0.5)
        assert all(_alive(pid) for pid in workers)
    stopped.send_signal(number)
    returned, out, err = _finish(stopped)
    assert returned == code and "Traceback" not in err
    assert ("the same command goes on" in out) == (number == signal.SIGINT)
    assert not any(_alive(pid) for pid in workers)
    assert _states(tmp_path / "study" / "trials.db") == []


def test_failed_trials_are_reported_kept_without_a_score_and_tried_again(driver, tmp_path):
    code, out, err = _finish(driver(FAIL="said-100-0.2"))
    assert code == 1 and out.count("this trial fails") == 2 and "2 trials failed" in out
    states = _states(tmp_path / "study" / "trials.db")
    assert states.count("FAIL") == 2 and states.count("COMPLETE") == TRIALS - 2
    rows, points, _ = _table(tmp_path / "study")
    assert sum(row["test"] is None for row in rows) == 2 and len(points) == 7
    code, out, err = _finish(driver())
    assert code == 0 and len(_started(tmp_path)) == TRIALS + 2
    assert all(row["test"] is not None for row in _table(tmp_path / "study")[0])


def test_a_dying_worker_fails_its_trial_and_the_others_run(driver, tmp_path):
    options = [*OPTIONS[:-1], "1"]
    code, out, err = _finish(driver(options=options, DIE="did-10-0.1-0"))
    assert code == 1 and "1 trials failed" in out and "BrokenProcessPool" in out
    assert _states(tmp_path / "study" / "trials.db").count("COMPLETE") == TRIALS - 1


def test_changed_settings_reuse_the_trials_that_agree(driver, tmp_path):
    first = ["d90", "--dims", "10,100", "--lrs", "0.1", "--seeds", "1", "--method", "did"]
    assert _finish(driver(options=first))[0] == 0
    assert len(_started(tmp_path)) == 3
    second = ["d90", "--dims", "100,1000", "--lrs", "0.1", "--seeds", "2", "--method", "did"]
    assert _finish(driver(options=second))[0] == 0
    names = [name for name, _ in _started(tmp_path)]
    assert len(names) == len(set(names)) == 3 + 4
    rows, points, _ = _table(tmp_path / "study")
    assert {point["d"] for point in points} == {100, 1000, 5000} and len(rows) == 6


def test_a_trial_is_kept_with_its_full_configuration(tmp_path):
    settings = complete(Settings(dims=(10,), lrs=(0.1,), seeds=1, out=str(tmp_path)))
    facts = {"D": 5000, "device": "cpu", "model_hash": "aa", "data_hash": "bb"}
    study = search.open_study(tmp_path)
    result = {"validation": 0.5, "test": 0.25, "seconds": 3.0}
    for trial in trial_list(settings, facts):
        search.record(study, trial, search.datetime.now(), result, None)
    kept = search.open_study(tmp_path).trials
    assert [trial.params["method"] for trial in kept] == ["full", "did", "said"]
    assert [trial.user_attrs["config"] for trial in kept] == trial_list(settings, facts)
    for trial in kept:
        assert trial.value == 0.5 and trial.user_attrs["result"] == result
        assert trial.user_attrs["key"] == trial_key(trial.user_attrs["config"])
        assert trial.user_attrs["versions"]["torch"] and trial.user_attrs["hardware"]["cores"]
