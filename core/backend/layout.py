"""Where the layers of a dense network lie in its flat parameter vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One layer a ↦ W a + b of a flat θ: W is ``theta[start:bias]``, b is ``theta[bias:stop]``.

    Attributes
    ----------
    d_out, d_in : int
        Shape of W, which is stored row-major.
    start, bias, stop : int
        Positions in θ.
    """

    d_out: int
    d_in: int
    start: int
    bias: int
    stop: int


def dense_layout(sizes: Sequence[int]) -> tuple[DenseLayer, ...]:
    """Layers of θ = [W_1, b_1, W_2, b_2, ...] for ``sizes`` = (d0, ..., dL), the first one first.

    Examples
    --------
    >>> dense_layout((3, 2))
    (DenseLayer(d_out=2, d_in=3, start=0, bias=6, stop=8),)
    """
    layers: list[DenseLayer] = []
    start = 0
    for d_in, d_out in pairwise(sizes):
        bias = start + d_out * d_in
        layers.append(DenseLayer(d_out, d_in, start, bias, bias + d_out))
        start = bias + d_out
    return tuple(layers)
