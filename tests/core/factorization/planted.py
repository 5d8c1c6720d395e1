"""Planted problems: Fishers that are non-negative sums of known rank-one terms."""

import numpy as np

from fishertope.core.fisher import LowRankFishers


def planted(seed, *, n=120, m=40, r=6, active=2, noise=0.0, dtype=np.float64):
    """Fishers F_i = Σ_k W*_ik g*_k g*_kᵀ (+ noise rows), with W* (n, r) and unit-norm G* (r, m).

    Each example mixes ``active`` of the components; its rows are √W_ik g_k turned by a random
    rotation, so that no row shows a component.
    """
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(r, m))
    G /= np.linalg.norm(G, axis=1, keepdims=True)
    W = np.zeros((n, r))
    blocks = []
    for i in range(n):
        chosen = rng.choice(r, size=active, replace=False)
        W[i, chosen] = rng.uniform(0.2, 1.0, active)
        rows = np.sqrt(W[i, chosen])[:, None] * G[chosen]
        rotation = np.linalg.qr(rng.normal(size=(active, active)))[0]
        rows = rotation @ rows + noise * rng.normal(size=rows.shape) / np.sqrt(m)
        blocks.append(rows.astype(dtype))
    return LowRankFishers.from_rows(blocks), W, G


def ragged(seed, *, n=12, m=9, most=4, dtype=np.float64):
    """Random rows, 0 to ``most`` an example."""
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(size=(k, m)).astype(dtype) for k in rng.integers(0, most + 1, n)]
    blocks[0] = rng.normal(size=(most, m)).astype(dtype)
    return LowRankFishers.from_rows(blocks)


def dense_loss(fishers, W, G):
    """Σ_i ‖F_i − Σ_k W_ik g_kg_kᵀ‖²_F by forming every m×m matrix."""
    total = 0.0
    for i in range(len(fishers)):
        fit = np.einsum("k,ka,kb->ab", W[i], G, G)
        total += np.linalg.norm(fishers.dense(i) - fit) ** 2
    return total
