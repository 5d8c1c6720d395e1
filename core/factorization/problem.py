"""The data of a low-rank factorization: normalised rows in a backend, and what products cost.

A problem can be *restricted* to the span of orthonormal rows Q (d, m): with G = ĜQ the products
B = (AQᵀ)Ĝᵀ and the Gram S = ĜĜᵀ, hence the loss, are exact for every G in that span, at d/m of
the cost. All solvers work through this class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from ..backend import Backend, Kernel, to_backend
from ..errors import InvalidInputError
from ..fisher.per_example import LowRankFishers, frobenius_norms
from ..types import Array, Device, FloatArray, IntArray
from .penalty import Penalty
from .team import ALONE, Share, Team

NO_PENALTY = Penalty()


@dataclass(slots=True)
class Ledger:
    """Counts data products in full-size equivalents, and the time since the solver began.

    One equivalent is the product of the full rows A (h, m) with r components: 2hmr flops. A
    product of AQᵀ (h, d) with r components counts d/m.
    """

    columns: int
    components: int
    products: float = 0.0
    started: float = field(default_factory=perf_counter)

    def add(self, flops_per_row: float) -> None:
        """Book a product of ``flops_per_row`` = columns × components multiplications a row."""
        self.products += flops_per_row / (self.columns * self.components)

    def seconds(self) -> float:
        """Seconds since the ledger was opened."""
        return perf_counter() - self.started


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankProblem:
    """Rows A (h, m) of all examples, their offsets, and T = Σ‖A_iA_iᵀ‖²_F.

    Attributes
    ----------
    rows, offsets : arrays of the backend
        Of this process's examples.
    total : float
        T of the rows that are kept (float64), over all processes.
    squares : float64 NumPy array (n,)
        ‖A_iA_iᵀ‖²_F of each example.
    backend : Backend
    ledger : Ledger
        Shared by a problem and its restrictions; counts this process's products.
    share : Share
        Which examples are here.
    team : Team
        The processes that share the examples.
    penalty : Penalty
        On components that are not orthogonal.
    """

    rows: Array
    offsets: Array
    total: float
    squares: FloatArray
    backend: Backend
    ledger: Ledger
    share: Share
    team: Team = ALONE
    penalty: Penalty = NO_PENALTY

    @classmethod
    def from_fishers(
        cls,
        fishers: LowRankFishers,
        *,
        n_components: int,
        normalize: bool,
        backend: Backend,
        device: Device = None,
        share: Share | None = None,
        team: Team = ALONE,
        penalty: Penalty = NO_PENALTY,
    ) -> LowRankProblem:
        """Normalise (each complete Fisher to norm one) and bring to the backend, once.

        Raises
        ------
        InvalidInputError
            If every Fisher is zero.
        """
        started = perf_counter()
        used = fishers.normalized() if normalize else fishers
        squares = frobenius_norms(used.rows, used.offsets) ** 2
        n, h = len(fishers), int(used.rows.shape[0])
        share = Share(0, n, 0, h) if share is None else share
        total = checked_total(team.add(float(squares.sum())), share.n)
        rows = to_backend(used.rows, backend, device=device)
        return cls(
            rows=rows,
            offsets=to_backend(used.offsets, backend, device=getattr(rows, "device", None)),
            total=total,
            squares=squares,
            backend=backend,
            ledger=Ledger(columns=int(rows.shape[1]), components=n_components, started=started),
            share=share,
            team=team,
            penalty=penalty,
        )

    @property
    def xp(self) -> Any:
        """Array-API namespace of the rows."""
        return self.backend.xp

    @property
    def n_examples(self) -> int:
        """N."""
        return len(self.squares)

    @property
    def n_columns(self) -> int:
        """M (or d, when restricted)."""
        return int(self.rows.shape[1])

    def array(self, x: FloatArray | Array) -> Array:
        """``x`` with the dtype, library and device of the rows."""
        moved = to_backend(x, self.backend, device=getattr(self.rows, "device", None))
        return self.xp.astype(moved, self.rows.dtype)

    def own(self, x: FloatArray) -> FloatArray:
        """The rows of ``x`` (n, ...) that belong to this process's examples."""
        return x[self.share.first : self.share.first + self.n_examples]

    def map_rows(self, function: Callable[[Array], Array]) -> Array:
        """``function`` of the rows (k, m) → (k, d), all at once or block by block."""
        return function(self.rows)

    def empty_row(self) -> Array:
        """Zeros (m,)."""
        device = getattr(self.rows, "device", None)
        return self.xp.zeros(self.n_columns, dtype=self.rows.dtype, device=device)

    def with_rows(self, rows: Array) -> LowRankProblem:
        """The problem over other columns whose inner products are the same."""
        return replace(self, rows=rows)

    def wants_subspace(self, asked: bool) -> bool:
        """Whether to solve in a growing subspace, where that pays."""
        return asked

    def products(self, G: Array) -> tuple[Array, Array]:
        """B = AGᵀ (h, r) and N (n, r); one data product."""
        self.ledger.add(self.n_columns * G.shape[0])
        B, N = self.backend.raw(Kernel.LOWRANK_PRODUCTS)(self.rows, self.offsets, G)
        return B, N

    def pullback(self, W: Array, B: Array) -> Array:
        """(W̃∘B)ᵀA (r, m) over all processes; one data product."""
        self.ledger.add(self.n_columns * W.shape[1])
        pull = self.backend.raw(Kernel.LOWRANK_PULLBACK)
        return self.team.sum(pull(self.rows, self.offsets, W, B))

    def line(self, B: Array, D: Array) -> tuple[Array, Array, Array]:
        """E = ADᵀ (h, r), N₁ = 2ΣB∘E and N₂ = ΣE∘E (n, r); one data product."""
        self.ledger.add(self.n_columns * D.shape[0])
        E, N1, N2 = self.backend.raw(Kernel.LOWRANK_LINE)(self.rows, self.offsets, B, D)
        return E, N1, N2

    def mix_rows(self, Z: FloatArray | Array) -> Array:
        """ZA (k, m) over the rows of all processes, for Z (k, h); k/r data products."""
        self.ledger.add(self.n_columns * Z.shape[0])
        mine = Z[:, self.share.first_row : self.share.first_row + int(self.offsets[-1])]
        return self.team.sum(self._mixed(self.array(mine)))

    def _mixed(self, Z: Array) -> Array:
        return self.xp.matmul(Z, self.rows)

    def row_gram(self) -> Array:
        """K = AAᵀ (h, h) in float64, of a team of one; h/r data products."""
        self.ledger.add(self.n_columns * self.share.h)
        return self.xp.astype(self.xp.matmul(self.rows, self.rows.T), self.xp.float64)

    def column_gram(self) -> Array:
        """AᵀA (m, m) in float64 over all processes; m/r data products."""
        self.ledger.add(self.n_columns * self.n_columns)
        gram = self.xp.astype(self.xp.matmul(self.rows.T, self.rows), self.xp.float64)
        return self.team.sum(gram)

    def solve_coefficients(
        self, S: Array, N: Array, start: Array, *, sweeps: int, tol: float = 0.0
    ) -> Array:
        """Lower L in W ≥ 0 by coordinate descent over the shared Gram H = S∘S."""
        H = self.xp.astype(S * S, start.dtype)
        return self.backend.raw(Kernel.NNLS_GRAM)(H, N, start, sweeps=sweeps, tol=tol)

    def restrict(self, basis: Array) -> LowRankProblem:
        """The problem for G = Ĝ·basis; ``basis`` (d, m) has orthonormal rows."""
        self.ledger.add(self.n_columns * basis.shape[0])
        return self.with_rows(self._restricted(basis))

    def _restricted(self, basis: Array) -> Array:
        return self.xp.matmul(self.rows, basis.T)

    def take_rows(self, picked: IntArray) -> Array:
        """Some rows (s, m), by their numbers over all processes."""
        if self.team.world == 1:
            return self.taken(picked)
        mine = picked - self.share.first_row
        here = np.flatnonzero((mine >= 0) & (mine < int(self.offsets[-1])))
        device = _device(self.rows)
        shape = (len(picked), self.n_columns)
        out = self.xp.zeros(shape, dtype=self.rows.dtype, device=device)
        if len(here):
            out[to_backend(here, self.backend, device=device)] = self.taken(mine[here])
        return self.team.sum(out)

    def taken(self, picked: IntArray) -> Array:
        """Some of this process's rows (s, m)."""
        return self.rows[self.index_array(picked)]

    def index_array(self, index: IntArray) -> Array:
        """Whole numbers where the rows are."""
        return to_backend(index, self.backend, device=_device(self.rows))

    def sample_basis(self, dimension: int, picked: IntArray) -> Array:
        """Leading ``dimension`` right singular vectors of some rows, from their small Gram.

        Parameters
        ----------
        dimension : int
            d, at most; fewer rows come back when the sample has lower rank.
        picked : int64 array (s,)
            Which rows to look at.
        """
        sample = self.take_rows(picked)
        share = len(picked) / max(1, self.share.h)
        self.ledger.add(share * self.n_columns * len(picked))
        return row_space(sample, dimension, self.xp, ledger=self.ledger, share=share)

    def example_rows(self, i: int) -> Array:
        """A_i (ρ_i, m)."""
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        return self.rows[start:stop]


def checked_total(total: float, n: int) -> float:
    """T, or the error that there is nothing to factorize."""
    if not total > 0.0:
        raise InvalidInputError(
            f"All {n} Fishers are zero, so there is nothing to factorize. Check "
            "that the model's outputs depend on the parameters that were selected."
        )
    return total


def row_space(
    rows: Array, dimension: int, xp: Any, *, ledger: Ledger | None = None, share: float = 0.0
) -> Array:
    """Orthonormal rows (d, m) that span the ``dimension`` leading directions of ``rows``.

    By the eigenvectors of rows·rowsᵀ in float64; directions with eigenvalue below
    1e-14 of the largest carry only rounding and are dropped.
    """
    K = xp.astype(xp.matmul(rows, rows.T), xp.float64)
    values, vectors = xp.linalg.eigh(K)
    values, vectors = values[-dimension:], vectors[:, -dimension:]
    keep = max(1, int(xp.sum(xp.astype(values > 1e-14 * xp.max(values), xp.int64))))
    values, vectors = values[-keep:], vectors[:, -keep:]
    if ledger is not None:
        ledger.add(share * rows.shape[1] * keep)
    # The division by the roots is left to QR, which also cleans up what float32 lost.
    return orthonormal_rows(xp.matmul(xp.astype(vectors.T, rows.dtype), rows), xp)


def orthonormal_rows(rows: Array, xp: Any) -> Array:
    """An orthonormal basis (d, m) of the span of d independent rows, by QR."""
    q, _ = xp.linalg.qr(rows.T, mode="reduced")
    return q.T


def _device(x: Array) -> Any:
    return getattr(x, "device", None)
