"""Streamed weights: made when they are used, never kept, and equal to resident ones to the bit."""

import copy
import gc
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import subspace_models
import torch
from subspace_models import bert, check_gradients, gpt2, ids, inputs, loss_of, mlp, move, t5, wrap
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastfood import ops, streamed, units

pytestmark = pytest.mark.usefixtures("everywhere")


def pair(build, **settings):
    return [move(wrap(build(), weights=w, **settings)) for w in ("resident", "streamed")]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model._leaves()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [bert, t5])
def test_equal_to_resident_weights(build, dtype):
    resident, other = pair(lambda: build().to(dtype))
    losses = loss_of(resident), loss_of(other)
    assert torch.equal(*losses)
    assert other.theta.dtype == torch.float32
    bound = 2e-5 if dtype == torch.float32 else 0.1
    for a, b in zip(gradients(resident, losses[0]), gradients(other, losses[1]), strict=True):
        assert (a - b).norm() < bound * a.norm()
    merged = [model.merge_and_unload() for model in (resident, other)]
    for p, q in zip(*(model.parameters() for model in merged), strict=True):
        assert torch.equal(p, q) and p.requires_grad and q.requires_grad


def test_generation_is_the_same():
    prompt = {"input_ids": ids(3, 3), "max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    resident, other = pair(lambda: gpt2().eval())
    tokens = other.generate(**prompt)
    assert torch.equal(tokens, resident.generate(**prompt))
    assert torch.equal(tokens, other.merge_and_unload().generate(**prompt))


def test_autocast():
    resident, other = pair(lambda: bert().float())
    found = []
    for model in (resident, other):
        with torch.autocast(subspace_models.DEVICE.type, torch.bfloat16):
            loss = loss_of(model)
        found.append((loss, *gradients(model, loss)))
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 0.02 * a.norm()  # some roundings to 8 bits


def test_accumulation_adds_up():
    model = move(wrap(mlp(), weights="streamed"))
    once = gradients(model, loss_of(model))
    loss_of(model).backward()
    for grad, p in zip(once, model._leaves(), strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)


def test_a_backward_after_a_step_uses_the_weights_of_its_forward():
    model = move(wrap(mlp(), weights="streamed"))
    wanted = gradients(model, loss_of(model))
    loss = loss_of(model)
    move(model)
    loss_of(model)
    for a, b in zip(gradients(model, loss), wanted, strict=True):
        torch.testing.assert_close(a, b)


class Kinds(nn.Module):
    """A model that uses weights outside of their module's forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(8))])
        self.bilinear = nn.Bilinear(8, 8, 2)

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attention(x, x, x)[0] + self.embed.weight[:4].sum(0)
        x = checkpoint(self.layer, x, use_reentrant=False)
        x = self.norm(self.convolution(x.mT).mT) * self.scale[0]
        x = checkpoint(lambda x: x @ self.layer.linear1.weight.T, x, use_reentrant=False)[..., :8]
        return self.bilinear(x, x.tanh()) @ self.embed.weight[:2, :2] + self.norm.bias[:2]


@pytest.mark.parametrize("train", [True, False])
def test_any_use_of_a_weight(train):
    def build():
        return Kinds().double().to(subspace_models.DEVICE).train(train)

    def loss(model):
        words = torch.arange(12, device=subspace_models.DEVICE).reshape(3, 4) % 7
        return model(words).square().sum()

    check_gradients(move(wrap(build(), weights="streamed")), build(), loss)
    with torch.no_grad():
        resident, other = pair(build)
        torch.testing.assert_close(loss(other), loss(resident))


class Product(torch.autograd.Function):
    """Acts like another library's fused kernel, which reads the weight in an autograd.Function."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x


def test_weights_inside_an_autograd_function():
    def build():
        model = mlp()
        for linear in (model.embed, model.blocks[0]):
            linear.forward = lambda x, m=linear: Product.apply(x, m.weight) + m.bias
        return model

    # the forward belongs to the modules of one model, so each has its own
    check_gradients(move(wrap(build(), weights="streamed")), build())


def peak_bytes(run):
    """The peak memory of tensors on the CPU during a call, beyond those from before."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_memory(monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE", 1 << 16)
    block = 4 * 600 * 600

    def build():
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(600, 600, bias=False), nn.Tanh()) for _ in range(8)]
        return nn.Sequential(nn.Embedding(600, 600), *layers)

    def train(model):
        model(torch.tensor([3, 5])).square().sum().backward()

    resident, other = pair(build, method="did")
    D = 4 * other.projection.D
    assert D == 9 * block
    for _ in range(2):
        taken = peak_bytes(lambda: train(resident)), peak_bytes(lambda: train(other))
        assert taken[1] < 1.2 * block
    assert taken[0] < 1.2 * block  # a group's gradients at a time
    assert peak_bytes(lambda: train(pair(build)[0])) < 4.2 * D  # two models, theta_0 and theta_D

    def whole(model):
        return lambda: [p.detach().clone() for p in model.parameters()]

    assert D <= peak_bytes(whole(other.wrapped)) < 1.1 * D  # what is measured is memory


def test_linear_layers_by_rows(monkeypatch):
    monkeypatch.setattr(streamed, "_PIECE", 8)  # two rows at a time
    made = []
    make = units.Large.make
    monkeypatch.setattr(units.Large, "make", lambda *a: made.append(a[2:]) or make(*a))
    for settings in ({"method": "did", "d": 2}, {"d": 6, "normalization": "tensor"}):
        made.clear()
        check_gradients(move(wrap(mlp(), weights="streamed", **settings)), mlp())
        assert (2, 4) in made and (4, 6) in made


def with_units(**changes):
    """A model with a unit for each layer: its table is much larger."""
    return bert(vocab_size=400, **changes)


@pytest.mark.parametrize("gradient", ["exact", "released"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_made_as_units(checkpointing, gradient, monkeypatch):
    made = []
    perturbed = ops.perturbed
    monkeypatch.setattr(
        ops, "perturbed", lambda bases, *rest: made.append(len(bases)) or perturbed(bases, *rest)
    )
    model = move(wrap(with_units(), weights="streamed", gradient=gradient))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_gradients(model.train(), with_units())
    # the table, what is small, layers forth and back; the head's and the pooler's are alone
    assert sorted(made)[-5:] == [7, 7, 7, 7, 22] and made.count(1) < 8


def test_a_unit_is_freed_before_the_next_is_made(monkeypatch):
    model = move(wrap(with_units().eval(), weights="streamed"))
    perturbed, made = ops.perturbed, []

    def looking(bases, *rest):
        assert len(bases) != 7 or all(w() is None for w in made)
        weights = perturbed(bases, *rest)
        if len(bases) == 7:
            made[:] = map(weakref.ref, weights)
        return weights

    monkeypatch.setattr(ops, "perturbed", looking)
    with torch.no_grad():
        loss_of(model)
    assert len(made) == 7


@pytest.mark.parametrize("build", [mlp, t5])
def test_a_small_model_stays_whole(build, monkeypatch):
    monkeypatch.setattr(units, "SMALL", 1 << 16)
    made = []
    perturbed = ops.perturbed
    monkeypatch.setattr(
        ops, "perturbed", lambda bases, *rest: made.append(len(bases)) or perturbed(bases, *rest)
    )
    model = move(wrap(build(), weights="streamed"))
    check_gradients(model, build())
    assert made == [len(model.segments)]


def test_threads_share_a_model():
    """Each gets the weights that it asked for, whichever unit another one is at."""
    model = move(wrap(with_units().float().eval(), weights="streamed"))
    with torch.no_grad():
        wanted = model(ids()).logits

    def run(_):
        with torch.no_grad():
            return [model(ids()).logits for _ in range(10)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [logits for some in pool.map(run, range(4)) for logits in some]
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(logits, wanted) for logits in found)


def test_one_unit_at_a_time(monkeypatch):
    """A unit that others came after is made again, whatever uses it and under whichever mode."""
    model = move(wrap(with_units(), weights="streamed"))
    with torch.inference_mode():
        before = loss_of(model)
    first, second = (layer.attention.self.query for layer in model.bert.encoder.layer)
    x = inputs(2, 16).requires_grad_()
    with torch.no_grad():
        wanted = second(first(x))
    y = second(first(x))
    assert torch.equal(y, wanted) and torch.equal(loss_of(model), before)
    kept = [weakref.ref(w) for w in second.weight.source.unit.shelf.made.weights]
    (y + first(y)).square().sum().backward()
    assert all(w() is None for w in kept)
    merged = model.merge_and_unload().bert.encoder.layer
    z = x.detach().requires_grad_()
    once = merged[1].attention.self.query(merged[0].attention.self.query(z))
    (once + merged[0].attention.self.query(once)).square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_nothing_of_the_weights_is_saved():
    model = move(wrap(with_units(), weights="streamed"))
    sizes = {tuple(s.shape) for s in model.segments if len(s.shape) == 2}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss_of(model)
    assert len(kept) > 20
    assert not [x.shape for x in kept if tuple(x.shape) in sizes or tuple(x.shape[::-1]) in sizes]


def test_the_base_stays_as_it_is(tmp_path):
    """theta_0 may be mapped from a file that nobody may write to."""
    safetensors = pytest.importorskip("safetensors.torch")
    plain = bert().bfloat16()
    safetensors.save_file(plain.state_dict(), tmp_path / "w.safetensors")
    mapped = bert().bfloat16()
    mapped.load_state_dict(safetensors.load_file(tmp_path / "w.safetensors"), assign=True)
    places = {name: p.data_ptr() for name, p in mapped.named_parameters()}
    model = move(wrap(mapped, weights="streamed"))
    loss = loss_of(model)
    loss.backward()
    assert {name: p.data_ptr() for name, p in mapped.named_parameters()} == places
    assert all(
        torch.equal(p, q) for p, q in zip(mapped.parameters(), plain.parameters(), strict=True)
    )
    assert torch.equal(loss, loss_of(move(wrap(bert().bfloat16()))))
    assert torch.equal(loss_of(model.merge_and_unload()), loss)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate):
    model = move(wrap(t5(), weights="streamed"))
    loss = loss_of(model)
    other = duplicate(model)
    assert torch.equal(loss_of(other), loss)
    assert loss_of(move(other)) != loss
    assert torch.equal(loss_of(model), loss)
    assert torch.equal(loss_of(model.double().unload()), loss_of(t5()))


@pytest.mark.parametrize("build", [mlp, with_units])
def test_a_backward_over_changed_weights_is_an_error(build):
    model = wrap(build(), weights="streamed")
    loss = loss_of(model)
    model.wrapped.load_state_dict(build().state_dict())
    with pytest.raises(RuntimeError, match="moved, converted or written"):
        loss.backward()


def test_facts_are_known_without_making_the_weight(monkeypatch):
    model = wrap(mlp().float(), weights="streamed")
    model.refresh()
    weight = model.wrapped.embed.weight
    for source in (units.Member, units.Large):
        monkeypatch.delattr(source, "make")
        monkeypatch.delattr(source, "weight")
    assert (weight.shape, weight.dtype) == ((7, 5), torch.float32)
    assert weight.device.type == subspace_models.DEVICE.type
    assert weight.size(0) == 7 and weight.dim() == weight.ndim == 2 and weight.numel() == 35
    assert weight.requires_grad and weight.is_floating_point() and weight.is_contiguous()
    assert repr(weight) == "StreamedWeight(embed.weight)"
    assert model.wrapped.embed.in_features == 5


def test_weights_are_made_where_they_are_used():
    """As for a base model on the CPU whose inputs lie on a GPU; "meta" stands for that."""
    model = move(wrap(bert(), weights="streamed"))
    model.refresh()
    base, hidden = model.wrapped, torch.empty(2, 16, dtype=torch.float64, device="meta")
    for module in (base.classifier, base.bert.pooler.dense, base.bert.embeddings.LayerNorm):
        y = module(hidden)
        assert y.device.type == "meta" and y.shape[0] == 2
    words = torch.empty(2, 3, dtype=torch.long, device="meta")
    assert base.bert.embeddings.word_embeddings(words).device.type == "meta"
    assert all(p.device.type == subspace_models.DEVICE.type for p in base.parameters())
    assert torch.equal(loss_of(model), loss_of(move(wrap(bert()))))


def test_writing_to_what_a_backward_needs_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            y = self.out(x)
            z = self.norm(y)
            y.add_(1)
            return z

    for weights in ("resident", "streamed"):
        net = wrap(Net().to(subspace_models.DEVICE), d=12, weights=weights)
        loss = net(inputs(3, 6).float()).square().sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_refused():
    with pytest.raises(ValueError, match="weights: wanted one of .*got 'paged'"):
        wrap(mlp(), weights="paged")
    base = mlp()
    with pytest.raises(ValueError, match="made in parts if streamed, got 'one-block'"):
        wrap(base, weights="streamed", projection="one-block")
    assert all(p.requires_grad for p in base.parameters())
