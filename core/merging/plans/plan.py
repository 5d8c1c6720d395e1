"""A merge written down: what is merged, how, and what becomes of everything else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...storage.numbers import float_code
from ..sites import SitePolicy
from .families import REQUIRED, Family, family
from .settings import Setting, check_setting

FORMAT = 1
MAX_SOURCES, MAX_GRID = 1000, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSource:
    """One model of a plan.

    Attributes
    ----------
    model : str
        Checkpoint folder or .safetensors file, or a LoRA adapter's folder.
    base : str or None
        Of an adapter: the checkpoint that it was trained on; by default the plan's ``base_model``.
    precision : str or None
        File of its precision.
    mask : str or None
        Checkpoint of bool tensors under the names of the model's: the entries of its differences
        that stay, in place of random ones ("dare_linear", "dare_ties").
    parameters : mapping of str to setting
    """

    model: str
    base: str | None = None
    precision: str | None = None
    mask: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """A checked plan; files are looked at when it is carried out.

    Attributes
    ----------
    method : str
        One of :data:`~fishertope.core.merging.plans.families.FAMILIES`.
    sources : tuple of PlanSource
    base_model : str or None
    parameters : mapping of str to setting
        Of the merge, and of every source that does not set its own.
    sites : mapping of str to str
        Rules by name: see :class:`~fishertope.core.merging.SitePolicy`.
    out_dtype : str or None
        "float32", "bfloat16", "float16", "float64"; by default each tensor keeps its own.
    nonfinite : {"error", "skip", "propagate"}
        NaN and infinite entries of sources: refused; the source does not take part in that
        tensor; taken as they are.
    fallback : {"error", "mean"}
        Where no source has a precision.
    ties : mapping of str to str
        Tensors that some checkpoint leaves out because they share another's memory, and which.
    grid : tuple of tuples
        K weight vectors in place of the sources' weights: K results from one reading.
    like : {"first", "base"}
        Whose files, names, configuration and tokenizer the result has.
    tokenizer : str or None
        Folder whose tokenizer files are taken instead.
    seed : int
    comment : str
        What was left aside when the plan was read from another tool's file.

    Raises
    ------
    InvalidInputError
        Naming what was given, what is accepted and what to do.
    """

    method: str
    sources: Sequence[PlanSource]
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)
    out_dtype: str | None = None
    nonfinite: str = "error"
    fallback: str = "mean"
    ties: Mapping[str, str] = field(default_factory=dict)
    grid: Sequence[Sequence[float]] = ()
    like: str = "first"
    tokenizer: str | None = None
    seed: int = 0
    comment: str = ""

    def __post_init__(self) -> None:
        kind = family(self.method)
        object.__setattr__(self, "sources", tuple(self.sources))
        _check_choices(self)
        _check_sources(self, kind)
        names = {**kind.shared, **kind.own}
        shared = _checked(self.parameters, names, kind.name, "parameters")
        object.__setattr__(self, "parameters", shared)
        sources = []
        for i, source in enumerate(self.sources):
            where = f"parameters of source {i}"
            own = _checked(source.parameters, kind.own, kind.name, where)
            sources.append(
                PlanSource(
                    model=source.model,
                    base=source.base,
                    precision=source.precision,
                    mask=source.mask,
                    parameters=own,
                )
            )
        object.__setattr__(self, "sources", tuple(sources))
        _check_required(self, kind)
        object.__setattr__(self, "grid", _checked_grid(self, kind))
        SitePolicy.of(_strings("sites", self.sites))
        _strings("ties", self.ties)

    @property
    def family(self) -> Family:
        """What the method takes."""
        return family(self.method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :meth:`of` reads; what has its default is left out."""
        out: dict[str, Any] = {"fishertope_plan": FORMAT, "method": self.method}
        out["sources"] = [_source_dict(s) for s in self.sources]
        for key in ("base_model", "out_dtype", "tokenizer"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        defaults = {
            "parameters": {}, "sites": {}, "nonfinite": "error", "fallback": "mean", "ties": {},
            "like": "first", "seed": 0, "comment": "",
        }  # fmt: skip
        for key, default in defaults.items():
            value = getattr(self, key)
            value = dict(value) if isinstance(value, Mapping) else value
            if value != default:
                out[key] = value
        if self.grid:
            out["grid"] = [list(row) for row in self.grid]
        return out

    @classmethod
    def of(cls, found: Any) -> MergePlan:
        """From plain values.

        Raises
        ------
        InvalidInputError
            Unknown keys, wrong types, and whatever the class refuses.
        """
        if not isinstance(found, Mapping):
            raise InvalidInputError(
                f"A plan of type {type(found).__name__} was given; a mapping is accepted."
            )
        keys = dict(found)
        version = keys.pop("fishertope_plan", FORMAT)
        if version != FORMAT or isinstance(version, bool):
            raise InvalidInputError(
                f"fishertope_plan: {str(version)[:40]} was given; this fishertope reads {FORMAT}."
            )
        known = {f for f in cls.__dataclass_fields__}
        _refuse_unknown(keys, known, "a plan")
        if "method" not in keys or "sources" not in keys:
            raise InvalidInputError("A plan needs 'method' and 'sources'.")
        sources = keys.pop("sources")
        if not isinstance(sources, list | tuple):
            raise InvalidInputError("'sources' must be a list of models.")
        return cls(sources=tuple(_source_of(s) for s in sources), **keys)


def _source_of(found: Any) -> PlanSource:
    if isinstance(found, PlanSource):
        return found
    if isinstance(found, str):
        return PlanSource(model=found)
    if not isinstance(found, Mapping) or "model" not in found:
        raise InvalidInputError(
            f"The source {str(found)[:60]!r} was given; a path, or a mapping with 'model' is "
            "accepted."
        )
    _refuse_unknown(found, set(PlanSource.__dataclass_fields__), "a source")
    return PlanSource(**found)


def _source_dict(source: PlanSource) -> dict[str, Any]:
    out: dict[str, Any] = {"model": source.model}
    for key in ("base", "precision", "mask"):
        if getattr(source, key) is not None:
            out[key] = getattr(source, key)
    if source.parameters:
        out["parameters"] = dict(source.parameters)
    return out


def _refuse_unknown(found: Mapping[Any, Any], known: set[str], what: str) -> None:
    odd = [str(k)[:40] for k in found if k not in known]
    if odd:
        raise InvalidInputError(
            f"{what} with the key {', '.join(repr(k) for k in odd[:4])} was given; "
            f"{', '.join(sorted(known))} are accepted. Correct or remove it."
        )


def _check_choices(plan: MergePlan) -> None:
    choices = {
        "nonfinite": ("error", "skip", "propagate"), "fallback": ("error", "mean"),
        "like": ("first", "base"),
    }  # fmt: skip
    for key, accepted in choices.items():
        value = getattr(plan, key)
        if value not in accepted:
            raise InvalidInputError(
                f"{key}: {str(value)[:40]!r} was given; {', '.join(accepted)} are accepted."
            )
    if plan.out_dtype is not None:
        float_code(plan.out_dtype)
    if isinstance(plan.seed, bool) or not isinstance(plan.seed, int) or not 0 <= plan.seed < 2**64:
        raise InvalidInputError(f"seed: {str(plan.seed)[:40]} was given; 0 to 2^64 - 1 is taken.")
    for key in ("base_model", "tokenizer"):
        if getattr(plan, key) is not None:
            _path(key, getattr(plan, key))
    if not isinstance(plan.comment, str):
        raise InvalidInputError("comment: a text is accepted.")
    if plan.like == "base" and plan.base_model is None:
        raise InvalidInputError("like: base was given without a base_model; give one.")


def _check_sources(plan: MergePlan, kind: Family) -> None:
    n = len(plan.sources)
    if not kind.least <= n <= min(kind.most, MAX_SOURCES):
        most = f"to {kind.most} " if kind.most < MAX_SOURCES else "or more "
        count = f"{kind.least} {most}" if kind.most != kind.least else f"{kind.least} "
        raise InvalidInputError(
            f"{kind.name} was given {n} sources{' beside the base' if kind.base == 'must' else ''}"
            f"; {count}are taken. ({kind.about}.)"
        )
    if kind.base == "must" and plan.base_model is None:
        raise InvalidInputError(
            f"{kind.name} needs a base_model, the common ancestor of the sources; none was given."
        )
    for i, source in enumerate(plan.sources):
        _path(f"model of source {i}", source.model)
        for key in ("base", "precision", "mask"):
            if getattr(source, key) is not None:
                _path(f"{key} of source {i}", getattr(source, key))
        if kind.precisions and source.precision is None:
            raise InvalidInputError(
                f"{kind.name} weights sources by their precisions; source {i} has none. Make one "
                "with `fishertope estimate MODEL DATA --out FILE` and write 'precision: FILE'."
            )
        if source.precision is not None and not kind.precisions:
            raise InvalidInputError(
                f"Source {i} has a precision, which {kind.name} does not use; take 'fisher', or "
                "leave it out."
            )
        if source.mask is not None and kind.select != "random":
            raise InvalidInputError(
                f"Source {i} has a mask, which {kind.name} does not use; take 'dare_linear' or "
                "'dare_ties', or leave it out."
            )


def _checked(
    given: Any, known: Mapping[str, tuple[type, Any]], method: str, where: str
) -> dict[str, Setting]:
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"{where}: a mapping is accepted.")
    _refuse_unknown(given, set(known), f"{where} of {method}" if where == "parameters" else where)
    return {k: check_setting(f"{where}, {k}", v, known[k][0]) for k, v in given.items()}


def _check_required(plan: MergePlan, kind: Family) -> None:
    for key, (_, default) in kind.shared.items():
        if default is REQUIRED and key not in plan.parameters:
            raise InvalidInputError(f"{kind.name} needs the parameter {key!r}; give it a value.")
    for key, (_, default) in kind.own.items():
        if default is not REQUIRED or plan.grid or key in plan.parameters:
            continue
        for i, source in enumerate(plan.sources):
            if key not in source.parameters:
                raise InvalidInputError(
                    f"{kind.name} needs the parameter {key!r} of every source; source {i} "
                    f"({source.model}) has none."
                )
    floor_on = plan.parameters.get("floor_on", "all")
    if floor_on not in ("all", "first"):
        raise InvalidInputError(f"floor_on: {floor_on!r} was given; all or first is accepted.")


def _checked_grid(plan: MergePlan, kind: Family) -> tuple[tuple[float, ...], ...]:
    if not isinstance(plan.grid, list | tuple) or len(plan.grid) > MAX_GRID:
        raise InvalidInputError(f"grid: a list of at most {MAX_GRID} weight vectors is accepted.")
    if plan.grid and "weight" not in kind.own:
        raise InvalidInputError(f"grid: {kind.name} has no weights, so it takes no grid.")
    rows = []
    for row in plan.grid:
        sound = isinstance(row, list | tuple) and len(row) == len(plan.sources)
        if not sound or not all(_is_number(v) for v in row):
            raise InvalidInputError(
                f"grid: the row {str(row)[:60]} was given; {len(plan.sources)} finite numbers, one "
                "a source, are accepted."
            )
        rows.append(tuple(float(v) for v in row))
    return tuple(rows)


def _is_number(value: Any) -> bool:
    try:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return plain and isfinite(float(value))
    except OverflowError:
        return False


def _strings(where: str, found: Any) -> Mapping[str, str]:
    sound = isinstance(found, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) for k, v in found.items()
    )
    if not sound:
        raise InvalidInputError(f"{where}: a mapping of words to words is accepted.")
    return dict(found)


def _path(where: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise InvalidInputError(f"{where}: {str(value)[:60]!r} was given; a path is accepted.")
    return Path(value)
