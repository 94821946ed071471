"""The Walsh-Hadamard transform: values to the bit, every order, every form of call, and what is
refused."""

import hashlib
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transform_error import DTYPES, assert_close

import fastfood
from fastfood import hadamard_transform_KN, random_signs, reference, transform
from fastfood.orders import ORDERS, choose_order, is_order

SIZES = [1, 2, 3, 4, 8, 12, 16, 32, 64, 100, 128, 256, 1000, 1024, 4096, 8192]
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def plain(x, scale=1.0, K=1, transpose=False, before=None, after=None):
    """The transform by its defining order of sums, in plain torch."""
    return transform.in_plain_torch(x, transform.Call(scale, K, transpose, before, after))


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

# Hashes of the signs, row by row, which must never change, as rotated checkpoints depend on them.
GOLDEN = """
    12 d8f1cd00d0ed5550     20 c3a3d9922a9b49c7     28 12c1ba894761bf1d     36 147097e41d5a3707
    40 09c4022b9b0bdfd1     44 d7e970988e4b3641     52 9aa6bec96394cfca     60 e0d3fe922af47d1e
    68 f5508830d0eb58fd     76 be472e0e3e1f1131     84 b2674337a1e11c5b     92 f92e3c6f12ed241d
    100 f7934268a2016bcd    108 f2515b85a3163765    116 5da3cd87ea100bb5    124 3599311d97a33c20
    132 7df19ae582378957    140 2b20c54cd8c49cdc    148 31f89b2526c3a527    156 1f9950c8e2e00ddc
    164 93c264d78d1faae7    172 ac825f9b6bbb0ae4    180 6333a278eeb0a4bb    188 ebe2b3a708f802eb
    196 f5fa70a12c53a4ac    204 9c656a3b9c98f76d    212 a73c1e5f5ef73bcd    220 d77c5949b57c07a0
    228 c930b7cdd0760821    236 84bb6747afad7835    244 8cd72cbd7893b15c    252 ff6278f6b62dd3de
    260 37821accf28e9c0b    268 7f6dc87b3130f54b    276 51ed0959117f9d52    284 1e62e75f42763aa4
    292 ec8920eefd50ba78    300 7e24b59c8bf85891    308 2e8ce84be021e5f0    316 8be22d4dba61678c
    324 e6d07eabcc2e7e91    332 6b99ebaab7b655be    340 598c11cf680923ae    348 85613775da1f1264
    356 c643d77582dc6677    364 6486a2b6f3721eff    372 de4e511ceb3c3d73    380 33cd13e86bfe147b
    388 f4defa736522c916    396 b0788901bb1dcb4b    404 2e716774fa8910a8    412 2f655781f497506c
    420 66a675d3aa6b886e    428 9da2fa86ffe5929d    436 61697b707a3ecd08    444 38c06174bc49dd61
    452 0fb0cefcb037030d    460 23ceb06b2fa6cba5    468 d566dc27a5656938    476 ef92a870e8c71b8e
    484 45c544f529b0ed69    492 5a3578def84e95da    500 7eaf5f93f269fedf    508 201eaea81ec3a7ab
    516 05ac7b8de9ffd31b    524 3ecf1ee816c6a913    532 996592b766b836bc    540 fbab2b5efe5024bc
    548 757cc7eac3ac9929    556 f57a5332e6732c51    564 3b8a6db5fd82bd04    572 4377bce32bec7374
    580 ec0d407049e23eeb    588 4678326a68fe1be2    596 397509955a69a6be    604 a64bca9ef9c24b84
    612 137a2de99ce534f9    620 ff8ea3439767a0f2    628 836244fbdaa689c2    636 f08c93c0cc1cbba2
    644 2d73b0a3fa128a1c    652 35cab11ac164f51d    660 612b15e477c14396    676 73e1ea7df921ebbc
    684 049df867fd2772b4    692 863f7f35372f4164    700 2cee68f41a41445a    708 b0951681e5563e45
    724 e1447dadde088376    732 417dc073cac95e48    740 a5ca1f7ca00a2067    748 30491f7f86f68cf3
    756 9c670edf51b25fa0    764 f3645133d75b684c    772 fbe60d04ed5faa0c    780 d0edcbb0400521e0
    788 22d81aa617556b5c    796 27a833a9aaf2936e    804 2e4a14c855975047    812 25bb0a5930947ff1
    820 43da80010dcc3520    828 09c52390d90469dc    836 c19ac9d26d38a10e    844 e5cca8c7c5f16a1a
    852 9bf30e059a835bbf    860 27db73b8da0fba55    868 c99c4809f3f955e7    876 2b6ac1e1861a99c7
    884 f68b8523096b94ff    900 6812ff20c03c1683    908 ccf90e648ef1874c    916 5910f184248763cc
    924 dd5da8768ff3658d    932 02be5968659f744d    940 bd64f18c4660790e    948 cfe4ae60d9620b4f
    956 d0d757d360ef0218    964 168ad97433540143    972 bad7684c03345cbc    980 c6a7c8861c24d2d9
    988 4002103cf9e45502    996 accb7a0192a5658b   1004 6f460e5274bff115   1012 24ebea9517eff728
    1020 a5af3959907416e9
""".split()
GOLDEN = dict(zip(map(int, GOLDEN[::2]), GOLDEN[1::2], strict=True))


@pytest.mark.parametrize("K", sorted(ORDERS))
def test_orders_are_hadamard_matrices_for_ever(K):
    H = reference.order_matrix(K)
    assert torch.equal(H @ H.T, K * torch.eye(K, dtype=torch.float64))
    for transpose in (False, True):
        y = hadamard_transform_KN(torch.eye(K), K=K, transpose=transpose)
        assert torch.equal(y.double(), H if transpose else H.T)
    assert hashlib.sha256((H > 0).numpy().tobytes()).hexdigest()[:16] == GOLDEN[K]


def test_operator_has_the_orders_that_python_lists():
    for K in [*range(1, 1200), 2736, 3696, 668 * 12, 716 * 12, 996 * 1020, 1020 * 1020, 1028 * 4]:
        listed = is_order(K)
        try:
            torch.ops.fastfood.hadamard_transform(torch.ones(K), 1.0, K)
            assert listed, K
        except RuntimeError as error:
            assert not listed and f"K: wanted 1 or an order, got {K}" in str(error)


def test_a_size_keeps_the_order_that_was_chosen_first():
    """Orders that were added later, and smaller than a product of two, are not in its way."""
    first = [*range(12, 173, 8), 428, 40]
    products = sorted({a * b for a in first for b in first})
    for K in products:
        n = K << 3
        fitting = [
            [a for a in group if n % a == 0 and (n // a).bit_count() == 1]
            for group in ([1], first, products)
        ]
        assert choose_order(n) == min(next(filter(None, fitting))), n
    assert choose_order(284 * 64) == 284 and choose_order(1000) == 500


# Heads, widths and inner widths of current models, embeddings, and a shard (10944 / 8).
MODELS = [
    *(64, 80, 96, 112, 128, 160, 192, 256, 320, 576),
    *(384, 512, 768, 896, 960, 1024, 1152, 1280, 1536, 1600, 1792, 2048, 2304, 2560, 2880, 3072),
    *(3584, 3840, 4096, 4608, 5120, 5376, 6144, 6656, 7168, 8192, 12288, 16384),
    *(1408, 2816, 4864, 5504, 5632, 6912, 7680, 8960, 9216, 9728, 10240, 10752, 10944),
    *(11008, 11264, 12800, 13440, 13696, 13824, 14336, 15360, 17408, 17920, 18176, 18432, 18944),
    *(20480, 21504, 22016, 24576, 25600, 27392, 27648, 28672, 29568, 30720, 36864, 53248),
    *(300, 1000, 1368),
]


@pytest.mark.parametrize("n", MODELS)
def test_sizes_of_models(n, device):
    """Close to float64, orthogonal, with a true adjoint, which is the gradient."""
    x = torch.randn(2, n, device=device, requires_grad=True)
    y = hadamard_transform_KN(x, n**-0.5)
    K = choose_order(n)
    want = reference_rows(x.detach().cpu(), n, K)
    size = x.detach().double().square().mean(-1, keepdim=True).sqrt().cpu()  # of y's entries, too
    units = (y.detach().cpu() - want).abs() / size / 2.0**-24
    assert units.max() < 4 * (math.log2(n) + math.sqrt(K))
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, hadamard_transform_KN(g, n**-0.5, transpose=True))
    left, right = (y.detach().double() * g).sum(), (x.detach().double() * x.grad).sum()
    torch.testing.assert_close(left, right, rtol=0, atol=1e-6 * n)
    torch.testing.assert_close(hadamard_transform_KN(x.grad, n**-0.5), g, rtol=0, atol=1e-5)


def reference_rows(x, n, K):
    """The reference's matrix times rows, factor by factor, because the whole matrix is large."""
    m = n // K
    a = 1 << m.bit_length() // 2
    y = x.double().reshape(-1, K, a, m // a)
    for dim, H in enumerate(
        (reference.order_matrix(K), *map(reference.hadamard_matrix, (a, m // a))), 1
    ):
        y = torch.tensordot(y, H, ([dim], [1])).movedim(-1, dim)
    return y.reshape(-1, n) * n**-0.5


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


FEW_ORDERS = [12, 20, 28, 36, 40, 44, 60, 84, 144, 172, 188, 244, 260, 292, 500, 1020]


@st.composite
def calls(draw):
    K = draw(st.sampled_from([1, 1, 1, *FEW_ORDERS]))
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
        (
            ValueError,
            "K: wanted 1, 40, four times an odd .*a product of two of these, got 13",
            {"K": 13},
        ),
        (ValueError, "K: wanted 1, .* 668, 716, 892.* got 716", {"K": 716}),
        (ValueError, r"x: wanted 12 \* 2\^k entries along dim -1, got 8; .*is 12", {"K": 12}),
    ]:
        with pytest.raises(error, match=message):
            hadamard_transform_KN(x, **options)
    with pytest.raises(ValueError, match=r"got 4304; the next size is 4320, the one before 4288"):
        hadamard_transform_KN(torch.ones(4304))
    with pytest.raises(RuntimeError, match="x: wanted a last dimension that is 1 times a power"):
        torch.ops.fastfood.hadamard_transform(torch.ones(3), 1.0)
    with pytest.raises(RuntimeError, match="before: wanted a contiguous vector of 4 entries"):
        torch.ops.fastfood.hadamard_transform(torch.ones(4), 1.0, before=torch.ones(3))
