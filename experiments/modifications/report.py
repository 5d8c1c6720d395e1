"""The tables of the modifications: every variant, every group, every finding of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...core.report import Column, Table
from ...core.report.tables import Cell
from ..studies import Finding, Outcome, Rows, Summary, decide, holm, share_interval
from ..studies.study import joint_outcome
from .claims import Tested, contrasts_of
from .paper import SOURCE, column, paper_row, table_1
from .registry import VARIANTS, groups
from .results import ALPHA, Result, Results, results_of
from .statistics import MANY, detectable, rank_correlation

KINDS = {
    "minor": "minor change", "costly": "more parameters or slower",
    "same code": "from the paper's code base",
}  # fmt: skip


def early_summary(rows: Rows) -> Summary:
    """Tables and verdict of early losses; missing variants are named."""
    found = results_of(rows)
    claims = contrasts_of(found.losses())
    findings = [*_most_do_not_improve(found), *_kinds_of_gains(found)]
    tables = [variants_table(found), groups_table(found)]
    if claims:
        tables.append(claims_table(claims))
    if len(found.compared) >= 4:
        tables += [paper_table(found), disagreements_table(found)]
    notes = notes_of(found)
    if not findings:
        return Summary(
            outcome=Outcome.UNDECIDED, tables=tables, notes=notes,
            reason="There are no two seeds of vanilla and of anything else yet.",
        )  # fmt: skip
    outcome = joint_outcome(findings)
    return Summary(
        outcome=outcome, reason=_reason(found, claims), findings=findings, tables=tables,
        notes=notes,
    )  # fmt: skip


def _most_do_not_improve(found: Results) -> list[Finding]:
    """Claim 1: the share of variants that improve on vanilla."""
    if found.prior is None or not found.compared:
        return []
    better = sum(r.verdict == "better" for r in found.variants)
    return [
        decide("share of variants that improve on vanilla",
               share_interval(better, len(found.variants)), at_most=0.5, format=".2f", claim=1)
    ]  # fmt: skip


def _kinds_of_gains(found: Results) -> list[Finding]:
    """Claim 2: of those that improve, the share that is of the three kinds."""
    better = [r for r in found.compared if r.verdict == "better"]
    if not better:
        return []
    hits = sum(bool(r.variant.kinds) for r in better)
    base = float(np.mean([bool(r.variant.kinds) for r in found.variants]))
    return [
        decide("share of minor, costly or same-code variants among those that improve",
               share_interval(hits, len(better)), at_least=base, format=".2f", claim=2)
    ]  # fmt: skip


def _reason(found: Results, claims: Sequence[Tested]) -> str:
    better = [r.variant.title for r in found.compared if r.verdict == "better"]
    worse = sum(r.verdict == "worse" for r in found.compared)
    held = [c for c in claims if c.finding is not None]
    same = sum(c.finding.outcome is Outcome.HOLDS for c in held if c.finding)
    text = (
        f"Of {len(found.variants)} variants {len(better)} have a smaller early loss than vanilla "
        f"and {worse} a larger one after Holm's correction."
    )
    if better:
        text += f" Better: {', '.join(better)}."
    if held:
        text += f" Of {len(held)} findings of the paper {same} hold here."
    return text


def variants_table(found: Results) -> Table:
    """One row a variant, as the paper has one, vanilla first."""
    base = found.by_name.get("vanilla")
    rows = [_variant_row(r, base) for r in found.by_name.values()]
    return Table(
        title="Early loss of every variant",
        columns=[
            Column(name="variant", left=True), Column(name="group", left=True),
            Column(name="parameters", format=",", help="counted"),
            Column(name="closed form", format=",", help="of parameters"),
            Column(name="MFLOP a step", format=",.0f",
                   help="matrix products, convolutions and attention, forward and backward"),
            Column(name="time", format=".2f", help="of a step, over vanilla's; one busy core"),
            Column(name="early loss ± sd (seeds)"),
            Column(name="minus vanilla's [95 %]", help="variances drawn together over variants"),
            Column(name="p (Holm)", format=".3f"), Column(name="p (Welch, Holm)", format=".3f"),
            Column(name="verdict", left=True),
            Column(name="paper's difference", format="+.3f"), Column(name="sign", left=True),
        ],
        rows=rows,
        note=f"The paper's column: {SOURCE}.",
    )  # fmt: skip


def _variant_row(r: Result, base: Result | None) -> list[Cell]:
    spread = f" ± {r.sd:.3f}" if len(r.losses) > 1 else ""
    loss = f"{r.mean:.3f}{spread} ({len(r.losses)})" if r.losses else "–"
    if r.diverged:
        loss += f", {r.diverged} diverged"
    compared = r.against is not None
    return [
        r.variant.title, r.variant.group, r.parameters, r.closed_form, r.flops / 1e6,
        r.seconds / base.seconds if base is not None else None, loss,
        r.against.interval.text("+.3f") if r.against is not None else None,
        r.corrected_p if compared else None,
        r.corrected_welch_p if compared else None,
        r.verdict if compared or not r.losses else "baseline",
        r.paper_delta if r.variant.name != "vanilla" else None,
        _sign(r) if compared else "",
    ]  # fmt: skip


def _sign(r: Result) -> str:
    return "same" if r.delta * r.paper_delta > 0 else "other"


def groups_table(found: Results) -> Table:
    """Mean difference and verdicts by group, and by the kinds of the paper's discussion."""
    kinds = {label: [n for n, v in VARIANTS.items() if kind in v.kinds]
             for kind, label in KINDS.items()}  # fmt: skip
    rows = []
    for label, names in [*groups().items(), *kinds.items()]:
        own = [found.by_name[n] for n in names if n in found.by_name]
        done = [r for r in own if r.against is not None]
        if not own:
            continue
        rows.append([
            label, f"{len(done)} of {len(names)}",
            float(np.mean([r.delta for r in done])) if done else None,
            float(np.mean([r.paper_delta for r in done])) if done else None,
            *(sum(r.verdict == v for r in own) for v in ("better", "–", "worse", "diverged")),
            min(done, key=lambda r: r.delta).variant.title if done else "–",
        ])  # fmt: skip
    return Table(
        title="By group, and by the three kinds that the paper finds helpful",
        columns=[
            Column(name="group", left=True), Column(name="variants"),
            Column(name="mean difference", format="+.3f"),
            Column(name="paper's", format="+.3f"), Column(name="better"),
            Column(name="not told apart"), Column(name="worse"), Column(name="diverged"),
            Column(name="best", left=True),
        ],
        rows=rows,
    )  # fmt: skip


def claims_table(claims: Sequence[Tested]) -> Table:
    """Each finding of the paper with effect, interval, corrected p, verdict and power."""
    done = [c for c in claims if c.finding is not None]
    corrected = dict(
        zip((c.contrast.what for c in done), holm([c.p for c in done]), strict=True)
    )  # fmt: skip
    rows = []
    for c in claims:
        f = c.finding
        rows.append([
            c.contrast.what, f"{c.contrast.in_paper:+.3f}",
            f.measured.text("+.3f") if f else "–", f.measured.n if f else None,
            f.target if f else "–", float(corrected[c.contrast.what]) if f else None,
            str(f.outcome) if f else "not run yet",
            c.power if f and f.outcome is Outcome.UNDECIDED else None,
        ])  # fmt: skip
    return Table(
        title="What the paper found, one by one: differences of mean early losses",
        columns=[
            Column(name="finding", left=True), Column(name="in the paper"),
            Column(name="here, mean [95 %]"), Column(name="seeds"),
            Column(name="target", left=True), Column(name="p (Holm)", format=".3f"),
            Column(name="verdict", left=True),
            Column(name="power", format=".2f",
                   help="chance of finding the paper's difference with this noise and these seeds, "
                        "where the verdict is open"),
        ],
        rows=rows,
        note="One difference a seed, of runs that read the same text in the same order; interval "
             "and p by Student's t over the seeds.",
    )  # fmt: skip


def paper_table(found: Results) -> Table:
    """Rank correlation and agreement of signs with the paper's early column."""
    rows: list[list[Cell]] = []
    parts: list[tuple[str, list[Result]]] = [("all variants", found.compared)]
    for group, names in groups().items():
        parts.append((group, [r for r in found.compared if r.variant.name in names]))
    for label, own in parts:
        if len(own) < 4:
            continue
        rho = rank_correlation([r.delta for r in own], [r.paper_delta for r in own])
        same = share_interval(sum(_sign(r) == "same" for r in own), len(own))
        rows.append([label, len(own), rho.text("+.2f"), same.text(".2f")])
    return Table(
        title="Early losses here against the paper's",
        columns=[
            Column(name="variants", left=True), Column(name="n"),
            Column(name="Spearman's ρ [95 %]", help="bootstrap over variants"),
            Column(name="share of equal signs [95 %]", help="Wilson's interval"),
        ],
        rows=rows,
    )  # fmt: skip


def disagreements_table(found: Results) -> Table:
    """Variants whose difference is told apart from zero here and in the paper, with other signs."""
    rows: list[list[Cell]] = []
    for r in found.compared:
        if r.verdict != "–" and r.delta * r.paper_delta < 0 and clear_in_paper(r):
            assert r.against is not None
            rows.append(
                [r.variant.title, r.against.interval.text("+.3f"), r.corrected_p, r.paper_delta]
            )
    return Table(
        title="Disagreements: told apart from vanilla on both sides, with opposite signs",
        columns=[
            Column(name="variant", left=True), Column(name="here [95 %]"),
            Column(name="p (Holm)", format=".3f"), Column(name="paper's", format="+.3f"),
        ],
        rows=rows,
        note="None." if not rows else "In the paper: by more than two combined standard deviations "
             "of its five runs.",
    )  # fmt: skip


def clear_in_paper(r: Result) -> bool:
    """Whether the paper's early losses differ by more than two combined standard deviations."""
    row, base = paper_row(r.variant.name), table_1()["vanilla"]
    assert row is not None, "every variant has a row"
    spread = row.early_sd if np.isfinite(row.early_sd) else base.early_sd
    return abs(r.paper_delta) > 2 * float(np.hypot(spread, base.early_sd))


def notes_of(found: Results) -> list[str]:
    """Noise floor, what could have been found, what is missing, how the tests work."""
    notes = []
    base = found.by_name.get("vanilla")
    if base is not None and len(base.losses) > 1 and found.prior is not None:
        own = found.prior.shrunk(base.values)[0]
        n = sorted(len(r.losses) for r in found.compared)
        seeds = n[len(n) // 2] if n else 1
        error = float(np.sqrt(found.prior.variance / seeds + own / len(base.losses)))
        dof = found.prior.dof + seeds - 1
        least = detectable(error, dof, alpha=ALPHA / max(len(found.compared), 1))
        notes.append(
            f"Noise floor: vanilla's early loss has a standard deviation of {base.sd:.4f} over "
            f"{len(base.losses)} seeds (the paper's: {column('early_sd', ['vanilla'])[0]:.3f}); "
            f"that of all variants together is {found.prior.variance**0.5:.4f}. With {seeds} seeds "
            f"a difference of {least:.3f} is found with a chance of 80 % after the correction."
        )
    if found.prior is not None:
        notes.append(
            "Few seeds give poor variances, so each is drawn towards the common one by empirical "
            f"Bayes ({_worth(found.prior.dof)}) before Welch's test; the column 'p (Welch, Holm)' "
            "has the test without that. Holm's correction is over all variants."
        )
    thin = [r.variant.title for r in found.variants if len(r.losses) + r.diverged == 1]
    if found.missing:
        notes.append(f"Not run yet: {', '.join(VARIANTS[n].title for n in found.missing)}.")
    if thin:
        notes.append(f"One seed only so far: {', '.join(thin)}.")
    gone = [f"{r.variant.title} ({r.diverged})" for r in found.by_name.values() if r.diverged]
    if gone:
        notes.append(f"Stopped because they diverged: {', '.join(gone)}.")
    return notes


def _worth(dof: float) -> str:
    if dof >= MANY:
        return "they differ no more than chance makes them, so the common one is taken"
    return f"which is worth {dof:.1f} degrees of freedom"
