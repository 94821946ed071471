"""Reads one split of a data set from its files: JSON lines, an array of JSON objects, values
between commas or tabs, or Parquet. Errors name the file, and the line or row. Nothing is left in a
cache."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Of two files of the same split, the one with the earlier ending is read.
ENDINGS = ("jsonl", "csv", "parquet", "json", "tsv")
INTEGER, TRUTH = re.compile(r"\s*[+-]?[0-9]+\s*"), {"true": True, "false": False}
NUMBERS = (int, float)


class Columns(NamedTuple):
    """What a row must hold: text in each of `texts`, and in `label` one of `kinds`."""

    texts: tuple[str, ...]
    label: str
    kinds: tuple[type, ...]

    def wanted(self, column: str, kinds: Sequence[type] | None = None) -> str:
        """What has to be in a column, as an error says it."""
        if column != self.label:
            kinds = (str,)
        names = " or ".join(kind.__name__ for kind in kinds or self.kinds)
        return f"wanted {names} in column {column!r}"


def read(paths: Sequence[Path], columns: Columns):
    """The rows of a file, or of several Parquet files, as a `datasets.Dataset` that has at least
    the columns asked for, unless the file lacks one; the labels of files of text have the type
    that all of them can be read as.

    Raises ValueError naming the file.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    path = paths[0]
    rows = _read_rows(path, columns)
    with tempfile.TemporaryDirectory() as cache:  # the rows end up in memory
        options = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if rows is not None:
                return Dataset.from_list(rows)
            if path.suffix == ".parquet":
                return Dataset.from_parquet([str(path) for path in paths], **options)
            # texts stay as they are written: "NA" and "007" are texts too
            options["converters"] = dict.fromkeys([*columns.texts, columns.label], str)
            table = Dataset.from_csv(str(path), keep_default_na=False, **options)
        except Exception as error:  # pandas, pyarrow and datasets each have their own types
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(f"data: {path} could not be read ({reason})") from error
    if columns.label not in table.column_names:
        return table
    labels = list(table[columns.label])
    labels = _typed(labels, columns, lambda index: f"data: {path} row {index + 1}")
    return table.remove_columns(columns.label).add_column(columns.label, labels)


def _read_rows(path: Path, columns: Columns) -> list[dict] | None:
    """The rows of a file that is read without pandas, None for other files."""
    match path.suffix:
        case ".jsonl":
            rows = _json_lines(path)
        case ".json":
            rows = _json_array(path) if _begins_an_array(path) else _json_lines(path)
        case ".tsv":
            return _read_tabs(path, columns)
        case _:
            return None
    return _read_json(rows, columns)


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """Each value of a file with where it stands."""
    for number, text in _lines(path, "a JSON object"):
        if text.strip():
            where = f"data: {path} line {number}"
            yield where, _parsed(text, where, "a JSON object")


def _begins_an_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _json_array(path: Path) -> Iterator[tuple[str, object]]:
    """Each value of a file's array with where it stands."""
    wanted = "an array of objects"
    text = "".join(text for _, text in _lines(path, wanted))
    for number, value in enumerate(_parsed(text, f"data: {path}", wanted), 1):
        yield f"data: {path} row {number}", value


def _lines(path: Path, wanted: str) -> Iterator[tuple[int, str]]:
    """The lines of a file of text, with their numbers and their ends."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"data: {path} line {number}"
                raise ValueError(f"{where}: wanted {wanted}, got {error}") from None


def _parsed(text: str, where: str, wanted: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: wanted {wanted}, got {error}") from None


def _read_json(values: Iterator[tuple[str, object]], columns: Columns) -> list[dict]:
    """The columns asked for of JSON objects, each checked, so that an error says where it is."""
    rows, names, kinds = [], [*columns.texts, columns.label], columns.kinds
    for where, row in values:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: wanted a JSON object, got {type(row).__name__}")
        for column in names:
            if column not in row:
                got = ", ".join(row)
                raise ValueError(f"{where}: wanted a column {column!r}, got the columns {got}")
            value = row[column]
            if type(value) not in (kinds if column == columns.label else (str,)):
                raise ValueError(f"{where}: {columns.wanted(column, kinds)}, got {value!r}")
        kind = type(row[columns.label])  # one kind in a file; JSON has one kind of numbers
        kinds = tuple(k for k in kinds if k is kind or {k, kind} == set(NUMBERS))
        rows.append({column: row[column] for column in names})
    if any(type(row[columns.label]) is float for row in rows):
        for row in rows:
            row[columns.label] = _as_float(row[columns.label])
    return rows


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")  # which no label may be


def _read_tabs(path: Path, columns: Columns) -> list[dict]:
    """The columns asked for of values between tabs below a line of names. Quotes are characters
    like others, as in GLUE's files, where many have no partner."""
    header, rows, numbers = None, [], []
    for number, text in _lines(path, "values between tabs"):
        fields = text.rstrip("\r\n").split("\t")
        where = f"data: {path} line {number}"
        if header is None:
            header = fields
            wanted = {}
            for column in (*columns.texts, columns.label):
                if header.count(column) != 1:
                    got = f"got the columns {', '.join(header)}"
                    raise ValueError(f"{where}: wanted a column {column!r}, {got}")
                wanted[column] = header.index(column)
        elif len(fields) == len(header):
            rows.append({column: fields[i] for column, i in wanted.items()})
            numbers.append(number)
        elif fields != [""]:
            names = f"{len(header)} values between tabs, as many as names in the first line"
            raise ValueError(f"{where}: wanted {names}, got {len(fields)}")
    labels = [row[columns.label] for row in rows]
    labels = _typed(labels, columns, lambda index: f"data: {path} line {numbers[index]}")
    return [row | {columns.label: label} for row, label in zip(rows, labels, strict=True)]


def _typed(texts: Sequence[str], columns: Columns, where: Callable[[int], str]) -> list:
    """Labels that were written as texts in the type that they all have: whole numbers, numbers,
    truth values or else texts. Without any label they are all None."""
    texts = [text or "" for text in texts]
    if not any(texts):
        return [None] * len(texts)
    strange = [index for index, text in enumerate(texts) if text]  # where no kind is written so
    for kind, read_one in ((int, _integer), (float, _number), (bool, _truth), (str, str)):
        if kind not in columns.kinds:
            continue
        labels = [read_one(text) if text else None for text in texts]
        strange = [i for i, label in enumerate(labels) if label is None and texts[i]]
        if not strange:
            break
    else:
        index = strange[0]
        raise ValueError(f"{where(index)}: {columns.wanted(columns.label)}, got {texts[index]!r}")
    if None in labels:
        index = labels.index(None)
        raise ValueError(f"{where(index)}: {columns.wanted(columns.label)}, got nothing")
    return labels


def _integer(text: str) -> int | None:
    fits = INTEGER.fullmatch(text) and abs(float(text)) < 2**63
    return int(text) if fits else None


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _truth(text: str) -> bool | None:
    return TRUTH.get(text.lower()) if text in (text.lower(), text.upper(), text.title()) else None
