"""What pulls a merge beside its sources: an anchor with a precision, and damping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..errors import InvalidInputError
from ..fisher.structures.protocol import DAMPING_MODES, DampingMode, Precision


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """The term w (θ − θ_0)ᵀ R (θ − θ_0) of the objective.

    Attributes
    ----------
    params : model or mapping of arrays
        θ_0: often the common pre-trained model. Where the sum of all precisions is singular, the
        merge stays at θ_0 in the directions that nothing determines.
    precision : float or mapping of str to Precision
        R: a number ρ for ρI, or one precision a site.
    weight : float
        w, of either sign as long as the sum of all precisions stays positive: task arithmetic with
        Σα > 1 has the weight 1 − Σα.

    Raises
    ------
    InvalidInputError
        A number that is negative or not finite.
    """

    params: Any
    precision: float | Mapping[str, Precision] = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        p = self.precision
        number = isinstance(p, (int, float)) and not isinstance(p, bool)
        if not isinstance(p, Mapping) and not (number and isfinite(p) and p >= 0):
            raise InvalidInputError(
                f"An anchor precision of {p!r} was given; a finite number >= 0 or a mapping from "
                "sites to precisions is accepted."
            )
        if not isfinite(self.weight):
            raise InvalidInputError(
                f"An anchor weight of {self.weight} was given; finite numbers are accepted."
            )


@dataclass(frozen=True, slots=True)
class Damping:
    """ρ added to the spectrum of the summed precision.

    Attributes
    ----------
    rho : float
        ρ ≥ 0.
    mode : {"absolute", "relative_trace", "factored"}
        ``absolute``: the term ρ‖θ − c‖², with c the anchor, else the weighted mean of the sources.
        ``relative_trace``: the same with ρ times the mean of the summed precision's diagonal on
        each site, so that ρ has no unit. ``factored``: every source's Kronecker factors are damped,
        which keeps the closed form for two models; other structures take ρ on their own source.

    Raises
    ------
    InvalidInputError
        Negative or not finite ρ, or another mode.
    """

    rho: float
    mode: DampingMode = "relative_trace"

    def __post_init__(self) -> None:
        if self.mode not in DAMPING_MODES:
            raise InvalidInputError(
                f"damping mode {self.mode!r} was given; accepted: {', '.join(DAMPING_MODES)}."
            )
        number = isinstance(self.rho, (int, float)) and not isinstance(self.rho, bool)
        if not (number and isfinite(self.rho) and self.rho >= 0):
            raise InvalidInputError(
                f"damping {self.rho!r} was given; a finite number >= 0 is accepted."
            )

    @classmethod
    def of(cls, given: Damping | float | tuple[float, DampingMode] | None) -> Damping:
        """From a damping, a number (absolute), a pair (ρ, mode), or None (ρ = 0).

        Examples
        --------
        >>> Damping.of((1e-3, "relative_trace"))
        Damping(rho=0.001, mode='relative_trace')
        """
        if isinstance(given, Damping):
            return given
        if given is None:
            return cls(0.0, "absolute")
        if isinstance(given, tuple) and len(given) == 2:
            return cls(*given)
        return cls(given, "absolute")  # type: ignore[arg-type]
