"""Precisions that weigh every coordinate on its own: one number, or one a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import ClassVar

import numpy as np

from ...errors import InvalidInputError
from ...types import Array
from .base import (
    Selection,
    Structure,
    cast,
    check_dtype,
    check_extents,
    check_non_negative,
    selected_shape,
    take_all,
)


@dataclass(frozen=True, slots=True, eq=False)
class Isotropic(Structure):
    """P = c I.

    Attributes
    ----------
    scale : float
        c ≥ 0.
    shape : tuple of int

    Raises
    ------
    InvalidInputError
        NaN, infinite or negative c.
    """

    scale: float
    shape: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride]
    kind: ClassVar[str] = "isotropic"

    def __post_init__(self) -> None:
        check_extents("The shape", self.shape)
        if not (isfinite(self.scale) and self.scale >= 0):
            raise InvalidInputError(
                f"An isotropic precision of {self.scale} was given; a finite number >= 0 is "
                "accepted. Check the model for NaN on this data."
            )

    def apply(self, d: Array) -> Array:
        """The displacement times c."""
        return self.scale * self._taken(d, None)[0]

    def diagonal(self) -> Array:
        """The number c everywhere, a float64 NumPy array."""
        return np.full(self.shape, self.scale)

    def trace(self) -> float:
        """The number of parameters times c."""
        return self.scale * float(prod(self.shape))

    def astype(self, dtype: str) -> Isotropic:
        """Itself: one number has no dtype."""
        check_dtype(dtype)
        return self

    def is_psd(self, tol: float = 0.0) -> bool:
        """Always: c ≥ 0."""
        return True

    def _scaled(self, factor: float) -> Isotropic:
        return Isotropic(self.scale * factor, self.shape)

    def _damped(self, rho: float) -> Isotropic:
        return Isotropic(self.scale + rho, self.shape)

    def _selected(self, chosen: Selection) -> Isotropic:
        return Isotropic(self.scale, selected_shape(self.shape, chosen))


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal(Structure):
    """P = diag f.

    Attributes
    ----------
    values : array, the site's shape
        f ≥ 0.

    Raises
    ------
    InvalidInputError
        NaN, infinite or negative entries.
    """

    values: Array
    kind: ClassVar[str] = "diagonal"

    def __post_init__(self) -> None:
        check_non_negative("A diagonal precision", self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of f."""
        return tuple(self.values.shape)

    def apply(self, d: Array) -> Array:
        """f∘D."""
        d, own, _ = self._taken(d, self.values)
        return own * d

    def diagonal(self) -> Array:
        """The array f itself."""
        return self.values

    def astype(self, dtype: str) -> Diagonal:
        """The same in another dtype."""
        return Diagonal(cast(self.values, dtype))

    def is_psd(self, tol: float = 0.0) -> bool:
        """Always: f ≥ 0."""
        return True

    def _example(self) -> Array:
        return self.values

    def _scaled(self, factor: float) -> Diagonal:
        return Diagonal(self.values * factor)

    def _damped(self, rho: float) -> Diagonal:
        return Diagonal(self.values + rho)

    def _selected(self, chosen: Selection) -> Diagonal:
        return Diagonal(take_all(self.values, chosen))
