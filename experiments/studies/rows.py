"""The rows of finished units: one JSON line each, appended so that a kill loses no finished one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ...core.errors import CorruptFileError, InvalidInputError
from ...core.storage import plain
from ...core.storage.atomic import explain_write, parse_json
from ...core.types import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A finished unit.

    Attributes
    ----------
    key : str
        Hash of the study, its version and the settings.
    settings, result : mapping
        What went in and what came out.
    run : mapping
        Wall seconds, threads, versions, peak memory: facts of the run that no table compares.
    """

    key: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    run: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """A result, else a setting, by name; numbers that JSON lacks come back as floats."""
        value = self.result[name] if name in self.result else self.settings[name]
        return _NUMBERS.get(value, value) if isinstance(value, str) else value

    def line(self) -> bytes:
        """The row as one line of JSON."""
        values = {name: getattr(self, name) for name in ("key", "settings", "result", "run")}
        text = json.dumps(plain(values), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"


_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class Rows(Sequence[Row]):
    """Rows in the order of the study's units, with ways to pick from them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        return Rows(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def where(self, **settings: Any) -> Rows:
        """Rows with these settings."""
        wanted = plain(settings)
        return Rows(
            r for r in self._rows if all(r.settings.get(k, _NONE) == v for k, v in wanted.items())
        )

    def distinct(self, name: str) -> list[Any]:
        """The values of a setting, in order of appearance."""
        return list(dict.fromkeys(r.settings[name] for r in self._rows))

    def values(self, name: str, **settings: Any) -> FloatArray:
        """A number of every row with these settings, as an array.

        Raises
        ------
        InvalidInputError
            If there is no such row.
        """
        found = [r[name] for r in self.where(**settings)]
        if not found:
            raise InvalidInputError(f"No row has the settings {settings}.")
        return np.array(found, dtype=np.float64)

    def differences(
        self, name: str, first: Mapping[str, Any], second: Mapping[str, Any]
    ) -> FloatArray:
        """A number under ``first`` minus the same under ``second``, pair by pair.

        Rows are paired by all settings that neither mapping names (the seed, usually).

        Raises
        ------
        InvalidInputError
            If a row has no partner.
        """
        named = set(first) | set(second)

        def rest(row: Row) -> str:
            return canonical({k: v for k, v in row.settings.items() if k not in named})

        one = {rest(r): float(r[name]) for r in self.where(**first)}
        two = {rest(r): float(r[name]) for r in self.where(**second)}
        if not one or one.keys() != two.keys():
            raise InvalidInputError(f"The rows of {dict(first)} and {dict(second)} do not pair up.")
        return np.array([one[k] - two[k] for k in one])

    @property
    def seconds(self) -> float:
        """Wall time of all units together."""
        return float(sum(r.run.get("seconds", 0.0) for r in self._rows))


_NONE = object()


def canonical(settings: Mapping[str, Any]) -> str:
    """JSON with sorted keys: equal settings give equal text."""
    return json.dumps(plain(settings), sort_keys=True, ensure_ascii=False, allow_nan=False)


def key_of(study: str, version: int, settings: Mapping[str, Any]) -> str:
    """What a unit's row is filed under."""
    text = canonical({"study": study, "version": version, "settings": settings})
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def append_row(path: Path, row: Row) -> None:
    """Add a line in one write and flush it to the disk; a torn last line is cut off first.

    Raises
    ------
    WriteFailedError
        If the system refuses.
    """
    with explain_write(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(0, os.SEEK_END)
            size = file.tell()
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write(row.line())
            file.flush()
            os.fsync(file.fileno())


def _row_of(value: Any) -> Row | None:
    try:
        row = Row(**value)
    except TypeError:
        return None
    parts = (row.settings, row.result, row.run)
    return row if isinstance(row.key, str) and all(isinstance(p, dict) for p in parts) else None


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by key, the last one of a key; a torn last line (a killed writer's) is left out.

    Raises
    ------
    CorruptFileError
        For any other line that is no row of ours.
    """
    if not path.is_file():
        return {}
    *lines, _ = path.read_bytes().split(b"\n")
    found: dict[str, Row] = {}
    for number, line in enumerate(lines, 1):
        what = f"{path}, line {number}: this"
        value = parse_json(line, what)
        row = _row_of(value)
        if row is None:
            raise CorruptFileError(
                f"{what} is not a row of a study. Remove the line, or the file to run again."
            )
        found[row.key] = row
    return found
