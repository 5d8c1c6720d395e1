"""Orthonormal components, the orthogonality penalty, online batches and named compressions."""

import numpy as np
import pytest

from fishertope.core.backend import available_backends, get_backend
from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import LowRankNPEFF, factorize, matched_cosines
from fishertope.core.factorization.pals import evaluate, line_step, newton_direction
from fishertope.core.factorization.penalty import Penalty
from fishertope.core.factorization.problem import LowRankProblem
from fishertope.core.factorization.stiefel import at, tangent
from fishertope.core.fisher import LowRankFishers, save_fishers
from fishertope.core.status import Status

from .planted import dense_loss, planted, ragged

QUIET = {"on_failure": "return"}


def orthonormal_problem(seed, n=150, m=30, r=5, noise=0.0):
    rng = np.random.default_rng(seed)
    G = np.linalg.qr(rng.normal(size=(m, r)))[0].T
    W = rng.random((n, r)) * (rng.random((n, r)) < 0.5)
    W[np.arange(n), rng.integers(r, size=n)] += 0.5
    rows = np.sqrt(W)[:, :, None] * G[None] + noise * rng.normal(size=(n, r, m)) / m**0.5
    return LowRankFishers.from_rows(rows), G


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("compress", ["none", "gram"])
def test_stiefel_keeps_orthonormal_components_and_never_raises_the_loss(backend, compress):
    fishers, G = orthonormal_problem(0, noise=0.2)
    method = LowRankNPEFF(5, solver="stiefel", compress=compress, tol=1e-6)
    found = factorize(fishers, method, backend=backend, **QUIET)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(5), atol=1e-10)
    assert matched_cosines(G, found.components)[0].min() >= 0.98
    assert found.status is Status.CONVERGED
    assert found.residual <= 1e-5
    for phase in found.history.phases:
        assert (np.diff(found.history.of(phase)) <= 1e-12 * found.total).all()
    expected = dense_loss(fishers.normalized(), found.coefficients, found.components)
    assert abs(found.loss - expected) <= 1e-9 * found.total
    np.testing.assert_allclose(found.transform(fishers), found.coefficients, atol=1e-8)


def test_stiefel_with_exact_data_finds_them_and_overcomplete_requests_are_refused():
    fishers, G = orthonormal_problem(1)
    found = factorize(fishers, LowRankNPEFF(5, solver="stiefel", tol=1e-8), **QUIET)
    assert found.relative_loss <= 1e-8
    assert matched_cosines(G, found.components)[0].min() >= 0.9999
    with pytest.raises(InvalidInputError, match="orthonormal"):
        factorize(fishers, LowRankNPEFF(31, solver="stiefel"))


def test_the_cayley_tangent_is_the_derivative_of_the_loss():
    fishers, _ = orthonormal_problem(2, n=20, m=9, r=3, noise=0.5)
    problem = LowRankProblem.from_fishers(
        fishers, n_components=3, normalize=True, backend=get_backend("reference")
    )
    rng = np.random.default_rng(0)
    G = np.linalg.qr(rng.normal(size=(9, 3)))[0].T
    point = at(problem, G)
    D, along, _ = tangent(problem, point)
    K = rng.normal(size=(9, 9))
    move = G @ (K - K.T)  # a tangent direction
    h = 1e-6

    def turned(t):
        q = np.linalg.solve(np.eye(9) - t * (K - K.T) / 2, np.eye(9) + t * (K - K.T) / 2)
        return at(problem, G @ q).loss

    numeric = (turned(h) - turned(-h)) / (2 * h)
    # W = N is optimal, so only G's own change counts.
    assert abs((D * move).sum() - numeric) <= 1e-6 * abs(numeric)
    assert np.abs(along @ G.T + G @ along.T).max() <= 1e-10  # it is a tangent


def test_the_penalty_is_a_quartic_and_its_gradient_is_right():
    rng = np.random.default_rng(3)
    G, D = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    penalty = Penalty(0.7, 0.5)

    def value(t):
        X = G + t * D
        return 0.7 * np.linalg.norm(X @ X.T - 0.5 * np.eye(4)) ** 2

    c = penalty.line(G @ G.T, G @ D.T, D @ D.T)
    for t in (-1.1, 0.0, 0.3, 2.0):
        assert abs(np.polyval(c[::-1], t) - value(t)) <= 1e-10 * max(1.0, value(t))
    assert abs(penalty.value(G @ G.T) - value(0.0)) <= 1e-12 * value(0.0)
    slope = 4.0 * ((penalty.pull(G @ G.T) @ G) * D).sum()
    assert abs(slope - (value(1e-6) - value(-1e-6)) / 2e-6) <= 1e-6 * abs(slope)


@pytest.mark.parametrize("solver", ["pals", "mu-gd"])
def test_a_penalty_makes_components_more_orthogonal(solver):
    fishers, _, _ = planted(4, n=100, m=20, r=4, active=3, noise=0.3)
    plain, strict = (
        factorize(
            fishers,
            LowRankNPEFF(4, solver=solver, orthogonality=weight, max_steps=300, subspace=False),
            **QUIET,
        )
        for weight in (0.0, 50.0)
    )

    def largest(found):
        return np.abs(found.components @ found.components.T - np.eye(4)).max()

    assert largest(strict) < largest(plain)
    expected = dense_loss(fishers.normalized(), strict.coefficients, strict.components)
    assert abs(strict.loss - expected) <= 1e-8 * strict.total  # without the penalty
    if solver == "pals":
        for phase in strict.history.phases:
            assert (np.diff(strict.history.of(phase)) <= 1e-9 * strict.total).all()


def test_penalised_steps_fall_and_are_tracked():
    fishers = ragged(5)
    problem = LowRankProblem.from_fishers(
        fishers, n_components=3, normalize=False, backend=get_backend("reference"),
        penalty=Penalty(3.0, 0.7),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    point = evaluate(problem, rng.random((12, 3)), rng.normal(size=(3, 9)))
    for _ in range(15):
        after = line_step(problem, point, newton_direction(problem, point)[0])
        assert after.loss <= point.loss
        point = after
    fresh = evaluate(problem, point.W, point.G)
    assert abs(fresh.loss - point.loss) <= 1e-9 * problem.total


@pytest.mark.parametrize("backend", available_backends())
def test_online_batches_come_near_the_whole_data_optimum(backend, tmp_path):
    fishers, _, _ = planted(6, n=400, m=60, r=6, noise=0.5)
    whole = factorize(fishers, LowRankNPEFF(6), backend=backend, **QUIET)
    method = LowRankNPEFF(6, batch_examples=64)
    online = factorize(fishers, method, backend=backend, **QUIET)
    assert online.loss <= 1.01 * whole.loss
    store = save_fishers(tmp_path / "s", fishers, shard_examples=77)
    lazy = factorize(store, method, backend=backend, **QUIET)
    assert abs(lazy.loss - online.loss) <= 1e-6 * online.total
    expected = dense_loss(fishers.normalized(), online.coefficients, online.components)
    assert abs(online.loss - expected) <= 1e-8 * online.total


def test_online_revives_what_its_sample_missed():
    fishers, W, G = planted(7, n=300, m=40, r=5)
    start = np.zeros((300, 5)), np.concatenate([G[:4], G[:1]])
    method = LowRankNPEFF(5, batch_examples=50)
    found = factorize(fishers, method, init=start, **QUIET)
    assert matched_cosines(G, found.components)[0].min() >= 0.99
    assert W.shape == (300, 5)


def test_compression_says_what_it_chose():
    fishers, _, _ = planted(8, n=40, m=500, r=4, noise=0.3)
    exact = factorize(fishers, LowRankNPEFF(4, tol=1e-6), **QUIET)
    assert exact.facts["compression"]["kind"] == "gram"
    assert "auto: 80 rows" in exact.facts["compression"]["why"]
    none = factorize(fishers, LowRankNPEFF(4, compress="none", tol=1e-6), **QUIET)
    assert "compression" not in none.facts
    for dim in (60, 400, 500):
        method = LowRankNPEFF(4, compress="projected gram", projection_dim=dim, tol=1e-6)
        near = factorize(fishers, method, **QUIET)
        bound = 1.05 if dim == 60 else 1.01
        assert near.loss <= bound * exact.loss
        expected = dense_loss(fishers.normalized(), near.coefficients, near.components)
        assert abs(near.loss - expected) <= 1e-8 * near.total
        facts = near.facts["compression"]
        assert facts["kind"] == ("gram" if dim == 500 else "projected gram")
    tall = factorize(
        planted(9, n=200, m=20, noise=0.1)[0], LowRankNPEFF(4, compress="gram"), **QUIET
    )
    assert tall.facts["compression"] == {"kind": "gram", "of": "columns", "columns": 20}


@pytest.mark.parametrize(
    "options",
    [
        {"orthogonality": -1.0},
        {"orthogonality": 1.0, "solver": "stiefel"},
        {"batch_examples": 0},
        {"batch_examples": 5, "solver": "mu-gd"},
        {"projection_dim": 0},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(InvalidInputError, match="accepted"):
        LowRankNPEFF(3, **options)
