"""Fishers of text-to-text models: over which texts the expectation is taken.

The Fisher of a model p(y|x) of texts y at an input x is F(x) = E_{y ~ p(·|x)}[∇log p(y|x)
∇log p(y|x)ᵀ]. A :class:`Question` puts model, data and rule into the form that
``per_example_fishers`` and ``estimate_precision`` take from any model:

    question = ask(text_model, examples, labels=("negative", "positive"))
    per_example_fishers(question.model, question.data, **question.options)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace, device
from torch import Tensor

from fishertope.experiments.seq2seq import Seq2Seq, shift_right
from fishertope.experiments.seq2seq.decoding import label_log_likelihoods, sample
from fishertope.experiments.seq2seq.layers import at_least_float32

from ...core.errors import InvalidInputError
from ...core.fisher.labels import ExactLabels, LabelRule
from ...core.fisher.random_labels import DataLabels, ProbeLabels
from ...core.model import Categorical, OutputDistribution
from ...core.model.tokens import IGNORED, TokenCategorical
from ...core.types import Array
from ..text2text.evaluation import label_tokens
from ..text2text.folders import TextModel
from ..text2text.formats import Example
from ..text2text.tasks import tokenize


class Texts(StrEnum):
    """Over which texts y the expectation runs, and how.

    Attributes
    ----------
    RANKED
        The label strings of a classification, y ~ softmax of their log-likelihoods, as rank
        classification answers; exact, C − 1 gradients an example. The default with labels.
    SAMPLED
        Texts that the model itself writes, drawn token by token; unbiased, one gradient a draw.
        The default without labels.
    GIVEN_PREFIX
        At each position all next tokens given the example's own text up to there,
        Σ_t E_{v ~ p(·|x, y_<t)}[…], by random signs; one gradient a draw.
    EMPIRICAL
        The example's own text alone: the *empirical Fisher*, which is not the Fisher.
    """

    RANKED = "ranked"
    SAMPLED = "sampled"
    GIVEN_PREFIX = "given prefix"
    EMPIRICAL = "empirical"


class _View(Seq2Seq):
    """A model read in another way: its own parameters, by their own names."""

    def __init__(self, model: Seq2Seq) -> None:
        torch.nn.Module.__init__(self)
        for name, value in vars(model).items():
            self.__dict__[name] = copy(value) if isinstance(value, dict) else value

    def _written(self, goal: Tensor) -> Tensor:
        """Which tokens (..., t) were written: all up to the first end, that included."""
        ends = (goal == self.config.eos_id).long()
        return ends.cumsum(-1) - ends == 0


class RankedTexts(_View):
    """z (n, C): the log-likelihood of each label string, shared parameters with ``model``.

    With ``Categorical()`` that is p(c|x) = softmax_c log p(label_c|x). The encoder runs once an
    input, the decoder C times.

    Parameters
    ----------
    model
        With an encoder.
    labels
        int64 (C, length), padded; see ``label_tokens``.
    """

    def __init__(self, model: Seq2Seq, labels: Tensor) -> None:
        super().__init__(model)
        self.labels = labels

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Log-likelihoods (n, C); where the mask is zero nothing is seen."""
        if attention_mask is not None:
            input_ids = torch.where(attention_mask > 0, input_ids, self.config.pad_id)
        return label_log_likelihoods(self, input_ids, self.labels.to(input_ids.device))


class WrittenTexts(_View):
    """z (n, m): the log-likelihoods of m given texts an input, shared parameters with ``model``."""

    def forward(self, input_ids: Tensor, texts: Tensor) -> Tensor:  # type: ignore[override]
        """Of tokens (n, s) and texts (n, m, t)."""
        n, m, t = texts.shape
        goal = texts.reshape(n * m, t)
        encoded = self.encode(input_ids).repeat_interleave(m, 0)
        mask = self.source_mask(input_ids).repeat_interleave(m, 0)
        logits = self.decode(
            shift_right(goal, self.config.start_id), encoded=encoded, source_mask=mask
        )
        picked = torch.log_softmax(at_least_float32(logits), -1).gather(-1, goal[..., None])
        return (picked[..., 0] * self._written(goal)).sum(-1).view(n, m)


class ForcedTexts(_View):
    """z (n, t·V): the logits at each token of a given text, shared parameters with ``model``.

    For ``TokenCategorical(V)``; constant behind the text's end.
    """

    def forward(self, input_ids: Tensor, texts: Tensor) -> Tensor:  # type: ignore[override]
        """Of tokens (n, s) and texts (n, t)."""
        logits = self.decode(
            shift_right(texts, self.config.start_id), encoded=self.encode(input_ids),
            source_mask=self.source_mask(input_ids),
        )  # fmt: skip
        return (at_least_float32(logits) * self._written(texts)[..., None]).flatten(1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """z (n, m) are log-likelihoods of m texts drawn from the model: F = (1/m) Σ_j ∇z_j ∇z_jᵀ.

    The draws were made before, so that nothing is left to be drawn from these outputs; use it with
    ``ExactLabels()``.
    """

    name: str = "texts drawn from the model"

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """I/√m for each example (n, m, m)."""
        xp = array_namespace(z)
        eye = xp.eye(z.shape[-1], dtype=z.dtype, device=device(z)) / float(z.shape[-1]) ** 0.5
        return xp.tile(eye[None], (z.shape[0], 1, 1))

    def log_prob(self, z: Array, y: Array) -> Array:
        """Log-likelihood of the text number y_i (n,)."""
        return array_namespace(z).take_along_axis(z, y[:, None], axis=-1)[:, 0]

    def score(self, z: Array, y: Array) -> Array:
        """Rows e_{y_i} (n, m)."""
        xp = array_namespace(z)
        classes = xp.arange(z.shape[-1], dtype=y.dtype, device=device(z))
        return xp.astype(y[:, None] == classes[None, :], z.dtype)

    def mode(self, z: Array) -> Array:
        """Number of the likeliest of the texts (n,)."""
        return array_namespace(z).argmax(z, axis=-1)

    def kl(self, z: Array, z_other: Array) -> Array:
        """Mean of z − z_other over the draws (n,), an unbiased estimate of the divergence."""
        return array_namespace(z).mean(z - z_other, axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A model, its data and the rule, as ``per_example_fishers`` and ``estimate_precision`` take.

    Attributes
    ----------
    model : Seq2Seq
        A view of the asked model: its own parameters, by their own names.
    data : iterable of batches
    options : mapping
        Keyword arguments ``labels`` and ``output``.
    texts : Texts
    """

    model: Seq2Seq
    data: Iterable[Any]
    options: Mapping[str, Any]
    texts: Texts


def ask(
    text_model: TextModel,
    examples: Sequence[Example],
    *,
    texts: Texts | str | None = None,
    labels: Sequence[str] = (),
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 16,
) -> Question:
    """The question about a text-to-text model whose answer is its Fisher.

    Parameters
    ----------
    text_model
        An encoder-decoder with its vocabulary and lengths.
    examples
        Mappings with ``inputs``, and ``targets`` for the two rules that read the examples' texts.
    texts
        A :class:`Texts` or its value; ``None`` means RANKED with labels, SAMPLED without.
    labels
        The label strings of RANKED, at least two.
    draws
        Of SAMPLED and GIVEN_PREFIX, an example.
    seed
        Of the texts of SAMPLED; they depend on ``batch_size`` too. The signs of GIVEN_PREFIX are
        drawn by ``per_example_fishers(seed=...)``.

    Raises
    ------
    InvalidInputError
        A model without encoder, labels that are missing or begin alike to the end, no examples.

    Notes
    -----
    A sampled text ends at its end token or at the model's length of targets, whichever comes first;
    its likelihood is that of what was written. float64 models give float64 Fishers.
    """
    rule = (Texts.RANKED if labels else Texts.SAMPLED) if texts is None else _rule(texts)
    model = text_model.model
    if model.encoder is None:
        raise InvalidInputError(
            f"A model of arch={model.config.arch!r} was given; two stacks are taken, as ranking "
            "and sampling read the input with the encoder."
        )
    if not examples or draws < 1 or batch_size < 1:
        raise InvalidInputError(
            f"{len(examples)} examples, draws={draws}, batch_size={batch_size}; give at least one."
        )
    data = InputBatches(text_model, tuple(examples), batch_size)
    if rule is Texts.RANKED:
        words = _words(text_model, labels)
        options: dict[str, Any] = {"labels": ExactLabels(), "output": Categorical()}
        return Question(model=RankedTexts(model, words), data=data, options=options, texts=rule)
    if rule is Texts.SAMPLED:
        written = _Sampled(data, draws, seed)
        options = {"labels": ExactLabels(), "output": Drawn()}
        return Question(model=WrittenTexts(model), data=written, options=options, texts=rule)
    given: LabelRule = DataLabels() if rule is Texts.EMPIRICAL else ProbeLabels(draws)
    output: OutputDistribution = TokenCategorical(model.config.vocab_size)
    options = {"labels": given, "output": output}
    return Question(model=ForcedTexts(model), data=_Forced(data), options=options, texts=rule)


def _rule(texts: Texts | str) -> Texts:
    try:
        return Texts(texts)
    except ValueError:
        raise InvalidInputError(
            f"texts={texts!r} was given; accepted are {', '.join(repr(t.value) for t in Texts)}."
        ) from None


def _words(text_model: TextModel, labels: Sequence[str]) -> Tensor:
    words = label_tokens(labels, text_model.vocabulary) if labels else torch.zeros(0, 1)
    if len(labels) < 2 or len(torch.unique(words, dim=0)) < len(labels):
        raise InvalidInputError(
            f"labels={list(labels)} was given; at least two strings are taken that the vocabulary "
            "tells apart."
        )
    return words


def _device(model: Seq2Seq) -> torch.device:
    return next(model.parameters()).device


class InputBatches:
    """Batches of ``input_ids`` and ``attention_mask``, each padded to its longest input."""

    def __init__(self, text_model: TextModel, examples: Sequence[Example], size: int) -> None:
        self.text_model, self.dataset, self.size = text_model, examples, size
        self.pad_id = text_model.model.config.pad_id

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self.parts():
            yield self.encoded(part)

    def parts(self) -> Iterator[Sequence[Example]]:
        """The examples of each batch."""
        for start in range(0, len(self.dataset), self.size):
            yield self.dataset[start : start + self.size]

    def encoded(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Inputs of one batch."""
        ids = self.tokens(examples, "inputs")
        return {"input_ids": ids, "attention_mask": (ids != self.pad_id).long()}

    def tokens(self, examples: Sequence[Example], side: str) -> Tensor:
        """Ids of one side (n, longest), padded."""
        lengths, words = self.text_model.lengths, self.text_model.vocabulary
        rows = [
            getattr(
                tokenize({"targets": "", **e}, words, inputs_length=lengths.inputs,
                         targets_length=lengths.targets), side,
            ) for e in examples
        ]  # fmt: skip
        out = np.full((len(rows), max(map(len, rows))), self.pad_id, dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out).to(_device(self.text_model.model))


class _Sampled:
    """Inputs with texts that the model writes for them."""

    def __init__(self, data: InputBatches, draws: int, seed: int) -> None:
        self.data, self.draws, self.seed = data, draws, seed
        self.dataset = data.dataset

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        model, longest = self.data.text_model.model, self.data.text_model.lengths.targets
        generator = torch.Generator(_device(model)).manual_seed(self.seed)
        for batch in self.data:
            ids, was = batch["input_ids"], model.training
            model.eval()
            try:
                made = sample(
                    model, ids.repeat_interleave(self.draws, 0), max_new_tokens=longest,
                    generator=generator,
                )  # fmt: skip
            finally:
                model.train(was)
            yield {"input_ids": ids, "texts": made.view(len(ids), self.draws, -1)}


class _Forced:
    """Inputs with the examples' own texts, as decoder input and as labels."""

    def __init__(self, data: InputBatches) -> None:
        self.data = data
        self.dataset = data.dataset

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for examples in self.data.parts():
            goal = self.data.tokens(examples, "targets")
            yield {
                "input_ids": self.data.tokens(examples, "inputs"),
                "texts": goal,
                "labels": torch.where(goal == self.data.pad_id, IGNORED, goal),
            }
