"""Output distributions: what a network's outputs z mean, and the square root of their Fisher."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import Protocol, runtime_checkable

from array_api_compat import array_namespace, device

from ..errors import InvalidInputError
from ..types import Array, FloatArray


@runtime_checkable
class OutputDistribution(Protocol):
    """p(y | z) for outputs z (n, C), with the Fisher of z written as UᵀU."""

    @property
    def name(self) -> str:
        """How results call it ("categorical", "gaussian", ...)."""
        ...

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """U (n, k, C) with U_iᵀU_i = E_y[∇_z log p ∇_z log pᵀ]."""
        ...

    def log_prob(self, z: Array, y: Array) -> Array:
        """Log p(y_i | z_i) (n,)."""
        ...

    def score(self, z: Array, y: Array) -> Array:
        """∇_z log p(y_i | z_i) (n, C)."""
        ...

    def mode(self, z: Array) -> Array:
        """The likeliest y_i, as :meth:`log_prob` takes it; int64 where y is a label."""
        ...

    def kl(self, z: Array, z_other: Array) -> Array:
        """KL(p(·|z_i) ‖ p(·|z_other_i)) (n,), in nats."""
        ...


@dataclass(frozen=True, slots=True)
class Categorical:
    """Softmax over C classes: z are logits.

    Fisher of the logits: diag(p) − ppᵀ = LLᵀ with L = diag(√p) − p√pᵀ. The C rows of Lᵀ are
    √p_c ∇_z log p_c; they satisfy Σ_c √p_c a_c = 0, so C − 1 rows carry the same matrix: with H
    the Householder reflection that maps √p to a multiple of e_C, the last row of HLᵀ is zero.
    """

    name: str = "categorical"

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """Rows √p_c ∇_z log p_c (n, C, C), or n × (C−1) × C rows of the same Fisher."""
        xp = array_namespace(z)
        p = xp.exp(self.log_probs(z))
        s = xp.sqrt(p)
        n_classes = z.shape[-1]
        eye = xp.eye(n_classes, dtype=z.dtype, device=device(z))
        # Row c of Lᵀ: √p_c (e_c − p).
        root = s[:, :, None] * (eye[None] - p[:, None, :])
        if not reduced:
            return root
        # v = s + sign(s_C) e_C with s ≥ 0 and ‖s‖ = 1 gives H s = −e_C without cancellation.
        v = s + eye[-1][None]
        scale = 2.0 / xp.sum(v * v, axis=-1)
        projected = xp.matmul(v[:, None, :], root)  # (n, 1, C): vᵀ Lᵀ
        reflected = root - (scale[:, None] * v)[:, :, None] * projected
        return reflected[:, :-1, :]

    def log_probs(self, z: Array) -> Array:
        """Log-probabilities of all classes (n, C)."""
        xp = array_namespace(z)
        shifted = z - xp.max(z, axis=-1, keepdims=True)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))

    def log_prob(self, z: Array, y: Array) -> Array:
        """Log p(y_i | z_i) for class numbers y (n,)."""
        xp = array_namespace(z)
        return xp.take_along_axis(self.log_probs(z), y[:, None], axis=-1)[:, 0]

    def score(self, z: Array, y: Array) -> Array:
        """Rows e_{y_i} − p_i (n, C)."""
        xp = array_namespace(z)
        classes = xp.arange(z.shape[-1], dtype=y.dtype, device=device(z))
        return xp.astype(y[:, None] == classes[None, :], z.dtype) - xp.exp(self.log_probs(z))

    def probe(self, z: Array, signs: Array) -> Array:
        """Rows Lξ = √p∘ξ − p (√pᵀξ) (n, C) for signs ξ (n, C), without forming L."""
        xp = array_namespace(z)
        p = xp.exp(self.log_probs(z))
        turned = xp.sqrt(p) * signs
        return turned - p * xp.sum(turned, axis=-1, keepdims=True)

    def n_uniforms(self, width: int) -> int:
        """One uniform number for a class."""
        return 1

    def sample(self, z: Array, uniforms: FloatArray) -> Array:
        """Class numbers (n,) by inversion of the distribution function, in float64."""
        xp = array_namespace(z)
        sums = xp.cumulative_sum(xp.exp(self.log_probs(xp.astype(z, xp.float64))), axis=-1)
        u = xp.asarray(uniforms[:, :1], device=device(z)) * sums[:, -1:]
        return xp.sum(xp.astype(sums[:, :-1] <= u, xp.int64), axis=-1)

    def mode(self, z: Array) -> Array:
        """The likeliest class (n,)."""
        return array_namespace(z).argmax(z, axis=-1)

    def kl(self, z: Array, z_other: Array) -> Array:
        """KL(softmax z_i ‖ softmax z_other_i) (n,)."""
        xp = array_namespace(z)
        lp, lq = self.log_probs(z), self.log_probs(z_other)
        return xp.sum(xp.exp(lp) * (lp - lq), axis=-1)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent yes/no outputs: z are their logits; one of them is two-class classification.

    Fisher of the logits: diag(p(1 − p)) with p = 1/(1 + exp(−z)).
    """

    name: str = "bernoulli"

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """Matrices diag √(p(1 − p)) for each example (n, C, C); there is nothing to reduce."""
        xp = array_namespace(z)
        e = xp.exp(-xp.abs(z))
        eye = xp.eye(z.shape[-1], dtype=z.dtype, device=device(z))
        return (xp.sqrt(e) / (1.0 + e))[:, :, None] * eye[None]

    def log_prob(self, z: Array, y: Array) -> Array:
        """Log p(y_i | z_i) (n,) of labels y (n, C), or (n,) when there is one output."""
        xp = array_namespace(z)
        labels = xp.reshape(xp.astype(y, z.dtype), z.shape)
        return xp.sum(labels * z - _softplus(z), axis=-1)

    def score(self, z: Array, y: Array) -> Array:
        """Rows y_i − p_i (n, C) of labels y (n, C), or (n,) when there is one output."""
        xp = array_namespace(z)
        return xp.reshape(xp.astype(y, z.dtype), z.shape) - xp.exp(z - _softplus(z))

    def n_uniforms(self, width: int) -> int:
        """One uniform number for each output."""
        return width

    def sample(self, z: Array, uniforms: FloatArray) -> Array:
        """Labels 0 and 1 (n, C), or (n,) when there is one output."""
        xp = array_namespace(z)
        wide = xp.astype(z, xp.float64)
        p = xp.exp(wide - _softplus(wide))
        y = xp.astype(xp.asarray(uniforms, device=device(z)) < p, xp.int64)
        return y[:, 0] if z.shape[-1] == 1 else y

    def mode(self, z: Array) -> Array:
        """The likelier of 0 and 1 for each output (n, C), or (n,) when there is one output."""
        xp = array_namespace(z)
        likelier = xp.astype(z > 0, xp.int64)
        return likelier[:, 0] if z.shape[-1] == 1 else likelier

    def kl(self, z: Array, z_other: Array) -> Array:
        """Σ over outputs of KL(Bernoulli(z_i) ‖ Bernoulli(z_other_i)) (n,)."""
        xp = array_namespace(z)
        p = xp.exp(z - _softplus(z))
        return xp.sum(p * (z - z_other) - _softplus(z) + _softplus(z_other), axis=-1)


def _softplus(z: Array) -> Array:
    """log(1 + exp z) without overflow."""
    xp = array_namespace(z)
    return xp.where(z > 0, z, xp.zeros_like(z)) + xp.log1p(xp.exp(-xp.abs(z)))


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal outputs with means z and a fixed variance σ²: Fisher of z = I/σ²."""

    variance: float = 1.0
    name: str = "gaussian"

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise InvalidInputError(f"variance={self.variance!r} was given; it must be > 0.")

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """I/σ for each example (n, C, C); there is nothing to reduce."""
        xp = array_namespace(z)
        eye = xp.eye(z.shape[-1], dtype=z.dtype, device=device(z)) / self.variance**0.5
        return xp.tile(eye[None], (z.shape[0], 1, 1))

    def log_prob(self, z: Array, y: Array) -> Array:
        """Normal log-density (n,) of targets y (n, C)."""
        xp = array_namespace(z)
        constant = z.shape[-1] * log(2.0 * pi * self.variance)
        return -0.5 * (xp.sum((y - z) ** 2, axis=-1) / self.variance + constant)

    def score(self, z: Array, y: Array) -> Array:
        """Rows (y_i − z_i)/σ² (n, C)."""
        return (y - z) / self.variance

    def n_uniforms(self, width: int) -> int:
        """Two uniform numbers for each output."""
        return 2 * width

    def sample(self, z: Array, uniforms: FloatArray) -> Array:
        """Targets z + σε (n, C), ε by the Box–Muller transform."""
        xp = array_namespace(z)
        u = xp.asarray(uniforms, device=device(z))
        radius = xp.sqrt(-2.0 * xp.log1p(-u[:, 0::2]))
        noise = radius * xp.cos(2.0 * pi * u[:, 1::2])
        return z + self.variance**0.5 * xp.astype(noise, z.dtype)

    def mode(self, z: Array) -> Array:
        """The mean z (n, C) itself."""
        return z

    def kl(self, z: Array, z_other: Array) -> Array:
        """‖z_i − z_other_i‖² / (2σ²) (n,)."""
        xp = array_namespace(z)
        return xp.sum((z - z_other) ** 2, axis=-1) / (2.0 * self.variance)
