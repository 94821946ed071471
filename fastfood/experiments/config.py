"""The settings of a d90 study: one frozen dataclass, the defaults of every task, and the checks
that need neither torch nor data. A trial is a dict made from the settings for one (method, d,
learning rate, seed); it holds everything that its score depends on."""

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

METHODS = ("did", "said")
NORMALIZATIONS = ("global", "tensor")
TEXT_TASKS = ("glue/mrpc", "glue/sst2", "glue/qqp", "glue/mnli", "yelp_polarity")
TASKS = ("digits", *TEXT_TASKS)

# The best rate of theta falls as d^-1/2; these are the tried multiples of it, by normalization.
RATE_FACTORS = {"global": (4.0, 10.0), "tensor": (0.4, 1.0)}
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


@dataclass(frozen=True)
class Settings:
    """Everything that a study depends on; `None` means the task's default until `complete`."""

    task: str = "digits"
    model: str | None = None  # a folder or a hub name; digits brings its own small ViT
    data: str | None = None  # a folder of JSON lines; without it text tasks come from the hub
    methods: tuple[str, ...] = METHODS
    dims: tuple[int, ...] | None = None
    lrs: tuple[float, ...] | None = None  # rates of theta, the same for every d
    full_lrs: tuple[float, ...] | None = None
    lambda_lr: float = 0.02
    normalization: str = "global"
    seeds: int = 2
    max_steps: int | None = None
    batch_size: int | None = None
    max_length: int = 128
    warmup: float = 0.06  # share of max_steps
    bf16: bool = False
    device: str = "auto"
    workers: int | None = None
    save_adapters: bool = False
    out: str | None = None


def complete(settings: Settings) -> Settings:
    """Fills in the defaults of the task and checks every value that needs no torch and no data.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    _require(settings.task in TASKS, "task", f"one of {', '.join(TASKS)}", settings.task)
    defaults = dict(DIGITS_DEFAULTS if settings.task == "digits" else TEXT_DEFAULTS)
    defaults["out"] = "d90-" + settings.task.replace("/", "-")
    settings = replace(
        settings, **{k: v for k, v in defaults.items() if getattr(settings, k) is None}
    )
    _check_model_and_data(settings)
    _check_sweep(settings)
    for name in ("seeds", "max_steps", "batch_size"):
        _require(getattr(settings, name) >= 1, name, "at least 1", getattr(settings, name))
    _require(settings.max_length >= 4, "max_length", "at least 4 tokens", settings.max_length)
    _require(0 <= settings.warmup < 1, "warmup", "a share in [0, 1)", settings.warmup)
    device = settings.device
    _require(
        device in ("auto", "cpu", "cuda") or device.removeprefix("cuda:").isdecimal(),
        "device",
        "auto, cpu, cuda or cuda:N",
        device,
    )
    workers = settings.workers
    _require(workers is None or workers >= 1, "workers", "at least 1", workers)
    check_out(Path(settings.out))
    return replace(settings, dims=tuple(sorted(set(settings.dims))))


def _require(condition: bool, name: str, wanted: str, got) -> None:
    if not condition:
        raise ValueError(f"{name}: wanted {wanted}, got {got!r}")


def _check_model_and_data(settings: Settings) -> None:
    if settings.task == "digits":
        for name in ("model", "data"):
            value = getattr(settings, name)
            wanted = "nothing, because the task digits brings its own"
            _require(value is None, name, wanted, value)
        return
    wanted = f"a model's folder or hub name for the task {settings.task}"
    _require(bool(settings.model), "model", wanted, settings.model)
    if settings.data is not None:
        _require(Path(settings.data).is_dir(), "data", "an existing folder", settings.data)


def _check_sweep(settings: Settings) -> None:
    _require(bool(settings.methods), "method", "at least one of did, said", settings.methods)
    for method in settings.methods:
        _require(method in METHODS, "method", "did, said or both", method)
    _require(bool(settings.dims), "dims", "at least one number", settings.dims)
    for d in settings.dims:
        _require(isinstance(d, int) and d >= 1, "dims", "whole numbers of at least 1", d)
    for name in ("lrs", "full_lrs"):
        rates = getattr(settings, name)
        _require(rates is None or len(rates) > 0, name, "at least one rate", rates)
        for rate in rates or ():
            _require(_is_rate(rate), name, "finite rates above 0", rate)
    _require(_is_rate(settings.lambda_lr), "lambda_lr", "a finite rate above 0", settings.lambda_lr)
    _require(
        settings.normalization in NORMALIZATIONS,
        "normalization",
        " or ".join(NORMALIZATIONS),
        settings.normalization,
    )


def _is_rate(value: float) -> bool:
    return math.isfinite(value) and value > 0


def check_out(out: Path) -> None:
    """Raises ValueError unless `out` is a writable folder or can be made; writes nothing."""
    existing = out.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    _require(existing.is_dir(), "out", "a folder", f"{out} ({existing} is a file)")
    writable = os.access(existing, os.W_OK | os.X_OK)
    _require(writable, "out", "a writable folder", f"{out} ({existing} is read-only)")


def theta_rates(settings: Settings, d: int) -> tuple[float, ...]:
    """The learning rates of theta to try at d: `lrs`, or multiples of d^-1/2 in two digits."""
    if settings.lrs is not None:
        return tuple(sorted(set(settings.lrs)))
    factors = RATE_FACTORS[settings.normalization]
    if settings.task == "digits" and d < DIGITS_ONE_RATE_BELOW:
        factors = factors[-1:]
    return tuple(float(f"{factor / math.sqrt(d):.2g}") for factor in factors)


def trial_list(settings: Settings, facts: dict) -> list[dict]:
    """All trials of a study in the order in which they run: full fine-tuning first, then seed by
    seed every d, so that a run stopped early holds whole curves.

    `facts` is what `search.inspect` found out; its model and data hashes stand for the contents of
    the paths, which may move.
    """
    common = {
        "task": settings.task,
        "model": settings.model,
        "data": settings.data,
        "model_hash": facts["model_hash"],
        "data_hash": facts["data_hash"],
        "max_steps": settings.max_steps,
        "batch_size": settings.batch_size,
        "max_length": None if settings.task == "digits" else settings.max_length,
        "warmup": settings.warmup,
        "bf16": settings.bf16,
        "device": facts["device"].split(":")[0],
    }
    full = {"method": "full", "d": facts["D"], "normalization": None, "lambda_lr": None}
    trials = [
        common | full | {"learning_rate": rate, "seed": seed}
        for seed in range(settings.seeds)
        for rate in sorted(set(settings.full_lrs))
    ]
    for seed in range(settings.seeds):
        for d in settings.dims:
            for method in dict.fromkeys(settings.methods):
                lambda_lr = settings.lambda_lr if method == "said" else None
                own = {"method": method, "d": d, "normalization": settings.normalization}
                own |= {"lambda_lr": lambda_lr, "seed": seed}
                trials += [
                    common | own | {"learning_rate": rate} for rate in theta_rates(settings, d)
                ]
    return trials


def trial_key(trial: dict) -> str:
    """A hash of a trial's configuration; the paths are left out, their contents' hashes are in."""
    identity = {name: value for name, value in trial.items() if name not in ("model", "data")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
