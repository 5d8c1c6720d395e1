"""What is estimated of a model: its sites, and how an estimator of a structure is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...model import Site, SiteLayout
from ...types import Array, FloatArray, NumpyArray
from ..structures import Precision
from .running import RunningMoments, Traces

Roots = Callable[[Array], Array]

BatchSum = NumpyArray | tuple[NumpyArray, NumpyArray]
"""A sum over one batch: an array, or different rows and their values where the rest is zero."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Sites of the tree, in the order of the model's parameters.

    Attributes
    ----------
    engine : ModelEngine
    parameters : tuple of Site
        The chosen parameters, re-laid.
    columns : array or None
        Their columns in the engine's θ; ``None`` for all.
    layouts : mapping of str to SiteLayout
        All sites.
    matrices : frozenset of str
        Sites that are a layer's matrix.
    tables : frozenset of str
        Sites that are tables of embeddings.
    """

    engine: Any
    parameters: tuple[Site, ...]
    columns: Any
    layouts: Mapping[str, SiteLayout]
    matrices: frozenset[str]
    tables: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(self.layouts)

    @property
    def numbers(self) -> dict[str, int]:
        """Place of each site."""
        return {name: k for k, name in enumerate(self.layouts)}

    def chosen(self, names: frozenset[str]) -> dict[str, SiteLayout]:
        """Layouts of some sites, in order."""
        return {name: layout for name, layout in self.layouts.items() if name in names}

    def in_order(self, found: Mapping[str, Precision]) -> dict[str, Precision]:
        """The precisions of all sites, in the order of the parameters."""
        return {name: found[name] for name in self.layouts}


def plan_of(engine: Any, parameters: tuple[Site, ...], columns: Any, *, whole: bool) -> Plan:
    """The sites of the chosen parameters: each one alone, or a layer's [W|b] together.

    Parameters
    ----------
    whole : bool
        Take the parameters one by one, tables like the others.
    """
    shapes = {s.name: s.shape for s in parameters}
    found: Mapping[str, SiteLayout] = {} if whole else getattr(engine, "layouts", {})
    layouts: dict[str, SiteLayout] = {}
    matrices = set()
    for name, layout in found.items():
        if name in shapes:
            bias = layout.bias if layout.bias in shapes else None
            layouts[name] = replace(layout, bias=bias)
            matrices.add(name)
    taken = {p for layout in layouts.values() for p in layout.parameters}
    ordered = {
        name: layouts[name] if name in layouts else SiteLayout(weight=name, weight_shape=shape)
        for name, shape in shapes.items()
        if name in layouts or name not in taken
    }
    tables = frozenset(() if whole else getattr(engine, "tables", ())) & set(ordered) - matrices
    return Plan(
        engine=engine, parameters=parameters, columns=columns, layouts=ordered,
        matrices=frozenset(matrices), tables=tables,
    )  # fmt: skip


class Estimator(Protocol):
    """Sums over a data set from which a structure is made; picklable for workers."""

    width: int
    """Numbers q that are followed for each example and site."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the sums by name."""
        ...

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """The sums over one batch, and the numbers (n, sites, q) of its examples."""
        ...

    def traces(self, moments: RunningMoments) -> Traces:
        """Traces of the sites from the means of those numbers."""
        ...

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """The precisions by site of the sums over n examples."""
        ...


def numbers_of(plan: Plan, n: int, width: int) -> FloatArray:
    """Room for the numbers of a batch."""
    return np.zeros((n, len(plan.layouts), width))


def host(x: Array) -> NumpyArray:
    """``x`` on the CPU, in its own dtype."""
    return to_numpy(x)


def host_sum(x: Any) -> BatchSum:
    """A sum, or (rows, values) of one over a table, on the CPU."""
    return (host(x[0]), host(x[1])) if isinstance(x, tuple) else host(x)


def need_layers(plan: Plan, structure: str) -> None:
    """Refuse an engine that does not show its layers.

    Raises
    ------
    InvalidInputError
        With the reason, where the engine gives one.
    """
    shows = getattr(plan.engine, "shows_layers", hasattr(plan.engine, "layer_terms"))
    if plan.matrices and shows:
        return
    reason = getattr(plan.engine, "explanation", f"engine {type(plan.engine).__name__}")
    raise InvalidInputError(
        f"structure={structure!r} was given, which is made from the inputs and output gradients of "
        "linear layers and convolutions, and none of the chosen parameters belongs to one that "
        f"shows them ({reason}). Choose 'diagonal', 'block' or 'lowrank+diagonal', or other params."
    )
