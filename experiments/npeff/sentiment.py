"""The report of MiniLM on real sentiment texts: what a fine-tuned encoder's components are about.

``python -m fishertope.experiments.npeff.sentiment --out sentiment-report`` fine-tunes MiniLM on
opinions from five sources, computes the exact Fisher of every held-out text, factorizes them, and
writes the page. Classifier, Fishers, fit and lift are kept and not computed again, so that a run
that was stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ...core.backend import thread_limit
from ...core.errors import FishertopeError, InvalidInputError
from ...core.factorization import Factorization, LowRankNPEFF, factorize, matched_cosines
from ...core.fisher import FactoredProjection, FisherStore, per_example_fishers
from ...core.model import engine_for
from ...core.report import DecompositionReport
from ...core.storage import OutputFolder, read_json, write_json
from ...core.types import FloatArray
from .._progress import Progress
from ..data import TextSet, TextSplit, load_sentiment, load_vader, minilm_folder
from ..data._made import cached
from ..finetune import encode
from ..finetune.bases import need_transformers, quiet, save_checkpoint
from ..finetune.training import Recipe, evaluate, fresh_classifier, train
from .text_report import Effort, TextModel, text_report

if TYPE_CHECKING:
    from rich.console import Console

MAX_LENGTH = 48
SOURCES: Mapping[str, Callable[[], TextSplit]] = {
    "shopping": lambda: load_sentiment("amazon"),
    "films": lambda: load_sentiment("imdb"),
    "restaurants": lambda: load_sentiment("yelp"),
    "tweets": lambda: load_vader("tweets"),
    "editorials": lambda: load_vader("nyt"),
}
"""Where the texts come from: name to loader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the report.

    Attributes
    ----------
    components : int
        r.
    train, held_out : int
        Texts of each source to learn from and to explain, at most.
    steps : int
        Updates of the fine-tuning, 16 texts each.
    params : tuple of str
        Parameters of which the Fishers are taken.
    dim : int
        Of the projection of their rows.
    subsets : int
        Fits of random subsets, for the stability.
    seed : int
    """

    components: int = 16
    train: int = 500
    held_out: int = 200
    steps: int = 240
    params: tuple[str, ...] = (
        "bert.encoder.layer.3.*", "bert.encoder.layer.4.*", "bert.encoder.layer.5.*",
        "bert.pooler.*", "classifier.*",
    )  # fmt: skip
    dim: int = 2048
    subsets: int = 2
    seed: int = 0


QUICK = Settings(components=6, train=40, held_out=24, steps=8, dim=128, subsets=1)
"""Small sizes: shows that it works, no evidence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opinions:
    """Texts of all sources, with where each comes from."""

    texts: TextSet
    sources: tuple[str, ...]


def load_opinions(settings: Settings) -> tuple[Opinions, Opinions]:
    """What to learn from, and what to explain; no group of texts is in both."""
    sides: list[list[tuple[str, TextSet]]] = [[], []]
    for name, load in SOURCES.items():
        split = load()
        parts = ((split.train, settings.train), (split.held_out, settings.held_out))
        for side, (part, most) in zip(sides, parts, strict=True):
            rng = np.random.default_rng([settings.seed, *name.encode()])
            side.append((name, part.take(np.sort(rng.permutation(len(part))[:most]))))
    return _pooled(sides[0]), _pooled(sides[1])


def _pooled(parts: Sequence[tuple[str, TextSet]]) -> Opinions:
    names = tuple(name for name, part in parts for _ in range(len(part)))
    whole = TextSet(
        name="opinions",
        texts=tuple(t for _, part in parts for t in part.texts),
        labels=np.concatenate([part.labels for _, part in parts]),
        ids=tuple(f"{name}/{i}" for name, part in parts for i in part.ids),
        groups=tuple(f"{name}/{g}" for name, part in parts for g in part.groups),
        classes=parts[0][1].classes,
    )
    return Opinions(texts=whole, sources=names)


def fine_tuned(settings: Settings, learn: Opinions, explain: Opinions, shown: Progress) -> Path:
    """Checkpoint folder of the classifier, made once and kept in the cache."""
    recipe = Recipe(
        steps=settings.steps, batch_size=16, max_length=MAX_LENGTH, learning_rate=5e-5,
        warmup=0.1, weight_decay=0.01, pull=0.0, freeze=(),
    )  # fmt: skip
    facts = {"texts": learn.texts.ids, "recipe": asdict(recipe), "seed": settings.seed}
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def fill(out: OutputFolder) -> dict[str, Any]:
        model, tokenizer = fresh_classifier(minilm_folder(), learn.texts.classes, settings.seed)
        with shown.step("Fine-tune", settings.steps) as advance:
            found = train(model, tokenizer, learn.texts, recipe, settings.seed, advance)
        found["held_out"] = evaluate(model, tokenizer, explain.texts, max_length=MAX_LENGTH)
        save_checkpoint(model, tokenizer, out.working)
        return found

    name = f"opinions-minilm-seed{settings.seed}-{key[:12]}"
    return cached(name, key, fill, command="npeff sentiment")


def _loaded(folder: Path) -> tuple[Any, Any]:
    transformers = need_transformers()
    with quiet(transformers):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def sentiment_report(
    settings: Settings, work: Path, *, progress: Progress | None = None
) -> DecompositionReport:
    """Everything, from the texts to the report.

    Parameters
    ----------
    settings : Settings
    work : Path
        Where Fishers and decompositions are kept; the same settings go on from what is there.

    Raises
    ------
    DataMissingError
        Texts or MiniLM have not been fetched; says how.
    ResultsExistError
        ``work`` holds the parts of other settings.
    """
    shown = progress or Progress(None)
    _claim(work, settings)
    learn, explain = load_opinions(settings)
    folder = fine_tuned(settings, learn, explain, shown)
    accuracy = read_json(folder / "results.json")["results"]["held_out"]["accuracy"]
    model, tokenizer = _loaded(folder)
    texts = [(t,) for t in explain.texts.texts]
    batches = [
        encode(tokenizer, tuple(t for (t,) in texts[i : i + 16]), MAX_LENGTH)
        for i in range(0, len(texts), 16)
    ]
    with shown.step("Fishers", len(texts)) as advance:
        store = per_example_fishers(
            model, _Named(batches, explain.texts), reduce=FactoredProjection(settings.dim),
            params=list(settings.params), seed=settings.seed, store=work / "fishers",
            shard_examples=64, callback=lambda info: advance(info.step, len(texts)),
        )  # fmt: skip
    found = _decomposed(store, settings, work, shown)
    lifted = _lifted(found, store, model, batches, settings, work, shown)
    own = TextModel(
        engine=engine_for(model), tokenizer=tokenizer, texts=texts, max_length=MAX_LENGTH,
        encode=lambda examples: encode(tokenizer, tuple(texts[i][0] for i in examples), MAX_LENGTH),
    )  # fmt: skip
    return text_report(
        own, lifted, labels=explain.texts.labels, classes=explain.texts.classes,
        metadata={"source": explain.sources}, progress=shown, seed=settings.seed,
        stability=np.asarray(found.facts["stability"]),
        effort=Effort(n_traces=8, moved_top=16, moved_baseline=32, n_random=1),
        title="How a small language model tells praise from blame",
        subtitle=(
            f"NPEFF of MiniLM (6 layers), fine-tuned on opinions from {len(SOURCES)} sources; "
            f"{len(texts):,} texts that it never saw, {accuracy:.0%} of them judged rightly"
        ),
        command="python -m fishertope.experiments.npeff.sentiment",
    )  # fmt: skip


class _Named:
    """Batches that a store knows by the texts they were made of."""

    def __init__(self, batches: list[Any], texts: TextSet) -> None:
        self._batches = batches
        self.dataset = texts
        self.data_sha256 = hashlib.sha256(json.dumps([texts.ids, MAX_LENGTH]).encode()).hexdigest()

    def __iter__(self) -> Any:
        return iter(self._batches)


def _claim(work: Path, settings: Settings) -> None:
    """Mark the folder of parts as that of these settings.

    Raises
    ------
    InvalidInputError
        It is that of others.
    """
    work.mkdir(parents=True, exist_ok=True)
    marker, facts = work / "settings.json", json.loads(json.dumps(asdict(settings)))
    if not marker.exists() and not any(work.iterdir()):
        write_json(marker, facts)
    if not marker.exists() or read_json(marker) != facts:
        raise InvalidInputError(
            f"{work} holds something else than the parts of these settings. Choose another folder "
            "(--work), or remove it."
        )


def _decomposed(
    store: FisherStore, settings: Settings, work: Path, shown: Progress
) -> Factorization:
    """The fit, with how well each component comes back on random subsets."""
    place = work / "found.safetensors"
    if place.exists():
        return Factorization.load(place)
    fishers: Any = store.load()
    method = LowRankNPEFF(settings.components, tol=1e-3)
    with shown.solver("Factorize") as callback:
        found = factorize(
            fishers, method, seed=settings.seed, callback=callback, on_failure="return"
        )
    scores: list[FloatArray] = []
    with shown.step("Factorize subsets", settings.subsets) as advance:
        for number in range(settings.subsets):
            rng = np.random.default_rng([settings.seed, number])
            part = np.sort(rng.permutation(len(fishers))[: round(0.7 * len(fishers))])
            again = factorize(
                fishers.select(part), method, seed=settings.seed + number + 1, on_failure="return"
            )
            scores.append(matched_cosines(found.components, again.components)[0])
            advance(number + 1, settings.subsets)
    facts = {**found.facts, "stability": np.mean(scores, axis=0).tolist()}
    found = found.replace(facts=facts)
    found.save(place)
    return found


def _lifted(
    found: Factorization, store: FisherStore, model: Any, batches: list[Any], settings: Settings,
    work: Path, shown: Progress,
) -> Factorization:  # fmt: skip
    place = work / "lifted.safetensors"
    if place.exists():
        return Factorization.load(place)
    with shown.step("Lift", found.n_examples) as advance:
        lifted = found.lift(
            model, batches, params=list(settings.params), fitted=store, batch_size=16,
            callback=lambda info: advance(info.step, found.n_examples),
        )  # fmt: skip
    lifted.save(place)
    return lifted


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path(
        "sentiment-report"
    ),
    work: Annotated[
        Path | None, typer.Option(help="Folder of the parts (default: beside --out).")
    ] = None,
    components: Annotated[int, typer.Option("--components", "-r", min=1)] = Settings().components,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, no evidence.")] = False,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """Fine-tune MiniLM on opinions and report what its components are about."""
    from rich.console import Console

    console: Console = Console(file=sys.stderr)
    settings = QUICK if quick else Settings(components=components, seed=seed)
    parts = work or out.with_name(f"{out.name}-parts")
    try:
        with thread_limit(threads), Progress(console) as progress:
            report = sentiment_report(settings, parts, progress=progress)
        report.save(out, overwrite=overwrite)
    except FishertopeError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    from ...core.report.decomposition_exports import component_table

    Console(file=sys.stdout).print(component_table(report, brief=True))
    typer.echo(f"Open {out / 'report.html'} in a browser.")


if __name__ == "__main__":
    app(prog_name="python -m fishertope.experiments.npeff.sentiment")
