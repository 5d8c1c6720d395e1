"""The NPEFF of a text-to-text model as a page: one T5, four kinds of texts, two label strings.

``python -m fishertope.experiments.bridges.npeff_report --out text-npeff`` fine-tunes the nano T5 of
``bridges.models`` on the sentiment of films, tweets, editorials and shop reviews at once, takes the
exact Fisher over the label strings of texts that it never saw, factorizes them, and writes the
page: components with their top texts, what each is about, and what happens when the model is moved
along it. Three minutes of one CPU core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...core.backend import thread_limit
from ...core.errors import FishertopeError, InvalidInputError
from ...core.factorization import LowRankNPEFF, factorize, matched_cosines
from ...core.fisher import RandomProjection, per_example_fishers
from ...core.model import engine_for
from ...core.report import DecompositionReport
from .._progress import Progress
from ..npeff.text_report import Effort, TextModel as ShownModel, text_report
from ..text2text.folders import TextModel
from ..text2text.vocabulary import SentencePieceVocabulary
from .fishers import InputBatches, ask
from .models import DOMAINS, LABELS, base_model, judged, opinions, tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the page.

    Attributes
    ----------
    components : int
        r.
    base, steps : int
        Updates of pre-training, and of fine-tuning on all four domains.
    texts : int
        Explained texts of each domain.
    dim : int
        Of the projection of the Fishers' rows.
    subsets : int
        Fits of random subsets, for the stability.
    seed : int
    """

    components: int = 12
    base: int = 1200
    steps: int = 800
    texts: int = 150
    dim: int = 2048
    subsets: int = 2
    seed: int = 0


QUICK = Settings(components=4, base=20, steps=4, texts=12, dim=64, subsets=1)
"""Small sizes: shows that it works, no evidence."""


class Pieces:
    """The tokenizer that token pictures ask: SentencePiece's pieces with their places.

    Parameters
    ----------
    text_model
        With a SentencePiece vocabulary.
    prefix
        What stands before every text in the model's input; it is not shown.
    """

    is_fast = True

    def __init__(self, text_model: TextModel, prefix: str) -> None:
        vocabulary = text_model.vocabulary
        if not isinstance(vocabulary, SentencePieceVocabulary):
            raise InvalidInputError(
                f"A {type(vocabulary).__name__} was given; pieces are shown of SentencePiece's."
            )
        self._processor: Any = vocabulary._processor
        self._prefix = prefix

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Pieces by their ids."""
        last = int(self._processor.GetPieceSize())
        return [self._processor.IdToPiece(int(i)) if i < last else f"<{i}>" for i in ids]

    def __call__(self, text: str, **options: Any) -> _Placed:
        """Places of the pieces of prefix and text, counted in the text."""
        whole = self._prefix + text
        return _Placed(self._processor.EncodeAsPieces(whole), whole, len(self._prefix))


class _Placed(dict[str, Any]):
    """What a fast tokenizer returns: offsets, and the number of the word of each piece."""

    def __init__(self, pieces: Sequence[str], text: str, skip: int) -> None:
        self._words: list[int | None] = []
        places, at, word = [], 0, 0
        for piece in pieces:
            body = piece.replace("▁", "")
            word += piece.startswith("▁")
            # Normalisation may have changed a few characters: look a little further.
            found = text.find(body, at, at + len(body) + 4)
            start = at if found < 0 else found
            at = min(start + len(body), len(text))
            self._words.append(word if at > skip and body else None)
            places.append((max(start - skip, 0), max(at - skip, 0)))
        super().__init__(offset_mapping=places)

    def word_ids(self) -> list[int | None]:
        """None for the prefix."""
        return self._words

    def sequence_ids(self) -> list[int | None]:
        """0 for the text."""
        return [None if w is None else 0 for w in self._words]


def npeff_report(settings: Settings, *, progress: Progress | None = None) -> DecompositionReport:
    """Fine-tune, take the Fishers, factorize, and look at what was found.

    Raises
    ------
    DataMissingError
        Texts have not been fetched; says how.
    PackageMissingError
        Without sentencepiece.
    """
    shown = progress or Progress(None)
    tasks = [opinions(d) for d in DOMAINS]
    with shown.step("Pre-train (kept) and fine-tune"):
        text_model = tuned(
            base_model(settings.base), tasks, steps=settings.steps, seed=settings.seed
        )
    examples, domains = [], []
    for domain, task in zip(DOMAINS, tasks, strict=True):
        rng = np.random.default_rng([settings.seed, *domain.encode()])
        unseen = task.examples("test")
        chosen = [unseen[i] for i in np.sort(rng.permutation(len(unseen))[: settings.texts])]
        examples += chosen
        domains += [domain] * len(chosen)
    question = ask(text_model, examples, labels=LABELS)
    with shown.step("Fishers", len(examples)) as advance:
        fishers = per_example_fishers(
            question.model, question.data, reduce=RandomProjection(settings.dim),
            seed=settings.seed, callback=lambda info: advance(info.step, len(examples)),
            **question.options,
        )  # fmt: skip
    method = LowRankNPEFF(settings.components, tol=1e-3)
    with shown.solver("Factorize") as callback:
        found = factorize(
            fishers, method, seed=settings.seed, callback=callback, on_failure="return"
        )
    stability = _stability(fishers, found, method, settings, shown)
    with shown.step("Lift", len(examples)) as advance:
        lifted = found.lift(
            question.model, question.data, fitted=fishers, **question.options,
            callback=lambda info: advance(info.step, len(examples)),
        )  # fmt: skip
    accuracy = judged(text_model, examples)["accuracy"]
    prefix = "sst2 sentence: "
    batches = InputBatches(text_model, tuple(examples), 16)
    own = ShownModel(
        engine=engine_for(question.model, output=question.options["output"]),
        tokenizer=Pieces(text_model, prefix),
        texts=[(str(e["inputs"]).removeprefix(prefix),) for e in examples],
        encode=lambda numbers: batches.encoded([examples[i] for i in numbers]),
        max_length=text_model.lengths.inputs,
    )
    return text_report(
        own, lifted, labels=np.array([LABELS.index(str(e["targets"])) for e in examples]),
        classes=LABELS, metadata={"domain": domains}, progress=shown, seed=settings.seed,
        stability=stability, effort=Effort(n_traces=8, moved_top=16, moved_baseline=32, n_random=1),
        title="How a small T5 writes “negative” or “positive”",
        subtitle=(
            f"NPEFF of a text-to-text model (nano: 2 + 2 layers of 64), fine-tuned on {len(tasks)} "
            f"kinds of texts; {len(examples):,} texts that it never saw, {accuracy:.0%} of them "
            "judged rightly by ranking the two label strings"
        ),
        command="python -m fishertope.experiments.bridges.npeff_report",
    )  # fmt: skip


def _stability(
    fishers: Any, found: Any, method: LowRankNPEFF, settings: Settings, shown: Progress
) -> Any:
    """How well each component comes back on random subsets (r,)."""
    scores = []
    with shown.step("Factorize subsets", settings.subsets) as advance:
        for number in range(settings.subsets):
            rng = np.random.default_rng([settings.seed, number])
            part = np.sort(rng.permutation(len(fishers))[: round(0.7 * len(fishers))])
            again = factorize(
                fishers.select(part), method, seed=settings.seed + number + 1, on_failure="return"
            )
            scores.append(matched_cosines(found.components, again.components)[0])
            advance(number + 1, settings.subsets)
    return np.mean(scores, axis=0)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path(
        "text-npeff"
    ),
    components: Annotated[int, typer.Option("--components", "-r", min=1)] = Settings().components,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, no evidence.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Fine-tune a nano T5 on four kinds of opinions and report what its components are about."""
    from rich.console import Console

    from ...core.report.decomposition_exports import component_table

    console: Console = Console(file=sys.stderr)
    settings = QUICK if quick else Settings(components=components, seed=seed)
    try:
        with thread_limit(threads), Progress(console) as progress:
            report = npeff_report(settings, progress=progress)
        report.save(out, overwrite=overwrite)
    except FishertopeError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console(file=sys.stdout).print(component_table(report, brief=True))
    typer.echo(f"Open {out / 'report.html'} in a browser.")


if __name__ == "__main__":
    app(prog_name="python -m fishertope.experiments.bridges.npeff_report")
