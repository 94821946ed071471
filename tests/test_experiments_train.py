"""Tests of the tasks and of training: local JSON lines, the parts that are made of them, parameter
groups, determinism, and whole tiny studies through `fastfood d90`."""

import json
import math
import os
import re
from urllib.error import HTTPError, URLError

import pytest
import torch
from text_rows import rows, write_rows
from typer.testing import CliRunner

from fastfood.experiments import tasks
from fastfood.experiments.cli import app
from fastfood.experiments.config import Settings, complete
from fastfood.experiments.search import inspect
from fastfood.experiments.train import build_base, build_model, make_trainer, train_trial


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _settings(model_folder, data, **changes):
    given = {"task": "glue/sst2", "model": str(model_folder), "data": data and str(data)}
    given |= {
        "dims": (20,),
        "lrs": (0.1,),
        "max_steps": 2,
        "batch_size": 8,
        "max_length": 16,
        "device": "cpu",
    }
    return complete(Settings(**(given | changes)))


def _trial(method="said", d=20, seed=0, **changes):
    trial = {"method": method, "d": d, "learning_rate": 0.1, "seed": seed, "lambda_lr": 0.02}
    trial |= {"normalization": "global", "max_steps": 2, "batch_size": 8, "warmup": 0.0}
    return trial | {"bf16": False, "device": "cpu"} | changes


# tasks


def test_digits_parts_are_disjoint_and_always_the_same(tmp_path):
    settings = complete(Settings(out=str(tmp_path)))
    task = tasks.load_task(settings)
    parts = [task.train, task.validation, task.test]
    assert [len(part) for part in parts] == [1097, 200, 500]
    images = [row["pixel_values"].numpy().tobytes() for part in parts for row in part]
    assert len(set(images)) == 1797
    assert tasks._load_digits().data_hash == task.data_hash
    assert 0.09 < task.majority() < 0.12
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["pixel_values"].shape == (2, 1, 8, 8) and batch["labels"].shape == (2,)


def test_labelled_validation_and_test_are_used_as_they_are(model_folder, data):
    task = tasks.load_task(_settings(model_folder, data))
    assert [len(p) for p in (task.train, task.validation, task.test)] == [40, 10, 12]
    assert task.splits["test"] == "test, 12 rows"
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["input_ids"][0, 0] == 2 and batch["labels"].tolist() == [0, 1]
    # sorting by length keeps rows and labels together
    for part in ("validation", "test"):
        labels = [int("good" in row["sentence"]) for row in getattr(task, part)]
        assert labels == task.labels[part]


def test_the_folder_may_be_the_task_itself_or_a_parent(model_folder, data):
    hashes = {
        tasks.load_task(_settings(model_folder, folder)).data_hash
        for folder in (data, data / "glue", data / "glue" / "sst2")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("unlabelled", [None, "test", "validation"])
def test_a_missing_validation_part_is_carved_from_train(model_folder, data, unlabelled):
    folder = data / "glue" / "sst2"
    if unlabelled is None:
        (folder / "validation.jsonl").unlink()
    else:
        write_rows(folder / f"{unlabelled}.jsonl", [r | {"label": -1} for r in rows(9, 70)])
    task = tasks.load_task(_settings(model_folder, data))
    used = "validation" if unlabelled == "test" else "test"
    assert task.splits == {
        "train": "train without 4 rows, 36 rows",
        "validation": "4 rows of train, 4 rows",
        "test": f"{used}, {10 if used == 'validation' else 12} rows",
    }
    sentences = [{row["sentence"] for row in part} for part in (task.train, task.validation)]
    assert not sentences[0] & sentences[1]
    assert sentences[0] | sentences[1] == {row["sentence"] for row in rows(40)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "good", "label": 1}, r"train.jsonl line 41: wanted a column 'sentence', got"),
        ({"sentence": "good"}, r"line 41: wanted a column 'label', got the columns sentence"),
        ({"sentence": "good", "label": "yes"}, r"wanted int in column 'label', got 'yes'"),
        ({"sentence": None, "label": 1}, r"wanted str in column 'sentence', got None"),
        ({"sentence": "good", "label": 2}, r"glue/sst2 train: wanted labels in 0..1, got 2"),
        ({"sentence": "good", "label": -1}, r"glue/sst2 train: wanted labels in 0..1, got -1"),
        (["good", 1], r"line 41: wanted a JSON object, got list"),
    ],
)
def test_bad_rows_are_refused_by_place(model_folder, data, row, message):
    write_rows(data / "glue" / "sst2" / "train.jsonl", [*rows(40), row])
    with pytest.raises(ValueError, match="^data: .*" + message):
        tasks.load_task(_settings(model_folder, data))


def test_absent_data_are_refused(model_folder, data):
    with pytest.raises(ValueError, match="^data: wanted a file train.jsonl for glue/mrpc"):
        tasks.load_task(_settings(model_folder, data, task="glue/mrpc"))
    for name in ("validation", "test"):
        (data / "glue" / "sst2" / f"{name}.jsonl").unlink()
    with pytest.raises(ValueError, match="^data: wanted a labelled validation or test"):
        tasks.load_task(_settings(model_folder, data))


def test_no_network_is_one_clear_message(model_folder, tmp_path, monkeypatch):
    import datasets

    def unreachable(*names):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = "data: glue/sst2 could not be loaded from the hub .*no route to the hub.*--data DIR"
    with pytest.raises(ValueError, match="^" + message):
        tasks.load_task(_settings(model_folder, None))
    result = _run("--task", "glue/sst2", "--model", model_folder, "--out", tmp_path / "study")
    assert result.exit_code == 2 and re.search("error: " + message, result.stderr)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("answer", "offline"),
    [
        (URLError("no name server"), "1"),
        (TimeoutError(), "1"),
        (HTTPError("hub", 403, "forbidden", {}, None), None),
    ],
)
def test_an_unreachable_hub_is_not_tried_for_minutes(monkeypatch, answer, offline):
    def urlopen(request, timeout):
        raise answer

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(tasks, "urlopen", urlopen)
    tasks.use_cache_without_network(Settings())
    assert "HF_HUB_OFFLINE" not in os.environ  # digits need no hub
    tasks.use_cache_without_network(Settings(task="glue/sst2", model="bert"))
    assert os.environ.get("HF_HUB_OFFLINE") == offline


def test_hub_data_are_checked_like_local_ones(model_folder, monkeypatch):
    import datasets

    hub = {
        "train": datasets.Dataset.from_list(rows(40)),
        "validation": datasets.Dataset.from_list(rows(10, 40)),
        "test": datasets.Dataset.from_list([row | {"label": -1} for row in rows(10, 60)]),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: hub)
    settings = _settings(model_folder, None, max_steps=3)
    assert tasks.load_task(settings).splits["test"] == "validation, 10 rows"
    hub["train"] = hub["train"].rename_column("sentence", "text")
    with pytest.raises(ValueError, match="^data: glue/sst2 train: wanted a column 'sentence'"):
        tasks.load_task(_settings(model_folder, None, max_steps=4))


# training


def test_the_base_model_depends_on_the_seed_alone(model_folder, data, tmp_path):
    for settings in (_settings(model_folder, data), complete(Settings(out=str(tmp_path)))):
        first, again, other = (build_base(settings, 2, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_digits_model_has_the_size_that_it_should(tmp_path):
    base = build_base(complete(Settings(out=str(tmp_path))), 10, seed=0)
    assert sum(p.numel() for p in base.parameters()) == 102_218


@pytest.mark.parametrize("method", ["full", "did", "said"])
def test_theta_and_lambda_train_at_their_own_rates(model_folder, data, tmp_path, method):
    settings = _settings(model_folder, data, out=str(tmp_path))
    trial = _trial(method, max_steps=2)
    task = tasks.load_task(settings)
    model = build_model(settings, trial, 2)
    trainer = make_trainer(settings, trial, task, model)
    trainer.train()
    rates = {"full": [0.1], "did": [0.1], "said": [0.1, 0.02]}[method]
    groups = trainer.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == rates
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    if method == "full":
        assert sizes == [sum(p.numel() for p in model.parameters())]
        return
    assert sum(sizes) == 20 and groups[0]["params"] == [model.theta]
    if method == "said":
        # theta = 0 gives lambda no gradient in the first step; Adam then moves by 0.744 of the rate
        moved = (model.lambda_ - 1).abs().max().item()
        assert moved == pytest.approx(0.744 * 0.02 / 2, rel=1e-2)


def test_the_rates_rise_and_then_fall_to_zero(model_folder, data, tmp_path):
    settings = _settings(model_folder, data, out=str(tmp_path))
    trial = _trial(warmup=0.2, max_steps=10)
    trainer = make_trainer(
        settings, trial, tasks.load_task(settings), build_model(settings, trial, 2)
    )
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert max(rates) == rates[2] == [0.1, 0.02]
    assert rates[0] == [0.0, 0.0] and rates[-1] == pytest.approx([0.1 / 8, 0.02 / 8])


def test_the_seed_decides_the_order_of_the_data(model_folder, data, tmp_path):
    settings = _settings(model_folder, data, out=str(tmp_path))
    task = tasks.load_task(settings)
    batches = []
    for trial in (_trial(seed=0), _trial(seed=0), _trial(seed=1)):
        trainer = make_trainer(settings, trial, task, build_model(settings, trial, 2))
        batches.append(next(iter(trainer.get_train_dataloader()))["input_ids"].tolist())
    assert batches[0] == batches[1] != batches[2]


@pytest.mark.parametrize("method", ["full", "did", "said"])
def test_the_same_trial_gives_the_same_score(model_folder, data, tmp_path, method):
    settings = _settings(model_folder, data, out=str(tmp_path))
    first, again = (train_trial(settings, _trial(method, max_steps=3)) for _ in range(2))
    for part in ("validation", "test"):
        assert first[part] == again[part] and 0 <= first[part] <= 1
    assert list(tmp_path.glob("checkpoint*")) == []


def test_training_learns_in_a_subspace(model_folder, data, tmp_path):
    """The label is a word: enough steps find it, so data, labels and optimizer fit together."""
    settings = _settings(model_folder, data, out=str(tmp_path))
    trial = _trial("did", d=200, max_steps=60, learning_rate=0.5, batch_size=20)
    assert train_trial(settings, trial)["test"] == 1.0


def test_evaluation_is_in_eval_mode(model_folder, data, tmp_path):
    settings = _settings(model_folder, data, out=str(tmp_path))
    trial = _trial()
    task, model = tasks.load_task(settings), build_model(settings, trial, 2)
    modes = []
    model.wrapped.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    trainer = make_trainer(settings, trial, task, model)
    trainer.train()
    count = len(modes)
    trainer.predict(task.test)
    assert all(modes[:count]) and not any(modes[count:]) and len(modes) > count


# the command line


def _run(*options):
    return CliRunner().invoke(app, ["d90", *map(str, options)])


def test_a_text_study_end_to_end(model_folder, data, tmp_path):
    out = tmp_path / "study"
    options = ["--task", "glue/sst2", "--model", model_folder, "--data", data, "--out", out]
    options += ["--dims", "20,40", "--lrs", "0.1", "--full-lrs", "1e-3", "--seeds", 1, "--bf16"]
    options += ["--max-steps", 3, "--batch-size", 8, "--max-length", 16, "--workers", 1]
    result = _run(*options, "--device", "cpu", "--save-adapters")
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["trials"]] == ["full", "did", "said", "did", "said"]
    assert results["facts"]["D"] == sum(
        p.numel() for p in build_base(_settings(model_folder, data), 2, 0).parameters()
    )
    assert results["facts"]["m"] == 4 and results["facts"]["splits"]["test"] == "test, 12 rows"
    for row in results["trials"]:
        assert math.isfinite(row["test"]) and row["bf16"] and row["seconds"] > 0
    assert results["versions"]["transformers"] and results["hardware"]["cores"]
    adapters = sorted(path.parent.name for path in out.glob("adapters/*/*.safetensors"))
    assert adapters == [f"{m}-d{d}-rate0.1-seed0" for m in ("did", "said") for d in (20, 40)]
    kept = ["adapters", "figure1.png", "results.json", "trials.db", "trials.lock"]
    assert sorted(path.name for path in out.iterdir()) == kept
    assert "d90 DID" in result.output and "figure1.png" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "glue/rte"], "task: wanted one of digits"),
        (["--dims", "10,x"], "dims: wanted whole numbers between commas, got '10,x'"),
        (["--lrs", "fast"], "lrs: wanted numbers between commas, got 'fast'"),
        (["--method", "lora"], "method: wanted did, said or both, got 'lora'"),
        (["--dims", "10,102219"], "dims: DID with d = 102219: d must be at most D = 102218"),
        (["--dims", "4,10", "--method", "said"], "dims: SAID with d = 4: d must be above m = 4"),
        (["--device", "cuda:63"], "device: wanted"),
        (["--task", "glue/sst2", "--model", "/no/model", "--data", "DATA"], "model: "),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_nothing_written(data, tmp_path, options, message):
    options = [str(data) if option == "DATA" else option for option in options]
    result = _run(*options, "--out", tmp_path / "study")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastfood d90: error: " + message), result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "study").exists()


def test_bad_data_end_with_exit_code_2_and_nothing_written(model_folder, data, tmp_path):
    write_rows(data / "glue" / "sst2" / "train.jsonl", [{"text": "good", "label": 1}])
    options = ["--task", "glue/sst2", "--model", model_folder, "--data", data]
    result = _run(*options, "--out", tmp_path / "study")
    assert result.exit_code == 2 and "wanted a column 'sentence'" in result.stderr
    assert not (tmp_path / "study").exists()


def test_inspect_finds_the_facts(model_folder, data):
    facts = inspect(_settings(model_folder, data))
    assert facts["m"] == 4 and facts["device"] == "cpu" and facts["majority"] == 0.5
    changed = _settings(model_folder, data, lrs=(0.3,))
    assert inspect(changed) == facts  # hashes included


def test_help_and_version_are_quick_and_light():
    import subprocess
    import sys

    heavy = ["transformers", "datasets", "matplotlib", "optuna", "sklearn"]
    code = f"import fastfood.experiments.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).output.startswith("fastfood ")
    help_text = runner.invoke(app, ["d90", "--help"]).output
    assert "--full-lrs" in help_text and "Examples" in help_text
