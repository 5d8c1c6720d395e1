"""Scores of a model on data, splits that must not touch, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...types import FloatArray, IntArray

Evaluate = Callable[[Any, Any], Any]
"""(model, data) → a number, per-example scores (n,), or a mapping from metric names to these."""


def scores_of(evaluate: Evaluate, model: Any, data: Any, metric: str | None) -> FloatArray:
    """Scores as a float64 array: one number, or one an example.

    Raises
    ------
    InvalidInputError
        A metric that is not there, several where one must be named, or NaN.
    """
    value = evaluate(model, data)
    if isinstance(value, Mapping):
        if metric is None and len(value) == 1:
            metric = next(iter(value))
        if metric not in value:
            raise InvalidInputError(
                f"metric={metric!r} was asked for; evaluate gave {', '.join(map(str, value))}."
            )
        value = value[metric]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    scores = np.asarray(value, dtype=np.float64)
    if scores.ndim > 1 or scores.size == 0:
        raise InvalidInputError(
            f"evaluate gave scores of shape {scores.shape}; a number or one score an example."
        )
    if not np.isfinite(scores).all():
        raise InvalidInputError("evaluate gave NaN or infinite scores; drop or bound them.")
    return scores


def length_of(data: Any) -> int | None:
    """Number of examples of arrays, tuples of arrays, or lists; None where it is not known."""
    if isinstance(data, tuple) and data and all(hasattr(x, "shape") for x in data):
        return int(data[0].shape[0])
    if isinstance(data, list):
        return len(data)
    shape = getattr(data, "shape", None)
    return int(shape[0]) if shape else None


def head(data: Any, n: int | None) -> Any:
    """The first n examples."""
    if n is None:
        return data
    if isinstance(data, tuple):
        return tuple(x[:n] for x in data)
    return data[:n]


def overlap(selection: Any, report: Any) -> str:
    """Why two splits are not separate; empty where nothing speaks against them.

    The same object, arrays that share memory, index arrays with common entries, or report rows that
    are all among the selection rows.
    """
    if selection is report:
        return "they are the same object"
    ours, theirs = _arrays(selection), _arrays(report)
    for a in ours:
        if any(a is b or (a.size and np.shares_memory(a, b)) for b in theirs):
            return "they share arrays"
    for a, b in zip(ours, theirs, strict=False):
        if (
            a.ndim == b.ndim == 1
            and a.dtype.kind in "iu"
            and b.dtype.kind in "iu"
            and len(ours) == 1
        ):
            common = np.intersect1d(a, b)
            if common.size:
                return f"they have {common.size} indices in common"
    if ours and theirs and ours[0].ndim > 1 and ours[0].shape[1:] == theirs[0].shape[1:]:
        known = {row.tobytes() for row in np.ascontiguousarray(ours[0])}
        rows = [row.tobytes() for row in np.ascontiguousarray(theirs[0].astype(ours[0].dtype))]
        if rows and all(row in known for row in rows):
            return "every report example is among the selection examples"
    return ""


def _arrays(data: Any) -> list[Any]:
    parts = data if isinstance(data, (tuple, list)) else (data,)
    out = []
    for x in parts:
        if hasattr(x, "detach"):
            x = x.detach().cpu().numpy()
        if isinstance(x, np.ndarray):
            out.append(x)
    return out


def nested_splits(
    n: int, folds: int = 5, seed: int = 0, groups: Sequence[Any] | None = None
) -> list[tuple[IntArray, IntArray]]:
    """(selection, report) index pairs: each example is in exactly one report part.

    Parameters
    ----------
    n : int
        Examples.
    folds : int
    seed : int
    groups : sequence of n labels, optional
        Examples of one group stay together.

    Raises
    ------
    InvalidInputError
        Fewer than 2 folds, or fewer groups than folds.

    Examples
    --------
    >>> pairs = nested_splits(10, 5)
    >>> len(pairs), sorted(int(i) for _, report in pairs for i in report) == list(range(10))
    (5, True)
    """
    labels = (
        np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    kinds = np.unique(labels)
    if folds < 2 or len(kinds) < folds:
        raise InvalidInputError(
            f"{folds} folds of {len(kinds)} groups were asked for; 2 to the number of groups."
        )
    order = np.random.default_rng(seed).permutation(kinds)
    parts = np.array_split(order, folds)
    every = np.arange(n)
    return [(every[~np.isin(labels, p)], every[np.isin(labels, p)]) for p in parts]


def bootstrap_difference(
    ours: FloatArray, theirs: FloatArray, *, n_boot: int, level: float, seed: int
) -> tuple[float, float, float]:
    """Mean of ours − theirs over the same examples, with a paired percentile interval.

    NaN bounds where there is one score only.
    """
    gap = np.atleast_1d(ours - theirs)
    if gap.size < 2:
        return float(gap.mean()), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.concatenate([
        gap[rng.integers(gap.size, size=(min(64, n_boot - at), gap.size))].mean(axis=1)
        for at in range(0, n_boot, 64)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(gap.mean()), float(low), float(high)
