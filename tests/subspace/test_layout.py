"""What a subspace is laid over: groups, and the models and settings that are refused."""

import numpy as np
import pytest
import torch
from subspace_models import bart, bert, mlp, t5, wrap
from torch import nn

from fastfood.subspace import SubspaceConfig, get_subspace_model


def test_groups_by_layer():
    assert wrap(bert()).group_names == [
        "embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "head",
    ]
    model = wrap(t5())
    assert model.group_names == ["embeddings", "encoder.block.0", "head", "decoder.block.0"]
    by_name = {segment.name: model.group_names[segment.group] for segment in model.segments}
    assert by_name["encoder.final_layer_norm.weight"] == "head"
    model = wrap(bart())
    by_name = {segment.name: model.group_names[segment.group] for segment in model.segments}
    assert by_name["model.decoder.embed_positions.weight"] == "embeddings"
    assert by_name["model.decoder.layernorm_embedding.bias"] == "embeddings"
    assert by_name["classification_head.dense.weight"] == "head"
    model = wrap(mlp())
    assert model.group_names == ["embeddings", "blocks.0", "blocks.1", "head"]
    assert wrap(nn.Sequential(nn.Linear(9, 9))).group_names == ["0"]
    assert wrap(nn.Linear(9, 9)).group_names == ["head"]


def test_print_trainable_parameters(capsys):
    wrap(bert(num_hidden_layers=4), d=31).print_trainable_parameters()
    text = capsys.readouterr().out
    assert "31 of" in text and "6 groups" in text
    assert "bert.encoder.layer.0 .. bert.encoder.layer.3" in text


class Tangled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(4, 3))
        self.b = nn.Parameter(self.a.detach()[1:])


def expanded():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.ones(3).expand(3, 3))
    return model


def sparse():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


def frozen():
    return nn.Linear(3, 3).requires_grad_(False)


def integer():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.ones(3, 3).to(torch.complex64))
    return model


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (mlp, {"d": 10_000, "method": "did"}, r"d: wanted at most D = \d+.*got 10000"),
        (mlp, {"d": 4}, r"d: wanted more than m = 4.*got 4"),
        (Tangled, {"d": 5}, "a and b overlap in memory"),
        (expanded, {"d": 5}, "weight overlaps itself"),
        (sparse, {"d": 5}, "weight: wanted an ordinary dense tensor, got torch.sparse"),
        (lambda: nn.Linear(3, 3, device="meta"), {"d": 5}, "dense tensor, got meta"),
        (lambda: nn.LazyLinear(3), {"d": 5}, "dense tensor, got lazy"),
        (frozen, {"d": 5}, "wanted parameters that require gradients"),
        (integer, {"d": 5}, "weight: wanted one of float32.*got torch.complex64"),
        (lambda: torch.jit.script(nn.Linear(3, 3)), {"d": 5}, "wanted plain modules, got scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused_models_stay_as_they_were(build, config, message):
    model = build()

    def state():
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        return hooks, [(id(p), p.requires_grad) for p in model.parameters()]

    before = state()
    with pytest.raises((TypeError, ValueError), match=message):
        get_subspace_model(model, SubspaceConfig(**config))
    assert state() == before


def test_wrapping_twice_is_refused():
    model = wrap(mlp())
    for again in (model, model.wrapped, nn.ModuleList([model])):
        with pytest.raises(ValueError, match="wrapped in a SubspaceModel already"):
            wrap(again)
    with pytest.raises(TypeError, match="model: wanted an nn.Module, got int"):
        wrap(3)
    with pytest.raises(TypeError, match="config: wanted a SubspaceConfig, got dict"):
        get_subspace_model(mlp(), {"d": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0}, "d: wanted at least 1, got 0"),
        ({"d": 1.5}, "d: wanted an integer, got 1.5"),
        ({"d": True}, "d: wanted an integer, got True"),
        ({"d": 3, "seed": -1}, "seed: wanted at least 0"),
        ({"d": 3, "seed": 2**64}, r"seed: wanted.*below 2\*\*64"),
        ({"d": 3, "method": "lora"}, "method: wanted 'said' or 'did', got 'lora'"),
        ({"d": 3, "normalization": "row"}, "normalization: wanted 'global' or 'tensor', got 'row'"),
        (
            {"d": 3, "groups": "block"},
            "groups: wanted 'layer' or 'tensor' or a function.*got 'block'",
        ),
        ({"d": 3, "projection": "dct"}, "projection: wanted .*'sparse', got 'dct'"),
    ],
)
def test_refused_configurations(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SubspaceConfig(**arguments)


def test_numpy_integers_are_integers():
    assert type(SubspaceConfig(d=np.int64(7)).d) is int
