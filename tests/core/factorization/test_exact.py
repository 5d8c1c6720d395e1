"""Exact pieces: least squares by pivoting, Hoyer's sparseness, revision of components."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.optimize import nnls

from fishertope.core.backend import available_backends
from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import (
    DiagonalNPEFF,
    LowRankNPEFF,
    factorize,
    matched_cosines,
    refit,
    sparseness,
)
from fishertope.core.factorization.nnls import exact_nnls
from fishertope.core.factorization.sparseness import descend_sparse, most_aligned
from fishertope.core.fisher import DiagonalFishers

from .planted import dense_loss, planted

QUIET = {"on_failure": "return"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 8),
    r=st.integers(1, 9),
    condition=st.sampled_from([1.0, 1e2, 1e4]),
)
def test_check_13_block_pivoting_equals_scipy_nnls(seed, n, r, condition):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(r + 4, r)) * np.geomspace(1.0, condition**-0.5, r)
    Y = rng.normal(size=(n, r + 4)) + 0.3
    W = exact_nnls(A.T @ A, Y @ A, np.zeros((n, r)))
    expected = np.array([nnls(A, y)[0] for y in Y]).reshape(n, r)
    np.testing.assert_allclose(W, expected, atol=1e-6 * max(1.0, np.abs(expected).max(initial=0)))


def test_check_13_transform_equals_scipy_nnls_and_a_quadratic_program():
    cvxpy = pytest.importorskip("cvxpy")
    fishers, _, _ = planted(14, n=60, m=25, noise=0.3)
    result = factorize(fishers.select(range(40)), LowRankNPEFF(5), **QUIET)
    held_out = fishers.select(range(40, 60))
    W = result.transform(held_out)
    G = result.components
    terms = np.stack([np.outer(g, g).ravel() for g in G], axis=1)
    for i in range(20):
        target = held_out.dense(i).ravel() / held_out.norms[i]
        np.testing.assert_allclose(W[i], nnls(terms, target)[0], atol=1e-6)
        if i < 4:
            w = cvxpy.Variable(5)
            loss = cvxpy.sum_squares(terms @ w - target)
            cvxpy.Problem(cvxpy.Minimize(loss), [w >= 0]).solve(
                solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12
            )
            np.testing.assert_allclose(W[i], w.value, atol=1e-6)


def test_check_13_pivoting_of_dependent_components_is_still_optimal():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(9, 3))[:, [0, 1, 2, 0, 1]]  # two of them twice
    Y = np.abs(rng.normal(size=(30, 9)))
    start = np.zeros((30, 5))
    for i, y in enumerate(Y):
        start[i, :3] = nnls(A[:, :3], y)[0]
    W = exact_nnls(A.T @ A, Y @ A, start)
    for w, s, y in zip(W, start, Y, strict=True):
        assert (w >= 0).all()
        assert np.linalg.norm(A @ w - y) <= np.linalg.norm(A @ s - y) * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 30),
    target=st.floats(0.01, 0.99),
    kind=st.sampled_from(["normal", "positive", "equal", "few"]),
)
def test_the_most_aligned_vector_has_the_sparseness_and_beats_every_other(seed, d, target, kind):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=d)
    if kind == "positive":
        c = np.abs(c) + 0.1
    elif kind == "equal":
        c = np.full(d, 0.7)
    elif kind == "few":
        c = np.where(np.arange(d) < 2, 1.0, -1.0)
    u = most_aligned(c, target)
    assert (u >= 0).all()
    assert abs(np.linalg.norm(u) - 1) <= 1e-8
    assert abs(sparseness(u) - target) <= 1e-5
    for _ in range(40):  # other vectors of this sparseness
        other = most_aligned(rng.normal(size=d), target)
        assert other @ c <= u @ c + 1e-7


def test_sparse_descent_never_raises_the_objective():
    rng = np.random.default_rng(1)
    H = rng.random((4, 20))
    C = rng.random((50, 20))
    X = np.stack([most_aligned(rng.random(50), 0.6) for _ in range(4)], axis=1)

    def objective(X):
        return np.linalg.norm(C - X @ H) ** 2

    for _ in range(5):
        after = descend_sparse(H @ H.T, C @ H.T, X, 0.6, 1)
        assert objective(after) <= objective(X) + 1e-10
        X = after


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_hoyer_sparseness_is_reached_and_the_loss_falls(backend, form):
    rng = np.random.default_rng(2)
    H = rng.random((4, 40)) * (rng.random((4, 40)) < 0.3)
    X = rng.random((60, 4)) @ H + 0.05 * rng.random((60, 40))
    fishers = DiagonalFishers(values=form(X))
    plain = factorize(fishers, DiagonalNPEFF(4), backend=backend, **QUIET)
    method = DiagonalNPEFF(4, sparseness_components=0.7, sparseness_coefficients=0.4)
    both = factorize(fishers, method, backend=backend, **QUIET)
    for k in range(4):
        assert abs(sparseness(both.components[k]) - 0.7) <= 1e-6
        assert abs(sparseness(both.coefficients[:, k]) - 0.4) <= 1e-6
    assert (np.diff(both.history.loss) <= 1e-12 * both.total).all()
    assert plain.loss <= both.loss <= 0.5 * both.total
    one = factorize(fishers, DiagonalNPEFF(4, sparseness_components=0.75), backend=backend, **QUIET)
    assert np.mean([sparseness(h) for h in plain.components]) < 0.75
    assert all(abs(sparseness(h) - 0.75) <= 1e-6 for h in one.components)
    assert one.loss <= both.loss


@pytest.mark.parametrize(
    "options",
    [
        {"sparseness_components": 1.0},
        {"sparseness_coefficients": 0.0},
        {"sparseness_components": 0.5, "solver": "mu"},
        {"sparseness_components": 0.5, "l1_components": 0.1},
    ],
)
def test_bad_sparseness_is_named(options):
    with pytest.raises(InvalidInputError, match="accepted"):
        DiagonalNPEFF(3, **options)


def test_pruned_and_merged_factorizations_have_exact_coefficients_and_losses():
    fishers, _, G = planted(1, n=100, m=30, r=5, noise=0.1)
    found = factorize(fishers, LowRankNPEFF(5), **QUIET)
    same = refit(found, fishers)
    np.testing.assert_allclose(same.coefficients, found.coefficients, atol=1e-6)
    fewer = found.prune(fishers, keep=[3, 0, 1])
    assert np.array_equal(fewer.components, found.components[[3, 0, 1]])
    used = fishers.normalized()
    assert abs(fewer.loss - dense_loss(used, fewer.coefficients, fewer.components)) <= 1e-8
    assert fewer.method.n_components == fewer.n_components == 3
    least = found.shares.min()
    assert found.prune(fishers, min_share=least * 1.0001).n_components == 4
    # One component split in two by hand, then merged again.
    split = found.replace(
        components=np.concatenate([found.components, found.components[:1]]),
        coefficients=np.concatenate([found.coefficients, found.coefficients[:, :1]], axis=1),
        method=LowRankNPEFF(6),
    )
    whole = split.merge(fishers, [[0, 5]])
    np.testing.assert_allclose(np.abs(whole.components), np.abs(found.components), atol=1e-10)
    assert abs(whole.loss - found.loss) <= 1e-8 * found.total
    again = factorize(fishers, whole.method, init=whole, **QUIET)  # a warm start
    assert again.loss <= whole.loss + 1e-9
    assert again.products < found.products
    assert matched_cosines(G, again.components)[0].min() >= 0.99


def test_diagonals_are_pruned_and_merged_too():
    rng = np.random.default_rng(3)
    X = rng.random((40, 4)) @ (rng.random((4, 30)) * (rng.random((4, 30)) < 0.4))
    for values in (X, sparse.csr_array(X)):
        fishers = DiagonalFishers(values=values)
        found = factorize(fishers, DiagonalNPEFF(4, tol=1e-10), **QUIET)
        unit = X / (np.linalg.norm(X, axis=1, keepdims=True) + 1e-9)
        for fewer in (found.prune(fishers, keep=[2, 0]), found.merge(fishers, [[0, 3], [1, 2]])):
            assert fewer.n_components == 2
            expected = np.linalg.norm(unit - fewer.coefficients @ fewer.components) ** 2
            assert abs(fewer.loss - expected) <= 1e-8
    with pytest.raises(InvalidInputError, match="exactly one"):
        found.prune(fishers)
    with pytest.raises(InvalidInputError, match="0 to 3"):
        found.prune(fishers, keep=[4])
    with pytest.raises(InvalidInputError, match="at most once"):
        found.merge(fishers, [[0, 1], [1, 2]])
    with pytest.raises(InvalidInputError, match="at least two"):
        found.merge(fishers, [[1]])
    with pytest.raises(InvalidInputError, match="No component"):
        found.prune(fishers, min_share=1.1)
