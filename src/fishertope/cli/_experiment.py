"""``fishertope experiment``: the studies, their state, running them, and their pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import JsonOption, QuietOption, print_json, print_page, stderr, stdout
from ._long_runs import bar, ending_with

if TYPE_CHECKING:
    from ..core.status import Callback
    from ..experiments.studies import StudyRun

group = typer.Typer(
    help="Studies: each tests a claim of a paper and reports what came out.",
    no_args_is_help=True,
)
ClaimsOption = Annotated[
    Path, typer.Option("--claims", help="The folder of the stored rows in a checkout.")
]
NamesArgument = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Studies, a paper (all of its studies), or 'all'."),
]


@group.command("list")
def list_studies(claims: ClaimsOption = Path("docs/claims"), json: JsonOption = False) -> None:
    """The studies: what each tests, how long it takes, and what is stored of it."""
    from ..core.report import Column, Table
    from ..experiments.studies import find_study, study_ids
    from ..experiments.studies.documents import stored
    from ..experiments.studies.report import minutes

    rows: list[dict[str, Any]] = []
    for name in study_ids():
        study = find_study(name)
        run = stored(claims, study)
        state = "none" if not run.done else f"{run.done} of {run.total} rows"
        if run.summary is not None:
            state = str(run.summary.outcome)
        full = run.rows.seconds if run.complete else 60 * study.full_minutes
        rows.append(
            {
                "id": name,
                "title": study.title,
                "claim": f"{study.paper} {', '.join(map(str, study.claims))}",
                "quick": "~" + minutes(study.quick_seconds),
                "full": ("" if run.complete else "~") + minutes(full),
                "stored": state,
            }
        )
    if json:
        print_json(rows)
        return
    table = Table(
        columns=[Column(name=name, left=True) for name in rows[0]] if rows else [],
        rows=[list(row.values()) for row in rows],
        note="Times of one thread; ~ is an estimate. `fishertope experiment run ID`",
    )
    stdout().print(table)


@group.command("run")
def run(
    names: NamesArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: shows that it works, no evidence.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Processes, of one thread each.")
    ] = 1,
    budget: Annotated[
        float | None,
        typer.Option(help="Minutes after which no further unit is begun; a later run goes on."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results (default: study-results/ID)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the rows of earlier runs.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run studies, or take up what an interrupted run left."""
    from ..experiments.studies import run_study

    studies = _studies(names)
    if out is not None and len(studies) > 1:
        raise typer.BadParameter("--out takes the folder of one study; several were named.")
    console = None if quiet or json else stderr()
    done: list[dict[str, Any]] = []
    for study in studies:
        with ending_with(_LATER), bar(console, study.id, "units") as advance:
            result = run_study(
                study,
                quick=quick,
                out=out,
                jobs=jobs,
                budget_minutes=budget,
                fresh=fresh,
                progress=partial(_tell, advance),
            )
        done.append(result.results)
        if not json and not quiet:
            _show(result)
    if json:
        print_json(done[0] if len(done) == 1 else done)


@group.command("report")
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID...]", help="Studies, a paper, or 'all'."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Of the quick run.")] = False,
    docs: Annotated[
        Path | None,
        typer.Option(
            help="docs/claims of a checkout: take the named studies' full rows into it, and write "
            "its pages again from the rows there."
        ),
    ] = None,
) -> None:
    """Make report.html again from the rows of a finished run, or the pages of docs/claims."""
    from ..experiments.studies.documents import keep_rows, write_pages
    from ..experiments.studies.run import results_folder, rewrite

    studies = _studies(names or [])
    console = stdout()
    if docs is None:
        if not studies:
            raise typer.BadParameter("Name a study, or give --docs docs/claims.")
        for study in studies:
            _show(rewrite(study, quick, results_folder(study, quick)))
        return
    for study in studies:
        keep_rows(study, docs)
    for page in write_pages(docs, {s.paper for s in studies} or None):
        console.print(f"Wrote {page}", markup=False, highlight=False)


_LATER = "Finished units are kept; the same command goes on from there."


def _studies(names: list[str]) -> list[Any]:
    """The named studies; a paper's name stands for all of its own."""
    from ..experiments.studies import find_study, study_ids
    from ..experiments.studies.claims import PAPERS

    known = study_ids()
    found = known if names == ["all"] else []
    for name in names if names != ["all"] else []:
        own = [n for n in known if n.startswith(f"{name}-")] if name in PAPERS else [name]
        found = [*found, *(own or [name])]
    return [find_study(n) for n in dict.fromkeys(found)]


def _tell(advance: Callback, done: int, total: int) -> None:
    from ..core.status import StepInfo

    nothing = float("nan")
    advance(
        StepInfo(
            phase="units", step=done, max_steps=total, loss=nothing, relative_loss=nothing,
            residual=nothing, products=nothing,
        )
    )  # fmt: skip


def _show(result: StudyRun) -> None:
    console = stdout()
    if not console.is_terminal:
        console.width = max(console.width, 260)  # an interval that is cut is a wrong interval
    if result.summary is None:
        console.print(
            f"{result.study.id}: {result.done} of {result.total} units are done. {_LATER}",
            markup=False, highlight=False,
        )  # fmt: skip
        return
    if result.summary.findings:
        console.print(result.summary.finding_table())
    for table in result.summary.tables:
        console.print(table)
    console.print(
        f"{result.study.id}: {result.summary.outcome}. {result.summary.reason}",
        markup=False, highlight=False,
    )  # fmt: skip
    print_page(result.folder / "report.html")
