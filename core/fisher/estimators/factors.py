"""Estimators of products of an input factor and an output factor: Gram, Kronecker, EKFAC.

Parameters outside the layers' matrices (norms, embeddings, lone biases) get their diagonal; under
Gram, which knows no gradients, P = I, by which merging averages them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ...model import LayerTerm
from ...types import Array, FloatArray
from ..batches import examples_of
from ..structures import EKFAC, Diagonal, Gram, Isotropic, Kronecker, Precision
from .plan import BatchSum, Plan, Roots, host, host_sum, need_layers, numbers_of
from .running import RunningMoments, Traces, means, products

# Gradients of single examples in the eigenbasis take at most this many bytes at a time.
BLOCK_BYTES = 32 << 20

# Eigenvalues of at most this share of the largest are roundings of zero.
NULL = 1e-11


class GramEstimator:
    """A = Σ a aᵀ / (number of positions that are no padding): no labels, no backward pass."""

    width = 3

    def __init__(self, plan: Plan) -> None:
        need_layers(plan, "gram")
        self._plan = plan

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A and the number of positions of every matrix."""
        return _input_shapes(self._plan)

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """One forward pass."""
        plan = self._plan
        sums: dict[str, BatchSum] = {}
        numbers = numbers_of(plan, examples_of(inputs), 3)
        numbers[:, :, 1:] = 1.0
        numbers[:, :, 0] = [x.shape[0] for x in plan.layouts.values()]
        for name, layout in plan.layouts.items():
            if name not in plan.matrices:
                numbers[:, plan.numbers[name], 0] = np.prod(layout.shape)

        def visit(term: LayerTerm) -> None:
            _add_inputs(term, sums, numbers[:, plan.numbers[term.site]], reduce=False)

        plan.engine.layer_terms(inputs, None, plan.chosen(plan.matrices), visit)
        return sums, numbers

    def traces(self, moments: RunningMoments) -> Traces:
        """O · Σ‖a‖² / positions."""
        return products(moments)

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """One Gram matrix a layer."""
        found: dict[str, Precision] = {}
        for name, layout in self._plan.layouts.items():
            if name in self._plan.matrices:
                found[name] = Gram(_input_factor(sums, name), layout.shape[0])
            else:
                found[name] = Isotropic(1.0, layout.shape)
        return found


class KroneckerEstimator:
    """B = Σ δ δᵀ / examples and A = Σ a aᵀ / positions, or both from sums over positions.

    Parameters
    ----------
    plan : Plan
    sharing : {"expand", "reduce"}
    expanded : bool
        Add up the factors of "expand" too, beside those of "reduce"; see :meth:`bases`.
    """

    width = 3

    def __init__(self, plan: Plan, sharing: str, *, expanded: bool = False) -> None:
        need_layers(plan, "kronecker")
        self._plan, self._sharing = plan, sharing
        self._expanded = expanded and sharing == "reduce"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A, B and the number of positions of every matrix, the diagonal of the rest."""
        found = _input_shapes(self._plan)
        for name, layout in self._plan.layouts.items():
            if name in self._plan.matrices:
                o, i = layout.shape
                found[f"{name}/output"] = (o, o)
                if self._expanded:
                    found |= {f"{name}/output/each": (o, o), f"{name}/input/each": (i, i)}
            else:
                found[f"{name}/diagonal"] = layout.shape
        return found

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """One forward pass and one backward pass a root."""
        plan, reduce = self._plan, self._sharing == "reduce"
        sums: dict[str, BatchSum] = {}
        numbers = numbers_of(plan, examples_of(inputs), 3)
        numbers[:, :, 2] = 1.0

        def visit(term: LayerTerm) -> None:
            own = numbers[:, plan.numbers[term.site]]
            if term.first:
                _add_inputs(term, sums, own, reduce=reduce)
            if term.deltas is not None:
                xp = array_namespace(term.deltas)
                d = xp.sum(term.deltas, axis=2, keepdims=True) if reduce else term.deltas
                flat = xp.reshape(d, (-1, int(d.shape[3])))
                _add(sums, f"{term.site}/output", flat.T @ flat)
                own[:, 0] += host(xp.sum(d * d, axis=(0, 2, 3)))
            if self._expanded:
                _add_each(term, sums)

        squares, norms = plan.engine.layer_terms(inputs, roots, plan.chosen(plan.matrices), visit)
        _add_rest(plan, squares, norms, sums, numbers)
        return sums, numbers

    def traces(self, moments: RunningMoments) -> Traces:
        """Tr B · tr A; mean squared score norms of the rest."""
        return products(moments)

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """One pair of factors a layer."""
        found: dict[str, Precision] = {}
        for name in self._plan.layouts:
            if name in self._plan.matrices:
                B = _symmetric(sums[f"{name}/output"] / n)
                found[name] = Kronecker(B, _input_factor(sums, name), self._sharing)
            else:
                found[name] = Diagonal(sums[f"{name}/diagonal"] / n)
        return found

    def bases(self, sums: Mapping[str, FloatArray]) -> dict[str, Bases]:
        """Eigenvectors of B and of A.

        Where a factor of "reduce" is zero the gradients need not be; there the eigenvectors of the
        factor of "expand" are taken, so that the basis does not hang on roundings.
        """
        found: dict[str, Bases] = {}
        for name in self._plan.chosen(self._plan.matrices):
            U, V = (
                eigenbasis(sums[f"{name}/{side}"], sums.get(f"{name}/{side}/each"))
                for side in ("output", "input")
            )
            found[name] = Bases(output=U, input=V, sharing=self._sharing)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bases:
    """Orthogonal U (o, o) and V (i, i), and the sharing of the factors that gave them."""

    output: FloatArray
    input: FloatArray
    sharing: str


class EKFACEstimator:
    """The second pass of EKFAC: squared gradients in a given eigenbasis.

    Parameters
    ----------
    plan : Plan
    bases : mapping of str to Bases
        From :meth:`KroneckerEstimator.bases` after the first pass.
    """

    width = 1

    def __init__(self, plan: Plan, bases: Mapping[str, Bases]) -> None:
        self._plan, self._bases = plan, dict(bases)
        self._moved: dict[str, tuple[Array, Array]] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Scales of every matrix, the diagonal of the rest."""
        kinds = {n: "scales" if n in self._bases else "diagonal" for n in self._plan.layouts}
        return {f"{n}/{kind}": self._plan.layouts[n].shape for n, kind in kinds.items()}

    def batch(self, inputs: Any, roots: Roots) -> tuple[dict[str, BatchSum], FloatArray]:
        """Rotated inputs and output gradients; for one position summed over the roots first."""
        plan = self._plan
        sums: dict[str, BatchSum] = {}
        numbers = numbers_of(plan, examples_of(inputs), 1)

        def visit(term: LayerTerm) -> None:
            if term.deltas is None:
                return
            U, V = self._bases_like(term)
            scales, norms = _rotated_squares(term.inputs @ V, term.deltas @ U)
            _add(sums, f"{term.site}/scales", scales)
            numbers[:, plan.numbers[term.site], 0] += host(norms)

        squares, norms = plan.engine.layer_terms(inputs, roots, plan.chosen(plan.matrices), visit)
        _add_rest(plan, squares, norms, sums, numbers)
        return sums, numbers

    def traces(self, moments: RunningMoments) -> Traces:
        """Mean squared score norms: a rotation keeps them."""
        return means(moments)

    def finish(self, sums: Mapping[str, FloatArray], n: int) -> dict[str, Precision]:
        """Bases of the first pass, scales of the second."""
        found: dict[str, Precision] = {}
        for name in self._plan.layouts:
            if name in self._bases:
                own = self._bases[name]
                found[name] = EKFAC(own.output, own.input, sums[f"{name}/scales"] / n, own.sharing)
            else:
                found[name] = Diagonal(sums[f"{name}/diagonal"] / n)
        return found

    def _bases_like(self, term: LayerTerm) -> tuple[Array, Array]:
        """U and V in the library, dtype and device of a term."""
        if term.site not in self._moved:
            xp, a = array_namespace(term.inputs), term.inputs
            own = self._bases[term.site]
            self._moved[term.site] = (
                xp.asarray(np.array(own.output), dtype=a.dtype, device=device(a)),
                xp.asarray(np.array(own.input), dtype=a.dtype, device=device(a)),
            )
        return self._moved[term.site]


def eigenbasis(factor: FloatArray, beside: FloatArray | None = None) -> FloatArray:
    """Orthogonal eigenvectors (columns) of a positive semidefinite matrix.

    Where it vanishes those of ``beside`` are taken. Coordinates that both leave out are basis
    vectors of their own, so that what is exactly zero there stays so.
    """
    n = len(factor)
    live = (factor != 0).any(1) if beside is None else ((factor != 0) | (beside != 0)).any(1)
    U = np.eye(n)
    if not live.any():
        return U
    part = np.ix_(live, live)
    values, vectors = np.linalg.eigh(_symmetric(factor[part]))
    # Sums over positions may cancel altogether, as those of an attention key's bias do.
    scale = max(float(values[-1]), 0.0 if beside is None else float(np.diagonal(beside).max()))
    nothing = values <= NULL * scale
    if beside is not None and nothing.any():
        null = vectors[:, nothing]
        vectors[:, nothing] = null @ np.linalg.eigh(_symmetric(null.T @ beside[part] @ null))[1]
    U[part] = vectors
    return U


def _rotated_squares(a: Array, deltas: Array) -> tuple[Array, Array]:
    """Σ over examples and roots of (Σ_t δ_t a_tᵀ)∘² (o, i), and each example's sum (n,)."""
    xp = array_namespace(a)
    if int(a.shape[1]) == 1:
        left = xp.sum(deltas[:, :, 0] ** 2, axis=0)
        right = a[:, 0] ** 2
        return left.T @ right, xp.sum(left, axis=1) * xp.sum(right, axis=1)
    n, size = int(a.shape[0]), int(a.shape[2]) * int(deltas.shape[3])
    step = max(1, BLOCK_BYTES // (size * 8))
    total: Any = 0.0
    norms = []
    for start in range(0, n, step):
        part = slice(start, start + step)
        own: Any = 0.0
        for k in range(int(deltas.shape[0])):
            squares = (xp.matrix_transpose(deltas[k, part]) @ a[part]) ** 2
            total = total + xp.sum(squares, axis=0)
            own = own + xp.sum(squares, axis=(1, 2))
        norms.append(own)
    return total, xp.concat(norms, axis=0)


def _input_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, layout in plan.chosen(plan.matrices).items():
        found[f"{name}/input"] = (layout.shape[1], layout.shape[1])
        found[f"{name}/positions"] = ()
    return found


def _kept_inputs(term: LayerTerm) -> Array:
    """Inputs, zero at the padding."""
    return term.inputs if term.kept is None else term.inputs * term.kept[:, :, None]


def _add_inputs(
    term: LayerTerm, sums: dict[str, BatchSum], numbers: FloatArray, *, reduce: bool
) -> None:
    """Σ a aᵀ over the positions that are no padding, or of their means over each example."""
    xp = array_namespace(term.inputs)
    a = _kept_inputs(term)
    n, T, i = (int(s) for s in a.shape)
    lengths = np.full(n, float(T)) if term.kept is None else host(xp.sum(term.kept, axis=1))
    if reduce:
        inverse = 1.0 / np.maximum(lengths, 1.0)
        a = xp.sum(a, axis=1) * xp.asarray(inverse, dtype=a.dtype, device=device(a))[:, None]
        lengths = np.ones(n)
    flat = xp.reshape(a, (-1, i))
    _add(sums, f"{term.site}/input", flat.T @ flat)
    sums[f"{term.site}/positions"] = np.asarray(lengths.sum(dtype=np.float64))
    numbers[:, 1] = host(xp.sum(xp.reshape(a * a, (n, -1)), axis=1))
    numbers[:, 2] = lengths


def _add_rest(
    plan: Plan,
    squares: Mapping[str, Any],
    norms: Mapping[str, Array],
    sums: dict[str, BatchSum],
    numbers: FloatArray,
) -> None:
    """Diagonals of the parameters outside the matrices."""
    for name, total in squares.items():
        if name in plan.numbers:
            sums[f"{name}/diagonal"] = host_sum(total)
            numbers[:, plan.numbers[name], 0] = host(norms[name])
            if numbers.shape[2] > 1:
                numbers[:, plan.numbers[name], 1:] = 1.0


def _add(sums: dict[str, BatchSum], key: str, x: Array) -> None:
    own = host(x)
    before = sums.get(key)
    sums[key] = own if before is None or isinstance(before, tuple) else before + own


def _add_each(term: LayerTerm, sums: dict[str, BatchSum]) -> None:
    """Factors of "expand", up to their scale."""
    xp = array_namespace(term.inputs)
    sides = [("input", _kept_inputs(term))] if term.first else []
    if term.deltas is not None:
        sides.append(("output", term.deltas))
    for side, x in sides:
        flat = xp.reshape(x, (-1, int(x.shape[-1])))
        _add(sums, f"{term.site}/{side}/each", flat.T @ flat)


def _symmetric(x: FloatArray) -> FloatArray:
    # Products of float32 matrices need not be symmetric to the last digit.
    return (x + x.T) / 2


def _input_factor(sums: Mapping[str, FloatArray], name: str) -> FloatArray:
    return _symmetric(sums[f"{name}/input"] / max(float(sums[f"{name}/positions"]), 1.0))
