"""Random models and precisions for the merging tests."""

import numpy as np

from fishertope.core.fisher.structures import (
    EKFAC,
    DenseBlock,
    Diagonal,
    Gram,
    Implicit,
    Isotropic,
    Kronecker,
    LowRankDiagonal,
    Masked,
    Sum,
)

EPS = np.finfo(np.float64).eps
SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4)}
KINDS = (
    "isotropic", "diagonal", "gram", "kronecker", "ekfac", "dense", "lowrank+diagonal", "implicit",
    "masked", "sum",
)  # fmt: skip


def model(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def spd(rng, n, rank=None):
    x = rng.normal(size=(n, (rank or n + 2)))
    return x @ x.T / x.shape[1]


def precision(kind, shape, seed):
    """A random P of a kind on a matrix shape (o, i), positive definite but for "masked"."""
    rng = np.random.default_rng(seed)
    o, i = shape
    d = o * i
    if kind == "isotropic":
        return Isotropic(float(rng.uniform(0.5, 2)), shape)
    if kind == "diagonal":
        return Diagonal(rng.uniform(0.1, 2, shape))
    if kind == "gram":
        return Gram(spd(rng, i), o)
    if kind == "kronecker":
        return Kronecker(spd(rng, o), spd(rng, i))
    if kind == "ekfac":
        U, V = np.linalg.eigh(spd(rng, o))[1], np.linalg.eigh(spd(rng, i))[1]
        return EKFAC(U, V, rng.uniform(0.1, 2, (o, i)))
    if kind == "dense":
        return DenseBlock(spd(rng, d), shape)
    if kind == "lowrank+diagonal":
        return LowRankDiagonal(rng.uniform(0.1, 1, shape), rng.normal(size=(3, o, i)))
    if kind == "implicit":
        M = spd(rng, d)
        return Implicit(lambda x: (x.reshape(-1) @ M).reshape(shape), shape)
    if kind == "masked":
        mask = rng.random(shape) < 0.7
        return Masked(Kronecker(spd(rng, o), spd(rng, i)), mask)
    return Sum([Kronecker(spd(rng, o), spd(rng, i)), Diagonal(rng.uniform(0.1, 1, shape))])


def pair(kind, n=2, shape=(4, 3), seed=0):
    """n models of one matrix and their precisions."""
    models = [model(seed + i, {"w": shape}) for i in range(n)]
    return models, [{"w": precision(kind, shape, 100 + seed + i)} for i in range(n)]


def dense_answer(models, precisions, weights, center, extra=0.0):
    """The minimiser from the dense normal equations in delta form, by the pseudo-inverse."""
    shape = models[0]["w"].shape
    total, right = np.zeros((np.prod(shape),) * 2), np.zeros(np.prod(shape))
    for m, p, w in zip(models, precisions, weights, strict=True):
        P = p["w"].to_dense()
        total += w * P
        right += w * P @ (m["w"] - center).ravel()
    total += extra * np.eye(len(total))
    return center + (np.linalg.pinv(total, rcond=1e-13) @ right).reshape(shape)


def mean(models, weights):
    return sum(w * m["w"] for w, m in zip(weights, models, strict=True)) / sum(weights)
