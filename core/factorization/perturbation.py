"""Perturbing a model along a component: directions, the guaranteed way back, and the effect.

θ± = θ ± ε ĝ_k with ‖ĝ_k‖ = 1. KL_i(±) = KL(p(·|x_i, θ±) ‖ p(·|x_i, θ)); to second order in ε it is
(ε²/2) ĝ_kᵀF_iĝ_k = (ε²/2)‖A_iĝ_k‖², which needs no forward pass through the perturbed model.
The KL-ratio of a component is the mean KL on its top examples over the mean KL on a baseline.

Source: Matena & Raffel 2023, arXiv:2310.04649; the prediction, the orthogonalisation by QR and the
two baseline directions are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_backend, to_numpy
from ..backend.registry import registered_backends
from ..display import Shown
from ..errors import InvalidInputError
from ..model import ModelEngine, engine_for
from ..model.sites import Site
from ..types import Array, FloatArray, IntArray
from .result import Factorization

DIRECTIONS = ("component", "orthogonalised")


def component_direction(
    factorization: Factorization,
    component: int,
    *,
    direction: str = "component",
    max_abs_cos: float = 0.999,
) -> FloatArray:
    """The unit vector ĝ (m,) to move along, in float64.

    Parameters
    ----------
    direction : {"component", "orthogonalised"}
        g_k itself, or g_k without its parts along the other components.
    max_abs_cos : float
        Components with |cos| to g_k above this are near-duplicates of it and stay in.

    Raises
    ------
    InvalidInputError
        Unknown component or direction, or nothing is left after orthogonalisation.
    """
    if not 0 <= component < factorization.n_components:
        raise InvalidInputError(
            f"component {component} was asked for; there are 0 to {factorization.n_components - 1}."
        )
    if direction not in DIRECTIONS:
        raise InvalidInputError(
            f"direction={direction!r} was given; accepted: {', '.join(DIRECTIONS)}."
        )
    G = to_numpy(factorization.components).astype(np.float64)
    g = G[component]
    norm = float(np.linalg.norm(g))
    if norm == 0.0:
        raise InvalidInputError(f"Component {component} is zero, so it gives no direction.")
    g = g / norm
    if direction == "component":
        return np.asarray(g)
    norms = np.linalg.norm(G, axis=1)
    cosines = np.abs(G @ g) / np.where(norms > 0, norms, 1.0)
    others = [k for k in range(len(G)) if k != component and norms[k] > 0]
    basis = _span(G[[k for k in others if cosines[k] <= max_abs_cos]])
    left = g
    for _ in range(2):  # twice is enough
        left = left - basis.T @ (basis @ left)
    size = float(np.linalg.norm(left))
    if size <= 1e-10:
        raise InvalidInputError(
            f"Component {component} lies in the span of the others, so nothing is left of it. Use "
            "direction='component'."
        )
    return np.asarray(left / size)


def _span(rows: FloatArray) -> FloatArray:
    """Orthonormal rows with the span of ``rows``, whatever their order."""
    if not len(rows):
        return rows
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, s, vt = np.linalg.svd(unit, full_matrices=False)
    return np.asarray(vt[s > 1e-12 * s[0]])


@contextmanager
def perturb(
    model: Any,
    factorization: Factorization,
    component: int,
    *,
    magnitude: float,
    direction: str = "component",
    sign: int = +1,
    max_abs_cos: float = 0.999,
) -> Iterator[ModelEngine]:
    """Move the model's parameters by sign·ε·ĝ_k inside the block; restore them on every exit.

    Parameters
    ----------
    model : object
        The model that the Fishers came from (or its engine).
    factorization : Factorization
        With ``sites`` that name parameters of the model.
    component : int
    magnitude : float
        ε ≥ 0, the L2 norm of the move in parameter space.
    direction : {"component", "orthogonalised"}
        See :func:`component_direction`.
    sign : {+1, −1}

    Yields
    ------
    ModelEngine
        The engine of the perturbed model.

    Raises
    ------
    InvalidInputError
        Unknown component or direction, negative ε, or components that are not parameters of
        this model.

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope import DenseNetwork, LowRankNPEFF, factorize, per_example_fishers
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    >>> x = rng.normal(size=(20, 4))
    >>> found = factorize(per_example_fishers(net, x), LowRankNPEFF(2), on_failure="return")
    >>> with perturb(net, found, 0, magnitude=0.1) as moved:
    ...     z = moved.predict(x)
    """
    if sign not in (1, -1):
        raise InvalidInputError(f"sign={sign!r} was given; +1 or -1 is accepted.")
    if not magnitude >= 0.0 or not np.isfinite(magnitude):
        raise InvalidInputError(
            f"magnitude={magnitude!r} was given; a finite number >= 0 is accepted."
        )
    engine = engine_for(model)
    g = component_direction(factorization, component, direction=direction, max_abs_cos=max_abs_cos)
    delta = scatter(engine, factorization.sites, sign * magnitude * g)
    with engine.patch(delta):
        yield engine


def scatter(engine: ModelEngine, sites: Sequence[Site], vector: FloatArray) -> Array:
    """A vector over some sites as a flat δ (p,) of the whole model, zero elsewhere.

    Raises
    ------
    InvalidInputError
        If the sites are not parameters of this model.
    """
    own = {s.name: s for s in engine.sites}
    theta = engine.theta()
    if not sites or any(s.name not in own or own[s.name].shape != s.shape for s in sites):
        raise InvalidInputError(
            "The components do not belong to this model: their parameters are "
            f"{[(s.name, s.shape) for s in sites][:4]}, the model's are "
            f"{[(s.name, s.shape) for s in engine.sites][:4]}. Give the model that the Fishers "
            "were computed from."
        )
    full = np.zeros(int(theta.shape[0]))
    for s in sites:
        full[own[s.name].start : own[s.name].stop] = vector[s.start : s.stop]
    return _as(theta, full)


def _as(template: Array, values: FloatArray) -> Array:
    """NumPy values with the library, dtype and device of ``template``."""
    if isinstance(template, np.ndarray):
        return values.astype(template.dtype)
    info = next(i for i in registered_backends().values() if i.takes(template))
    moved = to_backend(values, info.name, device=getattr(template, "device", None))
    return moved.to(template.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerturbationReport(Shown):
    """Effects of moving along components; axis 0 runs over the components asked for.

    Attributes
    ----------
    components : int64 array (c,)
    magnitudes : float64 array (c,)
        ε of each component.
    kl_top, kl_baseline : float64 array (c, 2)
        Mean KL(perturbed ‖ original) in nats on the top and on the baseline examples, for + and −.
    predicted_top, predicted_baseline : float64 array (c,)
        (ε²/2) mean ‖A_iĝ‖² on the same examples.
    random_top, random_baseline : float64 array (c, q)
        The same means for q random directions of the same norm (the larger ratio of ±).
    centroid_top, centroid_baseline : float64 array (c,)
        The same for the mean of ∇log p(ŷ|x) over the top examples.
    accuracy_top, accuracy_baseline : float64 array (c, 2) or None
        Accuracy of the perturbed model for + and −, when labels were given.
    top : int64 array (c, k)
        The top examples.
    baseline : int64 array (c, b)
        Random examples outside the top ones.
    """

    components: IntArray
    magnitudes: FloatArray
    kl_top: FloatArray
    kl_baseline: FloatArray
    predicted_top: FloatArray
    predicted_baseline: FloatArray
    random_top: FloatArray
    random_baseline: FloatArray
    centroid_top: FloatArray
    centroid_baseline: FloatArray
    accuracy_top: FloatArray | None
    accuracy_baseline: FloatArray | None
    top: IntArray
    baseline: IntArray

    @property
    def kl_ratio(self) -> FloatArray:
        """Mean top KL over mean baseline KL, the larger of ± (c,); NaN where nothing moved."""
        return np.asarray(np.max(_ratio(self.kl_top, self.kl_baseline), axis=1))

    @property
    def predicted_ratio(self) -> FloatArray:
        """The ratio that second order predicts (c,)."""
        return _ratio(self.predicted_top, self.predicted_baseline)

    @property
    def random_ratio(self) -> FloatArray:
        """Ratios along random directions (c, q)."""
        return _ratio(self.random_top, self.random_baseline)

    @property
    def centroid_ratio(self) -> FloatArray:
        """Ratios along the gradient centroid (c,)."""
        return _ratio(self.centroid_top, self.centroid_baseline)

    def __repr__(self) -> str:
        ratio = self.kl_ratio
        middle = float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan")
        return f"PerturbationReport(components={len(ratio)}, median_kl_ratio={middle:.3g})"


def _ratio(top: FloatArray, base: FloatArray) -> FloatArray:
    out = np.full(np.shape(top), np.nan)
    np.divide(top, base, out=out, where=base > 0)
    return out


def perturbation_report(
    model: Any,
    factorization: Factorization,
    inputs: Array,
    *,
    components: Sequence[int] | None = None,
    magnitude: float | str = "auto",
    target_kl: float = 0.1,
    direction: str = "component",
    n_top: int = 32,
    n_baseline: int = 128,
    n_random: int = 8,
    labels: IntArray | None = None,
    seed: int | np.random.Generator = 0,
) -> PerturbationReport:
    """Measure what moving along each component does to its own examples and to others.

    Parameters
    ----------
    model, factorization
        As :func:`perturb`.
    inputs : array (n, ...)
        The examples that were factorized, in their order.
    components : sequence of int, optional
        All by default.
    magnitude : float or "auto"
        ε; "auto" takes for each component the ε at which the mean KL on its top examples (the
        larger of ±) is ``target_kl`` nats.
    n_top, n_baseline, n_random : int
        Top examples, random baseline examples (disjoint from the top ones), random directions.
    labels : int64 array (n,), optional
        For accuracies; class numbers as the outputs count them.
    seed : int or Generator

    Raises
    ------
    InvalidInputError
        Inputs that are not as many as the coefficients, or too few examples for a baseline.

    Notes
    -----
    Cost a component: 2(2 + n_random) forward passes over n_top + n_baseline examples, and about 20
    over the top ones for "auto".
    """
    engine = engine_for(model)
    n = factorization.n_examples
    if len(inputs) != n:
        raise InvalidInputError(
            f"{len(inputs)} inputs were given; the factorization has {n} examples. Give the "
            "examples that were factorized, in their order."
        )
    rng = np.random.default_rng(seed)
    chosen = np.arange(factorization.n_components) if components is None else np.array(components)
    n_top = min(n_top, n - 1)
    rows = []
    for k in chosen:
        top = factorization.top_examples(n_top)[k]
        rest = np.setdiff1d(np.arange(n), top)
        base = rng.choice(rest, size=min(n_baseline, len(rest)), replace=False)
        g = component_direction(factorization, int(k), direction=direction)
        noise = rng.standard_normal((n_random, len(g)))
        probe = _Probe(engine, factorization.sites, inputs, top, base, labels)
        rows.append(probe.measure(g, noise, magnitude, target_kl))
    stacked: dict[str, Any] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    if labels is None:
        stacked |= {"accuracy_top": None, "accuracy_baseline": None}
    return PerturbationReport(components=chosen.astype(np.int64), **stacked)


class _Probe:
    """Measures directions on one component's top and baseline examples."""

    def __init__(
        self,
        engine: ModelEngine,
        sites: Sequence[Site],
        inputs: Array,
        top: IntArray,
        base: IntArray,
        labels: IntArray | None,
    ) -> None:
        self.engine, self.sites, self.labels = engine, sites, labels
        self.top, self.base = top, np.sort(base)
        self.inputs = inputs[np.concatenate([self.top, self.base])]
        self.before = engine.predict(self.inputs)
        self.theta = engine.theta()

    def measure(
        self, g: FloatArray, noise: FloatArray, magnitude: float | str, target: float
    ) -> dict[str, Any]:
        """Everything that a report holds of one component."""
        epsilon = self.auto(g, target) if isinstance(magnitude, str) else float(magnitude)
        both = [self.effect(s * epsilon * g) for s in (+1, -1)]
        predicted = self.predicted(epsilon * g)
        random = [self.larger(epsilon * v / np.linalg.norm(v)) for v in noise]
        centroid = self.larger(epsilon * self.centroid())
        return {
            "magnitudes": epsilon,
            "kl_top": [e[0] for e in both],
            "kl_baseline": [e[1] for e in both],
            "accuracy_top": [e[2] for e in both],
            "accuracy_baseline": [e[3] for e in both],
            "predicted_top": predicted[0],
            "predicted_baseline": predicted[1],
            "random_top": [e[0] for e in random],
            "random_baseline": [e[1] for e in random],
            "centroid_top": centroid[0],
            "centroid_baseline": centroid[1],
            "top": self.top,
            "baseline": self.base,
        }

    def effect(self, vector: FloatArray) -> tuple[float, float, float, float]:
        """Mean KL on top and baseline examples, and the accuracies, after a move."""
        with self.engine.patch(scatter(self.engine, self.sites, vector)):
            z = self.engine.predict(self.inputs)
        kl = np.maximum(to_numpy(self.engine.output.kl(z, self.before)).astype(np.float64), 0.0)
        k = len(self.top)
        right = np.full(len(kl), np.nan)
        if self.labels is not None:
            answers = np.argmax(to_numpy(z), axis=1)
            right = (answers == self.labels[np.concatenate([self.top, self.base])]).astype(float)
        return kl[:k].mean(), kl[k:].mean(), right[:k].mean(), right[k:].mean()

    def larger(self, vector: FloatArray) -> tuple[float, float]:
        """(top, baseline) of the sign with the larger ratio."""
        pairs = [self.effect(s * vector)[:2] for s in (+1, -1)]
        return max(pairs, key=lambda p: p[0] / p[1] if p[1] > 0 else -1.0)

    def predicted(self, vector: FloatArray) -> tuple[float, float]:
        """½ mean ‖U_iJ_iδ‖² on top and baseline examples: one forward-mode pass."""
        tangent = self.engine.jvp(self.inputs, scatter(self.engine, self.sites, vector))
        root = self.engine.output.fisher_root(self.before)
        moved = to_numpy((root * tangent[:, None, :]).sum(-1)).astype(np.float64)
        kl = 0.5 * np.square(moved).sum(axis=1)
        k = len(self.top)
        return kl[:k].mean(), kl[k:].mean()

    def centroid(self) -> FloatArray:
        """The unit mean of ∇log p(ŷ|x) over the top examples, ŷ the model's own answer."""
        z = to_numpy(self.before).astype(np.float64)[: len(self.top)]
        answer = np.zeros_like(z)
        answer[np.arange(len(z)), z.argmax(axis=1)] = 1.0
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        cotangents = answer - p if self.engine.output.name == "categorical" else np.ones_like(z)
        inputs = self.inputs[: len(self.top)]
        full = to_numpy(self.engine.vjp(inputs, _as(self.theta, cotangents))).astype(np.float64)
        own = {s.name: s for s in self.engine.sites}
        v = np.concatenate([full[own[s.name].start : own[s.name].stop] for s in self.sites])
        size = float(np.linalg.norm(v))
        return np.asarray(v / size) if size > 0 else v

    def auto(self, g: FloatArray, target: float) -> float:
        """The ε at which the mean top KL, the larger of ±, is ``target`` (within 5 %)."""
        if not target > 0:
            raise InvalidInputError(f"target_kl={target!r} was given; a number > 0 is accepted.")

        def top_kl(epsilon: float) -> float:
            return max(self.effect(s * epsilon * g)[0] for s in (+1, -1))

        curvature = self.predicted(g)[0]
        size = float(np.linalg.norm(to_numpy(self.theta).astype(np.float64)))
        epsilon = float(np.sqrt(target / curvature)) if curvature > 0 else size
        low, high = 0.0, np.inf
        for _ in range(20):
            value = top_kl(epsilon)
            if abs(value - target) <= 0.05 * target or epsilon > 100 * size:
                break
            low, high = (epsilon, high) if value < target else (low, epsilon)
            epsilon = 2.0 * low if np.isinf(high) else 0.5 * (low + high)
        return epsilon
