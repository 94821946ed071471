"""The data of a study: scikit-learn's bundled digits, and text classification tasks from local
files or from the hub. Every task comes as three disjoint labelled parts: train, validation (on
which learning rates are chosen) and test (on which scores are reported)."""

import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ..settings.measurement import Settings
from ..settings.metrics import METRICS, score
from ..settings.sources import KNOWN_TRAINING_DATA, PARTS, SOURCES, Source, default_metric
from ..settings.task import BUNDLED, TaskSettings
from .labels import numbered
from .parts import choose_parts, count_overlap, hash_rows, hold_out, scored_rows
from .readers import Columns
from .rows import from_folder, from_hub

DIGITS_TEST, DIGITS_VALIDATION = 500, 200


@dataclass(frozen=True, eq=False)
class Task:
    """A loaded task. The parts are sequences of rows, `collate` makes a model's batch of rows."""

    train: Sequence[dict]
    validation: Sequence[dict]
    test: Sequence[dict]
    labels: dict  # part name: list of classes, or of the numbers to be predicted
    num_labels: int  # outputs of a model; 1 where the label is a number
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
        return count_overlap(self.train, self.test, self.texts) if self.texts else 0

    @property
    def of_numbers(self) -> bool:
        """Whether the label is a number to be predicted, and no class."""
        return METRICS[self.metric].of_numbers

    def majority(self) -> float:
        """The best test score, in the task's metric, of always giving the same answer; it is 0 for
        correlations."""
        labels = self.labels["test"]
        answers = set(labels[:1] if self.of_numbers else labels)
        return max(score(self.metric, [answer] * len(labels), labels) for answer in answers)


@lru_cache(maxsize=8)
def load_task(settings: Settings) -> Task:
    """Loads the task of completed settings.

    Raises ValueError for missing files or columns, labels out of range, and an unreachable hub.
    """
    metric = settings.metric or default_metric(settings.task)
    if settings.task == "digits":
        return Task(**_digits_parts(settings.eval_rows), metric=metric)
    parts, notes = text_parts(settings, settings.eval_rows, metric), contamination(settings)
    collate = _text_collator(settings, parts)
    return Task(**parts, collate=collate, metric=metric, contamination=notes)


def source_of(settings: TaskSettings, metric: str | None = None) -> Source:
    """The data set of a text task: a known one, or the one that the settings describe, whose labels
    are classes or numbers as the metric wants them."""
    if settings.task in SOURCES:
        return SOURCES[settings.task]
    of_numbers = METRICS[metric or default_metric(settings.task)].of_numbers
    source = Source(
        tuple(settings.task.split(":", 1)),
        settings.text_columns,
        1 if of_numbers else None,
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
    data_at_hub = settings.task not in BUNDLED and settings.data is None
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
        parts[part] = [parts[part][i] for i in scored_rows(len(parts[part]), eval_rows)]
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


def text_parts(
    settings: TaskSettings, eval_rows: int | None = None, metric: str | None = None
) -> dict:
    """The parts of a text task, without a model: train, validation, test (with the text columns,
    and as label a class from 0 on or a number to be predicted), labels, num_labels, splits,
    data_hash and texts. Validation and test have at most `eval_rows` rows.

    Raises ValueError as `load_task` does.
    """
    return _text_parts(settings.task, settings.data, source_of(settings, metric), eval_rows)


@lru_cache(maxsize=4)  # models share the rows of a task
def _text_parts(task: str, data: str | None, source: Source, eval_rows: int | None) -> dict:
    labelled, num_labels = numbered(task, source, _read_splits(task, data, source))
    parts, origins = _divided(task, data, source, labelled)
    for name in ("validation", "test"):
        chosen = scored_rows(len(parts[name]), eval_rows)
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
        "data_hash": hash_rows(parts),
        "texts": source.texts,
    }


def _read_splits(task: str, data: str | None, source: Source) -> dict:
    """The splits of a task that are there, by name, with labels as they are written."""
    kinds = (int,) if source.num_labels else (int, str, bool, float)
    columns = Columns(source.texts, source.label, (int, float) if source.of_numbers else kinds)
    if data is None:
        splits = from_hub(task, source.hub, source.splits, columns)
    else:
        choices = [source.splits] if source.whole else [source.splits, PARTS]
        splits = from_folder(task, Path(data), choices, columns, by_name=not source.whole)
    missing = [name for name in source.splits if name not in splits]
    if source.whole and missing:
        raise ValueError(f"splits: wanted {missing[0]} in {task}, got {', '.join(splits)}")
    return splits


def _divided(task: str, data: str | None, source: Source, labelled: dict) -> tuple[dict, dict]:
    """Train, validation and test by name, and where the rows of each came from."""
    if len(labelled) > 1:
        return choose_parts(labelled)
    (name, rows), *_ = labelled.items()
    if len(source.splits) == 1:
        return hold_out(f"data: {task} {name}", name, rows, source)
    wanted, hint = " or ".join(source.splits[1:]), ""
    if source.whole:
        hint = f"; --splits {name} alone has parts of {name} held out"
    elif data is not None:
        hint = "; the file of validation may also be called dev or valid"
    raise ValueError(f"data: wanted a labelled {wanted} for {task}, got none{hint}")


def _text_collator(settings: Settings, parts: dict) -> Callable[[list[dict]], dict]:
    import torch

    tokenizer = load_tokenizer(settings.model, settings.revision)
    target = _standardised(parts["labels"]["train"]) if parts["num_labels"] == 1 else int

    def collate(batch: list[dict]) -> dict:
        texts = [[row[column] for row in batch] for column in parts["texts"]]
        inputs = tokenizer(
            *texts,
            truncation=True,
            max_length=settings.max_length,
            padding=True,
            return_tensors="pt",
        )
        return {**inputs, "labels": torch.tensor([target(row["label"]) for row in batch])}

    return collate


def _standardised(labels: Sequence[float]) -> Callable[[float], float]:
    """A function that gives the training labels mean 0 and variance 1.

    So the same learning rates fit a score in 0..5 and one in percent, and a subspace of few
    dimensions need not spend its first steps on the mean. Correlations are the same for both.
    """
    mean, deviation = statistics.fmean(labels), statistics.pstdev(labels) or 1.0
    return lambda label: (label - mean) / deviation


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
