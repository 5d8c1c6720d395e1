"""E3: components of a network on real words, and the phonology that its answers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.report.figures import bars
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .allomorph_network import ENDINGS, FEATURES, load_nouns, train_on_nouns
from .scores import track
from .subjects import fit

COMPONENTS = 16


def units(quick: bool) -> list[dict[str, Any]]:
    """One split, one network a seed."""
    if quick:
        return grid([0], steps=[150], n=[150])
    return grid(range(10, 15), steps=[600], n=[420])


def unit(settings: Settings) -> Mapping[str, Any]:
    """AUROC of components for the last phoneme's kind, among nouns with the same ending."""
    import torch

    from ...core.factorization.baselines import AnswerLabels, SphericalKMeans
    from ...core.fisher import per_example_fishers

    seed, n = settings["seed"], settings["n"]
    rng = np.random.default_rng([seed, 12])
    nouns = load_nouns()
    held_out = rng.random(len(nouns.ending)) < 0.3
    model = train_on_nouns(nouns.take(~held_out), seed, steps=settings["steps"])
    test = nouns.take(held_out)
    picked = np.concatenate(
        [rng.permutation(np.flatnonzero(test.ending == e))[: n // 3] for e in range(3)]
    )
    test = test.take(picked)
    tokens = torch.from_numpy(test.tokens)
    with torch.no_grad():
        said = model(tokens).argmax(1).numpy()
    found = fit(per_example_fishers(model, tokens), COMPONENTS, seed)
    gradients: Any = per_example_fishers(model, tokens, labels=AnswerLabels())
    methods = {
        "NPEFF": np.asarray(found.coefficients, dtype=np.float64),
        "k-means of gradients": SphericalKMeans(COMPONENTS).fit(gradients, seed=seed).scores,
    }
    row: dict[str, Any] = {
        "accuracy": float((said == test.ending).mean()),
        "relative_loss": found.relative_loss,
        "features": {},
    }
    for name, units_ in methods.items():
        scores, shuffled = [], []
        for feature, ending, inside, truth in _features(test):
            tracked = track(units_[inside], truth[:, None], np.random.default_rng([seed, 13]))
            scores.append(float(tracked.auroc[0]))
            shuffled.append(float(tracked.shuffled[0]))
            if name == "NPEFF":
                row["features"][f"{feature}, among -{ENDINGS[ending]}"] = scores[-1]
        row[name] = float(np.nanmean(scores))
        row[name + ", shuffled"] = float(np.nanmean(shuffled))
    return row


def _features(nouns: Any) -> list[tuple[str, int, Any, Any]]:
    """(feature, ending, which nouns have that ending, which of these have the feature)."""
    found = []
    for ending in range(3):
        inside = np.flatnonzero(nouns.ending == ending)
        truths = {name: np.isin(nouns.last[inside], list(ps)) for name, ps in FEATURES.items()}
        truths["six phonemes or more"] = nouns.length[inside] >= 6
        for name, truth in truths.items():
            if 8 <= truth.sum() <= len(truth) - 8:
                found.append((name, ending, inside, truth))
    return found


def summarise(rows: Rows) -> Summary:
    """Means over features, and each feature by itself."""
    names = list(dict.fromkeys(k for r in rows for k in r["features"]))
    lines = []
    for name in names:
        values = [r["features"][name] for r in rows if name in r["features"]]
        lines.append([name, t_interval(values).text(".2f"), len(values)])
    methods = ("NPEFF", "k-means of gradients")
    return Summary.of(
        [
            decide("AUROC within an ending, mean over features", t_interval(rows.values("NPEFF")),
                   at_least=0.8),
            decide("the same minus k-means of gradients",
                   t_interval(rows.values("NPEFF") - rows.values("k-means of gradients")),
                   at_least=0.0),
        ],
        tables=[
            Table(
                title="Mean over features",
                columns=[
                    Column(name="method", left=True), Column(name="AUROC within an ending"),
                    Column(name="shuffled"),
                ],
                rows=[[m, *(t_interval(rows.values(m + e)).text() for e in ("", ", shuffled"))]
                      for m in methods],
                note=f"Accuracy of the network on held-out nouns "
                f"{t_interval(rows.values('accuracy')).text()}; relative loss of the fit "
                f"{rows.values('relative_loss').mean():.2f}.",
            ),
            Table(
                title="What the last phoneme is, among nouns with the same ending (NPEFF)",
                columns=[
                    Column(name="feature", left=True), Column(name="AUROC"), Column(name="seeds"),
                ],
                rows=lines,
            ),
        ],
        notes=[
            "Nouns come from the CMU pronouncing dictionary; none of those examined was in the "
            "training. Within an ending the answer is the same for all, so only how it is reached "
            "can differ. Best component on one half of these nouns, judged on the other; a feature "
            "needs 8 nouns with it and 8 without. Length says nothing about the ending; where "
            "components track it, they may follow the place at which the last phoneme is found.",
        ],
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """AUROC of every feature."""
    names = list(rows[0]["features"])
    values = np.array(
        [np.mean([r["features"][k] for r in rows if k in r["features"]]) for k in names]
    )
    picture = bars(values, names, label="AUROC by feature", axis="AUROC within the ending")
    return [Figure(picture=picture, caption="Mean over seeds; 0.5 is chance.")]


STUDY = Study(
    id="npeff-e3",
    title="Components on real words track phonology",
    claims=(2,),
    question="A two-layer transformer learns from 70 % of the regular plurals of the CMU "
    "dictionary which ending a noun takes (/s/, /z/, /iz/) from its phonemes. Do 16 components of "
    "held-out nouns tell, among nouns with the same ending, which kind of phoneme they end in?",
    history="The rule was given beforehand.",
    rule="The mean over phonological features of the best component's AUROC within an ending is at "
    "least 0.8, and above that of as many clusters of gradients (cosines to the centres).",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch",),
    quick_seconds=8,
    full_minutes=2,
)
