"""Loads the task of a measurement: scikit-learn's bundled digits, text classification from local
files or from the hub, or what `written` loads for models that write."""

import hashlib
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache

from ..settings.measurement import Settings
from ..settings.metrics import METRICS
from ..settings.sources import SOURCES, Source, default_metric
from ..settings.task import TaskSettings
from .checkpoints import contamination, load_tokenizer
from .labels import numbered
from .parts import divide, hash_rows, scored_rows
from .readers import Columns
from .rows import read_splits
from .task import LabelledTask
from .written import WrittenTask, load_written

DIGITS_TEST, DIGITS_VALIDATION = 500, 200
LoadedTask = LabelledTask | WrittenTask


@lru_cache(maxsize=8)
def load_task(settings: Settings) -> LoadedTask:
    """Loads the task of completed settings.

    Raises ValueError for missing files or columns, labels out of range, completions in which no
    answer is found, and an unreachable hub.
    """
    if settings.writes:
        return load_written(settings)
    metric = settings.metric or default_metric(settings.task)
    if settings.task == "digits":
        return LabelledTask(**_digits_parts(settings.eval_rows), metric=metric)
    parts, notes = text_parts(settings, settings.eval_rows, metric), contamination(settings)
    collate = _text_collator(settings, parts)
    return LabelledTask(**parts, collate=collate, metric=metric, contamination=notes)


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
    kinds = (int,) if source.num_labels else (int, str, bool, float)
    columns = Columns(source.texts, source.label, (int, float) if source.of_numbers else kinds)
    splits = read_splits(task, data, source, columns)
    labelled, num_labels = numbered(task, source, splits)
    parts, origins = divide(task, data, source, labelled)
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
