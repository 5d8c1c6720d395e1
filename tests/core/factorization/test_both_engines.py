"""C8: one script for arrays (numba) and for a module (torch) gives the same numbers."""

import numpy as np
import pytest

from fishertope.core.backend import to_numpy
from fishertope.core.factorization import (
    DiagonalNPEFF,
    LowRankNPEFF,
    factorize,
    fisher_weighted_move,
    perturbation_report,
    trace,
)
from fishertope.core.factorization.baselines import AnswerLabels, FisherKMeans, SphericalKMeans
from fishertope.core.fisher import per_example_fishers
from fishertope.core.model import DenseNetwork
from fishertope.core.report import Examples, decomposition_report

torch = pytest.importorskip("torch")


def networks():
    """The same network as arrays and as a module."""
    rng = np.random.default_rng(0)
    W = [rng.normal(size=(6, 4)), rng.normal(size=(3, 6))]
    b = [rng.normal(size=6), rng.normal(size=3)]
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    module = module.double()
    with torch.no_grad():
        for layer, w, c in zip((module[0], module[2]), W, b, strict=True):
            layer.weight.copy_(torch.as_tensor(w))
            layer.bias.copy_(torch.as_tensor(c))
    x = rng.normal(size=(60, 4))
    return {"numba": (DenseNetwork(W, b, "tanh"), x), "torch": (module, torch.as_tensor(x))}


def script(model, x, backend):
    """Everything after the Fishers, by the name of the backend alone."""
    fishers = per_example_fishers(model, x, backend=backend)
    # The same start, so that both take the same path.
    rng = np.random.default_rng(1)
    start = rng.random((60, 3)), rng.normal(size=(3, fishers.n_columns))
    found = factorize(
        fishers, LowRankNPEFF(3, tol=1e-8), backend=backend, init=start, on_failure="return"
    )
    diagonal = per_example_fishers(model, x, kind="diagonal", backend=backend)
    amounts = factorize(diagonal, DiagonalNPEFF(2), backend=backend, on_failure="return")
    moved = perturbation_report(model, found, x, magnitude=0.05, n_random=2, n_top=10)
    blocks = None if backend == "numba" else {"0": "state", "2": "state"}
    traced = trace(model, found, 0, x[:1], blocks=blocks)
    kind = (to_numpy(x)[:, 0] > 0).astype(int)
    report = decomposition_report(found, Examples(labels=kind), perturbation=moved, n_shuffles=5)
    gradients = per_example_fishers(model, x, labels=AnswerLabels(), backend=backend)
    return {
        "transform": found.transform(fishers, backend=backend),
        "kl": moved.kl_top, "predicted": moved.predicted_top, "random": moved.random_top,
        "centroid": moved.centroid_top, "trace": traced.totals,
        "trace of the input layer": traced.share(traced.flows.induced[0]).sum(keepdims=True),
        "weighted": np.abs(fisher_weighted_move(model, amounts, 0, x, step=0.1)),
        "k-means": FisherKMeans(3).fit(fishers).scores,
        "gradients": SphericalKMeans(3).fit(gradients).scores,
        "auroc": report.enrichment.auroc,
    }  # fmt: skip


def test_c8_both_engines_give_the_same_numbers():
    made = {name: script(model, x, name) for name, (model, x) in networks().items()}
    for name, expected in made["numba"].items():
        found = np.asarray(to_numpy(made["torch"][name]), dtype=np.float64)
        scale = np.abs(to_numpy(expected)).max()
        np.testing.assert_allclose(found, to_numpy(expected), atol=1e-5 * scale, err_msg=name)
