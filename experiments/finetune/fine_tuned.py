"""``finetune``: a classifier from a common start, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.backend import thread_limit
from ...core.errors import InvalidInputError
from ...core.storage import OutputFolder, read_json
from .._progress import Progress
from ..data._made import cached
from .bases import base_of, need_transformers, quiet, save_checkpoint
from .tasks import TaskData, load_task, task_of
from .training import Recipe, evaluate, fresh_classifier, train

# Counts up when the same settings come to give another model.
_TRAINING = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """A fine-tuned classifier in the cache.

    Attributes
    ----------
    task, base : str
    seed : int
    folder : Path
        Hugging Face checkpoint folder with tokenizer; loads with
        ``AutoModelForSequenceClassification.from_pretrained(folder)``.
    start : Path
        Checkpoint folder that the training started from.
    classes : tuple of str
    max_length : int
        Tokens of a text that were kept.
    metrics : mapping
        ``validation`` and ``test``, each with ``accuracy``, ``accuracy_se``, ``loss``;
        ``train_loss``, the mean over each tenth of the steps; ``seconds``, of the training;
        ``sizes``, texts of each part.
    """

    task: str
    base: str
    seed: int
    folder: Path
    start: Path
    classes: tuple[str, ...]
    max_length: int
    metrics: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """On the test part."""
        return float(self.metrics["test"]["accuracy"])

    def model(self) -> Any:
        """The classifier, in evaluation mode."""
        transformers = need_transformers()
        with quiet(transformers):
            loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        return loaded.eval()

    def tokenizer(self) -> Any:
        """The tokenizer."""
        return need_transformers().AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )

    def data(self) -> TaskData:
        """Texts of the task: train, validation, test."""
        return load_task(self.task)


def finetune(
    task: str,
    *,
    base: str | os.PathLike[str] = "minilm",
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 16,
    max_length: int = 48,
    learning_rate: float | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    pull: float = 0.0,
    freeze: Sequence[str] = (),
    threads: int = 1,
    progress: Progress | None = None,
) -> FineTuned:
    """A text classifier fine-tuned from ``base`` with a head of its own.

    Kept in the cache under a key of everything that decides it, so that the second call takes a
    second. All fine-tunings of one base start from the same body θ₀, as merging needs it. With
    one thread the same call gives the same bits on the same machine.

    Parameters
    ----------
    task : str
        One of ``TASKS``.
    base : str or path
        One of ``BASES`` ("minilm", "bert-tiny", "gpt2-tiny"), or a checkpoint folder: that of
        another fine-tuning gives intermediate-task training.
    seed : int
        Of the head, the order of the texts and dropout; the split of the data does not depend on
        it.
    steps : int, optional
        Updates; the base's usual number otherwise.
    batch_size, max_length : int
    learning_rate : float, optional
        Of AdamW at its peak; the base's usual one otherwise.
    warmup : float
        Share of the steps over which the rate rises; it falls linearly afterwards.
    weight_decay : float
        AdamW's, on matrices alone.
    pull : float
        λ of (λ/2)‖θ − θ₀‖² added to the loss, head excluded; merging papers use about 3e-4.
    freeze : sequence of str
        Glob patterns of parameters to be left as they are, such as "*embeddings*".
    threads : int
    progress : Progress, optional

    Returns
    -------
    FineTuned

    Raises
    ------
    InvalidInputError
        Unknown task or base, numbers out of range, a learning rate that diverges.
    DataMissingError
        Data or base have not been fetched; says how.
    BackendUnavailable
        transformers or torch is not installed.

    Notes
    -----
    Cost: MiniLM, batch 16, at most 48 tokens: about 0.5 s a step on one core.
    """
    chosen, start = task_of(task), base_of(base)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidInputError(f"seed={seed!r} was given; a whole number >= 0 is accepted.")
    recipe = Recipe(
        steps=start.steps if steps is None else steps, batch_size=batch_size,
        max_length=max_length,
        learning_rate=start.learning_rate if learning_rate is None else learning_rate,
        warmup=warmup, weight_decay=weight_decay, pull=pull, freeze=tuple(freeze),
    )  # fmt: skip
    facts = {
        "training": _TRAINING, "task": chosen.key, "base": start.key, "seed": seed,
        "threads": threads, **asdict(recipe),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = f"{task.replace('/', '-')}-{start.name}-seed{seed}-{key[:12]}"

    def fill(out: OutputFolder) -> dict[str, Any]:
        with thread_limit(threads), _threads_of_tokenizers(threads):
            found = _made(task, start.folder(), recipe, seed, out, progress or Progress(None))
        return {"task": task, "base": start.name, "seed": seed, **asdict(recipe), **found}

    folder = cached(name, key, fill, command="finetune")
    results = read_json(folder / "results.json")["results"]
    return FineTuned(
        task=task, base=start.name, seed=seed, folder=folder, start=start.folder(),
        classes=tuple(results["classes"]), max_length=max_length, metrics=results["metrics"],
    )  # fmt: skip


def _made(
    task: str, start: Path, recipe: Recipe, seed: int, out: OutputFolder, progress: Progress
) -> dict[str, Any]:
    """Train, judge and save; returns what is recorded."""
    data = load_task(task)
    model, tokenizer = fresh_classifier(start, data.classes, seed)
    with progress.step(f"fine-tune on {task}", recipe.steps) as advance:
        metrics = train(model, tokenizer, data.train, recipe, seed, advance)
    for part in ("validation", "test"):
        metrics[part] = evaluate(
            model, tokenizer, getattr(data, part), max_length=recipe.max_length
        )
    metrics["sizes"] = {p: len(getattr(data, p)) for p in ("train", "validation", "test")}
    save_checkpoint(model, tokenizer, out.working)
    return {"classes": list(data.classes), "metrics": metrics}


@contextmanager
def _threads_of_tokenizers(threads: int) -> Iterator[None]:
    """Tokenizers split their work over threads of their own unless told not to."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false" if threads == 1 else "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
