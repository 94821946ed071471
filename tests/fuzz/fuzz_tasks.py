"""Damaged and odd data files of a task: they are read as what they hold or refused by one message
that begins with "data:" or "model:"."""

import csv
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_rows import rows

from fastfood.experiments.data import tasks
from fastfood.experiments.data.parts import count_overlap
from fastfood.experiments.settings.measurement import Settings

datasets = pytest.importorskip("datasets")

TRIED = Counter()
GOOD = [{"sentence": row["sentence"], "label": row["label"]} for row in rows(12)]

texts = st.text(max_size=12) | st.sampled_from(["", "NA", "007", "\ud800", "\0", '"', "a\nb", "\r"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([2**31, 2**63, -(2**64), 10**400])
    | st.floats()
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
columns = st.sampled_from(["sentence", "label", "other"]) | texts
odd_rows = st.lists(
    st.fixed_dictionaries({"sentence": texts, "label": st.integers(-1, 2)})
    | st.fixed_dictionaries({"sentence": texts, "label": values})
    | st.dictionaries(columns, values, max_size=4),
    max_size=4,
)
# The labels that are written in place of 0 and 1: other classes, other kinds, and numbers.
pairs = st.sampled_from([(0, 1), (-1, 1), (1.0, 2.0), (False, True), ("a", "b"), (0.5, 4), ("", 1)])


OWN = {"task": "own", "text_columns": ("sentence",), "label_column": "label", "splits": ("train",)}
# A task by name, and a data set of classes or of numbers, of which parts are held out.
tasks_asked = st.sampled_from([{"task": "glue/sst2"}, OWN, OWN | {"metric": "pearson"}])


def read(name, content, asked):
    """Reads a folder with this file as its training split for the task that is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        good = "".join(json.dumps(row) + "\n" for row in GOOD)
        Path(folder, "validation.jsonl").write_text(good)
        Path(folder, name).write_bytes(content)
        try:
            parts = tasks.text_parts(
                Settings(**asked, model="any", data=folder), metric=asked.get("metric")
            )
        except ValueError as error:
            assert str(error).startswith("data: ") and len(str(error)) < 3000
            return
        finally:
            tasks._text_parts.cache_clear()
        _check(parts, "metric" in asked, asked["task"] == "own")


def _check(parts, of_numbers, is_own):
    for name in ("train", "validation", "test"):
        assert all(type(text) is str for text in parts[name]["sentence"])
        labels = parts["labels"][name]
        if of_numbers:
            assert parts["num_labels"] == 1 and all(math.isfinite(label) for label in labels)
        else:
            assert set(labels) <= set(range(parts["num_labels"]))
    if is_own:
        assert count_overlap(parts["train"], parts["test"], ("sentence",)) == 0


def changed(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            content[place : place + 1] = draw(st.binary(max_size=4))
        else:
            del content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


def mixed(draw):
    """Good rows with labels of some kind, and odd ones."""
    pair = draw(pairs)
    return [*(row | {"label": pair[row["label"]]} for row in GOOD), *draw(odd_rows)]


@st.composite
def json_lines(draw):
    ends = st.sampled_from(["\n", "\r\n"])
    content = "".join(json.dumps(row) + draw(ends) for row in mixed(draw))
    return changed(draw, content.encode())


@settings(max_examples=1500)
@given(json_lines(), tasks_asked)
def test_json_lines(content, asked):
    TRIED["test_json_lines"] += 1
    read("train.jsonl", content, asked)


@settings(max_examples=500)
@given(st.data())
def test_json_files(data):
    TRIED["test_json_files"] += 1
    content = json.dumps(mixed(data.draw), indent=data.draw(st.sampled_from([None, 1]))).encode()
    lines = data.draw(json_lines())
    read(
        "train.json",
        data.draw(st.sampled_from([changed(data.draw, content), lines])),
        data.draw(tasks_asked),
    )


@settings(max_examples=500)
@given(st.data())
def test_files_of_tabs(data):
    TRIED["test_files_of_tabs"] += 1
    header = data.draw(st.just(["sentence", "label"]) | st.lists(columns, max_size=4))
    rows = [header, *(row.values() for row in mixed(data.draw))]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    content = end.join("\t".join(map(str, row)) for row in rows)
    begin = data.draw(st.sampled_from(["", "\ufeff"]))
    read(
        "train.tsv",
        changed(data.draw, (begin + content).encode(errors="surrogatepass")),
        data.draw(tasks_asked),
    )


@settings(max_examples=500)
@given(st.data())
def test_csv_files(data):
    TRIED["test_csv_files"] += 1
    with tempfile.TemporaryFile("w+", newline="", errors="surrogatepass") as file:
        writer = csv.writer(file, delimiter=data.draw(st.sampled_from(",,,;\t")))
        writer.writerow(data.draw(st.just(["sentence", "label"]) | st.lists(columns, max_size=4)))
        for row in mixed(data.draw):
            writer.writerow(row.values())
        file.flush()
        file.buffer.seek(0)
        read("train.csv", changed(data.draw, file.buffer.read()), data.draw(tasks_asked))


PARQUET = []


def parquet_files():
    """Files of other types and columns, made once."""
    made = [
        {},
        {"sentence": [b"x"] * 12},
        {"sentence": [["x"]] * 12},
        {"sentence": [{"x": 1}] * 12},
        {"label": [None] * 12},
        {"label": [1.0] * 12},
        {"label": [0.5, 2.0] * 6},
        {"label": [float("nan"), 2.0] * 6},
        {"label": ["a", "b", "c"] * 4},
        {"label": [[1]] * 12},
    ]
    for columns in made:
        table = datasets.Dataset.from_dict({k: [row[k] for row in GOOD] for k in GOOD[0]} | columns)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "train.parquet")
            table.to_parquet(path)
            PARQUET.append(path.read_bytes())


@settings(max_examples=300)
@given(st.data())
def test_parquet_files(data):
    TRIED["test_parquet_files"] += 1
    if not PARQUET:
        parquet_files()
    read(
        "train.parquet",
        changed(data.draw, data.draw(st.sampled_from(PARQUET))),
        data.draw(tasks_asked),
    )


@settings(max_examples=500)
@given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_configurations_of_models(content):
    TRIED["test_configurations_of_models"] += 1
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(content)
        assert tasks.contamination(Settings(task="glue/mnli", model=folder)) == ()
