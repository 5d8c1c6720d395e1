"""How alike two sets of components are, up to order and sign."""

from __future__ import annotations

import numpy as np

from ..backend import to_numpy
from ..errors import InvalidInputError
from ..types import Array, FloatArray, IntArray


def matched_cosines(first: Array, second: Array) -> tuple[FloatArray, IntArray]:
    """|cos| between components after the best one-to-one matching.

    Parameters
    ----------
    first : array (r, m)
    second : array (s, m) with s ≥ r

    Returns
    -------
    cosines : float64 array (r,)
        |g_k · g'_π(k)| / (‖g_k‖‖g'_π(k)‖) for the matching π that maximises their sum
        (Hungarian algorithm, O(s³)); zero vectors count as cosine 0.
    matching : int64 array (r,)
        π(k).

    Raises
    ------
    InvalidInputError
        If the columns differ in number, or ``second`` has fewer rows than ``first``.

    Examples
    --------
    >>> import numpy as np
    >>> matched_cosines(np.eye(2), -np.eye(2)[::-1])[0].tolist()
    [1.0, 1.0]
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (to_numpy(x).astype(np.float64) for x in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(a) > len(b):
        raise InvalidInputError(
            f"Components of shapes {a.shape} and {b.shape} were given; (r, m) and (s, m) with "
            "s >= r are taken. Give the smaller set first."
        )
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), np.finfo(float).tiny)
    b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), np.finfo(float).tiny)
    cosines = np.abs(a @ b.T)
    rows, columns = linear_sum_assignment(-cosines)
    return cosines[rows, columns], columns.astype(np.int64)
