"""Weights that exist only while an operator uses them, for models whose weights fit in memory just
once.

theta_0 stays where it is: in 16 bits, on the CPU, or mapped from a file. Modules see tensors
without data, and a torch function that gets one is called with the weight made for this call, on
the device of the function's other arguments. What
autograd saves of it is its place; a backward makes each weight anew when its turn comes, and its
gradient goes through the adjoint and is freed at once. Beside theta_0 there is never more than the
weights of one operator; the backward of a linear layer takes them some million entries at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map_only

from .layout import Segment, SubspaceConfig
from .weights import (
    Point,
    Run,
    attach,
    check_untouched,
    marks_of,
    renew_recurrent,
    show,
    uncover,
)

# answered by the tensor without data
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


_PIECE = 1 << 22  # entries of a linear layer's weight that its backward makes at a time


@contextmanager
def _unrecorded(point: Point):
    device = point.values[0].device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield


@dataclass
class Source:
    """What a weight is made from."""

    run: Run  # of one segment
    point: Point

    @property
    def segment(self) -> Segment:
        return self.run.segments[0]

    def make(self, device: torch.device) -> Tensor:
        """The weight as a new flat tensor on the device."""
        with _unrecorded(self.point):
            flat = self.run.gather().to(device)
            self.run.perturb_(flat, flat, self.point)
        return flat

    def make_rows(self, first: int, out: Tensor) -> Tensor:
        """Rows [first, first + len(out)) of a matrix, written to out."""
        width = self.segment.shape[-1]
        with _unrecorded(self.point):
            out.copy_(self.segment.parameter.detach()[first : first + len(out)])
            self.run.perturb_(out.view(-1), out.view(-1), self.point, first * width)
        return out

    def weight(self, device: torch.device) -> Tensor:
        """The weight on the device as a function of theta and lambda_."""
        made = self.make(device).view(self.segment.shape)
        return attach(self.point, self.run.segments, lambda _: made)[0]


@dataclass
class Saved:
    """A weight, or a view of it, as autograd keeps it."""

    source: Source
    marks: list
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def make(self) -> Tensor:
        check_untouched(self.marks, marks_of(self.source.run.segments))
        flat = self.source.make(self.device)
        return flat.as_strided(self.size, self.stride, self.offset)


class StreamedWeight(Tensor):
    """A weight without data: has its shape, dtype and device, and is made when it is used."""

    @staticmethod
    def __new__(cls, source: Source):
        like = source.segment.parameter
        weight = Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device
        )
        weight.source = source
        return weight

    def __repr__(self):
        return f"StreamedWeight({self.source.segment.name})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs or {})
        use = _use
        if torch.compiler.is_compiling():  # making weights is no part of a compiled graph
            use = torch.compiler.disable(use)
        return use(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # from inside an autograd.Function: the gradient goes through the node of the tensor itself
        device = _device_of(args)

        def made(weight):
            return weight.source.make(device or weight.device).view(weight.source.segment.shape)

        args, kwargs = tree_map_only(cls, made, (args, kwargs or {}))
        return function(*args, **kwargs)


def _use(function: Callable, args: tuple, kwargs: dict):
    """function(*args, **kwargs) with the weights that it needs."""
    used, device = {}, _device_of((args, kwargs))

    def made(streamed):
        weight = streamed.source.weight(device or streamed.device)
        used[weight.untyped_storage().data_ptr()] = streamed.source
        return weight

    if function is nn.functional.linear:
        return _linear(made, *args, **kwargs)
    args, kwargs = tree_map_only(StreamedWeight, made, (args, kwargs))
    with saved_tensors_hooks(*_saving(used)):
        return function(*args, **kwargs)


def _device_of(args) -> torch.device | None:
    """Where an operator runs whose weights may lie elsewhere: where its other tensors are."""
    tensors = (x for x in tree_leaves(args) if isinstance(x, Tensor))
    return next((x.device for x in tensors if type(x) is not StreamedWeight and x.dim()), None)


def _saving(used: dict[int, Source]) -> tuple[Callable, Callable]:
    """Hooks for what autograd saves: of weights their place; all else goes on to the hooks around,
    which may be those of gradient checkpointing."""
    around = torch._C._autograd._top_saved_tensors_default_hooks(True)
    keep, give = around or (lambda x: (x, x._version), _unless_written)

    def pack(x):
        source = used.get(x.untyped_storage().data_ptr()) if x.layout == torch.strided else None
        if source is None or x.dtype != source.segment.parameter.dtype:
            return (keep(x),)
        marks = marks_of(source.run.segments)
        return Saved(source, marks, x.device, x.size(), x.stride(), x.storage_offset())

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


def _linear(made: Callable, input, weight, bias=None) -> Tensor:
    """nn.functional.linear with a streamed weight or bias, or both."""
    x, bias = tree_map_only(StreamedWeight, made, (input, bias))
    if not isinstance(weight, StreamedWeight) or weight.dim() != 2:
        return nn.functional.linear(x, tree_map_only(StreamedWeight, made, weight), bias)
    dtype, kind = weight.dtype, x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
    theta, lambda_ = (*weight.source.point.leaves, None)[:2]
    return Linear.apply(x, bias, theta, lambda_, weight.source, dtype)


class Linear(torch.autograd.Function):
    """y = x W^T + b, with W made whole in the forward and by rows in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        theta: Tensor,
        lambda_: Tensor | None,
        source: "Source",
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.source, ctx.marks, ctx.dtype = source, marks_of(source.run.segments), dtype
        ctx.save_for_backward(x)
        weight = source.make(x.device).view(source.segment.shape)
        return nn.functional.linear(x, weight.to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        check_untouched(ctx.marks, marks_of(ctx.source.run.segments))
        with torch.autocast(gy.device.type, enabled=False):
            return Linear._backward(ctx, gy)

    @staticmethod
    def _backward(ctx, gy):
        source, needs, (x,) = ctx.source, ctx.needs_input_grad, ctx.saved_tensors
        point, segment = source.point, source.point.segments[source.segment.index]
        height, width = segment.shape
        step = max(1, max(_PIECE, 8 * point.projection.d) // width)
        memory = torch.empty_like(segment.parameter[:step], device=x.device)
        again = torch.is_grad_enabled()  # a derivative of this one is wanted
        if again:
            step = height
        flat_x, flat_gy = x.reshape(-1, width), gy.reshape(-1, height)
        gx = flat_x.new_zeros(flat_x.shape, dtype=point.values[0].dtype) if needs[0] else None

        def pieces():
            nonlocal gx
            for first in range(0, height, step):
                part = flat_gy[:, first : first + step]
                if needs[0]:
                    rows = memory[: part.shape[1]]
                    made = source.weight(x.device) if again else source.make_rows(first, rows)
                    gx = gx + part @ made.to(ctx.dtype)
                if needs[2] or needs[3]:
                    start = segment.start + first * width
                    yield start, segment.norm, (part.T @ flat_x).reshape(-1)

        a = point.projection.rows_adjoint_sum(pieces(), point.coordinates()[0])
        factor = point.factor(segment, point.released) / segment.norm
        theta, lambda_ = point.gradients(segment.group, factor * a, a)
        gx = gx.to(x.dtype).view(x.shape) if needs[0] else None
        return gx, flat_gy.sum(0) if needs[1] else None, theta, lambda_, None, None


class Streamed:
    """Weights made one by one when they are used; the interface of Resident."""

    def __init__(self, base_model: nn.Module, segments: list[Segment]):
        self.base_model, self.segments = base_model, segments
        self.runs = [Run([segment]) for segment in segments]
        self.marks: list | None = None

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Raises ValueError if the projection cannot be made in parts."""
        if config.projection == "one-block":
            raise ValueError('weights="streamed" cannot be had with projection="one-block"')

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The tensors of theta_0, which the parameters hold at all times."""
        return ((segment, segment.parameter.detach()) for segment in self.segments)

    def write(self, point: Point | None) -> None:
        """Makes modules see weights that will be made at the point, or theta_0 if it is None.

        Raises RuntimeError if the parameters were moved, converted or written by others.
        """
        if self.marks is None:
            self.marks = marks_of(self.segments)
        check_untouched(self.marks, marks_of(self.segments))
        if point is None:
            uncover(self.segments)
        else:
            weights = [StreamedWeight(Source(run, point)) for run in self.runs]
            with torch.enable_grad():
                show(self.segments, attach(point, self.segments, lambda s: weights[s.index]))
        renew_recurrent(self.base_model)

    def release(self, point: Point | None) -> None:
        """Lets modules see their parameters, with the weights at the point in memory of their own,
        or theta_0 if it is None."""
        for run in self.runs if point is not None else []:
            p = run.segments[0].parameter
            p.data = Source(run, point).make(p.device).view(p.shape)
        uncover(self.segments)
        renew_recurrent(self.base_model)
        self.marks = None

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Applies fn, as of .to(), to the weights; release() comes first."""
        self.base_model._apply(fn)
