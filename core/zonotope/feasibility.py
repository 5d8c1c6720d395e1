"""Is a sign pattern feasible? A witness or a Gordan certificate, each checked in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import DegenerateDirection, InfeasiblePattern
from ..types import Array, FloatArray, NumpyArray
from .exact import IntegerRow, as_floats, dependency, dot, gordan, integer_rows
from .pattern import check_generators, check_signs, equilibrate

# Below this residual the pattern is taken as infeasible until exact arithmetic has spoken.
_RESIDUAL = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feasibility:
    """The answer of :func:`decide`, with its proof.

    Attributes
    ----------
    feasible : bool
    witness : array (d,) or None
        w with s_i x_i·w > 0 for all i, checked in exact arithmetic.
    certificate : array (n,) or None
        μ ≥ 0, μ ≠ 0 with Σ μ_i s_i x_i = 0 (Gordan); its support is ``support``.
    exact_certificate : tuple of int
        The same as exact integers on ``support``, for the rows s_i x_i made primitive integers.
    support : tuple of int
        Rows that contradict each other; at most d + 1.
    margin : float
        min_i s_i x_i·w / (‖x_i‖‖w‖), 0 where infeasible. A float64 estimate.
    """

    feasible: bool
    witness: FloatArray | None = None
    certificate: FloatArray | None = None
    exact_certificate: tuple[int, ...] = ()
    support: tuple[int, ...] = ()
    margin: float = 0.0


def decide(generators: Array, signs: Array) -> Feasibility:
    """Decide whether some w has s_i x_i·w > 0 for all i, and prove the answer.

    One non-negative least-squares problem B μ ≈ e, B = [(S X̂)ᵀ; 1ᵀ], e = (0, …, 0, 1): its
    residual ρ is a witness −ρ[:d] with margin ≥ ‖ρ‖², or vanishes and μ is a certificate. Both
    are then checked in integers; where rounding spoils them, the simplex method in rationals
    decides. There is no third answer.

    Parameters
    ----------
    generators : array (n, d)
    signs : array (n,) of −1, +1

    Returns
    -------
    Feasibility

    Raises
    ------
    InvalidInputError
        Generators or signs that are not what they should be.
    """
    x = check_generators(generators)
    s = check_signs(np.asarray(signs)[None], len(x))[0]
    scaled, columns = equilibrate(x)
    return decide_scaled(scaled, columns, s, x)


def decide_scaled(
    scaled: FloatArray, columns: NumpyArray, signs: NumpyArray, x: FloatArray
) -> Feasibility:
    """:func:`decide` for rows that were checked and equilibrated before."""
    rows = scaled * signs[:, None]
    u, mu = _nnls(rows)
    exact: list[IntegerRow] | None = None
    if u is not None:
        answer = _as_witness(rows, columns, u, signs, x)
        if answer is not None:
            return answer
    if mu is not None:
        exact = integer_rows(rows)
        support = [int(i) for i in np.flatnonzero(mu > 1e-9 * mu.max())]
        proof = dependency([exact[i] for i in support]) if len(support) > 1 else None
        if proof is not None and (min(proof) > 0 or max(proof) < 0):
            return _infeasible(len(x), support, [abs(v) for v in proof])
    exact = integer_rows(rows) if exact is None else exact
    feasible, values = gordan(exact)
    if not feasible:
        support = [i for i, v in enumerate(values) if v]
        whole = _whole([values[i] for i in support])
        return _infeasible(len(x), support, whole)
    u = as_floats(values)
    answer = _as_witness(rows, columns, u, signs, x)
    if answer is not None:
        return answer
    # The cone is thinner than float64 can hold: proven feasible, but no float witness exists here.
    return Feasibility(feasible=True, witness=None, margin=0.0)


def _nnls(rows: FloatArray) -> tuple[FloatArray | None, FloatArray | None]:
    from scipy.optimize import nnls

    n, d = rows.shape
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    system = np.vstack([unit.T, np.ones(n)])
    target = np.zeros(d + 1)
    target[d] = 1.0
    try:
        mu, _ = nnls(system, target, maxiter=30 * (n + d))
    except RuntimeError:  # its iteration limit: the exact method decides
        return None, None
    residual = target - system @ mu
    if np.linalg.norm(residual) > _RESIDUAL:
        return -residual[:d], mu
    return None, mu


def _as_witness(
    rows: FloatArray, columns: NumpyArray, u: FloatArray, signs: NumpyArray, x: FloatArray
) -> Feasibility | None:
    """The direction u of the scaled rows as a witness, if its signs are right beyond rounding."""
    products = rows @ u
    slack = np.abs(rows) @ np.abs(u) * (len(u) + 2) * np.finfo(np.float64).eps
    if not (products > slack).all():
        doubtful = np.flatnonzero(~(products > slack))
        (whole,) = integer_rows(u[None])
        if any(dot(row, whole) <= 0 for row in integer_rows(rows[doubtful])):
            return None
    w = np.ldexp(u, -columns + int(columns.max()))
    if not (np.isfinite(w).all() and np.array_equal(w != 0, u != 0)):
        return None
    top = np.abs(x).max(axis=1, keepdims=True)
    lengths = np.linalg.norm(x / top, axis=1)
    unit = w / np.abs(w).max()
    margin = (signs * ((x / top) @ unit) / lengths).min() / np.linalg.norm(unit)
    return Feasibility(feasible=True, witness=w, margin=float(margin))


def _infeasible(n: int, support: Sequence[int], whole: Sequence[int]) -> Feasibility:
    certificate = np.zeros(n)
    certificate[list(support)] = as_floats(list(whole))
    return Feasibility(
        feasible=False,
        certificate=certificate,
        exact_certificate=tuple(whole),
        support=tuple(support),
    )


def _whole(values: Sequence[Fraction]) -> list[int]:
    from .exact import primitive

    return primitive(values)


def verify(generators: Array, signs: Array, answer: Feasibility) -> bool:
    """Whether the proof inside ``answer`` holds, in exact integers and by nothing of the solver."""
    x = check_generators(generators)
    s = check_signs(np.asarray(signs)[None], len(x))[0]
    rows = integer_rows(equilibrate(x)[0] * s[:, None])
    if answer.feasible:
        if answer.witness is None:
            return gordan(rows)[0]
        original = integer_rows(x * s[:, None])
        (w,) = integer_rows(answer.witness[None])
        return all(dot(row, w) > 0 for row in original)
    if len(answer.support) != len(answer.exact_certificate) or not answer.support:
        return False
    if min(answer.exact_certificate) <= 0:
        return False
    chosen = [rows[i] for i in answer.support]
    weights = answer.exact_certificate
    return all(dot(weights, column) == 0 for column in map(list, zip(*chosen, strict=True)))


def witness_of(generators: Array, signs: Array) -> FloatArray:
    """A direction with the given pattern.

    Raises
    ------
    InfeasiblePattern
        Naming the rows that contradict each other.
    DegenerateDirection
        If the pattern is feasible, but so thin that no float64 direction was found.
    """
    answer = decide(generators, signs)
    if not answer.feasible:
        raise InfeasiblePattern(
            f"No direction has this pattern: rows {list(answer.support)}, each times its sign, "
            "have a positive combination that is zero. Change the sign of one of them."
        )
    if answer.witness is None:
        raise DegenerateDirection(
            "The pattern is feasible, but its cone is too thin for a float64 direction. "
            "Rescale the columns of the generators."
        )
    return answer.witness
