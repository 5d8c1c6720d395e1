"""The feed-forward layer of a trained text-to-text model: polished, and against the optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.types import FloatArray
from ..studies import Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings

UNITS, DIRECTIONS = 4, 12
PENALTY = 1e-3
TOLERANCE = 1e-6


def units(quick: bool) -> list[dict[str, Any]]:
    """One model a seed; examples of the layer, and of the certified problem."""
    sizes = {"base": [20], "steps": [4], "n": [60], "certified": [24]} if quick else {
        "base": [1200], "steps": [200], "n": [200], "certified": [80]
    }  # fmt: skip
    return grid(range(2) if quick else range(10, 15), **sizes)


def unit(settings: Settings) -> Mapping[str, Any]:
    """Losses of the layer after training, gradient descent and polishing; the certified gap."""
    from ...theory import as_shallow, certify, polish
    from ..bridges.feed_forward import as_module, one_output
    from ..bridges.models import LABELS, base_model, judged, opinions, tuned

    task, n = opinions("movie"), settings["n"]
    model = tuned(
        base_model(settings["base"]), task, steps=settings["steps"], seed=settings["seed"]
    )
    rng = np.random.default_rng([settings["seed"], 41])
    learn = task.examples("train")
    learn = [learn[i] for i in np.sort(rng.permutation(len(learn))[:n])]
    test = task.examples("test")[: 4 * n]
    whole = one_output(model, learn, LABELS)
    unseen = one_output(model, test, LABELS, margin=whole.margin)
    chosen, directions = whole.strongest(UNITS), whole.directions(DIRECTIONS)
    layer, held = whole.part(chosen, directions), unseen.part(chosen, directions)
    start = as_module(layer.weights, layer.outputs)
    descended = descend(start, layer.inputs, layer.targets, penalty=0.0)
    found = polish(descended, layer.inputs, layer.targets)
    W, a = (p.detach().numpy() for p in found.module.parameters())
    proof = certify(as_shallow(found.module), layer.inputs, layer.targets)
    return {
        "model's accuracy": judged(model, test)["accuracy"],
        "accuracy, trained": unseen.accuracy(whole.weights, whole.outputs),
        "accuracy, polished": held.accuracy(W, a[0]),
        "loss, trained": whole.loss(whole.weights, whole.outputs) / n,
        "loss, trained, on the directions": layer.loss(layer.weights, layer.outputs) / n,
        "loss, descended": found.loss_before / n,
        "loss, polished": found.loss_after / n,
        "log10 polished / descended": float(np.log10(found.loss_after / found.loss_before)),
        "proven local minimum": float(proof.local_minimum is True),
        "violation": proof.claim("local minimum").miss,
        "proven": found.proven,
        **_certified(whole, settings["certified"], rng),
    }


def _certified(layer: Any, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """The three strongest directions of the inputs: the optimum of any width, with its proof."""
    from ...theory import certify, regularised_optimum
    from ..bridges.feed_forward import as_module

    rows = np.sort(rng.permutation(len(layer.inputs))[:n])
    three = layer.directions(3)
    x = layer.inputs[rows] @ three
    y = layer.targets[rows]
    lam = PENALTY * n
    found = regularised_optimum(x, y, lam)
    again = certify((found.weights, found.outputs), x, y, dual=found.dual, penalty=lam)
    start = as_module(layer.weights @ three, layer.outputs)
    W, a = (p.detach().numpy() for p in descend(start, x, y, penalty=lam).parameters())
    f = np.maximum(x @ W.T, 0) @ a[0]
    reached = 0.5 * float(((f - y) ** 2).sum()) + 0.5 * lam * float((W**2).sum() + (a**2).sum())
    return {
        "optimum": found.objective / n,
        "bound": found.lower_bound / n,
        "gap": found.gap,
        "gap, checked anew": again.gap,
        "global optimum proven": float(again.global_optimum is True),
        "patterns": found.n_patterns,
        "units of the optimum": len(found.outputs),
        "descended above the bound": reached / found.lower_bound - 1.0,
    }


def descend(module: Any, x: FloatArray, y: FloatArray, *, penalty: float, steps: int = 4000) -> Any:
    """Adam on all examples at once, its rate falling to zero; the module itself is trained."""
    import torch

    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (module(inputs)[:, 0] - targets).square().sum()
        if penalty:
            loss = loss + 0.5 * penalty * torch.stack([p.square().sum() for p in parameters]).sum()
        (loss / len(y)).backward()
        optimizer.step()
        schedule.step()
    return module


def summarise(rows: Rows) -> Summary:
    """Polished against descended, and the optimum's proof."""

    def table(title: str, names: tuple[str, ...], formats: tuple[str, ...]) -> Table:
        return Table(
            title=title,
            columns=[Column(name="quantity", left=True), Column(name="mean [95 % interval]")],
            rows=[
                [name, t_interval(rows.values(name)).text(form)]
                for name, form in zip(names, formats, strict=True)
            ],
        )

    layer = table(
        f"{UNITS} units of the layer over {DIRECTIONS} directions, one output, all else frozen",
        ("loss, trained", "loss, trained, on the directions", "loss, descended", "loss, polished",
         "proven local minimum", "accuracy, trained", "accuracy, polished", "model's accuracy"),
        (".4f", ".4f", ".4f", ".4f", ".2f", ".3f", ".3f", ".3f"),
    )  # fmt: skip
    optimum = table(
        "The layer over its three strongest input directions, weight decay, any width",
        ("optimum", "bound", "gap", "gap, checked anew", "global optimum proven", "patterns",
         "units of the optimum", "descended above the bound"),
        (".5f", ".5f", ".1e", ".1e", ".2f", ".0f", ".1f", ".2e"),
    )  # fmt: skip
    ratio = t_interval(rows.values("log10 polished / descended"))
    return Summary.of(
        [
            decide("log10 of the polished loss over that of gradient descent", ratio, at_most=0.0),
            decide("share of polished layers proven local minima",
                   t_interval(rows.values("proven local minimum")), at_least=1.0),
            decide("relative gap of the optimum, bound taken anew by certify",
                   t_interval(rows.values("gap, checked anew")), at_most=TOLERANCE, format=".1e"),
        ],
        tables=[layer, optimum],
        notes=[
            "Losses are halves of mean squares. Accuracy is that of the first token in which the "
            "labels differ, on other texts; the least squares are not made for it.",
            "Gradient descent is Adam, 4,000 steps on all examples with its rate falling to zero, "
            "from the trained layer on the very same loss; polishing goes on from there.",
        ],
    )  # fmt: skip


STUDY = Study(
    id="relu-feed-forward",
    title="The feed-forward layer of a text-to-text model, polished and proven",
    claims=(1, 5),
    question=(
        "A nano T5 learns the sentiment of film reviews. With all else frozen, the last "
        "feed-forward layer of its decoder moves the margin between the two labels by one number: "
        "a ReLU layer with one output. Does the search over patterns lower the loss of its four "
        "strongest units, over the twelve strongest directions of their inputs, below what "
        "gradient descent reaches from the trained weights, with a proof of where it ends; and is "
        "the optimum over the three strongest directions, with weight decay and any width, "
        "certified?"
    ),
    history="Sizes were chosen on seed 0, which is not among those of the study.",
    rule=(
        "Holds if over five seeds the 95 % interval of log10 of the loss ratio lies below 0, every "
        "polished layer is proven a local minimum by certify, and the duality gap that certify "
        "finds with its own walk over all cones is at most 1e-6."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    needs=("torch", "sentencepiece"),
    quick_seconds=10,
    full_minutes=4,
)
