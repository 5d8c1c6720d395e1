"""From a model and data to per-example Fishers, in batches of bounded memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from ..backend import BackendChoice, to_numpy
from ..errors import InvalidInputError, WriteFailedError
from ..model import ModelEngine, OutputDistribution, Site, engine_for
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
from .labels import ExactLabels, LabelRule
from .per_example import DiagonalFishers, LowRankFishers
from .ranks import Ranks, check_jobs, in_order
from .reduction import Reduction, ThinSVD, TopK, split_reductions
from .rows import Part, RowSource, joined
from .store import SHARD_EXAMPLES, FisherStore, Piece, StoreRun, data_digest, shard_pieces

KINDS = ("low_rank", "diagonal")
# A batch's rows take at most this many bytes unless the caller says how large a batch is.
BATCH_BYTES = 64 << 20
# A shard of ten classes takes at most about this many bytes, unless one example takes more.
SHARD_BYTES = 1 << 30
StorePath = str | os.PathLike[str]


class Options(TypedDict, total=False):
    """Arguments of :func:`per_example_fishers` on which its type does not depend."""

    labels: LabelRule | None
    output: OutputDistribution | None
    params: ParameterChoice
    reduce: Reduction | Sequence[Reduction] | None
    engine: str
    outputs_of: Callable[[Any, Any], Array] | None
    batch_size: int | None
    backend: BackendChoice
    device: Device
    seed: Seed
    n_jobs: int | None
    shard_examples: int | None
    callback: Callback | None


@overload
def per_example_fishers(
    model: Any,
    data: Any,
    *,
    kind: Literal["low_rank"] = ...,
    store: None = ...,
    **options: Unpack[Options],
) -> LowRankFishers: ...


@overload
def per_example_fishers(
    model: Any,
    data: Any,
    *,
    kind: Literal["diagonal"],
    store: None = ...,
    **options: Unpack[Options],
) -> DiagonalFishers: ...


@overload
def per_example_fishers(
    model: Any, data: Any, *, kind: str = ..., store: StorePath, **options: Unpack[Options]
) -> FisherStore: ...


@overload
def per_example_fishers(
    model: Any,
    data: Any,
    *,
    kind: str = ...,
    store: StorePath | None = ...,
    **options: Unpack[Options],
) -> LowRankFishers | DiagonalFishers | FisherStore: ...


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
    store: StorePath | None = None,
    shard_examples: int | None = None,
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
        :class:`FisherStore`; by default 256, and fewer where an example has many columns. The
        same call resumes after an interruption and gives the same bytes.
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
    rule = _checked(kind, labels)
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
    facts = {"output": derive.output.name, **rule.facts()}
    if isinstance(seed, int):
        facts["seed"] = seed
    for one in (projection, svd, top):
        facts.update({} if one is None else one.facts())
    batches, total = batched(data, _default_batch(derive) if batch_size is None else batch_size)
    work = _Work(
        kind=kind, source=RowSource(derive, rule, backend, device, projection, draws.key),
        draws=draws, columns=columns, svd=svd, top=top, facts=facts,
        sites=() if projection is not None else sites, total=total, n_jobs=n_jobs,
        callback=callback,
    )  # fmt: skip
    if store is None:
        return work.in_memory(batches)
    width = sites[-1].stop if projection is None else projection.dim
    run = StoreRun(
        path=store, identity=store_identity(work, sites, data), kind=kind,
        shard_examples=_shard_examples(shard_examples, width),
    )  # fmt: skip
    return work.stored(batches, run)


def _checked(kind: str, labels: LabelRule | None) -> LabelRule:
    """The label rule; kind and rule are ones that exist."""
    rule: LabelRule = ExactLabels() if labels is None else labels
    if kind not in KINDS:
        raise InvalidInputError(f"kind={kind!r} was given; accepted: {', '.join(KINDS)}.")
    if isinstance(rule, type) or not isinstance(rule, LabelRule):
        raise InvalidInputError(
            f"labels={labels!r} was given; a label rule such as ExactLabels() is accepted, or an "
            "object with the methods of fishertope.core.fisher.LabelRule. The data's own labels "
            "play no part in the Fisher; DataLabels() gives the empirical Fisher."
        )
    return rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is done with every batch, and what comes of all of them."""

    kind: str
    source: RowSource
    draws: Draws
    columns: Any
    svd: ThinSVD | None
    top: TopK | None
    facts: dict[str, Any]
    sites: tuple[Site, ...]
    total: int
    n_jobs: int | None
    callback: Callback | None

    def compute(self, start: int, stop: int, batch: Any) -> Part:
        """Rows or diagonals of the examples from ``start`` on."""
        inputs, targets = split_batch(batch)
        make = self.source.diagonal if self.kind == "diagonal" else self.source.low_rank
        part = make(inputs, replace(self.draws, first=start), targets)
        if self.columns is not None:
            part = part.restrict(self.columns)
        return part.reduced(self.svd, self.top)

    def in_memory(self, batches: Iterable[Any]) -> LowRankFishers | DiagonalFishers:
        """One object of all batches, or of those before the callback said stop."""
        parts: list[Part] = []
        done = 0

        def pieces() -> Iterator[Piece]:
            first = 0
            for batch in batches:
                yield first, 0, batch
                first += examples_of(batch)

        for part in in_order(self.compute, pieces(), self.n_jobs):
            parts.append(part)
            done += part.n
            if self._told(done):
                break
        if not parts:
            raise InvalidInputError("The data hold no example; give at least one.")
        derive = self.source.engine
        if hasattr(derive, "explanation"):
            self.facts["engine"] = derive.explanation
        return joined(parts, self.sites, self.facts)

    def stored(self, batches: Iterable[Any], run: StoreRun) -> FisherStore:
        """Fill the store; processes of one ``torchrun`` share the shards."""
        run.ranks = Ranks.of_environment()

        def numbered(start: int, stop: int, batch: Any) -> tuple[int, Part]:
            return stop, self.compute(start, stop, batch)

        def told(pieces: Iterator[Piece]) -> Iterator[tuple[int, Part]]:
            for number, (stop, part) in enumerate(in_order(numbered, pieces, self.n_jobs)):
                if number == 0:
                    _check_room(run, part, self.total - stop + part.n)
                yield stop, part
                if self._told(stop):
                    raise InvalidInputError(
                        f"The callback asked to stop after {stop} examples; the shards so far "
                        f"stay in {os.fspath(run.path)}, and the same call resumes."
                    )

        def cut(batch: Any, start: int, stop: int) -> Any:
            if isinstance(batch, list):
                return [cut_examples(x, start, stop) for x in batch]
            return cut_examples(batch, start, stop)

        pieces = shard_pieces(batches, run.shard_examples, cut, examples_of)
        return run.fill(pieces, told, lambda parts: joined(parts, self.sites, self.facts))

    def _told(self, done: int) -> bool:
        """Report progress; whether the callback asks to stop."""
        if self.callback is None:
            return False
        step = StepInfo(
            phase="Fishers", step=done, max_steps=self.total, loss=float("nan"),
            relative_loss=float("nan"), residual=float("nan"), products=float("nan"),
        )  # fmt: skip
        return self.callback(step) is True


def _shard_examples(wanted: int | None, width: int) -> int:
    """Examples in a shard: as asked for, else by the number of columns alone."""
    if wanted is not None:
        return check_count("shard_examples", wanted)
    return int(np.clip(SHARD_BYTES // (8 * width * 10), 1, SHARD_EXAMPLES))


def _check_room(run: StoreRun, part: Part, left: int) -> None:
    """Say after the first batch, not after hours, that the disk is too small.

    Raises
    ------
    WriteFailedError
        Naming what is needed, what there is, and what takes less.
    """
    needed = left * part.nbytes // max(1, part.n) // run.ranks.world
    free = shutil.disk_usage(Path(run.path)).free
    if needed > free:
        raise WriteFailedError(
            f"{os.fspath(run.path)} needs about {needed / 1e9:.3g} GB for {left} examples, and "
            f"{free / 1e9:.3g} GB are free. Project the rows (reduce=RandomProjection(2048), "
            "--reduce projection:2048), keep the largest entries of diagonals (TopK, --reduce "
            "top:K), choose parameters (params, --params), or give another folder."
        )


def store_identity(work: _Work, sites: tuple[Site, ...], data: Any) -> dict[str, Any]:
    """Everything that the numbers of a store depend on, in plain values."""
    engine: ModelEngine = work.source.engine
    return {
        **work.facts,
        "kind": work.kind,
        "dtype": str(to_numpy(engine.theta()).dtype),
        "model_sha256": model_digest(engine),
        "data_sha256": data_digest(data),
        "key": f"{work.draws.key:032x}",
        "engine": str(getattr(engine, "explanation", type(engine).__name__)),
        "parameters": [s.name for s in sites],
        "sites": [{"name": s.name, "shape": list(s.shape)} for s in work.sites],
    }


def _default_batch(engine: ModelEngine) -> int:
    p = engine.sites[-1].stop
    return int(np.clip(BATCH_BYTES // (8 * p * 10), 1, 4096))
