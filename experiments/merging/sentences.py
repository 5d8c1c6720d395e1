"""Four fine-tuned encoders become one: Fisher, RegMean and others against plain averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...core.fisher import PrecisionTree
from ...core.fisher.structures import Diagonal
from ...core.merging import merge
from ...core.report import Column, Table
from ...core.report.figures import bars
from ..finetune import FineTuned
from ..studies import Figure, Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .encoders import TASKS, Task, scored, start_body, tuned

CHOSEN = "Fisher, normalised"
MERGES = (
    "isotropic", "Fisher", CHOSEN, "shuffled Fisher, normalised", "RegMean", "task arithmetic",
    "TIES",
)  # fmt: skip
PAIRED = ("isotropic", CHOSEN, "RegMean")


def units(quick: bool) -> list[dict[str, Any]]:
    """One fine-tuning of every task a seed."""
    if quick:
        return grid([0, 1], base=["bert-tiny"], tasks=[2], steps=[8], examples=[8], texts=[24])
    seeds = range(20, 25)
    return grid(seeds, base=["minilm"], tasks=[4], steps=[60], examples=[64], texts=[120])


def load(settings: Settings, *, select: int = 0) -> tuple[list[FineTuned], list[Task]]:
    """The fine-tunings of a unit, from the cache where they are there."""
    seed, base = settings["seed"], settings["base"]
    found = [
        tuned(task, seed, base=base, steps=settings["steps"], name=base)
        for task in TASKS[: settings["tasks"]]
    ]
    return found, [Task(f, seed, texts=settings["texts"], select=select) for f in found]


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of every merge on every task, each task under its own head."""
    n = settings["examples"]
    found, tasks = load(settings)
    bodies = [t.body for t in tasks]
    row: dict[str, Any] = {}
    scored(row, "each by itself", tasks, bodies)
    base = start_body(found[0])
    scored(row, "before fine-tuning", tasks, [base] * len(tasks))
    fishers = [t.precision(n) for t in tasks]
    grams = [t.precision(n, structure="gram") for t in tasks]
    rng = np.random.default_rng([settings["seed"], 22])
    k = len(tasks)
    weigh: dict[str, dict[str, Any]] = {
        "isotropic": {"method": "isotropic"},
        "Fisher": {"precisions": fishers, "method": "fisher"},
        CHOSEN: {"precisions": fishers, "method": "fisher", "normalize": True},
        "shuffled Fisher, normalised": {
            "precisions": [_shuffled(t, rng) for t in fishers], "method": "fisher",
            "normalize": True,
        },
        "RegMean": {"precisions": grams, "method": "regmean"},
        "task arithmetic": {"method": "task_arithmetic", "anchor": base, "weights": [0.5] * k},
        "TIES": {"method": "ties", "anchor": base, "weights": [1.0] * k, "density": 0.2},
    }  # fmt: skip
    for name, options in weigh.items():
        scored(row, name, tasks, [merge(bodies, **options).params] * k)
    for first, second in list(pairwise(range(k)))[::2]:
        for name in PAIRED:
            options = dict(weigh[name])
            if "precisions" in options:
                options["precisions"] = [options["precisions"][i] for i in (first, second)]
            body = merge([bodies[first], bodies[second]], **options).params
            scored(row, f"{name}, pair {first // 2}", [tasks[first], tasks[second]], [body] * 2)
    return row


def _shuffled(tree: PrecisionTree, rng: np.random.Generator) -> dict[str, Diagonal]:
    """The same numbers at random places of their tensor."""
    return {
        name: Diagonal(rng.permutation(p.diagonal().ravel()).reshape(p.shape))
        for name, p in tree.items()
    }


def summarise(rows: Rows) -> Summary:
    """The normalised Fisher against plain averaging decides; the others are told."""
    gap = rows.values(f"{CHOSEN}, accuracy") - rows.values("isotropic, accuracy")
    loss = rows.values("isotropic, NLL") - rows.values(f"{CHOSEN}, NLL")
    return Summary.of(
        [
            decide("mean accuracy minus isotropic", t_interval(gap), at_least=0.0),
            decide("mean NLL below isotropic", t_interval(loss), at_least=0.0),
        ],
        tables=[_means(rows), *_by_task(rows), _pairs(rows)],
        notes=[
            "Equal weights. Each seed has its own fine-tunings, texts of the Fishers and report "
            "texts (drawn from the test parts, so those of two seeds overlap). The embeddings "
            "were frozen. The shuffled Fisher has the same entries at random places of each "
            "tensor.",
        ],
    )


def _means(rows: Rows) -> Table:
    names = ["before fine-tuning", *MERGES, "each by itself"]
    plain = {k: rows.values(f"isotropic, {k}") for k in ("accuracy", "NLL")}
    gaps = {n: rows.values(f"{n}, accuracy") - plain["accuracy"] for n in MERGES[1:]}
    losses = {n: plain["NLL"] - rows.values(f"{n}, NLL") for n in MERGES[1:]}
    p_values = dict(zip(losses, holm([paired_p(g) for g in losses.values()]), strict=True))
    return Table(
        title="Means over the tasks, each under its own head",
        columns=[
            Column(name="body", left=True), Column(name="accuracy"),
            Column(name="minus isotropic"), Column(name="NLL"), Column(name="NLL below isotropic"),
            Column(name="p of it (Holm)"),
        ],
        rows=[
            [
                name, t_interval(rows.values(f"{name}, accuracy")).text(),
                t_interval(gaps[name]).text("+.3f") if name in gaps else "–",
                t_interval(rows.values(f"{name}, NLL")).text(),
                t_interval(losses[name]).text("+.3f") if name in losses else "–",
                f"{p_values[name]:.3f}" if name in losses else "–",
            ]
            for name in names
        ],
    )  # fmt: skip


def _by_task(rows: Rows) -> list[Table]:
    """Accuracy and NLL of every body on every task."""
    names = ["before fine-tuning", *MERGES, "each by itself"]
    tasks = [t for t in TASKS if f"isotropic, {t}, NLL" in rows[0].result]
    return [
        Table(
            title=f"{key} by task",
            columns=[Column(name="body", left=True), *(Column(name=t) for t in tasks)],
            rows=[
                [n, *(t_interval(rows.values(f"{n}, {t}, {key}")).text() for t in tasks)]
                for n in names
            ],
        )
        for key in ("accuracy", "NLL")
    ]


def _pairs(rows: Rows) -> Table:
    pairs = [k for k in range(2) if f"isotropic, pair {k}, NLL" in rows[0].result]
    lines = []
    for k in pairs:
        label = " and ".join(TASKS[2 * k : 2 * k + 2])
        for name in PAIRED:
            gap = rows.values(f"{name}, pair {k}, accuracy")
            gap = gap - rows.values(f"isotropic, pair {k}, accuracy")
            loss = rows.values(f"isotropic, pair {k}, NLL") - rows.values(f"{name}, pair {k}, NLL")
            told = name != "isotropic"
            lines.append([
                label, name, t_interval(rows.values(f"{name}, pair {k}, accuracy")).text(),
                t_interval(gap).text("+.3f") if told else "–",
                t_interval(rows.values(f"{name}, pair {k}, NLL")).text(),
                t_interval(loss).text("+.3f") if told else "–",
            ])  # fmt: skip
    return Table(
        title="Two of the fine-tunings merged: means over their two tasks",
        columns=[
            Column(name="tasks", left=True), Column(name="body", left=True),
            Column(name="accuracy"), Column(name="minus isotropic"), Column(name="NLL"),
            Column(name="NLL below isotropic"),
        ],
        rows=lines,
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """Mean accuracy and NLL of the merges."""
    names = [*MERGES, "each by itself"]
    found = []
    for key in ("accuracy", "NLL"):
        values = np.array([rows.values(f"{n}, {key}").mean() for n in names])
        picture = bars(values, names, label=f"{key} over four tasks")
        found.append(Figure(picture=picture, caption=f"Mean {key} over tasks and seeds."))
    return found


STUDY = Study(
    id="merging-sentences",
    title="Four sentence classifiers in one encoder",
    claims=(2,),
    question=(
        "MiniLM (6 layers, 22.7 M parameters) is fine-tuned on four real tasks, each with its own "
        "head: reviews of restaurants and of films, tweets, spam. Their bodies are merged. Is the "
        "merge by exact diagonal Fishers of 64 training texts each better than plain averaging? "
        "And RegMean, task arithmetic, TIES, and merges of two?"
    ),
    history="The rule was fixed before any merge of these models had been scored.",
    rule=(
        "Holds if over five seeds the paired 95 % intervals of the mean accuracy over the four "
        "tasks minus isotropic's, and of isotropic's mean NLL minus its NLL, lie above 0 for the "
        "normalised Fisher (the default of the paper's code) at equal weights."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch", "transformers"),
    quick_seconds=20,
    full_minutes=22,
)
