"""Adapters of PEFT in any order, beside a plain account of what they should hold."""

import copy
import dataclasses
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from adapter_account import (
    Held,
    configs,
    logits,
    names,
    net,
    put_in,
    sequences,
)
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

peft = pytest.importorskip("peft")

from fastfood.peft import SaidConfig  # noqa: E402

TRIED = Counter()


class PeftMachine(RuleBasedStateMachine):
    """A PeftModel of Net in float32; `truth` holds its adapters."""

    def __init__(self):
        super().__init__()
        TRIED["TestSequencesOfPeft"] += 1
        self.folder = Path(tempfile.mkdtemp())
        self.base, self.truth, self.merged = net(), {}, None
        self.generator = torch.Generator().manual_seed(0)

    def teardown(self):
        shutil.rmtree(self.folder)

    def note(self, name, config):
        layer = self.model.base_model.layer
        lambda_ = layer.lambda_[name].detach().clone() if name in layer.lambda_ else None
        self.truth[name] = Held(config, layer.theta[name].detach().clone(), lambda_)

    @initialize(name=names, config=configs.filter(lambda config: config.method == "said"))
    def start(self, name, config):
        self.model = peft.get_peft_model(net(), peft_config(config), adapter_name=name)
        self.active = name
        self.note(name, config)

    @rule(name=names, config=configs.filter(lambda config: config.method == "said"))
    def add(self, name, config):
        if name not in self.truth:
            self.model.add_adapter(name, peft_config(config))
            self.note(name, config)

    @rule(name=names)
    def switch(self, name):
        if name in self.truth:
            with warnings.catch_warnings():  # the merged one is unmerged
                warnings.simplefilter("ignore")
                self.model.set_adapter(name)
            self.active, self.merged = name, None

    @rule(name=names)
    def delete(self, name):
        if self.merged is not None:
            with pytest.raises(ValueError, match="merged"):
                self.model.delete_adapter(self.active)
        elif name in self.truth and len(self.truth) > 1:
            with warnings.catch_warnings():  # another one becomes active
                warnings.simplefilter("ignore")
                self.model.delete_adapter(name)
            del self.truth[name]
            (self.active,) = self.model.active_adapters

    @precondition(lambda self: self.merged is None)
    @rule()
    def move(self):
        layer = self.model.base_model.layer
        with torch.no_grad():
            theta = layer.theta[self.active]
            theta.copy_(torch.randn(theta.shape, generator=self.generator))
            layer.lambda_[self.active].add_(0.25)
        self.note(self.active, self.truth[self.active].config)

    @rule(name=names, new=names)
    def save_and_load(self, name, new):
        if name in self.truth and new not in self.truth:
            self.model.save_pretrained(self.folder, selected_adapters=[name])
            place = self.folder if name == "default" else self.folder / name
            self.model.load_adapter(place, new)
            self.truth[new] = self.truth[name]

    @rule()
    def merge(self):
        if self.merged is None:
            self.model.merge_adapter()
            self.merged = self.active
        else:
            self.model.unmerge_adapter()
            self.merged = None

    @rule()
    def disable(self):
        with self.model.disable_adapter():
            assert torch.equal(logits(self.model), logits(self.base))
        self.merged = None

    @invariant()
    def is_as_noted(self):
        assert self.model.active_adapters == [self.active]
        assert list(self.model.peft_config) == list(self.truth)
        adapters = self.model.base_model.layer.subspace_model.adapters
        assert all(self.truth[name].equals(adapters[name]) for name in self.truth)
        trained = {id(p) for p in self.model.parameters() if p.requires_grad}
        active = adapters[self.active]
        assert trained <= {id(active.theta), id(active.lambda_)}
        plain = copy.deepcopy(self.base)
        put_in(plain, copy.deepcopy(self.model).merge_and_unload(), self.truth[self.active])
        assert torch.equal(logits(self.model), logits(plain))


def peft_config(config):
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return SaidConfig(**{name: value for name, value in settings.items() if name != "method"})


TestSequencesOfPeft = sequences(PeftMachine, examples=6, steps=20, fuzz=40)
