"""Finds the splits of a text data set, in a folder of local files or on the hub, and checks their
columns."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..settings.sources import PARTS, Source
from .readers import ENDINGS, Columns, read

DTYPES = {"string": str, "large_string": str, "bool": bool, "List": list, "LargeList": list}
DTYPES |= {f"{sign}int{bits}": int for sign in ("", "u") for bits in (8, 16, 32, 64)}
DTYPES |= {f"float{bits}": float for bits in (16, 32, 64)}
ALSO_CALLED = {"validation": ("dev", "valid")}  # in the names of local files of tasks by name


def read_splits(task: str, data: str | None, source: Source, columns: Columns) -> dict:
    """The splits of a task that are there, by name, with labels as they are written: from files in
    the folder `data`, or from the hub where that is None."""
    if data is None:
        splits = from_hub(task, source.hub, source.splits, columns)
    else:
        choices = [source.splits] if source.whole else [source.splits, PARTS]
        splits = from_folder(task, Path(data), choices, columns, by_name=not source.whole)
    missing = [name for name in source.splits if name not in splits]
    if source.whole and missing:
        raise ValueError(f"splits: wanted {missing[0]} in {task}, got {', '.join(splits)}")
    return splits


def from_hub(task: str, hub: Sequence[str], names: Sequence[str], columns: Columns) -> dict:
    """The splits of a data set of the hub that are there, by name, as `datasets.Dataset` with the
    text columns and `label`. The name "a+b" stands for the rows of a and then those of b.

    Raises ValueError when the hub does not give the data set, and for missing or wrong columns.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(*hub)
    except Exception as error:  # the hub's clients raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"data: {task} could not be loaded from the hub as {'/'.join(hub)} "
            f"({type(error).__name__}: {reason}); give --data DIR to read local files"
        ) from error
    parts = {part for name in names for part in name.split("+") if part in loaded}
    checked = {part: _checked(f"{task} {part}", loaded[part], columns) for part in parts}
    return _joined(task, names, checked)


def from_folder(
    task: str,
    folder: Path,
    choices: Sequence[Sequence[str]],
    columns: Columns,
    by_name: bool = False,
) -> dict:
    """Like `from_hub`, from files such as train.jsonl in the folder or in folder/task; the names
    are the first of `choices` of which there is a first split.

    Hub-style names of Parquet pieces (train-00000-of-00002.parquet) are read too, and of a task
    `by_name` also dev.tsv or valid.tsv as validation.
    """
    folders = [folder, folder / task, folder / task.split("/")[-1]]
    for candidate in folders:
        for names in choices:
            if _files(candidate, names[0].split("+")[0], by_name):
                parts = [part for name in names for part in name.split("+")]
                files = {part: _files(candidate, part, by_name) for part in parts}
                read_parts = {
                    part: _checked(str(paths[0]), read(paths, columns), columns)
                    for part, paths in files.items()
                    if paths
                }
                return _joined(task, names, read_parts)
    firsts = " or ".join(dict.fromkeys(names[0].split("+")[0] for names in choices))
    wanted = f"{firsts} as .{', .'.join(ENDINGS[:-1])} or .{ENDINGS[-1]}"
    tried = ", ".join(map(str, folders))
    raise ValueError(f"data: wanted a file {wanted} for {task}, got none in any of {tried}")


def _joined(task: str, names: Sequence[str], parts: dict) -> dict:
    from datasets import concatenate_datasets

    joined = {}
    for name in names:
        wanted = name.split("+")
        missing = [part for part in wanted if part not in parts]
        if not missing:
            joined[name] = concatenate_datasets([parts[part] for part in wanted])
        elif len(missing) < len(wanted):
            got = ", ".join(part for part in wanted if part in parts)
            raise ValueError(f"data: {task}: wanted all splits of {name}, got only {got}")
    return joined


def _files(folder: Path, split: str, by_name: bool) -> list[Path]:
    """The file of a split, or the Parquet files that are its pieces."""
    for name in (split, *(_other_names(split) if by_name else ())):
        for ending in ENDINGS:
            if (path := folder / f"{name}.{ending}").is_file():
                return [path]
        if pieces := sorted(folder.glob(f"{name}-*-of-*.parquet")):
            return pieces
    return []


def _other_names(split: str) -> list[str]:
    """What else the file of a split may be called: validation_matched as dev_matched."""
    return [
        split.replace(part, other)
        for part, others in ALSO_CALLED.items()
        for other in others
        if part in split
    ]


def _checked(where: str, rows, columns: Columns):
    """The text columns and the label's, named "label", of rows that have them."""
    if not len(rows):
        raise ValueError(f"data: {where}: wanted rows, got none")
    for column in (*columns.texts, columns.label):
        if column not in rows.column_names:
            got = ", ".join(rows.column_names)
            raise ValueError(f"data: {where}: wanted a column {column!r}, got the columns {got}")
        _check_column(where, rows, column, columns)
    rows = rows.select_columns([*columns.texts, columns.label])
    return rows if columns.label == "label" else rows.rename_column(columns.label, "label")


def _check_column(where: str, rows, column: str, columns: Columns) -> None:
    is_label, wanted = column == columns.label, columns.wanted(column)
    kinds = columns.kinds if is_label else (str,)
    feature = rows.features[column]
    dtype = getattr(feature, "dtype", type(feature).__name__)  # a struct is a dict
    if DTYPES.get(dtype) not in kinds and not (is_label and dtype == "null"):
        raise ValueError(f"data: {where}: {wanted}, got {dtype}")
    values = rows.data.column(column)
    # a label column without any label marks an unlabelled split
    if values.null_count and not (is_label and values.null_count == len(rows)):
        index = values.is_null().index(True).as_py()
        raise ValueError(f"data: {where} row {index + 1}: {wanted}, got nothing")
    if is_label and DTYPES.get(dtype) is float and not values.null_count:
        _check_numbers(where, values.to_pylist(), columns)


def _check_numbers(where: str, labels: Sequence[float], columns: Columns) -> None:
    """Numbers that are to be predicted have to be finite, and classes whole."""
    of_classes = str in columns.kinds
    wanted = f"{'whole' if of_classes else 'finite'} numbers in column {columns.label!r}"
    for number, label in enumerate(labels, 1):
        finite = math.isfinite(label)
        if not finite or (of_classes and not label.is_integer()):
            hint = "; to predict numbers, give a metric of numbers: --metric pearson"
            got = f"{label}{hint if finite else ''}"
            raise ValueError(f"data: {where} row {number}: wanted {wanted}, got {got}")
