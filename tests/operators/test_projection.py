"""The projections: P against explicit float64 matrices, adjoints, rows, and isometry."""

import itertools
import json
import math
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fastfood
from fastfood import ops, reference

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text())
KINDS = {
    "fastfood": (fastfood.Fastfood, reference.fastfood_matrix),
    "dense": (fastfood.Dense, reference.dense_matrix),
    "sparse": (fastfood.Sparse, reference.sparse_matrix),
}
SIZES = [(1, 1), (1, 300), (3, 1000), (129, 255), (200, 5000), (300, 4097), (600, 70)]


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


# --- P against explicit matrices ---


@pytest.mark.parametrize("d, D", SIZES)
def test_equals_the_explicit_matrix(kind, d, D, device):
    operator, matrix = kind
    want = matrix(d, D, 7)
    got = operator(d, D, seed=7).to_dense(torch.float64, device).cpu()
    assert got.shape == (D, d)
    assert (got - want).norm() <= 3e-5 * d**0.5
    narrow = operator(d, D, seed=7).to_dense(torch.float32, device).cpu().double()
    assert (narrow - got).abs().max() <= 4e-6 * max(1.0, float(got.abs().max()))


def test_one_block_form_equals_the_explicit_matrix(device):
    P = fastfood.Fastfood.one_block(40, 3000, seed=7)
    assert P.L == 4096
    want = reference.fastfood_matrix(40, 3000, 7, 4096)
    assert (P.to_dense(torch.float64, device).cpu() - want).norm() <= 3e-5 * 40**0.5


@pytest.mark.parametrize("L", [1 << 14, 1 << 18, 1 << 20])
def test_long_blocks(L, device):
    """Against the transform of G * v, which other tests know; the adjoint against the rows."""
    v, g = torch.randn(L, device=device), torch.randn(L + 1000, device=device)
    G = ops.normals(4, ops.STREAM_G, 0, 2 * L // 8, device).reshape(2, L)
    want = fastfood.hadamard_transform(G * v).flatten()[100 : 100 + len(g)]
    rows = ops.project_rows(v, 4, 100, 100 + len(g))
    assert torch.equal(rows, want)
    z = ops.project_rows_adjoint(g, L, 4, 100)
    left, right = float(rows.double() @ g.double()), float(v.double() @ z.double())
    assert abs(left - right) <= 1e-6 * float(rows.norm() * g.norm())


@pytest.mark.parametrize("d, D", SIZES)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
def test_adjoint(kind, d, D, dtype, bound, device):
    P = kind[0](d, D, seed=3)
    start, stop = D // 3, D - D // 5
    x = torch.randn(d, dtype=dtype, device=device)
    g = torch.randn(D, dtype=dtype, device=device)
    part = g[start:stop]
    for y, Px, PTy in [
        (g, P(x), P.adjoint(g)),
        (part, P.rows(x, start, stop), P.rows_adjoint(part, start)),
    ]:
        left, right = float(Px.double() @ y.double()), float(x.double() @ PTy.double())
        assert abs(left - right) <= bound * float(Px.norm() * y.norm() + 1e-30)


def test_adjoint_of_pieces(kind, device):
    P = kind[0](30, 4000, seed=3)
    g = torch.randn(4000, dtype=torch.float64, device=device)
    factors = torch.cat([torch.full((1000,), f, dtype=torch.float64) for f in (0.5, 0.0, 1, -2)])
    starts = [3000, 0, 2000]
    parts = [g[start : start + 1000].view(50, 20) for start in starts]
    got = P.spread_gradient(parts, starts, [float(factors[start]) for start in starts], like=g)
    torch.testing.assert_close(P.spread_adjoint(got), P.adjoint(g * factors.to(device)))
    assert not P.spread_adjoint(P.spread_gradient([], [], [], like=g)).any()


def test_rows_are_slices_to_the_bit(device):
    P = fastfood.Fastfood(300, 50_000, seed=1)
    theta = torch.randn(2, 300, device=device)
    whole = P(theta)
    for start, stop in [(0, 1), (511, 513), (512, 1024), (700, 49_000), (49_999, 50_000), (5, 5)]:
        assert torch.equal(P.rows(theta, start, stop), whole[:, start:stop])


def test_rows_beyond_32_bits(device):
    v, start = torch.randn(256, dtype=torch.float64, device=device), (1 << 33) + 77
    rows = ops.project_rows(v, 5, start, start + 600).cpu()
    assert (
        rows - reference.project_rows(v.cpu(), 5, start, start + 600)
    ).norm() <= 3e-5 * rows.norm()
    base = torch.randn(600, device=device).bfloat16()
    ends, scales = torch.tensor([0, 7, 600], device=device), torch.tensor([0.5, 2.0], device=device)
    out = ops.perturb_(base.clone(), base, v.float(), ends, scales, 5, start)
    wide = base.float() + ops.project_rows(v.float(), 5, start, start + 600) * (
        torch.repeat_interleave(scales, ends.diff())
    )
    assert torch.equal(out, wide.bfloat16())
    P = fastfood.Fastfood(200, 7_000_000_000, seed=5)
    theta = torch.randn(200, dtype=torch.float64, device=device)
    last = P.rows(theta, P.D - 300, P.D).cpu()
    want = reference.project_rows(P.spread(theta).cpu(), 5, P.D - 300, P.D)
    assert (last - want).norm() <= 3e-5 * last.norm()
    z = ops.project_rows_adjoint(rows.to(device), 256, 5, start).cpu()
    assert abs(float(z @ v.cpu()) - float(rows @ rows)) <= 1e-12 * float(rows @ rows)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(8, 12),
    start=st.integers(0, 9000),
    ends=st.lists(st.integers(0, 6000), min_size=1, max_size=5),
    dtype=st.sampled_from(ops.FLOATING),
)
def test_perturbation_in_segments(k, start, ends, dtype):
    offsets = torch.tensor([0, *sorted(ends)])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    v = torch.randn(1 << k, dtype=wide) / (1 << k) ** 0.5
    base, scales = torch.randn(int(offsets[-1])).to(dtype), torch.randn(len(ends), dtype=wide)
    out = torch.full_like(base, float("nan"))
    assert ops.perturb_(out, base, v, offsets, scales, 8, start) is out
    want = reference.perturb(base, v, offsets, scales, 8, start)
    y = ops.project_rows(v, 8, start, start + len(base))
    factor = torch.repeat_interleave(scales, offsets.diff())
    # Each normal is within 3e-5 of the exact one, and they err independently; |v| is about 1.
    error = 1e-6 + 1e-4 * factor.abs() + want.abs() * torch.finfo(dtype).eps
    assert bool(((out.double() - want).abs() <= error).all())
    assert torch.equal(out, (base.to(wide) + factor * y).to(dtype))


@pytest.mark.parametrize("dtype", ops.FLOATING)
def test_new_tensors_are_made_as_others_are_written(dtype, device):
    """Of any shapes and strides, from aligned rows and others, against the reference and to the bit
    against `perturb_`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    v = torch.randn(256, dtype=wide, device=device) / 16
    shapes, starts = [(40, 7), (1,), (3, 100), (0,), (2, 5, 60)], [0, 5, 256, 9, 1001]
    bases = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    bases[2] = bases[2].T
    scales = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0], dtype=wide, device=device)
    places, bounds = [4, 1, 2, 0, 3], torch.tensor([0, 1 << 40], device=device)
    made = ops.perturbed(bases, v, bounds, scales, 8, starts, places)
    v_there, *there = (x.cpu() for x in (v, bounds, scales))
    bases_there = [base.cpu() for base in bases]
    want = reference.perturbed(bases_there, v_there, *there, 8, starts, places)
    for i, (one, base) in enumerate(zip(made, bases, strict=True)):
        assert one.shape == base.shape and one.dtype == dtype and one.is_contiguous()
        out, offsets = (
            torch.empty_like(one).view(-1),
            torch.tensor([0, base.numel()], device=device),
        )
        scale = scales[places[i]][None]
        ops.perturb_(out, base.reshape(-1), v, offsets, scale, 8, starts[i])
        assert torch.equal(one.view(-1), out)
        error = 3e-4 + want[i].abs() * torch.finfo(dtype).eps
        assert bool(((one.cpu().double() - want[i]).abs() <= error).all())


def test_perturbation_of_every_kind(kind, device):
    P = kind[0](20, 1000, seed=2)
    theta, base = torch.randn(20, device=device), torch.randn(600, device=device)
    offsets, scales = (
        torch.tensor([0, 100, 600], device=device),
        torch.tensor([2.0, -1.0], device=device),
    )
    out = torch.empty_like(base)
    version = out._version
    P.perturb_(out, base, theta, offsets, scales, start=300)
    assert out._version > version
    factor = torch.repeat_interleave(scales, offsets.diff())
    torch.testing.assert_close(out, base + factor * P(theta)[300:900])
    bounds, bases = torch.tensor([0, 1000], device=device), [base[:100], base[100:]]
    made = P.perturbed(bases, theta, bounds, scales, [300, 400], [0, 1], P.spread(theta))
    assert torch.equal(torch.cat(made), out)


def test_gradient_of_narrow_types_is_summed_in_float32(device):
    P = fastfood.Fastfood(100, 5000)
    for dtype in (torch.float16, torch.bfloat16):
        g = torch.randn(5000, device=device).to(dtype)
        assert torch.equal(P.adjoint(g), P.adjoint(g.float()))
        assert P.adjoint(g).dtype == torch.float32


def test_gradients_of_any_order(kind, device):
    P = kind[0](3, 40, seed=3)
    theta = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    g = torch.randn(40, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(P, (theta,), check_forward_ad=True, check_batched_grad=True)
    assert gradcheck(lambda g: P.rows_adjoint(g[10:35], 4), (g,), check_forward_ad=True)
    assert gradgradcheck(lambda t: P(t) ** 2, (theta,))
    torch.testing.assert_close(
        torch.func.jacrev(P)(theta.detach()), P.to_dense(torch.float64, device)
    )


def test_compiled_projection(device):
    P = fastfood.Fastfood(30, 2000, seed=3)
    theta = torch.randn(30, device=device, requires_grad=True)
    P(theta.detach())  # makes B and Pi, which are constants of the graph

    def loss(theta):
        return P.rows(theta, 100, 1500).cos().sum()

    (want,) = torch.autograd.grad(loss(theta), theta)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(theta), theta)
    torch.testing.assert_close(got, want)


# --- What the projection is for ---


@pytest.mark.parametrize(
    "name, d", [*itertools.product(KINDS, [1, 4, 100, 300]), ("fastfood", 1000), ("fastfood", 4096)]
)
def test_isometric_like_a_gaussian(name, d):
    """Norms, inner products, coherence and the extreme eigenvalues of P^T P, for D >> d.

    A Gaussian's eigenvalues lie within (1 +- sqrt(d / D))^2. Fastfood's, for d = n = L, are means
    of D / L squared normals, of variance 2 L / D: the extremes of d such numbers.
    """
    D = 64 * d + 20_000
    P = KINDS[name][0](d, D, seed=0)
    x, y = torch.randn(2, d, dtype=torch.float64)
    Px, Py = P(x), P(y)
    spread = 5 * math.sqrt(2 * (P.L if name == "fastfood" else d) / D / d) + 5 / D**0.5
    assert abs(float(Px.norm() / x.norm()) - 1) < spread
    assert abs(float(Px @ Py - x @ y)) < spread * float(x.norm() * y.norm())
    if name == "fastfood":
        edge = math.sqrt(2 * P.L / D) * (math.sqrt(2 * math.log(d + 1)) + 3)
    else:
        edge = (1 + math.sqrt(d / D) + 4 / math.sqrt(D)) ** 2 - 1
    low, high = extreme_eigenvalues(P)
    assert 1 - edge < low <= high < 1 + edge
    some = torch.randperm(d)[:50]
    columns = P(torch.eye(d)[some])
    gram = columns @ columns.T
    assert (gram - gram.diag().diag()).abs().max() < 8 / math.sqrt(D)


def extreme_eigenvalues(P):
    """The extreme eigenvalues of P^T P, exact for small d, else by Lanczos iteration."""
    if P.d <= 300:
        dense = P.to_dense(torch.float64)
        values = torch.linalg.eigvalsh(dense.T @ dense)
        return float(values[0]), float(values[-1])
    linalg = pytest.importorskip("scipy.sparse.linalg")
    gram = linalg.LinearOperator(
        (P.d, P.d),
        matvec=lambda x: P.adjoint(P(torch.tensor(x).float().flatten())).double().numpy(),
        dtype=np.float64,
    )
    options = {"k": 1, "tol": 1e-3, "return_eigenvectors": False, "v0": np.ones(P.d)}
    return tuple(float(linalg.eigsh(gram, which=end, **options)[0]) for end in ("SA", "LA"))


def test_seeds_differ_and_repeat(kind):
    theta = torch.randn(50)
    outputs = [kind[0](50, 3000, seed=seed)(theta) for seed in (0, 1, 1 << 32, 1 << 63, 0)]
    assert torch.equal(outputs[0], outputs[4])
    for a, b in ((0, 1), (0, 2), (0, 3), (1, 2)):
        assert abs(torch.cosine_similarity(outputs[a], outputs[b], 0)) < 0.2


def test_golden_vectors(device):
    """The bits that saved adapters rest on. They never change: a change of format gets a number of
    its own.
    """
    for case in GOLDEN["fastfood"]:
        P = fastfood.Fastfood(case["d"], case["D"], case["seed"], case["L"])
        B, Pi = P._signs_and_permutation(device)
        assert B[:16].tolist() == case["B"] and Pi[:16].tolist() == case["Pi"]
        theta = (torch.arange(case["d"], device=device) % 7 - 3).float()
        G = ops.normals(case["seed"], ops.STREAM_G, case["D"] // 8 - 1, 1, device)
        for name, got in [("G", G), ("v", P.spread(theta)[:8]), ("tail", P(theta)[-8:])]:
            assert [x.hex() for x in got.tolist()] == case[name], name
    for name in ("dense", "sparse"):
        P = KINDS[name][0](33, 1000, seed=9)
        got = P(torch.ones(33, device=device))[-8:]
        torch.testing.assert_close(
            got.cpu(), torch.tensor([float.fromhex(x) for x in GOLDEN[name]])
        )


def test_out(kind, device):
    P = kind[0](20, 3000, seed=1)
    theta = torch.randn(2, 20, device=device)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        out = torch.full((2, 2000), float("nan"), dtype=dtype, device=device)
        version = out._version
        assert P.rows(theta, 7, 2007, out=out) is out and out._version > version
        assert torch.equal(out, P.rows(theta, 7, 2007).to(dtype))
    assert torch.equal(P(theta.double(), out=out.new_empty(2, 3000).double()), P(theta.double()))


def perturb_a_base_of_another_type():
    out, offsets = torch.empty(300), torch.tensor([0, 300])
    ops.perturb_(out, out.double(), torch.randn(256), offsets, torch.ones(1), 0)


REFUSED = {  # name: the call, given P of 4 numbers and 300 rows and a theta; error; what it says
    "d of zero": (
        lambda P, theta: fastfood.Fastfood(0, 5),
        ValueError,
        "d: wanted an integer of at least 1, got 0",
    ),
    "D no integer": (
        lambda P, theta: fastfood.Dense(3, 2.5),
        ValueError,
        "D: wanted an integer of at least 1, got 2.5",
    ),
    "L no power of two": (
        lambda P, theta: fastfood.Fastfood(3, 5, L=300),
        ValueError,
        "L: wanted a power of two of at least 256 and at most .*, got 300",
    ),
    "negative seed": (
        lambda P, theta: fastfood.Fastfood(3, 5, seed=-1),
        ValueError,
        "seed: wanted an integer",
    ),
    "theta of another shape": (
        lambda P, theta: P(torch.randn(5)),
        ValueError,
        r"theta: wanted shape \(..., 4\), got \(5,\)",
    ),
    "theta of integers": (
        lambda P, theta: P(torch.arange(4)),
        TypeError,
        "theta: wanted a dtype among float32, float64, got torch.int64",
    ),
    "out of another shape": (
        lambda P, theta: P(theta, out=torch.empty(299)),
        ValueError,
        r"shape \(300,\) on cpu, got \(299,\)",
    ),
    "out not contiguous": (
        lambda P, theta: P(theta, out=torch.empty(600)[::2]),
        ValueError,
        "out: wanted a contiguous tensor",
    ),
    "out wider than theta": (
        lambda P, theta: P(theta, out=torch.empty(300).double()),
        TypeError,
        "out: wanted a dtype among float32, float16, bfloat16, got torch.float64",
    ),
    "out narrower than a float64 theta": (
        lambda P, theta: P(theta.double(), out=torch.empty(300)),
        TypeError,
        "out: wanted a dtype among float64, got torch.float32",
    ),
    "out of a differentiated call": (
        lambda P, theta: P(theta.requires_grad_(), out=torch.empty(300)),
        RuntimeError,
        "out: wanted a call that is not differentiated",
    ),
    "rows beyond D": (
        lambda P, theta: P.rows(theta, 5, 301),
        ValueError,
        "wanted 0 <= start <= stop <= 300, got 5, 301",
    ),
    "g of another shape": (
        lambda P, theta: P.adjoint(torch.randn(299)),
        ValueError,
        r"g: wanted shape \(..., 300\)",
    ),
    "rows of an adjoint beyond D": (
        lambda P, theta: P.rows_adjoint(torch.randn(9), 295),
        ValueError,
        "start: wanted rows within 0 ... 300",
    ),
    "v no power of two": (
        lambda P, theta: ops.project_rows(torch.randn(100), 0, 0, 1),
        ValueError,
        "v: wanted a power of two",
    ),
    "base of another type": (
        lambda P, theta: perturb_a_base_of_another_type(),
        RuntimeError,
        "base: wanted Float, got Double",
    ),
}


@pytest.mark.parametrize("call, error, said", REFUSED.values(), ids=REFUSED)
def test_bad_arguments(call, error, said):
    with pytest.raises(error, match=said):
        call(fastfood.Fastfood(4, 300), torch.randn(4))
