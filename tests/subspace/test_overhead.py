"""Counts the operator calls of a training step, because each costs time on a GPU whatever its size.
The model is a RoBERTa of 24 layers whose table is as large, relative to them, as the real one."""

from collections import Counter

import pytest
import subspace_models
import torch
import transformers
from subspace_models import ids, move, wrap
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = 24
GROUPS = LAYERS + 2  # the embeddings and the head
pytestmark = pytest.mark.usefixtures("everywhere")


def roberta():
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=4000,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=1,
    )
    model = transformers.RobertaForSequenceClassification(config).to(subspace_models.DEVICE)
    return model.train()


def calls(model, kind=torch.optim.AdamW):
    """The number of calls of each operator in one step with this optimizer, by name."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trained, lr=1e-3, fused=True)

    def step():
        labels = torch.tensor([0, 1, 0], device=subspace_models.DEVICE)
        model(input_ids=ids(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with Counting() as counting:
        step()
    return counting.found


class Counting(TorchDispatchMode):
    """Counts the operators that are called, by name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full(everywhere):
    return calls(roberta())


def ours(found):
    return {name: n for name, n in found.items() if name.startswith("fastfood::")}


def others(found):
    return sum(n for name, n in found.items() if name.startswith("aten::"))


@pytest.mark.parametrize("method", ["did", "said"])
def test_resident_weights(full, method):
    found = calls(move(wrap(roberta(), method=method, d=100)))
    assert ours(found) == {
        "fastfood::perturb_": 1,
        "fastfood::project_rows_adjoint_sum": GROUPS,
        "fastfood::hadamard_transform_out": 2,  # theta to v, and back
    }
    assert others(found) < 1.02 * others(full)


@pytest.mark.parametrize("method", ["did", "said"])
def test_streamed_weights(full, method, monkeypatch):
    monkeypatch.setattr("fastfood.units.SMALL", 256)
    found = calls(move(wrap(roberta(), method=method, d=100, weights="streamed")))
    counts = ours(found)
    assert counts.pop("fastfood::hadamard_transform_out") == 2
    assert set(counts) == {"fastfood::perturbed", "fastfood::project_rows_adjoint_sum"}
    # matrices there and back, their gradients, and those of biases and norms
    assert sum(counts.values()) <= 4 * GROUPS + 2
    assert others(found) < 1.1 * others(full)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_step_reads_nothing_back(weights):
    """What would make the processor wait for a GPU, to be found on the CPU as well."""
    kind = torch.optim.SGD  # whose own steps read nothing, as AdamW's do on the CPU
    found = calls(move(wrap(roberta(), d=100, weights=weights)), kind)
    plain = calls(roberta(), kind)
    for name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
        assert found[name] == plain[name], name
