"""The settings of one measurement: a model on a task, trained in full and by one or more methods.
Each setting is stated once, with its default and its description; the command line, recipes and
saved files all use it. The checks here need neither torch nor data."""

import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

SUBSPACE_METHODS = ("did", "said")
SIZED_METHODS = ("lora", "vera", "tinylora")  # their d follows from a rank or a length
METHODS = (*SUBSPACE_METHODS, "unilora", *SIZED_METHODS)
NORMALIZATIONS = ("global", "tensor")
METRICS = ("accuracy", "f1")
TEXT_TASKS = ("glue/mrpc", "glue/qqp", "glue/sst2", "glue/mnli", "yelp_polarity", "anli")
TASKS = ("digits", *TEXT_TASKS)
MOST_DIMS = 10_000

# The best rate of theta falls as d^-1/2; these are the tried multiples of it, by normalization.
LR_FACTORS = {"global": (4.0, 10.0), "tensor": (0.4, 1.0)}
DIGITS_ONE_RATE_BELOW = 1000  # there the largest always won; trying it alone keeps the demo short

DIGITS_DEFAULTS = {
    "dims": (10, 30, 100, 300, 1000, 3000),
    "full_lrs": (1e-3,),
    "max_steps": 300,
    "batch_size": 48,
}
TEXT_DEFAULTS = {
    "dims": (100, 300, 1000, 3000, 10000),
    "full_lrs": (2e-5, 5e-5),
    "max_steps": 300,
    "batch_size": 32,
}


def _setting(default, panel: str, text: str, flag: str | None = None, metavar: str | None = None):
    """A field of Settings with what the command line says of it."""
    told = {"panel": panel, "help": text, "flag": flag, "metavar": metavar}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Settings:
    """Everything that a measurement depends on; `None` means a default that `complete` fills in."""

    task: str = _setting(
        "digits", "Task", f"{', '.join(TASKS)}; or a data set, by the next three options."
    )
    text_columns: tuple[str, ...] | None = _setting(
        None, "Task", "The columns of text of any data set, one or two.", metavar="NAME,..."
    )
    label_column: str | None = _setting(None, "Task", "Its column of labels.", metavar="NAME")
    splits: tuple[str, ...] | None = _setting(
        None, "Task", "Its splits train, (validation,) test.", metavar="NAME,..."
    )
    model: str | None = _setting(
        None, "Task", "A checkpoint's folder or hub name; digits brings a small ViT."
    )
    revision: str | None = _setting(None, "Task", "The revision of a hub model.")
    data: str | None = _setting(
        None,
        "Task",
        "A folder of local files, DIR/train.jsonl or DIR/glue/sst2/train.jsonl; without it the "
        "hub is used.",
        metavar="DIR",
    )
    metric: str | None = _setting(None, "Task", "accuracy (the default) or f1.")
    methods: tuple[str, ...] = _setting(
        SUBSPACE_METHODS, "Sweep", f"Some of {', '.join(METHODS)}.", flag="--method"
    )
    search: str = _setting(
        "grid", "Sweep", "grid: every d of dims; bisect: bracket d90 and close in on it."
    )
    dims: tuple[int, ...] | None = _setting(
        None,
        "Sweep",
        "Values of d, between commas; 10:10000:100 is 100 of them, evenly on a log scale.",
        metavar="D,...",
    )
    bracket: tuple[int, ...] = _setting(
        (100, 4_000_000), "Sweep", "The least and the largest d of a bisection.", metavar="D,D"
    )
    precision: float = _setting(
        1.25, "Sweep", "A bisection ends when the bracket's ends have this ratio."
    )
    sizes: tuple[int, ...] = _setting(
        (1, 4, 16), "Sweep", "Ranks of lora and vera, lengths of tinylora.", metavar="R,..."
    )
    head: str = _setting(
        "inside",
        "Sweep",
        "Whether the head, which PEFT's methods train in full, counts in their d: inside, outside.",
    )
    lrs: tuple[float, ...] | None = _setting(
        None, "Sweep", "Learning rates of θ, the same for every d.", metavar="R,..."
    )
    lr_factors: tuple[float, ...] | None = _setting(
        None, "Sweep", "Without lrs: the rates of θ as multiples of 1/√d.", metavar="F,..."
    )
    full_lrs: tuple[float, ...] | None = _setting(
        None, "Sweep", "Learning rates of full fine-tuning.", metavar="R,..."
    )
    peft_lrs: tuple[float, ...] = _setting(
        (5e-3, 2e-2), "Sweep", "Learning rates of PEFT's methods.", metavar="R,..."
    )
    lambda_lr: float = _setting(0.02, "Sweep", "Learning rate of SAID's λ.")
    normalization: str = _setting("global", "Sweep", "Scale of the projection: global or tensor.")
    seeds: int = _setting(2, "Sweep", "Number of seeds.")
    max_steps: int | None = _setting(None, "Training", "Optimizer steps of a trial.")
    batch_size: int | None = _setting(None, "Training", "Rows of a step.")
    max_length: int = _setting(128, "Training", "Tokens of a text at most.")
    warmup: float = _setting(0.06, "Training", "Share of the steps in which the rate rises.")
    bf16: bool = _setting(False, "Training", "Compute in bfloat16 (autocast).")
    eval_rows: int | None = _setting(
        None, "Training", "Score so many rows of validation and test at most."
    )
    gap_rows: int = _setting(
        0, "Training", "Score so many training rows too, for the generalization gap."
    )
    prune: bool = _setting(
        False, "Training", "Stop a trial at half of its steps where another rate is far ahead."
    )
    device: str = _setting("auto", "Machine", "auto, cpu, cuda or cuda:N.")
    workers: int | None = _setting(
        None,
        "Machine",
        "Trials at a time: by default 2 on a CPU (one thread each), 1 on a GPU, all of Ray's.",
    )
    gpu_share: float = _setting(1.0, "Machine", "Share of a GPU that a trial takes under Ray.")
    ray: str | None = _setting(
        None, "Machine", "Run trials as Ray tasks: auto, local or a cluster's ADDRESS."
    )
    storage: str | None = _setting(
        None,
        "Machine",
        "A database that several machines share, postgresql://...; otherwise OUT/trials.db.",
        metavar="URL",
    )
    name: str | None = _setting(
        None, "Machine", "The study's name in that database.  [default: the folder's]"
    )
    heartbeat: int = _setting(
        60, "Machine", "Seconds between a driver's signs of life in the database."
    )
    save_adapters: bool = _setting(
        False, "Output", "Keep θ and λ of each trial run now in OUT/adapters."
    )
    out: str | None = _setting(
        None,
        "Output",
        "Folder of trials.db, the report and the figures; the same folder again resumes.  "
        "[default: d90-TASK]",
        metavar="DIR",
    )


def kinds() -> dict[str, tuple[type, bool]]:
    """For each setting its type (of the entries, where it holds several) and whether it does."""
    found = {}
    for name, hint in typing.get_type_hints(Settings).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(option for option in options if option is not type(None))
        several = typing.get_origin(kind) is tuple
        found[name] = (typing.get_args(kind)[0] if several else kind, several)
    return found


def read_settings(values: Mapping[str, object]) -> Settings:
    """Settings from texts of a command line or values of a recipe, not yet complete.

    Several entries come as "200,1000" or as a list; whole numbers also as "10:10000:100". Raises
    ValueError naming the setting, what was wanted and what was got.
    """
    known = kinds()
    for name in values:
        _require(name in known, name, f"a setting, one of {', '.join(known)}", values[name])
    read = {
        name: _read(name, value, *known[name])
        for name, value in values.items()
        if value is not None
    }
    return Settings(**read)


def _read(name: str, value, kind: type, several: bool):
    if not several:
        return _read_one(name, value, kind)
    if isinstance(value, str) and kind is int and value.count(":") == 2:
        return _log_spaced(name, value)
    parts = value.split(",") if isinstance(value, str) else value
    _require(isinstance(parts, list | tuple), name, "a list or values between commas", value)
    parts = [part.strip() if isinstance(part, str) else part for part in parts]
    return tuple(_read_one(name, part, kind) for part in parts if part != "")


def _read_one(name: str, value, kind: type):
    wanted = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
    if isinstance(value, str) and kind is not bool:
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{name}: wanted {wanted}, got {value!r}") from None
    accepted = (int, float) if kind is float else kind
    fits = isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)
    _require(fits, name, wanted, value)
    return kind(value)


def _log_spaced(name: str, text: str) -> tuple[int, ...]:
    low, high, count = (_read_one(name, part, int) for part in text.split(":"))
    _require(1 <= low < high and 2 <= count <= MOST_DIMS, name, "LOW:HIGH:COUNT, LOW < HIGH", text)
    step = math.log(high / low) / (count - 1)
    return tuple(sorted({round(low * math.exp(step * i)) for i in range(count)}))


def complete(settings: Settings) -> Settings:
    """Fills in the defaults of the task and checks every value that needs no torch and no data.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    defaults = dict(DIGITS_DEFAULTS if settings.task == "digits" else TEXT_DEFAULTS)
    defaults["metric"] = "accuracy"
    defaults["out"] = "d90-" + settings.task.replace("/", "-").replace(":", "-")
    if settings.normalization in NORMALIZATIONS:
        defaults["lr_factors"] = LR_FACTORS[settings.normalization]
        if settings.task == "digits" and settings.lr_factors is None:
            defaults["lr_factors"] = None  # digits' rates depend on d in a way of their own
    settings = replace(
        settings, **{k: v for k, v in defaults.items() if getattr(settings, k) is None}
    )
    _check_task(settings)
    _check_sweep(settings)
    _check_rates(settings)
    _check_training(settings)
    _check_machine(settings)
    check_out(Path(settings.out))
    return replace(
        settings,
        dims=tuple(sorted(set(settings.dims))),
        sizes=tuple(sorted(set(settings.sizes))),
        methods=tuple(dict.fromkeys(settings.methods)),
    )


def _require(condition: bool, name: str, wanted: str, got) -> None:
    if not condition:
        raise ValueError(f"{name}: wanted {wanted}, got {got!r}")


def _require_one_of(settings: Settings, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    _require(value in choices, name, " or ".join(choices), value)


def _check_task(settings: Settings) -> None:
    columns = ("text_columns", "label_column", "splits")
    if settings.task in TASKS:
        wanted = f"nothing, because the task {settings.task} has columns of its own"
        for name in columns:
            _require(getattr(settings, name) is None, name, wanted, getattr(settings, name))
    else:
        wanted = f"one of {', '.join(TASKS)}, or text_columns, label_column and splits beside it"
        described = all(getattr(settings, name) for name in columns)
        _require(bool(settings.task) and described, "task", wanted, settings.task)
        count = len(settings.text_columns)
        _require(count in (1, 2), "text_columns", "one or two columns", settings.text_columns)
        _require(len(settings.splits) in (2, 3), "splits", "two or three names", settings.splits)
    if settings.task == "digits":
        wanted = "nothing, because the task digits brings its own"
        _require(settings.data is None, "data", wanted, settings.data)
    else:
        wanted = f"a model's folder or hub name for the task {settings.task}"
        _require(bool(settings.model), "model", wanted, settings.model)
    if settings.data is not None:
        _require(Path(settings.data).is_dir(), "data", "an existing folder", settings.data)
    _require_one_of(settings, "metric", METRICS)


def _check_sweep(settings: Settings) -> None:
    wanted = f"at least one of {', '.join(METHODS)}"
    _require(bool(settings.methods), "method", wanted, settings.methods)
    for method in settings.methods:
        _require(method in METHODS, "method", f"some of {', '.join(METHODS)}", method)
    _require_one_of(settings, "search", ("grid", "bisect"))
    _require_one_of(settings, "head", ("inside", "outside"))
    for name in ("dims", "sizes"):
        values = getattr(settings, name)
        _require(bool(values), name, "at least one number", values)
        for value in values:
            _require(value >= 1, name, "whole numbers of at least 1", value)
    ends = settings.bracket
    ascending = len(ends) == 2 and 1 <= ends[0] < ends[1]
    _require(ascending, "bracket", "two whole numbers, 1 <= least < largest", ends)
    _require(settings.precision > 1, "precision", "a ratio above 1", settings.precision)


def _check_rates(settings: Settings) -> None:
    _require_one_of(settings, "normalization", NORMALIZATIONS)
    for name in ("lrs", "lr_factors", "full_lrs", "peft_lrs"):
        rates = getattr(settings, name)
        _require(rates is None or len(rates) > 0, name, "at least one rate", rates)
        for rate in rates or ():
            _require(_is_rate(rate), name, "finite rates above 0", rate)
    _require(_is_rate(settings.lambda_lr), "lambda_lr", "a finite rate above 0", settings.lambda_lr)


def _is_rate(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_training(settings: Settings) -> None:
    for name in ("seeds", "max_steps", "batch_size"):
        _require(getattr(settings, name) >= 1, name, "at least 1", getattr(settings, name))
    _require(settings.max_length >= 4, "max_length", "at least 4 tokens", settings.max_length)
    _require(0 <= settings.warmup < 1, "warmup", "a share in [0, 1)", settings.warmup)
    rows = settings.eval_rows
    _require(rows is None or rows >= 1, "eval_rows", "at least 1", rows)
    _require(settings.gap_rows >= 0, "gap_rows", "at least 0", settings.gap_rows)


def _check_machine(settings: Settings) -> None:
    device = settings.device
    _require(
        device in ("auto", "cpu", "cuda") or device.removeprefix("cuda:").isdecimal(),
        "device",
        "auto, cpu, cuda or cuda:N",
        device,
    )
    workers = settings.workers
    _require(workers is None or workers >= 1, "workers", "at least 1", workers)
    share = settings.gpu_share
    _require(0 < share <= 1, "gpu_share", "a share in (0, 1]", share)
    _require(settings.heartbeat >= 1, "heartbeat", "at least 1 second", settings.heartbeat)
    url = settings.storage
    _require(url is None or "://" in url, "storage", "a database URL, scheme://...", url)


def check_out(out: Path) -> None:
    """Raises ValueError unless `out` is a writable folder or can be made; writes nothing."""
    existing = out.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    _require(existing.is_dir(), "out", "a folder", f"{out} ({existing} is a file)")
    writable = os.access(existing, os.W_OK | os.X_OK)
    _require(writable, "out", "a writable folder", f"{out} ({existing} is read-only)")


def field_facts(name: str) -> Mapping[str, object]:
    """What `_setting` was told of a setting: its panel, help, flag and metavar."""
    return next(f.metadata for f in fields(Settings) if f.name == name)
