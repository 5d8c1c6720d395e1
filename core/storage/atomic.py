"""Atomic writes: under its final name a file is either the old one or the complete new one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CorruptFileError, FishertopeError, WriteFailedError
from .facts import plain

PARTIAL_SUFFIX = ".partial"
"""Ending of the temporary names; whatever bears it is unfinished and may be deleted."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; at the end of the block it becomes ``path``.

    Written, flushed to the disk, then renamed. If the block raises, the temporary file is removed
    and whatever was at ``path`` stays. A killed process leaves ``.NAME.*.partial`` behind, never
    a half-written ``path``.

    Raises
    ------
    WriteFailedError
        If the folder is missing or read-only, or the disk is full.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    with explain_write(target):
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically.

    Raises
    ------
    WriteFailedError
        As :func:`replacing`.
    """
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises
    ------
    WriteFailedError
        As :func:`replacing`.
    """
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON atomically (see :func:`~fishertope.core.storage.plain`).

    Raises
    ------
    WriteFailedError
        As :func:`replacing`.
    InvalidInputError
        If ``value`` holds something that has no JSON form.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    CorruptFileError
        If it is not JSON in UTF-8, or has a key twice.
    FileNotFoundError
        If there is no such file.
    """
    return parse_json(Path(path).read_bytes(), f"{os.fspath(path)}: this")


def parse_json(data: bytes, what: str) -> Any:
    """JSON of untrusted origin: no duplicate keys, no NaN, no run-away nesting.

    Raises
    ------
    CorruptFileError
        Beginning with ``what``, which ends in a noun ("... the header").
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{what} is not valid JSON ({error}). The file is damaged or was edited; "
            "restore it from a copy or compute it again."
        ) from None


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_write(target: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a message that says what to do."""
    try:
        yield
    except FishertopeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteFailedError(
            f"{os.fspath(target)} could not be written: {reason}. Nothing was left under that "
            "name. Choose a folder that exists, is writable and has room."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
