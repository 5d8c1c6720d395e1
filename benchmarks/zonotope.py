"""Zonotopes and vertex programs: rates on one core, and vertex programs against QP solvers.

Every section is verified before it is timed. ``python benchmarks/zonotope.py [sections]``; the
peers daqp, piqp and proxsuite are used where they are installed (``pip install daqp piqp
proxsuite``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fishertope.core.backend import Kernel, get_backend, thread_limit
from fishertope.core.zonotope import Sweep, Zonotope, map_vertices, n_vertices, tree_blocks
from fishertope.theory import (
    ReluProblem,
    greedy_search,
    select_vertices,
    solve,
    solve_batch,
    solve_with_cvxpy,
    with_bias,
)

SECONDS, REPEATS = 2.0, 7
# (JOBS_N, 4) has 21 million vertices: more than 2 seconds for one process.
JOBS_N = 400


def median_rate(work: Callable[[], int], seconds: float, repeats: int) -> dict[str, float]:
    """Units of work a second: the median of ``repeats`` loops of at least ``seconds``."""
    work()
    rates = []
    for _ in range(repeats):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            done += work()
        rates.append(done / (time.perf_counter() - start))
    return {"median": float(np.median(rates)), "low": min(rates), "high": max(rates)}


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def sweep(s: float, r: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, d in ((120, 4), (24, 10)):
        plan = Sweep.over(normal(n, d))
        total = min(plan.n_vertices, 1 << 19)
        assert sum(map(len, Sweep.over(normal(12, d)).blocks())) == n_vertices(12, d)
        work = lambda: sum(map(len, plan.blocks(0, total)))  # noqa: E731, B023
        found[f"vertices/s at ({n},{d})"] = median_rate(work, s, r)
    return found


def tree(s: float, r: int) -> dict[str, Any]:
    x = normal(40, 5)
    assert sum(map(len, tree_blocks(x))) == n_vertices(40, 5)
    work = lambda: sum(map(len, tree_blocks(x)))  # noqa: E731
    return {"regions/s at (40,5)": median_rate(work, s, r)}


def sampler(s: float, r: int) -> dict[str, Any]:
    z = Zonotope(normal(50, 4))
    seeds = iter(range(10**9))
    work = lambda: len(z.sample(20_000, seed=next(seeds)))  # noqa: E731
    return {"uniform samples/s at (50,4)": median_rate(work, s, r)}


def selection(s: float, r: int) -> dict[str, Any]:
    x, y = with_bias(normal(10_000, 19)), normal(10_000, 1)[:, 0]
    vertex = select_vertices(x, y)
    assert vertex.mse < 1e-10
    assert len(vertex.signs) == 1000
    times = []
    for _ in range(r):
        start = time.perf_counter()
        select_vertices(x, y)
        times.append(time.perf_counter() - start)
    return {"seconds at N=10000, d=19": {"median": float(np.median(times)), "low": min(times),
                                         "high": max(times)}}  # fmt: skip


def programs_at(n: int, d: int, m: int, count: int) -> tuple[ReluProblem, np.ndarray]:
    rng = np.random.default_rng(0)
    x = with_bias(rng.normal(size=(n, d)))
    problem = ReluProblem(
        inputs=x, targets=rng.normal(size=n), signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
    )
    patterns = np.where(rng.normal(size=(count, m, d + 1)) @ x.T > 0, 1, -1).astype(np.int8)
    return problem, patterns


def quadratic(problem: ReluProblem, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H, q, G of the program, for the peers; forming them is not timed."""
    x, v = problem.inputs, problem.signs
    m, d = len(s), x.shape[1]
    phi = np.hstack([v[j] * (s[j] > 0)[:, None] * x for j in range(m)])
    cone = np.zeros((m * len(x), m * d))
    for j in range(m):
        cone[j * len(x) : (j + 1) * len(x), j * d : (j + 1) * d] = s[j][:, None] * x
    h = phi.T @ phi
    return h + 1e-11 * np.trace(h) / len(h) * np.eye(len(h)), -phi.T @ problem.targets, cone


def peers() -> dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]:
    """Solvers called directly: min ½wᵀHw + q·w, Gw ≥ 0; those that are installed."""
    found: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {}
    try:
        import daqp

        def by_daqp(h: np.ndarray, q: np.ndarray, g: np.ndarray) -> np.ndarray:
            upper, lower = np.full(len(g), 1e30), np.zeros(len(g))
            return np.asarray(daqp.solve(h, q, g, upper, lower, np.zeros(len(g), np.int32))[0])

        found["daqp"] = by_daqp
    except ImportError:
        pass
    try:
        import piqp

        def by_piqp(h: np.ndarray, q: np.ndarray, g: np.ndarray) -> np.ndarray:
            solver = piqp.DenseSolver()
            solver.settings.eps_abs = solver.settings.eps_rel = 1e-9
            solver.setup(h, q, None, None, g, np.zeros(len(g)), np.full(len(g), 1e30))
            solver.solve()
            return np.asarray(solver.result.x)

        found["piqp"] = by_piqp
    except ImportError:
        pass
    try:
        import proxsuite

        def by_proxqp(h: np.ndarray, q: np.ndarray, g: np.ndarray) -> np.ndarray:
            qp = proxsuite.proxqp.dense.QP(len(h), 0, len(g))
            qp.settings.eps_abs = 1e-9
            qp.init(h, q, None, None, g, np.zeros(len(g)), np.full(len(g), 1e30))
            qp.solve()
            return np.asarray(qp.results.x)

        found["proxqp"] = by_proxqp
    except ImportError:
        pass
    return found


def programs(s: float, r: int) -> dict[str, Any]:
    problem, patterns = programs_at(50, 3, 4, 4000)
    few = patterns[:60]
    ready = [quadratic(problem, p) for p in few]
    ours, _ = solve_batch(problem, few)
    losses = np.array([problem.loss(w) for w in ours])
    for k in range(8):
        assert abs(solve_with_cvxpy(problem, few[k]) - losses[k]) < 1e-8 * max(1, losses[k])
    others = peers()
    accuracy = {}
    for name, run in others.items():
        values = np.array([problem.loss(run(*qp).reshape(ours[0].shape)) for qp in ready])
        accuracy[name] = float(np.abs(values - losses).max())
    rounds: dict[str, list[float]] = {name: [] for name in ("fishertope", *others, "cvxpy")}
    solve_batch(problem, patterns)
    for _ in range(r):  # interleaved: the load of the machine hits all alike
        rounds["fishertope"].append(_once(lambda: solve_batch(problem, patterns), s, 4000))
        for name, run in others.items():
            work = lambda: [run(*qp) for qp in ready]  # noqa: E731, B023
            rounds[name].append(_once(work, s, len(ready)))
        work = lambda: [solve_with_cvxpy(problem, p) for p in few[:10]]  # noqa: E731
        rounds["cvxpy"].append(_once(work, s, 10))
    best = max(others, key=lambda n: np.median(rounds[n])) if others else "cvxpy"
    ratios = {
        name: float(np.median(np.array(rounds["fishertope"]) / np.array(rounds[name])))
        for name in rounds
        if name != "fishertope"
    }
    return {
        "programs/s at (50,3,4)": {n: float(np.median(v)) for n, v in rounds.items()},
        "times as fast as": ratios,
        "best peer": best,
        "largest |loss − ours|": accuracy,
    }


def _once(work: Callable[[], Any], seconds: float, size: int) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        done += size
    return done / (time.perf_counter() - start)


def edges(s: float, r: int) -> dict[str, Any]:
    """All neighbours of a tight local minimum: from scratch, and restarted with the bound."""
    found: dict[str, Any] = {}
    for n, d, m in ((50, 3, 4), (100, 5, 6), (200, 8, 6)):
        problem, patterns = programs_at(n, d, m, 1)
        here = greedy_search(problem, patterns=patterns[0], neighbourhood="tight")
        turned = []
        for j in range(m):
            for i in Zonotope(problem.inputs).walls(here.patterns[j], method="cone"):
                turned.append((j, int(i)))
        units, rows = (np.array(t) for t in zip(*turned, strict=True))
        every = np.repeat(here.patterns[None], len(turned), axis=0)
        every[np.arange(len(turned)), units, rows] *= -1
        kernel = get_backend("numba").raw(Kernel.NEIGHBOUR_PROGRAMS)
        given = (problem.inputs, problem.targets, problem.signs,
                 here.patterns.astype(float), here.multipliers, units, rows)  # fmt: skip
        limit = here.loss * (1 - 1e-9)
        cold_losses = np.array([problem.loss(w) for w in solve_batch(problem, every)[0]])
        warm_losses = kernel(*given, incumbent=limit)[1]
        better = cold_losses < limit * (1 - 1e-8)
        assert np.isfinite(warm_losses[better]).all()
        assert np.abs(warm_losses[better] - cold_losses[better]).max(initial=0.0) < 1e-7
        pairs = []
        for _ in range(r):
            cold = _once(lambda: solve_batch(problem, every), s, 1)  # noqa: B023
            warm = _once(lambda: kernel(*given, incumbent=limit), s, 1)  # noqa: B023
            pairs.append(warm / cold)
        found[f"warm/cold at ({n},{d},{m}), {len(turned)} neighbours"] = {
            "median": float(np.median(pairs)), "low": min(pairs), "high": max(pairs)
        }  # fmt: skip
    return found


def count_on(block: np.ndarray) -> int:
    return int(np.count_nonzero(block > 0))


def jobs(s: float, r: int) -> dict[str, Any]:
    """The sweep shared by two processes against one."""
    x = normal(100, 4)
    total = n_vertices(100, 4)
    one = sum(v for _, v in map_vertices(x, count_on, n_jobs=1, shard=1 << 17))
    two = sum(v for _, v in map_vertices(x, count_on, n_jobs=2, shard=1 << 17))
    assert one == two
    assert one == total * 50  # antipodes: half of all signs
    x = normal(JOBS_N, 4)
    pairs, ones = [], []
    for _ in range(r):
        times = []
        for k in (1, 2):
            start = time.perf_counter()
            for _ in map_vertices(x, count_on, n_jobs=k, shard=1 << 20):
                pass
            times.append(time.perf_counter() - start)
        pairs.append(times[0] / times[1])
        ones.append(times[0])
    return {"two processes over one": {"median": float(np.median(pairs)), "low": min(pairs),
                                       "high": max(pairs)},
            "seconds of one": float(np.median(ones))}  # fmt: skip


def memory(s: float, r: int) -> dict[str, Any]:
    """Resident memory while 1e8 vertices of (60, 8) stream by."""
    plan = Sweep.over(normal(60, 8))
    goal = 100_000_000
    assert plan.n_vertices >= goal
    seen, marks, start = 0, [], time.perf_counter()
    for block in plan.blocks(0, goal):
        seen += len(block)
        if seen % (20 << 20) < len(block):
            marks.append(_resident())
    assert seen == goal
    return {"resident MiB along 1e8 vertices": marks,
            "seconds": time.perf_counter() - start}  # fmt: skip


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


SECTIONS = {f.__name__: f for f in (sweep, tree, sampler, selection, programs, edges, jobs, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=[n for n in SECTIONS if n != "memory"])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args()
    solve(programs_at(50, 3, 4, 1)[0], programs_at(50, 3, 4, 1)[1][0])
    for name in given.sections:
        with thread_limit(1):
            found = SECTIONS[name](given.seconds, given.repeats)
        print(json.dumps({name: found, "load": os.getloadavg()[0]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
