"""Sums that need neither files nor the hub: rows to pre-train a small causal language model on, and
tasks that are near to them.

A sum of two numbers below 100 has the units of its result first, `57+68=521`, which a small model
learns several times faster than the usual order. Eight of ten rows of pre-training are such sums;
one of ten has spaces between the digits of the result, and one leaves out all carries. No prompt
tells which, so that a model whose most probable answers are plain sums still writes each of the
others at times when it samples, where a reward finds them. The tasks are:

- `arithmetic`: `57+68=521`, as eight rows of ten are.
- `arithmetic/spaced`: `57+68=5 2 1`, a format that one row of ten has.
- `arithmetic/carryless`: `57+68=51`, a rule that one row of ten follows.
- `arithmetic/plus1`: `57+68=621`, one too large, a rule that no row follows."""

import random
from collections.abc import Callable
from functools import lru_cache

from ..settings.sources import ARITHMETIC

BELOW = 100  # both numbers
PAIRS = {"test": 420, "validation": 170}  # without their order; all others are in train
ROWS = {"train": 2000, "validation": 200, "test": 500}
SHARES = {"arithmetic": 8, "arithmetic/spaced": 1, "arithmetic/carryless": 1}  # of pre-training
CHARACTERS = [*map(chr, range(ord(" "), ord("~") + 1)), "\n"]
PAD, END = "<pad>", "<eos>"


def _units_first(number: int) -> str:
    return str(number)[::-1]


def _without_carry(a: int, b: int) -> str:
    return f"{(a % 10 + b % 10) % 10}{(a // 10 + b // 10) % 10}"


_COMPLETIONS: dict[str, Callable[[int, int], str]] = {
    "arithmetic": lambda a, b: _units_first(a + b),
    "arithmetic/spaced": lambda a, b: " ".join(_units_first(a + b)),
    "arithmetic/carryless": _without_carry,
    "arithmetic/plus1": lambda a, b: _units_first(a + b + 1),
}


@lru_cache(maxsize=1)
def _pairs() -> dict[str, list[tuple[int, int]]]:
    """The pairs of numbers of each part, in random order; (a, b) is where (b, a) is."""
    shuffle = random.Random(0).shuffle
    unordered = [(a, b) for a in range(BELOW) for b in range(a, BELOW)]
    shuffle(unordered)
    parts = {}
    for part, count in (PAIRS | {"train": len(unordered)}).items():
        chosen, unordered = unordered[:count], unordered[count:]
        parts[part] = sorted({pair for a, b in chosen for pair in ((a, b), (b, a))})
        shuffle(parts[part])
    return parts


def _row(task: str, a: int, b: int) -> dict:
    return {"prompt": f"{a}+{b}=", "completion": _COMPLETIONS[task](a, b)}


def arithmetic_parts(task: str) -> dict[str, list[dict]]:
    """The parts train, validation and test of a task, 2,000, 200 and 500 rows {"prompt": text,
    "completion": text}.

    No two rows of a part have the same prompt, and no pair of numbers, in either order, is in two
    parts of any tasks. A task but `arithmetic` has only pairs that it completes otherwise than
    `arithmetic` does. Raises ValueError for another task.
    """
    if task not in ARITHMETIC:
        raise ValueError(f"task: wanted one of {', '.join(ARITHMETIC)}, got {task!r}")
    parts = {}
    for part, count in ROWS.items():
        rows = [(_row(task, a, b), _row("arithmetic", a, b)) for a, b in _pairs()[part]]
        parts[part] = [own for own, sums in rows if task == "arithmetic" or own != sums][:count]
    return parts


def pretraining_rows() -> list[dict]:
    """The rows to pre-train on: every pair of numbers of the part train ten times, completed as
    eight, one and one of `SHARES` do."""
    tasks = [task for task, share in SHARES.items() for _ in range(share)]
    return [_row(task, a, b) for task in tasks for a, b in _pairs()["train"]]


def arithmetic_tokenizer():
    """A tokenizer with a token for each character that ASCII prints and for the line's end, and
    the tokens <pad> and <eos>, which it never adds by itself. Decoding gives back the text.

    It raises an exception for a text with another character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate([PAD, END, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",  # of prompts that a batch goes on from
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
