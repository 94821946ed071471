"""Reads the splits of a text classification data set, from local JSON lines, CSV and Parquet files
or from the hub, and checks their columns. Nothing of local files is left in a cache."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ENDINGS = ("jsonl", "csv", "parquet")
DTYPES = {"string": str, "large_string": str, "bool": bool}
DTYPES |= {f"{sign}int{bits}": int for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Columns(NamedTuple):
    """What a row must hold: text in each of `texts`, and in `label` one of `kinds`."""

    texts: tuple[str, ...]
    label: str
    kinds: tuple[type, ...]


def from_hub(task: str, hub: Sequence[str], names: Sequence[str], columns: Columns) -> dict:
    """The splits of a data set of the hub that are there, by name, as `datasets.Dataset` with the
    text columns and `label`. The name "a+b" stands for the rows of a and then those of b.

    Raises ValueError when the hub does not give the data set, and for missing or wrong columns.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(*hub)
    except Exception as error:  # the hub's clients raise many unrelated types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"data: {task} could not be loaded from the hub as {'/'.join(hub)} "
            f"({type(error).__name__}: {reason}); give --data DIR to read local files"
        ) from error
    parts = {part for name in names for part in name.split("+") if part in found}
    checked = {part: _checked(f"{task} {part}", found[part], columns) for part in parts}
    return _joined(task, names, checked)


def from_folder(
    task: str, folder: Path, choices: Sequence[Sequence[str]], columns: Columns
) -> dict:
    """Like `from_hub`, from files such as train.jsonl in the folder or in folder/task; the names
    are the first of `choices` of which there is a first split.

    Hub-style names of Parquet pieces (train-00000-of-00002.parquet) are read too.
    """
    places = [folder, folder / task, folder / task.split("/")[-1]]
    for place in places:
        for names in choices:
            if _files(place, names[0].split("+")[0]):
                files = {part: _files(place, part) for name in names for part in name.split("+")}
                read = {part: _read(paths, columns) for part, paths in files.items() if paths}
                return _joined(task, names, read)
    firsts = " or ".join(dict.fromkeys(names[0].split("+")[0] for names in choices))
    wanted = f"{firsts} as .{', .'.join(ENDINGS[:-1])} or .{ENDINGS[-1]}"
    tried = ", ".join(map(str, places))
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


def _files(folder: Path, split: str) -> list[Path]:
    for ending in ENDINGS:
        if (path := folder / f"{split}.{ending}").is_file():
            return [path]
    return sorted(folder.glob(f"{split}-*-of-*.parquet"))


def _read(paths: list[Path], columns: Columns):
    from datasets import Dataset, disable_progress_bars

    place = str(paths[0])
    listed = _read_json_lines(paths[0], columns) if place.endswith(".jsonl") else None
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:  # the rows end up in memory
        options = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if listed is not None:
                rows = Dataset.from_list(listed)
            elif place.endswith(".csv"):
                # texts stay as they are written: "NA" and "007" are texts too
                options |= {"keep_default_na": False, "na_values": {columns.label: [""]}}
                options["converters"] = dict.fromkeys(columns.texts, str)
                rows = Dataset.from_csv(place, **options)
            else:
                rows = Dataset.from_parquet([str(path) for path in paths], **options)
        except Exception as error:  # pandas, pyarrow and datasets each have their own types
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(f"data: {place} could not be read ({reason})") from error
    return _checked(place, rows, columns)


def _read_json_lines(path: Path, columns: Columns) -> list[dict]:
    """The rows of a file, so checked that an error names its line."""
    rows, names, kinds = [], [*columns.texts, columns.label], columns.kinds
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"data: {path} line {number}"
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: wanted a JSON object, got {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: wanted a JSON object, got {type(row).__name__}")
            for column in names:
                if column not in row:
                    got = ", ".join(row)
                    raise ValueError(f"{place}: wanted a column {column!r}, got the columns {got}")
                allowed = kinds if column == columns.label else (str,)
                if type(row[column]) not in allowed:
                    wanted = " or ".join(kind.__name__ for kind in allowed)
                    got = f"in column {column!r}, got {row[column]!r}"
                    raise ValueError(f"{place}: wanted {wanted} {got}")
            kinds = (type(row[columns.label]),)  # one kind in a file
            rows.append({column: row[column] for column in names})
    return rows


def _checked(place: str, rows, columns: Columns):
    """The text columns and the label's, named "label", of rows that have them."""
    if not len(rows):
        raise ValueError(f"data: {place}: wanted rows, got none")
    for column in (*columns.texts, columns.label):
        if column not in rows.column_names:
            got = ", ".join(rows.column_names)
            raise ValueError(f"data: {place}: wanted a column {column!r}, got the columns {got}")
        is_label = column == columns.label
        kinds = columns.kinds if is_label else (str,)
        wanted = f"{' or '.join(kind.__name__ for kind in kinds)} in column {column!r}"
        feature = rows.features[column]
        dtype = getattr(feature, "dtype", type(feature).__name__)  # a struct is a dict
        if DTYPES.get(dtype) not in kinds and not (is_label and dtype == "null"):
            raise ValueError(f"data: {place}: wanted {wanted}, got {dtype}")
        values = rows.data.column(column)
        # a label column without any label marks an unlabelled split
        if values.null_count and not (is_label and values.null_count == len(rows)):
            index = values.is_null().index(True).as_py()
            raise ValueError(f"data: {place} row {index + 1}: wanted {wanted}, got nothing")
    rows = rows.select_columns([*columns.texts, columns.label])
    return rows if columns.label == "label" else rows.rename_column(columns.label, "label")
