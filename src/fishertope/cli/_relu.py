"""``fishertope relu``: shallow ReLU networks and their activation patterns on a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from ..theory.program import ReluSolution

app = typer.Typer(
    name="relu",
    help="Shallow ReLU networks as zonotope vertices: enumerate, select, search, certify.",
    no_args_is_help=True,
    add_completion=False,
)

DataArgument = Annotated[Path, typer.Argument(help="CSV file with a header; numbers only.")]
TargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help="Column to predict (default: the last one).")
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option("--feature", "-f", help="Input column; repeat. Default: all but the target."),
]
BiasOption = Annotated[
    bool, typer.Option("--bias/--no-bias", help="Whether hidden units have a bias.")
]
ScaleOption = Annotated[
    bool,
    typer.Option(
        "--scale/--no-scale", help="Centre columns and divide them by their standard deviations."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides every random draw.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder or file for the result; see below.")
]


def _show(facts: dict[str, Any], words: list[str], json: bool, quiet: bool) -> None:
    if json:
        print_json({**facts, "proven": words})
        return
    if quiet:
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if not isinstance(value, list | dict):
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            table.add_row(name.replace("_", " "), text)
    console = stdout()
    console.print(table)
    for sentence in words:
        console.print(sentence, markup=False, highlight=False)


@app.command("enumerate")
def enumerate_(
    data: DataArgument,
    feature: FeaturesOption = None,
    target: TargetOption = None,
    bias: BiasOption = True,
    method: Annotated[str, typer.Option(help="auto, sweep (general position) or tree.")] = "auto",
    out: OutOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count every activation pattern of a ReLU unit on these rows, or write them to --out.

    With --out FOLDER the packed patterns go there in shards; the same command resumes after a kill.

    Example: fishertope relu enumerate points.csv --target label --out patterns --jobs 2
    """
    from ..core.backend import thread_limit
    from ..core.zonotope import Zonotope, n_vertices, save_vertices
    from ._long_runs import bar, ending_with
    from ._relu_table import read_table

    table = read_table(data, target, feature, bias=bias, scale=False, need_target=False)
    with thread_limit(threads), ending_with("Run the same command again to go on."):
        zonotope = Zonotope(table.inputs)
        position = zonotope.general_position
        n, d = table.inputs.shape
        console = None if quiet or json else stderr()
        done: dict[str, Any] = {}
        if out is not None:
            with bar(console, "Patterns") as callback:
                done = save_vertices(
                    table.inputs, out, method=method, n_jobs=jobs, backend=backend,
                    callback=callback,
                )  # fmt: skip
            count = int(done["n_vertices"])
        else:
            with bar(console, "Patterns") as callback:
                count = _count(zonotope, method, backend, callback)
    most = n_vertices(n, d)
    words = [position.message]
    words.append(
        f"A ReLU unit can switch on {count} different sets of these {n} rows"
        + (
            "; that is the largest possible number."
            if count == most
            else f"; in general position it would be {most}."
        )
    )
    if out is not None:
        words.append(f"The patterns are in {out}, {done['n_shards']} files.")
    _show(
        {"rows": n, "columns": d, "patterns": count, "general_position": position.holds},
        words,
        json,
        quiet,
    )


def _count(zonotope: Any, method: str, backend: str, callback: Any) -> int:
    from ..core.zonotope.stream import progress

    if method == "auto" and zonotope.general_position.holds:
        return int(zonotope.n_vertices())
    count = 0
    for block in zonotope.patterns(method=method, backend=backend):
        count += len(block)
        callback(progress(count, 0))
    return count


@app.command("select")
def select(
    data: DataArgument,
    target: TargetOption = None,
    feature: FeaturesOption = None,
    bias: BiasOption = True,
    scale: ScaleOption = True,
    out: OutOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit every target exactly with twice the least number of parameters, in polynomial time.

    With --out FILE (.safetensors) the network is written there, for `relu certify`.

    Example: fishertope relu select points.csv --target y --out net.safetensors
    """
    from ..core.backend import thread_limit
    from ..theory import select_vertices
    from ._relu_table import read_table, save_network

    table = read_table(data, target, feature, bias=bias, scale=scale)
    with thread_limit(threads):
        vertex = select_vertices(table.inputs, table.targets, seed=seed)
    if out is not None:
        save_network(out, vertex.weights, vertex.signs, table)
    n, d = table.inputs.shape
    words = [
        f"{len(vertex.signs)} units fit all {n} targets: the rows fall into "
        f"{len(vertex.blocks)} blocks of independent rows, each pattern is used with both output "
        "signs, so the network's linear map on its cones reaches every target vector.",
        f"Measured from the float64 weights: mean squared error {vertex.mse:.1e}.",
        f"No network with fewer than {n} parameters can fit arbitrary targets on {n} rows.",
    ]
    facts = {
        "rows": n,
        "columns": d,
        "units": len(vertex.signs),
        "parameters": int(vertex.weights.size),
        "mean_squared_error": vertex.mse,
        "largest_weight": float(abs(vertex.weights).max()),
    }
    _show(facts, words, json, quiet)


@app.command("greedy")
def greedy(
    data: DataArgument,
    target: TargetOption = None,
    feature: FeaturesOption = None,
    units: Annotated[int, typer.Option("--units", "-u", min=1, help="Hidden units.")] = 4,
    starts: Annotated[int, typer.Option(min=1, help="Random starts.")] = 10,
    neighbourhood: Annotated[str, typer.Option(help="edges, or tight: faster.")] = "edges",
    bias: BiasOption = True,
    scale: ScaleOption = True,
    out: OutOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    backend: BackendOption = "auto",
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search the vertices for the best network with a few units, and say what was reached.

    With --out FILE (.safetensors) the network is written there, for `relu certify`.

    Example: fishertope relu greedy points.csv --target y --starts 50 --out net.safetensors
    """
    import numpy as np

    from ..core.backend import thread_limit
    from ..theory import ReluProblem, certify
    from ._long_runs import bar, ending_with
    from ._relu_table import read_table, save_network

    table = read_table(data, target, feature, bias=bias, scale=scale)
    signs = np.where(np.arange(units) % 2 == 0, 1.0, -1.0)
    problem = ReluProblem(inputs=table.inputs, targets=table.targets, signs=signs)
    with thread_limit(threads), ending_with("Nothing was written."):
        with bar(None if quiet or json else stderr(), "Starts") as callback:
            found, losses = _searched(
                problem, starts, seed, callback, neighbourhood=neighbourhood, n_jobs=jobs,
                backend=backend,
            )  # fmt: skip
        proof = certify(found, table.inputs, table.targets, signs=signs, max_cones=400_000)
    if out is not None:
        save_network(out, found.weights, signs, table)
    n, d = table.inputs.shape
    words = [f"Best of {starts} starts: {found.certificate}.", *str(proof).splitlines()[1:]]
    if proof.local_minimum:
        words.append("In words: no small change of the weights lowers the loss; this is proven.")
    facts = {
        "rows": n,
        "columns": d,
        "units": units,
        "loss": found.loss,
        "mean_squared_error": found.mse,
        "steps": len(found.history) - 1,
        "losses_of_starts": losses,
    }
    _show(facts, words, json, quiet)


def _searched(
    problem: Any, starts: int, seed: int, callback: Any, **options: Any
) -> tuple[ReluSolution, list[float]]:
    """Starts in groups of the number of processes, so that progress can be shown."""
    import numpy as np

    from ..core.zonotope.stream import progress
    from ..theory import greedy_search

    group = max(1, int(options["n_jobs"]))
    streams = np.random.default_rng(seed).spawn(-(-starts // group))
    best, losses, done = None, [], 0
    for stream in streams:
        count = min(group, starts - done)
        found = greedy_search(problem, n_starts=count, seed=stream, **options)
        done += count
        losses.append(found.loss)
        if best is None or found.loss < best.loss:
            best = found
        callback(progress(done, starts))
    assert best is not None
    return best, losses


@app.command("certify")
def certify_(
    data: DataArgument,
    network: Annotated[
        Path | None,
        typer.Argument(help="Network of `relu select` or `relu greedy` (.safetensors)."),
    ] = None,
    target: TargetOption = None,
    feature: FeaturesOption = None,
    penalty: Annotated[
        float, typer.Option(min=0.0, help="Weight decay λ of (λ/2)(‖W‖² + ‖a‖²).")
    ] = 0.0,
    loss: Annotated[str, typer.Option(help="squared, logistic or hinge (targets −1 and 1).")] = (
        "squared"
    ),
    bias: BiasOption = True,
    scale: ScaleOption = True,
    tol: Annotated[float, typer.Option(help="Relative gap of the optimum to be found.")] = 1e-7,
    out: OutOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove what a network is; without one, find the optimum with weight decay and prove it.

    Example: fishertope relu certify points.csv net.safetensors --target y

    Example: fishertope relu certify points.csv --target y --penalty 0.1 --out best.safetensors
    """
    from ..core.backend import thread_limit
    from ..theory import certify, regularised_optimum
    from ._long_runs import bar, ending_with
    from ._relu_table import load_network, read_table, save_network

    if network is None and penalty == 0:
        raise typer.BadParameter(
            "Without a network --penalty > 0 is needed: then the global optimum is found and "
            "proven. Or give the file of a network."
        )
    table = read_table(data, target, feature, bias=bias, scale=scale)
    console = None if quiet or json else stderr()
    with thread_limit(threads), ending_with("Nothing was written."):
        held: Any
        if network is not None:
            held = load_network(network, table)
        else:
            with bar(console, "Columns") as callback:
                held = regularised_optimum(
                    table.inputs, table.targets, penalty, loss=loss, tol=tol, backend=backend,
                    callback=callback,
                )  # fmt: skip
            if out is not None:
                save_network(out, held.weights, held.outputs, table)
        proof = certify(held, table.inputs, table.targets, loss=loss, penalty=penalty)
    words = str(proof).splitlines()
    if proof.global_optimum:
        words.append(
            "In words: no network with one hidden ReLU layer, of any width, has a smaller "
            "objective on these data"
            + (f", up to a share of {max(proof.gap, 0.0):.1e}." if penalty > 0 else ".")
        )
    facts = {
        "objective": proof.objective,
        "lower_bound": proof.lower_bound,
        "units": proof.n_units,
        "dead_units": proof.n_dead,
        "local_minimum": proof.local_minimum,
        "global_optimum": proof.global_optimum,
    }
    _show(facts, words, json, quiet)
