"""Commands on machines with faults: full disks, folders without rights, a clock that is set back,
terminals that cannot show what is printed, containers without semaphores."""

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import study_driver
import study_folders
import torch
from commands import TINY, contents, invoke
from study_folders import written_study

import fastfood
from fastfood.experiments import study
from fastfood.experiments.bound import certify, command
from fastfood.experiments.report import figures, writer
from fastfood.experiments.settings import measurement
from fastfood.experiments.settings.measurement import Settings
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials import facts as look
from fastfood.experiments.trials import plan
from fastfood.experiments.trials import record as records
from fastfood.experiments.trials.database import sqlite_url

NOBODY = 65534
PR_SET_KEEPCAPS, CAPABILITIES_3, CAP_DAC_READ_SEARCH = 8, 0x20080522, 2  # of Linux


@contextmanager
def full_disk(room):
    """Makes writes fail that let a file grow beyond `room` bytes, as on a full disk."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def without_rights():
    """Runs its body as a user who may read but not write this user's files."""
    root = os.geteuid() == 0
    if root:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresuid(NOBODY, NOBODY, 0)
        # Python and this repository may lie where another user cannot read
        header, held = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, held)
        held[0], held[3] = 1 << CAP_DAC_READ_SEARCH, 0
        libc.capset(header, held)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def read_only():
    """A folder that `without_rights` can only read."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def seal(folder):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def refused(*arguments):
    """The only line that a command prints on stderr before it ends with exit code 2."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))


def adapted():
    return fastfood.get_subspace_model(small_model(), fastfood.SubspaceConfig(d=10))


# disk full


def test_on_a_full_disk_an_adapter_stays_as_it_was(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    with torch.no_grad():
        model.theta.add_(1)
    with full_disk(100), pytest.raises(OSError):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("room", [100, 3000, 30_000])
def test_on_a_full_disk_a_report_s_files_stay_whole(tmp_path, monkeypatch, room):
    held = written_study(tmp_path / "study")
    writer.write_report(tmp_path / "study", held)
    before = contents(tmp_path)
    monkeypatch.setattr(writer, "open_record", lambda out, settings: held)
    with full_disk(room):
        assert "File too large" in refused("report", tmp_path / "study")
    after = contents(tmp_path)
    assert after.keys() == before.keys() and json.loads(after["study/results.json"])
    assert after["study/report.html"] == before["study/report.html"]


def test_on_a_full_disk_the_record_says_so_and_loses_one_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PATIENCE", 0.0)
    url = sqlite_url(tmp_path / "trials.db")
    record = records.open_record(url, "s")
    measure = study_driver.measures(tmp_path)[0]
    asked = plan.trials(measure.settings, measure.facts, {})
    assert record.finish(record.claim(asked[0]), Score(0.5, 0.25))
    number = record.claim(asked[1])
    with full_disk(4096), pytest.raises(ValueError, match="^storage: wanted .*got "):
        record.finish(number, Score(0.5, 0.25, accelerator=20_000 * "x"))
    assert not list(tmp_path.glob("*.tmp"))
    later = records.open_record(url, "s")
    later.free_stale()
    assert list(study_driver.scores_of(later)) == [asked[0].key]
    assert later.finish(later.claim(asked[1]), Score(0.5, 0.25))


@pytest.mark.parametrize("room", [20, 2000])
def test_on_a_full_disk_a_pretraining_leaves_no_half_checkpoint_and_goes_on(tmp_path, room):
    arguments = ["pretrain", "--out", tmp_path / "vit", *TINY]
    with full_disk(room):
        assert "File too large" in refused(*arguments)
    left = {path.name for path in (tmp_path / "vit").iterdir()}
    assert left <= {"pretrain.json", "pretrain.lock", "resume"}
    assert invoke(*arguments).exit_code == 0
    assert (tmp_path / "vit" / "step-4" / "model.safetensors").is_file()


def test_on_a_full_disk_a_merged_model_is_not_written(tmp_path, model_folder):
    import transformers

    base = transformers.AutoModel.from_pretrained(model_folder)
    fastfood.get_subspace_model(base, fastfood.SubspaceConfig(d=20)).save_pretrained(tmp_path / "a")
    arguments = ["adapter", "merge", tmp_path / "a", "--model", model_folder, "--out"]
    before = contents(tmp_path)
    with full_disk(5000):
        assert "File too large" in refused(*arguments, tmp_path / "merged")
    assert contents(tmp_path) == before


def test_on_a_full_disk_a_bound_s_files_stay_as_they_were(tmp_path):
    found = {"message": "00" * 50, "numbers": list(range(1000))}
    command._write(found, tmp_path / "bound.json")
    before = contents(tmp_path)
    for room in (10, 1000):
        with full_disk(room), pytest.raises(OSError):
            command._write(found | {"message": "01" * 50}, tmp_path / "bound.json")
        left = contents(tmp_path)
        assert left.keys() == before.keys() and left["bound.json"] == before["bound.json"]


@pytest.mark.parametrize("out", ["", "folder", "a.message", "file/below"])
def test_a_bound_s_file_is_checked_before_the_work(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(certify, "certify", lambda *arguments: pytest.fail("too late"))
    assert refused("bound", "a", "--out", out).startswith("fastfood bound: error: out: wanted ")


# no rights


def test_a_folder_without_rights_is_refused_before_the_work(read_only, monkeypatch):
    monkeypatch.setattr(study, "_inspect", lambda *arguments: pytest.fail("too late"))
    seal(read_only)
    before = contents(read_only)
    with without_rights():
        for arguments in (["d90"], ["study", "figure2", "--scale", "small"], ["pretrain"]):
            message = refused(*arguments, "--out", read_only / "new")
            assert "out: wanted a writable folder, got" in message
        assert "writable" in refused("bound", "a", "--out", read_only / "bound.json")
        with pytest.raises(PermissionError):
            adapted().save_pretrained(read_only / "adapter")
    assert contents(read_only) == before


def test_a_report_of_a_folder_without_rights_is_refused(read_only, monkeypatch):
    held = written_study(read_only / "study")
    monkeypatch.setattr(writer, "open_record", lambda out, settings: held)
    monkeypatch.setattr(figures, "draw", study_folders.draw_nothing)
    seal(read_only)
    before = contents(read_only)
    with without_rights():
        assert "Permission denied" in refused("report", read_only / "study")
    assert contents(read_only) == before


def test_a_model_s_folder_without_rights_is_enough(read_only, model_folder, data):
    shutil.copytree(model_folder, read_only / "model")
    seal(read_only)
    given = {"task": "glue/sst2", "model": str(read_only / "model"), "data": str(data)}
    settings = measurement.complete(Settings(**given, dims=(20,), out=str(data / "out")))
    with without_rights():
        assert look.inspect(settings).num_labels == 2


# the clock


def test_a_clock_that_is_set_back_makes_no_time_negative_and_no_driver_dead(tmp_path, monkeypatch):
    import datetime as real

    from optuna.storages._rdb import storage

    class Clock(real.datetime):
        hours = 0

        @classmethod
        def now(cls, tz=None):
            cls.hours += 1  # every look at the clock finds it an hour earlier
            return real.datetime.now(tz) - real.timedelta(hours=cls.hours)

    monkeypatch.setattr(storage, "datetime", Clock)
    url = sqlite_url(tmp_path / "trials.db")
    record, other = records.open_record(url, "s", 60), records.open_record(url, "s", 60)
    measure = study_driver.measures(tmp_path)[0]
    asked = plan.trials(measure.settings, measure.facts, {})
    number, running = record.claim(asked[0]), record.claim(asked[1])
    assert record.finish(number, Score(0.5, 0.25)) and Clock.hours
    assert record.states()[asked[0].key].seconds == 0.0
    other.free_stale()
    assert other.claim(asked[1]) is None and record.finish(running, Score(1, 1))


# terminals and homes


def test_a_command_needs_no_home_no_temporary_folder_and_no_unicode_terminal(tmp_path):
    out = tmp_path / "study"
    written_study(out)
    variables = os.environ | study_driver.package_without_torch(tmp_path)
    variables |= {"HOME": "/proc/nothing", "TMPDIR": "/proc/nothing", "PYTHONIOENCODING": "ascii"}
    for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        variables.pop(name, None)
    program = [sys.executable, "-c", "from fastfood.experiments import cli; cli.main()"]
    read, closed = os.pipe()
    os.close(read)  # as by | head, which has read enough
    for arguments, stdout, code in (
        (["report", out], subprocess.PIPE, 0),
        (["report", out], closed, 1),
        (["d90", "--help"], subprocess.PIPE, 0),
    ):
        ran = subprocess.run(
            [*program, *map(str, arguments)],
            env=variables,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert ran.returncode == code and "Traceback" not in ran.stderr, ran.stderr
    os.close(closed)
    assert "\\u03b8" in ran.stdout and (out / "report.html").is_file()  # theta


def test_a_container_without_semaphores_is_told_where_they_live(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    result = invoke("d90", "--dims", "20", "--out", tmp_path / "out")
    wanted = "wanted semaphores for the workers in /dev/shm, got [Errno 13] Permission denied"
    assert result.exit_code == 2 and wanted in result.stderr and "Traceback" not in result.stderr


def test_a_folder_whose_name_no_file_can_hold_is_refused():
    assert "folder: wanted a text without control characters" in refused("report", "a\udcffb")
