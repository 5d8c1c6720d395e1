"""Options of the factorizations: frozen values, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InvalidInputError

SOLVERS = ("pals", "mu-gd", "stiefel")
DIAGONAL_SOLVERS = ("hals", "mu")
STARTS = ("nndsvd", "random")
LOW_RANK_STARTS = ("auto", "anchor", "random", "gevd")
COMPRESSIONS = ("auto", "gram", "projected gram", "none")


@dataclass(frozen=True, slots=True)
class LowRankNPEFF:
    """F_i ≈ Σ_k W_ik g_k g_kᵀ with W ≥ 0: low-rank non-negative per-example Fisher factorization.

    Attributes
    ----------
    n_components : int
        r.
    solver : {"pals", "mu-gd", "stiefel"}
        "pals": preconditioned alternating least squares with exact line searches in a growing
        subspace; no step size. "mu-gd": multiplicative updates of W and plain gradient descent
        on G with a constant step, the baseline of the paper's code. "stiefel": orthonormal
        components, GGᵀ = I, by Cayley steps with a monotone step rule.
    normalize : bool
        Divide each Fisher by its Frobenius norm, so that every example counts alike.
    n_starts : int
        ("pals", "stiefel") Starts tried briefly, the best of which is continued: anchors and
        random ones in turn. "pals" ends them early when one led to the components (|cos| ≥ 0.99)
        of the best one before it.
    start : {"auto", "anchor", "random", "gevd"}
        ("pals") "anchor": examples that are nearly a single component, from all examples and from
        random halves; "random": mixtures of all rows; "auto": the two in turn; "gevd": generalised
        eigenvectors of two random sums of the Fishers, exact for exact data of at most as many
        components as dimensions.
    max_steps : int
        ("pals") Most refinements of the subspace after the starts; ("mu-gd") joint steps;
        ("stiefel") windows of 16 steps; with ``batch_examples``, passes over the data.
    tol : float
        ("pals") Converged when the relative gradient ‖∇_G L‖/‖4(W̃∘B)ᵀA‖ and the relative KKT
        residual of W are below this, or 16 steps lower L by less than ``tol``²·T.
    compress : {"auto", "gram", "projected gram", "none"}
        "gram": replace A by Â (h, d) with ÂÂᵀ = AAᵀ first, which changes nothing in the loss;
        "projected gram": project A to ``projection_dim`` columns before that, which keeps inner
        products approximately, and lift the components at the end; "auto": "gram" when there are
        fewer rows than a quarter of the columns, except for "mu-gd". What was done is in
        ``facts["compression"]`` of the result.
    projection_dim : int
        Columns that "projected gram" projects to.
    subspace : bool
        ("pals") Solve in a growing subspace of the row space (exact at every step) instead of
        taking each step with full-size products.
    sweeps : int
        ("pals") Coordinate-descent sweeps over W a step.
    orthogonality : float
        ("pals", "mu-gd") λ ≥ 0 of the penalty λ‖GGᵀ − (2/r)I‖²_F, which is part of the objective
        but not of the loss that is reported.
    batch_examples : int or None
        ("pals") Online mode: steps on so many examples at a time with running sums of WᵀW and
        (W̃∘B)ᵀA, for data of which even the rows projected to the subspace (h × 7r numbers) do not
        fit into memory. Near the whole-data optimum, not at it.
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
    start: str = "auto"
    max_steps: int = 200
    tol: float = 1e-4
    compress: str = "auto"
    projection_dim: int = 2048
    subspace: bool = True
    sweeps: int = 3
    orthogonality: float = 0.0
    batch_examples: int | None = None
    step_size: float = 1e-3
    components_only_steps: int = 100

    references: ClassVar[tuple[str, ...]] = ("arXiv:2310.04649",)

    def __post_init__(self) -> None:
        _check_counts(
            n_components=(self.n_components, 1),
            n_starts=(self.n_starts, 1),
            max_steps=(self.max_steps, 1),
            sweeps=(self.sweeps, 1),
            components_only_steps=(self.components_only_steps, 0),
            projection_dim=(self.projection_dim, 1),
        )
        _check_choice("solver", self.solver, SOLVERS)
        _check_choice("start", self.start, LOW_RANK_STARTS)
        _check_choice("compress", self.compress, COMPRESSIONS)
        _check_at_least_zero(tol=self.tol, orthogonality=self.orthogonality)
        if self.batch_examples is not None:
            _check_counts(batch_examples=(self.batch_examples, 1))
        for name, used in (("orthogonality", self.orthogonality > 0), ("batch_examples",
                           self.batch_examples is not None)):  # fmt: skip
            allowed = ("pals", "mu-gd") if name == "orthogonality" else ("pals",)
            if used and self.solver not in allowed:
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r} was given for solver={self.solver!r}; it is "
                    f"accepted for {' and '.join(allowed)}."
                )
        if not self.step_size > 0.0:
            raise InvalidInputError(
                f"step_size={self.step_size!r} was given; a number > 0 is accepted."
            )


@dataclass(frozen=True, slots=True)
class DiagonalNPEFF:
    """f_i ≈ Σ_k W_ik h_k with W, H ≥ 0: non-negative factorization of diagonal Fishers.

    Attributes
    ----------
    n_components : int
        r.
    solver : {"hals", "mu"}
        "hals": coordinate descent with several sweeps a data product; "mu": multiplicative
        updates.
    normalize : bool
        Divide each f_i by its L2 norm, so that every example counts alike.
    start : {"nndsvd", "random"}
        From the leading singular pairs, or uniform random.
    max_steps : int
        Most steps; a step takes the products XHᵀ and XᵀW.
    tol : float
        Converged when a step lowers L by less than ``tol``·‖X‖².
    sweeps : int
        ("hals") Coordinate-descent sweeps over W and over H a step.
    l1_coefficients, l1_components : float
        λ_W and λ_H: penalties 2λ_W ΣW and 2λ_H ΣH that make the factors sparse.
    sparseness_coefficients, sparseness_components : float or None
        ("hals") Hoyer's sparseness, 0 < s < 1, that every column of W or every row of H is to
        have; instead of the L1 penalty of the same factor.

    Raises
    ------
    InvalidInputError
        If an option is out of range.

    References
    ----------
    Matena & Raffel 2023, arXiv:2310.04649.

    Examples
    --------
    >>> DiagonalNPEFF(8).solver
    'hals'
    """

    n_components: int
    solver: str = "hals"
    normalize: bool = True
    start: str = "nndsvd"
    max_steps: int = 500
    tol: float = 1e-7
    sweeps: int = 4
    l1_coefficients: float = 0.0
    l1_components: float = 0.0
    sparseness_coefficients: float | None = None
    sparseness_components: float | None = None

    references: ClassVar[tuple[str, ...]] = ("arXiv:2310.04649",)

    def __post_init__(self) -> None:
        _check_counts(
            n_components=(self.n_components, 1),
            max_steps=(self.max_steps, 1),
            sweeps=(self.sweeps, 1),
        )
        _check_choice("solver", self.solver, DIAGONAL_SOLVERS)
        _check_choice("start", self.start, STARTS)
        _check_at_least_zero(
            tol=self.tol,
            l1_coefficients=self.l1_coefficients,
            l1_components=self.l1_components,
        )
        for factor in ("coefficients", "components"):
            value = getattr(self, f"sparseness_{factor}")
            if value is None:
                continue
            if not 0.0 < value < 1.0:
                raise InvalidInputError(
                    f"sparseness_{factor}={value!r} was given; None or a number between 0 and 1 "
                    "is accepted."
                )
            if self.solver != "hals" or getattr(self, f"l1_{factor}"):
                raise InvalidInputError(
                    f"sparseness_{factor}={value!r} was given for solver={self.solver!r} and "
                    f"l1_{factor}={getattr(self, f'l1_{factor}')!r}; it is accepted for 'hals' "
                    "without that penalty."
                )


def _check_counts(**given: tuple[int, int]) -> None:
    for name, (number, least) in given.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise InvalidInputError(
                f"{name}={number!r} was given; a whole number >= {least} is accepted."
            )


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InvalidInputError(f"{name}={value!r} was given; accepted: {', '.join(accepted)}.")


def _check_at_least_zero(**given: float) -> None:
    for name, value in given.items():
        if not value >= 0.0:
            raise InvalidInputError(f"{name}={value!r} was given; a number >= 0 is accepted.")
