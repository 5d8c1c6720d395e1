"""From a plan to jobs: everything is opened and checked by headers before a byte is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CorruptFileError, InvalidInputError
from ...storage.atomic import read_json
from ...storage.numbers import FLOATS, float_code
from ...types import FloatArray
from ..decisions import Decision, decide
from ..plans.families import REQUIRED
from ..plans.plan import MergePlan
from ..plans.settings import layer_places, resolve
from ..sites import SitePolicy
from .checkpoint import Checkpoint
from .inputs import Input
from .layout import Entry, Layout, lay_out
from .precisions import PrecisionFile
from .recipes import Copy, Kernels, Recipe, Site
from .residence import Residence

BASE = -1
_UNITS = ("normalisation", "token_normalisation", "per")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(slots=True, kw_only=True)
class Job:
    """One tensor of the result.

    Attributes
    ----------
    entry : Entry
    decision : Decision
    build : callable
        Makes the recipe, reading the tensor where statistics are needed.
    measured : bool
        Whether building reads the whole tensor.
    unit : int
        Blocks are cut at multiples of so many entries.
    bytes_per_entry : int
    read_bytes : int
        That merging the tensor reads, statistics not counted.
    fixed_bytes : int
        That a worker takes for any block, however small.
    """

    entry: Entry
    decision: Decision
    build: Callable[[], Recipe]
    measured: bool
    bytes_per_entry: int
    read_bytes: int
    unit: int = 1
    fixed_bytes: int = 0
    _made: Recipe | None = None

    @property
    def recipe(self) -> Recipe:
        """How the tensor is made; built when it is first asked for."""
        if self._made is None:
            self._made = self.build()
        return self._made


@dataclass(kw_only=True)
class Prepared:
    """A plan with everything opened.

    Attributes
    ----------
    plan : MergePlan
    sources : tuple of Input
    base : Input or None
    precisions : tuple of PrecisionFile or None
    target : Checkpoint
        Whose files, configuration and names the result has.
    jobs : mapping of str to Job
    decisions : mapping of str to Decision
    notes : list of str
        What the report should mention.
    """

    plan: MergePlan
    sources: tuple[Input, ...]
    base: Input | None
    precisions: tuple[PrecisionFile, ...] | None
    masks: tuple[Input | None, ...]
    target: Checkpoint
    places: Mapping[str, float]
    kernels: Kernels
    policy: SitePolicy
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    laid_out: Layout | None = None
    notes: list[str] = field(default_factory=list)
    scales: FloatArray | None = None
    groups: dict[Any, Any] = field(default_factory=dict)
    residence: Residence = field(default_factory=Residence)

    @property
    def layout(self) -> Layout:
        """Files of the result and the places in them."""
        if self.laid_out is None:
            raise RuntimeError("The result is laid out by prepare(); this plan was not.")
        return self.laid_out

    @property
    def files_of_precisions(self) -> tuple[PrecisionFile, ...]:
        """The precisions of a method that weighs by them.

        Raises
        ------
        InvalidInputError
            If the method has none.
        """
        if self.precisions is None:
            raise InvalidInputError(f"{self.plan.method} takes no precisions.")
        return self.precisions

    @property
    def results(self) -> int:
        """K, the number of results."""
        return max(1, len(self.plan.grid))

    @property
    def largest_group(self) -> tuple[int, str]:
        """Bytes and name of the site that takes most while it is there; 0 where there is none."""
        return max(((g.bytes, g.key) for g in self.groups.values()), default=(0, ""))

    def setting(self, key: str, name: str, source: int | None = None) -> Any:
        """A parameter's value for one tensor (and one source)."""
        kind = self.plan.family
        settings = []
        if source is not None:
            own = self.plan.sources[source].parameters
            settings += [own[key]] if key in own else []
        if key in self.plan.parameters:
            settings.append(self.plan.parameters[key])
        found = resolve(settings, name, self.places.get(name, 0.0))
        if found is not None:
            return found
        default = {**kind.shared, **kind.own}[key][1]
        if default is REQUIRED:
            where = "" if source is None else f" of source {source}"
            raise InvalidInputError(
                f"{name!r} gets no value for {key!r}{where}: no filter fits and there is no value "
                "without a filter. Add '- value: ...' as the last entry."
            )
        return default

    def weights(self, name: str) -> FloatArray:
        """Weights (k, n) for one tensor."""
        if self.plan.grid:
            return np.array(self.plan.grid, dtype=np.float64)
        n = len(self.sources)
        return np.array([[float(self.setting("weight", name, i)) for i in range(n)]])

    def fingerprint(self) -> list[Any]:
        """Of every file that is read."""
        inputs: list[Any] = [s.store.fingerprint() for s in self.sources]
        inputs.append(None if self.base is None else self.base.store.fingerprint())
        inputs += [p.store.fingerprint() for p in self.precisions or ()]
        inputs += [m.store.fingerprint() for m in self.masks if m is not None]
        return inputs

    def close(self) -> None:
        """Close all files."""
        for source in (*self.sources, *self.masks):
            if source is not None:
                source.store.close()
        if self.base is not None:
            self.base.store.close()
        for precision in self.precisions or ():
            precision.store.close()


def prepare(plan: MergePlan, kernels: Kernels, *, shard_bytes: int | None = None) -> Prepared:
    """Open every file of a plan, check all headers, and decide about every tensor.

    Raises
    ------
    InvalidInputError
        Files and tensors that do not fit together, named.
    CorruptFileError
        Damaged or hostile files.
    """
    base_path = None if plan.base_model is None else Path(plan.base_model)
    opened: list[Input] = []
    try:
        for source in plan.sources:
            stem = base_path if source.base is None else Path(source.base)
            opened.append(Input.open(Path(source.model), stem, plan.ties))
        sources = tuple(opened)
        base = None if base_path is None else Input.open(base_path, None, plan.ties)
        opened += [] if base is None else [base]
        masks = tuple(
            None if s.mask is None else Input.open(Path(s.mask), None) for s in plan.sources
        )
        precisions = None
        if plan.family.precisions:
            precisions = tuple(PrecisionFile(Path(str(s.precision))) for s in plan.sources)
            _check_units(precisions)
        found = _decided(plan, kernels, sources, base, precisions, masks)
        _add_jobs(found)
        entries = [job.entry for job in found.jobs.values()]
        found.laid_out = lay_out(found.target, entries, shard_bytes)
        return found
    except BaseException:
        for source_ in opened:
            source_.store.close()
        raise


def _decided(
    plan: MergePlan, kernels: Kernels, sources: tuple[Input, ...], base: Input | None,
    precisions: tuple[PrecisionFile, ...] | None, masks: tuple[Input | None, ...],
) -> Prepared:  # fmt: skip
    policy = SitePolicy.of(plan.sites)
    if plan.out_dtype is not None:
        policy = replace(policy, mixed_dtypes=True)
    covered = None if precisions is None else [p.names for p in precisions]
    like = base if plan.like == "base" and base is not None else sources[0]
    store = like.store
    target = store if isinstance(store, Checkpoint) else store.base
    found = Prepared(
        plan=plan, sources=sources, base=base, precisions=precisions, masks=masks, target=target,
        places=layer_places(like.tensors, _layers(target)), kernels=kernels, policy=policy,
    )  # fmt: skip
    active = None
    if precisions is not None:
        every = found.plan.grid or None
        if every is None and all("filter" not in str(s.parameters) for s in plan.sources):
            first = next(iter(sources[0].tensors))
            active = [bool(w) for w in found.weights(first)[0]]
    views: Any = sources
    found.decisions = decide(views, policy, covered=covered, active=active)
    if not any(d.kind == "merge" for d in found.decisions.values()):
        found.notes.append("no tensor is merged by the method: all are copied or averaged")
    return found


def rebuild(found: Prepared) -> None:
    """Make the jobs again, after the scales of the precisions are known."""
    found.jobs.clear()
    found.groups.clear()
    _add_jobs(found)


def _add_jobs(found: Prepared) -> None:
    from .choose import recipe_job

    order = sorted(
        found.decisions,
        key=lambda n: list_place(found.target, n),
    )
    problems: list[str] = []
    for name in order:
        decision = found.decisions[name]
        if decision.kind == "skip":
            continue
        try:
            if decision.kind == "take":
                found.jobs[name] = _copy_job(found, decision)
            else:
                found.jobs[name] = recipe_job(found, decision)
        except InvalidInputError as error:
            problems.append(str(error))
    if problems:
        shown = "\n".join(f"  - {p}" for p in problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InvalidInputError(f"{len(problems)} tensors cannot be merged:\n{shown}{more}")


def list_place(target: Checkpoint, name: str) -> tuple[int, int, str]:
    """Order of the result's tensors: the target's files, then what the target lacks."""
    tensor = target.tensors.get(name)
    return (len(target.shards), 0, name) if tensor is None else (tensor.shard, tensor.offset, name)


def _copy_job(found: Prepared, decision: Decision) -> Job:
    name, source = decision.name, found.sources[decision.source]
    tensor = source.tensors[name]
    code = tensor.dtype
    if found.plan.out_dtype is not None and code in FLOATS:
        code = float_code(found.plan.out_dtype)
    recipe = Copy(source=source, name=name, code=code, copies=found.results)
    return Job(
        entry=Entry(name=name, dtype=code, shape=tensor.shape), decision=decision,
        build=lambda: recipe, measured=False, bytes_per_entry=recipe.bytes_per_entry,
        read_bytes=tensor.bytes,
    )  # fmt: skip


def site_of(found: Prepared, name: str, *, based: bool) -> Site:
    """A tensor with all its sources, the base first if there is one in the sum.

    Raises
    ------
    InvalidInputError
        If the base lacks it, or has another shape.
    """
    shape = found.sources[0].shape(name)
    sources, numbers = list(found.sources), list(range(len(found.sources)))
    if based:
        base = found.base
        if base is None or name not in base.tensors or base.shape(name) != shape:
            given = base.shape(name) if base and name in base.tensors else "no such tensor"
            raise InvalidInputError(
                f"{name!r} has the shape {shape} in the sources; the base has {given}. Give a "
                'base of the same architecture, or a rule: sites: {"' + name + '": "take:0"}'
            )
        base.floating(name)
        sources, numbers = [base, *sources], [BASE, *numbers]
    code = found.sources[0].tensors[name].dtype
    if found.plan.like == "base" and found.base is not None and name in found.base.tensors:
        code = found.base.tensors[name].dtype
    if found.plan.out_dtype is not None:
        code = float_code(found.plan.out_dtype)
    nonfinite = "propagate" if found.plan.nonfinite == "propagate" else "error"
    return Site(
        name=name, size=prod(shape), sources=tuple(sources), numbers=tuple(numbers), code=code,
        nonfinite=nonfinite,
    )  # fmt: skip


def normalised(name: str, weights: FloatArray) -> FloatArray:
    """Rows divided by their sums.

    Raises
    ------
    InvalidInputError
        Where a sum is 0.
    """
    out = np.empty_like(weights)
    for row, w in zip(out, weights, strict=True):
        total = fsum(w)
        if abs(total) < 1e-300 or not np.isfinite(total):
            raise InvalidInputError(
                f"{name!r}: the weights {w.tolist()} add up to {total:g}, so there is no weighted "
                "mean. Give other weights, or normalize: false."
            )
        row[:] = w / total
    return out


def _layers(target: Checkpoint) -> int | None:
    place = target.folder / "config.json"
    if not place.is_file():
        return None
    try:
        config = read_json(place)
    except CorruptFileError:
        return None
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    for part in parts:
        for key in _LAYER_KEYS:
            count = part.get(key) if isinstance(part, dict) else None
            if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 1e6:
                return count
    return None


def _check_units(precisions: Sequence[PrecisionFile]) -> None:
    for key in _UNITS:
        units = {str(p.facts[key]) for p in precisions if p.facts.get(key) is not None}
        if len(units) > 1:
            raise InvalidInputError(
                f"The precisions differ in {key!r}: {', '.join(sorted(units))}. Estimate all of "
                "them in one way."
            )
