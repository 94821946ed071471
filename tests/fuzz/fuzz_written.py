"""Damaged and odd data files of models that write: they are read as what they hold or refused by
one message that names the argument."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("datasets")
pytest.importorskip("transformers")

from writers import llama, save, sums

from fastfood.experiments.data.written import load_written
from fastfood.experiments.settings.measurement import Settings

TRIED = Counter()
COLUMNS = {"prompt_column": "prompt", "completion_column": "completion"}
CHAT = {"messages_column": "messages"}

texts = st.text(max_size=8) | st.sampled_from(["", "7", "\ud800", "\0", "a\nb", "<eos>", " "])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
roles = st.sampled_from(["user", "assistant", "system", "tool"]) | texts
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": texts})
    | st.fixed_dictionaries({"role": values, "content": values})
    | st.dictionaries(texts, values, max_size=2),
    max_size=4,
)
answers = st.sampled_from([None, r"\d", "(a)?b*", r"(x)", "^", "$^"])


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return save(tmp_path_factory.mktemp("writer"), llama(), chat=True)


def good(chat):
    rows = sums(12)
    if not chat:
        return rows
    asked = [[{"role": "user", "content": row["prompt"]}, _answer(row)] for row in rows]
    return [{"messages": turns} for turns in asked]


def _answer(row):
    return {"role": "assistant", "content": row["completion"]}


def read(writer, name, content, **given):
    """Reads a folder with this file as its training split."""
    chat = "messages_column" in given
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(json.dumps(row) + "\n" for row in good(chat))
        Path(folder, "test.jsonl").write_text(lines)
        Path(folder, name).write_bytes(content)
        asked = {"objective": "sft", "task": "own", "splits": ("train", "test"), "data": folder}
        try:
            task = load_written(
                Settings(**asked, **given, model=str(writer), metric="exact", max_length=64)
            )
        except ValueError as error:
            assert str(error).startswith(("data: ", "answer: ", "max_length: "))
            assert len(str(error)) < 3000
            return
    for rows in (task.train, task.validation, task.test):
        for row in rows:
            assert type(row["prompt"]) is str and type(row["completion"]) is str
            assert row["prompt_ids"] and row["completion_ids"][-1] == 1
    batch = task.collate(task.train)
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"] >= 0).sum() == sum(len(row["completion_ids"]) for row in task.train)


@settings(max_examples=400)
@given(st.data())
def test_columns_of_completions(writer, data):
    TRIED["test_columns_of_completions"] += 1
    odd = st.fixed_dictionaries({"prompt": texts, "completion": texts})
    odd |= st.fixed_dictionaries({"prompt": values, "completion": values})
    rows = data.draw(st.lists(odd, max_size=4))
    rows += good(False)[: data.draw(st.integers(0, 12))]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    chat = data.draw(st.booleans())
    read(writer, "train.jsonl", content, **COLUMNS, chat=chat, answer=data.draw(answers))


@settings(max_examples=400)
@given(st.data())
def test_chat_messages(writer, data):
    TRIED["test_chat_messages"] += 1
    odd = st.fixed_dictionaries({"messages": messages})
    rows = data.draw(st.lists(odd | st.fixed_dictionaries({"messages": values}), max_size=3))
    rows += good(True)[: data.draw(st.integers(0, 12))]
    name = data.draw(st.sampled_from(["train.jsonl", "train.json", "train.csv", "train.tsv"]))
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(("csv", "tsv")):
        content = b"messages\n" + content
    read(writer, name, content, **CHAT, answer=data.draw(answers))
