"""The demo's page: what was found first, then how, then what to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.report import Html, Page, curves, heatmap, image_strip, tag
from ..core.report.page import bullets, card, details, grid, key_facts, note, paragraph
from ..core.storage import peak_memory_mib, versions
from ._demo_effects import SHARES_OF_THETA, SHOWN, Moves
from ._demo_study import N_SHUFFLES, N_TOP

if TYPE_CHECKING:
    from .demo import DemoFindings

FIRST = 6
"""Components on the first screen."""


def demo_page(findings: DemoFindings) -> str:
    """The whole page as text."""
    page = Page(
        "How a small network tells digits apart",
        subtitle="Non-negative factorization of per-example Fishers, on scikit-learn's digits",
    )
    page.lead(findings.headline)
    page.add(first_cards(findings), _key_facts(findings))
    page.section("How this was found", *_method(findings))
    page.section("All components", *_all_components(findings))
    page.section("Which digits each component is about", *_digits(findings))
    page.section("Moving the network along a component", *_moving(findings))
    page.section("Where the network is wrong", *_mistakes(findings))
    page.section("What to doubt", *_doubts(findings))
    page.footer(*_colophon(findings))
    return page.render()


def first_cards(findings: DemoFindings) -> Html:
    """The components with the largest shares, each with its images and what moving does."""
    shown = range(min(FIRST, findings.settings.n_components))
    explanation = note(
        "Each card is one component with the six images in which it is strongest; under an image, "
        "the network's answer; a frame marks a wrong one. Below: which answers change among its "
        f"{N_TOP} strongest images when the network is moved along ±g, by "
        f"{SHARES_OF_THETA[SHOWN]:.0%} of its parameters' length."
    )
    return tag("div", grid(*(_card(findings, k) for k in shown)), explanation)


def _card(findings: DemoFindings, k: int) -> Html:
    c = findings.meaning.components[k]
    title = c.question if c.aligned else "not named"
    top = findings.factorization.top_examples(6)[k]
    return card(
        title,
        _images(findings, top),
        _both_ways(findings, k),
        note(
            f"AUROC {c.auroc:.3f}" if c.aligned else "no label fits better than by chance",
            f" · KL-ratio {findings.effects.ratios[k]:.0f}×",
        ),
        aside=f"no. {c.number} · {c.share:.1%}",
        meter=c.share / max(findings.meaning.components[0].share, 1e-300),
    )


def _both_ways(findings: DemoFindings, k: int) -> Html:
    """What moving along ±g turns into what, a line each."""
    own = min(N_TOP, len(findings.answers.truth))
    lines: list[Html] = []
    for moves in findings.effects.moves[k]:
        side = "+g" if moves.sign > 0 else "−g"
        if not moves.changed:
            lines.append(tag("li", f"{side}: no answer flips"))
            continue
        before, after, count = moves.changed[0]
        lines.append(tag("li", f"{side}: ", tag("b", f"{before} → {after}"), f", {count} of {own}"))
    return tag("ul", *lines, class_="plain")


def _images(findings: DemoFindings, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Html:
    answers = findings.answers
    pictures, captions, alts = [], [], []
    for i in chosen:
        said, meant = int(answers.predicted[i]), int(answers.truth[i])
        pictures.append(1.0 - findings.digits.held_out_inputs[i].reshape(8, 8))
        captions.append(f"{said}" if said == meant else f"{said}, is {meant}")
        alts.append(f"handwritten {meant}, read as {said}")
    wrong = [bool(answers.wrong[i]) for i in chosen]
    return image_strip(pictures, captions, alt=alts, marked=wrong)


def _key_facts(findings: DemoFindings) -> Html:
    f, meaning = findings.factorization, findings.meaning
    accuracy = findings.answers.accuracy
    return key_facts(
        {
            "of the answers are right on images that it never saw": f"{accuracy:.1%}",
            "of the Fishers' squared norm explained": f"{1 - f.relative_loss:.0%}",
            "components named (with shuffled labels: none, in 95 % of shuffles)": (
                f"{meaning.n_aligned} of {f.n_components}"
            ),
            "of the misread images are strongest in the very choice that went wrong "
            f"(by chance {meaning.confusions_by_chance:.0f})": (
                f"{meaning.n_confusions} of {int(findings.answers.wrong.sum())}"
            ),
            "median KL-ratio, own images to others (to a random direction: "
            f"{np.median(findings.effects.random_ratios):,.0f}×)": (
                f"{np.median(findings.effects.ratios):.0f}×"
            ),
        }
    )


def _method(findings: DemoFindings) -> list[Html]:
    s, f = findings.settings, findings.factorization
    steps = tag(
        "ol",
        tag(
            "li",
            f"A network with 64 inputs (8×8 pixels), {s.hidden} hidden units and 10 outputs "
            f"learned digits from {s.n_train} images. It is {f.components.shape[1]:,} numbers, its "
            "parameters.",
        ),
        tag(
            "li",
            f"For each of {s.n_held_out} other images its ",
            tag("b", "Fisher matrix"),
            " was computed, exactly: it tells which small changes of the parameters would change "
            "the network's answer to this one image, and by how much. Only the network's own "
            "probabilities enter, not the true digit.",
        ),
        tag(
            "li",
            f"All {s.n_held_out} matrices, each scaled to the same size, were written as mixtures "
            f"of {f.n_components} shared ",
            tag("b", "components"),
            ": each is one direction g in the space of parameters, with an amount W ≥ 0 in every "
            "image. Images that share a component are images on which the network uses the same "
            "parameters in the same way.",
        ),
        tag(
            "li",
            "Only then were the components compared with the digits, the answers and the mistakes, "
            "and the network was moved along them to see what changes.",
        ),
    )
    words = bullets(
        Html("<b>Share</b>: the part of everything explained that this component explains."),
        Html(
            "<b>AUROC</b>: take one image with the label and one without; how often is the "
            "component stronger in the first? 1 is always, 0.5 is a coin toss."
        ),
        Html(
            "<b>KL</b> (Kullback–Leibler divergence, in nats): how much the ten output "
            "probabilities changed; 0 is not at all."
        ),
        Html("<b>KL-ratio</b>: that change on a component's own images, over that on others."),
        Html(
            "<b>“3 or 9?”</b>: the label of images whose two likeliest answers are 3 and 9; "
            "<b>“read as 4”</b>: those answered 4."
        ),
    )
    return [steps, details("The words used here", words)]


def _all_components(findings: DemoFindings) -> list[Html]:
    from .demo import component_table

    rest = range(FIRST, findings.settings.n_components)
    cards = grid(*(_card(findings, k) for k in rest))
    return [component_table(findings).html(), details("The images of the other components", cards)]


def _digits(findings: DemoFindings) -> list[Html]:
    names = [f"no. {c.number} · {c.question}" for c in findings.meaning.components]
    said = [f"{d}" for d in range(10)]
    return [
        paragraph(
            "How surely a component is stronger in images that the network reads as a given digit "
            "than in others (AUROC). A choice between two digits shows in both their columns."
        ),
        heatmap(
            findings.meaning.digits,
            names,
            said,
            label="AUROC of each component against each answer",
            low=0.5,
            high=1.0,
            corner="component",
        ),
    ]


def _moving(findings: DemoFindings) -> list[Html]:
    e, s = findings.effects, findings.settings
    x = 100 * np.array(SHARES_OF_THETA)
    size = f"{SHARES_OF_THETA[SHOWN]:.0%}"
    lines = {
        "its own images": (x, np.median(e.top, axis=1)),
        "other images": (x, np.median(e.others, axis=1)),
        "its own images, random direction": (x, np.median(e.random, axis=1)),
    }
    floor = np.finfo(float).tiny
    figure = curves(
        {name: (a, np.maximum(b, floor)) for name, (a, b) in lines.items()},
        label="Change of the answers against the size of the move",
        x_label="size of the move, % of the parameters' length",
        y_label="KL of the answers, nats (median)",
        log_x=True,
        log_y=True,
        dashed=["its own images, random direction"],
    )
    stories = [t for k in range(s.n_components) if (t := _story(findings, k)) is not None]
    return [
        paragraph(
            "If a component really is how the network treats its images, then adding a little of "
            "it to the parameters must change the answers to these images, and hardly any others. "
            f"The lines are medians over the {s.n_components} components; “its own” are the "
            f"{N_TOP} images in which a component is strongest, “other” is a random sample of the "
            "rest, and of the two directions ±g the more selective one counts."
        ),
        figure,
        paragraph(
            f"The obvious other direction, the mean gradient of a component's own images, has a "
            f"median KL-ratio of {np.median(e.centroid_ratios):.1f} at {size}; the components have "
            f"{np.median(e.ratios):.1f}. At the smallest size, theory predicts the KL on the own "
            f"images as ½ε²‖Ag‖²; the median error of that is {e.prediction_error:.0%}."
        ),
        details(
            f"All answers that change among the {N_TOP} strongest images at {size}",
            bullets(*stories) if stories else "None.",
        ),
    ]


def _story(findings: DemoFindings, k: int) -> Html | None:
    moves = findings.effects.moves[k]
    if not any(m.total for m in moves):
        return None
    c = findings.meaning.components[k]
    sides = ", ".join(f"{'+' if m.sign > 0 else '−'}g {_changes(m)}" for m in moves)
    return tag("span", tag("b", f"no. {c.number}, {c.question} "), sides)


def _changes(moves: Moves) -> str:
    if not moves.changed:
        return "changes none"
    return ", ".join(f"{a} → {b} ({count}×)" for a, b, count in moves.changed[:3])


def _mistakes(findings: DemoFindings) -> list[Html]:
    answers, meaning = findings.answers, findings.meaning
    strength = np.asarray(findings.factorization.coefficients)
    strongest = strength.argmax(axis=1)
    n_wrong = int(answers.wrong.sum())
    if n_wrong == 0:
        return [paragraph(f"It is not: all {len(answers.truth)} answers are right.")]
    cards = []
    for c in sorted(meaning.components, key=lambda c: (c.wrong_by_chance, -c.n_wrong))[:6]:
        k = c.number - 1
        own = np.flatnonzero(answers.wrong & (strongest == k))
        if not len(own):
            continue
        unusual = f", by chance with p = {c.wrong_by_chance:.1g}" if c.wrong_by_chance < 1 else ""
        cards.append(
            card(
                c.question if c.aligned else "not named",
                _images(findings, own[np.argsort(-strength[own, k])][:6]),
                paragraph(tag("b", f"{c.n_wrong} of {c.n_strongest}"), f" misread{unusual}"),
                aside=f"no. {c.number}",
            )
        )
    best = max(meaning.components, key=lambda c: c.wrong_auroc)
    return [
        paragraph(
            f"{n_wrong} of {len(answers.truth)} images are misread. In ",
            tag("b", f"{meaning.n_confusions} of these {n_wrong}"),
            " the strongest component is the very choice that went wrong, such as “3 or 8?” for a "
            "3 read as 8; were the components dealt out among the misread images at random, it "
            f"would be {meaning.confusions_by_chance:.1f}.",
        ),
        grid(*cards),
        note(
            "Each image is counted with the component that is strongest in it. p: the probability "
            "that some component gathers as many mistakes or more, if mistakes fell on images at "
            "random; no p means that it is 1. As a detector of mistakes over all images the best "
            f"single component is no. {best.number} with AUROC {best.wrong_auroc:.2f}; the best "
            f"for shuffled mistakes stays below {meaning.wrong_threshold:.2f} in 95 % of "
            f"{N_SHUFFLES} shuffles."
        ),
    ]


def _doubts(findings: DemoFindings) -> list[Html]:
    f, threshold = findings.factorization, findings.meaning.alignment.threshold
    history = f.history
    final = history.phase == history.phase.max() if len(history) else np.zeros(0, dtype=bool)
    loss = history.loss[final] / f.total
    fit = None
    if len(loss) > 1:
        line = {"relative loss": (np.arange(1.0, len(loss) + 1), loss)}
        fit = curves(
            line, label="Loss of the fit", x_label="step", y_label="relative loss", height=2.4
        )
    return [
        bullets(
            "With many labels something always fits. So a label is chosen on one half of the "
            "images and judged on the other, and all of it is repeated with labels shuffled "
            f"between images, {N_SHUFFLES} times: the best of all components then reaches "
            f"{threshold:.2f} in one shuffle of twenty. Names in brackets are not beyond that.",
            "That a Fisher is mostly about the two likeliest digits follows from the softmax. What "
            "is found is which pairs get a component of their own, which share one, and which "
            "parameters they use.",
            f"{f.relative_loss:.0%} of the squared norm is not explained by {f.n_components} "
            "components. The fit is a local optimum, the best of several starts; it ended with "
            f"“{f.status}” and a relative gradient of {f.residual:.1e}.",
            "One network, one split of the images, one seed. Run it with another --seed or number "
            "of --components and compare.",
        ),
        details("How the fit went", fit) if fit else paragraph(""),
    ]


def _colophon(findings: DemoFindings) -> list[Html]:
    s, f = findings.settings, findings.factorization
    command = f"fishertope demo --seed {s.seed} --components {s.n_components} --backend {f.backend}"
    packages = ", ".join(f"{k} {v}" for k, v in versions().items())
    memory = peak_memory_mib()
    times = ", ".join(f"{name.lower()} {t:.1f} s" for name, t in findings.seconds.items())
    return [
        paragraph("Made by ", tag("code", command), f" with {packages}."),
        paragraph(f"Times: {times}." + (f" Peak memory {memory:,.0f} MiB." if memory else "")),
        paragraph(
            "Beside this page: results.json (every number), factorization.safetensors (W and G), "
            "heldout.safetensors (images, digits, probabilities). Method: Matena & Raffel 2023, "
            "arXiv:2310.04649."
        ),
    ]
