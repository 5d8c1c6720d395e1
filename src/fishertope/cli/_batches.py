"""From texts with labels to the batches that a checkpoint takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.model import Bernoulli, Gaussian
from ..core.model.tokens import IGNORED
from ._checkpoint import Checkpoint, Task
from ._records import Records

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json",
                    "merges.txt", "tokenizer.model", "spiece.model")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatches:
    """Batches of tokens, made when they are asked for, so that memory holds one at a time.

    Attributes
    ----------
    records : Records
        For an encoder-decoder over its whole vocabulary, the second column is the target.
    checkpoint : Checkpoint
    batch_size : int
    data_sha256 : str
        By which a store knows its data: file, columns, tokenizer, lengths.
    """

    records: Records
    checkpoint: Checkpoint
    batch_size: int
    data_sha256: str

    @property
    def dataset(self) -> Records:
        """What has a length, as a ``DataLoader`` has it."""
        return self.records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = iter(self.records)
        while chunk := list(islice(rows, self.batch_size)):
            yield self._batch([texts for texts, _ in chunk], [label for _, label in chunk])

    def _batch(self, texts: list[tuple[str, ...]], labels: list[Any]) -> dict[str, Any]:
        import torch

        own = self.checkpoint
        decoded = own.task is Task.SEQ2SEQ and not own.words
        pair = len(texts[0]) == 2 and not decoded
        batch = dict(self._tokens([t[0] for t in texts], [t[1] for t in texts] if pair else None))
        if own.task is Task.SEQ2SEQ:
            start = own.model.config.decoder_start_token_id
            if own.words:
                batch["decoder_input_ids"] = torch.full((len(texts), 1), start)
            else:
                target = self._tokens([t[1] for t in texts], None)
                ids, mask = target["input_ids"], target["attention_mask"]
                begin = torch.full_like(ids[:, :1], start)
                batch["decoder_input_ids"] = torch.cat([begin, ids[:, :-1]], 1)
                batch["decoder_attention_mask"] = mask
                batch["labels"] = ids.masked_fill(mask == 0, IGNORED)
        elif own.task is Task.CAUSAL and not own.words:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            batch["labels"] = ids.masked_fill(mask == 0, IGNORED)[:, 1:]
        if self.records.label is not None:
            batch["labels"] = torch.tensor(labels)
            if isinstance(own.output, Gaussian):
                batch["labels"] = batch["labels"].to(own.model.dtype)[:, None]
        return batch

    def _tokens(self, texts: list[str], second: list[str] | None) -> Any:
        return self.checkpoint.tokenizer(
            texts, second, padding=True, truncation=True, return_tensors="pt",
            max_length=self.checkpoint.max_length,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRecords:
    """Records whose labels are class numbers (or numbers, for regression).

    Attributes
    ----------
    records : Records
    checkpoint : Checkpoint
    """

    records: Records
    checkpoint: Checkpoint

    def __len__(self) -> int:
        return len(self.records)

    @property
    def label(self) -> str | None:
        """Column of labels."""
        return self.records.label

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        for number, (texts, label) in enumerate(self.records, start=1):
            yield texts, None if self.label is None else self._number(label, number)

    def _number(self, label: Any, row: int) -> int | float:
        own, where = self.checkpoint, f"{self.records.path}, row {row}, column {self.label!r}"
        if isinstance(own.output, Gaussian):
            try:
                return float(label)
            except (TypeError, ValueError):
                raise InvalidInputError(
                    f"{where}: {str(label)[:40]!r} is no number; this model is a regression."
                ) from None
        if str(label) in own.classes:
            return own.classes.index(str(label))
        count = len(own.classes)
        try:
            found = int(str(label))
        except ValueError:
            found = -1
        if not 0 <= found < count:
            names = ", ".join(own.classes[:8]) + (", ..." if count > 8 else "")
            raise InvalidInputError(
                f"{where}: the label {str(label)[:40]!r} is outside the model's {count} classes; "
                f"accepted are the numbers 0 to {count - 1} and the names {names}."
            )
        return found


def text_batches(
    records: Records, checkpoint: Checkpoint, batch_size: int, folder: Path
) -> TextBatches:
    """Batches of a data file for a checkpoint, every label checked.

    Raises
    ------
    InvalidInputError
        Labels outside the model's classes, or for a task that takes none from a file; a target
        column that is missing.
    """
    whole = checkpoint.task in (Task.CAUSAL, Task.SEQ2SEQ) and not checkpoint.words
    unlabelled = whole or checkpoint.task is Task.TOKENS or isinstance(checkpoint.output, Bernoulli)
    if records.label is not None and unlabelled:
        raise InvalidInputError(
            f"--label was given for {checkpoint.task} with the output "
            f"{checkpoint.output.name!r}, which has no single label a row. Leave it out, or give "
            "batches by a Python loader (module:function)."
        )
    if whole and checkpoint.task is Task.SEQ2SEQ and len(records.text) != 2:
        raise InvalidInputError(
            "An encoder-decoder over its whole vocabulary needs the target that it is to read: "
            "give --text twice, input and target, or ask about --label-word only."
        )
    labelled: Any = records
    if records.label is not None:
        labelled = LabelledRecords(records=records, checkpoint=checkpoint)
        for _ in labelled:
            pass  # a wrong label in the last row is told now, not after hours
    digest = hashlib.sha256(f"{records.data_sha256} {checkpoint.max_length}".encode())
    digest.update(f"{checkpoint.task} {checkpoint.words}".encode())
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return TextBatches(
        records=labelled, checkpoint=checkpoint, batch_size=batch_size,
        data_sha256=digest.hexdigest(),
    )  # fmt: skip
