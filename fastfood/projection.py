"""Random linear maps P from d to D dimensions, as operators: called, transposed, cut into rows,
never stored.

`Fastfood` is M = H G Pi H B of Aghajanyan et al. (ACL 2021, eq. 2) in blocks; `Dense` and `Sparse`
are the two other projections of Li et al. (2018). Each is a pure function of (d, D, seed), has
columns of unit length in expectation, and is differentiable in its argument to any order.
csrc/definitions.h is their definition, to the bit.
"""

import math
from collections.abc import Sequence

import torch

from . import ops
from .hadamard import hadamard_transform, random_signs

_TILE = 1 << 22  # random numbers that Dense and Sparse hold at a time


class Projection:
    """What all projections have in common: sizes, checks, and all that follows from rows.

    Subclasses give `_rows(theta, start, stop, out)` and `_rows_adjoint(g, start)`. Both are linear
    and take leading dimensions.
    """

    def __init__(self, d: int, D: int, seed: int = 0):
        ops.check_count(d, "d")
        ops.check_count(D, "D")
        ops.signed(seed)
        self.d, self.D, self.seed = d, D, seed

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d={self.d}, D={self.D}, seed={self.seed})"

    def __call__(self, theta: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """P theta: (..., d) to (..., D), float32 or float64. With `out`, as for `rows`, and it
        raises what that does."""
        return self.rows(theta, 0, self.D, out)

    def adjoint(self, g: torch.Tensor) -> torch.Tensor:
        """P^T g: (..., D) to (..., d). Raises TypeError or ValueError for another dtype or
        shape.
        """
        self._check(g, "g", self.D, ops.FLOATING)
        return self.rows_adjoint(g, 0)

    def rows(
        self, theta: torch.Tensor, start: int, stop: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rows [start, stop) of P theta: (..., d) to (..., stop - start); bit for bit the slice of
        the whole.

        out: a contiguous tensor to write to, in theta's dtype or, for float32, in one of 16 bits,
        rounded once: memory that stays is written much faster than new one. Not with autograd.

        Raises TypeError or ValueError if theta or out has another dtype or shape, RuntimeError for
        `out` in a differentiated call.
        """
        self._check(theta, "theta", self.d)
        if not 0 <= start <= stop <= self.D:
            raise ValueError(
                f"start, stop: wanted 0 <= start <= stop <= {self.D}, got {start}, {stop}"
            )
        return self._rows(theta, start, stop, out)

    def rows_adjoint(self, g: torch.Tensor, start: int) -> torch.Tensor:
        """The transpose of rows [start, start + len): (..., len) to (..., d), float32, or float64
        for float64.

        Raises TypeError if g is no floating tensor, ValueError if its rows end beyond D.
        """
        self._check_rows(g, start)
        return self._rows_adjoint(g, start)

    def spread(self, theta: torch.Tensor) -> torch.Tensor:
        """The part of P theta that all rows share: here theta, of shape (..., d), itself."""
        return theta

    def spread_adjoint(self, z: torch.Tensor) -> torch.Tensor:
        """The transpose of `spread`: to (..., d)."""
        return z

    def spread_gradient(
        self,
        gs: Sequence[torch.Tensor],
        starts: Sequence[int],
        factors: Sequence[float],
        like: torch.Tensor,
    ) -> torch.Tensor:
        """z, for which spread_adjoint(z) is the sum of factors[i] * rows_adjoint(gs[i], starts[i]),
        the contribution of some tensors' gradients to that of theta.

        gs: tensors of any shape and floating dtype, read in order as vectors, and a first row and a
            number for each.
        like: gives the result's dtype and device; its shape is that of spread of a theta of shape
            (d,).

        Raises TypeError or ValueError for gs and starts as rows_adjoint does.
        """
        total = like.new_zeros(self.d)
        for g, start, factor in zip(gs, starts, factors, strict=True):
            total = total + (factor * self.rows_adjoint(g.reshape(-1), start)).to(like)
        return total

    def perturb_(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        theta: torch.Tensor,
        offsets: torch.Tensor,
        scales: torch.Tensor,
        start: int = 0,
        spread: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes out[i] = base[i] + scales[s] * (P theta)[start + i] for offsets[s] <= i <
        offsets[s + 1].

        Shapes and dtypes are those of `fastfood.ops.perturb_`, with theta of shape (d,) in the
        place of v. spread: spread(theta), where many calls share it; it costs O(L) whatever the
        number of rows. Nothing is recorded for autograd; out's version counter is bumped.
        """
        with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
            y = self.rows(theta, start, start + out.shape[0])
            factor = torch.repeat_interleave(scales, offsets.diff())
            return torch.add(base, y.mul_(factor), out=out)

    def perturbed(
        self,
        bases: Sequence[torch.Tensor],
        theta: torch.Tensor,
        bounds: torch.Tensor,
        scales: torch.Tensor,
        starts: Sequence[int],
        places: Sequence[int],
        spread: torch.Tensor,
    ) -> list[torch.Tensor]:
        """New tensors, the flat i-th of which is bases[i] + scales[places[i]] * (P theta)[starts[i]
        + ...].

        Shapes and dtypes are those of `fastfood.ops.perturbed`, with theta of shape (d,) in the
        place of v. spread: spread(theta). Nothing is recorded for autograd.
        """
        made = []
        for base, start, place in zip(bases, starts, places, strict=True):
            out = torch.empty_like(base, memory_format=torch.contiguous_format)
            ends, scale = bounds.clamp(max=base.numel()), scales[place : place + 1]
            self.perturb_(out.view(-1), base.reshape(-1), theta, ends, scale, start)
            made.append(out)
        return made

    def to_dense(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """P as a matrix, shape (D, d), in `dtype`, float32 or float64, on `device`."""
        return self(torch.eye(self.d, dtype=dtype, device=device)).T.contiguous()

    def _rows(
        self, theta: torch.Tensor, start: int, stop: int, out: torch.Tensor | None
    ) -> torch.Tensor:
        raise NotImplementedError

    def _rows_adjoint(self, g: torch.Tensor, start: int) -> torch.Tensor:
        raise NotImplementedError

    def _check_rows(self, g, start) -> None:
        self._check(g, "g", None, ops.FLOATING)
        if not 0 <= start <= self.D - g.shape[-1]:
            raise ValueError(
                f"start: wanted rows within 0 ... {self.D}, got {start} and {g.shape[-1]} rows"
            )

    def _check(self, x, name, size, dtypes=(torch.float32, torch.float64)) -> None:
        ops.check_tensor(x, name, dtypes)
        if size is not None and x.shape[-1] != size:
            raise ValueError(f"{name}: wanted shape (..., {size}), got {tuple(x.shape)}")


def permutation(L: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pi of `seed` as int32 indices of shape (L,), L even and at most 2**31."""
    words = ops.philox_words(seed, ops.STREAM_PI, 0, L // 2, device).long().reshape(-1, 2)
    keys = (words[:, 1] << 32) | (words[:, 0] & 0xFFFFFFFF)
    # Flipping the top bit makes the signed order the unsigned one.
    return torch.argsort(keys ^ torch.iinfo(torch.int64).min, stable=True).to(torch.int32)


class Fastfood(Projection):
    """P theta = (D L)^(-1/2) stack_b(H_L G_b Pi tile(H_n B pad(theta)))[: D], in O(D log L),
    nothing of size D stored (Le, Sarlos, Smola, ICML 2013; eq. 2 of Aghajanyan et al., 2021).

    Args:
        d, D: columns and rows of P, at least 1: (..., d) goes to (..., D), float32 or float64.
        seed: 0 <= seed < 2**64; it and the sizes determine every bit.
        L: block length, a power of two of at least max(n, 256), which is the default, and at most
            2**31; n is the power of two >= d. `one_block` takes the largest that makes sense.

    After the first use on a device it keeps 4 L bytes of Pi and d bytes of B there.

    Raises:
        ValueError: a size or the seed is out of range.
    """

    def __init__(self, d: int, D: int, seed: int = 0, L: int | None = None):
        super().__init__(d, D, seed)
        self.n = 1 << (d - 1).bit_length()
        self.L = max(self.n, 256) if L is None else L
        if not max(self.n, 256) <= self.L <= 1 << 31 or self.L & (self.L - 1):
            raise ValueError(
                f"L: wanted a power of two of at least {max(self.n, 256)} and at most 2**31, got "
                f"{self.L}"
            )
        self.scale = 1.0 / math.sqrt(D * self.L)
        self._state: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def one_block(cls, d: int, D: int, seed: int = 0) -> "Fastfood":
        """The form of the original authors' code: a single block of L = 2 ** ceil(log2 D) rows.

        d, D, seed: as in the class, whose errors it raises.
        """
        fitting = cls(d, D, seed)
        return cls(d, D, seed, max(fitting.L, 1 << (D - 1).bit_length()))

    @property
    def nbytes(self) -> int:
        """Bytes of B and Pi that are kept, on all devices where it was used: 4 L + d each."""
        return sum(t.nbytes for state in [*self._state.values()] for t in state)

    def _signs_and_permutation(self, device: torch.device):
        """B, its first d entries in int8, and Pi as int32 indices: made once for each device."""
        if device not in self._state:
            B = random_signs(self.d, self.seed, device, torch.int8)
            self._state[device] = B, permutation(self.L, self.seed, device)
        return self._state[device]

    def spread(self, theta: torch.Tensor) -> torch.Tensor:
        """v = (D L)^(-1/2) Pi tile(H_n (B * pad(theta))): theta (..., d) to (..., L), float32 or
        float64."""
        B, Pi = self._signs_and_permutation(theta.device)
        padded = torch.nn.functional.pad(theta * B, (0, self.n - self.d))
        return hadamard_transform(padded, self.scale)[..., Pi & (self.n - 1)]

    def spread_adjoint(self, z: torch.Tensor) -> torch.Tensor:
        """The transpose of `spread`: z (..., L) to (..., d), float32 or float64."""
        B, Pi = self._signs_and_permutation(z.device)
        tiles = torch.zeros_like(z).index_copy(-1, Pi.long(), z).unflatten(-1, (-1, self.n))
        return hadamard_transform(tiles.sum(-2), self.scale)[..., : self.d] * B

    def _rows(self, theta, start, stop, out):
        return ops.project_rows(self.spread(theta), self.seed, start, stop, out)

    def _rows_adjoint(self, g, start):
        return self.spread_adjoint(ops.project_rows_adjoint(g, self.L, self.seed, start))

    def spread_gradient(
        self,
        gs: Sequence[torch.Tensor],
        starts: Sequence[int],
        factors: Sequence[float],
        like: torch.Tensor,
    ) -> torch.Tensor:
        for g, start in zip(gs, starts, strict=True):
            if not 0 <= start <= self.D - g.numel():
                self._check_rows(g.reshape(-1), start)
        if not gs:
            return like.new_zeros(self.L)
        # sum_b G_b * H_L(g_b)
        return ops.project_rows_adjoint_sum(gs, starts, factors, self.L, self.seed).to(like)

    spread_gradient.__doc__ = Projection.spread_gradient.__doc__

    def perturb_(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        theta: torch.Tensor,
        offsets: torch.Tensor,
        scales: torch.Tensor,
        start: int = 0,
        spread: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if spread is None:
            with torch.no_grad():
                spread = self.spread(theta)
        return ops.perturb_(out, base, spread, offsets, scales, self.seed, start)

    perturb_.__doc__ = Projection.perturb_.__doc__

    def perturbed(
        self,
        bases: Sequence[torch.Tensor],
        theta: torch.Tensor,
        bounds: torch.Tensor,
        scales: torch.Tensor,
        starts: Sequence[int],
        places: Sequence[int],
        spread: torch.Tensor,
    ) -> list[torch.Tensor]:
        return ops.perturbed(bases, spread, bounds, scales, self.seed, starts, places)

    perturbed.__doc__ = Projection.perturbed.__doc__


class Dense(Projection):
    """P with independent N(0, 1/D) entries (Li et al., 2018), made anew in tiles at each use: O(D
    d).

    Args:
        d, D: columns and rows of P, at least 1: (..., d) goes to (..., D), float32 or float64.
        seed: 0 <= seed < 2**64; it and the sizes determine every entry.

    Raises ValueError: a size or the seed is out of range.
    """

    def _tiles(self, start: int, stop: int, device):
        """Yields (first row, last row, P of these rows in float32)."""
        step = max(1, _TILE // self.d)
        for row in range(start, stop, step):
            last = min(row + step, stop)
            first = row * self.d // 8
            entries = ops.normals(
                self.seed, ops.STREAM_DENSE, first, -(-last * self.d // 8) - first, device
            )
            skip = row * self.d - 8 * first
            tile = entries[skip : skip + (last - row) * self.d].reshape(-1, self.d)
            yield row, last, tile * (1.0 / math.sqrt(self.D))

    def _forward(self, theta, start, stop):
        tiles = self._tiles(start, stop, theta.device)
        # The first piece has no rows: cat needs a tensor for an empty range, too.
        return torch.cat(
            [theta.narrow(-1, 0, 0), *(theta @ P.to(theta.dtype).T for _, _, P in tiles)], dim=-1
        )

    def _transposed(self, g, start):
        dtype = torch.promote_types(g.dtype, torch.float32)
        out = g.new_zeros((*g.shape[:-1], self.d), dtype=dtype)
        for row, last, P in self._tiles(start, start + g.shape[-1], g.device):
            out = out + g.narrow(-1, row - start, last - row).to(dtype) @ P.to(dtype)
        return out

    def _rows(self, theta, start, stop, out):
        if out is not None:
            ops.check_out(out, theta, stop - start)
            return out.copy_(self._forward(theta, start, stop))
        return ops.linear_map(
            theta, lambda x: self._forward(x, start, stop), lambda g: self._transposed(g, start)
        )

    def _rows_adjoint(self, g, start):
        stop = start + g.shape[-1]
        return ops.linear_map(
            g, lambda g: self._transposed(g, start), lambda x: self._forward(x, start, stop)
        )


class Sparse(Dense):
    """P of density 1 / sqrt(D) (Li et al., 2018): each column has one entry +-sqrt(R / D) in every
    R = ceil(sqrt(D)) rows.

    Li et al. draw the entries independently; one in each stretch of R rows has the same density,
    unit columns without fluctuation, and can be made for any rows alone. O(d sqrt(D)) work.

    Args:
        d, D: columns and rows of P, at least 1: (..., d) goes to (..., D), float32 or float64.
        seed: 0 <= seed < 2**64; it and the sizes determine every entry.

    Raises ValueError: a size or the seed is out of range.
    """

    def __init__(self, d: int, D: int, seed: int = 0):
        super().__init__(d, D, seed)
        self.R = math.isqrt(D - 1) + 1

    def _entries(self, start: int, stop: int, device):
        """Yields (row, value, whether the row is in [start, stop)) of entries, some tiles of R rows
        at a time, as tensors of shape (tiles, d): the entries of column k are at [:, k].
        """
        step = max(1, _TILE // self.d)
        tiles = range(start // self.R, -(-stop // self.R))
        for tile in tiles[::step]:
            last = min(tile + step, tiles.stop)
            index = torch.arange(tile * self.d, last * self.d, device=device).view(-1, self.d)
            first = int(tile * self.d) // 4
            words = (
                ops.philox_words(
                    self.seed, ops.STREAM_SPARSE, first, index.numel() // 4 + 2, device
                ).long()
                & 0xFFFFFFFF
            )
            w = words[index - 4 * first]
            row = (index // self.d) * self.R + ((w >> 1) * self.R >> 31)
            value = (1 - 2 * (w & 1)) * math.sqrt(self.R / self.D)
            yield row, value, (row >= start) & (row < stop)

    def _forward(self, theta, start, stop):
        out = theta.new_zeros((*theta.shape[:-1], stop - start))
        for row, value, inside in self._entries(start, stop, theta.device):
            column = inside.nonzero()[:, 1]
            added = theta[..., column] * value[inside].to(theta.dtype)
            out = _index_add(out, row[inside] - start, added)
        return out

    def _transposed(self, g, start):
        dtype = torch.promote_types(g.dtype, torch.float32)
        out = g.new_zeros((*g.shape[:-1], self.d), dtype=dtype)
        for row, value, inside in self._entries(start, start + g.shape[-1], g.device):
            # one entry for each tile and column: a sum over tiles, in one order on every device
            taken = g[..., torch.where(inside, row - start, 0)].to(dtype) * value.to(dtype)
            out = out + torch.where(inside, taken, 0).sum(-2)
        return out


def _index_add(out, index, added):
    """out.index_add(-1, index, added) with the same bits in every run. On a GPU index_add adds in
    any order and index_put sorts first; on the CPU it is index_put that adds in any order.
    """
    if not out.is_cuda:
        return out.index_add(-1, index, added)
    rows = out.movedim(-1, 0).index_put((index,), added.movedim(-1, 0), accumulate=True)
    return rows.movedim(0, -1)
