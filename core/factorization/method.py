"""Options of the factorizations: frozen values, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InvalidInputError

SOLVERS = ("pals", "mu-gd")


@dataclass(frozen=True, slots=True)
class LowRankNPEFF:
    """F_i ≈ Σ_k W_ik g_k g_kᵀ with W ≥ 0: low-rank non-negative per-example Fisher factorization.

    Attributes
    ----------
    n_components : int
        r.
    solver : {"pals", "mu-gd"}
        "pals": preconditioned alternating least squares with exact line searches in a growing
        subspace; no step size. "mu-gd": multiplicative updates of W and plain gradient descent
        on G with a constant step, the baseline of the paper's code.
    normalize : bool
        Divide each Fisher by its Frobenius norm, so that every example counts alike.
    n_starts : int
        ("pals") Starts tried briefly, the best of which is continued: anchors and random ones
        in turn.
    max_steps : int
        ("pals") Most refinements of the subspace after the starts; ("mu-gd") joint steps.
    tol : float
        ("pals") Converged when the relative gradient ‖∇_G L‖/‖4(W̃∘B)ᵀA‖ and the relative KKT
        residual of W are below this, or 16 steps lower L by less than ``tol``²·T.
    compress : {"auto", "gram", "none"}
        "gram": replace A by Â (h, d) with ÂÂᵀ = AAᵀ first, which changes nothing in the loss;
        "auto" does so for "pals" when there are fewer rows than a quarter of the columns.
    subspace : bool
        ("pals") Solve in a growing subspace of the row space (exact at every step) instead of
        taking each step with full-size products.
    sweeps : int
        ("pals") Coordinate-descent sweeps over W a step.
    step_size, components_only_steps : float, int
        ("mu-gd") η, and how many gradient steps on G come before the joint steps.

    Raises
    ------
    InvalidInputError
        If an option is out of range.

    References
    ----------
    Matena & Raffel 2023, "NPEFF: Non-Negative Per-Example Fisher Factorization",
    arXiv:2310.04649.

    Examples
    --------
    >>> LowRankNPEFF(8).solver
    'pals'
    """

    n_components: int
    solver: str = "pals"
    normalize: bool = True
    n_starts: int = 4
    max_steps: int = 200
    tol: float = 1e-4
    compress: str = "auto"
    subspace: bool = True
    sweeps: int = 3
    step_size: float = 1e-3
    components_only_steps: int = 100

    references: ClassVar[tuple[str, ...]] = ("arXiv:2310.04649",)

    def __post_init__(self) -> None:
        whole = {
            "n_components": (self.n_components, 1),
            "n_starts": (self.n_starts, 1),
            "max_steps": (self.max_steps, 1),
            "sweeps": (self.sweeps, 1),
            "components_only_steps": (self.components_only_steps, 0),
        }
        for name, (number, least) in whole.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise InvalidInputError(
                    f"{name}={number!r} was given; a whole number >= {least} is accepted."
                )
        for name, value, accepted in (
            ("solver", self.solver, SOLVERS),
            ("compress", self.compress, ("auto", "gram", "none")),
        ):
            if value not in accepted:
                raise InvalidInputError(
                    f"{name}={value!r} was given; accepted: {', '.join(accepted)}."
                )
        if not self.tol >= 0.0:
            raise InvalidInputError(f"tol={self.tol!r} was given; a number >= 0 is accepted.")
        if not self.step_size > 0.0:
            raise InvalidInputError(
                f"step_size={self.step_size!r} was given; a number > 0 is accepted."
            )
