"""Output folders: complete under their final name, resumable until then, never someone else's.

A run works in the hidden sibling ``.NAME.partial``. When everything is written and flushed, the
sibling is renamed to ``NAME``. A process killed at any moment leaves either the old results or
the new ones under ``NAME``, and the unfinished work in the sibling, where the next run with the
same settings takes it up.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

from ..backend.threads import thread_facts
from ..errors import (
    CorruptFileError,
    ForeignFolderError,
    InvalidInputError,
    ResultsExistError,
)
from ..types import NumpyArray
from . import arrays as _arrays
from .atomic import PARTIAL_SUFFIX, explain_write, read_json, sync_folder, write_bytes, write_json
from .facts import JSON, peak_memory_mib, plain, versions

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RESULTS = "results.json"
_RUN = "run.json"
_LOCK = "lock"
# Dropped into any folder that a file manager shows; nobody's work.
_FILE_MANAGERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_RESERVED = frozenset({MANIFEST, RESULTS, _RUN, _LOCK})


class OutputFolder:
    """A folder of results that appears under its name only when it is complete.

    ====================================  =====================================================
    what is there already                 what happens
    ====================================  =====================================================
    nothing, or an empty folder           the run starts
    unfinished work, same settings        it is taken up (:attr:`resumed` is true), unless
                                          ``resume=False``
    unfinished work, other settings       :class:`ResultsExistError`; dropped if ``overwrite``
    finished results of ours              :class:`ResultsExistError`; if ``overwrite``, replaced
                                          at the end, in one step
    finished results with files added     :class:`ForeignFolderError`, always
    anything else                         :class:`ForeignFolderError`, always
    ====================================  =====================================================

    Parameters
    ----------
    path : path
        Final name of the folder; its parents are created.
    command : str
        What is run ("demo").
    settings : mapping
        Everything that decides the results; together with the version of fishertope it tells
        whether unfinished work may be resumed.
    overwrite : bool or "same command"
        "same command": only results of the same ``command`` may be replaced.
    resume : bool

    Raises
    ------
    ForeignFolderError, ResultsExistError
        See the table.
    WriteFailedError
        If the place is not writable: known before any computing.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     place = pathlib.Path(parent) / "out"
    ...     with OutputFolder(place, command="example", settings={"seed": 0}) as out:
    ...         out.write_text("note.txt", "done")
    ...         out.finish({"answer": 42}, seed=0, backend="reference")
    ...     sorted(p.name for p in place.iterdir()), verify_folder(place)["command"]
    (['manifest.json', 'note.txt', 'results.json'], 'example')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        command: str,
        settings: Mapping[str, JSON],
        overwrite: bool | Literal["same command"] = False,
        resume: bool = True,
    ) -> None:
        # Resolved, so that the sibling lies on the same disk as the folder and not as a link to it.
        self.path = Path(path).resolve()
        if not self.path.name:
            raise InvalidInputError(f"{os.fspath(path)!r} was given; give the name of a folder.")
        self.working = self.path.with_name(f".{self.path.name}{PARTIAL_SUFFIX}")
        self._replaced = self.path.with_name(f".{self.path.name}.replaced")
        self._overwrite = overwrite
        self.resume = resume
        self.resumed = False
        self._identity: dict[str, Any] = {
            "command": command,
            "settings": plain(settings),
            "fishertope": versions()["fishertope"],
        }
        self._lock: int | None = None
        self._finished = False
        self._started = 0.0

    def __enter__(self) -> OutputFolder:
        with explain_write(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._recover()
            self._check_final()
            try:
                self._open_working()
            except BaseException:
                self._unlock()
                raise
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unlock()
        # A run that is not to be resumed, or that has nothing to resume, leaves no trace.
        if not self._finished and (not self.resume or not self._payload()):
            shutil.rmtree(self.working, ignore_errors=True)

    def file(self, name: str) -> Path:
        """Where the file ``name`` ("curve.svg", "figures/curve.svg") is while the run works.

        Raises
        ------
        InvalidInputError
            For absolute names, names that leave the folder, and names that the folder keeps for
            itself.
        """
        parts = PurePosixPath(name)
        outside = parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in name
        if outside or name in _RESERVED or any(_is_partial(p) for p in parts.parts):
            raise InvalidInputError(
                f"{name!r} was given; give a relative name inside the folder that is none of "
                f"{', '.join(sorted(_RESERVED))}."
            )
        return self.working / parts

    def has(self, name: str) -> bool:
        """Whether ``name`` is there already, complete (from the run that is resumed)."""
        return self.file(name).is_file()

    def save_arrays(
        self,
        name: str,
        arrays: Mapping[str, NumpyArray],
        facts: Mapping[str, JSON] | None = None,
        *,
        kind: str,
    ) -> None:
        """:func:`~fishertope.core.storage.save_arrays` into this folder."""
        _arrays.save_arrays(self._ready(name), arrays, facts, kind=kind)

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file into this folder."""
        write_bytes(self._ready(name), text.encode("utf-8", errors="replace"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file into this folder."""
        write_bytes(self._ready(name), data)

    def write_json(self, name: str, value: JSON) -> None:
        """Write a JSON file into this folder."""
        write_json(self._ready(name), value)

    def finish(
        self,
        results: Mapping[str, JSON],
        *,
        seed: int | None,
        backend: str | None,
        digests: Mapping[str, Mapping[str, JSON]] | None = None,
    ) -> None:
        """Write ``results.json`` and the manifest, and put the folder under its final name.

        Parameters
        ----------
        results : mapping
            The numbers of the run.
        seed, backend
            Recorded beside versions, threads, wall time and peak memory.
        digests : mapping, optional
            ``{"bytes": ..., "sha256": ...}`` of files that were hashed while they were written, or
            with ``None`` for a SHA-256 that shall not be made: of such a file only the size is
            checked later. All other files are read and hashed now.

        Raises
        ------
        ForeignFolderError, ResultsExistError
            If something came under the final name in the meantime; the work stays in the sibling.
        WriteFailedError
            If the system refuses the write.
        """
        facts = {
            **self._identity,
            "seed": seed,
            "backend": backend,
            "versions": versions(),
            "threads": thread_facts(),
            "wall_seconds": round(time.perf_counter() - self._started, 3),
            "peak_memory_mib": peak_memory_mib(),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.working / RESULTS, {"results": plain(results), "run": facts})
        with explain_write(self.path):
            self._drop_partials()
            known = digests or {}
            files = {
                name: dict(known[name]) if name in known else _digest(self.working / name)
                for name in self._payload()
            }
            manifest = {"fishertope_results": FORMAT_VERSION, **self._identity, "files": files}
            write_json(self.working / MANIFEST, manifest)
            (self.working / _RUN).unlink(missing_ok=True)
            self._unlock()
            (self.working / _LOCK).unlink(missing_ok=True)
            self._publish()
        self._finished = True

    def _publish(self) -> None:
        """Rename the sibling to the final name; old results step aside and are then deleted."""
        self._check_final()
        if self.path.is_dir() and any(self.path.iterdir()):
            os.rename(self.path, self._replaced)
        try:
            os.rename(self.working, self.path)
        except OSError:
            if self._replaced.is_dir():
                os.rename(self._replaced, self.path)
            raise
        sync_folder(self.path.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _check_final(self) -> None:
        """Refuse a final name that may not be taken."""
        path = self.path
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        manifest = _manifest(path)
        present = {n for n in _files(path) if PurePosixPath(n).name not in _FILE_MANAGERS}
        added = sorted(present - set(manifest["files"]) - {MANIFEST})
        if added:
            raise ForeignFolderError(
                f"{path} holds results of fishertope and also {_some(added)}, which would be "
                "lost. Move these away, or choose another folder."
            )
        if not self._may_replace(manifest["command"]):
            ask = "" if self._overwrite else ", or ask to overwrite them (--overwrite)"
            raise ResultsExistError(
                f"{path} holds finished results of {manifest['command']!r}. Choose another "
                f"folder{ask}."
            )

    def _may_replace(self, command: Any) -> bool:
        return self._overwrite is True or (
            self._overwrite == "same command" and command == self._identity["command"]
        )

    def _recover(self) -> None:
        """Undo or complete a replacement during which the process was killed."""
        if not self._replaced.is_dir():
            return
        _manifest(self._replaced)  # ours, or an error
        if self.path.exists():
            shutil.rmtree(self._replaced)
        else:
            os.rename(self._replaced, self.path)

    def _open_working(self) -> None:
        if self.working.exists():
            self._judge_working()
        self.working.mkdir(exist_ok=True)
        self._take_lock()
        self._drop_partials()
        write_json(self.working / _RUN, {"fishertope_run": FORMAT_VERSION, **self._identity})
        # A run killed between the manifest and the rename resumes as any other.
        (self.working / MANIFEST).unlink(missing_ok=True)

    def _judge_working(self) -> None:
        marker = self.working / _RUN
        if not marker.is_file():
            marker = self.working / MANIFEST
        if not marker.is_file():
            entries = [p.name for p in _entries(self.working)]
            left = [name for name in entries if name != _LOCK and not _is_partial(name)]
            if left:
                raise ForeignFolderError(
                    f"{self.working} holds {_some(left)}, which fishertope did not write, and that "
                    "name is needed while the run works. Move it away, or choose another folder."
                )
            return
        found = read_json(marker)
        known = {key: found.get(key) for key in self._identity} if isinstance(found, dict) else {}
        self._take_lock()  # a run that still works there is not disturbed
        if known == self._identity and self.resume:
            self.resumed = True
            return
        if known != self._identity and not self._may_replace(known.get("command")):
            raise ResultsExistError(
                f"{self.working} holds an unfinished run with other settings "
                f"({_difference(known, self._identity)}). Run that again to resume it, or ask to "
                "overwrite it (--overwrite), or choose another folder."
            )
        self._unlock()
        shutil.rmtree(self.working)

    def _take_lock(self) -> None:
        """Hold the folder for this process; the system lets go of it when the process ends."""
        if self._lock is not None or os.name != "posix":
            return
        import fcntl

        descriptor = os.open(self.working / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ResultsExistError(
                f"Another run is writing {self.path} now. Wait for it, or choose another folder."
            ) from None
        self._lock = descriptor

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _payload(self) -> list[str]:
        return [n for n in _files(self.working) if n not in _RESERVED or n == RESULTS]

    def _drop_partials(self) -> None:
        for name in _files(self.working):
            if _is_partial(PurePosixPath(name).name):
                with suppress(FileNotFoundError):
                    (self.working / name).unlink()

    def _ready(self, name: str) -> Path:
        place = self.file(name)
        with explain_write(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place


def verify_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check a finished folder against its manifest: every file there, complete and unaltered.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    ForeignFolderError
        If it is not a folder of finished results of ours.
    CorruptFileError
        Naming each file that is missing or altered.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    bad, present = [], set(_files(folder))
    for name, facts in sorted(manifest["files"].items()):
        if name not in present:
            bad.append(f"{name} is missing")
        elif not _as_recorded(folder / name, facts):
            bad.append(f"{name} was altered")
    if bad:
        raise CorruptFileError(
            f"{folder}: {'; '.join(bad)}. Restore the folder from a copy or compute it again."
        )
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of finished results of ours, or the error that says that they are not."""
    advice = "It is left as it is. Choose another folder, or move it away."
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ForeignFolderError(f"{path} {what}; a folder of results is taken. {advice}")
    marker = path / MANIFEST
    if not marker.is_file():
        raise ForeignFolderError(
            f"{path} holds {_some([p.name for p in _entries(path)])}, and no {MANIFEST} of "
            f"fishertope. {advice}"
        )
    try:
        found = read_json(marker)
    except CorruptFileError:
        found = None
    if (
        not isinstance(found, dict)
        or "fishertope_results" not in found
        or not isinstance(found.get("files"), dict)
        or not isinstance(found.get("command"), str)
    ):
        raise ForeignFolderError(f"{marker} is not a manifest of fishertope. {advice}")
    return found


def _files(folder: Path) -> list[str]:
    """Relative names of everything in a folder that is not itself a folder, in order."""
    if not folder.is_dir():
        return []
    found = []
    for place, _, names in os.walk(folder):
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _as_recorded(path: Path, facts: Any) -> bool:
    if isinstance(facts, dict) and facts.get("sha256", "") is None:  # was not asked for
        return facts == {"bytes": path.stat().st_size, "sha256": None}
    return bool(_digest(path) == facts)


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which settings differ, in words."""
    if found.get("command") != wanted["command"] or not isinstance(found.get("settings"), dict):
        return f"command {found.get('command')!r}, now {wanted['command']!r}"
    old, new = found["settings"], wanted["settings"]
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if not changed:
        return f"fishertope {found.get('fishertope')}, now {wanted['fishertope']}"
    return "; ".join(f"{k}: {old.get(k)!r}, now {new.get(k)!r}" for k in changed)
