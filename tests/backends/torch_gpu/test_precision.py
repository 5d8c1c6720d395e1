"""Precisions of torch modules, every family of layers, against the rows of single examples."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.fisher import estimate_precision, per_example_fishers  # noqa: E402
from fishertope.core.model import Categorical  # noqa: E402

from .families import FAMILIES, family  # noqa: E402
from .test_module_engines import by_loop  # noqa: E402

IDENTITY = 1e-10


@pytest.mark.parametrize("engine", ["hooks", "functional"])
@pytest.mark.parametrize("name", FAMILIES)
def test_diagonals_equal_a_loop_over_examples_and_classes(name, engine):
    module, x = family(name)
    module.eval()
    with torch.no_grad():
        z = module(x)
    roots = Categorical().fisher_root(z, reduced=False)
    rows = by_loop(module, x, roots).numpy()
    module.train()
    squares = (rows**2).sum(1)
    for size in (1, 4, len(x)):
        tree = estimate_precision(module, x, engine=engine, batch_size=size)
        found = np.concatenate([p.values.ravel() for p in tree.values()])
        np.testing.assert_allclose(found, squares.mean(0), rtol=0, atol=IDENTITY * squares.max())
        spread = squares.sum(1)
        start = 0
        for site, one in tree.items():
            traces = squares[:, start : start + one.values.size].sum(1)
            start += one.values.size
            error = traces.std(ddof=1) / len(x) ** 0.5
            assert abs(tree.trace_errors[site] - error) <= IDENTITY * spread.max()
    assert module.training


def test_padding_masks_and_float32():
    transformers = pytest.importorskip("transformers")
    assert transformers
    from .test_transformers import batch, make

    model, x = make("bert"), batch()
    each = per_example_fishers(model, x, kind="diagonal").values.mean(0).numpy()
    tree = estimate_precision(model, x, batch_size=2)
    found = np.concatenate([p.values.ravel() for p in tree.values()])
    np.testing.assert_allclose(found, each, rtol=0, atol=IDENTITY * each.max())
    single = estimate_precision(model.float(), x)
    found = np.concatenate([p.values.ravel() for p in single.values()])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, each, rtol=0, atol=1e-4 * each.max())
