"""Units of other methods for the same examples: clusters of gradients, sparse latents.

Every function gives scores (n, units), larger meaning more, for use with :func:`~.scores.track`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.types import FloatArray, IntArray


def label_gradients(model: Any, inputs: Any) -> FloatArray:
    """∇log p(ŷ|x) (n, p) with ŷ the model's likeliest answer: what gradient clustering clusters."""
    from ...core.model import engine_for
    from ...core.model.outputs import Categorical

    engine: Any = engine_for(model)
    z = engine.predict(inputs)
    output = Categorical()
    roots = output.score(z, output.mode(z))[:, None, :]
    return np.asarray(engine.rows(inputs, roots)).reshape(len(inputs), -1)


def clusters(gradients: FloatArray, k: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Spherical k-means: membership (n, k), and cosine to every centre (n, k)."""
    from sklearn.cluster import KMeans

    unit = _unit(gradients)
    found: Any = KMeans(k, n_init=4, random_state=seed).fit(unit)
    centres = _unit(found.cluster_centers_)
    cosines = unit @ centres.T
    return np.eye(k)[cosines.argmax(axis=1)], cosines


def spectral_clusters(gradients: FloatArray, k: int, seed: int) -> FloatArray:
    """Spectral clustering on max(cos, 0): membership (n, k)."""
    from sklearn.cluster import SpectralClustering

    unit = _unit(gradients)
    near = np.maximum(unit @ unit.T, 0.0)
    found: Any = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=4)
    return np.asarray(np.eye(k)[found.fit_predict(near)])


def fisher_clusters(rows: FloatArray, offsets: IntArray, k: int, seed: int) -> FloatArray:
    """k-means of the Fishers with their Frobenius geometry ⟨F_i, F_j⟩ = ‖A_iA_jᵀ‖²: membership."""
    from sklearn.cluster import KMeans

    products = np.add.reduceat(
        np.add.reduceat(np.square(rows @ rows.T), offsets[:-1], axis=0), offsets[:-1], axis=1
    )
    scale = 1.0 / np.sqrt(np.diag(products))
    values, vectors = np.linalg.eigh(products * scale[:, None] * scale)
    points = vectors * np.sqrt(np.maximum(values, 0.0))
    found: Any = KMeans(k, n_init=4, random_state=seed).fit(points)
    return np.asarray(np.eye(k)[found.labels_])


def sparse_latents(
    activations: FloatArray, latents: int, active: int, seed: int, steps: int = 1500
) -> FloatArray:
    """Latents (n, latents) of a top-k sparse autoencoder fitted to the activations."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.asarray(activations, dtype=np.float32))
    x = (x - x.mean(0)) / x.std()
    weights = torch.randn(latents, x.shape[1], generator=generator)
    decoder = (weights / weights.norm(dim=1, keepdim=True)).requires_grad_()
    encoder = decoder.detach().clone().requires_grad_()
    bias, shift = torch.zeros(latents, requires_grad=True), torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([encoder, decoder, bias, shift], lr=3e-3)

    def code() -> torch.Tensor:
        dense = torch.relu((x - shift) @ encoder.T + bias)
        least = dense.topk(active, dim=1).values[:, -1:]
        return torch.where(dense >= least, dense, 0.0)

    for _ in range(steps):
        loss = (code() @ decoder + shift - x).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return np.asarray(code().detach().numpy(), dtype=np.float64)


def _unit(rows: FloatArray) -> FloatArray:
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(size, np.finfo(float).tiny))
