"""The Walsh-Hadamard transform: the public functions, and their registration with torch.

All of them are one registered operator, `fastfood::hadamard_transform`, and its variant that writes
to a tensor given. Calls that nothing differentiates go straight to it; other eager calls through
`ops.linear_map`; compiled code meets the operator itself. Devices that have no kernel of ours run
the same sums in plain torch.
"""

import functools

import torch

from .ops import (
    FLOATING,
    STREAM_B,
    check_tensor,
    has_kernels,
    linear_map,
    operators,
    philox_words,
    save_arguments,
    unwatched,
)

# The orders K of csrc/orders.cpp: 40, and four times an odd number but for three that nobody knows.
# Products of two are taken as well.
ORDERS = (*(K for K in range(12, 1021, 8) if K not in (668, 716, 892)), 40)
_PRODUCTS = {a * b for a in ORDERS for b in ORDERS} - set(ORDERS)
_FIRST = {K for K in ORDERS if K <= 172 or K == 428}  # which are chosen before all others
_FLOATING = frozenset(FLOATING)

_operator = operators.hadamard_transform.default
_operator_out = operators.hadamard_transform_out.default


def hadamard_transform(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    before: torch.Tensor | int | None = None,
    after: torch.Tensor | int | None = None,
    dim: int = -1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The entries of `x` along `dim` times the Sylvester Hadamard matrix, times `scale`.

    Args:
        x: shape (..., n) for dim = -1, any strides; float32, float64, float16 or bfloat16.
            Sixteen-bit types are computed in float32 and rounded once.
        scale: a number; n ** -0.5 makes the transform orthonormal.
        before, after: diagonals that are multiplied in the same pass, y = scale * after * H (before
            * x): a tensor of shape (n,), or a seed, which stands for `random_signs(n, seed)`.
        dim: the dimension that is transformed.
        out: a tensor of x's shape, dtype and device to write to; it may be `x`. Not with autograd.

    Returns:
        x's shape, dtype and device. If n is not a power of two, the entries are padded with zeros
        to the next one and the result is cut to n; that is no orthogonal transform (see
        `hadamard_transform_KN` for one).

    Raises:
        TypeError: `x` is no tensor of a floating type above. ValueError: `x` is a scalar, n = 0, or
        an argument does not fit `x`. RuntimeError: `out` in a differentiated call.

    The float32 result is defined to the last bit: before * x; butterflies in the order of strides
    1, 2, 4, ..., each sum rounded once; the scale; `after`. Differentiable to any order, forward
    and backward, in `x`, `before` and `after`.
    """
    if before is None and after is None and dim == -1 and _is_ready(x, out):
        return _fill_ready(x, scale, out)
    if out is not None:
        _check_out(out, x)
    return _padded(x, scale, 1, before, after, dim, out)


def hadamard_transform_(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    before: torch.Tensor | int | None = None,
    after: torch.Tensor | int | None = None,
    dim: int = -1,
) -> torch.Tensor:
    """`hadamard_transform` in place: overwrites `x` (..., n), bumps its version counter and returns
    it. scale, before, after, dim, the dtypes and what it raises are as there.
    """
    return _padded(x, scale, 1, before, after, dim, x)


def hadamard_transform_12N(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`hadamard_transform` with n = 12 * 2^k, of `x` (..., n) in its dtypes times `scale`: H_12 (x)
    H_2^k, in which H_12 (Paley) is symmetric. Other sizes are padded with zeros to the next such n
    and the result is cut. Raises what `hadamard_transform` does.
    """
    return _padded(x, scale, 12)


def hadamard_transform_20N(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`hadamard_transform_12N` with n = 20 * 2^k, of `x` (..., n) in the same dtypes times `scale`.
    H_20 (Williamson) is not symmetric, the gradient applies its transpose. Raises the same.
    """
    return _padded(x, scale, 20)


def hadamard_transform_28N(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`hadamard_transform_20N` with n = 28 * 2^k, of `x` (..., n) in the same dtypes times `scale`.
    H_28 is Williamson's, not symmetric either. Raises the same.
    """
    return _padded(x, scale, 28)


def hadamard_transform_40N(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """`hadamard_transform_20N` with n = 40 * 2^k, of `x` (..., n) in the same dtypes times `scale`.
    H_40 is H_2 (x) H_20, this one Paley's. Raises the same.
    """
    return _padded(x, scale, 40)


def hadamard_transform_KN(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    K: int | None = None,
    transpose: bool = False,
    before: torch.Tensor | int | None = None,
    after: torch.Tensor | int | None = None,
    dim: int = -1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The entries of `x` along `dim` times the Hadamard matrix H_K (x) H_2^k of order n = K * 2^k,
    or its transpose, times `scale`.

    Args:
        K: 1, one of `ORDERS` (12, 20, ... 1020: four times an odd number, but for 668, 716 and
            892; 40), or a product of two of them. None chooses for n: 1, else an order up to 172 or
            428, else a product of two of these, else any order, else any product, the smallest of
            its kind that fits.
        transpose: H_K is not symmetric for most K, so the inverse of y = H x is
            `hadamard_transform_KN(y, 1 / n, transpose=True)`.
        x, scale, before, after, dim, out: as in `hadamard_transform`; n is never padded.

    Raises:
        As `hadamard_transform`, and ValueError if n is not K times a power of two; the message
        names the nearest sizes that are.

    H_K is made by the constructions of Paley, Williamson, Goethals and Seidel, and Miyamoto (see
    csrc/orders.cpp). With K > 1 each backend takes the terms of a sum in an order of its own: in
    float32 an entry is within (K + log2 n) 2^-23 |scale| sum |x| of the exact one (2^-52 in
    float64), most by a few units in the last place, and rounded once to sixteen bits. With K = 1
    every bit is defined.
    """
    if K is None and before is None and after is None and dim == -1 and _is_ready(x, out):
        return _fill_ready(x, scale, out)  # H_2^k is its own transpose
    n = _size(x, dim)
    if K is None:
        K = _choose(n)
        if K is None:
            raise ValueError(f"x: wanted K * 2^k entries along dim {dim}, got {n}; {_nearest(n)}")
    elif K != 1 and K not in ORDERS and K not in _PRODUCTS:
        raise ValueError(
            "K: wanted 1, 40, four times an odd number from 12 to 1020 (but 668, 716, 892), or a "
            f"product of two of these, got {K}"
        )
    elif n % K or not _is_power(n // K):
        raise ValueError(
            f"x: wanted {K} * 2^k entries along dim {dim}, got {n}; {_nearest(n, [K])}"
        )
    if out is not None:
        _check_out(out, x)
    return _transform(x, float(scale), K, transpose, before, after, dim, out)


def random_signs(
    n: int, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """n random signs, +1 or -1, of shape (n,): the first n entries of B of `seed`
    (csrc/definitions.h).

    The same on every device and in every dtype, integers too. Raises ValueError unless n >= 0 and
    0 <= seed < 2**64.
    """
    if n < 0:
        raise ValueError(f"n: wanted no negative number, got {n}")
    words = philox_words(seed, STREAM_B, 0, -(-n // 128), device if has_kernels(device) else "cpu")
    words = words.to(device)
    bits = (words.unsqueeze(1) >> torch.arange(32, device=device)) & 1
    return (1 - 2 * bits.reshape(-1)[:n]).to(dtype)


# --- Arguments -----------------------------------------------------------------------------------


def _is_power(n) -> bool:
    return n > 0 and not n & (n - 1)


def _size(x, dim) -> int:
    check_tensor(x, "x")
    shape = x.shape
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim: wanted a dimension of a tensor of {len(shape)}, got {dim}")
    n = shape[dim]
    if n == 0:
        raise ValueError(
            f"x: wanted at least one entry along dim {dim}, got shape {tuple(x.shape)}"
        )
    return n


@functools.cache
def _choose(n: int):
    """The K of `hadamard_transform_KN`, or None."""
    first_products = {a * b for a in _FIRST for b in _FIRST} - _FIRST
    for candidates in ({1}, _FIRST, first_products, ORDERS, _PRODUCTS):
        for K in sorted(candidates):
            if n % K == 0 and _is_power(n // K):
                return K
    return None


def _nearest(n: int, orders=(1, *ORDERS, *_PRODUCTS)) -> str:
    above = min(K << max(0, (-(-n // K) - 1).bit_length()) for K in orders)
    below = max((K << (n // K).bit_length() - 1 for K in orders if K <= n), default=None)
    return f"the next size is {above}" + (f", the one before {below}" if below else "")


def _padded(x, scale, K, before=None, after=None, dim=-1, out=None):
    n, scale = _size(x, dim), float(scale)
    if type(n) is not int or _is_power(n) and K == 1:
        return _transform(x, scale, K, False, before, after, dim, out)
    padding = (K << (-(-n // K) - 1).bit_length()) - n

    def pad(t):
        return t if t is None else torch.nn.functional.pad(t, (0, padding))

    before, after = pad(_diagonal(before, n, x, "before")), pad(_diagonal(after, n, x, "after"))
    y = _transform(pad(x.movedim(dim, -1)), scale, K, False, before, after, -1, None)
    y = y[..., :n].movedim(-1, dim)
    return y if out is None else out.copy_(y)


def _diagonal(values, n, x, name):
    """`values`, or the signs of a seed, in the type that `x` is computed in."""
    if values is None:
        return None
    wide = torch.promote_types(x.dtype, torch.float32)
    if isinstance(values, int):
        return random_signs(n, values, x.device, wide)
    check_tensor(values, name)
    if values.shape != (n,) or values.device != x.device:
        raise ValueError(
            f"{name}: wanted shape ({n},) on {x.device}, "
            f"got {tuple(values.shape)} on {values.device}"
        )
    return values.to(wide).contiguous()


def _check_out(out, x) -> None:
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise RuntimeError("out: wanted a call without autograd, got one that requires a gradient")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"out: wanted {tuple(x.shape)}, {x.dtype}, {x.device}, "
            f"got {tuple(out.shape)}, {out.dtype}, {out.device}"
        )


# --- The call ------------------------------------------------------------------------------------


def _is_ready(x, out) -> bool:
    """Whether a call is as simple as can be, so that the operator may have it at once: on a GPU the
    careful way below takes as long as the launch. Of `out` the operator refuses what does not fit.
    """
    if type(x) is not torch.Tensor or torch.compiler.is_compiling() or not unwatched(x, out):
        return False
    if x.dtype not in _FLOATING or not x.is_contiguous() or not _is_power((0, *x.shape)[-1]):
        return False
    return out is None or out is x or (type(out) is torch.Tensor and _can_write(out, x))


def _fill_ready(x, scale, out):
    y = torch.empty_like(x) if out is None else out
    try:
        _operator_out(x, y, float(scale))
    except RuntimeError:
        if out is not None:
            _check_out(out, x)
        raise
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return y


def _transform(x, scale, K, transpose, before, after, dim, out):
    if before is not None or after is not None:
        n = x.shape[dim]
        before, after = _diagonal(before, n, x, "before"), _diagonal(after, n, x, "after")
    if dim != -1 and dim != x.dim() - 1:
        y = _apply(x.movedim(dim, -1), scale, K, transpose, before, after).movedim(-1, dim)
        return y if out is None else out.copy_(y)
    if out is None:
        return _apply(x, scale, K, transpose, before, after)
    if torch.compiler.is_compiling() or not _can_write(out, x) or not unwatched(x, before, after):
        return out.copy_(_apply(x, scale, K, transpose, before, after))
    _fill(out, x, scale, K, transpose, before, after)
    torch.autograd.graph.increment_version(out)
    return out


def _can_write(out, x) -> bool:
    """Whether `out` may be written while `x` is read: it is x, or shares no memory with it."""
    if not out.is_contiguous():
        return False
    return out is x or out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def _apply(x, scale, K, transpose, before, after):
    """scale * after * H (before * x) over the last dimension, by the shortest way that
    differentiates it.
    """
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():  # they do not see into operators
            return in_plain_torch(x, scale, K, transpose, before, after)
        return _operator(x, scale, K, transpose, before, after)
    if unwatched(x, before, after):
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty_like(x)
        return _fill(out, x, scale, K, transpose, before, after)
    if before is None and after is None:
        return _linear(x, scale, K, transpose)
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    y = _linear(y if before is None else y * before, scale, K, transpose)
    return (y if after is None else y * after).to(x.dtype)


def _fill(out, x, scale, K, transpose, before, after):
    """Writes to `out` by the operator that no autograd stands before, and returns it."""
    if K == 1 and before is None and after is None:
        _operator_out(x, out, scale)  # each argument takes its time
    else:
        _operator_out(x, out, scale, K, transpose, before, after)
    return out


def _linear(x, scale, K, transpose):
    def f(x):
        return _operator(x, scale, K, transpose)

    def adjoint(y):
        return _operator(y, scale, K, not transpose)

    return linear_map(x, f, adjoint)


# --- Registration --------------------------------------------------------------------------------


def _backward(ctx, g):
    scale, K, transpose, before, after = ctx.arguments
    x_bar = before_bar = after_bar = None
    wide = torch.promote_types(ctx.dtype, torch.float32)
    needs = (*ctx.needs_input_grad, *[False] * 6)  # compiled graphs leave default arguments out
    if needs[0]:
        x_bar = _apply(g, scale, K, not transpose, after, before)
    if needs[4]:
        y = _apply(g.to(wide), scale, K, not transpose, after, None)
        before_bar = (y * ctx.x.to(wide)).flatten(0, -2).sum(0) if y.dim() > 1 else y * ctx.x
    if needs[5]:
        y = _apply(ctx.x.to(wide), scale, K, transpose, before, None)
        after_bar = (y * g.to(wide)).flatten(0, -2).sum(0) if y.dim() > 1 else y * g
    return x_bar, None, None, None, before_bar, after_bar


def _setup_context(ctx, inputs, output):
    save_arguments(ctx, inputs, output)
    ctx.x = inputs[0] if any(ctx.needs_input_grad[4:]) else None


def _vmap(info, in_dims, x, scale, K, transpose, before, after):
    x_dim, before_dim, after_dim = in_dims[0], in_dims[4], in_dims[5]
    y = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)
    wide = torch.promote_types(x.dtype, torch.float32)

    def times(y, values, dim):
        if values is None:
            return y
        if dim is not None:
            values = values.movedim(dim, 0).unflatten(0, (-1, *[1] * (y.dim() - 2)))
        return y * values

    y = times(y.to(wide), before, before_dim)
    y = _operator(y, scale, K, transpose)
    return times(y, after, after_dim).to(x.dtype), 0


@functools.cache
def _matrix(K: int) -> torch.Tensor:
    """H_K, from the CPU's kernel, which is there on every machine."""
    return _operator(torch.eye(K), 1.0, K, True)


def in_plain_torch(
    x: torch.Tensor,
    scale: float = 1.0,
    K: int = 1,
    transpose: bool = False,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator on devices that have no kernel of ours: with K = 1 the same sums in the same
    order.
    """
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    y = y if before is None else y * before
    m = x.shape[-1] // K
    stride = 1
    while stride < m:
        a, b = y.unflatten(-1, (-1, 2, stride)).unbind(-2)
        y = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        stride *= 2
    for order in _factors(K):
        H = _matrix(order).to(y)
        terms = y.unflatten(-1, (-1, order, stride))
        y = sum(
            terms[..., b : b + 1, :] * (H[b] if transpose else H[:, b]).unsqueeze(-1)
            for b in range(order)
        ).flatten(-3)
        stride *= order
    y = y * scale
    return (y if after is None else y * after).to(x.dtype)


def _factors(K: int):
    """The orders that K is made of, that of the smaller stride first, as in csrc/orders.h."""
    if K == 1 or K in ORDERS:
        return [K] if K > 1 else []  # compiled code may have a symbol for K
    pairs = [(a + K // a, K // a, a) for a in ORDERS if K // a in ORDERS and K % a == 0]
    return min(pair for pair in pairs if pair[1] >= pair[2])[1:]


_library = torch.library.Library("fastfood", "IMPL")
_library.impl("hadamard_transform", in_plain_torch, "CompositeExplicitAutograd")
_library.impl(
    "hadamard_transform_out",
    lambda x, out, *arguments: out.copy_(in_plain_torch(x, *arguments)) and None,
    "CompositeExplicitAutograd",
)
torch.library.register_fake(
    "fastfood::hadamard_transform",
    lambda x, *arguments, **named: torch.empty_like(x, memory_format=torch.contiguous_format),
)
torch.library.register_fake("fastfood::hadamard_transform_out", lambda *arguments, **named: None)
torch.library.register_autograd(
    "fastfood::hadamard_transform", _backward, setup_context=_setup_context
)
torch.library.register_vmap("fastfood::hadamard_transform", _vmap)
