"""Fisher rows and diagonals against finite differences, brute force and the identities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fishertope.core.backend import Kernel
from fishertope.core.backend.layout import dense_layout
from fishertope.core.model import Categorical
from fishertope.core.testing import deviation, tolerance

Call = Callable[..., Any]
IDENTITY = tolerance("identity").relative
NETWORKS = [
    pytest.param(sizes, activation, id=f"{'-'.join(map(str, sizes))} {activation}")
    for sizes in ((4, 6, 3), (3, 5, 4, 2), (3, 4))
    for activation in ("relu", "tanh", "identity")
]


def forward(theta: Any, x: Any, sizes: tuple[int, ...], activation: str) -> Any:
    """Outputs z (n, C), written without any of the package's kernels."""
    at, a = 0, x
    for depth, (d_in, d_out) in enumerate(pairwise(sizes)):
        weight = theta[at : at + d_in * d_out].reshape(d_out, d_in)
        bias = theta[at + d_in * d_out : at + d_in * d_out + d_out]
        at += (d_in + 1) * d_out
        a = np.einsum("oi,ni->no", weight, a) + bias
        if depth < len(sizes) - 2:
            a = {"relu": lambda z: z * (z > 0), "tanh": np.tanh, "identity": lambda z: z}[
                activation
            ](a)
    return a


def log_probs(theta: Any, x: Any, sizes: tuple[int, ...], activation: str) -> Any:
    z = forward(theta, x, sizes, activation)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def jacobian(f: Callable[[Any], Any], theta: Any, step: float = 1e-5) -> Any:
    """∂f/∂θ by central differences: f(θ) (n, C) → (n, C, p)."""
    columns = []
    for j in range(len(theta)):
        e = np.zeros_like(theta)
        e[j] = step
        columns.append((f(theta + e) - f(theta - e)) / (2 * step))
    return np.stack(columns, axis=-1)


def problem(sizes: tuple[int, ...], seed: int = 0, n: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=dense_layout(sizes)[-1].stop), rng.normal(size=(n, sizes[0]))


def fishers(rows: Any) -> Any:
    return np.einsum("ikp,ikq->ipq", rows, rows)


@pytest.mark.parametrize(("sizes", "activation"), NETWORKS)
def test_unreduced_rows_are_the_scaled_scores(
    call: Call, sizes: tuple[int, ...], activation: str
) -> None:
    theta, x = problem(sizes)
    scores = jacobian(lambda t: log_probs(t, x, sizes, activation), theta)
    p = np.exp(log_probs(theta, x, sizes, activation))
    rows = call(
        Kernel.DENSE_FISHER_ROWS,
        theta,
        x,
        sizes=sizes,
        activation=activation,
        output="categorical",
        reduced=False,
    )
    found = deviation(rows, np.sqrt(p)[:, :, None] * scores)
    assert found < tolerance("finite_differences").relative


@pytest.mark.parametrize(("sizes", "activation"), NETWORKS)
def test_categorical_identities(call: Call, sizes: tuple[int, ...], activation: str) -> None:
    theta, x = problem(sizes, seed=1)
    options = {"sizes": sizes, "activation": activation, "output": "categorical"}
    p = np.exp(log_probs(theta, x, sizes, activation))
    full = call(Kernel.DENSE_FISHER_ROWS, theta, x, **options, reduced=False)
    rows = call(Kernel.DENSE_FISHER_ROWS, theta, x, **options)
    diagonal = call(Kernel.DENSE_FISHER_DIAGONAL, theta, x, **options)
    mean = call(Kernel.DENSE_FISHER_DIAGONAL_MEAN, theta, x, **options)
    assert rows.shape == (len(x), sizes[-1] - 1, len(theta))

    # E_y[∇ log p] = 0.
    assert np.abs(np.einsum("ic,icp->ip", np.sqrt(p), full)).max() < IDENTITY
    # Brute force over the classes: F = Σ_c p_c s_c s_cᵀ with the scores s_c.
    scores = full / np.sqrt(p)[:, :, None]
    brute = sum(
        p[:, c, None, None] * scores[:, c, :, None] * scores[:, c, None, :]
        for c in range(sizes[-1])
    )
    assert deviation(fishers(full), brute) < IDENTITY
    assert deviation(fishers(rows), brute) < IDENTITY
    limit = tolerance("diagonal_identity").relative
    assert deviation(diagonal, np.einsum("ikp,ikp->ip", rows, rows)) < limit
    assert deviation(mean, diagonal.mean(axis=0)) < limit
    # tr F = Σ_c p_c ‖∇ log p_c‖².
    assert deviation(diagonal.sum(axis=1), np.sum(p * np.sum(scores**2, axis=2), axis=1)) < limit
    assert diagonal.min() >= 0


@pytest.mark.parametrize(("sizes", "activation"), NETWORKS)
def test_gaussian_rows_are_the_jacobian(
    call: Call, sizes: tuple[int, ...], activation: str
) -> None:
    theta, x = problem(sizes, seed=2)
    options = {"sizes": sizes, "activation": activation, "output": "gaussian"}
    rows = call(Kernel.DENSE_FISHER_ROWS, theta, x, **options)
    expected = jacobian(lambda t: forward(t, x, sizes, activation), theta)
    assert deviation(rows, expected) < tolerance("finite_differences").relative
    again = call(Kernel.DENSE_FISHER_ROWS, theta, x, **options, reduced=False)
    assert np.array_equal(rows, again)


def test_the_fisher_is_the_curvature_of_the_divergence(call: Call) -> None:
    """KL(p_θ ‖ p_{θ+δ}) = ½ δᵀFδ + O(‖δ‖³): the rows mean what they should."""
    sizes = (4, 6, 3)
    theta, x = problem(sizes, seed=3)
    rows = call(
        Kernel.DENSE_FISHER_ROWS, theta, x, sizes=sizes, activation="tanh", output="categorical"
    )
    delta = np.random.default_rng(4).normal(size=len(theta))
    ratios = []
    for size in (1e-2, 1e-3):
        z, z_moved = (forward(t, x, sizes, "tanh") for t in (theta, theta + size * delta))
        quadratic = 0.5 * np.sum((rows @ (size * delta)) ** 2, axis=1)
        ratios.append(np.abs(Categorical().kl(z, z_moved) / quadratic - 1).max())
    assert ratios[1] < 0.2 * ratios[0]  # the error falls with the step
    assert ratios[1] < 1e-2


def test_an_inactive_unit_gets_exact_zeros(call: Call) -> None:
    sizes = (3, 2, 2)
    theta, x = problem(sizes, seed=5)
    theta[6:8] = -100.0, 100.0  # biases: the first hidden unit is never active, the second always
    for output in ("categorical", "gaussian"):
        rows = call(
            Kernel.DENSE_FISHER_ROWS, theta, x, sizes=sizes, activation="relu", output=output
        )
        assert not rows[:, :, 0:3].any()
        assert not rows[:, :, 6].any()
        assert rows[:, :, 3:6].any()


def test_at_the_kink_the_slope_of_relu_is_zero(call: Call) -> None:
    sizes = (2, 3, 2)
    theta, _ = problem(sizes, seed=6)
    theta[6:9] = 0.0
    rows = call(
        Kernel.DENSE_FISHER_ROWS,
        theta,
        np.zeros((1, 2)),
        sizes=sizes,
        activation="relu",
        output="gaussian",
    )
    assert not rows[:, :, :15].any()
    assert rows[0, :, 15:].tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("scale", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certain_predictions_stay_finite(call: Call, scale: float, dtype: str) -> None:
    sizes = (3, 4)
    theta, x = problem(sizes, seed=7)
    theta, x = (scale * theta).astype(dtype), x.astype(dtype)
    options = {"sizes": sizes, "activation": "relu", "output": "categorical"}
    rows = call(Kernel.DENSE_FISHER_ROWS, theta, x, **options)
    assert np.isfinite(rows).all()
    # F is what 128-bit-like care gives: p_c (δ_cd − p_d) from log-probabilities in float64.
    exact = call(Kernel.DENSE_FISHER_ROWS, theta.astype(float), x.astype(float), **options)
    top = np.abs(fishers(exact)).max(axis=(1, 2))
    error = np.abs(fishers(rows) - fishers(exact)).max(axis=(1, 2))
    assert (error <= 1e-3 * top + 1e-30).all()
