"""The kernels for torch tensors: one batched code for the CPU and for CUDA.

Nothing is recorded for autograd: tensors that require a gradient are read as constants, and the
results require none. Everything runs in the dtype and on the device of the inputs, without a
transfer to the host. No operation adds in an undetermined order, so results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.backend import Kernel
from ...core.backend.layout import DenseLayer, dense_layout
from ...core.model import Categorical, Gaussian
from ._sweep import sweep_chambers
from ._vertex_programs import vertex_programs
from .merging import merge_diagonal, merge_linear

# Entries of the largest temporary of the mean diagonal: 32 MB in float64.
_BLOCK = 1 << 22


@torch.no_grad()
def dense_fisher_rows(
    theta: Tensor,
    inputs: Tensor,
    *,
    sizes: Sequence[int],
    activation: str,
    output: str,
    reduced: bool = True,
) -> Tensor:
    """Rows A_i = U_i J_i (n, k, p). Cost: n·k·p."""
    layers = dense_layout(sizes)
    activations, deltas = _backward(theta, inputs, layers, activation, output, reduced)
    n, k = deltas[-1].shape[:2]
    rows = theta.new_empty((n, k, theta.shape[0]))
    for layer, a, delta in zip(layers, activations, deltas, strict=True):
        block = rows[:, :, layer.start : layer.bias].unflatten(-1, (layer.d_out, layer.d_in))
        torch.mul(delta[..., None], a[:, None, None, :], out=block)
        rows[:, :, layer.bias : layer.stop] = delta
    return rows


@torch.no_grad()
def dense_fisher_diagonal(
    theta: Tensor, inputs: Tensor, *, sizes: Sequence[int], activation: str, output: str
) -> Tensor:
    """f_i = diag F(x_i) (n, p). Cost: n·(p + k·Σ_l d_l d_{l−1})."""
    layers = dense_layout(sizes)
    activations, deltas = _backward(theta, inputs, layers, activation, output, True)
    diagonals = theta.new_empty((inputs.shape[0], theta.shape[0]))
    for layer, a, delta in zip(layers, activations, deltas, strict=True):
        q = delta.square().sum(dim=1)
        block = diagonals[:, layer.start : layer.bias].unflatten(-1, (layer.d_out, layer.d_in))
        torch.mul(q[..., None], a.square()[:, None, :], out=block)
        diagonals[:, layer.bias : layer.stop] = q
    return diagonals


@torch.no_grad()
def dense_fisher_diagonal_mean(
    theta: Tensor, inputs: Tensor, *, sizes: Sequence[int], activation: str, output: str
) -> Tensor:
    """(1/n) Σ_i diag F(x_i) (p,): per layer (Σ_c δ_c²)ᵀ a² over blocks of examples.

    Accumulated in the dtype of the inputs. Memory: O(p), no n×p tensor.
    """
    layers = dense_layout(sizes)
    total = torch.zeros_like(theta)
    for part in _blocks(inputs, sizes):
        activations, deltas = _backward(theta, part, layers, activation, output, True)
        for layer, a, delta in zip(layers, activations, deltas, strict=True):
            q = delta.square().sum(dim=1)
            total[layer.start : layer.bias] += (q.T @ a.square()).flatten()
            total[layer.bias : layer.stop] += q.sum(dim=0)
    return total / inputs.shape[0]


def _blocks(inputs: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    length = max(1, _BLOCK // (sizes[-1] * max(sizes[1:])))
    for at in range(0, inputs.shape[0], length):
        yield inputs[at : at + length]


def _backward(
    theta: Tensor,
    inputs: Tensor,
    layers: Sequence[DenseLayer],
    activation: str,
    output: str,
    reduced: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Activations (n, d_in) and δ (n, k, d_out) of every layer, the first layer first."""
    theta, z = theta.detach(), inputs.detach()
    activations = [z]
    weights: list[Tensor] = []
    for layer in layers:
        weights.append(theta[layer.start : layer.bias].reshape(layer.d_out, layer.d_in))
        z = torch.addmm(theta[layer.bias : layer.stop], activations[-1], weights[-1].T)
        if layer is not layers[-1]:
            activations.append(_activate(z, activation))
    distribution = Categorical() if output == "categorical" else Gaussian()
    deltas = [distribution.fisher_root(z, reduced=reduced)]
    for weight, a in zip(weights[:0:-1], activations[:0:-1], strict=True):
        delta = deltas[-1] @ weight
        if activation == "relu":
            delta *= (a > 0)[:, None, :]
        elif activation == "tanh":
            delta *= (1 - a.square())[:, None, :]
        deltas.append(delta)
    return activations, deltas[::-1]


def _activate(z: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return z.clamp(min=0)
    return z.tanh() if activation == "tanh" else z


@torch.no_grad()
def lowrank_products(rows: Tensor, offsets: Tensor, components: Tensor) -> tuple[Tensor, Tensor]:
    """B = A Gᵀ (h, r) and N_ik = Σ_{j in rows(i)} B_jk² (n, r)."""
    products = rows @ components.T
    return products, _segment_sums(products.square(), offsets)


@torch.no_grad()
def lowrank_pullback(
    rows: Tensor, offsets: Tensor, coefficients: Tensor, products: Tensor
) -> Tensor:
    """(W̃∘B)ᵀ A (r, m)."""
    repeated = torch.repeat_interleave(
        coefficients, offsets.diff(), dim=0, output_size=rows.shape[0]
    )
    return (repeated * products).T @ rows


@torch.no_grad()
def lowrank_line(
    rows: Tensor, offsets: Tensor, products: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """E = A Dᵀ, N1 = 2 Σ_rows B∘E and N2 = Σ_rows E∘E."""
    change = rows @ direction.T
    first = _segment_sums(products * change, offsets).mul_(2)
    return change, first, _segment_sums(change.square(), offsets)


def _segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    # Not index_add_: on CUDA it adds in the order in which threads happen to arrive.
    sums: Tensor = torch.segment_reduce(values, "sum", offsets=offsets, axis=0, initial=0)
    return sums


@torch.no_grad()
def nnls_gram(
    gram: Tensor, targets: Tensor, start: Tensor, *, sweeps: int = 5, tol: float = 0.0
) -> Tensor:
    """W (n, r) by coordinate descent over columns, all examples at once.

    The residual N − WH is updated after each column and formed anew every ten sweeps.
    Cost: n·(sweeps + 1)·r², in r·sweeps batched steps.
    """
    scale = gram.diagonal()
    used = scale > 0
    inverse = torch.where(used, scale, 1).reciprocal() * used
    w = torch.where(used, start, 0)
    moving: Tensor | None = None
    residual = targets - w @ gram
    for sweep in range(sweeps):
        if sweep > 0 and sweep % 10 == 0:
            residual = targets - w @ gram
        before = w.clone() if tol > 0 else w
        for k in range(gram.shape[0]):
            # A column that is not used has inverse 0 and stays at 0.
            new = (w[:, k] + residual[:, k] * inverse[k]).clamp_(min=0)
            step = new - w[:, k]
            if moving is not None:
                step *= moving
            w[:, k] += step
            residual.addr_(step, gram[k], alpha=-1)
        if tol > 0 and gram.shape[0] > 0:
            still = (w - before).abs().amax(dim=1) > tol * w.amax(dim=1)
            moving = still if moving is None else moving & still
    return w


@torch.no_grad()
def sparse_products(entries: Tensor, columns: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """X Y (n, r)."""
    return _segment_sums(entries[:, None] * factor[columns], offsets)


@torch.no_grad()
def sparse_pullback(
    entries: Tensor, columns: Tensor, offsets: Tensor, factor: Tensor, *, n_columns: int
) -> Tensor:
    """Xᵀ W (p, r), by sorting the entries by column."""
    rows = torch.repeat_interleave(
        torch.arange(factor.shape[0], device=factor.device),
        offsets.diff(),
        output_size=entries.shape[0],
    )
    order = torch.argsort(columns, stable=True)
    counts = torch.bincount(columns, minlength=n_columns)
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return _segment_sums(entries[order, None] * factor[rows[order]], bounds)


@torch.no_grad()
def zonotope_support(generators: Tensor, directions: Tensor) -> Tensor:
    """h_Z(w) = Σ_i max(x_i·w, 0) (k,)."""
    return torch.cat([p.clamp_(min=0).sum(dim=1) for p in _products(generators, directions)])


@torch.no_grad()
def sign_patterns(generators: Tensor, directions: Tensor) -> Tensor:
    """sign(x_i·w_k) as int8 (k, n); 0 where the computed product is exactly 0."""
    return torch.cat([p.sign_().to(torch.int8) for p in _products(generators, directions)])


def _products(generators: Tensor, directions: Tensor) -> Iterator[Tensor]:
    """x_i·w_k (block of k, n) for blocks of directions; one empty block if there is none."""
    length = max(1, _BLOCK // max(1, generators.shape[0]))
    for at in range(0, max(1, directions.shape[0]), length):
        yield directions[at : at + length] @ generators.T


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
    Kernel.VERTEX_PROGRAMS: vertex_programs,
}
