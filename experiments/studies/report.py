"""A study's page, and its text for the documents: both from the same summary."""

from __future__ import annotations

from ...core.report import Column, Page, Table, tag
from ...core.report.markup import Html
from ...core.report.page import bullets, details, key_facts, note, paragraph
from ...core.storage import versions
from .claims import PAPERS
from .run import StudyRun
from .study import Study

SHOWN_ROWS = 200


def study_page(run: StudyRun) -> str:
    """One self-contained page: verdict first, then the numbers, then how it was made."""
    study, summary = run.study, run.summary
    assert summary is not None, "a page is made of complete runs"
    paper = PAPERS[study.paper]
    page = Page(study.title, subtitle=f"{study.id}, a study of: {paper.title} ({paper.arxiv})")
    page.lead(f"Verdict: {summary.outcome}. {summary.reason}")
    if run.quick:
        page.add(
            note("A quick run: small sizes and few seeds. It shows that everything works and is no "
                 "evidence; the full study is.")
        )  # fmt: skip
    seeds = {r.settings.get("seed") for r in run.rows}
    page.add(
        key_facts(
            {
                "the verdict": str(summary.outcome),
                "seeds": str(len(seeds)),
                "units": str(run.total),
                "of wall time, one thread each": minutes(run.rows.seconds),
            }
        )
    )
    if summary.findings:
        page.section("What was measured", summary.finding_table().html())
    pictures = [
        tag("figure", tag("div", f.picture, class_="figure"), tag("figcaption", f.caption))
        for f in study.figures(run.rows)
    ]
    if pictures:
        page.section("Pictures", *pictures)
    if summary.tables:
        page.section("All numbers", *(t.html() for t in summary.tables))
    claims = [f"{n}. {paper.claims[n - 1]}" for n in study.claims]
    page.section(
        "What was asked",
        paragraph(study.question),
        paragraph(tag("b", "The rule: "), study.rule),
        paragraph(tag("b", "How it came about: "), study.history or "Not recorded."),
        paragraph("Claims of the paper that it tests:"),
        bullets(*claims),
    )
    if summary.notes:
        page.section("What to know", bullets(*summary.notes))
    page.section("Rows", details("One line a unit", _row_table(run)))
    packages = ", ".join(f"{k} {v}" for k, v in versions().items())
    page.footer(
        paragraph("Made by ", tag("code", command(study, run.quick)), f" with {packages}."),
        paragraph("Beside this page: results.json (every number of the tables), rows.jsonl."),
    )
    return page.render()


def command(study: Study, quick: bool = False) -> str:
    """What to type to run the study."""
    return f"fishertope experiment run {study.id}" + (" --quick" if quick else "")


def minutes(seconds: float) -> str:
    """A time for people.

    Examples
    --------
    >>> minutes(12.3), minutes(600)
    ('12 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _row_table(run: StudyRun) -> Html:
    names = list(dict.fromkeys(k for r in run.rows for k in r.settings))
    results = [
        k
        for k in dict.fromkeys(k for r in run.rows for k in r.result)
        if all(isinstance(r.result.get(k), int | float | str | None) for r in run.rows)
    ]
    table = Table(
        columns=[
            *(Column(name=n, left=True) for n in names),
            *(Column(name=n, format=".4g") for n in results),
            Column(name="seconds", format=".1f"),
        ],
        rows=[
            [
                *(str(r.settings.get(n, "")) for n in names),
                *(r.result.get(n) for n in results),
                r.run.get("seconds"),
            ]
            for r in run.rows[:SHOWN_ROWS]
        ],
        note=f"{len(run.rows)} rows; the first {SHOWN_ROWS} are shown."
        if len(run.rows) > SHOWN_ROWS
        else "",
    )
    return table.html()
