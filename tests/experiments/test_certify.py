"""A message gives back the task vector and, in a process that has nothing else, every prediction;
its ledger counts each bit; and `fastfood bound` scores what the message gives and nothing more."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import fastfood
from fastfood import SubspaceModel
from fastfood.experiments.bound.certify import certify, decoded_model
from fastfood.experiments.bound.formulas import all_bounds, kl_of_bits, length_bits
from fastfood.experiments.bound.message import decode_message, elias_delta, encode_message
from fastfood.experiments.bound.options import Options
from fastfood.experiments.bound.qat import OnLevels, fine_tune
from fastfood.experiments.cli import app
from fastfood.experiments.data.tasks import load_task
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.training.models import build_base
from fastfood.experiments.training.train import Schedule, predict, some_rows
from fastfood.quantize import encode, quantize

REPOSITORY = Path(__file__).parents[2]


def task_settings(model_folder, data, **changes):
    given = {"task": "glue/sst2", "model": str(model_folder), "data": str(data), "device": "cpu"}
    given |= {"max_length": 16, "batch_size": 8}
    return complete(Settings(**(given | changes)))


def save_adapter(settings, folder, method="said", d=40, seed=3, std=12.0, **config):
    """An adapter at a random point, because a bound does not depend on how it was trained."""
    task = load_task(settings)
    config = fastfood.SubspaceConfig(d, method=method, seed=seed, **config)
    model = fastfood.get_subspace_model(build_base(settings, task.num_labels, seed), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.theta.normal_(std=std)
        if model.lambda_ is not None:
            model.lambda_.add_(torch.randn(len(model.lambda_)) / 4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def text(model_folder, data):
    return task_settings(model_folder, data)


@pytest.fixture
def adapter(text, tmp_path):
    return save_adapter(text, tmp_path / "adapter")


# the message


def test_whole_numbers_are_in_elias_delta_code():
    assert [elias_delta(n) for n in (1, 2, 3, 4, 8)] == ["1", "0100", "0101", "01100", "00100000"]
    assert all(len(elias_delta(n)) == length_bits(n - 1) for n in range(1, 3000))
    codes = sorted(elias_delta(n) for n in range(1, 500))
    assert not any(b.startswith(a) for a, b in zip(codes, codes[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["did", "said"]),
    st.integers(0, 2**64 - 1) | st.just(0),
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 1000),
    st.sampled_from(["global", "tensor"]),
    st.sampled_from(["fastfood", "one-block", "dense", "sparse"]),
)
def test_everything_comes_back_and_every_bit_is_in_the_ledger(
    method, seed, n, m, levels, candidates, normalization, projection
):
    torch.manual_seed(n)
    theta = quantize(torch.randn(n), levels)
    lambda_ = quantize(torch.randn(m), levels) if method == "said" else None
    config = fastfood.SubspaceConfig(
        n + (m if method == "said" else 0),
        method=method,
        seed=seed,
        normalization=normalization,
        projection=projection,
    )
    message = encode_message(config, theta, lambda_, candidates)
    found, *vectors = decode_message(message.data)
    assert found == config
    assert torch.equal(vectors[0], theta.dequantize())
    assert (
        (vectors[1] is None) if lambda_ is None else torch.equal(vectors[1], lambda_.dequantize())
    )
    assert message.bits == sum(message.ledger.values())
    assert len(message.data) == math.ceil(message.bits / 8)
    inside = message.bits - message.ledger["length"]
    assert message.ledger["length"] == length_bits(inside)
    assert message.ledger["candidate"] == length_bits(candidates - 1)
    # the arithmetic code is quantize.py's, without the zeros at its end
    code = 8 * (len(encode(theta)) - 4 - 2 * len(theta.codebook))
    assert code - 8 < message.ledger["theta symbols"] <= code
    assert message.ledger["theta codebook"] == 16 * len(theta.codebook)


def test_a_changed_bit_is_refused_or_means_another_message():
    theta, lambda_ = quantize(torch.randn(60), 4), quantize(torch.randn(3), 2)
    message = encode_message(fastfood.SubspaceConfig(63, seed=5), theta, lambda_)
    config, *vectors = decode_message(message.data)
    for place in range(message.bits):
        changed = bytearray(message.data)
        changed[place // 8] ^= 128 >> place % 8
        try:
            other, *values = decode_message(bytes(changed))
        except ValueError:
            continue
        same = other == config and all(map(torch.equal, values, vectors))
        # the number of candidates is sent only to be charged
        assert not same or message.ledger["candidate"] == 1
    for cut in (b"", message.data[:-1], message.data + b"\0", message.data[:3]):
        with pytest.raises(ValueError, match="damaged"):
            decode_message(cut)


def test_zeros_that_the_code_leaves_away_are_refused():
    message = encode_message(
        fastfood.SubspaceConfig(60, method="did"), quantize(torch.randn(60), 4)
    )
    bits = f"{int.from_bytes(message.data, 'big'):0{8 * len(message.data)}b}"
    inside = bits[message.ledger["length"] : message.bits] + "0"
    longer = elias_delta(len(inside) + 1) + inside
    longer += "0" * (-len(longer) % 8)
    with pytest.raises(ValueError, match="damaged: wanted the code of its symbols"):
        decode_message(int(longer, 2).to_bytes(len(longer) // 8, "big"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"lambda_": None}, "lambda_"),
        ({"theta": quantize(torch.ones(7), 2)}, "theta"),
        ({"candidates": 0}, "candidates"),
        ({"config": fastfood.SubspaceConfig(8, groups=lambda name: 0)}, "groups"),
    ],
)
def test_what_a_message_cannot_say_is_refused(changes, name):
    given = {"config": fastfood.SubspaceConfig(8), "candidates": 1}
    given |= {"theta": quantize(torch.randn(6), 2), "lambda_": quantize(torch.randn(2), 2)}
    with pytest.raises(ValueError, match=f"^{name}: wanted .*, got "):
        encode_message(**(given | changes))


# fine-tuning on levels


def test_the_gradient_goes_straight_through_and_its_sums_to_the_levels():
    p = nn.Parameter(torch.tensor([-2.0, -1.0, 1.5, 2.5]))
    on_levels = OnLevels([p], 2)
    optimizer = torch.optim.SGD([p], lr=0.1)
    on_levels.on_step_begin(None, None, None)
    assert p.tolist() == [-1.5, -1.5, 2.0, 2.0]
    p.grad = torch.tensor([1.0, 2.0, 3.0, -4.0])
    on_levels.on_pre_optimizer_step(None, None, None, optimizer=optimizer)
    assert p.tolist() == [-2.0, -1.0, 1.5, 2.5]  # the optimizer moves the numbers before rounding
    assert on_levels.books[0].grad.tolist() == [3.0, -1.0]
    # Adam's first step is the rate against the gradient's sign
    assert torch.allclose(on_levels.books[0], torch.tensor([-1.51, 2.01]))
    optimizer.step()
    on_levels.on_step_end(None, None, None)
    assert torch.allclose(on_levels.unrounded[0], torch.tensor([-2.1, -1.2, 1.2, 2.9]))


def test_fine_tuning_on_levels_ends_on_them_and_lowers_the_loss(text, adapter):
    task = load_task(text)
    schedule = Schedule(30, 8, warmup=0.0, bf16=False, device="cpu", seed=0)

    def loss(model):
        with torch.no_grad():
            return model.eval()(**task.collate([task.train[i] for i in range(40)])).loss.item()

    model = SubspaceModel.from_pretrained(build_base(text, task.num_labels, 3), adapter)
    rounded = [quantize(p.detach(), 4).dequantize() for p in (model.theta, model.lambda_)]
    with torch.no_grad():
        for p, values in zip((model.theta, model.lambda_), rounded, strict=True):
            p.copy_(values)
    before = loss(model)
    fine_tune(schedule, 0.3, 0.01, task, model, 4)
    for p in (model.theta, model.lambda_):
        assert len(p.unique()) <= 4 and torch.equal(p.half().float(), p)
    assert loss(model) < 0.9 * before


# the command


def test_predictions_come_back_from_the_bits_and_the_base_in_another_process(tmp_path):
    digits = complete(Settings(device="cpu"))
    adapter = save_adapter(digits, tmp_path / "adapter", std=40.0)  # where answers differ
    given = ["--device", "cpu", "--levels", "3", "--train-rows", "150"]
    found = _bound(adapter, *given, "--out", str(tmp_path / "bound.json"))
    assert (tmp_path / "bound.message").read_bytes().hex() == found["message"]
    program = Path(__file__).with_name("read_message.py")
    run = subprocess.run(
        [sys.executable, program, tmp_path / "bound.message"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    there = json.loads(run.stdout.splitlines()[-1])
    # here: the adapter itself, rounded, without any message
    task = load_task(digits)
    model = SubspaceModel.from_pretrained(build_base(digits, 10, 3), adapter)
    with torch.no_grad():
        for p in (model.theta, model.lambda_):
            p.copy_(quantize(p, found["levels"]).dequantize())
    rows = some_rows(task.train, 150), task.test
    here = [list(predict(model, task, part)) for part in rows]
    assert there == here and all(len(set(answers)) > 3 for answers, _ in here)
    wrong = [sum(a != b for a, b in zip(*part, strict=True)) for part in here]
    assert [found["train_errors"], found["test_error"] * 500] == wrong


def _bound(adapter, *arguments):
    """The JSON that the command writes; its output has the numbers too."""
    run = CliRunner().invoke(app, ["bound", str(adapter), *arguments])
    assert run.exit_code == 0, run.output
    found = json.loads(Path(arguments[arguments.index("--out") + 1]).read_text())
    assert f"at most {found['best']['value']:.4f}" in run.output
    return found


def test_the_numbers_belong_together(text, adapter, tmp_path, model_folder, data):
    out = str(tmp_path / "new" / "bound.json")
    given = ["--task", "glue/sst2", "--model", str(model_folder), "--data", str(data)]
    given += ["--max-length", "16", "--device", "cpu"]
    given += ["--levels", "2,5", "--delta", "0.1", "--choices", "6", "--out", out]
    found = _bound(adapter, *given)
    assert found["m"] == 40 and found["bits"] == sum(found["ledger"].values())
    assert found["kl"] == kl_of_bits(found["bits"])
    assert found["bounds"] == all_bounds(40, found["train_errors"], found["bits"], 0.1)
    value = found["bounds"]["binomial tail"]
    assert found["best"] == {"name": "binomial tail", "value": value, "confidence": 0.9}
    assert found["ledger"]["candidate"] == len(elias_delta(6))
    assert [tried["levels"] for tried in found["tried"]] == [2, 5]
    assert found["majority_error"] == {"train": 0.5, "test": 0.5}
    assert found["data_hash"] == load_task(text).data_hash
    assert found["adapter"]["base"] and found["in_advance"] and found["options"]["delta"] == 0.1


def test_rows_and_screening(text, adapter):
    found = certify(text, adapter, Options(levels=(2, 3), train_rows=30, screen_rows=10))
    assert found["m"] == 30 and {tried["rows"] for tried in found["tried"]} == {10}
    again = certify(text, adapter, Options(levels=(found["levels"],), train_rows=30))
    assert again["train_errors"] == found["train_errors"] and again["bounds"] == found["bounds"]


def test_the_candidates_of_a_study_are_counted(text, tmp_path):
    for seed in range(3):
        folder = save_adapter(text, tmp_path / "adapters" / str(seed), method="did", seed=seed)
    found = certify(text, folder, Options(levels=(2,)))
    assert found["options"]["choices"] == 3 and found["ledger"]["candidate"] == 4
    assert "m" not in found["ledger"] and found["options"]["head_seed"] == 2


def test_fine_tuned_levels_are_what_is_sent(text, adapter):
    found = certify(text, adapter, Options(levels=(2,), qat_steps=5, lr=0.5))
    _, theta, lambda_ = decode_message(bytes.fromhex(found["message"]))
    task = load_task(text)
    model = SubspaceModel.from_pretrained(build_base(text, task.num_labels, 3), adapter)
    schedule = Schedule(5, 8, warmup=text.warmup, bf16=False, device="cpu", seed=3)
    before = quantize(model.theta, 2).dequantize()
    fine_tune(schedule, 0.5, 0.002, task, model, 2)
    assert torch.equal(theta, model.theta) and torch.equal(lambda_, model.lambda_)
    assert not torch.equal(theta, before)


class Normalized(nn.Module):
    """Images to labels, with batch statistics that training changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, pixel_values, labels=None):
        from transformers.modeling_outputs import ImageClassifierOutput

        logits = self.out(self.norm(pixel_values.flatten(1)))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)


def test_statistics_that_training_changes_are_the_bases_own(tmp_path, monkeypatch):
    def build(settings, num_labels, seed):
        torch.manual_seed(seed)
        return Normalized()

    monkeypatch.setattr("fastfood.experiments.bound.certify.build_base", build)
    digits = complete(Settings(device="cpu"))
    model = fastfood.get_subspace_model(build(None, 10, 0), fastfood.SubspaceConfig(50))
    nn.init.normal_(model.theta)
    model.train()(torch.randn(20, 1, 8, 8))  # this changes the batch statistics
    model.save_pretrained(tmp_path)
    found = certify(digits, tmp_path, Options(levels=(4,), train_rows=200, qat_steps=3))
    fresh = decoded_model(build(None, 10, 0), bytes.fromhex(found["message"]))
    assert fresh.norm.num_batches_tracked == 0 and not fresh.training
    assert found["majority_error"]["test"] == 1 - load_task(digits).majority()
    task = load_task(digits)
    predicted, labels = predict(fresh, task, some_rows(task.train, 200))
    assert found["train_errors"] == sum(a != b for a, b in zip(predicted, labels, strict=True))


def _fails(adapter, *arguments):
    run = CliRunner().invoke(app, ["bound", str(adapter), *arguments])
    assert run.exit_code == 2 and not run.stdout
    return run.stderr


def test_another_base_is_refused(text, adapter, model_folder, data):
    given = ["--task", "glue/sst2", "--model", str(model_folder), "--data", str(data)]
    assert "was trained on other base weights" in _fails(adapter, *given, "--head-seed", "4")
    assert "was trained on a model with D" in _fails(adapter)


def test_a_message_for_another_model_is_refused(text):
    theta, lambda_ = quantize(torch.randn(60), 4), quantize(torch.randn(3), 2)
    message = encode_message(fastfood.SubspaceConfig(63), theta, lambda_)
    with pytest.raises(
        ValueError, match=r"^data: wanted vectors of \[59, 4\] numbers, got \[60, 3\]"
    ):
        decoded_model(build_base(text, 2, 0), message.data)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--levels", "2,x"], "levels"),
        (["--levels", "0"], "levels"),
        (["--levels", "257"], "levels"),
        (["--levels", ","], "levels"),
        (["--delta", "0"], "delta"),
        (["--qat-steps", "-1"], "qat_steps"),
        (["--lr", "0"], "lr"),
        (["--lambda-lr", "nan"], "lambda_lr"),
        (["--train-rows", "0"], "train_rows"),
        (["--choices", "0"], "choices"),
        (["--task", "nothing"], "task"),
    ],
)
def test_bad_arguments_end_with_one_line(tmp_path, arguments, name):
    said = _fails(tmp_path, *arguments)
    assert said.startswith(f"fastfood bound: error: {name}: wanted ") and ", got " in said
    assert said.count("\n") == 1


def test_a_missing_or_custom_adapter_is_refused(text, tmp_path):
    assert "no such adapter file" in _fails(tmp_path)
    folder = save_adapter(text, tmp_path / "custom", groups=lambda name: name[:5])
    with pytest.raises(ValueError, match="^adapter: wanted groups"):
        certify(text, folder, Options())
