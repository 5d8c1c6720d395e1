"""Checkpoints of a fit: written while it runs, found again by the same call.

A checkpoint holds everything that the rest of the run depends on: the iterate with its products,
the state of the random generator, the history, and the identity of the fit (method, data, start,
seed, backend). On the CPU a resumed run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import CorruptFileError, InvalidInputError
from ..fisher.per_example import DiagonalFishers, LowRankFishers, is_sparse, sparse_parts
from ..fisher.store import FisherStore
from ..storage.arrays import load_arrays, save_arrays
from ..storage.facts import plain
from ..types import Array, NumpyArray
from .history import Recorder
from .method import DiagonalNPEFF, LowRankNPEFF
from .team import ALONE, Share, Team

KIND = "factorization checkpoint"
HISTORY = "history"
DONE = "done"
"""Stage of a finished fit."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a fit keeps its state, and how often.

    Attributes
    ----------
    path : path
        One file, replaced atomically. The same call resumes from it; once the fit is finished, the
        same call returns its result at once. Under ``torchrun`` the first process writes it, and
        all of them read it.
    seconds : float
        At least so long between two writes; 0 writes at every opportunity.

    Raises
    ------
    InvalidInputError
        Negative ``seconds``.
    """

    path: str | os.PathLike[str]
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.seconds >= 0.0:
            raise InvalidInputError(
                f"seconds={self.seconds!r} was given; a number >= 0 is accepted."
            )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Where a solver stood: the stage by name, its arrays, its numbers."""

    stage: str
    arrays: Mapping[str, Any]
    facts: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Saver:
    """Writes the states that a solver offers, and hands out the one that was found.

    Arrays called W, B, N or "inside" have one row for each example or row of this process; those of
    all processes are written together.
    """

    checkpoint: Checkpoint
    identity: dict[str, Any]
    rng: np.random.Generator
    record: Recorder
    team: Team = ALONE
    found: State | None = None
    _pending: State | None = None
    _snapshot: dict[str, Any] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def restore(self, share: Share | None) -> None:
        """Read the file if there is one: generator, history and :attr:`found`.

        Raises
        ------
        InvalidInputError
            The checkpoint belongs to another fit; the message says what differs. Or only some of
            the processes see it.
        CorruptFileError
            Damaged, or not a checkpoint of this version.
        """
        path = Path(self.checkpoint.path)
        self.team.agree(f"views of {os.fspath(path)}", np.array([float(path.is_file())]))
        if not path.is_file():
            return
        arrays, facts = load_arrays(path, kind=KIND)
        _check_identity(path, facts.get("identity"), plain(self.identity))
        try:
            self.rng.bit_generator.state = json.loads(facts["rng"])
            self.record.restore(arrays.pop(HISTORY), facts["record"])
            if share is not None:
                arrays = {k: _own(k, x, share, facts["sizes"]) for k, x in arrays.items()}
            arrays |= {k: np.asfortranarray(arrays[k]) for k in facts["turned"]}
            self.found = State(str(facts["stage"]), arrays, dict(facts["state"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptFileError(
                f"{os.fspath(path)}: the contents are no checkpoint of ours ({error}). Delete it "
                "and run the same call again."
            ) from error

    def keep(self, stage: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Offer a state from which the run can go on; written when the last one is old enough."""
        self._pending = State(stage, dict(arrays), dict(facts))
        self._snapshot = {
            "rng": json.dumps(self.rng.bit_generator.state),
            "record": self.record.state(),
            "entries": len(self.record.entries),
        }
        due = time.monotonic() - self._written >= self.checkpoint.seconds or stage == DONE
        if self.team.most(float(due and self.team.rank == 0)) > 0.0:
            self.flush()

    def flush(self) -> None:
        """Write the state that was offered last, if it is not on the disk; in every process."""
        if self._pending is None:
            return
        state, snapshot = self._pending, dict(self._snapshot)
        arrays: dict[str, NumpyArray] = {k: to_numpy(v) for k, v in state.arrays.items()}
        # The order of the axes in memory decides which products BLAS forms, and so their last bits.
        turned = [k for k, x in arrays.items() if x.flags.fnc]
        sizes = {k: len(arrays[k]) for k in LOCAL if k in arrays}
        if self.team.world > 1:
            for k, n in sizes.items():
                told = self.team.gather(np.array([float(n)]))
                sizes[k] = [int(t) for t in told]  # type: ignore[assignment]
                whole = self.team.gather(arrays[k].astype(np.float64))
                arrays[k] = whole.astype(arrays[k].dtype)
        if self.team.rank == 0:
            table = self.record.table()[: snapshot.pop("entries")]
            save_arrays(
                self.checkpoint.path,
                {**arrays, HISTORY: table},
                {
                    "identity": self.identity,
                    "stage": state.stage,
                    "state": dict(state.facts),
                    "turned": turned,
                    "sizes": sizes,
                    **snapshot,
                },
                kind=KIND,
            )
        self._pending, self._written = None, time.monotonic()


LOCAL = ("W", "B", "N", "inside")


def _own(name: str, x: NumpyArray, share: Share, sizes: Mapping[str, Any]) -> NumpyArray:
    """The rows of a gathered array that belong to this process."""
    told = sizes.get(name)
    if not isinstance(told, list):
        return x
    edges = np.concatenate([[0], np.cumsum(told)])
    first = share.first if name in ("W", "N") else share.first_row
    part = int(np.flatnonzero(edges == first)[0])
    # Processes without an example share an edge with the next one.
    while part + 1 < len(told) and told[part] == 0:
        part += 1
    return x[edges[part] : edges[part + 1]]


def _check_identity(path: Path, old: Any, identity: Mapping[str, Any]) -> None:
    if old == identity:
        return
    old = old if isinstance(old, dict) else {}
    changed = [
        f"{k}: {str(old.get(k))[:80]}, now {str(identity.get(k))[:80]}"
        for k in sorted(set(old) | set(identity))
        if old.get(k) != identity.get(k)
    ]
    raise InvalidInputError(
        f"{os.fspath(path)} is the checkpoint of another fit ({'; '.join(changed[:3])}). "
        "Give the same arguments to resume it, or another path for this fit."
    )


@contextmanager
def checkpointed(
    checkpoint: str | os.PathLike[str] | Checkpoint | None,
    identity: Callable[[], Mapping[str, Any]],
    rng: np.random.Generator,
    record: Recorder,
    team: Team = ALONE,
    share: Share | None = None,
) -> Iterator[None]:
    """Resume what the file holds, and write the last offered state on every exit.

    Raises
    ------
    InvalidInputError
        Something else than a path or a checkpoint, or the checkpoint of another fit.
    CorruptFileError
        A damaged file.
    """
    if checkpoint is None:
        yield
        return
    if not isinstance(checkpoint, Checkpoint):
        if not isinstance(checkpoint, str | os.PathLike):
            raise InvalidInputError(
                f"checkpoint={checkpoint!r} was given; a path or Checkpoint(path, seconds) is "
                "accepted."
            )
        checkpoint = Checkpoint(checkpoint)
    state = json.dumps(rng.bit_generator.state, sort_keys=True)
    own = {
        **identity(),
        "rng": hashlib.sha256(state.encode()).hexdigest(),
        "processes": team.world,
    }
    saver = Saver(checkpoint, own, rng, record, team)
    saver.restore(share)
    record.saver = saver
    try:
        yield
    finally:
        # Alone only: processes write together, and the others may not be there any more.
        if team.world == 1:
            saver.flush()


def fit_identity(
    fishers: LowRankFishers | DiagonalFishers | FisherStore,
    method: LowRankNPEFF | DiagonalNPEFF,
    init: tuple[Array, Array] | None,
    backend: str,
    device: Any,
) -> Callable[[], dict[str, Any]]:
    """What gives everything that the bits of a fit depend on, in plain values."""
    return lambda: {
        "method": {"kind": type(method).__name__, **asdict(method)},
        "fishers": fishers_digest(fishers),
        "init": None if init is None else [_digest(to_numpy(x)) for x in init],
        "backend": backend,
        "device": None if device is None else str(device),
    }


def fishers_digest(fishers: LowRankFishers | DiagonalFishers | FisherStore) -> str:
    """SHA-256 of the contents; of the shards' checksums for a store."""
    if isinstance(fishers, FisherStore):
        return _digest(*[np.frombuffer(s["sha256"].encode(), np.uint8)
                         for s in fishers.manifest["shards"]])  # fmt: skip
    if isinstance(fishers, LowRankFishers):
        return _digest(to_numpy(fishers.rows), fishers.offsets, fishers.norms)
    if is_sparse(fishers.values):
        return _digest(*sparse_parts(fishers.values), np.array(fishers.values.shape))
    return _digest(to_numpy(fishers.values))


def _digest(*arrays: NumpyArray) -> str:
    digest = hashlib.sha256()
    for x in arrays:
        x = np.ascontiguousarray(x)
        digest.update(f"{x.dtype.str}{x.shape}".encode())
        digest.update(x.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
