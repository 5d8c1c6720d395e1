"""Rows that stay on the disk: every product is one pass over the shards of a store.

The "pals" solver needs the complete rows for two products a refinement; its steps use the rows
projected to the subspace, (h, d) with d ≤ 7r, which are in memory. So a store that is much larger
than memory is solved by the same steps, to the same loss, as if it were loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from ..backend import Backend, Kernel, to_backend
from ..errors import InvalidInputError
from ..fisher.per_example import TINY, LowRankFishers, frobenius_norms
from ..fisher.store import FisherStore
from ..types import Array, Device, FloatArray, IntArray
from .penalty import Penalty
from .problem import NO_PENALTY, Ledger, LowRankProblem, checked_total
from .team import ALONE, Share, Team, share_bounds

# Rows are brought into memory at most this many bytes at a time.
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of some examples on the disk, with what normalises them.

    Attributes
    ----------
    rows : array (k, m)
        Memory-mapped, as stored.
    offsets : int64 array (b+1,)
        Within the block.
    scale : float64 array (k,)
        1/√ν_i for every row.
    """

    rows: Array
    offsets: IntArray
    scale: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamedProblem(LowRankProblem):
    """A problem whose rows are read block by block; ``rows`` is an empty (0, m) template."""

    blocks: tuple[Block, ...]
    norms: FloatArray

    @classmethod
    def from_store(
        cls,
        store: FisherStore,
        *,
        n_components: int,
        normalize: bool,
        backend: Backend,
        device: Device = None,
        team: Team = ALONE,
        penalty: Penalty = NO_PENALTY,
    ) -> StreamedProblem:
        """Open this process's examples; one pass for their norms, no copy is kept.

        Raises
        ------
        InvalidInputError
            Diagonals, no example, or only zeros.
        """
        started = perf_counter()
        first, stop = share_bounds(len(store), team)
        found = list(_blocks(store, first, stop, normalize))
        if not found or found[0][0].rows.shape[1] == 0:
            raise InvalidInputError(f"{store} has nothing to factorize for process {team.rank}.")
        blocks = tuple(block for block, _ in found)
        squares = np.concatenate([_squares(block) for block in blocks])
        counts = np.concatenate([np.diff(block.offsets) for block in blocks])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = to_backend(np.array(blocks[0].rows[:0]), backend, device=device)
        heights = team.gather(np.array([float(offsets[-1])]))
        before = int(heights[: team.rank].sum())
        return cls(
            rows=rows,
            offsets=to_backend(offsets, backend, device=getattr(rows, "device", None)),
            total=checked_total(team.add(float(squares.sum())), len(store)),
            squares=squares,
            backend=backend,
            ledger=Ledger(columns=int(rows.shape[1]), components=n_components, started=started),
            share=Share(first, len(store), before, int(heights.sum())),
            team=team,
            penalty=penalty,
            blocks=blocks,
            norms=np.concatenate([norms for _, norms in found]),
        )

    def wants_subspace(self, asked: bool) -> bool:
        """Always: steps over the complete rows would read the store for each of them."""
        return True

    def with_rows(self, rows: Array) -> LowRankProblem:
        """The problem over columns that fit into memory."""
        return LowRankProblem(
            rows=rows,
            offsets=self.offsets,
            total=self.total,
            squares=self.squares,
            backend=self.backend,
            ledger=self.ledger,
            share=self.share,
            team=self.team,
            penalty=self.penalty,
        )

    def loaded(self) -> LowRankProblem:
        """The same problem with its rows in memory."""
        return self.with_rows(self.map_rows(lambda rows: rows))

    def pieces(self) -> Iterator[tuple[slice, slice, Array, Array]]:
        """(examples, rows, normalised rows in the backend, their offsets), in order."""
        device = getattr(self.rows, "device", None)
        example = row = 0
        for block in self.blocks:
            n, h = len(block.offsets) - 1, int(block.rows.shape[0])
            scaled = block.rows * block.scale.astype(block.rows.dtype)[:, None]
            rows = to_backend(scaled, self.backend, device=device)
            offsets = to_backend(block.offsets, self.backend, device=device)
            yield slice(example, example + n), slice(row, row + h), rows, offsets
            example, row = example + n, row + h

    def map_rows(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the rows (k, m) → (k, d), one block after another."""
        return self.xp.concat([function(rows) for _, _, rows, _ in self.pieces()], axis=0)

    def products(self, G: Array) -> tuple[Array, Array]:
        """B = AGᵀ (h, r) and N (n, r); one pass."""
        self.ledger.add(self.n_columns * G.shape[0])
        kernel = self.backend.raw(Kernel.LOWRANK_PRODUCTS)
        parts = [kernel(rows, offsets, G) for _, _, rows, offsets in self.pieces()]
        return tuple(self.xp.concat(x, axis=0) for x in zip(*parts, strict=True))  # type: ignore[return-value]

    def pullback(self, W: Array, B: Array) -> Array:
        """(W̃∘B)ᵀA (r, m) over all processes; one pass."""
        self.ledger.add(self.n_columns * W.shape[1])
        kernel = self.backend.raw(Kernel.LOWRANK_PULLBACK)
        total: Array = None
        for examples, here, rows, offsets in self.pieces():
            part = kernel(rows, offsets, W[examples], B[here])
            total = part if total is None else total + part
        return self.team.sum(total)

    def line(self, B: Array, D: Array) -> tuple[Array, Array, Array]:
        """E = ADᵀ (h, r), N₁ = 2ΣB∘E and N₂ = ΣE∘E (n, r); one pass."""
        self.ledger.add(self.n_columns * D.shape[0])
        kernel = self.backend.raw(Kernel.LOWRANK_LINE)
        parts = [kernel(rows, offsets, B[here], D) for _, here, rows, offsets in self.pieces()]
        return tuple(self.xp.concat(x, axis=0) for x in zip(*parts, strict=True))  # type: ignore[return-value]

    def row_gram(self) -> Array:
        """K = AAᵀ (h, h) in float64; columns are read a slice at a time."""
        xp, h = self.xp, self.share.h
        self.ledger.add(self.n_columns * h)
        width = max(1, BLOCK_BYTES // (8 * max(1, h)))
        device = getattr(self.rows, "device", None)
        K = xp.zeros((h, h), dtype=xp.float64, device=device)
        for start in range(0, self.n_columns, width):
            parts = [
                block.rows[:, start : start + width] * block.scale.astype(block.rows.dtype)[:, None]
                for block in self.blocks
            ]
            dtype = self.blocks[0].rows.dtype
            slab = to_backend(np.concatenate(parts).astype(dtype), self.backend, device=device)
            # A slice's products in the rows' dtype, their sum over slices in float64.
            K = K + xp.astype(xp.matmul(slab, slab.T), xp.float64)
        return K

    def column_gram(self) -> Array:
        """AᵀA (m, m) in float64 over all processes; one pass."""
        self.ledger.add(self.n_columns * self.n_columns)
        total: Array = None
        for _, _, rows, _ in self.pieces():
            part = self.xp.astype(self.xp.matmul(rows.T, rows), self.xp.float64)
            total = part if total is None else total + part
        return self.team.sum(total)

    def example_rows(self, i: int) -> Array:
        """A_i (ρ_i, m)."""
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        return self.taken(np.arange(start, stop))

    def _mixed(self, Z: Array) -> Array:
        total: Array = None
        for _, here, rows, _ in self.pieces():
            part = self.xp.matmul(Z[:, here], rows)
            total = part if total is None else total + part
        return total

    def _restricted(self, basis: Array) -> Array:
        return self.map_rows(lambda rows: self.xp.matmul(rows, basis.T))

    def taken(self, picked: IntArray) -> Array:
        """Some of this process's rows (s, m), read from the disk."""
        ends = np.cumsum([block.rows.shape[0] for block in self.blocks])
        out = np.empty((len(picked), self.n_columns), dtype=self.blocks[0].rows.dtype)
        where = np.searchsorted(ends, picked, side="right")
        for b in np.unique(where):
            block, here = self.blocks[b], where == b
            own = picked[here] - (ends[b] - block.rows.shape[0])
            scale = block.scale[own].astype(out.dtype)
            if len(own) == len(out):  # consecutive rows of one block need no second copy
                np.multiply(block.rows[own], scale[:, None], out=out)
            else:
                out[here] = block.rows[own] * scale[:, None]
        return to_backend(out, self.backend, device=getattr(self.rows, "device", None))


def _blocks(
    store: FisherStore, first: int, stop: int, normalize: bool
) -> Iterator[tuple[Block, FloatArray]]:
    """Blocks of examples first:stop with their norms, each at most BLOCK_BYTES large."""
    begin = 0
    for shard in store.blocks():
        if not isinstance(shard, LowRankFishers):
            raise InvalidInputError(
                f"{store} holds diagonals; LowRankNPEFF takes rows. Use DiagonalNPEFF."
            )
        low, high = max(first, begin) - begin, min(stop, begin + len(shard)) - begin
        begin += len(shard)
        while low < high:
            bytes_to = (shard.offsets - shard.offsets[low]) * (
                shard.n_columns * shard.rows.dtype.itemsize
            )
            end = max(low + 1, int(np.searchsorted(bytes_to, BLOCK_BYTES, side="right")) - 1)
            end = min(end, high)
            offsets = shard.offsets[low : end + 1]
            norms = shard.norms[low:end]
            scale = np.ones(len(norms))
            if normalize:
                np.divide(1.0, np.sqrt(norms), out=scale, where=norms > TINY)
            rows = shard.rows[int(offsets[0]) : int(offsets[-1])]
            per_row = np.repeat(scale, np.diff(offsets))
            yield Block(rows, np.array(offsets - offsets[0]), per_row), np.array(norms)
            low = end


def _squares(block: Block) -> FloatArray:
    """‖A_iA_iᵀ‖²_F of normalised rows."""
    scaled = block.rows * block.scale.astype(block.rows.dtype)[:, None]
    return np.asarray(frobenius_norms(scaled, block.offsets) ** 2)


def shared_fishers(fishers: LowRankFishers, team: Team) -> tuple[LowRankFishers, Share]:
    """The contiguous part of Fishers in memory that is this process's, and which it is."""
    n, h = len(fishers), int(fishers.rows.shape[0])
    if team.world == 1:
        return fishers, Share(0, n, 0, h)
    first, stop = share_bounds(n, team)
    part: Any = fishers.select(np.arange(first, stop))
    return part, Share(first, n, int(fishers.offsets[first]), h)
