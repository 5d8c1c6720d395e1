"""Several processes on one piece of work: who takes what, who is still alive, sums over all.

``torchrun`` tells each process its number and their count by the environment variables RANK and
WORLD_SIZE. Stores need nothing else than a folder that all of them see; means over a data set are
added up through ``torch.distributed``.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendUnavailable, InvalidInputError, RankLostError
from ..model import DenseEngine
from ..storage.atomic import PARTIAL_SUFFIX, explain_write
from ..types import FloatArray

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""So long nothing may be heard of a process whose work is awaited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The number of this process among those that share the work.

    Attributes
    ----------
    rank : int
        0 ≤ rank < world.
    world : int
        1 where there is no other process.

    Raises
    ------
    InvalidInputError
        Numbers that do not fit.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not (self.world >= 1 and 0 <= self.rank < self.world):
            raise InvalidInputError(
                f"RANK={self.rank} and WORLD_SIZE={self.world} were given; WORLD_SIZE >= 1 and "
                "0 <= RANK < WORLD_SIZE are accepted. torchrun sets both; unset them otherwise."
            )

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Ranks:
        """RANK and WORLD_SIZE; a single process where neither is set.

        Raises
        ------
        InvalidInputError
            One without the other, or something else than whole numbers.
        """
        env = os.environ if environment is None else environment
        found = {name: env[name] for name in ("RANK", "WORLD_SIZE") if name in env}
        if not found:
            return cls()
        if len(found) == 1 or not all(v.strip().isdigit() for v in found.values()):
            shown = ", ".join(f"{k}={v!r}" for k, v in found.items())
            raise InvalidInputError(
                f"{shown} was given in the environment; RANK and WORLD_SIZE must both be whole "
                "numbers. Start the processes with torchrun, or unset both."
            )
        return cls(rank=int(found["RANK"]), world=int(found["WORLD_SIZE"]))

    def takes(self, number: int) -> bool:
        """Whether piece ``number`` is this process's: those are dealt out in turn."""
        return number % self.world == self.rank


def _beat_file(folder: Path, rank: int) -> Path:
    # The ending says that whatever finds it after a kill may delete it.
    return folder / f".rank-{rank:06d}{PARTIAL_SUFFIX}"


@contextmanager
def heartbeat(folder: Path, ranks: Ranks, every: float = BEAT_SECONDS) -> Iterator[None]:
    """Tell the other processes that this one is at work in ``folder``, until the block ends.

    A file's time of change is renewed ``every`` seconds by a thread; it stops with the process.
    """
    if ranks.world == 1:
        yield
        return
    place, over = _beat_file(folder, ranks.rank), threading.Event()

    def beat() -> None:
        while not over.wait(every):
            with suppress(OSError):
                os.utime(place)

    with explain_write(place):
        folder.mkdir(parents=True, exist_ok=True)
        place.touch()
    thread = threading.Thread(target=beat, name="fishertope heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        place.unlink(missing_ok=True)


def forget_ranks(folder: Path, world: int) -> None:
    """Remove what processes with numbers ≥ ``world`` left in an earlier run."""
    for place in folder.glob(f".rank-*{PARTIAL_SUFFIX}"):
        if not place.name[6:12].isdigit() or int(place.name[6:12]) >= world:
            place.unlink(missing_ok=True)


def await_ranks(
    folder: Path,
    ranks: Ranks,
    owed: Callable[[], Sequence[int]],
    done: Callable[[], bool],
    *,
    patience: float = PATIENCE_SECONDS,
) -> bool:
    """Wait until ``done()``; gives up on processes that owe pieces and show no sign of life.

    Parameters
    ----------
    folder : Path
    ranks : Ranks
    owed : callable
        Numbers of the pieces that are missing.
    done : callable
    patience : float
        Seconds without a heartbeat, measured by this process's clock.

    Returns
    -------
    bool
        ``False`` when nothing is owed any more and yet nobody finished for ``patience`` seconds:
        then the caller may finish.

    Raises
    ------
    RankLostError
        Naming the processes that are lost.
    """
    heard: dict[int, tuple[int, float]] = {}
    complete_since: float | None = None
    while not done():
        now, missing = time.monotonic(), owed()
        lost = []
        for rank in sorted({number % ranks.world for number in missing} - {ranks.rank}):
            try:
                state = _beat_file(folder, rank).stat().st_mtime_ns
            except OSError:
                state = -1
            if rank not in heard or heard[rank][0] != state:
                heard[rank] = (state, now)
            elif now - heard[rank][1] > patience:
                lost.append(rank)
        if lost:
            raise RankLostError(
                f"Nothing was heard of process {', '.join(map(str, lost))} of {ranks.world} for "
                f"{patience:.0f} s, and {len(missing)} shards of {folder} are missing. It was "
                "killed or never started. Run the same command again to complete the store; what "
                "is there is kept."
            )
        if missing:
            complete_since = None
        elif complete_since is None:
            complete_since = now
        elif now - complete_since > patience:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Sums and lists over all processes, through ``torch.distributed``.

    Attributes
    ----------
    ranks : Ranks
    """

    ranks: Ranks

    def sum(self, x: FloatArray) -> FloatArray:
        """Σ over processes of float64 arrays of one shape; the same bits for all of them."""
        import torch
        import torch.distributed as dist

        with _explained(self.ranks):
            own = torch.from_numpy(np.array(x, dtype=np.float64)).to(_place())
            dist.all_reduce(own)
            return np.asarray(own.cpu().numpy())

    def gather(self, x: FloatArray) -> list[FloatArray]:
        """The float64 arrays (n_r, ...) of all processes in order; trailing axes must agree."""
        import torch
        import torch.distributed as dist

        with _explained(self.ranks):
            place, world = _place(), self.ranks.world
            counts = [torch.zeros(1, dtype=torch.int64, device=place) for _ in range(world)]
            dist.all_gather(counts, torch.tensor([len(x)], device=place))
            sizes = [int(c) for c in counts]
            shape = (max(sizes), *x.shape[1:])
            padded = torch.zeros(shape, dtype=torch.float64, device=place)
            padded[: len(x)] = torch.from_numpy(np.array(x, dtype=np.float64))
            parts = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
            return [p[:n].cpu().numpy() for p, n in zip(parts, sizes, strict=True)]


@contextmanager
def process_group(
    ranks: Ranks, *, backend: str = "gloo", timeout: timedelta | None = None
) -> Iterator[ProcessGroup | None]:
    """The group that is there, whatever its backend, or one of our own for the block's length.

    Parameters
    ----------
    ranks : Ranks
    backend : str
        Of ``torch.distributed``, for a group of our own.
    timeout : timedelta, optional
        How long a process waits for one that is late; default: torch's.

    Yields
    ------
    ProcessGroup or None
        None for a single process.

    Raises
    ------
    BackendUnavailable
        torch is not installed.
    RankLostError
        Another process ended.
    """
    if ranks.world == 1:
        yield None
        return
    try:
        import torch.distributed as dist
    except ImportError:
        raise BackendUnavailable(
            f"WORLD_SIZE={ranks.world} was given, and sums over processes need torch: pip install "
            "'fishertope[torch]', or unset RANK and WORLD_SIZE."
        ) from None
    own = not dist.is_initialized()
    if own:
        with _explained(ranks):
            # A group must not find the addresses that an earlier one left in the store.
            from torch.distributed.distributed_c10d import PrefixStore

            store = PrefixStore(f"fishertope/{next(_GROUPS)}", meeting_point(ranks))
            dist.init_process_group(
                backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout
            )
    try:
        yield ProcessGroup(ranks)
    finally:
        if own and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


_GROUPS = itertools.count()
"""Numbers of the groups of this process; all processes open them in the same order."""


@cache
def meeting_point(ranks: Ranks) -> Any:
    """The store through which the processes find each other; its server lives with process 0."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", ranks.rank, ranks.world))[0]


@contextmanager
def _explained(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise RankLostError(
            f"Process {ranks.rank} of {ranks.world} lost the others ({reason}). One was killed or "
            "never started. Start all of them again with torchrun."
        ) from error


def _place() -> str:
    """Where the group's arrays must lie."""
    import torch.distributed as dist

    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def in_order(
    function: Callable[..., Any], items: Iterator[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """``function(*item)`` of each item, in order; by joblib's workers where ``n_jobs`` is not 1.

    Which workers those are is joblib's business: ``joblib.parallel_config(backend="dask")`` or
    another one applies.

    Raises
    ------
    InvalidInputError
        ``n_jobs`` is 0 or no whole number.
    """
    if n_jobs is not None and (
        not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs == 0
    ):
        raise InvalidInputError(
            f"n_jobs={n_jobs!r} was given; None, a number of workers, or -1 for all is accepted."
        )
    if n_jobs is None or n_jobs == 1:
        yield from (function(*item) for item in items)
        return
    from joblib import Parallel, delayed

    work = (delayed(function)(*item) for item in items)
    yield from Parallel(n_jobs=n_jobs, return_as="generator")(work)


def check_jobs(engine: Any, n_jobs: int | None) -> None:
    """Workers are for dense networks of NumPy arrays.

    Raises
    ------
    InvalidInputError
        ``n_jobs`` together with another model.
    """
    if n_jobs not in (None, 1) and not isinstance(engine, DenseEngine):
        raise InvalidInputError(
            f"n_jobs={n_jobs!r} was given for a model that is no dense network of NumPy arrays; "
            "its own library uses the cores. Leave n_jobs out, or start several processes with "
            "torchrun."
        )
