"""Online PALS: steps on a few examples at a time with running sums, for data beyond memory.

For every batch b, with W_b the coefficients of its examples for the present G and B_b = A_bGᵀ,

    V ← ρV + W_bᵀW_b,   P ← ρP + (W̃_b∘B_b)ᵀA_b,   G ← G − ½M⁻¹(MG − P),  M = V∘S,

which is the step of PALS with sums that remember about one pass over the data; ρ grows from pass
to pass, so that the steps settle down. In memory are one batch, G, P and W. A last pass gives the
exact coefficients and loss.

Source: ours, in the manner of online dictionary learning (Mairal, Bach, Ponce & Sapiro 2010).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..backend import to_numpy
from ..status import Status
from ..types import Array, FloatArray, IntArray
from .history import Recorder
from .method import LowRankNPEFF
from .objective import coefficient_gram, gram, inner
from .pals import RIDGE, Point, evaluate, lower_coefficients
from .problem import Ledger, LowRankProblem
from .starts import DEAD, residual_direction
from .subspace import solve_pals
from .team import Share

# Examples on which the start is found, for each component, and rounds of refinement there.
SAMPLE_EXAMPLES = 20
SAMPLE_ROUNDS = 10
# M⁻¹P turns g = α·g* into g*/α, so a whole step only swaps too long for too short; half of it ends
# that at once.
STEP = 0.5
# No component moves by more than this share of its length in a step.
MOST_MOVE = 0.3


@dataclass(slots=True)
class Sums:
    """V (r, r), P (r, m) and Σ_i W_ik N_ik (r,), with forgetting."""

    V: Array
    P: Array
    linear: FloatArray


def solve_online(
    problem: LowRankProblem,
    method: LowRankNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    init: tuple[Array, Array] | None = None,
) -> tuple[Point, Status]:
    """Passes over the data until the loss of a pass settles; the point on all data at the end."""
    xp, r = problem.xp, method.n_components
    device = getattr(problem.rows, "device", None)
    size = method.batch_examples or problem.share.n
    bounds = np.arange(0, max(problem.n_examples, 1), size, dtype=np.int64)
    rounds = int(problem.team.most(float(len(bounds))))
    found, first, past = record.found, 0, float("inf")
    if found is not None:
        W, G = (problem.array(found.arrays[name]) for name in "WG")
        V = xp.asarray(found.arrays["V"], device=device)
        sums = Sums(V, problem.array(found.arrays["P"]), np.array(found.arrays["linear"]))
        first, past = int(found.facts["number"]), float(found.facts["past"])
    else:
        W, G = init if init is not None else sampled_start(problem, method, rng)
        zeros = xp.zeros((r, r), dtype=xp.float64, device=device)
        sums = Sums(zeros, xp.zeros_like(G), np.zeros(r))
        record.begin("passes", method.max_steps)
    status = Status.MAX_STEPS
    for number in range(first, method.max_steps):
        state = {"W": W, "G": G, "V": sums.V, "P": sums.P, "linear": sums.linear}
        record.keep("passes", state, {"number": number, "past": past})
        order = rng.permutation(rounds)
        keep = 1.0 if number == 0 else 1.0 - 1.0 / (rounds * (1.0 + number))
        loss, residual, W = 0.0, 0.0, xp.asarray(W, copy=True)
        last: tuple[LowRankProblem, Point] | None = None
        for which in order:
            low = int(bounds[which]) if which < len(bounds) else problem.n_examples
            examples = np.arange(low, min(low + size, problem.n_examples), dtype=np.int64)
            batch = part_of(problem, examples)
            point = evaluate(batch, W[low : low + len(examples)], G)
            point = lower_coefficients(batch, point, sweeps=3 * method.sweeps)
            W[low : low + len(examples)] = point.W
            pulled = batch.pullback(point.W, point.B)
            loss += point.loss
            sums.V = keep * sums.V + coefficient_gram(point.W, problem.team)
            sums.P = keep * sums.P + pulled
            own = xp.sum(point.W * point.N, axis=0, dtype=xp.float64)
            sums.linear = keep * sums.linear + to_numpy(problem.team.sum(own))
            if number > 0:  # the first pass fills the sums: steps by a few examples would be wild
                G, residual = _moved(problem, G, sums)
                W, G = rescaled(problem, W, G, sums)
            last = batch, point
        if number == 0:
            G, residual = _moved(problem, G, sums)
            W, G = rescaled(problem, W, G, sums)
        if last is not None and number < method.max_steps // 2:
            G = _revived(problem, G, sums, *last)
        if record(loss, residual):
            status = Status.STOPPED
            break
        settled = abs(past - loss) <= method.tol * problem.total
        if residual <= method.tol or (settled and number > 0):
            status = Status.CONVERGED
            break
        past = loss
    return evaluate(problem, W, G), status


def _moved(problem: LowRankProblem, G: Array, sums: Sums) -> tuple[Array, float]:
    """G − (M + μI)⁻¹(MG − P), and ‖MG − P‖/‖P‖."""
    xp = problem.xp
    S = gram(G)
    M = sums.V * S
    whole = M + problem.penalty.pull(S) if problem.penalty.weight else M
    gradient = xp.matmul(xp.astype(whole, G.dtype), G) - sums.P
    size = inner(sums.P, sums.P)
    residual = (inner(gradient, gradient) / size) ** 0.5 if size > 0 else 0.0
    if problem.penalty.weight:
        M = M + problem.penalty.weight * S
    ridge = RIDGE * float(xp.linalg.trace(M)) / len(S) + np.finfo(np.float64).tiny
    eye = xp.eye(len(S), dtype=M.dtype, device=getattr(M, "device", None))
    inverse = xp.linalg.inv(M + ridge * eye)
    D = -STEP * xp.matmul(xp.astype(inverse, G.dtype), gradient)
    size_g = xp.linalg.vector_norm(G, axis=1, keepdims=True)
    size_d = xp.linalg.vector_norm(D, axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    limit = MOST_MOVE * size_g / xp.where(size_d > tiny, size_d, xp.ones_like(size_d))
    D = D * xp.where(limit < 1.0, limit, xp.ones_like(limit))
    return G + D, residual


def rescaled(problem: LowRankProblem, W: Array, G: Array, sums: Sums) -> tuple[Array, Array]:
    """The same point and sums with unit components: old and new batches stay on one scale."""
    xp = problem.xp
    s = xp.linalg.vector_norm(G, axis=1)
    s = xp.where(s > 0, s, xp.ones_like(s))
    squares = xp.astype(s * s, sums.V.dtype)
    sums.V = sums.V * squares[:, None] * squares[None, :]
    sums.P = sums.P * s[:, None]
    return W * (s * s)[None, :], G / s[:, None]


def _revived(
    problem: LowRankProblem, G: Array, sums: Sums, batch: LowRankProblem, point: Point
) -> Array:
    """Dead components point at what the worst-fitted examples of the last batch are missing."""
    H = to_numpy(sums.V * gram(G) ** 2)
    costs = 2.0 * sums.linear - 2.0 * H.sum(axis=1) + np.diag(H)
    dead = np.flatnonzero(costs < DEAD * problem.total)
    if not len(dead):
        return G
    W, N = (to_numpy(x).astype(np.float64) for x in (point.W, point.N))
    misfit = batch.squares - 2.0 * (W * N).sum(1) + ((W @ to_numpy(point.S**2)) * W).sum(1)
    order = np.argsort(-problem.team.gather(misfit))
    rows = [G[k] for k in range(len(G))]
    for k, i in zip(dead, order, strict=False):
        rows[int(k)] = residual_direction(batch, point, int(i))
    return problem.xp.stack(rows)


def part_of(problem: LowRankProblem, examples: IntArray) -> LowRankProblem:
    """The problem of some consecutive own examples, in memory; its total is theirs."""
    offsets = to_numpy(problem.offsets)
    low, high = (int(examples[0]), int(examples[-1]) + 1) if len(examples) else (0, 0)
    start, stop = int(offsets[low]), int(offsets[high])
    squares = problem.squares[low:high]
    heights = problem.team.gather(np.array([float(high - low)]))
    before = int(heights[: problem.team.rank].sum())
    return LowRankProblem(
        rows=problem.taken(np.arange(start, stop)),
        offsets=problem.offsets[low : high + 1] - start,
        total=problem.team.add(float(squares.sum())),
        squares=squares,
        backend=problem.backend,
        # Products of a batch count as its share of the whole.
        ledger=_PartLedger(problem.ledger, (stop - start) / max(1, int(offsets[-1]))),
        share=Share(before, int(heights.sum()), 0, stop - start),
        team=problem.team,
        penalty=problem.penalty,
    )


class _PartLedger(Ledger):
    """Books a share of each product in another ledger."""

    def __init__(self, whole: Ledger, share: float) -> None:
        super().__init__(columns=whole.columns, components=whole.components)
        self._whole, self._share = whole, share

    def add(self, flops_per_row: float) -> None:
        self._whole.add(self._share * flops_per_row)


def sampled_start(
    problem: LowRankProblem, method: LowRankNPEFF, rng: np.random.Generator
) -> tuple[Array, Array]:
    """W = 0 and the components that "pals" finds on a sample of the examples, in memory.

    Every process draws the same sample; its rows are sent to all of them.
    """
    n = problem.share.n
    count = min(n, max(method.batch_examples or 1, SAMPLE_EXAMPLES * method.n_components))
    picked = np.sort(rng.choice(n, size=count, replace=False)).astype(np.int64)
    small = sample_of(problem, picked)
    brief = replace(method, batch_examples=None, max_steps=SAMPLE_ROUNDS)
    silent = Recorder(ledger=small.ledger, total=small.total)
    point, _ = solve_pals(small, brief, rng, silent)
    # The components on the whole are as large as on the sample: W is on the scale of examples.
    return problem.array(np.zeros((problem.n_examples, method.n_components))), point.G


def sample_of(problem: LowRankProblem, picked: IntArray) -> LowRankProblem:
    """The problem of some examples of all processes, whole in each of them."""
    counts = problem.team.gather(np.diff(to_numpy(problem.offsets)).astype(np.float64))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.concatenate([np.arange(int(offsets[i]), int(offsets[i + 1])) for i in picked])
    squares = problem.team.gather(problem.squares)[picked]
    own = np.concatenate([[0], np.cumsum(counts[picked])]).astype(np.int64)
    ledger = _PartLedger(problem.ledger, len(rows) / max(1, problem.share.h))
    index = problem.index_array(own)
    return LowRankProblem(
        rows=problem.take_rows(rows),
        offsets=index,
        total=float(squares.sum()) or 1.0,
        squares=squares,
        backend=problem.backend,
        ledger=ledger,
        share=Share(0, len(picked), 0, len(rows)),
        penalty=problem.penalty,
    )
