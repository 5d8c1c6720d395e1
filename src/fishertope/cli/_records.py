"""Rows of a data file, read one after another: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import BackendUnavailable, InvalidInputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
TEXT_NAMES = ("text", "sentence", "premise", "question", "input", "content")
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A data file, checked once from end to end, then read as often as needed.

    Attributes
    ----------
    path : Path
    text : tuple of str
        One column of texts, or two for pairs of sentences.
    label : str or None
        Column of labels, as they stand in the file.
    n : int
        Rows that are read.
    data_sha256 : str
        Of the file's bytes, the columns and the number of rows.
    """

    path: Path
    text: tuple[str, ...]
    label: str | None
    n: int
    data_sha256: str

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Texts and label of one row after another."""
        for number, row in islice(_rows(self.path), self.n):
            yield (
                tuple(_text(row, c, self.path, number) for c in self.text),
                self._label(row, number),
            )

    def _label(self, row: Row, number: int) -> Any:
        if self.label is None:
            return None
        found = row.get(self.label)
        if found is None or found == "":
            raise InvalidInputError(
                f"{self.path}, row {number}: the column {self.label!r} is empty; every row needs "
                "a label. Fill it in, drop the row, or leave --label out."
            )
        return found


def open_records(
    path: Path, *, text: tuple[str, ...] = (), label: str | None = None, limit: int | None = None
) -> Records:
    """Read a data file once, and say at once what is wrong with it.

    Parameters
    ----------
    path : path
        CSV or TSV with a header line, JSON lines (one object a line), or Parquet.
    text : tuple of str
        Columns of texts; guessed from usual names when empty.
    label : str, optional
        Column of labels.
    limit : int, optional
        Read so many rows at most.

    Raises
    ------
    InvalidInputError
        Unknown ending, missing column, empty text or label, no row, bytes that are no UTF-8.
    BackendUnavailable
        Parquet without pyarrow.
    FileNotFoundError
        If there is no such file.
    """
    if not path.is_file():
        raise InvalidInputError(
            f"{path} is no file. Give a data file ({', '.join(SUFFIXES)}), or a Python loader as "
            "module:function."
        )
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InvalidInputError(f"{path} holds no row; at least one is needed.")
    columns = list(first[1])
    chosen = text or _guess(columns, label, path)
    if len(chosen) > 2:
        raise InvalidInputError(
            f"--text was given {len(chosen)} times ({', '.join(chosen)}); one column of texts, or "
            "two for pairs of sentences, is taken."
        )
    for option, name in [("--text", c) for c in chosen] + ([("--label", label)] if label else []):
        if name not in columns:
            raise InvalidInputError(
                f"{path} has no column {name!r} ({option}); its columns are: "
                f"{', '.join(map(str, columns))}.{_near(str(name), columns)}"
            )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([chosen, label, limit]).encode())
    whole = Records(path=path, text=chosen, label=label, n=limit or 2**62, data_sha256="")
    n = sum(1 for _ in whole)
    return Records(path=path, text=chosen, label=label, n=n, data_sha256=digest.hexdigest())


def read_columns(path: Path, limit: int) -> dict[str, list[Any]]:
    """Every column of a data file, as far as ``limit`` rows; "" where a row lacks it."""
    found: dict[str, list[Any]] = {}
    for number, (_, row) in enumerate(islice(_rows(path), limit)):
        for name, value in row.items():
            found.setdefault(str(name), [""] * number).append("" if value is None else value)
        for values in found.values():
            if len(values) == number:
                values.append("")
    return found


def _guess(columns: list[str], label: str | None, path: Path) -> tuple[str, ...]:
    for name in TEXT_NAMES:
        if name in columns and name != label:
            return (name,)
    raise InvalidInputError(
        f"{path} has the columns {', '.join(map(str, columns))}, and none of the usual names of "
        f"texts ({', '.join(TEXT_NAMES)}). Say which one holds the texts: --text COLUMN."
    )


def _near(name: str, columns: list[str]) -> str:
    near = get_close_matches(name, [str(c) for c in columns], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _text(row: Row, column: str, path: Path, number: int) -> str:
    found = row.get(column)
    if not isinstance(found, str) or not found.strip():
        what = "is empty" if found is None or found == "" else f"holds {str(found)[:40]!r}"
        raise InvalidInputError(
            f"{path}, row {number}: the column {column!r} {what}; every row needs a text there. "
            "Fill it in or drop the row."
        )
    return found


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows numbered from 1, whatever the format."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{path} ends in {suffix or 'nothing'!r}; data files end in {', '.join(SUFFIXES)}. "
            "For anything else give a Python loader as module:function."
        )
    if suffix == ".parquet":
        return enumerate(_parquet(path), start=1)
    if suffix in (".csv", ".tsv"):
        return enumerate(_csv(path, "," if suffix == ".csv" else "\t"), start=1)
    return enumerate(_json_lines(path), start=1)


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row:
                    raise InvalidInputError(
                        f"{path}, line {reader.line_num}: it has more fields than the header "
                        f"({len(reader.fieldnames or [])}). Put texts that contain "
                        f"{delimiter!r} in double quotes."
                    )
                yield row
    except csv.Error as error:
        raise InvalidInputError(
            f"{path} is not valid CSV: {error}. Give UTF-8 with a header line, and texts that "
            "contain the separator or line ends in double quotes."
        ) from None
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InvalidInputError(
                        f"{path}, line {number}: it is not JSON ({error}). Give one JSON object a "
                        'line, such as {"text": "...", "label": 0}.'
                    ) from None
                if not isinstance(found, dict):
                    raise InvalidInputError(
                        f"{path}, line {number}: it holds a {type(found).__name__}; one JSON "
                        'object a line is taken, such as {"text": "...", "label": 0}.'
                    )
                yield found
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise BackendUnavailable(
            f"{path} is a Parquet file, and pyarrow is not installed: pip install "
            "'fishertope[parquet]'. Or give the rows as CSV or JSON lines."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise InvalidInputError(f"{path} cannot be read as Parquet: {reason}") from None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not UTF-8 (byte {error.start} of a block: {error.reason}). Save it as UTF-8."
    )
