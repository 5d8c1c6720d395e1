"""What moving a model along its components does, on their own examples and on others.

KL_i(±) = KL(p(·|x_i, θ±) ‖ p(·|x_i, θ)) with θ± = θ ± ε ĝ_k; to second order in ε it is
(ε²/2) ĝ_kᵀF_iĝ_k = (ε²/2)‖A_iĝ_k‖², which needs no forward pass through the perturbed model. Nor
does KL(p(·|z_i ± εJ_iĝ_k) ‖ p(·|z_i)), linear in the outputs z and exact from there: it holds
further where answers are so certain that their probabilities change by factors before the outputs
bend.
The KL-ratio of a component is the mean KL on its top examples over the mean KL on a baseline.

Source: Matena & Raffel 2023, arXiv:2310.04649; the prediction and the two baseline directions are
ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..display import Shown
from ..errors import ConvergenceWarning, InvalidInputError
from ..model import ModelEngine, engine_for
from ..types import FloatArray, IntArray, NumpyArray
from .method import DiagonalNPEFF
from .perturbation import (
    check_component,
    check_magnitude,
    component_direction,
    count_examples,
    pick_examples,
    scatter,
)
from .result import Factorization
from .weighted_move import answer_gradient, dataset_fisher, search_move, weighted_vector

# Halvings of the bracket, and doublings before it, that magnitude="auto" may take.
AUTO_STEPS = 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerturbationReport(Shown):
    """Effects of moving along components; axis 0 runs over the components asked for.

    Attributes
    ----------
    components : int64 array (c,)
    magnitudes : float64 array (c,)
        ε of each component, the L2 norm of the move.
    kl_top, kl_baseline : float64 array (c, 2)
        Mean KL(perturbed ‖ original) in nats on the top and on the baseline examples, for + and −.
    predicted_top, predicted_baseline : float64 array (c,)
        (ε²/2) mean ‖A_iĝ‖² on the same examples.
    linearised_top, linearised_baseline : float64 array (c, 2)
        Mean KL(z_i ± εJ_iĝ ‖ z_i) on the same examples, from the same forward-mode pass.
    random_top, random_baseline : float64 array (c, q)
        The same means for q random directions of the same norm (the larger ratio of ±).
    centroid_top, centroid_baseline : float64 array (c,)
        The same for the mean of ∇log p(ŷ|x) over the top examples, ŷ the model's likeliest
        answer; zero for Gaussian outputs, whose likeliest answer has no slope.
    accuracy_top, accuracy_baseline : float64 array (c, 2) or None
        Accuracy of the perturbed model for + and −, when labels were given.
    top : int64 array (c, k)
        The top examples.
    baseline : int64 array (c, b)
        Random examples outside the top ones.
    moves : float64 array (c, 2) or None
        (δ, λ) of the Fisher-weighted moves of a diagonal factorization.
    """

    components: IntArray
    magnitudes: FloatArray
    kl_top: FloatArray
    kl_baseline: FloatArray
    predicted_top: FloatArray
    predicted_baseline: FloatArray
    linearised_top: FloatArray
    linearised_baseline: FloatArray
    random_top: FloatArray
    random_baseline: FloatArray
    centroid_top: FloatArray
    centroid_baseline: FloatArray
    accuracy_top: FloatArray | None
    accuracy_baseline: FloatArray | None
    top: IntArray
    baseline: IntArray
    moves: FloatArray | None = None

    @property
    def kl_ratio(self) -> FloatArray:
        """Mean top KL over mean baseline KL, the larger of ± (c,); NaN where nothing moved."""
        return np.asarray(np.max(_ratio(self.kl_top, self.kl_baseline), axis=1))

    @property
    def predicted_ratio(self) -> FloatArray:
        """The ratio that second order predicts (c,)."""
        return _ratio(self.predicted_top, self.predicted_baseline)

    @property
    def linearised_ratio(self) -> FloatArray:
        """The ratio that follows from linear outputs, the larger of ± (c,)."""
        return np.asarray(np.max(_ratio(self.linearised_top, self.linearised_baseline), axis=1))

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
    inputs: Any,
    *,
    components: int | Sequence[int] | IntArray | None = None,
    magnitude: float | str = "auto",
    target_kl: float = 0.1,
    direction: str = "component",
    precision: Any = None,
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
    inputs : array (n, ...) or mapping of arrays
        The examples that were factorized, in their order.
    components : int or sequence of int, optional
        All by default.
    magnitude : float or "auto"
        ε ≥ 0; "auto" takes for each component the ε at which the mean KL on its top examples (the
        larger of ±) is within 5 % of ``target_kl`` nats. For diagonal factorizations a number
        is the length of the Fisher-weighted move with λ = ½, and "auto" searches δ and λ until that
        KL is within a half and twice ``target_kl``.
    direction : {"component", "sequential", "orthogonalised"}
        See :func:`component_direction`; of low-rank factorizations only.
    precision : PrecisionTree or DiagonalFishers, optional
        For diagonal factorizations: φ of :func:`fisher_weighted_move`.
    n_top, n_baseline, n_random : int
        Top examples, random baseline examples (disjoint from the top ones), random directions.
    labels : integer array (n,), or (n, C) for several yes/no outputs, optional
        For accuracies; class numbers as the outputs count them. An example with several outputs
        counts as right when all of them are.
    seed : int or Generator

    Raises
    ------
    InvalidInputError
        Inputs or labels that are not as many as the coefficients, fewer than two examples, unknown
        components, a magnitude that is no length, labels for outputs that are not classes.

    Warns
    -----
    ConvergenceWarning
        "auto" found no ε with the KL asked for; ``magnitudes`` and ``kl_top`` tell how far it came.

    Notes
    -----
    Cost a component: 2(2 + n_random) forward passes over n_top + n_baseline examples, and a few
    tens for "auto". KLs are formed in float64 from the model's outputs.
    """
    _check_numbers(magnitude, target_kl, n_top, n_baseline, n_random)
    engine = engine_for(model)
    n = factorization.n_examples
    if count_examples(inputs) != n:
        raise InvalidInputError(
            f"{count_examples(inputs)} inputs were given; the factorization has {n} examples. "
            "Give the examples that were factorized, in their order."
        )
    if n < 2:
        raise InvalidInputError(
            "The factorization has one example; at least two are needed, one of them as baseline."
        )
    chosen = np.atleast_1d(
        np.arange(factorization.n_components) if components is None else np.asarray(components)
    )
    for k in chosen.tolist():
        check_component(factorization, k)
    if not len(chosen):
        raise InvalidInputError("components=[] was given; leave it out to mean all of them.")
    rng = np.random.default_rng(seed)
    tops = factorization.top_examples(min(n_top, n - 1))
    diagonal = isinstance(factorization.method, DiagonalNPEFF)
    phi = dataset_fisher(factorization, precision) if diagonal else None
    m = int(factorization.components.shape[1])
    rows = []
    for k in chosen.tolist():
        rest = np.setdiff1d(np.arange(n), tops[k])
        base = np.sort(rng.choice(rest, size=min(n_baseline, len(rest)), replace=False))
        probe = _Probe(engine, factorization, inputs, tops[k], base, labels)
        extra: dict[str, Any] = {}
        if phi is not None:
            move, extra["moves"] = probe.weighted(k, phi, magnitude, target_kl, rng)
        else:
            g = component_direction(factorization, k, direction=direction)
            move = (probe.auto(g, target_kl) if magnitude == "auto" else float(magnitude)) * g
        # Drawn one at a time: m may be tens of millions.
        noise = (rng.standard_normal(m) for _ in range(n_random))
        rows.append(probe.measure(move, noise) | extra)
    stacked: dict[str, Any] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    if labels is None:
        stacked |= {"accuracy_top": None, "accuracy_baseline": None}
    return PerturbationReport(components=chosen.astype(np.int64), **stacked)


def _check_numbers(
    magnitude: float | str, target_kl: float, n_top: int, n_baseline: int, n_random: int
) -> None:
    if magnitude != "auto":
        accepted = "a finite number >= 0 or 'auto' is accepted"
        check_magnitude(magnitude, accepted)  # type: ignore[arg-type]  # refused there if a str
    if not (target_kl > 0 and np.isfinite(target_kl)):
        raise InvalidInputError(f"target_kl={target_kl!r} was given; a number > 0 is accepted.")
    for name, number, least in (
        ("n_top", n_top, 1),
        ("n_baseline", n_baseline, 1),
        ("n_random", n_random, 0),
    ):
        if not isinstance(number, int | np.integer) or number < least:
            raise InvalidInputError(
                f"{name}={number!r} was given; a whole number >= {least} is accepted."
            )


class _Probe:
    """Measures directions on one component's top and baseline examples.

    Outputs go over to float64 before anything is formed of them: KL differs from zero in the
    second order only, which float32 would lose.
    """

    def __init__(
        self,
        engine: ModelEngine,
        factorization: Factorization,
        inputs: Any,
        top: IntArray,
        base: IntArray,
        labels: IntArray | None,
    ) -> None:
        self.engine, self.factorization = engine, factorization
        self.sites = factorization.sites
        self.top, self.base = top, base
        both = np.concatenate([top, base])
        self.inputs = pick_examples(inputs, both)
        self.before = self.predict()
        n = factorization.n_examples
        self.labels = None if labels is None else self._labels(labels, n)[both]

    def _labels(self, labels: IntArray, n: int) -> NumpyArray:
        answers = to_numpy(self.engine.output.mode(self.before))
        if answers.dtype.kind not in "iu":
            raise InvalidInputError(
                f"labels were given for {self.engine.output.name} outputs, which are not classes, "
                "so there is no accuracy. Leave labels out."
            )
        given = np.asarray(labels)
        wanted = (n, *answers.shape[1:])
        if given.shape != wanted or given.dtype.kind not in "iub":
            raise InvalidInputError(
                f"labels of shape {given.shape} and dtype {given.dtype} were given; whole numbers "
                f"of shape {wanted} are taken: the place of each example's class in the outputs."
            )
        return given

    def predict(self) -> FloatArray:
        """Outputs z of the model as it is now, in float64."""
        return to_numpy(self.engine.predict(self.inputs)).astype(np.float64)

    def measure(self, move: FloatArray, noise: Iterable[FloatArray]) -> dict[str, Any]:
        """Everything that a report holds of one component."""
        epsilon = float(np.linalg.norm(move))
        both = [self.effect(s * move) for s in (+1, -1)]
        tangent = self.tangent(move)
        predicted = self.second_order(tangent)
        linear = [self._means(self._kl(self.before + s * tangent)) for s in (+1, -1)]
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
            "linearised_top": [pair[0] for pair in linear],
            "linearised_baseline": [pair[1] for pair in linear],
            "random_top": np.array([e[0] for e in random]),
            "random_baseline": np.array([e[1] for e in random]),
            "centroid_top": centroid[0],
            "centroid_baseline": centroid[1],
            "top": self.top,
            "baseline": self.base,
        }

    def effect(self, vector: FloatArray) -> tuple[float, float, float, float]:
        """Mean KL on top and baseline examples, and the accuracies, after a move."""
        with self.engine.patch(scatter(self.engine, self.sites, vector)):
            z = self.predict()
        kl = self._kl(z)
        right = np.full(len(kl), np.nan)
        if self.labels is not None:
            same = to_numpy(self.engine.output.mode(z)) == self.labels
            right = same.reshape(len(kl), -1).all(axis=1).astype(np.float64)
        return *self._means(kl), *self._means(right)

    def larger(self, vector: FloatArray) -> tuple[float, float]:
        """(top, baseline) of the sign with the larger ratio."""
        pairs = [self.effect(s * vector)[:2] for s in (+1, -1)]
        return max(pairs, key=lambda p: p[0] / p[1] if p[1] > 0 else -1.0)

    def tangent(self, vector: FloatArray) -> FloatArray:
        """J_iδ of all examples (n, C): one forward-mode pass."""
        delta = scatter(self.engine, self.sites, vector)
        return to_numpy(self.engine.jvp(self.inputs, delta)).astype(np.float64)

    def second_order(self, tangent: FloatArray) -> tuple[float, float]:
        """½ mean ‖U_iJ_iδ‖² on top and baseline examples."""
        root = to_numpy(self.engine.output.fisher_root(self.before))
        return self._means(0.5 * np.square(np.einsum("nkc,nc->nk", root, tangent)).sum(axis=1))

    def _kl(self, z: FloatArray) -> FloatArray:
        # Rounding may leave a KL of -1e-17.
        return np.maximum(to_numpy(self.engine.output.kl(z, self.before)), 0.0)

    def centroid(self) -> FloatArray:
        """The unit mean of ∇log p(ŷ|x) over the top examples, ŷ the model's own answer."""
        v = self._answer_gradient()
        size = float(np.linalg.norm(v))
        return np.asarray(v / size) if size > 0 else v

    def _answer_gradient(self) -> FloatArray:
        z = self.before[: len(self.top)]
        inputs = pick_examples(self.inputs, np.arange(len(self.top)))
        return answer_gradient(self.engine, self.factorization, inputs, z)

    def weighted(
        self,
        component: int,
        phi: FloatArray,
        magnitude: float | str,
        target: float,
        rng: np.random.Generator,
    ) -> tuple[FloatArray, tuple[float, float]]:
        """The Fisher-weighted move of a diagonal component, and its (δ, λ)."""
        uphill = -self._answer_gradient()

        def move(step: float, weight: float) -> FloatArray:
            return weighted_vector(self.factorization, component, phi, uphill, step, weight)

        if magnitude != "auto":
            unit = float(np.linalg.norm(move(1.0, 0.5)))
            step = float(magnitude) / unit if unit > 0 else 0.0
            return move(step, 0.5), (step, 0.5)

        def top_kl(step: float, weight: float) -> float:
            v = move(step, weight)
            return max(self.effect(s * v)[0] for s in (+1, -1))

        theta = to_numpy(self.engine.theta()).astype(np.float64)
        size = float(np.sqrt(np.mean(theta**2))) or 1.0
        aim = (0.5 * target, 2.0 * target)
        step, weight, value = search_move(
            top_kl, steps=(1e-5 * size, 10.0 * size), target=aim, rng=rng
        )
        if not aim[0] <= value <= aim[1]:
            _warn_missed(target, value, step)
        return move(step, weight), (step, weight)

    def auto(self, g: FloatArray, target: float) -> float:
        """The ε at which the mean top KL, the larger of ±, is ``target`` (within 5 %)."""

        def top_kl(epsilon: float) -> float:
            return max(self.effect(s * epsilon * g)[0] for s in (+1, -1))

        curvature = self.second_order(self.tangent(g))[0]
        size = float(np.linalg.norm(to_numpy(self.engine.theta()).astype(np.float64)))
        epsilon = float(np.sqrt(target / curvature)) if curvature > 0 else size
        low, high, value = 0.0, np.inf, top_kl(epsilon)
        for _ in range(AUTO_STEPS):
            if abs(value - target) <= 0.05 * target:
                return epsilon
            if value < target and epsilon > 100 * size:
                break
            low, high = (epsilon, high) if value < target else (low, epsilon)
            epsilon = 2.0 * low if np.isinf(high) else 0.5 * (low + high)
            value = top_kl(epsilon)
        _warn_missed(target, value, epsilon)
        return epsilon

    def _means(self, values: FloatArray) -> tuple[float, float]:
        k = len(self.top)
        return float(values[:k].mean()), float(values[k:].mean())


def _warn_missed(target: float, value: float, epsilon: float) -> None:
    warnings.warn(
        f"No magnitude with a mean top KL of {target:.3g} nats was found: it is {value:.3g} at "
        f"{epsilon:.3g}. Give magnitude= a number, or another target_kl.",
        ConvergenceWarning,
        stacklevel=5,
    )
