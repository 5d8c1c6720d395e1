"""Blocks of tensors through several threads, from files to files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ...errors import FishertopeError, InvalidInputError
from ...storage.header import ITEM_BYTES
from .prepare import Job
from .recipes import Counts
from .writing import Journal, OutputFile, Safekeeping

BUFFER = 2 << 20
"""Bytes of buffers a worker takes unless a budget says less: a block stays in the cache."""
LEAST_BUFFER = 1 << 14
_TICK = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a merge has come.

    Attributes
    ----------
    phase : {"measuring", "merging"}
    done, total : int
        Bytes of the result (merging), or tensors (measuring).
    resumed : int
        Bytes that an earlier run wrote.
    """

    phase: str
    done: int
    total: int
    resumed: int = 0


Watcher = Callable[[Progress], Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of one tensor."""

    number: int
    job: Job
    start: int
    stop: int


@dataclass(slots=True, kw_only=True)
class Cut:
    """How tensors are cut.

    Attributes
    ----------
    workers : int
    buffer : int
        Bytes of buffers a worker.
    entries : int or None
        Entries of a block, whatever the buffers.
    direct : bool
        Blocks may go from file to file where their recipe can: no checksum, no budget.
    room : int or None
        Bytes for the sites of several tensors that are held at a time.
    """

    workers: int
    buffer: int = BUFFER
    entries: int | None = None
    direct: bool = False
    room: int | None = None

    def step(self, job: Job) -> int:
        """Entries of a tensor's blocks."""
        room = self.buffer
        if self.direct and getattr(job.recipe, "goes_through", False):
            room *= 8  # in small pieces, without buffers
        step = self.entries or max(1, (room - job.fixed_bytes) // job.bytes_per_entry)
        return max(job.unit, step // job.unit * job.unit)


def blocks_of(jobs: Sequence[Job], cut: Cut) -> list[Block]:
    """All blocks in the order of the output."""
    found: list[Block] = []
    for job in jobs:
        size = prod(job.entry.shape)
        step = cut.step(job)
        for start in range(0, size, step):
            found.append(Block(len(found), job, start, min(size, start + step)))
    return found


def choose_cut(
    jobs: Sequence[Job],
    workers: int,
    memory: int | None,
    resident: int,
    entries: int | None,
    whole: tuple[int, str] = (0, ""),
) -> Cut:
    """Buffers that stay inside a budget for the whole process.

    Parameters
    ----------
    jobs : sequence of Job
    workers : int
    memory : int or None
        Bytes that the process may take in all.
    resident : int
        Bytes that it takes now.
    entries : int or None
    whole : (int, str)
        Bytes of the site that takes most while it is there, and its name; one is held at a time
        where the budget has no room for more.

    Raises
    ------
    InvalidInputError
        If the budget cannot hold one block of one worker; the message says what would do.
    """
    if memory is None:
        return Cut(workers=workers, entries=entries)
    held, name = whole
    widest = max((j.bytes_per_entry * j.unit + j.fixed_bytes for j in jobs), default=1)
    least = max(LEAST_BUFFER, widest)
    # A quarter is left for what the allocator keeps and for what threads need beside buffers.
    room = int(0.75 * (memory - resident)) - (2 << 20) - held
    fits = min(workers, room // least)
    if fits < 1:
        need = (resident + int(4 * (least + held + (2 << 20)) / 3)) / 2**20 + 1
        site = f", and {name!r} takes {held / 2**20:.0f} MiB while it is solved" if held else ""
        raise InvalidInputError(
            f"A memory budget of {memory / 2**20:.0f} MiB was given; this merge takes at least "
            f"{need:.0f} MiB in this process ({resident / 2**20:.0f} MiB before it begins{site}). "
            "Raise the budget."
        )
    buffer = min(max(BUFFER, least), max(least, room // fits))
    return Cut(workers=fits, buffer=buffer, entries=entries, room=held + room - fits * buffer)


def in_groups(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in their order, but those of one site together, the widest tensor of it first.

    So a site's factors come and go once, and its other tensors find what the first left behind.
    """
    sites: dict[int, list[Job]] = {}
    for job in jobs:
        group = getattr(job.recipe, "group", None)
        sites.setdefault(id(job if group is None else group), []).append(job)
    return [
        job for site in sites.values() for job in sorted(site, key=lambda j: -prod(j.entry.shape))
    ]


@dataclass(kw_only=True)
class Run:
    """Files, journal and blocks of one merge.

    Attributes
    ----------
    blocks : sequence of Block
    files : sequence of sequences of OutputFile
        For each of the K results, its shards.
    where : mapping of str to (shard, offset)
        Of every tensor.
    journal : Journal
    safe : Safekeeping
    workers : int
    watch : Watcher or None
    direct : bool
        As in :class:`Cut`.
    """

    blocks: Sequence[Block]
    files: Sequence[Sequence[OutputFile]]
    where: dict[str, tuple[int, int]]
    journal: Journal
    safe: Safekeeping
    workers: int
    watch: Watcher | None = None
    direct: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def execute(self) -> None:
        """Merge every block that is not done.

        Raises
        ------
        FishertopeError
            Whatever a block meets; what was written stays for the next run.
        StoppedByCallback
            If the watcher returned True.
        """
        total = sum(self._bytes(b) for b in self.blocks)
        resumed = 0
        for block in self.blocks:
            if self.journal.done(block.number):
                resumed += self._bytes(block)
                self._announce(block, None)
        self._done = resumed
        left = [b for b in self.blocks if not self.journal.done(b.number)]
        for block in left:
            if (expect := getattr(block.job.recipe, "expect", None)) is not None:
                expect(block.start, block.stop)
        todo = iter(left)
        try:
            run_threads(
                lambda: self._work(todo), self.workers, self._stop,
                lambda: self._report(total, resumed),
            )  # fmt: skip
        except BaseException:
            # What is written stays written: the next run begins behind it.
            with suppress(FishertopeError):
                self.safe.finish()
            raise
        self.safe.finish()
        self._report(total, resumed)

    def _work(self, todo: Iterator[Block]) -> None:
        while not self._stop.is_set():
            with self._lock:
                block = next(todo, None)
            if block is None:
                return
            self._one(block)

    def _one(self, block: Block) -> None:
        recipe, counts = block.job.recipe, Counts()
        shard, first = self.where[block.job.entry.name]
        offset = first + block.start * ITEM_BYTES[block.job.entry.dtype]
        if self.direct and getattr(recipe, "goes_through", False):
            target = self.files[0][shard].fd
            if recipe.through(block.start, block.stop, target, offset):  # type: ignore[attr-defined]
                self._finished(block, counts, self._bytes(block))
                return
        rows = recipe.run(block.start, block.stop, counts)
        for files, row in zip(self.files, rows, strict=True):
            files[shard].write(row, offset)
        self._announce(block, rows)
        self._finished(block, counts, self._bytes(block) * len(rows))

    def _finished(self, block: Block, counts: Counts, written: int) -> None:
        self.safe.add(block.number, counts, written)
        with self._lock:
            self._done += self._bytes(block)

    def _announce(self, block: Block, rows: Sequence[Any] | None) -> None:
        shard, first = self.where[block.job.entry.name]
        offset = first + block.start * ITEM_BYTES[block.job.entry.dtype]
        for k, files in enumerate(self.files):
            files[shard].announce(offset, self._bytes(block), None if rows is None else rows[k])

    def _bytes(self, block: Block) -> int:
        return (block.stop - block.start) * ITEM_BYTES[block.job.entry.dtype]

    def _report(self, total: int, resumed: int) -> None:
        if self.watch is None:
            return
        step = Progress(phase="merging", done=self._done, total=total, resumed=resumed)
        if self.watch(step) is True:
            self._stop.set()
            raise StoppedByCallback(
                "The merge was stopped by its callback. What is written stays; the same call "
                "resumes it."
            )


class StoppedByCallback(FishertopeError):
    """A callback asked to stop."""


def build_all(jobs: Sequence[Job], workers: int, watch: Watcher | None) -> None:
    """Build every recipe, several tensors at a time where whole tensors are read."""
    slow = [j for j in jobs if j.measured]
    if not slow:
        return
    stop, lock, todo = threading.Event(), threading.Lock(), iter(slow)
    done = [0]

    def work() -> None:
        while not stop.is_set():
            with lock:
                job = next(todo, None)
            if job is None:
                return
            _ = job.recipe
            with lock:
                done[0] += 1

    def report() -> None:
        step = Progress(phase="measuring", done=done[0], total=len(slow))
        if watch is not None and watch(step) is True:
            stop.set()
            raise StoppedByCallback("The merge was stopped by its callback before it began.")

    run_threads(work, workers, stop, report)
    report()


def run_threads(
    work: Callable[[], None], workers: int, stop: threading.Event, tick: Callable[[], None]
) -> None:
    """``work`` on several threads; the first error stops all and is raised.

    ``tick`` runs on this thread every tenth of a second, so that signals arrive here too.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="merge") as pool:
        waiting = {pool.submit(work) for _ in range(workers)}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=_TICK, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                tick()
        finally:
            stop.set()


def resident_bytes() -> int:
    """Memory of this process now, where the system tells."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        from ...storage.facts import peak_memory_mib

        return int((peak_memory_mib() or 0.0) * 2**20)


def rate(done: int, since: float) -> float:
    """Bytes a second."""
    elapsed = time.monotonic() - since
    return done / elapsed if elapsed > 0 else 0.0
