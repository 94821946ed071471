"""Fine-tuning inside a random subspace: DID and SAID (Aghajanyan et al., 2021) over any nn.Module.

All D trainable numbers of a model become theta_D = theta_0 + lambda * (P theta): equations 2 and 3
of the paper. They lie in a flat buffer that is rewritten when theta has changed, so once for each
optimizer step. Modules see their weights as outputs of one autograd node per group, views of that
buffer; the node's backward applies the adjoint of P to its own rows, so gradients of size D go when
they come. theta and lambda_ are ordinary leaves for optimizers, clipping and checkpoints.
"""

import functools
import itertools
import math
import operator
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .projection import Dense, Fastfood, Sparse

PROJECTIONS = {"fastfood": Fastfood, "dense": Dense, "sparse": Sparse}
CHOICES = {
    "method": ("said", "did"),
    "normalization": ("global", "tensor"),
    "groups": ("layer", "tensor"),
    "projection": tuple(PROJECTIONS),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")  # a name up to its first all-digit component
_ALONE = 1 << 20  # rows from which a gradient goes through the adjoint without being gathered first


@dataclass(frozen=True)
class SubspaceConfig:
    """What is trained, and in which subspace; together with the base model it determines P.

    d: how many numbers are trained in all, 1 <= d <= D. SAID spends m of them on lambda_.
    method: "said" (a scale per group beside theta) or "did" (theta alone).
    seed: of the projection, 0 <= seed < 2**64.
    normalization: "global", columns of P of unit length over all D rows, or "tensor", within each
        tensor's rows (a factor sqrt(D / D_t), as in the code of the paper's authors).
    groups: what shares a scale: "layer" (each numbered block, the embeddings, the head), "tensor",
        or a function from a parameter's name to anything hashable. DID does not depend on it.
    projection: "fastfood", "dense" or "sparse".

    Raises TypeError or ValueError naming the argument, what was wanted and what was given.
    """

    d: int
    method: str = "said"
    seed: int = 0
    normalization: str = "global"
    groups: str | Callable[[str], Hashable] = "layer"
    projection: str = "fastfood"

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


@dataclass
class _Segment:
    """One trainable tensor, however many modules share it: its place among the rows of P."""

    name: str
    owners: list[tuple[nn.Module, str]]  # every attribute that refers to it
    shape: torch.Size
    start: int
    numel: int
    group: int
    norm: float

    @property
    def parameter(self) -> nn.Parameter:
        module, attribute = self.owners[0]
        return module._parameters[attribute]


@dataclass
class _Run:
    """Consecutive segments of one dtype and device: theta_0 and, once written, theta_D."""

    segments: list[_Segment]
    base: Tensor
    current: Tensor | None = None
    marks: list | None = None  # state() after the last write
    layout: tuple[Tensor, Tensor, Tensor] | None = None  # offsets, norms and groups of the segments

    def view(self, flat: Tensor, segment: _Segment) -> Tensor:
        first = segment.start - self.segments[0].start
        return flat[first : first + segment.numel].view(segment.shape)

    def state(self) -> list:
        """Where the weights lie and how often they were written: tells when somebody else did."""
        parameters = [
            module._parameters.get(attribute)
            for segment in self.segments
            for module, attribute in segment.owners
        ]
        marks = [p if p is None else (p.data_ptr(), p._version) for p in parameters]
        return [self.current._version, *marks]

    def write(self, projection, theta: Tensor, lambda_: Tensor | None) -> None:
        """current = base + lambda * norm * (P theta), where the parameters lie from then on."""
        device, dtype = self.base.device, self.base.dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        start = self.segments[0].start
        if self.current is not None:
            untouched = self.state() == self.marks
        else:
            kinds = {(s.parameter.dtype, s.parameter.device) for s in self.segments}
            untouched = kinds == {(dtype, device)}
        if not untouched:
            raise RuntimeError(
                "base_model's weights were moved, converted or written while it was wrapped: call "
                ".to() and the like on the SubspaceModel, and load weights before its first "
                "forward or after unload()"
            )
        if self.current is None:
            ends = [s.start + s.numel - start for s in self.segments]
            self.layout = (
                torch.tensor([0, *ends], device=device),
                torch.tensor([s.norm for s in self.segments], dtype=wide, device=device),
                torch.tensor([s.group for s in self.segments], device=device),
            )
            for segment in self.segments:  # frees their memory before more is taken
                segment.parameter.data = self.view(self.base, segment)
            self.current = torch.empty_like(self.base)
            for segment in self.segments:
                segment.parameter.data = self.view(self.current, segment)
        offsets, scales, groups = self.layout
        if lambda_ is not None:
            scales = scales * lambda_.to(scales)[groups]
        projection.perturb_(self.current, self.base, theta.to(scales), offsets, scales, start)


@dataclass
class _Node:
    """What one group's autograd node needs besides its inputs."""

    projection: Fastfood | Dense | Sparse
    group: int
    places: list[tuple[_Run, _Segment]]
    leaves: list[Tensor]
    values: list[Tensor]  # of theta and, for SAID, lambda_: what the weights were made from
    versions: list[int]

    def coordinates(self) -> list[Tensor]:
        """theta and, for SAID, lambda_, in a form to compute gradients from."""
        if not torch.is_grad_enabled():
            return self.values
        if self.versions != [p._version for p in self.leaves]:
            raise RuntimeError("theta or lambda_ was changed before a backward with create_graph")
        return self.leaves

    def gradients(self, grads: tuple[Tensor | None, ...]) -> Iterator[tuple[int, float, Tensor]]:
        """(first row, factor, flat gradient): absent ones are zero, neighbours go together."""
        alone_from = max(_ALONE, 8 * self.projection.d)
        gathered, start, stop, home = [], 0, 0, None
        for (run, segment), grad in zip(self.places, grads, strict=True):
            if grad is None:
                continue
            grad = grad.to_dense().reshape(-1)
            if segment.numel >= alone_from:  # copying it would cost more than a call of its own
                yield segment.start, segment.norm, grad
                continue
            if gathered and (segment.start != stop or run is not home):
                yield start, 1.0, torch.cat(gathered)
                gathered = []
            if not gathered:
                start, home = segment.start, run
            gathered.append(
                grad if segment.norm == 1 else grad.to(self.values[0].dtype) * segment.norm
            )
            stop = segment.start + segment.numel
        if gathered:
            yield start, 1.0, torch.cat(gathered)


class _Weights(torch.autograd.Function):
    """(theta, lambda_) -> one group's weights, as views of the flat buffers; nothing is computed.

    The adjoint needs no projection: <(P theta)_g, w> = <theta, P_g^T w>, so a = P_g^T w gives both
    gradients. Nothing is saved in autograd's sense, so one node serves any number of backwards.
    """

    @staticmethod
    def forward(ctx, theta, lambda_, node):
        ctx.set_materialize_grads(False)
        ctx.node = node
        # detach shares the buffer's version counter: a backward after the next write is an error
        return tuple(run.view(run.current, segment).detach() for run, segment in node.places)

    @staticmethod
    def backward(ctx, *grads):
        node = ctx.node
        theta, *lambda_ = node.coordinates()
        a = torch.zeros_like(theta)
        with torch.autocast(a.device.type, enabled=False):
            for start, factor, grad in node.gradients(grads):
                a = a + factor * node.projection.rows_adjoint(grad, start).to(a)
        if not lambda_:
            return a, None, None
        scales = lambda_[0]
        scales_grad = torch.zeros_like(scales)
        scales_grad[node.group] = torch.dot(theta, a)
        return scales[node.group] * a, scales_grad, None


class SubspaceModel(nn.Module):
    """A model whose trainable weights are theta_0 + lambda * (P theta); call it as the model.

    theta: (d - m,) for SAID or (d,) for DID, zeros at first. lambda_: (m,), ones at first, or None
    for DID. They are float64 beside a float64 weight, else float32. They are all that trains and
    all that state_dict() holds. theta_0 is read at the first forward, so weights may be loaded or
    broadcast until then; it has to be the same in all processes of a distributed training.

    While wrapped, base_model's own parameters do not require gradients and show the current
    weights. Convert and move the wrapper, not the base model. Gradients of any order are right.
    Attributes that the wrapper lacks (config, generate, device, ...) are the base model's.
    """

    def __init__(self, model: nn.Module, config: SubspaceConfig):
        segments, group_names = _lay_out(model, config)
        D = sum(segment.numel for segment in segments)
        m = len(group_names) if config.method == "said" else 0
        if config.d > D:
            raise ValueError(
                f"d must be at most D = {D}, all that the model trains, got {config.d}"
            )
        if config.d <= m:
            raise ValueError(f"d must be above m = {m}, the groups of SAID, got {config.d}")
        super().__init__()
        wide = any(segment.parameter.dtype == torch.float64 for segment in segments)
        options = {
            "dtype": torch.float64 if wide else torch.float32,
            "device": segments[0].parameter.device,
        }
        self.base_model = model
        self.theta = nn.Parameter(torch.zeros(config.d - m, **options))
        self.register_parameter("lambda_", nn.Parameter(torch.ones(m, **options)) if m else None)
        self.subspace_config = config
        self.projection = PROJECTIONS[config.projection](config.d - m, D, seed=config.seed)
        self.group_names = group_names
        self.training = model.training
        self._segments = segments
        self._runs: list[_Run] | None = None
        self.base_hash: str | None = None  # of theta_0 and what surrounds it, once adapter needs it
        self._written = None  # leaves, their stamp and their values, as of the last write
        for segment in segments:
            segment.parameter.requires_grad_(False)
        # encoders and heads are also called on their own (generate), numbered blocks are not
        self._hooks = [
            module.register_forward_pre_hook(self._before_forward)
            for name, module in model.named_modules()
            if not any(part.isdigit() for part in name.split("."))
        ]
        self.register_load_state_dict_post_hook(_allow_missing_base)

    def forward(self, *args, **kwargs):
        """The base model's forward."""
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "_modules" not in self.__dict__:
                raise
            if "base_model" not in self._modules:
                message = f"{name}: the base model was taken out by unload or merge_and_unload"
                raise AttributeError(message) from None
            return getattr(self._modules["base_model"], name)

    def extra_repr(self) -> str:
        config = self.subspace_config
        return f"{config.method}, d={config.d}, D={self.projection.D}, seed={config.seed}"

    # Writing the weights

    def _before_forward(self, module, args):
        check = self._refresh_if_changed
        if torch.compiler.is_compiling():  # writing the weights is no part of a compiled graph
            check = torch.compiler.disable(check)
        check(module is self.base_model)

    def _refresh_if_changed(self, thorough: bool) -> None:
        leaves, stamp, values = self._written or (None, None, None)
        if stamp == self._stamp() and (
            not thorough
            # some optimizers write through .data, which leaves the version counter as it was
            or all(torch.equal(p, value) for p, value in zip(leaves, values, strict=True))
        ):
            return
        self.refresh()

    def _leaves(self) -> list[nn.Parameter]:
        return [self.theta] if self.lambda_ is None else [self.theta, self.lambda_]

    def _stamp(self) -> list:
        return [(id(p), p.data_ptr(), p._version, p.requires_grad) for p in self._leaves()]

    def refresh(self) -> None:
        """Writes theta_0 + lambda * (P theta) into the weights, one projection per run of a dtype.

        A forward does it if theta or lambda_ changed; call it to read base_model's weights.
        Raises RuntimeError if base_model's weights were moved, converted or written by others.
        """
        # a forward may run under no_grad, inference_mode or autocast
        with torch.inference_mode(False), torch.autocast(self.theta.device.type, enabled=False):
            leaves = self._leaves()
            values = [p.detach().clone() for p in leaves]
            theta, lambda_ = values if len(values) == 2 else (values[0], None)
            with torch.no_grad():
                for run in self.theta_0():
                    run.write(self.projection, theta, lambda_)
            with torch.enable_grad():
                self._attach(leaves, values)
        for run in self._runs:
            run.marks = run.state()
        self._written = leaves, self._stamp(), values

    def theta_0(self) -> list[_Run]:
        """The runs of theta_0, which is what the parameters hold when this is first called."""
        if self._runs is None:
            kinds = itertools.groupby(
                self._segments, lambda s: (s.parameter.dtype, s.parameter.device)
            )
            self._runs = [
                _Run(run, torch.cat([s.parameter.detach().reshape(-1) for s in run]))
                for run in (list(segments) for _, segments in kinds)
            ]
        return self._runs

    def _attach(self, leaves: list[Tensor], values: list[Tensor]) -> None:
        """Lays new autograd nodes over the weights: instance attributes hide the parameters."""
        versions = [p._version for p in leaves]
        groups = [[] for _ in self.group_names]
        for run in self._runs:
            for segment in run.segments:
                groups[segment.group].append((run, segment))
        for group, places in enumerate(groups):
            node = _Node(self.projection, group, places, leaves, values, versions)
            weights = _Weights.apply(self.theta, self.lambda_, node)
            for (_, segment), weight in zip(places, weights, strict=True):
                for module, attribute in segment.owners:
                    module.__dict__[attribute] = weight
        for module in self._recurrent():
            # not by its own method: cuDNN's flattening would take them out of the flat buffer
            weights = [getattr(module, name, None) for name in module._flat_weights_names]
            module._flat_weights = weights
            module._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]

    def _recurrent(self) -> list[nn.RNNBase]:
        return [module for module in self.base_model.modules() if isinstance(module, nn.RNNBase)]

    def _detach(self, merged: bool = True) -> None:
        """Uncovers the parameters and gives them memory of their own with theta_D or theta_0."""
        for run in self._runs or []:
            if run.current is None:
                continue
            for segment in run.segments:
                for module, attribute in segment.owners:
                    module.__dict__.pop(attribute, None)
                flat = run.current if merged else run.base
                segment.parameter.data = run.view(flat, segment).clone()
            run.current = run.marks = run.layout = None
        self._written = None
        for module in self._recurrent():
            module._init_flat_weights()

    def _apply(self, fn, recurse=True):
        self._detach()

        def wide(t):  # theta and lambda_ stay so beside 16-bit weights
            new = fn(t)
            return t.to(new.device) if new.dtype in (torch.float16, torch.bfloat16) else new

        if recurse:
            self.base_model._apply(fn)
        for run in self._runs or []:
            run.base = fn(run.base)
        self.base_hash = None
        return super()._apply(wide, recurse=False)

    def _replicate_for_data_parallel(self):
        raise RuntimeError("DataParallel cannot copy a SubspaceModel: use DistributedDataParallel")

    def __getstate__(self):
        self._detach()  # autograd's views can be neither copied nor pickled
        return self.__dict__.copy()

    def __reduce__(self):
        return _blank, (type(self.base_model),), self.__getstate__()

    # What is trained, kept and taken out

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        """theta and lambda_ alone: the base model has a checkpoint of its own."""
        destination = OrderedDict() if destination is None else destination
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    def print_trainable_parameters(self) -> None:
        """Prints how many numbers train, out of how many, and the groups with their sizes."""
        sizes = [0] * len(self.group_names)
        for segment in self._segments:
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

    def merge_and_unload(self) -> nn.Module:
        """The base model with plain parameters that hold theta_D, trainable as before wrapping."""
        self.refresh()
        return self._take_out(merged=True)

    def unload(self) -> nn.Module:
        """The base model as it was before wrapping, with theta_0."""
        return self._take_out(merged=False)

    def _take_out(self, merged: bool) -> nn.Module:
        self._detach(merged)
        for segment in self._segments:
            segment.parameter.requires_grad_(True)
        for hook in self._hooks:
            hook.remove()
        model = self.base_model
        del self.base_model
        return model

    def save_pretrained(self, folder, dtype: torch.dtype = torch.float32):
        """Writes folder/adapter.safetensors and returns its path: adapter.save."""
        from . import adapter

        return adapter.save(self, folder, dtype)

    @staticmethod
    def from_pretrained(base_model: nn.Module, path, groups=None) -> "SubspaceModel":
        """base_model wrapped as save_pretrained left it: adapter.load."""
        from . import adapter

        return adapter.load(base_model, path, groups)


def get_subspace_model(model: nn.Module, config: SubspaceConfig) -> SubspaceModel:
    """Puts all trainable parameters of `model` into a random subspace of config.d dimensions.

    model: any nn.Module; its parameters with requires_grad, float32, float64, bfloat16 or float16,
    become theta_0 in named_parameters() order, tied ones once. It is changed in place and comes
    back from merge_and_unload() or unload(). Eq. 2 (DID) and 3 (SAID) of Aghajanyan et al., 2021.

    Raises TypeError or ValueError before anything is changed: d above D or, for SAID, not above m;
    nothing to train; sparse, meta, lazy or integer parameters; parameters that overlap in memory
    without being one; a model that is already wrapped.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(config, SubspaceConfig):
        raise TypeError(f"config must be a SubspaceConfig, got {type(config).__name__}")
    _check(model)
    return _class_over(type(model))(model, config)


@functools.cache
def _class_over(base: type) -> type:
    """SubspaceModel with base's name and forward signature, which transformers.Trainer reads."""

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    forward.__wrapped__, forward.__doc__ = base.forward, base.forward.__doc__
    return type(f"Subspace{base.__name__}", (SubspaceModel,), {"forward": forward})


def _blank(base: type) -> SubspaceModel:
    cls = _class_over(base)
    return cls.__new__(cls)


def _allow_missing_base(model: SubspaceModel, incompatible) -> None:
    """A load_state_dict hook: a checkpoint of a SubspaceModel holds none of the base's weights."""
    keys = [key for key in incompatible.missing_keys if "base_model" not in key.split(".")]
    incompatible.missing_keys[:] = keys


def _lay_out(model: nn.Module, config: SubspaceConfig) -> tuple[list[_Segment], list[Hashable]]:
    """The trainable tensors in the order of P's rows, and the groups' names; changes nothing."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    owners = {}
    for module in model.modules():
        for attribute, p in module._parameters.items():
            owners.setdefault(id(p), []).append((module, attribute))
    names = [name for name, _ in named]
    if config.groups == "layer":
        labels = _layers(names)
    else:
        labels = names if config.groups == "tensor" else [config.groups(name) for name in names]
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    D = sum(p.numel() for _, p in named)
    segments, start = [], 0
    for (name, p), label in zip(named, labels, strict=True):
        n = p.numel()
        norm = math.sqrt(D / n) if config.normalization == "tensor" else 1.0
        segments.append(_Segment(name, owners[id(p)], p.shape, start, n, index[label], norm))
        start += n
    return segments, list(index)


def _layers(names: list[str]) -> list[str]:
    """Each name's numbered block, else "embeddings" (before all blocks or so named) or "head"."""
    blocks = [_BLOCK.match(name) for name in names]
    first = next((i for i, block in enumerate(blocks) if block), 0)
    return [
        block[0] if block else "embeddings" if i < first or "emb" in name.lower() else "head"
        for i, (name, block) in enumerate(zip(names, blocks, strict=True))
    ]


def _check(model: nn.Module) -> None:
    """Raises if the model's trainable parameters cannot be laid into flat buffers."""
    for module in model.modules():
        hooks = module._forward_pre_hooks.values()
        holders = [module, *(getattr(hook, "__self__", None) for hook in hooks)]
        if any(isinstance(holder, SubspaceModel) for holder in holders):
            raise ValueError("model is wrapped in a SubspaceModel already: unload() it first")
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError("model must not be scripted: its code does not see replaced weights")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, p in named:
        what = "lazy" if nn.parameter.is_lazy(p) else p.device.type if p.is_meta else str(p.layout)
        if what != "torch.strided" or type(p.data) is not Tensor:
            raise ValueError(f"parameter {name} must be an ordinary dense tensor, got {what}")
        if p.dtype not in DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"parameter {name} must be one of {wanted}, got {p.dtype}")
    if not any(p.numel() for _, p in named):
        raise ValueError("model must have parameters that require gradients, got none")
    _check_overlap(model)


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
