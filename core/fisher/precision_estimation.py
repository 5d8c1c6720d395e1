"""From a model and data to the precision of its parameters, in one or two streaming passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..model import OutputDistribution, engine_for
from ..status import Callback, StepInfo
from ..types import Array, FloatArray, Seed
from .batches import (
    ParameterChoice,
    batched,
    choose_parameters,
    digests,
    examples_of,
    split_batch,
)
from .draws import Draws, draws_of
from .estimators import (
    BatchSum,
    BlockEstimator,
    DiagonalEstimator,
    EKFACEstimator,
    Estimator,
    GramEstimator,
    KroneckerEstimator,
    LowRankEstimator,
    Plan,
    RunningMoments,
    plan_of,
)
from .labels import ExactLabels, LabelRule
from .precision import STRUCTURES, PrecisionTree
from .ranks import ProcessGroup, Ranks, check_jobs, in_order, process_group
from .structures import SHARINGS

BATCH_EXAMPLES = 32


def estimate_precision(
    model: Any,
    data: Any,
    *,
    structure: str = "diagonal",
    labels: LabelRule | None = None,
    output: OutputDistribution | None = None,
    params: ParameterChoice = None,
    sharing: str = "expand",
    rank: int = 16,
    damping: float | None = None,
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
        As in :func:`per_example_fishers`. "ekfac" reads the data twice.
    structure : str
        "diagonal"; "isotropic" (its mean over each site); "block" (dense, a site at a time);
        "kronecker" (K-FAC); "ekfac"; "lowrank+diagonal"; "gram" (second moments of the inputs
        alone, as RegMean takes: needs no labels). A linear layer or convolution is one site [W|b]
        except for the first two. Under "gram", "kronecker" and "ekfac" other parameters have a
        diagonal (under "gram" P = I), tables of embeddings always.
    labels : LabelRule, optional
        ``ExactLabels()`` unless told otherwise; ``DataLabels()`` gives the empirical Fisher.
    sharing : {"expand", "reduce"}
        For "kronecker" and "ekfac" in layers that are used at several positions of an example:
        count every position as an example, or add up each example's first.
    rank : int
        For "lowrank+diagonal": directions kept a site.
    damping : float, optional
        ρ: adds ρ tr P / d to the diagonal of each site (``tree.damped(ρ, "relative_trace")``).
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
        Another structure, one that this model or its size does not allow, something else than a
        label rule, wrong inputs, NaN, or no data.
    RankLostError
        Under ``torchrun``, when another process was killed.

    Notes
    -----
    Sums run in float64 over batches. With exact labels over C classes C − 1 backward passes to the
    activations; a linear layer that sees one position an example then takes one product of squares,
    (Σ_c δ_c∘δ_c)ᵀ(a∘a), whatever C. Otherwise the gradients of a few examples at a time are formed.
    "kronecker" adds products δᵀδ and aᵀa a layer; "ekfac" a second pass of squares in their
    eigenbasis. "block" and "lowrank+diagonal" form the gradients of a few examples at a time.
    Under ``torchrun`` the processes share the batches, and each gets the same tree.
    Sources: arXiv:2111.09832 (diagonal merging), 1503.05671 (K-FAC), 2311.00636 (expand, reduce),
    1806.03884 (EKFAC), 2212.09849 (RegMean).

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope.core.model import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> net = DenseNetwork([rng.normal(size=(3, 4))], [np.zeros(3)])
    >>> tree = estimate_precision(net, rng.normal(size=(50, 4)))
    >>> list(tree), tree.n_examples, tree.structure
    (['layers.0.weight', 'layers.0.bias'], 50, 'diagonal')
    >>> tree = estimate_precision(net, rng.normal(size=(50, 4)), structure="kronecker")
    >>> tree["layers.0.weight"].shape, tree.layouts["layers.0.weight"].parameters
    ((3, 5), ('layers.0.weight', 'layers.0.bias'))
    """
    rule: LabelRule = ExactLabels() if labels is None else labels
    _check_options(structure, labels, rule, sharing, rank, damping, relative_error)
    options: dict[str, Any] = {} if engine == "auto" else {"engine": engine}
    if outputs_of is not None:
        options["outputs_of"] = outputs_of
    derive: Any = engine_for(model, output=output, **options)
    check_jobs(derive, n_jobs)
    columns, sites = choose_parameters(derive.sites, params)
    if columns is not None and hasattr(derive, "restricted"):
        derive, columns = derive.restricted([s.name for s in sites]), None
    plan = plan_of(derive, sites, columns, whole=structure in ("diagonal", "isotropic"))
    draws, ranks = draws_of(seed), Ranks.of_environment()
    if structure == "ekfac" and isinstance(data, Iterator):
        raise InvalidInputError(
            f"structure='ekfac' reads the data twice, and a {type(data).__name__} can be read "
            "once. Give arrays, a list of batches or a DataLoader."
        )
    if ranks.world > 1 and relative_error is not None:
        raise InvalidInputError(
            f"relative_error={relative_error} was given to {ranks.world} processes; the stopping "
            "rule is for one process. Leave it out, or unset RANK and WORLD_SIZE."
        )
    size = BATCH_EXAMPLES if batch_size is None else batch_size
    work = _Passes(plan, rule, draws, data, size, ranks, n_jobs)
    first = _estimator(plan, structure, sharing, rank, draws)
    with process_group(ranks) as group:
        sums = work.run(first, group, callback, relative_error)
        found = first.finish(sums.totals, sums.n)
        errors, n, tokens = sums.errors, sums.n, sums.positions
        if isinstance(first, KroneckerEstimator) and structure == "ekfac":
            second = EKFACEstimator(plan, first.bases(sums.totals))
            again = work.run(second, group, callback, None, batches=sums.batches)
            found, errors = second.finish(again.totals, again.n), again.errors
    tree = PrecisionTree(
        sites=found,
        layouts=plan.layouts,
        n_examples=n,
        trace_errors=dict(zip(plan.names, errors.tolist(), strict=True)),
        facts=_facts(plan, structure, rule, seed, sharing, rank, damping, tokens),
    )
    return tree if damping is None else tree.damped(damping, "relative_trace")


def _check_options(
    structure: str,
    labels: LabelRule | None,
    rule: LabelRule,
    sharing: str,
    rank: int,
    damping: float | None,
    relative_error: float | None,
) -> None:
    for what, value, accepted in (
        ("structure", structure, STRUCTURES),
        ("sharing", sharing, SHARINGS),
    ):
        if value not in accepted:
            raise InvalidInputError(f"{what}={value!r} was given; accepted: {', '.join(accepted)}.")
    if isinstance(rule, type) or not isinstance(rule, LabelRule):
        raise InvalidInputError(
            f"labels={labels!r} was given; a label rule such as ExactLabels() is accepted."
        )
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InvalidInputError(f"rank={rank!r} was given; a whole number >= 1 is accepted.")
    if damping is not None and not 0 <= damping < np.inf:
        raise InvalidInputError(
            f"damping={damping} was given; None or a finite number >= 0 is accepted."
        )
    if relative_error is not None and not 0 < relative_error < 1:
        raise InvalidInputError(
            f"relative_error={relative_error} was given; None or a number between 0 and 1 is "
            "accepted."
        )


def _estimator(plan: Plan, structure: str, sharing: str, rank: int, draws: Draws) -> Estimator:
    """The estimator of a structure, for EKFAC that of its first pass."""
    if structure in ("diagonal", "isotropic"):
        return DiagonalEstimator(plan, isotropic=structure == "isotropic")
    if structure == "gram":
        return GramEstimator(plan)
    if structure in ("kronecker", "ekfac"):
        return KroneckerEstimator(plan, sharing, expanded=structure == "ekfac")
    if structure == "block":
        return BlockEstimator(plan)
    return LowRankEstimator(plan, rank, draws.key)


def _facts(
    plan: Plan,
    structure: str,
    rule: LabelRule,
    seed: Seed,
    sharing: str,
    rank: int,
    damping: float | None,
    positions: int,
) -> dict[str, Any]:
    """What the tree was made from, in plain values."""
    derive = plan.engine
    facts: dict[str, Any] = {"structure": structure, "output": derive.output.name}
    facts |= {"labels": "none"} if structure == "gram" else rule.facts()
    facts |= digests(derive)
    facts["normalisation"] = "per position" if structure == "gram" else "per example"
    if structure in ("kronecker", "ekfac"):
        facts["sharing"] = sharing
    if structure == "lowrank+diagonal":
        facts["rank"] = rank
    if positions:
        facts["n_positions"] = positions
    if damping is not None:
        facts["damping"] = damping
    if isinstance(seed, int):
        facts["seed"] = seed
    facts["engine"] = str(getattr(derive, "explanation", type(derive).__name__))
    return facts


class _Sums:
    """What an estimator adds up, in float64, and the spread of the traces over examples."""

    def __init__(self, estimator: Estimator, sites: int) -> None:
        self._estimator = estimator
        self._totals: dict[str, FloatArray] = {}
        self.moments = RunningMoments(sites * estimator.width)
        self.batches = 0

    def add(self, sums: Mapping[str, BatchSum], numbers: FloatArray) -> None:
        for key, x in sums.items():
            if isinstance(x, tuple):
                if key not in self._totals:
                    self._totals[key] = np.zeros(self._estimator.shapes[key])
                self._totals[key][x[0]] += x[1]
            elif key in self._totals:
                self._totals[key] += x
            else:
                self._totals[key] = np.array(x, dtype=np.float64)
        self.moments.add(numbers.reshape(len(numbers), -1))
        self.batches += 1

    def add_up(self, group: ProcessGroup) -> None:
        """The sums of all processes, in each of them."""
        packed = group.gather(self.moments.packed()[None])
        self.moments = RunningMoments(len(self.moments.mean))
        for row in packed:
            self.moments.add_packed(row[0])
        self._totals = {key: group.sum(x) for key, x in self.totals.items()}

    @property
    def totals(self) -> dict[str, FloatArray]:
        """All sums of the estimator; zero where nothing came."""
        return {
            key: self._totals[key] if key in self._totals else np.zeros(shape)
            for key, shape in self._estimator.shapes.items()
        }

    @property
    def n(self) -> int:
        return self.moments.n

    @property
    def errors(self) -> FloatArray:
        """Standard errors of the traces of the sites."""
        return self._estimator.traces(self.moments).errors(self.moments)

    @property
    def relative_error(self) -> float:
        """Standard error of the whole trace over it."""
        return self._estimator.traces(self.moments).relative_error(self.moments)

    @property
    def positions(self) -> int:
        """Positions that are no padding, at the site that sees most; 0 where they do not count."""
        found = [float(x) for key, x in self._totals.items() if key.endswith("/positions")]
        return round(max(found, default=0.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Passes:
    """Passes over the data."""

    plan: Plan
    rule: LabelRule
    draws: Draws
    data: Any
    size: int
    ranks: Ranks
    n_jobs: int | None

    def run(
        self,
        estimator: Estimator,
        group: ProcessGroup | None,
        callback: Callback | None,
        relative_error: float | None,
        batches: int | None = None,
    ) -> _Sums:
        """One pass; with ``batches`` over so many of this process's batches only.

        Raises
        ------
        InvalidInputError
            If there is no example.
        """
        parts, total = batched(self.data, self.size)
        sums = _Sums(estimator, len(self.plan.layouts))
        rule, draws, output = self.rule, self.draws, self.plan.engine.output

        def work(inputs: Any, targets: Any, first: int) -> tuple[Any, Any]:
            seen = replace(draws, first=first)

            def roots(z: Array) -> Array:
                return rule.roots(output, z, seen, targets).values

            return estimator.batch(inputs, roots)

        phase = "Precision" if batches is None else "Second pass"
        for one in in_order(work, islice(self._own(parts), batches), self.n_jobs):
            sums.add(*one)
            if callback is not None and callback(self._progress(sums, total, phase)) is True:
                break
            enough = relative_error is not None and sums.n >= BATCH_EXAMPLES
            if enough and sums.relative_error <= (relative_error or 0.0):
                break
        if group is not None:
            sums.add_up(group)
        if not sums.n:
            raise InvalidInputError("The data hold no example; give at least one.")
        return sums

    def _own(self, batches: Iterator[Any]) -> Iterator[tuple[Any, Any, int]]:
        """Batches of this process, with the number of their first example."""
        first = 0
        for number, batch in enumerate(batches):
            if self.ranks.takes(number):
                yield *split_batch(batch), first
            first += examples_of(batch)

    def _progress(self, sums: _Sums, total: int, phase: str) -> StepInfo:
        # Each process sees its share only; the others are taken to be as far.
        done = sums.n * self.ranks.world
        return StepInfo(
            phase=phase, step=min(done, total) if total else done, max_steps=total,
            loss=float("nan"), relative_loss=float("nan"), residual=sums.relative_error,
            products=float("nan"),
        )  # fmt: skip
