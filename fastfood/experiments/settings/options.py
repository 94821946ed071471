"""Dataclasses of options: each field is stated once, with its default and its description, and the
command line, recipes and saved files all use it."""

import functools
import inspect
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields

MOST_SPACED = 10_000
MOST_SHOWN = 300  # characters of what was got
LARGEST = 2**63 - 1  # what files and databases can hold


def option(panel: str, text: str, default=MISSING, flag: str | None = None, metavar=None):
    """A field of a dataclass of options with what the command line says of it; without a default
    it has to be given."""
    told = {"panel": panel, "help": text, "flag": flag, "metavar": metavar}
    return field(default=default, metadata=told)


def require(condition: bool, name: str, wanted: str, got) -> None:
    """Raises ValueError saying what was wanted and what was got, unless the condition holds."""
    if not condition:
        text = repr(got)
        text = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."
        raise ValueError(f"{name}: wanted {wanted}, got {text}")


def is_plain(text: str) -> bool:
    """Whether any file and terminal can hold the text: it has neither control characters nor
    halves of characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def kinds(cls: type) -> dict[str, tuple[type, bool]]:
    """For each field its type (of the entries, where it holds several) and whether it does."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(choice for choice in choices if choice is not type(None))
        several = typing.get_origin(kind) is tuple
        found[name] = (typing.get_args(kind)[0] if several else kind, several)
    return found


def read(cls: type, values: Mapping[str, object]):
    """An instance of `cls` from texts of a command line or values of a file; None stands for a
    field's default.

    Several entries come as "200,1000" or as a list; whole numbers also as "10:10000:100". Raises
    ValueError naming the field, what was wanted and what was got.
    """
    known = kinds(cls)
    for name in values:
        require(name in known, name, f"a setting, one of {', '.join(known)}", values[name])
    given = {name: value for name, value in values.items() if value is not None}
    return cls(**{name: _read(name, value, *known[name]) for name, value in given.items()})


def _read(name: str, value, kind: type, several: bool):
    if not several:
        return _read_one(name, value, kind)
    if isinstance(value, str) and kind is int and value.count(":") == 2:
        return _log_spaced(name, value)
    parts = value.split(",") if isinstance(value, str) else value
    require(isinstance(parts, list | tuple), name, "a list or values between commas", value)
    parts = [part.strip() if isinstance(part, str) else part for part in parts]
    return tuple(_read_one(name, part, kind) for part in parts if part != "")


def _read_one(name: str, value, kind: type):
    wanted = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
    accepted = (int, float, str) if kind is float else (kind, str) if kind is int else kind
    fits = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    require(fits, name, wanted, value)
    if kind is str:
        require(is_plain(value), name, "a text without control characters", value)
        return value
    try:
        read = kind(value)
    except (ValueError, OverflowError):
        read = None
    require(read is not None, name, wanted, value)
    require(kind is not int or abs(read) <= LARGEST, name, "a number of 64 bits", value)
    return read


def _log_spaced(name: str, text: str) -> tuple[int, ...]:
    low, high, count = (_read_one(name, part, int) for part in text.split(":"))
    fits = 1 <= low < high and 2 <= count <= MOST_SPACED
    require(fits, name, "LOW:HIGH:COUNT, LOW < HIGH", text)
    step = math.log(high / low) / (count - 1)
    return tuple(sorted({round(low * math.exp(step * i)) for i in range(count)}))


def with_options(argument: str, cls: type, names: Sequence[str] | None = None) -> Callable:
    """A decorator of commands: in place of the parameter `argument` the command line has an option
    for each field of `cls`, or for those of `names`, and the command gets the dict of those that
    were given, texts and numbers for `read`."""
    names = list(kinds(cls)) if names is None else names

    def decorate(command: Callable) -> Callable:
        own = list(inspect.signature(command).parameters.values())
        place = [p.name for p in own].index(argument)

        @functools.wraps(command)
        def called(**values):
            given = {name: values.pop(name) for name in names}
            given = {name: value for name, value in given.items() if value is not None}
            return command(**values, **{argument: given})

        parameters = own[:place] + [_parameter(cls, name) for name in names] + own[place + 1 :]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(kind=keyword) for p in parameters]
        called.__signature__ = inspect.Signature(parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def _parameter(cls: type, name: str) -> inspect.Parameter:
    import typer

    stated = next(f for f in fields(cls) if f.name == name)
    (kind, several), told, default = kinds(cls)[name], stated.metadata, stated.default
    flag = told["flag"] or "--" + name.replace("_", "-")
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    annotation = typing.Annotated[
        (str if several else kind) | None,
        typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=told["help"],
            metavar=told["metavar"],
            rich_help_panel=told["panel"],
            show_default=False if default in (None, MISSING) or kind is bool else shown,
        ),
    ]
    needed = inspect.Parameter.empty if default is MISSING else None
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=needed, annotation=annotation)
