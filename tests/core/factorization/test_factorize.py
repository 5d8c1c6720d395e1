"""Factorizations: recovery, monotonicity, invariances, backends, failures."""

import warnings

import numpy as np
import pytest
from scipy.optimize import nnls

from fishertope.core.backend import available_backends, get_backend
from fishertope.core.errors import (
    ConvergenceWarning,
    InvalidInputError,
    SolveFailedError,
)
from fishertope.core.factorization import LowRankNPEFF, factorize, matched_cosines
from fishertope.core.fisher import LowRankFishers
from fishertope.core.status import Status

from .planted import dense_loss, planted, ragged

QUIET = {"on_failure": "return"}


def losses(result):
    return [result.history.of(phase) for phase in result.history.phases]


def test_check_14_noise_free_components_are_recovered_from_the_default_starts():
    recovered = 0
    for seed in range(10):
        fishers, W, G = planted(seed)
        result = factorize(fishers, LowRankNPEFF(6, tol=1e-7), seed=seed, **QUIET)
        cosines, order = matched_cosines(G, result.components)
        error = np.abs(result.coefficients[:, order] - W / fishers.norms[:, None]).max()
        recovered += cosines.min() >= 0.9999 and error <= 1e-4
    assert recovered >= 9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subspace", [True, False])
def test_check_14_the_generalised_eigenvalue_start_is_exact_on_exact_data(seed, subspace):
    fishers, W, G = planted(seed, n=120, m=60, r=7)
    method = LowRankNPEFF(7, start="gevd", n_starts=1, max_steps=1, subspace=subspace)
    steps = []
    result = factorize(
        fishers, method, seed=seed, callback=lambda info: steps.append(info.relative_loss), **QUIET
    )
    assert steps[0] <= 1e-6  # after a single step from the start
    assert matched_cosines(G, result.components)[0].min() >= 0.9999
    assert W.shape[1] == 7


def test_check_14_starts_can_be_chosen_and_random_ones_alone_do_their_part():
    fishers, _, _ = planted(1, n=150, noise=0.3)
    losses = {
        start: factorize(fishers, LowRankNPEFF(6, start=start), **QUIET).loss
        for start in ("auto", "anchor", "random", "gevd")
    }
    assert max(losses.values()) <= 1.01 * min(losses.values())
    with pytest.raises(InvalidInputError, match="accepted: auto, anchor"):
        LowRankNPEFF(6, start="zeros")


def test_check_14_planted_in_noise_is_found_and_beats_the_planted_loss():
    fishers, W, G = planted(0, n=300, noise=0.3)
    result = factorize(fishers, LowRankNPEFF(6), **QUIET)
    assert matched_cosines(G, result.components)[0].min() >= 0.97
    planted_loss = dense_loss(fishers.normalized(), W / fishers.norms[:, None], G)
    assert result.loss <= planted_loss


@pytest.mark.parametrize("subspace", [True, False])
@pytest.mark.parametrize("compress", ["none", "gram"])
def test_check_12_loss_never_rises_within_a_phase(subspace, compress):
    fishers, _, _ = planted(1, n=150, m=90, noise=0.5)
    method = LowRankNPEFF(5, subspace=subspace, compress=compress, max_steps=12)
    result = factorize(fishers, method, **QUIET)
    for phase in losses(result):
        assert (np.diff(phase) <= 1e-12 * result.total).all()
    solve = result.history.of("solve")
    best_start = min(
        p[-1]
        for name, p in zip(result.history.phases, losses(result), strict=True)
        if name != "solve"
    )
    assert solve[-1] <= best_start * (1 + 1e-12)


def test_check_16_gram_compression_gives_the_same_loss_curve_and_components():
    fishers, _, _ = planted(2, n=30, m=200, noise=0.5)
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 1, (30, 4)), rng.normal(size=(4, len(fishers.rows))) @ fishers.rows
    runs = [
        factorize(
            fishers,
            LowRankNPEFF(4, compress=compress, subspace=False, max_steps=3, tol=0.0),
            init=start,
            **QUIET,
        )
        for compress in ("none", "gram")
    ]
    # Either run may stop a step earlier, where only rounding is left to gain.
    common = min(len(r.history) for r in runs)
    assert common >= 10
    full, small = (r.history.loss[:common] for r in runs)
    np.testing.assert_allclose(full, small, rtol=1e-8)
    cosines, _ = matched_cosines(runs[0].components, runs[1].components)
    assert cosines.min() >= 1 - 1e-6
    # The lifted components lie in the row space of A.
    outside = np.linalg.lstsq(fishers.rows.T, runs[1].components.T, rcond=None)[1]
    assert not outside.size or outside.max() <= 1e-12


def test_check_17_subspace_reaches_what_full_steps_reach():
    fishers, _, _ = planted(3, n=200, m=120, r=5, noise=0.4)
    fast = factorize(fishers, LowRankNPEFF(5), **QUIET)
    rates = [LowRankNPEFF(5, solver="mu-gd", step_size=eta, max_steps=500) for eta in (1e-3, 3e-3)]
    slowest = [factorize(fishers, method, seed=1, **QUIET).loss for method in rates]
    assert fast.loss <= 1.005 * min(slowest)
    slow = factorize(fishers, LowRankNPEFF(5, subspace=False, compress="none"), **QUIET)
    assert fast.loss <= 1.005 * slow.loss
    assert fast.products < slow.products


def test_check_13_stationary_where_it_says_so():
    fishers, _, _ = planted(4, n=100, noise=0.4)
    result = factorize(fishers, LowRankNPEFF(5, tol=1e-6))
    assert result.status is Status.CONVERGED
    used = fishers.normalized()
    W, G = result.coefficients, result.components
    B = used.rows @ G.T
    N = np.add.reduceat(B * B, used.offsets[:-1], axis=0)
    gradient_W = 2 * (W @ (G @ G.T) ** 2 - N)
    assert W.min() >= 0
    assert gradient_W.min() >= -1e-6
    assert np.abs(W * gradient_W).max() <= 1e-6
    M = (W.T @ W) * (G @ G.T)
    pullback = (np.repeat(W, used.ranks, axis=0) * B).T @ used.rows
    assert np.linalg.norm(M @ G - pullback) <= 1e-5 * np.linalg.norm(pullback)
    # The lift identity at a stationary point.
    np.testing.assert_allclose(np.linalg.solve(M, pullback), G, atol=1e-4)


def test_check_19_one_example_one_component_is_the_top_eigenpair():
    rows = np.random.default_rng(0).normal(size=(1, 4, 11))
    fishers = LowRankFishers.from_rows(rows)
    result = factorize(fishers, LowRankNPEFF(1, normalize=False, tol=1e-9), **QUIET)
    values, vectors = np.linalg.eigh(fishers.dense(0))
    assert abs(result.coefficients[0, 0] - values[-1]) <= 1e-8 * values[-1]
    assert abs(abs(result.components[0] @ vectors[:, -1]) - 1) <= 1e-8


def test_check_19_more_components_than_examples_is_allowed():
    fishers = ragged(0, n=5, m=12, most=2)
    result = factorize(fishers, LowRankNPEFF(9, max_steps=30), **QUIET)
    assert np.isfinite(result.loss)
    assert result.relative_loss <= 1e-3
    assert (result.coefficients >= 0).all()


def test_check_19_ragged_rows_equal_zero_padded_rows():
    fishers = ragged(1, n=20, m=10)
    padded = np.zeros((20, int(fishers.ranks.max()), 10))
    for i in range(20):
        padded[i, : fishers.ranks[i]] = fishers.block(i)
    rng = np.random.default_rng(2)
    init = rng.uniform(0, 1, (20, 3)), rng.normal(size=(3, 10))
    method = LowRankNPEFF(3, max_steps=20)
    a = factorize(fishers, method, init=init, **QUIET)
    b = factorize(LowRankFishers.from_rows(padded), method, init=init, **QUIET)
    np.testing.assert_allclose(a.coefficients, b.coefficients, atol=1e-8)
    np.testing.assert_allclose(a.components, b.components, atol=1e-8)


def test_check_19_examples_with_zero_gradient_get_no_component_and_no_nan():
    fishers, _, _ = planted(5, n=40)
    blocks = [fishers.block(i) for i in range(40)]
    blocks[3] = np.zeros_like(blocks[3])
    blocks[7] = blocks[7][:0]
    result = factorize(LowRankFishers.from_rows(blocks), LowRankNPEFF(6), **QUIET)
    assert np.isfinite(result.coefficients).all()
    assert np.isfinite(result.components).all()
    assert (result.coefficients[[3, 7]] == 0).all()


def test_check_15_invariance_under_rotations_order_and_scale():
    fishers, _, _ = planted(6, n=50, m=20, r=4, noise=0.2)
    rng = np.random.default_rng(1)
    init = rng.uniform(0, 1, (50, 4)), rng.normal(size=(4, 20))
    method = LowRankNPEFF(4, normalize=False, tol=1e-7)
    base = factorize(fishers, method, init=init, **QUIET)

    turned = [np.linalg.qr(rng.normal(size=(2, 2)))[0] @ fishers.block(i) for i in range(50)]
    same = factorize(LowRankFishers.from_rows(turned), method, init=init, **QUIET)
    np.testing.assert_allclose(same.coefficients, base.coefficients, atol=1e-6)

    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    moved = LowRankFishers.from_rows([fishers.block(i) @ basis for i in range(50)])
    other = factorize(moved, method, init=(init[0], init[1] @ basis), **QUIET)
    assert matched_cosines(base.components @ basis, other.components)[0].min() >= 1 - 1e-6

    order = rng.permutation(50)
    shuffled = factorize(fishers.select(order), method, init=(init[0][order], init[1]), **QUIET)
    np.testing.assert_allclose(shuffled.coefficients, base.coefficients[order], atol=1e-6)

    doubled = fishers.select(np.repeat(np.arange(50), 2))
    twice = factorize(doubled, method, init=(np.repeat(init[0], 2, axis=0), init[1]), **QUIET)
    assert matched_cosines(base.components, twice.components)[0].min() >= 1 - 1e-6
    np.testing.assert_allclose(twice.coefficients[::2], base.coefficients, atol=1e-5)

    gauge = rng.uniform(0.5, 2.0, 4)
    other_gauge = init[0] / gauge**2, -gauge[:, None] * init[1]
    equal = factorize(fishers, method, init=other_gauge, **QUIET)
    np.testing.assert_allclose(equal.coefficients, base.coefficients, atol=1e-5)

    scaled = LowRankFishers.from_rows([3.0 * fishers.block(i) for i in range(50)])
    larger = factorize(scaled, method, init=(9.0 * init[0], init[1]), **QUIET)
    np.testing.assert_allclose(larger.coefficients, 9.0 * base.coefficients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_gives_the_same_answer_from_the_same_start(backend):
    fishers, _, _ = planted(7, n=60, m=50, noise=0.3)
    rng = np.random.default_rng(3)
    init = rng.uniform(0, 1, (60, 5)), rng.normal(size=(5, 50))
    expected = factorize(fishers, LowRankNPEFF(5), init=init, backend="reference", **QUIET)
    result = factorize(fishers, LowRankNPEFF(5), init=init, backend=backend, **QUIET)
    assert isinstance(result.components, np.ndarray)
    assert abs(result.loss - expected.loss) <= 1e-6 * expected.loss
    assert matched_cosines(expected.components, result.components)[0].min() >= 0.9999


@pytest.mark.parametrize("backend", available_backends())
def test_check_19_float32_follows_float64(backend):
    fishers, _, _ = planted(8, n=80, m=60, noise=0.3)
    single = LowRankFishers.from_rows([fishers.block(i).astype(np.float32) for i in range(80)])
    rng = np.random.default_rng(4)
    init = rng.uniform(0, 1, (80, 5)), rng.normal(size=(5, 60))
    wide = factorize(fishers, LowRankNPEFF(5), init=init, backend=backend, **QUIET)
    narrow = factorize(single, LowRankNPEFF(5, tol=1e-3), init=init, backend=backend, **QUIET)
    assert narrow.components.dtype == np.float32
    assert abs(narrow.loss - wide.loss) <= 1e-4 * wide.total


def test_mu_gd_follows_the_published_updates_step_for_step():
    fishers, _, _ = planted(9, n=25, m=15, noise=0.3)
    A, offsets = fishers.normalized().rows, fishers.offsets
    rng = np.random.default_rng(5)
    W, G = rng.uniform(0, 1, (25, 3)), rng.normal(size=(3, 15)) / 5
    init = W.copy(), G.copy()
    for step in range(30):
        B = A @ G.T
        N = np.add.reduceat(B * B, offsets[:-1], axis=0)
        S = G @ G.T
        if step >= 10:
            W = W * N / (W @ (S * S) + 1e-9)
        wide = np.repeat(W, np.diff(offsets), axis=0)
        G = G - 4e-3 * (((W.T @ W) * S) @ G - (wide * B).T @ A)
    method = LowRankNPEFF(3, solver="mu-gd", step_size=1e-3, components_only_steps=10, max_steps=20)
    result = factorize(fishers, method, init=init)
    expected = dense_loss(fishers.normalized(), W, G)
    assert abs(result.loss - expected) <= 1e-10 * expected
    assert result.status is Status.MAX_STEPS


def test_mu_gd_with_a_wild_step_says_that_it_diverged():
    fishers, _, _ = planted(10, n=40)
    method = LowRankNPEFF(4, solver="mu-gd", step_size=10.0, max_steps=50)
    with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning, match="diverged"):
        factorize(fishers, method)
    with np.errstate(all="ignore"), pytest.raises(SolveFailedError, match="lower the step size"):
        factorize(fishers, method, on_failure="raise")


def test_too_few_steps_warn_and_return_says_nothing():
    fishers, _, _ = planted(11, noise=0.5)
    method = LowRankNPEFF(8, max_steps=1, tol=1e-12)
    with pytest.warns(ConvergenceWarning, match="max_steps"):
        factorize(fishers, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = factorize(fishers, method, on_failure="return")
    assert result.status is Status.MAX_STEPS


def test_callback_sees_every_step_and_can_stop():
    fishers, _, _ = planted(12)
    seen = []

    def stop_at_five(info):
        seen.append(info)
        return len(seen) == 5

    result = factorize(fishers, LowRankNPEFF(6), callback=stop_at_five)
    assert len(seen) == 5
    assert result.status is Status.STOPPED
    assert seen[0].phase.startswith("start 1")
    assert len(result.history) == 5


def test_seeds_repeat():
    fishers, _, _ = planted(13, noise=0.4)
    a = factorize(fishers, LowRankNPEFF(5), seed=3, **QUIET)
    b = factorize(fishers, LowRankNPEFF(5), seed=3, **QUIET)
    assert np.array_equal(a.coefficients, b.coefficients)
    assert np.array_equal(a.components, b.components)


def test_transform_is_the_nonnegative_least_squares_solution():
    fishers, _, _ = planted(14, n=60, m=25, noise=0.3)
    result = factorize(fishers.select(range(40)), LowRankNPEFF(5), **QUIET)
    held_out = fishers.select(range(40, 60))
    W = result.transform(held_out)
    G = result.components
    terms = np.stack([np.outer(g, g).ravel() for g in G], axis=1)
    for i in range(20):
        target = held_out.dense(i).ravel() / held_out.norms[i]
        np.testing.assert_allclose(W[i], nnls(terms, target)[0], atol=1e-6)


def test_transform_of_the_fitted_examples_gives_their_coefficients():
    fishers, _, _ = planted(15, noise=0.2)
    result = factorize(fishers, LowRankNPEFF(6), **QUIET)
    np.testing.assert_allclose(result.transform(fishers), result.coefficients, atol=1e-6)


def test_dead_components_are_revived():
    fishers, _, G = planted(16, n=100, m=30, r=5)
    rng = np.random.default_rng(6)
    W0, G0 = rng.uniform(0, 1, (100, 5)), G + 0.01 * rng.normal(size=G.shape)
    W0[:, 2] = 0.0
    G0[2] = G0[1]
    result = factorize(fishers, LowRankNPEFF(5), init=(W0, G0), **QUIET)
    assert matched_cosines(G, result.components)[0].min() >= 0.999


@pytest.mark.parametrize(
    ("fishers", "method", "options", "words"),
    [
        (np.eye(3), LowRankNPEFF(2), {}, "LowRankFishers"),
        (ragged(0), "npeff", {}, "LowRankNPEFF"),
        (ragged(0), LowRankNPEFF(2), {"on_failure": "ignore"}, "accepted: warn, raise, return"),
        (ragged(0), LowRankNPEFF(2), {"init": (np.ones((3, 2)), np.ones((2, 9)))}, r"W \(12, 2\)"),
        (ragged(0), LowRankNPEFF(2), {"init": (-np.ones((12, 2)), np.ones((2, 9)))}, "non-neg"),
        (
            LowRankFishers.from_rows(np.zeros((4, 2, 3))),
            LowRankNPEFF(2),
            {},
            "All 4 Fishers are zero",
        ),
        (LowRankFishers.from_rows(np.zeros((0, 2, 3))), LowRankNPEFF(2), {}, "nothing to"),
    ],
)
def test_bad_input_is_named(fishers, method, options, words):
    with pytest.raises(InvalidInputError, match=words):
        factorize(fishers, method, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": 0},
        {"n_components": 2.5},
        {"n_components": True},
        {"n_components": 3, "solver": "adam"},
        {"n_components": 3, "compress": "zip"},
        {"n_components": 3, "tol": float("nan")},
        {"n_components": 3, "step_size": 0.0},
        {"n_components": 3, "n_starts": 0},
    ],
)
def test_bad_options_are_named_when_the_method_is_made(options):
    with pytest.raises(InvalidInputError, match="accepted"):
        LowRankNPEFF(**options)


def test_nan_fishers_are_refused():
    rows = np.ones((3, 2, 4))
    rows[1, 0, 2] = np.nan
    with pytest.raises(InvalidInputError, match="1 of 24 entries are NaN"):
        LowRankFishers.from_rows(rows)


def test_a_backend_object_is_taken_as_it_is():
    fishers, _, _ = planted(17)
    result = factorize(fishers, LowRankNPEFF(3), backend=get_backend("reference"), **QUIET)
    assert result.backend == "reference"
