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
        same call returns its result at once. Under ``torchrun`` process k > 0 writes ``path``.k.
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
    """Writes the states that a solver offers, and hands out the one that was found."""

    checkpoint: Checkpoint
    identity: dict[str, Any]
    rng: np.random.Generator
    record: Recorder
    found: State | None = None
    _pending: State | None = None
    _snapshot: dict[str, Any] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def restore(self) -> None:
        """Read the file if there is one: generator, history and :attr:`found`.

        Raises
        ------
        InvalidInputError
            The checkpoint belongs to another fit; the message says what differs.
        CorruptFileError
            Damaged, or not a checkpoint of this version.
        """
        path = Path(self.checkpoint.path)
        if not path.is_file():
            return
        arrays, facts = load_arrays(path, kind=KIND)
        identity = plain(self.identity)
        if facts.get("identity") != identity:
            old = facts.get("identity", {})
            keys = sorted(set(old) | set(identity)) if isinstance(old, dict) else []
            changed = [
                f"{k}: {str(old.get(k))[:80]}, now {str(identity.get(k))[:80]}"
                for k in keys
                if old.get(k) != identity.get(k)
            ]
            raise InvalidInputError(
                f"{os.fspath(path)} is the checkpoint of another fit ({'; '.join(changed[:3])}). "
                "Give the same arguments to resume it, or another path for this fit."
            )
        try:
            self.rng.bit_generator.state = json.loads(facts["rng"])
            self.record.restore(arrays.pop(HISTORY), facts["record"])
            arrays |= {k: arrays[k].T for k in facts["turned"]}
            self.found = State(str(facts["stage"]), arrays, dict(facts["state"]))
        except (KeyError, TypeError, ValueError) as error:
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
        if time.monotonic() - self._written >= self.checkpoint.seconds:
            self.flush()

    def flush(self) -> None:
        """Write the state that was offered last, if it is not on the disk."""
        if self._pending is None:
            return
        state, snapshot = self._pending, dict(self._snapshot)
        table = self.record.table()[: snapshot.pop("entries")]
        arrays: dict[str, NumpyArray] = {k: to_numpy(v) for k, v in state.arrays.items()}
        # The order of the axes in memory decides which products BLAS forms, and so their last bits.
        turned = [k for k, x in arrays.items() if x.flags.fnc]
        arrays |= {k: arrays[k].T for k in turned}
        save_arrays(
            self.checkpoint.path,
            {**arrays, HISTORY: table},
            {
                "identity": self.identity,
                "stage": state.stage,
                "state": dict(state.facts),
                "turned": turned,
                **snapshot,
            },
            kind=KIND,
        )
        self._pending, self._written = None, time.monotonic()


@contextmanager
def checkpointed(
    checkpoint: str | os.PathLike[str] | Checkpoint | None,
    identity: Callable[[], Mapping[str, Any]],
    rng: np.random.Generator,
    record: Recorder,
    rank: int = 0,
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
    if rank:
        checkpoint = Checkpoint(f"{os.fspath(checkpoint.path)}.{rank}", checkpoint.seconds)
    state = json.dumps(rng.bit_generator.state, sort_keys=True)
    own = {**identity(), "rng": hashlib.sha256(state.encode()).hexdigest()}
    saver = Saver(checkpoint, own, rng, record)
    saver.restore()
    record.saver = saver
    try:
        yield
    finally:
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
