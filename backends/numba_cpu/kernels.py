"""The kernels for NumPy arrays on the CPU: matrix products by BLAS, the rest by compiled loops.

This adapter makes arrays contiguous and writable (numba compiles again for other layouts and for
read-only arrays), allocates the results and shares the work, matrix products included, among
threads of its own: BLAS runs on one thread inside (see ``serial_blas``). Threads never share a sum,
so their number does not change what the loops return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...core.backend.layout import DenseLayer, dense_layout
from ...core.backend.subsets import subset_of_rank
from ...core.backend.threads import serial_blas
from ...core.types import FloatArray, IntArray, NumpyArray
from ...core.zonotope.cone_program import vertex_program
from ._factor_kernels import descend, scale_segments, segment_products
from ._fisher_kernels import (
    RELU,
    TANH,
    apply_slopes,
    write_diagonals,
    write_rows,
    write_softmax_roots,
    write_square_sums,
)
from ._neighbour_kernels import solve_neighbours
from ._program_assembly import scaled_columns
from ._sparse_kernels import columns_times, rows_times
from ._split import split
from ._split_cells_kernels import split_cells
from ._sweep_kernels import chosen_cells, sweep_cells
from ._vertex_program_kernels import solve_programs
from ._zonotope_kernels import positive_sums, write_signs

# Entries of the largest temporary: a few MB, so that blocks stay in the cache.
_BLOCK = 1 << 19


# Share of the mean diagonal of a vertex program's Hessian that makes it definite.
RIDGE = 1e-11
# Programs with a larger relative KKT miss are solved again by the reference's QR method.
UNFINISHED = 1e-10

# A multiplication inside BLAS takes about this fraction of the time of an entry in a loop.
_MULTIPLICATIONS = 8

_CODES = {"relu": RELU, "tanh": TANH, "identity": 0}


def _ready(x: NumpyArray) -> NumpyArray:
    """``x`` C-contiguous and writable, copied only if it is not."""
    return np.require(x, requirements=["C", "W"])


@serial_blas()
def dense_fisher_rows(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
    reduced: bool = True,
) -> FloatArray:
    """Rows A_i = U_i J_i (n, k, p), in the dtype of the inputs. Cost: n·k·p."""
    k = _n_rows(sizes, output, reduced=reduced)
    rows = np.empty((len(inputs), k, len(theta)), dtype=theta.dtype)
    for block, activations, deltas in _blocks(theta, inputs, sizes, activation, output, reduced):
        part = rows[block]
        split(_write, len(part), write_rows, sizes, deltas, activations, part, work=part.size)
    return rows


@serial_blas()
def dense_fisher_diagonal(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
) -> FloatArray:
    """f_i = diag F(x_i) (n, p), in the dtype of the inputs. Cost: n·(p + k·Σ_l d_l d_{l−1})."""
    diagonals = np.empty((len(inputs), len(theta)), dtype=theta.dtype)
    for block, activations, deltas in _blocks(theta, inputs, sizes, activation, output, True):
        part = diagonals[block]
        split(_write, len(part), write_diagonals, sizes, deltas, activations, part, work=part.size)
    return diagonals


@serial_blas()
def dense_fisher_diagonal_mean(
    theta: FloatArray,
    inputs: FloatArray,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
) -> FloatArray:
    """(1/n) Σ_i diag F(x_i) (p,): per layer (Σ_c δ_c²)ᵀ a² over blocks of examples.

    Products in the dtype of the inputs, blocks added in float64. Memory: O(p), no n×p array.
    """
    total = np.zeros(len(theta))
    for _, activations, deltas in _blocks(theta, inputs, sizes, activation, output, True):
        for layer, a, delta in zip(dense_layout(sizes), activations, deltas, strict=True):
            q = _square_sums(delta)
            total[layer.start : layer.bias] += _transposed_matmul(q, a * a).ravel()
            total[layer.bias : layer.stop] += q.sum(axis=0)
    return (total / len(inputs)).astype(theta.dtype)


def _write(
    start: int,
    stop: int,
    loop: Callable[..., None],
    sizes: Sequence[int],
    deltas: Sequence[FloatArray],
    activations: Sequence[FloatArray],
    out: FloatArray,
) -> None:
    """Let ``loop`` write the examples ``start:stop`` of ``out``, one layer after another."""
    for layer, delta, a in zip(dense_layout(sizes), deltas, activations, strict=True):
        loop(start, stop, delta, a, layer.start, out)


def _n_rows(sizes: Sequence[int], output: str, *, reduced: bool) -> int:
    return sizes[-1] - 1 if output == "categorical" and reduced else sizes[-1]


def _blocks(
    theta: FloatArray,
    inputs: FloatArray,
    sizes: Sequence[int],
    activation: str,
    output: str,
    reduced: bool,
) -> Iterator[tuple[slice, list[FloatArray], list[FloatArray]]]:
    """Blocks of examples with the activations (n, d_in) and the δ (n, k, d_out) of every layer."""
    k = _n_rows(sizes, output, reduced=reduced)
    length = max(1, _BLOCK // max(1, k * max(sizes[1:])))
    layers = dense_layout(sizes)
    for at in range(0, len(inputs), length):
        block = slice(at, at + length)
        activations, z = _forward(theta, inputs[block], layers, activation)
        deltas = [_output_roots(z, output, k)]
        for layer, a in zip(layers[:0:-1], activations[:0:-1], strict=True):
            back = _matmul(deltas[-1].reshape(-1, layer.d_out), _weight(theta, layer))
            delta = back.reshape(len(z), k, layer.d_in)
            split(apply_slopes, len(z), a, _CODES[activation], delta, work=delta.size)
            deltas.append(delta)
        yield block, activations, deltas[::-1]


def _output_roots(z: FloatArray, output: str, k: int) -> FloatArray:
    """U (n, k, C) with U_iᵀU_i the Fisher of the outputs z."""
    n, n_outputs = z.shape
    roots = np.empty((n, k, n_outputs), dtype=z.dtype)
    if output == "categorical":
        split(write_softmax_roots, n, z, roots, work=4 * roots.size)
    else:
        roots[...] = np.eye(n_outputs, dtype=z.dtype)
    return roots


def _forward(
    theta: FloatArray, inputs: FloatArray, layers: Sequence[DenseLayer], activation: str
) -> tuple[list[FloatArray], FloatArray]:
    activations = [_ready(inputs)]
    z = activations[0]
    for layer in layers:
        z = _matmul(activations[-1], _weight(theta, layer).T)
        z += theta[layer.bias : layer.stop]
        if layer is not layers[-1]:
            if activation == "relu":
                np.maximum(z, 0, out=z)
            elif activation == "tanh":
                np.tanh(z, out=z)
            activations.append(z)
    return activations, z


def _matmul(x: FloatArray, y: FloatArray) -> FloatArray:
    """``x @ y``, the rows of x shared out over threads; called with one BLAS thread."""
    out = np.empty((x.shape[0], y.shape[1]), dtype=x.dtype)
    work = x.size * y.shape[1] // _MULTIPLICATIONS
    split(_rows_product, len(x), x, y, out, work=work)
    return out


def _rows_product(
    start: int, stop: int, left: FloatArray, right: FloatArray, out: FloatArray
) -> None:
    """Write rows start:stop of left @ right."""
    np.matmul(left[start:stop], right, out=out[start:stop])


def _columns_product(
    start: int, stop: int, left: FloatArray, right: FloatArray, out: FloatArray
) -> None:
    """Write columns start:stop of leftᵀ right."""
    np.matmul(left.T, right[:, start:stop], out=out[:, start:stop])


def _transposed_matmul(x: FloatArray, y: FloatArray) -> FloatArray:
    """``xᵀ y``, the columns of y shared out over threads; called with one BLAS thread."""
    out = np.empty((x.shape[1], y.shape[1]), dtype=x.dtype)
    work = y.size * x.shape[1] // _MULTIPLICATIONS
    split(_columns_product, y.shape[1], x, y, out, work=work)
    return out


def _weight(theta: FloatArray, layer: DenseLayer) -> FloatArray:
    return theta[layer.start : layer.bias].reshape(layer.d_out, layer.d_in)


def _square_sums(deltas: FloatArray) -> FloatArray:
    q = np.empty((deltas.shape[0], deltas.shape[2]), dtype=deltas.dtype)
    split(write_square_sums, len(q), deltas, q, work=deltas.size)
    return q


@serial_blas()
def lowrank_products(
    rows: FloatArray, offsets: IntArray, components: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """B = A Gᵀ (h, r) and N_ik = Σ_{j in rows(i)} B_jk² (n, r), in the dtype of the inputs."""
    products = _matmul(rows, components.T)
    return products, _segments(products, products, offsets, 1)


@serial_blas()
def lowrank_pullback(
    rows: FloatArray, offsets: IntArray, coefficients: FloatArray, products: FloatArray
) -> FloatArray:
    """(W̃∘B)ᵀ A (r, m), in the dtype of the inputs."""
    weighted = np.empty(products.shape, dtype=products.dtype)
    split(
        scale_segments,
        len(coefficients),
        _ready(coefficients),
        _ready(products),
        _ready(offsets),
        weighted,
        work=products.size,
    )
    return _transposed_matmul(weighted, rows)


@serial_blas()
def lowrank_line(
    rows: FloatArray, offsets: IntArray, products: FloatArray, direction: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """E = A Dᵀ, N1 = 2 Σ_rows B∘E and N2 = Σ_rows E∘E, in the dtype of the inputs."""
    change = _matmul(rows, direction.T)
    first = _segments(_ready(products), change, offsets, 2)
    return change, first, _segments(change, change, offsets, 1)


def _segments(left: FloatArray, right: FloatArray, offsets: IntArray, scale: int) -> FloatArray:
    out = np.empty((len(offsets) - 1, left.shape[1]), dtype=left.dtype)
    split(segment_products, len(out), left, right, _ready(offsets), scale, out, work=left.size)
    return out


def nnls_gram(
    gram: FloatArray,
    targets: FloatArray,
    start: FloatArray,
    *,
    sweeps: int = 5,
    tol: float = 0.0,
) -> FloatArray:
    """W (n, r) by coordinate descent, one example after another; accumulated in float64.

    Cost: at most n·(sweeps + 1)·r²; coefficients that stay at zero cost nothing.
    """
    coefficients = np.array(start, order="C")
    n, r = coefficients.shape
    split(
        descend,
        n,
        _ready(gram),
        _ready(targets),
        sweeps,
        float(tol),
        coefficients,
        work=n * sweeps * r * r,
    )
    return coefficients


@serial_blas()
def zonotope_support(generators: FloatArray, directions: FloatArray) -> FloatArray:
    """h_Z(w) = Σ_i max(x_i·w, 0) (k,); products in the dtype of the inputs, sums in float64."""
    support = np.empty(len(directions), dtype=generators.dtype)
    for block, products in _products(generators, directions):
        split(positive_sums, len(products), products, support[block], work=products.size)
    return support


@serial_blas()
def sign_patterns(generators: FloatArray, directions: FloatArray) -> NumpyArray:
    """sign(x_i·w_k) as int8 (k, n); 0 where the computed product is exactly 0."""
    patterns = np.empty((len(directions), len(generators)), dtype=np.int8)
    for block, products in _products(generators, directions):
        split(write_signs, len(products), products, patterns[block], work=products.size)
    return patterns


def _products(generators: FloatArray, directions: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """x_i·w_k (block of k, n) for blocks of directions that fit the cache."""
    length = max(1, _BLOCK // max(1, len(generators)))
    for at in range(0, len(directions), length):
        block = slice(at, at + length)
        yield block, _matmul(directions[block], generators.T)


def sparse_products(
    entries: FloatArray, columns: IntArray, offsets: IntArray, factor: FloatArray
) -> FloatArray:
    """X Y (n, r), in the dtype of the inputs."""
    out = np.empty((len(offsets) - 1, factor.shape[1]), dtype=factor.dtype)
    matrix = _ready(entries), _ready(columns), _ready(offsets)
    split(rows_times, len(out), *matrix, _ready(factor), out, work=len(entries) * out.shape[1])
    return out


def sparse_pullback(
    entries: FloatArray,
    columns: IntArray,
    offsets: IntArray,
    factor: FloatArray,
    *,
    n_columns: int,
) -> FloatArray:
    """Xᵀ W (p, r), without a transposed copy of X; columns must ascend within each row."""
    out = np.empty((n_columns, factor.shape[1]), dtype=factor.dtype)
    matrix = _ready(entries), _ready(columns), _ready(offsets)
    split(columns_times, n_columns, *matrix, _ready(factor), out, work=len(entries) * out.shape[1])
    return out


def sweep_chambers(
    rotated: FloatArray, *, level: int, start: int, count: int
) -> tuple[NumpyArray, FloatArray]:
    """Patterns (count, n) int8 and clearances (count,) of consecutive cells of one level."""
    n, d = rotated.shape
    columns = np.ascontiguousarray(rotated.T, dtype=np.float64)
    rows = np.ascontiguousarray(rotated, dtype=np.float64)
    patterns = np.empty((count, n), dtype=np.int8)
    clearance = np.empty(count)

    def part(begin: int, end: int) -> None:
        if end > begin:
            first = subset_of_rank(start + begin, n - 1, d - 1 - level)
            sweep_cells(columns, rows, level, first, patterns[begin:end], clearance[begin:end])

    split(part, count, work=patterns.size * d)
    return patterns, clearance.astype(rotated.dtype, copy=False)


def chambers_at(
    rotated: FloatArray, subsets: IntArray, *, level: int
) -> tuple[NumpyArray, FloatArray]:
    """Patterns (k, n) int8 and clearances (k,) of the cells of the given subsets."""
    columns = np.ascontiguousarray(rotated.T, dtype=np.float64)
    rows = np.ascontiguousarray(rotated, dtype=np.float64)
    chosen = np.ascontiguousarray(subsets, dtype=np.int64)
    count, n = len(chosen), len(rotated)
    patterns, clearance = np.empty((count, n), dtype=np.int8), np.empty(count)

    def part(begin: int, end: int) -> None:
        at = slice(begin, end)
        chosen_cells(columns, rows, level, chosen[at], patterns[at], clearance[at])

    split(part, count, work=patterns.size * rotated.shape[1])
    return patterns, clearance.astype(rotated.dtype, copy=False)


def split_chambers(
    rows: FloatArray, row: FloatArray, signs: FloatArray, witnesses: FloatArray
) -> tuple[NumpyArray, FloatArray]:
    """Answers int8 (b, 2) for the sides + and − of ``row``, and unit witnesses (b, 2, d)."""
    x, new, s, w = (
        np.ascontiguousarray(np.array(a, dtype=np.float64)) for a in (rows, row, signs, witnesses)
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    new /= np.linalg.norm(new)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    answers, out = np.zeros((len(s), 2), dtype=np.int8), np.zeros((len(s), 2, len(new)))
    split(split_cells, len(s), x, new, s, w, answers, out, work=s.size * 8 * len(new))
    return answers, out.astype(rows.dtype, copy=False)


def vertex_programs(
    generators: FloatArray, targets: FloatArray, unit_signs: FloatArray, patterns: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights (b, m, d) and multipliers (b, m, n) of b vertex programs, by dual active sets."""
    x, y, v = (np.array(a, dtype=np.float64, order="C") for a in (generators, targets, unit_signs))
    s = np.ascontiguousarray(patterns)
    if s.dtype != np.int8:
        s = np.where(s > 0, np.int8(1), np.int8(-1))
    (n, d), (b, m, _) = x.shape, s.shape
    x, exponents = scaled_columns(x)
    weights, multipliers = np.empty((b, m, d)), np.empty((b, m, n))
    quality = np.empty(b)
    work = b * n * m * m * d * d
    split(solve_programs, b, x, y, v, s, RIDGE, weights, multipliers, quality, work=work)
    for k in np.flatnonzero(~(quality <= UNFINISHED)):
        weights[k], multipliers[k] = vertex_program(x, y, v, s[k].astype(np.float64))
    weights = np.ldexp(weights, -exponents)
    dtype = generators.dtype
    return weights.astype(dtype, copy=False), multipliers.astype(dtype, copy=False)


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
    """Weights (k, m, d) and losses (k,) of the programs with one sign turned, warm-started."""
    x, y, v, s = (
        np.array(a, dtype=np.float64, order="C")
        for a in (generators, targets, unit_signs, patterns)
    )
    d, m, k = x.shape[1], len(v), len(units)
    x, exponents = scaled_columns(x)
    force = np.ascontiguousarray(multipliers)
    j, i = np.ascontiguousarray(units, np.int64), np.ascontiguousarray(rows, np.int64)
    weights, losses, quality = np.empty((k, m, d)), np.empty(k), np.empty(k)
    split(
        solve_neighbours, k, x, exponents, y, v, s, force, j, i, RIDGE, float(incumbent), weights,
        losses, quality, work=k * (m * d) ** 3,
    )  # fmt: skip
    for at in np.flatnonzero(~(quality <= UNFINISHED)):
        turned = s.copy()
        turned[j[at], i[at]] *= -1
        own, _ = vertex_program(x, y, v, turned)
        weights[at] = np.ldexp(own, -exponents)
        misfit = v @ ((turned > 0) * (own @ x.T)) - y
        losses[at] = 0.5 * float(misfit @ misfit)
        if losses[at] >= incumbent:
            weights[at], losses[at] = 0.0, np.inf
    dtype = generators.dtype
    return weights.astype(dtype, copy=False), losses.astype(dtype, copy=False)
