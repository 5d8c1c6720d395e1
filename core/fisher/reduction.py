"""Smaller columns or rows: top entries, random projections, thin SVD of each example.

Only inner products between rows enter the factorization, and a projection P with E[PPᵀ] = I keeps
them on average: E[(aP)·(bP)] = a·b, with a standard deviation of about ‖a‖‖b‖/√d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..types import Array, FloatArray, IntArray

PROJECTIONS = ("sparse", "gaussian", "rademacher")
# Parameters whose part of P is drawn together; fixed, as it decides which numbers are drawn.
_BLOCK = 1 << 12
# Rows of a table whose places are drawn together and kept.
_TABLE_ROWS = 1 << 10


@dataclass(frozen=True, slots=True)
class RandomProjection:
    """Rows times a random matrix P ∈ R^{p×d}, drawn block by block from the seed.

    Attributes
    ----------
    dim : int
        d, the number of columns left.
    kind : {"sparse", "gaussian", "rademacher"}
        "sparse": each parameter goes to ``spread`` random columns with random signs, so that a row
        costs O(p·spread). The dense kinds cost O(p·d).
    spread : int
        Entries of P for each parameter ("sparse" only).

    Raises
    ------
    InvalidInputError
        Another kind, ``dim`` < 1, or ``spread`` outside 1 to ``dim``.
    """

    dim: int
    kind: str = "sparse"
    spread: int = 2

    def __post_init__(self) -> None:
        if self.kind not in PROJECTIONS:
            raise InvalidInputError(
                f"kind={self.kind!r} was given; accepted: {', '.join(PROJECTIONS)}."
            )
        _check_count("dim", self.dim)
        _check_count("spread", self.spread)
        if self.kind == "sparse" and self.spread > self.dim:
            raise InvalidInputError(
                f"spread={self.spread} was given for dim={self.dim}; at most dim is accepted."
            )

    def facts(self) -> dict[str, Any]:
        """The options, as they are stored with the Fishers."""
        own = {"projection": self.kind, "dim": self.dim}
        return {**own, "spread": self.spread} if self.kind == "sparse" else own

    def sketch(self, key: int) -> Sketch:
        """The projection that belongs to a key of 128 bits."""
        return Sketch(self, key)


@dataclass(frozen=True, slots=True)
class FactoredProjection:
    """Inputs and output gradients of linear layers projected before they are multiplied.

    The gradient G = Σ_t δ_t a_tᵀ of a weight is replaced by Q_oᵀ G Q_i = Σ_t (Q_oᵀδ_t)(Q_iᵀa_t)ᵀ,
    with Q_o and Q_i random and E[QQᵀ] = I, so that G itself is never formed. A table of embeddings
    is such a layer over one-hot inputs, its rows on the side of Q_o. All layers are added into the
    same ``dim`` columns; other parameters go through a sparse :class:`RandomProjection`.
    Only the hooks engine can do it (see arXiv:2405.13954).

    Attributes
    ----------
    dim : int
        d = d_o·d_i with d_o and d_i as equal as whole numbers allow.

    Raises
    ------
    InvalidInputError
        ``dim`` < 1.
    """

    dim: int

    def __post_init__(self) -> None:
        _check_count("dim", self.dim)

    def facts(self) -> dict[str, Any]:
        """The options, as they are stored with the Fishers."""
        return {"projection": "factored", "dim": self.dim}

    @property
    def factors(self) -> tuple[int, int]:
        """(d_o, d_i) with d_o ≤ d_i and d_o·d_i = ``dim``."""
        smaller = next(d for d in range(int(self.dim**0.5), 0, -1) if self.dim % d == 0)
        return smaller, self.dim // smaller

    def sketch(self, key: int) -> Sketch:
        """The sparse projection of parameters that are no weights of linear layers."""
        return Sketch(RandomProjection(self.dim, spread=min(2, self.dim)), key)

    def factor(self, key: int, number: int, side: int, size: int) -> FloatArray:
        """Q (size, d_o or d_i) of site ``number``: Gaussian entries of variance 1/d."""
        d = self.factors[side]
        rng = _generator(key, (1 << 63) | number << 1 | side)
        return np.asarray(rng.standard_normal((size, d)) / d**0.5)


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest entries of each diagonal, as compressed rows with int64 columns.

    The share of the norm that is kept is in the facts (``captured_norm_mean``, ``..._min``).

    Attributes
    ----------
    k : int

    Raises
    ------
    InvalidInputError
        ``k`` < 1.
    """

    k: int

    def __post_init__(self) -> None:
        _check_count("k", self.k)

    def facts(self) -> dict[str, Any]:
        """The options, as they are stored with the Fishers."""
        return {"top_k": self.k}

    def select(self, values: Array) -> tuple[FloatArray, IntArray, FloatArray]:
        """Entries (n, k) and columns (n, k), ascending, of the largest; captured norms (n,).

        Ties at the bound are settled in favour of the lower column.
        """
        dense = to_numpy(values)
        k = min(self.k, dense.shape[1])
        columns = np.sort(np.argsort(-np.abs(dense), axis=1, kind="stable")[:, :k], axis=1)
        kept = np.take_along_axis(dense, columns, axis=1)
        whole = np.linalg.norm(dense.astype(np.float64, copy=False), axis=1)
        part = np.linalg.norm(kept.astype(np.float64), axis=1)
        share = np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)
        return kept, columns.astype(np.int64), share


@dataclass(frozen=True, slots=True)
class ThinSVD:
    """The leading singular directions of each example's rows: A_i ≈ Σ_r V_rᵀ.

    Attributes
    ----------
    rank : int
        Rows kept of each example, at most.

    Raises
    ------
    InvalidInputError
        ``rank`` < 1.
    """

    rank: int

    def __post_init__(self) -> None:
        _check_count("rank", self.rank)

    def facts(self) -> dict[str, Any]:
        """The options, as they are stored with the Fishers."""
        return {"svd_rank": self.rank}

    def apply(self, rows: Array) -> Array:
        """Rows (n, k, m) → (n, min(k, rank), m), F_i changed by its smallest eigenvalues only."""
        xp = array_namespace(rows)
        k = int(rows.shape[1])
        if k <= self.rank:
            return rows
        wide = xp.astype(rows, xp.float64)
        # The k×k Gram is small; its eigenvectors turn the rows without touching m.
        _, turn = xp.linalg.eigh(xp.matmul(wide, xp.permute_dims(wide, (0, 2, 1))))
        leading = xp.flip(turn[:, :, k - self.rank :], axis=2)
        return xp.astype(xp.matmul(xp.permute_dims(leading, (0, 2, 1)), wide), rows.dtype)


class Reduction(Protocol):
    """Anything that ``reduce=`` takes."""

    def facts(self) -> dict[str, Any]:
        """The options, as they are stored with the Fishers."""
        ...


class Sketch:
    """A random projection at work: adds blocks of columns into (n, d) without forming P."""

    def __init__(self, projection: RandomProjection, key: int) -> None:
        self.projection, self.key = projection, key
        self._places: dict[tuple[int, int, str], tuple[Array, Array]] = {}

    def add(self, out: Array, block: Array, start: int) -> None:
        """``out`` (n, d) += ``block`` (n, b) times rows start:start+b of P, in place."""
        stop = start + int(block.shape[1])
        if self.projection.kind != "sparse":
            for first in range(start - start % _BLOCK, stop, _BLOCK):
                low, high = max(first, start), min(first + _BLOCK, stop)
                P = like(self._dense(first)[low - first : high - first], block)
                xp = array_namespace(block)
                out += block[:, low - start : high - start] @ xp.astype(P, block.dtype)
            return
        columns, signs = self._sparse(start, stop, block)
        xp, scale = array_namespace(block), self.projection.spread**-0.5
        for s in range(self.projection.spread):
            # Kept small, used wide: torch adds by int64 places many times faster.
            signed = block * (xp.astype(signs[s], block.dtype) * scale)
            places = xp.astype(columns[s], xp.int64)
            if isinstance(out, np.ndarray):
                for i in range(len(out)):
                    out[i] += np.bincount(places, signed[i], minlength=out.shape[1])
            else:
                out.index_add_(1, places, signed)

    def add_rows(self, out: Array, owner: Array, token: Array, values: Array, start: int) -> None:
        """``out[owner[j]]`` += ``values[j]`` (w,) as row ``token[j]`` of a table at ``start``.

        For torch tensors and gradients that are zero but for a few rows of a table (V, w) of
        parameters, which is not formed. ``out`` must be contiguous.
        """
        m, w = values.shape
        if self.projection.kind != "sparse":
            for j in range(m):
                at = int(owner[j])
                self.add(out[at : at + 1], values[j : j + 1], start + int(token[j]) * w)
            return
        rows = -(-int(token.max()) // _TABLE_ROWS) * _TABLE_ROWS + _TABLE_ROWS if m else 0
        for first in range(0, rows, _TABLE_ROWS):
            here = (token >= first) & (token < first + _TABLE_ROWS)
            if not bool(here.any()):
                continue
            places = self._sparse(start + first * w, start + (first + _TABLE_ROWS) * w, values)
            inside, offset = token[here] - first, owner[here][:, None] * out.shape[1]
            for s in range(self.projection.spread):
                columns, signs = (part[s].reshape(_TABLE_ROWS, w)[inside] for part in places)
                signed = values[here] * signs * self.projection.spread**-0.5
                out.view(-1).index_add_(0, (columns + offset).reshape(-1), signed.reshape(-1))

    def matrix(self, p: int) -> FloatArray:
        """P (p, d) itself; for tests and small p."""
        out = np.zeros((p, self.projection.dim))
        self.add(out, np.eye(p), 0)
        return out

    def _dense(self, first: int) -> FloatArray:
        rng = _generator(self.key, first // _BLOCK)
        shape = (_BLOCK, self.projection.dim)
        if self.projection.kind == "gaussian":
            drawn = rng.standard_normal(shape)
        else:
            drawn = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        return np.asarray(drawn / self.projection.dim**0.5)

    def _sparse(self, start: int, stop: int, block: Array) -> tuple[Array, Array]:
        """Columns and signs (spread, b) of parameters start:stop, in few bytes, kept once drawn."""
        where = start, stop, f"{block.dtype} {getattr(block, 'device', '')}"
        if where not in self._places:
            spread, d = self.projection.spread, self.projection.dim
            columns, signs = [], []
            for first in range(start - start % _BLOCK, stop, _BLOCK):
                rng = _generator(self.key, first // _BLOCK)
                low, high = max(first, start) - first, min(first + _BLOCK, stop) - first
                # One column of each of ``spread`` ranges, so that none is taken twice.
                edges = np.linspace(0, d, spread + 1).astype(np.int64)
                width = np.diff(edges)[:, None]
                drawn = (rng.random((spread, _BLOCK)) * width).astype(np.int64) + edges[:-1, None]
                sign = np.where(rng.random((spread, _BLOCK)) < 0.5, -1, 1)
                columns.append(drawn[:, low:high].astype(np.int32))
                signs.append(sign[:, low:high].astype(np.int8))
            self._places[where] = (
                like(np.concatenate(columns, axis=1), block),
                like(np.concatenate(signs, axis=1), block),
            )
        return self._places[where]


def _generator(key: int, number: int) -> np.random.Generator:
    """The stream of one block under a key, apart from the streams of examples."""
    counter = (1 << 255) | (number << 128)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name}={value!r} was given; a whole number >= 1 is accepted.")


def split_reductions(
    reduce: Any, kind: str
) -> tuple[RandomProjection | FactoredProjection | None, ThinSVD | None, TopK | None]:
    """The projection, the thin SVD and the top entries among ``reduce``.

    Raises
    ------
    InvalidInputError
        For something else, one sort given twice, or one that does not fit the kind of Fishers.
    """
    given = [] if reduce is None else list(reduce) if isinstance(reduce, Sequence) else [reduce]
    projection: RandomProjection | FactoredProjection | None = None
    svd: ThinSVD | None = None
    top: TopK | None = None
    for one in given:
        fits = "diagonal" if isinstance(one, TopK) else "low_rank"
        if isinstance(one, RandomProjection | FactoredProjection) and projection is None:
            projection = one
        elif isinstance(one, ThinSVD) and svd is None:
            svd = one
        elif isinstance(one, TopK) and top is None:
            top = one
        else:
            raise InvalidInputError(
                f"reduce={reduce!r} was given; one projection (RandomProjection(dim) or "
                "FactoredProjection(dim)) and one ThinSVD(rank) for low-rank Fishers, or TopK(k) "
                "for diagonal ones, are taken."
            )
        if kind != fits:
            raise InvalidInputError(
                f"{type(one).__name__} was given for kind={kind!r}; it reduces {fits!r} Fishers."
            )
    return projection, svd, top
