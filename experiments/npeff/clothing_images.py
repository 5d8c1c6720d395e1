"""An image model: components of a small convolutional network on Fashion-MNIST."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import ConvergenceWarning
from ...core.report import Column, Table, align
from ...core.report.figures import bars
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from .subjects import fit

COMPONENTS = 20


def units(quick: bool) -> list[dict[str, Any]]:
    """One network a seed."""
    if quick:
        return grid([0], train=[600], n=[120])
    return grid(range(10, 15), train=[8000], n=[300])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Train, factorize held-out images, line up with classes and pairs, and move."""
    import torch

    from ...core.factorization import perturbation_report
    from ...core.fisher import per_example_fishers
    from ..data import load_fashion_mnist

    seed, n = settings["seed"], settings["n"]
    rng = np.random.default_rng([seed, 14])
    data = load_fashion_mnist()
    model, images, truth = _train(data, settings["train"], n, rng)
    with torch.no_grad():
        z = model(images).numpy()
    found = fit(per_example_fishers(model, images), COMPONENTS, seed)
    W = np.asarray(found.coefficients, dtype=np.float64)
    live = np.flatnonzero((W > 0).sum(axis=0) >= 15)
    lined = align(W, _labels(z, truth, data.train.classes), rng=rng, n_shuffles=100, min_count=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        report = perturbation_report(
            model, found, images, components=live, n_top=15, n_baseline=80, n_random=3, seed=seed
        )
    kinds = [lined.labels[b] for b, good in zip(lined.best, lined.aligned, strict=True) if good]
    return {
        "accuracy": float((z.argmax(axis=1) == truth).mean()),
        "relative_loss": found.relative_loss,
        "aligned": float(lined.aligned.mean()),
        "aligned_shuffled": float((lined.control > lined.threshold).mean()),
        "auroc": float(np.nanmedian(lined.best_auroc)),
        "auroc_shuffled": float(np.nanmedian(lined.control)),
        "pairs": sum(" or " in k for k in kinds) / COMPONENTS,
        "named": sorted(set(kinds)),
        "ratio": float(np.nanmedian(report.kl_ratio)),
        "random_ratio": float(np.nanmedian(report.random_ratio)),
        "centroid_ratio": float(np.nanmedian(report.centroid_ratio)),
    }


def _train(data: Any, size: int, n: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """The network, n held-out images (n, 1, 28, 28) and their classes."""
    import torch

    from .tiny_transformer import train

    def tensor(images: Any) -> Any:
        return torch.from_numpy(images.astype(np.float32) / 255.0 - 0.3)[:, None]

    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip
    picked = rng.permutation(len(data.train.labels))[:size]
    inputs, labels = tensor(data.train.images[picked]), torch.from_numpy(data.train.labels[picked])

    def batch(step: int) -> tuple[Any, Any]:
        some = rng.integers(0, size, 64)
        return inputs[some], labels[some]

    train(model, batch, steps=4 * size // 64, rate=3e-3)
    out = rng.permutation(len(data.held_out.labels))[:n]
    return model.eval(), tensor(data.held_out.images[out]), data.held_out.labels[out]


def _labels(z: Any, truth: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Right class, answer, the two likeliest classes, and mistakes."""
    order = np.sort(np.argsort(-z, axis=1)[:, :2], axis=1)
    labels = {f"{name}": truth == i for i, name in enumerate(classes)}
    labels |= {f"read as {name}": z.argmax(axis=1) == i for i, name in enumerate(classes)}
    for a, b in np.unique(order, axis=0):
        labels[f"{classes[a]} or {classes[b]}?"] = (order == (a, b)).all(axis=1)
    labels["mistakes"] = z.argmax(axis=1) != truth
    return labels


def summarise(rows: Rows) -> Summary:
    """Alignment and selectivity."""
    names = {
        "accuracy": "accuracy on held-out images",
        "relative_loss": "relative loss of the fit",
        "aligned": "components that fit a label beyond shuffles",
        "aligned_shuffled": "the same with shuffled labels",
        "auroc": "median AUROC of a component's label, on the half that did not choose it",
        "auroc_shuffled": "the same with shuffled labels",
        "pairs": "components named by a choice between two classes",
        "ratio": "median KL-ratio of moves along components",
        "centroid_ratio": "median KL-ratio of gradient centroids",
        "random_ratio": "median KL-ratio of random directions",
    }
    named = sorted({k for r in rows for k in r["named"]})
    return Summary.of(
        [
            decide("share of components that fit a label beyond shuffles",
                   t_interval(rows.values("aligned")), at_least=0.5),
            decide("median KL-ratio", t_interval(rows.values("ratio")), at_least=3.0,
                   format=".1f"),
        ],
        tables=[
            Table(
                title="Twenty components of 300 held-out images",
                columns=[Column(name="measured", left=True), Column(name="mean [95 % interval]")],
                rows=[[text, t_interval(rows.values(k)).text(".2f")] for k, text in names.items()],
                note="Named in any seed: " + "; ".join(named) + ".",
            )
        ],
        notes=[
            "A label (class, answer, choice between two classes, mistake) is chosen on one half of "
            "the images and judged on the other; beyond shuffles: above what the best of all "
            "components reaches in one shuffle of twenty.",
        ],
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """Selectivity of the three kinds of direction."""
    kinds = {"components": "ratio", "gradient centroids": "centroid_ratio",
             "random directions": "random_ratio"}  # fmt: skip
    values = np.array([rows.values(k).mean() for k in kinds.values()])
    picture = bars(values, list(kinds), label="Median KL-ratio of moves", axis="median KL-ratio")
    return [Figure(picture=picture, caption="Mean over seeds, 0.1 nats on the top images.")]


STUDY = Study(
    id="npeff-images",
    title="An image model: components of a convolutional network",
    claims=(3, 8),
    question="A convolutional network of 5,386 parameters learns 8,000 images of Fashion-MNIST. Do "
    "twenty components of 300 held-out images line up with classes, answers and choices between "
    "two classes, and are moves along them selective?",
    history="The rule was given beforehand.",
    rule="At least half of the components fit a label beyond what shuffled labels reach, and the "
    "median KL-ratio is at least 3.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch",),
    quick_seconds=12,
    full_minutes=3,
)
