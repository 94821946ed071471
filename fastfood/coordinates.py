"""theta and lambda_: the coordinates that train, of one or several named adapters over the
trainable tensors of one base model.
"""

import functools
import itertools
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .layout import PROJECTIONS, Segment, SubspaceConfig, lay_out
from .projection import Projection


@dataclass
class Group:
    """Some tensors that share a scale, and the factors of their gradients before P^T."""

    number: int
    places: list[int]  # of the tensors in the list that was asked for
    starts: list[int]  # their first rows of P
    factors: list[float]  # their norms
    released_factors: list[float]  # the same as in the authors' code (SubspaceConfig.gradient)


@dataclass
class Adapter:
    """A subspace over a base model, and the coordinates of a point in it."""

    config: SubspaceConfig
    projection: Projection
    segments: list[Segment]
    group_names: list[Hashable]
    theta: nn.Parameter
    lambda_: nn.Parameter | None
    _tables: dict = field(default_factory=dict, repr=False)  # by dtype and device
    _groups: dict = field(default_factory=dict, repr=False)  # by indices

    def scales_and_bounds(
        self, lambda_: Tensor | None = None, *, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """lambda_ of its group times its norm for each of the S segments, or the norm alone: shape
        (S,), dtype and device of `like`. And the bounds [0, D] on the entries of each, which
        projection.perturbed takes."""
        key = like.dtype, like.device
        if key not in self._tables:
            norms = torch.tensor([s.norm for s in self.segments], dtype=like.dtype)
            groups = torch.tensor([s.group for s in self.segments])
            bounds = torch.tensor([0, self.projection.D])
            self._tables[key] = [table.to(like.device) for table in (norms, groups, bounds)]
        norms, groups, bounds = self._tables[key]
        return norms if lambda_ is None else norms * lambda_[groups], bounds

    def groups(self, segments: list[Segment]) -> list[Group]:
        """The groups of these tensors, in the order in which they come."""
        key = tuple([segment.index for segment in segments])
        if key not in self._groups:
            by_number: dict[int, Group] = {}
            for place, index in enumerate(key):
                laid = self.segments[index]
                group = by_number.setdefault(laid.group, Group(laid.group, [], [], [], []))
                group.places.append(place)
                group.starts.append(laid.start)
                group.factors.append(laid.norm)
                padded = 1 << (laid.numel - 1).bit_length()
                group.released_factors.append(laid.norm / padded)
            self._groups[key] = list(by_number.values())
        return self._groups[key]

    def __getstate__(self):
        return self.__dict__ | {"_tables": {}, "_groups": {}}


def new_adapter(segments: list[Segment], config: SubspaceConfig) -> Adapter:
    """An adapter in the subspace of `config`, at theta = 0 and lambda_ = 1. Raises ValueError if d
    is too large or too small."""
    laid, group_names = lay_out(segments, config)
    D, m = sum(s.numel for s in laid), len(group_names) if config.method == "said" else 0
    wide = any(s.parameter.dtype == torch.float64 for s in laid)
    dtype, device = torch.float64 if wide else torch.float32, laid[0].parameter.device
    return Adapter(
        config,
        PROJECTIONS[config.projection](config.d - m, D, seed=config.seed),
        laid,
        group_names,
        nn.Parameter(torch.zeros(config.d - m, dtype=dtype, device=device)),
        nn.Parameter(torch.ones(m, dtype=dtype, device=device)) if m else None,
    )


# All models that are alive. A plain set: list() copies it at once, whatever other threads do.
_alive: "set[weakref.ref[Coordinates]]" = set()


def _listen_for(model: "Coordinates") -> None:
    _listen()
    _alive.add(weakref.ref(model, _alive.discard))


@functools.cache
def _listen() -> None:
    register_optimizer_step_post_hook(_note_step)


def _note_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Counts an optimizer's step as a write to theta and lambda_: some optimizers write through
    .data or by address, which version counters do not see."""
    if torch.compiler.is_compiling():
        return
    models = [ref() for ref in list(_alive)]
    leaves = {id(p) for model in models if model is not None for p in model._leaves()}
    for group in optimizer.param_groups if leaves else []:
        for p in group["params"]:
            if id(p) in leaves:
                torch.autograd.graph.increment_version(p)


class Coordinates(nn.Module):
    """Named adapters over the trainable tensors of a base model. One is active: theta and lambda_
    are its parameters. SubspaceModel adds what makes weights of them."""

    theta: nn.Parameter
    lambda_: nn.Parameter | None
    wrapped: nn.Module  # the base model
    base_digests: list[bytes] | None  # of the base model's values, once adapter.base_hash read them

    def __init__(self, segments: list[Segment], config: SubspaceConfig, name: str):
        first = new_adapter(segments, config)
        super().__init__()
        self.theta = first.theta
        self.register_parameter("lambda_", first.lambda_)
        self.active_adapter = name
        self._adapters = {name: first}
        self._disabled = False
        _listen_for(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        _listen_for(self)

    def _check_possible(self, config: SubspaceConfig) -> None:
        """Raises ValueError if the model cannot make its weights in a subspace of this config."""

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The trainable tensors of the base model as they were before training."""
        raise NotImplementedError

    @property
    def _active(self) -> Adapter:
        return self._adapters[self.active_adapter]

    def _leaves(self) -> list[nn.Parameter]:
        return [self.theta] if self.lambda_ is None else [self.theta, self.lambda_]

    @property
    def adapters(self) -> dict[str, Adapter]:
        """All adapters by name, with their theta and lambda_."""
        # the module's own parameters count: others may have put new ones in their place
        active = replace(self._active, theta=self.theta, lambda_=self.lambda_)
        return self._adapters | {self.active_adapter: active}

    @property
    def subspace_config(self) -> SubspaceConfig:
        """The active adapter's settings."""
        return self._active.config

    @property
    def projection(self) -> Projection:
        """The active adapter's P."""
        return self._active.projection

    @property
    def group_names(self) -> list[Hashable]:
        """The active adapter's groups, in the order of lambda_."""
        return self._active.group_names

    @property
    def segments(self) -> list[Segment]:
        """The trainable tensors: their rows of P, and their groups in the active adapter."""
        return self._active.segments

    def add_adapter(self, name: str, config: SubspaceConfig) -> None:
        """Adds an adapter over the same base model, at theta = 0, without making it active.

        Raises TypeError or ValueError if there is one of this name, or for a wrong config.
        """
        check_name(name)
        check_config(config)
        if name in self._adapters:
            raise ValueError(f"name: wanted a new one, got {name!r}, which is an adapter already")
        self._check_possible(config)
        self._adapters[name] = new_adapter(self.segments, config)

    def set_adapter(self, name: str) -> None:
        """Makes an adapter the active one: the next forward writes its weights. Its theta and
        lambda_ are other parameters than before: give them to an optimizer of their own.

        Raises ValueError if there is none of this name.
        """
        adapter = self._adapter_named(name)
        self._adapters = self.adapters  # the one that was active keeps the parameters it has now
        self.active_adapter = name
        self.theta = adapter.theta
        self.register_parameter("lambda_", adapter.lambda_)

    def delete_adapter(self, name: str) -> None:
        """Forgets an adapter. Raises ValueError if it is the active one or there is none."""
        self._adapter_named(name)
        if name == self.active_adapter:
            raise ValueError(f"name: {name!r} is the active adapter: set_adapter() another first")
        del self._adapters[name]

    @contextmanager
    def disable_adapter(self) -> Iterator["Coordinates"]:
        """A context in which the model is the base model with theta_0."""
        before, self._disabled = self._disabled, True
        try:
            yield self
        finally:
            self._disabled = before

    def _adapter_named(self, name: str) -> Adapter:
        if name not in self._adapters:
            raise ValueError(f"name: wanted one of {list(self._adapters)}, got {name!r}")
        return self.adapters[name]

    def print_trainable_parameters(self) -> None:
        """Prints how many numbers train, out of how many, and the groups with their sizes."""
        sizes = [0] * len(self.group_names)
        for segment in self.segments:
            sizes[segment.group] += segment.numel
        parts = []
        for size, same in itertools.groupby(
            zip(self.group_names, sizes, strict=True), lambda x: x[1]
        ):
            names = [str(name) for name, _ in same]
            each = " each" if len(names) > 1 else ""
            parts.append(f"{' .. '.join(dict.fromkeys((names[0], names[-1])))} {size:,}{each}")
        d, D, m = self.subspace_config.d, self.projection.D, len(self.group_names)
        print(
            f"trainable: {d:,} of {D:,} numbers ({100 * d / D:.4g} %) | {m} groups:",
            *parts,
            sep="\n  ",
        )


def parameter_groups(
    model: nn.Module, lr: float, lambda_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict]:
    """Parameter groups for any optimizer: theta with `lr` and the scales lambda_ with `lambda_lr`.

    model: a SubspaceModel, or a module around one (DDP, PEFT). lambda_lr: lr / 20 by default, as
    the scales are near 1 and want much smaller steps than theta. weight_decay: of both. `Trainer`
    takes the list by optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": ...}).
    Raises ValueError if no parameter named theta requires gradients.
    """
    groups: dict[str, list[nn.Parameter]] = {"theta": [], "lambda_": []}
    for name, p in model.named_parameters():
        kind = [part for part in name.split(".") if part in groups]
        if p.requires_grad and kind:
            groups[kind[-1]].append(p)
    if not groups["theta"]:
        raise ValueError("model: wanted a theta that requires gradients, got none")
    rates = {"theta": lr, "lambda_": lr / 20 if lambda_lr is None else lambda_lr}
    return [
        {"params": parameters, "lr": rates[name], "weight_decay": weight_decay}
        for name, parameters in groups.items()
        if parameters
    ]


def check_config(config: object) -> None:
    if not isinstance(config, SubspaceConfig):
        raise TypeError(f"config: wanted a SubspaceConfig, got {type(config).__name__}")


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: wanted a string that is not empty, got {name!r}")
