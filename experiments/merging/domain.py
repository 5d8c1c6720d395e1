"""Domain adaptation: a network that has seen unlabelled images of the domain is merged in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.fisher import SampledLabels, estimate_precision
from ...core.merging import PairGrid, search_weights
from ...core.model import DenseNetwork
from ...core.model.outputs import Gaussian
from ...core.report import Column, Table
from ...core.types import FloatArray
from ..studies import Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .frontier import corrupted
from .networks import accuracy, digits, fresh, log_loss, train, with_head
from .transfer import _scores

HIDDEN = 40
MASKED = 0.5
COPIES = 8
PULL = 3e-4
BODY_SIZES = (64, HIDDEN, HIDDEN)
PLAIN, ADAPTED = "without adaptation", "fine-tuned after adaptation"
MERGES = (
    "isotropic merge", "Fisher merge", "adapted + isotropic merge", "adapted + Fisher merge",
)  # fmt: skip
NAMES = (PLAIN, *MERGES[:2], ADAPTED, *MERGES[2:])


def units(quick: bool) -> list[dict[str, Any]]:
    """One target set of 60 labels a seed."""
    return grid(range(2) if quick else range(100, 112), labels=[60], steps=[100 if quick else 1500])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Accuracy and NLL of the ten classes on images of the domain."""
    seed, n, steps = settings["seed"], settings["labels"], settings["steps"]
    splits = digits(seed)
    rng = np.random.default_rng([seed, 18])
    X, y = splits.train
    general, unlabelled = X[n:500], corrupted(X[500:], rng)
    few = corrupted(X[:n], rng), y[:n]
    select, report = ((corrupted(x, rng), labels) for x, labels in (splits.select, splits.report))

    def read(start: DenseNetwork, images: FloatArray, by: int) -> DenseNetwork:
        return train(start, masked(images, rng), steps=steps, seed=seed + by, pull=PULL)

    base = read(fresh(seed, (*BODY_SIZES, 64)), general, 0)
    adapted = read(base, unlabelled, 1)
    head = fresh(seed + 1000, (*BODY_SIZES, 10))

    def tuned(start: DenseNetwork) -> DenseNetwork:
        return train(with_head(start, head), few, steps=300, rate=2e-3, seed=seed, pull=PULL)

    found = {PLAIN: tuned(base), ADAPTED: tuned(adapted)}
    given = estimate_precision(
        adapted, masked(unlabelled, rng, copies=1)[0], labels=SampledLabels(1), output=Gaussian(),
        seed=seed,
    )  # fmt: skip
    row: dict[str, Any] = {}
    for start, kind in ((PLAIN, ""), (ADAPTED, "adapted + ")):
        target = found[start]
        own = estimate_precision(target, few[0])
        merges: dict[str, dict[str, Any]] = {
            f"{kind}isotropic merge": {"method": "isotropic"},
            f"{kind}Fisher merge": {
                "method": "fisher", "normalize": True, "precisions": [own, given]
            },
        }  # fmt: skip
        for name, options in merges.items():
            result = search_weights(
                [target, adapted], _scores, select, search=PairGrid(21), isotropic=False,
                sites={"layers.2.*": "take:0"}, **options,
            )  # fmt: skip
            found[name] = result.solution.model()
            row[f"{name}, weight"] = float(result.weights[1])
    for name, network in found.items():
        row[f"{name}, accuracy"] = accuracy(network, report)
        row[f"{name}, NLL"] = log_loss(network, report)
    return row


def masked(
    images: FloatArray, rng: np.random.Generator, copies: int = COPIES
) -> tuple[FloatArray, FloatArray]:
    """Images with half of the pixels at 0, and whole: what is read, and what is to be told."""
    whole = np.tile(images, (copies, 1))
    return whole * (rng.random(whole.shape) >= MASKED), whole


def summarise(rows: Rows) -> Summary:
    """The Fisher merge against no adaptation, and against fine-tuning after it."""
    merged = rows.values("Fisher merge, accuracy")
    gain = t_interval(merged - rows.values(f"{PLAIN}, accuracy"))
    beside = t_interval(merged - rows.values(f"{ADAPTED}, accuracy"))
    on_top = rows.values("adapted + Fisher merge, accuracy") - rows.values(f"{ADAPTED}, accuracy")
    base = rows.values(f"{PLAIN}, accuracy")
    gaps = {n: rows.values(f"{n}, accuracy") - base for n in NAMES[1:]}
    p_values = dict(zip(gaps, holm([paired_p(g) for g in gaps.values()]), strict=True))
    table = Table(
        title="Corrupted digits from 60 labels, with 500 unlabelled images of the domain",
        columns=[
            Column(name="model", left=True), Column(name="accuracy"),
            Column(name="minus no adaptation"), Column(name="p (Holm)"), Column(name="NLL"),
            Column(name="weight of the adapted body", format=".2f"),
        ],
        rows=[
            [
                n, t_interval(rows.values(f"{n}, accuracy")).text(),
                t_interval(gaps[n]).text("+.3f") if n in gaps else "–",
                f"{p_values[n]:.3f}" if n in gaps else "–",
                t_interval(rows.values(f"{n}, NLL")).text(),
                float(rows.values(f"{n}, weight").mean()) if n in MERGES else None,
            ]
            for n in NAMES
        ],
    )  # fmt: skip
    return Summary.of(
        [
            decide("Fisher merge minus no adaptation", gain, at_least=0.0),
            decide("Fisher merge minus fine-tuning after adaptation", beside, at_least=-0.02),
            decide("merging on top of adaptation", t_interval(on_top), at_least=0.0),
        ],
        tables=[table],
        notes=[
            "The hidden layers are merged, the classifier's head is kept; λ by the log-likelihood "
            "of 300 selection images over 21 values with both corners; scores on 497 others. The "
            "adapted network's Fisher is that of its masked-pixel task with one sample an image.",
        ],
    )


STUDY = Study(
    id="merging-domain",
    title="Merging as domain adaptation",
    claims=(3,),
    question=(
        "A 64-40-40-64 network learns to fill in masked pixels of clean digits, then (adaptation) "
        "of 500 unlabelled shifted, noisy and faint ones. Classifiers of such images are tuned on "
        "60 labels. Does merging the adapted body in by Fishers help as much as fine-tuning after "
        "adaptation, and does it help on top of that?"
    ),
    history=(
        "A small run of two seeds had been seen before the full one; the rule did not change after "
        "it."
    ),
    rule=(
        "Holds if over twelve seeds the paired 95 % interval of accuracy minus that without "
        "adaptation lies above 0, that minus fine-tuning after adaptation above −0.02, and that "
        "of merging on top of adaptation above 0."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("sklearn",),
    quick_seconds=10,
    full_minutes=3,
)
