"""The one table of tolerances: what is compared, at which precision, how closely, and why.

A deviation is relative to the size of what is expected: max|actual − expected| / max|expected|
(the largest absolute deviation where all expected entries are zero). Entries that cancel are not
held to more digits than the sums that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InvalidInputError
from ..types import Array


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest relative deviation that is accepted, and the reason for it."""

    relative: float
    reason: str


_SUM64 = "a few sums of fewer than 1e3 terms: 1e3 roundings of 1.1e-16, and room for their order"
_SUM32 = "a few sums of fewer than 1e2 terms: 1e2 roundings of 6e-8, against a float64 reference"
_EXACT = "integers are counted or compared, nothing is rounded"

TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("dense_fisher_rows", "float64"): Tolerance(1e-12, _SUM64),
    ("dense_fisher_rows", "float32"): Tolerance(2e-5, _SUM32 + ", through three layers"),
    ("dense_fisher_diagonal", "float64"): Tolerance(1e-12, _SUM64),
    ("dense_fisher_diagonal", "float32"): Tolerance(4e-5, "twice that of the rows: squares"),
    ("dense_fisher_diagonal_mean", "float64"): Tolerance(1e-12, _SUM64),
    ("dense_fisher_diagonal_mean", "float32"): Tolerance(4e-5, "twice that of the rows: squares"),
    ("lowrank_products", "float64"): Tolerance(1e-13, "one product and one short sum"),
    ("lowrank_products", "float32"): Tolerance(5e-6, "one product and one short sum"),
    ("lowrank_pullback", "float64"): Tolerance(1e-13, "two products"),
    ("lowrank_pullback", "float32"): Tolerance(5e-6, "two products"),
    ("lowrank_line", "float64"): Tolerance(1e-13, "one product and one short sum"),
    ("lowrank_line", "float32"): Tolerance(5e-6, "one product and one short sum"),
    ("nnls_gram", "float64"): Tolerance(1e-10, "roundings grow with the condition of H (< 1e4)"),
    ("nnls_gram", "float32"): Tolerance(5e-4, "roundings grow with the condition of H (< 1e4)"),
    ("sparse_products", "float64"): Tolerance(1e-13, "one short sum"),
    ("sparse_products", "float32"): Tolerance(5e-6, "one short sum"),
    ("sparse_pullback", "float64"): Tolerance(1e-13, "one short sum"),
    ("sparse_pullback", "float32"): Tolerance(5e-6, "one short sum"),
    ("merge_linear", "float64"): Tolerance(1e-14, "sums of at most 20 terms"),
    ("merge_linear", "float32"): Tolerance(3e-7, "sums in float64, rounded once to float32"),
    ("merge_diagonal", "float64"): Tolerance(1e-14, "sums of at most 20 terms, one quotient"),
    ("merge_diagonal", "float32"): Tolerance(3e-7, "sums in float64, rounded once to float32"),
    ("zonotope_support", "float64"): Tolerance(1e-13, "products, and sums of positive terms"),
    ("zonotope_support", "float32"): Tolerance(5e-6, "products, and sums of positive terms"),
    ("sign_patterns", "float64"): Tolerance(0.0, _EXACT),
    ("sign_patterns", "float32"): Tolerance(0.0, _EXACT),
    ("sweep_chambers", "float64"): Tolerance(1e-9, "solves of small systems; signs are exact"),
    ("sweep_chambers", "float32"): Tolerance(1e-5, "the clearance is rounded; signs are exact"),
    ("chambers_at", "float64"): Tolerance(1e-9, "as sweep_chambers"),
    ("chambers_at", "float32"): Tolerance(1e-5, "as sweep_chambers"),
    ("split_chambers", "float64"): Tolerance(1e-9, "small least squares; answers are exact"),
    ("split_chambers", "float32"): Tolerance(1e-5, "witnesses are rounded; answers are exact"),
    ("vertex_programs", "float64"): Tolerance(1e-6, "condition of H (< 1e6) times its roundings"),
    ("vertex_programs", "float32"): Tolerance(2e-5, "solved in float64, rounded at the end"),
    ("neighbour_programs", "float64"): Tolerance(1e-6, "as vertex_programs"),
    ("neighbour_programs", "float32"): Tolerance(2e-5, "as vertex_programs"),
    # Purposes beside the kernels, for tests of any part.
    ("finite_differences", "float64"): Tolerance(
        1e-6, "central differences with a step of 1e-5: error 1e-10 / 1e-5 and h² f'''"
    ),
    ("identity", "float64"): Tolerance(1e-10, "two ways to one number through 1e4 roundings"),
    ("identity", "float32"): Tolerance(1e-4, "two ways to one number through 1e3 roundings"),
    ("gram_identity", "float64"): Tolerance(
        1e-10, "‖X − Y‖² expanded: cancellation costs the square of the relative misfit"
    ),
    ("diagonal_identity", "float64"): Tolerance(1e-12, "the same squares, added in another order"),
    ("float32_path", "float32"): Tolerance(
        1e-3, "an iteration of tens of float32 steps against the float64 one"
    ),
    ("devices", "float64"): Tolerance(1e-12, "the same code on CPU and GPU: order of sums"),
    ("devices", "float32"): Tolerance(5e-5, "the same code on CPU and GPU: order of sums"),
}


def tolerance(purpose: str, dtype: str = "float64") -> Tolerance:
    """The entry of the table for a kernel or a purpose.

    Raises
    ------
    InvalidInputError
        If there is none; the message lists the purposes.

    Examples
    --------
    >>> tolerance("finite_differences").relative
    1e-06
    """
    if (purpose, dtype) not in TOLERANCES:
        known = ", ".join(sorted({p for p, d in TOLERANCES if d == dtype}))
        raise InvalidInputError(
            f"There is no tolerance for {purpose!r} in {dtype}; there are: {known}. "
            "Use one of these, or add an entry with its reason."
        )
    return TOLERANCES[purpose, dtype]


def deviation(actual: Array, expected: Array) -> float:
    """max|actual − expected| / max|expected|; infinite where shapes differ or entries are NaN.

    Examples
    --------
    >>> deviation(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    0.2
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        return float("inf")
    largest = float(np.abs(a - b).max(initial=0.0))
    scale = float(np.abs(b).max(initial=0.0))
    return largest / scale if scale > 0 else largest
