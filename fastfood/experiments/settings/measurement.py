"""The settings of one measurement: a model on a task, trained in full and by one or more methods.
The checks here need neither torch nor data."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .options import option, read, require
from .sources import SOURCES

SUBSPACE_METHODS = ("did", "said")
SIZED_METHODS = ("lora", "vera", "tinylora")  # their d follows from a rank or a length
METHODS = (*SUBSPACE_METHODS, "unilora", *SIZED_METHODS)
NORMALIZATIONS = ("global", "tensor")
METRICS = ("accuracy", "f1")
TASKS = ("digits", *SOURCES)
KINDS = ("d90", "table1", "figure1", "figure2", "figure3", "figure4", "figure5")  # of studies

# The best rate of theta falls as d^-1/2; these are the tried multiples of it, by normalization.
LR_FACTORS = {"global": (4.0, 10.0), "tensor": (0.4, 1.0)}
MOST_TRIALS = 100_000
MOST_WORKERS = 1_000
MOST_TOKENS = 1_000_000
DAY = 24 * 3600  # seconds
DIGITS_ONE_RATE_BELOW = 1000  # there the largest always won; trying it alone keeps the demo short

SMALL_VIT = "small ViT"  # the model that the digits bring

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


@dataclass(frozen=True)
class Settings:
    """Everything that a measurement depends on; `None` means a default that `complete` fills in."""

    task: str = option(
        "Task", f"{', '.join(TASKS)}; or a data set, by the next three options.", "digits"
    )
    text_columns: tuple[str, ...] | None = option(
        "Task", "The columns of text of any data set, one or two.", None, metavar="NAME,..."
    )
    label_column: str | None = option("Task", "Its column of labels.", None, metavar="NAME")
    splits: tuple[str, ...] | None = option(
        "Task", "Its splits train, (validation,) test.", None, metavar="NAME,..."
    )
    model: str | None = option(
        "Task", "A checkpoint's folder or hub name; digits brings a small ViT.", None
    )
    revision: str | None = option("Task", "The revision of a hub model.", None)
    data: str | None = option(
        "Task",
        "A folder of local files, DIR/train.jsonl or DIR/glue/sst2/train.jsonl; without it the "
        "hub is used.",
        None,
        metavar="DIR",
    )
    metric: str | None = option("Task", "accuracy (the default) or f1.", None)
    methods: tuple[str, ...] = option(
        "Sweep", f"Some of {', '.join(METHODS)}.", SUBSPACE_METHODS, flag="--method"
    )
    search: str = option(
        "Sweep", "grid: every d of dims; bisect: bracket d90 and close in on it.", "grid"
    )
    dims: tuple[int, ...] | None = option(
        "Sweep",
        "Values of d, between commas; 10:10000:100 is 100 of them, evenly on a log scale.",
        None,
        metavar="D,...",
    )
    bracket: tuple[int, ...] = option(
        "Sweep", "The least and the largest d of a bisection.", (100, 4_000_000), metavar="D,D"
    )
    precision: float = option(
        "Sweep", "A bisection ends when the bracket's ends have this ratio.", 1.25
    )
    sizes: tuple[int, ...] = option(
        "Sweep", "Ranks of lora and vera, lengths of tinylora.", (1, 4, 16), metavar="R,..."
    )
    head: str = option(
        "Sweep",
        "Whether the head, which PEFT's methods train in full, counts in their d: inside, outside.",
        "inside",
    )
    lrs: tuple[float, ...] | None = option(
        "Sweep", "Learning rates of θ, the same for every d.", None, metavar="R,..."
    )
    lr_factors: tuple[float, ...] | None = option(
        "Sweep", "Without lrs: the rates of θ as multiples of 1/√d.", None, metavar="F,..."
    )
    full_lrs: tuple[float, ...] | None = option(
        "Sweep", "Learning rates of full fine-tuning.", None, metavar="R,..."
    )
    peft_lrs: tuple[float, ...] = option(
        "Sweep", "Learning rates of PEFT's methods.", (5e-3, 2e-2), metavar="R,..."
    )
    lambda_lr: float = option("Sweep", "Learning rate of SAID's λ.", 0.02)
    normalization: str = option("Sweep", "Scale of the projection: global or tensor.", "global")
    seeds: int = option("Sweep", "Number of seeds.", 2)
    max_steps: int | None = option("Training", "Optimizer steps of a trial.", None)
    batch_size: int | None = option("Training", "Rows of a step.", None)
    max_length: int = option("Training", "Tokens of a text at most.", 128)
    warmup: float = option("Training", "Share of the steps in which the rate rises.", 0.06)
    bf16: bool = option("Training", "Compute in bfloat16 (autocast).", False)
    eval_rows: int | None = option(
        "Training", "Score so many rows of validation and test at most.", None
    )
    gap_rows: int = option(
        "Training", "Score so many training rows too, for the generalization gap.", 0
    )
    prune: bool = option(
        "Training", "Stop a trial at half of its steps where another rate is far ahead.", False
    )
    device: str = option("Machine", "auto, cpu, cuda or cuda:N.", "auto")
    workers: int | None = option(
        "Machine",
        "Trials at a time: by default 2 on a CPU (one thread each), 1 on a GPU, all of Ray's.",
        None,
    )
    gpu_share: float = option("Machine", "Share of a GPU that a trial takes under Ray.", 1.0)
    ray: str | None = option(
        "Machine", "Run trials as Ray tasks: auto, local or a cluster's ADDRESS.", None
    )
    storage: str | None = option(
        "Machine",
        "A database that several machines share, postgresql://...; otherwise OUT/trials.db.",
        None,
        metavar="URL",
    )
    name: str | None = option(
        "Machine", "The study's name in that database.  [default: the folder's]", None
    )
    heartbeat: int = option(
        "Machine", "Seconds between a driver's signs of life in the database.", 60
    )
    save_adapters: bool = option(
        "Output", "Keep θ and λ of each trial run now in OUT/adapters.", False
    )
    out: str | None = option(
        "Output",
        "Folder of trials.db, the report and the figures; the same folder again resumes.  "
        "[default: d90-TASK]",
        None,
        metavar="DIR",
    )


def read_settings(values: Mapping[str, object]) -> Settings:
    """Settings from texts of a command line or values of a file, not yet complete; see `read`."""
    return read(Settings, values)


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
    check(settings)
    data, wanted = settings.data, "an existing folder"
    require(data is None or (bool(data) and _is_folder(data)), "data", wanted, data)
    check_folder(Path(settings.out))
    return replace(
        settings,
        dims=tuple(sorted(set(settings.dims))),
        sizes=tuple(sorted(set(settings.sizes))),
        methods=tuple(dict.fromkeys(settings.methods)),
    )


def check(settings: Settings) -> None:
    """Checks every value of complete settings for itself, and no folder; raises ValueError as
    `complete` does."""
    for name in (*TEXT_DEFAULTS, "metric", "out"):
        require(getattr(settings, name) is not None, name, "a value", None)
    _check_task(settings)
    _check_sweep(settings)
    _check_rates(settings)
    _check_training(settings)
    _check_machine(settings)
    require(bool(settings.out.strip()), "out", "a folder", settings.out)


def _require_one_of(settings: Settings, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    require(value in choices, name, " or ".join(choices), value)


def _check_task(settings: Settings) -> None:
    columns = ("text_columns", "label_column", "splits")
    if settings.task in TASKS:
        wanted = f"nothing, because the task {settings.task} has columns of its own"
        for name in columns:
            require(getattr(settings, name) is None, name, wanted, getattr(settings, name))
    else:
        wanted = f"one of {', '.join(TASKS)}, or text_columns, label_column and splits beside it"
        described = all(getattr(settings, name) for name in columns)
        require(bool(settings.task) and described, "task", wanted, settings.task)
        count = len(settings.text_columns)
        require(count in (1, 2), "text_columns", "one or two columns", settings.text_columns)
        require(len(settings.splits) in (2, 3), "splits", "two or three names", settings.splits)
    if settings.task == "digits":
        wanted = "nothing, because the task digits brings its own"
        require(settings.data is None, "data", wanted, settings.data)
    else:
        wanted = f"a model's folder or hub name for the task {settings.task}"
        require(bool(settings.model), "model", wanted, settings.model)
    _require_one_of(settings, "metric", METRICS)


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # too long a name, or no right to look
        return False


def _check_sweep(settings: Settings) -> None:
    wanted = f"at least one of {', '.join(METHODS)}"
    require(bool(settings.methods), "method", wanted, settings.methods)
    for method in settings.methods:
        require(method in METHODS, "method", f"some of {', '.join(METHODS)}", method)
    _require_one_of(settings, "search", ("grid", "bisect"))
    _require_one_of(settings, "head", ("inside", "outside"))
    for name in ("dims", "sizes"):
        values = getattr(settings, name)
        require(bool(values), name, "at least one number", values)
        for value in values:
            require(value >= 1, name, "whole numbers of at least 1", value)
    ends = settings.bracket
    ascending = len(ends) == 2 and 1 <= ends[0] < ends[1]
    require(ascending, "bracket", "two whole numbers, 1 <= least < largest", ends)
    fits = 1 < settings.precision < math.inf
    require(fits, "precision", "a finite ratio above 1", settings.precision)


def _check_rates(settings: Settings) -> None:
    _require_one_of(settings, "normalization", NORMALIZATIONS)
    for name in ("lrs", "lr_factors", "full_lrs", "peft_lrs"):
        rates = getattr(settings, name)
        require(rates is None or len(rates) > 0, name, "at least one rate", rates)
        for rate in rates or ():
            require(_is_rate(rate), name, "finite rates above 0", rate)
    require(_is_rate(settings.lambda_lr), "lambda_lr", "a finite rate above 0", settings.lambda_lr)


def _is_rate(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_training(settings: Settings) -> None:
    for name in ("seeds", "max_steps", "batch_size"):
        require(getattr(settings, name) >= 1, name, "at least 1", getattr(settings, name))
    count = _most_trials(settings)
    require(count <= MOST_TRIALS, "seeds", f"at most {MOST_TRIALS:,} trials in all", count)
    fits = 4 <= settings.max_length <= MOST_TOKENS
    wanted = f"at least 4 tokens, at most {MOST_TOKENS:,}"
    require(fits, "max_length", wanted, settings.max_length)
    require(0 <= settings.warmup < 1, "warmup", "a share in [0, 1)", settings.warmup)
    rows = settings.eval_rows
    require(rows is None or rows >= 1, "eval_rows", "at least 1", rows)
    require(settings.gap_rows >= 0, "gap_rows", "at least 0", settings.gap_rows)


def _most_trials(settings: Settings) -> int:
    """An upper bound on the trials of a grid, the least number of those of a bisection."""
    rates = [settings.lrs, settings.lr_factors, settings.full_lrs, settings.peft_lrs]
    cells = max(len(settings.dims), len(settings.sizes)) if settings.search == "grid" else 1
    most_rates = max(len(some or ()) for some in rates)
    return settings.seeds * most_rates * (1 + cells * len(settings.methods))


def _check_machine(settings: Settings) -> None:
    device = settings.device
    known = device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:[0-9]{1,4}", device)
    require(bool(known), "device", "auto, cpu, cuda or cuda:N", device)
    workers = settings.workers
    fits = workers is None or 1 <= workers <= MOST_WORKERS
    require(fits, "workers", f"at least 1, at most {MOST_WORKERS:,}", workers)
    share = settings.gpu_share
    require(0 < share <= 1, "gpu_share", "a share in (0, 1]", share)
    fits = 1 <= settings.heartbeat <= DAY
    require(fits, "heartbeat", "at least 1 second, at most a day", settings.heartbeat)
    url = settings.storage
    fits = url is None or re.match(r"[\w+]+://", url)
    require(bool(fits), "storage", "a database URL, scheme://...", url)


def model_name(settings: dict) -> str:
    """The model without the folder or owner before it, with the revision behind it; a checkpoint
    NAME/step-N of a pre-training with its NAME."""
    if settings.get("model") is None:
        return SMALL_VIT
    revision = settings.get("revision")
    parts = Path(settings["model"]).parts or (settings["model"],)  # "." has none
    name = " ".join(parts[-2:] if re.fullmatch(r"step-\d+", parts[-1]) else parts[-1:])
    return name + (f"@{revision}" if revision else "")


def check_folder(out: Path) -> None:
    """Raises ValueError unless `out` is a writable folder or can be made; writes nothing."""
    existing = out.absolute()
    try:
        while not existing.exists() and existing != existing.parent:
            require(not existing.is_symlink(), "out", "a folder", f"{out} (a link to nothing)")
            existing = existing.parent
    except OSError as error:
        raise ValueError(f"out: wanted a folder, got {error}") from None
    require(existing.is_dir(), "out", "a folder", f"{out} ({existing} is a file)")
    writable = os.access(existing, os.W_OK | os.X_OK)
    require(writable, "out", "a writable folder", f"{out} ({existing} is read-only)")
