"""Components merged, pruned or kept, with coefficients and loss fitted anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import get_backend, like, to_numpy
from ..errors import InvalidInputError
from ..fisher.per_example import DiagonalFishers, LowRankFishers
from ..status import Status
from ..types import FloatArray
from .diagonal import DiagonalProblem
from .method import DiagonalNPEFF
from .objective import inner
from .result import Factorization

Fishers = LowRankFishers | DiagonalFishers


def refit(found: Factorization, fishers: Fishers, **options: Any) -> Factorization:
    """The same components with exact coefficients for ``fishers``, and the loss of these.

    Parameters
    ----------
    **options
        ``backend`` and ``device``.
    """
    if not isinstance(found.method, DiagonalNPEFF):
        from .expansion import expand

        if not isinstance(fishers, LowRankFishers):
            raise InvalidInputError(f"{fishers} were given; LowRankFishers are taken.")
        again = expand(found, fishers, 0, **options)
        facts = {k: v for k, v in again.facts.items() if k != "frozen"}
        return again.replace(facts={**found.facts, **facts})
    if not isinstance(fishers, DiagonalFishers):
        raise InvalidInputError(f"{fishers} were given; DiagonalFishers are taken.")
    coefficients = found.transform(fishers, **options)
    problem = DiagonalProblem.from_fishers(
        fishers,
        n_components=found.n_components,
        normalize=found.method.normalize,
        backend=get_backend("reference"),
    )
    W, H = (problem.array(to_numpy(x)) for x in (coefficients, found.components))
    loss = problem.total - 2.0 * inner(W, problem.products(H.T)) + inner(W.T @ W, H @ H.T)
    return found.replace(
        coefficients=coefficients,
        norms=fishers.norms(),
        loss=loss,
        total=problem.total,
        status=Status.CONVERGED,
    )


def prune(
    found: Factorization,
    fishers: Fishers,
    *,
    keep: Sequence[int] | None = None,
    min_share: float | None = None,
    **options: Any,
) -> Factorization:
    """Some components only, with exact coefficients for ``fishers``.

    Parameters
    ----------
    keep : sequence of int, optional
        Numbers of the components that stay, in the order that they shall have.
    min_share : float, optional
        Keep those with at least this share of the explained mass.

    Raises
    ------
    InvalidInputError
        Neither or both given, numbers that there are not, or nothing left.
    """
    if (keep is None) == (min_share is None):
        raise InvalidInputError(
            f"keep={keep!r} and min_share={min_share!r} were given; exactly one is needed."
        )
    if keep is None:
        keep = [int(k) for k in np.flatnonzero(found.shares >= (min_share or 0.0))]
    chosen = _checked(found, keep)
    if not chosen:
        raise InvalidInputError(
            f"No component has a share of {min_share}; the largest is {found.shares.max():.3g}."
        )
    return refit(_with(found, to_numpy(found.components)[chosen]), fishers, **options)


def merge(
    found: Factorization, fishers: Fishers, groups: Sequence[Sequence[int]], **options: Any
) -> Factorization:
    """Each group of components becomes one; the others stay.

    The merged one is the best rank-one stand-in for the group's share of all Fishers: the top
    eigenvector of Σ_{k in group} c_k g_k g_kᵀ, c_k = Σ_i W_ik; of diagonals Σ_k c_k h_k. It takes
    the place of the group's first component. For a result at an optimum go on with
    ``factorize(fishers, merged.method, init=merged)``.

    Parameters
    ----------
    groups : sequence of sequences of int
        Each with at least two components, none in two groups.

    Raises
    ------
    InvalidInputError
        Groups that overlap, are too small, or name components that there are not.
    """
    taken = [k for group in groups for k in group]
    _checked(found, taken)
    if not groups or any(len(group) < 2 for group in groups):
        raise InvalidInputError(f"groups={groups!r} were given; each needs at least two numbers.")
    G = to_numpy(found.components).astype(np.float64)
    mass = to_numpy(found.coefficients).sum(axis=0, dtype=np.float64)
    new: dict[int, FloatArray] = {}
    for group in groups:
        members = list(group)
        weights = mass[members] + 1e-12 * max(float(mass.max()), 1e-300)
        if isinstance(found.method, DiagonalNPEFF):
            joined = weights @ G[members]
        else:
            _, _, right = np.linalg.svd(np.sqrt(weights)[:, None] * G[members], full_matrices=False)
            joined = right[0] * np.sign(right[0][np.argmax(np.abs(right[0]))])
        new[members[0]] = joined / np.linalg.norm(joined)
    gone = {k for group in groups for k in list(group)[1:]}
    rows = [new[k] if k in new else G[k] for k in range(len(G)) if k not in gone]
    return refit(_with(found, np.stack(rows)), fishers, **options)


def _with(found: Factorization, G: FloatArray) -> Factorization:
    """The result with other components and no coefficients yet."""
    G = G.astype(to_numpy(found.components).dtype)
    empty = np.zeros((found.n_examples, len(G)), dtype=G.dtype)
    return found.replace(
        components=like(G, found.components),
        coefficients=like(empty, found.components),
        method=replace(found.method, n_components=len(G)),
    )


def _checked(found: Factorization, numbers: Sequence[int]) -> list[int]:
    whole = [int(k) for k in numbers]
    if len(set(whole)) != len(whole) or any(not 0 <= k < found.n_components for k in whole):
        raise InvalidInputError(
            f"Components {list(numbers)} were named; each at most once, from 0 to "
            f"{found.n_components - 1}."
        )
    return whole
