"""Solve a merge problem group by group."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace

from ..errors import ConvergenceWarning, InvalidInputError, SolveFailedError
from ..fisher.structures.coordinatewise import Diagonal, Isotropic
from ..fisher.structures.factored import EKFAC, Gram, Kronecker
from ..fisher.structures.joint import LowRankDiagonal
from ..fisher.structures.protocol import Precision
from ..fisher.structures.wrappers import Implicit, Masked, Scaled, Sum
from ..types import Array
from .combine import diagonal_of
from .entries import precision_mean, weighted_mean
from .groups import Group
from .problem import GroupSystem, MergeProblem
from .solution import MergeSolution, SiteReport
from .solvers.dense import factorised, solve_psd
from .solvers.kronecker import solve_two_kronecker
from .solvers.options import (
    PCG,
    Auto,
    Cholesky,
    ClosedForm,
    Cvxpy,
    Solver,
    TwoModelKronecker,
    Woodbury,
    solver_of,
)
from .solvers.pcg import pcg
from .solvers.rows import in_panels, one_thread, solved_rows
from .solvers.woodbury import solve_woodbury
from .sources import read
from .unmerged import others, write_group

DENSE_SIZE = 1024
DENSE_RESCUE = 4096
ILL_CONDITIONED = 1e10


@dataclass(frozen=True, slots=True)
class Answer:
    """θ of one group and how it was found."""

    theta: Array
    solver: str
    why: str
    condition: float = 1.0
    steps: int = 0
    converged: bool = True
    fallback: int = 0


def solve(problem: MergeProblem, solver: Solver | str = "auto") -> MergeSolution:
    """Minimise Q over the merged groups; average, take or skip the other tensors.

    Parameters
    ----------
    problem : MergeProblem
    solver : str or options object
        "auto", "closed_form", "cholesky", "kronecker", "woodbury", "pcg" or "cvxpy".

    Returns
    -------
    MergeSolution

    Raises
    ------
    InvalidInputError
        A solver that cannot take this structure; a sum that is not positive semidefinite;
        directions without precision under ``fallback="error"``.
    SolveFailedError
        If PCG reaches its step limit and early stopping was not asked for.

    Warns
    -----
    ConvergenceWarning
        For ill-conditioned sums, and for PCG that was stopped early.

    Examples
    --------
    >>> from fishertope.core.fisher.structures import Diagonal
    >>> f, g = Diagonal(np.array([1.0, 2.0])), Diagonal(np.array([3.0, 0.0]))
    >>> found = solve(MergeProblem(
    ...     sources=[{"w": np.array([0.0, 1.0])}, {"w": np.array([4.0, 1.0])}],
    ...     precisions=[{"w": f}, {"w": g}]))
    >>> found.params["w"], found.sites[0].solver
    (array([3., 1.]), 'closed_form')
    """
    chosen = solver_of(solver)
    order = problem.order
    params: dict[str, Array] = {}
    reports: dict[str, SiteReport] = {}
    posterior: dict[str, Precision] = {}
    objective = 0.0
    # NaN that is to go through is no news.
    with np.errstate(invalid="ignore" if problem.nonfinite == "propagate" else "warn"):
        for group in problem.groups:
            system = problem.system(group, order)
            total = posterior[group.name] = system.total
            answer = _solve_group(system, total, group, chosen, problem.fallback)
            value, residual = system.check(answer.theta, total)
            objective += value
            if isinstance(chosen, Cvxpy) and chosen.constrained:
                residual = float("nan")
            report = SiteReport(
                name=group.name, parameters=group.parameters, size=prod(group.layout.shape),
                action="merge", solver=answer.solver, why=answer.why, residual=residual,
                condition=answer.condition, steps=answer.steps, converged=answer.converged,
                fallback=answer.fallback, skipped=system.skipped,
            )  # fmt: skip
            reports[group.name] = report
            warn_of(report)
            params |= write_group(group, answer.theta, problem.sources)
    params, sites = others(problem, params, reports, order)
    return MergeSolution(
        params=params,
        method="quadratic",
        weights=np.asarray(problem.weights),
        sites=sites,
        precision=_tree(problem, posterior),
        objective=objective,
        facts={"damping": [problem.damping.rho, problem.damping.mode], "solver": chosen.name},
        template=problem.sources[0].template,
    )


def _solve_group(
    system: GroupSystem, total: Precision, group: Group, solver: Solver, fallback: str
) -> Answer:
    if isinstance(solver, Cvxpy):
        from .solvers.convex import solve_convex

        theta, status = solve_convex(system, solver)
        return Answer(theta, "cvxpy", f"asked for; {solver.solver}: {status}")
    answer = _coordinates(system, fallback) if isinstance(solver, (Auto, ClosedForm)) else None
    if answer is not None:
        return answer
    right = system.right_side()
    xp = array_namespace(right)
    if not bool(xp.any(right != 0)) and not (isinstance(solver, PCG) and solver.initial):
        return Answer(system.center, "none", "the right side is 0, so θ = c")
    found = _by_structure(system, total, right, solver, group)
    if found.fallback and fallback == "error" and not system.anchored:
        raise InvalidInputError(undetermined(system.name, found.fallback))
    d = found.theta
    theta = xp.where(d == 0, system.center, system.center + d)
    return replace(found, theta=theta)


def _coordinates(system: GroupSystem, fallback: str) -> Answer | None:
    """Isotropic and diagonal sums; None for others."""
    terms = system.terms
    if not all(isinstance(p, (Isotropic, Diagonal)) for _, p in terms):
        return None
    xp = array_namespace(system.sources)
    shape, n = system.precisions[0].shape, len(system.weights)
    own = terms[:n]
    rest = diagonal_of(terms[n:], shape)
    free = isinstance(rest, float) and rest == 0.0
    if free and all(isinstance(p, Isotropic) for _, p in own):
        scales = [w * cast(Isotropic, p).scale for w, p in own]
        if (whole := sum(scales)) > 0:
            theta = system.center
            if system.anchored or len({cast(Isotropic, p).scale for _, p in own}) > 1:
                theta = weighted_mean(system.sources, [s / whole for s in scales], system.backend)
            return Answer(theta, "closed_form", "isotropic: the weighted mean")
    flat_x = xp.reshape(system.sources, (n, -1))
    f = [xp.zeros_like(system.center) + diagonal_of([(1.0, p)], shape) for _, p in own]
    f_rows = xp.reshape(xp.stack(f), (n, -1))
    center, weights = xp.reshape(system.center, (-1,)), [w for w, _ in own]
    if not free:
        extra = xp.reshape(xp.zeros_like(system.center) + rest, (-1,))
        if bool(xp.any(extra < 0)):
            p = xp.stack([w * f_rows[i, :] for i, w in enumerate(weights)])
            return _negative_anchor(system, flat_x, p, center, extra)
        flat_x = xp.concat([flat_x, center[None, :]], axis=0)
        f_rows = xp.concat([f_rows, extra[None, :]], axis=0)
        weights = [*weights, 1.0]
    value, total = precision_mean(flat_x, f_rows, weights, system.backend)
    none = total == 0
    count = int(xp.sum(xp.astype(none, xp.int64)))
    if count and fallback == "error" and not system.anchored:
        raise InvalidInputError(undetermined(system.name, count))
    value = xp.where(none, center, value)
    low = xp.min(xp.where(none, xp.full_like(total, float("inf")), total))
    high = xp.max(total)
    condition = float(high / low) if count < total.shape[0] else 1.0
    return Answer(
        xp.reshape(value, shape), "closed_form", "diagonal", condition=condition, fallback=count
    )


def _negative_anchor(
    system: GroupSystem, x: Array, p: Array, center: Array, extra: Array
) -> Answer:
    xp = array_namespace(x)
    total, moment = extra, xp.zeros_like(center)
    for i in range(int(x.shape[0])):
        total = total + p[i, :]
        moment = moment + p[i, :] * (x[i, :] - center)
    if not bool(xp.all(total > 0)):
        raise InvalidInputError(
            f"{system.name!r}: the summed precision is not positive at "
            f"{int(xp.sum(xp.astype(total <= 0, xp.int64)))} coordinates, because the anchor's "
            "weight is negative. Raise the anchor's weight, lower the sources' weights, or damp."
        )
    theta = xp.reshape(center + moment / total, system.precisions[0].shape)
    condition = float(xp.max(total) / xp.min(total))
    return Answer(theta, "closed_form", "diagonal, with a negative anchor", condition=condition)


def _by_structure(
    system: GroupSystem, total: Precision, right: Array, solver: Solver, group: Group
) -> Answer:
    """D of A d = r by the solver that was asked for, or by the table of :class:`Auto`."""
    auto = isinstance(solver, Auto)
    size = prod(total.shape)
    if isinstance(total, Gram) and (auto or isinstance(solver, Cholesky)):
        return _gram(system.name, total, right)
    if isinstance(total, (Kronecker, EKFAC)) and (auto or isinstance(solver, ClosedForm)):
        one = total.in_eigenbasis() if isinstance(total, Kronecker) else total
        if one.output_basis.shape[0] == one.output_basis.shape[1] and (
            one.input_basis.shape[0] == one.input_basis.shape[1]
        ):
            return _eigenbasis(one, right)
    if auto or isinstance(solver, TwoModelKronecker):
        found = _two_kronecker(total, right)
        if found is not None:
            return found
    if isinstance(total, LowRankDiagonal) and (auto or isinstance(solver, Woodbury)):
        xp = array_namespace(right)
        if (not auto or total.rank < size) and bool(xp.all(total.values > 0)):
            flat = xp.reshape(total.rows, (total.rank, -1))
            low = solve_woodbury(xp.reshape(total.values, (-1,)), flat.T, xp.reshape(right, (-1,)))
            why = f"diagonal plus rank {total.rank}"
            return Answer(xp.reshape(low.x, total.shape), "woodbury", why, low.condition)
    if isinstance(solver, Cholesky) or (auto and size <= DENSE_SIZE and not _implicit(total)):
        return _dense(system.name, total, right, f"{total.kind} of {size} parameters")
    if auto or isinstance(solver, PCG):
        options = solver if isinstance(solver, PCG) else PCG()
        return _iterate(system, total, right, options, group, auto)
    raise InvalidInputError(
        f"{system.name!r}: solver={solver.name!r} cannot take a sum of {total.kind} precisions "
        f"({', '.join(sorted({p.kind for _, p in system.terms}))}); choose 'auto', 'cholesky' or "
        "'pcg'."
    )


def _gram(name: str, total: Gram, right: Array) -> Answer:
    if isinstance(right, np.ndarray):
        with one_thread():
            ready = factorised(total.input_factor)
        d = in_panels(total.shape, lambda a, b: solved_rows(ready, right[a:b]))
    else:
        ready = factorised(total.input_factor)
        d = ready.solve(right.T).T
    check_psd(name, ready.negative)
    return Answer(
        d, ready.how, gram_reason(total), ready.condition, fallback=ready.null * total.shape[0]
    )


def gram_reason(total: Gram) -> str:
    """Why a site is solved by its rows."""
    return f"Gram sum: a system of {total.shape[1]} inputs"


def _eigenbasis(one: EKFAC, right: Array) -> Answer:
    xp = array_namespace(right)
    s = one.scales
    top = float(xp.max(s))
    kept = s > top * prod(one.shape) * np.finfo(np.float64).eps
    inner = xp.matmul(xp.matmul(one.output_basis.T, right), one.input_basis)
    inner = xp.where(kept, inner / xp.where(kept, s, xp.ones_like(s)), xp.zeros_like(inner))
    d = xp.matmul(xp.matmul(one.output_basis, inner), one.input_basis.T)
    low = float(xp.min(xp.where(kept, s, xp.full_like(s, float("inf")))))
    null = int(xp.sum(xp.astype(~kept, xp.int64)))
    return Answer(
        d, "closed_form", "one Kronecker product: its eigenbasis", top / low, fallback=null
    )


def _two_kronecker(total: Precision, right: Array) -> Answer | None:
    if not isinstance(total, Sum) or len(total.parts) != 2:
        return None
    one, two = total.parts
    if not isinstance(one, Kronecker) or not isinstance(two, Kronecker):
        return None
    found = solve_two_kronecker(
        (one.output_factor, one.input_factor), (two.output_factor, two.input_factor), right
    )
    if found is None:
        return None
    return Answer(found[0], "kronecker", "two Kronecker products", found[1])


def _dense(name: str, total: Precision, right: Array, why: str) -> Answer:
    xp = array_namespace(right)
    answer = solve_psd(total.to_dense(limit=prod(total.shape)), xp.reshape(right, (-1, 1)))
    check_psd(name, answer.negative)
    return Answer(
        xp.reshape(answer.x, total.shape), answer.how, why, answer.condition, fallback=answer.null
    )


def _iterate(
    system: GroupSystem, total: Precision, right: Array, options: PCG, group: Group, auto: bool
) -> Answer:
    start = None
    if options.initial is not None:
        initial: Mapping[str, Any] = options.initial
        theta = group.layout.join({p: read(initial[p], right) for p in group.parameters})
        start = theta - system.center
    weight = total.diagonal() if options.precondition and not _implicit(total) else None
    found = pcg(
        system.apply, right, preconditioner=weight, start=start, tol=options.tol,
        max_steps=options.max_steps,
    )  # fmt: skip
    why = f"{total.kind} of {prod(total.shape)} parameters"
    if not found.converged and not options.early_stop:
        if auto and prod(total.shape) <= DENSE_RESCUE and not _implicit(total):
            return _dense(system.name, total, right, why + "; PCG did not converge")
        raise SolveFailedError(
            f"{system.name!r}: PCG reached a relative residual of {found.residual:.1e} after "
            f"{found.steps} steps; tol={options.tol:g} was asked for. Add damping, raise "
            "max_steps, or take the iterate as it is with PCG(early_stop=True)."
        )
    return Answer(found.x, "pcg", why, found.condition, found.steps, found.converged)


def _implicit(p: Precision) -> bool:
    if isinstance(p, Sum):
        return any(_implicit(q) for q in p.parts)
    if isinstance(p, (Scaled, Masked)):
        return _implicit(p.part)
    return isinstance(p, Implicit) and p.diagonal_of is None


def check_psd(name: str, negative: float) -> None:
    """Refuse a sum with a negative eigenvalue that is no rounding.

    Raises
    ------
    InvalidInputError
        Naming the site.
    """
    if negative:
        raise InvalidInputError(
            f"{name!r}: the summed precision has a negative eigenvalue ({negative:.1e} of the "
            "largest). Use precisions that are positive semidefinite, a larger anchor weight, or "
            "damping."
        )


def undetermined(name: str, count: int) -> str:
    """What to say of coordinates that no precision determines."""
    return (
        f"{name!r}: no precision determines {count} coordinates or directions, and there is no "
        "anchor. Give an anchor or damping, or fallback='mean' to leave them at the weighted mean."
    )


def warn_of(report: SiteReport) -> None:
    """Warn of a solution that did not converge or hangs on rounding."""
    if not report.converged:
        warnings.warn(
            f"{report.name!r}: PCG stopped after {report.steps} steps at a relative residual of "
            f"{report.residual:.1e}, as asked.",
            ConvergenceWarning,
            stacklevel=3,
        )
    elif report.solver not in ("closed_form", "none") and report.condition > ILL_CONDITIONED:
        warnings.warn(
            f"{report.name!r}: the summed precision has a condition of about "
            f"{report.condition:.0e}; the merge is very sensitive there. Add damping.",
            ConvergenceWarning,
            stacklevel=3,
        )


def _tree(problem: MergeProblem, posterior: dict[str, Precision]) -> Mapping[str, Precision] | None:
    from ..fisher.precision import PrecisionTree

    if not posterior:
        return None
    counts = [getattr(t, "n_examples", 1) for t in problem.precisions or ()]
    return PrecisionTree(
        sites=posterior,
        n_examples=max(1, sum(counts)),
        trace_errors=dict.fromkeys(posterior, float("nan")),
        layouts={g.name: g.layout for g in problem.groups},
        facts={"estimator": "merge", "sources": len(problem.sources)},
    )
