"""Per-example Fishers: one matrix an example, kept as factor rows or as a diagonal.

Notation: n examples, p parameters, m ≤ p kept columns, ρ_i rows of example i, h = Σρ_i.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..backend.guard import check_finite
from ..display import Shown
from ..errors import InvalidInputError
from ..model.sites import Site
from ..types import Array, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankFishers(Shown):
    """F_i = A_iᵀA_i, kept as the rows A_i of all examples one after another.

    Attributes
    ----------
    rows : array (h, m), float32 or float64, NumPy or torch
        The rows A_i, not normalised.
    offsets : int64 NumPy array (n+1,)
        Example i owns rows ``offsets[i]:offsets[i+1]``; the number may differ between examples.
    norms : float64 NumPy array (n,)
        ν_i = ‖F_i‖_F of the complete Fisher, before any truncation of rows or columns.
    sites : tuple of Site
        The parameters behind the columns; empty when the columns are not parameters.
    facts : mapping
        Provenance: label rule, output distribution, seed, what was reduced.

    Raises
    ------
    InvalidInputError
        Wrong shapes, offsets that do not fit, NaN or infinite rows, negative norms.

    Examples
    --------
    >>> import numpy as np
    >>> fishers = LowRankFishers.from_rows(np.eye(3).reshape(3, 1, 3))
    >>> fishers
    LowRankFishers(n=3, rows=3, columns=3, float64)
    >>> fishers.norms.tolist()
    [1.0, 1.0, 1.0]
    """

    rows: Array
    offsets: IntArray
    norms: FloatArray
    sites: tuple[Site, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if getattr(self.rows, "ndim", None) != 2:
            raise InvalidInputError(
                f"rows of shape {tuple(getattr(self.rows, 'shape', ()))} were given; a matrix "
                "(h, m) is taken. Use LowRankFishers.from_rows for (n, k, m) or a list of blocks."
            )
        n = len(self.offsets) - 1
        if n < 0 or self.offsets[0] != 0 or np.any(np.diff(self.offsets) < 0):
            raise InvalidInputError("offsets must start at 0 and never decrease.")
        if self.offsets[-1] != self.rows.shape[0]:
            raise InvalidInputError(
                f"offsets end at {int(self.offsets[-1])}, but there are {self.rows.shape[0]} rows; "
                "the last offset must equal the number of rows."
            )
        if self.norms.shape != (n,):
            raise InvalidInputError(
                f"norms of shape {self.norms.shape} were given for {n} examples; one a Fisher."
            )
        if not np.all(np.isfinite(self.norms)) or np.any(self.norms < 0):
            raise InvalidInputError("norms must be finite and >= 0: they are Frobenius norms.")
        total = self.sites[-1].stop if self.sites else self.rows.shape[1]
        if total != self.rows.shape[1]:
            raise InvalidInputError(
                f"rows have {self.rows.shape[1]} columns, but the sites hold {total} parameters."
            )

    @classmethod
    def from_rows(
        cls,
        rows: Array | Sequence[Array],
        *,
        norms: FloatArray | None = None,
        sites: Iterable[Site] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> LowRankFishers:
        """From an array (n, k, m), or a sequence of blocks (ρ_i, m), checked to be finite.

        Parameters
        ----------
        rows : array (n, k, m) or sequence of arrays (ρ_i, m)
            Factor rows, so that F_i = A_iᵀA_i.
        norms : array (n,), optional
            ‖F_i‖_F of the complete Fishers; computed from the rows when left out.
        sites, facts
            See the class.
        """
        if isinstance(rows, Sequence):
            if not rows:
                raise InvalidInputError("No Fisher was given; give the rows of at least one.")
            xp = array_namespace(rows[0])
            counts = [int(block.shape[0]) for block in rows]
            widths = {int(block.shape[1]) for block in rows}
            if len(widths) > 1:
                raise InvalidInputError(
                    f"Blocks with {sorted(widths)} columns were given; all must have the same."
                )
            flat = xp.concat(list(rows), axis=0)
        else:
            if rows.ndim != 3:
                raise InvalidInputError(
                    f"rows of shape {tuple(rows.shape)} were given; (n, k, m) is taken."
                )
            xp = array_namespace(rows)
            counts = [int(rows.shape[1])] * int(rows.shape[0])
            flat = xp.reshape(rows, (-1, rows.shape[2]))
        check_finite("LowRankFishers.from_rows, rows", flat, xp)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if norms is None:
            norms = frobenius_norms(flat, offsets)
        return cls(
            rows=flat,
            offsets=offsets,
            norms=np.asarray(norms, dtype=np.float64),
            sites=tuple(sites),
            facts=dict(facts or {}),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        dtype = str(self.rows.dtype).rsplit(".", 1)[-1]
        return (
            f"LowRankFishers(n={len(self)}, rows={self.rows.shape[0]}, "
            f"columns={self.rows.shape[1]}, {dtype})"
        )

    @property
    def n_columns(self) -> int:
        """m, the number of columns."""
        return int(self.rows.shape[1])

    @property
    def ranks(self) -> IntArray:
        """ρ_i, the number of rows of each example."""
        return np.diff(self.offsets)

    def block(self, i: int) -> Array:
        """A_i (ρ_i, m)."""
        return self.rows[int(self.offsets[i]) : int(self.offsets[i + 1])]

    def dense(self, i: int) -> Array:
        """F_i = A_iᵀA_i (m, m); for small m."""
        return self.block(i).T @ self.block(i)

    def normalized(self) -> LowRankFishers:
        """Rows divided by √‖F_i‖_F, so that each complete Fisher has norm one.

        Examples whose Fisher is zero (the model is certain) stay zero.
        """
        scale = np.ones(len(self))
        np.divide(1.0, np.sqrt(self.norms), out=scale, where=self.norms > TINY)
        xp = array_namespace(self.rows)
        per_row = like(np.repeat(scale, self.ranks), self.rows)
        rows = self.rows * xp.astype(per_row, self.rows.dtype)[:, None]
        return replace(self, rows=rows, norms=np.where(self.norms > TINY, 1.0, self.norms))

    def select(self, examples: Sequence[int] | IntArray) -> LowRankFishers:
        """The Fishers of some examples, in the order given."""
        picked = np.asarray(examples)
        chosen = np.arange(len(self))[picked if picked.size else picked.astype(np.int64)]
        index = np.concatenate(
            [np.arange(int(self.offsets[i]), int(self.offsets[i + 1])) for i in chosen]
            or [np.zeros(0, dtype=np.int64)]
        )
        return replace(
            self,
            rows=self.rows[index],
            offsets=np.concatenate([[0], np.cumsum(self.ranks[chosen])]).astype(np.int64),
            norms=self.norms[chosen],
        )

    def traces(self) -> FloatArray:
        """Tr F_i = Σ_j ‖a_ij‖² (n,) in float64."""
        return segment_sum(np.square(to_numpy(self.rows), dtype=np.float64).sum(1), self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiagonalFishers(Shown):
    """f_i = diag F(x_i), one non-negative row an example.

    Attributes
    ----------
    values : array (n, p), float32 or float64, ≥ 0
        Dense, of any library, or ``scipy.sparse`` in compressed rows.
    sites : tuple of Site
    facts : mapping

    Raises
    ------
    InvalidInputError
        Wrong shape, NaN, infinite or negative entries.
    """

    values: Array
    sites: tuple[Site, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if getattr(self.values, "ndim", None) != 2:
            raise InvalidInputError(
                f"values of shape {tuple(getattr(self.values, 'shape', ()))} were given; (n, p) "
                "is taken."
            )
        values = self.values.data if is_sparse(self.values) else self.values
        xp = array_namespace(values)
        check_finite("DiagonalFishers, values", values, xp, nonnegative=True)
        if self.sites and self.sites[-1].stop != self.values.shape[1]:
            raise InvalidInputError(
                f"values have {self.values.shape[1]} columns, but the sites hold "
                f"{self.sites[-1].stop} parameters."
            )

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def __repr__(self) -> str:
        dtype = str(self.values.dtype).rsplit(".", 1)[-1]
        return f"DiagonalFishers(n={len(self)}, parameters={self.values.shape[1]}, {dtype})"

    def select(self, examples: Sequence[int] | IntArray) -> DiagonalFishers:
        """The Fishers of some examples, in the order given."""
        index = np.asarray(examples)
        index = index if index.size else index.astype(np.int64)
        return replace(self, values=self.values[index])

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    def norms(self) -> FloatArray:
        """‖f_i‖₂ (n,) in float64."""
        if is_sparse(self.values):
            return np.sqrt(_row_squares(self.values))
        return np.asarray(np.linalg.norm(to_numpy(self.values).astype(np.float64), axis=1))

    def traces(self) -> FloatArray:
        """Tr F_i = Σ_j f_ij (n,) in float64."""
        if is_sparse(self.values):
            return np.asarray(self.values.sum(axis=1, dtype=np.float64)).reshape(-1)
        return np.asarray(to_numpy(self.values).sum(1, dtype=np.float64))


def is_sparse(x: Any) -> bool:
    """Whether ``x`` is a ``scipy.sparse`` array in compressed rows, told without importing it."""
    return type(x).__module__.startswith("scipy.sparse") and getattr(x, "format", "") == "csr"


def sparse_parts(x: Any) -> tuple[FloatArray, IntArray, IntArray]:
    """Entries, columns and offsets of compressed rows, columns ascending within each row."""
    if not x.has_sorted_indices:
        x = x.sorted_indices()
    return x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)


# Below this norm an example's Fisher counts as zero: dividing by it would only amplify rounding.
TINY = 1e-24
# Float64 copies of rows are made at most this many bytes at a time.
CHUNK_BYTES = 16 << 20


def _row_squares(x: Any) -> FloatArray:
    """Σ_j x_ij² (n,) in float64 of compressed rows, a bounded number of entries at a time."""
    offsets = x.indptr.astype(np.int64)
    out = np.zeros(len(offsets) - 1)
    edges = np.searchsorted(offsets, np.arange(0, int(offsets[-1]), CHUNK_BYTES // 8), "left")
    bounds = np.unique(np.concatenate([[0], edges, [len(out)]]))
    for first, stop in pairwise(bounds.tolist()):
        part = np.square(x.data[offsets[first] : offsets[stop]], dtype=np.float64)
        out[first:stop] = segment_sum(part, offsets[first : stop + 1] - offsets[first])
    return out


def segment_sum(values: FloatArray, offsets: IntArray) -> FloatArray:
    """Σ over each example's rows of ``values`` (h, ...) → (n, ...); empty examples give 0."""
    out = np.zeros((len(offsets) - 1, *values.shape[1:]), dtype=values.dtype)
    filled = offsets[1:] > offsets[:-1]
    if filled.any():
        out[filled] = np.add.reduceat(values, offsets[:-1][filled], axis=0)
    return out


def frobenius_norms(rows: Array, offsets: IntArray) -> FloatArray:
    """‖A_iᵀA_i‖_F = ‖A_iA_iᵀ‖_F (n,) in float64, from the small Gram of each example.

    Cost: Σρ_i² m flops; nothing m×m is formed.
    """
    norms = np.zeros(len(offsets) - 1)
    ranks = np.diff(offsets)
    if isinstance(rows, np.ndarray) or not len(norms) or ranks.min() != ranks.max():
        for i in range(len(norms)):
            block = to_numpy(rows[int(offsets[i]) : int(offsets[i + 1])])
            block = block.astype(np.float64, copy=False)
            norms[i] = np.linalg.norm(block @ block.T)
        return norms
    # Many examples at a time where the rows are: on a GPU each way back costs a wait.
    xp = array_namespace(rows)
    k, m = int(ranks[0]), int(rows.shape[1])
    size = max(1, CHUNK_BYTES // max(1, 8 * k * m))
    for start in range(0, len(norms), size):
        stop = min(start + size, len(norms))
        A = xp.reshape(xp.astype(rows[start * k : stop * k], xp.float64), (stop - start, k, m))
        grams = xp.matmul(A, xp.permute_dims(A, (0, 2, 1)))
        norms[start:stop] = to_numpy(xp.sqrt(xp.sum(grams * grams, axis=(1, 2))))
    return norms
