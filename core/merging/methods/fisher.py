"""Methods with diagonal precisions, and the general quadratic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from ...errors import InvalidInputError
from ...fisher.structures import Diagonal, Isotropic as IsotropicPrecision, Precision
from ...types import Array
from ..anchors import Anchor
from ..combine import combine
from ..groups import Tree, layouts_of
from ..solution import MergeSolution
from ..solving import solve
from ..sources import Source, read, write
from .base import Request, with_method


@dataclass(frozen=True, slots=True, eq=False)
class Sites(Mapping[str, Precision]):
    """Precisions by site with the layouts of the tree that they came from."""

    sites: Mapping[str, Precision]
    layouts: Mapping[str, Any]

    def __getitem__(self, name: str) -> Precision:
        return self.sites[name]

    def __iter__(self) -> Any:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def each_site(tree: Tree, change: Callable[[Precision], Precision]) -> Sites:
    """Every precision changed, the layouts kept."""
    return Sites({name: change(p) for name, p in tree.items()}, layouts_of(tree))


def as_diagonal(p: Precision) -> Diagonal:
    """The diagonal of any structure."""
    return p if isinstance(p, Diagonal) else Diagonal(p.diagonal())


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratic:
    """θ = argmin Σ λ_i (θ − θ_i)ᵀ P_i (θ − θ_i) + anchor + damping, for any precisions.

    The general form behind the others (arXiv:2111.09832, section 3): without precisions P_i = I.
    """

    name: ClassVar[str] = "quadratic"
    reference: ClassVar[str] = "arXiv:2111.09832"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """Solve as given."""
        return with_method(solve(request.problem(), request.solver), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fisher:
    """Diagonal Fisher merging: θ_j = Σ λ_i F_ij θ_ij / Σ λ_i F_ij (arXiv:2111.09832).

    Attributes
    ----------
    floor : float
        F ← max(F, floor); 1e-6 in the paper's code, where it is applied to the target alone. There
        it equals an anchor at source 0 of precision λ_0 max(floor − F_0, 0). 0, the default,
        leaves coordinates without any Fisher at the weighted mean, counted in ``fallback``.
    floor_on : {"target", "all"}
        Source 0, or every source.
    normalize : bool
        λ_i ← λ_i/‖F_i‖₂ with one norm over all merged tensors, after the floor: the default of the
        paper's code. It only changes what a grid of λ visits.

    Notes
    -----
    A source with λ_i = 0 does not enter at all, so no corner of the simplex gives 0/0.
    """

    floor: float = 0.0
    floor_on: str = "target"
    normalize: bool = False
    name: ClassVar[str] = "fisher"
    reference: ClassVar[str] = "arXiv:2111.09832"
    signed_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.floor) and self.floor >= 0):
            raise InvalidInputError(
                f"floor={self.floor} was given; a finite number >= 0 is accepted."
            )
        if self.floor_on not in ("target", "all"):
            raise InvalidInputError(
                f"floor_on={self.floor_on!r} was given; 'target' or 'all' is accepted."
            )

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with floored, normalised diagonals."""
        trees = [each_site(t, as_diagonal) for t in request.trees(self.name)]
        raised = [0] * len(trees)
        for i in range(len(trees)):
            if self.floor > 0 and (i == 0 or self.floor_on == "all"):
                trees[i], raised[i] = _floored(trees[i], self.floor)
        weights = np.array(request.weights)
        merged = {g.name for g in request.problem(precisions=trees).groups}
        norms = [fisher_norm({n: p for n, p in t.items() if n in merged}) for t in trees]
        if self.normalize:
            bad = [i for i, n in enumerate(norms) if n == 0 and weights[i] > 0]
            if bad:
                raise InvalidInputError(
                    f"The Fisher of source {bad[0]} is 0 everywhere and cannot be normalised. "
                    "Estimate it on other data, or set a floor."
                )
            weights = np.array(
                [w / n if n > 0 else 0.0 for w, n in zip(weights, norms, strict=True)]
            )
        problem = request.problem(precisions=trees, weights=weights.tolist())
        found = solve(problem, request.solver)
        return with_method(found, self, raised_to_floor=raised, norms=norms)


def fisher_norm(tree: Tree) -> float:
    """‖F‖₂ over all sites of a diagonal tree."""
    total = 0.0
    for p in tree.values():
        f = as_diagonal(p).values
        total += float(array_namespace(f).sum(f * f))
    return float(np.sqrt(total))


def _floored(tree: Sites, floor: float) -> tuple[Sites, int]:
    count = 0
    out: dict[str, Precision] = {}
    for name, p in tree.items():
        f = as_diagonal(p).values
        xp = array_namespace(f)
        low = f < floor
        count += int(xp.sum(xp.astype(low, xp.int64)))
        out[name] = Diagonal(xp.where(low, xp.full_like(f, floor), f))
    return Sites(out, tree.layouts), count


@dataclass(frozen=True, slots=True, kw_only=True)
class OTA:
    """Adam's second moments as precisions, P_i = diag (v_i^p + ε) (arXiv:2509.11167).

    Attributes
    ----------
    power : float
        p: 1/2 makes Adam's own preconditioner, 1 an empirical Fisher.
    epsilon : float
        ε, Adam's.

    Notes
    -----
    ``precisions`` are mappings from tensor names to ``Diagonal(exp_avg_sq)``. The sparsification of
    the paper (fast Fisher grafting) is not part of this.
    """

    power: float = 0.5
    epsilon: float = 1e-8
    name: ClassVar[str] = "ota"
    reference: ClassVar[str] = "arXiv:2509.11167"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with P_i = diag (v^p + ε)."""
        trees = [
            each_site(t, lambda p: Diagonal(as_diagonal(p).values ** self.power + self.epsilon))
            for t in request.trees(self.name)
        ]
        return with_method(solve(request.problem(precisions=trees), request.solver), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientMatching:
    """θ_0 + Σ α_t (H_0 + Σ_s α_s H_s)⁻¹ (H_0 + H_t) (θ_t − θ_0) (arXiv:2310.12808).

    Uncertainty-based gradient matching. The quadratic with P_t = H_0 + H_t, λ_t = α_t and an anchor
    at θ_0 of precision (1 − Σα) H_0. ``precisions`` are the H_t, ``anchor`` is
    ``Anchor(base, precision=H_0)`` with a tree or a number.
    """

    name: ClassVar[str] = "gradient_matching"
    reference: ClassVar[str] = "arXiv:2310.12808"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with the base's precision in every source's."""
        trees = request.trees(self.name)
        base = request.base
        anchor = request.anchor
        first = anchor.precision if anchor is not None else 0.0
        sums: list[Tree] = []
        for tree in trees:
            layouts = layouts_of(tree)
            own: dict[str, Precision] = {}
            for name, p in tree.items():
                H0 = first[name] if isinstance(first, Mapping) else _number(first, p)
                own[name] = combine([(1.0, H0), (1.0, p)], tuple(p.shape))
            sums.append(Sites(own, layouts))
        rest = 1.0 - float(sum(request.weights))
        pulled = Anchor(base, first, rest)
        found = solve(request.problem(precisions=sums, anchor=pulled), request.solver)
        return with_method(found, self)


def _number(value: float, p: Precision) -> Precision:
    return IsotropicPrecision(float(value), tuple(p.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class DFMerge:
    """θ_0 + M Σ F_i∘α_iτ_i / Σ F_i, with F_i taken at θ_0 + α_iτ_i (arXiv:2504.18992).

    The quadratic with sources θ_0 + M α_i τ_i and diagonal precisions F_i. The paper searches α by
    Bayesian optimisation: :func:`search_weights` does that around this method.

    Attributes
    ----------
    fisher_at : callable, optional
        (i, params) → the precisions of model i at these parameters (a dict of arrays); called once
        a source. Without it ``precisions`` are used as they are.
    scale : float, optional
        M; the number of sources by default.
    """

    fisher_at: Callable[[int, dict[str, Array]], Tree] | None = None
    scale: float | None = None
    name: ClassVar[str] = "df_merge"
    reference: ClassVar[str] = "arXiv:2504.18992"
    signed_weights: ClassVar[bool] = True

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with moved sources."""
        base, n = request.base, len(request.sources)
        alphas = [float(a) for a in request.weights]
        M = float(n if self.scale is None else self.scale)
        if self.fisher_at is not None:
            trees: Sequence[Tree] = [
                self.fisher_at(i, _moved(s, base, alphas[i])) for i, s in enumerate(request.sources)
            ]
        else:
            trees = request.trees(self.name)
        moved = [
            Source.of(_wide(_moved(s, base, M * a, wide=True), s))
            for s, a in zip(request.sources, alphas, strict=True)
        ]
        diagonals = [each_site(t, as_diagonal) for t in trees]
        problem = request.problem(
            sources=moved, precisions=diagonals, weights=[1.0] * n, anchor=Anchor(base)
        )
        found = solve(problem, request.solver)
        params = {
            k: write(k, v, request.sources[0].arrays[k]) if request.sources[0].floating(k) else v
            for k, v in found.params.items()
        }
        found = replace(found, params=params, template=request.sources[0].template)
        return with_method(found, self, scale=M, alphas=alphas)


def _moved(source: Source, base: Source, by: float, *, wide: bool = False) -> dict[str, Array]:
    """x_0 + by (x − x_0), in the source's dtype or in float64."""
    out: dict[str, Array] = {}
    for name, x in source.arrays.items():
        if not source.floating(name) or name not in base.arrays:
            out[name] = x
            continue
        if base.shape(name) != source.shape(name):
            out[name] = x
            continue
        own = read(x)
        origin = read(base.arrays[name], own)
        value = origin + by * (own - origin)
        out[name] = value if wide else write(name, value, x)
    return out


def _wide(arrays: dict[str, Array], source: Source) -> dict[str, Array]:
    """Every floating tensor in float64, so that nothing is rounded twice."""
    return {k: read(v) if source.floating(k) else v for k, v in arrays.items()}
