"""How components line up with labels: AUROC, named on one half of the data, measured on the other.

A component that is compared with dozens of labels always fits one of them somewhat. So the label
that names it is chosen on half of the examples and its AUROC is measured on the other half; and
the whole procedure is repeated with labels that were shuffled between examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray, IntArray, NumpyArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """What :func:`align` found.

    Attributes
    ----------
    labels : tuple of str
    auroc : array (r, L)
        AUROC of each component's coefficient against each label, on all examples.
    best : int array (r,)
        The label that names each component, chosen on the naming half.
    best_auroc : array (r,)
        Its AUROC on the other half; NaN where that half has only one kind of example.
    control : array (s, r)
        The same with shuffled labels.
    """

    labels: tuple[str, ...]
    auroc: FloatArray
    best: IntArray
    best_auroc: FloatArray
    control: FloatArray

    @property
    def threshold(self) -> float:
        """The value that the best component of a shuffle exceeds in 5 % of the shuffles."""
        if self.control.size == 0:
            return 0.5
        return float(np.quantile(np.nanmax(self.control, axis=1), 0.95))

    @property
    def aligned(self) -> NumpyArray:
        """Which components fit their label better than :attr:`threshold` (r,)."""
        return np.nan_to_num(self.best_auroc, nan=0.0) > self.threshold


def align(
    coefficients: FloatArray,
    labels: Mapping[str, NumpyArray],
    *,
    rng: np.random.Generator,
    n_shuffles: int = 200,
    min_count: int = 5,
) -> Alignment:
    """Line components up with labels.

    Parameters
    ----------
    coefficients : array (n, r)
        W, one column a component.
    labels : mapping of str to bool array (n,)
        Labels with fewer than ``min_count`` examples on either side in either half are left out.
    rng : Generator
        Draws the halves and the shuffles.
    n_shuffles : int
        All labels of an example move together, so that dependence between labels is kept.
    min_count : int

    Returns
    -------
    Alignment

    Raises
    ------
    InvalidInputError
        If sizes disagree, or no label has enough examples.

    Notes
    -----
    Cost: O(n r L) a shuffle. The label with the largest AUROC − 2 standard deviations names a
    component, so that rare labels, whose AUROC scatters widely, have no advantage.
    """
    n = len(coefficients)
    for name, mask in labels.items():
        if mask.shape != (n,):
            raise InvalidInputError(
                f"The label {name!r} has shape {mask.shape}; ({n},) is taken: one an example."
            )
    order = rng.permutation(n)
    halves = (order[: n // 2], order[n // 2 :])
    kept = {k: v for k, v in labels.items() if _enough(v, halves, min_count)}
    if not kept:
        raise InvalidInputError(
            f"None of the {len(labels)} labels has {min_count} examples on both sides in both "
            "halves of the data. Give more examples or more common labels."
        )
    truth = np.stack([np.asarray(v, dtype=np.float64) for v in kept.values()], axis=1)
    ranks = [average_ranks(coefficients[half]) for half in halves]
    best, best_auroc = _name(ranks, halves, truth)
    control = np.array(
        [_name(ranks, halves, truth[rng.permutation(n)])[1] for _ in range(n_shuffles)]
    ).reshape(n_shuffles, coefficients.shape[1])
    return Alignment(
        labels=tuple(kept),
        auroc=_auroc_from_ranks(average_ranks(coefficients), truth),
        best=best,
        best_auroc=best_auroc,
        control=control,
    )


def auroc(scores: FloatArray, labels: NumpyArray) -> FloatArray:
    """P(score of a labelled example > score of another), ties counting one half.

    Parameters
    ----------
    scores : array (n, r) or (n,)
    labels : bool array (n, L) or (n,)

    Returns
    -------
    array (r, L)
        NaN for labels that all or no examples have.

    Examples
    --------
    >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    array([[0.875]])
    """
    scores = scores[:, None] if scores.ndim == 1 else scores
    truth = np.asarray(labels, dtype=np.float64)
    return _auroc_from_ranks(average_ranks(scores), truth[:, None] if truth.ndim == 1 else truth)


def average_ranks(values: FloatArray) -> FloatArray:
    """Ranks 1..n down each column; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=0))


def _auroc_from_ranks(ranks: FloatArray, truth: FloatArray) -> FloatArray:
    positives = truth.sum(axis=0)
    pairs = positives * (len(truth) - positives)
    wins = ranks.T @ truth - positives * (positives + 1) / 2
    out = np.full(wins.shape, np.nan)
    np.divide(wins, pairs, out=out, where=pairs > 0)
    return out


def _name(
    ranks: list[FloatArray], halves: tuple[IntArray, IntArray], truth: FloatArray
) -> tuple[IntArray, FloatArray]:
    """The best label of each component on the first half, and its AUROC on the second."""
    first, second = (_auroc_from_ranks(r, truth[h]) for r, h in zip(ranks, halves, strict=True))
    positives = truth[halves[0]].sum(axis=0)
    size = len(halves[0])
    # Standard deviation of the AUROC if the label had nothing to do with the component.
    spread = np.sqrt((size + 1) / (12 * np.maximum(positives * (size - positives), 1)))
    best = np.argmax(np.where(np.isnan(first), -np.inf, first - 2.0 * spread), axis=1)
    return best, second[np.arange(len(best)), best]


def _enough(mask: NumpyArray, halves: tuple[IntArray, IntArray], least: int) -> bool:
    counts = [int(np.count_nonzero(mask[half])) for half in halves]
    return all(least <= c <= len(h) - least for c, h in zip(counts, halves, strict=True))
