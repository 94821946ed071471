"""A message of a model that writes also names alpha, and `fastfood bound` scores what the message
gives: its numbers are computed here once more, from the message's file and another forward."""

import json
import math
import random
import re

import pytest
import torch
import writers
from commands import invoke

import fastfood
from fastfood.experiments.bound.message import (
    decode_message,
    encode_message,
    with_alpha,
    without_alpha,
)
from fastfood.experiments.bound.tokens import ALPHA_BITS, ALPHAS
from fastfood.quantize import quantize

VOCABULARY = 24  # of writers.py: <pad>, <eos>, <unk> and the letters
PLACES = {letter: 3 + i for i, letter in enumerate(writers.LETTERS)}


def _sums(count, seed):
    """Rows such as 7+58= and 65, completions of one to three tokens and the end of the text."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(count)]
    return [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in pairs]


def _save_adapter(model, folder, d=24, std=6.0, **config):
    """An adapter at a random point, because a bound does not depend on how it was trained."""
    adapted = fastfood.get_subspace_model(model, fastfood.SubspaceConfig(d, seed=3, **config))
    torch.manual_seed(1)
    with torch.no_grad():
        adapted.theta.normal_(std=std)
        if adapted.lambda_ is not None:
            adapted.lambda_.add_(torch.randn(len(adapted.lambda_)) / 4)
    adapted.save_pretrained(folder)
    return folder


class Case:
    """The folders of a model, of its adapter and of its data, and the command over them."""

    def __init__(self, folder, kind, train, test, **config):
        self.kind, self.train, self.test, self.folder = kind, train, test, folder
        self.model = writers.save(folder / "model", getattr(writers, kind)())
        self.adapter = _save_adapter(self.base(), folder / "adapter", **config)
        parts = {"train": train, "validation": _sums(5, 9), "test": test}
        writers.write_rows(folder / "data" / "sums", **parts)

    def base(self):
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        auto = AutoModelForCausalLM if self.kind == "llama" else AutoModelForSeq2SeqLM
        return auto.from_pretrained(self.model).eval()

    def invoke(self, *arguments, objective="sft"):
        given = ["--objective", objective, "--task", "sums", "--splits", "train,validation,test"]
        given += ["--prompt-column", "prompt", "--completion-column", "completion"]
        given += ["--model", self.model, "--data", self.folder / "data", "--device", "cpu"]
        return invoke("bound", self.adapter, *given, *arguments)

    def bound(self, *arguments, **others):
        """The JSON that the command writes, and what it prints."""
        out = self.folder / "bound.json"
        run = self.invoke(*arguments, "--out", out, **others)
        assert run.exit_code == 0, run.output
        return json.loads(out.read_text()), run.stdout

    def decoded(self, data):
        config, theta, lambda_ = decode_message(data)
        model = fastfood.get_subspace_model(self.base(), config)
        model.load_state_dict({"theta": theta} | ({} if lambda_ is None else {"lambda_": lambda_}))
        return model.eval()

    def probabilities(self, model, rows):
        """Of each row's completion the tokens' probabilities, from a forward of the row alone."""
        found = []
        for row in rows:
            prompt = [PLACES[c] for c in row["prompt"]]
            answer = [*(PLACES[c] for c in row["completion"]), 1]
            with torch.no_grad():
                if self.kind == "llama":
                    logits = model(input_ids=torch.tensor([prompt + answer])).logits
                    logits = logits[0, len(prompt) - 1 : -1]
                else:
                    inputs = {"input_ids": torch.tensor([prompt])}
                    read = torch.tensor([[0, *answer[:-1]]])
                    logits = model(**inputs, decoder_input_ids=read).logits[0]
            p = logits.double().softmax(-1)
            found.append([p[i, token].item() for i, token in enumerate(answer)])
        return found


def _losses(probabilities, alpha):
    floor = alpha / VOCABULARY
    rows = [[-math.log2((1 - alpha) * p + floor) for p in row] for row in probabilities]
    return [sum(row) / len(row) for row in rows]


def _check_bounds(found, losses, delta):
    """The three bounds are those of the rows' losses, written out once more."""
    m, alpha, mean = len(losses), found["alpha"], _mean(losses)
    variance = sum((loss - mean) ** 2 for loss in losses) / (m - 1)
    low = -math.log2(1 - alpha + alpha / VOCABULARY)
    width = math.log2(1 + (1 - alpha) * VOCABULARY / alpha)
    log = found["bits"] * math.log(2) + math.log(2 / delta)  # delta / 2 for each of two events
    bernstein = math.sqrt(2 * variance * (log + math.log(2)) / m)
    bernstein += width * 7 * (log + math.log(2)) / (3 * (m - 1))
    hoeffding = width * math.sqrt(log / (2 * m))
    for name, gap in (("finite hypothesis", hoeffding), ("empirical Bernstein", bernstein)):
        assert found["bounds"][name] == pytest.approx(min(low + width, mean + gap), rel=1e-5)
    q, p = (mean - low) / width, (found["bounds"]["kl-inverse"] - low) / width
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert divergence == pytest.approx(log / m, rel=1e-4)


def _mean(numbers):
    return sum(numbers) / len(numbers)


@pytest.fixture(params=["llama", "t5"])
def case(request, tmp_path):
    return Case(tmp_path, request.param, _sums(150, 0), _sums(40, 1))


# the message


@pytest.mark.parametrize("n", range(60, 68))  # all fillings of the last byte
@pytest.mark.parametrize("index", [0, 13, len(ALPHAS) - 1])
def test_alpha_comes_back_and_its_bits_are_in_the_ledger(n, index):
    theta = quantize(torch.randn(n), 4)
    message = encode_message(fastfood.SubspaceConfig(n, method="did", seed=5), theta)
    longer = with_alpha(message, index)
    assert longer.ledger == {"alpha": ALPHA_BITS} | message.ledger
    assert len(longer.data) == -(-longer.bits // 8) and longer.bits == message.bits + ALPHA_BITS
    assert without_alpha(longer.data) == (index, message.data)
    assert torch.equal(decode_message(without_alpha(longer.data)[1])[1], theta.dequantize())
    for cut in (longer.data[:-1], longer.data + b"\0", b""):
        with pytest.raises(ValueError, match="damaged"):
            without_alpha(cut)


@pytest.mark.parametrize("index", [-1, len(ALPHAS)])
def test_an_alpha_that_the_grid_has_not_is_refused(index):
    message = encode_message(fastfood.SubspaceConfig(9, method="did"), quantize(torch.randn(9), 2))
    with pytest.raises(ValueError, match=f"^index: wanted a place in 0..31, got {index}"):
        with_alpha(message, index)


# the command


def test_the_numbers_follow_from_the_file_of_the_message(case):
    found, printed = case.bound("--levels", "2,4", "--delta", "0.1")
    data = (case.folder / "bound.message").read_bytes()
    assert data.hex() == found["message"] and found["bits"] == sum(found["ledger"].values())
    assert found["ledger"]["alpha"] == ALPHA_BITS and len(data) == -(-found["bits"] // 8)
    index, inside = without_alpha(data)
    alpha = 2 ** (-(index + 1) / 2)
    assert found["alpha"] == alpha and found["m"] == 150 and found["vocabulary"] == VOCABULARY

    model, base = case.decoded(inside), case.base()
    losses = {}
    for part, rows in (("train", case.train), ("test", case.test)):
        for name, scored in (("", model), ("base_", base)):
            p = case.probabilities(scored, rows)
            losses[part, name] = _losses(p, alpha)
            mean = _mean(losses[part, name])
            assert found[f"{name}loss"][part] == pytest.approx(mean, rel=1e-5)
            unsmoothed = found[f"unsmoothed_{name}loss"][part]
            assert unsmoothed == pytest.approx(_mean(_losses(p, 0)), rel=1e-5)
    assert found["loss"] != found["base_loss"]

    _check_bounds(found, losses["train", ""], 0.1)
    best = min(found["bounds"], key=found["bounds"].get)
    value = found["bounds"][best]
    assert found["best"] == {"name": best, "value": value, "confidence": 0.9}
    assert f"at most {value:.4f}" in printed and f"{found['base_loss']['test']:.4f}" in printed
    assert found["uniform"] == math.log2(24) and re.search("uniform guessing +4.5850", printed)
    assert [tried["levels"] for tried in found["tried"]] == [2, 4]
    assert found["test_rows"] == 40 and "head" not in " ".join(found["in_advance"])
    assert found["train_tokens"] == sum(len(row["completion"]) + 1 for row in case.train)
    for value in found["bounds"].values():
        assert found["loss"]["test"] < value


@pytest.fixture
def llama(tmp_path):
    return Case(tmp_path, "llama", _sums(60, 0), _sums(20, 1), method="did")


def test_a_bound_no_lower_than_uniform_guessing_is_called_vacuous(llama):
    found, printed = llama.bound("--levels", "16")
    assert found["vacuous"] == [*found["bounds"]] and min(found["bounds"].values()) >= math.log2(24)
    assert printed.count(", vacuous") == 3 and "No bound says anything here" in printed


def test_a_bound_below_uniform_guessing_is_not(tmp_path):
    rows = [row | {"completion": "h"} for row in _sums(500, 0)]
    case = Case(tmp_path, "llama", rows[:450], rows[450:], method="did", d=3, std=0.01)
    model = case.base().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ids = torch.tensor([[*(PLACES[c] for c in "1+2=h"), 1]])
    labels = torch.tensor([[-100] * 4 + [PLACES["h"], 1]])
    for _ in range(40):  # a base model that has learnt it from another row
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(case.model)
    _save_adapter(case.base(), case.adapter, d=3, std=0.01, method="did")
    found, printed = case.bound("--levels", "2")
    assert found["loss"]["test"] < found["best"]["value"] < 3 < found["uniform"]
    model = case.decoded(without_alpha(bytes.fromhex(found["message"]))[1])
    _check_bounds(found, _losses(case.probabilities(model, case.train), found["alpha"]), 0.05)
    assert max(found["bounds"].values()) < found["interval"][1]
    assert found["best"]["name"] not in found["vacuous"] and "No bound says" not in printed


def test_the_objective_says_only_how_the_data_are_read(llama):
    sft, grpo = (llama.bound("--levels", "3", objective=name)[0] for name in ("sft", "grpo"))
    assert {sft.pop("settings")["objective"], grpo.pop("settings")["objective"]} == {"sft", "grpo"}
    assert sft == grpo


def test_streamed_weights_give_the_same_message_and_bound(llama):
    options = ["--levels", "2", "--qat-steps", "4", "--batch-size", "8", "--accumulation", "2"]
    kept, _ = llama.bound(*options)
    streamed, _ = llama.bound(*options, "--weights", "streamed")
    assert streamed["settings"]["weights"] == "streamed"
    assert streamed["ledger"] == kept["ledger"]
    assert streamed["bounds"] == pytest.approx(kept["bounds"], rel=1e-4)


def test_screening_chooses_levels_and_the_bound_is_of_all_rows(llama):
    few, _ = llama.bound("--levels", "2,5", "--screen-rows", "10", "--train-rows", "50")
    assert few["m"] == 50 and {tried["rows"] for tried in few["tried"]} == {10}
    again, _ = llama.bound("--levels", str(few["levels"]), "--train-rows", "50")
    for name in ("message", "bounds", "loss", "base_loss"):
        assert few[name] == again[name]


def test_levels_are_fine_tuned_on_completions(llama):
    rounded, _ = llama.bound("--levels", "4")
    tuned, _ = llama.bound("--levels", "4", "--qat-steps", "40", "--lr", "0.5")
    theta = decode_message(without_alpha(bytes.fromhex(tuned["message"]))[1])[1]
    assert len(theta.unique()) <= 4
    assert tuned["unsmoothed_loss"]["train"] < 0.9 * rounded["unsmoothed_loss"]["train"]


def test_rows_that_are_too_long_are_in_neither_part(llama):
    lengths = [len(row["prompt"]) + len(row["completion"]) + 1 for row in llama.train + llama.test]
    assert min(lengths) < 8 < max(lengths)
    found, _ = llama.bound("--levels", "2", "--max-length", "8")
    assert found["m"] == sum(length <= 8 for length in lengths[:60])
    assert found["test_rows"] == sum(length <= 8 for length in lengths[60:])
    assert found["assumed"].endswith("of at most 8 tokens")


def test_test_rows_that_are_all_too_long_are_refused(tmp_path):
    long = [{"prompt": "1111111111+1=", "completion": "1111111112"}]
    case = Case(tmp_path, "llama", _sums(20, 0), long * 5)
    run = case.invoke("--max-length", "16")
    assert run.exit_code == 2 and not run.stdout
    said = "fastfood bound: error: max_length: wanted test rows of at most 16 tokens, got none in 5"
    assert run.stderr == said + "\n"
