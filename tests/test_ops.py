"""The Walsh-Hadamard transform as an operator: values to the bit, gradients of any order, and
torch's own checks.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fastfood
from fastfood import ops, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 2, 3, 4, 8, 12, 16, 32, 64, 100, 128, 256, 1000, 1024, 4096, 8192]


def butterflies(x):
    """The transform by its defining order of sums: strides 1, 2, 4, ..., each sum rounded once."""
    n, stride = x.shape[-1], 1
    while stride < n:
        pairs = x.unflatten(-1, (-1, 2, stride))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        stride *= 2
    return x


def assert_close(y, x, scale):
    """y is the transform of x within twice the error that plain torch sums make, and one rounding
    to y's dtype.
    """
    want = reference.hadamard_transform(x, scale)
    padded = 1 << (x.shape[-1] - 1).bit_length()
    wide = torch.promote_types(x.dtype, torch.float32)
    plain = butterflies(torch.nn.functional.pad(x, (0, padded - x.shape[-1])).to(wide)) * scale
    error = (plain[..., : x.shape[-1]].double() - want).abs().max() if x.numel() else 0.0
    rounding = want.abs() * torch.finfo(y.dtype).eps + torch.finfo(y.dtype).smallest_normal
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device and y.is_contiguous()
    assert bool(((y.double() - want).abs() <= 2 * error + rounding).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_matches_the_reference(n, dtype, device):
    x = torch.randn(5, n, device=device).to(dtype)
    assert_close(fastfood.hadamard_transform(x, 0.3).contiguous(), x, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1 << k for k in range(0, 21, 2)] + [1 << 17, 1 << 21])
def test_every_bit_is_defined(n, dtype, device):
    x = torch.randn(max(1, min(7, (1 << 18) // n)), n, dtype=dtype)
    y = fastfood.hadamard_transform(x.to(device), 0.7).cpu()
    assert torch.equal(y, butterflies(x) * 0.7)


def test_sixteen_bits_are_rounded_once(device):
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(9, 4096).to(dtype)
        y = fastfood.hadamard_transform(x.to(device), 2.0**-6).cpu()
        assert torch.equal(y, (butterflies(x.float()) * 2.0**-6).to(dtype))


def test_infinite_and_undefined_values_pass_through(device):
    for dtype in DTYPES:
        x = torch.zeros(2, 64, dtype=dtype, device=device)
        x[0, 3], x[1, 60] = float("inf"), float("nan")
        y = fastfood.hadamard_transform(x)
        assert y[0].isinf().all() or y[0].isnan().any()
        assert y[1].isnan().all()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 300),
    offset=st.integers(0, 3),
    step=st.integers(1, 3),
    turn=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, -0.5, 0.1]),
)
def test_any_shape_stride_and_alignment(shape, n, offset, step, turn, dtype, scale):
    rows = 1
    for size in shape:
        rows *= size
    flat = torch.randn(offset + rows * n * step, dtype=torch.float32).to(dtype)[offset:]
    x = (flat.view(n * step, rows).T if turn else flat.view(rows, n * step))[:, ::step].reshape(
        *shape, n
    )
    assert_close(fastfood.hadamard_transform(x, scale).contiguous(), x, scale)


def test_orthonormal_transform_undoes_itself(device):
    x = torch.randn(3, 512, dtype=torch.float64, device=device)
    scale = 512**-0.5
    y = fastfood.hadamard_transform(fastfood.hadamard_transform(x, scale), scale)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 12, 32])
def test_gradients_of_any_order(n, device):
    x = torch.randn(2, n, dtype=torch.float64, device=device, requires_grad=True)

    def f(x):
        return fastfood.hadamard_transform(x, 0.3)

    assert gradcheck(f, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, (x,))


def test_function_transforms_agree_with_the_matrix(device):
    scale, n = 0.5, 16
    H = reference.hadamard_matrix(n, device) * scale
    x, t = torch.randn(2, n, dtype=torch.float64, device=device)

    def f(x):
        return fastfood.hadamard_transform(x, scale)

    def cubes(x):
        return (f(x) ** 3).sum()

    y, tangent = torch.func.jvp(f, (x,), (t,))
    torch.testing.assert_close((y, tangent), (H @ x, H @ t))
    torch.testing.assert_close(torch.func.jacrev(f)(x), H)
    torch.testing.assert_close(torch.func.jacfwd(f)(x), H)
    torch.testing.assert_close(torch.func.hessian(cubes)(x), H.T @ torch.diag(6 * (H @ x)) @ H)
    torch.testing.assert_close(torch.func.grad(cubes)(x), 3 * H.T @ (H @ x) ** 2)
    batch = torch.randn(n, 3, dtype=torch.float64, device=device)
    torch.testing.assert_close(torch.vmap(f, in_dims=1, out_dims=1)(batch), H @ batch)


def test_compiled_code_gives_the_same(device):
    def f(x):
        return fastfood.hadamard_transform(x.sin(), 0.5).cos().sum()

    x = torch.randn(4, 12, device=device, requires_grad=True)
    (want,) = torch.autograd.grad(f(x), x)
    compiled = torch.compile(f, fullgraph=True)(x)
    (got,) = torch.autograd.grad(compiled, x)
    torch.testing.assert_close(compiled, f(x))
    torch.testing.assert_close(got, want)


def operator_calls(device):
    v = torch.randn(2, 256, device=device)
    vector, offsets = torch.randn(700, device=device), torch.tensor([0, 100, 700], device=device)
    return {
        "hadamard_transform": (torch.randn(3, 8, device=device, requires_grad=True), 0.5),
        "project_rows": (v.clone().requires_grad_(), 3, 10, 700),
        "project_rows_adjoint": (
            torch.randn(2, 690, device=device, requires_grad=True),
            256,
            3,
            10,
        ),
        "perturb_": (
            vector.clone(),
            vector,
            v[0].clone(),
            offsets,
            torch.randn(2, device=device),
            3,
            10,
        ),
        "philox_words": (v, 3, 1, 10, 7),
        "normals": (v, 3, 1, 10, 7),
    }


@pytest.mark.parametrize("name", operator_calls("cpu"))
def test_torch_accepts_the_registration(name, device):
    torch.library.opcheck(getattr(torch.ops.fastfood, name).default, operator_calls(device)[name])


def test_bad_arguments_are_named():
    for error, message, x in [
        (TypeError, "x: wanted a tensor, got list", [1.0, 2.0]),
        (
            TypeError,
            "x: wanted a dtype among float32.*got torch.int64",
            torch.ones(4, dtype=torch.int64),
        ),
        (TypeError, "x: wanted a dtype among float32.*got torch.complex64", torch.ones(4) * 1j),
        (ValueError, "x: wanted at least one dimension, got a scalar", torch.tensor(1.0)),
        (
            ValueError,
            r"x: wanted a last dimension of at least 1, got shape \(3, 0\)",
            torch.ones(3, 0),
        ),
    ]:
        with pytest.raises(error, match=message):
            fastfood.hadamard_transform(x)
    with pytest.raises(
        RuntimeError, match="x: wanted a last dimension that is a power of two, got 3"
    ):
        torch.ops.fastfood.hadamard_transform(torch.ones(3), 1.0)


ALL_RESULTS = """
import hashlib, torch
from fastfood import ops
torch.manual_seed(0)
def show(*tensors):
    print([hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest()[:16] for t in
    tensors])
for n in (1, 2, 4, 8, 16, 32, 2048, 1 << 17):
    x = torch.randn(3, n, dtype=torch.float64)
    show(*(ops.hadamard_transform(x.to(t), 0.3) for t in (torch.float64, torch.float32,
    torch.float16, torch.bfloat16)))
show(ops.philox_words(5, 1, 3, 1001), ops.normals(5, 1, 3, 1 << 17))
for L in (256, 2048):
    for t in (torch.float32, torch.float64):
        v, g = torch.randn(L, dtype=t), torch.randn(90 * L + 5, dtype=t)
        show(ops.project_rows(v, 9, 77, 40 * L + 9), ops.project_rows_adjoint(g, L, 9, 77))
    for t in (torch.float16, torch.bfloat16):
        base, ends = g.to(t), torch.tensor([0, 3, len(g)])
        show(ops.perturb_(base.clone(), base, v.float(), ends, torch.randn(2), 9, 77))
        show(ops.project_rows_adjoint(base, L, 9, 77))
"""


def results(**environment):
    done = subprocess.run(
        [sys.executable, "-c", ALL_RESULTS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_every_instruction_set_and_thread_count_gives_the_same_bits():
    want = results(FASTFOOD_ISA="portable", OMP_NUM_THREADS="1")
    assert want.count("[") == 21, want
    flags = torch.backends.cpu.get_cpu_capability()
    for isa in ["avx512"] * ("AVX512" in flags) + ["avx2"] * ("AVX" in flags):
        assert results(FASTFOOD_ISA=isa, OMP_NUM_THREADS="1") == want, isa
    assert results(OMP_NUM_THREADS="3") == want
    assert "FASTFOOD_ISA: wanted one of" in results(FASTFOOD_ISA="sse9")


def test_import_needs_torch_alone_and_leaves_the_gpu_alone():
    code = (
        "import sys, fastfood, torch\n"
        "heavy = {'transformers', 'datasets', 'matplotlib', 'safetensors', 'optuna', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seed_is_64_bits():
    words = [ops.philox_words(seed, 0, 0, 1) for seed in (0, 1, 1 << 32, 1 << 63)]
    assert len({tuple(w.tolist()) for w in words}) == 4
    for seed in (-1, 1 << 64, 0.5, True, None):
        with pytest.raises(ValueError, match="seed: wanted an integer"):
            ops.signed(seed)
