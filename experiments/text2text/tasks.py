"""Tasks: where records come from, how they become texts, how predictions are read and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fishertope.core.errors import InvalidInputError

from .formats import Example, Format, Record
from .metrics import Metric, Scores
from .vocabulary import Vocabulary

Split: TypeAlias = Literal["train", "validation", "test"]
Source: TypeAlias = Callable[[Split], Iterable[Record]]


def same_text(prediction: str, example: Example) -> Any:
    """The prediction itself."""
    return prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One text-to-text task.

    Parameters
    ----------
    name
        Unique in a registry.
    source
        Records of a split, the same ones in the same order at every call.
    format
        Record → examples with ``inputs`` and ``targets``.
    postprocess
        (predicted text, example) → what the metrics compare.
    target
        Example → what the metrics compare it with; ``None`` postprocesses the target text.
    metrics
        Each maps (targets, predictions) to named scores.
    labels
        The label words, of a task that can be answered by ranking them.
    """

    name: str
    source: Source
    format: Format
    postprocess: Callable[[str, Example], Any] = same_text
    target: Callable[[Example], Any] | None = None
    metrics: tuple[Metric, ...] = ()
    labels: tuple[str, ...] = ()

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in the order of the records."""
        if split not in get_args(Split):
            raise InvalidInputError(f"split={split!r}; accepted are {', '.join(get_args(Split))}")
        return [example for record in self.source(split) for example in self.format(record)]

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
        """The scores of predicted texts.

        Raises
        ------
        InvalidInputError
            If their numbers differ, or the task has no metrics.
        """
        if not self.metrics:
            raise InvalidInputError(f"task {self.name!r} has no metrics; it is for training only")
        if len(examples) != len(predictions):
            raise InvalidInputError(
                f"{len(examples)} examples and {len(predictions)} predictions; give one for each"
            )
        read = [self.postprocess(p, e) for p, e in zip(predictions, examples, strict=True)]
        wanted = [
            self.postprocess(str(e["targets"]), e) if self.target is None else self.target(e)
            for e in examples
        ]
        scores: Scores = {}
        for metric in self.metrics:
            scores |= metric(wanted, read)
        return scores


class TaskRegistry:
    """Tasks by name. Registries are values: there is no global one to clash in."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self._tasks: dict[str, Task] = {}
        for task in tasks:
            self.add(task)

    def add(self, task: Task) -> Task:
        """Register a task; a second one of the same name is an error."""
        if task.name in self._tasks:
            raise InvalidInputError(f"there is a task {task.name!r} already; take another name")
        self._tasks[task.name] = task
        return task

    def __getitem__(self, name: str) -> Task:
        if name not in self._tasks:
            raise InvalidInputError(
                f"there is no task {name!r}; there are {', '.join(sorted(self._tasks)) or 'none'}"
            )
        return self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenExample:
    """Token ids of one example, EOS at the end of both."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def tokenize(
    example: Mapping[str, Any], vocabulary: Vocabulary, *, inputs_length: int, targets_length: int
) -> TokenExample:
    """Token ids of an example, each side trimmed so that its EOS fits.

    Parameters
    ----------
    inputs_length, targets_length
        Largest numbers of tokens, the EOS counted.
    """
    if inputs_length < 1 or targets_length < 1:
        raise InvalidInputError(
            f"inputs_length={inputs_length}, targets_length={targets_length}; give at least 1"
        )

    def side(name: str, length: int) -> NDArray[np.int64]:
        ids = vocabulary.encode(str(example[name]))[: length - 1]
        return np.asarray([*ids, vocabulary.eos_id], dtype=np.int64)

    return TokenExample(
        inputs=side("inputs", inputs_length), targets=side("targets", targets_length)
    )
