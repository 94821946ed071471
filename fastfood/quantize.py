"""Vectors as short bit strings: numbers on a few levels, whose indices an adaptive arithmetic code
writes.

quantize() finds the levels by k-means and keeps them in float16; encode() writes them and the
symbols as bytes from which decode() gets everything back, in exact integer arithmetic. The code is
what a task vector takes on disk, and its length is the description length of a compression bound.
"""

import bisect
import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LEVELS = 256
MAX_COUNT = 1 << 20  # symbols at most, so that decoding a damaged count takes seconds

_STEPS = 1000  # the most steps of k-means: 16 levels of 1e5 normal numbers take 200
_BITS = 64  # width of the interval's bounds, so far above the counts that rounding costs nothing
_MASK = (1 << _BITS) - 1
_SMALL = 1 << (_BITS - 8)  # an interval narrower than this has settled its first byte


@dataclass(frozen=True, eq=False)
class Quantized:
    """A vector of n numbers on r levels: number i is codebook[symbols[i]].

    codebook: (r,) float16, ascending, 1 <= r <= 256. symbols: (n,) uint8.
    """

    codebook: Tensor
    symbols: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers, (n,) of `dtype`."""
        return self.codebook.to(dtype)[self.symbols.long()]

    @property
    def bits(self) -> int:
        """The length of encode(self), all of it: n, r, the codebook and the symbols."""
        return 8 * len(encode(self))


def quantize(x: Tensor, levels: int) -> Quantized:
    """x on at most `levels` levels: Lloyd's k-means from quantiles until nothing moves.

    x: (n,) of a floating dtype, 1 <= n <= 2^20, finite in float16. There are never more levels than
    distinct values, and each is used; with as many, x is just rounded to the nearest float16, in
    which numbers below 3e-8 are 0. Equal x give equal results: nothing is drawn.

    Raises TypeError or ValueError naming the argument, what was wanted and what was given.
    """
    if isinstance(levels, bool) or not isinstance(levels, int):
        raise TypeError(f"levels: wanted an integer, got {levels!r}")
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels: wanted 1 to {MAX_LEVELS}, got {levels}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: wanted a floating-point tensor, got {got}")
    if x.dim() != 1 or not 1 <= len(x) <= MAX_COUNT:
        raise ValueError(f"x: wanted shape (n,), 1 <= n <= {MAX_COUNT}, got {tuple(x.shape)}")
    if not x.half().isfinite().all():
        raise ValueError("x: wanted values that are finite in float16, got others")
    x = x.detach().to("cpu", torch.float64)
    codebook = _centers(x, levels).half().unique()
    used, symbols = _nearest(x, codebook.double()).unique(return_inverse=True)
    return Quantized(codebook[used], symbols.to(torch.uint8))


def encode(q: Quantized) -> bytes:
    """q as bytes: n in 3 bytes, r - 1 in one, 2 r bytes of codebook, then the arithmetic code.

    A symbol that came c times among t so far has probability (c + 1/2) / (t + r/2) (Krichevsky and
    Trofimov, 1981): the counts need no table, they are learned on the way for at most about
    (r - 1) / 2 * log2 n bits. Nothing follows the code, so its end has to be known from outside.
    """
    n, r = len(q.symbols), len(q.codebook)
    book = struct.pack(f"<{r}e", *q.codebook.tolist())
    return n.to_bytes(3, "little") + bytes([r - 1]) + book + _encode(q.symbols.tolist(), r)


def decode(code: bytes) -> Quantized:
    """What encode() was given; raises ValueError with the reason if it never writes `code`."""
    if len(code) < 4:
        raise ValueError(f"the code is damaged: wanted at least 4 bytes, got {len(code)}")
    n, r = int.from_bytes(code[:3], "little"), code[3] + 1
    if not 1 <= n <= MAX_COUNT:
        raise ValueError(f"the code is damaged: wanted 1 to {MAX_COUNT} symbols, got {n}")
    start = 4 + 2 * r
    if len(code) < start:
        raise ValueError(f"the code is damaged: {r} levels take {start} bytes, got {len(code)}")
    book = struct.unpack(f"<{r}e", code[4:start])
    ascending = all(a < b for a, b in itertools.pairwise(book))
    if not ascending or not torch.tensor(book).isfinite().all():
        raise ValueError("the code is damaged: wanted finite and ascending levels, got others")
    symbols = _decode(code[start:], n, r)
    if _encode(symbols, r) != code[start:]:
        raise ValueError("the code is damaged: wanted the code of its symbols, got another code")
    codebook = torch.tensor(book, dtype=torch.float16)
    return Quantized(codebook, torch.tensor(symbols, dtype=torch.uint8))


def _centers(x: Tensor, levels: int) -> Tensor:
    """At most `levels` centers of x, ascending, each the mean of the values nearest to it."""
    values = x.unique()
    if len(values) <= levels:
        return values
    centers = values[(2 * torch.arange(levels) + 1) * len(values) // (2 * levels)]
    before = None
    for _ in range(_STEPS):
        symbols = _nearest(x, centers)
        if before is not None and torch.equal(symbols, before):
            break
        sums, counts = torch.bincount(symbols, x), torch.bincount(symbols)
        centers, before = (sums / counts)[counts > 0], symbols
    return centers


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    """The index of the center nearest to each value, the argmin; of two, the lower one."""
    return torch.bucketize(x, (centers[1:] + centers[:-1]) / 2)


def _encode(symbols: Iterable[int], levels: int) -> bytes:
    """The shortest number in the interval that the symbols lead to: no zero bytes end it."""
    counts, total = [1] * levels, levels  # 2 * count + 1 of each symbol, and their sum
    low, width, out = 0, 1 << _BITS, bytearray()
    for symbol in symbols:
        below = sum(counts[:symbol])
        start, end = width * below // total, width * (below + counts[symbol]) // total
        low, width = low + start, end - start
        if low > _MASK:
            low = _carry(low, out)
        while width < _SMALL:
            out.append(low >> (_BITS - 8))
            low, width = low << 8 & _MASK, width << 8
        counts[symbol] += 2
        total += 2
    for size in range(_BITS // 8 + 1):  # the fewest bytes that name a number of the interval
        unit = 1 << (_BITS - 8 * size)
        number = -(-low // unit) * unit
        if number < low + width:
            break
    if number > _MASK:
        number = _carry(number, out)
    out += number.to_bytes(_BITS // 8, "big")
    return bytes(out).rstrip(b"\0")


def _carry(low: int, out: bytearray) -> int:
    """Adds low's overflow to the bytes that are already out, and returns the rest of low."""
    place = len(out) - 1
    while out[place] == 255:
        out[place] = 0
        place -= 1
    out[place] += 1
    return low & _MASK


def _decode(code: bytes, n: int, levels: int) -> list[int]:
    """The n symbols of a code of _encode(), which is read as if zeros followed its end."""
    counts, total = [1] * levels, levels
    reader = itertools.chain(code, itertools.repeat(0))
    offset, width = 0, 1 << _BITS  # the code's number, counted from the interval's lower bound
    for _ in range(_BITS // 8):
        offset = offset << 8 | next(reader)
    symbols = []
    for _ in range(n):
        ends = list(itertools.accumulate(counts))
        symbol = bisect.bisect_right(ends, ((offset + 1) * total - 1) // width)
        below = ends[symbol] - counts[symbol]
        start, end = width * below // total, width * ends[symbol] // total
        offset, width = offset - start, end - start
        while width < _SMALL:
            offset, width = offset << 8 | next(reader), width << 8
        counts[symbol] += 2
        total += 2
        symbols.append(symbol)
    return symbols
