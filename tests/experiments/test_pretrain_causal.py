"""Tests of `fastfood pretrain --causal`: checkpoints that load and write, that depend on the
settings alone, what has a loss, and what is refused."""

import json

import pytest
import torch
from commands import TINY, invoke
from text_rows import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from fastfood.experiments.data import arithmetic
from fastfood.experiments.settings.pretraining import Pretraining, complete
from fastfood.experiments.training import causal
from fastfood.experiments.training.pretrain import run

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}


def _settings(out, **changes):
    given = {"out": str(out), "causal": True, "device": "cpu", "checkpoints": (0, 3)}
    return Pretraining(**given | SIZES | {"batch_size": 8} | changes)


def _sums(out, **changes):
    return _settings(out, task="arithmetic", **changes)


def _text(out, folder, **changes):
    given = {"task": "glue/sst2", "data": str(folder), "max_length": 16, "vocabulary": 300}
    return _settings(out, **given | changes)


def _weights(folders):
    return [(folder / "model.safetensors").read_bytes() for folder in folders]


def _record(folder):
    return json.loads((folder / "pretrain.json").read_text())


@pytest.fixture
def few_pairs(monkeypatch):
    """A hundredth of the sums, which are made in no time."""
    pairs = {part: pairs[:80] for part, pairs in arithmetic._pairs().items()}
    monkeypatch.setattr(arithmetic, "_pairs", lambda: pairs)


def test_the_command_makes_models_that_write_sums(tmp_path, few_pairs):
    options = ["--causal", "--task", "arithmetic", "--device", "cpu", "--out", tmp_path]
    result = invoke("pretrain", *options, *TINY)
    assert result.exit_code == 0, result.output
    assert [line[:5] for line in result.output.splitlines()] == ["wrote", "wrote"]
    folders = [tmp_path / f"step-{step}" for step in (0, 4)]
    assert _weights(folders)[0] != _weights(folders)[1]
    for folder in folders:
        model, facts = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not facts["missing_keys"] and model.config.model_type == "llama"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kept = model.generation_config
        assert (kept.pad_token_id, kept.eos_token_id) == (0, 1)
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        batch = tokenizer(["1+2=", "12+34="], padding=True, return_tensors="pt")
        written = model.generate(**batch, max_new_tokens=4, do_sample=False)
        assert tokenizer.batch_decode(written, skip_special_tokens=True)[0].startswith("1+2=")
    sizes = {module.out_features for module in model.modules() if hasattr(module, "out_features")}
    assert sizes == {16, 98}  # the tiny model's layers, and the head


def test_the_loss_falls(tmp_path, few_pairs):
    folders = run(_sums(tmp_path, checkpoints=(1, 60), learning_rate=1e-2, warmup=0))
    first, last = (_record(folder)["loss"] for folder in folders)
    assert last < 0.6 * first


def test_a_text_has_a_loss_on_all_its_tokens_and_its_end(tmp_path):
    made = [{"first": "a film" * (i % 3), "second": f"is {i}", "label": i % 2} for i in range(20)]
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"{split}.jsonl", made)
    own = {"task": "mine", "text_columns": ("first", "second"), "label_column": "label"}
    own |= {"splits": ("train", "validation", "test"), "max_length": 40}
    model, tokenizer, rows, collate = causal.causal_parts(
        complete(_text(tmp_path, tmp_path, **own))
    )
    batch = collate(rows)
    for i, row in enumerate(made):
        length = int(batch["attention_mask"][i].sum())
        written = tokenizer.decode(batch["labels"][i, :length])
        assert written == f"{row['first']}\n{row['second']}<eos>"
        assert (batch["labels"][i, length:] == -100).all()
        assert (batch["input_ids"][i, length:] == tokenizer.pad_token_id).all()
    assert len({int(n) for n in batch["attention_mask"].sum(1)}) > 1


def test_a_sum_has_a_loss_on_its_result_and_its_end(tmp_path, few_pairs):
    model, tokenizer, rows, collate = causal.causal_parts(complete(_sums(tmp_path)))
    made = arithmetic.pretraining_rows()
    assert len(rows) == len(made)
    batch = collate(rows[::50])
    for i, row in enumerate(made[::50]):
        labels = batch["labels"][i]
        assert tokenizer.decode(labels[labels != -100]) == row["completion"] + "<eos>"
        seen = batch["input_ids"][i][batch["attention_mask"][i] == 1]
        assert tokenizer.decode(seen) == row["prompt"] + row["completion"] + "<eos>"


class Stopped(BaseException):
    """Is raised in a training to stop it as if the process had been killed."""


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, data):
    """Several epochs with dropout: 40 rows are 5 batches."""
    steps = {"checkpoints": (3, 7, 11), "architecture": "gpt2"}
    whole = run(_text(tmp_path / "whole", data, **steps))
    stopped = _text(tmp_path / "stopped", data, **steps)
    saved, trained, step = Trainer._save_checkpoint, [], Trainer.training_step

    def save(self, *arguments):
        if self.state.global_step == 7:
            raise Stopped
        return saved(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_checkpoint", save)
        with pytest.raises(Stopped):
            run(stopped)
    monkeypatch.setattr(Trainer, "training_step", lambda *all: trained.append(1) or step(*all))
    assert _weights(run(stopped)) == _weights(whole)
    assert len(trained) == 8  # from step 3 on
    assert _weights(run(_text(tmp_path / "alone", data, **steps | {"checkpoints": (7,)}))) == (
        _weights(whole[1:2])
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gpt_neox", "bert", "bart"])
def test_no_architecture_sees_what_it_is_to_write(tmp_path, data, architecture):
    folder = run(_text(tmp_path, data, architecture=architecture, checkpoints=(0, 1)))[-1]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    first, second = model(input_ids=texts).logits
    torch.testing.assert_close(first[:3], second[:3])
    assert not torch.allclose(first[3], second[3])
    assert sum(p.numel() for p in model.parameters()) < 50_000  # its sizes are those asked for


def test_a_tokenizer_of_bytes_takes_any_text(tmp_path, data):
    write_rows(data / "glue" / "sst2" / "test.jsonl", [{"sentence": "zebra", "label": 0}])
    folder = run(_text(tmp_path, data, checkpoints=(0,)))[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "  Zebra crossings aren 't , é\n日本 !"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("film", add_special_tokens=False)["input_ids"]) < 4
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_run_goes_on_from_another_model(tmp_path, data):
    first = run(_text(tmp_path / "first", data))[-1]
    given = {"model": str(first), "vocabulary": None} | dict.fromkeys(SIZES)
    second = run(_text(tmp_path / "second", data, **given))
    assert _weights(second[:1]) == _weights([first]) != _weights(second[1:])


def test_a_tokenizer_without_padding_gets_it(tmp_path, data):
    first = run(_text(tmp_path / "first", data))[-1]
    tokenizer = AutoTokenizer.from_pretrained(first)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "words")
    given = {"tokenizer": str(tmp_path / "words"), "vocabulary": None}
    folder = run(_text(tmp_path / "second", data, **given))[-1]
    made, kept = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert made.pad_token_id != made.eos_token_id
    assert made.pad_token_id == kept.generation_config.pad_token_id < kept.config.vocab_size


def test_a_record_from_before_a_setting_was_added_is_still_right(tmp_path, data):
    pretraining = Pretraining(
        out=str(tmp_path / "out"), device="cpu", checkpoints=(0,), layers=1, heads=2, hidden_size=8
    )
    run(pretraining)
    record = tmp_path / "out" / "pretrain.json"
    content = json.loads(record.read_text())
    del content["settings"]["causal"]
    record.write_text(json.dumps(content))
    assert len(run(pretraining.replaced(checkpoints=(0, 1)))) == 2
    del content["settings"]["batch_size"]  # whose default this run has
    content["settings"]["seed"] = 1
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="^out: wanted the settings of .*, got seed = 0, not 1$"):
        run(pretraining.replaced(checkpoints=(0, 2)))


SUMS = {"task": "arithmetic", "data": None, "vocabulary": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": 0.15}, "mask: wanted nothing beside causal, got 0.15"),
        ({"vocabulary": None}, "tokenizer: wanted a tokenizer's folder or hub name, or else a"),
        ({"vocabulary": 257}, "vocabulary: wanted at least 258 pieces beside causal, got 257"),
        ({"architecture": "llma"}, "architecture: wanted a model type of transformers, got 'llma'"),
        ({"architecture": "vit"}, "architecture: wanted one that writes texts, got 'vit'"),
        ({"architecture": "xlnet"}, "architecture: wanted one that sees no later token, got"),
        ({"model": "/no/folder"}, "vocabulary: wanted nothing beside model, which has its own"),
        (SUMS | {"causal": False}, "causal: wanted true for the task arithmetic, got False"),
        (SUMS | {"vocabulary": 300}, "vocabulary: wanted nothing for arithmetic, got 300"),
        (SUMS | {"tokenizer": "x"}, "tokenizer: wanted nothing for arithmetic, got 'x'"),
        (SUMS | {"model": "x"}, "model: wanted nothing for arithmetic, got 'x'"),
        (SUMS | {"data": "x"}, "data: wanted nothing, because the task arithmetic brings its own"),
        (SUMS | {"task": "arithmetic/plus1"}, "task: wanted arithmetic, which its tasks are"),
        (SUMS | {"task": "arithmetic/x"}, "task: wanted one of digits, arithmetic, "),
        (SUMS | {"task": "digits"}, "causal: wanted false for the task digits, got True"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, data, changes, message):
    with pytest.raises(ValueError) as caught:
        run(_text(tmp_path / "out", data, **changes))
    assert str(caught.value).startswith(message) and not (tmp_path / "out").exists()
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tmp_path, data, model_folder):
    given = {"tokenizer": str(model_folder), "vocabulary": None}
    with pytest.raises(ValueError, match="^tokenizer: wanted one with a token that ends a text"):
        run(_text(tmp_path / "out", data, **given))
