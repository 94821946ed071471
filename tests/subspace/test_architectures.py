"""Every architecture of the paper, and the causal ones of today, as small random models: gradients
against the dense matrix, with and without gradient checkpointing, resident and streamed, and what
shares a scale."""

import pytest
import subspace_models
from architectures import MODELS, build
from subspace_models import LABELS, check_gradients, ids, inputs, move, wrap

from fastfood import SubspaceModel

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("everywhere")


def loss_of(model):
    base = model.wrapped if isinstance(model, SubspaceModel) else model
    if "pixel_values" in getattr(base, "main_input_name", ""):
        labels = LABELS.to(subspace_models.DEVICE)
        return model(pixel_values=inputs(3, 1, 8, 8), labels=labels).loss
    causal = type(base).__name__.endswith(("LMHeadModel", "ForCausalLM"))
    labels = ids() if causal else LABELS.to(subspace_models.DEVICE)
    return model(input_ids=ids(), labels=labels).loss


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients(name, checkpointing, weights):
    model = move(wrap(build(name), d=40, weights=weights))
    if checkpointing:
        if not model.supports_gradient_checkpointing:
            pytest.skip("has no gradient checkpointing")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_gradients(model.train(), build(name).train(), loss_of)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][2]])
def test_layers_share_a_scale(name, capsys):
    model = wrap(build(name), d=40)
    assert set(model.group_names) == set(MODELS[name][2]), model.group_names
    model.print_trainable_parameters()
    printed = capsys.readouterr().out
    first, *_, last = [label for label in MODELS[name][2] if label[-1].isdigit()] * 2
    assert f"40 of {model.projection.D:,} numbers" in printed
    assert (f"{first} .. {last} " if first != last else f"{first} ") in printed
    assert "embeddings " in printed and "head " in printed


@pytest.mark.parametrize("name, side", [("bart", "layers"), ("t5", "block")])
def test_encoder_and_decoder_blocks_are_groups(name, side):
    names = wrap(build(name), d=40).group_names
    wanted = [f"{half}.{side}.{i}" for half in ("encoder", "decoder") for i in range(2)]
    found = [label for label in names if label[-1].isdigit()]
    assert [".".join(label.split(".")[-3:]) for label in found] == wanted
    assert {"embeddings", "head"} <= set(names)
