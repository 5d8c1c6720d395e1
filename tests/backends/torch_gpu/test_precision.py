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
def test_merging_check_23_diagonals_equal_a_loop_over_examples_and_classes(name, engine):
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


def test_merging_check_23_padding_masks_and_float32():
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


class Large(torch.nn.Module):
    """Weights that are squared in tiles, one example's gradient at a time."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.conv = torch.nn.Conv2d(3, 120, (3, 2), stride=2)
        self.each = torch.nn.Linear(120, 90)
        self.turned = Conv1D(100, 90)
        self.head = torch.nn.Linear(100, 3)

    def forward(self, x):
        h = self.conv(x).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(self.turned(torch.tanh(self.each(h)))).mean(1))


@pytest.mark.parametrize("tile", [None, 4096])
def test_merging_check_23_large_weights_are_squared_in_tiles(tile, monkeypatch):
    pytest.importorskip("transformers")
    from fishertope.backends.torch_gpu import _layer_rules

    monkeypatch.setattr(_layer_rules, "SMALL_BYTES", 8 << 10)
    if tile is not None:
        monkeypatch.setattr(_layer_rules, "TILE_BYTES", tile)
    torch.manual_seed(0)
    module = Large().double()
    x = torch.randn(4, 3, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        roots = Categorical().fisher_root(module(x), reduced=False)
    rows = by_loop(module, x, roots).numpy()
    for size in (1, 4):
        tree = estimate_precision(module, x, engine="hooks", batch_size=size)
        start = 0
        for site, one in tree.items():
            part = rows[:, :, start : start + one.values.size]
            start += one.values.size
            expected = (part**2).sum(1).mean(0)
            off = np.abs(one.values.ravel() - expected).max()
            assert off <= IDENTITY * expected.max()
            error = (part**2).sum((1, 2)).std(ddof=1) / 2
            assert np.isclose(tree.trace_errors[site], error, rtol=1e-9)
