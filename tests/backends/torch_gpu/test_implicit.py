"""Fishers by their products alone, against dense blocks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError  # noqa: E402
from fishertope.core.fisher import (  # noqa: E402
    DataLabels,
    SampledLabels,
    estimate_precision,
    fisher_products,
)
from fishertope.core.testing.tolerances import deviation, tolerance  # noqa: E402

from .families import family  # noqa: E402

IDENTITY = tolerance("identity").relative


@pytest.mark.parametrize("name", ["mlp", "conv2d", "attention", "embedding, layer norm", "lora"])
def test_products_equal_those_of_the_block(name):
    module, x = family(name)
    module.train()
    tree = fisher_products(module, x, batch_size=4)
    block = estimate_precision(module, x, structure="block")
    assert list(tree) == list(block)
    assert tree.layouts == block.layouts
    for site, one in block.items():
        if one.kind == "diagonal":  # a table, of which the block keeps the diagonal
            assert deviation(tree[site].diagonal(), one.values) <= IDENTITY
            continue
        assert np.abs(tree[site].to_dense() - one.to_dense()).max() <= 1e-9 * max(
            np.abs(one.to_dense()).max(), 1e-12
        )
        assert np.isclose(tree[site].trace(), one.trace(), rtol=1e-9, atol=1e-14)
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_labels_are_drawn_once_and_both_libraries_are_served(tmp_path):
    module, x = family("mlp")
    y = torch.arange(len(x)) % 3
    for rule, data in ((SampledLabels(2), x), (DataLabels(), (x, y))):
        tree = fisher_products(module, data, labels=rule, batch_size=4, seed=5)
        block = estimate_precision(
            module, data, labels=rule, structure="block", batch_size=4, seed=5
        )
        for site, one in block.items():
            d = np.random.default_rng(0).normal(size=one.shape)
            expected = one.apply(d)
            assert deviation(tree[site].apply(d), expected) <= 1e-9
            assert np.array_equal(tree[site].apply(d), tree[site].apply(d))
            found = tree[site].apply(torch.from_numpy(d))
            assert isinstance(found, torch.Tensor)
            assert deviation(found.numpy(), expected) <= 1e-9
    damped = tree.damped(0.5)
    assert damped["0.weight"].kind == "sum"
    with pytest.raises(InvalidInputError, match="products alone"):
        tree.save(tmp_path / "p.safetensors")
    with pytest.raises(InvalidInputError, match="at least one"):
        fisher_products(module, x[:0])
    with pytest.raises(InvalidInputError, match="label rule"):
        fisher_products(module, x, labels="exact")
