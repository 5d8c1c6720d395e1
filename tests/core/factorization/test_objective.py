"""The Gram identities of the objective against plain dense algebra and finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.backend import get_backend
from fishertope.core.factorization import LowRankNPEFF, factorize, objective
from fishertope.core.factorization.pals import (
    evaluate,
    line_step,
    lower_coefficients,
    newton_direction,
)
from fishertope.core.factorization.problem import LowRankProblem
from fishertope.core.fisher import LowRankFishers

from .planted import dense_loss, planted, ragged

IDENTITY = 1e-10
DIFFERENCE = 1e-6


def problem_of(fishers, r, backend="reference", normalize=False):
    return LowRankProblem.from_fishers(
        fishers, n_components=r, normalize=normalize, backend=get_backend(backend)
    )


def random_point(fishers, r, seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (len(fishers), r)), rng.normal(size=(r, fishers.n_columns))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    m=st.integers(1, 8),
    r=st.integers(1, 6),
    most=st.integers(1, 4),
)
def test_check_10_gram_loss_equals_dense_loss(seed, n, m, r, most):
    fishers = ragged(seed, n=n, m=m, most=most)
    W, G = random_point(fishers, r, seed)
    point = evaluate(problem_of(fishers, r), W, G)
    dense = dense_loss(fishers, W, G)
    assert abs(point.loss - dense) <= IDENTITY * max(1.0, dense)


def test_check_10_one_unit_rank_one_example_has_total_exactly_one():
    """The reference's T counted a unit-norm rank-one Fisher as 3."""
    fishers = LowRankFishers.from_rows(np.array([[[1.0, 0.0, 0.0]]]))
    assert problem_of(fishers, 1).total == 1.0


def test_check_10_total_is_the_sum_of_squared_norms():
    fishers = ragged(3)
    squares = sum(np.linalg.norm(fishers.dense(i)) ** 2 for i in range(len(fishers)))
    assert abs(problem_of(fishers, 2).total - squares) <= IDENTITY * squares


def test_check_11_gradients_equal_finite_differences():
    fishers = ragged(0)
    W, G = random_point(fishers, 3, 1)
    problem = problem_of(fishers, 3)
    point = evaluate(problem, W, G)
    pullback = problem.pullback(W, point.B)
    for x, gradient in (
        (W, objective.coefficient_gradient(W, point.N, point.S)),
        (G, objective.component_gradient(W, G, point.S, pullback)),
    ):
        numeric = np.zeros_like(x)
        for index in np.ndindex(*x.shape):
            h = 1e-5
            keep = x[index]
            x[index] = keep + h
            up = dense_loss(fishers, W, G)
            x[index] = keep - h
            down = dense_loss(fishers, W, G)
            x[index] = keep
            numeric[index] = (up - down) / (2 * h)
        scale = np.abs(numeric).max()
        assert np.abs(gradient - numeric).max() <= DIFFERENCE * scale


@pytest.mark.parametrize("seed", range(3))
def test_check_11_quartic_equals_direct_evaluation(seed):
    fishers = ragged(seed)
    W, G = random_point(fishers, 4, seed)
    problem = problem_of(fishers, 4)
    point = evaluate(problem, W, G)
    D = np.random.default_rng(seed + 9).normal(size=G.shape)
    _, N1, N2 = problem.line(point.B, D)
    c = objective.line_coefficients(
        problem.total, W, point.N, N1, N2, point.S, objective.gram(G, D), objective.gram(D)
    )
    for t in (-1.3, -0.2, 0.0, 0.4, 2.0):
        direct = dense_loss(fishers, W, G + t * D)
        assert abs(np.polyval(c[::-1], t) - direct) <= IDENTITY * max(1.0, abs(direct))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(0.01, 5))
def test_quartic_minimiser_is_global(lower, top):
    c = np.array([*lower, top])
    t, value = objective.minimise_quartic(c)
    grid = np.polyval(c[::-1], np.linspace(-60, 60, 24_001))
    assert value <= grid.min() + 1e-9 * max(1.0, abs(grid.min()))
    assert abs(np.polyval(c[::-1], t) - value) <= 1e-9 * max(1.0, abs(value))


def test_quartic_minimiser_of_a_flat_line_stays():
    assert objective.minimise_quartic(np.array([2.0, 0, 0, 0, 0])) == (0.0, 2.0)
    assert objective.minimise_quartic(np.array([2.0, np.nan, 0, 0, 0]))[0] == 0.0


def test_check_12_line_step_tracks_products_and_never_raises_the_loss():
    fishers = ragged(5)
    W, G = random_point(fishers, 3, 2)
    problem = problem_of(fishers, 3)
    point = evaluate(problem, W, G)
    for _ in range(20):
        D, _ = newton_direction(problem, point)
        after = line_step(problem, point, D)
        assert after.loss <= point.loss
        point = after
    fresh = evaluate(problem, point.W, point.G)
    np.testing.assert_allclose(point.B, fresh.B, atol=1e-10)
    np.testing.assert_allclose(point.S, fresh.S, atol=1e-10)
    assert abs(point.loss - fresh.loss) <= IDENTITY * problem.total


def test_check_12_multiplicative_updates_of_the_coefficients_never_raise_the_loss():
    fishers = ragged(6, n=20)
    W, G = random_point(fishers, 4, 5)
    W += 0.1
    point = evaluate(problem_of(fishers, 4), W, G)
    losses = [point.loss]
    for _ in range(100):
        W = W * point.N / (W @ point.S**2 + 1e-9)
        losses.append(objective.loss_value(problem_of(fishers, 4).total, W, point.N, point.S))
    assert (np.diff(losses) <= 1e-12 * losses[0]).all()
    lower = lower_coefficients(problem_of(fishers, 4), point, sweeps=2000, tol=1e-12)
    assert lower.loss <= losses[-1] + 1e-9


def block_step(fishers, W, G, k):
    """The exact optimum over g_k, then over W_:k, the others fixed; by dense matrices."""
    residual = np.zeros((fishers.n_columns,) * 2)
    rest = [j for j in range(len(G)) if j != k]
    for i in range(len(fishers)):
        fit = np.einsum("j,ja,jb->ab", W[i, rest], G[rest], G[rest])
        residual += W[i, k] * (fishers.dense(i) - fit)
    values, vectors = np.linalg.eigh(residual)
    G, W = G.copy(), W.copy()
    G[k] = np.sqrt(max(values[-1], 0.0) / max((W[:, k] ** 2).sum(), 1e-300)) * vectors[:, -1]
    size = (G[k] @ G[k]) ** 2
    for i in range(len(fishers)):
        fit = np.einsum("j,ja,jb->ab", W[i, rest], G[rest], G[rest])
        gain = G[k] @ (fishers.dense(i) - fit) @ G[k]
        W[i, k] = max(0.0, gain / size) if size > 0 else 0.0
    return W, G


def test_check_12_exact_block_steps_never_raise_the_loss_and_agree_on_the_optimum():
    fishers, _, _ = planted(3, n=30, m=10, r=3, noise=0.2)
    W, G = random_point(fishers, 3, 1)
    losses = [dense_loss(fishers, W, G)]
    for step in range(90):
        W, G = block_step(fishers, W, G, step % 3)
        losses.append(dense_loss(fishers, W, G))
    assert (np.diff(losses) <= 1e-10 * losses[0]).all()
    found = factorize(fishers, LowRankNPEFF(3, normalize=False, tol=1e-8), on_failure="return")
    assert found.loss <= losses[-1] * (1 + 1e-6)
    stays = found.coefficients, found.components
    for k in range(3):
        stays = block_step(fishers, *stays, k)
    assert abs(dense_loss(fishers, *stays) - found.loss) <= 1e-8 * found.total


def test_restriction_is_exact_inside_the_subspace():
    fishers = ragged(7, m=15)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(15, 6)))[0].T
    W, small = rng.uniform(0, 1, (len(fishers), 3)), rng.normal(size=(3, 6))
    problem = problem_of(fishers, 3)
    inside = evaluate(problem.restrict(basis), W, small).loss
    outside = evaluate(problem, W, small @ basis).loss
    assert abs(inside - outside) <= IDENTITY * outside


def test_removal_cost_is_the_rise_of_the_loss():
    fishers = ragged(8)
    W, G = random_point(fishers, 4, 3)
    point = evaluate(problem_of(fishers, 4), W, G)
    costs = objective.removal_costs(W, point.N, point.S)
    for k in range(4):
        without = W.copy()
        without[:, k] = 0.0
        rise = dense_loss(fishers, without, G) - point.loss
        assert abs(costs[k] - rise) <= 1e-9 * max(1.0, abs(rise))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-4, 4), min_size=3, max_size=3), st.sampled_from([-3.0, -0.01, 1.0, 250.0])
)
def test_roots_of_cubics_with_three_real_ones_are_all_found(wanted, lead):
    x, y, z = wanted
    a, b, c, d = lead * np.array([1.0, -(x + y + z), x * y + y * z + z * x, -x * y * z])
    found = objective._cubic_roots(float(a), float(b), float(c), float(d))
    for t in found:
        assert min(abs(t - w) for w in wanted) <= 1e-4  # as a double root is no better told
    apart = min(abs(x - y), abs(y - z), abs(z - x))
    if apart > 0.1:
        assert sorted(found) == pytest.approx(sorted(wanted), abs=1e-9)
