"""Which features a component tracks: chosen on one half of the examples, tested on the other.

For each component the features with the largest AUROC (less two standard deviations, so that rare
ones have no advantage) are chosen on the *naming half*. On the *held-out half* each choice gets its
AUROC and the p-value of the one-sided Mann–Whitney test, corrected over all choices of all
components. The whole procedure is repeated with examples shuffled against their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidInputError
from ..types import FloatArray, IntArray, NumpyArray
from .alignment import average_ranks
from .features import Feature

CORRECTIONS = ("holm", "bh")
# A pair of features must fit this much better than one alone to be preferred.
PAIR_COST = 0.03
# Features that agree more than this with a chosen one say nothing new.
ALIKE = 0.75


class NothingCommon(InvalidInputError):
    """No feature is common enough in both halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A component and a feature.

    Attributes
    ----------
    feature, kind : str
    naming_auroc, auroc : float
        On the half that chose the feature, and on the other one.
    p, p_corrected : float
        One-sided Mann–Whitney on the held-out half; corrected over all findings.
    in_top, in_all : float
        Share of examples with the feature among the component's top ones, and among all.
    """

    feature: str
    kind: str
    naming_auroc: float
    auroc: float
    p: float
    p_corrected: float
    in_top: float
    in_all: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Enrichment:
    """What :func:`enrich` found.

    Attributes
    ----------
    findings : tuple of tuples of Finding
        For each component, the best feature first.
    features : tuple of Feature
        All that were compared.
    auroc : float64 array (r, F)
        On all examples.
    control : float64 array (s,)
        Held-out AUROC of the best component's first feature in each shuffle.
    correction : str
    n_naming, n_held_out, n_top : int
    """

    findings: tuple[tuple[Finding, ...], ...]
    features: tuple[Feature, ...]
    auroc: FloatArray
    control: FloatArray
    correction: str
    n_naming: int
    n_held_out: int
    n_top: int

    @property
    def threshold(self) -> float:
        """What the best component of a shuffle exceeds in 5 % of the shuffles."""
        return float(np.quantile(self.control, 0.95)) if len(self.control) else 0.5

    def named(self, least_auroc: float = 0.8, most_p: float = 0.01) -> NumpyArray:
        """Components whose first feature holds on the held-out half (r,)."""
        return np.array(
            [
                bool(f) and f[0].auroc >= least_auroc and f[0].p_corrected <= most_p
                for f in self.findings
            ]
        )


def enrich(
    coefficients: FloatArray,
    features: Sequence[Feature],
    *,
    rng: np.random.Generator,
    n_best: int = 4,
    n_top: int = 20,
    min_count: int = 10,
    correction: str = "holm",
    n_shuffles: int = 100,
) -> Enrichment:
    """Find the features that each component tracks.

    Parameters
    ----------
    coefficients : array (n, r)
        W.
    features : sequence of Feature
        Those with fewer than ``min_count`` examples on either side in either half are left out.
    rng : Generator
        Draws the halves and the shuffles.
    n_best : int
        Findings a component.
    n_top : int
        Examples that count as a component's top ones.
    correction : {"holm", "bh"}
        Holm's bound on any false finding, or Benjamini and Hochberg's on their share.
    n_shuffles : int

    Raises
    ------
    InvalidInputError
        Sizes that disagree or an unknown correction.
    NothingCommon
        No feature that is common enough.

    Notes
    -----
    Cost: O(n r F) a shuffle.
    """
    if correction not in CORRECTIONS:
        raise InvalidInputError(
            f"correction={correction!r} was given; accepted: {', '.join(CORRECTIONS)}."
        )
    W = np.asarray(coefficients, dtype=np.float64)
    n = len(W)
    for f in features:
        if f.mask.shape != (n,):
            raise InvalidInputError(
                f"The feature {f.name!r} has shape {f.mask.shape}; ({n},) is taken."
            )
    order = rng.permutation(n)
    halves = (np.sort(order[: n // 2]), np.sort(order[n // 2 :]))
    kept = [f for f in features if _enough(f.mask, halves, min_count)]
    if not kept:
        raise NothingCommon(
            f"None of the {len(features)} features has {min_count} examples on both sides in both "
            "halves of the data. Give more examples or more common features."
        )
    truth = np.stack([f.mask for f in kept], axis=1).astype(np.float64)
    cost = np.array([PAIR_COST if f.kind == "both" else 0.0 for f in kept])
    ranks = [average_ranks(W[half]) for half in halves]
    naming = auroc_of_ranks(ranks[0], truth[halves[0]])
    chosen = _choose(naming, truth[halves[0]], cost, n_best)
    held_out = auroc_of_ranks(ranks[1], truth[halves[1]])
    p = np.array(
        [
            [_mann_whitney(W[halves[1], k], kept[j].mask[halves[1]]) for j in chosen[k]]
            for k in range(W.shape[1])
        ]
    ).reshape(W.shape[1], -1)
    corrected = correct(p.ravel(), correction).reshape(p.shape)
    top = np.argsort(-W, axis=0, kind="stable")[:n_top].T
    findings = tuple(
        tuple(
            Finding(
                feature=kept[j].name, kind=kept[j].kind, naming_auroc=float(naming[k, j]),
                auroc=float(held_out[k, j]), p=float(p[k, place]),
                p_corrected=float(corrected[k, place]), in_top=float(kept[j].mask[top[k]].mean()),
                in_all=float(kept[j].mask.mean()),
            )
            for place, j in enumerate(chosen[k])
        )
        for k in range(W.shape[1])
    )  # fmt: skip
    control = [
        _shuffled_best(ranks, halves, truth[rng.permutation(n)], cost) for _ in range(n_shuffles)
    ]
    return Enrichment(
        findings=findings, features=tuple(kept),
        auroc=auroc_of_ranks(average_ranks(W), truth), control=np.array(control),
        correction=correction, n_naming=len(halves[0]), n_held_out=len(halves[1]),
        n_top=min(n_top, n),
    )  # fmt: skip


def correct(p: FloatArray, correction: str) -> FloatArray:
    """P-values corrected for their number.

    Examples
    --------
    >>> correct(np.array([0.01, 0.04, 0.03]), "holm").round(6).tolist()
    [0.03, 0.06, 0.06]
    >>> correct(np.array([0.01, 0.04, 0.03]), "bh").round(6).tolist()
    [0.03, 0.04, 0.04]
    """
    m = len(p)
    order = np.argsort(p, kind="stable")
    out = np.empty(m)
    if correction == "holm":
        out[order] = np.maximum.accumulate(p[order] * (m - np.arange(m)))
    else:
        scaled = p[order] * m / np.arange(1, m + 1)
        out[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(out, 1.0)


def auroc_of_ranks(ranks: FloatArray, truth: FloatArray) -> FloatArray:
    """AUROC (r, F) of ranks (n, r) against features (n, F); ½ where all or none have one."""
    positives = truth.sum(axis=0)
    pairs = positives * (len(truth) - positives)
    wins = ranks.T @ truth - positives * (positives + 1) / 2
    out = np.full(wins.shape, 0.5)
    np.divide(wins, pairs, out=out, where=pairs > 0)
    return out


def _scores(naming: FloatArray, truth: FloatArray, cost: FloatArray) -> FloatArray:
    """AUROC less two standard deviations that it would have by chance, less what pairs cost."""
    n, positives = len(truth), truth.sum(axis=0)
    spread = np.sqrt((n + 1) / (12 * np.maximum(positives * (n - positives), 1)))
    return np.asarray(naming - 2.0 * spread - cost)


def _choose(
    naming: FloatArray, truth: FloatArray, cost: FloatArray, n_best: int
) -> list[list[int]]:
    """For each component the best features, none of them nearly the same as a better one."""
    centred = truth - truth.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
    chosen = []
    width = min(n_best, truth.shape[1])
    for order in np.argsort(-_scores(naming, truth, cost), axis=1, kind="stable"):
        own: list[int] = []
        for j in order:
            if len(own) == width:
                break
            if all(abs(float(centred[:, j] @ centred[:, i])) <= ALIKE for i in own):
                own.append(int(j))
        own += [int(j) for j in order if j not in own][: width - len(own)]
        chosen.append(own)
    return chosen


def _shuffled_best(
    ranks: Sequence[FloatArray],
    halves: tuple[IntArray, IntArray],
    truth: FloatArray,
    cost: FloatArray,
) -> float:
    first = auroc_of_ranks(ranks[0], truth[halves[0]])
    best = _scores(first, truth[halves[0]], cost).argmax(axis=1)
    second = auroc_of_ranks(ranks[1], truth[halves[1]])
    return float(second[np.arange(len(best)), best].max())


def _mann_whitney(values: FloatArray, mask: NumpyArray) -> float:
    from scipy.stats import mannwhitneyu

    if not mask.any() or mask.all():
        return 1.0
    test = mannwhitneyu(values[mask], values[~mask], alternative="greater", method="asymptotic")
    return float(test.pvalue) if np.isfinite(test.pvalue) else 1.0


def _enough(mask: NumpyArray, halves: tuple[IntArray, IntArray], least: int) -> bool:
    counts = [int(np.count_nonzero(mask[half])) for half in halves]
    return all(least <= c <= len(h) - least for c, h in zip(counts, halves, strict=True))
