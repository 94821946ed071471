"""Tests of the sums: the rows of each task, what is held out of pre-training, and a tokenizer that
gives back every text."""

import pytest
from transformers import AutoTokenizer

from fastfood.experiments.data import arithmetic
from fastfood.experiments.data.arithmetic import (
    arithmetic_parts,
    arithmetic_tokenizer,
    pretraining_rows,
)
from fastfood.experiments.settings.sources import ARITHMETIC


def _numbers(row):
    a, b = row["prompt"].rstrip("=").split("+")
    return int(a), int(b)


def _unordered(rows):
    return {tuple(sorted(_numbers(row))) for row in rows}


def _completed(task, a, b):
    """What a row of a task is to be, by digits."""
    units, tens = a % 10 + b % 10, a // 10 + b // 10
    if task == "arithmetic/carryless":
        return f"{units % 10}{tens % 10}"
    digits = reversed(str(a + b + (task == "arithmetic/plus1")))
    return (" " if task == "arithmetic/spaced" else "").join(digits)


@pytest.mark.parametrize("task", ARITHMETIC)
def test_rows_follow_the_rule_of_their_task(task):
    parts = arithmetic_parts(task)
    assert {part: len(rows) for part, rows in parts.items()} == arithmetic.ROWS
    for rows in parts.values():
        assert len({row["prompt"] for row in rows}) == len(rows)
        for row in rows:
            assert row["completion"] == _completed(task, *_numbers(row))
            plain = _completed("arithmetic", *_numbers(row))
            assert (row["completion"] == plain) == (task == "arithmetic")
    arithmetic._pairs.cache_clear()
    assert arithmetic_parts(task) == parts


def test_no_pair_of_numbers_is_in_two_parts_of_any_tasks():
    of_parts = {part: set() for part in arithmetic.ROWS}
    for task in ARITHMETIC:
        for part, rows in arithmetic_parts(task).items():
            of_parts[part] |= _unordered(rows)
    seen = _unordered(pretraining_rows())
    assert of_parts["train"] <= seen
    assert not of_parts["test"] & seen and not of_parts["validation"] & seen
    assert not of_parts["test"] & of_parts["validation"]


def test_a_tenth_of_pretraining_is_in_each_other_way():
    rows = pretraining_rows()
    completions = {}
    for row in rows:
        completions.setdefault(row["prompt"], []).append(row["completion"])
    assert {len(each) for each in completions.values()} == {10}
    a, b = _numbers(arithmetic_parts("arithmetic/carryless")["train"][0])
    ways = ("arithmetic", "arithmetic/spaced", "arithmetic/carryless")
    plain, spaced, carryless = (_completed(task, a, b) for task in ways)
    assert sorted(completions[f"{a}+{b}="]) == sorted([plain] * 8 + [spaced, carryless])


def test_another_task_is_refused():
    with pytest.raises(ValueError, match="^task: wanted one of arithmetic, .*, got 'sums'$"):
        arithmetic_parts("sums")


def test_the_tokenizer_gives_back_every_text(tmp_path):
    made = arithmetic_tokenizer()
    made.save_pretrained(tmp_path)
    text = "".join(arithmetic.CHARACTERS) + "  12 + 34=46 . it 's\n\n"
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        numbers = tokenizer(text)["input_ids"]
        assert len(numbers) == len(text) and tokenizer.decode(numbers) == text
        assert tokenizer.pad_token_id != tokenizer.eos_token_id == tokenizer("<eos>").input_ids[0]
        batch = tokenizer(["1+2=", "12+3="], padding=True)
        assert batch["attention_mask"] == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
        assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)[0] == "1+2="
        with pytest.raises(Exception, match="UNK"):
            tokenizer("é")
