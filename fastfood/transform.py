"""The registered operator of the transform, `fastfood::hadamard_transform`, and its variant that
writes to a tensor given: the one way of all calls to it, and autograd, vmap and tracing.

Devices that have no kernel of ours run the same sums in plain torch.
"""

import functools
from typing import NamedTuple

import torch

from .fakes import wide
from .ops import linear_map, operators, unwatched
from .orders import factors_of
from .torch_internals import functorch_is_active

operator = operators.hadamard_transform.default
operator_out = operators.hadamard_transform_out.default  # no autograd stands before it


class Call(NamedTuple):
    """scale * after * H (before * x), H = H_K (x) H_2^k or its transpose: the operator's arguments
    beside x, in its order.

    before, after: diagonals of shape (n,) or (block,), of the type that x is computed in.
    block: how many entries of the last dimension are transformed together; None for all n.
    """

    scale: float = 1.0
    K: int = 1
    transpose: bool = False
    before: torch.Tensor | None = None
    after: torch.Tensor | None = None
    block: int | None = None

    def adjoint(self) -> "Call":
        """The transposed map: the diagonals change places."""
        scale, K, transpose, before, after, block = self
        return Call(scale, K, not transpose, after, before, block)


def run(
    x: torch.Tensor, call: Call, dim: int = -1, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The call on x (..., n), n along `dim`, by the shortest way that differentiates it: x's shape
    and dtype, or `out`, of both, with its version counter bumped."""
    if dim != -1 and dim != x.dim() - 1:
        y = run(x.movedim(dim, -1), call).movedim(-1, dim)
    elif torch.compiler.is_compiling():
        # the transforms of torch.func do not see into operators
        y = in_plain_torch(x, call) if functorch_is_active() else operator(x, *call)
    elif not unwatched(x, call.before, call.after):
        y = _watched(x, call)
    elif out is None or not can_write(out, x):
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        operator_out(x, y, *call)
    else:
        operator_out(x, out, *call)
        torch.autograd.graph.increment_version(out)
        return out
    return y if out is None else out.copy_(y)


def can_write(out: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether `out` may be written while `x` is read: it is x, or shares no memory with it."""
    return out is x or out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def _watched(x, call):
    """The call with its derivatives: H as a linear map, the diagonals as products around it."""
    if call.before is None and call.after is None:
        return linear_map(x, lambda x: operator(x, *call), lambda y: operator(y, *call.adjoint()))
    y = _times(x.to(wide(x.dtype)), call.before)
    return _times(_watched(y, call._replace(before=None, after=None)), call.after).to(x.dtype)


def _times(y, values):
    """y times a diagonal, of all its last dimension or of a block; the diagonal may have leading
    dimensions."""
    if values is None:
        return y
    size = values.shape[-1]
    if size == y.shape[-1]:
        return y * values
    return (y.unflatten(-1, (-1, size)) * values.unsqueeze(-2)).flatten(-2)


def in_plain_torch(x: torch.Tensor, call: Call) -> torch.Tensor:
    """The operator on devices that have no kernel of ours: with K = 1 the same sums in the same
    order.
    """
    y = _times(x.to(wide(x.dtype)), call.before)
    m = (x.shape[-1] if call.block is None else call.block) // call.K
    stride = 1
    while stride < m:
        a, b = y.unflatten(-1, (-1, 2, stride)).unbind(-2)
        y = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        stride *= 2
    for order in factors_of(call.K):
        H = _matrix(order).to(y)
        terms = y.unflatten(-1, (-1, order, stride))
        y = sum(
            terms[..., b : b + 1, :] * (H[b] if call.transpose else H[:, b]).unsqueeze(-1)
            for b in range(order)
        ).flatten(-3)
        stride *= order
    return _times(y * call.scale, call.after).to(x.dtype)


@functools.cache
def _matrix(K: int) -> torch.Tensor:
    """H_K, from the CPU's kernel, which is there on every machine."""
    return operator(torch.eye(K), 1.0, K, True)


# --- Registration --------------------------------------------------------------------------------


def _backward(ctx, g):
    call, adjoint, dtype = ctx.call, ctx.call.adjoint(), wide(ctx.dtype)
    needs_x, *needs = ctx.needs_input_grad
    needed = Call(*needs)  # compiled graphs leave default arguments out
    x_bar = before_bar = after_bar = None

    def to_diagonal(y, values):
        return y.reshape(-1, values.shape[0]).sum(0)

    if needs_x:
        x_bar = run(g, adjoint)
    if needed.before:
        y = run(g.to(dtype), adjoint._replace(after=None))
        before_bar = to_diagonal(y * ctx.x.to(dtype), call.before)
    if needed.after:
        y = run(ctx.x.to(dtype), call._replace(after=None))
        after_bar = to_diagonal(y * g.to(dtype), call.after)
    return x_bar, *Call(None, None, None, before_bar, after_bar, None)


def _setup_context(ctx, inputs, output):
    x, *arguments = inputs
    ctx.call, ctx.dtype = Call(*arguments), x.dtype
    ctx.x = x if any(ctx.needs_input_grad[1:]) else None  # for the gradients of diagonals


def _vmap(info, in_dims, x, *arguments):
    call, (x_dim, *dims) = Call(*arguments), in_dims
    call_dims = Call(*dims)
    y = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)

    def batched(values, dim):
        if dim is None:
            return values
        return values.movedim(dim, 0).unflatten(0, (-1, *[1] * (y.dim() - 2)))

    z = _times(y.to(wide(x.dtype)), batched(call.before, call_dims.before))
    z = operator(z, *call._replace(before=None, after=None))
    return _times(z, batched(call.after, call_dims.after)).to(x.dtype), 0


def _plain_kernel(x, *arguments):
    return in_plain_torch(x, Call(*arguments))


def _plain_kernel_out(x, out, *arguments):
    out.copy_(in_plain_torch(x, Call(*arguments)))


_library = torch.library.Library("fastfood", "IMPL")
_library.impl("hadamard_transform", _plain_kernel, "CompositeExplicitAutograd")
_library.impl("hadamard_transform_out", _plain_kernel_out, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastfood::hadamard_transform",
    lambda x, *arguments, **named: torch.empty_like(x, memory_format=torch.contiguous_format),
)
torch.library.register_fake("fastfood::hadamard_transform_out", lambda *arguments, **named: None)
torch.library.register_autograd(
    "fastfood::hadamard_transform", _backward, setup_context=_setup_context
)
torch.library.register_vmap("fastfood::hadamard_transform", _vmap)
