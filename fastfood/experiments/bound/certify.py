"""Goes from an adapter to a bound on its risk. The adapter is encoded as a message, the message is
decoded to a model, and the bound follows from the message's length and from that model's errors on
the training rows. Only the decoded model is scored, so nothing that training left elsewhere (batch
statistics, other tensors, random numbers) can enter the bound without being charged for."""

import math
import platform
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import fastfood
from fastfood import SubspaceModel
from fastfood.adapter import AdapterFile, read
from fastfood.quantize import quantize

from ..data.checkpoints import use_cache_without_network
from ..data.task import LabelledTask
from ..data.tasks import load_task
from ..settings.measurement import Settings
from ..settings.metrics import METRICS
from ..training.models import build_base
from ..training.train import Schedule, predict, some_rows
from .formulas import all_bounds, best_bound, kl_of_bits, paper_order
from .message import Message, decode_message, encode_message
from .options import Options
from .qat import fine_tune

LR_FACTORS = {"global": 2.0, "tensor": 0.2}  # times 1/sqrt(d): half of d90's lowest
IN_ADVANCE = (
    "the base checkpoint, parameters and buffers: it must not have been made from these rows",
    "the initial values of a new head: a function of its seed",
    "the architecture, the tokenizer, max_length and this code",
    "delta and the m rows",
)
ASSUMED = "the m rows are independent draws from the distribution that the risk is about"


def certify(settings: Settings, adapter: Path, options: Options) -> dict:
    """Bounds on the risk of an adapter, at the number of levels that makes the best bound smallest.

    Returns all numbers as a JSON dict; shares are in [0, 1], `message` is in hexadecimal.
    Raises FileNotFoundError, or ValueError naming the argument, what was wanted and what was got;
    ValueError also if the adapter was trained on another base model.
    """
    if METRICS[settings.metric].of_numbers:
        wanted = "a task of classes, because a bound counts wrong answers"
        got = f"{settings.task}, whose labels are numbers"
        raise ValueError(f"task: wanted {wanted}, got {got}")
    file = read(adapter)
    if file.header["groups"] == "custom":
        raise ValueError('adapter: wanted groups "layer" or "tensor", got groups of a function')
    use_cache_without_network(settings)
    settings = _on_device(settings)
    task = load_task(settings)
    derived = {"choices": _candidates(file.path), "head_seed": file.header["seed"]}
    unset = {name: value for name, value in derived.items() if getattr(options, name) is None}
    options = options.model_copy(update=unset)
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
            {"levels": count, "bits": encoded.bits, "errors": wrong, "rows": len(screen)}
            for _, count, wrong, encoded in tried
        ],
        "levels": levels,
        "message": message.data.hex(),
        "ledger": message.ledger,
        **_bounds(len(rows), errors, file.header["d"], message, options.delta),
        "majority_error": {"train": _majority_error(rows), "test": _majority_error(task.test)},
        "test_error": test_errors / len(task.test),
        "test_rows": len(task.test),
    }


def decoded_model(base: nn.Module, data: bytes) -> nn.Module:
    """The SubspaceModel over `base` that a message describes, in evaluation mode.

    base: the model that the adapter was trained on, with its head's initial values. data: bytes of
    encode_message(). Raises ValueError if the message is damaged or does not fit this model.
    """
    config, theta, lambda_ = decode_message(data)
    model = fastfood.get_subspace_model(base, config)
    wanted = [p.numel() for p in (model.theta, model.lambda_) if p is not None]
    values = [t for t in (theta, lambda_) if t is not None]
    if wanted != [len(t) for t in values]:
        model.unload()
        lengths = [len(t) for t in values]
        raise ValueError(f"data: wanted vectors of {wanted} numbers, got {lengths}")
    with torch.no_grad():
        for p, t in zip((model.theta, model.lambda_), values, strict=False):
            p.copy_(t)
    return model.eval()


def _message(
    settings: Settings, options: Options, task: LabelledTask, file: AdapterFile, levels: int
) -> Message:
    """The message of the adapter with theta and lambda_ rounded to at most `levels` levels each."""
    model = SubspaceModel.from_pretrained(_base(settings, options, task), file.path)
    config = model.subspace_config
    if options.qat_steps:
        lr = options.lr or LR_FACTORS[config.normalization] / math.sqrt(config.d)
        schedule = Schedule(
            max_steps=options.qat_steps,
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            bf16=settings.bf16,
            device=settings.device,
            seed=config.seed % 2**32,
        )
        fine_tune(schedule, lr, options.lambda_lr, task, model, levels)
    q = {name: quantize(p, levels) for name, p in model.state_dict().items()}
    return encode_message(config, q["theta"], q.get("lambda_"), options.choices)


def _base(settings: Settings, options: Options, task: LabelledTask) -> nn.Module:
    return build_base(settings, task.num_labels, options.head_seed).to(settings.device)


def _errors(
    settings: Settings, options: Options, task: LabelledTask, rows, message: Message
) -> int:
    """How many rows the model decoded from the message's bytes answers wrongly."""
    model = decoded_model(_base(settings, options, task), message.data)
    predicted, labels = predict(model, task, rows, settings.bf16)
    return sum(answer != label for answer, label in zip(predicted, labels, strict=True))


def _bounds(m: int, k: int, d: int, message: Message, delta: float) -> dict:
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


def _origin(settings: Settings, options: Options, task: LabelledTask, file: AdapterFile) -> dict:
    """The adapter, settings and data that were bounded, and what the bounds assume."""
    libraries = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {
        "adapter": {"path": str(file.path), **file.header},
        "options": options.model_dump(),
        "settings": settings.model_dump(),
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
    """How many adapters a study keeps in the folder of this one, OUT/adapters; else 1."""
    folder = path.absolute().parent.parent
    return len(list(folder.glob(f"*/{path.name}"))) if folder.name == "adapters" else 1


def _on_device(settings: Settings) -> Settings:
    device = settings.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: wanted a device of this machine, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # the rounding of sums depends on the number of threads
    return settings.replaced(device=device)
