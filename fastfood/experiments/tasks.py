"""The data of a study: scikit-learn's bundled digits, and text classification tasks read from local
JSON lines or from the hub. Every task comes as three disjoint labelled parts: train, validation (on
which learning rates are chosen) and test (on which scores are reported)."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from .config import Settings

DIGITS_TEST, DIGITS_VALIDATION = 500, 200
CARVED_SHARE, CARVED_MOST = 0.1, 1000

# task: (hub name and configuration, text columns, number of labels, validation split, test split)
TEXT_SPECS = {
    "glue/mrpc": (
        ("nyu-mll/glue", "mrpc"),
        ("sentence1", "sentence2"),
        2,
        "validation",
        "test",
    ),
    "glue/sst2": (("nyu-mll/glue", "sst2"), ("sentence",), 2, "validation", "test"),
    "glue/qqp": (("nyu-mll/glue", "qqp"), ("question1", "question2"), 2, "validation", "test"),
    "glue/mnli": (
        ("nyu-mll/glue", "mnli"),
        ("premise", "hypothesis"),
        3,
        "validation_matched",
        "test_matched",
    ),
    "yelp_polarity": (("fancyzhx/yelp_polarity",), ("text",), 2, "validation", "test"),
}


class Task(NamedTuple):
    """A loaded task. The parts are sequences of rows, `collate` makes a model's batch of rows."""

    train: Sequence[dict]
    validation: Sequence[dict]
    test: Sequence[dict]
    labels: dict  # part name: list of int labels
    num_labels: int
    collate: Callable[[list[dict]], dict]
    splits: dict  # part name: where its rows came from
    data_hash: str

    def majority(self) -> float:
        """The test accuracy of always answering the most frequent test label."""
        labels = self.labels["test"]
        return max(labels.count(label) for label in set(labels)) / len(labels)


@lru_cache(maxsize=2)
def load_task(settings: Settings) -> Task:
    """Loads the task of completed settings.

    Raises ValueError for missing files or columns, labels out of range, and an unreachable hub.
    """
    return _load_digits() if settings.task == "digits" else _load_text(settings)


def _load_digits() -> Task:
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
    rows = {
        part: [{"pixel_values": images[i], "labels": int(digits[i])} for i in indices]
        for part, indices in parts.items()
    }

    def collate(batch: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    return Task(
        **rows,
        labels={part: [row["labels"] for row in rows[part]] for part in parts},
        num_labels=10,
        collate=collate,
        splits={part: f"digits, {len(rows[part])} rows" for part in parts},
        data_hash=hashlib.sha256(pixels.tobytes() + str(parts).encode()).hexdigest()[:16],
    )


def _load_text(settings: Settings) -> Task:
    hub, columns, num_labels, validation_name, test_name = TEXT_SPECS[settings.task]
    names = ("train", validation_name, test_name)
    if settings.data is None:
        found = _from_hub(settings.task, hub, names)
    else:
        found = _from_folder(settings.task, Path(settings.data), names, (*columns, "label"))
    labelled = {}
    for name, rows in found.items():
        if _has_labels(f"{settings.task} {name}", rows, columns, num_labels):
            labelled[name] = rows.select_columns([*columns, "label"])
    if "train" not in labelled:
        raise ValueError(f"data: wanted a labelled split train for {settings.task}, got none")
    parts, splits = _choose_parts(labelled, validation_name, test_name)
    for name in ("validation", "test"):
        # batches of equal lengths waste little padding; the order changes no prediction
        lengths = [sum(len(row[column]) for column in columns) for row in parts[name]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        parts[name] = parts[name].select(order)
    return Task(
        **parts,
        labels={name: list(rows["label"]) for name, rows in parts.items()},
        num_labels=num_labels,
        collate=_text_collator(settings, columns),
        splits=splits,
        data_hash=_hash_rows(parts),
    )


def use_cache_without_network(settings: Settings) -> None:
    """Where the hub is needed but out of reach, turns its client to the files of its cache, which
    otherwise comes after minutes of retries. To be called before transformers is imported."""
    local = settings.data is not None and Path(settings.model).is_dir()
    if settings.task == "digits" or local or "HF_HUB_OFFLINE" in os.environ:
        return
    hub = Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urlopen(hub, timeout=10).close()
    except HTTPError:
        pass  # an answer all the same
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the workers inherit it


def _from_hub(task: str, hub: tuple[str, ...], names: Sequence[str]) -> dict:
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(*hub)
    except Exception as error:  # the hub's clients raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"data: {task} could not be loaded from the hub as {'/'.join(hub)} "
            f"({type(error).__name__}: {reason}); give --data DIR to read local JSON lines"
        ) from error
    return {name: found[name] for name in names if name in found}


def _from_folder(task: str, folder: Path, names: Sequence[str], columns: Sequence[str]) -> dict:
    from datasets import Dataset

    candidates = [folder, folder / task, folder / task.split("/")[-1]]
    for candidate in candidates:
        if (candidate / "train.jsonl").is_file():
            paths = {name: candidate / f"{name}.jsonl" for name in names}
            return {
                name: Dataset.from_list(_read_json_lines(path, columns))
                for name, path in paths.items()
                if path.is_file()
            }
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise ValueError(f"data: wanted a file train.jsonl for {task}, got none in any of {tried}")


def _read_json_lines(path: Path, columns: Sequence[str]) -> list[dict]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"data: {path} line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: wanted a JSON object, got {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: wanted a JSON object, got {type(row).__name__}")
            for column in columns:
                kind = int if column == "label" else str
                if column not in row:
                    got = ", ".join(row)
                    raise ValueError(f"{place}: wanted a column {column!r}, got the columns {got}")
                if type(row[column]) is not kind:
                    wanted = f"{kind.__name__} in column {column!r}"
                    raise ValueError(f"{place}: wanted {wanted}, got {row[column]!r}")
            rows.append({column: row[column] for column in columns})
    if not rows:
        raise ValueError(f"data: wanted rows in {path}, got an empty file")
    return rows


def _has_labels(split: str, rows, columns: Sequence[str], num_labels: int) -> bool:
    """Whether a split is labelled; the hub marks unlabelled ones by -1 throughout."""
    for column in (*columns, "label"):
        if column not in rows.column_names:
            got = ", ".join(rows.column_names)
            raise ValueError(f"data: {split}: wanted a column {column!r}, got the columns {got}")
    present = set(rows["label"])
    if present == {-1}:
        return False
    outside = sorted(present - set(range(num_labels)))
    if outside:
        wanted = f"labels in 0..{num_labels - 1}"
        raise ValueError(f"data: {split}: wanted {wanted}, got {outside[0]}")
    return True


def _choose_parts(labelled: dict, validation_name: str, test_name: str) -> tuple[dict, dict]:
    """Two labelled splits serve as validation and test; a single one is the test, and the
    validation part is carved from train."""
    from sklearn.model_selection import train_test_split

    others = [name for name in (validation_name, test_name) if name in labelled]
    if not others:
        raise ValueError(f"data: wanted a labelled {validation_name} or {test_name}, got neither")
    train = labelled["train"]
    parts = {"train": train, "validation": labelled[others[0]], "test": labelled[others[-1]]}
    splits = {"train": "train", "validation": others[0], "test": others[-1]}
    if len(others) == 1:
        count = min(max(1, round(CARVED_SHARE * len(train))), CARVED_MOST)
        if count >= len(train):
            raise ValueError(f"data: wanted at least 2 training rows, got {len(train)}")
        kept, carved = train_test_split(range(len(train)), test_size=count, random_state=0)
        parts |= {"train": train.select(kept), "validation": train.select(carved)}
        splits |= {"train": f"train without {count} rows", "validation": f"{count} rows of train"}
    return parts, {part: f"{splits[part]}, {len(rows)} rows" for part, rows in parts.items()}


def _text_collator(settings: Settings, columns: Sequence[str]) -> Callable[[list[dict]], dict]:
    import torch
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model: no tokenizer in {settings.model!r} ({reason})") from error

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


def _hash_rows(parts: dict) -> str:
    digest = hashlib.sha256()
    for name, rows in parts.items():
        digest.update(name.encode())
        for batch in rows.iter(batch_size=1000):
            digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]
