"""The faithful baseline: multiplicative updates of W, gradient descent on G with constant η.

W ← W ∘ N / (WH + ε),  G ← G − 4η[(V∘S)G − (W̃∘B)ᵀA]; stage 1 moves G alone with W ~ U(0, 1] and
G ~ N(0, 2/(rm)), stage 2 moves both with one shared B and S a step. Two data products a step; the
loss, every tenth step, costs one more.

Source: Matena & Raffel 2023, arXiv:2310.04649, and the updates of its public code.
"""

from __future__ import annotations

import numpy as np

from ..status import Status
from ..types import Array
from .history import Recorder
from .method import LowRankNPEFF
from .objective import gram, inner
from .pals import Point, evaluate, penalised_gradient
from .problem import LowRankProblem

EPSILON = 1e-9
LOSS_EVERY = 10


def solve_mu_gd(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    init: tuple[Array, Array] | None = None,
) -> tuple[Point, Status]:
    """Run the fixed number of steps; there is no stopping rule but divergence."""
    xp, r = problem.xp, method.n_components
    if init is None:
        W = problem.array(problem.own(1.0 - rng.random((problem.share.n, r))))
        spread = (2.0 / (r * problem.n_columns)) ** 0.5
        G = problem.array(rng.normal(0.0, spread, (r, problem.n_columns)))
    else:
        W, G = init
    stages = (
        ("components only", method.components_only_steps, False),
        ("joint", method.max_steps, True),
    )
    reached, first = 0, 0
    if record.found is not None:
        W, G = (problem.array(record.found.arrays[name]) for name in "WG")
        reached, first = (int(record.found.facts[name]) for name in ("stage", "step"))
    for number, (name, steps, joint) in enumerate(stages):
        if number < reached:
            continue
        if first == 0:
            record.begin(name, steps)
        for step in range(first, steps):
            B, N = problem.products(G)
            S = gram(G)
            if joint:
                H = xp.astype(S * S, W.dtype)
                W = W * N / (xp.matmul(W, H) + EPSILON)
            pullback = problem.pullback(W, B)
            gradient = penalised_gradient(problem, W, G, S, pullback)
            G = G - method.step_size * gradient
            if (step + 1) % LOSS_EVERY == 0:
                point = evaluate(problem, W, G)
                size = 4.0 * inner(pullback, pullback) ** 0.5
                residual = inner(gradient, gradient) ** 0.5 / size if size > 0 else 0.0
                if not np.isfinite(point.loss) or point.loss > 1e3 * problem.total:
                    return point, Status.DIVERGED
                if record(point.loss, residual):
                    return point, Status.STOPPED
                record.keep("steps", {"W": W, "G": G}, {"stage": number, "step": step + 1})
        first = 0
    return evaluate(problem, W, G), Status.MAX_STEPS
