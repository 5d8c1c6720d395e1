"""Choose merging weights on one split and report on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...types import FloatArray
from ..merge import merge
from ..solution import MergeSolution
from .optimisers import Optimiser, optimiser_of
from .result import Difference, Trial, WeightSearch
from .scoring import Evaluate, bootstrap_difference, head, length_of, overlap, scores_of
from .spaces import Space

Progress = Callable[[Trial], bool | None]


class _Stop(Exception):
    """The callback asked to stop."""


def search_weights(
    sources: Sequence[Any],
    evaluate: Evaluate,
    selection: Any,
    report: Any = None,
    *,
    precisions: Sequence[Mapping[str, Any]] | None = None,
    method: Any = "quadratic",
    search: Optimiser | Space | str = "exhaustive",
    metric: str | None = None,
    maximise: bool = True,
    isotropic: bool = True,
    allow_leak: bool = False,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
    callback: Progress | None = None,
    **options: Any,
) -> WeightSearch:
    """Search the weights λ of a merge on a selection split; report on a split it never saw.

    Parameters
    ----------
    sources, precisions, method, **options
        As in :func:`merge`, without ``weights``.
    evaluate : callable
        (model, data) → a number, per-example scores (n,), or a mapping from metrics to these. The
        model is a copy of source 0 with the merged tensors. Per-example scores give intervals.
    selection : object
        Data on which weights are compared; only handed to ``evaluate``.
    report : object, optional
        Data for the scores that are reported; touched once the weights are chosen. Left out,
        nothing is reported.
    search : optimiser, space or name
        "exhaustive" (51 points for two sources, else 64 Sobol points), "halving", "gp",
        "evolution"; an optimiser such as ``SuccessiveHalving()``; or a space such as
        ``PairGrid(21, corners=False)``, ``SimplexLattice(10)``, ``Dirichlet(50)``, ``LogRatios()``.
    metric : str, optional
        Which entry of a mapping counts.
    maximise : bool
        False for losses.
    isotropic : bool
        Run the same search for plain averaging too, as a baseline.
    allow_leak : bool
        Report even if the two splits are not separate. It is written into the result.
    level, n_boot : float, int
        Of the bootstrap intervals of the differences.
    seed : int
    callback : callable, optional
        Gets each :class:`Trial`; returning ``True`` ends the search with the best so far.

    Returns
    -------
    WeightSearch

    Raises
    ------
    InvalidInputError
        A report split that is not separate from the selection split; scores that are no numbers.

    Notes
    -----
    Ties go to the weights tried first. The score of the chosen weights on the selection split is
    their maximum and biased upwards; only ``report`` is a fair number.

    Examples
    --------
    >>> sources = [{"w": np.array([0.0])}, {"w": np.array([4.0])}]
    >>> def loss(model, data):
    ...     return (data - model["w"][0]) ** 2
    >>> rng = np.random.default_rng(0)
    >>> found = search_weights(sources, loss, rng.normal(1, 1, 400), rng.normal(1, 1, 400),
    ...                        maximise=False, isotropic=False)
    >>> found.weights.round(1).tolist(), found.differences["source 1"].high < 0
    ([0.8, 0.2], True)
    """
    if "weights" in options:
        raise InvalidInputError("search_weights looks for weights; leave weights= out.")
    why = "" if report is None else overlap(selection, report)
    if why and not allow_leak:
        raise InvalidInputError(
            f"The report split is not separate from the selection split: {why}. A score on data on "
            "which the weights were chosen is too good. Give other data (nested_splits makes "
            "pairs), or allow_leak=True, which the result records."
        )
    chosen_by, sign = optimiser_of(search), 1.0 if maximise else -1.0
    n = len(sources)

    def merged(weights: FloatArray, how: Any = method, trees: Any = precisions) -> MergeSolution:
        own = options if how is method else _without_method_options(options)
        return merge(sources, trees, method=how, weights=weights.tolist(), **own)

    def run(how: Any, trees: Any) -> tuple[Trial, ...]:
        trials: list[Trial] = []

        def score(weights: FloatArray, size: int | None) -> float:
            model = merged(weights, how, trees).model()
            value = float(scores_of(evaluate, model, head(selection, size), metric).mean())
            trial = Trial(tuple(float(w) for w in weights), value, size)
            trials.append(trial)
            if callback is not None and callback(trial) is True:
                raise _Stop
            return sign * value

        with suppress(_Stop):
            chosen_by.run(score, n, length_of(selection), seed)
        return tuple(trials)

    trials = run(method, precisions)
    best = _best(trials, sign)
    solution = merged(np.array(best.weights))
    plain = run("isotropic", None) if isotropic else ()
    scores: dict[str, FloatArray] = {}
    if report is not None:
        models: dict[str, Callable[[], Any]] = {"merged": solution.model}
        for i in range(n):
            models[f"source {i}"] = _corner(merged, n, i)
        if isotropic:
            top = np.array(_best(plain, sign).weights)
            models["isotropic (searched)"] = lambda: merged(top, "isotropic", None).model()
            equal = np.full(n, 1.0 / n)
            models["isotropic (equal)"] = lambda: merged(equal, "isotropic", None).model()
        scores = {k: scores_of(evaluate, m(), report, metric) for k, m in models.items()}
    differences = {
        name: Difference(
            *bootstrap_difference(scores["merged"], s, n_boot=n_boot, level=level, seed=seed)
        )
        for name, s in scores.items()
        if name != "merged"
    }
    return WeightSearch(
        weights=np.array(best.weights),
        solution=solution,
        trials=trials,
        isotropic_trials=plain,
        selection_score=best.score,
        report={name: float(s.mean()) for name, s in scores.items()},
        differences=differences,
        level=level,
        leak=bool(why),
        facts={
            "search": repr(chosen_by),
            "metric": metric,
            "maximise": maximise,
            "seed": seed,
            "evaluations": len(trials) + len(plain),
            "leak": why,
            "n_boot": n_boot,
        },
    )


def _corner(merged: Callable[..., MergeSolution], n: int, i: int) -> Callable[[], Any]:
    """Source i as a model of the merged kind."""
    return lambda: merged(np.eye(n)[i], "isotropic", None).model()


_COMMON = ("sites", "backend", "device", "nonfinite", "deterministic", "check_models")


def _without_method_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that plain averaging takes too."""
    return {k: v for k, v in options.items() if k in _COMMON}


def _best(trials: Sequence[Trial], sign: float) -> Trial:
    full = [t for t in trials if t.n_examples is None] or list(trials)
    if not full:
        raise InvalidInputError("The search tried no weights; give a space with points.")
    return full[int(np.argmax([sign * t.score for t in full]))]
