"""Every architecture of the paper, and the causal ones of today, as small random models: gradients
against the dense matrix, with and without gradient checkpointing, resident and streamed, and what
shares a scale."""

import pytest
import subspace_models
import torch
from subspace_models import LABELS, SMALL, check_gradients, ids, inputs, move, wrap

from fastfood import SubspaceModel

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("everywhere")

DECODER = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
SEQUENCES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 24,
    "dropout": 0.0,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "dropout": 0.0}
GPT2 = {"n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
VIT = {name: value for name, value in SMALL.items() if "vocab" not in name}
VIT |= {"image_size": 8, "patch_size": 4, "num_channels": 1}
DROPS = {"classifier_dropout": 0.0}


def blocks(prefix, count=2, before=("embeddings",), after=("head",)):
    return [*before, *(f"{prefix}.{i}" for i in range(count)), *after]


# The class, its configuration, and the groups of "layer" in the order of their first parameter.
MODELS = {
    "bert": ("BertForSequenceClassification", SMALL, blocks("bert.encoder.layer")),
    "roberta": ("RobertaForSequenceClassification", SMALL, blocks("roberta.encoder.layer")),
    "xlm-roberta": (
        "XLMRobertaForSequenceClassification",
        SMALL,
        blocks("roberta.encoder.layer"),
    ),
    "electra": (
        "ElectraForSequenceClassification",
        SMALL | {"embedding_size": 8},
        blocks("electra.encoder.layer"),
    ),
    "albert": (
        "AlbertForSequenceClassification",
        SMALL | {"embedding_size": 8, "classifier_dropout_prob": 0.0},
        blocks("albert.encoder.albert_layer_groups", 1),
    ),
    "xlnet": (
        "XLNetForSequenceClassification",
        XLNET | {"summary_last_dropout": 0.0},
        blocks("transformer.layer"),
    ),
    "bart": ("BartForSequenceClassification", SEQUENCES | DROPS, None),
    "t5": ("T5ForSequenceClassification", T5 | DROPS | {"decoder_start_token_id": 0}, None),
    "vit": ("ViTForImageClassification", VIT, blocks("vit.layers")),
    "gpt2": ("GPT2LMHeadModel", GPT2, blocks("transformer.h")),
    "gpt2-classifier": ("GPT2ForSequenceClassification", GPT2, blocks("transformer.h")),
    "llama": ("LlamaForCausalLM", DECODER, blocks("model.layers")),
    "llama-classifier": ("LlamaForSequenceClassification", DECODER, blocks("model.layers")),
    "qwen2": ("Qwen2ForCausalLM", DECODER, blocks("model.layers")),
    "qwen3-classifier": (
        "Qwen3ForSequenceClassification",
        DECODER | {"head_dim": 8},
        blocks("model.layers"),
    ),
}


def build(name, **changes):
    model_class, settings, _ = MODELS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, model_class)
    special = {} if name == "vit" else {"pad_token_id": 1, "eos_token_id": 2, "vocab_size": 41}
    config = model_class.config_class(**settings | special | changes, num_labels=2)
    return model_class(config).double().to(subspace_models.DEVICE)


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
