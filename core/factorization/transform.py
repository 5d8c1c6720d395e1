"""Coefficients of new examples for components that stay as they are: exact NNLS."""

from __future__ import annotations

import numpy as np

from ..backend import BackendChoice, Kernel, enter, like, to_numpy
from ..fisher.per_example import DiagonalFishers, LowRankFishers, is_sparse
from ..types import Array, Device
from .diagonal import DiagonalProblem
from .nnls import exact_nnls
from .objective import gram

MAX_SWEEPS = 500


def new_coefficients(
    fishers: LowRankFishers | DiagonalFishers,
    components: Array,
    *,
    normalize: bool,
    backend: BackendChoice,
    device: Device,
    tol: float,
) -> Array:
    """argmin_{W ≥ 0} L(W, G) for fixed G (n, r): one data product, then exact least squares.

    The Gram is H = (GGᵀ)∘(GGᵀ) with targets N_ik = ‖A_i g_k‖² for low rank, and HHᵀ with XHᵀ for
    diagonals.
    """
    if isinstance(fishers, DiagonalFishers):
        values = fishers.values.data if is_sparse(fishers.values) else fishers.values
        door = enter(values, backend=backend, device=device, kernel=Kernel.NNLS_GRAM)
        if not fishers.norms().any():
            return door.out(door.backend.xp.zeros((len(fishers), len(components))))
        problem = DiagonalProblem.from_fishers(
            fishers,
            n_components=len(components),
            normalize=normalize,
            backend=door.backend,
            device=device,
        )
        H = problem.array(like(components, problem.like))
        N, shared = problem.products(H.T), problem.xp.matmul(H, H.T)
    else:
        used = fishers.normalized() if normalize else fishers
        door = enter(used.rows, backend=backend, device=device, kernel=Kernel.NNLS_GRAM)
        rows = door.arrays[0]
        G = door.backend.xp.astype(like(components, rows), rows.dtype)
        products = door.backend.raw(Kernel.LOWRANK_PRODUCTS)
        N = products(rows, like(used.offsets, rows), G)[1]
        shared = door.backend.xp.astype(gram(G) ** 2, rows.dtype)
    xp = door.backend.xp
    solve = door.backend.raw(Kernel.NNLS_GRAM)
    W = solve(shared, N, xp.zeros_like(N), sweeps=MAX_SWEEPS, tol=tol)
    # Coordinate descent guesses which coefficients are positive; pivoting settles it.
    H64, N64, W64 = (to_numpy(x).astype(np.float64) for x in (shared, N, W))
    return door.out(xp.astype(like(exact_nnls(H64, N64, W64), W), W.dtype))
