"""Vertex programs, flips, search, selection and exhaustion against independent solvers."""

import math
import os
from itertools import product

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.zonotope import general_position
from fishertope.theory import (
    ReluProblem,
    brute_force,
    flip_gains,
    greedy_search,
    select_vertices,
    solve,
    solve_with_cvxpy,
    with_bias,
)
from fishertope.theory.greedy import neighbours

SIX = with_bias([(0, -1), (0, 0), (-2, -3), (-4, -4), (3, -2), (4, -2)])
SIX_TARGETS = np.array([-1 / 2, 1 / 4, -1 / 2, 1 / 4, 1, -3 / 4])


def made(n, d, m, seed=0):
    rng = np.random.default_rng(seed)
    problem = ReluProblem(
        inputs=with_bias(rng.normal(size=(n, d))),
        targets=rng.normal(size=n),
        signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0),
    )
    return problem, rng


def patterns_of(problem, rng):
    directions = rng.normal(size=(problem.sizes[2], problem.sizes[1]))
    return np.where(directions @ problem.inputs.T > 0, 1, -1)


@pytest.mark.parametrize(
    ("n", "d", "m", "trials"),
    [
        (12, 1, 1, 40),
        (20, 2, 2, 50),
        (30, 3, 4, 40),
        (8, 3, 4, 40),
        (40, 5, 3, 20),
        (100, 4, 6, 14),
    ],
)
def test_z1_check_05_programs_agree_with_cvxpy(n, d, m, trials):
    """204 programs; (8, 3, 4) has more weights than examples."""
    for trial in range(trials):
        problem, rng = made(n, d, m, trial)
        patterns = patterns_of(problem, rng)
        if trial % 5 == 1:
            patterns[0] = -1  # all off, which a bias makes feasible
        if trial % 5 == 2:
            patterns[-1] = patterns[0]
        solution = solve(problem, patterns)
        other = solve_with_cvxpy(problem, patterns)
        assert abs(solution.loss - other) <= 1e-8 * max(1.0, other)
        assert solution.kkt <= 1e-8
        inside = patterns * (solution.weights @ problem.inputs.T)
        assert inside.min() >= -1e-9 * max(1.0, np.abs(solution.weights).max())


@pytest.mark.parametrize("kind", ["integers", "duplicates", "scales", "one target"])
def test_z1_check_05_degenerate_programs_are_solved(kind):
    """Two methods that share no step, on data on which ΦᵀΦ is singular or badly scaled."""
    for trial in range(60):
        rng = np.random.default_rng(trial)
        n, d, m = (int(rng.integers(*r)) for r in ((2, 60), (1, 5), (1, 7)))
        x, y = rng.normal(size=(n, d)), rng.normal(size=n)
        if kind == "integers":
            x = rng.integers(-2, 3, size=(n, d)).astype(float)
        elif kind == "duplicates":
            x = x[rng.integers(0, n, size=n)]
        elif kind == "scales":
            x = x * 10.0 ** rng.integers(-6, 7, size=d)
        else:
            y = np.eye(n)[0]
        x = with_bias(x)
        problem = ReluProblem(inputs=x, targets=y, signs=rng.choice([-1.0, 1.0], size=m))
        directions = rng.normal(size=(m, d + 1)) / np.abs(x).max(axis=0)
        patterns = np.where(directions @ x.T >= 0, 1, -1)
        fast, plain = (solve(problem, patterns, backend=b) for b in ("numba", "reference"))
        assert fast.kkt <= 1e-8
        assert plain.kkt <= 1e-8
        assert fast.loss == pytest.approx(plain.loss, rel=1e-8, abs=1e-8)


def test_z1_check_06_flip_rule_prices_neighbours():
    checked = 0
    for seed in range(560):
        problem, rng = made(16, 2, 2, seed)
        patterns = patterns_of(problem, rng)
        phi = np.hstack(
            [
                v * (s > 0)[:, None] * problem.inputs
                for v, s in zip(problem.signs, patterns, strict=True)
            ]
        )
        if np.linalg.cond(phi) > 1e6:
            continue  # the rule needs Φ of full rank
        solution = solve(problem, patterns)
        flips = flip_gains(problem, solution)
        if flips.dead.any():
            continue
        for j, i in zip(*np.nonzero(flips.tight), strict=True):
            if abs(flips.gains[j, i]) <= 1e-5:
                continue
            turned = solution.patterns.copy()
            turned[j, i] *= -1
            lower = solve(problem, turned).loss < solution.loss * (1 - 1e-12)
            assert lower == (flips.gains[j, i] > 0)
            checked += 1
    assert checked >= 500


def test_z1_check_06_tight_stops_are_local_minima():
    for seed in range(6):
        problem, rng = made(20, 2, 2, seed)
        found = greedy_search(problem, neighbourhood="tight", seed=seed)
        if "local minimum" not in found.certificate:
            continue
        for size in (1e-7, 1e-6, 1e-5):
            scale = size * np.abs(found.weights).max()
            for step in rng.normal(size=(100, *found.weights.shape)):
                loss = problem.loss(found.weights + scale * step / np.linalg.norm(step))
                assert loss > found.loss - 1e-4 * size * max(1.0, found.loss)


def test_z1_check_07_greedy_descends_and_no_neighbour_is_better():
    for seed in range(4):
        problem, _ = made(14, 2, 2, seed)
        found = greedy_search(problem, seed=seed)
        assert all(b < a for a, b in zip(found.history, found.history[1:], strict=False))
        for patterns in neighbours(problem, found.patterns):
            assert solve_with_cvxpy(problem, patterns) > found.loss * (1 - 1e-6) - 1e-9


def test_z1_check_07_and_08_exhaustion():
    agreed = 0
    for seed, (n, d, m) in enumerate([(8, 1, 2), (9, 1, 2), (8, 2, 2), (7, 2, 2), (9, 2, 1)]):
        problem, _ = made(n, d, m, seed)
        whole, pruned = brute_force(problem, prune=False), brute_force(problem)
        assert whole.n_solved == whole.n_cells == pruned.n_solved + pruned.n_pruned
        assert pruned.solution.loss == pytest.approx(whole.solution.loss, rel=1e-9, abs=1e-12)
        assert whole.worst_kkt < 1e-7
        found = greedy_search(problem, n_starts=40, seed=seed)
        assert found.loss >= whole.solution.loss * (1 - 1e-8) - 1e-12
        agreed += found.loss <= whole.solution.loss * (1 + 1e-6) + 1e-12
    assert agreed >= 4


@pytest.mark.slow
def test_z1_check_07_a_hundred_starts_find_the_global_optimum():
    """Fifteen instances, N = 8 to 14, d = 1 to 3, two units; at least 12 of 15."""
    sizes = [(8, 1), (9, 1), (10, 1), (12, 1), (14, 1), (8, 2), (9, 2), (10, 2), (11, 2), (12, 2)]
    sizes += [(8, 3), (9, 3), (9, 3), (10, 3), (10, 3)]
    quick = bool(os.environ.get("FISHERTOPE_QUICK"))
    sizes, starts = (sizes[:6], 40) if quick else (sizes, 100)
    found = 0
    for seed, (n, d) in enumerate(sizes):
        problem, _ = made(n, d, 2, seed)
        least = brute_force(problem).solution.loss
        best = greedy_search(problem, n_starts=starts, seed=seed).loss
        assert best >= least * (1 - 1e-8) - 1e-12
        found += best <= least * (1 + 1e-6) + 1e-12
    assert found >= 0.8 * len(sizes)


@pytest.mark.parametrize(("n", "d"), [(8, 1), pytest.param(10, 2, marks=pytest.mark.slow)])
def test_z1_check_08_exhaustion_against_cvxpy(n, d):
    problem, _ = made(n, d, 2, 5)
    if d == 2 and os.environ.get("FISHERTOPE_QUICK"):
        problem, _ = made(6, 2, 2, 5)
    from fishertope.core.zonotope import Zonotope

    rows = np.concatenate(list(Zonotope(problem.inputs).patterns()))
    least = min(solve_with_cvxpy(problem, np.array([a, b])) for a, b in product(rows, rows))
    assert brute_force(problem).solution.loss == pytest.approx(least, abs=1e-8)
    assert brute_force(problem, prune=False).solution.loss == pytest.approx(least, abs=1e-8)


def test_processes_find_what_one_finds():
    problem, _ = made(16, 2, 2, 3)
    one = greedy_search(problem, n_starts=6, seed=1)
    two = greedy_search(problem, n_starts=6, seed=1, n_jobs=2)
    assert one.loss == two.loss
    assert np.array_equal(one.weights, two.weights)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_greedy_search_takes_classification_losses(loss):
    problem, _ = made(12, 1, 2, 1)
    labels = ReluProblem(
        inputs=problem.inputs, targets=np.sign(problem.targets), signs=problem.signs
    )
    found = greedy_search(labels, loss=loss, penalty=0.05, neighbourhood="tight", seed=2)
    assert all(b < a for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.loss <= found.history[0]
    with pytest.raises(InvalidInputError, match="penalty"):
        greedy_search(labels, loss="logistic")
    with pytest.raises(InvalidInputError, match="regularised_optimum"):
        greedy_search(labels, penalty=0.1)


@pytest.mark.parametrize(
    ("n", "d"),
    [(50, 2), (200, 2), (200, 9), (1000, 4), (1000, 19), (2000, 9), (5000, 9), (5000, 49)],
)
def test_z1_check_09_selected_vertices_fit(n, d):
    rng = np.random.default_rng(n + d)
    x, y = with_bias(rng.normal(size=(n, d))), rng.normal(size=n)
    vertex = select_vertices(x, y)
    assert len(vertex.signs) == 2 * math.ceil(n / (d + 1))
    assert ((np.maximum(x @ vertex.weights.T, 0) @ vertex.signs - y) ** 2).mean() < 1e-10
    assert (vertex.patterns * (vertex.weights @ x.T)).min() > 0
    assert sorted(np.concatenate(vertex.blocks).tolist()) == list(range(n))


@pytest.mark.parametrize("kind", ["zero-one", "grid", "rank-deficient", "duplicates"])
def test_z1_check_09_degenerate_data_is_fitted(kind):
    rng = np.random.default_rng(3)
    raw = {
        "zero-one": np.unique(rng.integers(0, 2, size=(100, 9)), axis=0),
        "grid": np.array(list(product(range(20), range(20)))),
        "rank-deficient": rng.normal(size=(60, 2)) @ rng.normal(size=(2, 5)),
        "duplicates": np.repeat(rng.normal(size=(20, 3)), 2, axis=0),
    }[kind].astype(float)
    x, y = with_bias(raw), rng.normal(size=len(raw))
    if kind == "duplicates":
        y = np.repeat(y[::2], 2)
    vertex = select_vertices(x, y)
    assert len(vertex.signs) == 2 * len(vertex.blocks)
    assert ((np.maximum(x @ vertex.weights.T, 0) @ vertex.signs - y) ** 2).mean() < 1e-10
    assert (vertex.patterns * (vertex.weights @ x.T)).min() > 0


def test_z1_check_09_the_general_solver_reaches_zero_there():
    problem, _ = made(30, 4, 12)
    vertex = select_vertices(problem.inputs, problem.targets)
    there = ReluProblem(inputs=problem.inputs, targets=problem.targets, signs=vertex.signs)
    assert solve(there, vertex.patterns).loss < 1e-8


def test_z1_check_10_too_few_parameters_cannot_fit_noise():
    for seed in range(3):
        problem, _ = made(9, 1, 2, seed)
        assert brute_force(problem).solution.loss > 1e-6


@pytest.mark.parametrize(
    ("shift", "least", "within"),
    [(0.0, 0.1875, 1e-8), (1e-2, 0.15625, 1e-5), (-1e-2, 0.15625, 1e-5), (1e-3, 0.15625, 1e-5)],
)
def test_z1_check_12_the_optimum_jumps(shift, least, within):
    x = SIX.copy()
    x[4, 1] += shift
    assert general_position(x).holds
    problem = ReluProblem(inputs=x, targets=SIX_TARGETS, signs=[1, -1])
    assert brute_force(problem).solution.loss == pytest.approx(least, abs=within)


def test_z1_check_12_equal_signs_do_not_jump():
    losses = []
    for shift in (0.0, 1e-3, -1e-3):
        x = SIX.copy()
        x[4, 1] += shift
        problem = ReluProblem(inputs=x, targets=SIX_TARGETS, signs=[1, 1])
        losses.append(brute_force(problem).solution.loss)
    assert max(losses) - min(losses) < 1e-2


def test_z1_check_13_refusals():
    x = with_bias([[0.0], [1.0], [1.0]])
    with pytest.raises(InvalidInputError, match=r"Rows \[1, 2\] are equal"):
        select_vertices(x, [0.0, 1.0, 2.0])
    with pytest.raises(InvalidInputError, match="with_bias"):
        select_vertices(np.random.default_rng(0).normal(size=(5, 1)), np.zeros(5))
    with pytest.raises(InvalidInputError, match="signs"):
        ReluProblem(inputs=x, targets=np.zeros(3), signs=[0.5])
    with pytest.raises(InvalidInputError, match=r"\[1\]"):
        ReluProblem(inputs=x, targets=[0.0, np.nan, 1.0], signs=[1])
    with pytest.raises(InvalidInputError, match="cells"):
        brute_force(made(30, 3, 4)[0], max_cells=1000)
