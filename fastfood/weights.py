"""From theta and lambda_ to weights and back: theta_0 + lambda * (P theta) for runs of tensors, the
autograd node through which their gradients go to theta and lambda_, and the way to hold weights
that is fastest: all of them in flat buffers.
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layout import Segment, SubspaceConfig
from .projection import Projection

_ALONE = 1 << 20  # rows from which a gradient goes through the adjoint without being gathered first


@dataclass
class Point:
    """theta and, for SAID, lambda_ at one moment, and the subspace that they are coordinates of."""

    projection: Projection
    segments: list[Segment]  # by index, with the groups and factors of this subspace
    leaves: list[Tensor]
    values: list[Tensor]
    versions: list[int]
    released: bool  # whether theta's gradient is that of the authors' code (SubspaceConfig)
    backwards_left: float = math.inf  # that DistributedDataParallel would still reduce
    backward: int = -1  # the running one
    spreads: dict = field(default_factory=dict)

    def expect_backwards(self, ddp_class: type) -> None:
        """Takes note, before a forward, of how many backwards after it will be reduced."""
        ddp = ddp_class._active_ddp_module
        once = ddp is not None and ddp.require_backward_grad_sync and not ddp.static_graph
        self.backwards_left, self.backward = 1 if once else math.inf, -1

    def enter_backward(self) -> None:
        """Raises RuntimeError if theta's gradient from this backward would not be reduced."""
        backward = torch._C._current_graph_task_id()
        if backward == self.backward:
            return
        if not self.backwards_left:
            raise RuntimeError(
                "a second backward after one forward, or one nested in it, reached theta, which "
                "DistributedDataParallel would not reduce: give it static_graph=True, or gradient "
                "checkpointing use_reentrant=False"
            )
        self.backward, self.backwards_left = backward, self.backwards_left - 1

    def spread(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """theta in the dtype and on the device of `like`, and what all rows need of it, once."""
        key = like.dtype, like.device
        if key not in self.spreads:
            theta = self.values[0].to(like)
            self.spreads[key] = theta, self.projection.spread(theta)
        return self.spreads[key]

    def coordinates(self) -> list[Tensor]:
        """theta and, for SAID, lambda_, in a form to compute gradients from."""
        if not torch.is_grad_enabled():
            return self.values
        if self.versions != [p._version for p in self.leaves]:
            raise RuntimeError("theta or lambda_ was changed before a backward with create_graph")
        return self.leaves

    def gradients(self, group: int, a: Tensor, exact: Tensor) -> tuple[Tensor, Tensor | None]:
        """Those of theta and lambda_ from a = P_g^T w; `exact` is a where `released` changed it.

        No projection is needed: <(P theta)_g, w> = <theta, P_g^T w>.
        """
        self.enter_backward()
        theta, *lambda_ = self.coordinates()
        if not lambda_:
            return a, None
        scales = lambda_[0]
        scales_grad = torch.zeros_like(scales)
        scales_grad[group] = torch.dot(theta, exact)
        return scales[group] * a, scales_grad

    def factor(self, segment: Segment, released: bool) -> float:
        """What a gradient of the tensor is multiplied by before P^T."""
        return segment.norm / (1 << (segment.numel - 1).bit_length() if released else 1)


@dataclass
class Run:
    """Consecutive segments of one dtype and device."""

    segments: list[Segment]
    layout: tuple[Tensor, Tensor, Tensor] | None = None  # offsets, factors and groups of `laid_for`
    laid_for: list[Segment] | None = None

    @property
    def start(self) -> int:
        return self.segments[0].start

    @property
    def numel(self) -> int:
        last = self.segments[-1]
        return last.start + last.numel - self.start

    def view(self, flat: Tensor, segment: Segment) -> Tensor:
        first = segment.start - self.start
        return flat[first : first + segment.numel].view(segment.shape)

    def gather(self) -> Tensor:
        """The parameters' values, one after the other, as a new tensor."""
        return torch.cat([s.parameter.detach().reshape(-1) for s in self.segments])

    def perturb_(self, out: Tensor, base: Tensor, point: Point, skip: int = 0) -> None:
        """out = base + lambda * norm * (P theta), each of shape (N,): the N rows after `skip`."""
        wide = torch.float64 if out.dtype == torch.float64 else torch.float32
        if self.laid_for is not point.segments or (
            (self.layout[1].dtype, self.layout[1].device) != (wide, out.device)
        ):
            own = [point.segments[s.index] for s in self.segments]
            ends = [s.start + s.numel - self.start for s in own]
            self.layout = (
                torch.tensor([0, *ends], device=out.device),
                torch.tensor([s.norm for s in own], dtype=wide, device=out.device),
                torch.tensor([s.group for s in own], device=out.device),
            )
            self.laid_for = point.segments
        offsets, scales, groups = self.layout
        lambda_ = point.values[1:]
        if lambda_:
            scales = scales * lambda_[0].to(scales)[groups]
        theta, v = point.spread(scales)
        if len(out) != self.numel:
            offsets = (offsets - skip).clamp(0, len(out))
        point.projection.perturb_(out, base, theta, offsets, scales, self.start + skip, v)


def marks_of(segments: list[Segment]) -> list:
    """Where the parameters lie and how often they were written: tells when somebody else did."""
    owners = (owner for segment in segments for owner in segment.owners)
    parameters = (module._parameters.get(attribute) for module, attribute in owners)
    return [p if p is None else (p.data_ptr(), p._version, p.dtype) for p in parameters]


def check_untouched(marks: list, now: list) -> None:
    """Raises RuntimeError if the parameters' marks are no longer what they were."""
    if marks != now:
        raise RuntimeError(
            "the model's weights were moved, converted or written while it was wrapped: call "
            ".to() and the like on the SubspaceModel, and load weights before its first "
            "forward or after unload()"
        )


@dataclass
class Node:
    """What one autograd node needs besides its inputs: where the weights of one group came from."""

    point: Point
    group: int
    segments: list[Segment]

    def adjoint(self, grads: tuple[Tensor | None, ...], like: Tensor, released: bool) -> Tensor:
        """P_g^T of the gradients: (d - m,), in the dtype of `like`."""
        return self.point.projection.rows_adjoint_sum(self.gradients(grads, released), like)

    def gradients(
        self, grads: tuple[Tensor | None, ...], released: bool
    ) -> Iterator[tuple[int, float, Tensor]]:
        """(first row, factor, flat gradient): absent ones are zero, neighbours go together."""
        wide = self.point.values[0].dtype
        alone_from = max(_ALONE, 8 * self.point.projection.d)
        gathered, start, stop = [], 0, 0
        for segment, grad in zip(self.segments, grads, strict=True):
            if grad is None:
                continue
            grad = grad.to_dense().reshape(-1)
            factor = self.point.factor(segment, released)
            if segment.numel >= alone_from:  # copying it would cost more than a call of its own
                yield segment.start, factor, grad
                continue
            if gathered and (segment.start != stop or gathered[-1].device != grad.device):
                yield start, 1.0, torch.cat(gathered) if gathered[1:] else gathered[0]
                gathered = []
            if not gathered:
                start = segment.start
            gathered.append(grad if factor == 1 else grad.to(wide) * factor)
            stop = segment.start + segment.numel
        if gathered:
            yield start, 1.0, torch.cat(gathered) if gathered[1:] else gathered[0]


class Weights(torch.autograd.Function):
    """(theta, lambda_) -> weights of one group that were made from them; nothing is computed.

    Nothing is saved in autograd's sense, so one node serves any number of backwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        theta: Tensor,
        lambda_: Tensor | None,
        node: Node,
        make: Callable[[Segment], Tensor],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.node = node
        return tuple(make(segment) for segment in node.segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        node, point = ctx.node, ctx.node.point
        like = point.coordinates()[0]
        with torch.autocast(like.device.type, enabled=False):
            a = node.adjoint(grads, like, point.released)
            said = len(point.leaves) > 1
            exact = node.adjoint(grads, like, False) if said and point.released else a
            return *point.gradients(node.group, a, exact), None, None


def attach(point: Point, segments: list[Segment], make: Callable) -> list[Tensor]:
    """The tensors of make(segment) as functions of theta and lambda_, with a node for each
    group."""
    theta, lambda_ = (*point.leaves, None)[:2]
    groups, attached = {}, {}
    for segment in segments:
        laid = point.segments[segment.index]
        groups.setdefault(laid.group, []).append(laid)
    for group, laid in groups.items():
        made = Weights.apply(theta, lambda_, Node(point, group, laid), make)
        attached |= {segment.index: weight for segment, weight in zip(laid, made, strict=True)}
    return [attached[segment.index] for segment in segments]


def show(segments: list[Segment], weights: list[Tensor]) -> None:
    """Makes modules see the weights: instance attributes hide the parameters."""
    for segment, weight in zip(segments, weights, strict=True):
        for module, attribute in segment.owners:
            module.__dict__[attribute] = weight


def uncover(segments: list[Segment]) -> None:
    """Makes modules see their parameters again."""
    for segment in segments:
        for module, attribute in segment.owners:
            module.__dict__.pop(attribute, None)


def renew_recurrent(base: nn.Module) -> None:
    """Tells recurrent modules of the tensors that their attributes refer to now."""
    for module in base.modules():
        if isinstance(module, nn.RNNBase):
            # not by its own method: cuDNN's flattening would take them out of the flat buffer
            weights = [getattr(module, name, None) for name in module._flat_weights_names]
            module._flat_weights = weights
            module._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]


@dataclass
class Buffer(Run):
    """A run with its weights: theta_0 and, once written, theta_D, where the parameters lie then."""

    base: Tensor | None = None
    current: Tensor | None = None


class Resident:
    """All weights in flat buffers, theta_0 beside theta_D: one projection for each optimizer step.

    An autograd node for each group serves all forwards until the next write.
    """

    def __init__(self, base_model: nn.Module, segments: list[Segment]):
        self.base_model, self.segments = base_model, segments
        self.buffers: list[Buffer] = []
        self.marks: list | None = None  # after the last write

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Every subspace will do."""

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The tensors of theta_0, which is what the parameters hold when this is first used."""
        self._keep()
        for buffer in self.buffers:
            for segment in buffer.segments:
                yield segment, buffer.view(buffer.base, segment)

    def _keep(self) -> None:
        if not self.buffers:
            kinds = itertools.groupby(
                self.segments, lambda s: (s.parameter.dtype, s.parameter.device)
            )
            runs = [list(segments) for _, segments in kinds]
            self.buffers = [Buffer(run, base=Run(run).gather()) for run in runs]

    def _marks(self) -> list:
        return [*(b.current._version for b in self.buffers), *marks_of(self.segments)]

    def write(self, point: Point | None) -> None:
        """Makes modules see the weights at the point, or theta_0 if it is None.

        Raises RuntimeError if the parameters were moved, converted or written by others.
        """
        self._keep()
        if self.marks is not None:
            check_untouched(self.marks, self._marks())
        else:
            kinds = [(b.base.dtype, b.base.device) for b in self.buffers for _ in b.segments]
            check_untouched(kinds, [(s.parameter.dtype, s.parameter.device) for s in self.segments])
        for buffer in self.buffers:
            if buffer.current is None:
                for segment in buffer.segments:  # frees their memory before more is taken
                    segment.parameter.data = buffer.view(buffer.base, segment)
                buffer.current = torch.empty_like(buffer.base)
                for segment in buffer.segments:
                    segment.parameter.data = buffer.view(buffer.current, segment)
            if point is None:
                buffer.current.copy_(buffer.base)
            else:
                buffer.perturb_(buffer.current, buffer.base, point)
        if point is None:
            uncover(self.segments)
        else:
            # detach shares the buffer's version: a backward after the next write is an error
            views = [b.view(b.current, s).detach() for b in self.buffers for s in b.segments]
            with torch.enable_grad():
                weights = attach(point, self.segments, lambda segment: views[segment.index])
            show(self.segments, weights)
        renew_recurrent(self.base_model)
        self.marks = self._marks()

    def release(self, point: Point | None) -> None:
        """Gives the parameters memory of their own with the weights last written, or theta_0 if
        `point` is None."""
        for buffer in self.buffers:
            flat = buffer.base if point is None else buffer.current
            for segment in buffer.segments if buffer.current is not None else []:
                segment.parameter.data = buffer.view(flat, segment).clone()
            buffer.current = buffer.layout = buffer.laid_for = None
        uncover(self.segments)
        renew_recurrent(self.base_model)
        self.marks = None

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Applies fn, as of .to(), to the weights; release() comes first."""
        self.base_model._apply(fn)
        for buffer in self.buffers:
            buffer.base = fn(buffer.base)
