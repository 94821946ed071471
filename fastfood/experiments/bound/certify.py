"""Goes from an adapter to a bound on its risk. The adapter is encoded as a message, the message is
decoded to a model, and the bound follows from the message's length and from that model's losses on
the training rows. Only the decoded model is scored, so nothing that training left elsewhere (batch
statistics, other tensors, random numbers) can enter the bound without being charged for."""

import functools
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
from ..data.task import Task
from ..data.tasks import load_task
from ..data.written import WrittenTask
from ..settings.measurement import Settings
from ..settings.metrics import METRICS
from ..training.models import build_base
from ..training.train import Schedule, some_rows
from .losses import Losses, TokenLosses, WrongAnswers
from .message import Message, decode_message, encode_message
from .options import Options
from .qat import fine_tune

LR_FACTORS = {"global": 2.0, "tensor": 0.2}  # times 1/sqrt(d): half of d90's lowest


def certify(settings: Settings, adapter: Path, options: Options) -> dict:
    """Bounds on the risk of an adapter, at the number of levels that makes the best bound smallest.

    A classifier's risk is its error; that of a model that writes is its loss in bits per token
    under prediction smoothing, by whichever objective it was trained. Returns all numbers as a JSON
    dict; shares are in [0, 1], `message` is in hexadecimal. Raises FileNotFoundError, or ValueError
    naming the argument, what was wanted and what was got; ValueError also if the adapter was
    trained on another base model.
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
    base = functools.partial(_base, settings, options, task)
    losses: Losses = (
        TokenLosses(settings, task, rows, options.delta, base)
        if isinstance(task, WrittenTask)
        else WrongAnswers(settings, task, rows, options.delta, file.header["d"])
    )

    tried = []
    for levels in options.levels:
        message = _message(settings, options, task, file, levels)
        scored = losses.score(decoded_model(base(), message.data, settings.weights), screen)
        bound, said = losses.tried(message, scored, len(screen))
        said = {"levels": levels, **said, "rows": len(screen)}
        tried.append((bound, levels, message, scored, said))
    _, levels, message, scored, _ = min(tried, key=lambda entry: entry[0])
    model = decoded_model(base(), message.data, settings.weights)
    if len(screen) < len(rows):
        scored = losses.score(model, rows)
    return {
        **_origin(settings, options, task, file),
        "in_advance": list(losses.in_advance),
        "assumed": losses.assumed,
        "tried": [said for *_, said in tried],
        "levels": levels,
        **losses.certified(message, scored, losses.score(model, losses.test)),
    }


def decoded_model(base: nn.Module, data: bytes, weights: str = "resident") -> nn.Module:
    """The SubspaceModel over `base` that a message describes, in evaluation mode.

    base: the model that the adapter was trained on, with its head's initial values. data: bytes of
    encode_message(). weights: as for get_subspace_model(). Raises ValueError if the message is
    damaged or does not fit this model.
    """
    config, theta, lambda_ = decode_message(data)
    model = fastfood.get_subspace_model(base, config, weights=weights)
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
    settings: Settings, options: Options, task: Task, file: AdapterFile, levels: int
) -> Message:
    """The message of the adapter with theta and lambda_ rounded to at most `levels` levels each."""
    base = _base(settings, options, task)
    model = SubspaceModel.from_pretrained(base, file.path, weights=settings.weights)
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
            accumulation=settings.accumulation,
        )
        fine_tune(schedule, lr, options.lambda_lr, task, model, levels)
    q = {name: quantize(p, levels) for name, p in model.state_dict().items()}
    return encode_message(config, q["theta"], q.get("lambda_"), options.choices)


def _base(settings: Settings, options: Options, task: Task) -> nn.Module:
    return build_base(settings, task.num_labels, options.head_seed).to(settings.device)


def _origin(settings: Settings, options: Options, task: Task, file: AdapterFile) -> dict:
    """The adapter, settings and data that were bounded, and what the bounds assume."""
    libraries = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {
        "adapter": {"path": str(file.path), **file.header},
        "options": options.model_dump(),
        "settings": settings.model_dump(),
        "data_hash": task.data_hash,
        "splits": task.splits,
        "contamination": list(task.contamination),
        "versions": {
            "python": platform.python_version(),
            "fastfood": fastfood.__version__,
            **libraries,
        },
    }


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
