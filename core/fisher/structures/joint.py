"""Precisions that couple every coordinate of a site: a dense block, or low rank plus diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from array_api_compat import array_namespace

from ...errors import InvalidInputError
from ...types import Array
from .base import (
    Selection,
    Structure,
    cast,
    check_array,
    check_extents,
    check_non_negative,
    check_symmetric,
    flat_indices,
    matrix_is_psd,
    selected_shape,
    take,
    take_all,
)
from .factored import _shifted, _trace


@dataclass(frozen=True, slots=True, eq=False)
class DenseBlock(Structure):
    """P, every entry of it.

    Attributes
    ----------
    matrix : array (d, d)
        Row-major over the site's shape.
    shape : tuple of int
        Of the displacements, d = prod(shape).

    Raises
    ------
    InvalidInputError
        A matrix that is not finite and symmetric with a non-negative diagonal, or another size.
    """

    matrix: Array
    shape: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride]
    kind: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        check_extents("The shape", self.shape)
        check_symmetric("A dense block", self.matrix)
        if self.matrix.shape[0] != prod(self.shape):
            raise InvalidInputError(
                f"A block of {tuple(self.matrix.shape)} was given for the shape {self.shape}; "
                f"({prod(self.shape)}, {prod(self.shape)}) is accepted."
            )

    def apply(self, d: Array) -> Array:
        """The matrix times D, row-major."""
        d, P, xp = self._taken(d, self.matrix)
        lead = tuple(d.shape[: d.ndim - len(self.shape)])
        flat = xp.reshape(d, (-1, self.size))
        return xp.reshape(xp.matmul(flat, P), (*lead, *self.shape))

    def diagonal(self) -> Array:
        """Entries P_jj."""
        xp = array_namespace(self.matrix)
        return xp.reshape(xp.linalg.diagonal(self.matrix), self.shape)

    def trace(self) -> float:
        """Sum of the diagonal."""
        return _trace(self.matrix)

    def astype(self, dtype: str) -> DenseBlock:
        """The same in another dtype."""
        return DenseBlock(cast(self.matrix, dtype), self.shape)

    def is_psd(self, tol: float = 0.0) -> bool:
        """From the eigenvalues, O(d³)."""
        return matrix_is_psd(self.matrix, tol)

    def _example(self) -> Array:
        return self.matrix

    def _scaled(self, factor: float) -> DenseBlock:
        return DenseBlock(self.matrix * factor, self.shape)

    def _damped(self, rho: float) -> DenseBlock:
        return DenseBlock(_shifted(self.matrix, rho), self.shape)

    def _selected(self, chosen: Selection) -> DenseBlock:
        index = flat_indices(self.shape, chosen)
        part = take(take(self.matrix, index, 0), index, 1)
        return DenseBlock(part, selected_shape(self.shape, chosen))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankDiagonal(Structure):
    """P = diag f + Σ_k u_k u_kᵀ.

    Attributes
    ----------
    values : array, the site's shape
        f ≥ 0.
    rows : array (r, *shape)
        u_1, ..., u_r: gradients of single examples, or components.

    Raises
    ------
    InvalidInputError
        Negative f, entries that are not finite, or shapes that do not fit.
    """

    values: Array
    rows: Array
    kind: ClassVar[str] = "lowrank+diagonal"

    def __post_init__(self) -> None:
        check_non_negative("The diagonal of a low-rank precision", self.values)
        check_array("Rows of a low-rank precision", self.rows)
        if tuple(self.rows.shape[1:]) != self.shape or self.rows.ndim == 0:
            raise InvalidInputError(
                f"Rows of shape {tuple(self.rows.shape)} were given; (r, "
                f"{', '.join(map(str, self.shape))}) is accepted."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of f."""
        return tuple(self.values.shape)

    @property
    def rank(self) -> int:
        """Number of rows r."""
        return int(self.rows.shape[0])

    def apply(self, d: Array) -> Array:
        """f∘D + Σ_k u_k ⟨u_k, D⟩."""
        d, f, xp = self._taken(d, self.values)
        d, rows, _ = self._taken(d, self.rows)
        lead = tuple(d.shape[: d.ndim - len(self.shape)])
        U = xp.reshape(rows, (self.rank, self.size))
        low = xp.matmul(xp.matmul(xp.reshape(d, (-1, self.size)), U.T), U)
        return f * d + xp.reshape(low, (*lead, *self.shape))

    def diagonal(self) -> Array:
        """Entries f + Σ_k u_k∘u_k."""
        xp = array_namespace(self.values)
        return self.values + xp.sum(self.rows**2, axis=0)

    def astype(self, dtype: str) -> LowRankDiagonal:
        """The same in another dtype."""
        return LowRankDiagonal(cast(self.values, dtype), cast(self.rows, dtype))

    def is_psd(self, tol: float = 0.0) -> bool:
        """Always: a sum of squares and f ≥ 0."""
        return True

    def _example(self) -> Array:
        return self.values

    def _scaled(self, factor: float) -> LowRankDiagonal:
        return LowRankDiagonal(self.values * factor, self.rows * factor**0.5)

    def _damped(self, rho: float) -> LowRankDiagonal:
        return LowRankDiagonal(self.values + rho, self.rows)

    def _selected(self, chosen: Selection) -> LowRankDiagonal:
        return LowRankDiagonal(take_all(self.values, chosen), take_all(self.rows, chosen, first=1))
