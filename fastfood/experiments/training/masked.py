"""Builds the models of `pretrain` and their masked batches: masked language models of any size and
architecture that transformers knows, and a small ViT that fills in masked patches of digits."""

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from ..settings.measurement import Settings
from ..settings.pretraining import SIZE_NAMES, Pretraining


def masked_parts(pretraining: Pretraining) -> tuple:
    """The model, its tokenizer or None, the rows to train on, and their collator or None."""
    from transformers import AutoModelForMaskedLM

    from ..data.tasks import load_task

    if pretraining.task == "digits":
        train = load_task(Settings()).train
        rows = [{"index": i, "pixel_values": row["pixel_values"]} for i, row in enumerate(train)]
        model = _new_patch_model(pretraining)
        return model, None, rows, _patch_collator(pretraining, model.config)
    texts, tokenizer = texts_and_tokenizer(pretraining, _new_tokenizer)
    if pretraining.model:
        model = load_model(pretraining, AutoModelForMaskedLM, "masked")
    else:
        model = _new_text_model(pretraining, tokenizer)
    fit_tokenizer(tokenizer, model)
    if not any(pretraining.checkpoints):
        return model, tokenizer, [], None
    if tokenizer.mask_token is None:
        got = f"{pretraining.tokenizer or pretraining.model!r}, which has none"
        raise ValueError(f"tokenizer: wanted one with a mask token, got {got}")
    tokens = tokenizer(
        *texts, truncation=True, max_length=pretraining.max_length, return_special_tokens_mask=True
    )
    rows = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
    return model, tokenizer, rows, _text_collator(pretraining, tokenizer)


def texts_and_tokenizer(pretraining: Pretraining, make_tokenizer: Callable) -> tuple:
    """The training texts, a list for each column, or None where the run needs none; and a tokenizer
    that is loaded, or that make_tokenizer(texts, size) returns."""
    from ..data.checkpoints import load_tokenizer
    from ..data.tasks import text_parts

    texts = None
    if pretraining.vocabulary or any(pretraining.checkpoints):
        parts = text_parts(pretraining)
        texts = [list(parts["train"][column]) for column in parts["texts"]]
    if pretraining.vocabulary:
        return texts, make_tokenizer(itertools.chain(*texts), pretraining.vocabulary)
    source = pretraining.tokenizer or pretraining.model
    revision = None if pretraining.tokenizer else pretraining.revision
    return texts, load_tokenizer(source, revision)


def _new_tokenizer(texts: Iterator[str], size: int):
    """A tokenizer like BERT's, with at most `size` word pieces learned from `texts`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": f"[{name.upper()}]" for name in names}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(special.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def load_model(pretraining: Pretraining, auto: Any, kind: str):
    """The model that a run goes on from, as `auto` reads it, in float32.

    Raises ValueError where it is no language model of this kind, masked or causal.
    """
    import torch

    from .models import SAFELY

    name = pretraining.model
    try:
        return auto.from_pretrained(
            name, revision=pretraining.revision or "main", dtype=torch.float32, **SAFELY
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        wanted = f"a folder or hub name of a {kind} language model"
        raise ValueError(f"model: wanted {wanted}, got {name!r} ({reason})") from error


def config_class_of(pretraining: Pretraining) -> type:
    """The configuration of a new model's architecture; raises ValueError where it is none."""
    from transformers import CONFIG_MAPPING

    name = pretraining.architecture
    if name not in CONFIG_MAPPING:
        raise ValueError(f"architecture: wanted a model type of transformers, got {name!r}")
    return CONFIG_MAPPING[name]


def _new_text_model(pretraining: Pretraining, tokenizer):
    """A model with random weights and a masked-LM head, or without a head if transformers has no
    masked-LM model of this architecture; then no step can be trained."""
    from transformers import (
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    name, config_class = pretraining.architecture, config_class_of(pretraining)
    if config_class not in AutoModelForSequenceClassification._model_mapping:
        raise ValueError(f"architecture: wanted one that classifies texts, got {name!r}")
    masked = config_class in AutoModelForMaskedLM._model_mapping
    if not masked and any(pretraining.checkpoints):
        wanted = "one that transformers has a masked-LM model of, or --checkpoints 0"
        raise ValueError(f"architecture: wanted {wanted}, got {name!r}")
    sizes = sized_config(pretraining, config_class())
    config = config_class(**sizes, **_token_settings(tokenizer))
    if config.is_encoder_decoder:  # a decoder starts as BART's or as T5's does
        config.decoder_start_token_id = config.eos_token_id if masked else config.pad_token_id
    return (AutoModelForMaskedLM if masked else AutoModel).from_config(config)


def sized_config(pretraining: Pretraining, default) -> dict:
    """A new model's sizes, under the names that `default`'s class of configuration gives them."""
    known = default.to_dict()
    sizes = {
        name: getattr(pretraining, size)
        for size, names in SIZE_NAMES.items()
        for name in names
        if name in known
    }
    for name in ("d_kv", "head_dim"):
        if name in known:
            sizes[name] = pretraining.hidden_size // pretraining.heads
    for name in ("max_position_embeddings", "n_positions"):
        if name in known:
            # RoBERTa and models like it number positions from the padding token's id + 1 on.
            sizes[name] = max(known[name], pretraining.max_length + 2)
    return sizes


def _token_settings(tokenizer) -> dict:
    """The ids of special tokens; with BERT's tokenizers [CLS] starts a text and [SEP] ends it."""
    pad = tokenizer.pad_token_id
    if pad is None:
        raise ValueError("tokenizer: wanted one with a padding token, got one without")
    start = tokenizer.bos_token_id
    start = tokenizer.cls_token_id if start is None else start
    end = tokenizer.eos_token_id
    end = tokenizer.sep_token_id if end is None else end
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": pad,
        "bos_token_id": start,
        "eos_token_id": end,
        "sep_token_id": tokenizer.sep_token_id,
    }


def fit_tokenizer(tokenizer, model) -> None:
    """Removes the tokenizer's outputs that the model has no argument for, such as segment ids."""
    arguments = inspect.signature(model.forward).parameters
    names = tokenizer.model_input_names
    tokenizer.model_input_names = [name for name in names if name in arguments]


def _new_patch_model(pretraining: Pretraining):
    from transformers import ViTForMaskedImageModeling

    from .models import digits_model

    config = digits_model(10).config
    for name, value in sized_config(pretraining, config).items():
        setattr(config, name, value)
    config.encoder_stride = config.patch_size  # the decoder returns the pixels of whole patches
    return ViTForMaskedImageModeling(config)


def random_numbers(seed: int, *purpose):
    """A generator of random numbers that depend on the seed and on their purpose alone."""
    import torch

    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _text_collator(pretraining: Pretraining, tokenizer):
    from transformers import DataCollatorForLanguageModeling

    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=pretraining.mask)

    def collate(rows: list[dict]) -> dict:
        masked.generator = random_numbers(pretraining.seed, [row["input_ids"] for row in rows])
        return masked(rows)

    return collate


def _patch_collator(pretraining: Pretraining, config):
    import torch

    patches = (config.image_size // config.patch_size) ** 2
    count = min(max(1, round(pretraining.mask * patches)), patches - 1)

    def collate(rows: list[dict]) -> dict:
        indices = [row["index"] for row in rows]
        order = torch.rand(len(rows), patches, generator=random_numbers(pretraining.seed, indices))
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "bool_masked_pos": order.argsort(1) < count,
        }

    return collate
