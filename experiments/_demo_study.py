"""What the demo finds out: numbers only; the page and the terminal show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..core.factorization import Factorization
from ..core.report import Alignment, align, auroc
from ..core.types import FloatArray, IntArray, NumpyArray

N_TOP = 20
"""How many examples speak for a component."""

N_SHUFFLES = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What the network says about the held-out images.

    Attributes
    ----------
    truth : int array (n,)
    probabilities : array (n, 10)
    """

    truth: IntArray
    probabilities: FloatArray

    @property
    def predicted(self) -> IntArray:
        """The likeliest digit (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def pairs(self) -> IntArray:
        """The two likeliest digits, the smaller one first (n, 2)."""
        return np.asarray(np.sort(np.argsort(-self.probabilities, axis=1)[:, :2], axis=1))

    @property
    def wrong(self) -> NumpyArray:
        """Where the likeliest digit is not the true one (n,)."""
        return np.asarray(self.predicted != self.truth)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return 1.0 - float(self.wrong.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What is known of one component.

    Attributes
    ----------
    number : int
        From 1, in the order of the shares.
    share : float
        Of the explained Fisher mass.
    question, kind : str
        The label that fits best, in words ("3 or 9?"), and its kind ("pair", "digit", "answer",
        "mistakes").
    pair : (int, int) or None
        The two digits, where the label is a pair and fits beyond chance.
    auroc : float
        How well the component finds that label's images, on images not used to choose the label.
    aligned : bool
        Whether that is beyond what shuffled labels reach.
    n_strongest, n_wrong : int
        Images in which it is the strongest of all components, and how many of these are misread.
    wrong_by_chance : float
        Probability that as many or more would be, for the best of all components, if mistakes
        had nothing to do with components (hypergeometric, times the number of components).
    wrong_auroc : float
        How well it finds the wrong answers, on all images.
    """

    number: int
    share: float
    question: str
    kind: str
    pair: tuple[int, int] | None
    auroc: float
    aligned: bool
    n_strongest: int
    n_wrong: int
    wrong_by_chance: float
    wrong_auroc: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meaning:
    """How the components line up with what is known of the images.

    Attributes
    ----------
    components : tuple of Component
    alignment : Alignment
    digits : array (r, 10)
        AUROC of each component against each predicted digit.
    n_confusions : int
        Misread images whose strongest component is the choice between what the digit is and what
        it was read as.
    confusions_by_chance : float
        How many there would be if the misread images exchanged their components at random.
    wrong_threshold : float
        AUROC against wrong answers that the best component exceeds in 5 % of the shuffles.
    """

    components: tuple[Component, ...]
    alignment: Alignment
    digits: FloatArray
    n_confusions: int
    confusions_by_chance: float
    wrong_threshold: float

    @property
    def n_aligned(self) -> int:
        """Components that fit a label beyond chance."""
        return sum(c.aligned for c in self.components)

    @property
    def n_pairs(self) -> int:
        """Those among them whose label is a pair of digits."""
        return sum(c.aligned and c.kind == "pair" for c in self.components)


def interpret(factorization: Factorization, answers: Answers, rng: np.random.Generator) -> Meaning:
    """Line the components up with digits, answers, pairs of digits and mistakes."""
    coefficients = np.asarray(factorization.coefficients, dtype=np.float64)
    labels, words = _labels(answers)
    alignment = align(coefficients, labels, rng=rng, n_shuffles=N_SHUFFLES)
    wrong = answers.wrong
    strongest = coefficients.argmax(axis=1)
    wrong_auroc = auroc(coefficients, wrong)[:, 0]
    components = []
    for k, share in enumerate(factorization.shares):
        question, kind = words[alignment.labels[alignment.best[k]]]
        own = strongest == k
        n_own, n_wrong = int(own.sum()), int((own & wrong).sum())
        components.append(
            Component(
                number=k + 1,
                share=float(share),
                question=question,
                kind=kind,
                pair=_pair(question) if kind == "pair" and alignment.aligned[k] else None,
                auroc=float(alignment.best_auroc[k]),
                aligned=bool(alignment.aligned[k]),
                n_strongest=n_own,
                n_wrong=n_wrong,
                wrong_by_chance=_chance_of_as_many(wrong, n_own, n_wrong, coefficients.shape[1]),
                wrong_auroc=float(wrong_auroc[k]),
            )
        )
    said = answers.predicted[:, None] == np.arange(10)
    matched, by_chance = _confusions(components, strongest, answers, rng)
    return Meaning(
        components=tuple(components),
        alignment=alignment,
        digits=auroc(coefficients, said),
        n_confusions=matched,
        confusions_by_chance=by_chance,
        wrong_threshold=_largest_by_chance(coefficients, wrong, rng),
    )


def _labels(answers: Answers) -> tuple[dict[str, NumpyArray], Mapping[str, tuple[str, str]]]:
    """Labels by name, and each name's words for people."""
    labels: dict[str, NumpyArray] = {}
    words: dict[str, tuple[str, str]] = {}
    for digit in range(10):
        labels[f"digit {digit}"] = answers.truth == digit
        words[f"digit {digit}"] = (f"images of {digit}", "digit")
        labels[f"answer {digit}"] = answers.predicted == digit
        words[f"answer {digit}"] = (f"read as {digit}", "answer")
    for low, high in combinations(range(10), 2):
        labels[f"pair {low}-{high}"] = (answers.pairs == (low, high)).all(axis=1)
        words[f"pair {low}-{high}"] = (f"{low} or {high}?", "pair")
    labels["mistakes"] = answers.wrong
    words["mistakes"] = ("mistakes", "mistakes")
    return labels, words


def _pair(question: str) -> tuple[int, int]:
    """The digits of "3 or 9?"."""
    return int(question[0]), int(question[5])


def _confusions(
    components: Sequence[Component],
    strongest: IntArray,
    answers: Answers,
    rng: np.random.Generator,
) -> tuple[int, float]:
    """Misread images whose strongest component is their own confusion; and the same by chance."""
    wrong = answers.wrong
    pairs = [components[k].pair for k in strongest[wrong]]
    mistaken = list(
        zip(answers.truth[wrong].tolist(), answers.predicted[wrong].tolist(), strict=True)
    )

    def count(dealt: Sequence[tuple[int, int] | None]) -> int:
        return sum(p == (min(m), max(m)) for p, m in zip(dealt, mistaken, strict=True))

    orders = (rng.permutation(len(pairs)) for _ in range(N_SHUFFLES))
    by_chance = float(np.mean([count([pairs[i] for i in order]) for order in orders]))
    return count(pairs), by_chance


def _chance_of_as_many(wrong: NumpyArray, n_own: int, n_wrong: int, n_components: int) -> float:
    """P(some component has ``n_wrong`` or more of ``n_own`` wrong), by Bonferroni."""
    from scipy.stats import hypergeom

    tail = float(hypergeom.sf(n_wrong - 1, len(wrong), int(wrong.sum()), n_own))
    return min(1.0, n_components * tail)


def _largest_by_chance(
    coefficients: FloatArray, mask: NumpyArray, rng: np.random.Generator
) -> float:
    """95 % quantile, over shuffles, of the best component's AUROC."""
    if not 0 < int(mask.sum()) < len(mask):
        return float("nan")
    shuffled = np.stack([rng.permutation(mask) for _ in range(N_SHUFFLES)], axis=1)
    return float(np.quantile(auroc(coefficients, shuffled).max(axis=0), 0.95))
