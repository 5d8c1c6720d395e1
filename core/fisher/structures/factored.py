"""Precisions of a matrix of weights as products of a factor of its outputs and one of its inputs.

The site is W (o, i), or [W|b] (o, i+1) with the bias as the last column, whose input is 1. The
Kronecker product B ⊗ A acts on row-major vectors: (B ⊗ A) D = B D A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from ...backend.guard import dtype_name
from ...errors import InvalidInputError
from ...types import Array
from .base import (
    SYMMETRY,
    Selection,
    Structure,
    cast,
    check_array,
    check_extents,
    check_non_negative,
    check_symmetric,
    matrix_is_psd,
    take,
)

SHARINGS = ("expand", "reduce")
"""How a layer that is used at several positions of an example enters a Kronecker product."""


def _trace(x: Array) -> float:
    xp = array_namespace(x)
    return float(xp.sum(xp.linalg.diagonal(x)))


def _shifted(x: Array, by: float) -> Array:
    """X + by I."""
    xp = array_namespace(x)
    return x + by * xp.eye(int(x.shape[0]), dtype=x.dtype, device=device(x))


def _symmetric_part(x: Array, index: Any) -> Array:
    return take(take(x, index, 0), index, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Gram(Structure):
    """P = I_o ⊗ A, A = (1/N) Σ a aᵀ: the inputs' second moments, the same for every output.

    The precision of a linear layer under squared error, by which RegMean (arXiv:2212.09849) merges.

    Attributes
    ----------
    input_factor : array (i, i)
        A.
    outputs : int
        o.

    Raises
    ------
    InvalidInputError
        A that is not finite and symmetric with a non-negative diagonal.
    """

    input_factor: Array
    outputs: int
    kind: ClassVar[str] = "gram"

    def __post_init__(self) -> None:
        check_symmetric("An input factor", self.input_factor)
        check_extents("The number of outputs", (self.outputs,))

    @property
    def shape(self) -> tuple[int, ...]:
        """(o, i)."""
        return self.outputs, int(self.input_factor.shape[0])

    def apply(self, d: Array) -> Array:
        """D A."""
        d, A, xp = self._taken(d, self.input_factor)
        return xp.matmul(d, A)

    def diagonal(self) -> Array:
        """The diagonal of A in every row."""
        xp = array_namespace(self.input_factor)
        row = xp.linalg.diagonal(self.input_factor)
        return xp.tile(row[None, :], (self.outputs, 1))

    def trace(self) -> float:
        """The number of outputs times tr A."""
        return self.outputs * _trace(self.input_factor)

    def astype(self, dtype: str) -> Gram:
        """The same in another dtype."""
        return Gram(cast(self.input_factor, dtype), self.outputs)

    def is_psd(self, tol: float = 0.0) -> bool:
        """Whether A is."""
        return matrix_is_psd(self.input_factor, tol)

    def _example(self) -> Array:
        return self.input_factor

    def _scaled(self, factor: float) -> Gram:
        return Gram(self.input_factor * factor, self.outputs)

    def _damped(self, rho: float) -> Gram:
        return Gram(_shifted(self.input_factor, rho), self.outputs)

    def _selected(self, chosen: Selection) -> Gram:
        rows, columns = chosen
        kept = self.outputs if rows is None else len(rows)
        return Gram(_symmetric_part(self.input_factor, columns), kept)


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker(Structure):
    """P = B ⊗ A with B (o, o) from output gradients and A (i, i) from inputs: K-FAC.

    Attributes
    ----------
    output_factor : array (o, o)
        B.
    input_factor : array (i, i)
        A.
    sharing : {"expand", "reduce"}
        Over several positions t of an example: ``expand`` takes every position for an example of
        its own; ``reduce`` averages the inputs and adds up the output gradients first
        (arXiv:2311.00636). With one position both are the same.

    Raises
    ------
    InvalidInputError
        Factors that are not finite and symmetric with a non-negative diagonal, or another sharing.
    """

    output_factor: Array
    input_factor: Array
    sharing: str = "expand"
    kind: ClassVar[str] = "kronecker"

    def __post_init__(self) -> None:
        check_symmetric("An output factor", self.output_factor)
        check_symmetric("An input factor", self.input_factor)
        if self.sharing not in SHARINGS:
            raise InvalidInputError(
                f"sharing={self.sharing!r} was given; accepted: {', '.join(SHARINGS)}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(o, i)."""
        return int(self.output_factor.shape[0]), int(self.input_factor.shape[0])

    def apply(self, d: Array) -> Array:
        """B D A."""
        d, A, xp = self._taken(d, self.input_factor)
        left, B, _ = self._taken(xp.matmul(d, A), self.output_factor)
        return xp.matmul(B, left)

    def diagonal(self) -> Array:
        """Entries B_jj A_kk."""
        xp = array_namespace(self.input_factor)
        b, a = xp.linalg.diagonal(self.output_factor), xp.linalg.diagonal(self.input_factor)
        return b[:, None] * a[None, :]

    def trace(self) -> float:
        """The product tr B · tr A."""
        return _trace(self.output_factor) * _trace(self.input_factor)

    def astype(self, dtype: str) -> Kronecker:
        """The same in another dtype."""
        return self._with(cast(self.output_factor, dtype), cast(self.input_factor, dtype))

    def is_psd(self, tol: float = 0.0) -> bool:
        """Whether both factors are."""
        return matrix_is_psd(self.output_factor, tol) and matrix_is_psd(self.input_factor, tol)

    def in_eigenbasis(self) -> EKFAC:
        """The same matrix as an :class:`EKFAC`: eigenvectors of both factors, products as scales.

        Eigenvalues that rounding made negative count as zero. Cost O(o³ + i³).
        """
        xp = array_namespace(self.output_factor, self.input_factor)
        beta, U = xp.linalg.eigh(self.output_factor)
        alpha, V = xp.linalg.eigh(self.input_factor)
        zero = xp.zeros((), dtype=beta.dtype, device=device(beta))
        scales = xp.where(beta > 0, beta, zero)[:, None] * xp.where(alpha > 0, alpha, zero)[None]
        return EKFAC(U, V, scales, self.sharing)

    def _with(self, B: Array, A: Array) -> Kronecker:
        return Kronecker(B, A, self.sharing)

    def _example(self) -> Array:
        return self.input_factor

    def _scaled(self, factor: float) -> Kronecker:
        return self._with(self.output_factor, self.input_factor * factor)

    def _damped(self, rho: float) -> EKFAC:
        # B ⊗ A + ρI is no Kronecker product, but has its eigenvectors.
        return self.in_eigenbasis()._damped(rho)

    def _damped_factors(self, rho: float) -> Kronecker:
        o, i = self.shape
        b, a = _trace(self.output_factor) / o, _trace(self.input_factor) / i
        ratio = (a / b) ** 0.5 if a > 0 and b > 0 else 1.0
        root = rho**0.5
        return self._with(
            _shifted(self.output_factor, root / ratio), _shifted(self.input_factor, root * ratio)
        )

    def _selected(self, chosen: Selection) -> Kronecker:
        return self._with(
            _symmetric_part(self.output_factor, chosen[0]),
            _symmetric_part(self.input_factor, chosen[1]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class EKFAC(Structure):
    """P = (U ⊗ V) diag(s) (U ⊗ V)ᵀ: the Kronecker factors' eigenbasis, with scales of its own.

    With s_jk = (1/N) Σ (u_jᵀ G v_k)² over gradients G it is the matrix nearest to the Fisher in
    Frobenius norm among those of this eigenbasis (arXiv:1806.03884).

    Attributes
    ----------
    output_basis : array (o, k_o)
        U, rows orthonormal: U Uᵀ = I. Square, unless the precision was restricted.
    input_basis : array (i, k_i)
        V, likewise.
    scales : array (k_o, k_i)
        s ≥ 0.
    sharing : {"expand", "reduce"}
        See :class:`Kronecker`: of the factors that gave the bases.

    Raises
    ------
    InvalidInputError
        Bases without orthonormal rows, negative scales, or shapes that do not fit.
    """

    output_basis: Array
    input_basis: Array
    scales: Array
    sharing: str = "expand"
    kind: ClassVar[str] = "ekfac"

    def __post_init__(self) -> None:
        _check_basis("An output basis", self.output_basis)
        _check_basis("An input basis", self.input_basis)
        check_non_negative("Scales", self.scales)
        wanted = (int(self.output_basis.shape[1]), int(self.input_basis.shape[1]))
        if tuple(self.scales.shape) != wanted:
            raise InvalidInputError(
                f"Scales of shape {tuple(self.scales.shape)} were given; {wanted} is accepted, one "
                "for each pair of basis vectors."
            )
        if self.sharing not in SHARINGS:
            raise InvalidInputError(
                f"sharing={self.sharing!r} was given; accepted: {', '.join(SHARINGS)}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(o, i)."""
        return int(self.output_basis.shape[0]), int(self.input_basis.shape[0])

    def apply(self, d: Array) -> Array:
        """U (s ∘ (Uᵀ D V)) Vᵀ."""
        d, U, xp = self._taken(d, self.output_basis)
        d, V, _ = self._taken(d, self.input_basis)
        inner = xp.matmul(xp.matmul(U.T, d), V) * self.scales
        return xp.matmul(xp.matmul(U, inner), V.T)

    def diagonal(self) -> Array:
        """(U∘U) s (V∘V)ᵀ."""
        return (self.output_basis**2) @ self.scales @ (self.input_basis**2).T

    def astype(self, dtype: str) -> EKFAC:
        """The same in another dtype."""
        bases = cast(self.output_basis, dtype), cast(self.input_basis, dtype)
        return EKFAC(*bases, cast(self.scales, dtype), self.sharing)

    def is_psd(self, tol: float = 0.0) -> bool:
        """Always: s ≥ 0."""
        return True

    def _example(self) -> Array:
        return self.scales

    def _scaled(self, factor: float) -> EKFAC:
        return EKFAC(self.output_basis, self.input_basis, self.scales * factor, self.sharing)

    def _damped(self, rho: float) -> EKFAC:
        # Orthonormal rows: ρI in the basis is ρI on the site.
        return EKFAC(self.output_basis, self.input_basis, self.scales + rho, self.sharing)

    def _selected(self, chosen: Selection) -> EKFAC:
        U, V = take(self.output_basis, chosen[0], 0), take(self.input_basis, chosen[1], 0)
        return EKFAC(U, V, self.scales, self.sharing)


def _check_basis(what: str, x: Array) -> None:
    xp = check_array(what, x, 2)
    n, k = (int(s) for s in x.shape)
    if not 0 < n <= k:
        raise InvalidInputError(f"{what} of shape {(n, k)} was given; 0 < rows <= columns.")
    off = float(xp.max(xp.abs(x @ x.T - xp.eye(n, dtype=x.dtype, device=device(x)))))
    # Eigenvectors are orthonormal to a few roundings; files and conversions may cost digits.
    if off > np.sqrt(SYMMETRY[dtype_name(x)]):
        raise InvalidInputError(
            f"{what} whose rows are not orthonormal was given: U Uᵀ differs from I by {off:.1e}."
        )
