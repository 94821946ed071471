"""Weights that exist only while operators use them, for models whose weights fit in memory just
once.

theta_0 stays where it is: in 16 bits, on the CPU, or mapped from a file. Modules see tensors
without data, and a torch function that gets one is called with the weight made for it, on the
device of the function's other arguments. Autograd saves where the weight comes from; a backward
makes each weight anew when its turn comes; its gradient goes through the adjoint and is freed.

Weights are made unit by unit (units.py). Where a weight is too large for a unit, the backward of
its linear layer makes it some rows at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .layout import Segment, SubspaceConfig
from .points import Origin, Point, without_autocast
from .torch_internals import (
    make_without_data,
    renew_recurrent,
    saved_tensors_hooks_around,
    tree_leaves,
    tree_map_only,
    without_torch_function,
)
from .units import Large, Member, Shelf, Unit, divided, parameters_of
from .weights import Holder, check_untouched, marks_of, recurrent, show, uncover

_PIECE = 1 << 22  # entries of a linear layer's weight that its backward makes at a time

# Queries that need no data, so the weight is not made for them.
_FACTS = {
    Tensor.dim,
    Tensor.element_size,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.numel,
    Tensor.size,
    Tensor.stride,
    *(
        getattr(Tensor, name).__get__
        for name in (
            "device dtype grad_fn is_cpu is_cuda is_leaf is_meta layout ndim requires_grad shape"
        ).split()
    ),
}


@dataclass
class Saved:
    """What autograd keeps of a weight that does not stay, or of a view of it."""

    source: Member | Large
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def make(self) -> Tensor:
        made = self.source.make(self.device)
        return made.as_strided(self.size, self.stride, self.offset)


class StreamedWeight(Tensor):
    """A weight without data: has its shape, dtype and device, and is made when it is used."""

    source: Member | Large

    @staticmethod
    def __new__(cls, source: Member | Large):
        like = source.segment.parameter
        weight = make_without_data(cls, like.shape, dtype=like.dtype, device=like.device)
        weight.source = source
        return weight

    def __repr__(self):
        return f"StreamedWeight({self.source.segment.name})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in _FACTS:
            with without_torch_function():
                return function(*args, **kwargs or {})
        use = _use
        if torch.compiler.is_compiling():  # making weights is no part of a compiled graph
            use = torch.compiler.disable(use)
        return use(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # a call from inside an autograd.Function: its gradient goes through this tensor's own node
        device = _device_of(args)

        def made(weight):
            return weight.source.make(device or weight.device)

        args, kwargs = tree_map_only(cls, made, (args, kwargs or {}))
        return function(*args, **kwargs)


def _use(function: Callable, args: tuple, kwargs: dict):
    """function(*args, **kwargs) with the weights that it needs."""
    if function is nn.functional.linear:
        return _linear(*args, **kwargs)
    used, device = {}, _device_of((*args, *kwargs.values()))

    def made(streamed):
        source = streamed.source
        weight = source.weight(device or streamed.device)
        if not source.stays:
            used[weight.untyped_storage().data_ptr()] = source
        return weight

    args = tuple([_replaced(x, made) for x in args])
    kwargs = {name: _replaced(x, made) for name, x in kwargs.items()}
    if not used:
        return function(*args, **kwargs)
    with saved_tensors_hooks(*_saving(used)):
        return function(*args, **kwargs)


def _replaced(x: Any, made: Callable):
    """An argument with weights in the place of those without data."""
    if type(x) is StreamedWeight:
        return made(x)
    return tree_map_only(StreamedWeight, made, x) if _may_hold_tensors(x) else x


def _may_hold_tensors(x: Any) -> bool:
    if isinstance(x, (tuple, list)):  # most are shapes
        return any(not isinstance(y, (int, float)) for y in x)
    return isinstance(x, dict)


def _device_of(arguments) -> torch.device | None:
    """The device of an operator, its weights apart: that of its other tensors, if it has any."""
    for x in arguments:
        inside = tree_leaves(x) if _may_hold_tensors(x) else [x]
        for x in inside:
            if isinstance(x, Tensor) and type(x) is not StreamedWeight and x.dim():
                return x.device
    return None


def _saving(used: dict[int, Member | Large]) -> tuple[Callable, Callable]:
    """Hooks by which autograd saves of a weight where it comes from. All other tensors go on to the
    hooks around, such as those of gradient checkpointing."""
    around = saved_tensors_hooks_around()
    keep, give = around or (lambda x: (x, x._version), _unless_written)

    def pack(x):
        source = used.get(x.untyped_storage().data_ptr()) if x.layout == torch.strided else None
        if source is None or x.dtype != source.segment.parameter.dtype:
            return (keep(x),)
        return Saved(source, x.device, x.size(), x.stride(), x.storage_offset())

    def unpack(kept):
        return kept.make() if isinstance(kept, Saved) else give(kept[0])

    return pack, unpack


def _unless_written(kept: tuple[Tensor, int]) -> Tensor:
    x, version = kept
    if x._version != version:
        raise RuntimeError(
            "a variable needed for gradient computation has been modified by an inplace operation: "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )
    return x


def _linear(input, weight, bias=None) -> Tensor:
    """nn.functional.linear with a streamed weight or bias, or both."""
    device = _device_of((input, weight, bias)) or weight.device

    def made(streamed):
        return streamed.source.weight(device)

    x, bias = _replaced(input, made), _replaced(bias, made)
    source = getattr(weight, "source", None)
    if source is None or source.stays or len(source.segment.shape) != 2:
        return nn.functional.linear(x, _replaced(weight, made), bias)
    dtype, kind = source.segment.parameter.dtype, device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
    if isinstance(source, Member):
        return Linear.apply(x, source.weight(device), bias, source, dtype)
    return LargeLinear.apply(x, bias, source, dtype, *source.origin.rows(source.segment))


class Linear(torch.autograd.Function):
    """y = x W^T + b with a unit's weight, which is not saved."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: Member,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.source, ctx.dtype = source, dtype
        ctx.save_for_backward(x)
        return nn.functional.linear(x, weight.to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        needs, (x,) = ctx.needs_input_grad, ctx.saved_tensors
        flat_gy, gx, gw, gb = gy.reshape(-1, gy.shape[-1]), None, None, None
        with without_autocast(gy.device.type):
            if needs[0]:
                gx = gy @ ctx.source.weight(x.device).to(ctx.dtype)
            if needs[1]:
                gw = flat_gy.T @ x.reshape(-1, x.shape[-1])
            if needs[2]:
                gb = flat_gy.sum(0)
        return gx, gw, gb, None, None


class LargeLinear(torch.autograd.Function):
    """y = x W^T + b, with W made whole in the forward and by rows in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, source: Large, dtype: torch.dtype, *rows: Tensor
    ) -> Tensor:
        ctx.source, ctx.dtype, ctx.like = source, dtype, rows[0]
        ctx.save_for_backward(x)
        return nn.functional.linear(x, source.make(x.device).to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(gy.device.type):
            return LargeLinear._backward(ctx, gy)

    @staticmethod
    def _backward(ctx, gy):
        source, like, needs, (x,) = ctx.source, ctx.like, ctx.needs_input_grad, ctx.saved_tensors
        adapter = source.origin.point.adapter
        projection, segment = adapter.projection, source.segment
        [group] = adapter.groups([segment])
        height, width = segment.shape
        step = max(1, max(_PIECE, 8 * projection.d) // width)
        again = torch.is_grad_enabled()  # with create_graph this backward is differentiated
        if again:
            step = height
        flat_x, flat_gy = x.reshape(-1, width), gy.reshape(-1, height)
        gx, z = None, None
        for first in range(0, height, step):
            stop = min(first + step, height)
            part = flat_gy[:, first:stop]
            if needs[0]:
                made = source.weight(x.device) if again else source.make(x.device, first, stop)
                more = part @ made.to(ctx.dtype)
                del made
                gx = more if gx is None else gx.to(like.dtype) + more
            if any(needs[4:]):
                gs, starts = [part.T @ flat_x], [segment.start + first * width]
                more = projection.spread_gradient(gs, starts, group.factors, like)
                del gs
                z = more if z is None else z + more
        rows = [z, z][: len(needs) - 4]
        if source.origin.point.released and z is not None:
            rows[0] = group.released_factors[0] / group.factors[0] * z
        gx = gx.to(x.dtype).view(x.shape) if needs[0] else None
        return gx, flat_gy.sum(0) if needs[1] else None, None, None, *rows


class Streamed(Holder):
    """Weights that are made when they are used."""

    exist = False

    def __init__(self, base_model: nn.Module, segments: list[Segment]):
        self.base_model, self.segments = base_model, segments
        self.recurrent = recurrent(base_model)
        self.small, self.units, self.large = divided(segments)
        self.marks: list | None = None

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Raises ValueError if the projection cannot be made in parts."""
        if config.projection == "one-block":
            raise ValueError("projection: wanted one made in parts if streamed, got 'one-block'")

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The tensors of theta_0, which the parameters hold at all times."""
        return ((segment, segment.parameter.detach()) for segment in self.segments)

    def _sources(self, origin: Origin) -> list[Member | Large]:
        """Where the weights at a point come from, by the segments' index."""
        sources: dict[int, Member | Large] = {}
        shelf = Shelf()
        for stays, parts in ((True, self.small), (False, self.units)):
            for segments in parts:
                unit = Unit(segments, origin, Shelf() if stays else shelf)
                for place, segment in enumerate(segments):
                    sources[segment.index] = Member(segment, unit, place, stays)
        for segment in self.large:
            sources[segment.index] = Large(segment, origin, shelf, marks_of([segment]))
        return [sources[segment.index] for segment in self.segments]

    def write(self, point: Point | None) -> None:
        """Makes modules see weights that will be made at the point, or theta_0 if it is None.

        Raises RuntimeError if the parameters were moved, converted or written by others.
        """
        marks = marks_of(self.segments)
        check_untouched(marks if self.marks is None else self.marks, marks)
        self.marks = marks
        if point is None:
            uncover(self.segments)
        else:
            origin = Origin(point)
            weights = [StreamedWeight(source) for source in self._sources(origin)]
            show(self.segments, origin.attach(self.segments, weights))
        renew_recurrent(self.recurrent)

    def release(self, point: Point | None) -> None:
        """Lets modules see their parameters, with the weights at the point in memory of their own,
        or theta_0 if it is None."""
        alone = [[segment] for segment in self.large]
        if point is not None:
            for segments in [*self.small, *self.units, *alone]:
                made = point.perturbed(segments, parameters_of(segments, None))
                for segment, weight in zip(segments, made, strict=True):
                    segment.parameter.data = weight
        uncover(self.segments)
        renew_recurrent(self.recurrent)
        self.marks = None

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Applies fn, as of .to(), to the weights; release() comes first."""
        self.base_model._apply(fn)
