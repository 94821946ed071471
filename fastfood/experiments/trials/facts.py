"""What a measurement depends on beside its settings: its data, its model and its device, looked at
once before anything is trained."""

import hashlib

from ..settings.measurement import SIZED_METHODS, SUBSPACE_METHODS, Settings


def inspect(settings: Settings) -> dict:
    """Loads the data and the base model once, and checks each method's d against the model.

    Returns the device, D, m (None without SAID), num_labels, splits and sizes of the parts, the
    majority score, the overlap of test and train, notes on contamination, the trained parameters
    of PEFT's methods, and the hashes of model and data. Raises ValueError naming the argument;
    writes nothing.
    """
    import torch

    from ..data.tasks import load_task, use_cache_without_network
    from ..training.models import build_base, trained_counts

    use_cache_without_network(settings)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        # a cluster's driver may have no GPU of its own
        if settings.ray is None:
            raise ValueError(f"device: wanted a device of this machine, got {settings.device!r}")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = load_task(settings)
    base = build_base(settings, task.num_labels, seed=0)
    facts = {
        "device": device,
        "D": sum(p.numel() for p in base.parameters() if p.requires_grad),
        "m": None,
        "num_labels": task.num_labels,
        "splits": task.splits,
        "sizes": task.sizes,
        "majority": task.majority(),
        "overlap": task.overlap(),
        "contamination": list(task.contamination),
        "data_hash": task.data_hash,
        "model_hash": _hash_parameters(base),
        "counts": trained_counts(settings, task.num_labels, base),
    }
    del base
    for method in settings.methods:
        if method not in SIZED_METHODS:
            facts["m"] = _check_dims(settings, method, facts) or facts["m"]
    return facts


def _check_dims(settings: Settings, method: str, facts: dict) -> int | None:
    """Builds a method's models of the least and the largest d; returns SAID's m, else None.

    Raises ValueError when one cannot be built.
    """
    from ..training.models import build_model

    ends = settings.dims if settings.search == "grid" else settings.bracket[:1]
    number = None
    for d in sorted({ends[0], ends[-1]}):
        trial = {"method": method, "d": d, "size": None, "seed": 0, "device": "cpu"}
        trial |= {"normalization": settings.normalization, "head": settings.head}
        try:
            model = build_model(settings, trial, facts["num_labels"])
        except ValueError as error:
            name = "dims" if settings.search == "grid" else "bracket"
            raise ValueError(f"{name}: {method.upper()} with d = {d}: {error}") from error
        if method in SUBSPACE_METHODS and model.lambda_ is not None:
            number = model.lambda_.numel()
    return number


def _hash_parameters(model) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]
