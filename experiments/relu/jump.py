"""The smallest loss near data in general position: an exact counterexample to continuity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.zonotope import general_position
from ...theory import brute_force, regularised_optimum, six_points
from ..studies import Interval, Rows, Study, Summary, decide, grid
from ..studies.study import Settings

SHIFTS = (0.0, 1e-1, -1e-1, 1e-2, -1e-2, 1e-3, -1e-3, 1e-4)


def units(quick: bool) -> list[dict[str, Any]]:
    """Shifts of the fifth of six points."""
    return grid([0], shift=SHIFTS[:1] + SHIFTS[3:4] if quick else SHIFTS)


def unit(settings: Settings) -> Mapping[str, Any]:
    """The smallest losses with two units of signs + −, with + +, and with weight decay."""
    problem = six_points(settings["shift"])
    mixed = brute_force(problem).solution
    same = brute_force(
        type(problem)(inputs=problem.inputs, targets=problem.targets, signs=np.ones(2))
    )
    decayed = regularised_optimum(problem.inputs, problem.targets, 1e-2)
    return {
        "general position": general_position(problem.inputs).holds is True,
        "loss": mixed.loss,
        "norm": float(np.linalg.norm(mixed.weights)),
        "one sign": same.solution.loss,
        "weight decay": decayed.objective,
        "gap": decayed.gap,
    }


def summarise(rows: Rows) -> Summary:
    """The jump at shift 0, and that nothing else jumps."""
    at = {r.settings["shift"]: r for r in rows}
    small = [s for s in at if 0 < abs(s) <= 1e-2]
    jump = min(abs(at[0.0]["loss"] - at[s]["loss"]) for s in small)

    def change(name: str) -> float:
        return float(max(abs(at[0.0][name] - at[s][name]) for s in small))

    def exact(value: float) -> Interval:
        return Interval(value, value, value, 1)

    findings = [
        decide("smallest jump of the loss", exact(jump), at_least=0.03, format=".5f"),
        decide("general position at shift 0", exact(float(at[0.0]["general position"])),
               at_least=1.0),
        decide("largest change with weight decay 1e-2", exact(change("weight decay")),
               at_most=1e-2, format=".5f"),
        decide("largest change with units of one sign", exact(change("one sign")),
               at_most=1e-2, format=".5f"),
    ]  # fmt: skip
    table = Table(
        title="Exact smallest losses",
        columns=[
            Column(name="shift", left=True),
            Column(name="loss, signs + −"),
            Column(name="‖W‖"),
            Column(name="loss, signs + +"),
            Column(name="objective with weight decay"),
        ],
        rows=[
            [
                f"{s:g}",
                f"{at[s]['loss']:.8f}",
                f"{at[s]['norm']:.3g}",
                f"{at[s]['one sign']:.8f}",
                f"{at[s]['weight decay']:.8f}",
            ]
            for s in sorted(at, key=lambda v: (abs(v), v))
        ],
    )
    return Summary.of(
        findings,
        tables=[table],
        notes=[
            "Every loss is the minimum over all cells; every objective with weight decay has a "
            "duality gap below 1e-6. The example is ours: it shows that general position alone is "
            "not enough, which is a sharper statement than the paper's abstract."
        ],
    )


STUDY = Study(
    id="relu-jump",
    title="The smallest loss jumps although the data are in general position",
    claims=(2,),
    question=(
        "Six points in the plane, two units with a bias and output signs + and −. The fifth point "
        "is moved by a shift. Is the smallest loss continuous at shift 0, where the data are in "
        "general position? And with weight decay, or with units of one sign?"
    ),
    history=("The targets were set knowing the exact jump of the example, 1/32."),
    rule=(
        "Sensitivity as claimed holds if the exact smallest loss at shift 0 differs by at least "
        "0.03 from that at every shift of modulus at most 1e-2, the data are in general position, "
        "and with weight decay and with one sign it changes by at most 1e-2 there."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    quick_seconds=5.0,
    full_minutes=0.5,
    seeded=False,
)
