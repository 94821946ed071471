"""Models of options: each field states once its type, default, bounds and description, and the
command line, recipes and saved files all use it. What does not fit is refused in one line,
"NAME: wanted X, got Y"."""

import functools
import inspect
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticUndefined
from typing_extensions import Self

MOST_SPACED = 10_000
MOST_SHOWN = 300  # characters of what was got
LARGEST = 2**63 - 1  # the largest number that files and databases can hold

# What is wanted, by pydantic's types of errors; the braces stand for a field's bounds.
WANTED = {
    "missing": "a value",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "string_unicode": "a text without control characters",
    "bool_type": "true or false",
    "tuple_type": "a list or values between commas",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "too_short": "at least {min_length}",
    "wanted": "{text}",
}


def option(
    panel: str,
    text: str,
    default: object = PydanticUndefined,
    flag: str | None = None,
    metavar: str | None = None,
):
    """A field of a model of options: the panel of `--help` that it stands in, what is said of it
    there, and its flag where that is not its name. Without a default it has to be given."""
    shown = {"panel": panel, "flag": flag, "metavar": metavar}
    return Field(default, description=text, json_schema_extra=shown)


def wanted(text: str) -> WrapValidator:
    """Puts what is wanted in these words, where a value has the right type and is refused by one of
    the bounds that stand before this in an `Annotated`."""

    def reword(value: object, validate: Callable) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            (first, *_) = error.errors(include_url=False)
            of_an_entry = bool(first["loc"])
            if of_an_entry or first["type"] == "wanted" or first["type"].endswith("_type"):
                raise
            raise PydanticCustomError("wanted", "{text}", {"text": text}) from None

    return WrapValidator(reword)


Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1), wanted("whole numbers of at least 1")], ...],
    Field(min_length=1),
    wanted("at least one number"),
]
Share = Annotated[float, Field(gt=0, lt=1), wanted("a share in (0, 1)")]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False), wanted("a finite rate above 0")]
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False), wanted("finite rates above 0")], ...],
    Field(min_length=1),
    wanted("at least one rate"),
]
ascending = AfterValidator(lambda values: tuple(sorted(set(values))))


def whole_number(least: int, most: int):
    """The type of the whole numbers from `least` to `most`."""
    text = f"at least {least:,}, at most {most:,}"
    return Annotated[int, Field(ge=least, le=most), wanted(text)]


def require(condition: bool, name: str, wanted: str, got: object) -> None:
    """Raises ValueError saying what was wanted and what was got, unless the condition holds."""
    if not condition:
        raise refusal(name, wanted, got)


def refusal(name: str, wanted: str, got: object) -> ValueError:
    """The error that says what was wanted and what was got, of which it shows the beginning."""
    text = repr(got)
    text = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."
    return ValueError(f"{name}: wanted {wanted}, got {text}")


def is_plain(text: str) -> bool:
    """Whether any file and terminal can hold the text: it has neither control characters nor
    halves of characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


class OptionsModel(BaseModel):
    """The base of all models of options. An instance is right: its types and bounds hold, and the
    rules that several of its fields decide together. What is wrong is a ValueError of one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, /, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _one_line(type(self), error) from None

    def replaced(self, **changes: object) -> Self:
        """A copy with other values, which are checked like any."""
        return type(self)(**self.model_dump() | changes)

    @field_validator("*", mode="before")
    @classmethod
    def _read_texts(cls, value: object, field) -> object:
        """Reads the texts of a command line, and a file's lists as tuples."""
        name = field.field_name
        kind, several = kinds(cls)[name]
        if not several:
            return _as_number(value, kind)
        if isinstance(value, str) and kind is int and value.count(":") == 2:
            return _log_spaced(name, value)
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, list | tuple):
            return value
        entries = [entry.strip() if isinstance(entry, str) else entry for entry in entries]
        return tuple(_as_number(entry, kind) for entry in entries if entry != "")

    @field_validator("*", mode="after")
    @classmethod
    def _fits_any_file(cls, value: object) -> object:
        """Refuses the numbers and texts that files, databases and terminals cannot hold."""
        for entry in value if isinstance(value, tuple) else (value,):
            text = None
            if isinstance(entry, int) and abs(entry) > LARGEST:
                text = "a number of 64 bits"
            if isinstance(entry, str) and not is_plain(entry):
                text = "a text without control characters"
            if text is not None:
                raise PydanticCustomError("wanted", "{text}", {"text": text})
        return value


def _one_line(cls: type[OptionsModel], error: ValidationError) -> ValueError:
    """The first of pydantic's errors, as `refusal` says it."""
    (first, *_) = error.errors(include_url=False)
    kind = first["type"]
    if kind == "value_error":  # of a `require`, whose text is whole
        return ValueError(str(first["ctx"]["error"]))
    name, got = str(first["loc"][0]), None if kind == "missing" else first["input"]
    if kind == "extra_forbidden":
        return refusal(name, f"a setting, one of {', '.join(cls.model_fields)}", got)
    text = WANTED[kind].format(**first.get("ctx", {}))
    text = text.replace("'", "") if kind == "literal_error" else text  # pydantic quotes choices
    return refusal(flag_of(cls, name)[2:].replace("-", "_"), text, got)


def flag_of(cls: type[OptionsModel], name: str) -> str:
    """The option of the command line for a field."""
    return _extra(cls, name)["flag"] or "--" + name.replace("_", "-")


def _extra(cls: type[OptionsModel], name: str) -> dict:
    return typing.cast(dict, cls.model_fields[name].json_schema_extra)


@functools.cache
def kinds(cls: type[OptionsModel]) -> dict[str, tuple[type, bool]]:
    """For each field its type (of the entries, where it holds several) and whether it does."""
    return {name: _kind(field.annotation) for name, field in cls.model_fields.items()}


def _kind(annotation: object) -> tuple[type, bool]:
    """The type that is left of an annotation without None, bounds and choices."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return _kind(next(kind for kind in arguments if kind is not types.NoneType))
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is tuple:
        return _kind(arguments[0])[0], True
    return type(arguments[0]) if origin is typing.Literal else annotation, False


def read(cls: type[OptionsModel], values: Mapping[str, object]):
    """An instance of `cls` from texts of a command line or values of a file; None stands for a
    field's default.

    Several entries come as "200,1000" or as a list; whole numbers also as "10:10000:100". Raises
    ValueError naming the field, what was wanted and what was got.
    """
    return cls(**{name: value for name, value in values.items() if value is not None})


def _as_number(value: object, kind: type) -> object:
    """The number that a text stands for; anything else as it is, to be refused by its type."""
    try:
        return kind(value) if isinstance(value, str) and kind in (int, float) else value
    except (ValueError, OverflowError):
        return value


def _log_spaced(name: str, text: str) -> tuple[int, ...]:
    numbers = [_as_number(part, int) for part in text.split(":")]
    for number in numbers:
        require(isinstance(number, int), name, "a whole number", number)
        require(abs(number) <= LARGEST, name, "a number of 64 bits", number)
    low, high, count = numbers
    fits = 1 <= low < high and 2 <= count <= MOST_SPACED
    require(fits, name, "LOW:HIGH:COUNT, LOW < HIGH", text)
    step = math.log(high / low) / (count - 1)
    return tuple(sorted({round(low * math.exp(step * i)) for i in range(count)}))


def with_options(
    argument: str, cls: type[OptionsModel], names: Sequence[str] | None = None
) -> Callable:
    """A decorator of commands: in place of the parameter `argument` the command line has an option
    for each field of `cls`, or for those of `names`, and the command gets the dict of those that
    were given, texts and numbers for `read`."""
    names = list(cls.model_fields) if names is None else names

    def decorate(command: Callable) -> Callable:
        parameters = list(inspect.signature(command).parameters.values())
        index = [parameter.name for parameter in parameters].index(argument)
        parameters[index : index + 1] = [_parameter(cls, name) for name in names]
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword) for parameter in parameters]

        @functools.wraps(command)
        def called(**values):
            options = {name: values.pop(name) for name in names}
            options = {name: value for name, value in options.items() if value is not None}
            return command(**values, **{argument: options})

        called.__signature__ = inspect.Signature(parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate


def _parameter(cls: type[OptionsModel], name: str) -> inspect.Parameter:
    import typer

    field, extra, flag = cls.model_fields[name], _extra(cls, name), flag_of(cls, name)
    (kind, several), default = kinds(cls)[name], field.default
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    unshown = field.is_required() or default is None or kind is bool
    annotation = Annotated[
        (str if several else kind) | None,
        typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=field.description,
            metavar=extra["metavar"],
            rich_help_panel=extra["panel"],
            show_default=False if unshown else shown,
        ),
    ]
    default = inspect.Parameter.empty if field.is_required() else None
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=annotation)
