"""The data of a study: scikit-learn's bundled digits, and text classification tasks from local
files or from the hub. Every task comes as three disjoint labelled parts: train, validation (on
which learning rates are chosen) and test (on which scores are reported)."""

import hashlib
import json
import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..settings.measurement import Settings
from ..settings.sources import KNOWN_TRAINING_DATA, PARTS, SOURCES, Source
from ..settings.task import TaskSettings
from .rows import Columns, from_folder, from_hub

DIGITS_TEST, DIGITS_VALIDATION = 500, 200
CARVED_SHARE, CARVED_MOST = 0.1, 1000


@dataclass(frozen=True, eq=False)
class Task:
    """A loaded task. The parts are sequences of rows, `collate` makes a model's batch of rows."""

    train: Sequence[dict]
    validation: Sequence[dict]
    test: Sequence[dict]
    labels: dict  # part name: list of int labels
    num_labels: int
    collate: Callable[[list[dict]], dict]
    splits: dict  # part name: where its rows came from
    data_hash: str  # of the rows of all parts
    texts: tuple[str, ...] = ()  # the columns of text; images have none
    metric: str = "accuracy"
    contamination: tuple[str, ...] = ()  # what is known of the model's own training on this task

    @property
    def sizes(self) -> dict:
        """The number of rows of every part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def overlap(self) -> int:
        """How many test rows have texts that are also a training row's, but for case, spaces and
        punctuation. No two digits are the same."""
        return _count_overlap(self.train, self.test, self.texts) if self.texts else 0

    def majority(self) -> float:
        """The best test score, in the task's metric, of always giving the same answer."""
        labels = self.labels["test"]
        return max(score(self.metric, [label] * len(labels), labels) for label in set(labels))


def score(metric: str, predicted: Sequence[int], labels: Sequence[int]) -> float:
    """A share in [0, 1]: "accuracy", or "f1" as scikit-learn's f1_score, of label 1 where there are
    two classes and the unweighted mean over the classes where there are more.

    Raises ValueError for another metric.
    """
    from sklearn.metrics import accuracy_score, f1_score

    if metric == "accuracy":
        return float(accuracy_score(labels, predicted))
    if metric != "f1":
        raise ValueError(f"metric: wanted accuracy or f1, got {metric!r}")
    two = {*map(int, labels), *map(int, predicted)} <= {0, 1}
    average = "binary" if two else "macro"
    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


@lru_cache(maxsize=8)
def load_task(settings: Settings) -> Task:
    """Loads the task of completed settings.

    Raises ValueError for missing files or columns, labels out of range, and an unreachable hub.
    """
    metric = settings.metric or "accuracy"
    if settings.task == "digits":
        return Task(**_digits_parts(settings.eval_rows), metric=metric)
    collate = _text_collator(settings, source_of(settings).texts)
    notes = contamination(settings)
    parts = text_parts(settings, settings.eval_rows)
    return Task(**parts, collate=collate, metric=metric, contamination=notes)


def source_of(settings: TaskSettings) -> Source:
    """The data set of a text task: a known one, or the one that the settings describe."""
    if settings.task in SOURCES:
        return SOURCES[settings.task]
    source = Source(
        tuple(settings.task.split(":", 1)),
        settings.text_columns,
        None,
        settings.splits,
        settings.label_column,
        whole=True,
    )
    if "label" in source.texts or source.label in source.texts:
        wanted = "columns that are not the label's and not called label"
        raise ValueError(f"text_columns: wanted {wanted}, got {source.texts!r}")
    return source


def contamination(settings: Settings) -> tuple[str, ...]:
    """What the names of a model tell of its training on the data of the task."""
    names = [settings.model or "", _name_before(Path(settings.model or "", "config.json"))]
    names = [name.lower().replace("_", "-").rstrip("/") for name in names]
    return tuple(
        note
        for words, tasks, note in KNOWN_TRAINING_DATA
        if settings.task in tasks and any(re.search(words, name) for name in names)
    )


def _name_before(config: Path) -> str:
    """The name that a model's configuration says it had, or "" where it says none."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        return str(settings["_name_or_path"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return ""


def use_cache_without_network(settings: TaskSettings, tokenizer: str | None = None) -> None:
    """Where the hub is needed but out of reach, turns its client to the files of its cache, which
    otherwise comes after minutes of retries. To be called before transformers is imported."""
    data_at_hub = settings.task != "digits" and settings.data is None
    read = [name for name in (settings.model, tokenizer) if name is not None]
    model_at_hub = not all(Path(name).is_dir() for name in read)
    if not (data_at_hub or model_at_hub) or "HF_HUB_OFFLINE" in os.environ:
        return
    hub = Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urlopen(hub, timeout=10).close()
    except HTTPError:
        pass  # an answer all the same
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the workers inherit it


def _digits_parts(eval_rows: int | None) -> dict:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    rest, test = train_test_split(
        range(len(digits)), test_size=DIGITS_TEST, stratify=digits, random_state=0
    )
    train, validation = train_test_split(
        rest, test_size=DIGITS_VALIDATION, stratify=digits[rest], random_state=0
    )
    parts = {"train": train, "validation": validation, "test": test}
    for part in ("validation", "test"):
        parts[part] = [parts[part][i] for i in _chosen(len(parts[part]), eval_rows)]
    rows = {
        part: [{"pixel_values": images[i], "labels": int(digits[i])} for i in indices]
        for part, indices in parts.items()
    }

    def collate(batch: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    return rows | {
        "labels": {part: [row["labels"] for row in rows[part]] for part in parts},
        "num_labels": 10,
        "collate": collate,
        "splits": {part: f"digits, {len(rows[part])} rows" for part in parts},
        "data_hash": hashlib.sha256(pixels.tobytes() + str(parts).encode()).hexdigest()[:16],
    }


def text_parts(settings: TaskSettings, eval_rows: int | None = None) -> dict:
    """The parts of a text task, without a model: train, validation, test (with the text columns and
    int labels), labels, num_labels, splits, data_hash and texts. Validation and test have at most
    `eval_rows` rows.

    Raises ValueError as `load_task` does.
    """
    return _text_parts(settings.task, settings.data, source_of(settings), eval_rows)


@lru_cache(maxsize=4)  # models share the rows of a task
def _text_parts(task: str, data: str | None, source: Source, eval_rows: int | None) -> dict:
    labelled, num_labels = _numbered(task, source, _read_splits(task, data, source))
    if len(labelled) == 1:
        wanted = " or ".join(source.splits[1:])
        raise ValueError(f"data: wanted a labelled {wanted} for {task}, got none")
    parts, origins = _choose_parts(labelled)
    for name in ("validation", "test"):
        chosen = _chosen(len(parts[name]), eval_rows)
        if len(chosen) < len(parts[name]):
            origins[name] += f" ({len(chosen)} of {len(parts[name])})"
        texts = [list(parts[name][column]) for column in source.texts]
        # batches of equal lengths waste little padding; the order changes no prediction
        chosen.sort(key=lambda i: sum(len(column[i]) for column in texts))
        parts[name] = parts[name].select(chosen)
    return parts | {
        "labels": {name: list(rows["label"]) for name, rows in parts.items()},
        "num_labels": num_labels,
        "splits": {part: f"{origins[part]}, {len(rows)} rows" for part, rows in parts.items()},
        "data_hash": _hash_rows(parts),
        "texts": source.texts,
    }


def _read_splits(task: str, data: str | None, source: Source) -> dict:
    """The splits of a task that are there and labelled, by name, with labels 0..k-1."""
    columns = Columns(source.texts, source.label, (int,) if source.num_labels else (int, str, bool))
    if data is None:
        found = from_hub(task, source.hub, source.splits, columns)
    else:
        choices = [source.splits] if source.whole else [source.splits, PARTS]
        found = from_folder(task, Path(data), choices, columns)
    missing = [name for name in source.splits if name not in found]
    if source.whole and missing:
        raise ValueError(f"splits: wanted {missing[0]} in {task}, got {', '.join(found)}")
    return found


def _numbered(task: str, source: Source, found: dict) -> tuple[dict, int]:
    """The labelled splits, their labels as numbers, and how many labels there are; the hub marks
    unlabelled splits by -1."""
    labelled = {}
    values = {name: list(rows["label"]) for name, rows in found.items()}
    values = {name: labels for name, labels in values.items() if set(labels) not in ({-1}, {None})}
    train = next(iter(found), None)
    if train not in values or train not in (source.splits[0], PARTS[0]):
        raise ValueError(f"data: wanted a labelled split {source.splits[0]} for {task}, got none")
    classes = _classes(f"data: {task} {train}", set(values[train]), source)
    for name, labels in values.items():
        place = f"data: {task} {name}"
        outside = [label for label in set(labels) if label not in classes]
        if outside:
            wanted = f"labels in 0..{len(classes) - 1}"
            if not isinstance(classes, range):
                wanted = f"labels as in {train} ({', '.join(map(str, classes[:9]))})"
            raise ValueError(f"{place}: wanted {wanted}, got {min(outside, key=str)}")
        number = {label: i for i, label in enumerate(classes)}
        rows = found[name]
        if not isinstance(classes, range):
            rows = rows.remove_columns("label")
            rows = rows.add_column("label", [number[label] for label in labels])
        labelled[name] = rows
    return labelled, len(classes)


def _classes(place: str, labels: set, source: Source) -> Sequence:
    """The classes in the order of their numbers: words sorted, or whole numbers from 0 on."""
    if source.num_labels:
        return range(source.num_labels)
    if len(labels) < 2:
        raise ValueError(f"{place}: wanted at least two labels, got {labels.pop()!r} alone")
    if type(next(iter(labels))) is not int:
        return sorted(labels)
    if min(labels) != 0 or max(labels) != len(labels) - 1:
        got = ", ".join(map(str, sorted(labels)[:9]))
        raise ValueError(f"{place}: wanted whole labels 0..{len(labels) - 1}, got {got}")
    return range(len(labels))


def _choose_parts(labelled: dict) -> tuple[dict, dict]:
    """Two labelled splits serve as validation and test; a single one is the test, and the
    validation part is carved from train."""
    from sklearn.model_selection import train_test_split

    name, *others = labelled
    train = labelled[name]
    parts = {"train": train, "validation": labelled[others[0]], "test": labelled[others[-1]]}
    origins = {"train": name, "validation": others[0], "test": others[-1]}
    if len(others) == 1:
        count = min(max(1, round(CARVED_SHARE * len(train))), CARVED_MOST)
        if count >= len(train):
            raise ValueError(f"data: wanted at least 2 training rows, got {len(train)}")
        kept, carved = train_test_split(range(len(train)), test_size=count, random_state=0)
        parts |= {"train": train.select(kept), "validation": train.select(carved)}
        origins |= {
            "train": f"{name} without {count} rows",
            "validation": f"{count} rows of {name}",
        }
    return parts, origins


def _chosen(count: int, most: int | None) -> list[int]:
    """The rows to score: all, or a random choice that is always the same."""
    if most is None or most >= count:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), most))


def _text_collator(settings: Settings, columns: Sequence[str]) -> Callable[[list[dict]], dict]:
    import torch

    tokenizer = load_tokenizer(settings.model, settings.revision)

    def collate(batch: list[dict]) -> dict:
        texts = [[row[column] for row in batch] for column in columns]
        inputs = tokenizer(
            *texts,
            truncation=True,
            max_length=settings.max_length,
            padding=True,
            return_tensors="pt",
        )
        return {**inputs, "labels": torch.tensor([row["label"] for row in batch])}

    return collate


def load_tokenizer(name: str, revision: str | None = None):
    """The tokenizer of a folder or of a model of the hub; raises ValueError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # the loaders raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: no tokenizer in {name!r} ({reason})") from error


def _hash_rows(parts: dict) -> str:
    digest = hashlib.sha256()
    for name, rows in parts.items():
        digest.update(name.encode())
        for batch in rows.iter(batch_size=1000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=4)
def _count_overlap(train, test, texts: tuple[str, ...]) -> int:
    seen = set(_normalized(train, texts))
    return sum(row in seen for row in _normalized(test, texts))


def _normalized(rows, texts: tuple[str, ...]) -> Iterator[bytes]:
    """A digest of every row's texts in lower case, with words alone."""
    for row in zip(*(rows[column] for column in texts), strict=True):
        words = (re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()) for text in row)
        yield hashlib.blake2b("\0".join(map(" ".join, words)).encode(), digest_size=16).digest()
