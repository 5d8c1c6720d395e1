"""What a search of weights found, and what it is worth on data that it did not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...display import Shown
from ...types import FloatArray
from ..solution import MergeSolution


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation.

    Attributes
    ----------
    weights : tuple of float
    score : float
        Mean over the selection examples used.
    n_examples : int or None
        None: all of them.
    """

    weights: tuple[float, ...]
    score: float
    n_examples: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """The chosen merge minus a baseline on the report split, with a bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightSearch(Shown):
    """The result of :func:`search_weights`.

    Attributes
    ----------
    weights : float64 array (n,)
        The best on the selection split among those tried on all of it.
    solution : MergeSolution
        The merge with these weights.
    trials : tuple of Trial
        In the order in which they were tried.
    isotropic_trials : tuple of Trial
        Of the isotropic baseline's own search.
    selection_score : float
        Of the chosen weights on the selection split: biased upwards, it was maximised.
    report : mapping of str to float
        Scores on the report split: "merged", "source 0", …, "isotropic (searched)", "isotropic
        (equal)". Empty without a report split.
    differences : mapping of str to Difference
        "merged" minus each of the others, paired over the report examples.
    level : float
        Of the intervals.
    leak : bool
        Whether the report split was not separate from the selection split, by request.
    facts : mapping
        Method, optimiser, metric, seed, numbers of evaluations.
    """

    weights: FloatArray
    solution: MergeSolution
    trials: tuple[Trial, ...]
    isotropic_trials: tuple[Trial, ...]
    selection_score: float
    report: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    level: float = 0.95
    leak: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Weights (t, n) and scores (t,) of the trials on all selection examples."""
        full = [t for t in self.trials if t.n_examples is None]
        return np.array([t.weights for t in full]), np.array([t.score for t in full])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON (NaN as None)."""

        def plain(x: float) -> float | None:
            return x if np.isfinite(x) else None

        return {
            "weights": self.weights.tolist(),
            "selection_score": self.selection_score,
            "report": dict(self.report),
            "differences": {
                k: {"mean": d.mean, "low": plain(d.low), "high": plain(d.high)}
                for k, d in self.differences.items()
            },
            "level": self.level,
            "leak": self.leak,
            "trials": [
                {"weights": list(t.weights), "score": t.score, "n_examples": t.n_examples}
                for t in self.trials
            ],
            "facts": dict(self.facts),
        }

    def __repr__(self) -> str:
        weights = ", ".join(f"{w:.3g}" for w in self.weights)
        leak = ", LEAK: reported on the selection split" if self.leak else ""
        report = f", report={self.report['merged']:.4g}" if self.report else ""
        return (
            f"WeightSearch({self.solution.method}, weights=({weights}), "
            f"selection={self.selection_score:.4g}{report}, trials={len(self.trials)}{leak})"
        )
