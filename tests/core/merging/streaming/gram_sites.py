"""Checkpoints with Gram precisions of several layouts, on disk and in memory."""

from __future__ import annotations

import numpy as np

from fishertope.core.fisher import PrecisionTree
from fishertope.core.fisher.structures import Diagonal, Gram, Isotropic, Scaled, Sum
from fishertope.core.model import SiteLayout

SHAPES = {
    "a.bias": (300,), "a.weight": (300, 12), "conv.weight": (260, 3, 2, 2), "norm": (7,),
    "t.bias": (270,), "t.weight": (9, 270), "z.weight": (140, 11),
}  # fmt: skip
LAYOUTS = {
    "a.weight": SiteLayout(
        weight="a.weight", weight_shape=(300, 12), bias="a.bias", outputs="first"
    ),
    "conv.weight": SiteLayout(
        weight="conv.weight", weight_shape=(260, 3, 2, 2), outputs="first"
    ),
    "t.weight": SiteLayout(weight="t.weight", weight_shape=(9, 270), bias="t.bias", outputs="last"),
    "z.weight": SiteLayout(weight="z.weight", weight_shape=(140, 11), outputs="first"),
}  # fmt: skip


def gram(rng, shape, rank=None, dtype=np.float64):
    o, i = shape
    x = rng.normal(size=(rank or 3 * i, i))
    return Gram(np.asarray(x.T @ x / len(x), dtype=dtype), o)


def trees(seed, n=3, *, dtype=np.float64, rank=None, odd=False):
    """Precisions of n sources; with ``odd`` some are scaled, added up or isotropic."""
    rng, found = np.random.default_rng(seed), []
    for k in range(n):
        sites = {name: gram(rng, s.shape, rank, dtype) for name, s in LAYOUTS.items()}
        if odd:
            shape = LAYOUTS["a.weight"].shape
            sites["a.weight"] = [
                Scaled(sites["a.weight"], 0.7), Isotropic(0.3, shape),
                Sum([sites["a.weight"], Scaled(gram(rng, shape), 2.0), Isotropic(0.1, shape)]),
            ][k]  # fmt: skip
        sites["norm"] = Diagonal(rng.random(7))
        found.append(
            PrecisionTree(sites=sites, n_examples=5, layouts=LAYOUTS,
                          trace_errors=dict.fromkeys(sites, 0.1))
        )  # fmt: skip
    return found


def plan_of(files, models, precisions, *, code=None, cut=None, weights=None, **more):
    """Everything written, and a plan for it."""
    sources = []
    for k, (model, tree) in enumerate(zip(models, precisions, strict=True)):
        if cut is None:
            path = files.write(f"m{k}.safetensors", model, code=code)
        else:
            path = files.shards(f"cut{cut}-{k}", model, cut, code=code)
        tree.save(files.folder / f"p{k}.safetensors")
        sources.append({"model": str(path), "precision": str(files.folder / f"p{k}.safetensors")})
        if weights is not None:
            sources[-1]["parameters"] = {"weight": weights[k]}
    if weights is None and "grid" not in more:
        more["parameters"] = {"weight": 0.5, **more.get("parameters", {})}
    return {"method": "fisher", "sources": sources, **more}
