"""The solvers and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Auto:
    """The table below; each site's report says which row it took and why.

    ===========================================  ==========================================
    sum of precisions                            solver
    ===========================================  ==========================================
    right side 0 (one source, equal sources)     none is needed: θ = c, bit for bit
    isotropic, diagonal                          closed form
    Gram (+ isotropic)                           Cholesky of (i, i)
    one Kronecker or EKFAC (+ isotropic)         closed form in its eigenbasis
    two Kronecker, one positive definite         two generalised eigenproblems
    low rank + diagonal > 0, rank < d            Woodbury
    others of d ≤ 1024, not implicit             Cholesky of (d, d)
    others                                       PCG; dense again if it fails and d ≤ 4096
    ===========================================  ==========================================

    Cholesky falls back to the pseudo-inverse (minimum norm in d) where the sum is singular.
    """

    name: ClassVar[str] = "auto"


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """Coordinates or eigenvectors one by one; refuses sums that have no such form."""

    name: ClassVar[str] = "closed_form"


@dataclass(frozen=True, slots=True)
class Cholesky:
    """A Cholesky factor of (i, i) for Gram sums, else of (d, d); pseudo-inverse when singular."""

    name: ClassVar[str] = "cholesky"


@dataclass(frozen=True, slots=True)
class TwoModelKronecker:
    """Two Kronecker precisions by two generalised eigenproblems."""

    name: ClassVar[str] = "kronecker"


@dataclass(frozen=True, slots=True)
class Woodbury:
    """Diagonal plus low rank through a system of the rank's size."""

    name: ClassVar[str] = "woodbury"


@dataclass(frozen=True, slots=True, kw_only=True)
class PCG:
    """Conjugate gradients with the diagonal of the sum as preconditioner.

    Attributes
    ----------
    tol : float
        Stop at ‖A d − r‖ ≤ tol ‖r‖.
    max_steps : int
    early_stop : bool
        Reaching ``max_steps`` first is wanted (as a regulariser, MaTS): no error, and the report
        says ``converged=False``.
    initial : mapping of str to array, optional
        First θ by tensor name; by default the centre c (anchor, or weighted mean).
    precondition : bool
        With the diagonal of the sum, or not at all.

    Raises
    ------
    InvalidInputError
        Options out of range.
    """

    tol: float = 1e-10
    max_steps: int = 2000
    early_stop: bool = False
    initial: Mapping[str, Any] | None = None
    precondition: bool = True
    name: ClassVar[str] = "pcg"

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise InvalidInputError(f"tol={self.tol} was given; a number in (0, 1) is accepted.")
        if isinstance(self.max_steps, bool) or self.max_steps < 1:
            raise InvalidInputError(
                f"max_steps={self.max_steps} was given; a whole number >= 1 is accepted."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cvxpy:
    """A convex program by cvxpy: the reference for small groups, and for constraints.

    Attributes
    ----------
    solver : str
        Of cvxpy ("CLARABEL", "SCS").
    box : (float, float), optional
        Bounds of every entry of θ.
    trust_region : float, optional
        Δ in √(dᵀ P d) ≤ Δ, with P the summed precision and d = θ − c.
    hull : bool
        θ = Σ w_i θ_i with w in the simplex: weights of the group by its own precision.
    limit : int
        Largest group size d.

    Raises
    ------
    InvalidInputError
        Options out of range.
    """

    solver: str = "CLARABEL"
    box: tuple[float, float] | None = None
    trust_region: float | None = None
    hull: bool = False
    limit: int = 2000
    name: ClassVar[str] = "cvxpy"

    def __post_init__(self) -> None:
        if self.box is not None and not self.box[0] <= self.box[1]:
            raise InvalidInputError(f"box={self.box} was given; (low, high) with low <= high.")
        if self.trust_region is not None and not self.trust_region > 0:
            raise InvalidInputError(
                f"trust_region={self.trust_region} was given; a number > 0 is accepted."
            )

    @property
    def constrained(self) -> bool:
        """Whether the answer need not solve the normal equations."""
        return self.hull or self.box is not None or self.trust_region is not None


Solver = Auto | ClosedForm | Cholesky | TwoModelKronecker | Woodbury | PCG | Cvxpy
_BY_NAME: dict[str, type[Solver]] = {
    s.name: s for s in (Auto, ClosedForm, Cholesky, TwoModelKronecker, Woodbury, PCG, Cvxpy)
}


def solver_of(given: Solver | str) -> Solver:
    """A solver from its options object or its name.

    Raises
    ------
    InvalidInputError
        For another name.

    Examples
    --------
    >>> solver_of("pcg").max_steps
    2000
    """
    if isinstance(given, str):
        if given not in _BY_NAME:
            raise InvalidInputError(
                f"solver={given!r} was given; accepted: {', '.join(_BY_NAME)}, or an options "
                "object such as PCG(max_steps=100)."
            )
        return _BY_NAME[given]()
    if not isinstance(given, tuple(_BY_NAME.values())):
        raise InvalidInputError(
            f"solver={given!r} was given; a name ({', '.join(_BY_NAME)}) or an options object."
        )
    return given
