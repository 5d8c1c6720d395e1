"""A pre-trained model from its recipe: made once, kept in the cache, used by every study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import InvalidInputError
from ...core.storage import OutputFolder, read_json
from ..data._made import cached
from ..text2text.batches import Lengths
from ..text2text.mixtures import mixing_rates
from ..text2text.objectives import random_spans_lengths
from ..text2text.streams import BatchStream, CorpusStream, MixtureStream, Stream, TaskStream
from . import corpora
from .tasks import ROWS, examples

if TYPE_CHECKING:
    from fishertope.experiments.seq2seq import Seq2Seq

INPUTS = 64
RATE = 4e-2
"""Of pre-training."""
_COMMAND = "the studies of T5"
_VERSION = 1
"""Counts up when the same recipe comes to give another model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model and how long it is trained.

    Attributes
    ----------
    d_model, d_ff, heads, d_kv, layers : int
    vocabulary : {"pieces", "bytes"}
    steps, batch_size : int
        Of pre-training.
    tune_steps : int
        Updates of a fine-tuning on one task.
    scored : int
        Test examples of a task, at most.
    documents : int, optional
        Of a corpus, at most.
    """

    d_model: int
    d_ff: int
    heads: int
    d_kv: int
    layers: int
    vocabulary: str
    steps: int
    batch_size: int
    tune_steps: int
    scored: int
    documents: int | None = None


SIZES = {
    "nano": Size(
        d_model=64, d_ff=256, heads=4, d_kv=16, layers=2, vocabulary="pieces", steps=400,
        batch_size=16, tune_steps=100, scored=500,
    ),
    "pico": Size(
        d_model=16, d_ff=32, heads=2, d_kv=8, layers=1, vocabulary="bytes", steps=4,
        batch_size=8, tune_steps=2, scored=12, documents=40,
    ),
}  # fmt: skip
"""``nano`` is what the full studies train, ``pico`` shows in seconds that they run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a pre-trained model.

    Attributes
    ----------
    size : str
        Key of ``SIZES``.
    seed : int
    objective, density, mean_span
        As in :func:`~fishertope.experiments.text2text.objectives.denoise`; ``"lm"`` predicts
        plain text.
    corpus : str
        Name in :mod:`~.corpora`.
    max_tokens : int, optional
        Repeat that many tokens of it.
    arch : str
        Structure of the model.
    layers : int, optional
        Blocks of each stack; those of the size otherwise.
    width : float
        Factor of ``d_model``, ``d_ff`` and the number of heads.
    longer, larger : float
        Factors of the numbers of steps and of rows a batch.
    tasks : tuple of str
        Supervised tasks mixed in.
    cap, temperature
        Of their rates; ``temperature=None`` mixes all in equal parts.
    unlabeled : bool
        False: the supervised tasks alone.
    """

    size: str
    seed: int
    objective: str = "span_corruption"
    density: float = 0.15
    mean_span: float = 3.0
    corpus: str = "wordnet"
    max_tokens: int | None = None
    arch: str = "encdec"
    layers: int | None = None
    width: float = 1.0
    longer: float = 1.0
    larger: float = 1.0
    tasks: tuple[str, ...] = ()
    cap: float | None = None
    temperature: float | None = 1.0
    unlabeled: bool = True

    @property
    def facts(self) -> Size:
        """Sizes and numbers of steps."""
        return SIZES[self.size]

    @property
    def steps(self) -> int:
        """Number of updates."""
        return max(1, round(self.facts.steps * self.longer))

    def key(self) -> str:
        """Hash of all that decides the model."""
        own = {k: v for k, v in asdict(self.facts).items() if v is not None}
        facts = {"recipe": asdict(self), "facts": own, "rate": RATE}
        return digest(facts | {"version": _VERSION})

    def model(self) -> Seq2Seq:
        """The model before any training."""
        import torch

        from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig

        s, words = self.facts, corpora.vocabulary(self.facts.vocabulary)
        heads = max(1, round(s.heads * self.width))
        config = Seq2SeqConfig(
            vocab_size=words.size, d_model=round(s.d_model * self.width),
            d_ff=round(s.d_ff * self.width), heads=heads, d_kv=s.d_kv,
            layers=self.layers or s.layers, arch=self.arch, dropout=0.0,  # type: ignore[arg-type]
        )  # fmt: skip
        return Seq2Seq(config, torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model with what is known of its training.

    Attributes
    ----------
    model : Seq2Seq
        The caller's own copy.
    loss : float
        On held-out text, of the recipe's objective, in nats a target token; NaN without any.
    parameters : int
    """

    model: Seq2Seq
    loss: float
    parameters: int


def digest(value: Mapping[str, Any]) -> str:
    """What content is filed under."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def corpus_lengths(recipe: Recipe) -> Lengths:
    """Lengths that a text of about ``INPUTS`` tokens has after the objective."""
    p = recipe.density
    match recipe.objective:
        case "span_corruption":
            return Lengths(
                inputs=INPUTS, targets=random_spans_lengths(INPUTS, p, recipe.mean_span)[1]
            )
        case "replace_spans":  # the number of runs varies: room for more than the mean
            targets = random_spans_lengths(INPUTS, p, 1.0 / (1.0 - p))[1]
            return Lengths(inputs=INPUTS + 6, targets=targets + 6)
        case "drop_tokens":
            return Lengths(inputs=INPUTS + 6, targets=20)
        case "lm":
            return Lengths(inputs=1, targets=INPUTS)
        case _:
            return Lengths(inputs=INPUTS, targets=INPUTS)


def row_lengths(recipe: Recipe) -> Lengths:
    """Lengths of the batches that the model reads; a single stack reads both sides in a row."""
    lengths = corpus_lengths(recipe)
    targets = max([lengths.targets, *(ROWS[name].targets for name in recipe.tasks)])
    inputs = max([lengths.inputs, *(ROWS[name].inputs for name in recipe.tasks)])
    if recipe.arch in ("lm", "prefix_lm") and recipe.objective == "prefix_lm":
        return Lengths(inputs=INPUTS // 2 + 1, targets=INPUTS // 2 + 1)
    return Lengths(inputs=inputs, targets=targets)


def corpus_stream(recipe: Recipe, *, held_out: bool = False) -> CorpusStream:
    """Examples of the objective."""
    kind = recipe.facts.vocabulary
    return CorpusStream(
        corpora.tokens(recipe.corpus, kind, held_out, recipe.facts.documents),
        corpora.vocabulary(kind),
        corpus_lengths(recipe), objective=recipe.objective, density=recipe.density,
        mean_span=recipe.mean_span, seed=0 if held_out else recipe.seed,
        max_tokens=None if held_out else recipe.max_tokens,
    )  # fmt: skip


def rates(recipe: Recipe) -> dict[str, float]:
    """How often each part of the mixture is drawn."""
    sizes = {name: float(len(examples(name, "train"))) for name in recipe.tasks}
    if recipe.unlabeled:
        sizes["unlabeled"] = float(len(corpus_stream(recipe)))
    if recipe.temperature is None:
        return {name: 1.0 / len(sizes) for name in sizes}
    return mixing_rates(sizes, cap=recipe.cap, temperature=recipe.temperature)


def _stream(recipe: Recipe) -> Stream:
    if not recipe.tasks:
        return corpus_stream(recipe)
    words = corpora.vocabulary(recipe.facts.vocabulary)
    streams: dict[str, Stream] = {
        name: TaskStream(examples(name, "train"), words, ROWS[name], seed=recipe.seed)
        for name in recipe.tasks
    }
    if recipe.unlabeled:
        streams["unlabeled"] = corpus_stream(recipe)
    return MixtureStream(streams, rates(recipe), seed=recipe.seed)


def pretrained(recipe: Recipe) -> Pretrained:
    """Train it, or take it from the cache; several processes may ask at once.

    Raises
    ------
    InvalidInputError
        If neither tasks nor unlabeled text are part of the recipe.
    """
    from ..text2text.folders import load_model

    if not recipe.unlabeled and not recipe.tasks:
        raise InvalidInputError("a recipe without unlabeled text and without tasks trains nothing")

    def fill(out: OutputFolder) -> Mapping[str, Any]:
        facts = make(recipe, out.file("model"))
        out.write_text("facts.json", json.dumps(facts, indent=1))
        return {"loss": facts["loss"], "status": facts["status"]}

    key = recipe.key()
    folder = cached(f"t5-{key}", key, fill, command=_COMMAND)
    facts = read_json(folder / "facts.json")
    model = load_model(folder / "model").model
    return Pretrained(
        model=model,
        loss=float("nan") if facts["loss"] is None else float(facts["loss"]),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def make(recipe: Recipe, folder: Path) -> Mapping[str, Any]:
    """Train it and write the model to ``folder``; facts of the training come back."""
    from ..text2text.folders import save_model
    from ..text2text.steps import mean_loss
    from ..text2text.training import TrainingPlan, train

    model, lengths = recipe.model(), row_lengths(recipe)
    plan = TrainingPlan(
        steps=recipe.steps, batch_size=round(recipe.facts.batch_size * recipe.larger),
        lengths=lengths, rate=RATE, seed=recipe.seed, log_every=50, loss_on="all",
    )  # fmt: skip
    done = train(model, _stream(recipe), plan)
    loss = None
    if recipe.unlabeled:
        judged = BatchStream(
            corpus_stream(recipe, held_out=True), lengths, batch_size=32, arch=recipe.arch
        )
        loss = mean_loss(model, [next(judged) for _ in range(8)])
    words = corpora.vocabulary(recipe.facts.vocabulary)
    save_model(folder, model.eval(), words, lengths, {"recipe": asdict(recipe)})
    return {"recipe": asdict(recipe), "status": done.status, "log": done.log, "loss": loss}
