"""Choose merging weights on one split and report on another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...types import FloatArray
from ..entry import merge
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
    chosen_by = optimiser_of(search)
    work = _Work(
        sources, evaluate, metric, 1.0 if maximise else -1.0, options, chosen_by, seed, callback
    )
    trials = work.run(selection, method, precisions)
    best = work.best(trials)
    solution = work.merged(np.array(best.weights), method, precisions)
    plain = work.run(selection, "isotropic", None) if isotropic else ()
    scores = {} if report is None else work.reported(report, solution, plain)
    differences = {
        name: Difference(
            *bootstrap_difference(scores["merged"], s, n_boot=n_boot, level=level, seed=seed)
        )
        for name, s in scores.items()
        if name != "merged"
    }
    facts = {
        "search": repr(chosen_by), "metric": metric, "maximise": maximise, "seed": seed,
        "evaluations": len(trials) + len(plain), "leak": why, "n_boot": n_boot,
    }  # fmt: skip
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
        facts=facts,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """The arguments of a search, and what is done with them."""

    sources: Sequence[Any]
    evaluate: Evaluate
    metric: str | None
    sign: float
    options: Mapping[str, Any]
    optimiser: Optimiser
    seed: int
    callback: Progress | None

    def merged(self, weights: FloatArray, method: Any, trees: Any) -> MergeSolution:
        """The merge with these weights; plain averaging takes the common options only."""
        own = {k: v for k, v in self.options.items() if method != "isotropic" or k in _COMMON}
        return merge(self.sources, trees, method=method, weights=weights.tolist(), **own)

    def run(self, selection: Any, method: Any, trees: Any) -> tuple[Trial, ...]:
        """Every evaluation of one search, all on the selection split."""
        trials: list[Trial] = []

        def score(weights: FloatArray, size: int | None) -> float:
            model = self.merged(weights, method, trees).model()
            data = head(selection, size)
            value = float(scores_of(self.evaluate, model, data, self.metric).mean())
            trial = Trial(tuple(float(w) for w in weights), value, size)
            trials.append(trial)
            if self.callback is not None and self.callback(trial) is True:
                raise _Stop
            return self.sign * value

        with suppress(_Stop):
            self.optimiser.run(score, len(self.sources), length_of(selection), self.seed)
        return tuple(trials)

    def best(self, trials: Sequence[Trial]) -> Trial:
        """The first of the best trials on all selection examples."""
        full = [t for t in trials if t.n_examples is None] or list(trials)
        if not full:
            raise InvalidInputError("The search tried no weights; give a space with points.")
        return full[int(np.argmax([self.sign * t.score for t in full]))]

    def reported(
        self, report: Any, solution: MergeSolution, plain: Sequence[Trial]
    ) -> dict[str, FloatArray]:
        """Scores on the report split: of the merge, of each source, of plain averages."""
        n = len(self.sources)
        weights = {f"source {i}": np.eye(n)[i] for i in range(n)}
        if plain:
            weights["isotropic (searched)"] = np.array(self.best(plain).weights)
            weights["isotropic (equal)"] = np.full(n, 1.0 / n)
        scores = {"merged": scores_of(self.evaluate, solution.model(), report, self.metric)}
        for name, w in weights.items():
            model = self.merged(w, "isotropic", None).model()
            scores[name] = scores_of(self.evaluate, model, report, self.metric)
        return scores


_COMMON = ("sites", "backend", "device", "nonfinite", "deterministic", "check_models")
