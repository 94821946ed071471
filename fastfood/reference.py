"""What the operators compute, written once more in plain float64 torch from the definitions alone.

The functions have the names and signatures of `fastfood.ops` and `fastfood.projection` and share no
code with the kernels. They build the matrices explicitly, so they are slow and need memory; they
exist to be compared with. One difference is by design: `normals` here is the exact normal quantile,
which the kernels' polynomial meets within 3e-5.
"""

import math
from collections.abc import Sequence

import torch

from .reference_orders import hadamard_matrix, order_matrix

_MASK = 0xFFFFFFFF
# Streams of random numbers, as in csrc/definitions.h.
_G, _B, _PI, _DENSE, _SPARSE = range(5)


def hadamard_transform(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    dim: int = -1,
    block: int | None = None,
) -> torch.Tensor:
    """See `fastfood.hadamard_transform`; the result is float64."""
    n = block or x.shape[dim]
    padded = 1 << (n - 1).bit_length()
    return _apply(hadamard_matrix(padded)[:n, :n], x, scale, before, after, dim)


def hadamard_transform_KN(
    x: torch.Tensor,
    scale: float = 1.0,
    *,
    K: int,
    transpose: bool = False,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    dim: int = -1,
    block: int | None = None,
) -> torch.Tensor:
    """See `fastfood.hadamard_transform_KN`; the result is float64."""
    H = torch.kron(order_matrix(K), hadamard_matrix((block or x.shape[dim]) // K))
    return _apply(H.T if transpose else H, x, scale, before, after, dim)


def _apply(H, x, scale, before, after, dim):
    n = x.shape[dim]
    H = torch.block_diag(*[H] * (n // len(H)))
    if before is not None:
        H = H * before.double().cpu().repeat(n // len(before))
    if after is not None:
        H = H * after.double().cpu().repeat(n // len(after)).unsqueeze(-1)
    return (x.double().movedim(dim, -1) @ (H.to(x.device).T * scale)).movedim(-1, dim)


def philox(
    counter: list[torch.Tensor], key: list[torch.Tensor], rounds: int = 7
) -> list[torch.Tensor]:
    """Philox4x32 (Salmon et al., SC 2011, section 3.3) on lists of int64 tensors that hold 32-bit
    words.
    """
    x, k = list(counter), list(key)
    for _ in range(rounds):
        (low_0, high_0), (low_2, high_2) = _multiply(x[0], 0xD2511F53), _multiply(x[2], 0xCD9E8D57)
        x = [high_2 ^ x[1] ^ k[0], low_2, high_0 ^ x[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) & _MASK, (k[1] + 0xBB67AE85) & _MASK]
    return x


def _multiply(a: torch.Tensor, b: int):
    """The low and high words of 32-bit products, by 16-bit halves so that nothing exceeds 63
    bits.
    """
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return ((middle & 0xFFFF) << 16) | (low & 0xFFFF), middle >> 16


def _unsigned_words(seed, stream, first, count, device):
    calls = torch.arange(first, first + count, dtype=torch.int64, device=device)
    zero = torch.zeros_like(calls)
    words = philox(
        [calls & _MASK, calls >> 32, zero + stream, zero],
        [zero + (seed & _MASK), zero + (seed >> 32)],
    )
    return torch.stack(words, dim=1).reshape(-1)


def philox_words(
    seed: int, stream: int, first: int, count: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """See `fastfood.ops.philox_words`."""
    return _unsigned_words(seed, stream, first, count, device).to(torch.int32)


def normals(
    seed: int, stream: int, first: int, count: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """See `fastfood.ops.normals`; float64, the quantiles of 16-bit midpoints scaled to unit
    variance.
    """
    words = _unsigned_words(seed, stream, first, count, device)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=1).reshape(-1)
    return _quantiles(device)[halves]


def _quantiles(device):
    """The normal of each 16-bit number k: bit 15 is the sign, and the tail beyond the normal has
    the probability q / 2**17, q = 2 (k % 2**15) + 1.
    """
    q = 2 * torch.arange(1 << 15, dtype=torch.float64, device=device) + 1
    z = -torch.special.ndtri(q / (1 << 17))
    z = z / z.square().mean().sqrt()
    return torch.cat([z, -z])


def project_rows(v: torch.Tensor, seed: int, start: int, stop: int) -> torch.Tensor:
    """See `fastfood.ops.project_rows`; the result is float64."""
    L = v.shape[-1]
    first, last = start // L, -(-stop // L)
    G = normals(seed, _G, first * L // 8, (last - first) * L // 8, v.device).reshape(
        last - first, L
    )
    y = hadamard_transform(G * v.double().unsqueeze(-2)).flatten(-2)
    return y[..., start - first * L : stop - first * L]


def project_rows_adjoint(g: torch.Tensor, L: int, seed: int, start: int) -> torch.Tensor:
    """See `fastfood.ops.project_rows_adjoint`; the result is float64."""
    identity = torch.eye(L, dtype=torch.float64, device=g.device)
    return g.double() @ project_rows(identity, seed, start, start + g.shape[-1]).T


def project_rows_adjoint_sum(
    gs: Sequence[torch.Tensor],
    starts: Sequence[int],
    factors: Sequence[float],
    L: int,
    seed: int,
) -> torch.Tensor:
    """See `fastfood.ops.project_rows_adjoint_sum`; the result is float64."""
    pieces = zip(gs, starts, factors, strict=True)
    parts = [f * project_rows_adjoint(g.reshape(-1), L, seed, start) for g, start, f in pieces]
    return torch.stack(parts).sum(0)


def perturb(
    base: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor,
    seed: int,
    start: int = 0,
) -> torch.Tensor:
    """What `fastfood.ops.perturb_` writes; float64."""
    factor = torch.repeat_interleave(scales.double(), offsets.diff())
    return base.double() + factor * project_rows(v, seed, start, start + base.shape[0])


def perturbed(
    bases: Sequence[torch.Tensor],
    v: torch.Tensor,
    bounds: torch.Tensor,
    scales: torch.Tensor,
    seed: int,
    starts: Sequence[int],
    places: Sequence[int],
) -> list[torch.Tensor]:
    """See `fastfood.ops.perturbed`; the results are float64."""
    made = []
    for base, start, place in zip(bases, starts, places, strict=True):
        rows = project_rows(v, seed, start, start + base.numel()).view(base.shape)
        made.append(base.double() + scales[place].double() * rows)
    return made


def fastfood_matrix(d: int, D: int, seed: int = 0, L: int | None = None) -> torch.Tensor:
    """P = (D L)^(-1/2) [H_L G_b Pi tile(H_n B)]_b [: D], shape (D, d), float64 (eq. 2 of
    Aghajanyan et al.).
    """
    n = 1 << (d - 1).bit_length()
    L = L or max(n, 256)
    words = _unsigned_words(seed, _B, 0, -(-n // 128), None)
    bits = (words.unsqueeze(1) >> torch.arange(32)) & 1
    B = (1 - 2 * bits.reshape(-1)[:d]).double()
    pairs = _unsigned_words(seed, _PI, 0, L // 2, None).reshape(-1, 2).tolist()
    keys = [(high << 32) | low for low, high in pairs]
    Pi = torch.tensor(sorted(range(L), key=keys.__getitem__))
    HB = (hadamard_matrix(n)[:, :d] * B).repeat(L // n, 1)
    blocks = -(-D // L)
    G = normals(seed, _G, 0, blocks * L // 8).reshape(blocks, L, 1)
    return (hadamard_matrix(L) @ (G * HB[Pi])).reshape(-1, d)[:D] / math.sqrt(D * L)


def dense_matrix(d: int, D: int, seed: int = 0) -> torch.Tensor:
    """P of Li et al. with independent N(0, 1/D) entries, shape (D, d), float64."""
    return normals(seed, _DENSE, 0, -(-D * d // 8))[: D * d].reshape(D, d) / math.sqrt(D)


def sparse_matrix(d: int, D: int, seed: int = 0) -> torch.Tensor:
    """P of Li et al. with density 1 / sqrt(D), one entry a column in every ceil(sqrt(D)) rows; (D,
    d), float64.
    """
    R = math.isqrt(D - 1) + 1
    P = torch.zeros(D, d, dtype=torch.float64)
    count = math.ceil(D / R) * d
    for i, w in enumerate(_unsigned_words(seed, _SPARSE, 0, count // 4 + 1, None)[:count].tolist()):
        tile, column = divmod(i, d)
        row = tile * R + ((w >> 1) * R >> 31)
        if row < D:
            P[row, column] = (-1.0 if w & 1 else 1.0) * math.sqrt(R / D)
    return P
