"""Perturbing a model along a component, θ± = θ ± ε ĝ_k with ‖ĝ_k‖ = 1, and the way back.

Source: Matena & Raffel 2023, arXiv:2310.04649 (the component, and its parts along the others taken
off one after another); the orthogonalisation against the span of the other components, whatever
their order, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..model import ModelEngine, engine_for
from ..model.sites import Site
from ..types import Array, FloatArray, IntArray
from .method import DiagonalNPEFF
from .result import Factorization

DIRECTIONS = ("component", "sequential", "orthogonalised")
Direction = str | FloatArray


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
    direction : {"component", "sequential", "orthogonalised"}
        g_k itself; g_k ← g_k − (g_k·ĝ_l)ĝ_l for the other components l one after another in their
        order, as published (the result depends on the order, and is orthogonal to the last one
        only); or g_k without its part in the span of the others (QR; no order).
    max_abs_cos : float
        Components with |cos| to g_k above this are near-duplicates of it and stay in.

    Raises
    ------
    InvalidInputError
        Unknown component or direction, a diagonal factorization, or nothing is left after
        orthogonalisation.
    """
    check_component(factorization, component)
    if isinstance(factorization.method, DiagonalNPEFF):
        raise InvalidInputError(
            "The components of a diagonal factorization are amounts (h_k >= 0), not directions: "
            "fisher_weighted_move(model, factorization, component, inputs) makes one of them, and "
            "perturbation_report does so by itself."
        )
    if direction not in DIRECTIONS:
        raise InvalidInputError(
            f"direction={direction!r} was given; accepted: {', '.join(DIRECTIONS)}, or a vector."
        )
    g = to_numpy(factorization.components[component]).astype(np.float64)
    norm = float(np.linalg.norm(g))
    if norm == 0.0:
        raise InvalidInputError(f"Component {component} is zero, so it gives no direction.")
    g = g / norm
    if direction == "component":
        return np.asarray(g)
    G = to_numpy(factorization.components).astype(np.float64)
    norms = np.linalg.norm(G, axis=1)
    cosines = np.abs(G @ g) / np.where(norms > 0, norms, 1.0)
    others = [k for k in range(len(G)) if k != component and norms[k] > 0]
    others = [k for k in others if cosines[k] <= max_abs_cos]
    left = g
    if direction == "sequential":
        for k in others:
            left = left - (left @ G[k]) / norms[k] ** 2 * G[k]
    else:
        basis = _span(G[others])
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
    direction: Direction = "component",
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
    direction : {"component", "sequential", "orthogonalised"} or array (m,)
        See :func:`component_direction`; a vector over the same columns is scaled to length one.
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
    check_magnitude(magnitude)
    engine = engine_for(model)
    if isinstance(direction, str):
        g = component_direction(
            factorization, component, direction=direction, max_abs_cos=max_abs_cos
        )
    else:
        check_component(factorization, component)
        g = unit_vector(direction, int(factorization.components.shape[1]))
    delta = scatter(engine, factorization.sites, sign * magnitude * g)
    with engine.patch(delta):
        yield engine


def unit_vector(direction: Array, columns: int) -> FloatArray:
    """A direction that was given as a vector, scaled to length one.

    Raises
    ------
    InvalidInputError
        Another length than the components have, NaN, or zero.
    """
    g = np.asarray(to_numpy(direction), dtype=np.float64)
    norm = float(np.linalg.norm(g)) if np.isfinite(g).all() else 0.0
    if g.shape != (columns,) or norm == 0.0:
        raise InvalidInputError(
            f"direction= is an array of shape {g.shape} and length {norm}; a finite vector of "
            f"shape ({columns},) that is not zero is taken, or one of {', '.join(DIRECTIONS)}."
        )
    return np.asarray(g / norm)


def check_component(factorization: Factorization, component: int) -> None:
    """Refuse what is not the number of a component.

    Raises
    ------
    InvalidInputError
        Naming the numbers that there are.
    """
    whole = isinstance(component, int | np.integer)
    if not whole or not 0 <= component < factorization.n_components:
        raise InvalidInputError(
            f"component {component!r} was asked for; there are 0 to "
            f"{factorization.n_components - 1}."
        )


def check_magnitude(magnitude: float, accepted: str = "a finite number >= 0 is accepted") -> None:
    """Refuse what is not the length of a move.

    Raises
    ------
    InvalidInputError
        Negative, NaN, infinite, or not a number.
    """
    number = isinstance(magnitude, int | float | np.integer | np.floating)
    if not number or not np.isfinite(magnitude) or magnitude < 0:
        raise InvalidInputError(f"magnitude={magnitude!r} was given; {accepted}.")


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
    return in_kind_of(theta, full)


def pick_examples(inputs: Any, examples: IntArray) -> Any:
    """Some examples of an array, or of a mapping of arrays by argument names."""
    if isinstance(inputs, Mapping):
        return {name: pick_examples(x, examples) for name, x in inputs.items()}
    return inputs[examples]


def count_examples(inputs: Any) -> int:
    """How many examples an array, or each array of a mapping, holds.

    Raises
    ------
    InvalidInputError
        Arrays of different length.
    """
    if not isinstance(inputs, Mapping):
        return len(inputs)
    counts = {len(x) for x in inputs.values()}
    if len(counts) != 1:
        raise InvalidInputError(
            f"A mapping of arrays of {sorted(counts)} examples was given; all must hold the same "
            "examples, and there must be at least one."
        )
    return counts.pop()


def in_kind_of(template: Array, values: FloatArray) -> Array:
    """NumPy values with the library, dtype and device of ``template``."""
    xp = array_namespace(template)
    return xp.astype(like(values, template), template.dtype)
