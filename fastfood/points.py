"""A point of a subspace, and autograd's way from weights back to it.

With v = spread(theta), the rows lambda_g v of all groups g make V, m x L (for DID one row, v), and
the weights of group g are theta_0 plus rows of P's blocks times their row of V. So there are two
kinds of nodes: `Rows` from theta and lambda_ to V's rows, and `Weights` from a row to the weights
of a group. A group's backward is one adjoint, whose result is the gradient of its row. When the
gradients of all rows are there, one backward of `Rows` takes them to theta and lambda_.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .coordinates import Adapter, Group
from .fakes import wide
from .layout import Segment
from .torch_internals import current_backward, current_ddp, run_first

_ENTRIES = 1 << 24  # the most entries of V whose gradient one node of `Rows` takes
# A place in autograd's order before all that a forward records: such a node runs, and frees its
# gradients, as soon as they are there. By its age it would wait for the whole backward.
_BEFORE_ALL = 2**63


class Spread(NamedTuple):
    """A point in one dtype and on one device: theta, v = spread(theta), lambda * norm of each
    segment, and the bounds that projection.perturbed takes."""

    theta: Tensor
    v: Tensor
    scales: Tensor
    bounds: Tensor


@dataclass
class Backwards:
    """How many backwards after the last forward reach theta's gradient everywhere: one in the
    forward of a DistributedDataParallel, which then all-reduces once, else any number."""

    left: float = math.inf
    running: int = -1  # the number of the last one that came

    def expect(self) -> None:
        """Begins to count, before a forward."""
        ddp = current_ddp()
        once = ddp is not None and ddp.require_backward_grad_sync and not ddp.static_graph
        self.left, self.running = 1 if once else math.inf, -1

    def enter(self) -> None:
        """Counts the running backward. Raises RuntimeError if theta's gradient from it would not be
        all-reduced."""
        backward = current_backward()
        if backward == self.running:
            return
        if not self.left:
            raise RuntimeError(
                "a second backward after one forward, or one nested in it, reached theta, which "
                "DistributedDataParallel would not reduce: give it static_graph=True, or gradient "
                "checkpointing use_reentrant=False"
            )
        self.running, self.left = backward, self.left - 1


@dataclass
class Point:
    """theta and, for SAID, lambda_ at one moment: `values` of the parameters `leaves`, and the
    version counters that these had."""

    adapter: Adapter
    leaves: list[Tensor]
    values: list[Tensor]
    versions: list[int]
    backwards: Backwards = field(default_factory=Backwards)
    _spreads: dict = field(default_factory=dict)
    _seen: tuple[Tensor, Any] | None = None  # a comparison's result in pinned memory, its event

    @staticmethod
    def of(adapter: Adapter, leaves: Sequence[Tensor]) -> "Point":
        """The point where the leaves are now."""
        values, versions = [p.detach().clone() for p in leaves], [p._version for p in leaves]
        return Point(adapter, list(leaves), values, versions)

    @property
    def released(self) -> bool:
        """Whether theta's gradient is altered as in the authors' code (SubspaceConfig.gradient)."""
        return self.adapter.config.gradient == "released"

    def spread(self, dtype: torch.dtype, device: torch.device) -> "Spread":
        """The point as all rows need it, made once for each dtype and device."""
        key = dtype, device
        if key not in self._spreads:
            theta, *lambda_ = (p.to(device, dtype) for p in self.values)
            scales, bounds = self.adapter.scales_and_bounds(*lambda_, like=theta)
            v = self.adapter.projection.spread(theta)
            self._spreads[key] = Spread(theta, v, scales, bounds)
        return self._spreads[key]

    @property
    def v(self) -> Tensor:
        """spread(theta), in theta's dtype and where it lies."""
        return self.spread(self.values[0].dtype, self.values[0].device).v

    def perturbed(
        self, segments: list[Segment], bases: list[Tensor], skip: int = 0
    ) -> list[Tensor]:
        """base + lambda * norm * (P theta) for each segment, of one dtype and device, as new
        tensors; `skip`: how many of its entries come before those of the base."""
        theta, v, scales, bounds = self.spread(wide(bases[0].dtype), bases[0].device)
        starts, places = [s.start + skip for s in segments], [s.index for s in segments]
        projection = self.adapter.projection
        return projection.perturbed(bases, theta, bounds, scales, starts, places, v)

    def coordinates(self) -> list[Tensor]:
        """theta and, for SAID, lambda_ for a backward to compute with: the parameters themselves
        where create_graph differentiates it, and they still have their values."""
        if not torch.is_grad_enabled():
            return self.values
        if self.versions != [p._version for p in self.leaves]:
            raise RuntimeError("theta or lambda_ was changed before a backward with create_graph")
        return self.leaves

    def was_left_unseen(self) -> bool:
        """Whether something wrote to theta or lambda_ past their version counters, as some
        optimizers do through .data. On CUDA, where no call waits for the GPU, each call starts a
        comparison and answers with the result of an earlier one.
        """
        if not self.leaves[0].is_cuda:
            return not all(map(torch.equal, self.leaves, self.values))
        if torch.cuda.is_current_stream_capturing():
            return False
        if self._seen is None:
            differs = torch.zeros((), dtype=torch.bool, pin_memory=True)
            self._seen = differs, torch.cuda.Event()
        differs, event = self._seen
        if not event.query():
            return False
        seen = bool(differs)
        integers = torch.int64 if self.leaves[0].dtype == torch.float64 else torch.int32
        pairs = zip(self.leaves, self.values, strict=True)  # compared by bits: a NaN equals itself
        differ = [(p.detach().view(integers) != v.view(integers)).any() for p, v in pairs]
        differs.copy_(torch.stack(differ).any(), non_blocking=True)
        event.record()
        return seen


def without_autocast(kind: str) -> AbstractContextManager:
    """A context in which operators on devices of this kind compute in their tensors' dtypes."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class Rows(torch.autograd.Function):
    """(theta, lambda_) -> the rows of V that belong to some groups. They hold no data: only their
    gradients matter. With the authors' gradient each row is there twice: the altered gradient, for
    theta, comes to the first, the unaltered one, for lambda_, to the second.

    Nothing is saved in autograd's sense, so a node serves any number of backwards.
    """

    @staticmethod
    def forward(
        ctx: Any, point: Point, groups: range, theta: Tensor, *lambda_: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.point, ctx.groups = point, groups
        width = point.v.shape[-1]
        return theta.new_empty(()).expand(len(groups) * _copies(point), width).unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        point, groups = ctx.point, ctx.groups
        point.backwards.enter()
        theta, *lambda_ = point.coordinates()
        projection = point.adapter.projection
        with without_autocast(theta.device.type):
            z = _stacked(grads[: len(groups)])
            if not lambda_:
                return None, None, projection.spread_adjoint(z[0])
            scales = lambda_[0][groups.start : groups.stop]
            theta_grad = projection.spread_adjoint(scales @ z)
            if not ctx.needs_input_grad[3]:
                return None, None, theta_grad, None
            if point.released:
                z = _stacked(grads[len(groups) :])
            v = projection.spread(theta) if torch.is_grad_enabled() else point.v
            around = groups.start, len(lambda_[0]) - groups.stop
            return None, None, theta_grad, nn.functional.pad(z @ v, around)


def _copies(point: Point) -> int:
    return 2 if point.released and len(point.leaves) > 1 else 1


def _stacked(rows: tuple[Tensor | None, ...]) -> Tensor:
    """The rows as a matrix, of zeros where there is none."""
    like = next(row for row in rows if row is not None)
    return torch.stack([torch.zeros_like(like) if row is None else row for row in rows])


class Weights(torch.autograd.Function):
    """A row of V -> the weights of its group, which were made before; nothing is computed.

    Nothing is saved in autograd's sense, so a node serves any number of backwards.
    """

    @staticmethod
    def forward(
        ctx: Any, point: Point, group: Group, weights: list[Tensor], *rows: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.point, ctx.group, ctx.like = point, group, rows[0]
        return tuple(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        point, group, like = ctx.point, ctx.group, ctx.like
        gs = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        present = [i for i, g in enumerate(gs) if g is not None]
        chosen = [group.starts, group.released_factors if point.released else group.factors]
        chosen = [gs, *chosen, group.factors]
        if len(present) < len(gs):
            chosen = [[values[i] for i in present] for values in chosen]
        gs, starts, *factors = chosen
        gradients: list[Tensor | None] = [None, None, None]
        with without_autocast(like.device.type):
            for some in factors[: len(ctx.needs_input_grad) - len(gradients)]:
                z = point.adapter.projection.spread_gradient(gs, starts, some, like)
                gradients.append(z)
        return tuple(gradients)


class Origin:
    """A point and the rows of V at it, to which autograd comes back from weights made at the point.

    The point does not refer to the rows: a cycle through autograd would never be freed.
    """

    def __init__(self, point: Point):
        self.point = point
        theta, *lambda_ = point.leaves
        m = len(lambda_[0]) if lambda_ else 1
        step = max(1, _ENTRIES // point.v.shape[-1])
        self._rows: list[tuple[Tensor, ...]] = []
        with torch.enable_grad():
            for first in range(0, m, step):
                groups = range(first, min(first + step, m))
                rows = Rows.apply(point, groups, theta, *lambda_)
                run_first(rows[0], _BEFORE_ALL)
                self._rows += [rows[i :: len(groups)] for i in range(len(groups))]

    def rows(self, segment: Segment) -> tuple[Tensor, ...]:
        """The rows of V of which the segment's weight is a function."""
        return self._rows_of(self.point.adapter.segments[segment.index].group)

    def _rows_of(self, group: int) -> tuple[Tensor, ...]:
        return self._rows[group if len(self.point.leaves) > 1 else 0]

    def attach(self, segments: list[Segment], weights: Sequence[Tensor]) -> list[Tensor]:
        """The segments' weights as functions of theta and lambda_, by one node for each group."""
        attached = list(weights)
        for group in self.point.adapter.groups(segments):
            made = [weights[i] for i in group.places]
            with torch.inference_mode(False), torch.enable_grad():
                made = Weights.apply(self.point, group, made, *self._rows_of(group.number))
            run_first(made[0], _BEFORE_ALL)
            for i, weight in zip(group.places, made, strict=True):
                attached[i] = weight
        return attached
