"""What the structures share: checks of arrays, selections of axes, defaults by algebra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from ...backend.guard import dtype_name
from ...errors import ArrayTypeError, InvalidInputError
from ...types import Array, IntArray
from .protocol import DAMPING_MODES, DENSE_LIMIT, DampingMode

if TYPE_CHECKING:
    from .protocol import Precision

# Factors come from sums in their own dtype or wider, whose two halves differ by roundings only.
SYMMETRY = {"float64": 1e-9, "float32": 1e-4}

Selection = tuple[IntArray | None, ...]
"""Indices taken of every axis, in order; ``None`` for all of them."""


class Structure:
    """Base of the structures: what follows from ``apply``, ``diagonal`` and a shape alone."""

    __slots__ = ()
    kind: ClassVar[str] = ""

    if TYPE_CHECKING:
        # Not there at run time: a dataclass would take it for the default of a field.
        @property
        def shape(self) -> tuple[int, ...]:
            """Shape of the displacements."""
            raise NotImplementedError

    @property
    def size(self) -> int:
        """Number of parameters d."""
        return prod(self.shape)

    def apply(self, d: Array) -> Array:
        """P D for D (..., *shape)."""
        raise NotImplementedError

    def diagonal(self) -> Array:
        """The entries P_jj (*shape)."""
        raise NotImplementedError

    def astype(self, dtype: str) -> Precision:
        """The same in "float32" or "float64"."""
        raise NotImplementedError

    def trace(self) -> float:
        """Σ_j P_jj."""
        diagonal = self.diagonal()
        return float(array_namespace(diagonal).sum(diagonal))

    def quad(self, d: Array) -> Array:
        """Dᵀ P D (...) for D (..., *shape)."""
        xp = array_namespace(d)
        product = d * self.apply(d)
        lead = tuple(d.shape[: d.ndim - len(self.shape)])
        return xp.sum(xp.reshape(product, (*lead, self.size)), axis=-1)

    def scaled(self, factor: float) -> Precision:
        """``factor`` · P: of the same structure for factors ≥ 0, else a :class:`Scaled` wrapper.

        Raises
        ------
        InvalidInputError
            If the factor is not finite.
        """
        if not isfinite(factor):
            raise InvalidInputError(f"factor={factor} was given; a finite number is accepted.")
        if factor < 0:
            from .wrappers import Scaled

            return Scaled(self, float(factor))
        return self._scaled(float(factor))

    def damped(self, rho: float, mode: DampingMode = "absolute") -> Precision:
        """P with ρ ≥ 0 added to its spectrum.

        Parameters
        ----------
        rho : float
        mode : {"absolute", "relative_trace", "factored"}
            ``absolute``: P + ρI. ``relative_trace``: P + ρ (tr P / d) I. ``factored``: a Kronecker
            product stays one, (B + √ρ/π I) ⊗ (A + π√ρ I) with π² = (tr A / i) / (tr B / o), which
            is ⪰ P + ρI; a structure that is no product of two factors takes ρ as with
            ``absolute``.

        Raises
        ------
        InvalidInputError
            Negative or not finite ρ, or another mode.
        """
        if mode not in DAMPING_MODES:
            raise InvalidInputError(
                f"mode={mode!r} was given; accepted: {', '.join(DAMPING_MODES)}."
            )
        if not (isfinite(rho) and rho >= 0):
            raise InvalidInputError(f"rho={rho} was given; a finite number >= 0 is accepted.")
        if rho == 0:
            return self
        if mode == "factored":
            return self._damped_factors(float(rho))
        if mode == "relative_trace":
            rho = float(rho) * self.trace() / max(1, self.size)
        return self._damped(float(rho))

    def permuted(self, perms: Mapping[int, Sequence[int]]) -> Precision:
        """The precision P' of permuted parameters: P' (D in the new order) = (P D) in that order.

        Parameters
        ----------
        perms : mapping of axis to order
            New position j of axis k holds what was at ``perms[k][j]``; other axes stay.

        Raises
        ------
        InvalidInputError
            If an axis does not exist or an order is no permutation of it.
        """
        chosen: list[IntArray | None] = [None] * len(self.shape)
        for axis, order in perms.items():
            if not 0 <= axis < len(self.shape):
                raise InvalidInputError(
                    f"A permutation of axis {axis} was given; this precision has the shape "
                    f"{self.shape}."
                )
            index = np.asarray(order)
            n = self.shape[axis]
            if index.shape != (n,) or not np.array_equal(np.sort(index), np.arange(n)):
                raise InvalidInputError(
                    f"The order of axis {axis} is no permutation of its {n} positions."
                )
            chosen[axis] = index.astype(np.int64)
        return self._selected(tuple(chosen))

    def restricted(self, slices: Sequence[Any]) -> Precision:
        """The principal submatrix on the parameters ``D[slices]``.

        Parameters
        ----------
        slices : sequence of slice, indices or None
            One an axis; missing ones and ``None`` keep their axis whole.

        Raises
        ------
        InvalidInputError
            Too many, indices that repeat or do not exist, or nothing left.
        """
        if isinstance(slices, slice) or len(slices) > len(self.shape):
            raise InvalidInputError(
                f"slices={slices!r} was given; a sequence of at most {len(self.shape)} slices or "
                "index lists is accepted."
            )
        chosen: list[IntArray | None] = [None] * len(self.shape)
        for axis, part in enumerate(slices):
            n = self.shape[axis]
            if part is None:
                continue
            index = np.arange(n)[part] if isinstance(part, slice) else np.asarray(part)
            if index.dtype == bool and index.shape == (n,):
                index = np.flatnonzero(index)
            fits = index.ndim == 1 and len(index) and index.dtype.kind in "iu"
            if (
                not fits
                or index.min() < 0
                or index.max() >= n
                or len(np.unique(index)) < len(index)
            ):
                raise InvalidInputError(
                    f"The part of axis {axis} is no list of different positions in 0..{n - 1}."
                )
            chosen[axis] = index.astype(np.int64)
        return self._selected(tuple(chosen))

    def to_dense(self, limit: int = DENSE_LIMIT) -> Array:
        """P (d, d), row-major over ``shape``.

        Raises
        ------
        InvalidInputError
            If d > ``limit``.
        """
        d = self.size
        if d > limit:
            raise InvalidInputError(
                f"A dense matrix of a {self.kind} precision over {d} parameters was asked for "
                f"({8 * d * d / 2**30:.1f} GiB); at most limit={limit} are taken. Use apply, or "
                "raise limit."
            )
        like = self._example()
        xp = array_namespace(like)
        eye = xp.eye(d, dtype=like.dtype, device=device(like))
        return xp.reshape(self.apply(xp.reshape(eye, (d, *self.shape))), (d, d))

    def is_psd(self, tol: float = 0.0) -> bool:
        """Whether no eigenvalue is below −tol times the largest; from the dense matrix."""
        return matrix_is_psd(self.to_dense(), tol)

    def _example(self) -> Array:
        """An array of the library, dtype and device of this precision."""
        return np.zeros(())

    def _scaled(self, factor: float) -> Precision:
        from .wrappers import Scaled

        return Scaled(self, factor)

    def _damped(self, rho: float) -> Precision:
        from .coordinatewise import Isotropic
        from .wrappers import Sum

        return Sum((self, Isotropic(rho, self.shape)))

    def _damped_factors(self, rho: float) -> Precision:
        return self._damped(rho)

    def _selected(self, chosen: Selection) -> Precision:
        raise NotImplementedError

    def _taken(self, d: Array, own: Array | None) -> tuple[Array, Any, Any]:
        """``d``, an own array and their namespace, in one dtype.

        Raises
        ------
        InvalidInputError, ArrayTypeError
            Another shape, no array, or an array of another library.
        """
        k = len(self.shape)
        shape = tuple(getattr(d, "shape", ()))
        if not is_array_api_obj(d) or len(shape) < k or shape[len(shape) - k :] != self.shape:
            raise InvalidInputError(
                f"A {type(d).__name__} of shape {shape} was given to a {self.kind} precision; an "
                f"array of shape (..., {', '.join(map(str, self.shape))}) is taken."
            )
        if own is None:
            return d, None, array_namespace(d)
        try:
            xp = array_namespace(d, own)
        except TypeError:
            raise ArrayTypeError(
                f"A {type(d).__module__}.{type(d).__name__} was given to a precision of "
                f"{type(own).__module__} arrays; convert one of them."
            ) from None
        given: Any = d
        if given.dtype != own.dtype and "float" in str(own.dtype):
            wider = xp.result_type(given.dtype, own.dtype)
            given, own = xp.astype(given, wider), xp.astype(own, wider)
        return given, own, xp


def cast(x: Array, dtype: str) -> Array:
    """``x`` in float32 or float64.

    Raises
    ------
    InvalidInputError
        For another dtype.
    """
    check_dtype(dtype)
    xp = array_namespace(x)
    return xp.astype(x, getattr(xp, dtype))


def check_dtype(dtype: str) -> None:
    """Refuse what is neither "float32" nor "float64"."""
    if dtype not in SYMMETRY:
        raise InvalidInputError(f"dtype={dtype!r} was given; 'float32' or 'float64' is accepted.")


def check_array(what: str, x: Array, axes: int | None = None) -> Any:
    """The namespace of a finite float32 or float64 array.

    Raises
    ------
    InvalidInputError
        Anything else.
    """
    xp = floating(what, x)
    if axes is not None and x.ndim != axes:
        raise InvalidInputError(
            f"{what} of shape {tuple(x.shape)} was given; {axes} axes are accepted."
        )
    if not bool(xp.all(xp.isfinite(x))):
        raise InvalidInputError(
            f"{what} with entries that are not finite was given; finite numbers are accepted. "
            "Check the model for NaN on this data."
        )
    return xp


def check_non_negative(what: str, x: Array) -> None:
    """Refuse NaN, infinite and negative entries.

    Raises
    ------
    InvalidInputError
        With how many there are and where the first is.
    """
    xp = floating(what, x)
    # NaN fails the first comparison; nothing of x's size is made where all is well.
    if not prod(x.shape) or (float(xp.min(x)) >= 0 and isfinite(float(xp.max(x)))):
        return
    bad = ~xp.isfinite(x) | (x < 0)
    if bool(xp.any(bad)):
        flags = np.asarray(bad.cpu() if hasattr(bad, "cpu") else bad)
        where = tuple(int(i) for i in np.argwhere(flags)[0])
        raise InvalidInputError(
            f"{what} with {int(flags.sum())} entries that are negative or not finite was given, "
            f"the first {float(x[where])} at {where}; entries >= 0 are accepted. Check the model "
            "for NaN on this data."
        )


def floating(what: str, x: Array) -> Any:
    """The namespace of a float32 or float64 array, whatever its entries."""
    if not is_array_api_obj(x) or dtype_name(x) not in SYMMETRY:
        kind = dtype_name(x) if is_array_api_obj(x) else type(x).__name__
        raise InvalidInputError(
            f"{what} of {kind} was given; a float32 or float64 array is accepted."
        )
    return array_namespace(x)


def check_symmetric(what: str, x: Array) -> None:
    """Refuse what is no finite symmetric matrix with a non-negative diagonal.

    Raises
    ------
    InvalidInputError
    """
    xp = check_array(what, x, 2)
    if x.shape[0] != x.shape[1] or x.shape[0] == 0:
        raise InvalidInputError(
            f"{what} of shape {tuple(x.shape)} was given; a square matrix is accepted."
        )
    scale = float(xp.max(xp.abs(x)))
    skew = float(xp.max(xp.abs(x - x.T)))
    if skew > SYMMETRY[dtype_name(x)] * scale:
        raise InvalidInputError(
            f"{what} is not symmetric: its halves differ by {skew:.1e}, its largest entry is "
            f"{scale:.1e}. Give (X + Xᵀ)/2."
        )
    lowest = float(xp.min(xp.linalg.diagonal(x)))
    if lowest < 0:
        raise InvalidInputError(
            f"{what} with {lowest} on its diagonal was given; entries >= 0 are accepted there."
        )


def check_extents(what: str, shape: Any) -> None:
    """Refuse what is no tuple of extents ≥ 0."""
    fits = isinstance(shape, tuple) and all(
        isinstance(s, int) and not isinstance(s, bool) and 0 <= s < 2**40 for s in shape
    )
    if not fits:
        raise InvalidInputError(f"{what} {shape!r} was given; a tuple of extents is accepted.")


def matrix_is_psd(x: Array, tol: float) -> bool:
    """Whether λ_min ≥ −tol·λ_max, but for the roundings of the eigenvalues themselves."""
    xp = array_namespace(x)
    values = xp.linalg.eigvalsh((x + x.T) / 2)
    largest = float(xp.max(xp.abs(values)))
    rounding = float(xp.finfo(x.dtype).eps) * int(x.shape[0])
    return float(xp.min(values)) >= -(tol + rounding) * largest


def take(x: Array, index: IntArray | None, axis: int) -> Array:
    """``x`` at the indices along one axis; all of it for ``None``."""
    if index is None:
        return x
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(index, device=device(x)), axis=axis)


def take_all(x: Array, chosen: Selection, first: int = 0) -> Array:
    """``x`` at the chosen indices of the axes ``first``, ``first`` + 1, ..."""
    for axis, index in enumerate(chosen):
        x = take(x, index, first + axis)
    return x


def selected_shape(shape: tuple[int, ...], chosen: Selection) -> tuple[int, ...]:
    """The shape after a selection."""
    return tuple(n if c is None else len(c) for n, c in zip(shape, chosen, strict=True))


def flat_indices(shape: tuple[int, ...], chosen: Selection) -> IntArray | None:
    """Row-major positions of the selected entries; ``None`` for all."""
    if all(c is None for c in chosen):
        return None
    parts = [np.arange(n) if c is None else c for n, c in zip(shape, chosen, strict=True)]
    grid = np.meshgrid(*parts, indexing="ij")
    return np.asarray(np.ravel_multi_index(tuple(g.ravel() for g in grid), shape), dtype=np.int64)
