"""D-NPEFF: non-negative factorization of diagonal Fishers, X ≈ WH with X_i = f_i/‖f_i‖₂.

min ‖X − WH‖²_F over W ≥ 0 (n, r) and H ≥ 0 (r, p). Both solvers need only the products XHᵀ and
XᵀW and the small Grams HHᵀ and WᵀW:

    L = ‖X‖² − 2⟨W, XHᵀ⟩ + ⟨WᵀW, HHᵀ⟩

"hals" lowers L in W and in H by several sweeps of coordinate descent a product (each sweep costs
O(nr²), a product O(nnz·r)), and leaves minima in which two components share what is one; "mu" is
the multiplicative update of Lee & Seung, kept for parity.

Source: Matena & Raffel 2023, arXiv:2310.04649 (objective, mu); Cichocki & Phan 2009 (HALS);
Gillis & Glineur 2012 (several sweeps a product); Boutsidis & Gallopoulos 2008 (NNDSVD).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from ..backend import Backend, Kernel, get_backend, like, to_backend, to_numpy
from ..errors import InvalidInputError
from ..fisher.per_example import DiagonalFishers, is_sparse
from ..status import Status
from ..types import Array, Device, FloatArray
from .exchange import exchanged
from .history import Recorder
from .method import DiagonalNPEFF
from .objective import inner, kkt_residual
from .problem import Ledger, checked_total
from .sparseness import descend_sparse
from .team import ALONE, Share, Team

# Added to the norm of every row, as in the paper's code, so that zero Fishers stay zero.
NORM_FLOOR = 1e-9
# What scikit-learn and the paper's code put where a denominator of "mu" vanishes.
MU_EPSILON = float(np.finfo(np.float32).eps)
POWER_STEPS = 3
# After so many steps, and where it settles, "hals" looks for two components that are one.
EXCHANGE_AT = frozenset(8 * 2**k for k in range(20))
OVERSAMPLING = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiagonalProblem:
    """Normalised rows X (n, p), dense or sparse, in a backend; ‖X‖² and the ledger.

    Sparse rows are kept as they came, with the factors (n, 1) that normalise them.
    """

    dense: Array | None
    sparse: tuple[Array, Array, Array] | None
    scale: Array | None
    shape: tuple[int, int]
    total: float
    backend: Backend
    ledger: Ledger
    share: Share
    team: Team = ALONE

    @classmethod
    def from_fishers(
        cls,
        fishers: DiagonalFishers,
        *,
        n_components: int,
        normalize: bool,
        backend: Backend,
        device: Device = None,
        share: Share | None = None,
        team: Team = ALONE,
    ) -> DiagonalProblem:
        """Normalise rows to unit L2 norm and bring them to the backend, once.

        Raises
        ------
        InvalidInputError
            If every Fisher is zero.
        """
        started = perf_counter()
        values = fishers.values
        n, p = (int(s) for s in values.shape)
        dense: Array | None = None
        sparse: tuple[Array, Array, Array] | None = None
        scale: Array | None = None
        if is_sparse(values):
            values = values if values.has_sorted_indices else values.sorted_indices()
            narrow = backend.info.namespace == get_backend("reference").info.namespace
            columns = values.indices if narrow else values.indices.astype(np.int64)
            parts = values.data, columns, values.indptr.astype(np.int64)
            moved = [to_backend(x, backend, device=device) for x in parts]
            sparse = moved[0], moved[1], moved[2]
            norms = fishers.norms()
            # Rows are scaled in the products: X = diag(s)X₀ needs no second copy of the entries.
            per_row = 1.0 / (norms + NORM_FLOOR) if normalize else np.ones(n)
            total = float(((norms * per_row) ** 2).sum())
            if normalize:
                wide = per_row[:, None].astype(values.dtype)
                scale = to_backend(wide, backend, device=device)
        else:
            dense = to_backend(values, backend, device=device)
            xp = backend.xp
            if normalize:
                norms = xp.linalg.vector_norm(dense, axis=1, keepdims=True)
                dense = dense / (norms + NORM_FLOOR)
            total = inner(dense, dense)
        share = Share(0, n, 0, n) if share is None else share
        total = checked_total(team.add(total), share.n)
        ledger = Ledger(columns=p, components=n_components, started=started)
        return cls(
            dense=dense, sparse=sparse, scale=scale, shape=(n, p), total=total,
            backend=backend, ledger=ledger,
            share=share, team=team,
        )  # fmt: skip

    @property
    def xp(self) -> Any:
        """Array-API namespace."""
        return self.backend.xp

    @property
    def like(self) -> Array:
        """An array with the dtype and device of the rows."""
        return self.dense if self.sparse is None else self.sparse[0]

    def array(self, x: FloatArray | Array) -> Array:
        """``x`` with the dtype, library and device of the rows."""
        moved = to_backend(x, self.backend, device=getattr(self.like, "device", None))
        return self.xp.astype(moved, self.like.dtype)

    def products(self, Ht: Array) -> Array:
        """XHᵀ (n, r) for Hᵀ (p, r); one data product."""
        self.ledger.add(self.shape[1] * Ht.shape[1])
        if self.sparse is None:
            return self.xp.matmul(self.dense, Ht)
        product = self.backend.raw(Kernel.SPARSE_PRODUCTS)(*self.sparse, Ht)
        return product if self.scale is None else product * self.scale

    def pullback(self, W: Array) -> Array:
        """XᵀW (p, r) over all processes; one data product."""
        self.ledger.add(self.shape[1] * W.shape[1])
        if self.sparse is None:
            return self.team.sum(self.xp.matmul(self.dense.T, W))  # type: ignore[union-attr]
        pull = self.backend.raw(Kernel.SPARSE_PULLBACK)
        W = W if self.scale is None else W * self.scale
        return self.team.sum(pull(*self.sparse, W, n_columns=self.shape[1]))

    def own(self, x: FloatArray) -> FloatArray:
        """The rows of ``x`` (n, ...) that belong to this process's examples."""
        return x[self.share.first : self.share.first + self.shape[0]]

    def descend(self, H: Array, N: Array, start: Array, *, sweeps: int, tol: float = 0.0) -> Array:
        """Coordinate descent over a shared Gram H (r, r), see ``Kernel.NNLS_GRAM``."""
        return self.backend.raw(Kernel.NNLS_GRAM)(H, N, start, sweeps=sweeps, tol=tol)


def solve_diagonal(
    problem: DiagonalProblem,
    method: DiagonalNPEFF,
    rng: np.random.Generator,
    record: Recorder,
    init: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, float, float, Status]:
    """Minimise ‖X − WH‖² (+ 2λ_W ΣW + 2λ_H ΣH); returns W, Hᵀ, L, the KKT residual and status."""
    xp, found = problem.xp, record.found
    first, loss = 0, np.inf
    if found is not None:
        W, Ht = (problem.array(found.arrays[name]) for name in ("W", "Ht"))
        first, loss = int(found.facts["step"]), float(found.facts["loss"])
    elif init is not None:
        W, Ht = init[0], xp.asarray(init[1].T, copy=True)
    elif method.start == "nndsvd":
        W, Ht = nndsvd(problem, method.n_components, rng)
    else:
        W, Ht = random_start(problem, method.n_components, rng)
    if method.sparseness_coefficients is not None and problem.team.world > 1:
        raise InvalidInputError(
            "sparseness_coefficients was given to several processes, each of which has only a part "
            "of every column of W. Use one process, or sparseness_components."
        )
    if first == 0:
        record.begin("solve", method.max_steps)
    step = _hals_step if method.solver == "hals" else _mu_step
    constrained = any(
        (
            method.l1_components, method.l1_coefficients,
            method.sparseness_components, method.sparseness_coefficients,
        )
    )  # fmt: skip
    exchanges = method.solver == "hals" and not constrained and method.n_components > 1
    status = Status.MAX_STEPS
    residual = np.inf
    for number in range(first, method.max_steps):
        before = loss
        W, Ht, loss, residual = step(problem, method, W, Ht)
        settled = before - loss <= method.tol * problem.total
        if exchanges and (settled or number + 1 in EXCHANGE_AT):
            moved = exchanged(problem, W, Ht, loss)
            if moved is not None:
                (W, Ht, loss), settled = moved, False
        if record(loss, residual):
            status = Status.STOPPED
            break
        if settled:
            status = Status.CONVERGED
            break
        record.keep("steps", {"W": W, "Ht": Ht}, {"step": number + 1, "loss": loss})
    return W, Ht, loss, residual, status


def _hals_step(
    problem: DiagonalProblem, method: DiagonalNPEFF, W: Array, Ht: Array
) -> tuple[Array, Array, float, float]:
    """Sweeps over W for fixed H, then over H for fixed W; the loss and W's residual before."""
    xp = problem.xp
    HHt = xp.matmul(Ht.T, Ht)
    N = problem.products(Ht)
    if method.l1_coefficients:
        N = N - method.l1_coefficients
    residual = kkt_residual(W, N, HHt, problem.team)
    W = _lowered(problem, HHt, N, W, method.sweeps, method.sparseness_coefficients)
    V = problem.team.sum(xp.matmul(W.T, W))
    C = problem.pullback(W)
    if method.l1_components:
        C = C - method.l1_components
    Ht = _lowered(problem, V, C, Ht, method.sweeps, method.sparseness_components)
    return W, Ht, _loss(problem, method, W, Ht, V, C), residual


def _lowered(
    problem: DiagonalProblem, H: Array, N: Array, start: Array, sweeps: int, target: float | None
) -> Array:
    """Coordinate descent, free or with columns of a given sparseness."""
    if target is None:
        return problem.descend(H, N, start, sweeps=sweeps)
    gram, targets, X = (to_numpy(x).astype(np.float64) for x in (H, N, start))
    return problem.array(descend_sparse(gram, targets, X, target, sweeps))


def _mu_step(
    problem: DiagonalProblem, method: DiagonalNPEFF, W: Array, Ht: Array
) -> tuple[Array, Array, float, float]:
    """W ← W∘XHᵀ/(WHHᵀ), then H ← H∘WᵀX/(WᵀWH)."""
    xp = problem.xp
    HHt = xp.matmul(Ht.T, Ht)
    N = problem.products(Ht)
    residual = kkt_residual(W, N, HHt, problem.team)
    W = W * N / _positive(xp.matmul(W, HHt) + method.l1_coefficients, xp)
    V = problem.team.sum(xp.matmul(W.T, W))
    C = problem.pullback(W)
    Ht = Ht * C / _positive(xp.matmul(Ht, V) + method.l1_components, xp)
    return W, Ht, _loss(problem, method, W, Ht, V, C - method.l1_components), residual


def _positive(x: Array, xp: Any) -> Array:
    return xp.where(x == 0, xp.full_like(x, MU_EPSILON), x)


def _loss(
    problem: DiagonalProblem, method: DiagonalNPEFF, W: Array, Ht: Array, V: Array, C: Array
) -> float:
    """L with its penalties, from V = WᵀW and C = XᵀW − λ_H."""
    xp = problem.xp
    penalty = 0.0
    if method.l1_coefficients:
        mass = problem.team.add(float(xp.sum(W, dtype=xp.float64)))
        penalty = 2.0 * method.l1_coefficients * mass
    return problem.total - 2.0 * inner(Ht, C) + inner(V, xp.matmul(Ht.T, Ht)) + penalty


def random_start(problem: DiagonalProblem, r: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """W, H ~ U(0, 1] times √(mean X / r), so that WH has the size of X."""
    n, p = problem.share.n, problem.shape[1]
    ones = problem.array(np.ones((p, 1)))
    mass = float(problem.xp.sum(problem.products(ones), dtype=problem.xp.float64))
    size = np.sqrt(max(problem.team.add(mass) / (n * p), 0.0) / r)
    return (
        problem.array(size * problem.own(1.0 - rng.random((n, r)))),
        problem.array(size * (1.0 - rng.random((p, r)))),
    )


def nndsvd(problem: DiagonalProblem, r: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The larger non-negative part of each leading singular pair; zeros become small.

    The singular pairs come from a randomised range finder with power steps: about
    2(POWER_STEPS + 1)(1 + 8/r) data products. Zeros are filled with 1 % of the mean, because
    neither solver could otherwise leave them quickly ("mu" never).
    """
    n, p = problem.share.n, problem.shape[1]
    if r > min(n, p):
        return random_start(problem, r, rng)
    xp, team = problem.xp, problem.team
    width = min(r + OVERSAMPLING, n, p)
    Q = problem.array(rng.standard_normal((p, width)))
    for _ in range(POWER_STEPS):
        Y = _orthonormal(problem.products(Q), xp, team)
        del Q  # these are much of the memory
        Q = _orthonormal(problem.pullback(Y), xp)
    # The singular pairs of the tall XQ from its small Gram, which processes can add up.
    Y = to_numpy(problem.products(Q)).astype(np.float64)
    values, turn = np.linalg.eigh(to_numpy(team.sum(Y.T @ Y)))
    s, V = np.sqrt(np.maximum(values[::-1], 0.0)), turn[:, ::-1]
    floor = 1e-12 * max(float(s[0]), np.finfo(float).tiny)
    U = Y @ V / np.maximum(s, floor)
    W, Ht = np.zeros((problem.shape[0], r)), np.zeros((p, r), dtype=to_numpy(problem.like).dtype)
    for k in range(min(r, len(s))):
        u, v = U[:, k], to_numpy(xp.matmul(Q, problem.array(V[:, k : k + 1])))[:, 0]
        parts = [(np.maximum(g * u, 0), np.maximum(g * v, 0)) for g in (1, -1)]
        tall = [team.add(float(a @ a)) ** 0.5 for a, _ in parts]
        sizes = [t * float(np.linalg.norm(b)) for t, (_, b) in zip(tall, parts, strict=True)]
        best = int(np.argmax(sizes))
        if sizes[best] > 0:
            scale = np.sqrt(s[k] * sizes[best])
            W[:, k] = scale * parts[best][0] / tall[best]
            Ht[:, k] = scale * parts[best][1] / np.linalg.norm(parts[best][1])
    W[W == 0] = 0.01 * team.add(float(W.sum())) / (n * r)
    Ht[Ht == 0] = 0.01 * Ht.mean()
    return problem.array(W), problem.array(Ht)


def _orthonormal(Y: Array, xp: Any, team: Team = ALONE) -> Array:
    """An orthonormal basis (n, d) of the columns of Y, whose rows may be shared by processes.

    From the small Gram of Y: good enough between power steps, and without the copies of QR.
    """
    gram = to_numpy(team.sum(xp.astype(xp.matmul(Y.T, Y), xp.float64)))
    values, turn = np.linalg.eigh(gram)
    live = values > 1e-12 * values[-1]
    dtype = to_numpy(Y[:0]).dtype
    mix = (turn[:, live] / np.sqrt(values[live])).astype(dtype)
    return xp.matmul(Y, like(mix, Y))
