"""Encodes a task vector as one bit string, whose length a compression bound charges, and decodes it
again. Sender and receiver both know the base model, its head's initial values and this code; the
rest is in the message, each entry in a prefix code, and a ledger says how many bits each costs."""

from typing import NamedTuple

from torch import Tensor

from fastfood.layout import CHOICES, SubspaceConfig
from fastfood.quantize import MAX_LEVELS, Quantized, decode, encode

from .tokens import ALPHA_BITS, ALPHAS

FLAGS = ("method", "normalization", "groups", "projection")  # one or two bits each

_MOST_BITS = 64  # the longest whole number; a longer one means that the message is damaged


class Message(NamedTuple):
    """A message and its price.

    data: the bits, eight to a byte from the highest on, filled up with fewer than eight zeros.
    ledger: the number of bits of each entry, by its name; a bound charges their sum. The entry
    "length" is the code of the message's length.
    """

    data: bytes
    ledger: dict[str, int]

    @property
    def bits(self) -> int:
        return sum(self.ledger.values())


def encode_message(
    config: SubspaceConfig, theta: Quantized, lambda_: Quantized | None = None, candidates: int = 1
) -> Message:
    """The message of a subspace and a quantised point in it.

    theta: d - m numbers. lambda_: m numbers for SAID, None for DID. candidates: at least 1, how
    many trained adapters this one was chosen from: that choice used the rows, so it is charged as
    one more integer. Integers are in Elias's delta code; length_bits() of formulas.py gives its
    length.

    Raises ValueError naming the argument, what was wanted and what was got.
    """
    m = 0 if lambda_ is None else len(lambda_.symbols)
    if (config.method == "said") != (m > 0):
        raise ValueError(f"lambda_: wanted it for said and None for did, got {config.method}")
    if len(theta.symbols) != config.d - m:
        raise ValueError(f"theta: wanted {config.d - m} numbers, got {len(theta.symbols)}")
    if candidates < 1:
        raise ValueError(f"candidates: wanted at least 1, got {candidates}")
    entries = {}
    for name in FLAGS:
        value = getattr(config, name)
        if value not in CHOICES[name]:
            raise ValueError(f"{name}: wanted one of {', '.join(CHOICES[name])}, got {value!r}")
        entries[name] = f"{CHOICES[name].index(value):0{_width(name)}b}"
    entries["d"] = elias_delta(config.d)
    entries["seed"] = elias_delta(config.seed + 1)
    entries["candidate"] = elias_delta(candidates)
    if lambda_ is not None:
        levels, codebook, symbols = _parts(lambda_)
        entries |= {"m": elias_delta(m), "lambda levels": levels, "lambda codebook": codebook}
        entries |= {"lambda symbols": elias_delta(len(symbols) + 1) + symbols}
    levels, codebook, symbols = _parts(theta)
    entries |= {"theta levels": levels, "theta codebook": codebook, "theta symbols": symbols}
    bits = "".join(entries.values())
    entries = {"length": elias_delta(len(bits) + 1)} | entries
    bits = entries["length"] + bits
    ledger = {name: len(entry) for name, entry in entries.items()}
    return Message(_to_bytes(bits), ledger)


def decode_message(data: bytes) -> tuple[SubspaceConfig, Tensor, Tensor | None]:
    """The subspace, theta (d - m,) and for SAID lambda_ (m,), else None, in float32.

    data: bytes of encode_message(). Raises ValueError with the reason if it cannot have made them.
    """
    reader = _Reader(_to_bits(data))
    _cut(reader)
    settings = {}
    for name in FLAGS:
        settings[name] = CHOICES[name][int(reader.take(_width(name)), 2)]
    d, seed = reader.number(), reader.number() - 1
    reader.number()  # the number of candidates, which is in the message only to be charged
    config = SubspaceConfig(d, seed=seed, **settings)
    m, lambda_ = 0, None
    if config.method == "said":
        m = reader.number()
        book = _read_codebook(reader)
        lambda_ = _quantized(m, book, reader.take(reader.number() - 1))
    book = _read_codebook(reader)
    theta = _quantized(d - m, book, reader.take(reader.left()))
    return config, theta.dequantize(), None if lambda_ is None else lambda_.dequantize()


def with_alpha(message: Message, index: int) -> Message:
    """The message with alpha's place in ALPHAS of tokens.py before it. All places take ALPHA_BITS
    bits, so a prefix code stays one. Raises ValueError for a place that the grid has not."""
    if not 0 <= index < len(ALPHAS):
        raise ValueError(f"index: wanted a place in 0..{len(ALPHAS) - 1}, got {index}")
    bits = f"{index:0{ALPHA_BITS}b}" + _to_bits(message.data)[: message.bits]
    return Message(_to_bytes(bits), {"alpha": ALPHA_BITS} | message.ledger)


def without_alpha(data: bytes) -> tuple[int, bytes]:
    """alpha's place and the data of the message, as with_alpha() was given them. Raises ValueError
    with the reason if it cannot have made `data`."""
    reader = _Reader(_to_bits(data))
    index = int(reader.take(ALPHA_BITS), 2)
    _cut(reader)
    return index, _to_bytes(reader.bits[ALPHA_BITS:])


def _cut(reader: "_Reader") -> None:
    """Reads the message's length and cuts off what fills up the last byte."""
    length = reader.number() - 1
    padding = reader.left() - length
    if not 0 <= padding < 8 or "1" in reader.bits[len(reader.bits) - padding :]:
        raise ValueError(f"the message is damaged: wanted {length} bits, got {reader.left()}")
    reader.bits = reader.bits[: len(reader.bits) - padding]


def elias_delta(number: int) -> str:
    """The delta code of a whole number >= 1 (Elias, 1975): 1, 0100, 0101, 01100, ..."""
    binary = f"{number:b}"
    length = f"{len(binary):b}"
    return "0" * (len(length) - 1) + length + binary[1:]


def _width(name: str) -> int:
    return (len(CHOICES[name]) - 1).bit_length()


def _parts(q: Quantized) -> tuple[str, str, str]:
    """The bits of the number of levels, the codebook and the symbols, without trailing zeros."""
    code, r = encode(q), len(q.codebook)
    return elias_delta(r), _to_bits(code[4 : 4 + 2 * r]), _to_bits(code[4 + 2 * r :]).rstrip("0")


def _read_codebook(reader: "_Reader") -> bytes:
    levels = reader.number()
    if levels > MAX_LEVELS:
        raise ValueError(
            f"the message is damaged: wanted at most {MAX_LEVELS} levels, got {levels}"
        )
    return _to_bytes(reader.take(16 * levels))


def _quantized(n: int, codebook: bytes, symbols: str) -> Quantized:
    if symbols.endswith("0") or not 1 <= n < 1 << 24:
        raise ValueError("the message is damaged: wanted the code of its symbols, got another")
    head = n.to_bytes(3, "little") + bytes([len(codebook) // 2 - 1])
    return decode(head + codebook + _to_bytes(symbols))


def _to_bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _to_bytes(bits: str) -> bytes:
    return bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))


class _Reader:
    """Reads a string of bits from its front."""

    def __init__(self, bits: str):
        self.bits, self.position = bits, 0

    def left(self) -> int:
        return len(self.bits) - self.position

    def take(self, count: int) -> str:
        if count > self.left():
            raise ValueError(f"the message is damaged: wanted {count} bits, got {self.left()}")
        self.position += count
        return self.bits[self.position - count : self.position]

    def number(self) -> int:
        """Reads a whole number in the delta code."""
        zeros = 0
        while self.take(1) == "0":
            zeros += 1
        length = int("1" + self.take(min(zeros, _MOST_BITS)), 2)
        if length > _MOST_BITS + 1:
            most = _MOST_BITS + 1
            raise ValueError(f"the message is damaged: wanted at most {most} bits, got {length}")
        return int("1" + self.take(length - 1), 2)
