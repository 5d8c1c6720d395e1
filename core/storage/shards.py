"""A folder of numbered safetensors shards that can be killed at any moment and resumed.

``plan.json`` says what is being computed and is written first; shards follow one by one, each
under its final name only when complete; ``manifest.json`` with the SHA-256 of every shard comes
last. Nothing in these files depends on time or on how often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import (
    CorruptFileError,
    ForeignFolderError,
    InvalidInputError,
    ResultsExistError,
    WriteFailedError,
)
from ..types import NumpyArray
from .arrays import load_arrays, save_arrays
from .atomic import PARTIAL_SUFFIX, explain_write, read_json, write_json
from .facts import JSON, plain, versions

FORMAT_VERSION = 1
PLAN, MANIFEST = "plan.json", "manifest.json"


class ShardWriter:
    """Writes the shards of one piece of work; opening it again resumes.

    Parameters
    ----------
    path : path
        A folder that is missing, empty, or holds the same work, finished or not.
    identity : mapping
        What is computed, completely; a folder with another identity is refused.
    kind : str
        What the shards hold.
    alone : bool
        No other process writes into the folder now, so that what a killed one left is removed.

    Raises
    ------
    ForeignFolderError
        The folder holds something that is not such a store.
    ResultsExistError
        It holds a store of other work; the message names what differs.
    WriteFailedError
        The system refuses; what was complete stays and is used on the next run.
    CorruptFileError
        The plan in the folder is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, JSON],
        *,
        kind: str,
        alone: bool = True,
    ) -> None:
        self.path, self.kind = Path(path), kind
        self.identity: dict[str, Any] = plain(dict(identity))
        if self.path.exists() and not self.path.is_dir():
            raise ForeignFolderError(
                f"{self.path} is a file, and a store is a folder. It is left as it is; give the "
                "name of a folder."
            )
        with explain_write(self.path / PLAN):
            self.path.mkdir(parents=True, exist_ok=True)
        if alone:
            for left in self.path.glob(f".*{PARTIAL_SUFFIX}"):
                left.unlink(missing_ok=True)
        if not (self.path / PLAN).is_file():
            self._refuse_foreign()
            plan = {
                "fishertope_store": FORMAT_VERSION,
                "kind": kind,
                "identity": self.identity,
                "versions": versions(loaded=False),
            }
            write_json(self.path / PLAN, plan)
        self.plan = read_plan(self.path)
        if self.plan["kind"] != kind or self.plan["identity"] != self.identity:
            raise ResultsExistError(
                f"{self.path} holds a store of other work "
                f"({_difference(self.plan, kind, self.identity)}). Choose another folder, or "
                "delete this one."
            )

    def has(self, number: int) -> bool:
        """Whether a shard is there; its bytes are checked when the manifest is written."""
        return (self.path / shard_name(number)).is_file()

    def write(
        self, number: int, arrays: Mapping[str, NumpyArray], facts: Mapping[str, JSON]
    ) -> None:
        """Write one shard atomically.

        Raises
        ------
        WriteFailedError
            If the disk is full or read-only; the shards before it stay.
        """
        try:
            save_arrays(self.path / shard_name(number), arrays, facts, kind=self.kind)
        except WriteFailedError as error:
            raise WriteFailedError(
                f"{error} The shards before it are kept: make room, and the same call resumes."
            ) from error

    def missing(self, count: int) -> list[int]:
        """Numbers below ``count`` of shards that are not there."""
        return [i for i in range(count) if not self.has(i)]

    def finish(self, count: int, facts: Mapping[str, JSON]) -> None:
        """Check every shard's bytes and write the manifest.

        Raises
        ------
        CorruptFileError
            A shard is missing or damaged; delete it and run again.
        """
        shards = []
        for number in range(count):
            name = shard_name(number)
            if not self.has(number):
                raise CorruptFileError(
                    f"{self.path / name} is missing; run the same command again to compute it."
                )
            load_arrays(self.path / name, kind=self.kind, mapped=True)
            shards.append({"file": name, **_digest(self.path / name)})
        # Of shards only: another process may be writing the same manifest at this moment.
        for left in self.path.glob(f".shard-*{PARTIAL_SUFFIX}"):
            left.unlink(missing_ok=True)
        manifest = {**self.plan, "facts": plain(facts), "shards": shards}
        write_json(self.path / MANIFEST, manifest)

    def _refuse_foreign(self) -> None:
        found = sorted(p.name for p in self.path.iterdir())
        left = [n for n in found if not (n.startswith(".") and n.endswith(PARTIAL_SUFFIX))]
        if left and PLAN not in found:  # another process may just have written the plan
            raise ForeignFolderError(
                f"{self.path} holds {left[0]!r}, which is no part of a store. It is left as it "
                "is; choose another folder."
            )


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.safetensors"


def is_store(path: str | Path) -> bool:
    """Whether a folder looks like a store, finished or not; nothing is checked."""
    return (Path(path) / PLAN).is_file()


def unfinished(path: str | Path) -> bool:
    """Whether a folder looks like a store whose manifest is yet to be written."""
    return is_store(path) and not (Path(path) / MANIFEST).is_file()


def read_plan(path: Path) -> dict[str, Any]:
    """The checked plan of a store.

    Raises
    ------
    CorruptFileError
        Not a plan of ours.
    """
    return _checked(path / PLAN, ("kind", "identity", "versions"))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The checked manifest of a finished store; no shard is opened.

    Raises
    ------
    ForeignFolderError
        The folder is no store.
    CorruptFileError
        It is unfinished, or the manifest is damaged or names files outside the folder.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        if (folder / PLAN).is_file():
            raise CorruptFileError(
                f"{folder} is a store that is not finished; run the same command again to resume."
            )
        raise ForeignFolderError(f"{folder} is no store of fishertope: it has no {MANIFEST}.")
    manifest = _checked(folder / MANIFEST, ("kind", "identity", "versions", "facts", "shards"))
    shards = manifest["shards"]
    if not isinstance(shards, list):
        raise _bad(folder / MANIFEST, "'shards' is no list")
    for number, shard in enumerate(shards):
        sound = (
            isinstance(shard, dict)
            and set(shard) == {"file", "bytes", "sha256"}
            and shard["file"] == shard_name(number)
            and isinstance(shard["bytes"], int)
            and not isinstance(shard["bytes"], bool)
            and isinstance(shard["sha256"], str)
            and re.fullmatch("[0-9a-f]{64}", shard["sha256"])
        )
        if not sound:
            raise _bad(folder / MANIFEST, f"entry {number} of 'shards' is malformed")
    return manifest


def read_shards(
    path: str | Path, manifest: Mapping[str, Any]
) -> Iterator[tuple[dict[str, NumpyArray], dict[str, Any]]]:
    """Arrays (memory-mapped, read-only) and facts of one shard after another.

    Raises
    ------
    CorruptFileError
        Naming the shard that is missing, truncated or altered.
    """
    for shard in manifest["shards"]:
        place = Path(path) / shard["file"]
        if not place.is_file():
            raise CorruptFileError(f"{place} is missing. Restore it or compute the store again.")
        if _digest(place) != {"bytes": shard["bytes"], "sha256": shard["sha256"]}:
            raise CorruptFileError(
                f"{place} was altered or truncated: it is not what {MANIFEST} says. Restore it "
                "from a copy, or delete it and the manifest and run the same command again."
            )
        yield load_arrays(place, kind=manifest["kind"], mapped=True)


def _checked(place: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    found = read_json(place)
    if not isinstance(found, dict) or found.get("fishertope_store") != FORMAT_VERSION:
        raise _bad(place, "it is no store of this version of fishertope")
    for key in keys:
        wanted = {"kind": str, "shards": list}.get(key, dict)
        if not isinstance(found.get(key), wanted):
            raise _bad(place, f"{key!r} is missing or of the wrong type")
    return found


def _bad(place: Path, reason: str) -> CorruptFileError:
    return CorruptFileError(
        f"{place} cannot be used: {reason}. Restore it from a copy or compute the store again."
    )


def _digest(place: Path) -> dict[str, Any]:
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


# Of what a user would not know by its key.
_MEANING = {
    "data_sha256": " (of the data: file, columns, number of rows, tokenizer, length)",
    "model_sha256": " (of the model's parameters and buffers)",
    "key": " (of the random draws: the seed)",
}


def _difference(plan: Mapping[str, Any], kind: str, identity: Mapping[str, Any]) -> str:
    if plan["kind"] != kind:
        return f"{plan['kind']}, now {kind}"
    old = plan["identity"]
    changed = [k for k in sorted(old.keys() | identity.keys()) if old.get(k) != identity.get(k)]
    return "; ".join(
        f"{key}{_MEANING.get(key, '')}: {str(old.get(key))[:60]}, now {str(identity.get(key))[:60]}"
        for key in changed[:3]
    )


def check_count(name: str, value: Any) -> int:
    """A whole number ≥ 1, or the error that names it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name}={value!r} was given; a whole number >= 1 is accepted.")
    return value
