"""``fishertope npeff``: fit a store, lift, transform, move a model, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _job
from ._checkpoint import Task
from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    print_page,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from ..core.factorization import Factorization

group = typer.Typer(
    help="Decompose per-example Fishers, and see what the components are about.",
    no_args_is_help=True,
)


class Solver(StrEnum):
    """Solvers by name."""

    AUTO = "auto"
    PALS = "pals"
    MU_GD = "mu-gd"
    HALS = "hals"
    MU = "mu"


class Direction(StrEnum):
    """Directions by name."""

    COMPONENT = "component"
    SEQUENTIAL = "sequential"
    ORTHOGONALISED = "orthogonalised"


StoreArgument = Annotated[
    Path,
    typer.Argument(
        help="Fisher store (fishertope fisher), or an HDF5 file of npeff_ref.", show_default=False
    ),
]
FoundArgument = Annotated[
    Path, typer.Argument(help="Decomposition (fishertope npeff fit).", show_default=False)
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of ours that are at --out.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="The Fishers that were fitted; makes lifting cheaper."),
]


@group.command("fit")
def fit(
    store: StoreArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File of the decomposition (.safetensors).")
    ],
    components: Annotated[int, typer.Option("--components", "-r", min=1, help="How many.")] = 16,
    solver: Annotated[
        Solver,
        typer.Option(help="pals or mu-gd for low-rank Fishers, hals or mu for diagonals."),
    ] = Solver.AUTO,
    starts: Annotated[int, typer.Option(min=1, help="pals: starts tried briefly.")] = 4,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1)] = None,
    tol: Annotated[float | None, typer.Option(help="When a fit counts as converged.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Every example counts alike.")
    ] = True,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Keep the state of the fit here; the same command goes on from it."),
    ] = None,
    subsets: Annotated[
        int, typer.Option(min=0, help="Repeat on so many random subsets and tell what comes back.")
    ] = 0,
    backend: BackendOption = "auto",
    device: _job.DeviceOption = None,
    seed: _job.SeedOption = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the decomposition of a store of Fishers.

    Example: fishertope npeff fit fishers --components 16 --out found.safetensors
    """
    from ..core.backend import thread_limit
    from ..core.factorization import factorize
    from ._long_runs import ending_with, only_first
    from ._npeff_files import check_file, method_of, open_fishers, stability_table, steps_bar

    check_file(out, "factorization", overwrite)
    fishers = open_fishers(store)
    method = method_of(fishers, components, str(solver), starts, max_steps, tol, normalize)
    kept = "" if checkpoint is None else f" The state so far is in {checkpoint}."
    with thread_limit(threads), ending_with(f"Nothing was written to {out}.{kept}"):
        first = only_first()
        console = stderr() if first and not (quiet or json) else None
        with steps_bar(console, "Fit") as callback:
            found = factorize(
                fishers, method, seed=seed, backend=backend, device=device, callback=callback,
                checkpoint=checkpoint,
            )  # fmt: skip
        again = stability_table(fishers, method, found, subsets, seed, backend, console)
        if not first:
            return
        if again is not None:
            found = found.replace(facts={**found.facts, "stability": again.tolist()})
        found.save(out)
    if json:
        print_json(_facts(found) | {"out": str(out)})
    elif not quiet:
        stdout().print(found)


@group.command("lift")
def lift(
    found: FoundArgument,
    model: _job.ModelArgument,
    data: _job.DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the lifted decomposition.")],
    store: StoreOption = None,
    text: _job.TextOption = None,
    label: _job.LabelOption = None,
    limit: _job.LimitOption = None,
    task: _job.TaskOption = Task.AUTO,
    label_word: _job.WordOption = None,
    fresh_head: _job.HeadOption = None,
    max_length: _job.LengthOption = None,
    batch_size: _job.BatchOption = _job.BATCH_SIZE,
    dtype: _job.DtypeOption = _job.Precision.FLOAT32,
    device: _job.DeviceOption = None,
    seed: _job.SeedOption = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the components over all parameters, after a fit of projected Fishers.

    The options of the data are those that fishertope fisher was given. Reports and moves lift by
    themselves; with this it is done once.
    """
    from ..core.backend import thread_limit
    from ._long_runs import ending_with
    from ._npeff_files import check_file, load_found
    from ._npeff_inputs import Explained

    check_file(out, "factorization", overwrite)
    source = _job.Source(
        model=model, data=data, text=tuple(text or ()), label=label, limit=limit, task=task,
        label_words=tuple(label_word or ()), fresh_head=fresh_head, max_length=max_length,
        dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    with thread_limit(threads), ending_with(f"Nothing was written to {out}."):
        explained = Explained.prepare(source, load_found(found))
        lifted = explained.lifted(store, None if quiet or json else stderr())
        lifted.save(out)
    if json:
        print_json(_facts(lifted) | {"out": str(out)})
    elif not quiet:
        stdout().print(lifted)


@group.command("transform")
def transform(
    found: FoundArgument,
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the coefficients.")],
    backend: BackendOption = "auto",
    device: _job.DeviceOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the coefficients of other examples for components that stay as they are.

    Example: fishertope npeff transform found.safetensors new-fishers --out coefficients.safetensors
    """
    from ..core.backend import thread_limit
    from ._npeff_files import COEFFICIENTS, check_file, coefficients_of, load_found

    check_file(out, COEFFICIENTS, overwrite)
    with thread_limit(threads):
        results = coefficients_of(load_found(found), store, out, backend, device)
    if json:
        print_json(results)
    elif not quiet:
        line = f"{results['examples']} examples × {results['components']} components: {out}"
        stdout().print(line, markup=False, highlight=False)


@group.command("perturb")
def perturb(
    found: FoundArgument,
    model: _job.ModelArgument,
    data: _job.DataArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results (results.json).")
    ] = None,
    component: Annotated[
        list[int] | None, typer.Option("--component", "-k", min=0, help="Which; all by default.")
    ] = None,
    magnitude: Annotated[
        str, typer.Option(help="ε, or auto: until the KL on its own examples is --target-kl.")
    ] = "auto",
    target_kl: Annotated[float, typer.Option("--target-kl", help="In nats.")] = 0.1,
    direction: Annotated[Direction, typer.Option()] = Direction.COMPONENT,
    n_top: Annotated[int, typer.Option("--top-examples", min=1, help="Own examples.")] = 32,
    n_baseline: Annotated[int, typer.Option("--baseline", min=1, help="Other examples.")] = 128,
    n_random: Annotated[int, typer.Option("--random", min=0, help="Random directions.")] = 8,
    store: StoreOption = None,
    text: _job.TextOption = None,
    label: _job.LabelOption = None,
    limit: _job.LimitOption = None,
    task: _job.TaskOption = Task.AUTO,
    label_word: _job.WordOption = None,
    fresh_head: _job.HeadOption = None,
    max_length: _job.LengthOption = None,
    batch_size: _job.BatchOption = _job.BATCH_SIZE,
    dtype: _job.DtypeOption = _job.Precision.FLOAT32,
    device: _job.DeviceOption = None,
    seed: _job.SeedOption = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Move a model along components, and measure what changes; its parameters are restored.

    Example: fishertope npeff perturb found.safetensors my-checkpoint reviews.csv --text review
    """
    from ..core.backend import thread_limit
    from ._long_runs import ending_with
    from ._npeff_files import load_found, magnitude_of, write_results
    from ._npeff_inputs import Explained

    size = magnitude_of(magnitude)
    source = _job.Source(
        model=model, data=data, text=tuple(text or ()), label=label, limit=limit, task=task,
        label_words=tuple(label_word or ()), fresh_head=fresh_head, max_length=max_length,
        dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    options = {
        "magnitude": size, "target_kl": target_kl, "direction": str(direction), "n_top": n_top,
        "n_baseline": n_baseline, "n_random": n_random, "seed": seed,
    }  # fmt: skip
    with thread_limit(threads), ending_with("The model was not changed."):
        console = None if quiet or json else stderr()
        explained = Explained.prepare(source, load_found(found))
        with write_results(out, "npeff perturb", {"found": str(found), **options}, overwrite) as to:
            report = explained.moved(component, store, options, console)
            results = to(report)
    if json:
        print_json(results)
    elif not quiet:
        stdout().print(report)


@group.command("report")
def report(
    found: FoundArgument,
    data: Annotated[
        str | None,
        typer.Argument(help="Data file of the same examples, in their order.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder: report.html, .tex, .md, results.json.")
    ] = Path("npeff-report"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint folder or loader: adds answers, moves, tokens and traces.",
        ),
    ] = None,
    text: _job.TextOption = None,
    label: _job.LabelOption = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", help="Columns to compare with; all others by default."),
    ] = None,
    image_shape: Annotated[
        str | None,
        typer.Option("--image-shape", help="Show array data as images: 28x28 or 32x32x3."),
    ] = None,
    title: Annotated[str, typer.Option()] = "What the components are about",
    correction: Annotated[str, typer.Option(help="Of p-values: holm or bh.")] = "holm",
    top_examples: Annotated[int, typer.Option("--top-examples", min=1)] = 6,
    traces: Annotated[int, typer.Option(min=0, help="Components to trace.")] = 16,
    moves: Annotated[
        bool, typer.Option("--moves/--no-moves", help="Move the model along components.")
    ] = True,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Hide tokens one by one.")
    ] = True,
    store: StoreOption = None,
    limit: _job.LimitOption = None,
    task: _job.TaskOption = Task.AUTO,
    label_word: _job.WordOption = None,
    fresh_head: _job.HeadOption = None,
    max_length: _job.LengthOption = None,
    batch_size: _job.BatchOption = _job.BATCH_SIZE,
    dtype: _job.DtypeOption = _job.Precision.FLOAT32,
    device: _job.DeviceOption = None,
    seed: _job.SeedOption = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the report of a decomposition: what distinguishes its components, with evidence.

    Example: fishertope npeff report found.safetensors reviews.csv --model my-checkpoint --text
    review --label stars --out report
    """
    from ..core.backend import thread_limit
    from ..experiments.npeff.text_report import Effort
    from ._long_runs import ending_with
    from ._npeff_files import load_found
    from ._npeff_inputs import Explained, write_report

    source = _job.Source(
        model=model or "", data=data or "", text=tuple(text or ()), label=label, limit=limit,
        task=task, label_words=tuple(label_word or ()), fresh_head=fresh_head,
        max_length=max_length, dtype=dtype, device=device, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    effort = Effort(
        n_top=top_examples, n_traces=traces, moved_top=20 if moves else 0, attributions=tokens
    )
    command = f"fishertope npeff report {found} {data or ''}".rstrip()
    command += f" --model {model}" if model else ""
    options = {"title": title, "correction": correction, "command": command}
    with thread_limit(threads), ending_with(f"Nothing was written to {out}."):
        explained = Explained.prepare(source, load_found(found))
        made = explained.report(
            metadata, image_shape, store, effort, options, None if quiet or json else stderr()
        )
        write_report(made, out, overwrite)
    if json:
        print_json(made.results())
    elif not quiet:
        from ..core.report.decomposition_exports import component_table

        stdout().print(component_table(made, brief=True))
        print_page(out / "report.html")


def _facts(found: Factorization) -> dict[str, Any]:
    return {
        "examples": found.n_examples, "components": found.n_components,
        "columns": int(found.components.shape[1]), "relative_loss": found.relative_loss,
        "status": str(found.status), "residual": found.residual, "kkt": found.kkt,
        "products": found.products, "shares": found.shares, "backend": found.backend,
        "method": repr(found.method), "seed": found.seed,
        "stability": found.facts.get("stability"),
    }  # fmt: skip
