"""Every architecture of the paper, and the causal ones of today, as small random models."""

import pytest
import subspace_models
import torch
from subspace_models import SMALL

transformers = pytest.importorskip("transformers")

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
