"""theta_0 + lambda * (P theta) for runs of tensors, how modules are made to see such weights, what
a holder of weights has to do, and the fastest holder: all weights in flat buffers.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from .fakes import wide
from .layout import Segment, SubspaceConfig
from .points import Origin, Point
from .torch_internals import renew_recurrent


@dataclass
class Run:
    """Consecutive segments of one dtype and device."""

    segments: list[Segment]
    _offsets: dict[torch.device, Tensor] = field(default_factory=dict)

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

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each segment's part of a tensor with the values of all."""
        return [self.view(flat, segment) for segment in self.segments]

    def gather(self) -> Tensor:
        """The parameters' values, one after the other, as a new tensor."""
        return torch.cat([s.parameter.detach().reshape(-1) for s in self.segments])

    def perturb_(self, out: Tensor, base: Tensor, point: Point, skip: int = 0) -> None:
        """out = base + lambda * norm * (P theta), each of shape (N,): the N rows after `skip`."""
        theta, v, scales, _ = point.spread(wide(out.dtype), out.device)
        if out.device not in self._offsets:
            ends = [s.start + s.numel - self.start for s in self.segments]
            self._offsets[out.device] = torch.tensor([0, *ends]).to(out.device)
        offsets = self._offsets[out.device]
        if len(out) != self.numel:
            offsets = (offsets - skip).clamp(0, len(out))
        first = self.segments[0].index
        scales = scales[first : first + len(self.segments)]
        start = self.start + skip
        point.adapter.projection.perturb_(out, base, theta, offsets, scales, start, v)

    def __getstate__(self):
        return self.__dict__ | {"_offsets": {}}


def marks_of(segments: list[Segment]) -> list:
    """Where the parameters lie and how often they were written, to notice writes by others."""
    owners = [owner for segment in segments for owner in segment.owners]
    parameters = [module._parameters.get(attribute) for module, attribute in owners]
    return [p if p is None else (p.data_ptr(), p._version, p.dtype) for p in parameters]


def check_untouched(marks: object, now: object) -> None:
    """Raises RuntimeError if the parameters' marks are no longer what they were."""
    if marks != now:
        raise RuntimeError(
            "the model's weights were moved, converted or written while it was wrapped: call "
            ".to() and the like on the SubspaceModel, and load weights before its first "
            "forward or after unload()"
        )


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


def recurrent(base: nn.Module) -> list[nn.RNNBase]:
    """The modules that keep references of their own to their weights."""
    return [module for module in base.modules() if isinstance(module, nn.RNNBase)]


class Holder(Protocol):
    """A way to hold a base model's weights: what SubspaceModel asks of Resident, streamed.Streamed
    and sharded.Sharded. Making one changes nothing in the base model but what it has to."""

    exist: bool  # whether modules see weights that have data

    def __init__(self, base_model: nn.Module, segments: list[Segment]) -> None: ...

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Raises ValueError if weights in such a subspace cannot be held so."""

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The trainable tensors of the base model as they were before training."""

    def write(self, point: Point | None) -> None:
        """Makes modules see the weights at the point, or theta_0 if it is None. Raises RuntimeError
        if the parameters were moved, converted or written by others."""

    def release(self, point: Point | None) -> None:
        """Lets modules see their parameters, in memory of their own, which hold the weights at the
        point, that of the last write, or theta_0 if it is None."""

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Applies fn, as of .to(), to the weights; release() comes first."""


@dataclass
class Buffer(Run):
    """A run with flat weights: theta_0 in `base` and, once written, the weights that modules see in
    `current`, in whose memory the parameters lie then."""

    base: Tensor = field(kw_only=True)
    current: Tensor | None = None
    shown: list[Tensor] = field(default_factory=list)  # a view of `current` for each segment


class Resident(Holder):
    """All weights in flat buffers, theta_0 beside theta_D: one projection for each optimizer step.

    An autograd node for each group serves all forwards until the next write.
    """

    exist = True

    def __init__(self, base_model: nn.Module, segments: list[Segment]):
        self.base_model, self.segments = base_model, segments
        self.recurrent = recurrent(base_model)
        self.buffers: list[Buffer] = []
        self.marks: tuple[list[int], list] | None = None  # of the buffers and of the parameters

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Weights in any subspace can be held so."""

    def theta_0(self) -> Iterator[tuple[Segment, Tensor]]:
        """The tensors of theta_0, which is what the parameters hold when this is first used."""
        self._keep()
        for buffer in self.buffers:
            yield from zip(buffer.segments, buffer.views(buffer.base), strict=True)

    def _keep(self) -> None:
        if not self.buffers:
            kinds = itertools.groupby(
                self.segments, lambda s: (s.parameter.dtype, s.parameter.device)
            )
            runs = [list(segments) for _, segments in kinds]
            self.buffers = [Buffer(run, base=Run(run).gather()) for run in runs]

    def _versions(self) -> list[int]:
        return [b.current._version for b in self.buffers if b.current is not None]

    def _lay(self) -> None:
        """Moves all parameters into the buffers, which are written in one go."""
        kinds = [(b.base.dtype, b.base.device) for b in self.buffers for _ in b.segments]
        check_untouched(kinds, [(s.parameter.dtype, s.parameter.device) for s in self.segments])
        for buffer in self.buffers:
            views = buffer.views(buffer.base)
            for segment, view in zip(buffer.segments, views, strict=True):
                segment.parameter.data = view  # frees their memory before more is taken
            buffer.current = torch.empty_like(buffer.base)
            buffer.shown = buffer.views(buffer.current)
            for segment, view in zip(buffer.segments, buffer.shown, strict=True):
                segment.parameter.data = view
        self.marks = self._versions(), marks_of(self.segments)

    def write(self, point: Point | None) -> None:
        """Makes modules see the weights at the point, or theta_0 if it is None.

        Raises RuntimeError if the parameters were moved, converted or written by others.
        """
        self._keep()
        if self.marks is None:
            self._lay()
        else:
            check_untouched(self.marks, (self._versions(), marks_of(self.segments)))
        for buffer in self.buffers:
            assert buffer.current is not None
            if point is None:
                buffer.current.copy_(buffer.base)
            else:
                buffer.perturb_(buffer.current, buffer.base, point)
        if point is None:
            uncover(self.segments)
        else:
            # detach shares the buffer's version: a backward after the next write is an error
            views = [view.detach() for buffer in self.buffers for view in buffer.shown]
            show(self.segments, Origin(point).attach(self.segments, views))
        renew_recurrent(self.recurrent)
        assert self.marks is not None
        self.marks = self._versions(), self.marks[1]

    def release(self, point: Point | None) -> None:
        """Gives the parameters memory of their own with the weights last written, or theta_0 if
        `point` is None."""
        for buffer in self.buffers:
            if buffer.current is not None:
                flat = buffer.base if point is None else buffer.current
                for segment, view in zip(buffer.segments, buffer.views(flat), strict=True):
                    segment.parameter.data = view.clone()
            buffer.current, buffer.shown = None, []
        uncover(self.segments)
        renew_recurrent(self.recurrent)
        self.marks = None

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Applies fn, as of .to(), to the weights; release() comes first."""
        self.base_model._apply(fn)
        for buffer in self.buffers:
            buffer.base = fn(buffer.base)
