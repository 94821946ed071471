"""Gradients of theta and lambda_ against the dense matrix of P and the plain model's own gradients,
at theta != 0 and lambda_ != 1."""

import pytest
import subspace_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subspace_models import (
    Mlp,
    albert,
    bart,
    bert,
    check_gradients,
    expected,
    inputs,
    loss_of,
    mlp,
    move,
    t5,
    wrap,
)
from torch import nn

from fastfood import ops
from fastfood.subspace import SubspaceConfig, get_subspace_model

pytestmark = pytest.mark.usefixtures("everywhere")
EACH_WAY = pytest.mark.parametrize("weights", ["resident", "streamed"])


def layer(name):
    return name.split(".")[0]


@EACH_WAY
@pytest.mark.parametrize("groups", ["layer", "tensor", layer])
@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("method", ["said", "did"])
def test_gradients_match_the_dense_matrix(method, normalization, groups, weights):
    config = {"method": method, "normalization": normalization, "groups": groups}
    check_gradients(move(wrap(mlp(), weights=weights, **config)), mlp())


@EACH_WAY
def test_moved_to_each_device(device, weights, monkeypatch):
    """Built on the CPU, converted with the wrapper, against the CPU's own gradients."""
    monkeypatch.setattr(subspace_models, "DEVICE", torch.device("cpu"))
    _, theta_grad, lambda_grad = expected(move(wrap(mlp())), mlp())
    model = move(wrap(mlp(), weights=weights)).to(device)
    model(inputs(4, 5).to(device)).square().sum().backward()
    torch.testing.assert_close(model.theta.grad.cpu(), theta_grad)
    torch.testing.assert_close(model.lambda_.grad.cpu(), lambda_grad)


@pytest.mark.parametrize("projection", ["one-block", "dense", "sparse"])
def test_other_projections(projection):
    check_gradients(move(wrap(mlp(), projection=projection)), mlp())
    if projection != "one-block":
        check_gradients(move(wrap(mlp(), weights="streamed", projection=projection)), mlp())


@EACH_WAY
@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("method", ["said", "did"])
def test_the_released_gradient_is_wrong_as_documented(method, normalization, weights):
    config = {"method": method, "normalization": normalization, "gradient": "released"}
    config["weights"] = weights
    check_gradients(move(wrap(mlp(), **config)), mlp())
    exact = move(wrap(mlp(), **config | {"gradient": "exact"}))
    released = move(wrap(mlp(), **config))
    for model in (exact, released):
        loss_of(model).backward()
    assert torch.cosine_similarity(exact.theta.grad, released.theta.grad, 0) < 0.99
    if method == "said":
        torch.testing.assert_close(exact.lambda_.grad, released.lambda_.grad)


@EACH_WAY
@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("build", [bert, albert, bart, t5])
def test_gradients_of_transformers(build, normalization, weights):
    check_gradients(move(wrap(build(), normalization=normalization, weights=weights)), build())


@EACH_WAY
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant, weights):
    model = move(wrap(bert(), weights=weights))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    check_gradients(model.train(), bert())


@EACH_WAY
@pytest.mark.parametrize("gradient", ["exact", "released"])
@pytest.mark.parametrize("entries", [1, 3 * 256])
def test_in_parts_where_there_are_many_large_groups(monkeypatch, entries, gradient, weights):
    """The rows of V with 256 entries each, one at a time, and three."""
    monkeypatch.setattr("fastfood.points._ENTRIES", entries)
    config = {"groups": "tensor", "gradient": gradient, "weights": weights}
    check_gradients(move(wrap(mlp(), **config)), mlp())


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    frozen=st.integers(0, 1),
    method=st.sampled_from(["said", "did"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_gradients_for_any_shape(sizes, frozen, method, seed):
    def build():
        torch.manual_seed(0)
        model = Mlp((5, *sizes)).double().to(subspace_models.DEVICE)
        model.embed.weight.requires_grad_(not frozen)
        return model

    D = sum(p.numel() for p in build().parameters() if p.requires_grad)
    config = SubspaceConfig(d=min(D, 9), method=method, seed=seed)
    value, theta_grad, _ = expected(move(model := get_subspace_model(build(), config)), build())
    loss = loss_of(model)
    loss.backward()
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(model.theta.grad, theta_grad)


@EACH_WAY
def test_recurrent_weights_get_gradients(weights):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(5, 4)
            self.lstm = nn.LSTM(4, 3, num_layers=2, bidirectional=True)
            self.scale = nn.ParameterList(
                [nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))]
            )

        def forward(self, x):
            y = self.lstm(self.embed(x))[0]
            return y * self.scale[0] + sum(p.sum() for p in self.scale)

    def build():
        return Recurrent().double().to(subspace_models.DEVICE)

    check_gradients(move(wrap(build(), weights=weights)), build())
    model = move(wrap(build(), weights=weights))
    y = model(inputs(2, 5))
    merged = model.merge_and_unload()
    assert all(isinstance(w, nn.Parameter) for w in merged.lstm._flat_weights)
    assert torch.equal(merged(inputs(2, 5)), y)


def test_absent_gradients_cost_nothing(monkeypatch):
    model = move(wrap(mlp(), groups=lambda _: 0))
    model.refresh()
    adjoint, rows = ops.project_rows_adjoint_sum, []
    monkeypatch.setattr(
        ops,
        "project_rows_adjoint_sum",
        lambda gs, *rest: rows.extend(map(len, gs)) or adjoint(gs, *rest),
    )
    model.out.bias.sum().backward()
    assert rows == [2]


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        wrap(mlp())._replicate_for_data_parallel()


@EACH_WAY
def test_sparse_gradients_are_gathered(weights):
    def build():
        torch.manual_seed(0)
        layers = {"e": nn.Embedding(7, 4, sparse=True), "o": nn.Linear(4, 2)}
        return nn.ModuleDict(layers).double().to(subspace_models.DEVICE)

    def loss(model):
        base = getattr(model, "wrapped", model)
        if base is not model:
            model.refresh()
        words = torch.tensor([1, 4, 4], device=subspace_models.DEVICE)
        return base["o"](base["e"](words)).square().sum()

    model = move(wrap(build(), d=9, weights=weights))
    plain = build()
    plain["e"].sparse = False
    value, theta_grad, _ = expected(model, plain, loss)
    loss(model).backward()
    torch.testing.assert_close(model.theta.grad, theta_grad)


@EACH_WAY
def test_second_order(weights):
    model = move(wrap(mlp(), weights=weights))
    leaves = [model.theta, model.lambda_]
    grads = torch.autograd.grad(loss_of(model), leaves, create_graph=True)
    direction = [torch.ones_like(p) for p in leaves]
    product = torch.autograd.grad(grads, leaves, direction)

    h = 1e-5
    sides = []
    for step in (h, -h):
        with torch.no_grad():
            for p, v in zip(leaves, direction, strict=True):
                p += step * v
        sides.append(torch.autograd.grad(loss_of(model), leaves))
        with torch.no_grad():
            for p, v in zip(leaves, direction, strict=True):
                p -= step * v
    for exact, plus, minus in zip(product, *sides, strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-5)


@EACH_WAY
def test_second_order_after_a_change_is_an_error(weights):
    model = move(wrap(mlp(), weights=weights))
    loss = loss_of(model)
    move(model)
    with pytest.raises(RuntimeError, match="changed before a backward with create_graph"):
        torch.autograd.grad(loss, model.theta, create_graph=True)
