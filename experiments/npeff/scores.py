"""How well units (components, clusters, latents) track known labels, beside shuffled labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.report import auroc
from ...core.types import FloatArray, IntArray, NumpyArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracking:
    """The best unit of each of K labels, chosen on one half of the examples, judged on the other.

    Attributes
    ----------
    unit : int array (K,)
    auroc, precision : array (K,)
        AUROC and average precision on the judging half.
    shuffled : array (K,)
        The AUROC of the same procedure after the labels were shuffled between examples.
    """

    unit: IntArray
    auroc: FloatArray
    precision: FloatArray
    shuffled: FloatArray


def track(units: FloatArray, labels: NumpyArray, rng: np.random.Generator) -> Tracking:
    """For each label the unit with the largest AUROC on a random half, judged on the other half.

    Parameters
    ----------
    units : array (n, u)
        Larger means more of the unit.
    labels : bool array (n, K)
    rng : Generator
        Draws the halves and one shuffle, in which all labels of an example move together.
    """
    order = rng.permutation(len(units))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    best = _best(units[first], labels[first])
    mixed = labels[rng.permutation(len(labels))]
    chance = _best(units[first], mixed[first])
    judged = auroc(units[second], labels[second])
    columns = np.arange(labels.shape[1])
    precision = [average_precision(units[second, u], labels[second, k]) for k, u in enumerate(best)]
    return Tracking(
        unit=best,
        auroc=judged[best, columns],
        precision=np.array(precision),
        shuffled=auroc(units[second], mixed[second])[chance, columns],
    )


def _best(units: FloatArray, labels: NumpyArray) -> IntArray:
    return np.asarray(np.nan_to_num(auroc(units, labels), nan=0.5).argmax(axis=0))


def average_precision(scores: FloatArray, labels: NumpyArray) -> float:
    """Mean precision at each labelled example, examples of equal score counted together.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    truth = np.asarray(labels, dtype=np.float64)
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[ends]
    return float((np.diff(hits, prepend=0.0) * hits / (ends + 1)).sum() / truth.sum())
