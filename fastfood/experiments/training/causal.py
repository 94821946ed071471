"""Builds the causal language models of `pretrain` and their batches: of any size and architecture
that transformers knows, trained on the next token of texts or of sums. The loss of a text is that
of all of its tokens and of its end; the loss of a sum is that of its result and its end, since
nobody can foretell the numbers to be added."""

import functools
from collections.abc import Iterator

from ..data.written import collate_joined
from ..settings.pretraining import Pretraining
from .masked import config_class_of, fit_tokenizer, load_model, sized_config, texts_and_tokenizer


def causal_parts(pretraining: Pretraining) -> tuple:
    """The model, its tokenizer, the rows to train on, and their collator; a row has the tokens that
    have no loss, `prompt_ids`, and those after them, `completion_ids`.

    Raises ValueError for an architecture or a tokenizer that cannot be trained so.
    """
    from transformers import AutoModelForCausalLM

    from ..data.arithmetic import arithmetic_tokenizer

    if pretraining.task == "arithmetic":
        texts, tokenizer = None, arithmetic_tokenizer()
    else:
        texts, tokenizer = texts_and_tokenizer(pretraining, _new_tokenizer)
    if tokenizer.eos_token_id is None:
        got = f"{pretraining.tokenizer or pretraining.model!r}, which has none"
        raise ValueError(f"tokenizer: wanted one with a token that ends a text, got {got}")
    if pretraining.model:
        model = load_model(pretraining, AutoModelForCausalLM, "causal")
    else:
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            tokenizer.add_special_tokens({"pad_token": "<pad>"})  # the end of a text is not padding
        model = _new_model(pretraining, tokenizer)
    fit_tokenizer(tokenizer, model)
    if not any(pretraining.checkpoints):
        return model, tokenizer, [], None
    if texts is None:
        rows = _rows_of_sums(tokenizer)
    else:
        rows = _rows_of_texts(pretraining, tokenizer, texts)
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad  # no loss and no attention sees it
    return model, tokenizer, rows, functools.partial(collate_joined, pad=pad)


def _new_tokenizer(texts: Iterator[str], size: int):
    """A tokenizer of bytes with at most `size` pieces learned from `texts`; it takes any text, and
    decoding gives it back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",  # of prompts that a batch goes on from
        clean_up_tokenization_spaces=False,
        **special,
    )


def _new_model(pretraining: Pretraining, tokenizer):
    """A model with random weights, none of whose outputs depends on later tokens."""
    from transformers import AutoModelForCausalLM

    name, config_class = pretraining.architecture, config_class_of(pretraining)
    if config_class not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"architecture: wanted one that writes texts, got {name!r}")
    default = config_class()
    decoder = {"is_decoder": True} if "is_decoder" in default.to_dict() else {}
    config = config_class(
        **sized_config(pretraining, default),
        **decoder,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    if _looks_ahead(model):
        raise ValueError(f"architecture: wanted one that sees no later token, got {name!r}")
    return model


def _looks_ahead(model) -> bool:
    """Whether the outputs at a text's first tokens depend on its last one."""
    import torch

    texts = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])
    with torch.no_grad():
        first, second = model.eval()(input_ids=texts).logits[:, :3]
    model.train()
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def _rows_of_texts(pretraining: Pretraining, tokenizer, texts: list[list[str]]) -> list[dict]:
    """A row for each text; those of several columns are lines of one."""
    lines = ["\n".join(columns) for columns in zip(*texts, strict=True)]
    rows = []
    for numbers in tokenizer(lines)["input_ids"]:
        ended = numbers if numbers[-1:] == [tokenizer.eos_token_id] else _ended(tokenizer, numbers)
        rows.append({"prompt_ids": [], "completion_ids": ended[: pretraining.max_length]})
    return [row for row in rows if len(row["completion_ids"]) > 1]  # else there is no next token


def _rows_of_sums(tokenizer) -> list[dict]:
    from ..data.arithmetic import pretraining_rows

    sums = pretraining_rows()
    texts = list({text for row in sums for text in row.values()})  # each once
    numbers = dict(zip(texts, tokenizer(texts)["input_ids"], strict=True))
    return [
        {
            "prompt_ids": numbers[row["prompt"]],
            "completion_ids": _ended(tokenizer, numbers[row["completion"]]),
        }
        for row in sums
    ]


def _ended(tokenizer, numbers: list[int]) -> list[int]:
    return [*numbers, tokenizer.eos_token_id]
