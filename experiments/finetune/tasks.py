"""Text classification tasks: each a data set with three parts that no group is shared between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from ...core.errors import InvalidInputError
from ..data import (
    TextSet,
    TextSplit,
    load_sentiment,
    load_spam,
    load_vader,
    split_texts,
)
from ..data._sources import source
from ..data.texts import SentimentPart, VaderPart

VALIDATION = 0.15
# The test part is what the loaders hold out with their seed 0; another seed cuts the rest.
_VALIDATION_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set to be fine-tuned on.

    Attributes
    ----------
    name : str
    load : callable
        Returns the split into what may be learned from and the test part.
    source : str
        Archive of :mod:`fishertope.experiments.data` that it is read from.
    content : str
        For the list that users see.
    """

    name: str
    load: Callable[[], TextSplit]
    source: str
    content: str

    @property
    def key(self) -> str:
        """What decides the texts: the archive's pinned hash, and how it is read and split."""
        facts = [self.name, source(self.source).sha256, VALIDATION, _VALIDATION_SEED, _READING]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# Counts up when a loader comes to read other texts from the same archive.
_READING = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskData:
    """Texts to learn from, to choose by, and to report; each group is in one of them only."""

    train: TextSet
    validation: TextSet
    test: TextSet

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes


_REVIEWS: Mapping[SentimentPart, str] = MappingProxyType(
    {"amazon": "products", "imdb": "films", "yelp": "restaurants"}
)
_SNIPPETS: Mapping[VaderPart, str] = MappingProxyType(
    {
        "tweets": "tweets",
        "amazon": "reviews of products",
        "movie": "reviews of films",
        "nyt": "editorials",
    }
)


def _tasks() -> Iterator[Task]:
    for part, of in _REVIEWS.items():
        yield Task(
            name=f"sentiment/{part}",
            load=partial(load_sentiment, part),
            source="sentiment",
            content=f"sentences of reviews ({of})",
        )
    for snippets, of in _SNIPPETS.items():
        yield Task(
            name=f"vader/{snippets}",
            load=partial(load_vader, snippets),
            source="vader",
            content=f"opinions in {of}",
        )
    yield Task(name="spam", load=load_spam, source="spam", content="e-mails: ham or spam")


TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _tasks()})


def task_of(name: str) -> Task:
    """The task of that name.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    if name not in TASKS:
        raise InvalidInputError(f"There is no task {name!r}; one of {', '.join(TASKS)} is.")
    return TASKS[name]


def load_task(name: str) -> TaskData:
    """The three parts of a task's data; the same for every seed of a training.

    Raises
    ------
    InvalidInputError
        If there is no such task.
    DataMissingError
        If the archive has not been fetched; says how.
    CorruptFileError
        If the archive has other bytes than the pinned ones.
    """
    outer = task_of(name).load()
    inner = split_texts(outer.train, held_out=VALIDATION, seed=_VALIDATION_SEED)
    return TaskData(train=inner.train, validation=inner.held_out, test=outer.held_out)
