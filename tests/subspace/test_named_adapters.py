"""Several adapters over one base: each trains alone; switching and disabling leave no trace."""

import copy
import pickle

import pytest
import torch
from subspace_models import bert, gpt2, ids, loss_of, mlp, move, wrap
from torch import nn

import fastfood
from fastfood.subspace import SubspaceConfig, get_subspace_model

pytestmark = pytest.mark.usefixtures("everywhere")
EACH_WAY = pytest.mark.parametrize("weights", ["resident", "streamed"])
OTHER = SubspaceConfig(d=17, method="did", seed=9, groups="tensor", normalization="tensor")


def alone(config, seed, weights="resident"):
    return move(get_subspace_model(mlp(), config, weights=weights), seed)


def two(weights):
    """A model with the adapters "default" and "other" away from zero."""
    model = move(wrap(mlp(), weights=weights))
    model.add_adapter("other", OTHER)
    model.set_adapter("other")
    move(model, seed=1)
    return model


@EACH_WAY
def test_switching_gives_what_each_gives_alone(weights):
    first, second = move(wrap(mlp(), weights=weights)), alone(OTHER, 1, weights)
    base = loss_of(mlp())
    model = two(weights)
    for name, single in [("other", second), ("default", first)] * 2:
        model.set_adapter(name)
        assert model.active_adapter == name
        assert model.subspace_config == single.subspace_config
        assert model.group_names == single.group_names
        model.zero_grad()
        single.zero_grad()
        loss, wanted = loss_of(model), loss_of(single)
        loss.backward()
        wanted.backward()
        assert torch.equal(loss, wanted)
        for p, q in zip(model._leaves(), single._leaves(), strict=True):
            assert torch.equal(p.grad, q.grad)
        with model.disable_adapter():
            assert torch.equal(loss_of(model), base)
            assert not loss_of(model).requires_grad
        assert torch.equal(loss_of(model), wanted)
    assert list(model.adapters) == ["default", "other"]


@EACH_WAY
def test_only_the_active_adapter_trains(weights):
    model = two(weights)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(model.theta)}
    assert list(model.state_dict()) == ["theta"]
    kept = model.adapters["default"].theta.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model).backward()
    before = model.theta.clone()
    optimizer.step()
    assert not torch.equal(model.theta, before)
    model.set_adapter("default")
    assert torch.equal(model.theta, kept)
    assert list(model.state_dict()) == ["theta", "lambda_"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 30


def test_switching_costs_one_projection(monkeypatch):
    count = [0]
    write = fastfood.Fastfood.perturb_

    def counted(*arguments):
        count[0] += 1
        return write(*arguments)

    monkeypatch.setattr(fastfood.Fastfood, "perturb_", counted)
    model = two("resident")
    for name in ("default", "other", "default"):
        count[0] = 0
        model.set_adapter(name)
        loss_of(model)
        loss_of(model)
        assert count[0] == 1
    with model.disable_adapter():
        loss_of(model)
    assert count[0] == 1


@EACH_WAY
@pytest.mark.parametrize("name", ["default", "other"])
def test_merging_takes_the_active_one(weights, name):
    model = two(weights)
    model.set_adapter(name)
    loss = loss_of(model)
    assert torch.equal(loss_of(model.merge_and_unload()), loss)
    model = two(weights)
    loss_of(model)
    assert torch.equal(loss_of(model.unload()), loss_of(mlp()))


@EACH_WAY
def test_deleting(weights):
    model = two(weights)
    with pytest.raises(ValueError, match="'other' is the active adapter"):
        model.delete_adapter("other")
    model.delete_adapter("default")
    assert list(model.adapters) == ["other"]
    assert torch.equal(loss_of(model), loss_of(alone(OTHER, 1)))


def test_refusals():
    model = wrap(mlp())
    with pytest.raises(ValueError, match="name: wanted a new one, got 'default'"):
        model.add_adapter("default", OTHER)
    with pytest.raises(ValueError, match=r"wanted one of \['default'\], got 'none'"):
        model.set_adapter("none")
    with pytest.raises(TypeError, match="name: wanted a string that is not empty, got 3"):
        model.add_adapter(3, OTHER)
    with pytest.raises(TypeError, match="config: wanted a SubspaceConfig"):
        model.add_adapter("other", {"d": 4})
    with pytest.raises(ValueError, match="d: wanted more than m = 4"):
        model.add_adapter("other", SubspaceConfig(d=4))
    streamed = wrap(mlp(), weights="streamed")
    with pytest.raises(ValueError, match="made in parts if streamed, got 'one-block'"):
        streamed.add_adapter("other", SubspaceConfig(d=9, projection="one-block"))
    assert list(model.adapters) == ["default"]


@EACH_WAY
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_conversions_keep_all_adapters(weights, duplicate):
    model = two(weights)
    loss = loss_of(model)
    model.set_adapter("default")
    other = duplicate(model).double()
    with torch.no_grad():
        model.adapters["other"].theta.zero_()
    other.set_adapter("other")
    assert torch.equal(loss_of(other), loss)
    model.float()
    assert model.adapters["other"].theta.dtype == torch.float32
    model.set_adapter("other")
    assert torch.equal(loss_of(model), loss_of(mlp().float()))


def test_files_of_each(tmp_path):
    pytest.importorskip("safetensors")
    model = two("resident")
    loss = loss_of(model)
    model.save_pretrained(tmp_path / "other", torch.float64)
    model.set_adapter("default")
    model.save_pretrained(tmp_path / "default", torch.float64)
    wanted = loss_of(model)
    loaded = fastfood.SubspaceModel.from_pretrained(mlp(), tmp_path / "default")
    loaded.load_adapter(tmp_path / "other", "other")
    assert torch.equal(loss_of(loaded), wanted)
    loaded.set_adapter("other")
    assert torch.equal(loss_of(loaded), loss)
    changed = mlp()
    with torch.no_grad():
        changed.embed.weight[0, 0] += 1
    changed = wrap(changed, weights="streamed")
    with pytest.raises(ValueError, match="was trained on other base weights"):
        changed.load_adapter(tmp_path / "other", "other")
    assert list(changed.adapters) == ["default"]


def test_generation_with_each_adapter():
    model = wrap(gpt2().eval())
    model.add_adapter("b", SubspaceConfig(d=25, seed=6))
    tokens = {}
    for name in ("default", "b"):
        model.set_adapter(name)
        move(model, seed=len(tokens))
        tokens[name] = model.generate(ids(3, 3), max_new_tokens=8, do_sample=False)
    for name in ("default", "b"):
        model.set_adapter(name)
        assert torch.equal(
            model.generate(ids(3, 3), max_new_tokens=8, do_sample=False), tokens[name]
        )
    with model.disable_adapter():
        plain = gpt2().eval().generate(ids(3, 3), max_new_tokens=8, do_sample=False)
        assert torch.equal(model.generate(ids(3, 3), max_new_tokens=8, do_sample=False), plain)


def test_parameter_groups():
    model = wrap(bert())
    groups = fastfood.parameter_groups(model, lr=0.4, lambda_lr=0.02, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.4, 0.1), (0.02, 0.1)]
    assert groups[0]["params"] == [model.theta] and groups[1]["params"] == [model.lambda_]
    [groups] = fastfood.parameter_groups(nn.ModuleDict({"m": wrap(mlp(), method="did")}), lr=1.0)
    assert len(groups["params"]) == 1
    assert fastfood.parameter_groups(model, lr=0.4)[1]["lr"] == 0.02
    with pytest.raises(ValueError, match="a theta that requires gradients"):
        fastfood.parameter_groups(mlp(), lr=0.1)
