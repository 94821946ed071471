"""Damaged and odd data files of a task: they are read as what they hold or refused by one message
that begins with "data:" or "model:"."""

import csv
import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_rows import rows

from fastfood.experiments.data import tasks
from fastfood.experiments.settings import sources
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
    | st.dictionaries(columns, values, max_size=4),
    max_size=4,
)


def read(name, content):
    """What load_task reads of a folder with this file as its training split."""
    with tempfile.TemporaryDirectory() as folder:
        good = "".join(json.dumps(row) + "\n" for row in GOOD)
        Path(folder, "validation.jsonl").write_text(good)
        Path(folder, name).write_bytes(content)
        try:
            found = tasks.text_parts(Settings(task="glue/sst2", model="any", data=folder))
        except ValueError as error:
            assert str(error).startswith("data: ") and len(str(error)) < 3000
            return None
        finally:
            tasks._text_parts.cache_clear()
        assert set(found["labels"]["train"]) <= {0, 1}
        assert all(type(text) is str for text in found["train"]["sentence"])
        return found


def changed(draw, content):
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            content[place : place + 1] = draw(st.binary(max_size=4))
        else:
            del content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


@st.composite
def json_lines(draw):
    mixed = [*GOOD, *draw(odd_rows)]
    content = "".join(json.dumps(row) + draw(st.sampled_from(["\n", "\r\n"])) for row in mixed)
    return changed(draw, content.encode())


@settings(max_examples=1500)
@given(json_lines())
def test_json_lines(content):
    TRIED["test_json_lines"] += 1
    read("train.jsonl", content)


@settings(max_examples=500)
@given(st.data())
def test_csv_files(data):
    TRIED["test_csv_files"] += 1
    with tempfile.TemporaryFile("w+", newline="", errors="surrogatepass") as file:
        writer = csv.writer(file, delimiter=data.draw(st.sampled_from(",,,;\t")))
        writer.writerow(data.draw(st.just(["sentence", "label"]) | st.lists(columns, max_size=4)))
        for row in [*GOOD, *data.draw(odd_rows)]:
            writer.writerow(row.values())
        file.flush()
        file.buffer.seek(0)
        read("train.csv", changed(data.draw, file.buffer.read()))


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
    read("train.parquet", changed(data.draw, data.draw(st.sampled_from(PARQUET))))


@settings(max_examples=500)
@given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_configurations_of_models(content):
    TRIED["test_configurations_of_models"] += 1
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(content)
        assert sources.contamination(Settings(task="glue/mnli", model=folder)) == ()
