"""Permutation of hidden units, so that two networks use the same unit for the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..types import Array, FloatArray, IntArray
from .fisher_permute import permuted_tree
from .sources import Source, model_like, read, write

Units = Sequence[Sequence[tuple[str, int]]]
"""Layers of hidden units: for each layer the (tensor, axis) pairs along which its units lie."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """Permutations that bring a source close to a target.

    Attributes
    ----------
    orders : tuple of int64 arrays
        One a layer: new unit j is the source's unit ``orders[layer][j]``.
    units : Units
    params : dict of str to array
        The permuted tensors: the same function.
    before, after : float
        ‖θ_source − θ_target‖² over the tensors that the units touch.
    sweeps : int
        Rounds over the layers until nothing changed.
    template : object
    """

    orders: tuple[IntArray, ...]
    units: Units
    params: dict[str, Array]
    before: float
    after: float
    sweeps: int
    template: Any = field(repr=False, default=None)

    def model(self) -> Any:
        """A copy of the source with its units in the new order."""
        return model_like(self.template, self.params)

    def axes(self) -> dict[str, dict[int, IntArray]]:
        """The order of every permuted axis, by tensor."""
        return _axes(self.units, self.orders)

    def precision(self, tree: Mapping[str, Any]) -> Any:
        """The source's precisions in the new order.

        Raises
        ------
        InvalidInputError
            If a precision couples parameters in a way that these orders would tear apart.
        """
        return permuted_tree(tree, self.axes())


def align(
    source: Any,
    target: Any,
    units: Units | None = None,
    *,
    weights: Mapping[str, Array] | None = None,
    max_sweeps: int = 100,
    seed: int = 0,
) -> Alignment:
    """Permute hidden units of ``source`` to bring its weights closest to ``target``.

    Parameters
    ----------
    source, target : models
        As :func:`merge` takes them.
    units : sequence of sequences of (tensor, axis), optional
        What a hidden unit is: ``[[("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)], …]``. By
        default read off a chain of linear layers (dense networks, scikit-learn MLPs, and modules
        whose two-axis weights chain).
    weights : mapping of str to array ≥ 0, optional
        Weights of the squared differences by tensor, such as the target's diagonal Fisher.
    max_sweeps : int
    seed : int
        Of the order in which layers are visited.

    Returns
    -------
    Alignment

    Raises
    ------
    InvalidInputError
        Tensors or axes that do not exist or do not fit.

    Notes
    -----
    Coordinate descent over layers; each step solves a linear assignment exactly, so the distance
    falls until no layer alone can improve it (weight matching of arXiv:2209.04836). Cost of a step:
    m² times the size of the layers around it, and O(m³) for the assignment.

    Examples
    --------
    >>> W, V = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 4.0]])
    >>> one = {"fc1.weight": W, "fc2.weight": V}
    >>> two = {"fc1.weight": W[::-1].copy(), "fc2.weight": V[:, ::-1].copy()}
    >>> found = align(two, one, [[("fc1.weight", 0), ("fc2.weight", 1)]])
    >>> found.orders[0].tolist(), found.after
    ([1, 0], 0.0)
    """
    from scipy.optimize import linear_sum_assignment

    a, b = Source.of(target, 0), Source.of(source, 1)
    layers = tuple(tuple(layer) for layer in (chain_units(b) if units is None else units))
    names = sorted({name for layer in layers for name, _ in layer})
    sizes = [_size(layer, a, b) for layer in layers]
    empty = np.empty(0)
    fixed = {n: np.asarray(read(a.arrays[n], empty)) for n in names}
    moving = {n: np.asarray(read(b.arrays[n], empty)) for n in names}
    scale = {n: np.asarray(read((weights or {}).get(n, np.ones(())), empty)) for n in names}
    orders = [np.arange(m) for m in sizes]
    before = _distance(fixed, moving, scale)
    rng = np.random.default_rng(seed)
    sweeps, changed = 0, True
    while changed and sweeps < max_sweeps:
        changed, sweeps = False, sweeps + 1
        for k in rng.permutation(len(layers)):
            cost = _costs(layers[k], sizes[k], fixed, moving, scale)
            rows, columns = linear_sum_assignment(cost)
            gain = float(np.trace(cost)) - float(cost[rows, columns].sum())
            if gain <= 1e-12 * (abs(float(np.trace(cost))) + 1e-300):
                continue
            changed = True
            orders[k] = orders[k][columns]
            for name, axis in layers[k]:
                moving[name] = np.take(moving[name], columns, axis=axis)
    params = dict(b.arrays)
    for name, axes in _axes(layers, orders).items():
        value = np.asarray(read(b.arrays[name], empty))
        for axis, order in axes.items():
            value = np.take(value, order, axis=axis)
        params[name] = write(name, value, b.arrays[name])
    return Alignment(
        orders=tuple(orders), units=layers, params=params, before=before,
        after=_distance(fixed, moving, scale), sweeps=sweeps, template=b.template,
    )  # fmt: skip


def chain_units(source: Source) -> Units:
    """Hidden units of a chain of linear layers: outputs of each are inputs of the next.

    Raises
    ------
    InvalidInputError
        If the two-axis weights do not chain.
    """
    linear = [n for n in source.arrays if len(source.shape(n)) == 2 and source.floating(n)]
    if len(linear) < 2:
        raise InvalidInputError(
            "No hidden units were found: fewer than two matrices. Give units=[[(tensor, axis)]]."
        )
    layers: list[list[tuple[str, int]]] = []
    for first, second in pairwise(linear):
        m = source.shape(first)[0]
        if source.shape(second)[1] != m:
            raise InvalidInputError(
                f"{first!r} {source.shape(first)} and {second!r} {source.shape(second)} do not "
                "chain; give units=[[(tensor, axis), ...], ...]."
            )
        layer = [(first, 0)]
        bias = first.removesuffix("weight") + "bias"
        if bias in source.arrays and source.shape(bias) == (m,):
            layer.append((bias, 0))
        layers.append([*layer, (second, 1)])
    return layers


def _size(layer: Sequence[tuple[str, int]], a: Source, b: Source) -> int:
    sizes = set()
    for name, axis in layer:
        for which, s in (("target", a), ("source", b)):
            shape = s.shape(name) if name in s.arrays else ()
            if not 0 <= axis < len(shape):
                raise InvalidInputError(f"The {which} has no axis {axis} of {name!r} ({shape}).")
            sizes.add(shape[axis])
        if a.shape(name) != b.shape(name):
            raise InvalidInputError(
                f"{name!r} has the shapes {a.shape(name)} and {b.shape(name)}; alignment needs "
                "equal architectures."
            )
    if len(sizes) != 1:
        raise InvalidInputError(
            f"The axes {list(layer)} have the lengths {sorted(sizes)}; units need one length."
        )
    return int(sizes.pop())


def _costs(
    layer: Sequence[tuple[str, int]], m: int, fixed: Mapping[str, FloatArray],
    moving: Mapping[str, FloatArray], scale: Mapping[str, FloatArray],
) -> FloatArray:  # fmt: skip
    """Cost (m, m) of putting moving unit k at place j: Σ s (fixed_j − moving_k)²."""
    total = np.zeros((m, m))
    for name, axis in layer:
        x = np.moveaxis(fixed[name], axis, 0).reshape(m, -1)
        y = np.moveaxis(moving[name], axis, 0).reshape(m, -1)
        s = np.moveaxis(np.broadcast_to(scale[name], fixed[name].shape), axis, 0).reshape(m, -1)
        total += (s * x * x).sum(1)[:, None] - 2.0 * (s * x) @ y.T + s @ (y * y).T
    return total


def _distance(
    a: Mapping[str, FloatArray], b: Mapping[str, FloatArray], scale: Mapping[str, FloatArray]
) -> float:
    return float(sum((scale[n] * (a[n] - b[n]) ** 2).sum() for n in a))


def _axes(units: Units, orders: Sequence[IntArray]) -> dict[str, dict[int, IntArray]]:
    out: dict[str, dict[int, IntArray]] = {}
    for layer, order in zip(units, orders, strict=True):
        for name, axis in layer:
            out.setdefault(name, {})[axis] = order
    return out
