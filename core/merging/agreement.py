"""Do the models agree? The value of the quadratic at its minimum is a χ² statistic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InvalidInputError
from ..fisher.structures import Precision
from .problem import MergeProblem
from .solving import solve


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A test of whether models estimate one and the same θ.

    Attributes
    ----------
    statistic : float
        Σ_i (θ* − θ_i)ᵀ P_i (θ* − θ_i).
    dof : float
        Degrees of freedom: Σ_i rank P_i − rank Σ_i P_i.
    p_value : float
        P(χ²_dof ≥ statistic). Small: the models differ by more than their precisions allow.
    by_site : dict of str to (statistic, dof, p_value)
    """

    statistic: float
    dof: float
    p_value: float
    by_site: dict[str, tuple[float, float, float]]


def agreement_test(problem: MergeProblem) -> Agreement:
    """Test that θ_i ~ N(θ, P_i⁻¹) with one common θ.

    Parameters
    ----------
    problem : MergeProblem
        Without anchor and damping. ``λ_i P_i`` must be the precision of model i itself: give
        ``weights=[1, …]`` and total Fishers (the mean over examples times their number).

    Returns
    -------
    Agreement

    Raises
    ------
    InvalidInputError
        With an anchor or damping, or a precision whose rank cannot be found (implicit, or a sum
        beyond 4096 parameters).

    Notes
    -----
    For least squares with known noise the statistic is exactly χ² when the models agree; for
    networks it is so to the order of the Laplace approximation. Ranks count eigenvalues above
    d ε λ_max.

    Examples
    --------
    >>> from fishertope.core.fisher.structures import Diagonal
    >>> P = {"w": Diagonal(np.array([100.0, 100.0]))}
    >>> near = agreement_test(MergeProblem(sources=[{"w": np.zeros(2)}, {"w": np.full(2, 0.1)}],
    ...                                    precisions=[P, P], weights=[1.0, 1.0]))
    >>> near.dof, round(near.statistic, 3), near.p_value > 0.5
    (2.0, 1.0, True)
    """
    from scipy.stats import chi2

    if problem.anchor is not None or problem.damping.rho:
        raise InvalidInputError(
            "The agreement of models is tested without anchor and damping; leave them out."
        )
    found = solve(problem)
    sites: dict[str, tuple[float, float, float]] = {}
    for group in problem.groups:
        system = problem.system(group)
        theta = group.layout.join({p: np.asarray(_wide(found.params[p])) for p in group.parameters})
        value = system.objective(_back(theta, system.center))
        dof = float(sum(rank_of(p) for p in system.precisions) - rank_of(system.total))
        sites[group.name] = (value, dof, float(chi2.sf(value, dof)) if dof else 1.0)
    statistic = sum(s[0] for s in sites.values())
    dof = sum(s[1] for s in sites.values())
    p_value = float(chi2.sf(statistic, dof)) if dof else 1.0
    return Agreement(statistic=statistic, dof=dof, p_value=p_value, by_site=sites)


def _wide(x: object) -> object:
    from .sources import read

    return read(x, np.empty(0))


def _back(x: object, like: object) -> object:
    from ..backend import like as like_library

    return like_library(x, like)


def rank_of(p: Precision) -> int:
    """Number of directions that a precision determines.

    Raises
    ------
    InvalidInputError
        If that takes a dense matrix beyond the limit of ``to_dense``.
    """
    from ..backend import to_numpy
    from ..fisher.structures import Diagonal, Gram, Isotropic, Kronecker

    size = int(np.prod(p.shape))
    if isinstance(p, Isotropic):
        return size if p.scale > 0 else 0
    if isinstance(p, Diagonal):
        return int((np.asarray(to_numpy(p.values)) > 0).sum())
    if isinstance(p, Gram):
        return p.outputs * _rank(to_numpy(p.input_factor))
    if isinstance(p, Kronecker):
        return _rank(to_numpy(p.output_factor)) * _rank(to_numpy(p.input_factor))
    return _rank(to_numpy(p.to_dense()))


def _rank(matrix: object) -> int:
    values = np.linalg.eigvalsh(np.asarray(matrix, dtype=np.float64))
    return int((values > values[-1] * len(values) * np.finfo(np.float64).eps).sum())
