"""Tests of data as people have them: files of every kind, and labels of every kind."""

import json
import math

import datasets
import pytest
from text_rows import write_rows

from fastfood.experiments.data import readers, tasks
from fastfood.experiments.settings.measurement import Settings, complete


@pytest.fixture(autouse=True)
def fresh():
    tasks._text_parts.cache_clear()


OWN = {"task": "reviews", "text_columns": ("title", "body"), "label_column": "stars"}
ENDINGS = ("jsonl", "csv", "parquet", "json", "tsv")
REVIEWS = [
    {"title": f"NA {i}", "body": f"00{i}", "stars": ("poor", "fine", "good")[i % 3], "more": i}
    for i in range(30)
]


def _parts(folder, **changes):
    given = OWN | {"model": "any", "data": str(folder), "splits": ("train",)} | changes
    settings = complete(Settings(**given))
    return tasks.text_parts(settings, metric=settings.metric)


def _write(folder, name, content, ending):
    """A file of rows."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.{ending}"
    match ending:
        case "jsonl":
            write_rows(path, content)
        case "json":
            path.write_text(json.dumps(content, indent=1))
        case "csv":
            datasets.Dataset.from_list(content).to_csv(path)
        case "parquet":
            pieces = folder / f"{name}-00000-of-00001.parquet"
            datasets.Dataset.from_list(content).to_parquet(pieces)
        case "tsv":
            lines = ["\t".join(content[0]), *("\t".join(map(str, r.values())) for r in content)]
            path.write_text("\n".join(lines))


def test_own_data_are_the_same_from_every_kind_of_file(model_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    found = []
    for ending in ENDINGS:
        folder = tmp_path / ending
        _write(folder, "learn", REVIEWS[:24], ending)
        _write(folder, "exam", REVIEWS[24:], ending)
        given = OWN | {"splits": ("learn", "exam"), "max_length": 32}
        settings = complete(Settings(**given, model=str(model_folder), data=str(folder)))
        found.append(tasks.load_task(settings))
    assert len(found) == 5 and len({task.data_hash for task in found}) == 1 and not cache.exists()
    task = found[1]
    assert task.sizes == {"train": 22, "validation": 2, "test": 6} and task.num_labels == 3
    names = {row["title"] + row["body"]: row["stars"] for row in REVIEWS}
    numbers = {"fine": 0, "good": 1, "poor": 2}  # sorted
    for row in (*task.train, *task.validation, *task.test):
        assert row["label"] == numbers[names[row["title"] + row["body"]]]
    assert task.collate([task.train[0]])["input_ids"][0].tolist().count(3) == 2  # both texts


def _same(labels):
    """Reviews with these labels in turn."""
    return [row | {"stars": labels[i % len(labels)]} for i, row in enumerate(REVIEWS)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stars": "odd"}, r"data: reviews exam: wanted labels as in learn \(fine, good, poor\)"),
        ({"stars": 3}, r"exam.jsonl line 7: wanted str in column 'stars', got 3"),
        ({"stars": []}, r"exam.jsonl line 7: wanted str in column 'stars', got \[\]"),
        ({"title": None}, r"exam.jsonl line 7: wanted str in column 'title', got None"),
    ],
)
def test_own_labels_are_checked(tmp_path, changes, message):
    _write(tmp_path, "learn", REVIEWS[:24], "jsonl")
    _write(tmp_path, "exam", [*REVIEWS[24:], REVIEWS[0] | changes], "jsonl")
    with pytest.raises(ValueError, match=message):
        _parts(tmp_path, splits=("learn", "exam"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "labels", [[1, 2, 3, 4, 5], [-1, 1], [0.0, 1.0], [False, True], [-3, 40], ["no", "yes"]]
)
def test_any_labels_of_one_kind_are_classes_in_ascending_order(tmp_path, ending, labels):
    for name, content in (("learn", REVIEWS[:20]), ("exam", REVIEWS[20:])):
        rows = [row | {"stars": labels[i % len(labels)]} for i, row in enumerate(content)]
        _write(tmp_path, name, rows, ending)
    parts = _parts(tmp_path, splits=("learn", "exam"))
    assert parts["num_labels"] == len(labels)
    for name in ("train", "validation", "test"):
        for row in parts[name]:
            place = (int(row["title"].split()[1]) - 20 * (name == "test")) % len(labels)
            assert type(row["label"]) is int and row["label"] == place


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], "data: reviews exam: wanted at least two labels, got 0 alone"),
        (
            [0.5, 1.0],
            "exam.* row 1: wanted whole numbers in column 'stars', got 0.5; to predict",
        ),
        ([1.0, math.nan], "exam.* row 2: wanted .* in column 'stars', got (nan|nothing)$"),
        ([-1], "data: wanted a labelled split exam for reviews, got none"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, ending, labels, message):
    _write(tmp_path, "exam", _same(labels), ending)
    with pytest.raises(ValueError, match=message):
        _parts(tmp_path, splits=("exam", "exam"))


@pytest.mark.parametrize(
    ("ending", "labels", "message"),
    [
        ("csv", ["a", None], "exam.csv row 2: wanted int or str .* in column 'stars', got nothing"),
        ("tsv", ["a", ""], "exam.tsv line 3: wanted int or str .* in column 'stars', got nothing"),
        ("json", [1, "2"], "exam.json row 2: wanted int or float in column 'stars', got '2'"),
        ("json", [True, 1], "exam.json row 2: wanted bool in column 'stars', got 1"),
        ("jsonl", ["1", 1], "exam.jsonl line 2: wanted str in column 'stars', got 1"),
        ("jsonl", [1, None], "exam.jsonl line 2: wanted int or float in column 'stars', got None"),
    ],
)
def test_labels_of_several_kinds_are_refused(tmp_path, ending, labels, message):
    _write(tmp_path, "exam", _same(labels), ending)
    with pytest.raises(ValueError, match=message):
        _parts(tmp_path, splits=("exam",))


def test_kinds_of_labels_are_the_same_in_all_splits(tmp_path):
    _write(tmp_path, "learn", _same([False, True]), "jsonl")
    _write(tmp_path, "exam", _same([0, 1]), "jsonl")
    with pytest.raises(ValueError, match=r"exam: wanted labels as in learn \(False, True\), got 0"):
        _parts(tmp_path, splits=("learn", "exam"))
    _write(tmp_path, "exam", _same([0.0, 1.0]), "jsonl")
    _write(tmp_path, "learn", _same([0, 1]), "jsonl")
    assert _parts(tmp_path, splits=("learn", "exam"))["num_labels"] == 2


def test_minus_one_is_a_label_beside_others_and_no_label_alone(tmp_path):
    _write(tmp_path, "learn", _same([-1, 1]), "jsonl")
    _write(tmp_path, "exam", _same([-1]), "jsonl")
    _write(tmp_path, "dev", _same([1]), "jsonl")
    parts = _parts(tmp_path, splits=("learn", "dev", "exam"))
    assert parts["splits"]["test"] == "dev, 30 rows" and set(parts["labels"]["test"]) == {1}
    assert set(parts["labels"]["train"]) == {0, 1}
    with pytest.raises(ValueError, match="wanted a labelled exam .* --splits learn alone has"):
        _parts(tmp_path, splits=("learn", "exam"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_metric_of_numbers_makes_the_labels_numbers(tmp_path, ending):
    _write(tmp_path, "train", _same([0.25, 2.0, 5.0]), ending)
    parts = _parts(tmp_path, metric="pearson")
    assert parts["num_labels"] == 1
    wanted = {row["title"]: row["stars"] for row in _same([0.25, 2.0, 5.0])}
    for name in ("train", "validation", "test"):
        assert parts["labels"][name] == [wanted[title] for title in parts[name]["title"]]
        assert all(type(label) is float for label in parts["labels"][name])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2.5, "a"], "train.json row 3: wanted int or float in column 'stars', got 'a'"),
        ([1, 2.5, math.nan], "train.json row 3: wanted finite numbers in column 'stars', got nan"),
        ([1, 2.5, 10**400], "train.json row 3: wanted finite numbers in column 'stars', got inf"),
        ([2.5], "data: reviews train: wanted at least two labels, got 2.5 alone"),
    ],
)
def test_what_is_no_number_cannot_be_predicted(tmp_path, labels, message):
    _write(tmp_path, "train", _same(labels), "json")
    with pytest.raises(ValueError, match=message):
        _parts(tmp_path, metric="spearman")


def test_an_absent_split_or_column_of_own_data_is_named(tmp_path):
    _write(tmp_path, "learn", REVIEWS, "parquet")
    with pytest.raises(ValueError, match="^splits: wanted dev in reviews, got learn"):
        _parts(tmp_path, splits=("learn", "dev", "exam"))
    with pytest.raises(ValueError, match="parquet: wanted a column 'review', got .* title, body"):
        _parts(tmp_path, text_columns=("review",), splits=("learn", "dev"))


GLUE_LINES = [
    "sentence1\tsentence2\tscore",
    '"Then he left.\tThen "he" came back.\t0.8',
    '"Is ""this"" so?"\tIt is\r so.\t5.000',
    "The end\u2028is near.\tNA\t2",
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_quotes_are_characters_between_tabs(tmp_path, begin, end):
    (tmp_path / "train.tsv").write_bytes((begin + end.join(GLUE_LINES)).encode())
    columns = readers.Columns(("sentence1", "sentence2"), "score", (int, float))
    table = readers.read([tmp_path / "train.tsv"], columns)
    rows = [tuple(row[name] for name in GLUE_LINES[0].split("\t")) for row in table]
    assert rows == [
        ('"Then he left.', 'Then "he" came back.', 0.8),
        ('"Is ""this"" so?"', "It is\r so.", 5.0),
        ("The end\u2028is near.", "NA", 2.0),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"title\tbody\tstars\na\tb\n", "line 2: wanted 3 values between tabs, .*, got 2"),
        (b"title\tbody\tstars\na\tb\t1\t2\n", "line 2: wanted 3 values between tabs, .*, got 4"),
        (b"title\tstars\n", "line 1: wanted a column 'body', got the columns title, stars"),
        (b"title\tbody\tbody\tstars\n", "line 1: wanted a column 'body', got the columns title"),
        (b"title\tbody\tstars\na\xff\tb\t1\n", "line 2: wanted values between tabs, got 'utf-8'"),
        (b"", ": wanted rows, got none"),
        (b"title\tbody\tstars", ": wanted rows, got none"),
    ],
)
def test_bad_lines_between_tabs_are_refused_by_number(tmp_path, content, message):
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match="^data: .*train.tsv ?" + message):
        _parts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"title": "a",\n "body": "b"}', "train.json line 1: wanted a JSON object, got Expecting"),
        ("[1]", "train.json row 1: wanted a JSON object, got int"),
        ('[{"title": "a"}]', "train.json row 1: wanted a column 'body', got the columns title"),
        ('[{"title": "a"},\n{]', "train.json: wanted an array of objects, got Expecting.* line 2"),
        (10**5 * "[", "train.json: wanted an array of objects, got maximum recursion"),
        ("[]", "train.json: wanted rows, got none"),
    ],
)
def test_bad_json_files_are_refused_by_place(tmp_path, content, message):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match="^data: .*" + message):
        _parts(tmp_path)


@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_a_json_file_may_hold_json_lines(tmp_path, begin):
    lines = "".join(json.dumps(row) + "\n" for row in REVIEWS)
    (tmp_path / "train.json").write_text(begin + lines)
    (tmp_path / "other.json").write_text(begin + " \n" + json.dumps(REVIEWS))
    first, second = (_parts(tmp_path, splits=(name,)) for name in ("train", "other"))
    assert first["data_hash"] == second["data_hash"]


@pytest.mark.parametrize("name", ["dev", "valid"])
def test_validation_of_a_task_by_name_may_be_called_otherwise(data, tmp_path, name):
    folder = data / "glue" / "sst2"
    (folder / "test.jsonl").unlink()
    (folder / "validation.jsonl").rename(folder / f"{name}.jsonl")
    settings = complete(Settings(task="glue/sst2", model="any", data=str(data)))
    assert tasks.text_parts(settings)["splits"]["test"] == "validation, 10 rows"
    lines = ["premise\thypothesis\tlabel", *(f"p {i}\th\t{i % 3}" for i in range(30))]
    for split in ("train", f"{name}_matched"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
    settings = complete(Settings(task="glue/mnli", model="any", data=str(tmp_path)))
    assert tasks.text_parts(settings)["splits"]["test"] == "validation_matched, 30 rows"
    (folder / f"{name}.jsonl").unlink()
    tasks._text_parts.cache_clear()
    with pytest.raises(ValueError, match="validation may also be called dev or valid$"):
        tasks.text_parts(complete(Settings(task="glue/sst2", model="any", data=str(data))))
