"""Predictions of a model for the examples of a task, and their scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import Seq2Seq
from fishertope.experiments.seq2seq.decoding import (
    beam,
    greedy,
    label_log_likelihoods,
    sample,
)

from .batches import Lengths, convert
from .formats import Example
from .metrics import Scores
from .processes import first, gathered, ranks
from .steps import batch_tensors
from .tasks import Split, Task, TokenExample, tokenize
from .vocabulary import Vocabulary

Decoding: TypeAlias = Literal["greedy", "beam", "sample", "rank"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """How texts are made.

    Parameters
    ----------
    how
        "rank" answers with the most probable of the task's label words.
    max_new_tokens
        ``None`` takes the length of the targets.
    beams, alpha, temperature, top_k, seed
        Of beam search and sampling.
    """

    how: Decoding = "greedy"
    max_new_tokens: int | None = None
    beams: int = 4
    alpha: float = 0.6
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores, and what they were computed of."""

    task: str
    split: Split
    scores: Scores
    examples: Sequence[Example] = field(repr=False)
    predictions: Sequence[str] = field(repr=False)


def generate(
    model: Seq2Seq, texts: Sequence[str], vocabulary: Vocabulary, *, lengths: Lengths,
    decoder: Decoder | None = None, batch_size: int = 32, labels: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """A text for each input text, in their order.

    The model is used in evaluation mode and its mode put back. Inputs of one batch are of
    similar length; those of a single stack of exactly one length, since it reads no padding.
    """
    chosen = Decoder() if decoder is None else decoder
    rows = [
        tokenize({"inputs": text, "targets": ""}, vocabulary, inputs_length=lengths.inputs,
                 targets_length=1).inputs for text in texts
    ]  # fmt: skip
    make = _maker(model, vocabulary, chosen, chosen.max_new_tokens or lengths.targets, labels)
    groups: dict[int, list[int]] = defaultdict(list)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for n, i in enumerate(order):
        groups[0 if model.config.has_encoder else len(rows[i])].append(order[n])
    out = [""] * len(rows)
    was = model.training
    model.eval()
    try:
        for members in groups.values():
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                for i, text in zip(batch, make(_padded([rows[i] for i in batch], model)),
                                   strict=True):  # fmt: skip
                    out[i] = text
    finally:
        model.train(was)
    return out


def evaluate(
    model: Seq2Seq, task: Task, vocabulary: Vocabulary, *, lengths: Lengths,
    split: Split = "validation", decoder: Decoder | None = None, batch_size: int = 32,
    most: int | None = None, shared: bool = False,
) -> Evaluation:  # fmt: skip
    """Predict the examples of a split (the first ``most`` of them) and score the predictions.

    Parameters
    ----------
    shared
        All processes of a group call this, with the same model: each predicts every ``world``-th
        example, and all return the whole evaluation. Texts that are sampled are drawn in one
        order, so there process 0 predicts alone while the others wait.
    """
    examples = task.examples(split)[:most]
    if not examples:
        raise InvalidInputError(f"task {task.name!r} has no examples in its split {split!r}")
    texts = [str(e["inputs"]) for e in examples]

    def predict(chosen: Sequence[str]) -> list[str]:
        return generate(
            model, chosen, vocabulary, lengths=lengths, decoder=decoder, batch_size=batch_size,
            labels=task.labels,
        )  # fmt: skip

    rank, world = ranks() if shared else (0, 1)
    if world == 1:
        predictions = predict(texts)
    elif decoder is not None and decoder.how == "sample":
        predictions = list(first(lambda: predict(texts)))
    else:
        predictions = [""] * len(texts)
        for i, part in enumerate(gathered(predict(texts[rank::world]))):
            predictions[i::world] = part
    return Evaluation(
        task=task.name, split=split, scores=task.score(examples, predictions), examples=examples,
        predictions=predictions,
    )  # fmt: skip


def label_scores(
    model: Any, rows: Sequence[NDArray[np.int64]], labels: Sequence[str],
    vocabulary: Vocabulary, *, batch_size: int = 32,
) -> NDArray[np.float64]:  # fmt: skip
    """Every label's log p(label | input) for token rows: ``(n, classes)``; any structure.

    ``model`` is a ``Seq2Seq``, or a module with its ``config`` and ``forward``.
    Rows of one batch are of similar length. The model is used in evaluation mode and its mode put
    back.
    """
    words = label_tokens(labels, vocabulary).to(next(model.parameters()).device)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.zeros((len(rows), len(labels)))
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(rows), batch_size):
                batch = order[start : start + batch_size]
                out[batch] = _label_batch(model, [rows[i] for i in batch], words).cpu().numpy()
    finally:
        model.train(was)
    return out


def _label_batch(model: Any, rows: Sequence[NDArray[np.int64]], words: Tensor) -> Tensor:
    if isinstance(model, Seq2Seq) and model.config.has_encoder:
        return label_log_likelihoods(model, _padded(rows, model), words)
    labels = [row[row != model.config.pad_id].cpu().numpy() for row in words]
    read = [TokenExample(inputs=row, targets=label) for row in rows for label in labels]
    longest = Lengths(inputs=max(map(len, rows)), targets=words.shape[1])
    batch = convert([[example] for example in read], longest, model.config.arch)
    tensors = batch_tensors(batch, next(model.parameters()).device)
    logits = model(tensors.pop("inputs"), tensors.pop("decoder_tokens"), **tensors)
    goal = torch.from_numpy(batch.targets).to(logits.device)
    weights = torch.from_numpy(batch.weights).to(logits.device)
    picked = torch.log_softmax(logits.float(), -1).gather(-1, goal[..., None])[..., 0]
    return (picked * weights).sum(-1).view(len(rows), len(labels))


def _padded(rows: Sequence[Any], model: Any) -> Tensor:
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), model.config.pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out).to(next(model.parameters()).device)


def _maker(
    model: Seq2Seq, vocabulary: Vocabulary, decoder: Decoder, longest: int, labels: Sequence[str]
) -> Callable[[Tensor], list[str]]:
    if decoder.how == "rank":
        if not labels:
            raise InvalidInputError('decoding "rank" needs label words; this task has none')
        words = label_tokens(labels, vocabulary).to(next(model.parameters()).device)

        @torch.no_grad()
        def best(inputs: Tensor) -> list[str]:
            rows = [row[row != model.config.pad_id].cpu().numpy() for row in inputs]
            return [labels[int(i)] for i in _label_batch(model, rows, words).argmax(-1)]

        return best
    generator = torch.Generator(next(model.parameters()).device).manual_seed(decoder.seed)

    def texts(inputs: Tensor) -> list[str]:
        if decoder.how == "beam":
            made = beam(model, inputs, max_new_tokens=longest, beams=decoder.beams,
                        alpha=decoder.alpha)  # fmt: skip
        elif decoder.how == "sample":
            made = sample(model, inputs, max_new_tokens=longest, generator=generator,
                          temperature=decoder.temperature, top_k=decoder.top_k)  # fmt: skip
        elif decoder.how == "greedy":
            made = greedy(model, inputs, max_new_tokens=longest)
        else:
            raise InvalidInputError(
                f"how={decoder.how!r}; accepted are 'greedy', 'beam', 'sample' and 'rank'"
            )
        return [vocabulary.decode(row) for row in made.tolist()]

    return texts


def label_tokens(labels: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Ids of each label word with its end, padded: int64 ``(classes, length)``."""
    rows = [[*vocabulary.encode(label), vocabulary.eos_id] for label in labels]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [vocabulary.pad_id] * (width - len(row)) for row in rows])
