"""Texts as token ids: UTF-8 bytes, or the pieces of a SentencePiece model.

Both have padding 0, end 1, unknown 2, and their sentinels at the end, counted downwards.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from fishertope.core.errors import CorruptFileError, InvalidInputError, PackageMissingError


class SentinelVocabulary(Protocol):
    """What an objective needs to know about a vocabulary."""

    @property
    def size(self) -> int:
        """Number of ids, the sentinels last."""
        ...

    @property
    def sentinels(self) -> int:
        """Number of sentinels."""
        ...

    @property
    def first_ordinary(self) -> int:
        """Smallest id of an ordinary token."""
        ...

    def sentinel(self, k: int) -> int:
        """Id of sentinel ``k``."""
        ...


class Vocabulary(SentinelVocabulary, Protocol):
    """Text to token ids and back."""

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        ...

    @property
    def eos_id(self) -> int:
        """Id of the end."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end."""
        ...

    def facts(self) -> dict[str, Any]:
        """What tells this vocabulary from another, for checkpoints."""
        ...


def _sentinel(k: int, sentinels: int, size: int) -> int:
    if not 0 <= k < sentinels:
        raise InvalidInputError(
            f"sentinel {k} of a vocabulary with {sentinels}; use fewer or longer noise "
            "spans, shorter sequences, or more sentinels"
        )
    return size - 1 - k


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteVocabulary:
    """UTF-8 bytes at ids 3 to 258; sentinel ``k`` has the id ``size - 1 - k``."""

    sentinels: int = 100
    pad_id: int = 0
    eos_id: int = 1
    unk_id: int = 2

    @property
    def size(self) -> int:
        """Number of ids."""
        return 259 + self.sentinels

    @property
    def first_ordinary(self) -> int:
        """Smallest id that is neither padding, end nor unknown."""
        return 3

    def sentinel(self, k: int) -> int:
        """Id of sentinel ``k``; raises where the block of sentinels has no such one."""
        return _sentinel(k, self.sentinels, self.size)

    def encode(self, text: str) -> list[int]:
        """Ids of the UTF-8 bytes of a text, without an end."""
        return [3 + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end; padding is skipped, sentinels are written ``<extra_id_k>``."""
        out = bytearray()
        for token in ids:
            if token == self.eos_id:
                break
            if token >= 259:
                out += f"<extra_id_{self.size - 1 - token}>".encode()
            elif token >= 3:
                out.append(token - 3)
            elif token == self.unk_id:
                out += "\N{REPLACEMENT CHARACTER}".encode()
        return out.decode(errors="replace")

    def facts(self) -> dict[str, Any]:
        """Kind and number of sentinels."""
        return {"kind": "bytes", "sentinels": self.sentinels}


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceVocabulary:
    """The pieces of a SentencePiece model (the ``text`` extra), then the sentinels.

    Parameters
    ----------
    model
        Bytes of the model: padding 0, end 1, unknown 2, as T5 has them.
    sentinels
        Number of sentinels after the pieces.

    Raises
    ------
    PackageMissingError
        Without the package ``sentencepiece``.
    CorruptFileError
        If the bytes are no such model.
    """

    model: bytes = field(repr=False)
    sentinels: int = 100
    pad_id: int = 0
    eos_id: int = 1
    unk_id: int = 2
    _processor: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        package = _sentencepiece()
        processor = package.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.model)
        except (RuntimeError, TypeError) as exc:
            raise CorruptFileError(
                f"{len(self.model)} bytes are not a SentencePiece model ({exc}); give the contents "
                "of a spiece.model, or train one with SentencePieceVocabulary.train"
            ) from exc
        found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        if found != (self.pad_id, self.eos_id, self.unk_id):
            raise InvalidInputError(
                f"the model has padding, end and unknown at {found}; "
                f"{(self.pad_id, self.eos_id, self.unk_id)} are accepted"
            )
        object.__setattr__(self, "_processor", processor)

    @classmethod
    def load(cls, path: str | PathLike[str], *, sentinels: int = 100) -> SentencePieceVocabulary:
        """Read a ``spiece.model``."""
        return cls(model=Path(path).read_bytes(), sentinels=sentinels)

    @classmethod
    def train(
        cls, texts: Iterable[str], *, size: int, sentinels: int = 100
    ) -> SentencePieceVocabulary:
        """A unigram model of ``size - sentinels`` pieces, trained on texts in memory.

        Deterministic: one thread, no sampling. Seconds for a few megabytes.

        Raises
        ------
        InvalidInputError
            If the texts are too few for that many pieces.
        """
        package, out = _sentencepiece(), io.BytesIO()
        lines = (line for text in texts for line in text.splitlines() if line.strip())
        try:
            package.SentencePieceTrainer.Train(
                sentence_iterator=lines, model_writer=out, vocab_size=size - sentinels,
                model_type="unigram", character_coverage=1.0, byte_fallback=False, num_threads=1,
                pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, max_sentence_length=65_536,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError) as exc:
            raise InvalidInputError(
                f"no vocabulary of {size} ids with {sentinels} sentinels from these texts "
                f"({str(exc).strip().splitlines()[-1]}); give more text or a smaller size"
            ) from exc
        return cls(model=out.getvalue(), sentinels=sentinels)

    @property
    def size(self) -> int:
        """Number of ids."""
        return int(self._processor.GetPieceSize()) + self.sentinels

    @property
    def first_ordinary(self) -> int:
        """Smallest id that is neither padding, end nor unknown."""
        return 3

    def sentinel(self, k: int) -> int:
        """Id of sentinel ``k``; raises where the block of sentinels has no such one."""
        return _sentinel(k, self.sentinels, self.size)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces, without an end."""
        return [int(i) for i in self._processor.EncodeAsIds(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end; padding is skipped, sentinels are written ``<extra_id_k>``."""
        border, parts, run = self.size - self.sentinels, [], list[int]()
        for token in ids:
            if token == self.eos_id:
                break
            if border <= token < self.size:
                parts += [self._processor.DecodeIds(run), f"<extra_id_{self.size - 1 - token}>"]
                run = []
            elif token != self.pad_id and token < border:
                run.append(int(token))
        return " ".join(p for p in [*parts, self._processor.DecodeIds(run)] if p)

    def facts(self) -> dict[str, Any]:
        """Kind, number of sentinels, hash of the model."""
        digest = hashlib.sha256(self.model).hexdigest()
        return {"kind": "sentencepiece", "sentinels": self.sentinels, "sha256": digest}


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as exc:
        raise PackageMissingError(
            "SentencePiece vocabularies need the package sentencepiece, which is not installed; "
            'pip install "fishertope[text]" brings it, and ByteVocabulary needs nothing.'
        ) from exc
    return sentencepiece
