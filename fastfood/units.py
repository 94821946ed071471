"""Units of streamed weights: which weights are made together, and how long they are kept.

The matrices of a numbered block are a unit, or several if they and their gradients would take more
than the model's largest tensor, and only one such unit is kept at a time. A tensor that is too
large for a unit is made for one operator and dropped. All small tensors, biases and norms, are one
unit that stays.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Segment
from .points import Origin
from .weights import check_untouched, marks_of

SMALL = 1 << 16  # tensors of fewer entries stay
_BLOCK = re.compile(r"(?:.*\.)?\d+(?=\.)")  # a name up to its last all-digit component


def parameters_of(segments: list[Segment], device: torch.device | None) -> list[Tensor]:
    """theta_0 of the segments, on the device or, for None, where it lies."""
    parameters = [segment.parameter for segment in segments]
    return [p.data if device in (None, p.device) else p.data.to(device) for p in parameters]


class Made(NamedTuple):
    """A unit's weights on a device, and whether they are functions of theta and lambda_."""

    unit: "Unit"
    device: torch.device
    weights: list[Tensor]
    attached: bool


@dataclass
class Shelf:
    """Keeps the weights of one unit. Threads share it, so `made` is replaced whole."""

    made: Made | None = None


class Unit:
    """Tensors of one dtype and device whose weights at a point are made together."""

    def __init__(self, segments: list[Segment], origin: Origin, shelf: Shelf):
        self.segments, self.origin, self.shelf = segments, origin, shelf
        self.marks = marks_of(segments)

    def weights(self, device: torch.device) -> list[Tensor]:
        """The weights on the device, as functions of theta and lambda_ where that is recorded."""
        made = self.shelf.made
        if made is None or made.unit is not self or made.device != device:
            made = self.shelf.made = None  # what was there is freed before more is made
            made = self.shelf.made = self._make(device)
        if torch.is_grad_enabled() and not made.attached:
            weights = self.origin.attach(self.segments, made.weights)
            made = self.shelf.made = Made(self, device, weights, True)
        return made.weights

    def _make(self, device):
        check_untouched(self.marks, marks_of(self.segments))
        with torch.inference_mode(False):
            bases = parameters_of(self.segments, device)
            return Made(self, device, self.origin.point.perturbed(self.segments, bases), False)


@dataclass
class Member:
    """The source of one weight: its unit."""

    segment: Segment
    unit: Unit
    place: int  # among the unit's tensors
    stays: bool

    def weight(self, device: torch.device) -> Tensor:
        """The weight on the device, as a function of theta and lambda_ where that is recorded."""
        return self.unit.weights(device)[self.place]

    def make(self, device: torch.device) -> Tensor:
        """The weight on the device alone."""
        return self.weight(device).detach()


@dataclass
class Large:
    """The source of one weight that is too large for a unit, made anew at each use."""

    segment: Segment
    origin: Origin
    shelf: Shelf  # of the units
    marks: list
    stays = False

    def make(self, device: torch.device, first: int = 0, stop: int | None = None) -> Tensor:
        """The weight alone as a new tensor on the device, or its rows [first, stop)."""
        self.shelf.made = None
        check_untouched(self.marks, marks_of([self.segment]))
        [base] = parameters_of([self.segment], None)
        if stop is not None:
            base = base[first:stop]
        skip = first * math.prod(base.shape[1:])
        return self.origin.point.perturbed([self.segment], [base.to(device)], skip)[0]

    def weight(self, device: torch.device) -> Tensor:
        """The weight on the device, as a function of theta and lambda_ where that is recorded."""
        made = self.make(device)
        if torch.is_grad_enabled():
            [made] = self.origin.attach([self.segment], [made])
        return made


def divided(
    segments: list[Segment],
) -> tuple[list[list[Segment]], list[list[Segment]], list[Segment]]:
    """The small segments by dtype and device, the other ones in units, and those too large for a
    unit."""
    room = max(segment.numel for segment in segments)
    small: dict[tuple, list[Segment]] = {}
    units: list[list[Segment]] = []
    large: list[Segment] = []
    last, taken = None, 0  # block, dtype and device of the last unit's tensors, and their entries
    for segment in segments:
        kind = segment.parameter.dtype, segment.parameter.device
        block = _BLOCK.match(segment.name)
        if segment.numel < SMALL:
            small.setdefault(kind, []).append(segment)
        elif 2 * segment.numel > room:  # 2: the weight and its gradient
            large.append(segment)
        elif block and last == (block[0], kind) and 2 * (taken + segment.numel) <= room:
            units[-1].append(segment)
            taken += segment.numel
        else:
            units.append([segment])
            last, taken = (block and block[0], kind), segment.numel
    return list(small.values()), units, large
