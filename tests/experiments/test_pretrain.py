"""Tests of `fastfood pretrain`: checkpoints that load and learn, that depend on the settings alone,
and runs that were stopped."""

import json
import shutil

import pytest
import torch
from text_rows import write_rows
from trials import text_settings, trial_of
from typer.testing import CliRunner

from fastfood.experiments.cli import app
from fastfood.experiments.settings.pretraining import Pretraining
from fastfood.experiments.training import masked, pretrain
from fastfood.experiments.training.pretrain import run

SIZES = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}


def _digits(out, **changes):
    given = {"checkpoints": (0, 2, 4), "batch_size": 400, "device": "cpu", **SIZES}
    return Pretraining(**({"out": str(out)} | given | changes))


@pytest.fixture
def tokenizer(model_folder, tmp_path):
    """The small model's tokenizer with a mask token."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(model_folder)
    made.add_special_tokens({"mask_token": "[MASK]"})
    made.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def _text(out, folder, words, **changes):
    given = {"task": "glue/sst2", "data": str(folder), "tokenizer": words, "max_length": 16}
    given |= {"checkpoints": (0, 3), "batch_size": 8, "device": "cpu", **SIZES}
    return Pretraining(**({"out": str(out)} | given | changes))


def _weights(folder):
    return (folder / "model.safetensors").read_bytes()


def _same(folders, others):
    return [_weights(a) == _weights(b) for a, b in zip(folders, others, strict=True)]


def test_digits_checkpoints_are_models_for_images(tmp_path):
    from transformers import AutoModelForImageClassification

    folders = run(_digits(tmp_path / "out"))
    assert folders == [tmp_path / "out" / f"step-{step}" for step in (0, 2, 4)]
    assert _weights(folders[0]) != _weights(folders[1]) != _weights(folders[2])
    for step, folder in zip((0, 2, 4), folders, strict=True):
        model, facts = AutoModelForImageClassification.from_pretrained(
            folder, num_labels=10, output_loading_info=True
        )
        assert set(facts["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 10)
        kept = json.loads((folder / "pretrain.json").read_text())
        assert kept["step"] == step and (kept["loss"] is None) == (step == 0)
        assert kept["settings"]["layers"] == 1 and kept["versions"]["torch"]


def test_the_loss_falls(tmp_path):
    folders = run(_digits(tmp_path, checkpoints=(1, 20), batch_size=64, warmup=0))
    losses = [json.loads((folder / "pretrain.json").read_text())["loss"] for folder in folders]
    assert losses[1] < 0.9 * losses[0]


def test_a_checkpoint_does_not_depend_on_those_after_it(tmp_path):
    whole = run(_digits(tmp_path / "whole"))
    part = run(_digits(tmp_path / "part", checkpoints=(0, 2)))
    assert _same(whole[:2], part) == [True, True]
    # more checkpoints are asked for later, before and after the existing ones
    later = run(_digits(tmp_path / "part", checkpoints=(1, 2, 4)))
    assert _same(whole[1:], later[1:]) == [True, True]
    alone = run(_digits(tmp_path / "alone", checkpoints=(1,)))
    assert _same(alone, later[:1]) == [True]
    other = run(_digits(tmp_path / "other", seed=1))
    assert _same(whole, other) == [False, False, False]


class Stopped(BaseException):
    """Is raised in a training to stop it as if the process had been killed."""


@pytest.mark.parametrize("moment", ["before the state", "before the checkpoint"])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, data, tokenizer, moment):
    """Several epochs with dropout: 40 rows are 5 batches."""
    steps = {"checkpoints": (3, 7, 11)}
    whole = run(_text(tmp_path / "whole", data, tokenizer, **steps))
    from transformers import Trainer

    stopped = _text(tmp_path / "stopped", data, tokenizer, **steps)
    with monkeypatch.context() as patched:
        if moment == "before the state":
            saved = Trainer._save_checkpoint

            def save(self, *arguments):
                if self.state.global_step == 7:
                    (tmp_path / "stopped" / "resume" / "checkpoint-7").mkdir()
                    raise Stopped
                return saved(self, *arguments)

            patched.setattr(Trainer, "_save_checkpoint", save)
        else:
            written = pretrain._write_json

            def write(path, content):
                if content.get("step") == 7:
                    raise Stopped
                written(path, content)

            patched.setattr(pretrain, "_write_json", write)
        with pytest.raises(Stopped):
            run(stopped)
    names = sorted(path.name for path in (tmp_path / "stopped").glob("*step-*"))
    assert (
        names
        == {
            "before the state": ["step-3", "step-7"],
            "before the checkpoint": ["step-3"],
        }[moment]
    )
    trained = []
    steps_of = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda *given: trained.append(1) or steps_of(*given)
    )
    assert _same(whole, run(stopped)) == [True, True, True]
    assert len(trained) == 8  # from step 3 on
    for folders in (whole, run(stopped)):
        assert not list(folders[0].parent.glob(".step-*"))
    records = [(folder / "pretrain.json").read_text() for folder in (*whole, *run(stopped))]
    assert records[:3] == records[3:]


def test_what_is_there_is_not_made_again_and_others_are_refused(tmp_path, monkeypatch):
    run(_digits(tmp_path, checkpoints=(0, 1)))
    monkeypatch.setattr(pretrain, "_train", None)
    assert len(run(_digits(tmp_path, checkpoints=(1,)))) == 1
    with pytest.raises(ValueError, match="^out: wanted the settings of .*, got seed = 1, not 0"):
        run(_digits(tmp_path, checkpoints=(0, 1), seed=1))


ARCHITECTURES = ("bert", "roberta", "electra", "albert", "bart", "distilbert", "xlm-roberta")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "t5", "xlnet"])
def test_every_architecture_can_be_fine_tuned(tmp_path, data, tokenizer, architecture):
    from fastfood.experiments.training.train import train_trial

    steps = (0, 1) if architecture in ARCHITECTURES else (0,)
    given = {"architecture": architecture, "checkpoints": steps}
    folders = run(_text(tmp_path / "out", data, tokenizer, **given))
    settings = text_settings(folders[-1], data, out=str(tmp_path))
    for method, d in (("full", 0), ("said", 100)):
        score = train_trial(settings, trial_of(method, d, learning_rate=0.01))
        assert 0 <= score.test <= 1


def test_only_training_rows_are_seen(tmp_path, data, tokenizer):
    """Carved validation rows are left out, and labels are not given to the model."""
    (data / "glue" / "sst2" / "validation.jsonl").unlink()
    pretraining = pretrain.complete(_text(tmp_path / "out", data, tokenizer))
    model, made, examples, collate = masked.masked_parts(pretraining)
    assert len(examples) == 36 and "labels" not in examples[0]
    batch = collate(examples[:8])
    wanted = batch["labels"] != -100
    assert 0 < wanted.sum() < 0.5 * batch["attention_mask"].sum()
    texts = [row["input_ids"] for row in examples[:8]]
    for i, j in wanted.nonzero().tolist():
        assert batch["labels"][i, j] == texts[i][j] and texts[i][j] not in (2, 3)
    assert torch.equal(collate(examples[:8])["input_ids"], batch["input_ids"])
    assert not torch.equal(collate(examples[8:16])["labels"] != -100, wanted)


def test_a_run_goes_on_from_another_model(tmp_path, data, tokenizer):
    first = run(_text(tmp_path / "first", data, tokenizer))
    given = {"model": str(first[-1])} | dict.fromkeys(SIZES)
    second = run(_text(tmp_path / "second", data, None, **given))
    assert _weights(second[0]) == _weights(first[-1]) != _weights(second[1])


def test_a_tokenizer_is_made_of_the_training_words(tmp_path, data):
    from transformers import AutoTokenizer

    write_rows(data / "glue" / "sst2" / "test.jsonl", [{"sentence": "zebra", "label": 0}])
    folders = [
        run(_text(tmp_path / name, data, None, vocabulary=100))[-1] for name in ("one", "two")
    ]
    assert _weights(folders[0]) == _weights(folders[1])
    made = AutoTokenizer.from_pretrained(folders[0])
    numbers = made("The film", "a good")["input_ids"]
    words = made.convert_ids_to_tokens(numbers)
    assert words == ["[CLS]", "the", "film", "[SEP]", "a", "good", "[SEP]"]
    assert made.mask_token == "[MASK]" and made.unk_token_id in made("zebra")["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": ()}, "checkpoints: wanted whole numbers of steps, got ()"),
        ({"checkpoints": (5, -1)}, "checkpoints: wanted whole numbers of steps"),
        ({"hidden_size": 15}, "hidden_size: wanted a multiple of heads = 2, got 15"),
        ({"layers": 0}, "layers: wanted at least 1, at most 1,000, got 0"),
        ({"mask": 1.0}, "mask: wanted a share in (0, 1), got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate: wanted a finite rate above 0, got 0.0"),
        ({"tokenizer": None}, "tokenizer: wanted a tokenizer's folder or hub name"),
        ({"vocabulary": 100}, "tokenizer: wanted a tokenizer's folder or hub name, or else a"),
        ({"tokenizer": None, "vocabulary": 5}, "vocabulary: wanted 10 to 10,000,000 pieces, got 5"),
        ({"tokenizer": "/no/folder"}, "model: no tokenizer in '/no/folder'"),
        ({"architecture": "brt"}, "architecture: wanted a model type of transformers, got 'brt'"),
        ({"architecture": "vit"}, "architecture: wanted one that classifies texts, got 'vit'"),
        ({"architecture": "t5"}, "architecture: wanted one that transformers has a masked-LM"),
        ({"model": "/no/folder"}, "hidden_size: wanted nothing beside model"),
        ({"data": "/no/folder"}, "data: wanted an existing folder, got '/no/folder'"),
        ({"task": "glue/ax"}, "task: wanted one of digits"),
        ({"task": "digits", "data": None}, "tokenizer: wanted nothing for digits"),
        ({"batch_size": 0}, "batch_size: wanted at least 1, got 0"),
        ({"device": "gpu"}, "device: wanted auto, cpu, cuda, got 'gpu'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path, data, tokenizer, changes, message
):
    with pytest.raises(ValueError) as caught:
        run(_text(tmp_path / "out", data, tokenizer, **changes))
    assert str(caught.value).startswith(message) and not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_mask_cannot_pretrain(tmp_path, data, model_folder):
    with pytest.raises(ValueError, match="^tokenizer: wanted one with a mask token, got "):
        run(_text(tmp_path / "out", data, str(model_folder)))
    assert len(run(_text(tmp_path / "out", data, str(model_folder), checkpoints=(0,)))) == 1


def test_a_diverging_run_stops_without_a_checkpoint(tmp_path):
    diverging = _digits(tmp_path, checkpoints=(6,), learning_rate=1e30, warmup=0)
    with pytest.raises(FloatingPointError, match="^diverged at step"):
        run(diverging)
    assert not list(tmp_path.glob("*step-*"))


def test_the_command_resumes_and_tells_what_is_wrong(tmp_path):
    options = ["pretrain", "--out", str(tmp_path / "out"), "--layers", "1", "--device", "cpu"]
    options += ["--batch-size", "400", "--checkpoints"]
    result = CliRunner().invoke(app, [*options, "0,1"])
    assert result.exit_code == 0, result.output
    assert [line[:5] for line in result.output.splitlines()] == ["wrote", "wrote"]
    shutil.rmtree(tmp_path / "out" / "step-1")
    result = CliRunner().invoke(app, [*options, "0,1"])
    assert result.exit_code == 0 and result.output.count("wrote") == 1
    for given in ("0,x", "-1"):
        result = CliRunner().invoke(app, [*options, given])
        assert result.exit_code == 2
        assert result.stderr.startswith("fastfood pretrain: error: checkpoints: wanted")
        assert result.stderr.count("\n") == 1
