"""Tests of several processes on one folder, and of the signals that end them."""

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback

import pytest
import study_driver
import study_folders
from commands import TINY, contents, invoke
from study_driver import behave, names, wait_for
from study_folders import written_study

from fastfood.experiments import cli, recipes, study
from fastfood.experiments.bound import certify
from fastfood.experiments.report import figures, writer
from fastfood.experiments.trials import facts as look
from fastfood.experiments.trials import folder, run
from fastfood.experiments.trials.database import sqlite_url


def in_process(function, *arguments):
    """Starts a function in a copy of this process, which has loaded everything."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def conduct(out, changes):
    """Drives a study whose trainings are made up."""
    facts = study_folders.facts()
    look.inspect = lambda settings: facts
    run.open_workers = lambda settings, device: study_driver.Threads(2)
    run.POLL = 0.05
    from fastfood.experiments.training import train

    train.train_trial = study_driver.pretend
    settings = study_driver.measures(out, **changes)[0].settings
    try:
        code = study.conduct(recipes.single(settings))
    except ValueError as error:
        print(error, file=sys.stderr)
        code = 2
    os._exit(code)


def test_two_drivers_and_a_watcher_on_one_folder_end_well(tmp_path):
    out, url = tmp_path / "study", sqlite_url(tmp_path / "shared.db")
    behave(out, sleep=0.05)
    common = {"storage": url, "heartbeat": 60, "methods": ["did"], "seeds": 1}
    drivers = [in_process(conduct, out, common | {"dims": dims}) for dims in ([10], [10, 100])]
    wait_for((out / "study.json").exists)
    watcher = in_process(lambda: writer.watch(out, 0.1))
    for process in (*drivers, watcher):
        process.join(60)
        assert process.exitcode == 0
    assert len(names(out)) == len(set(names(out))) == 1 + 2 * 2
    results = json.loads((out / "results.json").read_text())
    assert results["progress"]["missing"] == 0
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_second_driver_without_a_shared_database_is_refused(tmp_path, capfd):
    out = tmp_path / "study"
    behave(out, sleep=1.0)
    common = {"methods": ["did"], "seeds": 1, "dims": [10]}
    first = in_process(conduct, out, common)
    wait_for(lambda: names(out))
    second = in_process(conduct, out, common | {"dims": [100]})
    second.join(60)
    assert second.exitcode == 2 and "that no other run uses" in capfd.readouterr().err
    first.join(60)
    assert first.exitcode == 0 and len(names(out)) == len(set(names(out))) == 3
    assert json.loads((out / "results.json").read_text())["progress"]["missing"] == 0


def test_a_folder_with_files_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(ValueError, match=r"^out: wanted .*report\.md is another's"):
        folder.locked_folder(tmp_path, shared=False).__enter__()
    assert contents(tmp_path) == {"report.md": b"mine"}


# signals


def started_by(arguments, log):
    """The console script in a copy of this process; its stderr goes to the file `log`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = log.open("w")
    os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(os.dup(2), "w"), os.fdopen(os.dup(2), "w")
    sys.argv = ["fastfood", *map(str, arguments)]
    code = 1
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def stopped(process, number, log):
    for _ in range(4):  # one that comes while a destructor runs is lost
        if process.is_alive():
            os.kill(process.pid, number)
            process.join(10)
    text = log.read_text()
    if process.is_alive():
        process.kill()
        process.join()
        text += "Traceback: none, it did not end"
    assert process.exitcode is not None and "Traceback" not in text, text
    return process.exitcode


SIGNALS = [(signal.SIGINT, (1, 130)), (signal.SIGTERM, (143,)), (signal.SIGHUP, (129,))]


@pytest.mark.parametrize(("number", "codes"), SIGNALS)
def test_a_stopped_pretraining_goes_on(tmp_path, number, codes):
    out, log = tmp_path / "vit", tmp_path / "log"
    process = in_process(
        started_by, ["pretrain", "--out", out, *TINY, "--checkpoints", "0,99999"], log
    )
    wait_for((out / "step-0").is_dir)
    assert stopped(process, number, log) in codes
    assert not list(out.glob(".*"))
    assert invoke("pretrain", "--out", out, *TINY).exit_code == 0


@pytest.mark.parametrize(("number", "codes"), SIGNALS)
def test_a_stopped_bound_and_a_stopped_watcher_end(tmp_path, monkeypatch, number, codes):
    def sleep(*arguments):
        (tmp_path / "begun").touch()
        time.sleep(60)

    monkeypatch.setattr(certify, "certify", sleep)
    log = tmp_path / "log"
    process = in_process(started_by, ["bound", "a", "--out", tmp_path / "bound.json"], log)
    wait_for((tmp_path / "begun").exists)
    assert stopped(process, number, log) in codes and not (tmp_path / "bound.json").exists()

    held, out = written_study(tmp_path / "study"), tmp_path / "study"
    monkeypatch.setattr(writer, "open_record", lambda out, settings: held)
    monkeypatch.setattr(figures, "draw", study_folders.draw_nothing)
    process = in_process(started_by, ["report", out, "--watch"], log)
    wait_for((out / "report.html").exists)
    time.sleep(0.1)
    assert stopped(process, number, log) in codes
    assert 'http-equiv="refresh"' not in (out / "report.html").read_text()
    assert not list(out.glob(".*"))


def test_nohup_is_respected(monkeypatch):
    from fastfood.experiments.refusal import exit_on_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        exit_on_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
