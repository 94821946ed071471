"""What a subspace is laid over: its settings, and the trainable tensors of a model in the order of
P's rows, each with its group.

The D trainable numbers follow named_parameters(), tied tensors once; a group is what shares one
scale of SAID. Nothing here changes a model.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .ops import FLOATING
from .projection import Dense, Fastfood, Sparse

PROJECTIONS = {
    "fastfood": Fastfood,
    "one-block": Fastfood.one_block,
    "dense": Dense,
    "sparse": Sparse,
}
CHOICES = {
    "method": ("said", "did"),
    "normalization": ("global", "tensor"),
    "groups": ("layer", "tensor"),
    "projection": tuple(PROJECTIONS),
    "gradient": ("exact", "released"),
}

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")  # a name up to its first all-digit component


@dataclass(frozen=True)
class SubspaceConfig:
    """What is trained, and in which subspace; together with the base model it determines P.
    Equations 2 (DID) and 3 (SAID) of Aghajanyan et al., ACL 2021.

    d: how many numbers are trained in all, 1 <= d <= D. SAID spends m of them on lambda_.
    method: "said" (a scale per group beside theta) or "did" (theta alone).
    seed: of the projection, 0 <= seed < 2**64.
    normalization: "global", columns of P of unit length over all D rows, or "tensor", within each
        tensor's rows (a factor sqrt(D / D_t), as in the code of the paper's authors).
    groups: what shares a scale: "layer" (each numbered block, the embeddings, the head), "tensor",
        or a function from a parameter's name to anything hashable. DID does not depend on it.
    projection: "fastfood", "one-block" (the same with a single block of 2^ceil(log2 D) rows),
        "dense" or "sparse".
    gradient: "exact", or "released": what reaches theta from tensor t is multiplied by
        1 / 2^ceil(log2 D_t). That is wrong, so wrong that its direction is; it is how the code
        that the paper's authors released trains, kept to reproduce numbers made with it. It wants
        learning rates and an eps of its own, and adapters trained with it are read as any other.

    Raises TypeError or ValueError naming the argument, what was wanted and what was given.
    """

    d: int
    method: str = "said"
    seed: int = 0
    normalization: str = "global"
    groups: str | Callable[[str], Hashable] = "layer"
    projection: str = "fastfood"
    gradient: str = "exact"

    def __post_init__(self):
        for name in ("d", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            object.__setattr__(self, name, operator.index(value))
        if self.d < 1:
            raise ValueError(f"d must be at least 1, got {self.d}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and below 2**64, got {self.seed}")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            function = name == "groups" and callable(value)
            if not function and value not in allowed:
                wanted = " or ".join(repr(choice) for choice in allowed)
                wanted += " or a function of a parameter's name" if name == "groups" else ""
                raise ValueError(f"{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class Segment:
    """One trainable tensor, however many modules share it: its place among the rows of P, and its
    group and factor in the subspace of one adapter."""

    index: int
    name: str
    owners: list[tuple[nn.Module, str]]  # every attribute that refers to it
    shape: torch.Size
    start: int
    numel: int
    group: int = 0
    norm: float = 1.0

    @property
    def parameter(self) -> nn.Parameter:
        module, attribute = self.owners[0]
        return module._parameters[attribute]


def trainable(model: nn.Module) -> list[Segment]:
    """The trainable tensors in the order of P's rows; changes nothing."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, p in module._parameters.items():
            owners.setdefault(id(p), []).append((module, attribute))
    segments: list[Segment] = []
    start = 0
    for name, p in model.named_parameters():
        if p.requires_grad and p.numel():
            segments.append(Segment(len(segments), name, owners[id(p)], p.shape, start, p.numel()))
            start += p.numel()
    return segments


def lay_out(
    segments: list[Segment], config: SubspaceConfig
) -> tuple[list[Segment], list[Hashable]]:
    """The segments with their groups and factors in a subspace of `config`, and the groups' names.

    Raises ValueError if d is above D or, for SAID, not above m.
    """
    names = [segment.name for segment in segments]
    if config.groups == "layer":
        tables = {s.name for s in segments if any(_is_table(module) for module, _ in s.owners)}
        labels = _layers(names, tables)
    else:
        labels = names if config.groups == "tensor" else [config.groups(name) for name in names]
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    D = sum(segment.numel for segment in segments)
    if config.d > D:
        raise ValueError(f"d must be at most D = {D}, all that the model trains, got {config.d}")
    if config.method == "said" and config.d <= len(index):
        raise ValueError(f"d must be above m = {len(index)}, the groups of SAID, got {config.d}")
    by_tensor = config.normalization == "tensor"
    laid = [
        replace(s, group=index[label], norm=math.sqrt(D / s.numel) if by_tensor else 1.0)
        for s, label in zip(segments, labels, strict=True)
    ]
    return laid, list(index)


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _layers(names: list[str], tables: set[str]) -> list[str]:
    """Each name's numbered block, else "embeddings" or "head".

    Embeddings are tables, what is so named, and what comes before all blocks, but for a head that
    does: one in another top-level module than the blocks, where there are other embeddings.
    """
    blocks = [_BLOCK.match(name) for name in names]
    first = next((i for i, block in enumerate(blocks) if block), 0)
    named = [name in tables or "emb" in name.lower() for name in names]
    root = names[first].split(".")[0]
    stem = [name.split(".")[0] == root or not any(named) for name in names]
    return [
        block[0] if block else "embeddings" if named[i] or i < first and stem[i] else "head"
        for i, block in enumerate(blocks)
    ]


def check(model: nn.Module) -> None:
    """Raises if the model's trainable parameters cannot be laid into flat buffers."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("model must not be scripted: its code does not see replaced weights")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, p in named:
        what = "lazy" if nn.parameter.is_lazy(p) else p.device.type if p.is_meta else str(p.layout)
        if what != "torch.strided" or type(p.data) is not Tensor:
            raise ValueError(f"parameter {name} must be an ordinary dense tensor, got {what}")
        if p.dtype not in FLOATING:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise TypeError(f"parameter {name} must be one of {wanted}, got {p.dtype}")
    if not any(p.numel() for _, p in named):
        raise ValueError("model must have parameters that require gradients, got none")
    _check_overlap(model)


class Structure:
    """Where a model has its parameters, frozen ones included."""

    def __init__(self, model: nn.Module):
        self.places = self._find(model)
        self._dicts: list[dict] = []  # of all modules, what they refer to
        self._found: list[int] = []  # in these, at the last check

    @staticmethod
    def _find(model: nn.Module) -> dict[tuple[nn.Module, str], str]:
        """Every attribute that holds a parameter, and its name."""
        return {
            (module, attribute): f"{name}.{attribute}" if name else attribute
            for name, module in model.named_modules()
            for attribute, p in module._parameters.items()
            if p is not None
        }

    def check(self, model: nn.Module, segments: list[Segment]) -> None:
        """Raises RuntimeError if parameters are not where they were or not of their segments'
        shapes. Costs little where no module refers to another object than at the last check."""
        resized = [
            segment.name
            for segment in segments
            for module, attribute in segment.owners
            # what it shows, if that is a plain tensor
            for p in (module.__dict__.get(attribute), module._parameters.get(attribute))
            if (type(p) is Tensor or type(p) is nn.Parameter) and p.shape != segment.shape
        ]
        if self._dicts and self._found == self._now() and not resized:
            return
        found = self._find(model)
        names = {(found | self.places)[place] for place in found.keys() ^ self.places.keys()}
        names = names or set(resized)
        if names:
            raise RuntimeError(
                "parameters were added, replaced, resized or removed while the model was wrapped, "
                f"the first {min(names)}: do so before get_subspace_model or after unload()"
            )
        self._dicts = [d for m in model.modules() for d in (m._modules, m._parameters)]
        self._found = self._now()

    def _now(self) -> list[int]:
        return list(map(id, itertools.chain.from_iterable(map(dict.values, self._dicts))))

    def __getstate__(self):
        return self.__dict__ | {"_dicts": [], "_found": []}


def _check_overlap(model: nn.Module) -> None:
    """Raises if a trainable parameter shares memory with another tensor of the model."""
    spans = []
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(p) or p.layout != torch.strided or p.is_meta or not p.numel():
            continue
        reach = 1 + sum((n - 1) * stride for n, stride in zip(p.shape, p.stride(), strict=True))
        if p.requires_grad and reach < p.numel():
            raise ValueError(f"parameter {name} overlaps itself in memory (an expanded tensor)")
        end = p.data_ptr() + reach * p.element_size()
        spans.append((str(p.device), p.data_ptr(), end, name, p.requires_grad))
    spans.sort()
    before = spans[0]  # of those so far, the one that reaches furthest
    for span in spans[1:]:
        shared = span[0] == before[0] and span[1] < before[2]
        if shared and (span[4] or before[4]):
            raise ValueError(
                f"{before[3]} and {span[3]} overlap in memory without being one tensor: assign the "
                "same Parameter to both, or clone one"
            )
        before = before if shared and span[2] < before[2] else span
