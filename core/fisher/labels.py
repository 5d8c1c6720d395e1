"""Label rules: over which labels the expectation in the Fisher is taken, and how.

A rule turns the outputs z (n, C) of a network into roots U (n, k, C) with E[U_iᵀU_i] = Fisher of
the output distribution at z_i; the rows of the per-example Fisher are then U_i J_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..model.outputs import Categorical, OutputDistribution
from ..types import Array, FloatArray, IntArray
from .draws import Draws

# Exact labels over more outputs than this are refused: each costs a backward pass an example.
MAX_EXACT = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelRoots:
    """Roots of a batch.

    Attributes
    ----------
    values : array (n, k, C)
        U; rows beyond ``counts[i]`` are zero.
    counts : int64 NumPy array (n,)
        Rows of each example that are kept.
    kept : float64 NumPy array (n,)
        Probability mass of the labels that the expectation covers; 1 where nothing is left out.
    """

    values: Array
    counts: IntArray
    kept: FloatArray


@runtime_checkable
class LabelRule(Protocol):
    """Something that draws or enumerates labels."""

    @property
    def name(self) -> str:
        """How the Fisher is called that this rule gives ("exact", "sampled", ...)."""
        ...

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U for outputs z (n, C); ``targets`` are the labels of the data where there are any."""
        ...

    def facts(self) -> dict[str, Any]:
        """Options, as they are stored with the Fishers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactLabels:
    """The exact expectation over labels, optionally over the likeliest classes alone.

    F = Σ_c p_c ∇log p_c ∇log p_cᵀ. Over all C classes only C − 1 rows are needed. With ``top`` or
    ``min_prob`` the sum runs over the kept classes (their rows are √p_c ∇log p_c) and the kept
    probability mass is reported.

    Attributes
    ----------
    top : int or None
        Keep at most so many classes, the likeliest first.
    min_prob : float
        Keep only classes with p_c ≥ min_prob; the likeliest is always kept.

    Raises
    ------
    InvalidInputError
        ``top`` < 1 or ``min_prob`` outside [0, 1).
    """

    top: int | None = None
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.top is not None and not (isinstance(self.top, int) and self.top >= 1):
            raise InvalidInputError(
                f"top={self.top!r} was given; None or a whole number >= 1 is accepted."
            )
        if not 0.0 <= self.min_prob < 1.0:
            raise InvalidInputError(
                f"min_prob={self.min_prob} was given; a number in [0, 1) is accepted."
            )

    @property
    def name(self) -> str:
        """exact, or "exact over kept classes"."""
        return "exact" if self.complete else "exact over kept classes"

    @property
    def complete(self) -> bool:
        """Whether no class is left out."""
        return self.top is None and self.min_prob == 0.0

    def facts(self) -> dict[str, Any]:
        """``top`` and ``min_prob``."""
        return {"labels": self.name, "top": self.top, "min_prob": self.min_prob}

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U (n, k, C): k = C − 1 for all classes of a categorical, else the kept classes."""
        n = int(z.shape[0])
        if self.complete:
            _check_cost(n, int(z.shape[1]))
            U = output.fisher_root(z, reduced=True)
            counts = np.full(n, int(U.shape[1]), dtype=np.int64)
            return LabelRoots(values=U, counts=counts, kept=np.ones(n))
        if not isinstance(output, Categorical):
            raise InvalidInputError(
                f"ExactLabels(top=..., min_prob=...) was given for {output.name} outputs; classes "
                "can be left out of categorical outputs only. Use ExactLabels()."
            )
        xp = array_namespace(z)
        U = output.fisher_root(z, reduced=False)
        p = to_numpy(xp.exp(output.log_probs(z))).astype(np.float64)
        order = np.argsort(-p, axis=1, kind="stable")[:, : self.top]
        likeliest = np.take_along_axis(p, order, axis=1)
        keep = likeliest >= self.min_prob
        keep[:, 0] = True
        counts = keep.sum(axis=1)
        order = order[:, : max(1, int(counts.max(initial=1)))]
        keep = keep[:, : order.shape[1]]
        device = getattr(z, "device", None)
        index = xp.asarray(np.repeat(order[:, :, None], int(z.shape[1]), axis=2), device=device)
        mask = xp.asarray(keep.astype(str(z.dtype).rsplit(".", 1)[-1]), device=device)
        picked = xp.take_along_axis(U, index, axis=1) * mask[:, :, None]
        return LabelRoots(
            values=picked,
            counts=counts.astype(np.int64),
            kept=(likeliest[:, : order.shape[1]] * keep).sum(axis=1),
        )


def _check_cost(n: int, width: int) -> None:
    """Refuse the exact expectation over a vocabulary, with what it would cost."""
    if width > MAX_EXACT:
        raise InvalidInputError(
            f"ExactLabels() was given for {width} outputs an example: {width - 1} backward passes "
            f"an example, {n * (width - 1)} for this batch of {n}. At most {MAX_EXACT} are taken. "
            "Use ProbeLabels(n) or SampledLabels(n) (unbiased, n backward passes each), or ask the "
            "model about a few label words only."
        )
