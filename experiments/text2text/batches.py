"""Token examples as the arrays that each structure reads: packing, and conversion to a batch.

A row is a list of examples that share one row of a batch. Segment ``k`` marks the ``k``-th of
them, 0 marks padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fishertope.core.errors import InvalidInputError

from .tasks import TokenExample

Row: TypeAlias = Sequence[TokenExample]
Ints: TypeAlias = NDArray[np.int64]
LossOn: TypeAlias = Literal["targets", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Largest numbers of tokens of a row: ``inputs`` and ``targets``, ends counted.

    A single stack reads both sides one after the other, ``inputs + targets`` tokens.
    """

    inputs: int
    targets: int

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.targets < 1:
            raise InvalidInputError(
                f"inputs={self.inputs}, targets={self.targets}; give lengths of at least 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a model reads and is compared with; int64 arrays of ``b`` rows.

    Attributes
    ----------
    inputs : (b, s), optional
        Encoder tokens; ``None`` for a single stack.
    decoder_tokens, targets : (b, t)
        Tokens read by the decoder, and those it is to predict.
    weights : float32 (b, t)
        1 where a prediction counts.
    input_segments, target_segments, positions : optional
        Of packed rows; positions count from 0 in every segment.
    prefix : bool (b, t), optional
        Of the prefix LM: places that see all of their inputs.
    """

    inputs: Ints | None
    decoder_tokens: Ints
    targets: Ints
    weights: NDArray[np.float32]
    input_segments: Ints | None = None
    target_segments: Ints | None = None
    positions: Ints | None = None
    prefix: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of both sides that are no padding."""
        read = 0 if self.inputs is None else int((self.inputs != 0).sum())
        return read + int((self.targets != 0).sum())


def pack(
    examples: Iterable[TokenExample], lengths: Lengths, *, single_stack: bool = False
) -> Iterator[list[TokenExample]]:
    """Rows of as many consecutive examples as fit, in their order (next fit).

    Raises
    ------
    InvalidInputError
        If an example alone does not fit.
    """
    row: list[TokenExample] = []
    for example in examples:
        if not fits([example], lengths, single_stack=single_stack):
            raise InvalidInputError(
                f"an example of {len(example.inputs)} and {len(example.targets)} tokens does not "
                f"fit into {lengths}; trim it first (tokenize does)"
            )
        if row and not fits([*row, example], lengths, single_stack=single_stack):
            yield row
            row = []
        row.append(example)
    if row:
        yield row


def fits(row: Row, lengths: Lengths, *, single_stack: bool) -> bool:
    """Whether the examples fit into one row together."""
    read, written = sum(len(e.inputs) for e in row), sum(len(e.targets) for e in row)
    if single_stack:
        return read + written <= lengths.inputs + lengths.targets
    return read <= lengths.inputs and written <= lengths.targets


def to_encoder_decoder(rows: Sequence[Row], lengths: Lengths, *, start_id: int = 0) -> Batch:
    """Inputs for the encoder, targets for the decoder.

    Unpacked rows (one example each) have no segments: padding alone is masked.
    """
    packed = any(len(row) > 1 for row in rows)
    inputs, input_segments, _ = _filled([[e.inputs for e in row] for row in rows], lengths.inputs)
    targets, segments, positions = _filled(
        [[e.targets for e in row] for row in rows], lengths.targets
    )
    return Batch(
        inputs=inputs,
        decoder_tokens=_shifted(targets, segments if packed else None, start_id),
        targets=targets,
        weights=(segments > 0).astype(np.float32),
        input_segments=input_segments if packed else None,
        target_segments=segments if packed else None,
        positions=positions if packed else None,
    )


def to_single_stack(
    rows: Sequence[Row],
    lengths: Lengths,
    *,
    prefix: bool,
    loss_on: LossOn = "targets",
    start_id: int = 0,
) -> Batch:
    """Inputs and targets one after the other, for a language model or a prefix LM.

    Parameters
    ----------
    prefix
        Mark the inputs of each example, and the place after them, as seen by each other.
    loss_on
        "targets" for fine-tuning; "all" counts the inputs too, as in pre-training of the
        language model. A prefix LM never predicts what it sees.
    """
    if prefix and loss_on == "all":
        raise InvalidInputError('loss_on="all" with a prefix: the inputs are seen; take "targets"')
    length = lengths.inputs + lengths.targets
    tokens, segments, positions = _filled(
        [[np.concatenate([e.inputs, e.targets]) for e in row] for row in rows], length
    )
    read = np.zeros(tokens.shape, dtype=bool)
    seen = np.zeros(tokens.shape, dtype=bool)
    for i, row in enumerate(rows):
        at = 0
        for example in row:
            n, m = len(example.inputs), len(example.targets)
            read[i, at : at + n] = True
            seen[i, at : at + n + 1] = True
            at += n + m
    packed = any(len(row) > 1 for row in rows)
    counted = segments > 0 if loss_on == "all" else (segments > 0) & ~read
    return Batch(
        inputs=None,
        decoder_tokens=_shifted(tokens, segments if packed else None, start_id),
        targets=tokens,
        weights=counted.astype(np.float32),
        target_segments=segments if packed else None,
        positions=positions if packed else None,
        prefix=seen if prefix else None,
    )


def _filled(rows: Sequence[Sequence[Ints]], length: int) -> tuple[Ints, Ints, Ints]:
    """Tokens, segments and positions (b, length), 0 at padding."""
    tokens, segments, positions = (np.zeros((len(rows), length), dtype=np.int64) for _ in range(3))
    for i, parts in enumerate(rows):
        at = 0
        for k, part in enumerate(parts, 1):
            end = at + len(part)
            if end > length:
                raise InvalidInputError(f"a row of more than {length} tokens; pack or trim it")
            tokens[i, at:end] = part
            segments[i, at:end] = k
            positions[i, at:end] = np.arange(len(part))
            at = end
    return tokens, segments, positions


def _shifted(targets: Ints, segments: Ints | None, start_id: int) -> Ints:
    """Tokens read before each target: the start at the beginning of every segment."""
    out = np.full_like(targets, start_id)
    out[:, 1:] = targets[:, :-1]
    if segments is not None:
        out[:, 1:][segments[:, 1:] != segments[:, :-1]] = start_id
    return out


def convert(rows: Sequence[Row], lengths: Lengths, arch: str, **options: Any) -> Batch:
    """The batch of a structure by its name (``Seq2SeqConfig.arch``)."""
    if arch in ("encdec", "encdec_shared"):
        return to_encoder_decoder(rows, lengths, **options)
    if arch in ("lm", "prefix_lm"):
        return to_single_stack(rows, lengths, prefix=arch == "prefix_lm", **options)
    raise InvalidInputError(f"arch={arch!r}; accepted are encdec, encdec_shared, lm, prefix_lm")
