"""The precision of a whole model, site by site, as it is estimated, kept and merged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ..display import Shown
from ..errors import InvalidInputError
from ..storage.arrays import save_arrays
from ..types import Array, NumpyArray
from .precision_file import KIND as KIND, StoredPrecisions, complete_layouts
from .structures import DampingMode, Precision, SiteLayout
from .structures.storing import described, layout_facts

STRUCTURES = (
    "diagonal", "isotropic", "block", "gram", "kronecker", "ekfac", "lowrank+diagonal",
)  # fmt: skip
"""Structures that :func:`estimate_precision` makes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrecisionTree(Shown, Mapping[str, Precision]):
    """The precision of each site of a model, a mean over examples, with what it was made from.

    A mapping of site to :class:`Precision`; block diagonal over sites. A site is a parameter, or a
    layer's weight and bias as one matrix [W|b], which goes by the name of the weight.

    Attributes
    ----------
    sites : mapping of str to Precision
    layouts : mapping of str to SiteLayout
        How a model's parameters make up the displacement of each site; given for the sites that
        are not simply the parameter of their name, complete when read.
    n_examples : int
        Examples in the mean.
    trace_errors : mapping of str to float
        Standard error of each site's trace, from its spread over examples; NaN for one example.
    facts : mapping
        Label rule, engine, model hash, seed, and so on, in plain values.

    Raises
    ------
    InvalidInputError
        No site, errors or layouts of other sites than these, layouts that do not fit, or one
        parameter in two sites.

    Examples
    --------
    >>> from fishertope.core.fisher import Diagonal
    >>> tree = PrecisionTree(sites={"w": Diagonal(np.array([1.0, 2.0]))}, n_examples=1,
    ...                      trace_errors={"w": float("nan")})
    >>> tree.apply({"w": np.array([1.0, 1.0])})["w"]
    array([1., 2.])
    """

    sites: Mapping[str, Precision]
    n_examples: int
    trace_errors: Mapping[str, float]
    layouts: Mapping[str, SiteLayout] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {name: p.shape for name, p in self.sites.items()}
        complete = complete_layouts(shapes, self.layouts)
        if set(self.sites) != set(self.trace_errors):
            odd = sorted(set(self.sites) ^ set(self.trace_errors))
            raise InvalidInputError(
                f"Precisions and standard errors of different sites were given ({', '.join(odd)} "
                "on one side only); give both for every site."
            )
        object.__setattr__(self, "layouts", complete)

    def __getitem__(self, name: str) -> Precision:
        return self.sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def structure(self) -> str:
        """Kinds of the sites, those of most parameters first."""
        weights: dict[str, int] = {}
        for p in self.sites.values():
            weights[p.kind] = weights.get(p.kind, 0) + prod(p.shape)
        return ", ".join(sorted(weights, key=lambda kind: (-weights[kind], kind)))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, site by site."""
        return tuple(p for name in self.sites for p in self.layouts[name].parameters)

    def trace(self) -> float:
        """Σ over sites; for the exact Fisher the mean squared score norm."""
        return float(sum(p.trace() for p in self.sites.values()))

    def apply(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """P D by parameter name, for displacements D of (at least) all parameters of the tree.

        Raises
        ------
        InvalidInputError
            If a parameter is missing or has another shape.
        """
        out: dict[str, Array] = {}
        for name, precision in self.sites.items():
            layout = self.layouts[name]
            out |= layout.split(precision.apply(layout.join(parameters)))
        return out

    def quad(self, parameters: Mapping[str, Array]) -> float:
        """Dᵀ P D over all sites."""
        total = 0.0
        for name, precision in self.sites.items():
            total += float(precision.quad(self.layouts[name].join(parameters)))
        return total

    def diagonal(self) -> dict[str, Array]:
        """The entries P_jj by parameter name."""
        out: dict[str, Array] = {}
        for name, precision in self.sites.items():
            out |= self.layouts[name].split(precision.diagonal())
        return out

    def scaled(self, factor: float) -> PrecisionTree:
        """``factor`` · P, with the standard errors."""
        errors = {n: e * abs(factor) for n, e in self.trace_errors.items()}
        return replace(self._each(lambda _, p: p.scaled(factor)), trace_errors=errors)

    def damped(self, rho: float, mode: DampingMode = "absolute") -> PrecisionTree:
        """Every site damped; ``relative_trace`` goes by each site's own trace."""
        return self._each(lambda _, p: p.damped(rho, mode))

    def astype(self, dtype: str) -> PrecisionTree:
        """Every site in "float32" or "float64"."""
        return self._each(lambda _, p: p.astype(dtype))

    def permuted(self, perms: Mapping[str, Mapping[int, Sequence[int]]]) -> PrecisionTree:
        """The precision of a model whose parameters were permuted.

        Parameters
        ----------
        perms : mapping of parameter to mapping of axis to order
            As in :meth:`Structure.permuted`. The order of a bias that shares a site with its
            weight must be that of the weight's outputs.

        Raises
        ------
        InvalidInputError
            An unknown parameter, no permutation, or a bias in another order than its weight.
        """
        unknown = sorted(set(perms) - set(self.parameters))
        if unknown:
            raise InvalidInputError(
                f"Orders of unknown parameters were given: {', '.join(unknown)}."
            )

        def one(name: str, precision: Precision) -> Precision:
            layout = self.layouts[name]
            orders = layout.orders(perms.get(layout.weight, {}))
            if layout.bias is not None:
                same = range(layout.shape[0])
                bias_order = perms.get(layout.bias, {}).get(0, same)
                if not np.array_equal(np.asarray(bias_order), np.asarray(orders.get(0, same))):
                    raise InvalidInputError(
                        f"{layout.bias!r} and the outputs of {layout.weight!r} share a precision, "
                        "but are in different orders; give both the same."
                    )
            return precision.permuted(orders) if orders else precision

        return self._each(one)

    def _each(self, change: Callable[[str, Precision], Precision]) -> PrecisionTree:
        return replace(self, sites={name: change(name, p) for name, p in self.sites.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically; the same tree gives the same bytes.

        Raises
        ------
        InvalidInputError
            A site that is known by its products alone.
        WriteFailedError
            If the system refuses the write; what was at ``path`` before stays.
        """
        arrays: dict[str, NumpyArray] = {}
        sites = {name: described(p, name, arrays) for name, p in self.sites.items()}
        errors = {n: None if np.isnan(e) else e for n, e in self.trace_errors.items()}
        layouts = {n: layout_facts(layout) for n, layout in self.layouts.items()}
        own = {
            "order": list(self.sites), "sites": sites, "layouts": layouts,
            "n_examples": self.n_examples, "trace_errors": errors, "facts": dict(self.facts),
        }  # fmt: skip
        save_arrays(path, arrays, own, kind=KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PrecisionTree:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CorruptFileError
            If the file is cut short, altered, or not a precision tree of ours.
        InvalidInputError
            If it holds something else.
        """
        stored = StoredPrecisions.open(path)
        return cls(
            sites={name: stored.site(name) for name in stored.sites},
            n_examples=stored.n_examples,
            trace_errors=stored.trace_errors,
            layouts=stored.layouts,
            facts=stored.facts,
        )

    def __repr__(self) -> str:
        return (
            f"PrecisionTree({self.structure}, sites={len(self)}, n={self.n_examples}, "
            f"trace={self.trace():.4g})"
        )
