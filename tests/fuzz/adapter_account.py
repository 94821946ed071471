"""A plain model of what an adapter should hold, from which its weights and gradients are computed,
for the tests that put adapters through sequences of calls, and strategies for the sequences."""

import copy
import functools
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from small_net import Net

from fastfood.projection import Dense, Fastfood, Sparse
from fastfood.subspace import SubspaceConfig

pytest.importorskip("safetensors.torch")
FUZZ = settings.get_current_profile_name() == "fuzz"

IDS = torch.tensor([[0, 1, 2], [4, 3, 1]])
NAMES = ["first", "second", "third"]
GROUPS = {  # what shares a scale of SAID, in the order of the groups
    "layer": ["embeddings", "layer.0", "layer.0", "layer.1", "layer.1", "head", "head"],
    "tensor": [*range(7)],
}
PROJECTIONS = {"fastfood": Fastfood, "dense": Dense, "sparse": Sparse}


def net():
    torch.manual_seed(0)
    return Net(words=5, width=4, layers=2)


class Held(NamedTuple):
    """What an adapter should hold."""

    config: SubspaceConfig
    theta: torch.Tensor
    lambda_: torch.Tensor | None

    def to(self, dtype):
        return Held(self.config, *(p if p is None else p.to(dtype) for p in self[1:]))

    def equals(self, adapter):
        pairs = zip(self[1:], (adapter.theta, adapter.lambda_), strict=True)
        same = all(p is q is None or p.dtype == q.dtype and torch.equal(p, q) for p, q in pairs)
        return same and self.config == adapter.config


@functools.lru_cache(maxsize=64)
def matrix(projection, d, D, seed):
    return PROJECTIONS[projection](d, D, seed).to_dense(torch.float64)


def trainable(model):
    return [p for p in model.parameters() if p is not model.frozen]


def weights_of(held, base):
    """theta_0 + lambda * (P theta) as equations 2 and 3 say, tensor by tensor, in float64."""
    tensors, config = trainable(base), held.config
    D = sum(p.numel() for p in tensors)
    P = matrix(config.projection, len(held.theta), D, config.seed)
    rows = (P @ held.theta.double()).split([p.numel() for p in tensors])
    groups = list(dict.fromkeys(GROUPS[config.groups]))
    made = []
    for label, p, step in zip(GROUPS[config.groups], tensors, rows, strict=True):
        if config.normalization == "tensor":
            step = step * (D / p.numel()) ** 0.5
        if held.lambda_ is not None:
            step = step * held.lambda_[groups.index(label)].double()
        made.append(p.detach().double() + step.view(p.shape))
    return made


def put_in(plain, shown, held):
    """Gives the plain model the weights shown, if they are those that held makes of its own."""
    eps = torch.finfo(plain.head.weight.dtype).eps
    for p, q, w in zip(trainable(plain), trainable(shown), weights_of(held, plain), strict=True):
        scale = 8 * eps * (1 + w.abs().max().item())
        torch.testing.assert_close(q.double(), w, rtol=0, atol=scale)
        p.data.copy_(q)


def gradients_of(held, base):
    """The gradients of theta and lambda_ by the plain model's backward, in float64."""
    leaves = [p.double().requires_grad_() for p in held[1:] if p is not None]
    weights = weights_of(Held(held.config, *(*leaves, None)[:2]), base)
    names = [name for name, _ in base.named_parameters() if name != "frozen"]
    double = copy.deepcopy(base).double()
    out = torch.func.functional_call(double, dict(zip(names, weights, strict=True)), IDS)
    return torch.autograd.grad(loss_of(out), leaves)


def loss_of(logits):
    return (logits.float() if logits.dtype == torch.bfloat16 else logits).square().mean()


@torch.no_grad()
def logits(model):
    return model(IDS)


def same_weights(model, base):
    pairs = zip(model.state_dict().values(), base.state_dict().values(), strict=True)
    return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in pairs)


configs = st.builds(
    SubspaceConfig,
    d=st.integers(8, 20),  # above the seven scales of SAID by tensor
    method=st.sampled_from(["said", "did"]),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
    normalization=st.sampled_from(["global", "tensor"]),
    groups=st.sampled_from(sorted(GROUPS)),
    projection=st.sampled_from(sorted(PROJECTIONS)),
)
ways = st.one_of(
    st.builds(
        dict, dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
    ),
    st.builds(dict, levels=st.integers(1, 256)),
)
names = st.sampled_from(NAMES)


def sequences(machine, examples, steps, fuzz):
    case = machine.TestCase
    case.settings = settings(
        max_examples=fuzz if FUZZ else examples,
        stateful_step_count=steps,
        deadline=None,
    )
    return case
