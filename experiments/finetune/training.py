"""The training itself: AdamW on a classifier, one thread, every draw decided by the seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import InvalidInputError
from ..data import TextSet
from .bases import need_transformers, quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

TEST_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything of a training but data, start and seed.

    Attributes
    ----------
    steps, batch_size, max_length : int
        Updates; texts an update; tokens of a text that are kept.
    learning_rate : float
        Its largest value: it rises over the first ``warmup`` of the steps, then falls to zero.
    warmup : float
        Share of the steps.
    weight_decay : float
        AdamW's, on matrices alone.
    pull : float
        λ of the penalty (λ/2)‖θ − θ₀‖² towards the start; the head is left out.
    freeze : tuple of str
        Glob patterns of parameters that stay as they are.
    """

    steps: int
    batch_size: int
    max_length: int
    learning_rate: float
    warmup: float
    weight_decay: float
    pull: float
    freeze: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("max_length", 4)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidInputError(
                    f"{name}={value!r} was given; a whole number >= {least} is accepted."
                )
        for name in ("learning_rate", "weight_decay", "pull"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(
                    f"{name}={value!r} was given; a finite number >= 0 is accepted."
                )
        if not 0 <= self.warmup <= 1:
            raise InvalidInputError(f"warmup={self.warmup!r} was given; 0 to 1 is accepted.")


def fresh_classifier(folder: Path, classes: tuple[str, ...], seed: int) -> tuple[Any, Any]:
    """A checkpoint's body under a new classification head, and its tokenizer.

    The head is drawn anew even where the folder has one of that shape.
    """
    transformers = need_transformers()
    import torch

    names = dict(enumerate(classes))
    with quiet(transformers), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(classes), id2label=names,
            label2id={name: i for i, name in names.items()}, problem_type=None,
            local_files_only=True, trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
        head = getattr(model, head_name(model))
        for part in head.modules():
            if isinstance(part, torch.nn.Linear):
                torch.nn.init.normal_(part.weight, std=model.config.initializer_range)
                if part.bias is not None:
                    torch.nn.init.zeros_(part.bias)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def head_name(model: Any) -> str:
    """What a classifier calls its head."""
    for name in ("classifier", "score"):
        if hasattr(model, name):
            return name
    raise InvalidInputError(
        f"{type(model).__name__} has no classification head that is known here; models with a "
        "'classifier' (BERT, RoBERTa, ...) or a 'score' (GPT-2, Llama, ...) are taken."
    )


def encode(tokenizer: Any, texts: tuple[str, ...], max_length: int) -> dict[str, Tensor]:
    """Texts as tokens with their mask, padded to the longest: int64 tensors (n, T)."""
    made = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def token_batches(
    tokenizer: Any, texts: TextSet, *, batch_size: int, max_length: int
) -> list[dict[str, Tensor]]:
    """A set as batches by the names of the model's arguments, with its ``labels``, in its order.

    The form that :func:`~fishertope.per_example_fishers` and ``estimate_precision`` take.
    """
    import torch

    found = []
    for start in range(0, len(texts), batch_size):
        stop = start + batch_size
        batch = encode(tokenizer, texts.texts[start:stop], max_length)
        batch["labels"] = torch.as_tensor(np.asarray(texts.labels[start:stop]))
        found.append(batch)
    return found


def train(
    model: nn.Module,
    tokenizer: Any,
    texts: TextSet,
    recipe: Recipe,
    seed: int,
    advance: Callable[[int, int], None],
) -> dict[str, Any]:
    """Minimise the mean cross-entropy, in place; returns what happened on the way."""
    import torch

    trained = _choose(model, recipe.freeze)
    head = head_name(model)
    start = {
        name: p.detach().clone()
        for name, p in trained.items()
        if recipe.pull and not name.startswith(f"{head}.")
    }
    matrices = [p for p in trained.values() if p.ndim > 1]
    vectors = [p for p in trained.values() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
    )
    losses, began = [], time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for step, chosen in enumerate(_order(len(texts), recipe, seed)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _slope(step, recipe)
            part = texts.take(chosen)
            inputs = encode(tokenizer, part.texts, recipe.max_length)
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(part.labels))
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for name, before in start.items():
                    gradient = trained[name].grad
                    if gradient is not None:
                        gradient.add_(trained[name] - before, alpha=recipe.pull)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise InvalidInputError(
                    f"The loss is {losses[-1]} after {step + 1} steps with learning_rate="
                    f"{recipe.learning_rate}; give a smaller one."
                )
            advance(step + 1, recipe.steps)
    model.eval()
    every = max(1, recipe.steps // 10)
    curve = [round(float(np.mean(losses[i : i + every])), 4) for i in range(0, len(losses), every)]
    return {"train_loss": curve, "seconds": round(time.perf_counter() - began, 2)}


def _choose(model: nn.Module, freeze: tuple[str, ...]) -> dict[str, nn.Parameter]:
    names = [name for name, _ in model.named_parameters()]
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidInputError(
                f"freeze={pattern!r} matches no parameter; the first are {', '.join(names[:6])}."
            )
    trained = {}
    for name, p in model.named_parameters():
        frozen = any(fnmatchcase(name, pattern) for pattern in freeze)
        p.requires_grad_(not frozen)
        if not frozen:
            trained[name] = p
    if not trained:
        raise InvalidInputError(f"freeze={freeze!r} leaves no parameter to be trained.")
    return trained


def _order(n: int, recipe: Recipe, seed: int) -> Iterator[list[int]]:
    """Indices of each batch: every text once a round, in an order drawn for each round."""
    rng = np.random.default_rng(seed)
    size, queue = min(recipe.batch_size, n), np.zeros(0, dtype=np.int64)
    for _ in range(recipe.steps):
        while len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(n)])
        yield [int(i) for i in queue[:size]]
        queue = queue[size:]


def _slope(step: int, recipe: Recipe) -> float:
    """Share of the learning rate: linear up to 1, then linear down to 0 after the last step."""
    rise = max(1, round(recipe.warmup * recipe.steps))
    if step < rise:
        return (step + 1) / rise
    return (recipe.steps - step) / max(1, recipe.steps - rise)


def evaluate(model: Any, tokenizer: Any, texts: TextSet, *, max_length: int) -> dict[str, float]:
    """Accuracy and mean cross-entropy (nats) of a classifier on a set; the model stays as it is.

    Returns
    -------
    dict
        ``accuracy``, its standard error ``accuracy_se`` = √(a(1−a)/n), and ``loss``.
    """
    import torch

    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    # Texts of like length together: less padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts.texts[i]))
    right, loss = 0, 0.0
    try:
        with torch.no_grad():
            for batch in token_batches(
                tokenizer, texts.take(order), batch_size=TEST_BATCH, max_length=max_length
            ):
                labels = batch.pop("labels")
                logits = model(**batch).logits
                right += int((logits.argmax(1) == labels).sum())
                loss += float(
                    torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
                )
    finally:
        for module, training in modes:
            module.training = training
    accuracy = right / len(texts)
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(texts)),
        "loss": loss / len(texts),
    }
