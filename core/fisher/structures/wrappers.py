"""Precisions made of others: scaled, added, masked, or known only by their products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, cast as typed

import numpy as np
from array_api_compat import array_namespace, device

from ...errors import InvalidInputError
from ...types import Array
from .base import Selection, Structure, check_dtype, check_extents, selected_shape, take, take_all
from .coordinatewise import Isotropic
from .protocol import Precision


def _check_part(what: str, part: object) -> None:
    if not isinstance(part, Structure):
        raise InvalidInputError(
            f"{what} {type(part).__name__} was given; a precision structure is accepted."
        )


def _example_of(part: Precision) -> Array:
    return typed(Structure, part)._example()


@dataclass(frozen=True, slots=True, eq=False)
class Scaled(Structure):
    """P = c Q, for a structure that cannot take c in, or c < 0 (a negative anchor).

    Attributes
    ----------
    part : Precision
        Q.
    factor : float
        c, of either sign.
    """

    part: Precision
    factor: float
    kind: ClassVar[str] = "scaled"

    def __post_init__(self) -> None:
        _check_part("To be scaled a", self.part)
        if not isfinite(self.factor):
            raise InvalidInputError(f"factor={self.factor} was given; a finite number is accepted.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Q's."""
        return self.part.shape

    def apply(self, d: Array) -> Array:
        """Q D times c."""
        return self.factor * self.part.apply(d)

    def diagonal(self) -> Array:
        """Entries Q_jj times c."""
        return self.factor * self.part.diagonal()

    def trace(self) -> float:
        """The trace of Q times c."""
        return self.factor * self.part.trace()

    def scaled(self, factor: float) -> Precision:
        """One factor for both."""
        return typed(Structure, self.part).scaled(self.factor * factor)

    def astype(self, dtype: str) -> Scaled:
        """The same in another dtype."""
        return Scaled(self.part.astype(dtype), self.factor)

    def is_psd(self, tol: float = 0.0) -> bool:
        """Q's answer for c ≥ 0, else from the dense matrix."""
        if self.factor >= 0:
            return self.part.is_psd(tol)
        return Structure.is_psd(self, tol)

    def _example(self) -> Array:
        return _example_of(self.part)

    def _selected(self, chosen: Selection) -> Scaled:
        return Scaled(typed(Structure, self.part)._selected(chosen), self.factor)


@dataclass(frozen=True, slots=True, eq=False)
class Sum(Structure):
    """P = Σ_k Q_k.

    Attributes
    ----------
    parts : sequence of Precision
        At least one, of one shape.
    """

    parts: Sequence[Precision]
    kind: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise InvalidInputError("A sum of no precisions was given; at least one is accepted.")
        for part in self.parts:
            _check_part("To be added a", part)
        shapes = {p.shape for p in self.parts}
        if len(shapes) > 1:
            raise InvalidInputError(
                f"Precisions of the shapes {sorted(shapes)} were added; one shape is accepted."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The parts'."""
        return self.parts[0].shape

    def apply(self, d: Array) -> Array:
        """Σ Q_k D."""
        out = self.parts[0].apply(d)
        for part in self.parts[1:]:
            out = out + part.apply(d)
        return out

    def diagonal(self) -> Array:
        """Σ diag Q_k."""
        like = self._example()
        xp = array_namespace(like)
        out = xp.zeros(self.shape, dtype=like.dtype, device=device(like))
        for part in self.parts:
            # An isotropic part has no array library of its own.
            out = out + (part.scale if isinstance(part, Isotropic) else part.diagonal())
        return out

    def trace(self) -> float:
        """Σ tr Q_k."""
        return float(sum(p.trace() for p in self.parts))

    def astype(self, dtype: str) -> Sum:
        """The same in another dtype."""
        return Sum([p.astype(dtype) for p in self.parts])

    def is_psd(self, tol: float = 0.0) -> bool:
        """Where every part is; else from the dense matrix."""
        return all(p.is_psd(tol) for p in self.parts) or Structure.is_psd(self, tol)

    def _example(self) -> Array:
        arrays = [_example_of(p) for p in self.parts if not isinstance(p, Isotropic)]
        return arrays[0] if arrays else np.zeros(())

    def _scaled(self, factor: float) -> Sum:
        return Sum([p.scaled(factor) for p in self.parts])

    def _damped(self, rho: float) -> Sum:
        *first, last = self.parts
        if isinstance(last, Isotropic):
            return Sum([*first, last._damped(rho)])
        return Sum([*self.parts, Isotropic(rho, self.shape)])

    def _selected(self, chosen: Selection) -> Sum:
        return Sum([typed(Structure, p)._selected(chosen) for p in self.parts])


@dataclass(frozen=True, slots=True, eq=False)
class Masked(Structure):
    """P = M Q M with M = diag m, m ∈ {0, 1}: coordinates outside the mask carry no weight.

    Attributes
    ----------
    part : Precision
        Q.
    mask : bool array, Q's shape
    """

    part: Precision
    mask: Array
    kind: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        _check_part("To be masked a", self.part)
        shape, dtype = getattr(self.mask, "shape", None), str(getattr(self.mask, "dtype", ""))
        if shape is None or tuple(shape) != self.part.shape or not dtype.endswith("bool"):
            raise InvalidInputError(
                f"A mask of shape {shape} and dtype {dtype} was given; a bool array of shape "
                f"{self.part.shape} is accepted."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Q's."""
        return self.part.shape

    def apply(self, d: Array) -> Array:
        """m∘(Q (m∘D))."""
        d, own, xp = self._taken(d, self.mask)
        mask = xp.astype(own, d.dtype)
        return mask * self.part.apply(mask * d)

    def diagonal(self) -> Array:
        """m∘diag Q."""
        xp = array_namespace(self.mask)
        diagonal = self.part.diagonal()
        if isinstance(self.part, Isotropic):
            return xp.astype(self.mask, xp.float64) * self.part.scale
        return xp.astype(self.mask, diagonal.dtype) * diagonal

    def astype(self, dtype: str) -> Masked:
        """The same in another dtype."""
        return Masked(self.part.astype(dtype), self.mask)

    def is_psd(self, tol: float = 0.0) -> bool:
        """Where Q is; else from the dense matrix."""
        return self.part.is_psd(tol) or Structure.is_psd(self, tol)

    def _example(self) -> Array:
        if isinstance(self.part, Isotropic):
            xp = array_namespace(self.mask)
            return xp.astype(self.mask, xp.float64)
        return _example_of(self.part)

    def _scaled(self, factor: float) -> Masked:
        return Masked(self.part.scaled(factor), self.mask)

    def _selected(self, chosen: Selection) -> Masked:
        part = typed(Structure, self.part)._selected(chosen)
        return Masked(part, take_all(self.mask, chosen))


@dataclass(frozen=True, slots=True, eq=False)
class Implicit(Structure):
    """P known by its products alone, such as a Fisher by one forward and one reverse pass.

    Cannot be written to a file.

    Attributes
    ----------
    product : callable
        D (*shape) → P D (*shape), linear and symmetric.
    shape : tuple of int
    diagonal_of : callable, optional
        Gives diag P; by default products with all d unit vectors (refused above ``DENSE_LIMIT``).
    like : array, optional
        An array of the library, dtype and device of the displacements; NumPy's float64 by default.
    """

    product: Callable[[Array], Array]
    shape: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride]
    diagonal_of: Callable[[], Array] | None = None
    like: Array = None
    kind: ClassVar[str] = "implicit"

    def __post_init__(self) -> None:
        check_extents("The shape", self.shape)
        if not callable(self.product):
            raise InvalidInputError(
                f"product={self.product!r} was given; a function of D that gives P D is accepted."
            )

    def apply(self, d: Array) -> Array:
        """P D, one product for each leading index."""
        d, _, xp = self._taken(d, None)
        lead = tuple(d.shape[: d.ndim - len(self.shape)])
        if not lead:
            return self.product(d)
        each = xp.reshape(d, (-1, *self.shape))
        found = [self.product(each[i, ...]) for i in range(int(each.shape[0]))]
        return xp.reshape(xp.stack(found) if found else each, (*lead, *self.shape))

    def diagonal(self) -> Array:
        """What ``diagonal_of`` gives, else from d products."""
        if self.diagonal_of is not None:
            return self.diagonal_of()
        dense = self.to_dense()
        xp = array_namespace(dense)
        return xp.reshape(xp.linalg.diagonal(dense), self.shape)

    def astype(self, dtype: str) -> Implicit:
        """The same closures, with the dtype of ``to_dense`` changed."""
        check_dtype(dtype)
        like = self._example()
        xp = array_namespace(like)
        return Implicit(
            self.product, self.shape, self.diagonal_of, xp.astype(like, getattr(xp, dtype))
        )

    def _example(self) -> Array:
        return np.zeros(()) if self.like is None else self.like

    def _selected(self, chosen: Selection) -> Implicit:
        full, product, diagonal_of = self.shape, self.product, self.diagonal_of

        def part(d: Array) -> Array:
            return take_all(product(_spread(d, full, chosen)), chosen)

        def diagonal_part() -> Array:
            return take_all(diagonal_of(), chosen) if diagonal_of is not None else None

        return Implicit(
            part,
            selected_shape(full, chosen),
            None if diagonal_of is None else diagonal_part,
            self.like,
        )


def _spread(d: Array, shape: tuple[int, ...], chosen: Selection) -> Array:
    """The array of ``shape`` that holds d at the chosen indices and zero elsewhere."""
    xp = array_namespace(d)
    for axis, index in enumerate(chosen):
        if index is None:
            continue
        # Position len(index) of the extended axis is the zero that all others take.
        place = np.full(shape[axis], len(index), dtype=np.int64)
        place[index] = np.arange(len(index))
        nothing = xp.zeros_like(take(d, np.zeros(1, dtype=np.int64), axis))
        d = take(xp.concat([d, nothing], axis=axis), place, axis)
    return d
