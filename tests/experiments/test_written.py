"""The data of models that write: columns and chat messages, tokens, answers, and what is refused
before any training."""

from decimal import Decimal

import pytest
import torch
from writers import LETTERS, llama, save, sums, t5, tokenizer, write_rows

from fastfood.experiments.data.tasks import load_task
from fastfood.experiments.data.written import answer_reader
from fastfood.experiments.settings.measurement import Settings, complete

ASKED = {"prompt_column": "prompt", "completion_column": "completion", "splits": ("train", "test")}


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), llama(), chat=True)


@pytest.fixture
def folder(tmp_path):
    return write_rows(tmp_path / "sums", train=sums(40), test=sums(20, 40))


def settings(model, data, **changes):
    given = {"objective": "sft", "task": "sums", "model": str(model), "data": str(data)}
    given |= {**ASKED, "device": "cpu"}
    return complete(Settings(**given | changes))


def ids(text):
    return [3 + LETTERS.index(c) for c in text]


def test_two_columns_become_tokens_that_end_with_the_end_of_the_text(writer, folder):
    task = load_task(settings(writer, folder))
    assert task.sizes == {"train": 36, "validation": 4, "test": 20}
    row = task.test[3]
    assert (row["prompt"], row["completion"]) == ("1+4=", "5")
    assert row["prompt_ids"] == ids("1+4=") and row["completion_ids"] == [*ids("5"), 1]
    assert task.max_new_tokens == 2 and task.majority() is None
    assert task.splits["test"] == "test, 20 rows"


def test_the_loss_counts_the_completion_alone(writer, folder):
    task = load_task(settings(writer, folder))
    short, long = task.test[0], task.test[1] | {"prompt_ids": ids("10+4=")}
    batch = task.collate([short, long])
    assert batch["labels"].tolist() == [
        [-100] * 4 + short["completion_ids"] + [-100],
        [-100] * 5 + long["completion_ids"],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert batch["input_ids"][0, -1] == 0


def test_an_encoder_gets_the_prompt_and_its_decoder_the_completion(tmp_path, folder):
    task = load_task(settings(save(tmp_path / "t5", t5()), folder))
    batch = task.collate(task.test[:2])
    assert batch["input_ids"].tolist() == [row["prompt_ids"] for row in task.test[:2]]
    assert batch["labels"].tolist() == [row["completion_ids"] for row in task.test[:2]]


def test_prompts_to_go_on_from_are_padded_where_nothing_is_written(writer, tmp_path, folder):
    rows = [{"prompt_ids": [5]}, {"prompt_ids": [6, 7, 8]}]
    causal = load_task(settings(writer, folder)).prompts(rows)
    assert causal["input_ids"].tolist() == [[0, 0, 5], [6, 7, 8]]
    assert causal["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    pairs = load_task(settings(save(tmp_path / "t5", t5()), folder)).prompts(rows)
    assert pairs["input_ids"].tolist() == [[5, 0, 0], [6, 7, 8]]


def test_a_chat_template_asks_a_prompt(writer, folder):
    row = load_task(settings(writer, folder, chat=True)).test[3]
    assert row["prompt"] == "u=1+4= a="
    assert row["asked"] == [{"role": "user", "content": "1+4="}]
    assert row["prompt_ids"] == tokenizer()("u=1+4= a=")["input_ids"]


def test_special_tokens_stand_at_the_ends_alone(tmp_path, folder):
    causal = save(tmp_path / "llama", llama(), chat=True, ends=True)
    row = load_task(settings(causal, folder)).test[3]
    assert row["prompt_ids"] == [2, *ids("1+4=")] and row["completion_ids"] == [*ids("5"), 1]
    row = load_task(settings(causal, folder, chat=True)).test[3]  # the template has its own
    assert row["prompt_ids"] == tokenizer()("u=1+4= a=")["input_ids"]
    row = load_task(settings(save(tmp_path / "t5", t5(), ends=True), folder)).test[3]
    assert row["prompt_ids"] == [2, *ids("1+4="), 1] and row["completion_ids"] == [*ids("5"), 1]


def messages(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def test_the_last_message_is_the_completion(writer, tmp_path):
    rows = [{"chat": messages(f"{i}+1=", f"{i}", "b", f"{i + 1}")} for i in range(8)]
    data = write_rows(tmp_path / "chats", train=rows, test=rows[:3])
    asked = {"prompt_column": None, "completion_column": None, "messages_column": "chat"}
    row = load_task(settings(writer, data, **asked)).test[1]
    assert row["prompt"] == "u=1+1= a=1 u=b a=" and row["completion"] == "2"
    assert row["asked"] == rows[1]["chat"][:-1]


@pytest.mark.parametrize(
    "turns, refused",
    [
        (messages("1+1="), "row 2: wanted messages of which the last one is the assistant's, got"),
        (messages("1", "2", "3"), "the roles user, assistant, user"),
        ([], "row 2: wanted messages of which the last one is the assistant's, got the roles of"),
        ([{"role": "user"}], "row 2: wanted messages with a text role and a text content, got"),
    ],
)
def test_messages_without_a_completion_are_refused(writer, tmp_path, turns, refused):
    rows = [{"chat": messages("1+1=", "2")}, {"chat": turns}]
    data = write_rows(tmp_path / "chats", train=rows, test=rows)
    asked = {"prompt_column": None, "completion_column": None, "messages_column": "chat"}
    with pytest.raises(ValueError, match=refused):
        load_task(settings(writer, data, **asked))


def test_rows_that_are_too_long_are_left_out_of_training_alone(writer, tmp_path):
    rows = [*sums(10), {"prompt": "1+" * 20, "completion": "9"}]
    data = write_rows(tmp_path / "sums", train=rows, validation=rows, test=rows)
    splits = ("train", "validation", "test")
    task = load_task(settings(writer, data, max_length=8, splits=splits))
    assert (len(task.train), len(task.test)) == (10, 11)
    assert task.splits["train"] == "train, 11 rows, 1 of more than 8 tokens left out"
    with pytest.raises(ValueError, match="max_length: wanted training rows of at most 4 tokens"):
        load_task(settings(writer, data, max_length=4, splits=splits))


@pytest.mark.parametrize(
    "pattern, text, answer",
    [
        (None, " 0 7 ", "0 7"),
        (r"#### (\S+)", "12 + 3 = 15 #### 1,500", Decimal(1500)),
        (r"#### (\S+)", "#### 15.0", Decimal(15)),
        (r"#### (\S+)", "15", None),
        (r"\d+", "first 3, then 04", Decimal(4)),
        (r"[a-d]\b", "it is b", "b"),
        (r"x(y)?", "x", ""),
    ],
)
def test_the_answer_in_a_text(pattern, text, answer):
    assert answer_reader(pattern)(text) == answer


def test_completions_without_an_answer_are_told(writer, tmp_path):
    rows = [{"prompt": f"{i}=", "completion": f"= {i}" if i else "b"} for i in range(6)]
    data = write_rows(tmp_path / "some", train=rows, test=rows)
    task = load_task(settings(writer, data, answer=r"= (\d)"))
    assert task.splits["test"] == "test, 6 rows, 1 of them without an answer"


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_hub_has_to_give_a_split_to_train_on(writer, monkeypatch, split):
    import datasets

    rows = [{"question": f"{i}=", "answer": f"it is {i}"} for i in range(9)]
    given = {name: datasets.Dataset.from_list(rows) for name in {"test", split}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: given)
    load_task.cache_clear()
    asked = complete(Settings(objective="sft", task="gsm8k", model=str(writer), device="cpu"))
    if split == "train":
        task = load_task(asked)
        assert len(task.test) == 9 and task.answer("first 3, it is 4") == Decimal(4)
        return
    with pytest.raises(ValueError, match="^data: wanted completions in train of gsm8k, got none"):
        load_task(asked)


def test_the_same_texts_are_held_out_whatever_their_order(writer, tmp_path):
    rows = sums(60)
    parts = []
    for name, written in (("a", rows), ("b", rows[::-1])):
        data = write_rows(tmp_path / name, train=written)
        task = load_task(settings(writer, data, splits=("train",)))
        parts.append({row["prompt"] for row in task.test})
        assert task.overlap() == 0
    assert parts[0] == parts[1] and len(parts[0]) == 12


@pytest.mark.parametrize(
    "changes, refused",
    [
        ({"completion_column": "answer"}, "wanted a column 'answer', got the columns prompt, comp"),
        ({"answer": "#### (.+)"}, "answer: wanted a pattern that is found in completions of train"),
        ({"answer": "("}, "answer: wanted a regular expression"),
        (
            {"objective": "classify", "text_columns": ("prompt",), "label_column": "completion"},
            "prompt_column: wanted nothing beside the objective classify",
        ),
        ({"text_columns": ("prompt",)}, "text_columns: wanted nothing beside the objective sft"),
        ({"messages_column": "chat"}, "prompt_column: wanted nothing beside messages_column"),
        (
            {"completion_column": None},
            "task: wanted one of .* prompt_column, completion_column and",
        ),
        ({"generations": 4}, "generations: wanted nothing beside the objective sft, got 4"),
        ({"metric": "accuracy"}, "metric: wanted exact, tokens, loss or reward for the objective"),
        ({"metric": "reward"}, "metric: wanted a reward beside the metric reward"),
        ({"gap_rows": 10}, "gap_rows: wanted 0 for the objective sft, got 10"),
        ({"reward": "rewards"}, "reward: wanted MODULE:FUNCTION or FILE.py:FUNCTION, got 'reward"),
        ({"task": "glue/sst2"}, "wanted one of .*gsm8k.* for the objective sft, got 'glue/sst2'"),
        ({"batch_size": 9, "accumulation": 2}, "batch_size: wanted a multiple of accumulation = 2"),
        (
            {"objective": "grpo", "batch_size": 12},
            "batch_size: wanted a multiple of generations = 8 for GRPO, got 12",
        ),
    ],
)
def test_what_does_not_fit_is_refused(writer, folder, changes, refused):
    if changes.get("task") == "glue/sst2":
        changes = changes | dict.fromkeys(ASKED)
    with pytest.raises(ValueError, match=refused):
        load_task(settings(writer, folder, **changes))


def test_models_that_do_not_write_are_refused(model_folder, folder, tmp_path):
    wanted = "model: wanted a folder or hub name of a causal or encoder-decoder language model"
    with pytest.raises(ValueError, match=f"{wanted}, got .*, a BertModel"):
        load_task(settings(model_folder, folder))
    with pytest.raises(ValueError, match=wanted):
        load_task(settings(tmp_path / "none", folder))
    plain = save(tmp_path / "plain", llama(), eos_token=None)
    with pytest.raises(ValueError, match="model: wanted a tokenizer with a token for the end of"):
        load_task(settings(plain, folder))
    silent = save(tmp_path / "silent", llama())
    with pytest.raises(
        ValueError, match="chat: wanted a model whose tokenizer has a chat template"
    ):
        load_task(settings(silent, folder, chat=True))


def test_a_tokenizer_without_padding_pads_with_the_end(tmp_path, folder):
    model = save(tmp_path / "llama", llama(), pad_token=None)
    task = load_task(settings(model, folder))
    batch = task.collate([task.test[0], task.test[1] | {"prompt_ids": ids("10+4=")}])
    assert batch["input_ids"][0, -1] == 1 and batch["labels"][0, -1] == -100
    assert batch["labels"].dtype == torch.int64
