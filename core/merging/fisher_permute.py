"""Precisions of a network whose units were put in another order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fisher.precision import PrecisionTree
from ..types import IntArray


def permuted_tree(tree: Mapping[str, Any], axes: Mapping[str, Mapping[int, IntArray]]) -> Any:
    """The tree after permuting axes of parameters; plain mappings give a dict.

    Raises
    ------
    InvalidInputError
        If weight and bias share a site but not their order.
    """
    if isinstance(tree, PrecisionTree):
        own = {
            name: {axis: order.tolist() for axis, order in found.items()}
            for name, found in axes.items()
            if name in tree.parameters
        }
        # The hash of the parameters is that of the old order.
        facts = {k: v for k, v in tree.facts.items() if k not in ("model_sha256", "theta_sha256")}
        moved = tree.permuted(own)
        return PrecisionTree(
            sites=moved.sites, n_examples=moved.n_examples, trace_errors=moved.trace_errors,
            layouts=moved.layouts, facts=facts,
        )  # fmt: skip
    return {
        name: p.permuted({k: v.tolist() for k, v in axes[name].items()}) if name in axes else p
        for name, p in tree.items()
    }
