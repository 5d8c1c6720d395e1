"""The demo: how a small network reads handwritten digits, found without using a label.

Trains a classifier on scikit-learn's digits, computes the exact Fisher of every held-out image,
factorizes these, and asks what the components stand for and what they do to the network.
Source of the method: Matena & Raffel 2023, arXiv:2310.04649.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import BackendUnavailable, InvalidInputError
from ..core.factorization import Factorization, LowRankNPEFF, factorize
from ..core.fisher import LowRankFishers, per_example_fishers
from ..core.report import Column, Table, framed, tag
from ..core.storage import OutputFolder
from ..core.types import Device
from ._demo_effects import Effects, measure_effects
from ._demo_study import N_TOP, Answers, Meaning, interpret
from ._digits import Digits, load_digits, train_network
from ._progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What decides the demo's results.

    Attributes
    ----------
    backend : str
        For the Fishers and the factorization.
    device : optional
        For torch: "cpu", "cuda".
    seed : int
        Decides the split, the training, the starts and all controls.
    n_components : int
        r.
    n_train, n_held_out : int
        Images to learn from, and images to explain.
    hidden, passes : int
        Hidden units of the network, and passes over its training images.
    """

    backend: str = "auto"
    device: Device = None
    seed: int = 0
    n_components: int = 20
    n_train: int = 500
    n_held_out: int = 900
    hidden: int = 32
    passes: int = 300


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DemoFindings:
    """Everything that the demo found; the page and the terminal show parts of it."""

    settings: DemoSettings
    digits: Digits
    answers: Answers
    fishers: LowRankFishers
    factorization: Factorization
    meaning: Meaning
    effects: Effects
    seconds: Mapping[str, float]

    @property
    def results(self) -> dict[str, Any]:
        """The numbers, as ``results.json`` has them."""
        f, meaning, effects = self.factorization, self.meaning, self.effects
        components: list[dict[str, Any]] = []
        for k, c in enumerate(meaning.components):
            components.append(
                asdict(c)
                | {
                    "kl_top": effects.top[:, k],
                    "kl_others": effects.others[:, k],
                    "kl_random_direction": effects.random[:, k],
                    "kl_ratio": effects.ratios[k],
                    "kl_ratio_of_gradient_centroid": effects.centroid_ratios[k],
                    "changed_answers": [asdict(m) for m in effects.moves[k]],
                    "top_examples": f.top_examples(10)[k],
                }
            )
        return {
            "network": {
                "sizes": [64, self.settings.hidden, 10],
                "parameters": f.components.shape[1],
                "held_out_accuracy": self.answers.accuracy,
                "wrong": int(self.answers.wrong.sum()),
            },
            "factorization": {
                "status": str(f.status),
                "relative_loss": f.relative_loss,
                "explained": 1.0 - f.relative_loss,
                "residual": f.residual,
                "kkt": f.kkt,
                "products": f.products,
                "backend": f.backend,
            },
            "confusions": {
                "misread": int(self.answers.wrong.sum()),
                "in_their_own_component": meaning.n_confusions,
                "by_chance": meaning.confusions_by_chance,
            },
            "aligned_components": meaning.n_aligned,
            "pair_components": meaning.n_pairs,
            "auroc_of_shuffles": meaning.alignment.threshold,
            "wrong_auroc_of_shuffles": meaning.wrong_threshold,
            "perturbation_sizes": effects.sizes,
            "median_kl_ratio": float(np.median(effects.ratios)),
            "median_kl_ratio_to_random_directions": float(np.median(effects.random_ratios)),
            "median_kl_ratio_of_gradient_centroids": float(np.median(effects.centroid_ratios)),
            "prediction_error_at_smallest_size": effects.prediction_error,
            "components": components,
            "seconds": dict(self.seconds),
        }

    @property
    def headline(self) -> str:
        """What was found, in two sentences."""
        kinds = [c.kind for c in self.meaning.components if c.aligned]
        pairs = [c for c in self.meaning.components if c.pair is not None]
        found = []
        if pairs:
            example = f"a choice between two digits, such as “{pairs[0].question}”"
            found.append(f"{len(pairs)} {_be(len(pairs))} {example}")
        if single := kinds.count("digit") + kinds.count("answer"):
            found.append(f"{single} {_be(single)} about a single digit")
        if mistakes := kinds.count("mistakes"):
            found.append(f"{mistakes} {_be(mistakes)} about the mistakes")
        r = self.settings.n_components
        named = ", and ".join(found) or "none match anything nameable"
        plural = "s" if r > 1 else ""
        ratio = float(np.median(self.effects.ratios))
        return (
            f"Of {r} component{plural} found in this digit reader without a label, {named}. Moving "
            "the network along a component changes the answers to its own images "
            f"{ratio:.0f} times as much as to others{self._example()}."
        )

    def _example(self) -> str:
        """The move that changes the most answers in one way, in words."""
        sides = [(m, k) for k, pair in enumerate(self.effects.moves) for m in pair]
        move, k = max(sides, key=lambda side: side[0].largest)
        if not move.changed:
            return ""
        before, after, count = move.changed[0]
        own = min(N_TOP, len(self.answers.truth))
        return f": along no. {k + 1}, {count} of {own} images go from {before} to {after}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DemoSummary:
    """What the command line shows of a finished demo.

    Attributes
    ----------
    findings : DemoFindings
    folder : Path
        Where the results are.
    """

    findings: DemoFindings
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """The numbers, as ``results.json`` has them."""
        return self.findings.results

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        f = self.findings
        return (
            f"DemoSummary({f.meaning.n_aligned} of {f.settings.n_components} components named, "
            f"report={os.fspath(self.report)!r})"
        )

    def _repr_html_(self) -> str:
        from ._demo_page import first_cards

        lead = tag("p", self.findings.headline, class_="lead")
        return framed(lead, first_cards(self.findings), component_table(self.findings).html())

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        headline = Padding(Text(self.findings.headline), (1, 1, 0, 1))
        return Group(headline, component_table(self.findings).rich())


def component_table(findings: DemoFindings) -> Table:
    """The components, the largest share first."""
    meaning, effects = findings.meaning, findings.effects
    rows = []
    for k, c in enumerate(meaning.components):
        name = c.question if c.aligned else f"({c.question})"
        ratio, random = effects.ratios[k], effects.random_ratios[k]
        mistakes = f"{c.n_wrong} of {c.n_strongest}"
        rows.append([c.number, c.share, name, c.auroc, mistakes, ratio, random])
    return Table(
        columns=[
            Column(name="#"),
            Column(name="share", format=".1%", help="of the explained Fisher mass"),
            Column(
                name="what it is about",
                left=True,
                help="the label that fits best, chosen on one half of the images; in brackets "
                "where shuffled labels fit as well",
            ),
            Column(
                name="AUROC",
                format=".3f",
                help="how surely the component is stronger in an image with that label than in "
                "one without, on the other half; 0.5 is chance, and "
                f"{meaning.alignment.threshold:.2f} is what the best of all components reaches "
                "with shuffled labels in one shuffle of twenty",
            ),
            Column(
                name="mistakes",
                help="how many of the images in which no other component is stronger are misread "
                f"(of all images: {1 - findings.answers.accuracy:.1%})",
            ),
            Column(
                name="KL-ratio",
                format=".1f",
                help="effect on its 20 strongest images, over that on random other images, when "
                "the network is moved along it by 2 % of its size",
            ),
            Column(
                name="× random",
                format=",.0f",
                help="that effect, over the one of moving as far in a random direction",
            ),
        ],
        rows=rows,
    )


def find_out(settings: DemoSettings, *, console: Console | None = None) -> DemoFindings:
    """Do the demo's computing, without writing anything.

    Raises
    ------
    BackendUnavailable
        If scikit-learn, or a package of the chosen backend, is missing.
    InvalidInputError
        For settings out of range.
    """
    method = LowRankNPEFF(settings.n_components)
    # One generator a purpose: changing one part of the demo leaves the draws of the others.
    split, controls = np.random.default_rng(settings.seed).spawn(2)
    with Progress(console) as progress:
        with progress.step("Load scikit-learn") as _:
            digits = _load(settings, split)
        with progress.step("Train the network", settings.passes) as advance:
            network = train_network(
                digits,
                hidden=settings.hidden,
                passes=settings.passes,
                seed=settings.seed,
                advance=advance,
            )
        answers = Answers(
            truth=digits.held_out_labels,
            probabilities=network.predict_proba(digits.held_out_inputs),
        )
        with progress.step("Exact per-example Fishers", settings.n_held_out) as advance:
            fishers = per_example_fishers(
                network,
                digits.held_out_inputs,
                backend=settings.backend,
                device=settings.device,
                callback=lambda info: advance(info.step, info.max_steps),
            )
        with progress.solver("Factorize them") as callback:
            factorization = factorize(
                fishers,
                method,
                seed=settings.seed,
                backend=settings.backend,
                device=settings.device,
                callback=callback,
            )
        with progress.step("Line up with labels and shuffles"):
            meaning = interpret(factorization, answers, controls)
        with progress.step("Move the network") as advance:
            effects = measure_effects(
                network, digits.held_out_inputs, factorization, settings.seed, advance
            )
    return DemoFindings(
        settings=settings,
        digits=digits,
        answers=answers,
        fishers=fishers,
        factorization=factorization,
        meaning=meaning,
        effects=effects,
        seconds=progress.seconds,
    )


def run_demo(
    settings: DemoSettings,
    *,
    out: str | os.PathLike[str] = "demo-results",
    console: Console | None = None,
) -> DemoSummary:
    """Run the demo and write its folder: ``report.html``, ``results.json`` and the arrays.

    Parameters
    ----------
    settings : DemoSettings
    out : path
        An earlier demo there is replaced when this one is complete; anything else is left alone.
    console : rich.console.Console, optional
        Where progress is shown; none without it.

    Raises
    ------
    ForeignFolderError
        If ``out`` holds something that fishertope did not write.
    """
    from ._demo_page import demo_page

    folder = OutputFolder(
        out, command="demo", settings=asdict(settings), overwrite="same command", resume=False
    )
    with folder as writing:
        findings = find_out(settings, console=console)
        findings.factorization.save(writing.file("factorization.safetensors"))
        writing.save_arrays(
            "heldout.safetensors",
            {
                "images": findings.digits.held_out_inputs,
                "labels": findings.digits.held_out_labels,
                "probabilities": findings.answers.probabilities,
            },
            {"pixels": "8 x 8, row by row, 0 paper, 1 ink"},
            kind="demo images",
        )
        writing.write_text("report.html", demo_page(findings))
        writing.finish(findings.results, seed=settings.seed, backend=findings.factorization.backend)
    return DemoSummary(findings=findings, folder=Path(out))


def _be(count: int) -> str:
    return "is" if count == 1 else "are each"


def _load(settings: DemoSettings, rng: np.random.Generator) -> Digits:
    if settings.n_components > settings.n_held_out:
        raise InvalidInputError(
            f"{settings.n_components} components were asked for; at most as many as there are "
            f"held-out images ({settings.n_held_out}) are accepted."
        )
    try:
        return load_digits(settings.n_train, settings.n_held_out, rng)
    except ImportError as error:
        raise BackendUnavailable(
            "The demo needs scikit-learn, which is not installed. Install it with: "
            "pip install 'fishertope[sklearn]'"
        ) from error
