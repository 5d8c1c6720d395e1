"""Search of merging weights for checkpoints on disk: several candidates from each reading."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidInputError, ResultsExistError
from ...types import FloatArray
from ..plans.plan import MergePlan
from ..search.result import Difference
from ..search.scoring import bootstrap_difference, scores_of
from ..search.spaces import PairGrid, SobolSimplex
from .merge import MergeOptions, merge_checkpoints

Evaluate = Callable[[str, str], Any]
"""(folder of a checkpoint, "selection" or "report") → a number, one score an example, or a mapping
from metrics to these."""

Told = Callable[[str, int, int], Any]
"""(what, candidates scored, candidates in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSearch:
    """What a search found.

    Attributes
    ----------
    path : Path
        The merge with the chosen weights.
    weights : tuple of float
    trials, plain_trials : tuple of (weights, mean score on the selection split)
        Of the plan's method, and of plain averaging.
    report : mapping of str to float
        Mean scores on the report split: "merged", "source 0", ..., "isotropic (searched)".
    differences : mapping of str to Difference
        "merged" minus each other, with bootstrap intervals where scores are per example.
    """

    path: Path
    weights: tuple[float, ...]
    trials: tuple[tuple[tuple[float, ...], float], ...]
    plain_trials: tuple[tuple[tuple[float, ...], float], ...]
    report: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)


def search_checkpoints(
    plan: MergePlan,
    evaluate: Evaluate,
    out: str | os.PathLike[str],
    *,
    points: int = 11,
    at_once: int = 4,
    metric: str | None = None,
    maximise: bool = True,
    isotropic: bool = True,
    options: MergeOptions | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> CheckpointSearch:
    """Try weight vectors, keep the best on "selection", and report on "report".

    Parameters
    ----------
    plan : MergePlan
        Its weights are searched: an even grid with both corners for two sources, else Sobol points
        on the simplex and the corners.
    evaluate : callable
        Must read the split that it is told and no other. "report" is asked for once the weights
        are chosen.
    out : path
        Of the merge with the chosen weights.
    points : int
        Weight vectors.
    at_once : int
        Candidates made from one reading; so many lie on the disk beside ``out`` at a time.
    metric : str, optional
        Which entry of a mapping counts.
    maximise : bool
        False for losses.
    isotropic : bool
        The same search for plain averaging, as a baseline.
    options : MergeOptions, optional
    seed : int
    told : callable, optional

    Returns
    -------
    CheckpointSearch

    Raises
    ------
    InvalidInputError
        A plan without weights or with a grid; scores that are no numbers.
    ResultsExistError
        Something is at ``out``.
    """
    n, place = len(plan.sources), Path(out)
    if "weight" not in plan.family.own or plan.grid or points < 2 or at_once < 1:
        raise InvalidInputError(
            f"A search over {points} points ({at_once} at once) of {plan.method} was asked for; "
            "a method with weights, no grid in the plan, and at least 2 points are taken."
        )
    if place.exists():
        raise ResultsExistError(f"{place} is there already. Choose another folder.")
    options = options or MergeOptions()
    grid = PairGrid(points).points(2, seed) if n == 2 else _simplex(n, points, seed)
    sign = 1.0 if maximise else -1.0

    def tried(what: str, how: MergePlan, rows: FloatArray) -> list[tuple[tuple[float, ...], float]]:
        found: list[tuple[tuple[float, ...], float]] = []
        for at in range(0, len(rows), at_once):
            part = rows[at : at + at_once]
            with _candidates(how, part, place, options) as folders:
                for row, folder in zip(part, folders, strict=True):
                    score = scores_of(_on(evaluate, "selection"), folder, None, metric).mean()
                    found.append((tuple(float(v) for v in row), float(score)))
                    if told is not None:
                        told(what, len(found), len(rows))
        return found

    trials = tried(plan.method, plan, grid)
    best = max(trials, key=lambda t: sign * t[1])[0]
    plain_plan = _plain(plan)
    plain = tried("isotropic", plain_plan, grid) if isotropic and plan.method != "linear" else []
    chosen = _weighted(plan, best)
    merge_checkpoints(chosen, place, options=options)
    report = _on(evaluate, "report")
    scores = {"merged": scores_of(report, str(place), None, metric)}
    for i, source in enumerate(plan.sources):
        if source.base is None:
            scores[f"source {i}"] = scores_of(report, source.model, None, metric)
    others = {"isotropic (equal)": np.full((1, n), 1.0 / n)}
    if plain:
        top = max(plain, key=lambda t: sign * t[1])[0]
        others["isotropic (searched)"] = np.array([top])
    for name, row in others.items():
        with _candidates(plain_plan, row, place, options) as folders:
            scores[name] = scores_of(report, folders[0], None, metric)
    differences = {
        name: Difference(
            *bootstrap_difference(scores["merged"], s, n_boot=2000, level=0.95, seed=seed)
        )
        for name, s in scores.items()
        if name != "merged" and s.shape == scores["merged"].shape
    }
    return CheckpointSearch(
        path=place, weights=best, trials=tuple(trials), plain_trials=tuple(plain),
        report={k: float(s.mean()) for k, s in scores.items()}, differences=differences,
    )  # fmt: skip


def _on(evaluate: Evaluate, split: str) -> Callable[[Any, Any], Any]:
    return lambda folder, _: evaluate(folder, split)


def _simplex(n: int, points: int, seed: int) -> FloatArray:
    inner = SobolSimplex(max(1, points - n)).points(n, seed)
    return np.concatenate([np.eye(n), inner])


def _weighted(plan: MergePlan, weights: Sequence[float]) -> MergePlan:
    sources = [
        replace(s, parameters={**s.parameters, "weight": float(w)})
        for s, w in zip(plan.sources, weights, strict=True)
    ]
    return replace(plan, sources=sources)


def _plain(plan: MergePlan) -> MergePlan:
    """The same models averaged."""
    sources = [replace(s, precision=None, mask=None, parameters={}) for s in plan.sources]
    return replace(plan, method="linear", sources=sources, parameters={"weight": 1.0}, comment="")


@contextmanager
def _candidates(
    plan: MergePlan, rows: FloatArray, out: Path, options: MergeOptions
) -> Iterator[list[str]]:
    """Merges with these weights beside ``out``, removed in the end."""
    place = out.with_name(f".{out.name}.candidates")
    quick = replace(options, checksums=False, fsync=False)
    grid = replace(plan, grid=[[float(v) for v in row] for row in rows])
    try:
        merge_checkpoints(grid, place, options=quick, overwrite=True)
        yield [str(place / f"result-{k:03d}") for k in range(len(rows))]
    finally:
        shutil.rmtree(place, ignore_errors=True)
