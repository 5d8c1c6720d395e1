"""The linear layers of a model in their order, and the Gram of one layer's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import to_numpy
from ...fisher.structures import Gram, SiteLayout
from ...model.dense import DenseNetwork
from ..groups import Tree
from ..sources import Source
from .fisher import Sites


def linear_layers(source: Source) -> list[str]:
    """Names of the floating tensors with two axes, in the model's order."""
    return [n for n in source.arrays if len(source.shape(n)) == 2 and source.floating(n)]


def layer_gram(model: Any, data: Any, weight: str) -> Tree:
    """The Gram of the inputs of one layer, with its bias where it has one.

    For dense networks from one forward pass; for other models by
    ``estimate_precision(structure="gram")``.
    """
    network = _as_network(model)
    if network is not None:
        return _dense_gram(network, data, weight)
    from ...fisher import estimate_precision

    bias = weight.removesuffix("weight") + "bias"
    names = {n for n, _ in model.named_parameters()}
    tree = estimate_precision(
        model, data, structure="gram", params=[weight, *([bias] if bias in names else [])]
    )
    return Sites(dict(tree.items()), tree.layouts)


def _as_network(model: Any) -> DenseNetwork | None:
    if isinstance(model, DenseNetwork):
        return model
    if hasattr(model, "coefs_"):
        return DenseNetwork(
            tuple(c.T for c in model.coefs_), tuple(model.intercepts_), model.activation
        )
    return None


def _dense_gram(network: DenseNetwork, data: Any, weight: str) -> Tree:
    number = int(weight.split(".")[1])
    a = np.asarray(to_numpy(data), dtype=np.float64)
    for k in range(number):
        z = a @ to_numpy(network.weights[k]).astype(np.float64).T + to_numpy(network.biases[k])
        if network.activation == "relu":
            a = np.maximum(z, 0.0)
        else:
            a = np.tanh(z) if network.activation == "tanh" else z
    a = np.concatenate([a, np.ones((len(a), 1))], axis=1)
    shape = tuple(int(s) for s in network.weights[number].shape)
    layout = SiteLayout(
        weight=weight, weight_shape=shape, bias=f"layers.{number}.bias", outputs="first"
    )
    return Sites({weight: Gram(a.T @ a / len(a), shape[0])}, {weight: layout})
