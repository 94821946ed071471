"""The Walsh-Hadamard transform: values to the bit, every order, every form of call, and what is
refused."""

import hashlib
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastfood
from fastfood import hadamard, hadamard_transform_KN, random_signs, reference, transform

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [1, 2, 3, 4, 8, 12, 16, 32, 64, 100, 128, 256, 1000, 1024, 4096, 8192]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def plain(x, scale=1.0, K=1, transpose=False, before=None, after=None):
    """The transform by its defining order of sums, in plain torch."""
    return transform.in_plain_torch(x, scale, K, transpose, before, after)


def assert_close(y, x, want, scale, n):
    """y is within twice the error of plain sums in its arithmetic, and one rounding to its
    dtype.
    """
    arithmetic = torch.promote_types(x.dtype, torch.float32)
    size = x.double().square().sum(-1, keepdim=True).sqrt() * abs(scale) * math.sqrt(n)
    error = 4 * torch.finfo(arithmetic).eps * size
    rounding = want.abs() * torch.finfo(y.dtype).eps + torch.finfo(y.dtype).smallest_normal
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
    assert bool(((y.double() - want).abs() <= error + rounding).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_matches_the_reference(n, dtype, device):
    x = torch.randn(5, n, device=device).to(dtype)
    y = fastfood.hadamard_transform(x, 0.3)
    assert_close(y, x, reference.hadamard_transform(x, 0.3), 0.3, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1 << k for k in range(0, 21, 2)] + [1 << 15, 1 << 17, 1 << 21])
def test_every_bit_is_defined(n, dtype, device):
    x = torch.randn(max(1, min(7, (1 << 18) // n)), n).to(dtype)
    y = fastfood.hadamard_transform(x.to(device), 0.7).cpu()
    assert torch.equal(y, plain(x, 0.7))


# --- Orders --------------------------------------------------------------------------------------

# Of the signs, row by row: rotated checkpoints depend on them.
GOLDEN = {
    12: "d8f1cd00d0ed5550",
    20: "c3a3d9922a9b49c7",
    28: "12c1ba894761bf1d",
    36: "147097e41d5a3707",
    40: "09c4022b9b0bdfd1",
    44: "d7e970988e4b3641",
    52: "9aa6bec96394cfca",
    60: "e0d3fe922af47d1e",
    68: "f5508830d0eb58fd",
    76: "be472e0e3e1f1131",
    84: "b2674337a1e11c5b",
    92: "f92e3c6f12ed241d",
    100: "f7934268a2016bcd",
    108: "f2515b85a3163765",
    116: "5da3cd87ea100bb5",
    124: "3599311d97a33c20",
    132: "7df19ae582378957",
    140: "2b20c54cd8c49cdc",
    148: "31f89b2526c3a527",
    156: "1f9950c8e2e00ddc",
    164: "93c264d78d1faae7",
    172: "ac825f9b6bbb0ae4",
    428: "9da2fa86ffe5929d",
}


@pytest.mark.parametrize("K", sorted(hadamard.ORDERS))
def test_orders_are_hadamard_matrices_for_ever(K):
    H = reference.order_matrix(K)
    assert torch.equal(H @ H.T, K * torch.eye(K, dtype=torch.float64))
    for transpose in (False, True):
        y = hadamard_transform_KN(torch.eye(K), K=K, transpose=transpose)
        assert torch.equal(y.double(), H if transpose else H.T)
    assert hashlib.sha256((H > 0).numpy().tobytes()).hexdigest()[:16] == GOLDEN[K]


def test_operator_has_the_orders_that_python_lists():
    for K in range(1, 1000):
        listed = K == 1 or K in hadamard.ORDERS or K in hadamard._PRODUCTS
        try:
            torch.ops.fastfood.hadamard_transform(torch.ones(K), 1.0, K)
            assert listed, K
        except RuntimeError as error:
            assert not listed and f"K: wanted 1 or an order, got {K}" in str(error)


@pytest.mark.parametrize(
    "n, K", [(3584, 28), (10944, 2736), (13696, 428), (29568, 3696), (11008, 172), (80, 20)]
)
def test_sizes_of_models(n, K, device):
    x = torch.randn(3, n)
    y = hadamard_transform_KN(x.to(device), n**-0.5)
    want = reference.hadamard_transform_KN(x, n**-0.5, K=K)
    assert_close(y.cpu(), x, want, n**-0.5, n)
    size = x.double().square().mean(-1, keepdim=True).sqrt()  # of an entry of y, too
    units = (y.cpu() - want).abs() / size / 2.0**-24
    assert units.max() < 4 * (math.log2(n) + math.sqrt(K))
    back = hadamard_transform_KN(y, n**-0.5, transpose=True)
    torch.testing.assert_close(back.cpu(), x, rtol=0, atol=1e-5)


def test_padded_orders_are_those_of_the_drop_in():
    for K in (12, 20, 28, 40):
        f = getattr(fastfood, f"hadamard_transform_{K}N")
        x = torch.randn(2, 3, 16 * K)
        assert torch.equal(f(x, 0.5), hadamard_transform_KN(x, 0.5, K=K))
        short = x[..., : 9 * K + 1]
        padded = torch.nn.functional.pad(short, (0, 7 * K - 1))
        assert torch.equal(f(short), f(padded)[..., : 9 * K + 1])
        g = torch.randn_like(short)
        leaf = short.clone().requires_grad_()
        f(leaf, 0.5).backward(g)
        wide = torch.nn.functional.pad(g, (0, 7 * K - 1))
        want = hadamard_transform_KN(wide, 0.5, K=K, transpose=True)
        assert torch.equal(leaf.grad, want[..., : 9 * K + 1])


# --- Forms of call -------------------------------------------------------------------------------


@st.composite
def calls(draw):
    K = draw(st.sampled_from([1, 1, 1, 12, 20, 28, 36, 40, 44, 60, 76, 84, 100, 144, 172]))
    n = K << draw(st.integers(0, 9 if K == 1 else max(0, 8 - K.bit_length())))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dim = draw(st.integers(0, len(shape)))
    return {
        "K": K,
        "shape": [*shape[:dim], n, *shape[dim:]],
        "dim": dim - draw(st.sampled_from([0, len(shape) + 1])),
        "steps": draw(
            st.lists(st.integers(1, 2), min_size=len(shape) + 1, max_size=len(shape) + 1)
        ),
        "order": draw(st.permutations(range(len(shape) + 1))),
        "offset": draw(st.integers(0, 3)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "device": draw(st.sampled_from(DEVICES)),
        "scale": draw(st.sampled_from([1.0, -0.5, 0.1])),
        "transpose": draw(st.booleans()),
        "diagonals": draw(st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1)])),
        "form": draw(st.sampled_from(["new", "out", "same", "in place"])),
    }


def strided(call):
    """A tensor of the call's shape with gaps, in any order of dimensions, at an odd address."""
    sizes = [size * step for size, step in zip(call["shape"], call["steps"], strict=True)]
    memory = torch.randn(call["offset"] + math.prod(sizes)).to(call["device"], call["dtype"])
    ordered = memory[call["offset"] :].view([sizes[i] for i in call["order"]])
    x = ordered.permute([call["order"].index(i) for i in range(len(sizes))])
    return x[tuple(slice(None, None, step) for step in call["steps"])]


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_any_form_of_call(call):
    x, K, dim, scale = strided(call), call["K"], call["dim"], call["scale"]
    n = x.shape[dim]
    wide = torch.promote_types(x.dtype, torch.float32)
    before, after = (
        torch.randn(n).to(x.device, wide) if wanted else None for wanted in call["diagonals"]
    )
    want = reference.hadamard_transform_KN(
        x, scale, K=K, transpose=call["transpose"], before=before, after=after, dim=dim
    )
    size = x.double() if before is None else (x.movedim(dim, -1) * before).movedim(-1, dim)
    copy, version = x.clone(), x._version
    options = {"before": before, "after": after, "dim": dim}
    if K == 1 and call["form"] == "in place":
        y = fastfood.hadamard_transform_(x, scale, **options)
    else:
        out = {"out": torch.empty_like(x), "same": x}.get(call["form"])
        y = hadamard_transform_KN(x, scale, K=K, transpose=call["transpose"], out=out, **options)
        assert out is None or y is out
    if y is x:
        assert x._version > version
    else:
        assert torch.equal(x, copy)
    largest = scale * (1 if after is None else float(after.abs().max()))
    last = (t.movedim(dim, -1) for t in (y, size.to(x.dtype), want))
    y, size, want = last
    assert_close(y, size, want, largest, n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_rounded_once(dtype, device):
    x = torch.randn(9, 4096).to(dtype)
    y = fastfood.hadamard_transform(x.to(device), 2.0**-6).cpu()
    assert torch.equal(y, plain(x.float(), 2.0**-6).to(dtype))


def test_infinite_and_undefined_values_pass_through(device):
    for dtype in DTYPES:
        x = torch.zeros(2, 64, dtype=dtype, device=device)
        x[0, 3], x[1, 60] = float("inf"), float("nan")
        y = fastfood.hadamard_transform(x)
        assert y[0].isinf().all() or y[0].isnan().any()
        assert y[1].isnan().all()


def test_seeds_stand_for_signs(device):
    x, n = torch.randn(4, 96, device=device, dtype=torch.float16), 96
    signs = random_signs(n, 5, device)
    assert signs.abs().eq(1).all() and 30 < int((signs > 0).sum()) < 66
    y = hadamard_transform_KN(x, before=5, after=2**64 - 1)
    want = hadamard_transform_KN(x, before=signs, after=random_signs(n, 2**64 - 1, device))
    assert torch.equal(y, want)
    P = fastfood.Fastfood(96, 1000, seed=5)
    theta = torch.randn(96)
    padded = torch.nn.functional.pad(theta * random_signs(96, 5), (0, 32))
    v = fastfood.hadamard_transform(padded, P.scale)
    assert torch.equal(P.spread(theta).sort().values, v.repeat(2).sort().values)


def test_out_may_overlap(device):
    memory = torch.randn(3 * 64 + 7, device=device)
    x, out = memory[: 3 * 64].view(3, 64), memory[7:].view(3, 64)
    want = fastfood.hadamard_transform(x)
    assert torch.equal(fastfood.hadamard_transform(x, out=out), want)


def free_memory():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if "MemAvailable" in line) * 1024


@pytest.mark.skipif(free_memory() < 8 << 30, reason="needs 8 GB of memory")
def test_more_than_two_billion_entries():
    x = torch.zeros((1 << 15) + 1, 1 << 16, dtype=torch.bfloat16)
    x[0, 0], x[-1, 77] = 1.0, 3.0
    fastfood.hadamard_transform_(x)
    assert (x[0] == 1).all() and (x[1:-1:1000] == 0).all()
    row = torch.zeros(1 << 16, dtype=torch.bfloat16)
    row[77] = 3.0
    assert torch.equal(x[-1], fastfood.hadamard_transform(row))


@pytest.mark.skipif(free_memory() < 8 << 30, reason="needs 8 GB of memory")
def test_a_row_of_two_to_the_thirty():
    n, places, values = 1 << 30, [3, (1 << 29) + 12345, n_last := (1 << 30) - 1], [1.0, -2.0, 4.0]
    x = torch.zeros(n)
    for place, value in zip(places, values, strict=True):
        x[place] = value
    fastfood.hadamard_transform_(x)
    for j in [0, 1, 7, 1 << 17, (1 << 18) + 5, (1 << 29) + 3, n_last]:
        signs = [(-1) ** (i & j).bit_count() for i in places]
        assert x[j] == sum(s * v for s, v in zip(signs, values, strict=True))


def test_devices_without_kernels():
    """Meta tensors have shapes; others run plain torch, with the CPU's bits if K = 1."""
    x = torch.randn(3, 24, device="meta", dtype=torch.float16)
    y = hadamard_transform_KN(x, before=3)
    assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
    names = ["hadamard_transform", "hadamard_transform_out"]
    for name in names:
        key = "CompositeExplicitAutograd"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastfood::{name}", key)
    for K, transpose in [(1, False), (12, False), (20, True), (144, True)]:
        for dtype in DTYPES:
            x, b, a = torch.randn(2, 2 * K).to(dtype), torch.randn(2 * K), torch.randn(2 * K)
            b, a = (t.to(torch.promote_types(dtype, torch.float32)) for t in (b, a))
            y = plain(x, 0.3, K, transpose, b, a)
            options = {"K": K, "transpose": transpose, "before": b, "after": a}
            if K == 1:
                assert torch.equal(y, hadamard_transform_KN(x, 0.3, **options))
            want = reference.hadamard_transform_KN(x, 0.3, **options)
            assert_close(y, x, want, 0.3 * a.abs().max().item() * b.abs().max().item(), 2 * K)


def test_bad_arguments_are_named():
    x = torch.ones(3, 8)
    for error, message, call in [
        (TypeError, "x: wanted a tensor, got list", ([1.0, 2.0],)),
        (TypeError, "x: wanted a dtype among float32.*got torch.int64", (x.long(),)),
        (TypeError, "x: wanted a dtype among float32.*got torch.complex64", (x * 1j,)),
        (ValueError, "x: wanted at least one dimension, got a scalar", (torch.tensor(1.0),)),
        (ValueError, r"x: wanted at least one entry along dim -1, got shape \(3, 0\)", (x[:, :0],)),
    ]:
        with pytest.raises(error, match=message):
            fastfood.hadamard_transform(*call)
    for error, message, options in [
        (ValueError, "dim: wanted a dimension of a tensor of 2, got 2", {"dim": 2}),
        (ValueError, r"before: wanted shape \(8,\) on cpu, got \(7,\)", {"before": x[0, :7]}),
        (TypeError, "after: wanted a tensor, got float", {"after": 1.0}),
        (ValueError, "seed: wanted an integer", {"before": -1}),
        (ValueError, r"out: wanted \(3, 8\), torch.float32, cpu, got \(8,\)", {"out": x[0]}),
        (ValueError, "out: wanted .*got .*torch.float64", {"out": x.double()}),
        (ValueError, "K: wanted 1, one of .12, 20, .* or a product of two, got 13", {"K": 13}),
        (ValueError, r"x: wanted 12 \* 2\^k entries along dim -1, got 8; .*is 12", {"K": 12}),
    ]:
        with pytest.raises(error, match=message):
            hadamard_transform_KN(x, **options)
    with pytest.raises(ValueError, match=r"got 3000; the next size is 3024, the one before 2992"):
        hadamard_transform_KN(torch.ones(3000))
    with pytest.raises(RuntimeError, match="x: wanted a last dimension that is 1 times a power"):
        torch.ops.fastfood.hadamard_transform(torch.ones(3), 1.0)
    with pytest.raises(RuntimeError, match="before: wanted a contiguous vector of 4 entries"):
        torch.ops.fastfood.hadamard_transform(torch.ones(4), 1.0, before=torch.ones(3))
