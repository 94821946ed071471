"""Adapters in any order: a SubspaceModel beside a plain account of what it should hold, compared
after every step of sequences that hypothesis makes up."""

import copy
import pickle
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from adapter_account import (
    GROUPS,
    IDS,
    Held,
    configs,
    gradients_of,
    logits,
    loss_of,
    names,
    net,
    put_in,
    same_weights,
    sequences,
    ways,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from fastfood.quantize import quantize
from fastfood.subspace import SubspaceModel, get_subspace_model

pytest.importorskip("safetensors.torch")
TRIED = Counter()


class SubspaceMachine(RuleBasedStateMachine):
    """A SubspaceModel of Net; `truth` holds its adapters, `base` is theta_0 as a model."""

    def __init__(self):
        super().__init__()
        TRIED["TestSequencesOfAdapters"] += 1
        self.folder = Path(tempfile.mkdtemp())
        self.base, self.files = net(), []
        self.generator = torch.Generator().manual_seed(0)

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(name=names, config=configs, weights=st.sampled_from(["resident", "streamed"]))
    def start(self, name, config, weights):
        self.weights, self.truth = weights, {}
        self.wrap(name, config)

    def wrap(self, name, config):
        self.model = get_subspace_model(copy.deepcopy(self.base), config, name, self.weights)
        self.active = name
        self.note_new(name, config)

    @property
    def wide(self):
        """The dtype of theta for the dtype of theta_0."""
        return torch.float64 if self.base.head.weight.dtype == torch.float64 else torch.float32

    def note_new(self, name, config):
        m = len(set(GROUPS[config.groups])) if config.method == "said" else 0
        theta, lambda_ = torch.zeros(config.d - m), torch.ones(m)
        self.truth[name] = Held(config, theta, lambda_ if m else None).to(self.wide)

    def note_active(self):
        theta, lambda_ = self.model.theta.detach(), self.model.lambda_
        lambda_ = None if lambda_ is None else lambda_.detach().clone()
        self.truth[self.active] = Held(self.truth[self.active].config, theta.clone(), lambda_)

    @rule(name=names, config=configs)
    def add(self, name, config):
        if name in self.truth:
            with pytest.raises(ValueError, match="which is an adapter already"):
                self.model.add_adapter(name, config)
        else:
            self.model.add_adapter(name, config)
            self.note_new(name, config)

    @rule(name=names)
    def switch(self, name):
        if name not in self.truth:
            with pytest.raises(ValueError, match="wanted one of"):
                self.model.set_adapter(name)
        else:
            self.model.set_adapter(name)
            self.active = name

    @rule(name=names)
    def delete(self, name):
        if name == self.active or name not in self.truth:
            with pytest.raises(ValueError, match="active adapter|wanted one of"):
                self.model.delete_adapter(name)
        else:
            self.model.delete_adapter(name)
            del self.truth[name]

    @rule()
    def move(self):
        with torch.no_grad():
            for p in (self.model.theta, self.model.lambda_):
                if p is not None:  # in place of the old ones: many steps must not add up
                    p.copy_(torch.randn(p.shape, generator=self.generator))
        self.note_active()

    @rule()
    def train(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        self.model.zero_grad()
        loss_of(self.model(IDS)).backward()
        if self.base.head.weight.dtype != torch.bfloat16:
            tolerance = 1e-9 if self.base.head.weight.dtype == torch.float64 else 1e-3
            leaves = [p for p in (self.model.theta, self.model.lambda_) if p is not None]
            for p, wanted in zip(
                leaves, gradients_of(self.truth[self.active], self.base), strict=True
            ):
                scale = wanted.abs().max().item()
                torch.testing.assert_close(p.grad.double(), wanted, rtol=0, atol=tolerance * scale)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        self.note_active()

    @rule(how=ways, place=st.integers(0, 2))
    def save(self, how, place):
        self.model.save_pretrained(self.folder / str(place), **how)
        held = self.truth[self.active]
        parts = [p for p in held[1:] if p is not None]
        if "levels" in how:
            parts = [quantize(p, how["levels"]).dequantize() for p in parts]
        else:
            parts = [p.to(how["dtype"]) for p in parts]
        kept = Held(held.config, *(*parts, None)[:2]).to(self.wide)
        self.files = [file for file in self.files if file[0] != place]
        self.files.append((place, kept, copy.deepcopy(self.base)))

    @precondition(lambda self: self.files)
    @rule(name=names, data=st.data())
    def load(self, name, data):
        place, held, base = data.draw(st.sampled_from(self.files))
        path = self.folder / str(place)
        if name in self.truth or not same_weights(base, self.base):
            with pytest.raises(ValueError, match="which is an adapter already|was trained on"):
                self.model.load_adapter(path, name)
        else:
            self.model.load_adapter(path, name)
            self.truth[name] = held
            fresh = SubspaceModel.from_pretrained(copy.deepcopy(base), path)
            self.model.set_adapter(name)
            self.active = name
            assert torch.equal(logits(fresh), logits(self.model))

    @rule()
    def disable(self):
        with self.model.disable_adapter():
            assert torch.equal(logits(self.model), logits(self.base))

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def convert(self, dtype):
        self.model.to(dtype)
        self.base.to(dtype)
        if dtype != torch.bfloat16:  # beside which theta stays as it is
            self.truth = {name: held.to(dtype) for name, held in self.truth.items()}

    @rule(how=st.sampled_from([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]))
    def copy(self, how):
        before, self.model = self.model, how(self.model)
        assert torch.equal(logits(before), logits(self.model))

    @rule()
    def restore(self):
        state = {name: p.clone() for name, p in self.model.state_dict().items()}
        with torch.no_grad():
            self.model.theta.zero_()
        logits(self.model)
        self.model.load_state_dict(state)

    @rule(name=names, config=configs, merged=st.booleans())
    def take_out(self, name, config, merged):
        """Unloads or merges the model, and puts what comes out into a new subspace."""
        before = logits(self.model)
        if merged:
            taken = self.model.merge_and_unload()
            assert torch.equal(logits(taken), before)
        else:
            taken = self.model.unload()
            assert same_weights(taken, self.base)
        trained = [p.requires_grad for p in taken.parameters()]
        assert trained == [p.requires_grad for p in net().parameters()]
        assert not any(module._forward_pre_hooks for module in taken.modules())
        self.base, self.truth = copy.deepcopy(taken), {}
        self.wrap(name, config)

    @invariant()
    def holds_the_adapters(self):
        assert self.model.active_adapter == self.active
        assert self.model.adapters.keys() == self.truth.keys()
        for name, adapter in self.model.adapters.items():
            assert self.truth[name].equals(adapter)

    @invariant()
    def trains_the_active_adapter_alone(self):
        trained = {id(p) for p in self.model.parameters() if p.requires_grad}
        own = {id(p) for p in (self.model.theta, self.model.lambda_) if p is not None}
        assert trained == own

    @invariant()
    def makes_the_weights(self):
        made = logits(self.model)
        plain = copy.deepcopy(self.base)
        put_in(plain, copy.deepcopy(self.model).merge_and_unload(), self.truth[self.active])
        assert torch.equal(made, logits(plain))


TestSequencesOfAdapters = sequences(SubspaceMachine, examples=10, steps=25, fuzz=60)
