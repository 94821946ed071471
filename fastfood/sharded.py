"""Subspaces over a model that `torch.distributed.fsdp.fully_shard` has cut among processes (FSDP2):
each process holds, projects and adjoins only its own rows of P, and a backward ends with one
all-reduce of d numbers.

FSDP gathers weights and scatters gradients itself, which it does for leaves that require gradients,
so its shards stay the parameters of the base model. They are written before a forward, and a hook
that FSDP calls after its reduce-scatter takes each gradient and frees it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils.hooks import RemovableHandle

from .layout import Segment, SubspaceConfig
from .ops import FLOATING
from .points import Point
from .torch_internals import call_after_backward
from .weights import Holder, Run


@dataclass
class Part:
    """This process's part of one trainable tensor: consecutive rows of P, maybe none."""

    parameter: DTensor
    run: Run  # of the whole tensor
    skip: int  # how many rows of the tensor come before the part
    base: Tensor | None = None  # theta_0, flat, once it was kept

    @property
    def start(self) -> int:
        return self.run.start + self.skip

    @property
    def local(self) -> Tensor:
        """The shard, flat. FSDP may put another tensor in its place."""
        return _local(self.parameter)

    def kept(self) -> Tensor:
        """theta_0, flat: what the shard held at the first call."""
        if self.base is None:
            self.base = self.local.clone()
        return self.base


class Sharded(Holder):
    """The parts of all weights that this process has, theta_0 beside theta_D."""

    exist = True

    def __init__(self, base_model: nn.Module, segments: list[Segment]):
        self.base_model, self.segments = base_model, segments
        for segment in segments:  # FSDP scatters the gradients of what requires them
            segment.parameter.requires_grad_(True)
        self.parts = [_part(segment) for segment in segments]
        mesh = self.parts[0].parameter.device_mesh
        self.process_group = mesh.get_group(mesh.ndim - 1)
        self.handles: list[RemovableHandle] = []
        self.point: Point | None = None  # of the last write
        self.v_grad: Tensor  # this process's share of the gradient of spread(theta)
        self.lambda_grad: Tensor  # and of lambda_, empty for DID
        self.pending: list[tuple[int, Tensor]] = []  # part index and gradient, all of one group
        self.queued = False  # whether autograd will call _finish after this backward

    @staticmethod
    def check(config: SubspaceConfig) -> None:
        """Raises ValueError if the projection cannot be made in parts."""
        if config.projection == "one-block":
            raise ValueError("projection: wanted one made in parts if sharded, got 'one-block'")

    def theta_0(self) -> Iterator[tuple[Segment, DTensor]]:
        """The tensors of theta_0, which is what the shards hold when this is first used."""
        self._keep()
        for segment, part in zip(self.segments, self.parts, strict=True):
            like, local = part.parameter, part.kept().view(-1, *part.parameter.shape[1:])
            yield (
                segment,
                DTensor.from_local(
                    local,
                    like.device_mesh,
                    like.placements,
                    run_check=False,
                    shape=like.shape,
                    stride=like.stride(),
                ),
            )

    def _keep(self) -> None:
        reshard(self.base_model)
        for part in self.parts:
            part.kept()

    def write(self, point: Point | None) -> None:
        """Writes this process's rows of the weights at the point, or of theta_0 if it is None."""
        self._keep()
        for part in self.parts:
            if point is None:
                part.local.copy_(part.kept())
            elif len(part.kept()):
                part.run.perturb_(part.local, part.kept(), point, part.skip)
        self.point = point
        self._begin()
        if not self.handles:
            hooks = [
                part.parameter.register_post_accumulate_grad_hook(self._hook(i))
                for i, part in enumerate(self.parts)
            ]
            # a backward that failed may have left gradients pending
            first = self.base_model.register_forward_pre_hook(lambda *_: self._begin())
            self.handles = [first, *hooks]

    def release(self, point: Point | None) -> None:
        """Leaves the weights last written in the shards, or theta_0 if `point` is None."""
        reshard(self.base_model)
        for part in self.parts:
            if point is None and part.base is not None:
                part.local.copy_(part.base)
        for handle in self.handles:
            handle.remove()
        self.handles, self.point = [], None

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Raises RuntimeError if fn, as of .to(), would move or convert the shards."""
        for part in self.parts:
            new, old = fn(part.local[:0]), part.local
            if (new.dtype, new.device) != (old.dtype, old.device):
                raise RuntimeError(
                    "a sharded model cannot be moved or converted: do so before fully_shard"
                )

    # Gradients come unit by unit of FSDP, and mostly a unit has tensors of one group

    def _begin(self) -> None:
        self.pending, self.queued = [], False
        if self.point is not None:
            v = self.point.v
            self.v_grad = torch.zeros_like(v)
            self.lambda_grad = v.new_zeros(sum(map(len, self.point.values[1:])))

    def _hook(self, index: int):
        def collect(parameter):
            grad, parameter.grad = parameter.grad, None
            if self.point is None:
                return
            if not self.queued:  # runs after FSDP's own last call, which may still call this hook
                call_after_backward(self._finish)
                self.queued = True
            segments = self.point.adapter.segments
            if self.pending and segments[self.pending[0][0]].group != segments[index].group:
                self._adjoin()
            if len(self.parts[index].kept()):
                self.pending.append((index, _local(grad)))

        return collect

    @torch.no_grad()
    def _adjoin(self) -> None:
        """Adds the contribution of the pending gradients, all of one group."""
        point = self._last_point()
        group = point.adapter.segments[self.pending[0][0]].group
        with torch.autocast(self.v_grad.device.type, enabled=False):
            z = self._gradient(point.released)
            if len(self.lambda_grad):
                exact = self._gradient(False) if point.released else z
                self.lambda_grad[group] += torch.dot(point.v, exact)
                z = point.values[1][group] * z
            self.v_grad += z
        self.pending = []

    def _last_point(self) -> Point:
        assert self.point is not None
        return self.point

    def _gradient(self, released: bool) -> Tensor:
        adapter = self._last_point().adapter
        [group] = adapter.groups([self.segments[i] for i, _ in self.pending])
        gs = [grad for _, grad in self.pending]
        starts = [self.parts[i].start for i, _ in self.pending]
        factors = group.released_factors if released else group.factors
        return adapter.projection.spread_gradient(gs, starts, factors, self.v_grad)

    @torch.no_grad()
    def _finish(self) -> None:
        if self.pending:
            self._adjoin()
        point = self._last_point()
        theta = point.adapter.projection.spread_adjoint(self.v_grad)
        total = torch.cat([theta, self.lambda_grad])
        dist.all_reduce(total, group=self.process_group)
        leaves = point.leaves
        for leaf, grad in zip(leaves, total.split([len(p) for p in leaves]), strict=True):
            if leaf.requires_grad:
                leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad
        self._begin()


def check(model: nn.Module) -> None:
    """Raises if the model's trainable parameters are not all cut by fully_shard, in their first
    dimension and over one mesh. Makes modules show their shards."""
    if not isinstance(model, FSDPModule):
        raise ValueError("model: wanted one cut by fully_shard itself, got one with cut modules")
    reshard(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    mesh = None
    for name, p in named:
        if not isinstance(p, DTensor):
            raise ValueError(f"parameter {name}: wanted one cut by fully_shard, got a plain tensor")
        *others, last = p.placements
        if last != Shard(0) or any(placement != Replicate() for placement in others):
            raise ValueError(
                f"parameter {name}: wanted shards of the first dimension alone, got {p.placements}"
            )
        mesh = p.device_mesh if mesh is None else mesh
        if p.device_mesh != mesh:
            raise ValueError(
                f"parameter {name}: wanted the first one's mesh {mesh}, got {p.device_mesh}"
            )
        if p.is_meta:
            raise ValueError(f"parameter {name}: wanted loaded values, got meta")
        if p.dtype not in FLOATING:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise TypeError(f"parameter {name}: wanted one of {wanted}, got {p.dtype}")
    if not named:
        raise ValueError("model: wanted parameters that require gradients, got none")


def reshard(model: nn.Module) -> None:
    """Makes modules show their shards again, as FSDP leaves the root gathered after a forward."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(tensor: DTensor) -> Tensor:
    with torch.no_grad():
        return tensor.to_local().view(-1)


def _part(segment: Segment) -> Part:
    """This process's part of a tensor, which fully_shard cuts as torch.chunk does."""
    p = segment.parameter
    assert isinstance(p, DTensor)
    mesh, dim = p.device_mesh, p.device_mesh.ndim - 1
    above = min(mesh.get_local_rank(dim) * -(-len(p) // mesh.size(dim)), len(p))
    return Part(p, Run([segment]), above * (p.numel() // len(p)))
