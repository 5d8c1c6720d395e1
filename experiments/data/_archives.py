"""Members of archives, read by name into memory: nothing is unpacked to a path of its choosing."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...core.errors import CorruptFileError

MAX_MEMBER = 512 * 2**20
"""Bytes; a larger member is refused, so that a small archive cannot fill the memory."""


def tar_members(
    file: Path | bytes, *, prefix: str = "", suffix: str = ""
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files of a tar archive (gzip, xz, bz2 or none), in its order.

    Links, devices and folders are passed over.

    Raises
    ------
    CorruptFileError
        If the archive cannot be read to its end, or a member is larger than ``MAX_MEMBER``.
    """
    name = "an inner archive" if isinstance(file, bytes) else str(file)
    try:
        with (
            io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*") as tar,
        ):
            for member in tar:
                plain = member.name.removeprefix("./")
                if not (member.isreg() and plain.startswith(prefix) and plain.endswith(suffix)):
                    continue
                _check_size(name, plain, member.size)
                content = tar.extractfile(member)
                data = b"" if content is None else content.read()
                yield plain, data
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, ValueError) as error:
        if isinstance(error, (CorruptFileError, FileNotFoundError)):
            raise
        raise CorruptFileError(f"{name} cannot be read as a tar archive: {error}.") from error


def tar_member(file: Path | bytes, wanted: str) -> bytes:
    """One file of a tar archive.

    Raises
    ------
    CorruptFileError
        If it is not there; or as :func:`tar_members`.
    """
    for name, data in tar_members(file, prefix=wanted, suffix=wanted):
        if name == wanted:
            return data
    raise _absent(file, wanted)


def zip_member(file: Path, wanted: str) -> bytes:
    """One file of a zip archive (a wheel is one).

    Raises
    ------
    CorruptFileError
        If it is not there, is too large, or fails its check sum.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_size(str(file), wanted, archive.getinfo(wanted).file_size)
            return archive.read(wanted)
    except KeyError as error:
        raise _absent(file, wanted) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptFileError(f"{file} cannot be read as a zip archive: {error}.") from error


def zip_names(file: Path) -> list[str]:
    """Names of all files of a zip archive.

    Raises
    ------
    CorruptFileError
        If it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, EOFError) as error:
        raise CorruptFileError(f"{file} cannot be read as a zip archive: {error}.") from error


def deb_data(file: Path) -> bytes:
    """The inner tar archive of a Debian package: the member ``data.tar.*`` of an ``ar`` archive.

    Raises
    ------
    CorruptFileError
        If the file is not a Debian package.
    """
    with file.open("rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise CorruptFileError(f"{file} is not a Debian package: it does not start as one.")
        while True:
            entry = _ar_entry(stream, file)
            if entry is None:
                raise _absent(file, "data.tar")
            name, size = entry
            if name.startswith("data.tar"):
                _check_size(str(file), name, size)
                data = stream.read(size)
                if len(data) != size:
                    raise CorruptFileError(f"{file} ends within {name}.")
                return data
            stream.seek(size + size % 2, io.SEEK_CUR)


def _ar_entry(stream: BinaryIO, file: Path) -> tuple[str, int] | None:
    """Name and size of the next member; None at the end."""
    header = stream.read(60)
    if not header:
        return None
    size = header[48:58].strip()
    if len(header) != 60 or header[58:] != b"`\n" or not size.isdigit():
        raise CorruptFileError(f"{file} has a damaged header of an ar member.")
    return header[:16].decode("ascii", "replace").strip().rstrip("/"), int(size)


def _check_size(file: str, name: str, size: int) -> None:
    if size > MAX_MEMBER:
        raise CorruptFileError(
            f"{name} in {file} would take {size} bytes; at most {MAX_MEMBER} are accepted."
        )


def _absent(file: Path | bytes, wanted: str) -> CorruptFileError:
    name = "the inner archive" if isinstance(file, bytes) else str(file)
    return CorruptFileError(f"{name} holds no {wanted}.")
