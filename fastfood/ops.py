"""The registered operators and their public functions.

Every operator here is linear in its first argument, and its adjoint is an operator here as well:
that is all that autograd, forward mode and vmap of any order need. Eager code goes through one
`torch.autograd.Function`; compiled code meets the registered operator itself. The arithmetic, and
the pure functions of (seed, stream, index) that the random matrices are made of, are described in
csrc/definitions.h.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .fakes import FAKES, FLOATING
from .loading import why_no_kernels
from .torch_internals import below_autograd, is_transformed

_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)  # dtypes that are computed in it

# Streams of random numbers, as in csrc/definitions.h.
STREAM_G, STREAM_B, STREAM_PI, STREAM_DENSE, STREAM_SPARSE, STREAM_LENGTHS = range(6)

operators = torch.ops.fastfood
_library = torch.library.Library("fastfood", "IMPL")


class _LinearMap(torch.autograd.Function):
    """y = f(x) for a linear f over the last dimension whose adjoint is `adjoint`; both take
    leading dimensions.
    """

    @staticmethod
    def forward(x, f, adjoint):
        return f(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.f, ctx.adjoint = inputs
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx, g):
        return linear_map(g, ctx.adjoint, ctx.f).to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx, x_tangent, _f, _adjoint):
        return linear_map(x_tangent, ctx.f, ctx.adjoint)

    @staticmethod
    def vmap(info, in_dims, x, f, adjoint):
        return linear_map(x.movedim(in_dims[0], 0), f, adjoint), 0


def linear_map(
    x: torch.Tensor,
    f: Callable[[torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """f(x), differentiable to any order in both modes, for a linear map `f` and its adjoint
    `adjoint`.

    Both map (..., a) to (..., b) or back. They may not save their argument for later.
    """
    return _LinearMap.apply(x, f, adjoint)


def unwatched(*tensors: torch.Tensor | None) -> bool:
    """Whether an eager call with these tensors may go straight to the operator, since there is no
    gradient, no tangent and no function transform to look at it."""
    if is_transformed():
        return False
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in tensors
    )


def _unrecorded() -> Any:
    """A context for operators that nothing differentiates: they skip their autograd kernel, which
    is slow, as it is written in Python."""
    return torch.no_grad() if torch.compiler.is_compiling() else below_autograd()


def has_kernels(device: torch.device | str) -> bool:
    """Whether the operators have kernels of ours on `device`."""
    return not why_no_kernels(torch.device(device).type)


def check_tensor(x: object, name: str, dtypes: Sequence[torch.dtype] = FLOATING) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: wanted a tensor, got {type(x).__name__}")
    if x.dtype not in dtypes:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: wanted a dtype among {wanted}, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{name}: wanted at least one dimension, got a scalar")


def check_count(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: wanted an integer of at least 1, got {value!r}")


def _check_rows(start: int, stop: int) -> None:
    if not 0 <= start <= stop:
        raise ValueError(f"start, stop: wanted 0 <= start <= stop, got {start}, {stop}")


def _check_block_length(L: int, name: str) -> None:
    if L < 256 or L & (L - 1):
        raise ValueError(f"{name}: wanted a power of two of at least 256, got {L}")


def check_out(out: torch.Tensor, x: torch.Tensor, last: int) -> None:
    """Raises unless `out` can take a result computed from x, with `last` entries along the last
    dimension: in x's dtype, or one of 16 bits for float32, in a call that is not differentiated."""
    check_tensor(out, "out", (torch.float64,) if x.dtype == torch.float64 else _IN_FLOAT32)
    shape = (*x.shape[:-1], last)
    if out.shape != shape or out.device != x.device or not out.is_contiguous():
        raise ValueError(
            f"out: wanted a contiguous tensor of shape {shape} on {x.device}, got "
            f"{tuple(out.shape)} on {out.device} with strides {out.stride()}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise RuntimeError("out: wanted a call that is not differentiated, got one that is")


def signed(seed: int) -> int:
    """The signed number with the 64-bit pattern of `seed`: operators take no unsigned ones.

    Raises ValueError unless 0 <= seed < 2**64.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: wanted an integer 0 <= seed < 2**64, got {seed!r}")
    return seed - (1 << 64) if seed >> 63 else seed


def project_rows(
    v: torch.Tensor, seed: int, start: int, stop: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows [start, stop) of stack_b(H_L(G_b * v)), the part of the Fastfood projection whose cost
    grows with D.

    Args:
        v: shape (..., L), float32 or float64; L a power of two of at least 256.
        seed: 0 <= seed < 2**64, the key of G.
        start, stop: rows; row r belongs to block b = r // L.
        out: a contiguous tensor to write to, of shape (..., stop - start), in v's dtype or, for
            float32, in one of 16 bits, rounded once. Not with autograd.

    Returns:
        Shape (..., stop - start) of v's dtype, or `out`, its version counter bumped. Raises
        TypeError or ValueError for anything else, RuntimeError for `out` in a differentiated call.

    Source: Le, Sarlos, Smola, "Fastfood", ICML 2013; eq. 2 of Aghajanyan et al., ACL 2021.
    """
    check_tensor(v, "v", (torch.float32, torch.float64))
    _check_block_length(v.shape[-1], "v")
    _check_rows(start, stop)
    if out is None:
        return _rows(v, signed(seed), start, stop)
    check_out(out, v, stop - start)
    operators.project_rows_out(v, out, signed(seed), start)
    torch.autograd.graph.increment_version(out)
    return out


def project_rows_adjoint(g: torch.Tensor, L: int, seed: int, start: int) -> torch.Tensor:
    """The adjoint of `project_rows`: z = sum_b G_b * H_L(g_b), for a gradient of rows [start, start
    + len).

    Args:
        g: shape (..., len), float32, float64, float16 or bfloat16.
        L, seed, start: as in `project_rows`.

    Returns:
        Shape (..., L), float32, or float64 for float64. The order of summation is fixed, so the
        bits do not depend on the number of threads. Raises TypeError or ValueError for anything
        else.
    """
    check_tensor(g, "g")
    _check_block_length(L, "L")
    _check_rows(start, start + g.shape[-1])
    return _rows_adjoint(g, L, signed(seed), start)


def project_rows_adjoint_sum(
    gs: Sequence[torch.Tensor],
    starts: Sequence[int],
    factors: Sequence[float],
    L: int,
    seed: int,
) -> torch.Tensor:
    """The sum of factors[i] * project_rows_adjoint(gs[i].flatten(), L, seed, starts[i]), in one
    pass over all of them, on CUDA in one launch for each 64.

    Args:
        gs: at least one tensor, of any shapes and strides, of one device, each float32, float64,
            float16 or bfloat16; their rows may overlap.
        starts, factors: a first row and a number for each.
        L, seed: as in `project_rows`.

    Returns:
        Shape (L,), float64 if any of gs is, else float32. The order of summation is fixed by the
        arguments: the same bits in every run. Differentiable to any order in gs. Raises TypeError
        or ValueError for anything else.
    """
    gs, starts, factors = list(gs), list(starts), list(factors)
    operator, compiling = operators.project_rows_adjoint_sum, torch.compiler.is_compiling()
    if gs and not compiling and all(type(g) is torch.Tensor for g in gs) and unwatched(*gs):
        try:
            with _unrecorded():
                return operator(gs, starts, factors, L, signed(seed))
        except RuntimeError:
            _check_pieces(gs, starts, factors, L)
            raise
    _check_pieces(gs, starts, factors, L)
    if compiling:
        return operator(gs, starts, factors, L, signed(seed))
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gs) else torch.float32
    parts = (
        _rows_adjoint(g.reshape(-1), L, signed(seed), start)
        for g, start in zip(gs, starts, strict=True)
    )
    return sum(part.to(dtype) * f for part, f in zip(parts, factors, strict=True))


def _check_pieces(gs, starts, factors, L) -> None:
    if not gs or len(starts) != len(gs) or len(factors) != len(gs):
        raise ValueError(
            "gs, starts, factors: wanted as many of each and at least one, got "
            f"{len(gs)}, {len(starts)}, {len(factors)}"
        )
    _check_block_length(L, "L")
    for g, start in zip(gs, starts, strict=True):
        check_tensor(g, "gs")
        if g.device != gs[0].device:
            raise ValueError(f"gs: wanted tensors on {gs[0].device}, got one on {g.device}")
        _check_rows(start, start + g.numel())


def _rows(v, seed, start, stop):
    if torch.compiler.is_compiling():
        return operators.project_rows(v, seed, start, stop)
    L = v.shape[-1]
    return linear_map(
        v,
        lambda v: operators.project_rows(v, seed, start, stop),
        lambda g: operators.project_rows_adjoint(g, L, seed, start),
    )


def _rows_adjoint(g, L, seed, start):
    if torch.compiler.is_compiling():
        return operators.project_rows_adjoint(g, L, seed, start)
    stop = start + g.shape[-1]
    return linear_map(
        g,
        lambda g: operators.project_rows_adjoint(g, L, seed, start),
        lambda z: operators.project_rows(z, seed, start, stop),
    )


def perturb_(
    out: torch.Tensor,
    base: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor,
    seed: int,
    start: int = 0,
) -> torch.Tensor:
    """Writes out[i] = base[i] + scales[s] * y[start + i] for offsets[s] <= i < offsets[s + 1], y as
    in `project_rows`.

    Args:
        out, base: shape (N,), contiguous, of one dtype: float32, float64, float16 or bfloat16; they
            may be the same.
        v: shape (L,), float32, or float64 if `out` is.
        offsets: int64, shape (S + 1,), ascending, offsets[0] = 0 and offsets[S] = N (the caller's
            promise: the values are not read here, as they may lie on a GPU).
        scales: shape (S,), of v's dtype.
        seed, start: as in `project_rows`.

    Returns:
        `out`, its version counter bumped. Not differentiable. Raises RuntimeError naming the
        argument that is off.
    """
    with _unrecorded():
        operators.perturb_(out, base, v, offsets, scales, signed(seed), start)
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out


def perturbed(
    bases: Sequence[torch.Tensor],
    v: torch.Tensor,
    bounds: torch.Tensor,
    scales: torch.Tensor,
    seed: int,
    starts: Sequence[int],
    places: Sequence[int],
) -> list[torch.Tensor]:
    """New tensors, the flat i-th of which is bases[i] + scales[places[i]] * y[starts[i] + ...], y
    as in `project_rows`.

    Args:
        bases: at least one tensor, of any shapes, of one dtype and device: float32, float64,
            float16 or bfloat16.
        v: as in `perturb_`.
        bounds: int64, shape (2,): 0, and a number that no base has more entries than (the caller's
            promise: it lies on the device for the kernels and is not read here).
        scales: shape (S,), of v's dtype.
        seed: as in `project_rows`.
        starts, places: a first row and a place in `scales` for each base.

    Returns:
        Contiguous tensors of the bases' shapes and dtype. Not differentiable. Raises RuntimeError
        naming the argument that is off.
    """
    with _unrecorded():
        return operators.perturbed(bases, v, bounds, scales, signed(seed), starts, places)


def philox_words(
    seed: int, stream: int, first: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The words of calls [first, first + count) of a stream: int32 bit patterns, shape (4 *
    count,).

    Philox4x32 with seven rounds, the key `seed`, the counter (call, stream); Salmon et al., SC
    2011.
    """
    return operators.philox_words(torch.empty(0, device=device), signed(seed), stream, first, count)


def normals(
    seed: int, stream: int, first: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Eight standard normals for each call [first, first + count) of a stream: float32, shape (8 *
    count,).
    """
    return operators.normals(torch.empty(0, device=device), signed(seed), stream, first, count)


# --- Registration --------------------------------------------------------------------------------


def _refuse(name):
    """A kernel that refuses, for devices and layouts that have no kernel of ours."""

    def refuse(x, *arguments, **named):
        x = x[0] if isinstance(x, list) else x
        kind = x.device.type
        raise NotImplementedError(
            f"{name}: wanted dense tensors on a device with kernels, got {x.layout} on {kind}"
            + (f"; {why_no_kernels(kind)}" if why_no_kernels(kind) else "")
        )

    return refuse


def save_arguments(ctx: Any, inputs: tuple, output: object) -> None:
    ctx.arguments = inputs[1:]
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _rows_adjoint_backward(ctx, z):
    _, seed, start = ctx.arguments
    return _rows(z, seed, start, start + ctx.shape[-1]).to(ctx.dtype), None, None, None


def _save_sum(ctx, inputs, output) -> None:
    gs, ctx.starts, ctx.factors, _, ctx.seed = inputs
    ctx.sizes = [(g.shape, g.dtype) for g in gs]


def _rows_adjoint_sum_backward(ctx, z):
    pieces = zip(ctx.sizes, ctx.starts, ctx.factors, strict=True)
    grads = [
        (_rows(z, ctx.seed, start, start + shape.numel()) * factor).to(dtype).view(shape)
        for (shape, dtype), start, factor in pieces
    ]
    return grads, None, None, None, None


def _rows_backward(ctx, g):
    seed, start, _ = ctx.arguments
    return _rows_adjoint(g, ctx.shape[-1], seed, start), None, None, None


for _name, _fake in FAKES.items():
    _library.impl(_name, _refuse(_name), "CompositeExplicitAutograd")  # where there is no kernel
    torch.library.register_fake(f"fastfood::{_name}", _fake)
for _name, _backward, _save in (
    ("project_rows", _rows_backward, save_arguments),
    ("project_rows_adjoint", _rows_adjoint_backward, save_arguments),
    ("project_rows_adjoint_sum", _rows_adjoint_sum_backward, _save_sum),
):
    torch.library.register_autograd(f"fastfood::{_name}", _backward, setup_context=_save)
