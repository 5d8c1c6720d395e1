"""Tensors that no method merges: averaged, taken, tied; and the final dict in its order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..types import Array
from .decisions import Decision
from .entries import weighted_mean
from .groups import Group
from .inputs import finite_sources
from .solution import SiteReport
from .sources import Source, read, write


def write_group(group: Group, theta: Array, sources: Sequence[Source]) -> dict[str, Array]:
    """The tensors of a group in source 0's library, dtype and device."""
    return {
        name: write(name, values, sources[0].arrays[name])
        for name, values in group.layout.split(theta).items()
    }


def average(
    name: str,
    sources: Sequence[Source],
    weights: Sequence[float],
    *,
    nonfinite: str,
    like: Array,
    order: Sequence[int],
) -> tuple[Array, int]:
    """The plain mean with the weights' ratios, and how many sources were left out."""
    arrays = {i: read(sources[i].arrays[name], like) for i in order}
    used, skipped = finite_sources(name, arrays, nonfinite)
    active = [i for i in used if weights[i] != 0]
    whole = sum(float(weights[i]) for i in active)
    x = array_namespace(arrays[order[0]]).stack([arrays[i] for i in active])
    return weighted_mean(x, [float(weights[i]) / whole for i in active]), skipped


def others(
    problem: Any, merged: dict[str, Array], reports: dict[str, SiteReport], order: Sequence[int]
) -> tuple[dict[str, Array], tuple[SiteReport, ...]]:
    """All tensors in the order of source 0, and a report for each."""
    out: dict[str, Array] = {}
    sites: list[SiteReport] = []
    sources: Sequence[Source] = problem.sources
    for name, decision in problem.decisions.items():
        if decision.kind == "merge":
            out[name] = merged[name]
            if name in reports:
                sites.append(reports[name])
            continue
        skipped = 0
        if decision.kind == "average":
            value, skipped = average(
                name, sources, problem.weights, nonfinite=problem.nonfinite,
                like=problem.like, order=order,
            )  # fmt: skip
            out[name] = write(name, value, sources[0].arrays[name])
        elif decision.kind == "take":
            out[name] = copied(sources[decision.source].arrays[name])
        elif decision.kind == "tie":
            out[name] = out[decision.tied_to]
        sites.append(_site(name, decision, sources, skipped))
    return out, tuple(sites)


def copied(x: Array) -> Array:
    """A copy without history."""
    if hasattr(x, "detach"):
        return x.detach().clone()
    return np.array(x)


def _site(name: str, decision: Decision, sources: Sequence[Source], skipped: int) -> SiteReport:
    home = next(s for s in sources if name in s.arrays)
    kind = f"take:{decision.source}" if decision.kind == "take" else decision.kind
    solver = "mean" if kind == "average" else ""
    return SiteReport(
        name=name, parameters=(name,), size=prod(home.shape(name)), action=kind, solver=solver,
        why=decision.why, skipped=skipped,
    )  # fmt: skip
