"""Coordinate descent against scipy's non-negative least squares; the quartic's ingredients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from fishertope.core.backend import Kernel
from fishertope.core.testing import deviation, tolerance

Call = Callable[..., Any]


def nnls_problem(n: int, r: int, seed: int) -> tuple[Any, Any, Any]:
    """(design M (q, r), right-hand sides (q, n), start): half of the solutions touch zero."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(3 * r, r))
    right = design @ rng.normal(size=(r, n)) + 0.3 * rng.normal(size=(3 * r, n))
    return design, right, rng.random((n, r))


@pytest.mark.parametrize("seed", range(3))
def test_nnls_finds_the_optimum_of_every_row(call: Call, seed: int) -> None:
    design, right, start = nnls_problem(20, 6, seed)
    found = call(
        Kernel.NNLS_GRAM, design.T @ design, right.T @ design, start, sweeps=3000, tol=1e-14
    )
    best = np.stack([nnls(design, b)[0] for b in right.T])
    assert 0.2 < (best == 0).mean() < 0.8
    assert deviation(found, best) < tolerance("nnls_gram").relative
    assert np.array_equal(found == 0, best == 0)


def test_nnls_sweeps_are_the_formula(call: Call) -> None:
    """Two sweeps equal W_k ← max(0, W_k + (N_k − WH_k)/H_kk) written out with scalars."""
    design, right, start = nnls_problem(4, 3, 9)
    gram, targets = design.T @ design, right.T @ design
    expected = start.copy()
    for w, target in zip(expected, targets, strict=True):
        for _ in range(2):
            for k in range(3):
                slope = target[k] - sum(w[j] * gram[j, k] for j in range(3))
                w[k] = max(0.0, w[k] + slope / gram[k, k])
    found = call(Kernel.NNLS_GRAM, gram, targets, start, sweeps=2)
    assert deviation(found, expected) < tolerance("nnls_gram").relative


def test_nnls_never_raises_the_loss(call: Call) -> None:
    design, right, start = nnls_problem(30, 8, 4)
    gram, targets = design.T @ design, right.T @ design
    losses = []
    for sweeps in range(8):
        w = call(Kernel.NNLS_GRAM, gram, targets, start, sweeps=sweeps)
        losses.append(np.sum((w @ gram) * w) - 2 * np.sum(w * targets))
    assert (np.diff(losses) <= 1e-12 * abs(losses[0])).all()
    assert losses[-1] < losses[0]


def test_nnls_stops_each_row_by_itself(call: Call) -> None:
    """A row at its optimum does not move while others do; a loose rule stops early."""
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    targets = np.array([[3.0, 3.0], [30.0, -1.0]])
    start = np.array([[1.0, 1.0], [0.0, 0.0]])
    loose = call(Kernel.NNLS_GRAM, gram, targets, start, sweeps=50, tol=0.9)
    assert loose[0].tolist() == [1.0, 1.0]
    assert np.array_equal(loose[1], [15.0, 0.0])


def test_nnls_sets_the_weight_of_a_zero_component_to_zero(call: Call) -> None:
    gram = np.diag([1.0, 0.0, -1e-9])
    found = call(Kernel.NNLS_GRAM, gram, np.ones((2, 3)), np.ones((2, 3)))
    assert found.tolist() == [[1.0, 0.0, 0.0]] * 2


def test_nnls_residuals_do_not_drift(call: Call) -> None:
    """Hundreds of sweeps on an ill-conditioned Gram still end at the KKT conditions."""
    rng = np.random.default_rng(5)
    basis = rng.normal(size=(30, 5)) + 3.0
    gram = basis.T @ basis
    targets = rng.normal(size=(6, 5)) @ gram
    w = call(Kernel.NNLS_GRAM, gram, targets, np.ones((6, 5)), sweeps=3000)
    slope = w @ gram - targets
    scale = np.abs(targets).max()
    assert np.abs(w * slope).max() < 1e-9 * scale
    assert slope.min() > -1e-9 * scale


@pytest.mark.parametrize("ranks", [(2, 0, 3, 1), (0, 0), (), (5,)])
def test_products_equal_dense_quadratic_forms(call: Call, ranks: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    offsets = np.concatenate([[0], np.cumsum(ranks)]).astype(np.int64)
    rows, components = rng.normal(size=(offsets[-1], 4)), rng.normal(size=(3, 4))
    products, sums = call(Kernel.LOWRANK_PRODUCTS, rows, offsets, components)
    for i in range(len(ranks)):
        block = rows[offsets[i] : offsets[i + 1]]
        fisher = block.T @ block
        for k, g in enumerate(components):
            assert sums[i, k] == pytest.approx(g @ fisher @ g, rel=1e-12, abs=1e-14)
    assert deviation(products, rows @ components.T) < tolerance("lowrank_products").relative


def test_pullback_is_the_gradient_of_the_fit(call: Call) -> None:
    """∂⟨W, N(G)⟩/∂G = 2 (W̃∘B)ᵀA, by finite differences."""
    rng = np.random.default_rng(7)
    offsets = np.array([0, 2, 2, 5], dtype=np.int64)
    rows, components = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    coefficients = rng.random((3, 3))
    products, _ = call(Kernel.LOWRANK_PRODUCTS, rows, offsets, components)
    found = call(Kernel.LOWRANK_PULLBACK, rows, offsets, coefficients, products)
    numeric = np.zeros_like(components)
    for index in np.ndindex(*components.shape):
        step = np.zeros_like(components)
        step[index] = 1e-5
        values = [
            np.sum(coefficients * call(Kernel.LOWRANK_PRODUCTS, rows, offsets, g)[1])
            for g in (components + step, components - step)
        ]
        numeric[index] = (values[0] - values[1]) / 2e-5
    assert deviation(2 * found, numeric) < tolerance("finite_differences").relative
