"""From a model and data to the precision of its parameters, in one streaming pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..model import ModelEngine, OutputDistribution, engine_for
from ..status import Callback, StepInfo
from ..types import Array, FloatArray, Seed
from .batches import ParameterChoice, batched, choose_parameters, examples_of, split_batch
from .draws import draws_of
from .labels import ExactLabels, LabelRule
from .precision import STRUCTURES, PrecisionTree
from .ranks import ProcessGroup, Ranks, check_jobs, in_order, process_group
from .structures import Diagonal, Isotropic, Precision

BATCH_EXAMPLES = 32


def estimate_precision(
    model: Any,
    data: Any,
    *,
    structure: str = "diagonal",
    labels: LabelRule | None = None,
    output: OutputDistribution | None = None,
    params: ParameterChoice = None,
    engine: str = "auto",
    outputs_of: Callable[[Any, Any], Array] | None = None,
    batch_size: int | None = None,
    relative_error: float | None = None,
    seed: Seed = 0,
    n_jobs: int | None = None,
    callback: Callback | None = None,
) -> PrecisionTree:
    """The Fisher of a data set, P = (1/N) Σ_i F(x_i), in a structure that can be kept and merged.

    Parameters
    ----------
    model, data, output, params, engine, outputs_of, seed, n_jobs
        As in :func:`per_example_fishers`.
    structure : {"diagonal", "isotropic"}
        diag P, or the mean of the diagonal over each site.
    labels : LabelRule, optional
        ``ExactLabels()`` unless told otherwise; ``DataLabels()`` gives the empirical Fisher.
    batch_size : int, optional
        Examples at a time, 32 by default. Changes memory and speed, and where ``relative_error``
        looks; the numbers to rounding of the model's dtype only.
    relative_error : float, optional
        Stop after the batch at which the standard error of the whole trace has fallen to this
        share of it (from 32 examples on); how many examples were used is in the result.
    callback : callable, optional
        Gets a :class:`StepInfo` after each batch; ``residual`` is the relative standard error.
        Returning ``True`` stops with the mean so far.

    Returns
    -------
    PrecisionTree
        In float64, whatever the dtype of the model.

    Raises
    ------
    EngineNotFound
        No engine for this type of model.
    InvalidInputError
        Another structure, something else than a label rule, wrong inputs, NaN, or no data.
    RankLostError
        Under ``torchrun``, when another process was killed.

    Notes
    -----
    Sums run in float64 over batches. With exact labels over C classes C − 1 backward passes to the
    activations; a linear layer that sees one position an example then takes one product of squares,
    (Σ_c δ_c∘δ_c)ᵀ(a∘a), whatever C. Otherwise the gradients of a few examples at a time are formed.
    Under ``torchrun`` the processes share the batches, and each gets the same tree.
    Source: arXiv:2111.09832, where it is the precision of diagonal Fisher merging.

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope.core.model import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    >>> tree = estimate_precision(net, rng.normal(size=(50, 4)))
    >>> list(tree), tree.n_examples, tree.structure
    (['layers.0.weight', 'layers.0.bias'], 50, 'diagonal')
    """
    rule: LabelRule = ExactLabels() if labels is None else labels
    if structure not in STRUCTURES:
        raise InvalidInputError(
            f"structure={structure!r} was given; accepted: {', '.join(STRUCTURES)}."
        )
    if isinstance(rule, type) or not isinstance(rule, LabelRule):
        raise InvalidInputError(
            f"labels={labels!r} was given; a label rule such as ExactLabels() is accepted."
        )
    if relative_error is not None and not 0 < relative_error < 1:
        raise InvalidInputError(
            f"relative_error={relative_error} was given; None or a number between 0 and 1 is "
            "accepted."
        )
    options: dict[str, Any] = {} if engine == "auto" else {"engine": engine}
    if outputs_of is not None:
        options["outputs_of"] = outputs_of
    derive: Any = engine_for(model, output=output, **options)
    check_jobs(derive, n_jobs)
    columns, sites = choose_parameters(derive.sites, params)
    if columns is not None and hasattr(derive, "restricted"):
        derive, columns = derive.restricted([s.name for s in sites]), None
    draws = draws_of(seed)
    batches, total = batched(data, BATCH_EXAMPLES if batch_size is None else batch_size)
    sums = _Sums([(s.start, s.stop) for s in sites])
    ranks = Ranks.of_environment()
    if ranks.world > 1 and relative_error is not None:
        raise InvalidInputError(
            f"relative_error={relative_error} was given to {ranks.world} processes; the stopping "
            "rule is for one process. Leave it out, or unset RANK and WORLD_SIZE."
        )

    def work(inputs: Any, targets: Any, first: int) -> tuple[FloatArray, FloatArray]:
        seen = replace(draws, first=first)

        def roots(z: Array) -> Array:
            return rule.roots(derive.output, z, seen, targets).values

        return _batch_sums(derive, inputs, roots, columns, sums.parts)

    def own() -> Iterator[tuple[Any, Any, int]]:
        first = 0
        for number, batch in enumerate(batches):
            if ranks.takes(number):
                yield *split_batch(batch), first
            first += examples_of(batch)

    with process_group(ranks) as group:
        for one in in_order(work, own(), n_jobs):
            sums.add(*one)
            if callback is not None and callback(_progress(sums, ranks, total)) is True:
                break
            enough = relative_error is not None and sums.n >= BATCH_EXAMPLES
            if enough and sums.relative_error <= (relative_error or 0.0):
                break
        if group is not None:
            sums.add_up(group)
    if not sums.n:
        raise InvalidInputError("The data hold no example; give at least one.")
    facts = {"output": derive.output.name, **rule.facts(), "model_sha256": model_digest(derive)}
    if isinstance(seed, int):
        facts["seed"] = seed
    facts["engine"] = str(getattr(derive, "explanation", type(derive).__name__))
    precisions: dict[str, Precision] = {}
    mean = sums.total / sums.n
    for site in sites:
        f = mean[site.start : site.stop].reshape(site.shape)
        one = Diagonal(f)
        precisions[site.name] = (
            one if structure == "diagonal" else Isotropic(float(f.mean()), site.shape)
        )
    errors = dict(zip([s.name for s in sites], sums.errors.tolist(), strict=True))
    return PrecisionTree(sites=precisions, n_examples=sums.n, trace_errors=errors, facts=facts)


def model_digest(engine: ModelEngine) -> str:
    """SHA-256 of the bytes of θ, by which files know their model."""
    theta = np.ascontiguousarray(to_numpy(engine.theta()))
    return hashlib.sha256(theta.reshape(-1).view(np.uint8).data).hexdigest()


class _Sums:
    """Σ diagonals, and the spread of each site's trace over examples."""

    def __init__(self, parts: list[tuple[int, int]]) -> None:
        self.parts, self.n = parts, 0
        self.total: FloatArray = np.zeros(parts[-1][1])
        self._traces: list[FloatArray] = []

    def add(self, total: FloatArray, traces: FloatArray) -> None:
        self.total += total
        self._traces.append(traces)
        self.n += len(traces)

    def add_up(self, group: ProcessGroup) -> None:
        """The sums of all processes, in each of them."""
        own = np.concatenate([np.zeros((0, len(self.parts))), *self._traces])
        self._traces = group.gather(own)
        self.total = group.sum(self.total)
        self.n = sum(len(t) for t in self._traces)

    @property
    def errors(self) -> FloatArray:
        """Standard errors of the mean traces of the sites."""
        if self.n < 2:
            return np.full(len(self.parts), np.nan)
        return np.asarray(np.concatenate(self._traces).std(0, ddof=1) / self.n**0.5)

    @property
    def relative_error(self) -> float:
        """Standard error of the whole trace over its mean."""
        whole = np.concatenate(self._traces).sum(1)
        if self.n < 2:
            return float("nan")
        mean = float(whole.mean())
        return float(whole.std(ddof=1)) / self.n**0.5 / mean if mean > 0 else 0.0


def _batch_sums(
    engine: Any,
    inputs: Any,
    roots: Callable[[Array], Array],
    columns: Any,
    parts: list[tuple[int, int]],
) -> tuple[FloatArray, FloatArray]:
    """Σ_i diag F_i (p,) and each example's trace by site (n, sites), in float64."""
    if hasattr(engine, "diagonal_sum"):
        total, traces = engine.diagonal_sum(inputs, roots)
        return to_numpy(total).astype(np.float64), to_numpy(traces).astype(np.float64)
    rows = to_numpy(engine.rows(inputs, roots(engine.predict(inputs)))).astype(np.float64)
    values = np.einsum("nkp,nkp->np", rows, rows)
    if columns is not None:
        values = values[:, columns]
    return values.sum(0), np.stack([values[:, a:b].sum(1) for a, b in parts], axis=1)


def _progress(sums: _Sums, ranks: Ranks, total: int) -> StepInfo:
    # Each process sees its share only; the others are taken to be as far.
    done = sums.n * ranks.world
    return StepInfo(
        phase="Precision", step=min(done, total) if total else done, max_steps=total,
        loss=float("nan"), relative_loss=float("nan"), residual=sums.relative_error,
        products=float("nan"),
    )  # fmt: skip
