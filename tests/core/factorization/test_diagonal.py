"""Factorizations of diagonal Fishers: parity with known solvers, sparse input, descent."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from scipy import sparse
from scipy.optimize import nnls

from fishertope.core.backend import available_backends, get_backend, to_numpy
from fishertope.core.errors import ConvergenceWarning, InvalidInputError
from fishertope.core.factorization import (
    DiagonalNPEFF,
    Factorization,
    LowRankNPEFF,
    diagonal,
    exchange,
    factorize,
    matched_cosines,
)
from fishertope.core.factorization.diagonal import DiagonalProblem
from fishertope.core.fisher import DiagonalFishers, per_example_fishers
from fishertope.core.model import DenseNetwork
from fishertope.core.status import Status

QUIET = {"on_failure": "return"}


def planted(seed, *, n=80, p=60, r=5, noise=0.0, density=0.3):
    rng = np.random.default_rng(seed)
    W = rng.random((n, r)) * (rng.random((n, r)) < 0.4)
    W[np.arange(n), rng.integers(r, size=n)] += 0.3
    H = rng.random((r, p)) * (rng.random((r, p)) < density)
    return W @ H + noise * rng.random((n, p)) * (rng.random((n, p)) < 0.1), W, H


def dense_loss(X, W, H):
    return np.linalg.norm(X - W @ H) ** 2


def unit(X):
    return X / (np.linalg.norm(X, axis=1, keepdims=True) + 1e-9)


def sklearn_nmf(X, W, H, solver, steps):
    decomposition = pytest.importorskip("sklearn.decomposition")
    model = decomposition.NMF(W.shape[1], init="custom", solver=solver, tol=0, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the steps are meant to be few
        W = model.fit_transform(X, W=W.copy(), H=H.copy())
    return W, model.components_


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_check_18_mu_follows_scikit_learn_step_for_step(steps):
    X, _, _ = planted(0, noise=0.1)
    rng = np.random.default_rng(1)
    init = 0.1 + rng.random((80, 4)), 0.1 + rng.random((4, 60))
    W, H = sklearn_nmf(X, *init, "mu", steps)
    method = DiagonalNPEFF(4, solver="mu", normalize=False, max_steps=steps, tol=0.0)
    result = factorize(DiagonalFishers(values=X), method, init=init)
    ours = result.coefficients @ result.components
    assert np.abs(ours - W @ H).max() <= 1e-6 * np.abs(ours).max()
    assert abs(result.loss - dense_loss(X, W, H)) <= 1e-6 * result.total


def test_check_18_hals_ends_where_coordinate_descent_ends():
    X, _, _ = planted(1, noise=0.2)
    rng = np.random.default_rng(2)
    init = rng.random((80, 5)), rng.random((5, 60))
    W, H = sklearn_nmf(X, *init, "cd", 400)
    method = DiagonalNPEFF(5, normalize=False, max_steps=400, tol=1e-10)
    result = factorize(DiagonalFishers(values=X), method, init=init, **QUIET)
    assert result.loss <= 1.01 * dense_loss(X, W, H)
    for steps in (5, 20):  # equal iterations
        W, H = sklearn_nmf(X, *init, "cd", steps)
        equal = DiagonalNPEFF(5, normalize=False, max_steps=steps, tol=0.0)
        result = factorize(DiagonalFishers(values=X), equal, init=init, **QUIET)
        assert result.loss <= 1.005 * dense_loss(X, W, H)


def test_one_sweep_of_hals_is_one_pass_of_coordinate_descent():
    X, _, _ = planted(2)
    rng = np.random.default_rng(3)
    W, H = rng.random((80, 3)), rng.random((3, 60))
    method = DiagonalNPEFF(3, normalize=False, max_steps=1, sweeps=1, tol=0.0)
    result = factorize(DiagonalFishers(values=X), method, init=(W, H), **QUIET)
    for k in range(3):
        W[:, k] = np.maximum(0, W[:, k] + ((X - W @ H) @ H[k]) / (H[k] @ H[k]))
    for k in range(3):
        H[k] = np.maximum(0, H[k] + (W[:, k] @ (X - W @ H)) / (W[:, k] @ W[:, k]))
    np.testing.assert_allclose(result.coefficients @ result.components, W @ H, atol=1e-10)


@pytest.mark.parametrize("solver", ["hals", "mu"])
@pytest.mark.parametrize("start", ["nndsvd", "random"])
def test_the_loss_never_rises_and_is_the_loss(solver, start):
    X, _, _ = planted(3, noise=0.1)
    method = DiagonalNPEFF(5, solver=solver, start=start, max_steps=60)
    result = factorize(DiagonalFishers(values=X), method, **QUIET)
    assert (np.diff(result.history.loss) <= 1e-12 * result.total).all()
    dense = dense_loss(unit(X), result.coefficients, result.components)
    assert abs(result.loss - dense) <= 1e-9 * result.total


def test_planted_components_are_found():
    X, _, H = planted(4, n=200, p=80, density=0.15)
    result = factorize(
        DiagonalFishers(values=X), DiagonalNPEFF(5, tol=1e-12, max_steps=2000), **QUIET
    )
    assert result.relative_loss <= 1e-4
    assert matched_cosines(H, result.components)[0].min() >= 0.99


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.0, 1.0))
@example(seed=20187, density=0.03125)  # rank 2: two of three components are one direction
def test_check_18_sparse_and_dense_input_give_the_same(seed, density):
    rng = np.random.default_rng(seed)
    X = rng.random((12, 9)) * (rng.random((12, 9)) < density)
    X[0, 0] = 1.0
    rows = sparse.csr_array(X)
    rows.has_sorted_indices = False  # order is looked after
    init = rng.random((12, 3)), rng.random((3, 9))
    method = DiagonalNPEFF(3, max_steps=8)
    a, b = (factorize(DiagonalFishers(values=v), method, init=init, **QUIET) for v in (X, rows))
    made = [(r.coefficients @ r.components) * r.norms[:, None] for r in (a, b)]
    np.testing.assert_allclose(*made, atol=1e-9)
    np.testing.assert_allclose(a.norms, b.norms, atol=1e-12)
    # With fewer directions than components the product alone is determined.
    if np.linalg.matrix_rank(X) >= 3:
        np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-9)
        np.testing.assert_allclose(a.components, b.components, atol=1e-9)


@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_gives_the_same(backend):
    X, _, _ = planted(5, noise=0.1)
    rng = np.random.default_rng(4)
    init = rng.random((80, 4)), rng.random((4, 60))
    for values in (X, sparse.csr_array(X)):
        results = [
            factorize(DiagonalFishers(values=values), DiagonalNPEFF(4, max_steps=15), init=init,
                      backend=b, **QUIET)
            for b in ("reference", backend)
        ]  # fmt: skip
        np.testing.assert_allclose(results[0].components, results[1].components, atol=1e-8)


def test_l1_makes_factors_sparser():
    X, _, _ = planted(6, noise=0.3)
    fishers = DiagonalFishers(values=X)
    plain = factorize(fishers, DiagonalNPEFF(5), **QUIET)
    sparse_H = factorize(fishers, DiagonalNPEFF(5, l1_components=0.1), **QUIET)
    assert (sparse_H.components == 0).sum() > (plain.components == 0).sum()
    assert (np.diff(sparse_H.history.loss) <= 1e-12 * sparse_H.total).all()


def test_transform_is_the_nonnegative_least_squares_solution():
    X, _, _ = planted(7, noise=0.2)
    result = factorize(DiagonalFishers(values=X[:60]), DiagonalNPEFF(4), **QUIET)
    for values in (X[60:], sparse.csr_array(X[60:])):
        W = result.transform(DiagonalFishers(values=values))
        for i in range(20):
            expected = nnls(result.components.T, unit(X[60:])[i])[0]
            np.testing.assert_allclose(W[i], expected, atol=1e-6)


def test_from_a_network_to_a_file(tmp_path):
    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    fishers = per_example_fishers(net, rng.normal(size=(40, 4)), kind="diagonal")
    result = factorize(fishers, DiagonalNPEFF(3))
    assert result.status is Status.CONVERGED
    assert abs(result.shares.sum() - 1) <= 1e-12
    assert result.component(0)["layers.0.weight"].shape == (3, 4)
    result.save(tmp_path / "d")
    back = Factorization.load(tmp_path / "d")
    assert back.method == result.method
    assert np.array_equal(back.components, result.components)
    np.testing.assert_allclose(back.transform(fishers), result.coefficients, atol=1e-3)


def test_zero_fishers_get_nothing():
    X, _, _ = planted(8)
    X[5] = 0.0
    result = factorize(DiagonalFishers(values=X), DiagonalNPEFF(4), **QUIET)
    assert np.isfinite(result.components).all()
    assert (result.coefficients[5] == 0).all()


def test_kinds_do_not_mix():
    X, _, _ = planted(9)
    diagonal = DiagonalFishers(values=X)
    with pytest.raises(InvalidInputError, match="DiagonalNPEFF"):
        factorize(diagonal, LowRankNPEFF(3))
    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    rows = per_example_fishers(net, rng.normal(size=(10, 4)))
    with pytest.raises(InvalidInputError, match="LowRankNPEFF"):
        factorize(rows, DiagonalNPEFF(3))
    result = factorize(diagonal, DiagonalNPEFF(3), **QUIET)
    with pytest.raises(InvalidInputError, match="takes DiagonalFishers"):
        result.transform(rows)
    with pytest.raises(InvalidInputError, match="nothing to factorize"):
        factorize(DiagonalFishers(values=np.zeros((0, 4))), DiagonalNPEFF(2))
    with pytest.raises(InvalidInputError, match="All 3 Fishers are zero"):
        factorize(DiagonalFishers(values=np.zeros((3, 4))), DiagonalNPEFF(2))
    with pytest.raises(InvalidInputError, match="non-negative"):
        factorize(diagonal, DiagonalNPEFF(2), init=(np.ones((80, 2)), -np.ones((2, 60))))


def test_amounts_are_not_directions():
    from fishertope.core.factorization import perturb

    rng = np.random.default_rng(0)
    net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    fishers = per_example_fishers(net, rng.normal(size=(20, 4)), kind="diagonal")
    found = factorize(fishers, DiagonalNPEFF(2), **QUIET)
    with (
        pytest.raises(InvalidInputError, match="not directions"),
        perturb(net, found, 0, magnitude=0.1),
    ):
        pass


@pytest.mark.parametrize(
    "options", [{"solver": "cd"}, {"start": "zeros"}, {"l1_components": -1.0}, {"sweeps": 0}]
)
def test_bad_options_are_named(options):
    with pytest.raises(InvalidInputError, match="accepted"):
        DiagonalNPEFF(3, **options)


def test_too_few_steps_warn():
    X, _, _ = planted(10, noise=0.2)
    with pytest.warns(ConvergenceWarning, match="max_steps"):
        factorize(DiagonalFishers(values=X), DiagonalNPEFF(4, max_steps=2))


class TestExchange:
    """Two components that are one, for the one that is missing."""

    def case(self):
        rng = np.random.default_rng(0)
        W = rng.random((40, 4)) * (rng.random((40, 4)) < 0.5)
        H = rng.random((4, 30)) * (rng.random((4, 30)) < 0.4)
        return W, H

    def test_merge_costs_are_squared_singular_values(self):
        W, H = self.case()
        costs = exchange.merge_costs(W.T @ W, H @ H.T)
        for k in range(4):
            for j in range(4):
                if k != j:
                    both = W[:, [k, j]] @ H[[k, j]]
                    second = np.linalg.svd(both, compute_uv=False)[1] ** 2
                    assert costs[k, j] == pytest.approx(second, rel=1e-8, abs=1e-12)

    @pytest.mark.parametrize("backend", available_backends())
    @pytest.mark.parametrize("kind", ["dense", "sparse"])
    def test_a_shared_component_is_put_together_and_the_missing_one_found(self, kind, backend):
        W, H = self.case()
        X = W @ H
        fishers = DiagonalFishers(values=X if kind == "dense" else sparse.csr_array(X))
        problem = DiagonalProblem.from_fishers(
            fishers, n_components=4, normalize=False, backend=get_backend(backend)
        )
        # Component 3 is missing, component 0 is there twice, each copy for half of the examples.
        half = np.arange(40) % 2 == 0
        start_W = np.stack([W[:, 0] * half, W[:, 0] * ~half, W[:, 1], W[:, 2]], axis=1)
        start_H = np.stack([H[0], H[0], H[1], H[2]])
        before = float(((X - start_W @ start_H) ** 2).sum())
        at = problem.array(start_W), problem.array(start_H.T)
        new_W, new_H, loss = exchange.exchanged(problem, *at, before)
        after = float(((X - to_numpy(new_W) @ to_numpy(new_H).T) ** 2).sum())
        assert abs(loss - after) <= 1e-9 * problem.total
        assert loss <= 1e-3 * before
        assert (to_numpy(new_W) >= 0).all()
        assert (to_numpy(new_H) >= 0).all()
        # Nothing is left to put together.
        assert exchange.exchanged(problem, new_W, new_H, max(loss, 1e-9)) is None

    def test_a_fit_never_ends_higher_for_it(self, monkeypatch):
        rng = np.random.default_rng(5)
        X = (rng.random((60, 8)) * (rng.random((60, 8)) < 0.2)) @ rng.random((8, 50)) ** 6
        init = rng.random((60, 8)), rng.random((8, 50))
        method = DiagonalNPEFF(8, normalize=False, max_steps=120, tol=0.0)
        fishers = DiagonalFishers(values=X)
        found = factorize(fishers, method, init=init, **QUIET)
        assert (np.diff(found.history.loss) <= 1e-12 * found.total).all()
        monkeypatch.setattr(diagonal, "exchanged", lambda *a: None)
        plain = factorize(fishers, method, init=init, **QUIET)
        assert found.loss <= plain.loss * (1 + 1e-6)
