"""Endless streams of token examples: the same for every number of shards, at any place.

The ``i``-th example of a stream is a function of the stream's seed and ``i`` alone, so the place
of a stream is one number and sharding takes every ``k``-th example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fishertope.core.errors import InvalidInputError

from .batches import Batch, Lengths, LossOn, convert, fits
from .formats import Example
from .objectives import Objective, denoise, random_spans_lengths
from .tasks import TokenExample, tokenize
from .vocabulary import Vocabulary

LONGEST_CHUNK = 65_536
"""Tokens taken of a document at most, at a random place of it; arXiv 1910.10683's code."""


class Stream(Protocol):
    """Examples by number."""

    def __getitem__(self, i: int) -> TokenExample:
        """The ``i``-th example, i ≥ 0."""
        ...


def _rng(seed: int, *place: int) -> np.random.Generator:
    return np.random.default_rng([seed, *place])


class TaskStream:
    """The examples of a task, over and over, in a new order every time.

    Parameters
    ----------
    examples
        With ``inputs`` and ``targets`` texts.
    shuffle
        ``False`` keeps their order.
    """

    def __init__(
        self, examples: Sequence[Example], vocabulary: Vocabulary, lengths: Lengths, *,
        seed: int = 0, shuffle: bool = True,
    ) -> None:  # fmt: skip
        if not examples:
            raise InvalidInputError("there are no examples; give at least one")
        self._examples, self._vocabulary, self._lengths = examples, vocabulary, lengths
        self._tokens: list[TokenExample | None] = [None] * len(examples)
        self._seed, self._shuffle = seed, shuffle
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.arange(len(examples)))

    def __len__(self) -> int:
        """Number of examples of one round."""
        return len(self._examples)

    def __getitem__(self, i: int) -> TokenExample:
        """The ``i``-th example."""
        lap, place = divmod(i, len(self._tokens))
        if self._shuffle and self._order[0] != lap:
            order = _rng(self._seed, lap).permutation(len(self._tokens))
            self._order = (lap, order)
        return self._tokenized(int(self._order[1][place]))

    def _tokenized(self, k: int) -> TokenExample:
        """Tokens of example ``k`` of the task, made when it is first read."""
        found = self._tokens[k]
        if found is None:
            n, m = self._lengths.inputs, self._lengths.targets
            example = self._examples[k]
            found = tokenize(example, self._vocabulary, inputs_length=n, targets_length=m)
            self._tokens[k] = found
        return found


class CorpusStream:
    """Unsupervised examples of a corpus.

    Each round takes one chunk of at most ``LONGEST_CHUNK`` tokens of every document, in a new
    order, joins them, cuts the result into sequences of the raw length that fills ``lengths`` and
    applies the objective.

    Parameters
    ----------
    documents
        Token ids of each document, without ends (:func:`tokenized`).
    objective, density, mean_span
        As in :func:`~fishertope.experiments.text2text.objectives.denoise`; ``"lm"`` has empty
        inputs and the raw sequence as targets.
    max_tokens
        Repeat a fixed part of the corpus of that many tokens instead of all of it.
    """

    def __init__(
        self, documents: Sequence[NDArray[np.int64]], vocabulary: Vocabulary, lengths: Lengths, *,
        objective: Objective | str = "span_corruption", density: float = 0.15,
        mean_span: float = 3.0, seed: int = 0, max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self._documents = _first_tokens(documents, max_tokens)
        self._vocabulary, self._seed = vocabulary, seed
        self._objective, self._density, self._mean = objective, density, mean_span
        self._raw = raw_length(objective, lengths, density=density, mean_span=mean_span)
        total = sum(min(len(d), LONGEST_CHUNK) for d in self._documents)
        self._windows = total // self._raw
        if self._windows < 1:
            raise InvalidInputError(
                f"a corpus of {total} tokens has no sequence of {self._raw}; give more text or "
                "shorter lengths"
            )
        self._lengths = lengths
        self._joined: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    @property
    def raw_length(self) -> int:
        """Tokens of the corpus that one example is made of."""
        return self._raw

    def __len__(self) -> int:
        """Number of examples of one round."""
        return self._windows

    def __getitem__(self, i: int) -> TokenExample:
        """The ``i``-th example."""
        lap, place = divmod(i, self._windows)
        if self._joined[0] != lap:
            self._joined = (lap, self._round(lap))
        raw = self._joined[1][place * self._raw : (place + 1) * self._raw]
        eos = self._vocabulary.eos_id
        if self._objective == "lm":
            inputs, targets = raw[:0], raw
        else:
            inputs, targets = denoise(
                raw, self._objective, self._vocabulary, _rng(self._seed, lap, place),  # type: ignore[arg-type]
                density=self._density, mean_span=self._mean,
            )  # fmt: skip
            inputs = np.append(inputs[: self._lengths.inputs - 1], eos)
        return TokenExample(
            inputs=inputs, targets=np.append(targets[: self._lengths.targets - 1], eos)
        )

    def _round(self, lap: int) -> NDArray[np.int64]:
        rng = _rng(self._seed, lap)
        parts = []
        for k in rng.permutation(len(self._documents)):
            document = self._documents[k]
            if len(document) > LONGEST_CHUNK:
                start = int(rng.integers(0, len(document) - LONGEST_CHUNK + 1))
                document = document[start : start + LONGEST_CHUNK]
            parts.append(document)
        return np.concatenate(parts)


def raw_length(objective: str, lengths: Lengths, *, density: float, mean_span: float) -> int:
    """Longest raw sequence whose example fits into ``lengths``, ends counted."""
    n, m = lengths.inputs, lengths.targets
    if objective == "lm":
        return m - 1
    if objective in ("span_corruption", "replace_spans"):
        mean = mean_span if objective == "span_corruption" else 1.0 / (1.0 - density)
        raw, targets = random_spans_lengths(n, density, max(mean, 1.0))
        while targets > m and raw > 2:
            n -= 1
            raw, targets = random_spans_lengths(n, density, max(mean, 1.0))
        return raw
    if objective == "drop_tokens":
        return int(min((n - 1) / (1 - density), (m - 1) / density))
    return min(n, m) - 1


def _first_tokens(
    documents: Sequence[NDArray[np.int64]], max_tokens: int | None
) -> list[NDArray[np.int64]]:
    if max_tokens is None:
        return list(documents)
    kept, left = [], max_tokens
    for document in documents:
        if left <= 0:
            break
        kept.append(document[:left])
        left -= len(document)
    return kept


def tokenized(texts: Sequence[str], vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    """Token ids of each text that has any."""
    ids = (np.asarray(vocabulary.encode(text), dtype=np.int64) for text in texts)
    return [tokens for tokens in ids if len(tokens)]


class MixtureStream:
    """Examples of several streams, each next one drawn by the rates.

    Example ``i`` is example ``n`` of its stream, where ``n`` counts how often that stream was
    drawn before; the draws are a function of the seed alone.
    """

    _BLOCK = 4096

    def __init__(
        self, streams: Mapping[str, Stream], rates: Mapping[str, float], *, seed: int = 0
    ) -> None:
        missing = sorted(set(rates) ^ set(streams))
        if missing or not rates or not all(r > 0 for r in rates.values()):
            raise InvalidInputError(
                f"rates {dict(rates)} for the streams {sorted(streams)}; give each stream one "
                "positive rate"
            )
        self._names = list(rates)
        self._streams = dict(streams)
        weights = np.array([rates[name] for name in self._names], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())
        self._seed = seed
        self._before = [np.zeros(len(self._names), dtype=np.int64)]
        self._block: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def _draws(self, block: int) -> NDArray[np.int64]:
        if self._block[0] != block:
            u = _rng(self._seed, block).random(self._BLOCK)
            drawn = np.searchsorted(self._edges, u, side="right").astype(np.int64)
            self._block = (block, np.minimum(drawn, len(self._names) - 1))
        return self._block[1]

    def which(self, i: int) -> tuple[str, int]:
        """Name of the stream of example ``i``, and its number there."""
        block, place = divmod(i, self._BLOCK)
        while len(self._before) <= block:
            drawn = self._draws(len(self._before) - 1)
            counts = np.bincount(drawn, minlength=len(self._names))
            self._before.append(self._before[-1] + counts)
        drawn = self._draws(block)
        k = int(drawn[place])
        return self._names[k], int(self._before[block][k] + (drawn[:place] == k).sum())

    def __getitem__(self, i: int) -> TokenExample:
        """The ``i``-th example."""
        name, n = self.which(i)
        return self._streams[name][n]


class BatchStream:
    """Batches of a stream, with a place that can be stored and returned to.

    Parameters
    ----------
    stream, lengths, arch
        Examples, and how a model reads them.
    batch_size
        Rows of one batch, over all shards.
    packed
        Put as many consecutive examples into a row as fit.
    shard, shards
        Rows ``shard``, ``shard + shards``, … of every batch only; ``shards`` divides the size.
    """

    def __init__(
        self, stream: Stream, lengths: Lengths, *, batch_size: int, arch: str = "encdec",
        packed: bool = False, loss_on: LossOn = "targets", shard: int = 0, shards: int = 1,
    ) -> None:  # fmt: skip
        if batch_size < 1 or shards < 1 or batch_size % shards or not 0 <= shard < shards:
            raise InvalidInputError(
                f"batch_size={batch_size}, shard={shard} of {shards}; the size must be a positive "
                "multiple of the number of shards, and shards count from 0"
            )
        self._stream, self._lengths, self._size, self._arch = stream, lengths, batch_size, arch
        self._packed, self._shard, self._shards = packed, shard, shards
        self._single = arch in ("lm", "prefix_lm")
        self._options: dict[str, Any] = {"loss_on": loss_on} if self._single else {}
        self.place = 0

    def __iter__(self) -> BatchStream:
        """Itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch; there is always one."""
        rows = [self._row() for _ in range(self._size)]
        return convert(
            rows[self._shard :: self._shards], self._lengths, self._arch, **self._options
        )

    def _row(self) -> list[TokenExample]:
        row = [self._stream[self.place]]
        self.place += 1
        while self._packed:
            following = self._stream[self.place]
            if not fits([*row, following], self._lengths, single_stack=self._single):
                break
            row.append(following)
            self.place += 1
        return row

    def state(self) -> dict[str, int]:
        """The place, as plain numbers."""
        return {"place": self.place}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to a stored place."""
        place = state.get("place")
        if not isinstance(place, int) or isinstance(place, bool) or place < 0:
            raise InvalidInputError(f"place={place!r} of a stream; a whole number >= 0 is accepted")
        self.place = place
