"""Tries every command with wrong and damaged inputs, in one process and without training: a wrong
input must end with a line or two and exit code 1 or 2, and a refused one must write nothing."""

import json
import shutil
import signal
from collections import Counter
from contextlib import contextmanager

import pytest
import study_folders
import typer
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_inputs import (
    PATHS,
    PRETRAININGS,
    SETTINGS,
    URLS,
    damages,
    json_changes,
    one_in,
    option_lists,
    paths,
    recipe_files,
    texts,
)

from fastfood.experiments import study
from fastfood.experiments.bound import certify, command
from fastfood.experiments.bound.options import Options
from fastfood.experiments.cli import app
from fastfood.experiments.report import figures, writer
from fastfood.experiments.settings.measurement import Settings
from fastfood.experiments.settings.pretraining import Pretraining
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.training import pretrain
from fastfood.experiments.trials import record, run
from fastfood.experiments.trials.database import _parse, sqlite_url
from fastfood.experiments.trials.folder import STUDY
from fastfood.experiments.trials.record import open_record

TRIED = Counter()
SECONDS = 60  # what takes longer counts as never ending
STOPPED = 130  # the exit code of an input that was good enough to train with
COMMAND = typer.main.get_command(app)


class Place:
    """The current folder of every input, with files in it that no command may change."""

    def __init__(self, folder, model_folder, adapter_folder):
        self.folder, self._model, self._adapter = folder, model_folder, adapter_folder
        self.renew()

    def renew(self):
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.folder / "file").write_text("mine")
        for name in ("report.md", "trials.db", "notes"):
            (self.folder / "mine").mkdir(exist_ok=True)
            (self.folder / "mine" / name).write_text("mine")
        (self.folder / "link").symlink_to("file")
        (self.folder / "broken").symlink_to("nowhere")
        (self.folder / "model").symlink_to(self._model)
        (self.folder / "adapter").symlink_to(self._adapter)
        self.mark()

    def mark(self):
        """Remembers the present content for `clean`."""
        self._before = self._look()

    def _look(self):
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
        }

    def clean(self):
        """Whether nothing has changed since the last `mark`; renews the folder after a change."""
        same = self._look() == self._before
        if not same:
            self.renew()
        return same


@contextmanager
def _alarm(arguments):
    def ring(number, frame):
        raise AssertionError(f"{arguments} takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def invoke(name, arguments, fine=(STOPPED,)):
    """Runs a command; returns its exit code after looking at how it ended."""
    TRIED[name] += 1
    arguments = [str(argument) for argument in arguments]
    with _alarm(arguments):
        result = CliRunner().invoke(COMMAND, arguments)
    if not isinstance(result.exception, SystemExit | None):
        raise AssertionError(f"{arguments}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 1, 2, *fine), result.output
    if result.exit_code == 2:
        lines = result.stderr.splitlines()
        assert lines and "Traceback" not in result.output, result.output
        usage = lines[0].startswith(("Usage:", "╭─ Error"))
        assert usage or lines[0].startswith(f"fastfood {arguments[0]}"), result.stderr
        assert usage or len(lines) == 1, result.stderr
        result.stderr.encode("utf-8", "backslashreplace")
    return result.exit_code


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory, model_folder):
    import transformers

    import fastfood

    base = transformers.AutoModel.from_pretrained(model_folder)
    model = fastfood.get_subspace_model(base, fastfood.SubspaceConfig(d=20))
    model.save_pretrained(tmp_path_factory.mktemp("adapter"))
    return tmp_path_factory.getbasetemp() / "adapter0"


@pytest.fixture
def place(tmp_path, monkeypatch, model_folder, adapter_folder):
    """The current folder; trainings stop where they would begin."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    def open_nothing(out, settings):
        if settings.storage is not None:
            _parse(settings.storage)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(run, "run_study", stop)
    monkeypatch.setattr(study, "open_record", open_nothing)
    monkeypatch.setattr(study, "_pretrain", stop)
    monkeypatch.setattr(pretrain, "_trainer", stop)
    monkeypatch.setattr(certify, "_message", stop)
    monkeypatch.setattr(figures, "draw", study_folders.draw_nothing)
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return Place(tmp_path / "place", model_folder, adapter_folder)


def _in_the_room(text):
    """A path to write at, which must not be the machine's top folder."""
    return text.replace("\0", "") if text in PATHS[3:] else text.replace("\0", "").lstrip("/")


outs = one_in(4, paths, st.just("new")).map(_in_the_room)
machines = st.fixed_dictionaries(
    {},
    optional={
        "--out": outs,
        "--storage": st.sampled_from(URLS) | texts,
        "--name": texts,
        "--data": paths,
        "--model": one_in(3, paths, st.just("model")),
    },
)


def _flat(options):
    return [text.replace("\0", "") for pair in options.items() for text in pair]


def check_recipe(place, content, scale, out):
    """Tries a recipe's file with any bytes."""
    (place.folder / "recipe.toml").write_bytes(content)
    place.mark()
    code = invoke("recipes", ["study", "recipe.toml", "--scale", scale, "--out", out])
    assert place.clean() or code != 2, content


def check_line(place, command, arguments, options):
    """Tries a command line of options with any values."""
    code = invoke(f"lines_of_{command}", [command, *arguments, *_flat(options)])
    assert place.clean() or code != 2, (arguments, options)


def check_report(place, arguments):
    """Tries a command line of report, in a folder without a study."""
    assert invoke("lines_of_report", ["report", *arguments]) == 2 and place.clean()


def check_description(place, damage, change):
    """Tries a report of a study.json that is damaged, as bytes or as values."""
    given = {"task": "digits", "dims": (10, 100), "lrs": (0.1,), "seeds": 1}
    held = study_folders.write_study(
        place.folder / "study", "d90", [("ViT, digits", None, given, study_folders.facts(), {})]
    )
    path = place.folder / "study" / "study.json"
    described = json.loads(path.read_text())
    if change:
        change(described)
        path.write_text(json.dumps(described))
    path.write_bytes(damage(path.read_bytes()) if damage else path.read_bytes())
    writer.open_record = lambda out, settings: held
    place.mark()
    code = invoke("damaged_descriptions", ["report", "study"])
    assert place.clean() or code == 0, path


def check_database(place, path, damage):
    """Tries a report of a study whose trials.db is damaged, and a driver that resumes it."""
    given = {"task": "digits", "dims": (10, 100), "lrs": (0.1,), "seeds": 1}
    measures = [("ViT, digits", None, given, study_folders.facts(), {})]
    held = study_folders.write_study(place.folder / "study", "d90", measures)
    database = place.folder / "study" / "trials.db"
    database.write_bytes(damage(path.read_bytes()))
    writer.open_record = lambda out, settings: open_record(sqlite_url(database), STUDY)
    invoke("damaged_databases", ["report", "study"])
    try:
        found = writer.open_record(None, None)
        found.free_stale()
        number = found.claim(next(iter(held.trials)))
        if number is not None:
            found.finish(number, Score(0.5, 0.5))
    except ValueError as error:
        assert "storage: wanted" in str(error)
    place.renew()


@settings(max_examples=3000)
@given(recipe_files(), st.sampled_from(["full", "small"]), outs)
def test_recipes(place, content, scale, out):
    check_recipe(place, content, scale, out)


@settings(max_examples=2500)
@given(option_lists(Settings, SETTINGS), machines)
def test_lines_of_d90(place, arguments, options):
    check_line(place, "d90", arguments, options)


@settings(max_examples=1000)
@given(
    one_in(3, paths, st.sampled_from(["figure1", "figure2", "table1"])),
    option_lists(Settings, SETTINGS),
    machines,
)
def test_lines_of_study(place, recipe, arguments, options):
    check_line(place, "study", [recipe.replace("\0", ""), *arguments], options)


@settings(max_examples=1500)
@given(option_lists(Pretraining, PRETRAININGS), machines)
def test_lines_of_pretrain(place, arguments, options):
    options = {k: v for k, v in options.items() if k in ("--out", "--data", "--model")}
    check_line(place, "pretrain", arguments, {"--out": "new"} | options)


bound_names = [name for name in command.TASK if name not in ("task", "model", "data")]


@settings(max_examples=1000)
@given(
    one_in(2, paths, st.just("adapter")),
    option_lists(Settings, bound_names),
    option_lists(Options, list(Options.model_fields)),
    machines,
)
def test_lines_of_bound(place, adapter, arguments, own, options):
    options = {k: v for k, v in options.items() if k in ("--out", "--data", "--model")}
    check_line(place, "bound", [adapter.replace("\0", ""), *arguments, *own], options)


adapter_options = st.fixed_dictionaries(
    {"--model": one_in(2, paths, st.just("model"))},
    optional={
        "--task-class": st.sampled_from(["BertModel", "AutoModel", "os", "Trainer"]) | texts,
        "--labels": st.integers(-2, 3).map(str) | texts,
        "--seed": st.sampled_from(["0", "-1", str(2**32), "9" * 400]) | texts,
        "--dtype": st.sampled_from(["float32", "bfloat16", "int8"]) | texts,
    },
)


@settings(max_examples=600)
@given(
    st.sampled_from(["inspect", "verify", "merge", "diff", "other"]),
    one_in(3, paths, st.just("adapter")),
    adapter_options,
    outs,
)
def test_lines_of_adapter(place, what, file, options, out):
    arguments = [what, file.replace("\0", "")]
    if what == "merge":
        options = options | {"--out": out}
    if what == "diff":
        arguments, options = [*arguments, "adapter"], {}
    check_line(place, "adapter", arguments, {} if what == "inspect" else options)


@settings(max_examples=500)
@given(paths, st.sampled_from(["1", "0", "nan", "inf", "-1", "1e300", "x"]), st.booleans())
def test_lines_of_report(place, folder, every, watch):
    check_report(place, [folder.replace("\0", ""), "--every", every, *["--watch"] * watch])


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A trials.db of two rows, one of them complete."""
    folder = tmp_path_factory.mktemp("database")
    held = study_folders.write_study(
        folder, "d90", [("a", None, {"task": "digits"}, study_folders.facts(), {})]
    )
    found = open_record(sqlite_url(folder / "trials.db"), STUDY)
    first, second = list(held.trials)[:2]
    found.finish(found.claim(first), Score(0.5, 0.5))
    found.claim(second)
    return folder / "trials.db"


@settings(max_examples=60)
@given(damages())
def test_damaged_databases(place, database, monkeypatch, damage):
    monkeypatch.setattr(record.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(record, "PATIENCE", 0.0)
    check_database(place, database, damage)


@settings(max_examples=1500)
@given(st.none() | damages(), st.none() | json_changes())
def test_damaged_descriptions(place, damage, change):
    check_description(place, damage, change)
