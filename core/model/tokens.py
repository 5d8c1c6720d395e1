"""Outputs with one categorical distribution a position: token classifiers and language models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from ..errors import InvalidInputError
from ..types import Array, FloatArray
from .outputs import Categorical

IGNORED = -100


@dataclass(frozen=True, slots=True)
class TokenCategorical:
    """T independent softmaxes over C classes, given all inputs: z (n, T·C), position by position.

    For a language model the inputs contain the prefix y_<t, so that log p(y|x) = Σ_t log p(y_t|x,
    y_<t); the Fisher at a given prefix is Σ_t of those of the positions, as the cross terms of a
    sequence of score differences vanish on average. Positions whose outputs are constant (masked)
    add nothing.

    Attributes
    ----------
    n_classes : int
        C, at least 2.

    Raises
    ------
    InvalidInputError
        ``n_classes`` < 2, or outputs whose width is not a multiple of it.
    """

    n_classes: int
    name: str = "categorical at each position"

    def __post_init__(self) -> None:
        if not isinstance(self.n_classes, int) or self.n_classes < 2:
            raise InvalidInputError(
                f"n_classes={self.n_classes!r} was given; a whole number >= 2 is accepted."
            )

    def fisher_root(self, z: Array, *, reduced: bool = True) -> Array:
        """U (n, T·k, T·C) with a block of k = C − 1 (reduced) or C rows for each position."""
        xp = array_namespace(z)
        n, T, C = len(z), self._length(z), self.n_classes
        blocks = Categorical().fisher_root(self._positions(z), reduced=reduced)
        k = int(blocks.shape[1])
        wide = xp.reshape(blocks, (n, T, k, 1, C))
        eye = xp.reshape(xp.eye(T, dtype=z.dtype, device=device(z)), (1, T, 1, T, 1))
        return xp.reshape(wide * eye, (n, T * k, T * C))

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ_t log p(y_t) (n,) for classes y (n, T); positions with −100 are left out."""
        xp = array_namespace(z)
        classes, live = self._labels(z, y)
        found = Categorical().log_prob(self._positions(z), classes)
        return xp.sum(xp.reshape(found, tuple(y.shape)) * live, axis=-1)

    def score(self, z: Array, y: Array) -> Array:
        """∇_z log p(y) (n, T·C) for classes y (n, T); zero at positions with −100."""
        xp = array_namespace(z)
        classes, live = self._labels(z, y)
        found = Categorical().score(self._positions(z), classes)
        return xp.reshape(found * xp.reshape(live, (-1, 1)), tuple(z.shape))

    def probe(self, z: Array, signs: Array) -> Array:
        """Rows Lξ (n, T·C) for signs ξ (n, T·C); independent signs keep positions apart."""
        xp = array_namespace(z)
        found = Categorical().probe(self._positions(z), self._positions(signs))
        return xp.reshape(found, tuple(z.shape))

    def n_uniforms(self, width: int) -> int:
        """One uniform number a position."""
        return width // self.n_classes

    def sample(self, z: Array, uniforms: FloatArray) -> Array:
        """Classes y (n, T), each position given the inputs."""
        xp = array_namespace(z)
        drawn = Categorical().sample(self._positions(z), np.reshape(uniforms, (-1, 1)))
        return xp.reshape(drawn, (len(z), self._length(z)))

    def mode(self, z: Array) -> Array:
        """The likeliest class at each position (n, T)."""
        xp = array_namespace(z)
        return xp.reshape(Categorical().mode(self._positions(z)), (len(z), self._length(z)))

    def kl(self, z: Array, z_other: Array) -> Array:
        """Σ_t KL at position t (n,)."""
        xp = array_namespace(z)
        each = Categorical().kl(self._positions(z), self._positions(z_other))
        return xp.sum(xp.reshape(each, (len(z), self._length(z))), axis=-1)

    def _length(self, z: Array) -> int:
        width = int(z.shape[-1])
        if width % self.n_classes:
            raise InvalidInputError(
                f"Outputs of width {width} were given; a multiple of {self.n_classes} classes is "
                "taken."
            )
        return width // self.n_classes

    def _positions(self, z: Array) -> Array:
        self._length(z)
        return array_namespace(z).reshape(z, (-1, self.n_classes))

    def _labels(self, z: Array, y: Array) -> tuple[Array, Array]:
        xp = array_namespace(z)
        if tuple(y.shape) != (len(z), self._length(z)):
            raise InvalidInputError(
                f"Labels of shape {tuple(y.shape)} were given; ({len(z)}, {self._length(z)}), one "
                f"a position, are taken, {IGNORED} where there is none."
            )
        live = y != IGNORED
        if bool(xp.any(live & ((y < 0) | (y >= self.n_classes)))):
            raise InvalidInputError(
                f"Labels outside 0 to {self.n_classes - 1} were given; {IGNORED} marks positions "
                "without one."
            )
        classes = xp.where(live, y, xp.zeros_like(y))
        return xp.reshape(classes, (-1,)), xp.astype(live, z.dtype)
