"""Clusters of gradients and of Fishers.

Each example belongs to one cluster, so a behaviour that is made of several factors gets one factor
only; the scores (similarity to each centre) keep what is left of the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import to_numpy
from ...errors import InvalidInputError
from ...fisher.per_example import DiagonalFishers, LowRankFishers, is_sparse, segment_sum
from ...types import FloatArray, IntArray
from .units import Units, check_same_columns, check_units, one_row_each, unit_rows

MAX_STEPS = 300


@dataclass(frozen=True, slots=True)
class SphericalKMeans:
    """K-means on the sphere: max Σ_i cos(x_i, c_{k(i)}) over unit centres; score cos(x_i, c_k).

    Attributes
    ----------
    n_units : int
        Clusters.
    n_starts : int
        k-means++ starts, the best of which is kept.

    References
    ----------
    Dhillon & Modha 2001, "Concept decompositions for large sparse text data using clustering".

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.1], [2.0, 0.0], [0.0, 1.0], [0.1, 3.0]])
    >>> SphericalKMeans(2).fit(x).scores.argmax(axis=1).tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """

    n_units: int
    n_starts: int = 8
    name: ClassVar[str] = "spherical k-means of gradients"
    data: ClassVar[str] = "gradients"

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Cluster vectors (n, m), or Fishers with one row an example.

        Raises
        ------
        InvalidInputError
            More clusters than examples, NaN, several rows an example.
        """
        x = unit_rows(one_row_each(data, "gradients"))
        check_units(self.n_units, len(x))
        centres, value = _on_the_sphere(x, self.n_units, self.n_starts, seed)

        def embed(new: Any) -> FloatArray:
            y = check_same_columns(one_row_each(new, "gradients"), x.shape[1], "Gradients")
            return np.asarray(unit_rows(y) @ centres.T)

        facts = {**asdict(self), "mean_cosine": value / len(x)}
        return Units(scores=x @ centres.T, name=self.name, embed=embed, facts=facts)


@dataclass(frozen=True, slots=True)
class SpectralClustering:
    """Clusters of the leading eigenvectors of D^{-1/2}SD^{-1/2}, S_ij = 1 − arccos(cos_ij)/π.

    The similarity is the one of quanta discovery from gradients; new examples are embedded by
    Nyström's formula, so that they have scores too. Memory n².

    Attributes
    ----------
    n_units, n_starts : int

    References
    ----------
    Ng, Jordan & Weiss 2001; Michaud et al. 2023, "The quantization model of neural scaling",
    arXiv:2303.13506.
    """

    n_units: int
    n_starts: int = 8
    name: ClassVar[str] = "spectral clustering of gradients"
    data: ClassVar[str] = "gradients"

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Cluster vectors (n, m), or Fishers with one row an example.

        Raises
        ------
        InvalidInputError
            More clusters than examples, NaN, several rows an example.
        """
        x = unit_rows(one_row_each(data, "gradients"))
        check_units(self.n_units, len(x))
        S = _angular(x, x)
        root = 1.0 / np.sqrt(S.sum(axis=1))
        values, vectors = np.linalg.eigh(root[:, None] * S * root[None, :])
        lead, basis = values[-self.n_units :], vectors[:, -self.n_units :]
        back = root[:, None] * basis / np.where(lead > 1e-12, lead, np.inf)
        embedded = unit_rows(basis)
        centres, value = _on_the_sphere(embedded, self.n_units, self.n_starts, seed)

        def embed(new: Any) -> FloatArray:
            y = check_same_columns(one_row_each(new, "gradients"), x.shape[1], "Gradients")
            near = _angular(unit_rows(y), x)
            # The degree of a new example scales its row only, which unit_rows undoes.
            return np.asarray(unit_rows(near @ back) @ centres.T)

        facts = {**asdict(self), "mean_cosine": value / len(x)}
        return Units(scores=embedded @ centres.T, name=self.name, embed=embed, facts=facts)


@dataclass(frozen=True, slots=True)
class FisherKMeans:
    """K-means of normalised Fishers on the sphere, with ⟨F_i, F_j⟩ = ‖A_iA_jᵀ‖²_F or f_i·f_j.

    Centres are means of Fishers; nothing m × m is formed. Score: cos(F_i, C_k). Memory n² for
    low-rank Fishers.

    Attributes
    ----------
    n_units, n_starts : int
    """

    n_units: int
    n_starts: int = 8
    name: ClassVar[str] = "k-means of Fishers"
    data: ClassVar[str] = "fishers"

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Cluster LowRankFishers or DiagonalFishers.

        Raises
        ------
        InvalidInputError
            Something else than Fishers, or more clusters than examples.
        """
        if not isinstance(data, LowRankFishers | DiagonalFishers):
            raise InvalidInputError(
                f"A {type(data).__name__} was given; LowRankFishers or DiagonalFishers are taken."
            )
        check_units(self.n_units, len(data))
        if isinstance(data, DiagonalFishers):
            dense = _dense(data)
            units = SphericalKMeans(self.n_units, self.n_starts).fit(dense, seed=seed)
            facts = {**units.facts, "similarity": "f_i·f_j"}
            return Units(
                scores=units.scores, name=self.name, facts=facts,
                embed=lambda new: units.embed(_dense(new)),
            )  # fmt: skip
        size = np.sqrt(np.maximum(_self_products(data), np.finfo(float).tiny))
        K = _inner_products(data, data) / np.outer(size, size)
        assigned, value = _in_kernel(K, self.n_units, self.n_starts, seed)
        weights, scale = _centres(K, assigned, self.n_units)

        def embed(new: Any) -> FloatArray:
            if not isinstance(new, LowRankFishers):
                raise InvalidInputError(f"{new} were given; LowRankFishers are taken.")
            check_same_columns(np.zeros((1, new.n_columns)), data.n_columns, "Fishers")
            own = np.sqrt(np.maximum(_self_products(new), np.finfo(float).tiny))
            near = _inner_products(new, data) / np.outer(own, size)
            return np.asarray(near @ weights / scale)

        facts = {**asdict(self), "mean_cosine": value / len(data), "similarity": "<F_i, F_j>"}
        return Units(scores=K @ weights / scale, name=self.name, embed=embed, facts=facts)


def _on_the_sphere(x: FloatArray, k: int, n_starts: int, seed: int) -> tuple[FloatArray, float]:
    """Unit centres (k, m) and Σ_i max_k cos(x_i, c_k), the best of several k-means++ starts."""
    rng = np.random.default_rng(seed)
    best, best_value = x[:k], -np.inf
    for _ in range(max(1, n_starts)):
        centres = x[_spread(lambda i: x @ x[i], len(x), k, rng)]
        before = np.full(len(x), -1)
        for _ in range(MAX_STEPS):
            cosines = x @ centres.T
            assigned = cosines.argmax(axis=1)
            if np.array_equal(assigned, before):
                break
            before = assigned
            centres = _means(x, assigned, cosines, k)
        value = float((x @ centres.T).max(axis=1).sum())
        if value > best_value:
            best, best_value = centres, value
    return best, best_value


def _means(x: FloatArray, assigned: IntArray, cosines: FloatArray, k: int) -> FloatArray:
    """Unit means of the clusters; an empty one takes the example that fits its own worst."""
    sums = np.zeros((k, x.shape[1]))
    np.add.at(sums, assigned, x)
    empty = np.flatnonzero(np.bincount(assigned, minlength=k) == 0)
    if len(empty):
        worst = np.argsort(cosines.max(axis=1), kind="stable")
        sums[empty] = x[worst[: len(empty)]]
    return unit_rows(sums)


def _spread(similar: Any, n: int, k: int, rng: np.random.Generator) -> IntArray:
    """k-means++: each next centre is drawn with probability in proportion to its distance²."""
    chosen = [int(rng.integers(n))]
    far = np.full(n, np.inf)
    while len(chosen) < k:
        far = np.minimum(far, np.maximum(2.0 - 2.0 * similar(chosen[-1]), 0.0))
        far[chosen] = 0.0
        whole = far.sum()
        if whole > 0:
            chosen.append(int(rng.choice(n, p=far / whole)))
        else:
            chosen.append(int(rng.choice(np.setdiff1d(np.arange(n), chosen))))
    return np.array(chosen, dtype=np.int64)


def _in_kernel(K: FloatArray, k: int, n_starts: int, seed: int) -> tuple[IntArray, float]:
    """Clusters from a Gram matrix of unit vectors alone."""
    rng = np.random.default_rng(seed)
    best, best_value = np.zeros(len(K), dtype=np.int64), -np.inf
    for _ in range(max(1, n_starts)):
        start = _spread(lambda i: K[i], len(K), k, rng)
        assigned = K[:, start].argmax(axis=1)
        for _ in range(MAX_STEPS):
            weights, scale = _centres(K, assigned, k)
            new = (K @ weights / scale).argmax(axis=1)
            if np.array_equal(new, assigned):
                break
            assigned = new
        weights, scale = _centres(K, assigned, k)
        value = float((K @ weights / scale).max(axis=1).sum())
        if value > best_value:
            best, best_value = assigned, value
    return best, best_value


def _centres(K: FloatArray, assigned: IntArray, k: int) -> tuple[FloatArray, FloatArray]:
    """Membership weights (n, k) of the mean centres, and the centres' norms (k,)."""
    member = (assigned[:, None] == np.arange(k)).astype(np.float64)
    counts = member.sum(axis=0)
    weights = member / np.where(counts > 0, counts, 1.0)
    norms = np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", weights, K, weights, optimize=True), 0.0))
    return weights, np.where(norms > 0, norms, 1.0)


def _angular(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.asarray(1.0 - np.arccos(np.clip(x @ y.T, -1.0, 1.0)) / np.pi)


def _inner_products(a: LowRankFishers, b: LowRankFishers) -> FloatArray:
    """⟨F_i, F_j⟩ = ‖A_iB_jᵀ‖²_F (n, n')."""
    A, B = (to_numpy(f.rows).astype(np.float64) for f in (a, b))
    squares = segment_sum(np.square(A @ B.T), a.offsets)
    return np.ascontiguousarray(segment_sum(np.ascontiguousarray(squares.T), b.offsets).T)


def _self_products(a: LowRankFishers) -> FloatArray:
    """‖F_i‖²_F of the kept rows (n,)."""
    blocks = (to_numpy(a.block(i)).astype(np.float64) for i in range(len(a)))
    return np.array([float(np.square(A @ A.T).sum()) for A in blocks])


def _dense(fishers: Any) -> FloatArray:
    if not isinstance(fishers, DiagonalFishers):
        raise InvalidInputError(f"{fishers} were given; DiagonalFishers are taken.")
    values = fishers.values.toarray() if is_sparse(fishers.values) else to_numpy(fishers.values)
    return np.asarray(values, dtype=np.float64)
