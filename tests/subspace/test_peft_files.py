"""Files of PEFT adapters: other processes, other base models, copies, a Trainer's checkpoints."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft_models import layer, logits, said, tuned
from subspace_models import bert, move, texts

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from fastfood.peft import DidConfig  # noqa: E402

READER = """
import sys
import fastfood
assert "peft" not in sys.modules and "transformers" not in sys.modules
import peft, torch
import fastfood.peft
from subspace_models import IDS, bert
model = peft.PeftModel.from_pretrained(bert().float(), sys.argv[1])
model.load_adapter(sys.argv[1] + "/other", "other")
for name in ("default", "other"):
    model.set_adapter(name)
    torch.save(model(input_ids=IDS).logits, f"{sys.argv[1]}/{name}.pt")
"""


def test_a_new_process_computes_the_same(tmp_path):
    model = tuned()
    model.add_adapter("other", said(d=50, groups="tensor", normalization="tensor"))
    model.set_adapter("other")
    move(layer(model).subspace_model, seed=1)
    model.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "adapter_config.json").read_text())
    assert kept["peft_type"] == "SAID" and kept["d"] == 30 and len(kept["base_hash"]) == 41
    assert "weights" not in kept and "modules_to_save" not in kept
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1024
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tests / 'fixtures'}{os.pathsep}{tests.parent}"}
    subprocess.run([sys.executable, "-c", READER, str(tmp_path)], env=environment, check=True)
    for name in ("other", "default"):
        model.set_adapter(name)
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), logits(model))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading(tmp_path, low_cpu_mem_usage):
    model = tuned(adapter_name="mine")
    model.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    other = peft.PeftModel.from_pretrained(bert().float(), tmp_path / "mine", **options)
    result = other.load_adapter(tmp_path / "mine", "again", is_trainable=True, **options)
    assert result.missing_keys == []
    assert torch.equal(logits(other), logits(model))
    assert not layer(other).theta["default"].requires_grad
    other.set_adapter("again")
    assert torch.equal(logits(other), logits(model))
    assert layer(other).theta["again"].requires_grad
    assert layer(other).theta["again"] is layer(other).subspace_model.theta


def test_other_base_models_are_refused(tmp_path):
    config = said()
    model = tuned(config)
    model.save_pretrained(tmp_path)
    changed = bert().float().eval()
    with torch.no_grad():
        changed.classifier.bias += 1
    plain = logits(changed)
    for base, reason in ((changed, "other base weights"), (bert(), "names, shapes, types")):
        with pytest.raises(ValueError, match=f"default: was trained on .*{reason}"):
            peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(changed), plain)
    assert not hasattr(changed, "peft_config")
    assert all(p.requires_grad for p in changed.parameters())

    fresh = peft.get_peft_model(changed, config)  # saving left no mark on the configuration
    with pytest.raises(ValueError, match="again: was trained on other base weights"):
        fresh.load_adapter(tmp_path, "again")
    assert list(fresh.peft_config) == list(layer(fresh).subspace_model.adapters) == ["default"]
    loaded = peft.PeftConfig.from_pretrained(tmp_path)
    loaded.base_hash = None
    peft.PeftModel.from_pretrained(fresh.unload(), tmp_path, config=loaded)


def test_groups_given_as_a_function(tmp_path):
    def by_kind(name):
        return name.split(".")[-1]

    model = tuned(said(groups=by_kind))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="groups: wanted .* got 'custom'"):
        peft.PeftModel.from_pretrained(bert().float(), tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    config.groups = by_kind
    other = peft.PeftModel.from_pretrained(bert().float(), tmp_path, config=config)
    assert torch.equal(logits(other), logits(model))


def test_a_state_dict_holds_the_adapters(tmp_path):
    model = tuned()
    model.add_adapter("other", said())
    state = model.state_dict()
    prefix = "base_model.said_layer."
    assert list(state) == [
        prefix + name
        for name in ("theta.default", "theta.other", "lambda_.default", "lambda_.other")
    ]
    fresh = peft.get_peft_model(bert().float().eval(), said())
    fresh.add_adapter("other", said())
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(logits(fresh), logits(model))
    with pytest.raises(RuntimeError, match="Missing key.*lambda_.other"):
        fresh.load_state_dict({key: state[key] for key in list(state)[:3]})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate):
    model = tuned()
    before = logits(model)
    other = duplicate(model)
    assert torch.equal(logits(other), before)
    assert layer(other).theta["default"] is layer(other).subspace_model.theta
    assert layer(other).subspace_model.wrapped is other.get_base_model()
    move(layer(other).subspace_model, seed=1)
    assert not torch.equal(logits(other), before)
    assert torch.equal(logits(model), before)

    root = peft.get_peft_model(torch.nn.Linear(5, 7), DidConfig(d=3))  # parameters at the top
    x = torch.ones(1, 5)
    assert torch.equal(root(x), duplicate(root)(x))


@pytest.mark.filterwarnings("ignore")
def test_trainer(tmp_path):
    """A few steps, checkpoints, the best one loaded at the end, and resuming from one."""
    pytest.importorskip("accelerate")

    def trainer(folder):
        model = peft.get_peft_model(bert().float(), said(d=40))
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=6,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            use_cpu=True,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            load_best_model_at_end=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        return transformers.Trainer(
            model, arguments, train_dataset=texts(64), eval_dataset=texts(8)
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, p in layer(whole.model).named_parameters():
        assert torch.equal(p, layer(resumed.model).get_parameter(name)), name
    assert layer(whole.model).theta["default"].norm() > 0
    last = peft.PeftModel.from_pretrained(
        bert().float(), tmp_path / "whole" / Path(whole.state.best_model_checkpoint).name
    )
    assert torch.equal(logits(last), logits(whole.model.eval()))
