"""The Walsh-Hadamard transform: the public functions, and what they refuse.

Each resolves its arguments to one `transform.Call` and hands that to `transform.run`.
"""

import torch

from .fakes import wide
from .ops import (
    FLOATING,
    STREAM_B,
    check_count,
    check_tensor,
    has_kernels,
    philox_words,
    unwatched,
)
from .orders import choose_order, is_order, is_power_of_two, nearest_sizes
from .transform import Call, can_write, operator_out, run

_FLOATING = frozenset(FLOATING)


def hadamard_transform(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    before: torch.Tensor | int | None = None,
    after: torch.Tensor | int | None = None,
    dim: int = -1,
    block: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The entries of `x` along `dim` times the Sylvester Hadamard matrix, times `scale`.

    Args:
        x: shape (..., n) for dim = -1, any strides; float32, float64, float16 or bfloat16.
            Sixteen-bit types are computed in float32 and rounded once.
        scale: a number; n ** -0.5 makes the transform orthonormal.
        before, after: diagonals that are multiplied in the same pass, y = scale * after * H (before
            * x): a tensor of shape (n,), or (block,) for the same in each block, or a seed, which
            stands for `random_signs(n, seed)`.
        dim: the dimension that is transformed.
        block: a power of two that divides n: each so many neighbouring entries along `dim` are
            transformed on their own. None stands for all n.
        out: a tensor of x's shape, dtype and device to write to; it may be `x`. Not with autograd.

    Where `dim` is the last one and its stride one, as in x[..., :4096] or a transposed (batch,
    heads, length, size) view, `x` is read and `out` is written where it lies, without a copy,
    unless its other dimensions take more than four strides.

    Returns:
        x's shape, dtype and device. If n is not a power of two, the entries are padded with zeros
        to the next one and the result is cut to n; that is no orthogonal transform (see
        `hadamard_transform_KN` for one).

    Raises:
        TypeError: `x` is no tensor of a floating type above. ValueError: `x` is a scalar, n = 0, or
        an argument does not fit `x`. RuntimeError: `out` in a differentiated call, or with entries
        that share memory.

    The float32 result is defined to the last bit: before * x; butterflies in the order of strides
    1, 2, 4, ..., each sum rounded once; the scale; `after`. Differentiable to any order, forward
    and backward, in `x`, `before` and `after`.
    """
    if before is None and after is None and dim == -1 and _is_ready(x, out, block):
        return _at_once(x, scale, out, block)
    if out is not None:
        _check_out(out, x)
    if not _fits(_row_size(x, dim, block), 1):
        return _padded(x, scale, 1, before, after, dim, out, block)
    diagonals = _diagonals(x, before, after, dim, block)
    return run(x, Call(float(scale), 1, False, *diagonals, block), dim, out)


def hadamard_transform_(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    before: torch.Tensor | int | None = None,
    after: torch.Tensor | int | None = None,
    dim: int = -1,
    block: int | None = None,
) -> torch.Tensor:
    """`hadamard_transform` in place: overwrites `x` (..., n), bumps its version counter and returns
    it. scale, before, after, dim, block, the dtypes and what it raises are as there.
    """
    return _padded(x, scale, 1, before, after, dim, x, block)


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
    block: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The entries of `x` along `dim` times the Hadamard matrix H_K (x) H_2^k of order n = K * 2^k,
    or its transpose, times `scale`; with `block`, each so many neighbouring entries, K * 2^k =
    block.

    Args:
        K: 1, one of `fastfood.orders.ORDERS` (12, 20, ... 1020: four times an odd number, but for
            668, 716 and 892; 40), or a product of two of them. None chooses for n, or block: 1,
            else an order up to 172 or 428, else a product of two of these, else any order, else any
            product, the smallest of its kind that fits.
        transpose: H_K is not symmetric for most K, so the inverse of y = H x is
            `hadamard_transform_KN(y, 1 / n, transpose=True)`.
        x, scale, before, after, dim, block, out: as in `hadamard_transform`; n is never padded.

    Raises:
        As `hadamard_transform`, and ValueError if n, or block, is not K times a power of two; the
        message names the nearest sizes that are.

    H_K is made by the constructions of Paley, Williamson, Goethals and Seidel, and Miyamoto (see
    csrc/orders.cpp). With K > 1 each backend takes the terms of a sum in an order of its own: in
    float32 an entry is within (K + log2 n) 2^-23 |scale| sum |x| of the exact one (2^-52 in
    float64), most by a few units in the last place, and rounded once to sixteen bits; on CUDA
    values below 2^-110 lose bits. With K = 1 every bit is defined.
    """
    if K is None and before is None and after is None and dim == -1 and _is_ready(x, out, block):
        return _at_once(x, scale, out, block)  # H_2^k is its own transpose
    n = _row_size(x, dim, block)
    wanted = (
        "block: wanted {} * 2^k"
        if block is not None
        else f"x: wanted {{}} * 2^k entries along dim {dim}"
    )
    if K is None:
        K = choose_order(n)
        if K is None:
            raise ValueError(f"{wanted.format('K')}, got {n}; {nearest_sizes(n)}")
    elif not is_order(K):
        raise ValueError(
            "K: wanted 1, 40, four times an odd number from 12 to 1020 (but 668, 716, 892), or a "
            f"product of two of these, got {K}"
        )
    elif n % K or not is_power_of_two(n // K):
        raise ValueError(f"{wanted.format(K)}, got {n}; {nearest_sizes(n, [K])}")
    if out is not None:
        _check_out(out, x)
    diagonals = _diagonals(x, before, after, dim, block)
    return run(x, Call(float(scale), K, transpose, *diagonals, block), dim, out)


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


def _row_size(x, dim, block) -> int:
    """How many entries are transformed together: n, or block."""
    n = _size(x, dim)
    if block is None:
        return n
    check_count(block, "block")
    if n % block:
        raise ValueError(
            f"block: wanted a divisor of the {n} entries of x along dim {dim}, got {block}"
        )
    return block


def _fits(n, K) -> bool:
    """Whether rows of n entries need no padding; a symbolic n is never padded."""
    return type(n) is not int or (K == 1 and is_power_of_two(n))


def _padded(x, scale, K, before=None, after=None, dim=-1, out=None, block=None):
    """The transform of rows that are padded with zeros to K * 2^k entries, cut to n."""
    n, scale = _row_size(x, dim, block), float(scale)
    if _fits(n, K):
        diagonals = _diagonals(x, before, after, dim, block)
        return run(x, Call(scale, K, False, *diagonals, block), dim, out)
    if block is not None:
        raise ValueError(f"block: wanted a power of two, got {block}; {nearest_sizes(block, [1])}")
    padding = (K << (-(-n // K) - 1).bit_length()) - n

    def pad(t):
        return t if t is None else torch.nn.functional.pad(t, (0, padding))

    diagonals = [pad(t) for t in _diagonals(x, before, after, dim)]
    y = run(pad(x.movedim(dim, -1)), Call(scale, K, False, *diagonals))
    y = y[..., :n].movedim(-1, dim)
    return y if out is None else out.copy_(y)


def _diagonals(
    x, before, after, dim, block=None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Both diagonals as tensors, in the type that `x` is computed in."""
    if before is None and after is None:
        return None, None
    n = x.shape[dim]
    return _diagonal(before, n, x, "before", block), _diagonal(after, n, x, "after", block)


def _diagonal(values, n, x, name, block):
    """`values`, or the signs of a seed."""
    if values is None:
        return None
    if isinstance(values, int):
        return random_signs(n, values, x.device, wide(x.dtype))
    check_tensor(values, name)
    fits = values.shape == (n,) or block is not None and values.shape == (block,)
    if not fits or values.device != x.device:
        shapes = f"({n},)" if block is None else f"({n},) or ({block},)"
        raise ValueError(
            f"{name}: wanted shape {shapes} on {x.device}, "
            f"got {tuple(values.shape)} on {values.device}"
        )
    return values.to(wide(x.dtype)).contiguous()


def _check_out(out, x) -> None:
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise RuntimeError("out: wanted a call without autograd, got one that requires a gradient")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"out: wanted {tuple(x.shape)}, {x.dtype}, {x.device}, "
            f"got {tuple(out.shape)}, {out.dtype}, {out.device}"
        )


# --- The simplest calls ---------------------------------------------------------------------------


def _is_ready(x, out, block) -> bool:
    """Whether the operator may have a call at once, its arguments unseen: on a GPU the careful way
    takes as long as the launch. The operator refuses an `out` that does not fit.
    """
    if type(x) is not torch.Tensor or torch.compiler.is_compiling() or not unwatched(x, out):
        return False
    n = (0, *x.shape)[-1]
    if block is not None:
        if type(block) is not int or block < 1 or n == 0 or n % block:
            return False
        n = block
    if x.dtype not in _FLOATING or not x.is_contiguous() or not is_power_of_two(n):
        return False
    return out is None or out is x or (type(out) is torch.Tensor and can_write(out, x))


def _at_once(x, scale, out, block):
    y = torch.empty_like(x) if out is None else out
    try:
        if block is None:
            operator_out(x, y, float(scale))  # every further argument costs time
        else:
            operator_out(x, y, float(scale), block=block)
    except RuntimeError:
        if out is not None:
            _check_out(out, x)
        raise
    if out is not None:
        torch.autograd.graph.increment_version(out)
    return y
