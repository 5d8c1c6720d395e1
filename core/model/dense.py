"""Dense networks from plain arrays or fitted scikit-learn models, and their engine.

z = W_L φ(… φ(W_1 x + b_1) …) + b_L with φ in {relu, tanh, identity} on the hidden layers. Written
with the array API, so that NumPy arrays and torch tensors take the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from ..backend import like, to_numpy
from ..backend.guard import check_finite, dtype_name
from ..errors import ArrayTypeError, InvalidInputError
from ..types import Array
from .layer_terms import LayerTerm
from .layout import SiteLayout
from .outputs import Bernoulli, Categorical, Gaussian, OutputDistribution
from .sites import Site, sites_of, unflatten
from .tracing import TracedFlows, dense_flows

ACTIVATIONS = ("relu", "tanh", "identity")


@dataclass(frozen=True, slots=True, eq=False)
class DenseNetwork:
    """A dense network as plain arrays.

    Attributes
    ----------
    weights : sequence of arrays (d_out, d_in)
        W_1, ..., W_L, float32 or float64, of one library, dtype and device; kept as a tuple of
        the arrays themselves, not of copies.
    biases : sequence of arrays (d_out,)
        b_1, ..., b_L.
    activation : {"relu", "tanh", "identity"}
        φ of the hidden layers; relu'(0) = 0.

    Raises
    ------
    ArrayTypeError
        Something else than arrays, or arrays of several libraries, dtypes or devices.
    InvalidInputError
        Shapes that do not chain, NaN or infinite entries, or an activation that is not known.

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
        object.__setattr__(self, "weights", tuple(self.weights))
        object.__setattr__(self, "biases", tuple(self.biases))
        _check_one_kind((*self.weights, *self.biases))
        width = int(self.weights[0].shape[1]) if self.weights[0].ndim == 2 else -1
        for number, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if W.ndim != 2 or tuple(b.shape) != (W.shape[0],) or W.shape[1] != width:
                raise InvalidInputError(
                    f"Layer {number} has a weight {tuple(W.shape)} and a bias {tuple(b.shape)}; "
                    f"(d_out, {width if width >= 0 else 'd_in'}) and (d_out,) are taken."
                )
            width = int(W.shape[0])
        xp = array_namespace(*self.weights)
        for number, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            check_finite(f"DenseNetwork, weight of layer {number}", W, xp)
            check_finite(f"DenseNetwork, bias of layer {number}", b, xp)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(d_0, d_1, ..., d_L)."""
        return (int(self.weights[0].shape[1]), *(int(W.shape[0]) for W in self.weights))


def _check_one_kind(arrays: Sequence[Array]) -> None:
    """Refuse what is not arrays of one library, one floating dtype and one device."""
    for x in arrays:
        if not is_array_api_obj(x):
            raise ArrayTypeError(
                f"A {type(x).__name__} was given as a weight or bias; arrays of NumPy or torch are "
                "taken. Use numpy.asarray(x, dtype=float) first."
            )
    kinds = {(type(x).__module__.split(".")[0], dtype_name(x), str(device(x))) for x in arrays}
    if len(kinds) > 1 or next(iter(kinds))[1] not in ("float32", "float64"):
        given = "; ".join(" ".join(kind) for kind in sorted(kinds))
        raise ArrayTypeError(
            f"Weights and biases of these kinds were given: {given}. All float32 or all float64, "
            "of one library and on one device, are taken. Convert them first."
        )


class DenseEngine:
    """Engine of a dense network: exact derivatives by hand-written reverse and forward passes.

    Parameters
    ----------
    network : DenseNetwork
    output : OutputDistribution, optional
        ``Categorical()`` unless told otherwise.
    """

    def __init__(self, network: DenseNetwork, *, output: OutputDistribution | None = None) -> None:
        self.network = _without_gradients(network)
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
        return self._trace(self.checked(inputs))[1]

    def hidden(self, inputs: Array, layer: str | None = None) -> Array:
        """Activations (n, d) of a hidden layer, "0" being the first; the last one by default.

        Raises
        ------
        InvalidInputError
            No hidden layer of that number.
        """
        names = [str(i) for i in range(len(self.network.weights) - 1)]
        wanted = (names or [""])[-1] if layer is None else layer
        if wanted not in names:
            raise InvalidInputError(
                f"layer={layer!r} was given; this network has the hidden layers "
                f"{', '.join(names) or 'none'}."
            )
        return self._trace(self.checked(inputs))[0][int(wanted) + 1]

    def rows(self, inputs: Array, roots: Array) -> Array:
        """Rows U_i J_i (n, k, p) for roots U (n, k, C); nothing larger is formed."""
        xp = self._xp
        activations, deltas = self._reverse(inputs, roots)
        blocks = []
        for a, delta in zip(activations, deltas or (), strict=True):
            n, k, o = (int(s) for s in delta.shape)
            outer = delta[:, :, :, None] * a[:, None, None, :]
            blocks += [xp.reshape(outer, (n, k, o * int(a.shape[1]))), delta]
        return xp.concat(blocks, axis=2)

    @property
    def layouts(self) -> dict[str, SiteLayout]:
        """[W|b] of every layer, by the name of its weight."""
        found = {}
        for number, W in enumerate(self.network.weights):
            name = f"layers.{number}"
            found[f"{name}.weight"] = SiteLayout(
                weight=f"{name}.weight", bias=f"{name}.bias", outputs="first",
                weight_shape=tuple(int(s) for s in W.shape),
            )  # fmt: skip
        return found

    def layer_terms(
        self,
        inputs: Array,
        roots: Array | Callable[[Array], Array] | None,
        layouts: Mapping[str, SiteLayout],
        visit: Callable[[LayerTerm], None],
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs and output gradients of the sites in ``layouts``, squares of the others.

        For roots of one example the squares of a layer are (Σ_k δ_k∘δ_k)ᵀ(a∘a): summed over the
        roots first, so that their number does not count.
        """
        xp = self._xp
        activations, deltas = self._reverse(inputs, roots)
        sums: dict[str, Array] = {}
        norms: dict[str, Array] = {}
        covered = {p for layout in layouts.values() for p in layout.parameters}
        for layer, a in enumerate(activations):
            weight, bias = f"layers.{layer}.weight", f"layers.{layer}.bias"
            delta = None if deltas is None else deltas[layer]
            if weight in layouts:
                wide = a
                if layouts[weight].bias is not None:
                    ones = xp.ones((a.shape[0], 1), dtype=a.dtype, device=device(a))
                    wide = xp.concat([a, ones], axis=1)
                by_root = None if delta is None else xp.permute_dims(delta, (1, 0, 2))[:, :, None]
                visit(
                    LayerTerm(
                        site=weight, inputs=wide[:, None], deltas=by_root, kept=None, first=True
                    )
                )
            if delta is None or {weight, bias} <= covered:
                continue
            squares = xp.sum(delta * delta, axis=1)
            if weight not in covered:
                sums[weight] = squares.T @ (a * a)
                norms[weight] = xp.sum(squares, axis=1) * xp.sum(a * a, axis=1)
            if bias not in covered:
                sums[bias], norms[bias] = xp.sum(squares, axis=0), xp.sum(squares, axis=1)
        return sums, norms

    def diagonal_sum(
        self, inputs: Array, roots: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Σ_i Σ_k (U_i J_i)∘² (p,), and its sums over each site for each example (n, sites)."""
        xp = self._xp
        sums, norms = self.layer_terms(inputs, roots, {}, lambda term: None)
        flat = [xp.reshape(sums[s.name], (-1,)) for s in self._sites]
        return xp.concat(flat, axis=0), xp.stack([norms[s.name] for s in self._sites], axis=1)

    def _reverse(
        self, inputs: Array, roots: Array | Callable[[Array], Array] | None
    ) -> tuple[list[Array], list[Array] | None]:
        """Inputs (n, i) of every layer, and the roots' gradients (n, k, o) at its outputs."""
        xp = self._xp
        activations, z, slopes = self._trace(self.checked(inputs))
        if roots is None:
            return activations, None
        U = roots(z) if callable(roots) else roots
        delta = self._own("roots", U, (len(activations[0]), None, self.network.sizes[-1]))
        deltas = [delta]
        for layer in range(len(self.network.weights) - 1, 0, -1):
            delta = xp.matmul(delta, self.network.weights[layer]) * slopes[layer - 1][:, None, :]
            deltas.append(delta)
        return activations, deltas[::-1]

    def jvp(self, inputs: Array, direction: Array) -> Array:
        """J_i δ (n, C) for δ (p,)."""
        direction = self._own("direction", direction, (self.n_parameters,))
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
        shape = (len(activations[0]), self.network.sizes[-1])
        delta, blocks = self._own("cotangents", cotangents, shape), []
        for layer in range(len(self.network.weights) - 1, -1, -1):
            blocks += [xp.sum(delta, axis=0), xp.reshape(delta.T @ activations[layer], (-1,))]
            if layer:
                delta = (delta @ self.network.weights[layer]) * slopes[layer - 1]
        return xp.concat(blocks[::-1], axis=0)

    def traced(self, inputs: Array, delta: Array, roots: Array, **options: Any) -> TracedFlows:
        """Contributions to U J δ of one example, by layer and unit (its pre-activation).

        Raises
        ------
        InvalidInputError
            Several examples, or blocks of another kind of model.
        """
        x = self.checked(inputs)
        if len(x) != 1 or options.get("blocks") is not None:
            raise InvalidInputError(
                f"{len(x)} examples and blocks={options.get('blocks')!r} were given; one example "
                "of a dense network is traced at a time, and its blocks are its layers."
            )
        activations, _, slopes = self._trace(x)
        return dense_flows(
            [to_numpy(W) for W in self.network.weights],
            [to_numpy(a)[0] for a in activations],
            [to_numpy(d)[0] for d in slopes],
            {k: to_numpy(v) for k, v in unflatten(delta, self._sites).items()},
            to_numpy(roots),
            edges=bool(options.get("edges", True)),
        )

    @contextmanager
    def patch(self, delta: Array) -> Iterator[None]:
        """θ + δ inside the block, in place; the original θ, bit for bit, on every exit.

        Raises
        ------
        InvalidInputError
            If δ has another length, or the weights are read-only.
        """
        parts = unflatten(self._own("delta", delta, (self.n_parameters,)), self._sites)
        xp = self._xp
        arrays = self._arrays()
        for site, x in zip(self._sites, arrays, strict=True):
            if isinstance(x, np.ndarray) and not x.flags.writeable:
                raise InvalidInputError(
                    f"{site.name!r} is a read-only array, and a patch moves the parameters in "
                    "place. Make the DenseNetwork of copies (numpy.array(x))."
                )
        before = [xp.asarray(x, copy=True) for x in arrays]
        try:
            for site, x in zip(self._sites, arrays, strict=True):
                x[...] = x + parts[site.name]
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
        return self._own("inputs", inputs, (None, self.network.sizes[0]))

    def _own(self, what: str, x: Array, shape: tuple[int | None, ...]) -> Array:
        """``x`` in the network's library, dtype and device; finite, and of the shape taken."""
        given = tuple(getattr(x, "shape", ()))
        fits = len(given) == len(shape) and all(
            want in (None, got) for got, want in zip(given, shape, strict=True)
        )
        if not (is_array_api_obj(x) and fits):
            named = zip("nk", shape, strict=False)
            wanted = ", ".join(name if size is None else str(size) for name, size in named)
            wanted = ", ".join([wanted, *map(str, shape[2:])])
            raise InvalidInputError(
                f"{what} of type {type(x).__name__} and shape {given} were given; an array of "
                f"shape ({wanted}{',' if len(shape) == 1 else ''}) is taken."
            )
        foreign: Any = x
        if not array_namespace(foreign).isdtype(
            foreign.dtype, ("bool", "integral", "real floating")
        ):
            raise InvalidInputError(
                f"{what} of dtype {foreign.dtype} were given; real numbers are taken."
            )
        xp, own = self._xp, self.network.weights[0]
        foreign = foreign.detach() if hasattr(foreign, "detach") else foreign
        converted = xp.asarray(like(foreign, own), dtype=own.dtype, device=device(own))
        if not bool(xp.all(xp.isfinite(converted))):
            advice = (
                "drop or fill them"
                if what == "inputs"
                else "look for inputs at which the outputs of the model overflow"
            )
            raise InvalidInputError(f"The {what} hold NaN or infinite entries; {advice}.")
        return converted

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


def _without_gradients(network: DenseNetwork) -> DenseNetwork:
    """The same memory seen without torch's recording, which forbids changes in place."""
    if not any(getattr(x, "requires_grad", False) for x in (*network.weights, *network.biases)):
        return network
    return DenseNetwork(
        [W.detach() for W in network.weights],
        [b.detach() for b in network.biases],
        network.activation,
    )


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
