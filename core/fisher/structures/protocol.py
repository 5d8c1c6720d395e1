"""What every precision of a site can do, whatever it stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from ...types import Array

DampingMode = Literal["absolute", "relative_trace", "factored"]
DAMPING_MODES = ("absolute", "relative_trace", "factored")

DENSE_LIMIT = 4096
"""``to_dense`` refuses more parameters than this (128 MiB of float64) unless told otherwise."""


@runtime_checkable
class Precision(Protocol):
    """A symmetric matrix P (d, d) on one site whose parameters have ``shape``, d = prod(shape).

    Displacements D have the shape (..., *shape); leading axes are independent displacements. Values
    are frozen: every operation gives a new one. Arrays are of one array library (NumPy, torch, ...)
    and float32 or float64; results are of the library of the arrays that went in.
    """

    kind: ClassVar[str]
    """Name of the structure ("diagonal", "kronecker", ...)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the displacements."""
        ...

    def apply(self, d: Array) -> Array:
        """P D (..., *shape)."""
        ...

    def quad(self, d: Array) -> Array:
        """Dᵀ P D (...)."""
        ...

    def diagonal(self) -> Array:
        """The entries P_jj (*shape)."""
        ...

    def trace(self) -> float:
        """Σ_j P_jj."""
        ...

    def scaled(self, factor: float) -> Precision:
        """``factor`` · P."""
        ...

    def damped(self, rho: float, mode: DampingMode = "absolute") -> Precision:
        """P with ρ added to its spectrum; see :meth:`Structure.damped` for the modes."""
        ...

    def permuted(self, perms: Mapping[int, Sequence[int]]) -> Precision:
        """The precision of permuted parameters: axis k of D is taken in the order ``perms[k]``."""
        ...

    def restricted(self, slices: Sequence[Any]) -> Precision:
        """The principal submatrix on ``D[slices]``: one slice, index list or ``None`` an axis."""
        ...

    def astype(self, dtype: str) -> Precision:
        """The same in "float32" or "float64"."""
        ...

    def to_dense(self, limit: int = DENSE_LIMIT) -> Array:
        """P as a matrix (d, d), row-major over ``shape``; refused above ``limit`` parameters."""
        ...

    def is_psd(self, tol: float = 0.0) -> bool:
        """Whether no eigenvalue is below −tol times the largest."""
        ...
