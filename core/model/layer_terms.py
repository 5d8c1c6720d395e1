"""What a layer that multiplies by a matrix shows of its gradients: inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..types import Array
from .layout import SiteLayout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTerm:
    """Inputs a and output gradients δ of one site in one batch.

    The gradient of example n under root k is G_nk = Σ_t δ_knt a_ntᵀ (o, i), in the layout of the
    site. Positions t are those of a sequence, of a convolution's patches, and of every use of a
    layer that is called several times.

    Attributes
    ----------
    site : str
    inputs : array (n, T, i)
        a; with a last column of ones where the bias belongs to the site.
    deltas : array (k, n, T, o), or None
        δ for some of the roots; ``None`` where only the inputs were asked for, or where the
        outputs do not depend on the site.
    kept : array (n, T) of zeros and ones, or None
        Positions that are no padding; ``None`` for all. δ is zero at the others.
    first : bool
        Whether these inputs come for the first time in this batch; later terms bring more roots.
    """

    site: str
    inputs: Array
    deltas: Array | None
    kept: Array | None
    first: bool


@runtime_checkable
class LayerEngine(Protocol):
    """A :class:`ModelEngine` whose layers show their inputs and output gradients."""

    @property
    def layouts(self) -> Mapping[str, SiteLayout]:
        """Layouts of the parameters that are matrices of layers, by the name of the weight."""
        ...

    def layer_terms(
        self,
        inputs: Any,
        roots: Array | Callable[[Array], Array] | None,
        layouts: Mapping[str, SiteLayout],
        visit: Callable[[LayerTerm], None],
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Hand the terms of the sites in ``layouts`` to ``visit``, one site after another.

        ``roots`` are U (n, k, C), a function of the outputs z, or ``None`` for the inputs alone.

        Returns
        -------
        sums, norms : dicts by parameter name
            Of the parameters outside ``layouts``: Σ over examples and roots of the squared
            gradients (*shape), or for a table (rows, values) of those that are not zero; and of
            their squared norms for each example (n,). Empty without roots.
        """
        ...
