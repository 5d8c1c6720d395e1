"""``fishertope search``: merging weights chosen on one split, reported on another."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import _merge
from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    stderr,
    stdout,
)


def search(
    what: _merge.PlanArgument,
    out: _merge.OutOption,
    evaluate: Annotated[
        str,
        typer.Option(
            help="module:function of (checkpoint folder, 'selection' or 'report') that returns a "
            "score, one score an example, or a mapping from metrics to these.",
        ),
    ],
    method: _merge.MethodOption = None,
    precision: _merge.PrecisionOption = None,
    base: _merge.BaseOption = None,
    set_: _merge.SetOption = None,
    site: _merge.TakeOption = None,
    points: Annotated[int, typer.Option(min=2, help="Weight vectors to try.")] = 11,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Candidates made from one reading.")
    ] = 4,
    metric: Annotated[str | None, typer.Option(help="Which metric counts.")] = None,
    minimise: Annotated[bool, typer.Option("--minimise", help="The metric is a loss.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of Sobol points and the bootstrap.")] = 0,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Try merging weights, keep the best on the selection split, and report on the other split.

    Each source alone and plain averaging, with a search of its own, are reported beside the merge.

    Example: fishertope search model-a model-b --evaluate my_task:accuracy --out merged
    """
    from ..core.merging.streaming import MergeOptions, search_checkpoints
    from ._loaders import function_of, is_loader

    if not is_loader(evaluate):
        raise typer.BadParameter(f"--evaluate {evaluate} was given; module:function is taken.")
    plan = _merge.plan_of(
        what, method=method, weights=None, precision=precision or [], base=base,
        settings=set_ or [], sites=site or [], out_dtype=None,
    )  # fmt: skip
    console = None if quiet or json else stderr()

    def told(phase: str, done: int, total: int) -> None:
        if console is not None:
            console.print(f"{phase}: {done} of {total} candidates", markup=False, highlight=False)

    found = search_checkpoints(
        plan, function_of(evaluate), out, points=points, at_once=at_once, metric=metric,
        maximise=not minimise, options=MergeOptions(backend=backend, workers=threads), seed=seed,
        told=told,
    )  # fmt: skip
    facts = _facts(found)
    if json:
        print_json(facts)
    elif not quiet:
        _show(found, facts)


def _facts(found: Any) -> dict[str, Any]:
    return {
        "path": str(found.path), "weights": list(found.weights),
        "trials": [{"weights": list(w), "score": s} for w, s in found.trials],
        "isotropic_trials": [{"weights": list(w), "score": s} for w, s in found.plain_trials],
        "report": dict(found.report),
        "differences": {
            k: {"mean": d.mean, "low": d.low, "high": d.high} for k, d in found.differences.items()
        },
    }  # fmt: skip


def _show(found: Any, facts: dict[str, Any]) -> None:
    from ..core.report import Column, Table

    console = stdout()
    weights = ", ".join(f"{w:.3g}" for w in found.weights)
    console.print(f"{found.path}: weights {weights}", markup=False, highlight=False)
    rows: list[list[Any]] = []
    for name, score in found.report.items():
        gap = found.differences.get(name)
        text = "" if gap is None else f"{gap.mean:+.4g} [{gap.low:+.4g}, {gap.high:+.4g}]"
        rows.append([name, f"{score:.4g}", text])
    names = ("on the report split", "score", "merged minus it, 95 % interval")
    console.print(Table(columns=[Column(name=n, left=True) for n in names], rows=rows))
