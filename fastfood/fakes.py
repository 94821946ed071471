"""What the registered operators of the projection refuse and return, for tracing: the checks of
csrc/torch_ops.h, with its messages, and results without values.
"""

import torch

from .torch_internals import check

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values stored as `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def expect(holds: bool | torch.SymBool, name: str, wanted: str, got: object) -> None:
    """Raises RuntimeError unless `holds`, which may be symbolic."""
    check(holds, lambda: f"{name}: wanted {wanted}, got {got}")


def expect_floating(x: torch.Tensor, name: str) -> None:
    expect(x.dtype in FLOATING, name, "float32, float64, float16 or bfloat16", x.dtype)


def expect_like(x: torch.Tensor, name: str, dtype: torch.dtype, device: torch.device) -> None:
    expect(x.dtype == dtype, name, str(dtype), x.dtype)
    expect(x.device == device, name, f"the device of the other tensors, {device}", x.device)


def expect_vector(x: torch.Tensor, name: str, size: int) -> None:
    vector = x.dim() == 1 and x.is_contiguous()
    expect(vector, name, "a contiguous vector", f"{x.dim()} dimensions, strides {x.stride()}")
    expect(x.shape[0] == size, name, f"{size} entries", x.shape[0])


def _expect_block_length(L):
    expect(L >= 256, "L", "a power of two of at least 256", L)
    expect(L & (L - 1) == 0, "L", "a power of two of at least 256", L)


def _expect_dimensions(x, name):
    expect(x.dim() > 0, name, "at least one dimension", "a scalar")


def _expect_start(start, name="start"):
    expect(start >= 0, name, "no negative number", start)


def _project_rows(v, seed, start, stop):
    _expect_dimensions(v, "v")
    expect(v.dtype in FLOATING[:2], "v", "float32 or float64", v.dtype)
    _expect_block_length(v.shape[-1])
    _expect_start(start)
    expect(start <= stop, "start, stop", "start <= stop", f"{start}, {stop}")
    return v.new_empty((*v.shape[:-1], stop - start))


def _project_rows_out(v, out, seed, start):
    _expect_dimensions(v, "v")
    expect_floating(out, "out")
    expect_like(v, "v", wide(out.dtype), out.device)
    _expect_block_length(v.shape[-1])
    _expect_start(start)
    fits = out.shape[:-1] == v.shape[:-1] and out.is_contiguous()
    shape = "a contiguous tensor of v's shape but for the last dimension"
    expect(fits, "out", shape, f"shape {tuple(out.shape)}, strides {out.stride()}")


def _project_rows_adjoint(g, L, seed, start):
    expect_floating(g, "g")
    _expect_block_length(L)
    _expect_dimensions(g, "g")
    _expect_start(start)
    return g.new_empty((*g.shape[:-1], L), dtype=wide(g.dtype))


def _project_rows_adjoint_sum(gs, starts, factors, L, seed):
    expect(len(gs) > 0, "gs", "at least one tensor", "none")
    count = f"{len(starts)} and {len(factors)}"
    one_each = len(starts) == len(gs) == len(factors)
    expect(one_each, "starts, factors", f"one for each of {len(gs)} tensors", count)
    _expect_block_length(L)
    for g, start in zip(gs, starts, strict=True):
        expect_floating(g, "gs")
        expect_like(g, "gs", g.dtype, gs[0].device)
        _expect_start(start, "starts")
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gs) else torch.float32
    return gs[0].new_empty(L, dtype=dtype)


def _expect_perturbation(v, bounds, name, scales, entries, out):
    expect_vector(v, "v", v.numel())
    _expect_block_length(v.shape[0])
    expect_vector(scales, "scales", scales.numel())
    expect(scales.shape[0] > 0, "scales", "at least one segment", "none")
    expect_vector(bounds, name, entries)
    expect_like(v, "v", wide(out.dtype), out.device)
    expect_like(bounds, name, torch.int64, out.device)
    expect_like(scales, "scales", wide(out.dtype), out.device)


def _perturb_(out, base, v, offsets, scales, seed, start):
    expect_floating(out, "out")
    expect_vector(out, "out", out.numel())
    expect_vector(base, "base", out.numel())
    expect_like(base, "base", out.dtype, out.device)
    _expect_perturbation(v, offsets, "offsets", scales, scales.numel() + 1, out)
    _expect_start(start)


def _perturbed(bases, v, bounds, scales, seed, starts, places):
    expect(len(bases) > 0, "bases", "at least one tensor", "none")
    count = f"{len(starts)} and {len(places)}"
    one_each = len(starts) == len(bases) == len(places)
    expect(one_each, "starts, places", f"one for each of {len(bases)} tensors", count)
    expect_floating(bases[0], "bases")
    _expect_perturbation(v, bounds, "bounds", scales, 2, bases[0])
    for base, start, place in zip(bases, starts, places, strict=True):
        expect_like(base, "bases", bases[0].dtype, bases[0].device)
        _expect_start(start, "starts")
        last = scales.shape[0] - 1
        expect(0 <= place <= last, "places", f"0 ... {last}", place)
    return [torch.empty_like(base, memory_format=torch.contiguous_format) for base in bases]


def _random(words_per_call, dtype):
    def fake(like, seed, stream, first, count):
        expect(0 <= stream < 1 << 32, "stream", "0 ... 2^32 - 1", stream)
        _expect_start(first, "first")
        _expect_start(count, "count")
        return like.new_empty(words_per_call * count, dtype=dtype)

    return fake


FAKES = {
    "project_rows": _project_rows,
    "project_rows_out": _project_rows_out,
    "project_rows_adjoint": _project_rows_adjoint,
    "project_rows_adjoint_sum": _project_rows_adjoint_sum,
    "perturb_": _perturb_,
    "perturbed": _perturbed,
    "philox_words": _random(4, torch.int32),
    "normals": _random(8, torch.float32),
}
