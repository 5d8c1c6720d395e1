"""The page of a decomposition: what distinguishes the components first, the evidence after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..factorization import DiagonalNPEFF
from ..storage import peak_memory_mib, versions
from .decomposition_exports import component_table
from .figures import COLOURS, FAINT, INK, bars, curves, figure_svg, heatmap, log_scale
from .images import image_strip
from .markup import Content, Html, join, tag
from .page import Page, bullets, card, details, grid, key_facts, note, paragraph
from .tables import Cell, Column, Table
from .trace_picture import trace_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .decomposition import DecompositionReport
    from .enrichment import Finding

FIRST = 6
"""Components on the first screen."""
ON_A_CARD = 3
"""Texts on a card."""
CARD_LENGTH = 110
"""Characters of a text on a card."""
LEAST_MARK = 0.08
"""Attributions below this are not shown."""


def page_of(report: DecompositionReport) -> str:
    """The whole page as text."""
    page = Page(report.title, subtitle=report.subtitle)
    page.lead(*_headline(report))
    page.add(_first_cards(report))
    page.add(_numbers(report))
    page.section("How to read this", *_reading(report))
    page.section("All components", component_table(report).html())
    page.section("Each component", *_each(report))
    if report.enrichment is not None:
        page.section("Features against components", *_features(report))
    if report.perturbation is not None:
        page.section("Moving the model along components", *_moving(report))
    if report.traces:
        page.section("Where in the network components act", *_traces(report))
    if report.stability is not None:
        page.section("Which components come back", *_stability(report))
    page.section("What to doubt", *_doubts(report))
    page.footer(*_colophon(report))
    return page.render()


def _headline(report: DecompositionReport) -> list[Content]:
    r, named = report.factorization.n_components, report.named
    if report.enrichment is None:
        return [f"{r} components of {report.factorization.n_examples:,} examples."]
    names = list(dict.fromkeys(report.name_of(int(k)) for k in report.order if named[k]))
    if not names:
        return [
            f"None of the {r} components tracks a feature beyond doubt; the closest are below, in "
            "brackets."
        ]
    listed: list[Content] = []
    for i, name in enumerate(names[:FIRST]):
        listed += [", " if i else "", tag("b", name)]
    more = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
    count = int(named.sum())
    verb = "tracks" if count == 1 else "track"
    return [
        f"{count} of {r} components {verb} a feature that can be named: ", *listed,
        f"{more}. Each name was chosen on one half of the examples and confirmed on the other.",
    ]  # fmt: skip


def _first_cards(report: DecompositionReport) -> Html:
    shown = [int(k) for k in report.order[:FIRST]]
    marks = ""
    if report.attributions:
        marks = (
            " Shaded: the tokens without which the response to the component falls, the darker the "
            "more; underlined: those without which it rises."
        )
    explanation = note(
        "Each card is one component with the examples in which it is strongest; an orange edge is "
        f"a wrong answer.{marks}"
    )
    return tag("div", grid(*(_card(report, k) for k in shown)), explanation)


def _card(report: DecompositionReport, k: int) -> Html:
    shares = report.factorization.shares
    findings = () if report.enrichment is None else report.enrichment.findings[k]
    blocks: list[Content] = []
    if findings:
        blocks.append(_evidence(report, findings[0]))
    blocks.append(_examples(report, k, ON_A_CARD, CARD_LENGTH))
    if len(findings) > 1:
        others = [f for f in findings[1:] if f.auroc >= 0.65 and f.p_corrected <= report.most_p]
        if others:
            chips = (tag("li", f"{f.feature} {f.auroc:.2f}") for f in others)
            blocks.append(tag("ul", *chips, class_="chips", aria_label="also tracked, with AUROC"))
    ratio = report.kl_ratio(k)
    if ratio is not None:
        blocks.append(note(f"Moving along it changes these {ratio:.1f}× as much as others."))
    title = report.name_of(k)
    if report.enrichment is not None and not report.named[k]:
        title = f"({findings[0].feature})" if findings else title
    return card(
        title, *blocks, aside=f"no. {k} · {shares[k]:.1%}",
        meter=float(shares[k] / max(float(shares.max()), 1e-300)),
    )  # fmt: skip


def _evidence(report: DecompositionReport, f: Finding) -> Html:
    found = report.enrichment
    top = round(f.in_top * (0 if found is None else found.n_top))
    size = 0 if found is None else found.n_top
    return tag(
        "p", "AUROC ", tag("b", f"{f.auroc:.2f}"), " held out, ",
        tag("b", f"p {_p(f.p_corrected)}"),
        f" · in {top} of its {size} strongest, in {f.in_all:.0%} of all", class_="stat",
    )  # fmt: skip


def _p(value: float) -> str:
    return "< 1e-30" if value < 1e-30 else f"= {value:.1g}"


def _examples(report: DecompositionReport, k: int, count: int, length: int | None) -> Html | None:
    """The strongest examples of a component: texts with their tokens shaded, or images."""
    own = report.examples
    top = [int(i) for i in report.factorization.top_examples(max(count, 1))[k]]
    if own.images is not None:
        pictures = [own.images[i] for i in top]
        captions = [_caption(report, i) for i in top]
        marked = [_is_wrong(report, i) for i in top]
        return image_strip(pictures, captions, alt=captions, marked=marked)
    if own.texts is None:
        return paragraph("Strongest examples: " + ", ".join(map(str, top)))
    items = []
    for i in top:
        shown = _marked_text(report, k, i, length)
        caption = _caption(report, i)
        small = tag("small", f" {caption}") if caption else None
        items.append(tag("li", shown, small, class_="marked" if _is_wrong(report, i) else None))
    return tag("ul", *items, class_="quotes")


def _caption(report: DecompositionReport, i: int) -> str:
    own = report.examples
    parts = []
    if own.answers is not None:
        answer = own.class_name(own.answers[i])
        parts.append(answer)
        if own.labels is not None and _is_wrong(report, i):
            parts[-1] = f"{answer}, is {own.class_name(own.labels[i])}"
    elif own.labels is not None:
        parts.append(own.class_name(own.labels[i]))
    return ", ".join(parts)


def _is_wrong(report: DecompositionReport, i: int) -> bool:
    own = report.examples
    return own.labels is not None and own.answers is not None and own.answers[i] != own.labels[i]


def _marked_text(report: DecompositionReport, k: int, i: int, length: int | None) -> Html:
    texts = report.examples.texts
    tokens = report.attributions.get((k, i))
    if tokens is None:
        whole = " ".join(str(texts[i] if texts is not None else i).split())
        return join([whole if length is None or len(whole) <= length else whole[:length] + "…"])
    start, stop = _window(tokens, length)
    pieces: list[Content] = ["…"] if start else []
    for token, value in tokens[start:stop]:
        strength = min(abs(value), 1.0)
        if strength < LEAST_MARK:
            pieces.append(token)
            continue
        word = token.strip()
        before, after = token[: len(token) - len(token.lstrip())], token[len(token.rstrip()) :]
        style = f"--s:{strength:.2f}"
        kind = None if value > 0 else "less"
        hint = f"{value:+.0%}"
        pieces += [before, tag("mark", word, style=style, class_=kind, title=hint), after]
    if stop < len(tokens):
        pieces.append("…")
    return join(pieces)


def _window(tokens: Sequence[tuple[str, float]], length: int | None) -> tuple[int, int]:
    """Tokens around the one that matters most, of at most ``length`` characters together."""
    sizes = [len(t) for t, _ in tokens]
    if length is None or sum(sizes) <= length:
        return 0, len(tokens)
    start = stop = int(np.argmax([v for _, v in tokens])) if tokens else 0
    stop += 1
    while True:
        room = length - sum(sizes[start:stop])
        left = start > 0 and sizes[start - 1] <= room
        right = stop < len(tokens) and sizes[stop] <= room
        if not left and not right:
            return start, stop
        # A little of what comes before, then all that follows.
        if left and (not right or sum(sizes[start:stop]) < length // 2):
            start -= 1
        else:
            stop += 1


def _numbers(report: DecompositionReport) -> Html:
    found, enrichment = report.factorization, report.enrichment
    facts = {
        "examples": f"{found.n_examples:,}",
        "of the Fishers' squared norm explained": f"{1 - max(found.relative_loss, 0.0):.0%}",
    }
    if not np.isfinite(found.relative_loss):
        facts.pop("of the Fishers' squared norm explained")
    if enrichment is not None:
        facts["components named"] = f"{int(report.named.sum())} of {found.n_components}"
        facts["AUROC that the best component of all reaches when examples are shuffled"] = (
            f"{enrichment.threshold:.2f}"
        )
    if report.perturbation is not None:
        ratio = report.perturbation.kl_ratio
        random = report.perturbation.random_ratio
        against = f" (random directions: {np.nanmedian(random):.1f}×)" if random.size else ""
        facts[f"median KL-ratio, own examples to others{against}"] = f"{np.nanmedian(ratio):.1f}×"
    if report.stability is not None:
        facts["mean |cos| to the components of random subsets"] = f"{report.stability.mean():.2f}"
    return key_facts(facts)


def _reading(report: DecompositionReport) -> list[Html]:
    words = bullets(
        Html(
            "<b>Component</b>: a direction g in the space of the parameters, with an amount W ≥ 0 "
            "in every example. Examples that share a component are those whose answers depend on "
            "the same parameters in the same way."
        ),
        Html(
            "<b>Names</b>: “said …” is the model's answer, “model is unsure” an answer whose "
            "probability is in the lowest quarter, “+” two features together; names in brackets "
            "are not confirmed."
        ),
        Html("<b>Share</b>: the part of everything explained that this component explains."),
        Html(
            "<b>AUROC</b>: take one example with the feature and one without; how often is the "
            "component stronger in the first? 1 is always, 0.5 is a coin toss."
        ),
        Html(
            "<b>p</b>: the probability of such a difference if the component had nothing to do "
            "with the feature (one-sided Mann–Whitney), corrected for all components and features "
            "that were tested."
        ),
        Html(
            "<b>KL-ratio</b>: move the parameters a little along g; how much more do the answers "
            "to the component's own examples change than those to others?"
        ),
    )
    return [words]


def _each(report: DecompositionReport) -> list[Html]:
    pieces = []
    for k in (int(k) for k in report.order):
        findings = () if report.enrichment is None else report.enrichment.findings[k]
        body: list[Content] = [_examples(report, k, report.n_top, None)]
        if findings:
            body.append(_findings_table(findings))
        if k in report.traces:
            body += [
                paragraph("Where it acts in its strongest example:"),
                trace_svg(report.traces[k]),
            ]
        name = report.name_of(k)
        if findings and not report.named[k]:
            name = f"({findings[0].feature})"
        summary = f"no. {k} · {name} · {report.factorization.shares[k]:.1%}"
        pieces.append(details(summary, *body))
    return pieces


def _findings_table(findings: Sequence[Finding]) -> Html:
    columns = [
        Column(name="feature", left=True),
        Column(name="AUROC held out", format=".2f"),
        Column(name="naming half", format=".2f"),
        Column(name="corrected p", format=".1g"),
        Column(name="in its strongest", format=".0%"),
        Column(name="in all", format=".0%"),
    ]
    rows: list[list[Cell]] = [
        [f.feature, f.auroc, f.naming_auroc, f.p_corrected, f.in_top, f.in_all] for f in findings
    ]
    return Table(columns=columns, rows=rows).html()


def _features(report: DecompositionReport) -> list[Html]:
    found = report.enrichment
    if found is None:
        return []
    rows, columns, values = _most_telling(report)
    return [
        paragraph(
            f"{len(found.features)} features were compared: labels, answers, words, traits of the "
            "texts, metadata, and pairs of one of them with an answer. AUROC on all examples, for "
            "the features that some component was first named by."
        ),
        heatmap(
            values, rows, columns, label="AUROC of components against features", low=0.5, high=1.0,
            corner="component",
        ),
    ]  # fmt: skip


def _most_telling(report: DecompositionReport) -> tuple[list[str], list[str], Any]:
    """The features that name components, against all components."""
    found = report.enrichment
    assert found is not None
    at = {f.name: j for j, f in enumerate(found.features)}
    order = [int(k) for k in report.order]
    names = list(dict.fromkeys(found.findings[k][0].feature for k in order))[:10]
    values = found.auroc[np.ix_(order, [at[n] for n in names])]
    return [f"no. {k}" for k in order], names, values


def _moving(report: DecompositionReport) -> list[Html]:
    moved = report.perturbation
    if moved is None:
        return []
    ratio, predicted = moved.kl_ratio, moved.predicted_ratio
    fine = np.isfinite(ratio) & np.isfinite(predicted) & (ratio > 0) & (predicted > 0)
    pieces: list[Html] = [
        paragraph(
            "If a component is how the model treats its examples, then adding a little of it to "
            "the parameters must change the answers to these, and hardly any others. θ ± εg, with "
            "ε such that the mean KL on the component's own examples is about "
            f"{float(np.median(moved.kl_top.max(axis=1))):.2g} nats."
        )
    ]
    if fine.sum() >= 2:
        pieces.append(_scatter(report, fine))
    random = moved.random_ratio
    line = f"Median KL-ratio {np.nanmedian(ratio):.1f}"
    if random.size:
        line += f", of random directions of the same length {np.nanmedian(random):.1f}"
    centroid = moved.centroid_ratio
    if np.isfinite(centroid).any():
        line += f", of the mean gradient of the same examples {np.nanmedian(centroid):.1f}"
    return [*pieces, paragraph(line + ".")]


def _scatter(report: DecompositionReport, fine: Any) -> Html:
    moved = report.perturbation
    assert moved is not None
    x, y = moved.predicted_ratio[fine], moved.kl_ratio[fine]
    names = moved.components[fine]

    def draw(axes: Axes) -> None:
        ends = [min(x.min(), y.min()) * 0.8, max(x.max(), y.max()) * 1.25]
        axes.plot(ends, ends, color=FAINT, linewidth=1)
        axes.scatter(x, y, s=22, color=COLOURS[0], zorder=3)
        if moved.random_ratio.size:
            level = float(np.nanmedian(moved.random_ratio))
            axes.axhline(level, color=COLOURS[1], linewidth=1, linestyle="--")
            axes.text(
                ends[1], level, "random ", color=COLOURS[1], fontsize=9, ha="right", va="bottom"
            )
        for a, b, k in zip(x, y, names, strict=True):
            axes.annotate(
                str(int(k)), (a, b), xytext=(4, 2), textcoords="offset points", fontsize=8
            )
        log_scale(axes, "x", "y")
        axes.set_xlabel("predicted KL-ratio, no move made", color=INK)
        axes.set_ylabel("measured KL-ratio", color=INK)

    return figure_svg(draw, label="Predicted and measured KL-ratio of each component", height=3.4)


def _traces(report: DecompositionReport) -> list[Html]:
    shown = [int(k) for k in report.order if int(k) in report.traces][:2]
    pieces: list[Html] = [
        paragraph(
            "The response of an example to a component is a sum over blocks (rows, the input at "
            "the bottom) and positions: a cell is the share of the response that the component's "
            "parameters in that block contribute at that token, and lines are how it flows on. The "
            "shares of a picture, with what the read-out adds, make up 100 % exactly."
        )
    ]
    for k in shown:
        traced = report.traces[k]
        pieces += [
            tag("h3", f"no. {k}: {report.name_of(k)}"),
            trace_svg(traced),
            note(
                f"Read-out: {traced.readout_share:.0%}. Sum of all contributions and the response "
                f"differ by {traced.error:.0e} of it."
            ),
        ]
    return pieces


def _stability(report: DecompositionReport) -> list[Html]:
    scores = report.stability
    if scores is None:
        return []
    names = [f"no. {k} · {report.name_of(int(k))}" for k in report.order]
    return [
        paragraph(
            "The factorization was repeated on random subsets of the examples, with other seeds. A "
            "component that comes back (|cos| near 1) belongs to the data; one that does not "
            "should not be interpreted."
        ),
        bars(
            np.asarray(scores[report.order]), names,
            label="Mean matched |cos| of each component", axis="mean matched |cos|",
        ),
    ]  # fmt: skip


def _doubts(report: DecompositionReport) -> list[Html]:
    f, found = report.factorization, report.enrichment
    doubts: list[Content] = []
    if found is not None:
        doubts.append(
            "With many features something always fits. So features are chosen on "
            f"{found.n_naming} examples and judged on {found.n_held_out} others; with examples "
            "shuffled against their features the best component of all reaches an AUROC of "
            f"{found.threshold:.2f} in one shuffle of twenty. Names in brackets are not borne out."
        )
        doubts.append(
            "A feature that a component tracks need not be what the model uses: it may go together "
            "with the cause. Moving the model along the component, and hiding tokens, are the "
            "checks of that."
        )
    if np.isfinite(f.relative_loss):
        doubts.append(
            f"{f.relative_loss:.0%} of the squared norm is not explained by {f.n_components} "
            f"components. The fit is a local optimum; it ended with “{f.status}” and a relative "
            f"gradient of {f.residual:.1e}."
        )
    if report.stability is None:
        doubts.append("How well the components come back on other examples was not computed.")
    pieces: list[Html] = [bullets(*doubts)]
    history = f.history
    if len(history) > 2 and np.isfinite(history.loss).all() and f.total > 0:
        last = history.phase == history.phase.max()
        loss = history.loss[last] / f.total
        if len(loss) > 1:
            line = {"relative loss": (np.arange(1.0, len(loss) + 1), loss)}
            figure = curves(
                line, label="Loss of the fit", x_label="step", y_label="relative loss", height=2.4
            )
            pieces.append(details("How the fit went", figure))
    return pieces


def _colophon(report: DecompositionReport) -> list[Html]:
    f = report.factorization
    packages = ", ".join(f"{k} {v}" for k, v in versions().items())
    memory = peak_memory_mib()
    made = [f"Made with {packages}."]
    if report.command:
        made = ["Made by ", tag("code", report.command), f" with {packages}."]  # type: ignore[list-item]
    kind = "diagonal" if isinstance(f.method, DiagonalNPEFF) else "low-rank"
    return [
        paragraph(*made),
        paragraph(
            f"{kind} NPEFF with {f.n_components} components, solver {f.method.solver} on "
            f"{f.backend}, seed {f.seed}." + (f" Peak memory {memory:,.0f} MiB." if memory else "")
        ),
        paragraph(
            "Beside this page: results.json (every number), report.tex, report.md. Method: Matena "
            "& Raffel 2023, arXiv:2310.04649."
        ),
    ]
