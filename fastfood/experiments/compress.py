"""From an adapter to a bound on its risk: it becomes a message, the message a model again, and that
model's errors on the training rows and the message's length are what counts. Only what comes back
out of the message is scored, so nothing that training left elsewhere (batch statistics, other
tensors, random numbers) can enter the bound unpaid."""

import math
import platform
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import fastfood
from fastfood.adapter import AdapterFile, load, read
from fastfood.quantize import MAX_LEVELS, quantize

from .bounds import all_bounds, best_bound, kl_of_bits, paper_order
from .config import Settings
from .message import Message, decode_message, encode_message
from .models import build_base
from .qat import fine_tune
from .tasks import Task, load_task, use_cache_without_network
from .train import predict, some_rows

LR_FACTORS = {"global": 2.0, "tensor": 0.2}  # of 1/sqrt(d): half of the lowest that d90 tries
IN_ADVANCE = (
    "the base checkpoint, parameters and buffers: it must not have been made from these rows",
    "the initial values of a new head: a function of its seed",
    "the architecture, the tokenizer, max_length and this code",
    "delta and the m rows",
)
ASSUMED = "the m rows are independent draws from the distribution that the risk is about"


@dataclass(frozen=True)
class Options:
    """What certify() needs beside the settings of the task and the base model.

    adapter: a file of save_pretrained() or its folder.
    levels: the numbers of levels to try, of theta and of lambda_ each.
    delta: one minus the confidence.
    qat_steps: of fine-tuning on levels before scoring; lr (default: a multiple of 1/sqrt(d)) and
        lambda_lr are its rates.
    train_rows: m, a fixed random choice of the training rows; None for all.
    screen_rows: on so many of the m rows the levels are chosen; None for all.
    choices: among how many candidates the adapter was chosen; None for those in its study's folder.
    head_seed: of a new head; None for the adapter's own seed, as in a study.
    """

    adapter: Path
    levels: tuple[int, ...] = (2, 4, 8, 16)
    delta: float = 0.05
    qat_steps: int = 0
    lr: float | None = None
    lambda_lr: float = 0.002
    train_rows: int | None = None
    screen_rows: int | None = None
    choices: int | None = None
    head_seed: int | None = None

    def check(self) -> None:
        """Raises ValueError naming the argument, what was wanted and what was got."""
        wanted = {
            "delta": (0 < self.delta < 1, "a share in (0, 1)"),
            "levels": (bool(self.levels), "at least one number"),
            "qat_steps": (self.qat_steps >= 0, "at least 0"),
            "lr": (self.lr is None or 0 < self.lr < math.inf, "a finite rate above 0"),
            "lambda_lr": (0 < self.lambda_lr < math.inf, "a finite rate above 0"),
        }
        for name in ("train_rows", "screen_rows", "choices"):
            value = getattr(self, name)
            wanted[name] = (value is None or value >= 1, "at least 1")
        for levels in self.levels:
            if not 1 <= levels <= MAX_LEVELS:
                raise ValueError(f"levels: wanted numbers in 1..{MAX_LEVELS}, got {levels}")
        for name, (fits, text) in wanted.items():
            if not fits:
                raise ValueError(f"{name}: wanted {text}, got {getattr(self, name)!r}")


def certify(settings: Settings, options: Options) -> dict:
    """Bounds on the risk of an adapter, on as many levels as make the best one smallest.

    Returns all that was found as a JSON dict; shares are in [0, 1], `message` is in hexadecimal.
    Raises FileNotFoundError, or ValueError naming the argument, what was wanted and what was got;
    ValueError also if the adapter was trained on another base model.
    """
    options.check()
    file = read(options.adapter)
    if file.header["groups"] == "custom":
        raise ValueError('adapter: wanted groups "layer" or "tensor", got a function\'s')
    use_cache_without_network(settings)
    settings = _on_device(settings)
    task = load_task(settings)
    options = replace(
        options,
        choices=_candidates(file.path) if options.choices is None else options.choices,
        head_seed=file.header["seed"] if options.head_seed is None else options.head_seed,
    )
    rows = some_rows(task.train, options.train_rows or len(task.train))
    screen = some_rows(rows, options.screen_rows or len(rows))

    tried = []
    for levels in options.levels:
        message = _message(settings, options, task, file, levels)
        errors = _errors(settings, options, task, screen, message)
        k = math.ceil(len(rows) * errors / len(screen))
        bounds = all_bounds(len(rows), k, message.bits, options.delta)
        tried.append((bounds[best_bound(bounds)], levels, errors, message))
    _, levels, errors, message = min(tried, key=lambda entry: entry[0])
    if len(screen) < len(rows):
        errors = _errors(settings, options, task, rows, message)
    test_errors = _errors(settings, options, task, task.test, message)
    return {
        **_origin(settings, options, task, file),
        "tried": [
            {"levels": count, "bits": made.bits, "errors": wrong, "rows": len(screen)}
            for _, count, wrong, made in tried
        ],
        "levels": levels,
        "message": message.data.hex(),
        "ledger": message.ledger,
        **_found(len(rows), errors, file.header["d"], message, options.delta),
        "majority_error": {"train": _majority_error(rows), "test": _majority_error(task.test)},
        "test_error": test_errors / len(task.test),
        "test_rows": len(task.test),
    }


def decoded_model(base: nn.Module, data: bytes) -> nn.Module:
    """The SubspaceModel over `base` that a message says, in evaluation mode.

    base: the model that the adapter was trained on, with its head's initial values. data: bytes of
    encode_message(). Raises ValueError if the message is damaged or cannot be of this model.
    """
    config, theta, lambda_ = decode_message(data)
    model = fastfood.get_subspace_model(base, config)
    own = [p.numel() for p in (model.theta, model.lambda_) if p is not None]
    values = [t for t in (theta, lambda_) if t is not None]
    if own != [len(t) for t in values]:
        model.unload()
        raise ValueError(f"data: wanted vectors of {own} numbers, got {[len(t) for t in values]}")
    with torch.no_grad():
        for p, t in zip((model.theta, model.lambda_), values, strict=False):
            p.copy_(t)
    return model.eval()


def _message(
    settings: Settings, options: Options, task: Task, file: AdapterFile, levels: int
) -> Message:
    """theta and lambda_ on at most `levels` levels each."""
    model = load(_base(settings, options, task), file.path)  # compares all of the base's parameters
    config = model.subspace_config
    if options.qat_steps:
        lr = options.lr or LR_FACTORS[config.normalization] / math.sqrt(config.d)
        trial = {"method": config.method, "learning_rate": lr, "lambda_lr": options.lambda_lr}
        trial |= {"max_steps": options.qat_steps, "batch_size": settings.batch_size}
        trial |= {"warmup": settings.warmup, "bf16": settings.bf16, "device": settings.device}
        trial["seed"] = config.seed % 2**32
        fine_tune(trial, task, model, levels)
    q = {name: quantize(p, levels) for name, p in model.state_dict().items()}
    return encode_message(config, q["theta"], q.get("lambda_"), options.choices)


def _base(settings: Settings, options: Options, task: Task) -> nn.Module:
    return build_base(settings, task.num_labels, options.head_seed).to(settings.device)


def _errors(settings: Settings, options: Options, task: Task, rows, message: Message) -> int:
    """How many rows are answered wrongly by the model that the message's bytes alone give."""
    model = decoded_model(_base(settings, options, task), message.data)
    predicted, labels = predict(model, task, rows, settings.bf16)
    return sum(answer != label for answer, label in zip(predicted, labels, strict=True))


def _found(m: int, k: int, d: int, message: Message, delta: float) -> dict:
    bounds = all_bounds(m, k, message.bits, delta)
    best = best_bound(bounds)
    return {
        "bits": message.bits,
        "kl": kl_of_bits(message.bits),
        "m": m,
        "train_errors": k,
        "train_error": k / m,
        "bounds": bounds,
        "best": {"name": best, "value": bounds[best], "confidence": 1 - delta},
        "paper_order": paper_order(m, k, d),
    }


def _origin(settings: Settings, options: Options, task: Task, file: AdapterFile) -> dict:
    """What the numbers are of, and what has to be so for them to hold."""
    libraries = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {
        "adapter": {"path": str(file.path), **file.header},
        "options": asdict(options) | {"adapter": str(options.adapter)},
        "settings": asdict(settings),
        "data_hash": task.data_hash,
        "splits": task.splits,
        "contamination": list(task.contamination),
        "in_advance": list(IN_ADVANCE),
        "assumed": ASSUMED,
        "versions": {
            "python": platform.python_version(),
            "fastfood": fastfood.__version__,
            **libraries,
        },
    }


def _majority_error(rows) -> float:
    """The error of always answering the most frequent label of the rows."""
    labels = [row["labels" if "labels" in row else "label"] for row in rows]
    return 1 - max(labels.count(label) for label in set(labels)) / len(labels)


def _candidates(path: Path) -> int:
    """The adapters that a study kept in the same folder, OUT/adapters/NAME/adapter.safetensors."""
    folder = path.absolute().parent.parent
    return len(list(folder.glob(f"*/{path.name}"))) if folder.name == "adapters" else 1


def _on_device(settings: Settings) -> Settings:
    device = settings.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: wanted a device of this machine, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # sums depend on the number of threads
    return replace(settings, device=device)
