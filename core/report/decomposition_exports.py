"""The report of a decomposition as plain values, LaTeX and Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import Cell, Column, Table

if TYPE_CHECKING:
    from .decomposition import DecompositionReport

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "≤": r"$\le$", "≥": r"$\ge$", "“": "``", "”": "''", "×": r"$\times$", "ε": r"$\varepsilon$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def component_table(report: DecompositionReport, *, brief: bool = False) -> Table:
    """One row a component, the named ones first; ``brief`` for narrow terminals."""
    columns = [
        Column(name="#"),
        Column(name="share", format=".1%", help="of the explained Fisher mass"),
        Column(
            name="what it tracks",
            left=True,
            help="the feature that fits best, chosen on one half of the examples; in brackets "
            f"where the other half does not bear it out (AUROC ≥ {report.least_auroc:g}, corrected "
            f"p ≤ {report.most_p:g})",
        ),
        Column(
            name="AUROC",
            format=".2f",
            help="how surely the component is stronger in an example with the feature than in one "
            "without, on the other half; 0.5 is chance",
        ),
        Column(name="p", format=".1g", help="one-sided Mann–Whitney on that half, corrected"),
    ]
    if report.perturbation is not None:
        columns += [
            Column(
                name="KL-ratio",
                format=".1f",
                help="effect of moving the model along the component on its own top examples, over "
                "that on random others",
            ),
            Column(name="predicted", format=".1f", help="the ratio by second order, no move made"),
            Column(name="random", format=".1f", help="the ratio along random directions, the mean"),
        ]
    if report.stability is not None:
        columns.append(
            Column(
                name="stability",
                format=".2f",
                help="mean |cos| to the matching component of runs on random subsets",
            )
        )
    rows = [_row(report, int(k)) for k in report.order]
    if brief:
        shown = [i for i, c in enumerate(columns) if c.name not in ("predicted", "random")]
        columns, rows = [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]
    return Table(columns=columns, rows=rows)


def _row(report: DecompositionReport, k: int) -> list[Cell]:
    first = report.enrichment.findings[k][0] if report.enrichment is not None else None
    name = report.name_of(k)
    if first is not None and not report.named[k]:
        name = f"({first.feature})"
    row: list[Cell] = [k, float(report.factorization.shares[k]), name]
    row += [None, None] if first is None else [first.auroc, first.p_corrected]
    if report.perturbation is not None:
        at = report._moved(k)
        values: list[Cell] = [None, None, None]
        if at is not None:
            moved = report.perturbation
            ratios = (moved.kl_ratio[at], moved.predicted_ratio[at], moved.random_ratio[at])
            values = [_finite(np.mean(v)) if np.size(v) else None for v in ratios]
        row += values
    if report.stability is not None:
        row.append(report.stability_of(k))
    return row


def results_of(report: DecompositionReport) -> dict[str, Any]:
    """Every number of the report."""
    found, own = report.factorization, report.examples
    top = found.top_examples(report.n_top)
    components = []
    for k in range(found.n_components):
        examples = []
        for i in top[k].tolist():
            one: dict[str, Any] = {"example": i, "coefficient": float(found.coefficients[i, k])}
            if own.texts is not None:
                one["text"] = own.texts[i]
            if own.labels is not None:
                one["label"] = own.class_name(own.labels[i])
            if own.answers is not None:
                one["answer"] = own.class_name(own.answers[i])
            if (k, i) in report.attributions:
                one["tokens"] = [[t, float(v)] for t, v in report.attributions[k, i]]
            examples.append(one)
        findings = [] if report.enrichment is None else report.enrichment.findings[k]
        entry: dict[str, Any] = {
            "component": k, "share": float(found.shares[k]), "named": bool(report.named[k]),
            "name": report.name_of(k),
            "features": [
                {
                    "feature": f.feature, "kind": f.kind, "auroc": f.auroc,
                    "auroc_of_naming_half": f.naming_auroc, "p": f.p, "p_corrected": f.p_corrected,
                    "share_in_top": f.in_top, "share_in_all": f.in_all,
                }
                for f in findings
            ],
            "kl_ratio": report.kl_ratio(k), "stability": report.stability_of(k),
            "top_examples": examples,
        }  # fmt: skip
        if k in report.traces:
            entry["trace"] = report.traces[k].results()
        components.append(entry)
    results: dict[str, Any] = {
        "title": report.title, "examples": found.n_examples,
        "components_named": int(report.named.sum()), "named_if": {
            "held_out_auroc_at_least": report.least_auroc, "corrected_p_at_most": report.most_p,
        },
        "relative_loss": found.relative_loss, "status": str(found.status), "seed": found.seed,
        "method": repr(found.method), "components": components,
    }  # fmt: skip
    if report.enrichment is not None:
        results["features_compared"] = len(report.enrichment.features)
        results["correction"] = report.enrichment.correction
        results["auroc_of_shuffles"] = report.enrichment.threshold
        results["held_out_examples"] = report.enrichment.n_held_out
    if report.perturbation is not None:
        moved = report.perturbation
        results["perturbation"] = {
            "components": moved.components, "magnitudes": moved.magnitudes,
            "kl_top": moved.kl_top, "kl_baseline": moved.kl_baseline, "kl_ratio": moved.kl_ratio,
            "predicted_ratio": moved.predicted_ratio, "random_ratio": moved.random_ratio,
            "centroid_ratio": moved.centroid_ratio,
        }  # fmt: skip
    return results


def latex_of(report: DecompositionReport) -> str:
    """Two tables with booktabs: the components, and their top examples."""
    table = component_table(report)
    sides = "".join("l" if c.left else "r" for c in table.columns)
    lines = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\small",
        rf"\caption{{{tex(report.title)}}}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule",
        " & ".join(tex(c.name) for c in table.columns) + r" \\", r"\midrule",
        *(" & ".join(tex(cell) for cell in row) + r" \\" for row in table.written()),
        r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    texts = report.examples.texts
    if texts is None:
        return "\n".join(lines) + "\n"
    lines += [
        "", r"\begin{table}", r"\centering\small",
        r"\caption{Strongest examples of each component}",
        r"\begin{tabular}{rlp{0.72\linewidth}}", r"\toprule", r"\# & what it tracks & examples \\",
        r"\midrule",
    ]  # fmt: skip
    top = report.factorization.top_examples(min(3, report.n_top))
    for k in report.order.tolist():
        name = tex(report.name_of(k))
        for place, i in enumerate(top[k].tolist()):
            head = f"{k} & {name}" if place == 0 else " & "
            lines.append(f"{head} & {tex(_clipped(texts[int(i)], 140))} \\\\")
        lines.append(r"\addlinespace")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def markdown_of(report: DecompositionReport) -> str:
    """The components as a table, and their examples as lists."""
    table = component_table(report)

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    lines = [f"# {report.title}", "", line([c.name for c in table.columns])]
    lines.append(line(["---" if c.left else "---:" for c in table.columns]))
    lines += [line(row) for row in table.written()]
    if report.examples.texts is not None:
        top = report.factorization.top_examples(report.n_top)
        for k in report.order.tolist():
            lines += ["", f"## {k}: {report.name_of(k)}", ""]
            shown = (_clipped(report.examples.texts[int(i)], 240) for i in top[k].tolist())
            lines += [f"- {text}" for text in shown]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    r"""Text for LaTeX.

    Examples
    --------
    >>> print(tex("50 % of a_b & c"))
    50 \% of a\_b \& c
    """
    return "".join(_LATEX.get(c, c) for c in text)


def _clipped(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1].rstrip() + "…"


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
