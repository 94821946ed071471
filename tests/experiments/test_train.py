"""Tests of one trial: rates and their schedule, the same scores for the same trial with and without
pruning, what is scored and how, and trainings that diverge."""

import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from text_rows import scored_pairs, write_rows
from trials import PEFT, text_settings, trial_of

from fastfood.experiments.data import tasks
from fastfood.experiments.settings.trial import Pruned
from fastfood.experiments.training import train
from fastfood.experiments.training.models import build_model, parameter_groups
from fastfood.experiments.training.train import (
    Schedule,
    make_trainer,
    predict,
    some_rows,
    train_trial,
)

METHODS = ("full", "did", "said", *PEFT)
SCORES = ("validation", "test", "test_accuracy", "train_accuracy", "trained", "head_trained")


@pytest.fixture
def settings(model_folder, data, tmp_path):
    return text_settings(model_folder, data, out=str(tmp_path / "study"))


def _changed(settings, **changes):
    return type(settings)(**(vars(settings) | changes))


def _trainer(settings, trial):
    return _trainer_of(build_model(settings, trial, 2), settings, trial)


def _trainer_of(model, settings, trial):
    groups = parameter_groups(model, trial)
    return make_trainer(Schedule.of(trial), groups, tasks.load_task(settings), model)


def test_lambda_moves_at_its_own_rate(settings):
    trial = trial_of("said")
    model = build_model(settings, trial, 2)
    trainer = _trainer_of(model, settings, trial)
    trainer.train()
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [0.1, 0.02]
    # theta = 0 gives lambda no gradient in the first step; Adam then moves by 0.744 of the rate
    moved = (model.lambda_ - 1).abs().max().item()
    assert moved == pytest.approx(0.744 * 0.02 / 2, rel=1e-2)


def test_the_rates_rise_and_then_fall_to_zero(settings):
    trainer = _trainer(settings, trial_of(warmup=0.2, max_steps=10))
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert max(rates) == rates[2] == [0.1, 0.02]
    assert rates[0] == [0.0, 0.0] and rates[-1] == pytest.approx([0.1 / 8, 0.02 / 8])


def test_the_seed_decides_the_order_of_the_data(settings):
    batches = []
    for seed in (0, 0, 1):
        trainer = _trainer(settings, trial_of(seed=seed))
        batches.append(next(iter(trainer.get_train_dataloader()))["input_ids"].tolist())
    assert batches[0] == batches[1] != batches[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_neither_rescales_the_loss_nor_counts_operations(settings, method):
    trainer = _trainer(settings, trial_of(method, d=60))
    assert trainer.model_accepts_loss_kwargs is False
    assert trainer.floating_point_ops({"input_ids": torch.zeros(2, 3, dtype=torch.long)}) == 0


def test_trials_share_the_machine(settings, monkeypatch):
    fractions, emptied = [], []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    train._share_the_machine(settings, trial_of(device="cuda"))
    train._share_the_machine(_changed(settings, gpu_share=0.25), trial_of(device="cuda"))
    assert fractions == [0.25] and len(emptied) == 2
    torch.set_num_threads(2)
    train._share_the_machine(settings, trial_of())
    assert torch.get_num_threads() == 1 and len(emptied) == 2


def _final_weights(monkeypatch):
    """A list to which each later call of train_trial adds the list of tensors that it trained."""
    kept, scores = [], train._scores

    def keep(trial, task, model):
        kept.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
        return scores(trial, task, model)

    monkeypatch.setattr(train, "_scores", keep)
    return kept


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_has_the_same_bits_with_and_without_a_look_halfway(settings, method, monkeypatch):
    kept = _final_weights(monkeypatch)
    # The steps go across epochs of two batches.
    trial = trial_of(method, d=60, max_steps=7, batch_size=20, gap_rows=9)
    first = train_trial(settings, trial)
    again = train_trial(_changed(settings, prune=True), trial, floor=0.0)
    assert [getattr(first, name) for name in SCORES] == [getattr(again, name) for name in SCORES]
    assert kept[0] and all(map(torch.equal, kept[0], kept[1]))
    assert first.halfway is None and 0 <= again.halfway <= 1
    for name in ("validation", "test", "test_accuracy", "train_accuracy"):
        assert 0 <= getattr(first, name) <= 1
    assert (first.head_trained > 0) == (method in PEFT)
    assert first.accelerator is None
    assert 0 < 7 * first.seconds_per_step < first.seconds


def test_a_trial_below_the_floor_halfway_is_pruned(settings):
    pruning, trial = _changed(settings, prune=True), trial_of("did", max_steps=5)
    halfway = train_trial(pruning, trial, floor=None).halfway
    assert train_trial(pruning, trial, floor=halfway).halfway == halfway
    with pytest.raises(Pruned, match=r"at step 3$") as caught:
        train_trial(pruning, trial, floor=halfway + 1e-9)
    error = pickle.loads(pickle.dumps(caught.value))  # as it leaves a worker
    assert (error.halfway, error.step) == (halfway, 3)
    assert train_trial(settings, trial, floor=1.0).halfway is None  # no pruning was asked for


@pytest.mark.parametrize(
    ("method", "rate"), [("full", 1e30), ("did", 1e30), ("said", math.inf), ("lora", 1e30)]
)
def test_a_training_that_diverges_has_no_score(settings, method, rate):
    trial = trial_of(method, learning_rate=rate, max_steps=20)
    with pytest.raises(FloatingPointError, match=r"^diverged: a parameter .* after \d+ steps$"):
        train_trial(settings, trial)


def test_a_loss_that_is_not_finite_has_no_score(settings, monkeypatch):
    build = train.build_model

    def build_with_bad_loss(*given):
        model = build(*given)
        model.register_forward_hook(lambda module, args, out: out | {"loss": out.loss * math.nan})
        return model

    monkeypatch.setattr(train, "build_model", build_with_bad_loss)
    monkeypatch.setattr(train, "_check_finite", lambda model, step: None)
    with pytest.raises(FloatingPointError, match="^diverged: the mean loss of 2 steps is nan"):
        train_trial(settings, trial_of("full"))


@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("did", 0.5), ("lora", 3e-2)])
def test_training_learns(settings, method, rate):
    """The label is a word: enough steps find it, so data, labels and optimizer fit together."""
    trial = trial_of(method, d=200, max_steps=60, learning_rate=rate, batch_size=20, gap_rows=9)
    result = train_trial(settings, trial)
    assert result.test == result.test_accuracy == 1.0
    assert result.train_accuracy > 0.7  # chance is 0.5


@pytest.fixture
def pairs(model_folder, tmp_path):
    """Settings of a task whose labels are scores."""
    folder = tmp_path / "stsb"
    for name, (count, start) in {
        "train": (100, 0),
        "validation": (30, 100),
        "test": (30, 130),
    }.items():
        write_rows(folder / f"{name}.jsonl", scored_pairs(count, start))
    return text_settings(model_folder, folder, task="glue/stsb", gap_rows=9)


@pytest.mark.parametrize(
    ("method", "rate"), [("full", 3e-3), ("did", 0.3), ("said", 0.3), ("lora", 3e-2)]
)
def test_training_learns_a_score(pairs, method, rate):
    given = {"d": 200, "max_steps": 60, "learning_rate": rate, "batch_size": 20}
    result = train_trial(pairs, trial_of(method, metric="pearson", **given))
    assert result.validation > 0.8 and result.test > 0.8
    assert result.test_accuracy is result.train_accuracy is None


def test_scores_are_trained_on_at_mean_0_and_variance_1(pairs, model_folder, tmp_path):
    task = tasks.load_task(pairs)
    targets = task.collate(list(task.train))["labels"]
    assert targets.dtype == torch.float32
    assert targets.mean().item() == pytest.approx(0, abs=1e-6)
    assert targets.std(correction=0).item() == pytest.approx(1)
    assert task.majority() == 0 and set(task.labels["test"]) == {0.0, 1.25, 2.5, 3.75, 5.0}
    trial = trial_of(learning_rate=0.0)
    model = build_model(pairs, trial, task.num_labels)
    predicted, labels = predict(model, task, task.test)
    batch = task.collate(list(task.test))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    assert logits.shape == (30, 1)
    assert predicted == pytest.approx(logits[:, 0].tolist(), abs=1e-6)
    assert labels == batch["labels"].tolist()
    assert model(**batch).loss.item() == pytest.approx(
        torch.nn.functional.mse_loss(logits[:, 0], batch["labels"]).item()
    )


def test_scores_are_in_the_trial_s_metric(settings, monkeypatch):
    asked = []

    def score(metric, predicted, labels):
        asked.append((metric, len(predicted), len(labels)))
        return 0.25

    monkeypatch.setattr(train, "score", score)
    trial = trial_of(metric="f1", gap_rows=9)
    result = train_trial(_changed(settings, prune=True), trial)
    assert asked == [
        ("f1", 10, 10),
        ("f1", 10, 10),
        ("f1", 12, 12),
        ("accuracy", 12, 12),
        ("accuracy", 9, 9),
    ]
    assert result.halfway == 0.25
    result = train_trial(settings, replace(trial, gap_rows=None))
    assert result.train_accuracy is None and len(asked) == 8


def test_prediction_is_in_eval_mode_and_leaves_no_trace(settings, monkeypatch):
    monkeypatch.setattr(train, "EVALUATION_BATCH", 5)
    trial = trial_of()
    task, model = tasks.load_task(settings), build_model(settings, trial, 2)
    modes, sizes = [], []

    def look(module, args, kwargs):
        modes.append(module.training or torch.is_grad_enabled())
        sizes.append(len(kwargs["input_ids"]))
        torch.rand(1)  # as a model may that draws random numbers in evaluation too

    model.wrapped.register_forward_pre_hook(look, with_kwargs=True)
    model.train()
    state = torch.get_rng_state()
    predicted, labels = predict(model, task, task.test)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert modes == [False] * 3 and sizes == [5, 5, 2]
    assert labels == list(task.labels["test"])
    batch = task.collate([task.test[i] for i in range(12)])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    assert predicted == logits.argmax(-1).tolist()
    predict(model, task, task.test)
    assert not model.training


def test_parts_are_tokenized_once_and_by_length(settings):
    task, batches = tasks.load_task(settings), []
    train._kept_batches.cache_clear()  # another test may have looked at this part
    collate = task.collate
    object.__setattr__(task, "collate", lambda rows: batches.append(rows) or collate(rows))
    try:
        model = build_model(settings, trial_of(), 2)
        first = predict(model, task, task.test)
        assert predict(model, task, task.test) == first
        assert sum(map(len, batches)) == len(task.test)
        batches.clear()
        turned = sorted(task.test, key=lambda row: -len(row["sentence"]))
        _, labels = predict(model, task, turned)
    finally:
        object.__setattr__(task, "collate", collate)
    assert labels == [row["label"] for row in turned]
    lengths = [len(row["sentence"]) for rows in batches for row in rows]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1


def test_some_rows_are_always_the_same_choice():
    rows = [{"sentence": "x" * (i % 7), "other": i} for i in range(50)]
    chosen = some_rows(rows, 20)
    assert chosen == some_rows(rows, 20) and len({row["other"] for row in chosen}) == 20
    assert len({row["sentence"] for row in chosen}) > 1
    lengths = [len(row["sentence"]) for row in chosen]
    assert lengths == sorted(lengths)
    assert sorted(row["other"] for row in some_rows(rows, 99)) == list(range(50))


def test_a_trial_writes_nothing_but_the_adapter_that_was_asked_for(settings, capfd, tmp_path):
    out = tmp_path / "study"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in METHODS:
            train_trial(settings, trial_of(method, d=60))
    assert [str(warning.message) for warning in caught] == []
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "") and not out.exists()
    trials = [trial_of("did", model_hash=name) for name in "ab"]  # of two measures in one folder
    for trial in (*trials, trial_of("full"), trial_of("lora")):
        train_trial(_changed(settings, save_adapters=True), trial)
    names = {f"did-d20-rate0.1-seed0-{trial.key}" for trial in trials}
    assert {path.name for path in out.glob("adapters/*")} == names and len(names) == 2


def test_adapter_and_head_train_in_one_group(settings):
    trial = trial_of("lora")
    model = build_model(settings, trial, 2)
    before = [p.detach().clone() for p in parameter_groups(model, trial)[0]["params"]]
    _trainer_of(model, settings, trial).train()
    after = parameter_groups(model, trial)[0]["params"]
    # LoRA's A has no gradient while B is 0, which is in the first step alone
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
