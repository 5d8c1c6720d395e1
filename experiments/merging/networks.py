"""Small dense classifiers of digits: trained by Adam, scored, taken apart into body and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.model import DenseNetwork
from ...core.types import FloatArray, IntArray

SIZES = (64, 20, 20, 10)
PRE_STEPS, TUNE_STEPS = 100, 200
Targets = IntArray | FloatArray
"""Labels (n,), or rows (n, o) of numbers to be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """Digits for training, for choosing and for reporting; each image is in one of them."""

    train: tuple[FloatArray, IntArray]
    select: tuple[FloatArray, IntArray]
    report: tuple[FloatArray, IntArray]


def digits(seed: int, *, n_train: int = 1000, n_select: int = 300) -> Splits:
    """The 1,797 images in three parts."""
    from .._digits import N_IMAGES, load_digits

    rng = np.random.default_rng([seed, 11])
    data = load_digits(n_train, N_IMAGES - n_train, rng)
    X, y = data.held_out_inputs, data.held_out_labels
    return Splits(
        train=(data.train_inputs, data.train_labels),
        select=(X[:n_select], y[:n_select]),
        report=(X[n_select:], y[n_select:]),
    )


def fresh(seed: int, sizes: Sequence[int] = SIZES, activation: str = "tanh") -> DenseNetwork:
    """Glorot weights, zero biases."""
    rng = np.random.default_rng([seed, 12])
    pairs = list(zip(sizes[1:], sizes[:-1], strict=True))
    return DenseNetwork(
        [rng.normal(size=p) * np.sqrt(2 / sum(p)) for p in pairs],
        [np.zeros(p[0]) for p in pairs],
        activation,
    )


def train(
    network: DenseNetwork,
    data: tuple[FloatArray, Targets],
    *,
    steps: int,
    seed: int,
    rate: float = 5e-3,
    batch: int = 64,
    pull: float = 0.0,
) -> DenseNetwork:
    """Adam on the loss of :func:`_gradients` from the given weights, with a pull towards them."""
    X, y = data
    rng = np.random.default_rng([seed, 13])
    start = [np.array(p, dtype=np.float64) for p in _parameters(network)]
    theta = [p.copy() for p in start]
    m, v = [np.zeros_like(p) for p in theta], [np.zeros_like(p) for p in theta]
    for t in range(1, steps + 1):
        chosen = rng.integers(len(X), size=min(batch, len(X)))
        grads = _gradients(theta, network.activation, X[chosen], y[chosen])
        for k, g in enumerate(grads):
            g = g + 2 * pull * (theta[k] - start[k])
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g * g
            step = m[k] / (1 - 0.9**t) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
            theta[k] = theta[k] - rate * step
    return DenseNetwork(theta[0::2], theta[1::2], network.activation)


def _parameters(network: DenseNetwork) -> list[Any]:
    return [p for pair in zip(network.weights, network.biases, strict=True) for p in pair]


def _slope(a: FloatArray, activation: str) -> FloatArray:
    return 1.0 - a * a if activation == "tanh" else np.asarray(a > 0, dtype=np.float64)


def _act(z: FloatArray, activation: str) -> FloatArray:
    return np.tanh(z) if activation == "tanh" else np.maximum(z, 0.0)


def _gradients(
    theta: Sequence[FloatArray], activation: str, X: FloatArray, y: Targets
) -> list[FloatArray]:
    """Of the mean cross-entropy for labels (n,), of half the mean squared error for rows (n, o)."""
    layers = len(theta) // 2
    a = [X]
    for k in range(layers):
        z = a[-1] @ theta[2 * k].T + theta[2 * k + 1]
        a.append(_act(z, activation) if k < layers - 1 else z)
    if y.ndim == 2:
        delta = (a[-1] - y) / len(y)
    else:
        delta = np.exp(log_softmax(a[-1]))
        delta[np.arange(len(y)), y.astype(np.int64)] -= 1.0
        delta /= len(y)
    out: list[FloatArray] = []
    for k in range(layers - 1, -1, -1):
        out = [delta.T @ a[k], delta.sum(0), *out]
        if k:
            delta = (delta @ theta[2 * k]) * _slope(a[k], activation)
    return out


def log_softmax(z: FloatArray) -> FloatArray:
    """Log-probabilities (n, C) of logits."""
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def log_probabilities(network: DenseNetwork, X: FloatArray) -> FloatArray:
    """Log p(y|x) (n, C)."""
    a = X
    for k, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        z = a @ np.asarray(W).T + np.asarray(b)
        a = _act(z, network.activation) if k < len(network.weights) - 1 else z
    return log_softmax(a)


def accuracy(network: DenseNetwork, data: tuple[FloatArray, IntArray]) -> float:
    """Share of right answers."""
    return float((log_probabilities(network, data[0]).argmax(1) == data[1]).mean())


def log_loss(network: DenseNetwork, data: tuple[FloatArray, IntArray]) -> float:
    """Mean −log p of the right answer."""
    return float(-log_probabilities(network, data[0])[np.arange(len(data[1])), data[1]].mean())


def halves(data: tuple[FloatArray, IntArray]) -> list[tuple[FloatArray, IntArray]]:
    """The images of 0 to 4, and of 5 to 9."""
    X, y = data
    return [(X[y < 5], y[y < 5]), (X[y >= 5], y[y >= 5])]


def two_specialists(
    seed: int, splits: Splits, steps: int = TUNE_STEPS
) -> tuple[DenseNetwork, list[DenseNetwork]]:
    """A common start, and two copies of it tuned to one half of the digits each."""
    base = train(fresh(seed), splits.train, steps=PRE_STEPS, seed=seed)
    tuned = [
        train(base, half, steps=steps, seed=seed * 10 + k)
        for k, half in enumerate(halves(splits.train))
    ]
    return base, tuned


def with_head(body: DenseNetwork, head: DenseNetwork) -> DenseNetwork:
    """The hidden layers of one network under the last layer of another."""
    return DenseNetwork(
        [*body.weights[:-1], head.weights[-1]],
        [*body.biases[:-1], head.biases[-1]],
        body.activation,
    )
