"""What of a Fisher merge's design matters on real encoders: labels, examples, floor, damping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.fisher import DataLabels, SampledLabels
from ...core.fisher.labels import LabelRule
from ...core.merging import Dirichlet, merge
from ...core.report import Column, Table
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .encoders import Body, Task, scored
from .sentences import load

COUNTS = (4, 16)
DAMPINGS = (1e-1, 1.0, 10.0)
SHRINKINGS = (1.0, 0.5, 0.1)
SEARCHED = 4
REFERENCE = "normalised"
_TARGET = {"floor": 1e-6}
_ALL = {"floor": 1e-6, "floor_on": "all"}
OPTIONS: dict[str, dict[str, Any]] = {
    "neither": {},
    REFERENCE: {"normalize": True},
    "floor 1e-6 on the target": _TARGET,
    "floor 1e-6 on all": _ALL,
    "floor 1e-6 on all, normalised": {**_ALL, "normalize": True},
}


def units(quick: bool) -> list[dict[str, Any]]:
    """The fine-tunings of merging-sentences."""
    if quick:
        return grid([0, 1], base=["bert-tiny"], tasks=[2], steps=[8], examples=[8], texts=[24])
    seeds = range(20, 25)
    return grid(seeds, base=["minilm"], tasks=[4], steps=[60], examples=[64], texts=[120])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of each variant; precisions are estimated once and merged many times."""
    seed, most = settings["seed"], settings["examples"]
    _, tasks = load(settings, select=settings["texts"] // 2)
    bodies = [t.body for t in tasks]
    row: dict[str, Any] = {}

    def put(name: str, trees: Any = None, **options: Any) -> None:
        found = merge(bodies, trees, **options)
        scored(row, name, tasks, [found.params] * len(tasks))

    put("isotropic", method="isotropic")
    exact = [t.precision(most) for t in tasks]
    for name, options in OPTIONS.items():
        put(name, exact, method="fisher", **options)
    for rho in DAMPINGS:
        put(_damped(rho), exact, damping=(rho, "relative_trace"))
    rules: dict[str, LabelRule] = {"1 sample": SampledLabels(1), "data": DataLabels()}
    for label, rule in rules.items():
        trees = [t.precision(most, labels=rule, seed=seed) for t in tasks]
        put(f"labels: {label}", trees, method="fisher", normalize=True)
    for n in COUNTS:
        put(_counted(n), [t.precision(n) for t in tasks], method="fisher", normalize=True)
    grams = [t.precision(most, structure="gram") for t in tasks]
    for share in SHRINKINGS:
        put(_shrunk(share), grams, method="regmean", offdiagonal=share)
    searched: dict[str, dict[str, Any]] = {
        "isotropic": {"method": "isotropic"},
        REFERENCE: {"precisions": exact, "method": "fisher", "normalize": True},
    }
    for name, options in searched.items():
        body, weights = _best(tasks, options, seed)
        scored(row, f"{name}, λ searched", tasks, [body] * len(tasks))
        row[f"{name}, λ"] = weights
    return row


def _best(tasks: Sequence[Task], options: Mapping[str, Any], seed: int) -> tuple[Body, list[float]]:
    """The best of equal and a few drawn λ, by the mean NLL on the selection texts."""
    k = len(tasks)
    tried = []
    for weights in [np.full(k, 1 / k), *Dirichlet(SEARCHED).points(k, seed)]:
        body = merge([t.body for t in tasks], weights=weights.tolist(), **options).params
        loss = float(np.mean([t.score(body, "select").NLL for t in tasks]))
        tried.append((loss, [round(float(w), 4) for w in weights], body))
    _, chosen, body = min(tried, key=lambda t: t[0])
    return body, chosen


def _damped(rho: float) -> str:
    return f"damping {rho:g}"


def _counted(n: int) -> str:
    return f"{n} examples"


def _shrunk(share: float) -> str:
    return f"RegMean, off-diagonal {share:g}"


def summarise(rows: Rows) -> Summary:
    """Few examples against 64 decide; the rest is told."""
    few = rows.values(f"{_counted(16)}, NLL")
    cost = t_interval(few - rows.values(f"{REFERENCE}, NLL"))
    gain = t_interval(rows.values("isotropic, NLL") - few)
    kinds = {
        "examples and labels (normalised)": [
            *map(_counted, COUNTS), "labels: 1 sample", "labels: data"
        ],
        "floor and normalisation": list(OPTIONS),
        "damping ρ, in units of the mean Fisher of a tensor": [_damped(r) for r in DAMPINGS],
        "RegMean's shrinking": [_shrunk(s) for s in SHRINKINGS],
        "coefficients": ["isotropic, λ searched", f"{REFERENCE}, λ searched"],
    }  # fmt: skip
    return Summary.of(
        [
            decide("NLL of isotropic minus that with 16 examples", gain, at_least=0.0),
            decide("NLL with 16 examples minus that with 64", cost, at_most=0.02),
        ],
        tables=[_table(rows, title, names) for title, names in kinds.items()],
        notes=[
            "64 texts of each task and exact labels unless the name says otherwise; equal "
            "weights; means over the four tasks, each under its own head. Models, report texts "
            "and texts of the Fishers are those of merging-sentences. λ is searched among equal "
            f"weights and {SEARCHED} draws from the simplex, by the NLL on selection texts."
        ],
    )


def _table(rows: Rows, title: str, names: list[str]) -> Table:
    lines = []
    for name in ("isotropic", REFERENCE, *(n for n in names if n != REFERENCE)):
        line = [name]
        for key, sign in (("accuracy", 1), ("NLL", -1)):
            own = rows.values(f"{name}, {key}")
            gap = sign * (own - rows.values(f"isotropic, {key}"))
            told = "–" if name == "isotropic" else t_interval(gap).text("+.4f")
            line += [t_interval(own).text(), told]
        lines.append(line)
    return Table(
        title=f"Design: {title}",
        columns=[
            Column(name="variant", left=True), Column(name="accuracy"),
            Column(name="minus isotropic"), Column(name="NLL"), Column(name="NLL below isotropic"),
        ],
        rows=lines,
    )  # fmt: skip


STUDY = Study(
    id="merging-sentence-design",
    title="The design of a Fisher merge of sentence classifiers",
    claims=(6,),
    question=(
        "The four fine-tuned MiniLMs of merging-sentences, merged by diagonal Fishers: how much do "
        "the number of texts (4, 16, 64), the labels (exact, one sample, data), the floor, the "
        "normalisation, damping and a search of λ change, and RegMean's shrinking?"
    ),
    history="The rule was fixed before any merge of these models had been scored.",
    rule=(
        "Holds if over five seeds a normalised Fisher of 16 texts has a lower mean NLL than plain "
        "averaging, and at most 0.02 more than one of 64 texts (paired 95 % intervals)."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("torch", "transformers"),
    quick_seconds=20,
    full_minutes=18,
)
