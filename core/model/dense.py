"""Dense networks from plain arrays or fitted scikit-learn models, and their engine.

z = W_L φ(… φ(W_1 x + b_1) …) + b_L with φ in {relu, tanh, identity} on the hidden layers. Written
with the array API, so that NumPy arrays and torch tensors take the same path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from ..errors import InvalidInputError
from ..types import Array
from .outputs import Bernoulli, Categorical, Gaussian, OutputDistribution
from .sites import Site, sites_of, unflatten

ACTIVATIONS = ("relu", "tanh", "identity")


@dataclass(frozen=True, slots=True, eq=False)
class DenseNetwork:
    """A dense network as plain arrays.

    Attributes
    ----------
    weights : sequence of arrays (d_out, d_in)
        W_1, ..., W_L of one library, dtype and device.
    biases : sequence of arrays (d_out,)
        b_1, ..., b_L.
    activation : {"relu", "tanh", "identity"}
        φ of the hidden layers; relu'(0) = 0.

    Raises
    ------
    InvalidInputError
        Shapes that do not chain, or an activation that is not known.

    Examples
    --------
    >>> import numpy as np
    >>> DenseNetwork([np.ones((2, 3))], [np.zeros(2)]).sizes
    (3, 2)
    """

    weights: Sequence[Array]
    biases: Sequence[Array]
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InvalidInputError(
                f"activation={self.activation!r} was given; accepted: {', '.join(ACTIVATIONS)}."
            )
        if not self.weights or len(self.weights) != len(self.biases):
            raise InvalidInputError(
                f"{len(self.weights)} weights and {len(self.biases)} biases were given; one of "
                "each for every layer, and at least one layer, is taken."
            )
        width = int(self.weights[0].shape[1]) if self.weights[0].ndim == 2 else -1
        for number, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if W.ndim != 2 or tuple(b.shape) != (W.shape[0],) or W.shape[1] != width:
                raise InvalidInputError(
                    f"Layer {number} has a weight {tuple(W.shape)} and a bias {tuple(b.shape)}; "
                    f"(d_out, {width if width >= 0 else 'd_in'}) and (d_out,) are taken."
                )
            width = int(W.shape[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """(d_0, d_1, ..., d_L)."""
        return (int(self.weights[0].shape[1]), *(int(W.shape[0]) for W in self.weights))


class DenseEngine:
    """Engine of a dense network: exact derivatives by hand-written reverse and forward passes.

    Parameters
    ----------
    network : DenseNetwork
    output : OutputDistribution, optional
        ``Categorical()`` unless told otherwise.
    """

    def __init__(self, network: DenseNetwork, *, output: OutputDistribution | None = None) -> None:
        self.network = network
        self._output = Categorical() if output is None else output
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
            shapes[f"layers.{number}.weight"] = tuple(int(s) for s in W.shape)
            shapes[f"layers.{number}.bias"] = (int(b.shape[0]),)
        self._sites = sites_of(shapes)

    @property
    def sites(self) -> tuple[Site, ...]:
        """``layers.0.weight``, ``layers.0.bias``, ``layers.1.weight``, ..."""
        return self._sites

    @property
    def output(self) -> OutputDistribution:
        """What the outputs mean."""
        return self._output

    @property
    def n_parameters(self) -> int:
        """Number of parameters p."""
        return self._sites[-1].stop

    def theta(self) -> Array:
        """[W_1 row-major, b_1, W_2, b_2, ...] (p,), a copy."""
        xp = self._xp
        parts = [xp.reshape(x, (-1,)) for x in self._arrays()]
        return xp.concat(parts, axis=0)

    def predict(self, inputs: Array) -> Array:
        """Outputs z (n, C)."""
        return self._forward(self.checked(inputs))[1]

    def rows(self, inputs: Array, roots: Array) -> Array:
        """Rows U_i J_i (n, k, p) for roots U (n, k, C); nothing larger is formed."""
        xp = self._xp
        activations, _, slopes = self._trace(self.checked(inputs))
        n, k = int(roots.shape[0]), int(roots.shape[1])
        delta, blocks = roots, []
        for layer in range(len(self.network.weights) - 1, -1, -1):
            a = activations[layer]
            outer = delta[:, :, :, None] * a[:, None, None, :]
            blocks += [delta, xp.reshape(outer, (n, k, -1))]
            if layer:
                delta = xp.matmul(delta, self.network.weights[layer])
                delta = delta * slopes[layer - 1][:, None, :]
        return xp.concat(blocks[::-1], axis=2)

    def jvp(self, inputs: Array, direction: Array) -> Array:
        """J_i δ (n, C) for δ (p,)."""
        parts = unflatten(direction, self._sites)
        activations, _, slopes = self._trace(self.checked(inputs))
        tangent = None
        for layer, W in enumerate(self.network.weights):
            moved = activations[layer] @ parts[f"layers.{layer}.weight"].T
            moved = moved + parts[f"layers.{layer}.bias"]
            tangent = moved if tangent is None else moved + tangent @ W.T
            if layer < len(slopes):
                tangent = tangent * slopes[layer]
        return tangent

    def vjp(self, inputs: Array, cotangents: Array) -> Array:
        """Σ_i J_iᵀ u_i (p,) for u (n, C)."""
        xp = self._xp
        activations, _, slopes = self._trace(self.checked(inputs))
        delta, blocks = cotangents, []
        for layer in range(len(self.network.weights) - 1, -1, -1):
            blocks += [xp.sum(delta, axis=0), xp.reshape(delta.T @ activations[layer], (-1,))]
            if layer:
                delta = (delta @ self.network.weights[layer]) * slopes[layer - 1]
        return xp.concat(blocks[::-1], axis=0)

    @contextmanager
    def patch(self, delta: Array) -> Iterator[None]:
        """θ + δ inside the block, in place; the original θ, bit for bit, on every exit."""
        parts = unflatten(delta, self._sites)
        xp = self._xp
        arrays = self._arrays()
        before = [xp.asarray(x, copy=True) for x in arrays]
        try:
            for site, x in zip(self._sites, arrays, strict=True):
                x[...] = x + xp.astype(parts[site.name], x.dtype)
            yield
        finally:
            for x, kept in zip(arrays, before, strict=True):
                x[...] = kept

    @property
    def _xp(self) -> Any:
        return array_namespace(*self.network.weights)

    def _arrays(self) -> list[Array]:
        pairs = zip(self.network.weights, self.network.biases, strict=True)
        return [x for pair in pairs for x in pair]

    def checked(self, inputs: Array) -> Array:
        """Inputs (n, d_0) in the network's library, dtype and device; finite.

        Raises
        ------
        InvalidInputError
            Wrong shape, NaN or infinite entries.
        """
        width = self.network.sizes[0]
        if getattr(inputs, "ndim", None) != 2 or inputs.shape[1] != width:
            raise InvalidInputError(
                f"Inputs of shape {tuple(getattr(inputs, 'shape', ()))} were given; (n, {width}) "
                "is taken by this network."
            )
        xp = self._xp
        like = self.network.weights[0]
        x = xp.asarray(inputs, dtype=like.dtype, device=like.device)
        if not bool(xp.all(xp.isfinite(x))):
            raise InvalidInputError("The inputs hold NaN or infinite entries; drop or fill them.")
        return x

    def _forward(self, x: Array) -> tuple[list[Array], Array]:
        activations, z, _ = self._trace(x)
        return activations, z

    def _trace(self, x: Array) -> tuple[list[Array], Array, list[Array]]:
        """Inputs of every layer, the outputs, and φ' of every hidden layer."""
        xp = self._xp
        activations: list[Array] = [x]
        slopes: list[Array] = []
        last = len(self.network.weights) - 1
        for layer, (W, b) in enumerate(zip(self.network.weights, self.network.biases, strict=True)):
            z = activations[-1] @ W.T + b
            if layer == last:
                return activations, z, slopes
            if self.network.activation == "relu":
                a, slope = xp.where(z > 0, z, xp.zeros_like(z)), xp.astype(z > 0, z.dtype)
            elif self.network.activation == "tanh":
                a = xp.tanh(z)
                slope = 1.0 - a * a
            else:
                a, slope = z, xp.ones_like(z)
            activations.append(a)
            slopes.append(slope)
        raise InvalidInputError("A network without layers was given.")


def engine_from_sklearn(model: Any, *, output: OutputDistribution | None = None) -> DenseEngine:
    """Engine of a fitted ``MLPClassifier`` or ``MLPRegressor``.

    It shares the model's arrays, so that a patch shows in ``model.predict`` too. Classifiers give
    ``Categorical()`` (softmax) or ``Bernoulli()`` (two classes or multilabel, one logit each),
    regressors ``Gaussian()``.

    Raises
    ------
    InvalidInputError
        If the model is not fitted, or its hidden activation is "logistic".
    """
    if not hasattr(model, "coefs_"):
        raise InvalidInputError(
            f"This {type(model).__name__} is not fitted; call its fit(X, y) first."
        )
    if model.activation not in ACTIVATIONS:
        raise InvalidInputError(
            f"This {type(model).__name__} has the hidden activation {model.activation!r}; "
            f"accepted: {', '.join(ACTIVATIONS)}. Refit it with one of these."
        )
    network = DenseNetwork(
        tuple(coef.T for coef in model.coefs_), tuple(model.intercepts_), model.activation
    )
    meanings: dict[str, OutputDistribution] = {
        "softmax": Categorical(),
        "logistic": Bernoulli(),
        "identity": Gaussian(),
    }
    return DenseEngine(network, output=output or meanings[model.out_activation_])
