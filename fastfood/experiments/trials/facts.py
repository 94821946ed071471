"""Inspects the data, the model and the device of a measurement once, before anything is trained."""

import hashlib
from dataclasses import replace

from ..settings.measurement import SIZED_METHODS, Settings
from ..settings.trial import Facts
from .plan import bracket, cell_trials, possible_dims


def inspect(settings: Settings) -> Facts:
    """Loads the data and the base model once, and checks each method's d against the model.

    Raises ValueError naming the argument that does not fit; writes nothing.
    """
    import torch

    from ..data.checkpoints import use_cache_without_network
    from ..data.tasks import load_task
    from ..data.written import WrittenTask
    from ..training.grpo import check_grpo
    from ..training.models import build_base, trained_counts, unilora_limits
    from ..training.rewards import check_reward, hash_reward

    use_cache_without_network(settings)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        # The driver of a cluster may have no GPU; its workers then have them.
        if settings.ray is None:
            raise ValueError(f"device: wanted a device of this machine, got {settings.device!r}")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task = load_task(settings)
    if isinstance(task, WrittenTask):
        if settings.objective == "grpo":
            check_grpo(settings, task)
        if settings.reward:
            check_reward(settings.reward, task)
    base = build_base(settings, task.num_labels, seed=0)
    facts = Facts(
        device=device,
        D=sum(p.numel() for p in base.parameters() if p.requires_grad),
        m=_scales(base) if "said" in settings.methods else None,
        num_labels=task.num_labels,
        splits=task.splits,
        sizes=task.sizes,
        majority=task.majority(),
        overlap=task.overlap(),
        contamination=list(task.contamination),
        data_hash=task.data_hash,
        model_hash=_hash_parameters(base),
        counts=trained_counts(settings, task.num_labels, base),
        unilora=unilora_limits(base, settings.head) if "unilora" in settings.methods else None,
        reward_hash=hash_reward(settings.reward) if settings.reward else None,
    )
    del base
    for method in settings.methods:
        if method not in SIZED_METHODS:
            _check_dims(settings, facts, method)
    return facts


def _scales(base) -> int:
    """m, the number of SAID's scales of a model."""
    from ...layout import SubspaceConfig, lay_out, trainable

    segments = trainable(base)
    _, groups = lay_out(segments, SubspaceConfig(d=1, method="did"))
    return len(groups)


def _check_dims(settings: Settings, facts: Facts, method: str) -> None:
    """Builds a method's models of the smallest and the largest d that it can have.

    Raises ValueError naming the setting if a model cannot be built, also where no d is left.
    """
    from ..training.models import build_model

    if settings.search == "grid":
        ends = possible_dims(settings, facts, method) or settings.dims  # none: the model says why
    else:
        ends = bracket(settings, facts, method)[:1]
    for d in sorted({ends[0], ends[-1]}):
        trial = replace(cell_trials(settings, facts, method, d, seed=0)[0], device="cpu")
        try:
            build_model(settings, trial, facts.num_labels)
        except ValueError as error:
            name = "dims" if settings.search == "grid" else "bracket"
            raise ValueError(f"{name}: {method.upper()} with d = {d}: {error}") from error


def _hash_parameters(model) -> str:
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
