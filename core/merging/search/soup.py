"""Greedy soups: average the models that help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..entry import merge
from ..solution import MergeSolution
from .scoring import Evaluate, scores_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GreedySoup:
    """A greedy soup.

    Attributes
    ----------
    solution : MergeSolution
        The mean of the chosen models.
    chosen : tuple of int
        Indices of the models in the soup, in the order in which they went in.
    scores : tuple of float
        Of every model alone.
    steps : tuple of (int, float, bool)
        Model, score of the soup with it, and whether it stayed.
    """

    solution: MergeSolution
    chosen: tuple[int, ...]
    scores: tuple[float, ...]
    steps: tuple[tuple[int, float, bool], ...]


def greedy_soup(
    sources: Sequence[Any],
    evaluate: Evaluate,
    selection: Any,
    *,
    metric: str | None = None,
    maximise: bool = True,
    sites: Mapping[str, str] | None = None,
    **options: Any,
) -> GreedySoup:
    """Add models to a plain mean from the best to the worst; keep those that do not lower it.

    Source: arXiv:2203.05482. The selection data must not be those on which the soup is reported.

    Parameters
    ----------
    sources, evaluate, selection, metric, maximise
        As in :func:`search_weights`.
    sites, **options
        As in :func:`merge`.

    Returns
    -------
    GreedySoup
        n + (n − 1) evaluations.

    Examples
    --------
    >>> models = [{"w": np.array([v])} for v in (0.0, 2.0, 9.0)]
    >>> found = greedy_soup(models, lambda m, d: -abs(m["w"][0] - d), 1.0)
    >>> found.chosen, found.solution.params["w"].tolist()
    ((0, 1), [1.0])
    """
    sign = 1.0 if maximise else -1.0
    n = len(sources)

    def score(indices: Sequence[int]) -> tuple[float, MergeSolution]:
        weights = np.zeros(n)
        weights[list(indices)] = 1.0 / len(indices)
        found = merge(sources, method="isotropic", weights=weights.tolist(), sites=sites, **options)
        return float(scores_of(evaluate, found.model(), selection, metric).mean()), found

    alone = [score([i])[0] for i in range(n)]
    order = np.argsort([-sign * s for s in alone], kind="stable")
    chosen = [int(order[0])]
    best, solution = score(chosen)
    steps = [(chosen[0], best, True)]
    for i in order[1:]:
        value, found = score([*chosen, int(i)])
        stays = sign * value >= sign * best
        steps.append((int(i), value, bool(stays)))
        if stays:
            chosen.append(int(i))
            best, solution = value, found
    return GreedySoup(
        solution=solution, chosen=tuple(chosen), scores=tuple(alone), steps=tuple(steps)
    )
