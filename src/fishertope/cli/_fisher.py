"""``fishertope fisher``: the Fisher of every example of a data file, as a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _job
from ._checkpoint import Task
from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    stderr,
    stdout,
)


class Kind(StrEnum):
    """Kinds of Fishers by their names on the command line."""

    LOW_RANK = "low-rank"
    DIAGONAL = "diagonal"


def _counted(given: str) -> tuple[str, int]:
    name, _, number = given.partition(":")
    accepted = "projection:D, gaussian:D, rademacher:D, factored:D, svd:K or top:K"
    if name not in ("projection", "gaussian", "rademacher", "factored", "svd", "top"):
        raise typer.BadParameter(f"--reduce {given} was given; accepted: {accepted}.")
    if not number.isdigit() or int(number) < 1:
        raise typer.BadParameter(
            f"--reduce {given} was given; a whole number >= 1 follows the colon: {accepted}."
        )
    return name, int(number)


def reductions(given: list[str] | None, kind: Kind) -> list[Any]:
    """Reductions by their names.

    Raises
    ------
    typer.BadParameter
        An unknown one, or one for the other kind of Fishers.
    """
    from ..core.errors import InvalidInputError
    from ..core.fisher import FactoredProjection, RandomProjection, ThinSVD, TopK
    from ..core.fisher.reduction import split_reductions

    made: list[Any] = []
    for text in given or []:
        name, number = _counted(text)
        if name == "factored":
            made.append(FactoredProjection(number))
        elif name == "svd":
            made.append(ThinSVD(number))
        elif name == "top":
            made.append(TopK(number))
        elif name == "projection":
            made.append(RandomProjection(number, spread=min(2, number)))
        else:
            made.append(RandomProjection(number, kind=name))
    try:
        split_reductions(made or None, kind.name.lower())
    except InvalidInputError as error:
        raise typer.BadParameter(f"--reduce: {error}") from None
    return made


def fisher(
    model: _job.ModelArgument,
    data: _job.DataArgument,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the store; the same command resumes there."),
    ],
    text: _job.TextOption = None,
    label: _job.LabelOption = None,
    limit: _job.LimitOption = None,
    kind: Annotated[
        Kind, typer.Option(help="low-rank: rows A with F = AᵀA; diagonal: diag F.")
    ] = Kind.LOW_RANK,
    labels: _job.RuleOption = _job.Rule.EXACT,
    draws: _job.DrawsOption = 1,
    top: _job.TopOption = None,
    min_prob: _job.MinProbOption = 0.0,
    reduce: Annotated[
        list[str] | None,
        typer.Option(
            "--reduce",
            help="projection:D (sparse), gaussian:D, rademacher:D, factored:D, svd:K (also after "
            "a projection); top:K for diagonals.",
        ),
    ] = None,
    params: _job.ParamsOption = None,
    task: _job.TaskOption = Task.AUTO,
    label_word: _job.WordOption = None,
    fresh_head: _job.HeadOption = None,
    max_length: _job.LengthOption = None,
    engine: _job.EngineOption = "auto",
    batch_size: _job.BatchOption = _job.BATCH_SIZE,
    shard_examples: Annotated[
        int | None,
        typer.Option(
            "--shard-examples",
            min=1,
            help="Examples in a file of the store; by default 256, fewer for many columns.",
        ),
    ] = None,
    dtype: _job.DtypeOption = _job.Precision.FLOAT32,
    device: _job.DeviceOption = None,
    backend: BackendOption = "auto",
    seed: _job.SeedOption = 0,
    jobs: _job.JobsOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the Fisher of every example into a store of shards.

    Stopped at any moment, the same command resumes and gives the same bytes. Under torchrun the
    processes share the shards: torchrun --nproc-per-node 2 -m fishertope fisher ...

    Example: fishertope fisher my-checkpoint reviews.csv --text review --reduce projection:2048
    --out fishers
    """
    from ..core.backend import thread_limit
    from ..core.fisher import per_example_fishers
    from ._long_runs import bar, ending_with, only_first

    rule = _job.label_rule(labels, draws, top, min_prob)
    made = reductions(reduce, kind)
    source = _job.Source(
        model=model, data=data, text=tuple(text or ()), label=label, limit=limit, task=task,
        label_words=tuple(label_word or ()), fresh_head=fresh_head, max_length=max_length,
        dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    kept = f"Finished shards are kept in {out}; the same command resumes."
    with thread_limit(threads), ending_with(kept):
        job = _job.prepare(source, labels)
        first = only_first()
        with bar(stderr() if first and not (quiet or json) else None, "Fishers") as callback:
            store = per_example_fishers(
                job.model, job.data, kind=kind.name.lower(), labels=rule, params=params,
                reduce=made or None, engine=engine, batch_size=batch_size, backend=backend,
                seed=seed, n_jobs=jobs, store=out, shard_examples=shard_examples, callback=callback,
                **job.options,
            )  # fmt: skip
    from ._inspect import show, store_facts

    found = store_facts(store)
    if json and first:
        print_json(found)
    elif first and not quiet:
        show(out, found, stdout())
