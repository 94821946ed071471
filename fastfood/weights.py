"""How the weights theta_0 + lambda * (P theta) are held: flat, in one buffer for each dtype and
device, with an autograd node for each group that makes modules see them as functions of theta and
lambda_.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Segment
from .projection import Projection

_ALONE = 1 << 20  # rows from which a gradient goes through the adjoint without being gathered first


@dataclass
class Run:
    """Consecutive segments of one dtype and device: theta_0 and, once written, theta_D."""

    segments: list[Segment]
    base: Tensor
    current: Tensor | None = None
    marks: list | None = None  # state() after the last write
    layout: tuple[Tensor, Tensor, Tensor] | None = None  # offsets, norms and groups of the segments

    def view(self, flat: Tensor, segment: Segment) -> Tensor:
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
class Node:
    """What one group's autograd node needs besides its inputs."""

    projection: Projection
    group: int
    places: list[tuple[Run, Segment]]
    leaves: list[Tensor]
    values: list[Tensor]  # of theta and, for SAID, lambda_: what the weights were made from
    versions: list[int]
    released: bool  # whether theta's gradient is that of the authors' code (SubspaceConfig)

    def coordinates(self) -> list[Tensor]:
        """theta and, for SAID, lambda_, in a form to compute gradients from."""
        if not torch.is_grad_enabled():
            return self.values
        if self.versions != [p._version for p in self.leaves]:
            raise RuntimeError("theta or lambda_ was changed before a backward with create_graph")
        return self.leaves

    def adjoint(self, grads: tuple[Tensor | None, ...], like: Tensor, released: bool) -> Tensor:
        """P_g^T of the gradients: (d - m,), in the dtype of `like`."""
        return self.projection.rows_adjoint_sum(self.gradients(grads, released), like)

    def gradients(
        self, grads: tuple[Tensor | None, ...], released: bool
    ) -> Iterator[tuple[int, float, Tensor]]:
        """(first row, factor, flat gradient): absent ones are zero, neighbours go together."""
        alone_from = max(_ALONE, 8 * self.projection.d)
        gathered, start, stop, home = [], 0, 0, None
        for (run, segment), grad in zip(self.places, grads, strict=True):
            if grad is None:
                continue
            grad = grad.to_dense().reshape(-1)
            factor = segment.norm
            if released:
                factor /= 1 << (segment.numel - 1).bit_length()
            if segment.numel >= alone_from:  # copying it would cost more than a call of its own
                yield segment.start, factor, grad
                continue
            if gathered and (segment.start != stop or run is not home):
                yield start, 1.0, torch.cat(gathered)
                gathered = []
            if not gathered:
                start, home = segment.start, run
            gathered.append(grad if factor == 1 else grad.to(self.values[0].dtype) * factor)
            stop = segment.start + segment.numel
        if gathered:
            yield start, 1.0, torch.cat(gathered)


class Weights(torch.autograd.Function):
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
        with torch.autocast(theta.device.type, enabled=False):
            a = node.adjoint(grads, theta, node.released)
            if not lambda_:
                return a, None, None
            exact = node.adjoint(grads, theta, False) if node.released else a
        scales = lambda_[0]
        scales_grad = torch.zeros_like(scales)
        scales_grad[node.group] = torch.dot(theta, exact)
        return scales[node.group] * a, scales_grad, None
