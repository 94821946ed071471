"""Blocks within rows, and rows that lie apart: values to the bit, what is written and what is not,
no copies, gradients, compilation, and what is refused."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from transform_error import DTYPES, assert_close

import fastfood
from fastfood import hadamard_transform_KN, random_signs, reference, transform

# (n, block, K): of vectors' parts and of several, of numbers of blocks that are no powers of two
SIZES = [
    (96, 1, 1),
    (96, 2, 1),
    (80, 16, 1),
    (1024, 16, 1),
    (96, 32, 1),
    (640, 128, 1),
    (1024, 128, 1),
    (2048, 1024, 1),
    (1536, 512, 1),
    (16384, 8192, 1),
    (72, 24, 12),
    (84, 12, 12),
    (1280, 320, 20),
]


def diagonals(n, block, dtype, device):
    """Pairs of diagonals of every kind: none, of all entries, of a block, by a seed, mixed."""
    wide = torch.promote_types(dtype, torch.float32)
    whole, part = (torch.randn(size, dtype=wide, device=device) for size in (n, block))
    return [
        (None, None),
        (whole, whole.flip(0)),
        (part, part.flip(0)),
        (5, 2**64 - 1),
        (whole, part),
    ]


def values(diagonal, n, device):
    return random_signs(n, diagonal, device) if isinstance(diagonal, int) else diagonal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, block, K", SIZES)
def test_blocks_match_the_reference(n, block, K, dtype, device):
    x = torch.randn(3, n, device=device).to(dtype)
    for before, after in diagonals(n, block, dtype, device):
        y = hadamard_transform_KN(x, 0.3, K=K, before=before, after=after, block=block)
        if K == 1:
            options = {"before": before, "after": after, "block": block}
            assert torch.equal(fastfood.hadamard_transform(x, 0.3, **options), y)
            assert torch.equal(fastfood.hadamard_transform_(x.clone(), 0.3, **options), y)
        b, a = (values(d, n, device) for d in (before, after))
        if n > 2048:  # the matrix is too large
            continue
        want = reference.hadamard_transform_KN(x, 0.3, K=K, before=b, after=a, block=block)
        size = x if b is None else x * b.repeat(n // len(b))
        assert_close(y, size.to(dtype), want, 0.3 * (1 if a is None else a.abs().max().item()), n)


@pytest.mark.parametrize("n, block, K", SIZES)
def test_blocks_are_rows_to_the_bit(n, block, K, device):
    for dtype in DTYPES:
        x = torch.randn(3, n, device=device).to(dtype)
        want = hadamard_transform_KN(x.view(-1, block), 0.3, K=K).view(3, n)
        assert torch.equal(hadamard_transform_KN(x, 0.3, K=K, block=block), want)
        assert torch.equal(hadamard_transform_KN(x.T, 0.3, K=K, block=block, dim=0), want.T)
        wide = x.to(torch.promote_types(dtype, torch.float32))
        for before, after in diagonals(n, block, dtype, device)[1:]:
            b, a = (values(d, n, device) for d in (before, after))
            y = wide * b.repeat(n // len(b))
            y = hadamard_transform_KN(y.view(-1, block), 0.3, K=K).view(3, n)
            y = (y * a.repeat(n // len(a))).to(dtype)
            found = hadamard_transform_KN(x, 0.3, K=K, block=block, before=before, after=after)
            if K == 1:
                assert torch.equal(found, y)
                plain = transform.in_plain_torch(x, transform.Call(0.3, 1, False, b, a, block))
                assert torch.equal(plain, y)
            else:
                torch.testing.assert_close(found, y)


def test_small_cases(device):
    x = torch.randn(2, 96, device=device)
    assert torch.equal(fastfood.hadamard_transform(x, 0.3, block=1), x * 0.3)
    y = x[:, :64].contiguous()
    for n_is_block in (64, None):
        found = fastfood.hadamard_transform(y, 0.3, before=3, block=n_is_block)
        assert torch.equal(found, hadamard_transform_KN(y, 0.3, before=3))
    want = hadamard_transform_KN(x, before=3, after=4)
    assert torch.equal(hadamard_transform_KN(x, before=3, after=4, block=96), want)
    for empty in (x[:0], x[:0, ::2], x.view(2, 1, 96)[:, :0]):
        found = fastfood.hadamard_transform(empty, block=16, before=3)
        assert found.shape == empty.shape
        fastfood.hadamard_transform_(empty, block=16)
    one = torch.randn(64, device=device)
    assert torch.equal(fastfood.hadamard_transform(one, block=16), rows(one, 16))


# --- Views ---------------------------------------------------------------------------------------


def rows(x, block, **options):
    """The result that blocks must have, from the rows of a contiguous copy."""
    y = x.clone(memory_format=torch.contiguous_format).view(-1, block)
    return hadamard_transform_KN(y, **options).view(x.shape)


def views(n, dtype, device):
    """(name, memory, view of it whose last dimension of n has stride one)."""

    def memory(*shape):
        return torch.randn(shape, device=device).to(dtype)

    w, heads, wide, many = (
        memory(4, 3, 2 * n),
        memory(2, 5, 3, n),
        memory(7, n + 8),
        memory(*[4] * 4, n),
    )
    return [
        ("slice", w, w[..., :n]),
        ("second half", w, w[..., n:]),
        ("odd address", wide, wide[:, 3 : 3 + n]),
        ("three heads", heads, heads.transpose(1, 2)),
        ("every second", w, w[::2, :, :n]),
        ("one row", w, w[1:2, 1:2, :n]),
        ("turned around", heads, heads.permute(2, 1, 0, 3)),
        ("in the middle", heads, heads[:, 1:4].transpose(1, 2)),
    ] + [("four steps", many, many[::2, ::2, ::2, ::2])] * (n > 0)


CUTS = [(64, 16, 1), (96, 32, 1), (64, None, 1), (8, 2, 1), (256, 128, 1), (1024, 256, 1)]
CUTS += [(2048, None, 1), (8192, None, 1), (48, 24, 12), (12, None, 12), (640, 320, 20)]


@pytest.mark.parametrize("n, block, K", CUTS)
def test_views_are_read_and_written_where_they_lie(n, block, K, device):
    for dtype in DTYPES if n < 1024 else DTYPES[1:3]:
        for name, memory, x in views(n, dtype, device):
            want = rows(x, block or n, scale=0.3, K=K)
            options = {"scale": 0.3, "K": K, "block": block}
            found = hadamard_transform_KN(x, **options)
            assert torch.equal(found, want) and found.is_contiguous(), name
            untouched = memory.clone()
            target = memory.clone()
            out = target.as_strided(x.shape, x.stride(), x.storage_offset())
            assert hadamard_transform_KN(x.contiguous(), **options, out=out) is out
            hadamard_transform_KN(x, **options, out=x)
            untouched.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(want)
            assert torch.equal(memory, untouched) and torch.equal(target, untouched), name


def test_views_with_diagonals(device):
    for dtype in DTYPES:
        for name, memory, x in views(96, dtype, device):
            for before, after in diagonals(96, 32, dtype, device)[1:]:
                options = {"before": before, "after": after, "block": 32}
                want = fastfood.hadamard_transform(x.contiguous(), 0.3, **options)
                assert torch.equal(fastfood.hadamard_transform(x, 0.3, **options), want), name
                version = x._version
                fastfood.hadamard_transform_(x, 0.3, **options)
                assert torch.equal(x, want) and memory._version > version, name


def copies(*calls):
    """The operators that copy entries among all that the calls reach at any depth."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for f, arguments in calls:
            f(**arguments)
    return {e.name for e in found.events()} & {"aten::copy_", "aten::clone", "aten::contiguous"}


def test_nothing_is_copied(device):
    expanded = torch.randn(1, 3, 64, device=device).expand(5, 3, 64)
    many = torch.randn(4, 4, 4, 4, 64, device=device)[::2, ::2, ::2, ::2]
    signs = random_signs(64, 3, device)
    calls = [
        (fastfood.hadamard_transform, {"x": x, "block": b}) for x in (expanded,) for b in (16, None)
    ]
    calls.append((fastfood.hadamard_transform, {"x": many}))
    for name, _, x in views(64, torch.bfloat16, device):
        for block in (16, None) if name != "four steps" else ():
            options = {"x": x, "block": block, "before": signs}
            calls.append((fastfood.hadamard_transform, options))
            calls.append((fastfood.hadamard_transform_, options))
            calls.append((hadamard_transform_KN, {**options, "out": torch.empty_like(x)}))
    assert len(calls) > 40 and not copies(*calls)
    assert torch.equal(fastfood.hadamard_transform(expanded, block=16), rows(expanded, 16))
    # more levels than there are, and a stride
    assert copies((fastfood.hadamard_transform, {"x": many, "block": 16}))
    assert copies((fastfood.hadamard_transform, {"x": expanded.mT.contiguous().mT}))


def test_entries_that_share_memory_are_not_written(device):
    memory = torch.randn(1, 64, device=device)
    copy = memory.clone()
    with pytest.raises(
        RuntimeError, match="out: wanted entries that share no memory, got dimension 0"
    ):
        fastfood.hadamard_transform_(memory.expand(3, 64), block=16)
    assert torch.equal(memory, copy)
    # rows that overlap come out as if they had been computed one after the other and copied
    memory = torch.randn(48, device=device)
    x = memory.as_strided((3, 32), (8, 1))
    want = fastfood.hadamard_transform(x.clone(), block=16)
    expected = memory.clone()
    expected.as_strided((3, 32), (8, 1)).copy_(want)
    fastfood.hadamard_transform_(x, block=16)
    assert torch.equal(memory, expected)


# --- Autograd and compilation --------------------------------------------------------------------


@pytest.mark.parametrize("n, block, K", [(12, 4, 1), (40, 20, 20), (4, 1, 1)])
def test_gradients_of_any_order(n, block, K, device):
    def leaf(*shape):
        return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)

    def f(x, b, a):
        x = x.transpose(0, 1)[..., :n]
        return hadamard_transform_KN(x, 0.3, K=K, before=b, after=a, block=block)

    for b, a in ((leaf(block), leaf(block)), (leaf(n), leaf(block)), (leaf(block), leaf(n))):
        x = leaf(1, 1, n + 1)
        assert gradcheck(f, (x, b, a), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(f, (x, b, a))
    assert gradcheck(lambda x: f(x, None, None), (leaf(1, 1, n + 1),), check_forward_ad=True)


def test_function_transforms(device):
    n, block = 12, 4
    x = torch.randn(3, 2, n, dtype=torch.float64, device=device)
    b, a = (
        torch.randn(3, block, dtype=x.dtype, device=device),
        torch.randn(3, n, dtype=x.dtype, device=device),
    )

    def f(x, b, a):
        return fastfood.hadamard_transform(x, 0.5, before=b, after=a, block=block)

    want = torch.stack([f(*each) for each in zip(x, b, a, strict=True)])
    torch.testing.assert_close(torch.vmap(f)(x, b, a), want)
    want = torch.stack([f(x[0], each, a[0]) for each in b])
    torch.testing.assert_close(torch.vmap(f, in_dims=(None, 0, None))(x[0], b, a[0]), want)
    M = torch.func.jacrev(lambda v: f(v, b[0], a[0]))(x[0, 0])
    want = reference.hadamard_transform(torch.eye(n), 0.5, before=b[0], after=a[0], block=block).T
    torch.testing.assert_close(M.cpu(), want)
    t = torch.randn_like(x[0, 0])
    _, tangent = torch.func.jvp(lambda v: f(v, b[0], a[0]), (x[0, 0],), (t,))
    torch.testing.assert_close(tangent, M @ t)
    # the operator's own rule, which code that calls it meets
    operator = torch.ops.fastfood.hadamard_transform
    called = torch.vmap(lambda x, b, a: operator(x, 0.5, 1, False, b, a, block))(x, b, a)
    torch.testing.assert_close(called, torch.vmap(f)(x, b, a))


def test_compiled_code_gives_the_same(device):
    def f(x, b, a):
        y = fastfood.hadamard_transform(
            x.transpose(0, 1)[..., :32], 0.5, before=b, after=a, block=8
        )
        z = hadamard_transform_KN(x, block=12)
        return y.cos().sum() + z.sin().sum()

    x, b, a = (torch.randn(s, device=device, requires_grad=True) for s in ((4, 3, 36), 8, 32))
    want = torch.autograd.grad(f(x, b, a), (x, b, a))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(x, b, a)
    torch.testing.assert_close(compiled, f(x, b, a))
    torch.testing.assert_close(torch.autograd.grad(compiled, (x, b, a)), want)

    def gradient(x):
        return torch.func.grad(lambda x: fastfood.hadamard_transform(x, block=4).pow(3).sum())(x)

    x = torch.randn(3, 12, device=device)
    torch.testing.assert_close(torch.compile(gradient, backend="aot_eager")(x), gradient(x))

    def mutate(x):
        y = x + 1
        fastfood.hadamard_transform_(y[:, :8], block=4, before=3)
        return y

    torch.testing.assert_close(
        torch.compile(mutate, fullgraph=True, backend="aot_eager")(x), mutate(x)
    )


@pytest.mark.parametrize("halves", [False, True])
def test_dynamic_shapes(halves, device):
    def f(x):
        return fastfood.hadamard_transform(x[:, :-1], block=x.shape[1] // 2 if halves else 16)

    options = {"dynamic": True, "fullgraph": True, "backend": "aot_eager"}
    compiled = torch.compile(f, **options)
    for shape in ((2, 65), (3, 129), (5, 257)):
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(compiled(x), f(x))


def operator_calls(device):
    w = torch.randn(3, 64, device=device)
    leaf = torch.randn(3, 64, device=device, requires_grad=True)
    part, whole = torch.randn(12, device=device, requires_grad=True), torch.randn(48, device=device)
    return {
        "hadamard_transform": (leaf[:, :48], 0.5, 12, True, part, whole, 12),
        "hadamard_transform_out": (
            w[:, :48],
            torch.empty_like(w)[:, :48],
            0.5,
            12,
            False,
            None,
            whole,
            12,
        ),
    }


@pytest.mark.parametrize("name", operator_calls("cpu"))
def test_torch_accepts_the_registration(name, device):
    torch.library.opcheck(getattr(torch.ops.fastfood, name).default, operator_calls(device)[name])


# --- Refusals ------------------------------------------------------------------------------------


def test_bad_arguments_are_named(device):
    x = torch.ones(3, 96, device=device)
    copy = x.clone()
    for f in (fastfood.hadamard_transform, fastfood.hadamard_transform_, hadamard_transform_KN):
        for block, message in [
            (0, "block: wanted an integer of at least 1, got 0"),
            (-16, "block: wanted an integer of at least 1, got -16"),
            (16.0, "block: wanted an integer of at least 1, got 16.0"),
            (True, "block: wanted an integer of at least 1, got True"),
            (64, "block: wanted a divisor of the 96 entries of x along dim -1, got 64"),
            (192, "block: wanted a divisor of the 96 entries of x along dim -1, got 192"),
        ]:
            with pytest.raises(ValueError, match=message):
                f(x, block=block)
        with pytest.raises(
            ValueError, match=r"before: wanted shape \(96,\) or \(32,\) on .*got \(16,"
        ):
            f(x, block=32, before=x[0, :16])
        with pytest.raises(ValueError, match="x: wanted at least one entry along dim -1"):
            f(x[:, :0], block=16)
    for f in (fastfood.hadamard_transform, fastfood.hadamard_transform_):
        with pytest.raises(
            ValueError,
            match="block: wanted a power of two, got 24; the next size is 32, the one before 16",
        ):
            f(x, block=24)
    with pytest.raises(
        ValueError, match=r"block: wanted K \* 2\^k, got 6; the next size is 8, the one before 4"
    ):
        hadamard_transform_KN(x, block=6)
    with pytest.raises(ValueError, match=r"block: wanted 12 \* 2\^k, got 32; the next size is 48"):
        hadamard_transform_KN(x, K=12, block=32)
    with pytest.raises(RuntimeError, match="out: wanted a call without autograd"):
        fastfood.hadamard_transform(x, block=16, out=x.clone().requires_grad_())
    operator = torch.ops.fastfood.hadamard_transform
    for block, message in [
        (0, "block: wanted 1 times a power"),
        (64, "block: wanted a divisor of the 96"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            operator(x, block=block)
    with pytest.raises(RuntimeError, match="before: wanted a contiguous vector of 96 entries"):
        operator(x, block=32, before=x[0, :16])
    with pytest.raises(RuntimeError, match="out: wanted a tensor of the shape of x"):
        torch.ops.fastfood.hadamard_transform_out(x, x[:2], block=32)
    assert torch.equal(x, copy)
