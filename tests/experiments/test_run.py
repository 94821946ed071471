"""Tests of driving a study: which trials run again, and worker processes and drivers that are
stopped or killed. Their processes replace the parent package, which would load torch."""

import os
import signal
import sqlite3
import subprocess
from dataclasses import replace

import pytest
import study_driver
from study_driver import alive, behave, finish, measures, name_of, names, started, wait_for

from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials import plan, run
from fastfood.experiments.trials.database import sqlite_url
from fastfood.experiments.trials.record import open_record

TRIALS = 2 + 2 * 2 * 2 * 2  # full in two seeds; two values of d, methods, rates and seeds


@pytest.fixture
def study(tmp_path):
    behave(tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def drive(study, monkeypatch):
    """Runs the study with workers in threads; returns the failed count and the events."""
    study_driver.work_in_threads(monkeypatch, 2)
    monkeypatch.setattr(run, "POLL", 0.05)

    def start(record=None, given=None, train=study_driver.pretend, **changes):
        events = []
        record = record or open_record(sqlite_url(study / "trials.db"), "made up")
        given = given or measures(study, **changes)
        failed = run.run_study(given, record, lambda *event: events.append(event), train)
        return failed, events, record

    return start


def test_a_study_runs_each_trial_once_and_a_resumed_one_only_what_is_missing(study, drive):
    failed, events, record = drive(dims=(10,), seeds=1)
    assert failed == 0 and len(names(study)) == 5 and events[0] == (0, 5, None, None, "")
    assert [event[:2] for event in events] == [(done, 5) for done in range(6)]
    assert all(event[4].endswith("%") for event in events[1:])
    failed, events, record = drive()
    assert failed == 0 and events[0] == (5, TRIALS, None, None, "")
    assert (
        len(names(study)) == len(set(names(study))) == TRIALS == len(study_driver.scores_of(record))
    )
    failed, events, record = drive()
    assert failed == 0 and events == [(TRIALS, TRIALS, None, None, "")]
    assert len(names(study)) == TRIALS


def test_measures_share_the_trials_that_agree(study, drive):
    given = measures(study, methods=("did",), seeds=1) + measures(study, methods=("said",), seeds=1)
    failed, events, record = drive(given=given)
    assert failed == 0 and events[-1][:2] == (9, 9)
    assert len(names(study)) == len(set(names(study))) == 1 + 4 + 4


def test_a_bisection_grows_until_its_end_and_another_start_adds_nothing(study, drive):
    given = measures(study, search="bisect", bracket=(10, 4000), lrs=(0.1,), seeds=1)
    _, events, record = drive(given=given)
    asked = plan.trials(given[0].settings, given[0].facts, study_driver.scores_of(record))
    assert {trial.key for trial in asked} == set(study_driver.scores_of(record))
    tried = sorted({trial.d for trial in asked if trial.method == "did"})
    assert len(tried) > 4 and tried[0] < 270 < tried[-1]  # 0.95 d / (d + 30) is 0.855 at 270
    assert len(names(study)) == len(set(names(study))) == len(asked)
    drive(given=given)
    assert len(names(study)) == len(asked)


def test_failed_trials_run_again_at_the_next_start_and_diverged_ones_never(study, drive):
    behave(study, fail="said-100-0.2", diverge="did-10-0.1")
    failed, events, record = drive()
    assert failed == 2 and len(study_driver.scores_of(record)) == TRIALS - 4
    told = [event[4] for event in events if event[4].startswith("failed")]
    assert told.count("failed: RuntimeError: this trial fails") == 2
    assert told.count("failed: FloatingPointError: diverged: the loss is nan") == 2
    behave(study)
    failed, events, record = drive()
    assert failed == 0 and len(names(study)) == TRIALS + 2
    assert len(study_driver.scores_of(record)) == TRIALS - 2 and events[0][:2] == (
        TRIALS - 2,
        TRIALS,
    )


def test_pruned_trials_have_no_score_and_stop_their_rate(study, drive):
    behave(study, prune="did-100-0.2-0")
    failed, events, record = drive(prune=True, workers=1)
    entries = {name_of(entry.trial): entry for entry in record.states().values()}
    pruned = entries["did-100-0.2-0"]
    assert failed == 0 and (pruned.state, pruned.halfway, pruned.step) == ("pruned", 0.25, 150)
    assert pruned.score is None and "did-100-0.2-1" not in entries
    assert "pruned" in [event[4] for event in events] and events[-1][:2] == (TRIALS - 1, TRIALS - 1)
    behave(study)
    failed, events, record = drive()  # without pruning they are missing
    assert failed == 0 and len(study_driver.scores_of(record)) == TRIALS
    assert len(names(study)) == TRIALS + 1


def test_a_floor_is_given_to_trials_that_may_be_pruned(study, drive):
    floors = {}

    def train(settings, trial, floor):
        floors[name_of(trial)] = floor
        return replace(study_driver.pretend(settings, trial, floor), halfway=0.5)

    drive(train=train)
    assert set(floors.values()) == {None} and len(floors) == TRIALS
    drive(train=train, prune=True, lrs=(0.1, 0.2, 0.3, 0.4))
    assert floors["did-10-0.4-0"] == pytest.approx(0.5 - plan.PRUNE_MARGIN)


def test_a_trial_whose_worker_dies_is_tried_three_times(study, drive):
    def train(settings, trial, floor):
        result = study_driver.pretend(settings, trial, floor)
        times = names(study).count(name_of(trial))
        if name_of(trial) == "did-10-0.1-0" or name_of(trial) == "said-10-0.1-0" and times == 1:
            raise ProcessLookupError
        return result

    failed, events, record = drive(train=train)
    assert failed == 1 and len(study_driver.scores_of(record)) == TRIALS - 1
    assert names(study).count("did-10-0.1-0") == 3 and names(study).count("said-10-0.1-0") == 2
    told = [event[4] for event in events]
    assert told.count("killed") == 4 and "failed: the worker was killed 3 times" in told


def test_a_driver_waits_for_trials_of_others_and_takes_over_what_they_leave(study, drive):
    url = sqlite_url(study / "trials.db")
    other = open_record(url, "made up", 60)
    measure = measures(study)[0]
    asked = plan.trials(measure.settings, measure.facts, {})
    held = [other.claim(trial) for trial in asked[:3]]
    turns = []

    def look(read=run.Record.read):
        turns.append(1)
        if len(turns) == 5:
            other.finish(held[0], Score(0.5, 0.25))
            other.fail(held[1], "RuntimeError: broken")
            other.give_back(held[2])
        read(record)

    record = open_record(url, "made up", 60)
    record.read = look
    failed, events, _ = drive(record=record)
    assert failed == 1 and len(study_driver.scores_of(record)) == TRIALS - 1
    assert sorted(names(study)) == sorted(map(name_of, asked[2:]))
    assert events[-1][:2] == (TRIALS, TRIALS) and len(events) == TRIALS + 1


@pytest.fixture
def driver(study):
    with study_driver.drivers(study) as start:
        yield start


def _states(database):
    with sqlite3.connect(database) as connection:  # a killed writer's journal is to be undone
        return [row[0] for row in connection.execute("select state from trials order by trial_id")]


def test_a_killed_driver_takes_its_workers_along_and_the_next_one_resumes(driver, study):
    behave(study, sleep=0.2)
    killed = driver()
    wait_for(lambda: len(started(study)) >= 6)
    killed.kill()
    killed.communicate()
    wait_for(lambda: not any(alive(int(pid)) for _, pid in started(study)), seconds=5)
    before, states = names(study), _states(study / "trials.db")
    kept = states.count("COMPLETE")
    assert 2 <= kept < TRIALS and "RUNNING" in states
    behave(study)
    code, out, err = finish(driver())
    assert code == 0, err
    assert out.splitlines()[0].startswith(f"{kept}/{TRIALS}")
    assert _states(study / "trials.db").count("COMPLETE") == TRIALS
    # only what was running when the kill came started twice: at most one trial a worker, and one
    # a worker that had ended but was not yet written down
    assert len(names(study)) == len(before) + TRIALS - kept
    assert len(set(names(study))) == TRIALS and len(before) - kept <= 4


def test_a_killed_worker_takes_only_its_own_trial_along(driver, study):
    behave(study, die="did-10-0.1-0", deaths=1, fail="said-10-0.2-1", sleep=0.05)
    code, out, err = finish(driver())
    assert code == 1 and "did-10-0.1-0 killed" in out, err
    states = _states(study / "trials.db")
    assert (states.count("COMPLETE"), states.count("FAIL")) == (TRIALS - 1, 2)
    assert len(names(study)) == TRIALS + 1 and out.count("killed") == 1
    assert len({pid for _, pid in started(study)}) == 3  # the two workers and one in its place


@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGINT, 130, "sleep"),
        (signal.SIGINT, 130, "import"),
        (signal.SIGTERM, 143, "sleep"),
        (signal.SIGTERM, 143, "import"),
        (signal.SIGHUP, 129, "sleep"),
    ],
)
def test_a_stopped_driver_ends_its_workers_and_gives_their_trials_back(
    driver, study, number, code, moment
):
    behave(study, **{moment: 60})
    stopped = driver()
    wait_for(lambda: len(started(study)) == 2)
    pids = [int(pid) for _, pid in started(study)]
    if number == signal.SIGINT:  # a terminal sends it to the workers, too; they wait to be ended
        for pid in pids:
            os.kill(pid, number)
        with pytest.raises(subprocess.TimeoutExpired):
            stopped.wait(0.5)
        assert all(map(alive, pids))
    stopped.send_signal(number)
    returned, out, err = finish(stopped)
    assert returned == code and "Traceback" not in err, err
    assert not any(map(alive, pids))
    assert _states(study / "trials.db") == ["FAIL", "FAIL"]
    record = open_record(sqlite_url(study / "trials.db"), "made up")
    assert [entry.attempts for entry in record.states().values()] == [0, 0]


def test_three_drivers_at_once_on_one_file_do_everything_once(driver, study):
    behave(study, threads=2)
    ended = [finish(process) for process in [driver(heartbeat=60) for _ in range(3)]]
    assert [code for code, _, _ in ended] == [0] * 3, ended
    assert len(names(study)) == len(set(names(study))) == TRIALS
    assert _states(study / "trials.db").count("COMPLETE") == TRIALS
    assert all(f"{TRIALS}/{TRIALS}" in out for _, out, _ in ended)
