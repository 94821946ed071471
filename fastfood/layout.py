"""What a subspace is laid over: its settings, and the trainable tensors of a model in the order of
P's rows, each with its group.

The D trainable numbers are in the order of named_parameters(), tied tensors once. The tensors of a
group share one scale of SAID. Nothing here changes a model.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Hashable, Sequence
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

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")  # a name up to its first component of digits


@dataclass(frozen=True)
class SubspaceConfig:
    """What is trained, and in which subspace; together with the base model it determines P.
    Equations 2 (DID) and 3 (SAID) of Aghajanyan et al., ACL 2021.

    d: how many numbers are trained in all, 1 <= d <= D. SAID spends m of them on lambda_.
    method: "said" (a scale per group beside theta) or "did" (theta alone).
    seed: of the projection, 0 <= seed < 2**64.
    normalization: "global", columns of P of unit length over all D rows, or "tensor", within each
        tensor's rows (a factor sqrt(D / D_t), as in the code of the paper's authors).
    groups: which tensors share a scale: "layer" (each numbered block, the embeddings, the head),
        "tensor" (none), or a function from a parameter's name to its group's name, anything
        hashable. DID does not depend on it.
    projection: "fastfood", "one-block" (the same with a single block of 2^ceil(log2 D) rows),
        "dense" or "sparse".
    gradient: "exact", or "released": the contribution of tensor t to theta's gradient is multiplied
        by 1 / 2^ceil(log2 D_t). This is not the gradient: even its direction differs. The code
        that the paper's authors released trains with it, and it is kept to reproduce numbers made
        with that code. It wants learning rates and an eps of its own; adapters trained with it are
        read as any other.

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
                raise TypeError(f"{name}: wanted an integer, got {value!r}")
            object.__setattr__(self, name, operator.index(value))
        if self.d < 1:
            raise ValueError(f"d: wanted at least 1, got {self.d}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: wanted at least 0 and below 2**64, got {self.seed}")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            function = name == "groups" and callable(value)
            if not function and value not in allowed:
                wanted = " or ".join(repr(choice) for choice in allowed)
                wanted += " or a function of a parameter's name" if name == "groups" else ""
                raise ValueError(f"{name}: wanted {wanted}, got {value!r}")


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
        parameter = module._parameters[attribute]
        assert parameter is not None
        return parameter


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
    labels: Sequence[Hashable] = names
    if callable(config.groups):
        labels = [config.groups(name) for name in names]
    elif config.groups == "layer":
        tables = {s.name for s in segments if any(_is_table(module) for module, _ in s.owners)}
        labels = _layers(names, tables)
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    D = sum(segment.numel for segment in segments)
    if config.d > D:
        raise ValueError(f"d: wanted at most D = {D}, all that the model trains, got {config.d}")
    if config.method == "said" and config.d <= len(index):
        m = len(index)
        raise ValueError(f"d: wanted more than m = {m}, the groups of SAID, got {config.d}")
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

    A name outside every numbered block is "embeddings" if it is one of `tables`, contains "emb", or
    precedes the first block inside the blocks' own top-level module; otherwise "head". If no name
    is an embedding by type or name, every name before the first block is.
    """
    blocks = [_BLOCK.match(name) for name in names]
    first = next((i for i, block in enumerate(blocks) if block), 0)
    embeds = [name in tables or "emb" in name.lower() for name in names]
    top = names[first].split(".")[0]

    def label(i: int, name: str) -> str:
        if block := blocks[i]:
            return block[0]
        precedes = i < first and (name.split(".")[0] == top or not any(embeds))
        return "embeddings" if embeds[i] or precedes else "head"

    return [label(i, name) for i, name in enumerate(names)]


def check(model: nn.Module) -> None:
    """Raises if the model's trainable parameters cannot be laid into flat buffers."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("model: wanted plain modules, got scripted ones, which see no new weights")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, p in named:
        what = "lazy" if nn.parameter.is_lazy(p) else p.device.type if p.is_meta else str(p.layout)
        if what != "torch.strided" or type(p.data) is not Tensor:
            raise ValueError(f"parameter {name}: wanted an ordinary dense tensor, got {what}")
        if p.dtype not in FLOATING:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise TypeError(f"parameter {name}: wanted one of {wanted}, got {p.dtype}")
    if not any(p.numel() for _, p in named):
        raise ValueError("model: wanted parameters that require gradients, got none")
    _check_overlap(model)


class Structure:
    """Where a model has its parameters, frozen ones included."""

    def __init__(self, model: nn.Module):
        self.places = self._find(model)
        self._dicts: list[dict] = []  # the tables of submodules and parameters of every module
        self._found: list[int] = []  # the ids of the objects in these tables at the last check

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
        shapes. It is cheap as long as modules refer to the same objects as at the last check."""
        resized = [
            segment.name
            for segment in segments
            for module, attribute in segment.owners
            # both the weight that a module shows and the parameter that this hides
            for p in (module.__dict__.get(attribute), module._parameters.get(attribute))
            if (type(p) is Tensor or type(p) is nn.Parameter) and p.shape != segment.shape
        ]
        if self._dicts and self._found == self._now() and not resized:
            return
        now = self._find(model)
        names = {(now | self.places)[place] for place in now.keys() ^ self.places.keys()}
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
    before = spans[0]  # the span so far that reaches furthest
    for span in spans[1:]:
        shared = span[0] == before[0] and span[1] < before[2]
        if shared and (span[4] or before[4]):
            raise ValueError(
                f"{before[3]} and {span[3]} overlap in memory without being one tensor: assign the "
                "same Parameter to both, or clone one"
            )
        before = before if shared and span[2] < before[2] else span
