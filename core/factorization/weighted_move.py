"""Moving a model along a component of diagonal Fishers: a Fisher-weighted mean with a moved copy.

h_k ≥ 0 says how much each parameter matters to a component, not in which direction to go. So θ is
merged, parameter by parameter, with the copy θ − δs, s = sign of the loss gradient on the
component's top examples:

    θ' = [(1−λ)φ∘θ + λh∘(θ − δs)] / [(1−λ)φ + λh] = θ − δ s∘w,   w = λh / [(1−λ)φ + λh],

φ the data set's diagonal Fisher at unit norm with a floor, h the component at unit norm. Parameters
that matter to the component and little to everything else move by nearly δ, all others stay.

Source: Matena & Raffel 2023, arXiv:2310.04649, after Matena & Raffel 2022, arXiv:2111.09832.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..fisher import Diagonal
from ..fisher.per_example import DiagonalFishers
from ..model import ModelEngine, engine_for
from ..types import Array, FloatArray, IntArray
from .method import DiagonalNPEFF
from .perturbation import check_component, in_kind_of, pick_examples
from .result import Factorization

FLOOR = 1e-6
WEIGHTS = (0.035, 0.965)
"""Range of λ in the search."""
# Half-way moves of δ and λ in turn, before δ alone is bisected.
TURNS = 10
BISECTIONS = 40


def fisher_weighted_move(
    model: Any,
    factorization: Factorization,
    component: int,
    inputs: Any,
    *,
    step: float,
    weight: float = 0.5,
    labels: IntArray | None = None,
    precision: Any = None,
    n_top: int = 32,
) -> FloatArray:
    """The move θ' − θ = −δ s∘w (m,) along a component of diagonal Fishers.

    Parameters
    ----------
    model, factorization
        As :func:`perturb`; the factorization is one of DiagonalFishers.
    component : int
    inputs : array (n, ...) or mapping of arrays
        The examples that were factorized, in their order.
    step : float
        δ.
    weight : float
        λ in (0, 1).
    labels : integer array (n,), optional
        For the loss −log p(y|x); the model's own likeliest answers otherwise.
    precision : PrecisionTree or DiagonalFishers, optional
        φ, the diagonal Fisher of the data set (the mean over examples of DiagonalFishers); what
        the factorization says of it, Σ_i ν_i W_i H, otherwise.
    n_top : int
        Examples of which s is taken.

    Returns
    -------
    array (m,)
        Apply it with ``perturb(model, factorization, component, magnitude=norm(move),
        direction=move)``.

    Raises
    ------
    InvalidInputError
        A low-rank factorization, an unknown component, λ outside (0, 1), another model's precision.

    Notes
    -----
    Cost: one forward and one backward pass over the top examples.
    """
    check_component(factorization, component)
    if not isinstance(factorization.method, DiagonalNPEFF):
        raise InvalidInputError(
            "fisher_weighted_move is for factorizations of DiagonalFishers; components of low rank "
            "are directions themselves (perturb(..., direction='component'))."
        )
    if not 0.0 < weight < 1.0:
        raise InvalidInputError(f"weight={weight!r} was given; a number in (0, 1) is accepted.")
    engine = engine_for(model)
    top = factorization.top_examples(n_top)[component]
    z = engine.predict(pick_examples(inputs, top))
    y = None if labels is None else np.asarray(labels)[top]
    gradient = answer_gradient(engine, factorization, pick_examples(inputs, top), z, y)
    phi = dataset_fisher(factorization, precision)
    return weighted_vector(factorization, component, phi, -gradient, step, weight)


def answer_gradient(
    engine: ModelEngine,
    factorization: Factorization,
    inputs: Any,
    z: Array,
    labels: Any = None,
) -> FloatArray:
    """Σ_i ∇log p(y_i|x_i) over the factorization's columns (m,); y the likeliest answer."""
    y = engine.output.mode(z) if labels is None else labels
    if labels is not None and not isinstance(z, np.ndarray):
        from ..backend import like

        y = like(np.asarray(labels), z)
    cotangents = to_numpy(engine.output.score(z, y))
    full = to_numpy(engine.vjp(inputs, in_kind_of(engine.theta(), cotangents)))
    own = {s.name: s for s in engine.sites}
    return np.concatenate(
        [full[own[s.name].start : own[s.name].stop] for s in factorization.sites]
    ).astype(np.float64)


def dataset_fisher(factorization: Factorization, precision: Any = None) -> FloatArray:
    """φ (m,): the data set's diagonal Fisher at unit norm, entries below 1e-6 raised to it.

    Raises
    ------
    InvalidInputError
        Something else than a diagonal over the same columns, or one that is zero.
    """
    m = int(factorization.components.shape[1])
    if precision is None:
        W = to_numpy(factorization.coefficients).astype(np.float64)
        weights = factorization.norms if factorization.method.normalize else np.ones(len(W))
        phi = (weights @ W) @ to_numpy(factorization.components).astype(np.float64)
    elif isinstance(precision, DiagonalFishers):
        phi = np.asarray(precision.values.mean(axis=0), dtype=np.float64).reshape(-1)
    elif isinstance(precision, Mapping) and all(
        isinstance(precision.get(s.name), Diagonal) for s in factorization.sites
    ):
        phi = np.concatenate([precision[s.name].values.reshape(-1) for s in factorization.sites])
    else:
        raise InvalidInputError(
            f"precision={type(precision).__name__} was given; a PrecisionTree of structure "
            "'diagonal' over the sites of the components, or DiagonalFishers, is taken."
        )
    norm = float(np.linalg.norm(phi))
    if phi.shape != (m,) or not norm > 0.0:
        raise InvalidInputError(
            f"A data-set Fisher of shape {phi.shape} and norm {norm} was given; ({m},) with a "
            "positive norm is taken."
        )
    return np.maximum(phi / norm, FLOOR)


def weighted_vector(
    factorization: Factorization,
    component: int,
    phi: FloatArray,
    loss_gradient: FloatArray,
    step: float,
    weight: float,
) -> FloatArray:
    """−δ s∘λh/[(1−λ)φ + λh] (m,)."""
    h = to_numpy(factorization.components[component]).astype(np.float64)
    norm = float(np.linalg.norm(h))
    if norm == 0.0:
        raise InvalidInputError(f"Component {component} is zero, so it moves nothing.")
    h = h / norm
    share = weight * h / ((1.0 - weight) * phi + weight * h)
    return -step * np.sign(loss_gradient) * share


def search_move(
    kl_of: Callable[[float, float], float],
    *,
    steps: tuple[float, float],
    target: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """(δ, λ, KL) with KL in the target range, or the closest that was found.

    δ starts log-uniform in ``steps``, λ uniform in :data:`WEIGHTS`; then one of them in turn goes
    half-way to the end of its range that raises or lowers the KL, and the fraction is halved
    whenever the KL changes sides. After that δ alone is bisected, beyond its range if need be.
    """
    bounds = ((np.log(steps[0]), np.log(steps[1])), WEIGHTS)
    at = [float(rng.uniform(*b)) for b in bounds]
    low, high = target
    middle = np.sqrt(low * high)
    best: tuple[float, float, float] | None = None
    fraction, before = 0.5, 0
    bracket = [-np.inf, np.inf]
    for turn in range(TURNS + BISECTIONS):
        value = kl_of(float(np.exp(at[0])), at[1])
        tiny = np.finfo(float).tiny
        off = abs(np.log(max(value, tiny) / middle))
        if best is None or off < abs(np.log(max(best[2], tiny) / middle)):
            best = (float(np.exp(at[0])), at[1], value)
        if low <= value <= high:
            return float(np.exp(at[0])), at[1], value
        need = 1 if value < low else -1
        if turn < TURNS:
            fraction = fraction / 2.0 if before == -need else fraction
            j = turn % 2
            at[j] += fraction * (bounds[j][need > 0] - at[j])
            before = need
            continue
        bracket[need < 0] = at[0]
        if np.isfinite(bracket).all():
            at[0] = 0.5 * (bracket[0] + bracket[1])
        else:
            at[0] += need * np.log(2.0)
    return best if best is not None else (0.0, at[1], 0.0)
