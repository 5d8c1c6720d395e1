"""The kernels in NumPy, to be read beside the papers; never optimised.

Every function works in the dtype of its inputs unless it says otherwise. Symbols: θ parameters,
a_l activations of layer l, δ_l derivative with respect to the layer's pre-activation, p softmax
probabilities, A factor rows, G components, W coefficients (Matena & Raffel, arXiv:2310.04649);
x_i generators, w directions (arXiv:2210.00176).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...core.backend import Kernel
from ...core.backend.layout import dense_layout
from ...core.backend.subsets import subset_of_rank
from ...core.types import FloatArray, IntArray, NumpyArray
from ...core.zonotope.cone_program import column_scaled, vertex_program
from ._split_chambers import split_chambers
from .merging import merge_diagonal, merge_linear


def dense_fisher_rows(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
    reduced: bool = True,
) -> FloatArray:
    """Rows A_i = U_i J_i (n, k, p), so that A_iᵀA_i = F(x_i).

    J_i = ∂z/∂θ at x_i; U_iᵀU_i is the Fisher of the outputs z. k = C, or C − 1 for a categorical
    with ``reduced``. Cost: n·k·p.
    """
    n_outputs = sizes[-1]
    k = n_outputs - 1 if output == "categorical" and reduced else n_outputs
    rows = np.zeros((len(inputs), k, len(theta)), dtype=theta.dtype)
    for i, x in enumerate(inputs):
        activations, z = _forward(theta, x, sizes, activation)
        for j, u in enumerate(_output_root(z, output, reduced=reduced)):
            rows[i, j] = _gradient(theta, activations, u, sizes, activation)
    return rows


def dense_fisher_diagonal(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
) -> FloatArray:
    """f_i = Σ_c p_c (∇ log p_c)² = diag F(x_i), shape (n, p): the squared rows, summed."""
    diagonal = np.zeros((len(inputs), len(theta)), dtype=theta.dtype)
    for i, x in enumerate(inputs):
        activations, z = _forward(theta, x, sizes, activation)
        for u in _output_root(z, output, reduced=False):
            diagonal[i] += _gradient(theta, activations, u, sizes, activation) ** 2
    return diagonal


def dense_fisher_diagonal_mean(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
) -> FloatArray:
    """(1/n) Σ_i diag F(x_i), shape (p,).

    The entry of weight (o, t) of layer l is Σ_c (δ_co a_t)² = (Σ_c δ_co²) a_t². Accumulated in
    float64.
    """
    layers = dense_layout(sizes)
    total = np.zeros(len(theta))
    for x in inputs:
        activations, z = _forward(theta, x, sizes, activation)
        roots = _output_root(z, output, reduced=False)
        deltas = [_deltas(theta, activations, u, sizes, activation) for u in roots]
        for depth, layer in enumerate(layers):
            q = sum(delta[depth] ** 2 for delta in deltas)
            total[layer.start : layer.bias] += np.outer(q, activations[depth] ** 2).ravel()
            total[layer.bias : layer.stop] += q
    return (total / len(inputs)).astype(theta.dtype)


def _forward(
    theta: FloatArray, x: FloatArray, sizes: Sequence[int], activation: str
) -> tuple[list[FloatArray], FloatArray]:
    """Activations a_0 = x, ..., a_{L−1} of one example, and its outputs z."""
    layers = dense_layout(sizes)
    activations, z = [x], x
    for layer in layers:
        weight = theta[layer.start : layer.bias].reshape(layer.d_out, layer.d_in)
        z = weight @ activations[-1] + theta[layer.bias : layer.stop]
        if layer is not layers[-1]:
            activations.append(_ACTIVATIONS[activation](z))
    return activations, z


def _output_root(z: FloatArray, output: str, *, reduced: bool) -> FloatArray:
    """U (k, C) with UᵀU = E_y[∇_z log p(y|z) ∇_z log p(y|z)ᵀ] for one example's outputs z (C,)."""
    n_outputs = len(z)
    eye = np.eye(n_outputs, dtype=z.dtype)
    if output == "gaussian":
        return eye
    e = np.exp(z - z.max())
    p = e / e.sum()
    s = np.sqrt(p)
    root = s[:, None] * (eye - p)  # row c: √p_c ∇_z log p_c = √p_c (e_c − p)
    if not reduced:
        return root
    # Σ_c √p_c · row_c = 0. The reflection H = I − 2vvᵀ/‖v‖² with v = s + e_C maps s to −e_C,
    # so row C of H·root vanishes, and HᵀH = I keeps the product.
    v = s + eye[-1]
    reflected = root - np.outer(2.0 * v / (v @ v), v @ root)
    return reflected[:-1].astype(z.dtype, copy=False)


def _deltas(
    theta: FloatArray,
    activations: list[FloatArray],
    u: FloatArray,
    sizes: Sequence[int],
    activation: str,
) -> list[FloatArray]:
    """δ_l = ∂(u·z)/∂(pre-activation of layer l), the first layer first."""
    deltas = [u]
    for layer, a in zip(dense_layout(sizes)[:0:-1], activations[:0:-1], strict=True):
        weight = theta[layer.start : layer.bias].reshape(layer.d_out, layer.d_in)
        deltas.append((weight.T @ deltas[-1]) * _SLOPES[activation](a))
    return deltas[::-1]


def _gradient(
    theta: FloatArray,
    activations: list[FloatArray],
    u: FloatArray,
    sizes: Sequence[int],
    activation: str,
) -> FloatArray:
    """∂(u·z)/∂θ (p,): δ_l a_{l−1}ᵀ for the weights of layer l, δ_l for its biases."""
    parts: list[FloatArray] = []
    deltas = _deltas(theta, activations, u, sizes, activation)
    for delta, a in zip(deltas, activations, strict=True):
        parts += [np.outer(delta, a).ravel(), delta]
    return np.concatenate(parts)


_ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "identity": lambda z: z,
}

# Derivatives, written in the activation's value a; relu'(0) = 0.
_SLOPES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "relu": lambda a: (a > 0).astype(a.dtype),
    "tanh": lambda a: 1 - a**2,
    "identity": np.ones_like,
}


def lowrank_products(
    rows: FloatArray, offsets: IntArray, components: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """B = A Gᵀ (h, r) and N_ik = Σ_{j in rows(i)} B_jk² = g_kᵀF_i g_k (n, r)."""
    products = rows @ components.T
    return products, _segment_sums(products**2, offsets)


def lowrank_pullback(
    rows: FloatArray, offsets: IntArray, coefficients: FloatArray, products: FloatArray
) -> FloatArray:
    """(W̃∘B)ᵀ A (r, m); W̃ (h, r) repeats row i of W for every row of A_i."""
    repeated = np.repeat(coefficients, np.diff(offsets), axis=0)
    return (repeated * products).T @ rows


def lowrank_line(
    rows: FloatArray, offsets: IntArray, products: FloatArray, direction: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """E = A Dᵀ, and N1, N2 with N(G + tD) = N + t N1 + t² N2."""
    change = rows @ direction.T
    return (
        change,
        2 * _segment_sums(products * change, offsets),
        _segment_sums(change**2, offsets),
    )


def _segment_sums(values: FloatArray, offsets: IntArray) -> FloatArray:
    """Add up each example's rows: (h, r) → (n, r)."""
    sums = np.zeros((len(offsets) - 1, values.shape[1]), dtype=values.dtype)
    for i in range(len(sums)):
        sums[i] = values[offsets[i] : offsets[i + 1]].sum(axis=0)
    return sums


def nnls_gram(
    gram: FloatArray,
    targets: FloatArray,
    start: FloatArray,
    *,
    sweeps: int = 5,
    tol: float = 0.0,
) -> FloatArray:
    """W (n, r) from ``sweeps`` rounds of W_k ← max(0, W_k + (N_k − W H_k)/H_kk), k = 1..r.

    An example leaves the rounds after the one in which none of its coefficients moved by more
    than ``tol`` times the largest of them. Coefficients with H_kk ≤ 0 are set to 0: their
    component is zero. Accumulated in float64.
    """
    h, n = gram.astype(np.float64), targets.astype(np.float64)
    w = np.where(np.diag(h) > 0, start, 0.0).astype(np.float64)
    moving = np.full(len(w), True)
    for _ in range(sweeps):
        before = w.copy()
        for k in np.flatnonzero(np.diag(h) > 0):
            step = (n[:, k] - w @ h[:, k]) / h[k, k]
            w[moving, k] = np.maximum(0.0, w[:, k] + step)[moving]
        moved = np.abs(w - before).max(axis=1, initial=0.0)
        moving &= moved > tol * np.abs(w).max(axis=1, initial=0.0)
    return w.astype(start.dtype)


def sparse_products(
    entries: FloatArray, columns: IntArray, offsets: IntArray, factor: FloatArray
) -> FloatArray:
    """X Y (n, r): row i is the sum of x_ij times row j of Y over the entries of row i."""
    out = np.zeros((len(offsets) - 1, factor.shape[1]), dtype=factor.dtype)
    for i in range(len(out)):
        row = slice(offsets[i], offsets[i + 1])
        out[i] = entries[row] @ factor[columns[row]]
    return out


def sparse_pullback(
    entries: FloatArray,
    columns: IntArray,
    offsets: IntArray,
    factor: FloatArray,
    *,
    n_columns: int,
) -> FloatArray:
    """Xᵀ W (p, r): every entry x_ij adds x_ij times row i of W to row j."""
    out = np.zeros((n_columns, factor.shape[1]), dtype=factor.dtype)
    repeated = np.repeat(factor, np.diff(offsets), axis=0)
    np.add.at(out, columns, entries[:, None] * repeated)
    return out


def zonotope_support(generators: FloatArray, directions: FloatArray) -> FloatArray:
    """h_Z(w) = Σ_i max(x_i·w, 0) (k,) for every direction w; the sum runs in float64."""
    products = directions @ generators.T
    return np.maximum(products, 0).sum(axis=1, dtype=np.float64).astype(generators.dtype)


def sign_patterns(generators: FloatArray, directions: FloatArray) -> NumpyArray:
    """s_ki = sign(x_i·w_k) as int8 (k, n); 0 where the computed product is exactly 0."""
    return np.sign(directions @ generators.T).astype(np.int8)


def sweep_chambers(
    rotated: FloatArray, *, level: int, start: int, count: int
) -> tuple[NumpyArray, FloatArray]:
    """Patterns (count, n) int8 and clearances (count,) of consecutive cells of one level."""
    n, d = rotated.shape
    r = d - 1 - level
    subsets = [subset_of_rank(start + cell, n - 1, r) for cell in range(count)]
    return chambers_at(rotated, np.array(subsets, np.int64).reshape(count, r), level=level)


def chambers_at(
    rotated: FloatArray, subsets: IntArray, *, level: int
) -> tuple[NumpyArray, FloatArray]:
    """Patterns (k, n) int8 and clearances (k,) of the cells of the given subsets."""
    y = rotated.astype(np.float64)
    n, d = y.shape
    r = d - 1 - level
    c = 1.0 if level == 0 else -1.0
    patterns = np.ones((len(subsets), n), dtype=np.int8)
    clearance = np.zeros(len(subsets))
    for cell, s in enumerate(subsets):
        a = y[s, level + 1 :]
        pivot = _least_distance(a)
        if pivot == 0.0:
            continue
        z = np.linalg.solve(a, -c * y[s, level])
        multipliers = np.linalg.solve(a.T, np.eye(r)[0]) if r else np.empty(0)
        w = np.concatenate([np.zeros(level), [c], z])
        products = y @ w
        patterns[cell] = np.where(products > 0, 1, -1)
        patterns[cell, s] = np.where(multipliers > 0, 1, -1)
        patterns[cell, -1] = 1
        free = np.delete(np.arange(n - 1), s)
        gaps = [1.0, *np.abs(products[free]) / np.linalg.norm(w)]
        gaps += list(np.abs(multipliers) / np.linalg.norm(multipliers))
        clearance[cell] = min(gaps) * pivot
    return patterns, clearance.astype(rotated.dtype)


def _least_distance(a: FloatArray) -> float:
    """The smallest distance of a row from the span of those before it, 1 at most."""
    return min([1.0, *np.abs(np.diag(np.linalg.qr(a.T, mode="r")))])


def vertex_programs(
    generators: FloatArray, targets: FloatArray, unit_signs: FloatArray, patterns: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights (b, m, d) and multipliers (b, m, n) of b vertex programs, one after the other."""
    x, y, v, s = (a.astype(np.float64) for a in (generators, targets, unit_signs, patterns))
    (n, d), (b, m, _) = x.shape, s.shape
    weights, multipliers = np.zeros((b, m, d)), np.zeros((b, m, n))
    scaled, exponents = column_scaled(x)
    for k in range(b):
        weights[k], multipliers[k] = vertex_program(scaled, y, v, s[k])
    weights = np.ldexp(weights, -exponents)
    return weights.astype(generators.dtype), multipliers.astype(generators.dtype)


def neighbour_programs(
    generators: FloatArray,
    targets: FloatArray,
    unit_signs: FloatArray,
    patterns: FloatArray,
    multipliers: FloatArray,
    units: IntArray,
    rows: IntArray,
    *,
    incumbent: float = np.inf,
) -> tuple[FloatArray, FloatArray]:
    """Weights (k, m, d) and losses (k,) of the programs with one sign turned; no hint is taken."""
    every = np.repeat(patterns[None], len(units), axis=0)
    for k, (j, i) in enumerate(zip(units, rows, strict=True)):
        every[k, j, i] = -every[k, j, i]
    weights, _ = vertex_programs(generators, targets, unit_signs, every)
    losses = np.empty(len(units), dtype=generators.dtype)
    for k, w in enumerate(weights):
        outputs = unit_signs @ ((every[k] > 0) * (w @ generators.T))
        losses[k] = 0.5 * ((outputs - targets) ** 2).sum()
        if losses[k] >= incumbent:
            weights[k], losses[k] = 0.0, np.inf
    return weights, losses


KERNELS: dict[Kernel, Callable[..., Any]] = {
    Kernel.DENSE_FISHER_ROWS: dense_fisher_rows,
    Kernel.DENSE_FISHER_DIAGONAL: dense_fisher_diagonal,
    Kernel.DENSE_FISHER_DIAGONAL_MEAN: dense_fisher_diagonal_mean,
    Kernel.LOWRANK_PRODUCTS: lowrank_products,
    Kernel.LOWRANK_PULLBACK: lowrank_pullback,
    Kernel.LOWRANK_LINE: lowrank_line,
    Kernel.NNLS_GRAM: nnls_gram,
    Kernel.SPARSE_PRODUCTS: sparse_products,
    Kernel.SPARSE_PULLBACK: sparse_pullback,
    Kernel.MERGE_LINEAR: merge_linear,
    Kernel.MERGE_DIAGONAL: merge_diagonal,
    Kernel.ZONOTOPE_SUPPORT: zonotope_support,
    Kernel.SIGN_PATTERNS: sign_patterns,
    Kernel.SWEEP_CHAMBERS: sweep_chambers,
    Kernel.CHAMBERS_AT: chambers_at,
    Kernel.SPLIT_CHAMBERS: split_chambers,
    Kernel.VERTEX_PROGRAMS: vertex_programs,
    Kernel.NEIGHBOUR_PROGRAMS: neighbour_programs,
}
