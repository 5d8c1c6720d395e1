"""Enumeration in shards: shared by processes, streamed in order, kept in a folder that resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backend.select import BackendChoice
from ..errors import CorruptFileError, InvalidInputError
from ..status import Callback, StepInfo
from ..storage.arrays import load_arrays
from ..storage.shards import MANIFEST, ShardWriter, read_manifest, read_shards, shard_name
from ..types import Array, FloatArray, NumpyArray
from .pattern import check_generators, pack, unpack
from .position import general_position
from .sweep import Sweep
from .tree import tree_blocks

KIND = "zonotope vertices"
T = TypeVar("T")


def map_vertices(
    generators: Array,
    function: Callable[[NumpyArray], T],
    *,
    start: int = 0,
    stop: int | None = None,
    n_jobs: int = 1,
    shard: int = 1 << 20,
    backend: BackendChoice = "auto",
    callback: Callback | None = None,
) -> Iterator[tuple[int, T]]:
    """``function`` of every block of vertices, in order, computed by several processes.

    The sweep numbers the vertices, so a process needs the number of its first one alone. Only what
    ``function`` returns travels between processes.

    Parameters
    ----------
    generators : array (n, d)
        In general position.
    function : callable
        Of a block int8 (≤ 2^12, n); with several processes it must be importable.
    start, stop : int
        Numbers of the vertices wanted; a stream that was cut off goes on with ``start``.
    n_jobs : int
        Processes of joblib, each with one thread.
    shard : int
        Vertices a task.
    callback : callable, optional
        Called after each task; returning ``True`` ends the stream.

    Yields
    ------
    number, value : int, object
        Number of the block's first vertex, and the value.

    Raises
    ------
    DegenerateArrangement
        From the sweep, naming the rows.

    Notes
    -----
    Memory is that of ``2 n_jobs`` tasks' values and one block a process.
    """
    sweep = Sweep.over(generators, backend=backend)
    last = sweep.n_vertices if stop is None else stop
    if not 0 <= start <= last <= sweep.n_vertices or shard < 1 or n_jobs < 1:
        raise InvalidInputError(
            f"start={start}, stop={stop}, shard={shard}, n_jobs={n_jobs} were given; "
            f"0 <= start <= stop <= {sweep.n_vertices}, shard >= 1 and n_jobs >= 1 are accepted."
        )
    x = check_generators(generators)
    tasks = [(at, min(at + shard, last)) for at in range(start, last, shard)]
    for (_, end), values in zip(tasks, _run(x, function, tasks, n_jobs, backend), strict=True):
        yield from values
        if callback is not None and callback(progress(end - start, last - start)):
            return


def _run(
    x: FloatArray,
    function: Callable[[NumpyArray], T],
    tasks: list[tuple[int, int]],
    n_jobs: int,
    backend: BackendChoice,
) -> Iterator[list[tuple[int, T]]]:
    if n_jobs == 1 or len(tasks) < 2:
        sweep = Sweep.over(x, backend=backend)
        for first, end in tasks:
            yield _task(sweep, function, first, end)
        return
    from joblib import Parallel, delayed

    pool: Any = Parallel(n_jobs=n_jobs, return_as="generator", pre_dispatch="2*n_jobs")
    yield from pool(delayed(_alone)(x, function, first, end, backend) for first, end in tasks)


def _alone(
    x: FloatArray, function: Callable[[NumpyArray], T], first: int, end: int, backend: BackendChoice
) -> list[tuple[int, T]]:
    from ..backend.threads import thread_limit

    with thread_limit(1):
        return _task(Sweep.over(x, backend=backend), function, first, end)


def _task(
    sweep: Sweep, function: Callable[[NumpyArray], T], first: int, end: int
) -> list[tuple[int, T]]:
    found = []
    number = first
    for block in sweep.blocks(first, end):
        found.append((number, function(block)))
        number += len(block)
    return found


def progress(done: int, total: int) -> StepInfo:
    """What a callback is told after ``done`` of ``total`` vertices (0: not known)."""
    return StepInfo(
        phase="vertices",
        step=done,
        max_steps=total,
        loss=0.0,
        relative_loss=0.0,
        residual=0.0,
        products=float(done),
    )


def save_vertices(
    generators: Array,
    path: str | Path,
    *,
    method: str = "auto",
    shard: int = 1 << 18,
    n_jobs: int = 1,
    backend: BackendChoice = "auto",
    callback: Callback | None = None,
) -> dict[str, Any]:
    """Write every vertex's pattern to a folder of shards; the same call resumes after a kill.

    Patterns are packed, one bit a row, in the order of :meth:`Zonotope.patterns`. The bytes depend
    neither on interruptions nor on the number of processes.

    Parameters
    ----------
    generators : array (n, d)
    path : path
        A folder that is missing, empty, or holds this enumeration, finished or not.
    method : {"auto", "sweep", "tree"}
        "sweep" in general position, shards shared by processes; "tree" for any rows, one process.
    shard : int
        Vertices a file.
    n_jobs : int
    callback : callable, optional
        Called after each shard; returning ``True`` stops, and the folder can be resumed.

    Returns
    -------
    dict
        ``n_vertices``, ``n_shards``, ``method``, ``finished``.

    Raises
    ------
    DegenerateArrangement
        From the sweep, naming the rows.
    ForeignFolderError, ResultsExistError, CorruptFileError, WriteFailedError
        As every store.
    """
    x = check_generators(generators)
    if method not in ("auto", "sweep", "tree") or shard < 2 or shard % 2:
        raise InvalidInputError(
            f"method={method!r}, shard={shard} were given; auto, sweep or tree, and an even number "
            "of vertices a shard are accepted."
        )
    if method == "auto":
        method = "tree" if general_position(x).holds is False else "sweep"
    identity = {
        "generators_sha256": hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest(),
        "shape": list(x.shape),
        "method": method,
        "shard": shard,
    }
    writer = ShardWriter(path, identity, kind=KIND)
    save = _save_sweep if method == "sweep" else _save_tree
    total, done, finished = save(x, writer, shard, n_jobs, backend, callback)
    if finished and not (writer.path / MANIFEST).is_file():
        writer.finish(done, {"n_vertices": total, "shape": list(x.shape)})
    return {"n_vertices": total, "n_shards": done, "method": method, "finished": finished}


def _save_sweep(
    x: FloatArray,
    writer: ShardWriter,
    shard: int,
    n_jobs: int,
    backend: BackendChoice,
    callback: Callback | None,
) -> tuple[int, int, bool]:
    total = Sweep.over(x, backend=backend).n_vertices
    count = -(-total // shard)
    missing = writer.missing(count)
    done = count - len(missing)
    tasks = [(number * shard, min((number + 1) * shard, total)) for number in missing]
    for number, values in zip(missing, _run(x, pack, tasks, n_jobs, backend), strict=True):
        words = np.concatenate([w for _, w in values])
        writer.write(number, {"patterns": words}, {"start": number * shard, "count": len(words)})
        done += 1
        if callback is not None and callback(progress(min(done * shard, total), total)):
            return total, done, done == count
    return total, count, True


def _save_tree(
    x: FloatArray,
    writer: ShardWriter,
    shard: int,
    n_jobs: int,
    backend: BackendChoice,
    callback: Callback | None,
) -> tuple[int, int, bool]:
    del n_jobs  # the tree's order is only known by walking it
    number, total, after = 0, 0, None
    while writer.has(number):
        words = load_arrays(writer.path / shard_name(number), kind=KIND)[0]["patterns"]
        total += len(words)
        after = unpack(words[-1:], len(x))[0]
        number += 1
        if len(words) < shard:
            return total, number, True
    held: list[NumpyArray] = []
    size = 0
    for block in tree_blocks(x, after=after, backend=backend):
        held.append(pack(block))
        size += len(block)
        while size >= shard:
            words = np.concatenate(held)
            writer.write(
                number, {"patterns": words[:shard]}, {"start": number * shard, "count": shard}
            )
            number, total = number + 1, total + shard
            held, size = [words[shard:]], size - shard
            if callback is not None and callback(progress(total, 0)):
                return total, number, False
    words = np.concatenate(held) if held else np.empty((0, -(-len(x) // 64)), np.uint64)
    writer.write(number, {"patterns": words}, {"start": number * shard, "count": len(words)})
    return total + len(words), number + 1, True


def load_vertices(path: str | Path) -> Iterator[NumpyArray]:
    """Patterns int8 (k, n) of a finished folder of :func:`save_vertices`, shard by shard.

    Raises
    ------
    CorruptFileError
        An unfinished folder, or altered files.
    """
    manifest = read_manifest(path)
    if manifest["kind"] != KIND:
        raise CorruptFileError(f"{path} holds {manifest['kind']}, not {KIND}.")
    n = int(manifest["identity"]["shape"][0])
    for arrays, _ in read_shards(path, manifest):
        yield unpack(np.asarray(arrays["patterns"]), n)
