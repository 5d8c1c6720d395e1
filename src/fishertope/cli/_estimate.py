"""``fishertope estimate``: the Fisher of a whole data set, as a precision tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _job
from ._checkpoint import Task
from ._console import JsonOption, QuietOption, ThreadsOption, print_json, stderr, stdout


def _known_structure(name: str) -> str:
    from ..core.fisher.precision import STRUCTURES

    return _one_of(name, STRUCTURES)


def _known_sharing(name: str) -> str:
    from ..core.fisher.structures import SHARINGS

    return _one_of(name, SHARINGS)


def _one_of(name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise typer.BadParameter(f"{name!r} was given; choose one of {', '.join(known)}.")
    return name


def estimate(
    model: _job.ModelArgument,
    data: _job.DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the precision (.safetensors).")],
    text: _job.TextOption = None,
    label: _job.LabelOption = None,
    limit: _job.LimitOption = None,
    structure: Annotated[
        str,
        typer.Option(
            callback=_known_structure,
            help="diagonal; isotropic: one number a parameter tensor; kronecker (K-FAC) and ekfac: "
            "two factors a layer; gram: second moments of each layer's inputs (RegMean, no "
            "labels); block: dense, for small sites; lowrank+diagonal.",
        ),
    ] = "diagonal",
    sharing: Annotated[
        str,
        typer.Option(
            callback=_known_sharing,
            help="For kronecker and ekfac over sequences: expand counts every position, reduce "
            "adds up those of an example first.",
        ),
    ] = "expand",
    rank: Annotated[
        int, typer.Option(min=1, help="For lowrank+diagonal: directions kept a site.")
    ] = 16,
    labels: _job.RuleOption = _job.Rule.EXACT,
    draws: _job.DrawsOption = 1,
    top: _job.TopOption = None,
    min_prob: _job.MinProbOption = 0.0,
    relative_error: Annotated[
        float | None,
        typer.Option(
            "--relative-error", help="Stop once the trace is known to this share, such as 0.01."
        ),
    ] = None,
    params: _job.ParamsOption = None,
    task: _job.TaskOption = Task.AUTO,
    label_word: _job.WordOption = None,
    fresh_head: _job.HeadOption = None,
    max_length: _job.LengthOption = None,
    engine: _job.EngineOption = "auto",
    batch_size: _job.BatchOption = _job.BATCH_SIZE,
    dtype: _job.DtypeOption = _job.Precision.FLOAT32,
    device: _job.DeviceOption = None,
    seed: _job.SeedOption = 0,
    jobs: _job.JobsOption = None,
    threads: ThreadsOption = None,
    store_dtype: Annotated[
        _job.Precision,
        typer.Option("--store-dtype", help="Numbers of the file; float32 halves it."),
    ] = _job.Precision.FLOAT64,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a precision that is at --out.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the precision of a model on a data set: the mean of its examples' Fishers.

    Merging takes these files. Under torchrun the processes share the batches: torchrun
    --nproc-per-node 2 -m fishertope estimate ...

    Example: fishertope estimate my-checkpoint reviews.csv --text review --out precision.safetensors
    """
    from ..core.backend import thread_limit
    from ..core.fisher import estimate_precision
    from ._inspect import facts_of, show
    from ._long_runs import bar, ending_with, only_first

    rule = _job.label_rule(labels, draws, top, min_prob)
    _check_out(out, overwrite)
    source = _job.Source(
        model=model, data=data, text=tuple(text or ()), label=label, limit=limit, task=task,
        label_words=tuple(label_word or ()), fresh_head=fresh_head, max_length=max_length,
        dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    with thread_limit(threads), ending_with(f"Nothing was written to {out}."):
        job = _job.prepare(source, labels)
        first = only_first()
        with bar(stderr() if first and not (quiet or json) else None, "Precision") as callback:
            tree = estimate_precision(
                job.model, job.data, structure=structure, sharing=sharing, rank=rank,
                labels=rule, params=params,
                engine=engine, batch_size=batch_size, relative_error=relative_error, seed=seed,
                n_jobs=jobs, callback=callback, **job.options,
            )  # fmt: skip
        if not first:
            return
        tree.astype(store_dtype.value).save(out)
    found = facts_of(out)
    if json:
        print_json(found)
    elif not quiet:
        show(out, found, stdout())


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse before the work what would be refused after it.

    Raises
    ------
    InvalidInputError, ForeignFolderError, ResultsExistError, WriteFailedError
        A name of another kind; something else, or a precision without ``--overwrite``, is there;
        no such folder.
    """
    from ..core.errors import (
        CorruptFileError,
        ForeignFolderError,
        InvalidInputError,
        ResultsExistError,
        WriteFailedError,
    )
    from ..core.fisher.precision import KIND
    from ..core.storage import inspect_file

    if out.suffix != ".safetensors":
        raise InvalidInputError(
            f"--out {out} was given; precisions are safetensors files. Give a name that ends in "
            ".safetensors."
        )
    if not out.parent.is_dir():
        raise WriteFailedError(f"There is no folder {out.parent} for {out.name}; create it first.")
    if not out.exists():
        return
    try:
        kind = inspect_file(out)["kind"] if out.is_file() else None
    except CorruptFileError:
        kind = None
    if kind != KIND:
        raise ForeignFolderError(
            f"{out} is there and is no precision of fishertope. It is left as it is; choose "
            "another --out."
        )
    if not overwrite:
        raise ResultsExistError(
            f"{out} holds a precision already. Choose another --out, or --overwrite to replace it."
        )
