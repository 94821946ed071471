"""The page "Format 1" against the library: its known answers, its table against the C++ header, and
a second implementation in numpy that was written from the page alone."""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastfood
from fastfood import ops
from fastfood.adapter import base_hash
from fastfood.projection import permutation
from fastfood.quantize import encode, quantize

ROOT = Path(__file__).parents[2]
PAGE = (Path(fastfood.__file__).parent / "guides" / "format_1.md").read_text(encoding="utf-8")
TABLE = re.search(r"```table\n(.*?)```", PAGE, re.S)[1]
KNOWN = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.S)[1])
COEFFICIENTS = np.array(
    [[float.fromhex(c) for c in line.split()[1:]] for line in TABLE.splitlines()[1:]], np.float32
)
G, B, PI, DENSE, SPARSE = range(5)

# --- From the page alone -------------------------------------------------------------------------


def philox(seed, stream, calls):
    """Words of shape (calls, 4)."""
    calls = np.asarray(calls, np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    zeros = np.zeros_like(calls)
    x0, x1, x2, x3 = calls & low, calls >> half, zeros + np.uint64(stream), zeros
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(7):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (p1 >> half) ^ x1 ^ np.uint64(key0), p1 & low
        x2, x3 = (p0 >> half) ^ x3 ^ np.uint64(key1), p0 & low
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return np.stack([x0, x1, x2, x3], 1)


def words(seed, stream, start, stop):
    """Words [start, stop) of a stream."""
    found = philox(seed, stream, np.arange(start // 4, -(-stop // 4))).reshape(-1)
    return found[start % 4 :][: stop - start]


def fma(a, b, c):
    """a b + c of fp32 rounded once: fp64 rounded to odd, which a second rounding cannot betray."""
    p, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = p + c
    part = total - p
    rest = (p - (total - part)) + (c - part)
    bits = total.view(np.int64)
    away = np.where((rest > 0) == (total > 0), 1, -1)
    odd = np.where((rest != 0) & (bits % 2 == 0), bits + away, bits)
    return odd.view(np.float64).astype(np.float32)


def normals_of(k):
    q = 2 * (k % 2**15) + 1
    c = COEFFICIENTS[np.floor(np.log2(q)).astype(int)]
    z = c[..., 4]
    for power in (3, 2, 1, 0):
        z = fma(z, q.astype(np.float32), c[..., power])
    return np.where(k >= 2**15, -z, z)


def normals(seed, stream, start, stop):
    w = words(seed, stream, start // 2, -(-stop // 2))
    halves = np.stack([w & np.uint64(0xFFFF), w >> np.uint64(16)], 1).reshape(-1).astype(np.int64)
    return normals_of(halves[start % 2 :][: stop - start])


def hadamard(x):
    stride = 1
    while stride < x.shape[-1]:
        a, b = np.moveaxis(x.reshape(*x.shape[:-1], -1, 2, stride), -2, 0)
        x = np.stack([a + b, a - b], -2).reshape(x.shape)
        stride *= 2
    return x


class Projection:
    """P of the page, on numpy arrays of fp32 or fp64."""

    def __init__(self, d, D, seed, L=None):
        self.d, self.D, self.seed = d, D, seed
        self.n = 1 << (d - 1).bit_length()
        self.L = L or max(self.n, 256)
        bits = words(seed, B, 0, -(-d // 32))
        set_bits = (bits[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
        self.B = 1 - 2 * set_bits.reshape(-1)[:d].astype(np.int64)
        halves = words(seed, PI, 0, 2 * self.L).reshape(-1, 2)
        keys = halves[:, 1] << np.uint64(32) | halves[:, 0]
        self.Pi = np.argsort(keys, kind="stable")
        blocks = -(-D // self.L)
        self.G = normals(seed, G, 0, blocks * self.L).reshape(blocks, self.L)

    def spread(self, theta):
        c = theta.dtype.type(1 / np.sqrt(np.float64(self.D) * self.L))
        padded = np.concatenate([theta * self.B, np.zeros(self.n - self.d)]).astype(theta.dtype)
        return np.tile(hadamard(padded) * c, self.L // self.n)[self.Pi]

    def __call__(self, theta):
        return hadamard(self.G.astype(theta.dtype) * self.spread(theta)).reshape(-1)[: self.D]

    def adjoint(self, g):
        blocks = np.zeros(self.G.size)
        blocks[: self.D] = g
        z = (self.G * hadamard(blocks.reshape(self.G.shape))).sum(0)
        turned = np.zeros(self.L)
        turned[self.Pi] = z
        folded = turned.reshape(-1, self.n).sum(0)
        return (hadamard(folded) / np.sqrt(self.D * self.L))[: self.d] * self.B


def dense(d, D, seed, rows):
    return normals(seed, DENSE, 0, d * rows).reshape(rows, d) / np.sqrt(D)


def sparse(d, D, seed):
    R = int(np.ceil(np.sqrt(D)))
    tiles = -(-D // R)
    w = words(seed, SPARSE, 0, tiles * d).astype(object).reshape(tiles, d)
    P = np.zeros((tiles * R, d))
    for t, k in np.ndindex(w.shape):
        P[t * R + (w[t, k] // 2 * R >> 31), k] = (-1) ** w[t, k] * np.sqrt(R / D)
    return P[:D]


def read_file(content):
    """Metadata and tensors (as bytes) of an adapter file whose checksum holds."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = json.loads(header.pop("__metadata__")["fastfood"])
    data = content[8 + size :]
    place = content.index(rb"\"crc\":\"") + len(rb"\"crc\":\"")
    crc = zlib.crc32(content[:place] + content[place + 8 :])
    assert metadata["crc"] == f"{crc:08x}" == content[place : place + 8].decode()
    return metadata, {k: data[slice(*v["data_offsets"])] for k, v in header.items()}


def decode(code):
    """Decodes a code to its numbers, with exact integers for the interval."""
    N, r = int.from_bytes(code[:3], "little"), code[3] + 1
    levels = struct.unpack(f"<{r}e", code[4 : 4 + 2 * r])
    stream = code[4 + 2 * r :] + bytes(3 * N + 16)
    counts, low, width, at, found = [1] * r, 0, 2**64, 8, []
    value = int.from_bytes(stream[:8], "big")  # of the code, less what low lost by carries
    for _ in range(N):
        total, below = sum(counts), 0
        for s in range(r):
            end = width * (below + counts[s]) // total
            if value - low < end:
                break
            below += counts[s]
        start = width * below // total
        low, width = low + start, end - start
        value, low = value - low, 0
        while width < 2**56:
            value, width, at = value * 256 + stream[at], width * 256, at + 1
        counts[s] += 2
        found.append(levels[s])
    return found


def encode_symbols(symbols, r):
    counts, low, width, out = [1] * r, 0, 2**64, 0
    shifts = 0  # out holds the bytes as one number, so that a carry is an addition
    for s in symbols:
        total, below = sum(counts), sum(counts[:s])
        start, end = width * below // total, width * (below + counts[s]) // total
        low, width = low + start, end - start
        out, low = out + (low >> 64), low % 2**64
        while width < 2**56:
            out, low, width = out * 256 + (low >> 56), low * 256 % 2**64, width * 256
            shifts += 1
        counts[s] += 2
    for j in range(9):
        unit = 2 ** (64 - 8 * j)
        number = -(-low // unit) * unit
        if number < low + width:
            break
    return ((out << 64) + number).to_bytes(shifts + 8, "big").rstrip(b"\0")


# --- The tests -----------------------------------------------------------------------------------


def fp32(numbers):
    return np.array([float.fromhex(x) for x in numbers], np.float32)


def test_the_table_is_that_of_the_header():
    header = (ROOT / "csrc" / "definitions.h").read_text()
    found = re.search(r"kNormalTable = \{\{(.*?)\}\};", header, re.S)[1]
    numbers = [float.fromhex(x) for x in re.findall(r"-?0(?:x[\da-f.]+p[+-]\d+|\.0)(?=f)", found)]
    assert np.array_equal(np.array(numbers, np.float32).reshape(5, 16).T, COEFFICIENTS)


def test_random_numbers():
    for seed, stream, call, wanted in KNOWN["words"]:
        assert philox(seed, stream, [call])[0].tolist() == wanted
        assert (ops.philox_words(seed, stream, call, 1).long() % 2**32).tolist() == wanted
    k = np.array([int(k) for k in KNOWN["normals"]])
    assert np.array_equal(normals_of(k), fp32(KNOWN["normals"].values()))
    mine, ours = normals(7, 3, 0, 80_000), ops.normals(7, 3, 0, 10_000).numpy()
    assert np.array_equal(mine, ours) and len(np.unique(mine)) > 40_000


@pytest.mark.parametrize("known", KNOWN["projections"], ids=lambda known: f"d={known['d']}")
def test_projections(known):
    d, D, seed, L = (known[name] for name in ("d", "D", "seed", "L"))
    theta = ((np.arange(d) % 7 - 3) / 8).astype(np.float32)
    g = ((np.arange(D) % 5 - 2) / 4).astype(np.float32)
    mine, ours = Projection(d, D, seed, L), fastfood.Fastfood(d, D, seed, L)
    t = torch.tensor(theta)
    both = {
        "B": (mine.B[:8], fastfood.random_signs(d, seed)[:8]),
        "Pi": (mine.Pi[:8], permutation(L, seed)[:8]),
        "G": (mine.G[0, :4], ops.normals(seed, G, 0, 1)[:4]),
        "v": (mine.spread(theta)[:4], ours.spread(t)[:4]),
        "P theta": (mine(theta)[:4], ours(t)[:4]),
        "tail": (mine(theta)[-3:], ours(t)[-3:]),
    }
    for name, found in both.items():
        wanted = known[name] if name in ("B", "Pi") else fp32(known[name])
        for values in found:
            assert np.array_equal(np.asarray(values), wanted), name
    assert np.array_equal(mine(theta), ours(t).numpy())
    assert np.array_equal(mine(theta.astype(float)), ours(t.double()).numpy())
    for found in (mine.adjoint(g), ours.adjoint(torch.tensor(g)).numpy()):
        np.testing.assert_allclose(found[:4], known["adjoint"], rtol=1e-5)
    np.testing.assert_allclose(ours.adjoint(torch.tensor(g)), mine.adjoint(g), rtol=0, atol=1e-5)


@pytest.mark.parametrize("known", KNOWN["projections"], ids=lambda known: f"d={known['d']}")
def test_dense_and_sparse(known):
    d, D, seed = (known[name] for name in ("d", "D", "seed"))
    eye = torch.eye(d)
    mine, ours = dense(d, D, seed, 100), fastfood.Dense(d, D, seed).rows(eye, 0, 100).T
    np.testing.assert_allclose(ours, mine, rtol=1e-6)
    np.testing.assert_allclose(mine[0, :4], known["dense"], atol=1e-6)
    mine, ours = sparse(d, D, seed), fastfood.Sparse(d, D, seed).rows(eye, 0, D).T
    np.testing.assert_allclose(ours, mine, rtol=1e-6)
    assert np.argwhere(mine)[:4].tolist() == known["sparse"]


class Net(nn.Module):
    """A model with parameter names of all three kinds, and weights of three types."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8).bfloat16()])
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.head = nn.Linear(8, 3)


@pytest.mark.parametrize("normalization", ["global", "tensor"])
@pytest.mark.parametrize("projection", ["fastfood", "one-block"])
@pytest.mark.parametrize("levels", [None, 5])
def test_a_file_and_its_weights(normalization, projection, levels, tmp_path):
    pytest.importorskip("safetensors")
    base = Net()
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    config = fastfood.SubspaceConfig(
        50, "said", 3, normalization=normalization, projection=projection
    )
    model = fastfood.get_subspace_model(base, config)
    with torch.no_grad():
        model.theta.normal_()
        model.lambda_.add_(torch.randn(4) / 8)
    metadata, data = read_file(model.save_pretrained(tmp_path, levels=levels).read_bytes())
    read = decode if levels else lambda code: np.frombuffer(code, "<f4")
    theta, lambda_ = (np.array(read(data[name]), np.float32) for name in ("theta", "lambda_"))
    wanted = {"format": 1, "d": 50, "method": "said", "seed": 3, "normalization": normalization}
    wanted |= {"groups": "layer", "projection": projection, "D": 320 + 2 * 72 + 27}
    assert metadata | wanted | ({"levels": levels} if levels else {}) == metadata

    groups = [0, 1, 1, 2, 2, 3, 3]  # by the page's rule, in the order of the tensors
    trained = [name for name in before if name != "frozen"]
    of = dict(zip(trained, groups, strict=True))
    layout = [[k, str(p.dtype), list(p.shape), of.get(k)] for k, p in before.items()]
    layout = json.dumps(layout).encode()
    whole = hashlib.blake2b(layout, digest_size=16)
    for p in before.values():
        content = p.contiguous().view(torch.uint8).numpy().tobytes()
        for piece in range(0, len(content), 2**22):
            part = hashlib.blake2b(content[piece : piece + 2**22], digest_size=16)
            whole.update(part.digest())
    short = hashlib.blake2b(layout, digest_size=4).hexdigest()
    assert metadata["base"] == f"{short}-{whole.hexdigest()}" == base_hash(model)

    D, seed = metadata["D"], metadata["seed"]
    y = Projection(len(theta), D, seed, 512 if projection == "one-block" else None)(theta)
    again = fastfood.SubspaceModel.from_pretrained(model.unload(), tmp_path)
    again.refresh()
    weights, start = dict(again.wrapped.named_parameters()), 0
    for name, group in of.items():
        size = before[name].numel()
        norm = np.float32(np.sqrt(D / size) if normalization == "tensor" else 1)
        moved = y[start : start + size] * (norm * lambda_[group])
        full = before[name].float().numpy().reshape(-1) + moved
        made = torch.tensor(full).to(before[name].dtype).reshape(before[name].shape)
        assert torch.equal(weights[name].detach(), made), name
        start += size


def test_codes():
    generator = torch.Generator().manual_seed(0)
    for count, levels in ((1, 1), (7, 3), (3000, 2), (500, 256), (4000, 16)):
        q = quantize(torch.randn(count, generator=generator).pow(3), levels)
        code = encode(q)
        assert decode(code) == q.dequantize().tolist()
        r = len(q.codebook)
        assert code[4 + 2 * r :] == encode_symbols(q.symbols.tolist(), r)
