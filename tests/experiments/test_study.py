"""Tests of whole tiny studies through the command line: `fastfood d90`, `study` and `report`, what
they leave behind, and what they refuse before anything is written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import study_driver
from text_rows import write_rows
from typer.testing import CliRunner

from fastfood.experiments import recipes
from fastfood.experiments.cli import app
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.study import Measurement
from fastfood.experiments.trials import folder

LEFT = {"figure1.png", "figure1.svg", "report.html", "report.md", "results.json", "study.json"}
LEFT |= {"study.lock", "trials.db"}
RECIPE = """
title = "tiny"
kind = "figure2"
note = "Nothing to be learnt."
[settings]
methods = ["said"]
search = "bisect"
bracket = [10, 100]
precision = 4.0
lrs = [0.3]
seeds = 1
max_steps = 2
batch_size = 8
eval_rows = 20
gap_rows = 20
device = "cpu"
[vary]
model = [{ model = "pretrained/vit/*", task = "digits" }]
[[pretrain]]
name = "vit"
task = "digits"
checkpoints = [0, 2]
batch_size = 8
hidden_size = 16
heads = 2
layers = 1
intermediate_size = 16
"""


def _run(command, *options):
    return CliRunner().invoke(app, [command, *map(str, options)])


def _states(folder):
    rows = json.loads((folder / "results.json").read_text())["trials"]
    return [row["state"] for row in rows]


def test_a_text_study_end_to_end(model_folder, data, tmp_path):
    out = tmp_path / "study"
    options = ["--task", "glue/sst2", "--model", model_folder, "--data", data, "--out", out]
    options += ["--dims", "20,40", "--lrs", "0.1", "--full-lrs", "1e-3", "--seeds", 1, "--bf16"]
    options += ["--max-steps", 3, "--batch-size", 8, "--max-length", 16, "--workers", 1]
    options += ["--device", "cpu", "--save-adapters"]
    result = _run("d90", *options)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["trials"]] == ["full", "did", "said", "did", "said"]
    (measure,) = results["measures"]
    assert measure["facts"]["m"] == 4 and measure["facts"]["splits"]["test"] == "test, 12 rows"
    for row in results["trials"]:
        assert math.isfinite(row["test"]) and row["bf16"] and row["seconds"] > 0
    (place,) = results["environments"]
    assert place["versions"]["transformers"] and place["hardware"]["cores"]
    adapters = sorted(path.parent.name for path in out.glob("adapters/*/*.safetensors"))
    names = [f"{m}-d{d}-rate0.1-seed0" for m in ("did", "said") for d in (20, 40)]
    assert [name.rsplit("-", 1)[0] for name in adapters] == names
    assert {path.name for path in out.iterdir()} == LEFT | {"adapters"}
    assert "d90 DID" in result.output and "figure1.png" in result.output
    again = _run("d90", *options)
    assert again.exit_code == 0 and "5 of 5 trials are already done" in again.output


def test_a_recipe_pretrains_measures_and_reports(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    out = tmp_path / "out"
    result = _run("study", tmp_path / "tiny.toml", "--out", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == LEFT | {
        "figure2.png",
        "figure2.svg",
        "pretrained",
    }
    described = json.loads((out / "study.json").read_text())
    assert (described["title"], described["kind"], described["scale"]) == (
        "tiny",
        "figure2",
        "full",
    )
    assert [m["label"] for m in described["measures"]] == [
        "vit step-0, digits",
        "vit step-2, digits",
    ]
    assert [m["x"] for m in described["measures"]] == [0, 2]
    hashes = {m["facts"]["model_hash"] for m in described["measures"]}
    assert len(hashes) == 2  # two steps of pre-training change the weights
    assert set(_states(out)) == {"complete"}
    assert {row["max_steps"] for row in json.loads((out / "results.json").read_text())["trials"]}
    page = out / "report.html"
    page.unlink()
    shown = _run("report", out)
    assert shown.exit_code == 0 and "report.html" in shown.output and page.stat().st_size > 10_000
    again = _run("study", tmp_path / "tiny.toml", "--out", out, "--workers", 1)
    assert "already done" in again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "glue/ax"], "task: wanted one of digits"),
        (["--dims", "10,x"], "dims: wanted a whole number, got 'x'"),
        (["--lrs", "fast"], "lrs: wanted a number, got 'fast'"),
        (["--method", "adam"], "method: wanted some of did, said"),
        (["--dims", "10,102219"], "dims: DID with d = 102219: d: wanted at most D = 102218"),
        (
            ["--dims", "2,4", "--method", "said"],
            "dims: SAID with d = 2: d: wanted more than m = 4",
        ),
        (["--device", "cuda:63"], "device: wanted"),
        (["--storage", "nowhere"], "storage: wanted a database URL"),
        (["--task", "glue/sst2", "--model", "/no/model", "--data", "DATA"], "model: "),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_nothing_written(data, tmp_path, options, message):
    options = [str(data) if option == "DATA" else option for option in options]
    result = _run("d90", *options, "--out", tmp_path / "study")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastfood d90: error: " + message), result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "study").exists()


def test_bad_data_end_with_exit_code_2_and_nothing_written(model_folder, data, tmp_path):
    write_rows(data / "glue" / "sst2" / "train.jsonl", [{"text": "good", "label": 1}])
    options = ["--task", "glue/sst2", "--model", model_folder, "--data", data]
    result = _run("d90", *options, "--out", tmp_path / "study")
    assert result.exit_code == 2 and "wanted a column 'sentence'" in result.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure9"], "recipe: wanted a TOML file or one of figure1"),
        (["table1", "--scale", "tiny"], "scale: wanted full or small"),
        (["table1", "--model", "mine"], "model: wanted nothing, because the recipe varies it"),
    ],
)
def test_bad_recipes_end_with_exit_code_2_and_nothing_written(tmp_path, arguments, message):
    result = _run("study", *arguments, "--out", tmp_path / "study")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastfood study: error: " + message), result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "study").exists()


def test_a_report_of_no_study_is_refused(tmp_path):
    result = _run("report", tmp_path)
    assert result.exit_code == 2 and "folder of a study" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    with folder.locked_folder(tmp_path, shared=False):
        second = folder.locked_folder(tmp_path, shared=False)
        with pytest.raises(ValueError, match=r"^out: wanted a folder that no other run uses.*\d"):
            second.__enter__()
    with folder.locked_folder(tmp_path, shared=True), folder.locked_folder(tmp_path, shared=True):
        pass  # drivers of one database may share it


def test_the_password_of_a_database_is_not_kept(tmp_path, monkeypatch):
    url = "postgresql://me:secret@host/db"
    monkeypatch.setattr(sys, "argv", ["fastfood", "d90", f"--storage={url}"])
    settings = complete(Settings(storage=url, out=str(tmp_path)))
    folder.describe(
        recipes.single(settings),
        [Measurement(label="one", settings=settings, facts=study_driver.facts())],
    )
    kept = (tmp_path / "study.json").read_text()
    assert "secret" not in kept
    described = json.loads(kept)
    for text in (described["storage"], described["measures"][0]["settings"]["storage"]):
        assert text == "postgresql://me@host/db"
    assert described["command"] == "fastfood d90 --storage=postgresql://me@host/db"


def test_what_no_report_could_read_is_refused_before_the_first_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastfood", "study", "a\x07.toml"])
    settings = complete(Settings(out=str(tmp_path)))
    measurement = Measurement(label="one", settings=settings, facts=study_driver.facts())
    with pytest.raises(ValueError, match="^study: wanted what study.json can .* command: ") as e:
        folder.describe(recipes.single(settings), [measurement])
    assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == []


def test_help_and_version_are_quick_and_light():
    heavy = ["torch", "transformers", "datasets", "matplotlib", "optuna", "sklearn", "ray", "peft"]
    code = f"import fastfood.experiments.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(ran.stdout.strip().replace("'", '"'))
    assert set(loaded) <= {"torch"}  # which the package itself needs
    for command in ("d90", "study", "report", "pretrain", "bound"):
        shown = _run(command, "--help")
        assert shown.exit_code == 0 and "Traceback" not in shown.output
    for name in recipes.names():
        assert name in _run("study", "--help").output
    assert Path(recipes.FOLDER, "figure1.toml").is_file()
    assert CliRunner().invoke(app, ["--version"]).output.startswith("fastfood ")
