"""Random Fourier features by Fastfood: a map whose inner products approximate a kernel, in
O(D log d) time and O(D) memory where a Gaussian matrix takes O(D d) of both.

V = S H G Pi H B in blocks of n rows, n the power of two >= d (Le, Sarlos, Smola, "Fastfood", ICML
2013, section 3.2). B, Pi and G are those of csrc/definitions.h, and B and Pi are shared by all
blocks as in the projection: rows of different blocks are independent given them. S makes the
lengths of V's rows independent, and distributed as the kernel's spectrum wants them.
"""

import math

import torch
from torch import nn

from . import ops
from .hadamard import hadamard_transform, random_signs
from .projection import permutation

KERNELS = ("rbf", "matern")
_AT_ONCE = 1 << 22  # normals that are held while lengths are drawn


class FastfoodFeatures(nn.Module):
    """phi: R^d -> R^D with phi(x) . phi(y) close to k(x, y), the cosines and sines of D / 2 random
    frequencies.

    "rbf" is exp(-|x - y|^2 / (2 length_scale^2)). "matern" is the Matern kernel of smoothness nu:
    exp(-r) for nu = 1/2, (1 + sqrt(3) r) exp(-sqrt(3) r) for 3/2, and so on, r = |x - y| /
    length_scale. Its spectrum is a Student t of 2 nu degrees (Rasmussen and Williams, 2006, section
    4.2). The error of each inner product falls as D^(-1/2) (Le, Sarlos, Smola, "Fastfood", 2013).

    Args:
        d: dimensions of x, at least 1.
        D: features, at least 1; an odd number lacks the last frequency's sine.
        kernel: "rbf" or "matern".
        length_scale: above zero, in the unit of x.
        nu: of "matern", a positive multiple of 1/2.
        seed: 0 <= seed < 2**64; it and the sizes determine every frequency.

    Raises TypeError or ValueError naming the argument.
    """

    B: torch.Tensor
    Pi: torch.Tensor
    G: torch.Tensor
    S: torch.Tensor

    def __init__(
        self,
        d: int,
        D: int,
        kernel: str = "rbf",
        length_scale: float = 1.0,
        nu: float = 1.5,
        seed: int = 0,
    ):
        super().__init__()
        ops.check_count(d, "d")
        ops.check_count(D, "D")
        if kernel not in KERNELS:
            raise ValueError(f"kernel: wanted one of {', '.join(KERNELS)}, got {kernel!r}")
        if not 0 < length_scale < math.inf:
            raise ValueError(f"length_scale: wanted a number above 0, got {length_scale!r}")
        if kernel == "matern" and not (0 < nu < math.inf and float(2 * nu).is_integer()):
            raise ValueError(f"nu: wanted a positive multiple of 1/2, got {nu!r}")
        self.d, self.D, self.kernel, self.length_scale, self.nu = d, D, kernel, length_scale, nu
        self.seed = seed
        n = max(2, 1 << (d - 1).bit_length())
        blocks = -(-D // (2 * n))
        G = ops.normals(seed, ops.STREAM_G, 0, -(-blocks * n // 8)).double()
        G = G[: blocks * n].reshape(blocks, n)
        lengths = self._lengths(blocks * n, n).reshape(blocks, n)
        S = lengths / (math.sqrt(n) * length_scale * G.norm(dim=1, keepdim=True))
        self.register_buffer("B", random_signs(n, seed), persistent=False)
        self.register_buffer("Pi", permutation(n, seed), persistent=False)
        self.register_buffer("G", G.float(), persistent=False)
        self.register_buffer("S", S.float(), persistent=False)

    def _lengths(self, rows: int, n: int) -> torch.Tensor:
        """The lengths of the frequencies at length_scale 1. Each row takes the next normals of a
        stream: n for a chi of n degrees and, for a Student t, 2 nu more for the chi under it.
        """
        degrees = int(2 * self.nu) if self.kernel == "matern" else 0
        each, step, parts = n + degrees, max(8, _AT_ONCE // (8 * n) * 8), []
        for row in range(0, rows, step):
            last = min(row + step, rows)
            calls = -(-(last - row) * each // 8)
            z = ops.normals(self.seed, ops.STREAM_LENGTHS, row * each // 8, calls).double()
            squares = z[: (last - row) * each].reshape(-1, each).square()
            length = squares[:, :n].sum(1)
            if degrees:
                length = length * degrees / squares[:, n:].sum(1)
            parts.append(length.sqrt())
        return torch.cat(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) to (..., D) in x's dtype, computed in float32, or float64 for float64.

        Differentiable to any order. Raises TypeError or ValueError for anything else.
        """
        ops.check_tensor(x, "x")
        if x.shape[-1] != self.d:
            raise ValueError(f"x: wanted shape (..., {self.d}), got {tuple(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        n = self.B.shape[0]
        padded = nn.functional.pad(wide, (0, n - self.d))
        v = hadamard_transform(padded, before=self.B.to(wide.dtype))[..., self.Pi]
        G, S = self.G.to(wide.dtype), self.S.to(wide.dtype)
        blocks = [hadamard_transform(v, before=g, after=s) for g, s in zip(G, S, strict=True)]
        phases = torch.cat(blocks, -1)[..., : (self.D + 1) // 2]
        features = torch.cat([phases.cos(), phases.sin()], -1)[..., : self.D]
        return (features * math.sqrt(2 / self.D)).to(x.dtype)

    def extra_repr(self) -> str:
        nu = f", nu={self.nu}" if self.kernel == "matern" else ""
        return (
            f"d={self.d}, D={self.D}, kernel={self.kernel!r}, length_scale={self.length_scale}{nu},"
            f" seed={self.seed}"
        )
