"""The entry function: per-example Fishers in, a :class:`Factorization` out."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np

from ..backend import BackendChoice, Kernel, enter, thread_facts, to_numpy
from ..errors import ConvergenceWarning, InvalidInputError, SolveFailedError
from ..fisher.per_example import DiagonalFishers, LowRankFishers, is_sparse
from ..fisher.ranks import Ranks, process_group
from ..fisher.store import FisherStore
from ..status import Callback, Status
from ..types import Array, Device, FloatArray, Seed
from .checkpoint import DONE, Checkpoint, checkpointed, fit_identity
from .compress import compression
from .diagonal import DiagonalProblem, solve_diagonal
from .history import Recorder
from .method import DiagonalNPEFF, LowRankNPEFF
from .mu_gd import solve_mu_gd
from .objective import kkt_residual
from .online import solve_online
from .pals import Point, evaluate, lower_coefficients
from .penalty import Penalty
from .problem import LowRankProblem
from .result import Factorization, gauge_fixed
from .stiefel import final_residual, solve_stiefel
from .streamed import StreamedProblem, shared_fishers
from .subspace import residuals, solve_pals, subspace_pays
from .team import Share, Team, share_bounds

ON_FAILURE = ("warn", "raise", "return")
FINAL_SWEEPS = 2000
FINAL_TOL = 1e-10

Init = tuple[Array, Array]


def factorize(
    fishers: LowRankFishers | DiagonalFishers | FisherStore,
    method: LowRankNPEFF | DiagonalNPEFF,
    *,
    seed: Seed = 0,
    backend: BackendChoice = "auto",
    device: Device = None,
    init: Init | Factorization | None = None,
    callback: Callback | None = None,
    checkpoint: str | PathLike[str] | Checkpoint | None = None,
    on_failure: str = "warn",
) -> Factorization:
    """Decompose per-example Fishers into non-negative sums of shared components.

    ``LowRankNPEFF``: Σ_i ‖F_i/‖F_i‖_F − Σ_k W_ik g_k g_kᵀ‖²_F over W ≥ 0 (n, r) and G (r, m), where
    F_i = A_iᵀA_i is given by its rows. ``DiagonalNPEFF``: Σ_i ‖f_i/‖f_i‖₂ − Σ_k W_ik h_k‖² over
    W, H ≥ 0. ``method.normalize=False`` drops the normalisation.

    Parameters
    ----------
    fishers : LowRankFishers, DiagonalFishers or FisherStore
        n Fishers with m columns, float32 or float64; diagonals may be sparse. A store is read
        shard by shard and may be larger than memory.
    method : LowRankNPEFF or DiagonalNPEFF
        Number of components, solver and its options; of the same kind as the Fishers.
    seed : int or numpy.random.Generator
        For the starts; the same draws whatever the backend.
    backend, device
        See :func:`select_backend`. Rows are converted once; results come back as the caller's
        kind of array.
    init : (W, G) or Factorization, optional
        Begin here instead of at the method's own starts: W (n, r) ≥ 0 and G (r, m) (for
        diagonals H ≥ 0).
    callback : callable, optional
        Gets a :class:`StepInfo` after each step; returning ``True`` stops.
    checkpoint : path or Checkpoint, optional
        Keep the state of the fit in this file (once a minute, or as ``Checkpoint`` says, and when
        it is interrupted). The same call goes on from it, on the CPU to the same bits.
    on_failure : {"warn", "raise", "return"}
        What to do when the solver did not converge ("mu-gd" has no stopping rule, so its
        ``max_steps`` is not a failure; divergence is).

    Returns
    -------
    Factorization
        With unit-norm components ordered by Σ_i W_ik, sign fixed by the largest entry
        (low rank).

    Raises
    ------
    InvalidInputError
        More than the data can hold, a bad ``init``, all-zero Fishers, NaN or infinite rows.
    SolveFailedError
        Not converged and ``on_failure="raise"``.

    Notes
    -----
    Cost: a data product is 2hmr flops; "pals" takes a few dozen full-size equivalents in all,
    plus O(nr²) for each coordinate-descent sweep over W. Memory: the rows, their projection on
    at most 7r directions, and O((h + n + m)r).

    References
    ----------
    Matena & Raffel 2023, arXiv:2310.04649.

    Examples
    --------
    >>> import numpy as np
    >>> G = np.eye(2, 5)
    >>> rows = np.concatenate([G, G, G + G[::-1]])[:, None, :]
    >>> result = factorize(LowRankFishers.from_rows(rows), LowRankNPEFF(3))
    >>> bool(result.relative_loss < 1e-6)
    True
    """
    _check(fishers, method, on_failure)
    rng = np.random.default_rng(seed)
    solve = _diagonal if isinstance(method, DiagonalNPEFF) else _low_rank
    result = solve(fishers, method, rng, backend, device, init, callback, checkpoint)
    result = result.replace(
        seed=seed if isinstance(seed, int) else None,
        facts={
            "threads": thread_facts(),
            "fishers": dict(provenance(fishers)),
            **result.facts,
        },
    )
    _report_failure(result, on_failure)
    return result


def _low_rank(
    fishers: LowRankFishers | DiagonalFishers | FisherStore,
    method: LowRankNPEFF | DiagonalNPEFF,
    rng: np.random.Generator,
    backend: BackendChoice,
    device: Device,
    init: Init | Factorization | None,
    callback: Callback | None,
    checkpoint: str | PathLike[str] | Checkpoint | None,
) -> Factorization:
    if not isinstance(fishers, LowRankFishers | FisherStore) or not isinstance(
        method, LowRankNPEFF
    ):
        raise InvalidInputError(
            f"{fishers} were given; LowRankNPEFF takes LowRankFishers. Make them with "
            "per_example_fishers(model, data), or use DiagonalNPEFF."
        )
    with team_of_environment() as team:
        door, problem, norms = _opened(fishers, method, backend, device, team)
        start = None
        if init is not None:
            start = _checked_init(init, (len(fishers), problem.n_columns), method, problem)
        record = Recorder(ledger=problem.ledger, total=problem.total, callback=callback)
        team.agree("Fishers, methods or seeds", np.array(
            [len(fishers), problem.n_columns, problem.total, method.n_components, rng_mark(rng)]
        ))  # fmt: skip
        identity = fit_identity(fishers, method, start, door.backend.name, device)
        if start is not None:
            start = problem.own(start[0]), start[1]
        small = compression(problem, method, rng)
        inside = problem if small is None else small.problem
        with checkpointed(checkpoint, identity, rng, record, team, problem.share):
            if record.done is not None:
                W, G = (inside.array(record.done.arrays[name]) for name in "WG")
                status = Status(record.done.facts["status"])
            else:
                if start is not None and small is not None:
                    start = start[0], small.project(start[1])
                point, status = solver_of(method)(inside, method, rng, record, start)
                W, G = point.W, point.G
                record.keep(DONE, {"W": W, "G": G}, {"status": status})
        if small is not None and not small.exact:
            inside, G = problem, small.lift(W, G)
        point, gradient = _finish(inside, W, G, method, status)
        G = small.lift(point.W, point.G) if small is not None and small.exact else point.G
        whole_W = team.gather(to_numpy(point.W).astype(np.float64))
        kkt = kkt_residual(point.W, point.N, point.S**2, team)
    W_out, G_out = gauge_fixed(whole_W, to_numpy(G))
    facts = {} if small is None else {"compression": small.facts}
    return Factorization(
        coefficients=door.out(W_out),
        components=door.out(G_out),
        norms=norms,
        sites=fishers.sites,
        method=method,
        status=status,
        loss=point.loss - problem.penalty.value(point.S),
        total=problem.total,
        residual=gradient,
        kkt=kkt,
        history=record.history(),
        products=problem.ledger.products,
        backend=door.backend.name,
        seed=None,
        facts=facts if team.world == 1 else {**facts, "processes": team.world},
    )


def _opened(
    fishers: LowRankFishers | FisherStore,
    method: LowRankNPEFF,
    backend: BackendChoice,
    device: Device,
    team: Team,
) -> tuple[Any, LowRankProblem, FloatArray]:
    """The door, the problem of this process's examples, and the norms of all."""
    options: dict[str, Any] = {
        "n_components": method.n_components,
        "normalize": method.normalize,
        "device": device,
        "team": team,
        "penalty": Penalty(method.orthogonality, 2.0 / method.n_components),
    }
    if isinstance(fishers, FisherStore):
        template = np.zeros((0, 0))
        door = enter(template, backend=backend, device=device, kernel=Kernel.LOWRANK_PRODUCTS)
        streamed = StreamedProblem.from_store(fishers, backend=door.backend, **options)
        norms = team.gather(streamed.norms)
        whole_steps = method.solver != "pals" or method.batch_examples is not None
        if not whole_steps and not subspace_pays(streamed, method):
            return door, streamed.loaded(), norms
        return door, streamed, norms
    door = enter(fishers.rows, backend=backend, device=device, kernel=Kernel.LOWRANK_PRODUCTS)
    part, share = shared_fishers(fishers, team)
    problem = LowRankProblem.from_fishers(part, backend=door.backend, share=share, **options)
    return door, problem, fishers.norms


def _diagonal(
    fishers: LowRankFishers | DiagonalFishers | FisherStore,
    method: LowRankNPEFF | DiagonalNPEFF,
    rng: np.random.Generator,
    backend: BackendChoice,
    device: Device,
    init: Init | Factorization | None,
    callback: Callback | None,
    checkpoint: str | PathLike[str] | Checkpoint | None,
) -> Factorization:
    if isinstance(fishers, FisherStore):
        loaded = fishers.load()
        fishers = loaded if isinstance(loaded, DiagonalFishers) else fishers
    if not isinstance(fishers, DiagonalFishers) or not isinstance(method, DiagonalNPEFF):
        raise InvalidInputError(
            f"{fishers} were given; DiagonalNPEFF takes DiagonalFishers. Make them with "
            "per_example_fishers(model, data, kind='diagonal'), or use LowRankNPEFF."
        )
    whole = fishers
    values = fishers.values.data if is_sparse(fishers.values) else fishers.values
    door = enter(values, backend=backend, device=device, kernel=Kernel.NNLS_GRAM)
    with team_of_environment() as team:
        n = len(whole)
        first, stop = share_bounds(n, team)
        if team.world > 1:
            fishers = fishers.select(np.arange(first, stop))
        problem = DiagonalProblem.from_fishers(
            fishers,
            n_components=method.n_components,
            normalize=method.normalize,
            backend=door.backend,
            device=device,
            share=Share(first, n, first, n),
            team=team,
        )
        team.agree("Fishers, methods or seeds", np.array(
            [n, problem.shape[1], problem.total, method.n_components, rng_mark(rng)]
        ))  # fmt: skip
        start = None
        if init is not None:
            start = _checked_init(init, (n, problem.shape[1]), method, problem)
        record = Recorder(ledger=problem.ledger, total=problem.total, callback=callback)
        identity = fit_identity(whole, method, start, door.backend.name, device)
        if start is not None:
            start = problem.own(start[0]), start[1]
        with checkpointed(checkpoint, identity, rng, record, team, problem.share):
            if record.done is not None:
                W, Ht = (problem.array(record.done.arrays[name]) for name in ("W", "Ht"))
                loss, kkt = (float(record.done.facts[name]) for name in ("loss", "kkt"))
                status = Status(record.done.facts["status"])
            else:
                W, Ht, loss, kkt, status = solve_diagonal(problem, method, rng, record, start)
                ended = {"loss": loss, "kkt": kkt, "status": status}
                record.keep(DONE, {"W": W, "Ht": Ht}, ended)
        all_W = team.gather(to_numpy(W).astype(np.float64))
    W_out, H_out = gauge_fixed(all_W, to_numpy(Ht).T, power=1)
    return Factorization(
        coefficients=door.out(W_out),
        components=door.out(H_out),
        norms=whole.norms(),
        sites=whole.sites,
        method=method,
        status=status,
        loss=loss,
        total=problem.total,
        residual=kkt,
        kkt=kkt,
        history=record.history(),
        products=problem.ledger.products,
        backend=door.backend.name,
        seed=None,
        facts={} if team.world == 1 else {"processes": team.world},
    )


def _finish(
    problem: LowRankProblem, W: Array, G: Array, method: LowRankNPEFF, status: Status
) -> tuple[Point, float]:
    """W at its optimum for the final G (pals), everything computed afresh, and the residual."""
    point = evaluate(problem, W, G)
    if method.solver in ("pals", "stiefel") and status is not Status.STOPPED:
        point = lower_coefficients(problem, point, sweeps=FINAL_SWEEPS, tol=FINAL_TOL)
    if method.solver == "stiefel":
        return point, final_residual(problem, point)
    return point, residuals(problem, point)


def solver_of(method: LowRankNPEFF) -> Callable[..., tuple[Point, Status]]:
    """The function that solves as ``method`` says."""
    if method.batch_examples is not None:
        return solve_online
    return {"pals": solve_pals, "mu-gd": solve_mu_gd, "stiefel": solve_stiefel}[method.solver]


def _check(
    fishers: LowRankFishers | DiagonalFishers | FisherStore,
    method: LowRankNPEFF | DiagonalNPEFF,
    on_failure: str,
) -> None:
    if not isinstance(fishers, LowRankFishers | DiagonalFishers | FisherStore):
        raise InvalidInputError(
            f"A {type(fishers).__name__} was given; LowRankFishers or DiagonalFishers are taken. "
            "Make them with per_example_fishers(model, data) or LowRankFishers.from_rows(rows)."
        )
    if not isinstance(method, LowRankNPEFF | DiagonalNPEFF):
        raise InvalidInputError(
            f"method={method!r} was given; LowRankNPEFF(n_components) or "
            "DiagonalNPEFF(n_components) is accepted."
        )
    if on_failure not in ON_FAILURE:
        raise InvalidInputError(
            f"on_failure={on_failure!r} was given; accepted: {', '.join(ON_FAILURE)}."
        )
    content: Any = fishers
    if not isinstance(fishers, FisherStore):
        content = fishers.rows if isinstance(fishers, LowRankFishers) else fishers.values
    if not len(fishers) or 0 in getattr(content, "shape", ()):
        raise InvalidInputError(
            f"{fishers} has nothing to factorize; give at least one example with one row."
        )


def _checked_init(
    init: Init | Factorization,
    shape: tuple[int, int],
    method: LowRankNPEFF | DiagonalNPEFF,
    problem: LowRankProblem | DiagonalProblem,
) -> Init:
    W, G = (init.coefficients, init.components) if isinstance(init, Factorization) else init
    n, m = shape
    wanted = (n, method.n_components), (method.n_components, m)
    if (tuple(W.shape), tuple(G.shape)) != wanted:
        raise InvalidInputError(
            f"init has W {tuple(W.shape)} and G {tuple(G.shape)}; these Fishers and this method "
            f"take W {wanted[0]} and G {wanted[1]}."
        )
    W, G = problem.array(W), problem.array(G)
    xp = problem.xp
    finite = bool(xp.all(xp.isfinite(W))) and bool(xp.all(xp.isfinite(G)))
    negative = bool(xp.any(W < 0)) or (isinstance(method, DiagonalNPEFF) and bool(xp.any(G < 0)))
    if not finite or negative:
        raise InvalidInputError("init must be finite, and its W (and H) non-negative.")
    return W, G


@contextmanager
def team_of_environment() -> Iterator[Team]:
    """The processes of one ``torchrun``, or this one alone."""
    with process_group(Ranks.of_environment()) as group:
        yield Team(group)


def rng_mark(rng: np.random.Generator) -> float:
    """A number that tells states of generators apart; nothing is drawn."""
    return float(zlib.crc32(repr(rng.bit_generator.state).encode()))


def provenance(fishers: LowRankFishers | DiagonalFishers | FisherStore) -> Mapping[str, Any]:
    """Where the Fishers came from."""
    if isinstance(fishers, FisherStore):
        facts: Mapping[str, Any] = fishers.manifest["facts"]
        return facts
    return fishers.facts


def _report_failure(result: Factorization, on_failure: str) -> None:
    fixed_steps = result.method.solver in ("mu-gd", "mu")
    if result.status in (Status.CONVERGED, Status.STOPPED) or (
        fixed_steps and result.status is Status.MAX_STEPS
    ):
        return
    text = (
        f"factorize ended with {str(result.status)!r}: {result.status.message} Relative gradient "
        f"{result.residual:.2e}, KKT residual {result.kkt:.2e}, tol {result.method.tol:.0e}."
    )
    if on_failure == "raise":
        raise SolveFailedError(text)
    if on_failure == "warn":
        warnings.warn(text, ConvergenceWarning, stacklevel=3)
