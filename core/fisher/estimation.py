"""From a model and data to per-example Fishers, in batches of bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..backend import BackendChoice, Kernel, enter, to_numpy
from ..errors import InvalidInputError
from ..model import (
    DenseEngine,
    ModelEngine,
    OutputDistribution,
    Site,
    engine_for,
)
from ..status import Callback, StepInfo
from ..storage.shards import check_count
from ..types import Array, Device, Seed
from .batches import (
    ParameterChoice,
    batched,
    choose_parameters,
    cut_examples,
    examples_of,
    model_digest,
    split_batch,
)
from .draws import Draws, draws_of
from .labels import ExactLabels, LabelRoots, LabelRule
from .per_example import DiagonalFishers, LowRankFishers, frobenius_norms
from .ranks import Ranks, check_jobs, in_order
from .reduction import (
    FactoredProjection,
    RandomProjection,
    Reduction,
    ThinSVD,
    TopK,
    split_reductions,
)
from .store import SHARD_EXAMPLES, FisherStore, Piece, StoreRun, data_digest, shard_pieces

KINDS = ("low_rank", "diagonal")
# A batch's rows take at most this many bytes unless the caller says how large a batch is.
BATCH_BYTES = 64 << 20


def per_example_fishers(
    model: Any,
    data: Any,
    *,
    kind: str = "low_rank",
    labels: LabelRule | None = None,
    output: OutputDistribution | None = None,
    params: ParameterChoice = None,
    reduce: Reduction | Sequence[Reduction] | None = None,
    engine: str = "auto",
    outputs_of: Callable[[Any, Any], Array] | None = None,
    batch_size: int | None = None,
    backend: BackendChoice = "auto",
    device: Device = None,
    seed: Seed = 0,
    n_jobs: int | None = None,
    store: str | os.PathLike[str] | None = None,
    shard_examples: int = SHARD_EXAMPLES,
    callback: Callback | None = None,
) -> LowRankFishers | DiagonalFishers | FisherStore:
    """The Fisher information matrix of each example, F(x) = E_{y~p(·|x)}[∇log p ∇log pᵀ].

    Parameters
    ----------
    model : object
        A fitted scikit-learn MLP, a :class:`DenseNetwork`, a ``torch.nn.Module``, a
        :class:`ModelEngine`, or anything with a registered engine.
    data : array (n, ...), mapping of arrays, pair (inputs, labels), or iterable of batches
        The labels of the expectation come from the model itself; those of the data are used by
        ``DataLabels()`` alone. A batch is inputs, (inputs, labels), or a mapping by the names of
        the model's arguments.
    kind : {"low_rank", "diagonal"}
        Rows A_i with F_i = A_iᵀA_i, or diag F_i.
    labels : LabelRule, optional
        ``ExactLabels()`` unless told otherwise.
    output : OutputDistribution, optional
        What the model's outputs mean; the engine's own default otherwise.
    params : str, sequence of str, or callable, optional
        Which parameters: names or glob patterns ("layers.1.*", "*bias"), or a function of the
        name. All of them by default.
    reduce : reduction or sequence of these, optional
        ``RandomProjection(dim)`` or ``FactoredProjection(dim)``, ``ThinSVD(rank)`` after it, or
        ``TopK(k)`` for diagonals. The norms are then those of the projected rows.
    engine : {"auto", "hooks", "functional"}
        How a ``torch.nn.Module`` is differentiated; "auto" takes hooks where every chosen
        parameter belongs to a layer that has a rule. Which way it went is in the facts.
    outputs_of : callable, optional
        ``outputs_of(returned, inputs)`` turns what a ``torch.nn.Module`` returns into z (n, C).
    batch_size : int, optional
        Examples at a time; chosen for about 64 MiB of rows otherwise. Changes nothing but memory.
    backend, device
        See :func:`select_backend`.
    seed : int or numpy.random.Generator
        For label rules that draw.
    n_jobs : int, optional
        Workers of joblib that share the batches of a dense network (NumPy, numba); -1 for all
        cores. Changes nothing but speed. ``joblib.parallel_config`` chooses another kind of
        workers, such as Dask's.
    store : path, optional
        Write shards of ``shard_examples`` examples into this folder and return them as a
        :class:`FisherStore`. The same call resumes after an interruption and gives the same bytes.
        Under ``torchrun`` (RANK and WORLD_SIZE in the environment) each process writes its own
        shards, and the last one the manifest. An iterable of batches may bring an attribute
        ``data_sha256``, by which the store knows its data.
    callback : callable, optional
        Gets a :class:`StepInfo` after each batch (``loss`` is not meaningful and NaN); returning
        ``True`` stops, and the Fishers of the batches so far come back.

    Returns
    -------
    LowRankFishers, DiagonalFishers, or FisherStore with ``store``
        In the dtype of the model.

    Raises
    ------
    EngineNotFound
        No engine for this type of model.
    InvalidInputError
        Wrong input shapes, NaN, no data, no parameter of that name, something else than a label
        rule, or an engine together with another ``output`` than its own.

    Notes
    -----
    Cost with exact labels: C − 1 backward passes an example, done for a batch at once.

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope.core.model import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    >>> per_example_fishers(net, rng.normal(size=(5, 4)))
    LowRankFishers(n=5, rows=10, columns=15, float64)
    """
    rule: LabelRule = ExactLabels() if labels is None else labels
    if kind not in KINDS:
        raise InvalidInputError(f"kind={kind!r} was given; accepted: {', '.join(KINDS)}.")
    if isinstance(rule, type) or not isinstance(rule, LabelRule):
        raise InvalidInputError(
            f"labels={labels!r} was given; a label rule such as ExactLabels() is accepted, or an "
            "object with the methods of fishertope.core.fisher.LabelRule. The data's own labels "
            "play no part in the Fisher; DataLabels() gives the empirical Fisher."
        )
    options: dict[str, Any] = {} if engine == "auto" else {"engine": engine}
    if outputs_of is not None:
        options["outputs_of"] = outputs_of
    derive: Any = engine_for(model, output=output, **options)
    check_jobs(derive, n_jobs)
    columns, sites = choose_parameters(derive.sites, params)
    if columns is not None and hasattr(derive, "restricted"):
        # Engines of large models never form the columns that are not asked for.
        derive, columns = derive.restricted([s.name for s in sites]), None
    projection, svd, top = split_reductions(reduce, kind)
    draws = draws_of(seed)
    source = _RowSource(derive, rule, backend, device, projection, draws.key)
    make = source.diagonal if kind == "diagonal" else source.low_rank
    facts = {"output": derive.output.name, **rule.facts()}
    if isinstance(seed, int):
        facts["seed"] = seed
    for one in (projection, svd, top):
        facts.update({} if one is None else one.facts())
    parts: list[Any] = []
    batches, total = batched(data, _default_batch(derive) if batch_size is None else batch_size)
    kept_sites = () if projection is not None else sites

    def compute(start: int, stop: int, batch: Any) -> Part:
        inputs, targets = split_batch(batch)
        part = make(inputs, replace(draws, first=start), targets)
        if columns is not None:
            part = part.restrict(columns)
        return part.reduced(svd, top)

    if store is not None:
        identity = store_identity(derive, kind, facts, kept_sites, sites, data, draws)
        return _stored(
            StoreRun(path=store, identity=identity, kind=kind, shard_examples=shard_examples),
            batches, total, compute, lambda parts: joined(parts, kept_sites, facts), callback,
            n_jobs,
        )  # fmt: skip
    done = 0

    def pieces() -> Iterator[Piece]:
        first = 0
        for batch in batches:
            yield first, 0, batch
            first += examples_of(batch)

    for part in in_order(compute, pieces(), n_jobs):
        parts.append(part)
        done += part.n
        if callback is not None and callback(_progress(done, total)) is True:
            break
    if not parts:
        raise InvalidInputError("The data hold no example; give at least one.")
    if hasattr(derive, "explanation"):
        facts["engine"] = derive.explanation
    return joined(parts, kept_sites, facts)


def _progress(done: int, total: int) -> StepInfo:
    return StepInfo(
        phase="Fishers", step=done, max_steps=total, loss=float("nan"),
        relative_loss=float("nan"), residual=float("nan"), products=float("nan"),
    )  # fmt: skip


def _stored(
    run: StoreRun,
    batches: Iterable[Any],
    total: int,
    compute: Callable[[int, int, Any], Part],
    join: Callable[[list[Part]], LowRankFishers | DiagonalFishers],
    callback: Callback | None,
    n_jobs: int | None,
) -> FisherStore:
    """Fill the store; processes of one ``torchrun`` share the shards."""
    run.shard_examples = check_count("shard_examples", run.shard_examples)
    run.ranks = Ranks.of_environment()

    def numbered(start: int, stop: int, batch: Any) -> tuple[int, Part]:
        return stop, compute(start, stop, batch)

    def told(pieces: Iterator[Piece]) -> Iterator[tuple[int, Part]]:
        for stop, part in in_order(numbered, pieces, n_jobs):
            yield stop, part
            if callback is not None and callback(_progress(stop, total)) is True:
                raise InvalidInputError(
                    f"The callback asked to stop after {stop} examples; the shards so far stay in "
                    f"{os.fspath(run.path)}, and the same call resumes."
                )

    def cut(batch: Any, start: int, stop: int) -> Any:
        if isinstance(batch, list):
            return [cut_examples(x, start, stop) for x in batch]
        return cut_examples(batch, start, stop)

    return run.fill(shard_pieces(batches, run.shard_examples, cut, examples_of), told, join)


def store_identity(
    engine: ModelEngine,
    kind: str,
    facts: Mapping[str, Any],
    kept_sites: tuple[Site, ...],
    sites: tuple[Site, ...],
    data: Any,
    draws: Draws,
) -> dict[str, Any]:
    """Everything that the numbers of a store depend on, in plain values."""
    return {
        **facts,
        "kind": kind,
        "dtype": str(to_numpy(engine.theta()).dtype),
        "model_sha256": model_digest(engine),
        "data_sha256": data_digest(data),
        "key": f"{draws.key:032x}",
        "engine": str(getattr(engine, "explanation", type(engine).__name__)),
        "parameters": [s.name for s in sites],
        "sites": [{"name": s.name, "shape": list(s.shape)} for s in kept_sites],
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Rows (h, m) with their counts, or diagonals (n, m), of one batch."""

    values: Array
    counts: Any = None
    norms: Any = None
    kept: Any = None

    @property
    def n(self) -> int:
        """Examples in the batch."""
        if self.counts is not None:
            return len(self.counts)
        return len(self.values[0] if isinstance(self.values, tuple) else self.values)

    def restrict(self, columns: Any) -> Part:
        """Some columns only; norms are those of the selected parameters."""
        values = self.values[:, columns]
        norms = None
        if self.counts is not None:
            norms = frobenius_norms(values, np.concatenate([[0], np.cumsum(self.counts)]))
        return Part(values=values, counts=self.counts, norms=norms, kept=self.kept)

    def reduced(self, svd: ThinSVD | None, top: TopK | None) -> Part:
        """Fewer rows an example, or the largest entries of the diagonals as (entries, columns)."""
        if top is not None:
            return replace(self, values=top.select(self.values))
        if svd is None or self.counts is None:
            return self
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        xp = array_namespace(self.values)
        blocks = [svd.apply(self.values[int(a) : int(b)][None])[0] for a, b in pairwise(offsets)]
        counts = np.array([int(block.shape[0]) for block in blocks], dtype=np.int64)
        return replace(self, values=xp.concat(blocks, axis=0), counts=counts)


class _RowSource:
    """Computes the rows or diagonals of a batch: by kernel where there is one, else by engine."""

    def __init__(
        self,
        engine: ModelEngine,
        rule: LabelRule,
        backend: BackendChoice,
        device: Device,
        projection: RandomProjection | FactoredProjection | None = None,
        key: int = 0,
    ) -> None:
        # Any: some engines can do more than the protocol asks for.
        self.engine: Any = engine
        self.rule = rule
        self.backend, self.device = backend, device
        self.projection, self.key = projection, key
        plain = isinstance(rule, ExactLabels) and rule.complete
        by_kernel = isinstance(engine, DenseEngine) and engine.output.name in (
            "categorical",
            "gaussian",
        )
        self.dense = engine if by_kernel and plain and isinstance(engine, DenseEngine) else None

    def low_rank(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        """Rows of a batch."""
        if self.projection is not None:
            return self._projected(batch, draws, targets)
        if self.dense is not None:
            A = self._kernel(Kernel.DENSE_FISHER_ROWS, batch, reduced=True)
            counts = np.full(int(A.shape[0]), int(A.shape[1]), dtype=np.int64)
            kept = np.ones(len(counts))
        else:
            roots = self._roots(batch, draws, targets)
            A = self.engine.rows(batch, roots.values)
            counts, kept = roots.counts, np.asarray(roots.kept)
        return self._flat(A, counts, kept)

    def _projected(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        roots = self._roots(batch, draws, targets)
        projection, width = self.projection, 0 if self.projection is None else self.projection.dim
        if hasattr(self.engine, "projected"):
            A = self.engine.projected(batch, roots.values, projection, self.key)
        elif isinstance(projection, RandomProjection):
            rows = self.engine.rows(batch, roots.values)
            xp = array_namespace(rows)
            lead = (int(rows.shape[0]), int(rows.shape[1]))
            A = xp.zeros((lead[0] * lead[1], width), dtype=rows.dtype)
            projection.sketch(self.key).add(A, xp.reshape(rows, (lead[0] * lead[1], -1)), 0)
            A = xp.reshape(A, (*lead, width))
        else:
            raise InvalidInputError(
                "FactoredProjection was given for a model that is no torch.nn.Module; use "
                f"RandomProjection({width})."
            )
        return self._flat(A, roots.counts, np.asarray(roots.kept))

    def _flat(self, A: Array, counts: Any, kept: Any) -> Part:
        flat = A.reshape((-1, A.shape[2]))
        if (counts != A.shape[1]).any():
            live = np.arange(int(A.shape[1]))[None, :] < counts[:, None]
            flat = flat[np.flatnonzero(live.reshape(-1))]
        norms = frobenius_norms(flat, np.concatenate([[0], np.cumsum(counts)]))
        return Part(values=flat, counts=counts, norms=norms, kept=kept)

    def diagonal(self, batch: Any, draws: Draws, targets: Array | None) -> Part:
        """Diagonals of a batch."""
        if self.dense is not None:
            return Part(values=self._kernel(Kernel.DENSE_FISHER_DIAGONAL, batch))
        roots = self._roots(batch, draws, targets)
        if hasattr(self.engine, "diagonal"):
            values = self.engine.diagonal(batch, roots.values)
            return Part(values=values, kept=roots.kept)
        A = self.engine.rows(batch, roots.values)
        xp = array_namespace(A)
        return Part(values=xp.sum(A * A, axis=1), kept=roots.kept)

    def _roots(self, batch: Any, draws: Draws, targets: Array | None) -> LabelRoots:
        z = self.engine.predict(batch)
        return self.rule.roots(self.engine.output, z, draws, targets)

    def _kernel(self, kernel: Kernel, batch: Array, **options: Any) -> Array:
        engine = self.dense
        if engine is None:
            raise InvalidInputError("The dense kernels need a dense network.")
        theta = engine.theta()
        inputs = engine.checked(batch)
        door = enter(theta, inputs, backend=self.backend, device=self.device, kernel=kernel)
        scale = getattr(engine.output, "variance", 1.0)
        values = door.backend[kernel](
            *door.arrays,
            sizes=engine.network.sizes,
            activation=engine.network.activation,
            output=engine.output.name,
            **options,
        )
        if scale != 1.0:
            values = values / (scale if kernel is not Kernel.DENSE_FISHER_ROWS else scale**0.5)
        return door.out(values)


def joined(
    parts: Sequence[Part], sites: tuple[Site, ...], facts: dict[str, Any]
) -> LowRankFishers | DiagonalFishers:
    """The batches one after another."""
    if isinstance(parts[0].values, tuple):
        return _compressed(parts, sites, facts)
    xp = array_namespace(parts[0].values)
    values = parts[0].values if len(parts) == 1 else xp.concat([p.values for p in parts], axis=0)
    if parts[0].kept is not None:
        kept = np.concatenate([p.kept for p in parts])
        facts = {**facts, "kept_mass_mean": float(kept.mean()), "kept_mass_min": float(kept.min())}
    if parts[0].counts is None:
        return DiagonalFishers(values=values, sites=sites, facts=facts)
    counts = np.concatenate([p.counts for p in parts])
    return LowRankFishers(
        rows=values,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        norms=np.concatenate([p.norms for p in parts]),
        sites=sites,
        facts=facts,
    )


def _compressed(
    parts: Sequence[Part], sites: tuple[Site, ...], facts: dict[str, Any]
) -> DiagonalFishers:
    """The largest entries of each diagonal as compressed rows."""
    from scipy.sparse import csr_array

    entries, columns, share = (np.concatenate([p.values[i] for p in parts]) for i in range(3))
    n, k = entries.shape
    offsets = np.arange(n + 1, dtype=np.int64) * k
    values = csr_array(
        (entries.reshape(-1), columns.reshape(-1), offsets), shape=(n, sites[-1].stop)
    )
    captured = {"captured_norm_mean": float(share.mean()), "captured_norm_min": float(share.min())}
    return DiagonalFishers(values=values, sites=sites, facts={**facts, **captured})


def _default_batch(engine: ModelEngine) -> int:
    p = engine.sites[-1].stop
    return int(np.clip(BATCH_BYTES // (8 * p * 10), 1, 4096))
