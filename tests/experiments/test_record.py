"""The record of a study: claims, ends of attempts, heartbeats, and databases that do not work."""

import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
import study_driver

from fastfood.experiments.settings.trial import Score
from fastfood.experiments.training.environment import environment
from fastfood.experiments.trials import database
from fastfood.experiments.trials.database import sqlite_url
from fastfood.experiments.trials.plan import trials
from fastfood.experiments.trials.record import open_record

SCORE = Score(validation=0.5, test=0.25, seconds=3.0)


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "trials.db"
    open_record(sqlite_url(path), "s")
    return path


@pytest.fixture
def url(tmp_path, empty):
    shutil.copy(empty, tmp_path / "trials.db")  # making all tables takes a while
    return sqlite_url(tmp_path / "trials.db")


@pytest.fixture
def asked(tmp_path):
    measure = study_driver.measures(tmp_path)[0]
    return trials(measure.settings, measure.facts, {})


def _rows(url):
    return optuna.load_study(study_name="s", storage=url).trials


def _execute(tmp_path, statement):
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        connection.execute(statement)


def test_a_trial_is_kept_with_its_full_configuration(url, asked):
    record = open_record(url, "s")
    for trial in asked:
        assert record.finish(record.claim(trial), SCORE, environment())
    kept = _rows(url)
    assert [row.user_attrs["config"] for row in kept] == [asdict(trial) for trial in asked]
    assert all(row.value == 0.5 and row.state.name == "COMPLETE" for row in kept)
    assert [row.user_attrs["key"] for row in kept] == [trial.key for trial in asked]
    for reader in (record, open_record(url, "s")):
        assert study_driver.scores_of(reader) == {trial.key: SCORE for trial in asked}
        entry = reader.states()[asked[3].key]
        assert entry.trial == asked[3] and entry.state == "complete" and entry.attempts == 1
        assert entry.environment["versions"]["torch"] and entry.environment["hardware"]["cores"]


def test_a_claimed_trial_is_not_claimed_again_and_a_finished_one_neither(url, asked):
    first, second = open_record(url, "s", 60), open_record(url, "s", 60)
    number = first.claim(asked[0])
    key = asked[0].key
    assert second.claim(asked[0]) is None and second.state(key, False) == "running"
    assert first.claim(asked[0]) is None
    assert first.finish(number, SCORE) and second.claim(asked[0]) is None
    assert study_driver.scores_of(second) == {key: SCORE} and second.claim(asked[1]) is not None
    assert len(_rows(url)) == 2  # whoever saw it taken wrote nothing


def test_of_two_claims_at_once_the_earlier_row_has_the_trial(url, asked, monkeypatch):
    first, second = open_record(url, "s", 60), open_record(url, "s", 60)
    create, numbers = second._storage.create_new_trial, []

    def create_late(*arguments):
        numbers.append(first.claim(asked[0]))
        return create(*arguments)

    monkeypatch.setattr(second._storage, "create_new_trial", create_late)
    assert second.claim(asked[0]) is None and numbers[0] is not None
    assert [row.state.name for row in _rows(url)] == ["RUNNING", "FAIL"]
    assert first.finish(numbers[0], SCORE)
    second.read()
    entry = second.states()[asked[0].key]
    assert entry.state == "complete" and entry.attempts == 1


def test_a_failed_trial_has_no_score_and_is_open_at_the_next_start_only(url, asked):
    record, key = open_record(url, "s"), asked[0].key
    record.fail(record.claim(asked[0]), "RuntimeError: broken")
    assert record.claim(asked[0]) is None and record.state(key, False) == "failed"
    assert (
        study_driver.scores_of(record) == record.decided(True) == {}
        and _rows(url)[0].values is None
    )
    later = open_record(url, "s")
    assert later.states()[key].state == "failed"
    assert later.states()[key].error == "RuntimeError: broken"
    assert later.finish(later.claim(asked[0]), SCORE) and later.states()[key].attempts == 2
    assert study_driver.scores_of(later) == {key: SCORE} and later.states()[key].error is None


def test_a_trial_that_fails_elsewhere_after_this_start_is_closed(url, asked):
    other = open_record(url, "s", 60)
    number, record = other.claim(asked[0]), open_record(url, "s", 60)
    other.fail(number, "RuntimeError: broken")
    assert record.claim(asked[0]) is None
    assert record.state(asked[0].key, False) == "failed"


def test_diverged_trials_never_run_again_and_pruned_ones_without_pruning_only(url, asked):
    record = open_record(url, "s")
    record.fail(record.claim(asked[0]), "FloatingPointError: diverged", final=True)
    record.prune(record.claim(asked[1], prune=True), 0.25, 150)
    diverged, pruned = (trial.key for trial in asked[:2])
    for later in (record, open_record(url, "s")):
        assert study_driver.scores_of(later) == {} and later.decided(False) == {diverged: None}
        assert later.decided(True) == {diverged: None, pruned: None}
        assert later.states()[diverged].state == "diverged" and later.claim(asked[0]) is None
        entry = later.states()[pruned]
        assert (entry.state, entry.halfway, entry.step) == ("pruned", 0.25, 150)
        assert later.claim(asked[1], prune=True) is None
    assert [row.state.name for row in _rows(url)] == ["FAIL", "PRUNED"]
    assert all(row.values is None for row in _rows(url))
    assert record.finish(record.claim(asked[1]), SCORE)
    assert record.decided(True) == {diverged: None, pruned: SCORE}


def test_a_killed_trial_is_open_at_once_and_three_times_at_most(url, asked):
    record, key = open_record(url, "s"), asked[0].key
    record.give_back(record.claim(asked[0]), stopped=True)  # does not count
    for attempts in (1, 2, 3):
        assert record.state(key, False) == "waiting"
        record.give_back(record.claim(asked[0]))
        assert record.states()[key].attempts == attempts
    assert record.claim(asked[0]) is None and study_driver.scores_of(record) == {}
    entry = record.states()[key]
    assert entry.state == "failed" and entry.error == "the worker was killed 3 times"
    assert open_record(url, "s").claim(asked[0]) is not None


def test_a_lone_driver_frees_what_a_killed_one_left_and_a_reader_frees_nothing(url, asked):
    open_record(url, "s").claim(asked[0])
    record, key = open_record(url, "s"), asked[0].key
    assert record.states()[key].state == "running" and record.claim(asked[0]) is None
    record.claim(asked[1])
    record.free_stale()
    assert record.states()[key].state == "waiting"
    assert record.states()[asked[1].key].state == "running"  # its own
    assert record.claim(asked[0]) is not None


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
def test_rows_without_heartbeats_are_freed_after_the_grace_period(url, asked, tmp_path):
    dead, record = open_record(url, "s", 60), open_record(url, "s", 60)
    dead.claim(asked[0]), dead.claim(asked[1])
    late = "update trial_heartbeats set heartbeat = datetime('now', '-{} seconds')"
    _execute(tmp_path, late.format(170))
    record.free_stale()
    assert record.claim(asked[0]) is None and record.claim(asked[1]) is None
    _execute(tmp_path, late.format(190))
    dead._storage.record_heartbeat(2)  # the second trial's
    record.free_stale()
    assert record.claim(asked[0]) is not None and record.claim(asked[1]) is None


def test_a_row_that_never_had_a_heartbeat_gets_one_and_is_then_freed(
    url, asked, tmp_path, monkeypatch
):
    dead, record = open_record(url, "s", 1), open_record(url, "s", 1)
    monkeypatch.setattr(dead._storage, "record_heartbeat", lambda identifier: None)
    dead.claim(asked[0])
    now = 100.0
    monkeypatch.setattr("fastfood.experiments.trials.record.time.monotonic", lambda: now)
    record.free_stale()
    now += 3.5
    record.free_stale()
    _execute(tmp_path, "update trial_heartbeats set heartbeat = datetime('now', '-4 seconds')")
    assert record.state(asked[0].key, False) == "running"
    record.free_stale()
    assert record.state(asked[0].key, False) == "waiting"


def test_a_driver_that_was_taken_for_dead_records_its_result_once_or_not_at_all(
    url, asked, tmp_path
):
    asleep, other = open_record(url, "s", 60), open_record(url, "s", 60)
    numbers = [asleep.claim(trial) for trial in asked[:2]]
    _execute(tmp_path, "update trial_heartbeats set heartbeat = datetime('now', '-1 day')")
    other.free_stale()
    assert other.finish(other.claim(asked[1]), replace(SCORE, test=0.75))
    assert [asleep.finish(number, SCORE) for number in numbers] == [True, False]
    other.read()
    keys = [trial.key for trial in asked[:2]]
    assert (
        study_driver.scores_of(other)
        == study_driver.scores_of(asleep)
        == {keys[0]: SCORE, keys[1]: replace(SCORE, test=0.75)}
    )
    assert [row.state.name for row in _rows(url)].count("COMPLETE") == 2


def test_studies_of_one_database_do_not_mix(url, asked):
    first, second = open_record(url, "s", 60), open_record(url, "t", 60)
    first.finish(first.claim(asked[0]), SCORE)
    number = second.claim(asked[0])
    assert number is not None and len(second.states()) == 1
    assert second.finish(number, replace(SCORE, test=0.75))
    first.read()
    assert study_driver.scores_of(first) == {asked[0].key: SCORE}


def test_a_file_has_a_url_also_where_sqlalchemy_cuts_names(tmp_path, monkeypatch):
    """As SQLAlchemy before 2.1 does at a question mark; SQLite then gets the name as a URI."""
    path = tmp_path / "odd {name} %41?.db"
    monkeypatch.setattr(database.sa, "make_url", lambda url: database.sa.URL.create("sqlite"))
    url = sqlite_url(path)
    assert url.startswith("sqlite:///file:/") and url.endswith(".db?uri=true")
    name = url.removeprefix("sqlite:///").removesuffix("?uri=true")
    sqlite3.connect(name, uri=True).execute("create table t (i)").connection.close()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_damaged_database_is_refused(tmp_path):
    path = tmp_path / "odd {name} %41?.db"
    path.write_text("no database " * 100)
    with pytest.raises(ValueError, match="^storage: wanted an Optuna database at sqlite:.*got "):
        open_record(sqlite_url(path), "s")
    path.unlink()
    assert open_record(sqlite_url(path), "s").states() == {} and path.exists()


@pytest.mark.parametrize("name", ["study", "odd {name} %41?"])
def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    _execute(folder, "create table recipes (title text)")
    before = (folder / "trials.db").read_bytes()
    with pytest.raises(ValueError, match="^storage: wanted an Optuna .* of something else"):
        open_record(sqlite_url(folder / "trials.db"), "s")
    assert (folder / "trials.db").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "update trial_user_attributes set value_json = '[]' where key = 'result'",
        "update trial_user_attributes set value_json = '{}' where key = 'result'",
        "delete from trial_user_attributes where key = 'result'",
        "delete from trial_user_attributes where key = 'config'",
        "update trial_user_attributes set value_json = '{}' where key = 'config'",
        """update trial_user_attributes set value_json = replace(value_json, '"seed": 0',
        '"seed": "0"') where key = 'config'""",
    ],
)
def test_rows_that_were_changed_by_hand_are_refused(url, asked, tmp_path, change):
    record = open_record(url, "s")
    record.finish(record.claim(asked[0]), SCORE)
    _execute(tmp_path, change)
    with pytest.raises(ValueError, match="^storage: wanted .* row 0, got "):
        open_record(url, "s")


def test_rows_that_are_no_json_are_refused(url, asked, tmp_path):
    open_record(url, "s").claim(asked[0])
    _execute(tmp_path, "update trial_user_attributes set value_json = '{' where key = 'config'")
    with pytest.raises(ValueError, match="^storage: wanted an Optuna database .*got Expecting"):
        open_record(url, "s")


def test_rows_of_other_versions_are_read(url, asked, tmp_path):
    """A later version may add fields to a trial and its score, an earlier one lacks some."""
    record = open_record(url, "s")
    record.finish(record.claim(asked[0]), SCORE)
    for change in (
        "json_set(value_json, '$.later', 'a', '$.more', json('[1]'))",
        "json_remove(value_json, '$.gap_rows', '$.accelerator', '$.text_columns')",
    ):
        _execute(tmp_path, f"update trial_user_attributes set value_json = {change} "
                           "where key in ('config', 'result')")  # fmt: skip
        later = open_record(url, "s")
        assert study_driver.scores_of(later) == {asked[0].key: SCORE}
        assert later.states()[asked[0].key].trial == asked[0]


def test_a_database_out_of_reach_is_refused_without_its_password():
    for url in ("postgresql://me:p%40ss{w}ord@127.0.0.1:1/db", "nosuch://me:p%40ssword@host/db"):
        with pytest.raises(ValueError, match=r"^storage: wanted an Optuna database at ") as caught:
            open_record(url, "s")
        shown = f"{caught.value} {caught.value.__cause__}"
        assert "ssw" not in shown and "ss{w" not in shown and "me:***@" in shown
    with pytest.raises(ValueError, match="^storage: wanted a database URL") as caught:
        open_record("secret", "s")
    assert "secret" not in str(caught.value)


def test_a_password_in_the_database_s_own_message_is_hidden(monkeypatch):
    def refuse(url, **options):
        raise RuntimeError(f"no such server: {url}, p@ssword")

    monkeypatch.setattr(database, "RDBStorage", refuse)
    with pytest.raises(ValueError, match=r"got no such server: .*me:\*\*\*@host") as caught:
        open_record("postgresql://me:p%40ssword@host/db", "s")
    assert "ssword" not in str(caught.value)


def test_the_file_is_where_the_url_says(tmp_path):
    open_record(sqlite_url(tmp_path / "a.db"), "s")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a.db"]
