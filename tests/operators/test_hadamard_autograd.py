"""The Walsh-Hadamard transform under autograd of any order, function transforms, compilation and
export, and torch's own checks. Where generated code shows nothing more, compilation stops before it
(aot_eager), because the C++ compiler takes most of the time."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastfood
from fastfood import hadamard_transform_KN, random_signs, reference
from fastfood.orders import ORDERS


def functions(n, device):
    """The transform in several forms, each a function of x and two diagonals of n entries."""
    orders = {"plain": 1, "mixed": n}
    return {
        name: lambda x, b, a, K=K: hadamard_transform_KN(x, 0.3, K=K, before=b, after=a)
        for name, K in orders.items()
        if K == 1 and n & (n - 1) == 0 or K in ORDERS
    }


@pytest.mark.parametrize("n", [1, 2, 20, 32])
def test_gradients_of_any_order(n, device):
    for f in functions(n, device).values():
        x, b, a = (
            torch.randn(*s, n, dtype=torch.float64, device=device, requires_grad=True)
            for s in ([2], [], [])
        )
        assert gradcheck(f, (x, b, a), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(f, (x, b, a))
        assert gradcheck(lambda x, f=f: f(x, None, None), (x,), check_forward_ad=True)
    x = torch.randn(2, n + 1, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: fastfood.hadamard_transform(x, 0.3), (x,))


def test_in_place_is_differentiated(device):
    x = torch.randn(2, 8, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: fastfood.hadamard_transform_(x * 2, 0.3), (x,))
    with pytest.raises(RuntimeError, match="out: wanted a call without autograd"):
        fastfood.hadamard_transform(x, out=torch.empty_like(x))
    with pytest.raises(RuntimeError, match="leaf Variable"):
        fastfood.hadamard_transform_(x)


def test_the_adjoint_is_the_transpose(device):
    """In the form of an inner product, and as the gradient."""
    for K in ORDERS:
        x, y = torch.randn(2, 2 * K, dtype=torch.float64, device=device)
        left = hadamard_transform_KN(x.requires_grad_(), K=K) @ y
        adjoint = hadamard_transform_KN(y, K=K, transpose=True)
        torch.testing.assert_close(left, x @ adjoint)
        torch.testing.assert_close(torch.autograd.grad(left, x)[0], adjoint)


@pytest.mark.parametrize("K, n", [(1, 16), (20, 20)])
def test_function_transforms_agree_with_the_matrix(K, n, device):
    H = reference.hadamard_transform_KN(torch.eye(n), 0.5, K=K).T.to(device)
    b, a = torch.randn(2, n, dtype=torch.float64, device=device)
    x, t = torch.randn(2, n, dtype=torch.float64, device=device)
    M = torch.diag(a) @ H @ torch.diag(b)

    def f(x, b=b, a=a):
        return hadamard_transform_KN(x, 0.5, K=K, before=b, after=a)

    def cubes(x):
        return (f(x) ** 3).sum()

    torch.testing.assert_close(torch.func.jvp(f, (x,), (t,)), (M @ x, M @ t))
    torch.testing.assert_close(torch.func.jacrev(f)(x), M)
    torch.testing.assert_close(torch.func.jacfwd(f)(x), M)
    torch.testing.assert_close(torch.func.hessian(cubes)(x), M.T @ torch.diag(6 * (M @ x)) @ M)
    torch.testing.assert_close(torch.func.grad(cubes)(x), 3 * M.T @ (M @ x) ** 2)
    torch.testing.assert_close(torch.func.jacrev(lambda b: f(x, b))(b), (torch.diag(a) @ H) * x)
    batch = torch.randn(n, 3, dtype=torch.float64, device=device)
    torch.testing.assert_close(torch.vmap(f, in_dims=1, out_dims=1)(batch), M @ batch)
    each = torch.vmap(f, in_dims=(None, 1))(x, batch)
    torch.testing.assert_close(each, (x * batch.T) @ (torch.diag(a) @ H).T)


def test_compiled_code_gives_the_same(device):
    def f(x, b, a):
        y = fastfood.hadamard_transform(x.sin(), 0.5)
        return hadamard_transform_KN(y, before=b, after=a).cos().sum() + y.sum()

    arguments = [torch.randn(s, device=device, requires_grad=True) for s in ((4, 12), 12, 12)]
    want = torch.autograd.grad(f(*arguments), arguments)
    compiled = torch.compile(f, fullgraph=True)(*arguments)
    torch.testing.assert_close(compiled, f(*arguments))
    torch.testing.assert_close(torch.autograd.grad(compiled, arguments), want)


def test_compiled_function_transforms_and_mutation(device):
    x = torch.randn(3, 16, device=device)

    for K, y in [(1, x), (12, x[:, :12])]:

        def gradient(y, K=K):
            return torch.func.grad(lambda y: hadamard_transform_KN(y, K=K).pow(3).sum())(y)

        torch.testing.assert_close(torch.compile(gradient, backend="aot_eager")(y), gradient(y))

    batched = torch.vmap(fastfood.hadamard_transform, in_dims=1, out_dims=1)
    torch.testing.assert_close(torch.compile(batched, backend="aot_eager")(x.T), batched(x.T))

    def mutate(x):
        y = x + 1
        fastfood.hadamard_transform_(y)
        return fastfood.hadamard_transform(y, out=torch.empty_like(y))

    torch.testing.assert_close(torch.compile(mutate, fullgraph=True)(x), mutate(x))


def test_dynamic_shapes_compile_once(device):
    options = {"dynamic": True, "fullgraph": True, "backend": "aot_eager"}
    compiled = torch.compile(fastfood.hadamard_transform, **options)
    for rows in (2, 3, 5):
        x = torch.randn(rows, 32, device=device)
        torch.testing.assert_close(compiled(x), fastfood.hadamard_transform(x))


class Rotation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("signs", random_signs(24, 3))

    def forward(self, x):
        return hadamard_transform_KN(x, 24**-0.5, before=self.signs)


def test_exported_programs_keep_the_operator(device):
    model, x = Rotation().to(device), torch.randn(2, 24, device=device)
    program = torch.export.export(model, (x,))
    assert "fastfood.hadamard_transform" in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x))


def test_autocast_keeps_the_dtype_and_deterministic_mode_the_bits(device):
    x = torch.randn(5, 64, device=device)
    want = fastfood.hadamard_transform(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(fastfood.hadamard_transform(x), want)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(fastfood.hadamard_transform(x), want)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_replay():
    x = torch.randn(4, 1 << 18, device="cuda", dtype=torch.float16)
    want = [fastfood.hadamard_transform(x), hadamard_transform_KN(x[:, :3584].contiguous())]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [fastfood.hadamard_transform(x), hadamard_transform_KN(x[:, :3584].contiguous())]
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def operator_calls(device):
    x, d = torch.randn(3, 24, device=device, requires_grad=True), torch.randn(24, device=device)
    return {
        "hadamard_transform": (x, 0.5, 12, True, d.clone().requires_grad_(), d),
        "hadamard_transform_out": (x.detach(), torch.empty(3, 24, device=device), 0.5, 12),
    }


@pytest.mark.parametrize("name", operator_calls("cpu"))
def test_torch_accepts_the_registration(name, device):
    torch.library.opcheck(getattr(torch.ops.fastfood, name).default, operator_calls(device)[name])
