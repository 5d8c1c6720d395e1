"""What a merge would take, told from headers and a short trial of the disks."""

from __future__ import annotations

import os
import shutil
import time
from math import prod
from pathlib import Path
from typing import Any

from ..plans.plan import MergePlan
from .checkpoint import Checkpoint
from .engine import choose_cut, resident_bytes
from .merge import MergeOptions, warm_up
from .prepare import Prepared, prepare

_TRIAL = 32 << 20  # bytes read and written to see how fast the disks are
# Passes over a tensor for the statistics of each method, beside the merge itself.
_PASSES = {"slerp": 1, "model_stock": 1, "ties": 4, "breadcrumbs": 8, "breadcrumbs_ties": 8}


def estimate_merge(
    plan: MergePlan, out: str | os.PathLike[str], *, options: MergeOptions | None = None
) -> dict[str, Any]:
    """Check a plan as :func:`merge_checkpoints` does, and say what it would read, write and take.

    Parameters
    ----------
    plan : MergePlan
    out : path
        Where the result would go; nothing is left there.
    options : MergeOptions, optional

    Returns
    -------
    dict
        ``bytes_read``, ``bytes_written``, ``bytes_free``, ``memory_mib`` (of the whole process),
        ``seconds`` (from a trial of 32 MiB: disks and caches differ) and what is decided for
        tensors.

    Raises
    ------
    FishertopeError
        As :func:`merge_checkpoints` before it writes.
    """
    options = options or MergeOptions()
    found = prepare(plan, options.kernels(), shard_bytes=options.shard_bytes)
    try:
        return _facts(found, Path(out), options)
    finally:
        found.close()


def _facts(found: Prepared, out: Path, options: MergeOptions) -> dict[str, Any]:
    layout, jobs = found.layout, list(found.jobs.values())
    warm_up(found)
    resident = resident_bytes()
    largest = found.largest_group
    cut = choose_cut(
        jobs, options.threads, options.memory, resident, options.block_entries, largest
    )
    held = 1 if cut.room is not None else min(cut.workers, max(1, len(found.groups)))
    block = max((cut.step(j) * j.bytes_per_entry + j.fixed_bytes for j in jobs), default=0)
    buffers = block * cut.workers + largest[0] * held
    read = sum(j.read_bytes for j in jobs)
    passes = _PASSES.get(found.plan.method, 0) + (found.plan.nonfinite == "skip")
    statistics = passes * sum(j.read_bytes for j in jobs if j.measured)
    written = layout.bytes * found.results
    home = next(p for p in (out.resolve().parent, *out.resolve().parents) if p.is_dir())
    reading, writing = _read_rate(found), _write_rate(home)
    kinds: dict[str, int] = {}
    for decision in found.decisions.values():
        kinds[decision.kind] = kinds.get(decision.kind, 0) + 1
    return {
        "method": found.plan.method,
        "sources": len(found.sources),
        "tensors": len(jobs),
        "parameters": sum(prod(j.entry.shape) for j in jobs),
        "decisions": kinds,
        "not_merged": {
            d.name: f"{d.kind}: {d.why}" for d in found.decisions.values() if d.kind != "merge"
        },
        "results": found.results,
        "files": [s.name for s in layout.shards],
        "bytes_read": read + statistics,
        "bytes_written": written,
        "bytes_free": shutil.disk_usage(home).free,
        "workers": cut.workers,
        "memory_mib": round((resident + buffers) / 2**20, 1),
        "seconds": round((read + statistics) / reading + written / writing, 1),
        "assumed_rates_bytes": {"read": round(reading), "write": round(writing)},
        "notes": list(found.notes),
    }


def _read_rate(found: Prepared) -> float:
    """Bytes a second of reading sources, from their first bytes."""
    done, since = 0, time.perf_counter()
    for source in found.sources[:2]:
        store = source.store
        shard = (store if isinstance(store, Checkpoint) else store.weights).shards[0]
        with shard.open("rb", buffering=0) as file:
            while done < _TRIAL and (part := file.read(1 << 20)):
                done += len(part)
    return max(done, 1) / max(time.perf_counter() - since, 1e-6)


def _write_rate(folder: Path) -> float:
    """Bytes a second of writing and flushing; 1 GB/s where no trial can be made."""
    place = folder / f".fishertope-trial-{os.getpid()}.partial"
    data = os.urandom(1 << 20)
    if shutil.disk_usage(folder).free < 4 * _TRIAL:
        return 1e9
    try:
        since = time.perf_counter()
        with place.open("wb", buffering=0) as file:
            for _ in range(_TRIAL >> 20):
                file.write(data)
            os.fsync(file.fileno())
        return _TRIAL / max(time.perf_counter() - since, 1e-6)
    except OSError:
        return 1e9
    finally:
        place.unlink(missing_ok=True)
