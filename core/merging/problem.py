"""The quadratic that the whole family minimises, group by group.

Q(θ) = Σ_i λ_i (θ − θ_i)ᵀ P_i (θ − θ_i) + w (θ − θ_0)ᵀ R (θ − θ_0) + ρ‖θ − c‖²

Its normal equations are always taken for d = θ − c, with c the anchor θ_0, or without one the mean
of the sources: (Σ λ_i P_i + w R + ρ I) d = Σ λ_i P_i (θ_i − c) + w R (θ_0 − c).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import BackendChoice
from ..errors import InvalidInputError
from ..fisher.structures.coordinatewise import Isotropic
from ..fisher.structures.protocol import Precision
from ..types import Array, FloatArray
from .anchors import Anchor, Damping
from .combine import combine, converted
from .decisions import Decision, check_covered, decide
from .entries import weighted_mean
from .groups import Group, Tree, groups_of, parameters_of, precision_in
from .inputs import check_anchor, check_weights, digest_order, finite_sources
from .sites import SitePolicy
from .solvers.rows import by_rows, in_panels, right_of_rows
from .sources import Source, read


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeProblem:
    """Sources, their precisions and weights, and what else pulls.

    Attributes
    ----------
    sources : sequence of models
        Mappings of arrays, torch modules, dense networks, scikit-learn MLPs.
    precisions : sequence of mappings of str to Precision, optional
        One a source, P_i; without them P_i = I.
    weights : sequence of float, optional
        λ_i ≥ 0, not all 0; 1/n each by default. They are not normalised: a common factor matters
        beside an anchor or damping only.
    anchor : Anchor, optional
    damping : Damping
    sites : SitePolicy or mapping
    nonfinite : {"error", "skip", "propagate"}
        NaN and infinite parameters: refused; a source does not take part in the tensors in which
        it has some; or computed with.
    fallback : {"mean", "error"}
        What happens to directions that no precision determines when there is no anchor: they stay
        at the weighted mean of the sources, counted; or an error.
    deterministic : bool
        Sources are put in an order that depends on their contents only, so that the same set gives
        the same bits in whatever order it comes.
    like : array, optional
        Library and device of the computation; by default those of source 0's first tensor.
    backend : str or Backend
        Whose kernels take the means entry by entry; "auto" goes by the library.

    Raises
    ------
    InvalidInputError
        Sources, weights, precisions and rules that do not fit together.

    Examples
    --------
    >>> problem = MergeProblem(sources=[{"w": np.array([0.0])}, {"w": np.array([4.0])}],
    ...                        weights=[1.0, 3.0])
    >>> problem.objective({"w": np.array([3.0])})
    12.0
    """

    sources: Sequence[Any]
    precisions: Sequence[Tree] | None = None
    weights: Sequence[float] | None = None
    anchor: Anchor | None = None
    damping: Damping = field(default_factory=lambda: Damping.of(None))
    sites: Any = None
    nonfinite: str = "error"
    fallback: str = "mean"
    deterministic: bool = False
    like: Array = None
    backend: BackendChoice = "auto"
    decisions: Mapping[str, Decision] = field(init=False)
    groups: tuple[Group, ...] = field(init=False)
    base: Source | None = field(init=False)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if not self.sources:
            raise InvalidInputError("No source was given; give at least one model.")
        sources = tuple(Source.of(m, i) for i, m in enumerate(self.sources))
        weights = check_weights(self.weights, len(sources))
        precisions = None if self.precisions is None else tuple(self.precisions)
        if precisions is not None and len(precisions) != len(sources):
            raise InvalidInputError(
                f"{len(precisions)} precisions were given for {len(sources)} sources; give one for "
                "each, in the same order."
            )
        policy = SitePolicy.of(self.sites)
        covered = None
        if precisions is not None:
            covered = [parameters_of(tree) for tree in precisions]
            check_covered(precisions, covered, sources)
        put("sources", sources)
        put("weights", weights)
        put("precisions", precisions)
        put("sites", policy)
        decisions = decide(sources, policy, covered=covered, active=[bool(w) for w in weights])
        put("decisions", decisions)
        merged = [d.name for d in decisions.values() if d.kind == "merge"]
        trees: list[Tree] = list(precisions or ())
        if self.anchor is not None and isinstance(self.anchor.precision, Mapping):
            trees.append(self.anchor.precision)
        put("groups", groups_of(trees, merged, {n: sources[0].shape(n) for n in merged}))
        put("base", _base(self.anchor, merged, sources[0]))
        if self.like is None:
            first = next(iter(sources[0].arrays.values()))
            put("like", read(first)[..., :0] if first.ndim else read(first))
        for name, accepted in (
            ("nonfinite", ("error", "skip", "propagate")),
            ("fallback", ("mean", "error")),
        ):
            if getattr(self, name) not in accepted:
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r} was given; accepted: {', '.join(accepted)}."
                )

    @property
    def order(self) -> tuple[int, ...]:
        """Sources in the order in which they are added up."""
        if not self.deterministic:
            return tuple(range(len(self.sources)))
        return digest_order(self.sources, self.weights, self.precisions)

    def system(self, group: Group, order: Sequence[int] | None = None) -> GroupSystem:
        """The normal equations of one group, with its tensors read as float64."""
        with np.errstate(invalid="ignore" if self.nonfinite == "propagate" else "warn"):
            return self._system(group, self.order if order is None else order)

    def _system(self, group: Group, order: Sequence[int]) -> GroupSystem:
        arrays = {
            i: group.layout.join({p: read(self.sources[i].arrays[p], self.like)
                                  for p in group.parameters})
            for i in order
        }  # fmt: skip
        used, skipped = finite_sources(group.name, arrays, self.nonfinite)
        weights: FloatArray = np.asarray(self.weights)
        active = [i for i in order if i in used and weights[i] != 0]
        if not active:
            raise InvalidInputError(
                f"{group.name!r}: every source with a weight holds NaN or infinite entries."
            )
        lam = [float(weights[i]) for i in active]
        x = array_namespace(arrays[active[0]]).stack([arrays[i] for i in active])
        shape = group.layout.shape
        parts: list[Precision] = []
        for i in active:
            one: Precision = Isotropic(1.0, shape)
            if self.precisions is not None:
                one = converted(precision_in(self.precisions[i], group, self.like), self.like)
            if self.damping.mode == "factored":
                one = one.damped(self.damping.rho, "factored")
            parts.append(one)
        center, anchor = self._center(group, x, lam)
        return GroupSystem(
            name=group.name,
            sources=x,
            weights=tuple(lam),
            precisions=tuple(parts),
            center=center,
            anchor=anchor,
            ridge=ridge_of(self.damping, lam, parts),
            anchored=self.base is not None,
            skipped=skipped,
            backend=self.backend,
        )

    def objective(self, params: Mapping[str, Array]) -> float:
        """Q(θ) over the merged groups."""
        total = 0.0
        for group in self.groups:
            theta = group.layout.join({p: read(params[p], self.like) for p in group.parameters})
            total += self.system(group).objective(theta)
        return total

    def gradient(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """∇Q(θ) by tensor name, in float64."""
        out: dict[str, Array] = {}
        for group in self.groups:
            theta = group.layout.join({p: read(params[p], self.like) for p in group.parameters})
            out |= group.layout.split(self.system(group).gradient(theta))
        return out

    def _center(
        self, group: Group, x: Array, lam: Sequence[float]
    ) -> tuple[Array, tuple[float, Precision] | None]:
        if self.base is None or self.anchor is None:
            whole = sum(lam)
            return weighted_mean(x, [w / whole for w in lam], self.backend), None
        base = self.base
        center = group.layout.join({p: read(base.arrays[p], self.like) for p in group.parameters})
        check_anchor(group.name, center, self.nonfinite)
        R = self.anchor.precision
        if not isinstance(R, Mapping):
            one: Precision = Isotropic(float(R), group.layout.shape)
        else:
            one = converted(precision_in(R, group, self.like), self.like)
        return center, (self.anchor.weight, one)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupSystem:
    """The quadratic of one group of shape ``s``.

    Attributes
    ----------
    name : str
    sources : array (n, *s)
        θ_i of the sources with a weight, float64.
    weights : tuple of float
        λ_i > 0.
    precisions : tuple of Precision
        P_i, damping of mode "factored" in them.
    center : array (*s)
        c: d = θ − c is solved for.
    anchor : (w, R) or None
        The anchor's term, centred at c.
    ridge : float
        ρ of ρ‖θ − c‖².
    anchored : bool
        Whether c was given.
    skipped : int
        Sources left out because they are not finite here.
    backend : str or Backend
    """

    name: str
    sources: Array
    weights: tuple[float, ...]
    precisions: tuple[Precision, ...]
    center: Array
    anchor: tuple[float, Precision] | None
    ridge: float
    anchored: bool
    skipped: int
    backend: BackendChoice

    @property
    def terms(self) -> list[tuple[float, Precision]]:
        """(coefficient, precision) of every term of the sum."""
        out: list[tuple[float, Precision]] = list(zip(self.weights, self.precisions, strict=True))
        if self.anchor is not None:
            out.append(self.anchor)
        if self.ridge:
            out.append((self.ridge, Isotropic(1.0, self.precisions[0].shape)))
        return out

    @property
    def total(self) -> Precision:
        """Σ λ_i P_i + w R + ρ I: the merged Laplace precision."""
        return combine(self.terms, self.precisions[0].shape)

    def right_side(self) -> Array:
        """Σ λ_i P_i (θ_i − c)."""
        if isinstance(self.center, np.ndarray) and by_rows(self.precisions):
            return in_panels(
                self.precisions[0].shape,
                lambda a, b: right_of_rows(
                    self.weights, self.precisions, self.sources[:, a:b], self.center[a:b]
                ),
            )
        out = None
        for i, (w, p) in enumerate(zip(self.weights, self.precisions, strict=True)):
            part = w * p.apply(self.sources[i, ...] - self.center)
            out = part if out is None else out + part
        return out

    def apply(self, d: Array) -> Array:
        """(Σ λ_i P_i + w R + ρ I) d, term by term."""
        out = self.ridge * d
        terms = list(zip(self.weights, self.precisions, strict=True))
        for w, p in [*terms, *([self.anchor] if self.anchor is not None else [])]:
            out = out + w * p.apply(d)
        return out

    def objective(self, theta: Array) -> float:
        """Q(θ)."""
        return self._value(theta)[0]

    def gradient(self, theta: Array) -> Array:
        """∇Q(θ)."""
        return 2.0 * self._value(theta)[1]

    def check(self, theta: Array, total: Precision) -> tuple[float, float]:
        """Q(θ), and ‖A d − r‖/‖r‖ with A d − r = ∇Q/2 taken term by term from the sources."""
        value, half = self._value(theta)
        xp = array_namespace(half)
        right = total.apply(theta - self.center) - half
        rest, scale = (float(np.sqrt(float(xp.sum(x * x)))) for x in (half, right))
        return value, rest / scale if scale > 0 else rest

    def _value(self, theta: Array) -> tuple[float, Array]:
        """Q(θ) and ∇Q(θ)/2 from one product of every term."""
        xp = array_namespace(theta)
        d = theta - self.center
        half, value = self.ridge * d, 0.0
        own = zip(self.weights, self.precisions, strict=True)
        terms = [(w, p, theta - self.sources[i, ...]) for i, (w, p) in enumerate(own)]
        if self.anchor is not None:
            terms.append((*self.anchor, d))
        value += self.ridge * float(xp.sum(d * d)) if self.ridge else 0.0
        for w, p, gap in terms:
            product = p.apply(gap)
            value += w * float(xp.sum(gap * product))
            half = half + w * product
        return value, half


def ridge_of(damping: Damping, weights: Sequence[float], parts: Sequence[Precision]) -> float:
    """ρ of the term ρ‖θ − c‖² of a group with these weighted precisions."""
    rho = damping.rho
    if rho == 0.0 or damping.mode == "factored":
        return 0.0
    if damping.mode == "absolute":
        return float(rho)
    size = float(np.prod(parts[0].shape))
    return float(rho) * sum(w * p.trace() for w, p in zip(weights, parts, strict=True)) / size


def _base(anchor: Anchor | None, merged: Sequence[str], first: Source) -> Source | None:
    if anchor is None:
        return None
    base = Source.of(anchor.params)
    for name in merged:
        if name not in base.arrays:
            raise InvalidInputError(
                f"The anchor has no tensor {name!r}, which is merged. Give an anchor with every "
                "merged tensor, or a site rule for this one."
            )
        if base.shape(name) != first.shape(name):
            raise InvalidInputError(
                f"The anchor has {name!r} in the shape {base.shape(name)}; the sources have "
                f"{first.shape(name)}."
            )
    return base
