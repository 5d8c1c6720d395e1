"""The data of a low-rank factorization: normalised rows in a backend, and what products cost.

A problem can be *restricted* to the span of orthonormal rows Q (d, m): with G = ĜQ the products
B = (AQᵀ)Ĝᵀ and the Gram S = ĜĜᵀ, hence the loss, are exact for every G in that span, at d/m of
the cost. All solvers work through this class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from ..backend import Backend, Kernel, to_backend
from ..errors import InvalidInputError
from ..fisher.per_example import LowRankFishers, frobenius_norms
from ..types import Array, Device, FloatArray, IntArray


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
    total : float
        T of the rows that are kept (float64).
    squares : float64 NumPy array (n,)
        ‖A_iA_iᵀ‖²_F of each example.
    backend : Backend
    ledger : Ledger
        Shared by a problem and its restrictions.
    """

    rows: Array
    offsets: Array
    total: float
    squares: FloatArray
    backend: Backend
    ledger: Ledger

    @classmethod
    def from_fishers(
        cls,
        fishers: LowRankFishers,
        *,
        n_components: int,
        normalize: bool,
        backend: Backend,
        device: Device = None,
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
        total = float(squares.sum())
        if not total > 0.0:
            raise InvalidInputError(
                f"All {len(fishers)} Fishers are zero, so there is nothing to factorize. Check "
                "that the model's outputs depend on the parameters that were selected."
            )
        rows = to_backend(used.rows, backend, device=device)
        return cls(
            rows=rows,
            offsets=to_backend(used.offsets, backend, device=getattr(rows, "device", None)),
            total=total,
            squares=squares,
            backend=backend,
            ledger=Ledger(columns=int(rows.shape[1]), components=n_components, started=started),
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

    def products(self, G: Array) -> tuple[Array, Array]:
        """B = AGᵀ (h, r) and N (n, r); one data product."""
        self.ledger.add(self.n_columns * G.shape[0])
        B, N = self.backend.raw(Kernel.LOWRANK_PRODUCTS)(self.rows, self.offsets, G)
        return B, N

    def pullback(self, W: Array, B: Array) -> Array:
        """(W̃∘B)ᵀA (r, m); one data product."""
        self.ledger.add(self.n_columns * W.shape[1])
        return self.backend.raw(Kernel.LOWRANK_PULLBACK)(self.rows, self.offsets, W, B)

    def line(self, B: Array, D: Array) -> tuple[Array, Array, Array]:
        """E = ADᵀ (h, r), N₁ = 2ΣB∘E and N₂ = ΣE∘E (n, r); one data product."""
        self.ledger.add(self.n_columns * D.shape[0])
        E, N1, N2 = self.backend.raw(Kernel.LOWRANK_LINE)(self.rows, self.offsets, B, D)
        return E, N1, N2

    def solve_coefficients(
        self, S: Array, N: Array, start: Array, *, sweeps: int, tol: float = 0.0
    ) -> Array:
        """Lower L in W ≥ 0 by coordinate descent over the shared Gram H = S∘S."""
        H = self.xp.astype(S * S, self.rows.dtype)
        return self.backend.raw(Kernel.NNLS_GRAM)(H, N, start, sweeps=sweeps, tol=tol)

    def restrict(self, basis: Array) -> LowRankProblem:
        """The problem for G = Ĝ·basis; ``basis`` (d, m) has orthonormal rows."""
        self.ledger.add(self.n_columns * basis.shape[0])
        return replace(self, rows=self.xp.matmul(self.rows, basis.T))

    def sample_basis(self, dimension: int, picked: IntArray) -> Array:
        """Leading ``dimension`` right singular vectors of some rows, from their small Gram.

        Parameters
        ----------
        dimension : int
            d, at most; fewer rows come back when the sample has lower rank.
        picked : int64 array (s,)
            Which rows to look at.
        """
        sample = self.rows[to_backend(picked, self.backend, device=_device(self.rows))]
        share = len(picked) / max(1, int(self.rows.shape[0]))
        self.ledger.add(share * self.n_columns * len(picked))
        return row_space(sample, dimension, self.xp, ledger=self.ledger, share=share)

    def example_rows(self, i: int) -> Array:
        """A_i (ρ_i, m)."""
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        return self.rows[start:stop]


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
