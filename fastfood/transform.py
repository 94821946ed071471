"""The registered operator of the transform, `fastfood::hadamard_transform`, and its variant that
writes to a tensor given: how calls come to it, and autograd, vmap and tracing.

Calls that nothing differentiates go straight to it; other eager calls through `ops.linear_map`;
compiled code meets the operator itself. Devices that have no kernel of ours run the same sums in
plain torch.
"""

import functools

import torch

from .ops import linear_map, operators, save_arguments, unwatched
from .orders import factors_of

_operator = operators.hadamard_transform.default
operator_out = operators.hadamard_transform_out.default  # no autograd stands before it


def apply(
    x: torch.Tensor,
    scale: float,
    K: int,
    transpose: bool,
    before: torch.Tensor | None,
    after: torch.Tensor | None,
    block: int | None,
) -> torch.Tensor:
    """scale * after * H (before * x) over the last dimension, or each `block` entries of it, by the
    shortest way that differentiates it.

    x: shape (..., n); before, after: shape (n,) or (block,), of the type that x is computed in.
    Returns x's shape and dtype.
    """
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():  # they do not see into operators
            return in_plain_torch(x, scale, K, transpose, before, after, block)
        return _operator(x, scale, K, transpose, before, after, block)
    if unwatched(x, before, after):
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        return fill(out, x, scale, K, transpose, before, after, block)
    if before is None and after is None:
        return _linear(x, scale, K, transpose, block)
    y = _times(x.to(torch.promote_types(x.dtype, torch.float32)), before)
    return _times(_linear(y, scale, K, transpose, block), after).to(x.dtype)


def fill(
    out: torch.Tensor,
    x: torch.Tensor,
    scale: float = 1.0,
    K: int = 1,
    transpose: bool = False,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    block: int | None = None,
) -> torch.Tensor:
    """Writes `apply` to `out`, of x's shape, where nothing differentiates it, and returns it."""
    if K == 1 and before is None and after is None and block is None:
        operator_out(x, out, scale)  # each argument takes its time
    else:
        operator_out(x, out, scale, K, transpose, before, after, block)
    return out


def _linear(x, scale, K, transpose, block):
    def f(x):
        return _operator(x, scale, K, transpose, None, None, block)

    def adjoint(y):
        return _operator(y, scale, K, not transpose, None, None, block)

    return linear_map(x, f, adjoint)


def _times(y, values):
    """y times a diagonal, of all its last dimension or of a block; the diagonal may have leading
    dimensions."""
    if values is None:
        return y
    size = values.shape[-1]
    if size == y.shape[-1]:
        return y * values
    return (y.unflatten(-1, (-1, size)) * values.unsqueeze(-2)).flatten(-2)


def in_plain_torch(
    x: torch.Tensor,
    scale: float = 1.0,
    K: int = 1,
    transpose: bool = False,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    block: int | None = None,
) -> torch.Tensor:
    """The operator on devices that have no kernel of ours: with K = 1 the same sums in the same
    order.
    """
    y = _times(x.to(torch.promote_types(x.dtype, torch.float32)), before)
    m = (x.shape[-1] if block is None else block) // K
    stride = 1
    while stride < m:
        a, b = y.unflatten(-1, (-1, 2, stride)).unbind(-2)
        y = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        stride *= 2
    for order in factors_of(K):
        H = _matrix(order).to(y)
        terms = y.unflatten(-1, (-1, order, stride))
        y = sum(
            terms[..., b : b + 1, :] * (H[b] if transpose else H[:, b]).unsqueeze(-1)
            for b in range(order)
        ).flatten(-3)
        stride *= order
    return _times(y * scale, after).to(x.dtype)


@functools.cache
def _matrix(K: int) -> torch.Tensor:
    """H_K, from the CPU's kernel, which is there on every machine."""
    return _operator(torch.eye(K), 1.0, K, True)


# --- Registration --------------------------------------------------------------------------------


def _backward(ctx, g):
    scale, K, transpose, before, after, block = ctx.arguments
    x_bar = before_bar = after_bar = None
    wide = torch.promote_types(ctx.dtype, torch.float32)
    needs = (*ctx.needs_input_grad, *[False] * 7)  # compiled graphs leave default arguments out

    def to_diagonal(y, values):
        return y.reshape(-1, values.shape[0]).sum(0)

    if needs[0]:
        x_bar = apply(g, scale, K, not transpose, after, before, block)
    if needs[4]:
        y = apply(g.to(wide), scale, K, not transpose, after, None, block)
        before_bar = to_diagonal(y * ctx.x.to(wide), before)
    if needs[5]:
        y = apply(ctx.x.to(wide), scale, K, transpose, before, None, block)
        after_bar = to_diagonal(y * g.to(wide), after)
    return x_bar, None, None, None, before_bar, after_bar, None


def _setup_context(ctx, inputs, output):
    save_arguments(ctx, inputs, output)
    ctx.x = inputs[0] if any(ctx.needs_input_grad[4:]) else None


def _vmap(info, in_dims, x, scale, K, transpose, before, after, block):
    x_dim, before_dim, after_dim = in_dims[0], in_dims[4], in_dims[5]
    y = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)
    wide = torch.promote_types(x.dtype, torch.float32)

    def batched(values, dim):
        if dim is None:
            return values
        return values.movedim(dim, 0).unflatten(0, (-1, *[1] * (y.dim() - 2)))

    z = _times(y.to(wide), batched(before, before_dim))
    z = _operator(z, scale, K, transpose, None, None, block)
    return _times(z, batched(after, after_dim)).to(x.dtype), 0


def _out_in_plain_torch(x, out, *arguments):
    out.copy_(in_plain_torch(x, *arguments))


_library = torch.library.Library("fastfood", "IMPL")
_library.impl("hadamard_transform", in_plain_torch, "CompositeExplicitAutograd")
_library.impl("hadamard_transform_out", _out_in_plain_torch, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastfood::hadamard_transform",
    lambda x, *arguments, **named: torch.empty_like(x, memory_format=torch.contiguous_format),
)
torch.library.register_fake("fastfood::hadamard_transform_out", lambda *arguments, **named: None)
torch.library.register_autograd(
    "fastfood::hadamard_transform", _backward, setup_context=_setup_context
)
torch.library.register_vmap("fastfood::hadamard_transform", _vmap)
