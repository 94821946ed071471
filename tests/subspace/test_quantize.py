"""Quantised vectors: the levels are those of k-means, and the code of them is short and exact."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfood import quantize as module
from fastfood.quantize import Quantized, decode, encode, quantize

HALF = st.floats(-65504, 65504, width=16)


def same(a, b):
    return torch.equal(a.codebook, b.codebook) and torch.equal(a.symbols, b.symbols)


def entropy(symbols):
    """The entropy of all symbols together, in bits."""
    counts = torch.bincount(symbols.long()).double()
    counts = counts[counts > 0]
    return -(counts * (counts / counts.sum()).log2()).sum().item()


def allowed_bits(q):
    """The entropy, the most that learning the counts can cost (Xie and Barron, 2000, lemma 1), and
    the end: one bit to name a number of the interval, and less than a byte to fill the last."""
    n, r = len(q.symbols), len(q.codebook)
    gammas = math.lgamma(n + r / 2) + math.lgamma(0.5) - math.lgamma(n + 0.5) - math.lgamma(r / 2)
    return entropy(q.symbols) + gammas / math.log(2) + 1 + 7


@settings(max_examples=300, deadline=None)
@given(
    st.lists(HALF | st.floats(-60000, 60000) | st.sampled_from([0.0, 1.0]), min_size=1),
    st.integers(1, 256),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_round_trip(values, levels, dtype):
    x = torch.tensor(values, dtype=dtype)
    q = quantize(x, levels)
    assert q.codebook.dtype == torch.float16 and q.symbols.dtype == torch.uint8
    assert len(q.codebook) <= min(levels, len(x.unique()))
    assert torch.equal(q.symbols.unique().long(), torch.arange(len(q.codebook)))
    assert (q.codebook.diff() > 0).all()
    code = encode(q)
    assert same(decode(code), q)
    assert 8 * len(code) == q.bits
    error = (q.dequantize(torch.float64) - x.double()).abs()
    levels_error = (q.codebook.double() - x.double()[:, None]).abs().amin(1)
    assert torch.equal(error, levels_error)
    if len(x.unique()) <= levels:
        assert torch.equal(error, (x.half().double() - x.double()).abs())


@st.composite
def any_symbols(draw):
    """Any symbols over any codebook, also with levels that no symbol uses."""
    first, r = draw(st.integers(-1024, 1024)), draw(st.integers(1, 256))
    symbols = draw(st.lists(st.integers(0, r - 1), min_size=1, max_size=300))
    repeats = draw(st.integers(1, 20))
    codebook = torch.arange(first, first + r, dtype=torch.float16)
    return Quantized(codebook, torch.tensor(symbols * repeats, dtype=torch.uint8))


@settings(max_examples=100, deadline=None)
@given(any_symbols())
def test_any_symbols_come_back_from_a_short_code(q):
    code = encode(q)
    assert same(decode(code), q)
    assert 8 * (len(code) - 4 - 2 * len(q.codebook)) <= allowed_bits(q)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_long_code_is_as_long_as_the_entropy(share):
    symbols = torch.where(torch.rand(20_000) < share, 3, torch.randint(0, 16, (20_000,)))
    q = Quantized(torch.arange(16).half(), symbols.to(torch.uint8))
    bits = q.bits - 8 * (4 + 2 * 16)
    assert entropy(symbols) <= bits <= allowed_bits(q)


def test_carries_go_through_settled_bytes(monkeypatch):
    """Rare symbols after frequent ones at the top of the interval: runs of 255 that overflow."""
    carries = []
    carry = module._carry
    monkeypatch.setattr(module, "_carry", lambda *a: carries.append(a[1][-1]) or carry(*a))
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        symbols = (torch.rand(400, generator=generator) < 0.98).to(torch.uint8)
        q = Quantized(torch.tensor([0.0, 1.0]).half(), symbols)
        assert same(decode(encode(q)), q)
    assert 255 in carries


@pytest.mark.parametrize(
    ("x", "levels", "book", "size"),
    [
        ([0.5] * 1000, 16, [0.5], 6),  # one level holds all values
        ([0.25], 1, [0.25], 6),
        ([1.0, 2.0, 6.0], 1, [3.0], 6),
        ([0.0, 1.0, 10.0, 11.0, 12.0], 2, [0.5, 11.0], 9),
        ([1.0, 1.0, 1.0, 2.0], 2, [1.0, 2.0], 9),
        ([1.0, 1.0 + 2**-20, 5.0], 3, [1.0, 5.0], 9),  # float16 makes one of two
        ([-0.0, 0.0], 2, [0.0], 6),
        # from the middle between two to the lower level, which leaves the other one without numbers
        ([1.0 + 2**-10, 1.0 + 1.5 * 2**-10], 2, [1.0 + 2**-10], 6),
    ],
)
def test_known_levels(x, levels, book, size):
    q = quantize(torch.tensor(x), levels)
    assert q.codebook.tolist() == book
    assert len(encode(q)) == size


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_the_levels_are_the_means_of_their_numbers(levels):
    x = torch.randn(3000, dtype=torch.float64)
    q = quantize(x, levels)
    assert len(q.codebook) == levels
    means = torch.stack([x[q.symbols == i].mean() for i in range(levels)])
    # assigned again after rounding, which moves borders by 2^-11 of a level: a few numbers of 3000
    torch.testing.assert_close(q.codebook.double(), means, rtol=2**-9, atol=2**-12)
    # Max's optimal levels for a normal variable (1960, table I); a sample's differ by some percent
    optimum = {2: 0.3634, 5: 0.07994, 16: 0.01154}[levels]
    error = (q.dequantize(torch.float64) - x).square().mean() / x.square().mean()
    assert error < optimum * 1.1


def test_a_level_that_loses_its_numbers_on_the_way_is_dropped():
    rare = [93, 101, 103, 189, 195, 207, 209, 234, 267, 275, 299]
    q = quantize(torch.tensor(rare + 50 * [113, 147, 158, 202], dtype=torch.float32), 6)
    assert len(q.codebook) == 5 and q.codebook.isfinite().all()
    assert torch.equal(q.symbols.unique().long(), torch.arange(5))


def test_quantising_is_deterministic_and_reads_any_stride():
    x = torch.randn(2000, 2, requires_grad=True)
    first = quantize(x[:, 0], 16)
    torch.manual_seed(1)
    assert same(quantize(x[:, 0].clone(), 16), first)


def test_a_long_vector_comes_back():
    q = quantize(torch.randn(100_000), 16)
    assert same(decode(encode(q)), q)


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        ([1.0], 0, "levels: wanted 1 to 256, got 0"),
        ([1.0], 257, "levels: wanted 1 to 256, got 257"),
        ([1.0], 2.0, "levels: wanted an integer, got 2.0"),
        ([1.0], True, "levels: wanted an integer, got True"),
        ([1], 2, "x: wanted a floating-point tensor, got torch.int64"),
        ([], 2, r"x: wanted shape \(n,\), 1 <= n <= 1048576, got \(0,\)"),
        ([[1.0]], 2, r"x: wanted shape .* got \(1, 1\)"),
        ([float("nan")], 2, "x: wanted values that are finite in float16"),
        ([7e4], 2, "x: wanted values that are finite in float16"),
    ],
)
def test_bad_input_is_refused(x, levels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        quantize(torch.tensor(x), levels)
    with pytest.raises(TypeError, match="x: wanted a floating-point tensor, got list"):
        quantize([1.0], 2)


def coded(book=(1.0, 2.0), symbols=(0, 1, 1)):
    codebook = torch.tensor(book, dtype=torch.float16)
    return encode(Quantized(codebook, torch.tensor(symbols, dtype=torch.uint8)))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"", "at least 4 bytes, got 0"),
        (b"\0\0\0\0\0\0", "wanted 1 to 1048576 symbols, got 0"),
        (b"\xff\xff\xff\0\0\0", "wanted 1 to 1048576 symbols, got 16777215"),
        (coded()[:7], "2 levels take 8 bytes, got 7"),
        (coded(book=(2.0, 1.0)), "finite and ascending"),
        (coded(book=(1.0, 1.0)), "finite and ascending"),
        (coded(book=(float("nan"),), symbols=(0,)), "finite and ascending"),
        (coded(book=(1.0, float("inf"))), "finite and ascending"),
        (coded() + b"\1", "another code"),
        (coded() + b"\0", "another code"),
    ],
)
def test_damaged_codes_are_refused(code, message):
    with pytest.raises(ValueError, match=message):
        decode(code)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damage_is_refused_or_another_code(data):
    """There is no checksum here: what decode() takes is what encode() writes for it."""
    code = bytearray(coded(symbols=data.draw(st.lists(st.integers(0, 1), min_size=1))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([i for i in range(len(code)) if i not in (1, 2)]))
        code[place] = data.draw(st.integers(0, 255))
    code = bytes(code[: data.draw(st.integers(0, len(code)))])
    try:
        q = decode(code)
    except ValueError as error:
        assert str(error).startswith("the code is damaged: ")
    else:
        assert encode(q) == code
