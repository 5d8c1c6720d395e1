"""Which recipe merges a tensor, for each family of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidInputError
from ...storage.header import DTYPES
from ...storage.numbers import stored_dtype
from ...types import FloatArray, NumpyArray
from ..decisions import Decision
from ..draws import SiteDraws
from ..elementwise import model_stock_ratio, slerp_weights
from ..statistics import gram
from .inputs import Input
from .layout import Entry
from .precisions import PrecisionFile
from .prepare import BASE, Job, Prepared, normalised, site_of
from .recipes import Blocks, Counts, Diagonal, Linear, Recipe, Site
from .views import is_finite, view_of

if TYPE_CHECKING:
    from .structured import Group
    from .task_vectors import Mask

# The kernel takes differences from the source of the largest weight and does not use that weight
# itself: one above all others makes the base that source.
_FORCED = 1e30


def recipe_job(found: Prepared, decision: Decision) -> Job:
    """The job of a tensor that is merged or averaged.

    Raises
    ------
    InvalidInputError
        Parameters, precisions or a base that do not fit the tensor.
    """
    name, method = decision.name, found.plan.method
    if decision.kind == "average":
        return _simple(found, decision, _mean(found, name))
    if method == "linear":
        return _simple(found, decision, _linear(found, name))
    if method == "fisher":
        return _precision_job(found, decision)
    if method in ("task_arithmetic", "wise_ft"):
        return _simple(found, decision, _towards(found, name))
    if method in ("slerp", "model_stock"):
        return _measured(found, decision)
    return _blocks(found, decision)


def _job(
    found: Prepared, decision: Decision, site: Site, recipe: Any, build: Callable[[], Recipe], *,
    measured: bool, unit: int = 1, more: int = 0, fixed: int = 0,
) -> Job:  # fmt: skip
    skip = found.plan.nonfinite == "skip"
    shape = found.sources[0].shape(decision.name)
    read = sum(s.tensors[decision.name].bytes for s in site.sources) + more
    return Job(
        entry=Entry(name=decision.name, dtype=site.code, shape=shape), decision=decision,
        build=(lambda: _without_nonfinite(found, decision, site, recipe)) if skip else build,
        measured=measured or skip, bytes_per_entry=recipe.bytes_per_entry, unit=unit,
        read_bytes=read, fixed_bytes=fixed,
    )  # fmt: skip


def _simple(found: Prepared, decision: Decision, recipe: Linear) -> Job:
    return _job(found, decision, recipe.site, recipe, lambda: recipe, measured=False)


def _mean(found: Prepared, name: str) -> Linear:
    """The plain weighted mean, of equal weights where the weights are no shares."""
    n = len(found.sources)
    weights = np.full((found.results, n), 1.0 / n)
    if "weight" in found.plan.family.own:
        given = found.weights(name)
        usable = (given >= 0).all(axis=1) & (given.sum(axis=1) > 0)
        weights[usable] = normalised(name, given[usable])
    site = site_of(found, name, based=False)
    return Linear(site=site, weights=weights, totals=np.ones(len(weights)), kernels=found.kernels)


def _linear(found: Prepared, name: str) -> Linear:
    weights = found.weights(name)
    site = site_of(found, name, based=False)
    if found.setting("normalize", name):
        weights, totals = normalised(name, weights), np.ones(len(weights))
    else:
        totals = np.array([fsum(w) for w in weights])
    if not weights.any(axis=1).all():
        raise InvalidInputError(f"{name!r}: all weights are 0; give one that is not.")
    return Linear(site=site, weights=weights, totals=totals, kernels=found.kernels)


def _towards(found: Prepared, name: str) -> Linear:
    """θ_0 + Σ w_i (θ_i − θ_0)."""
    site = site_of(found, name, based=True)
    if found.plan.method == "wise_ft":
        alpha = float(found.setting("alpha", name))
        pair = np.array([[1.0 - alpha, alpha]])
        return Linear(site=site, weights=pair, totals=np.ones(1), kernels=found.kernels)
    weights = found.weights(name)
    if found.setting("normalize", name):
        sums = np.array([[fsum(w)] for w in weights])
        weights = weights / np.where(np.abs(sums) > 1e-8, sums, 1.0)
    return _based(found, site, weights * float(found.setting("lambda", name)))


def _based(found: Prepared, site: Site, weights: FloatArray) -> Linear:
    forced = np.full((len(weights), 1), _FORCED)
    return Linear(
        site=site, weights=np.concatenate([forced, weights], axis=1),
        totals=np.ones(len(weights)), kernels=found.kernels,
    )  # fmt: skip


def _measured(found: Prepared, decision: Decision) -> Job:
    """Sums whose weights come from the angles between the tensors."""
    name, n = decision.name, len(found.sources)
    site = site_of(found, name, based=True)
    shape = found.sources[0].shape(name)
    if found.plan.method == "slerp":
        t = float(found.setting("t", name))
        rough = Linear(site=site, weights=np.ones((1, 2)), totals=np.ones(1), kernels=found.kernels)

        def build() -> Recipe:
            angles = _finite(name, gram(view_of(site, shape, based=False).values()))
            a, b = slerp_weights(angles, t)
            total = 1.0 if (a, b) == (1.0 - t, t) else a + b
            return replace(rough, weights=np.array([[a, b]]), totals=np.array([total]))
    else:
        if found.setting("filter_wise", name):
            raise InvalidInputError(
                f"{name!r}: model_stock with filter_wise: true was asked for; the tensor-wise form "
                "is there. Remove filter_wise."
            )
        rough = _based(found, site, np.full((1, n), 1.0 / n))

        def build() -> Recipe:
            angles = _finite(name, gram(view_of(site, shape, based=True).differences()))
            ratio = model_stock_ratio(angles)
            return _based(found, site, np.full((1, n), ratio / n))

    return _job(found, decision, site, rough, build, measured=True)


def _finite(name: str, products: FloatArray) -> FloatArray:
    if not np.isfinite(products).all():
        raise InvalidInputError(
            f"{name!r} holds NaN or infinite entries, so there is no angle between the sources. "
            "Choose nonfinite: error or skip, or take the tensor from one source."
        )
    return products


def _blocks(found: Prepared, decision: Decision) -> Job:
    """TIES, DARE, Breadcrumbs, DELLA."""
    name, kind, n = decision.name, found.plan.family, len(found.sources)
    site = site_of(found, name, based=True)
    shape = found.sources[0].shape(name)
    row = shape[-1] if shape else 1

    def each(key: str) -> list[float]:
        return [float(found.setting(key, name, i)) if key in kind.own else 0.0 for i in range(n)]

    from .task_vectors import TaskVectors

    method = TaskVectors(
        select=kind.select, density=each("density"), gamma=each("gamma"), epsilon=each("epsilon"),
        elect=kind.elect, normalize=bool(found.setting("normalize", name)),
        rescale=bool(found.setting("rescale", name)), scale=float(found.setting("lambda", name)),
        masks=[_mask(m, name, shape, i) for i, m in enumerate(found.masks)],
    )  # fmt: skip
    method.check(name)
    draws = SiteDraws(found.plan.seed, name)
    view = view_of(site, shape, based=True)
    recipe = Blocks(
        site=site, method=method, based=True, weights=found.weights(name), draws=draws, row=row,
        statistics=lambda: method.statistics(view, draws, row), kernels=found.kernels,
    )  # fmt: skip

    def build() -> Recipe:
        recipe.measure()
        return recipe

    unit = row if kind.select == "ranked" else 1
    return _job(found, decision, site, recipe, build, measured=True, unit=unit)


def _mask(mask: Input | None, name: str, shape: tuple[int, ...], i: int) -> Mask | None:
    if mask is None:
        return None
    if name not in mask.tensors or mask.shape(name) != shape:
        given = mask.shape(name) if name in mask.tensors else "no such tensor"
        raise InvalidInputError(f"The mask of source {i} has {given} for {name!r}, not {shape}.")
    code = mask.tensors[name].dtype
    if code not in DTYPES:
        raise InvalidInputError(f"The mask of source {i} for {name!r} is {code}; bool is accepted.")
    source = mask

    def read(start: int, stop: int) -> NumpyArray:
        out = np.empty(stop - start, dtype=stored_dtype(code))
        source.read(name, start, out)
        return np.asarray(out != 0, dtype=np.float64)

    return read


def _precision_job(found: Prepared, decision: Decision) -> Job:
    name = decision.name
    files = found.files_of_precisions
    weights = found.weights(name)
    if (weights < 0).any() or not (weights.sum(axis=1) > 0).all():
        raise InvalidInputError(
            f"{name!r}: the weights {weights.tolist()} were given; numbers >= 0, not all 0, weight "
            "precisions."
        )
    for p in files:
        if name in p.diagonals:
            p.check(name, found.sources[0].shape(name))
    anchor = float(found.setting("anchor", name))
    if anchor < 0 or (anchor > 0 and found.base is None):
        raise InvalidInputError(
            f"anchor: {anchor} was given; a number >= 0, with a base_model to be anchored at."
        )
    damped = float(found.setting("damping", name)) > 0
    grouped = any(name in names for p in files for _, names in p.others.values())
    if grouped or damped:
        return _group_job(found, decision, weights, anchor)
    return _diagonal_job(found, decision, weights, anchor)


def _diagonal_job(found: Prepared, decision: Decision, weights: FloatArray, anchor: float) -> Job:
    name, files = decision.name, found.files_of_precisions
    site = site_of(found, name, based=anchor > 0)
    floor = float(found.setting("floor", name))
    if floor < 0:
        raise InvalidInputError(f"floor: {floor} was given; a number >= 0 is accepted.")
    first = found.setting("floor_on", name) == "first"
    floors = np.array([floor if i == 0 or not first else 0.0 for i in range(len(files))])
    scaled = weights if found.scales is None else weights * found.scales
    lifted = np.array(
        [max(p.numbers.get(name, 0.0), f) for p, f in zip(files, floors, strict=True)]
    )
    # Only c I: the number counts at every entry, and no floor is left for the kernel.
    plain = np.array([name in p.numbers for p in files])
    ridges = scaled * np.where(plain, lifted, 0.0)
    floors = np.where(plain, 0.0, floors)
    stores: tuple[PrecisionFile | None, ...] = tuple(files)
    means = normalised(name, weights)
    if anchor > 0:
        k = len(weights)
        zero = np.zeros((k, 1))
        scaled, means = (
            np.concatenate([zero, scaled], axis=1),
            np.concatenate([zero, means], axis=1),
        )
        ridges = np.concatenate([np.full((k, 1), anchor), ridges], axis=1)
        floors, stores = np.concatenate([[0.0], floors]), (None, *stores)
    recipe = Diagonal(
        site=site, precisions=stores, weights=scaled, ridges=ridges, floors=floors,
        fallback=means if found.plan.fallback == "mean" else None, kernels=found.kernels,
    )  # fmt: skip
    tensors = [p.tensor(name) for p in files]
    more = sum(t.bytes for t in tensors if t is not None)
    return _job(found, decision, site, recipe, lambda: recipe, measured=False, more=more)


def _group_job(found: Prepared, decision: Decision, weights: FloatArray, anchor: float) -> Job:
    """A site with another structure: by its rows if it has such, else solved whole."""
    from .structured import Solved

    name = decision.name
    group = _group_of(found, name, weights, anchor)
    site = group.sites[name]
    recipe = Solved(site=site, group=group)
    more = 0
    if name == group.layout.weight:
        more = sum(p.entries(group.key)[1] for p in group.precisions)
    return _job(
        found, decision, site, recipe, lambda: recipe, measured=False, more=more,
        unit=group.unit(name), fixed=group.block_bytes(name),
    )  # fmt: skip


def _group_of(found: Prepared, name: str, weights: FloatArray, anchor: float) -> Group:
    """The group of a tensor, made when its first tensor asks for it.

    Raises
    ------
    InvalidInputError
        Precisions that disagree about the site, or have another shape; a site of which only some
        tensors are merged.
    """
    from ..anchors import Damping
    from .row_groups import RowGroup, takes_rows
    from .structured import WholeGroup

    files = found.files_of_precisions
    keys = [p.key(name) for p in files]
    if len(set(keys)) > 1:
        raise InvalidInputError(
            f"{name!r} belongs to the sites {', '.join(map(str, keys))} of the precisions; the "
            "same site in each is accepted. Estimate all of them with one structure."
        )
    key = keys[0]
    # Sources that are not finite are left out (nonfinite: skip): a group of fewer is another.
    mark = (key, *map(id, found.sources))
    known: Group | None = found.groups.get(mark)
    if known is not None:
        return known
    layout = files[0].layout(key)
    for part in layout.parameters:
        merged = found.decisions.get(part)
        if merged is None or merged.kind != "merge":
            raise InvalidInputError(
                f"{layout.weight!r} and {layout.bias!r} share a precision, but {part!r} is "
                f"{'missing' if merged is None else 'not to be merged'}. Give both the same rule, "
                "or a diagonal precision."
            )
    for p in files:
        for part, shape in p.layout(key).shapes.items():
            if shape != found.sources[0].shape(part):
                raise InvalidInputError(
                    f"{p.path}: the precision of {key!r} is for {part!r} of shape {shape}; the "
                    f"tensor has {found.sources[0].shape(part)}. Is it the precision of this model?"
                )
    kind = RowGroup if takes_rows(key, files, weights) else WholeGroup
    group = found.groups[mark] = kind(
        key=key, layout=layout,
        sites={n: site_of(found, n, based=False) for n in layout.parameters},
        sources=found.sources, precisions=files, weights=weights, base=found.base, anchor=anchor,
        damping=Damping.of(
            (float(found.setting("damping", name)), found.setting("damping_mode", name))
        ),
        fallback=found.plan.fallback, nonfinite=found.plan.nonfinite, residence=found.residence,
    )  # fmt: skip
    return group


def _without_nonfinite(found: Prepared, decision: Decision, site: Site, recipe: Any) -> Recipe:
    """The recipe of the sources that are finite on this tensor (nonfinite: skip)."""
    # The tensors that share a precision stand together.
    names = list(recipe.group.sites) if hasattr(recipe, "group") else [site.name]
    good = [i for i, s in enumerate(site.sources) if all(is_finite(s, name) for name in names)]
    numbers = [site.numbers[i] for i in good]
    if len(good) == len(site.sources):
        job = recipe_job(_strict(found), decision)
        return job.build()
    if BASE in site.numbers and BASE not in numbers:
        raise InvalidInputError(
            f"{site.name!r} of the base model has NaN or infinite entries; a base cannot be "
            "skipped. Mend the checkpoint, or take the tensor from a source by a rule."
        )
    left = [n for n in numbers if n != BASE]
    if not left:
        raise InvalidInputError(f"{site.name!r} has NaN or infinite entries in every source.")
    skipped = [str(n) for n in site.numbers if n not in numbers]
    found.notes.append(f"{site.name}: source {', '.join(skipped)} left out (not finite)")
    fewer = _strict(found)
    fewer.sources = tuple(found.sources[n] for n in left)
    fewer.masks = tuple(found.masks[n] for n in left)
    plan = found.plan
    grid = tuple(tuple(row[n] for n in left) for row in plan.grid)
    fewer.plan = _Fewer(plan, tuple(plan.sources[n] for n in left), grid)  # type: ignore[assignment]
    if found.precisions is not None:
        fewer.precisions = tuple(found.precisions[n] for n in left)
    if found.scales is not None:
        fewer.scales = found.scales[left]
    return recipe_job(fewer, decision).build()


def _strict(found: Prepared) -> Prepared:
    """The same, now that the tensor is known to be finite."""
    copy = replace(found)
    copy.plan = _Fewer(found.plan, tuple(found.plan.sources), found.plan.grid)  # type: ignore[assignment]
    return copy


@dataclass(slots=True)
class _Fewer:
    """A plan with some of its sources, past the checks of their number."""

    plan: Any
    sources: Sequence[Any]
    grid: Any
    nonfinite: str = field(default="error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)


__all__ = ["Counts", "recipe_job"]
