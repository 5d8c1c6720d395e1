"""Expansion: more components for what the old ones leave unexplained, with the old ones frozen.

min L(W, [G_f; G_e]) over W ≥ 0 and G_e, for frozen G_f. The new components begin at the top
eigenvectors of the residuals of the worst-fitted examples and follow the same steps as any other
factorization; the frozen ones come first and keep every bit.

Source: Matena & Raffel 2023, arXiv:2310.04649; the start and the solver are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import BackendChoice, Kernel, enter, to_numpy
from ..errors import InvalidInputError
from ..fisher.per_example import LowRankFishers
from ..fisher.store import FisherStore
from ..status import Callback, Status
from ..types import Array, Device
from .factorize import provenance
from .history import Recorder
from .method import LowRankNPEFF
from .objective import kkt_residual
from .pals import Point, evaluate, lower_coefficients
from .problem import LowRankProblem, orthonormal_rows
from .result import Factorization, gauge_fixed
from .starts import residual_direction
from .streamed import StreamedProblem
from .subspace import Subspace, polish, refine, residuals, subspace_pays

SWEEPS = 200


def expand(
    factorization: Factorization,
    fishers: LowRankFishers | FisherStore,
    n_new: int,
    *,
    max_steps: int | None = None,
    backend: BackendChoice = "auto",
    device: Device = None,
    callback: Callback | None = None,
) -> Factorization:
    """Fit ``n_new`` more components on some Fishers, keeping those that there are.

    Parameters
    ----------
    factorization : Factorization
        Of low rank; its components are frozen.
    fishers : LowRankFishers or FisherStore
        The examples to explain (the fitted ones, or others with the same columns). The rows of a
        store that is large stay on the disk.
    n_new : int
        ≥ 0; 0 only fits coefficients.
    max_steps : int, optional
        As in ``LowRankNPEFF``, whose other options are those of the first fit.

    Returns
    -------
    Factorization
        Components: the frozen ones, bit for bit and in their order, then the new ones by
        decreasing Σ_i W_ik. Coefficients for ``fishers``.

    Raises
    ------
    InvalidInputError
        Diagonal factorizations, other columns, a negative ``n_new``.
    """
    method = factorization.method
    if not isinstance(method, LowRankNPEFF) or not isinstance(
        fishers, LowRankFishers | FisherStore
    ):
        raise InvalidInputError("expand takes a factorization of LowRankFishers, and such Fishers.")
    if not isinstance(n_new, int) or isinstance(n_new, bool) or n_new < 0:
        raise InvalidInputError(f"n_new={n_new!r} was given; a whole number >= 0 is accepted.")
    frozen = factorization.n_components
    method = replace(
        method,
        n_components=frozen + n_new,
        solver="pals",
        max_steps=method.max_steps if max_steps is None else max_steps,
    )
    door, problem, norms = _opened(fishers, method, backend, device)
    if problem.n_columns != factorization.components.shape[1]:
        raise InvalidInputError(
            f"Fishers with {problem.n_columns} columns were given; these components have "
            f"{factorization.components.shape[1]}. Use the same parameters and reduction."
        )
    record = Recorder(ledger=problem.ledger, total=problem.total, callback=callback)
    record.begin("coefficients", 1)
    G = problem.array(factorization.components)
    W = problem.array(np.zeros((len(fishers), frozen)))
    point = lower_coefficients(problem, evaluate(problem, W, G), sweeps=SWEEPS, tol=1e-8)
    record(point.loss, 0.0)
    status = Status.CONVERGED
    if n_new and not record.stopped:
        point, status = _grow(problem, point, n_new, method, record)
    point = evaluate(problem, point.W, point.G)
    point = lower_coefficients(problem, point, sweeps=10 * SWEEPS, tol=1e-10)
    W_all, G_all = to_numpy(point.W), to_numpy(point.G)
    new_W, new_G = gauge_fixed(W_all[:, frozen:], G_all[frozen:])
    kept = to_numpy(factorization.components).astype(G_all.dtype, copy=False)
    return Factorization(
        coefficients=door.out(np.concatenate([W_all[:, :frozen], new_W], axis=1)),
        components=door.out(np.concatenate([kept, new_G])),
        norms=norms,
        sites=factorization.sites,
        method=method,
        status=status,
        loss=point.loss,
        total=problem.total,
        residual=residuals(problem, point, frozen=frozen) if n_new else 0.0,
        kkt=kkt_residual(point.W, point.N, point.S**2),
        history=record.history(),
        products=problem.ledger.products,
        backend=door.backend.name,
        seed=factorization.seed,
        facts={"frozen": frozen, "fishers": dict(provenance(fishers))},
    )


def _opened(
    fishers: LowRankFishers | FisherStore,
    method: LowRankNPEFF,
    backend: BackendChoice,
    device: Device,
) -> tuple[Any, LowRankProblem, Any]:
    """The door, the problem, and the norms; of a store in memory only where it is small."""
    n_components, normalize = method.n_components, method.normalize
    template = np.zeros((0, 0)) if isinstance(fishers, FisherStore) else fishers.rows
    door = enter(template, backend=backend, device=device, kernel=Kernel.LOWRANK_PRODUCTS)
    options: dict[str, Any] = {
        "n_components": n_components, "normalize": normalize, "backend": door.backend,
        "device": device,
    }  # fmt: skip
    if isinstance(fishers, LowRankFishers):
        return door, LowRankProblem.from_fishers(fishers, **options), fishers.norms
    streamed = StreamedProblem.from_store(fishers, **options)
    problem = streamed if subspace_pays(streamed, method) else streamed.loaded()
    return door, problem, streamed.norms


def _grow(
    problem: LowRankProblem, point: Point, n_new: int, method: LowRankNPEFF, record: Recorder
) -> tuple[Point, Status]:
    """New components from the residuals, then the usual steps for them alone."""
    xp, frozen = problem.xp, int(point.G.shape[0])
    W, N = to_numpy(point.W).astype(np.float64), to_numpy(point.N).astype(np.float64)
    misfit = problem.squares - 2.0 * (W * N).sum(1) + ((W @ to_numpy(point.S**2)) * W).sum(1)
    for i in np.argsort(-misfit)[:n_new]:
        # One after another, so that two new components do not explain the same thing.
        g = residual_direction(problem, point, int(i))[None]
        G = xp.concat([point.G, g], axis=0)
        W_next = xp.concat([point.W, xp.zeros_like(point.W[:, :1])], axis=1)
        point = lower_coefficients(problem, evaluate(problem, W_next, G), sweeps=20)
    missing = frozen + n_new - int(point.G.shape[0])
    if missing > 0:  # fewer examples than new components
        G = xp.concat([point.G, point.G[:1] * xp.ones_like(point.G[:missing])], axis=0)
        padding = xp.zeros((problem.n_examples, missing), dtype=G.dtype, device=G.device)
        point = evaluate(problem, xp.concat([point.W, padding], axis=1), G)
    if not subspace_pays(problem, method):
        return polish(problem, point, method, record, frozen=frozen)
    space, point = _span(problem, point)
    space, point, status = refine(problem, space, point, method, record, frozen=frozen)
    return replace(point, G=xp.matmul(point.G, space.basis)), status


def _span(problem: LowRankProblem, point: Point) -> tuple[Subspace, Point]:
    """The subspace that the components span, and the point written in it."""
    basis: Array = orthonormal_rows(point.G, problem.xp)
    space = Subspace(basis, problem.restrict(basis))
    G = problem.xp.matmul(point.G, basis.T)
    return space, evaluate(space.problem, point.W, G)
