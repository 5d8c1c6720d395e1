"""The report of one decomposition: what its components are about, with the evidence for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..factorization import Factorization, PerturbationReport, Stability, Trace
from ..factorization.perturbation import check_component
from ..storage import OutputFolder
from ..types import FloatArray, IntArray, NumpyArray
from .enrichment import Enrichment, NothingCommon, enrich
from .features import (
    Feature,
    answer_features,
    conjunctions,
    label_features,
    metadata_features,
    text_features,
)

LEAST_AUROC, MOST_P = 0.8, 0.01
"""When a component counts as named: held-out AUROC and corrected p of its first feature."""
PAIRED_WORDS = 120
"""Words, the commonest first, that are also paired with the model's answers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """What is known of the examples of a decomposition; all of length n.

    Attributes
    ----------
    texts : sequence of str, optional
    images : array (n, height, width) or (n, height, width, 3), optional
    labels, predictions : int array or sequence of str, optional
    probabilities : array (n, C), optional
        Of the model; predictions follow from them where they are not given.
    classes : sequence of str, optional
        Names of the classes.
    metadata : mapping of str to sequence, optional
        Anything else: a source, a length, a date.
    """

    texts: Sequence[str] | None = None
    images: NumpyArray | None = None
    labels: Any = None
    predictions: Any = None
    probabilities: FloatArray | None = None
    classes: Sequence[str] | None = None
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def answers(self) -> Any:
        """Predictions, from the probabilities if need be; None where neither is known."""
        if self.predictions is not None or self.probabilities is None:
            return self.predictions
        return np.asarray(self.probabilities).argmax(axis=1)

    def check(self, n: int) -> None:
        """Refuse what does not belong to n examples.

        Raises
        ------
        InvalidInputError
            Naming what has another length.
        """
        given: dict[str, Any] = {
            "texts": self.texts, "images": self.images, "labels": self.labels,
            "predictions": self.predictions, "probabilities": self.probabilities,
        }  # fmt: skip
        given |= {f"metadata {name!r}": values for name, values in self.metadata.items()}
        for name, values in given.items():
            if values is not None and len(values) != n:
                raise InvalidInputError(
                    f"{name} of length {len(values)} were given; the factorization has {n} "
                    "examples. Give one for each, in their order."
                )

    def features(self) -> list[Feature]:
        """All yes/no features, and each together with each answer."""
        own: list[Feature] = []
        if self.labels is not None:
            own += label_features(self.labels, self.classes)
        if self.texts is not None:
            own += text_features(self.texts)
        own += metadata_features(self.metadata)
        if self.answers is None:
            return own
        answers = answer_features(
            self.answers, self.classes, labels=self.labels, probabilities=self.probabilities
        )
        words = [f for f in own if f.kind == "word"][:PAIRED_WORDS]
        others = [f for f in own if f.kind != "word"]
        return own + answers + conjunctions([*answers, *others, *words], answers)

    def class_name(self, label: Any) -> str:
        """A class in words."""
        if self.classes is not None and isinstance(label, int | np.integer):
            return str(self.classes[int(label)])
        return str(label)


Attributions = Mapping[tuple[int, int], Sequence[tuple[str, float]]]
"""(component, example) -> (token, share of the response that is lost without it)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecompositionReport:
    """A decomposition, what its components track, and what they do.

    Attributes
    ----------
    title, subtitle, command : str
        ``command`` makes the report again.
    factorization : Factorization
    examples : Examples
    enrichment : Enrichment or None
        None where nothing is known of the examples that a component could track.
    perturbation : PerturbationReport or None
    stability : float array (r,) or None
        Mean matched |cos| of each component to those of fits of random subsets.
    traces : mapping of component to Trace
    attributions : mapping
        See :data:`Attributions`.
    n_top : int
        Examples shown of each component.
    least_auroc, most_p : float
        When a component counts as named.
    """

    title: str
    subtitle: str
    command: str
    factorization: Factorization
    examples: Examples
    enrichment: Enrichment | None
    perturbation: PerturbationReport | None = None
    stability: FloatArray | None = None
    traces: Mapping[int, Trace] = field(default_factory=dict)
    attributions: Attributions = field(default_factory=dict)
    n_top: int = 6
    least_auroc: float = LEAST_AUROC
    most_p: float = MOST_P

    @property
    def named(self) -> NumpyArray:
        """Which components track a feature beyond doubt (r,)."""
        if self.enrichment is None:
            return np.zeros(self.factorization.n_components, dtype=bool)
        return self.enrichment.named(self.least_auroc, self.most_p)

    @property
    def order(self) -> IntArray:
        """Components, the named ones first, each group by share."""
        shares = self.factorization.shares
        return np.lexsort((-shares, ~self.named))

    def name_of(self, k: int) -> str:
        """The feature of a component, or that it has none."""
        if self.enrichment is None:
            return f"component {k}"
        return self.enrichment.findings[k][0].feature if self.named[k] else "not named"

    def kl_ratio(self, k: int) -> float | None:
        """Measured KL-ratio, where it was measured."""
        at = self._moved(k)
        if self.perturbation is None or at is None:
            return None
        value = float(self.perturbation.kl_ratio[at])
        return value if np.isfinite(value) else None

    def stability_of(self, k: int) -> float | None:
        """Mean matched |cos| over subsets, where it was computed."""
        return None if self.stability is None else float(self.stability[k])

    def _moved(self, k: int) -> int | None:
        if self.perturbation is None:
            return None
        at = np.flatnonzero(self.perturbation.components == k)
        return int(at[0]) if len(at) else None

    def html(self) -> str:
        """One self-contained page."""
        from .decomposition_page import page_of

        return page_of(self)

    def latex(self) -> str:
        """Tables for a paper (booktabs)."""
        from .decomposition_exports import latex_of

        return latex_of(self)

    def markdown(self) -> str:
        """The table of components and their top examples."""
        from .decomposition_exports import markdown_of

        return markdown_of(self)

    def results(self) -> dict[str, Any]:
        """Every number, in plain values."""
        from .decomposition_exports import results_of

        return results_of(self)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write ``report.html``, ``report.tex``, ``report.md`` and ``results.json``.

        Raises
        ------
        ForeignFolderError, ResultsExistError, WriteFailedError
            See :class:`~fishertope.core.storage.OutputFolder`.
        """
        settings = {"title": self.title, "command": self.command}
        out = OutputFolder(
            folder, command="npeff report", settings=settings, overwrite=overwrite, resume=False
        )
        with out as writing:
            writing.write_text("report.html", self.html())
            writing.write_text("report.tex", self.latex())
            writing.write_text("report.md", self.markdown())
            found = self.factorization
            writing.finish(self.results(), seed=found.seed, backend=found.backend)

    def __repr__(self) -> str:
        found = self.factorization
        return (
            f"DecompositionReport(n={found.n_examples}, components={found.n_components}, "
            f"named={int(self.named.sum())})"
        )


def decomposition_report(
    factorization: Factorization,
    examples: Examples | None = None,
    *,
    title: str = "What the components are about",
    subtitle: str = "",
    command: str = "",
    features: Sequence[Feature] = (),
    perturbation: PerturbationReport | None = None,
    stability: Stability | FloatArray | Sequence[float] | None = None,
    traces: Mapping[int, Trace] | None = None,
    attributions: Attributions | None = None,
    correction: str = "holm",
    n_shuffles: int = 100,
    n_top: int = 6,
    least_auroc: float = LEAST_AUROC,
    most_p: float = MOST_P,
    seed: int = 0,
) -> DecompositionReport:
    """Compare the components with everything that is known of the examples.

    Parameters
    ----------
    factorization : Factorization
    examples : Examples, optional
        In the order of the factorization.
    features : sequence of Feature, optional
        More features, beside those of the labels, answers, texts and metadata.
    perturbation, traces, attributions
        What was computed of the components; shown where it is there.
    stability : Stability or array (r,), optional
        Of the same components; an array is the mean matched |cos| of each.
    correction : {"holm", "bh"}
        Of the p-values, over all components and the features named for them.
    n_shuffles : int
        Repetitions with examples shuffled against their features.
    n_top : int
        Examples shown of each component.
    least_auroc, most_p : float
        A component is named if its first feature reaches these on the half of the examples that
        did not choose it.
    seed : int
        Draws the halves and the shuffles.

    Raises
    ------
    InvalidInputError
        Lengths that do not fit, or components that do not exist.

    Examples
    --------
    >>> from fishertope import LowRankFishers, LowRankNPEFF, factorize
    >>> rng = np.random.default_rng(0)
    >>> kind = rng.integers(2, size=80)
    >>> rows = np.eye(2)[kind] + 0.05 * rng.normal(size=(80, 2))
    >>> fishers = LowRankFishers.from_rows(rows[:, None])
    >>> found = factorize(fishers, LowRankNPEFF(2), on_failure="return")
    >>> report = decomposition_report(found, Examples(labels=kind, classes=["left", "right"]))
    >>> sorted(report.name_of(k) for k in range(2)), "<html" in report.html()
    (['label: left', 'label: right'], True)
    """
    known = Examples() if examples is None else examples
    known.check(factorization.n_examples)
    for k in traces or {}:
        check_component(factorization, k)
    scores = None
    if stability is not None:
        given = stability.scores if isinstance(stability, Stability) else stability
        scores = np.asarray(given, dtype=np.float64)
        if scores.shape != (factorization.n_components,):
            raise InvalidInputError(
                f"stability of shape {scores.shape} was given; one number for each of the "
                f"{factorization.n_components} components is taken."
            )
    every = [*known.features(), *features]
    found = None
    if every:
        W = np.asarray(to_numpy(factorization.coefficients), dtype=np.float64)
        rng = np.random.default_rng(seed)
        # Too few examples for any comparison: the rest can still be shown.
        with suppress(NothingCommon):
            found = enrich(W, every, rng=rng, correction=correction, n_shuffles=n_shuffles)
    return DecompositionReport(
        title=title, subtitle=subtitle, command=command, factorization=factorization,
        examples=known, enrichment=found, perturbation=perturbation, stability=scores,
        traces=dict(traces or {}), attributions=dict(attributions or {}), n_top=n_top,
        least_auroc=least_auroc, most_p=most_p,
    )  # fmt: skip
