"""Merging on top of intermediate-task training of a pretrained encoder, with several donors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.merging import PairGrid, merge
from ...core.report import Column, Table
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .encoders import TASKS, Task, tuned

TARGET, INTERMEDIATE = TASKS[0], TASKS[1]
ANOTHER = "another fine-tuning on the target"
DONORS = (ANOTHER, *TASKS[1:])
POINTS = PairGrid(3, corners=False)  # and the target alone


def units(quick: bool) -> list[dict[str, Any]]:
    """One target a seed; donors of MiniLM are those of merging-sentences."""
    if quick:
        return grid([0, 1], base=["bert-tiny"], tasks=[2], steps=[8], examples=[8], texts=[24])
    seeds = range(20, 25)
    return grid(seeds, base=["minilm"], tasks=[4], steps=[60], examples=[64], texts=[300])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of the target's task: unmerged, merged with each donor, and retrained."""
    seed, base, n = settings["seed"], settings["base"], settings["examples"]
    kind = {"steps": settings["steps"], "name": base}
    sizes = {"texts": settings["texts"], "select": 100}
    plain = {t: tuned(t, seed, base=base, **kind) for t in TASKS[: settings["tasks"]]}
    start = plain[INTERMEDIATE].folder
    target = Task(tuned(TARGET, seed, base=start, **kind), seed, **sizes)
    second = plain[TASKS[settings["tasks"] - 2]]  # tweets
    longer = tuned(second.task, seed, base=start, **kind)
    retrained = Task(tuned(TARGET, seed, base=longer.folder, **kind), seed, **sizes)
    direct = Task(plain[TARGET], seed, **sizes)
    donors = {ANOTHER: Task(tuned(TARGET, seed + 100, base=start, **kind), seed, **sizes)}
    donors |= {t: Task(f, seed, texts=1) for t, f in plain.items() if t != TARGET}
    row: dict[str, Any] = {}

    def put(name: str, task: Task, body: Any) -> None:
        scores = task.score(body)
        row[f"{name}, accuracy"], row[f"{name}, NLL"] = scores.accuracy, scores.NLL

    put("without the intermediate task", direct, direct.body)
    put("unmerged", target, target.body)
    put("two intermediate tasks", retrained, retrained.body)
    own = target.precision(n)
    for name, donor in donors.items():
        given = [own, donor.precision(n)]
        for method in ("isotropic", "Fisher"):
            options: dict[str, Any] = {"method": "isotropic"}
            if method == "Fisher":
                options = {"method": "fisher", "precisions": given, "normalize": True}
            tried = [(target.score(target.body, "select").NLL, 0.0, target.body)]
            for weights in POINTS.points(2, 0):
                body = merge([target.body, donor.body], weights=weights.tolist(), **options).params
                tried.append((target.score(body, "select").NLL, float(weights[1]), body))
            _, weight, body = min(tried, key=lambda t: t[0])
            put(f"{method} with {name}", target, body)
            row[f"{method} with {name}, donor's weight"] = weight
    return row


def summarise(rows: Rows) -> Summary:
    """Merging with another fine-tuning on the target decides, and a second intermediate task."""
    merged = rows.values(f"Fisher with {ANOTHER}, accuracy")
    gain = t_interval(merged - rows.values("unmerged, accuracy"))
    over = t_interval(merged - rows.values("two intermediate tasks, accuracy"))
    return Summary.of(
        [
            decide("merged with another fine-tuning minus unmerged", gain, at_least=0.0),
            decide("the same minus training on two intermediate tasks", over, at_least=0.0),
        ],
        tables=[_table(rows)],
        notes=[
            "The target's head is kept. λ of the donor is 0, 0.25, 0.5 or 0.75, by the NLL on at "
            "most 100 selection texts; scores are on the target's whole test part (292 texts), the "
            "same for every seed: intervals are over fine-tunings and Fishers, not over texts.",
        ],
    )


def _table(rows: Rows) -> Table:
    donors = [d for d in DONORS if f"Fisher with {d}, NLL" in rows[0].result]
    merged = [f"{m} with {d}" for d in donors for m in ("isotropic", "Fisher")]
    names = ["without the intermediate task", "unmerged", "two intermediate tasks", *merged]
    plain = rows.values("unmerged, accuracy")
    gaps = {n: rows.values(f"{n}, accuracy") - plain for n in names if n != "unmerged"}
    p_values = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    return Table(
        title=f"{TARGET} after {INTERMEDIATE}: merged with a donor's body",
        columns=[
            Column(name="model", left=True), Column(name="accuracy"),
            Column(name="minus unmerged"), Column(name="p (Holm)"), Column(name="NLL"),
            Column(name="donor's weight", format=".2f"),
        ],
        rows=[
            [
                n, t_interval(rows.values(f"{n}, accuracy")).text(),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                f"{p_values[n]:.3f}" if n in gaps else "–",
                t_interval(rows.values(f"{n}, NLL")).text(),
                float(rows.values(f"{n}, donor's weight").mean()) if n in merged else None,
            ]
            for n in names
        ],
    )  # fmt: skip


STUDY = Study(
    id="merging-strong",
    title="Merging on top of intermediate-task training of a pretrained encoder",
    claims=(3, 4),
    question=(
        "MiniLM is fine-tuned on reviews of films, then on the target, reviews of restaurants. "
        "Does a Fisher merge with another such fine-tuning, or with donors of other tasks, improve "
        "it, and does training on a second intermediate task (tweets) instead?"
    ),
    history="The rule was fixed before any of these merges had been scored.",
    rule=(
        "Holds if over five seeds the paired 95 % intervals of the accuracy of the Fisher merge "
        "with another fine-tuning on the target minus the unmerged one's, and minus that of "
        "training on two intermediate tasks, lie above 0."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("torch", "transformers"),
    quick_seconds=20,
    full_minutes=16,
)
