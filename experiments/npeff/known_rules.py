"""E2: whether components are the known rules of a Transformer that was compiled by hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import ConvergenceWarning
from ...core.report import Column, Table
from ...core.report.figures import heatmap
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .compiled_rules import best_predicate, compile_rules, draw_rules, draw_sequences, literals
from .scores import track

TOP = 0.15
DECIDING = 16


def units(quick: bool) -> list[dict[str, Any]]:
    """Components: as many as rules, twice and three times as many."""
    if quick:
        return grid([0], r=[16], n=[200])
    return grid(range(10, 15), r=[8, DECIDING, 24], n=[600])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Compile rules, factorize, and ask which rules have a component."""
    import torch

    from ...core.factorization import LowRankNPEFF, factorize
    from ...core.fisher import per_example_fishers

    rng = np.random.default_rng(settings["seed"])
    rules = draw_rules(rng)
    tokens = draw_sequences(rules, settings["n"], rng)
    model: Any = compile_rules(rules)
    inputs = torch.from_numpy(tokens)
    holds = np.stack([rule.holds(tokens) for rule in rules], axis=1)
    with torch.no_grad():
        said = model.hidden(inputs)[:, -len(rules) :].numpy() > 1e-3
        answers = model(inputs).numpy().argmax(axis=1)
    fishers: Any = per_example_fishers(model.float(), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = factorize(fishers, LowRankNPEFF(settings["r"]), seed=settings["seed"])
    W = np.asarray(found.coefficients, dtype=np.float64)
    halves = rng.spawn(1)[0]
    tracked = track(W, holds, halves)
    by_class = track(np.eye(4)[answers], holds, np.random.default_rng(settings["seed"]))
    searched = _search(W, tokens, holds, tracked.unit)
    return {
        "rules": [rule.name for rule in rules],
        "network_obeys_rules": float((said == holds).mean()),
        "auroc": tracked.auroc,
        "mean_auroc": float(tracked.auroc.mean()),
        "share": float((tracked.auroc >= 0.9).mean()),
        "share_shuffled": float((tracked.shuffled >= 0.9).mean()),
        "shuffled": float(tracked.shuffled.mean()),
        "answer_auroc": float(by_class.auroc.mean()),
        "answer_share": float((by_class.auroc >= 0.9).mean()),
        "matrix": _matrix(W, holds),
        **searched,
        "relative_loss": found.relative_loss,
    }


def _matrix(W: Any, holds: Any) -> Any:
    from ...core.report import auroc

    return np.round(auroc(W, holds).T, 3)


def _search(W: Any, tokens: Any, holds: Any, best: Any) -> dict[str, Any]:
    """Programs of two literals for each rule's component: found on one half, judged on another."""
    half = np.arange(len(W)) % 2 == 0
    known = literals(tokens[half])
    other = literals(tokens[~half])
    names, recovered, agreement = [], 0, []
    for k, component in enumerate(best):
        w = W[:, component]
        top = w >= np.quantile(w, 1 - TOP)
        name, _, _ = best_predicate(known, top[half])
        predicted = _holds(name, other.names, other.values)
        truth = holds[~half, k]
        hit = 2 * (predicted & truth).sum() / max(predicted.sum() + truth.sum(), 1)
        agreement.append(float(hit))
        recovered += bool(hit >= 0.9)
        names.append(name)
    return {
        "programs": names,
        "programs_equal": recovered / len(best),
        "program_f1": float(np.mean(agreement)),
    }


def _holds(name: str, names: list[str], values: Any) -> Any:
    out = np.ones(len(values), dtype=bool)
    for part in name.split(" and "):
        positive = part.removeprefix("not ")
        column = values[:, names.index(positive)]
        out &= column if part == positive else ~column
    return out


def summarise(rows: Rows) -> Summary:
    """Share of rules with a component; 16 components decide."""
    table = []
    for r in rows.distinct("r"):
        cell = rows.where(r=r)
        table.append(
            [
                r,
                *(
                    t_interval(cell.values(name)).text(".2f")
                    for name in (
                        "share", "mean_auroc", "shuffled", "answer_auroc", "programs_equal",
                        "program_f1", "relative_loss",
                    )
                ),
            ]
        )  # fmt: skip
    own = rows.where(r=DECIDING)
    findings = [
        decide("share of rules with a component of AUROC >= 0.9",
               t_interval(own.values("share")), at_least=0.9),
        decide("the same with shuffled labels", t_interval(own.values("share_shuffled")),
               at_most=0.1),
    ]  # fmt: skip
    misses = [
        f"{name} ({score:.2f})"
        for row in own
        for name, score in zip(row["rules"], row["auroc"], strict=True)
        if score < 0.9
    ]
    reason = (
        f"With {DECIDING} components {sum(round(8 * s) for s in own.values('share'))} of "
        f"{8 * len(own)} rules have a component that finds their examples with AUROC of at least "
        f"0.9 on examples not used to choose it (shuffled: {own.values('shuffled').mean():.2f}; "
        f"from the answer alone: mean {own.values('answer_auroc').mean():.2f})."
        + (f" Missed: {', '.join(misses)}." if misses else "")
    )
    table_ = Table(
        title="Rules and components, by the number of components",
        columns=[
            Column(name="components"), Column(name="share of rules"), Column(name="mean AUROC"),
            Column(name="AUROC, shuffled"), Column(name="AUROC of the answer"),
            Column(name="programs equal to the rule"), Column(name="F1 of programs"),
            Column(name="relative loss"),
        ],
        rows=table,
    )  # fmt: skip
    notes = [
        "Each seed draws other rules, symbols, classes and strengths. Two rules speak for each of "
        "the four classes, and several may hold at once, so that the answer does not give the rule "
        "away (AUROC of the answer: the best of the four predicted classes as units).",
        "Programs: the best conjunction of two literals by F1 on the top 15 % of the component on "
        "one half of the examples; equal to the rule if its F1 with the rule is 0.9 on the other.",
    ]
    return Summary.of(findings, reason=reason, tables=[table_], notes=notes)


def figures(rows: Rows) -> Sequence[Figure]:
    """AUROC of every component against every rule, for the first seed."""
    row = rows.where(r=DECIDING)[0]
    matrix = np.array(row["matrix"])
    picture = heatmap(
        matrix, row["rules"], [str(k + 1) for k in range(matrix.shape[1])],
        label="AUROC of components against rules", low=0.5, high=1.0, corner="rule",
    )  # fmt: skip
    caption = f"AUROC of each component (columns, by share) for each rule, seed {row['seed']}."
    return [Figure(picture=picture, caption=caption)]


STUDY = Study(
    id="npeff-e2",
    title="The strategies of a network with known rules are recovered",
    claims=(2, 8),
    question="A two-layer Transformer is compiled by hand from eight known rules over symbol "
    "sequences (contains, first, last, twice, both, one after another), each in heads and neurons "
    "of its own. Do the components of its Fishers (600 sequences, 12,624 parameters) find "
    "the examples of each rule?",
    history=(
        "The rule was given beforehand; sizes were chosen on other seeds than those reported."
    ),
    rule="With 16 components, twice as many as rules, at least 90 % of the rules have a component "
    "whose coefficient finds the rule's examples with AUROC >= 0.9 (component chosen on one half "
    "of the examples, judged on the other), and at most 10 % do with shuffled labels.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch",),
    quick_seconds=15,
    full_minutes=5,
)
