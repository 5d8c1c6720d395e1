"""The exact maximiser of Σ_i ν_i (x_i·u)_+ over the unit ball: one look at every vertex."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.backend.select import BackendChoice
from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray, NumpyArray
from ..core.zonotope import Zonotope
from ..core.zonotope.pattern import check_generators

_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maximiser:
    """A best direction inside one cone.

    Attributes
    ----------
    value : float
        Σ ν_i (x_i·u)_+.
    direction : array (d,)
        u, of unit length; zeros where the value is 0.
    pattern : array (n,)
        Of the cone that u lies in.
    """

    value: float
    direction: FloatArray
    pattern: NumpyArray


class ZonotopeOracle:
    """max over ‖u‖ ≤ 1 of Σ_i ν_i (x_i·u)_+, exactly, for many ν.

    On the cone C_s the sum is g_s·u with g_s = XᵀA_sν, so its maximum is ‖Π_{C_s} g_s‖ ≤ ‖g_s‖.
    Vertices are taken by ‖g_s‖, largest first, and projected only while that bound, tightened by
    the most violated half-space, beats the best value. What is left unprojected is bounded away.

    Parameters
    ----------
    inputs : array (n, d)
    max_patterns : int
        More are refused, with their number.

    Notes
    -----
    A call costs O(V n d / 2) for V vertices, and a non-negative least squares for each projection.
    """

    def __init__(
        self, inputs: Array, *, max_patterns: int = 3_000_000, backend: BackendChoice = "auto"
    ) -> None:
        self.inputs: FloatArray = check_generators(inputs)
        self._unit = self.inputs / np.linalg.norm(self.inputs, axis=1, keepdims=True)
        zonotope = Zonotope(self.inputs)
        halves: list[NumpyArray] = []
        seen = 0
        for block in zonotope.patterns(backend=backend):
            seen += len(block)
            if seen > max_patterns:
                raise InvalidInputError(
                    f"{len(self.inputs)} rows in {self.inputs.shape[1]} dimensions have more than "
                    f"max_patterns={max_patterns} activation patterns. Use fewer rows or columns, "
                    "or raise max_patterns."
                )
            halves.append(np.packbits(block[::2] > 0, axis=1))  # antipodes follow each other
        self._half = np.concatenate(halves)
        self.n_patterns = 2 * len(self._half)

    def maximise(self, nu: Array, *, count: int = 1) -> list[Maximiser]:
        """The best cones for ν, at most ``count``, best first; all but the first may be inexact.

        The first one's value is the maximum, up to rounding.
        """
        weights = np.asarray(nu, dtype=np.float64)
        if weights.shape != (len(self.inputs),) or not np.isfinite(weights).all():
            raise InvalidInputError(
                f"ν of shape {weights.shape} was given; ({len(self.inputs)},), finite, is due."
            )
        gradients = self._gradients(weights)
        sizes = np.linalg.norm(gradients, axis=1)
        found: list[Maximiser] = []
        best = 0.0
        order = np.argsort(-sizes, kind="stable")
        for at in range(0, len(order), 256):
            chunk = order[at : at + 256]
            if sizes[chunk[0]] <= best:
                break
            signs = self.patterns(chunk)
            slack = signs * (gradients[chunk] @ self._unit.T)
            worst = np.maximum(-slack.min(axis=1), 0.0)
            for k, index in enumerate(chunk):
                bound = np.sqrt(max(sizes[index] ** 2 - worst[k] ** 2, 0.0))
                if bound <= best:
                    continue
                point = gradients[index]
                if worst[k] > 1e-14 * sizes[index]:
                    point = _projected(point, signs[k][:, None] * self._unit)
                value = float(np.linalg.norm(point))
                if value > best * (1 + 1e-12):
                    best = value
                if value > 0:
                    found.append(Maximiser(value=value, direction=point / value, pattern=signs[k]))
        found.sort(key=lambda m: -m.value)
        if not found:
            n, d = self.inputs.shape
            none = Maximiser(value=0.0, direction=np.zeros(d), pattern=-np.ones(n, dtype=np.int8))
            return [none]
        return found[:count]

    def patterns(self, indices: NumpyArray) -> NumpyArray:
        """Patterns int8 (k, n) by number."""
        indices = np.asarray(indices)
        bits = np.unpackbits(self._half[indices // 2], axis=1, count=len(self.inputs))
        signs = 2 * bits.astype(np.int8) - 1
        return np.asarray(np.where(indices[:, None] % 2 == 0, signs, -signs).astype(np.int8))

    def _gradients(self, nu: FloatArray) -> FloatArray:
        """g_s (V, d); those of antipodes add up to Xᵀν."""
        rows = nu[:, None] * self.inputs
        out = np.empty((len(self._half), 2, rows.shape[1]))
        for at in range(0, len(self._half), _BLOCK):
            bits = np.unpackbits(self._half[at : at + _BLOCK], axis=1, count=len(rows))
            out[at : at + _BLOCK, 0] = bits.astype(np.float64) @ rows
        out[:, 1] = rows.sum(axis=0) - out[:, 0]
        return out.reshape(-1, rows.shape[1])


def _projected(point: FloatArray, rows: FloatArray) -> FloatArray:
    """The nearest point of {u : rows·u ≥ 0}: by Moreau, what no combination of −rows explains."""
    from scipy.optimize import nnls

    scale = float(np.linalg.norm(point)) or 1.0
    mu, _ = nnls(rows.T, -point / scale, maxiter=30 * len(rows))
    return np.asarray(point + scale * (mu @ rows))
