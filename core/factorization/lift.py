"""From components over reduced columns to components over the model's parameters.

At a stationary point M G = (W̃∘B)ᵀA with M = V∘S, for reduced rows A and, if the reduction keeps
inner products of rows, for the complete rows A_full too. So G_full = M⁻¹(W̃∘B)ᵀA_full needs A_full
once: from stored rows, or not at all as rows. Row k of (W̃∘B)ᵀA_full is the gradient of the scalar
Σ_{i,c} κ_ic √p_ic log p_ic with κ and √p held constant, which is an ordinary backward pass over the
data, so that gradients of single examples are never formed.

Source: ours; the objective is that of Matena & Raffel 2023, arXiv:2310.04649.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..fisher.batches import (
    ParameterChoice,
    batched,
    choose_parameters,
    cut_examples,
    examples_of,
    model_digest,
    split_batch,
)
from ..fisher.draws import draws_of
from ..fisher.labels import ExactLabels, LabelRule
from ..fisher.per_example import TINY, LowRankFishers
from ..fisher.reduction import FactoredProjection, RandomProjection
from ..fisher.store import FisherStore
from ..model import OutputDistribution, engine_for
from ..model.sites import Site
from ..status import Callback, StepInfo
from ..types import Array, FloatArray, Seed
from .method import DiagonalNPEFF
from .result import Factorization

Rows = LowRankFishers | FisherStore
# Directions of M below this share of its largest eigenvalue belong to dead components.
RANK_TOL = 1e-10
BATCH_EXAMPLES = 32
# Rows of a lift through a model take at most this many bytes at a time.
ROW_BYTES = 256 << 20


def lift(
    factorization: Factorization,
    source: Any,
    data: Any = None,
    *,
    fitted: Rows | None = None,
    labels: LabelRule | None = None,
    output: OutputDistribution | None = None,
    params: ParameterChoice = None,
    reduce: RandomProjection | FactoredProjection | None = None,
    engine: str = "auto",
    outputs_of: Callable[[Any, Any], Array] | None = None,
    batch_size: int | None = None,
    seed: Seed | None = None,
    callback: Callback | None = None,
) -> Factorization:
    """The components over all parameters, G_full = (V∘S)⁻¹(W̃∘B)ᵀA_full, B = AGᵀ.

    Parameters
    ----------
    factorization : Factorization
        Of low rank; its examples are those of ``source`` or ``data``, in their order.
    source : model, LowRankFishers or FisherStore
        The model that the Fishers came from, with ``data``; or the complete rows of the same
        examples, read once.
    data
        As in :func:`per_example_fishers`.
    fitted : LowRankFishers or FisherStore, optional
        The reduced Fishers that were factorized, from which B follows. Without them B is computed
        again: by the same projection of the complete rows, or through the model.
    labels, output, params, engine, outputs_of
        As they were given to :func:`per_example_fishers`. Exact labels are taken from the
        provenance of the factorization.
    reduce, seed
        The projection and the seed, where the provenance does not tell them.
    batch_size : int, optional
        Examples at a time, 32 by default.
    callback : callable, optional
        Gets a :class:`StepInfo` after each batch; returning ``True`` raises.

    Returns
    -------
    Factorization
        Components (r, p) of unit norm in their old order, coefficients scaled to them, the sites
        of the model; losses remain those of the fit. ``facts["lifted"]`` says from how many
        columns.

    Raises
    ------
    InvalidInputError
        Diagonal factorizations, another model or number of examples, a label rule or projection
        that is not the one of the fit.

    Notes
    -----
    Cost: stored rows, one product; a model, its rows or r backward passes over the data, whichever
    is less, and B at the cost of
    the projected rows or of r forward-mode passes. Memory: the components.

    Examples
    --------
    >>> from fishertope import DenseNetwork, LowRankNPEFF, factorize, per_example_fishers
    >>> from fishertope.core.fisher import RandomProjection
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 30))], [np.zeros(3)])
    >>> x = rng.normal(size=(20, 30))
    >>> small = per_example_fishers(net, x, reduce=RandomProjection(64))
    >>> found = factorize(small, LowRankNPEFF(2), on_failure="return")
    >>> found.components.shape, found.lift(net, x).components.shape
    ((2, 64), (2, 93))
    """
    if isinstance(factorization.method, DiagonalNPEFF):
        raise InvalidInputError(
            "The components of a diagonal factorization are over all parameters already; lift is "
            "for LowRankNPEFF."
        )
    facts = dict(factorization.facts.get("fishers", {}))
    if isinstance(source, LowRankFishers | FisherStore):
        if data is not None:
            raise InvalidInputError(
                "Fishers and data were given; lift takes a model with data, or complete Fishers."
            )
        projection, key = _projection(facts, reduce, seed)
        pullback = _from_rows(factorization, source, fitted, projection, key, callback)
        sites = source.sites
    else:
        if data is None:
            raise InvalidInputError(
                f"A {type(source).__name__} was given without data; lift(model, data) takes the "
                "data that the Fishers came from, lift(fishers) complete rows."
            )
        options: dict[str, Any] = {} if engine == "auto" else {"engine": engine}
        if outputs_of is not None:
            options["outputs_of"] = outputs_of
        derive: Any = engine_for(source, output=output, **options)
        columns, sites = choose_parameters(derive.sites, params)
        if columns is not None and hasattr(derive, "restricted"):
            derive, columns = derive.restricted([s.name for s in sites]), None
        # As in per_example_fishers: of the parameters that the engine is restricted to.
        if facts.get("model_sha256", "") not in ("", model_digest(derive)):
            raise InvalidInputError(
                "These components come from a model with other parameters; give the model that "
                "the Fishers were computed from."
            )
        work = _ModelPass(factorization, derive, _rule(facts, labels), columns, facts)
        work.set_projection(*_projection(facts, reduce, seed))
        pullback = work.run(data, batch_size or BATCH_EXAMPLES, fitted, callback)
    return _solved(factorization, pullback, sites)


def _solved(found: Factorization, pullback: Array, sites: tuple[Site, ...]) -> Factorization:
    """G_full = M⁻¹·pullback with unit norms, in the old order; W scaled to match."""
    W = to_numpy(found.coefficients).astype(np.float64)
    G = to_numpy(found.components).astype(np.float64)
    M = (W.T @ W) * (G @ G.T)
    values, vectors = np.linalg.eigh(M)
    live = values > RANK_TOL * max(float(values[-1]), np.finfo(float).tiny)
    inverse = (vectors[:, live] / values[live]) @ vectors[:, live].T
    xp = array_namespace(pullback)
    full = xp.matmul(xp.astype(like(inverse, pullback), pullback.dtype), pullback)
    norms = xp.linalg.vector_norm(full, axis=1)
    full = full / xp.where(norms > 0, norms, xp.ones_like(norms))[:, None]
    largest = xp.argmax(xp.abs(full), axis=1)
    picked = to_numpy(full[xp.arange(len(G), device=getattr(full, "device", None)), largest])
    sign = np.where(picked < 0, -1.0, 1.0)
    full = full * xp.astype(like(sign, full), full.dtype)[:, None]
    scale = to_numpy(norms).astype(np.float64) ** 2
    W = (W * scale).astype(to_numpy(found.coefficients).dtype)
    facts = {**found.facts, "lifted": {"columns": int(G.shape[1]), "scale": scale.tolist()}}
    return found.replace(
        coefficients=like(W, found.coefficients),
        components=like(full, found.components),
        sites=sites,
        facts=facts,
    )


def _projection(
    facts: dict[str, Any], given: RandomProjection | FactoredProjection | None, seed: Seed | None
) -> tuple[RandomProjection | FactoredProjection | None, int]:
    """The projection of the fit and its key, from the provenance or as given.

    Raises
    ------
    InvalidInputError
        If what is given is not what the provenance says, or the seed is not known.
    """
    told: RandomProjection | FactoredProjection | None = None
    kind = facts.get("projection")
    if kind == "factored":
        told = FactoredProjection(int(facts["dim"]))
    elif kind is not None:
        spread = {"spread": int(facts["spread"])} if "spread" in facts else {}
        told = RandomProjection(int(facts["dim"]), kind, **spread)
    if given is not None and told is not None and given.facts() != told.facts():
        raise InvalidInputError(
            f"reduce={given!r} was given, but these components come from {told!r}."
        )
    used = told if given is None else given
    if used is None:
        return None, 0
    seed = facts.get("seed") if seed is None else seed
    if seed is None:
        raise InvalidInputError(
            f"The Fishers were projected by {used!r} with a seed that was not recorded; give the "
            "seed that per_example_fishers got, or fitted=, the projected Fishers."
        )
    return used, draws_of(seed).key


def _rule(facts: dict[str, Any], given: LabelRule | None) -> LabelRule:
    """The label rule of the fit.

    Raises
    ------
    InvalidInputError
        If it was not an exact one and none is given, or another one is given.
    """
    told = facts.get("labels", "exact")
    rule: LabelRule
    if given is not None:
        rule = given
    elif str(told).startswith("exact"):
        rule = ExactLabels(top=facts.get("top"), min_prob=float(facts.get("min_prob", 0.0)))
    else:
        raise InvalidInputError(
            f"The Fishers were made with {told!r} labels; give the same rule as labels=."
        )
    own = rule.facts()
    if "labels" in facts and any(facts.get(k) != v for k, v in own.items()):
        raise InvalidInputError(
            f"labels={rule!r} was given, but these components come from "
            f"{ {k: facts.get(k) for k in own} }."
        )
    return rule


def _weights(found: Factorization) -> FloatArray:
    """W_ik/ν_i (n, r): with the unscaled B it gives κ for unscaled rows."""
    W = to_numpy(found.coefficients).astype(np.float64)
    if found.method.normalize:
        live = found.norms > TINY
        W = W * np.divide(1.0, found.norms, out=np.ones_like(found.norms), where=live)[:, None]
    return W


def blocks_of(rows: Rows) -> Iterator[LowRankFishers]:
    """The Fishers of one shard after another, or all at once."""
    if isinstance(rows, LowRankFishers):
        yield rows
        return
    for block in rows.blocks():
        if not isinstance(block, LowRankFishers):
            raise InvalidInputError(f"{rows} holds diagonals; rows of low-rank Fishers are taken.")
        yield block


def _products(rows: Rows, G: Array) -> tuple[FloatArray, FloatArray]:
    """B = AGᵀ (h, r) of the Fishers that were factorized, and their offsets."""
    parts, counts = [], []
    for block in blocks_of(rows):
        if block.n_columns != G.shape[1]:
            raise InvalidInputError(
                f"fitted= has {block.n_columns} columns, the components {G.shape[1]}; give the "
                "Fishers that were factorized."
            )
        parts.append(to_numpy(block.rows).astype(np.float64) @ G.T)
        counts.append(block.ranks)
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _from_rows(
    found: Factorization,
    source: Rows,
    fitted: Rows | None,
    projection: RandomProjection | FactoredProjection | None,
    key: int,
    callback: Callback | None,
) -> Array:
    """(W̃∘B)ᵀA_full (r, p) in one pass over stored rows."""
    weights = _weights(found)
    G = to_numpy(found.components).astype(np.float64)
    known = None if fitted is None else _products(fitted, G)
    if known is not None and len(known[1]) != len(weights) + 1:
        raise InvalidInputError(
            f"fitted= has {len(known[1]) - 1} examples, the factorization {len(weights)}."
        )
    if known is None and isinstance(projection, FactoredProjection):
        raise InvalidInputError(
            "A FactoredProjection cannot be repeated from rows; give fitted=, the projected "
            "Fishers, or lift(model, data)."
        )
    total: Array = None
    done = 0
    for block in blocks_of(source):
        n, A = len(block), block.rows
        xp = array_namespace(A)
        if done + n > len(weights):
            break
        if known is not None:
            low, high = (int(known[1][i]) for i in (done, done + n))
            if not np.array_equal(np.diff(known[1][done : done + n + 1]), block.ranks):
                raise InvalidInputError(
                    "fitted= and the complete Fishers differ in their numbers of rows (a ThinSVD "
                    "turns rows); use lift(model, data), or Fishers that were only projected."
                )
            B = known[0][low:high]
        else:
            B = _projected_products(A, G, projection, key)
        kappa = np.repeat(weights[done : done + n], block.ranks, axis=0) * B
        part = xp.matmul(xp.astype(like(kappa, A), A.dtype).T, A)
        total = part if total is None else total + part
        done += n
        _tell(callback, done, len(weights))
    if done != len(weights) or total is None:
        raise InvalidInputError(
            f"The complete Fishers and the factorization ({len(weights)} examples) do not belong "
            "to the same examples; give them in the same order."
        )
    return total


def _projected_products(
    A: Array, G: FloatArray, projection: RandomProjection | FactoredProjection | None, key: int
) -> FloatArray:
    """B = A P Gᵀ (h, r), P the projection of the fit."""
    if not isinstance(projection, RandomProjection):
        if A.shape[1] != G.shape[1]:
            raise InvalidInputError(
                f"Fishers with {A.shape[1]} columns were given, the components have "
                f"{G.shape[1]}, and no projection is known between them; give fitted=."
            )
        return np.asarray(to_numpy(A).astype(np.float64) @ G.T)
    xp = array_namespace(A)
    out = xp.zeros((int(A.shape[0]), projection.dim), dtype=A.dtype)
    projection.sketch(key).add(out, A, 0)
    return np.asarray(to_numpy(out).astype(np.float64) @ G.T)


class _ModelPass:
    """(W̃∘B)ᵀA_full through the model: r backward passes a batch, no rows."""

    def __init__(
        self,
        found: Factorization,
        engine: Any,
        rule: LabelRule,
        columns: Any,
        facts: dict[str, Any],
    ) -> None:
        self.engine, self.rule, self.columns = engine, rule, columns
        self.weights = _weights(found)
        self.G = to_numpy(found.components).astype(np.float64)
        self.seed = facts.get("seed", 0)
        self.projection: RandomProjection | FactoredProjection | None = None
        self.key = 0

    def set_projection(
        self, projection: RandomProjection | FactoredProjection | None, key: int
    ) -> None:
        """The projection by which B is computed again."""
        self.projection, self.key = projection, key
        p = self.engine.sites[-1].stop if self.columns is None else len(self.columns)
        if projection is None and self.G.shape[1] != p:
            raise InvalidInputError(
                f"The components have {self.G.shape[1]} columns and the model {p} parameters, and "
                "no projection is known between them; give params= as it was given to "
                "per_example_fishers, and reduce= and seed=."
            )

    def run(
        self, data: Any, batch_size: int, fitted: Rows | None, callback: Callback | None
    ) -> Array:
        """Go through the data once."""
        known = None if fitted is None else _products(fitted, self.G)
        batches, _ = batched(data, batch_size)
        draws, n = draws_of(self.seed), len(self.weights)
        total: Array = None
        done = 0
        for batch in batches:
            stop = done + examples_of(batch)
            if stop > n:
                done = stop
                break
            inputs, targets = split_batch(batch)
            z = self.engine.predict(inputs)
            roots = self.rule.roots(self.engine.output, z, replace(draws, first=done), targets)
            B = self._products(inputs, roots, known, done, stop)
            kappa = self.weights[done:stop][:, None, :] * B
            for k, row in self._pulled_back(inputs, roots.values, kappa):
                if total is None:
                    xp = array_namespace(row)
                    device = getattr(row, "device", None)
                    shape = (len(self.G), int(row.shape[-1]))
                    total = xp.zeros(shape, dtype=row.dtype, device=device)
                total[k] += row
            done = stop
            _tell(callback, done, n)
        if done != n or total is None:
            raise InvalidInputError(
                f"The data do not hold the {n} examples of the factorization; give the data that "
                "the Fishers came from, in their order."
            )
        return total

    def _pulled_back(self, inputs: Any, U: Array, kappa: FloatArray) -> Iterator[tuple[Any, Array]]:
        """(W̃∘B)ᵀA_full of a batch, as (component or all of them, what to add).

        With fewer rows an example than components the rows themselves, a few examples at a time,
        cost less than a backward pass a component.
        """
        n, k = int(U.shape[0]), int(U.shape[1])
        if 2 * k > len(self.G) or not hasattr(self.engine, "rows"):
            for number, u in enumerate(self._cotangents(U, kappa)):
                row = self.engine.vjp(inputs, u)
                yield number, row if self.columns is None else row[self.columns]
            return
        xp = array_namespace(U)
        width = max(1, int(self.engine.sites[-1].stop) * k * U.dtype.itemsize)
        size = max(1, ROW_BYTES // width)
        weights = xp.astype(like(kappa, U), U.dtype)
        for start in range(0, n, size):
            stop = min(start + size, n)
            rows = self.engine.rows(cut_examples(inputs, start, stop), U[start:stop])
            flat = xp.reshape(rows, ((stop - start) * k, -1))
            flat = flat if self.columns is None else flat[:, self.columns]
            yield slice(None), xp.matmul(xp.reshape(weights[start:stop], (len(flat), -1)).T, flat)

    def _products(self, inputs: Any, roots: Any, known: Any, start: int, stop: int) -> FloatArray:
        """B (n, k, r), zero where an example has fewer rows."""
        n, k = len(roots.counts), int(roots.values.shape[1])
        out = np.zeros((n, k, len(self.G)))
        live = np.arange(k)[None, :] < roots.counts[:, None]
        if known is not None and np.array_equal(np.diff(known[1][start : stop + 1]), roots.counts):
            out[live] = known[0][int(known[1][start]) : int(known[1][stop])]
            return out
        if self.projection is not None:
            rows = self._projected(inputs, roots.values)
            out[:] = to_numpy(rows).astype(np.float64) @ self.G.T
        else:
            theta = self.engine.theta()
            for j, g in enumerate(self.G):
                moved = to_numpy(self.engine.jvp(inputs, self._direction(theta, g)))
                U = to_numpy(roots.values).astype(np.float64)
                out[:, :, j] = np.einsum("nkc,nc->nk", U, moved.astype(np.float64))
        return np.asarray(out * live[:, :, None])

    def _direction(self, theta: Array, g: FloatArray) -> Array:
        whole = g
        if self.columns is not None:
            whole = np.zeros(int(theta.shape[0]))
            whole[self.columns] = g
        return array_namespace(theta).astype(like(whole, theta), theta.dtype)

    def _projected(self, inputs: Any, U: Array) -> Array:
        if hasattr(self.engine, "projected"):
            return self.engine.projected(inputs, U, self.projection, self.key)
        if not isinstance(self.projection, RandomProjection):
            raise InvalidInputError(
                "A FactoredProjection needs a torch.nn.Module; give the model of the fit."
            )
        rows = self.engine.rows(inputs, U)
        xp = array_namespace(rows)
        n, k = int(rows.shape[0]), int(rows.shape[1])
        out = xp.zeros((n * k, self.projection.dim), dtype=rows.dtype)
        self.projection.sketch(self.key).add(out, xp.reshape(rows, (n * k, -1)), 0)
        return xp.reshape(out, (n, k, self.projection.dim))

    def _cotangents(self, U: Array, kappa: FloatArray) -> Iterable[Array]:
        """u^k_i = Σ_j κ_ijk U_ij (n, C) for each component."""
        xp = array_namespace(U)
        weights = xp.astype(like(kappa, U), U.dtype)
        for k in range(len(self.G)):
            yield xp.sum(weights[:, :, k][:, :, None] * U, axis=1)


def _tell(callback: Callback | None, done: int, n: int) -> None:
    if callback is None:
        return
    nan = float("nan")
    info = StepInfo(
        phase="lift", step=done, max_steps=n, loss=nan, relative_loss=nan, residual=nan,
        products=nan,
    )  # fmt: skip
    if callback(info) is True:
        raise InvalidInputError(
            f"The callback asked to stop after {done} of {n} examples; a part of the components "
            "cannot be used, so nothing is returned."
        )
