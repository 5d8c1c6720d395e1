"""The exact Fisher of a data set by its products alone: one forward and one reverse pass each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..model import OutputDistribution, SiteLayout, engine_for, unflatten
from ..types import Array, Seed
from .batches import (
    ParameterChoice,
    batched,
    choose_parameters,
    digests,
    examples_of,
    split_batch,
)
from .draws import draws_of
from .estimators import plan_of
from .labels import ExactLabels, LabelRule
from .precision import PrecisionTree
from .precision_estimation import BATCH_EXAMPLES, estimate_precision
from .structures import Implicit


def fisher_products(
    model: Any,
    data: Any,
    *,
    labels: LabelRule | None = None,
    output: OutputDistribution | None = None,
    params: ParameterChoice = None,
    engine: str = "auto",
    outputs_of: Callable[[Any, Any], Array] | None = None,
    batch_size: int | None = None,
    seed: Seed = 0,
) -> PrecisionTree:
    """P = (1/N) Σ_i F(x_i), block diagonal over sites, as :class:`Implicit` precisions.

    Nothing of P is stored: each product runs over the data, P d = (1/N) Σ_i J_iᵀ U_iᵀ U_i J_i d.
    For solvers that ask for products alone, such as conjugate gradients, where a dense block is
    too large and no structure is wanted. The tree cannot be saved.

    Parameters
    ----------
    model, data, output, params, engine, outputs_of
        As in :func:`estimate_precision`; the batches are kept.
    labels, seed
        Likewise; labels are drawn once, so that every product is with the same P.
    batch_size : int, optional
        Examples at a time, 32 by default.

    Returns
    -------
    PrecisionTree
        Its ``diagonal()`` makes one pass of :func:`estimate_precision` at the first call.

    Raises
    ------
    EngineNotFound, InvalidInputError
        As :func:`estimate_precision`.

    Examples
    --------
    >>> from fishertope.core.model import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    >>> x = rng.normal(size=(50, 4))
    >>> P = fisher_products(net, x)["layers.0.weight"]
    >>> block = estimate_precision(net, x, structure="block")["layers.0.weight"]
    >>> d = rng.normal(size=(3, 5))
    >>> bool(np.allclose(P.apply(d), block.apply(d)))
    True
    """
    rule: LabelRule = ExactLabels() if labels is None else labels
    if isinstance(rule, type) or not isinstance(rule, LabelRule):
        raise InvalidInputError(
            f"labels={labels!r} was given; a label rule such as ExactLabels() is accepted."
        )
    options: dict[str, Any] = {} if engine == "auto" else {"engine": engine}
    if outputs_of is not None:
        options["outputs_of"] = outputs_of
    derive: Any = engine_for(model, output=output, **options)
    columns, sites = choose_parameters(derive.sites, params)
    plan = plan_of(derive, sites, columns, whole=False)
    size = BATCH_EXAMPLES if batch_size is None else batch_size
    batches, draws, first = list(batched(data, size)[0]), draws_of(seed), 0
    parts: list[tuple[Any, Array]] = []
    for batch in batches:
        inputs, targets = split_batch(batch)
        z = derive.predict(inputs)
        seen = replace(draws, first=first)
        parts.append((inputs, rule.roots(derive.output, z, seen, targets).values))
        first += examples_of(batch)
    if not first:
        raise InvalidInputError("The data hold no example; give at least one.")

    def diagonal() -> PrecisionTree:
        return estimate_precision(
            model, batches, labels=rule, output=output, params=params, engine=engine,
            outputs_of=outputs_of, batch_size=size, seed=seed,
        )  # fmt: skip

    once = _Once(diagonal)
    found = {
        name: Implicit(
            _Product(derive, layout, parts, first), layout.shape, _Diagonal(once, layout)
        )
        for name, layout in plan.layouts.items()
    }
    facts = {"structure": "implicit", "output": derive.output.name, **rule.facts()}
    facts |= digests(derive)
    facts["normalisation"] = "per example"
    return PrecisionTree(
        sites=found, layouts=plan.layouts, n_examples=first,
        trace_errors=dict.fromkeys(found, float("nan")), facts=facts,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """D → P D on one site."""

    engine: Any
    layout: SiteLayout
    parts: list[tuple[Any, Array]]
    n: int

    def __call__(self, d: Array) -> Array:
        own = self.layout.split(d)
        engine = self.engine
        if hasattr(engine, "restricted"):
            engine = engine.restricted(self.layout.parameters)
        flat = np.zeros(engine.sites[-1].stop)
        for site in engine.sites:
            if site.name in own:
                flat[site.start : site.stop] = to_numpy(own[site.name]).reshape(-1)
        total: Any = 0.0
        for inputs, U in self.parts:
            xp = array_namespace(U)
            turned = xp.matmul(U, engine.jvp(inputs, like(flat, U))[:, :, None])
            weights = xp.matmul(xp.matrix_transpose(U), turned)[:, :, 0]
            total = total + to_numpy(engine.vjp(inputs, weights)).astype(np.float64)
        named = unflatten(total / self.n, engine.sites)
        found = self.layout.join(named)
        return array_namespace(d).astype(like(found, d), d.dtype)


class _Once:
    """The diagonal of all sites, made at the first call."""

    def __init__(self, make: Callable[[], PrecisionTree]) -> None:
        self._make, self._found = make, dict[str, Array]()

    def __call__(self) -> dict[str, Array]:
        if not self._found:
            self._found = self._make().diagonal()
        return self._found


@dataclass(frozen=True, slots=True, eq=False)
class _Diagonal:
    once: _Once
    layout: SiteLayout

    def __call__(self) -> Array:
        return self.layout.join(self.once())
