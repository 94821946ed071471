"""Tests of data sets of one split: parts are held out for validation and test, always the same
ones, of every class their share, and with all rows of the same texts."""

import random
from collections import Counter

import datasets
import pytest
from text_rows import write_rows

from fastfood.experiments.data import parts, tasks
from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.sources import Source

OWN = {"task": "reviews", "text_columns": ("text",), "label_column": "stars", "splits": ("train",)}


def _reviews(count, start=0):
    return [{"text": f"review {i}", "label": i % 5} for i in range(start, start + count)]


def _held_out(content, of_numbers=False):
    rows = datasets.Dataset.from_list(content)
    source = Source(("reviews",), ("text",), 1 if of_numbers else None, ("train",))
    found, origins = parts.hold_out("data: reviews train", "train", rows, source)
    return {name: list(found[name]) for name in found}, origins


def _side(held_out):
    return {row["text"]: name for name, rows in held_out.items() for row in rows}


def test_every_class_has_its_share_of_every_part():
    held_out, origins = _held_out(_reviews(500))
    assert {name: len(rows) for name, rows in held_out.items()} == {
        "train": 350,
        "validation": 50,
        "test": 100,
    }
    for rows in held_out.values():
        assert set(Counter(row["label"] for row in rows).values()) == {len(rows) // 5}
    assert origins == {
        "train": "train without 150 rows",
        "validation": "50 rows of train",
        "test": "100 rows of train",
    }
    assert len(_side(held_out)) == 500


def test_large_splits_keep_most_of_their_rows_for_training():
    held_out, _ = _held_out(_reviews(25_000))
    assert len(held_out["test"]) == 2000 and len(held_out["validation"]) == 1000


def test_the_parts_do_not_depend_on_the_order_of_rows():
    content = _reviews(200)
    shuffled = random.Random(1).sample(content, len(content))
    assert _side(_held_out(content)[0]) == _side(_held_out(shuffled)[0])


def test_added_rows_move_few_others():
    before = _side(_held_out(_reviews(200))[0])
    after = _side(_held_out(_reviews(205))[0])
    assert sum(after[text] != side for text, side in before.items()) <= 5


def test_rows_of_the_same_words_stay_together():
    alike = [
        {"text": f"  Review, {i}! " if i % 2 else f"REVIEW {i}", "label": (i + 1) % 5}
        for i in range(0, 300, 3)
    ]
    held_out, _ = _held_out([*_reviews(300), *alike])
    rows = {name: datasets.Dataset.from_list(some) for name, some in held_out.items()}
    assert len(rows["test"]) + len(rows["validation"]) > 80
    for name, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert parts.count_overlap(rows[name], rows[other], ("text",)) == 0


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 1], [0, 1] * 3])
def test_few_rows_leave_some_for_every_part(labels):
    held_out, _ = _held_out([{"text": f"t {i}", "label": label} for i, label in enumerate(labels)])
    assert all(held_out.values())


@pytest.mark.parametrize(
    "content",
    [
        _reviews(3),
        [{"text": "the same", "label": i % 2} for i in range(50)],
        [{"text": f"t {i % 2}", "label": i % 2} for i in range(50)],
    ],
)
def test_too_few_different_rows_are_refused(content):
    wanted = "^data: reviews train: wanted more rows of different texts, to hold out some for "
    with pytest.raises(ValueError, match=f"{wanted}.*, got {len(content)} rows"):
        _held_out(content)


def test_numbers_are_held_out_too():
    content = [{"text": f"t {i}", "label": i / 7} for i in range(100)]
    held_out, _ = _held_out(content, of_numbers=True)
    assert len(held_out["test"]) == 20 and len(held_out["validation"]) == 10


def test_one_file_is_a_data_set(model_folder, tmp_path):
    content = [{"text": f"review {i}", "stars": i % 5 + 1} for i in range(100)]
    write_rows(tmp_path / "train.jsonl", content)
    given = OWN | {"model": str(model_folder), "data": str(tmp_path)}
    task = tasks.load_task(complete(Settings(**given, max_length=16)))
    assert task.splits == {
        "train": "train without 30 rows, 70 rows",
        "validation": "10 rows of train, 10 rows",
        "test": "20 rows of train, 20 rows",
    }
    assert task.num_labels == 5 and task.majority() == 0.2 and task.overlap() == 0
    few = tasks.load_task(complete(Settings(**given, max_length=16, eval_rows=5)))
    assert few.splits["test"] == "20 rows of train (5 of 20), 5 rows"
