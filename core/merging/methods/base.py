"""What every method gets, and the methods that work block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace

from ...backend import BackendChoice, like as like_library, to_numpy
from ...errors import InvalidInputError
from ...types import Array, FloatArray
from ..anchors import Anchor, Damping
from ..decisions import Decision, decide
from ..draws import SiteDraws
from ..groups import Tree
from ..inputs import check_anchor, check_weights, digest_order, finite_sources
from ..problem import MergeProblem
from ..site_view import SiteView as SiteView
from ..sites import SitePolicy
from ..solution import MergeSolution, SiteReport
from ..solvers.options import Auto, Solver
from ..sources import Source, read, write
from ..statistics import CHUNK
from ..unmerged import others


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """The arguments of :func:`merge`, checked.

    Attributes
    ----------
    sources : tuple of Source
    precisions : tuple of mappings, or None
    weights : float64 array (n,)
        As given; 1/n each by default.
    anchor : Anchor or None
    damping : Damping
    solver : Solver
    sites : SitePolicy
    nonfinite, fallback, deterministic, seed, like
        As in :class:`MergeProblem` and :func:`merge`.
    """

    sources: tuple[Source, ...]
    precisions: tuple[Tree, ...] | None
    weights: FloatArray
    anchor: Anchor | None = None
    damping: Damping = field(default_factory=lambda: Damping.of(None))
    solver: Solver = field(default_factory=Auto)
    sites: SitePolicy = field(default_factory=SitePolicy)
    nonfinite: str = "error"
    fallback: str = "mean"
    deterministic: bool = False
    seed: int = 0
    like: Array = None
    backend: BackendChoice = "auto"

    @property
    def base(self) -> Source:
        """The anchor as a source.

        Raises
        ------
        InvalidInputError
            If none was given.
        """
        if self.anchor is None:
            raise InvalidInputError(
                "This method works on the differences from a common base model; give it as "
                "anchor=base."
            )
        return Source.of(self.anchor.params)

    def trees(self, method: str) -> tuple[Tree, ...]:
        """The precisions.

        Raises
        ------
        InvalidInputError
            If none were given.
        """
        if self.precisions is None:
            raise InvalidInputError(
                f"method={method!r} needs precisions, one a source; none were given. Estimate them "
                "with estimate_precision(model, data, structure=...)."
            )
        return self.precisions

    def problem(self, **changes: Any) -> MergeProblem:
        """The quadratic with these arguments, some of them changed."""
        own: dict[str, Any] = {
            "sources": self.sources, "precisions": self.precisions,
            "weights": self.weights.tolist(), "anchor": self.anchor, "damping": self.damping,
            "sites": self.sites, "nonfinite": self.nonfinite, "fallback": self.fallback,
            "deterministic": self.deterministic, "like": self.like, "backend": self.backend,
        }  # fmt: skip
        return MergeProblem(**{**own, **changes})


@runtime_checkable
class Method(Protocol):
    """A way to merge, with its options as fields."""

    name: ClassVar[str]
    reference: ClassVar[str]
    signed_weights: ClassVar[bool]

    def run(self, request: Request) -> MergeSolution:
        """Merge."""
        ...


Stats = Mapping[str, Any]


class BlockMethod:
    """A method that computes any block of a tensor from that block of the sources.

    ``statistics`` is called once a tensor, then ``block`` for pieces of it in any order; both give
    the same bits however the tensor is cut. Streaming and in-memory merges call the same two.
    """

    __slots__ = ()
    name: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    signed_weights: ClassVar[bool] = False
    uses_base: ClassVar[bool] = False
    unit: ClassVar[str] = "element"
    """"element": blocks may be cut anywhere; "row": at multiples of the last axis."""

    def check(self, weights: FloatArray) -> None:
        """Refuse numbers of sources or weights that the method does not take."""

    def statistics(self, view: SiteView) -> Stats:
        """What the blocks need to know of the whole tensor."""
        return {}

    def block(
        self,
        x: Array,
        base: Array | None,
        weights: Sequence[float],
        stats: Stats,
        draws: SiteDraws,
        start: int,
        row: int,
    ) -> Array:
        """Entries ``start:start + b`` of the merged, flattened tensor.

        Parameters
        ----------
        x : float64 array (n, b)
        base : float64 array (b,) or None
        weights : sequence of n floats
        stats : mapping
            From :meth:`statistics`.
        draws : SiteDraws
        start : int
        row : int
            Length of the tensor's last axis.
        """
        raise NotImplementedError

    def run(self, request: Request) -> MergeSolution:
        """The whole merge in memory."""
        return run_blocks(self, request)


def run_blocks(method: BlockMethod, request: Request) -> MergeSolution:
    """Merge in memory, one tensor after another."""
    sources, weights = request.sources, request.weights
    method.check(weights)
    base = request.base if method.uses_base else None
    decisions = decide(sources, request.sites)
    order = tuple(range(len(sources)))
    if request.deterministic:
        order = digest_order(sources, weights, None)
    params: dict[str, Array] = {}
    reports: dict[str, SiteReport] = {}
    for decision in decisions.values():
        if decision.kind == "merge":
            with np.errstate(invalid="ignore" if request.nonfinite == "propagate" else "warn"):
                value, report = _one_tensor(method, request, decision.name, base, order)
            params[decision.name], reports[decision.name] = value, report
    rest = _Rest(sources, decisions, weights, request.nonfinite, request.like)
    params, sites = others(rest, params, reports, order)
    return MergeSolution(
        params=params, method=method.name, weights=weights, sites=sites,
        facts={"reference": method.reference, "seed": request.seed},
        template=sources[0].template,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Rest:
    """What is needed for the tensors that the method leaves alone."""

    sources: tuple[Source, ...]
    decisions: Mapping[str, Decision]
    signed: FloatArray
    nonfinite: str
    like: Array

    @property
    def weights(self) -> FloatArray:
        """For plain means: task weights where they are such, else equal ones."""
        fits = (self.signed >= 0).all() and self.signed.sum() > 0
        return self.signed if fits else np.full(len(self.signed), 1.0 / len(self.signed))


def _one_tensor(
    method: BlockMethod, request: Request, name: str, base: Source | None, order: Sequence[int]
) -> tuple[Array, SiteReport]:
    shape = request.sources[0].shape(name)
    arrays = {i: _flat(request.sources[i], name, request.like) for i in order}
    used, skipped = finite_sources(name, arrays, request.nonfinite)
    active = [i for i in order if i in used]
    if not active:
        raise InvalidInputError(f"{name!r} holds NaN or infinite entries in every source.")
    xp = array_namespace(arrays[active[0]])
    x = xp.stack([arrays[i] for i in active])
    weights = [float(request.weights[i]) for i in active]
    origin = None
    if base is not None:
        origin = base_tensor(base, name, shape, request.like)
        check_anchor(name, origin, request.nonfinite)
    view = SiteView(name, shape, lambda: _chunks(x, origin))
    stats = method.statistics(view)
    draws = SiteDraws(request.seed, name)
    row = shape[-1] if shape else 1
    value = method.block(x, origin, weights, stats, draws, 0, row)
    result = write(name, xp.reshape(value, shape), request.sources[0].arrays[name])
    report = SiteReport(
        name=name, parameters=(name,), size=prod(shape), action="merge", solver=method.name,
        skipped=skipped,
    )  # fmt: skip
    return result, report


def base_tensor(base: Source, name: str, shape: tuple[int, ...], like: Array) -> Array:
    """A tensor of the base model, flat.

    Raises
    ------
    InvalidInputError
        If it is missing or of another shape.
    """
    if name not in base.arrays or base.shape(name) != shape:
        given = base.shape(name) if name in base.arrays else "no such tensor"
        raise InvalidInputError(
            f"{name!r} has the shape {shape} in the sources; the base has {given}. Give a base of "
            "the same architecture, or a site rule for this tensor."
        )
    return _flat(base, name, like)


def _flat(source: Source, name: str, like: Array) -> Array:
    x = read(source.arrays[name], like)
    return array_namespace(x).reshape(x, (-1,))


def _chunks(x: Array, base: Array | None) -> Iterator[tuple[FloatArray, FloatArray | None]]:
    for at in range(0, int(x.shape[1]), CHUNK):
        piece = to_numpy(x[:, at : at + CHUNK])
        yield piece, None if base is None else to_numpy(base[at : at + CHUNK])


def moved(values: FloatArray, like: Array) -> Array:
    """NumPy numbers in the library and on the device of ``like``."""
    return like_library(values, like)


def with_method(found: MergeSolution, method: Any, **facts: Any) -> MergeSolution:
    """The solution of a quadratic under the name of the method that posed it."""
    return replace(
        found, method=method.name, facts={**found.facts, "reference": method.reference, **facts}
    )


__all__ = [
    "BlockMethod", "Method", "Request", "SiteView", "check_weights", "run_blocks",
]  # fmt: skip
