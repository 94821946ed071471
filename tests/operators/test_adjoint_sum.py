"""project_rows_adjoint_sum: many gradients of all types through the adjoint at once."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastfood
from fastfood import ops, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def pieces_for(device, dtypes=DTYPES):
    """Gradients that overlap, are empty or lie far apart; none is contiguous in memory."""
    torch.manual_seed(0)
    sizes = (700, 0, 5000, 33, 1)
    starts = [10, 400, 1 << 34, 3, 709]
    kinds = itertools.cycle(dtypes)
    gs = [torch.randn(2 * n, device=device)[::2].to(next(kinds)) for n in sizes]
    return gs, starts, [1.0, 2.0, -0.5, 3.0, 1.0]


@pytest.mark.parametrize("L", [256, 1024, 1 << 14])
def test_equals_the_reference(L, device):
    gs, starts, factors = pieces_for(device)
    got = ops.project_rows_adjoint_sum(gs, starts, factors, L, 5)
    cpu = [g.cpu() for g in gs]
    # The reference's matrix of 2^14 rows would take a while: its own adjoint on short pieces.
    want = sum(
        f * ops.project_rows_adjoint(g.double(), L, 5, s)
        for g, s, f in zip(cpu, starts, factors, strict=True)
    )
    if L == 256:
        want = reference.project_rows_adjoint_sum(cpu, starts, factors, L, 5)
    assert got.dtype == torch.float64 and got.shape == (L,)
    assert (got.cpu() - want).norm() <= 3e-5 * want.norm()


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float16)])
def test_narrow_types_are_summed_in_float32(dtypes, device):
    gs, starts, factors = pieces_for(device, dtypes)
    got = ops.project_rows_adjoint_sum(gs, starts, factors, 512, 5)
    want = ops.project_rows_adjoint_sum([g.double() for g in gs], starts, factors, 512, 5)
    assert got.dtype == torch.float32
    assert (got - want).norm() <= 1e-6 * want.norm()


def test_of_more_pieces_than_a_launch_takes(device):
    """Every row alone is the same as all rows together."""
    g = torch.randn(200, dtype=torch.float64, device=device)
    alone = ops.project_rows_adjoint_sum(list(g.split(1)), range(7, 207), [1.0] * 200, 256, 1)
    torch.testing.assert_close(alone, ops.project_rows_adjoint(g, 256, 1, 7))


def test_adjoint_identity(device):
    gs, starts, factors = pieces_for(device, (torch.float64,))
    v = torch.randn(1024, dtype=torch.float64, device=device)
    rows = [ops.project_rows(v, 9, s, s + len(g)) for g, s in zip(gs, starts, strict=True)]
    left = sum(f * (y @ g) for y, g, f in zip(rows, gs, factors, strict=True))
    right = v @ ops.project_rows_adjoint_sum(gs, starts, factors, 1024, 9)
    assert abs(left - right) <= 1e-10 * abs(left)


def test_every_run_gives_the_same_bits(device):
    gs, starts, factors = pieces_for(device, (torch.float32, torch.bfloat16))
    first = ops.project_rows_adjoint_sum(gs, starts, factors, 256, 5)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            again = ops.project_rows_adjoint_sum(gs, starts, factors, 256, 5)
            assert torch.equal(first, again)
    finally:
        torch.set_num_threads(threads)


def small(device):
    gs = [torch.randn(n, dtype=torch.float64, device=device, requires_grad=True) for n in (5, 3, 4)]
    return gs, lambda *gs: ops.project_rows_adjoint_sum(gs, [2, 300, 4], [1.0, -2.0, 0.5], 256, 3)


def test_gradients(device):
    gs, f = small(device)
    assert gradcheck(f, gs) and gradgradcheck(f, gs)


def test_tangents(device):
    gs, f = small(device)
    tangents = [torch.randn_like(g) for g in gs]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(g, t) for g, t in zip(gs, tangents, strict=True)]
        got = forward_ad.unpack_dual(f(*duals)).tangent
    torch.testing.assert_close(got, f(*tangents))


def test_function_transforms(device):
    gs, f = small(device)
    batch = [torch.randn(6, *g.shape, dtype=torch.float64, device=device) for g in gs]
    got = torch.func.vmap(f)(*batch)
    want = torch.stack([f(*row) for row in zip(*batch, strict=True)])
    torch.testing.assert_close(got, want)
    jacobian = torch.func.jacrev(f)(*(g.detach() for g in gs))
    torch.testing.assert_close(jacobian @ gs[0].detach(), f(gs[0], *(g * 0 for g in gs[1:])))


def test_compiled(device):
    gs, f = small(device)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")  # no loops of Inductor's here
    torch.testing.assert_close(compiled(*gs), f(*gs))
    z = torch.randn(256, dtype=torch.float64, device=device)
    got, want = (torch.autograd.grad(h(*gs), gs, z) for h in (compiled, f))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_shapes_are_read_as_vectors(device):
    gs, starts, factors = pieces_for(device, (torch.float64,))
    gs[2] = gs[2].view(50, 100).T
    shaped = [gs[0].view(7, 2, 50), *gs[1:]]
    flat = [g.reshape(-1) for g in gs]
    got, want = (ops.project_rows_adjoint_sum(x, starts, factors, 256, 5) for x in (shaped, flat))
    assert torch.equal(got, want)
    leaves = [g.detach().requires_grad_() for g in shaped]
    z = torch.randn_like(got)
    found = torch.autograd.grad(
        ops.project_rows_adjoint_sum(leaves, starts, factors, 256, 5), leaves, z
    )
    for g, start, factor, grad in zip(leaves, starts, factors, found, strict=True):
        rows = ops.project_rows(z, 5, start, start + g.numel())
        torch.testing.assert_close(grad, factor * rows.view(g.shape))


def test_gradients_of_a_projection_go_together(device, monkeypatch):
    calls = []
    known = ops.project_rows_adjoint_sum
    monkeypatch.setattr(
        ops, "project_rows_adjoint_sum", lambda gs, *rest: calls.append(len(gs)) or known(gs, *rest)
    )
    P, g = fastfood.Fastfood(30, 4000, seed=3), torch.randn(4000, device=device)
    starts = [0, 10, 30, 2030, 2500, 3600]
    parts = g.split([10, 20, 2000, 470, 1100, 400])
    z = P.spread_gradient(parts, starts, [1.0] * 6, g)
    torch.testing.assert_close(P.spread_adjoint(z), P.adjoint(g))
    assert calls == [6]
    with pytest.raises(ValueError, match="start: wanted rows within 0 ... 4000, got 3601 and 400"):
        P.spread_gradient(parts, [*starts[:-1], 3601], [1.0] * 6, g)


def test_bad_arguments(device):
    g = torch.randn(5, device=device)
    for gs, starts, factors, L, error, message in [
        ([], [], [], 256, ValueError, "gs, starts, factors: wanted as many of each and at least"),
        ([g], [1, 2], [1.0], 256, ValueError, "got 1, 2, 1"),
        ([g], [1], [1.0], 300, ValueError, "L: wanted a power of two of at least 256, got 300"),
        ([g.long()], [1], [1.0], 256, TypeError, "gs: wanted a dtype among"),
        ([g], [-1], [1.0], 256, ValueError, "wanted 0 <= start <= stop, got -1"),
    ]:
        with pytest.raises(error, match=message):
            ops.project_rows_adjoint_sum(gs, starts, factors, L, 0)
    operator = torch.ops.fastfood.project_rows_adjoint_sum
    with pytest.raises(RuntimeError, match="starts, factors: wanted one for each of 1 tensors"):
        operator([g], [1, 2], [1.0], 256, 0)
    with pytest.raises(RuntimeError, match="one for each of 1 tensors"):
        operator([g.to("meta")], [1, 2], [1.0], 256, 0)
