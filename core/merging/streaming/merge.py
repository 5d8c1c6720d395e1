"""Merge checkpoints on disk into one, in bounded memory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import BackendChoice, Kernel, current_threads, select_backend
from ...backend.convert import check_device
from ...errors import InvalidInputError, WriteFailedError
from ...storage.atomic import explain_write
from ...storage.numbers import FLOATS, encode
from ...storage.output_folder import OutputFolder
from ...types import Device
from ..plans.plan import MergePlan
from .carry import carried_files, config_text
from .engine import (
    Cut,
    Run,
    Watcher,
    blocks_of,
    build_all,
    choose_cut,
    in_groups,
    resident_bytes,
)
from .prepare import Prepared, prepare
from .recipes import Counts, Kernels
from .report import model_card, report_facts
from .views import check_model, floored_norm
from .writing import JOURNAL, Journal, OutputFile, Safekeeping, block_identity

_SPARE = 16 << 20  # bytes of the disk that are left for small files


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How a plan is carried out; nothing here changes a number of the result.

    Attributes
    ----------
    backend, device
        See :func:`~fishertope.core.backend.select_backend`; "auto" is numba. Every backend keeps
        to its own rounding of the last bit, so backend and device are part of what is resumed.
    workers : int or None
        Threads; by default those of :func:`~fishertope.core.backend.thread_limit`.
    memory : int or None
        Bytes that this process may take in all; by default a few MiB of buffers a worker.
    shard_bytes : int or None
        Files of at most so many bytes; by default like those of the target.
    checksums : bool
        SHA-256 of every file into the manifest, made while it is written.
    fsync : bool
        Flush to the disk: a power cut loses nothing that the journal calls done.
    check_models : bool
        Refuse precisions whose hash is that of other parameters.
    block_entries : int or None
        Entries a block, whatever the buffers.
    """

    backend: BackendChoice = "auto"
    device: Device = None
    workers: int | None = None
    memory: int | None = None
    shard_bytes: int | None = None
    checksums: bool = True
    fsync: bool = True
    check_models: bool = True
    block_entries: int | None = None

    def kernels(self) -> Kernels:
        """The backend.

        Raises
        ------
        BackendNotFound, BackendUnavailable, ArrayTypeError
            No such backend or device.
        """
        chosen = select_backend(np.empty(0), backend=self.backend, kernel=Kernel.MERGE_LINEAR)
        check_device(chosen, self.device)
        return Kernels(chosen, self.device)

    @property
    def threads(self) -> int:
        """Workers."""
        count = current_threads() if self.workers is None else self.workers
        if count < 1:
            raise InvalidInputError(f"workers={count} was given; a whole number >= 1 is accepted.")
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did.

    Attributes
    ----------
    path : Path
    facts : mapping
        As in ``results.json``.
    """

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        f = self.facts
        return (
            f"MergeReport({str(self.path)!r}, {f['method']}, tensors={f['tensors']}, "
            f"bytes={f['bytes_written']}, seconds={f['seconds']})"
        )


def merge_checkpoints(
    plan: MergePlan,
    out: str | os.PathLike[str],
    *,
    options: MergeOptions | None = None,
    overwrite: bool = False,
    resume: bool = True,
    watch: Watcher | None = None,
) -> MergeReport:
    """Carry out a plan: read the sources once, write one checkpoint (or K) under ``out``.

    Parameters
    ----------
    plan : MergePlan
        From :func:`~fishertope.core.merging.plans.load_plan`, or typed.
    out : path
        Folder of the result; it appears when everything in it is complete. Beside the weights:
        configuration and tokenizer of the target, ``merge_plan.yaml``, a model card, and
        ``results.json`` and ``manifest.json`` with numbers, versions and SHA-256.
    options : MergeOptions, optional
    overwrite : bool
        Replace an earlier result of ours.
    resume : bool
        Take up the work of an interrupted run with the same plan and unchanged sources.
    watch : callable, optional
        Gets a :class:`~fishertope.core.merging.streaming.Progress` ten times a second; returning
        ``True`` stops the merge.

    Returns
    -------
    MergeReport

    Raises
    ------
    InvalidInputError
        Plans, tensors or numbers that do not fit; the message names them.
    CorruptFileError
        Damaged or hostile files.
    WriteFailedError
        The disk is full or refuses; nothing is left under ``out``, and what is written is resumed.
    ForeignFolderError, ResultsExistError
        Something else is at ``out``.

    Notes
    -----
    Bytes: those of sources and precisions once (methods with statistics of whole tensors read
    them again), those of the result once. Memory: workers × (sources + K) blocks. Arithmetic in
    float32 or wider, one rounding to nearest even; in delta form, so that equal sources come back
    bit for bit. The result does not depend on blocks, threads or shards.

    Examples
    --------
    >>> import tempfile
    >>> from fishertope.core.merging.plans import PlanSource
    >>> from fishertope.core.merging.streaming import Checkpoint
    >>> from fishertope.core.storage import save_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in (("a", 1.0), ("b", 3.0)):
    ...         save_arrays(f"{folder}/{name}.safetensors", {"w": np.array([value])}, kind="model")
    ...     plan = MergePlan(method="linear", parameters={"weight": 0.5}, sources=(
    ...         PlanSource(model=f"{folder}/a.safetensors"),
    ...         PlanSource(model=f"{folder}/b.safetensors")))
    ...     report = merge_checkpoints(plan, f"{folder}/merged")
    ...     with Checkpoint(f"{folder}/merged") as merged:
    ...         value = np.empty(1)
    ...         merged.read("w", 0, value)
    >>> value.tolist(), report.facts["tensors"]
    ([2.0], 1)
    """
    options = options or MergeOptions()
    kernels, started = options.kernels(), time.monotonic()
    found = prepare(plan, kernels, shard_bytes=options.shard_bytes)
    try:
        settings = _settings(found, options)
        if options.memory is not None:
            warm_up(found)
            _cut(found, options)  # a budget that is too small is refused before a folder is made
        with OutputFolder(
            out, command="merge", settings=settings, overwrite=overwrite, resume=resume
        ) as folder:
            _check_room(found, folder)
            _check_precisions(found, options)
            warm_up(found)
            build_all(list(found.jobs.values()), options.threads, watch)
            cut = _cut(found, options)
            found.residence.room = cut.room
            # Checksums are made of what passes through Python.
            cut.direct = not options.checksums and options.memory is None
            counts, digests = _write(found, folder, options, cut, watch)
            facts = report_facts(found, counts, time.monotonic() - started, cut)
            _write_small(found, folder, facts)
            backend = kernels.backend.name
            folder.finish(facts, seed=plan.seed, backend=backend, digests=digests)
        return MergeReport(path=folder.path, facts=facts)
    finally:
        found.close()


def _cut(found: Prepared, options: MergeOptions) -> Cut:
    return choose_cut(
        list(found.jobs.values()), options.threads, options.memory, resident_bytes(),
        options.block_entries, found.largest_group,
    )  # fmt: skip


def _settings(found: Prepared, options: MergeOptions) -> dict[str, Any]:
    """What decides the bytes of the result."""
    return {
        "plan": found.plan.to_dict(), "sources": found.fingerprint(),
        "shard_bytes": options.shard_bytes, "backend": found.kernels.backend.name,
        "device": None if options.device is None else str(options.device),
    }  # fmt: skip


def _check_room(found: Prepared, folder: OutputFolder) -> None:
    need = found.layout.bytes * found.results
    written = sum(
        p.stat().st_blocks * 512 for p in folder.working.rglob("*.safetensors") if p.is_file()
    )
    with explain_write(folder.path):
        free = shutil.disk_usage(folder.working).free
    if need - written + _SPARE > free:
        raise WriteFailedError(
            f"{folder.path} needs {need - written:,} more bytes (and {_SPARE:,} to spare), but its "
            f"disk has {free:,} free. Nothing was written. Choose another folder, or make room."
        )


def _check_precisions(found: Prepared, options: MergeOptions) -> None:
    if found.precisions is None:
        return
    if options.check_models:
        for i, (p, source) in enumerate(zip(found.precisions, found.sources, strict=True)):
            check_model(p, source, i)
    if found.setting("normalize", ""):
        merged = [n for n, d in found.decisions.items() if d.kind == "merge"]
        sizes = [(n, prod(found.sources[0].shape(n))) for n in merged]
        floor, first = float(found.setting("floor", "")), found.setting("floor_on", "") == "first"
        norms = [
            floored_norm(p, sizes, floor if i == 0 or not first else 0.0)
            for i, p in enumerate(found.precisions)
        ]
        if not all(norms):
            raise InvalidInputError(
                f"The precision of source {norms.index(0.0)} is 0 everywhere, so it cannot be "
                "normalised. Estimate it again, or set normalize: false or a floor."
            )
        found.scales = 1.0 / np.array(norms)
        found.notes.append(f"norms of the precisions: {norms}")
        from .prepare import rebuild

        rebuild(found)


def warm_up(found: Prepared) -> None:
    """Load and compile the kernels for the dtypes in question, so that their memory is known."""
    if found.groups:
        _warm_up_sites()
    codes = {s.tensors[n].dtype for s in found.sources for n in s.tensors} & set(FLOATS)
    # As many sources as there are: a pair has loops of its own.
    ones = np.ones((len(found.sources), 1))
    for code in codes if found.kernels.backend.info.half_bits else {"F64"}:
        x = encode(ones, code)
        if found.precisions is None:
            found.kernels.call(Kernel.MERGE_LINEAR, x, ones.T, ones[0])
            continue
        wanted = {t.dtype for p in found.precisions for t in p.store.tensors.values()}
        for other in wanted & set(FLOATS):
            f = encode(ones, other)
            found.kernels.call(Kernel.MERGE_DIAGONAL, x, f, ones.T, ones.T, ones[:, 0])


def _warm_up_sites() -> None:
    """Load what solves sites, and let BLAS take its buffers."""
    from ...fisher.structures import Gram
    from ..problem import MergeProblem
    from ..solving import solve

    x = np.sin(np.arange(512.0 * 512)).reshape(512, 512)
    gram = Gram(x @ x.T / 512 + np.eye(512), 512)
    solve(MergeProblem(sources=[{"w": x}, {"w": x.T}], precisions=[{"w": gram}, {"w": gram}]))


def _write(
    found: Prepared, folder: OutputFolder, options: MergeOptions, cut: Cut, watch: Watcher | None
) -> tuple[Counts, dict[str, Any]]:
    layout = found.layout
    blocks = blocks_of(in_groups(list(found.jobs.values())), cut)
    facts = {
        "step": {n: cut.step(j) for n, j in found.jobs.items()}, "results": found.results,
        "checksums": options.checksums,
    }  # fmt: skip
    journal = Journal(
        folder.working / JOURNAL, len(blocks), block_identity(facts), resume=folder.resumed
    )
    files: list[list[OutputFile]] = []
    try:
        for k in range(found.results):
            files.append([])
            for shard in layout.shards:
                place = folder.file(result_name(found, k) + shard.name)
                files[-1].append(
                    OutputFile(place, shard, resume=journal.resumed, hashed=options.checksums)
                )
        every = [f for row in files for f in row]
        where = {
            name: (n, offset)
            for n, shard in enumerate(layout.shards)
            for name, offset in shard.offsets.items()
        }
        safe = Safekeeping(every, journal, fsync=options.fsync)
        run = Run(
            blocks=blocks, files=files, where=where, journal=journal, safe=safe,
            workers=cut.workers, watch=watch, direct=cut.direct,
        )  # fmt: skip
        run.execute()
        digests = {
            result_name(found, k) + f.shard.name: f.facts()
            for k, row in enumerate(files)
            for f in row
        }
        counts = journal.counts(range(len(blocks)))
        journal.close(remove=True)
        return counts, digests
    finally:
        journal.close()
        for row in files:
            for file in row:
                file.close()


def result_name(found: Prepared, k: int) -> str:
    """Folder of the k-th result inside the output, with a slash; nothing for a single one."""
    return f"result-{k:03d}/" if found.plan.grid else ""


def _write_small(found: Prepared, folder: OutputFolder, facts: Mapping[str, Any]) -> None:
    """Index, configuration, tokenizer, plan and model card of every result."""
    from ..plans.files import plan_text

    layout = found.layout
    tokenizer = None if found.plan.tokenizer is None else Path(found.plan.tokenizer)
    carried = carried_files(found.target, tokenizer)
    codes = {j.entry.dtype for j in found.jobs.values()} & set(FLOATS)
    for k in range(found.results):
        head = result_name(found, k)
        if layout.index_name is not None:
            folder.write_json(head + layout.index_name, layout.index)
        for name, place in carried.items():
            data = config_text(place, codes) if name == "config.json" else place.read_bytes()
            folder.write_bytes(head + name, data)
        folder.write_text(head + "README.md", model_card(found, facts, k))
    folder.write_text("merge_plan.yaml", plan_text(found.plan))
