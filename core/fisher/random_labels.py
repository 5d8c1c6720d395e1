"""Label rules that draw, and the rule that uses the labels of the data.

With s = ∇_z log p(y|z) and Fisher of the output F_z = E_y[s sᵀ]:

- sampled labels ŷ ~ p(·|z): E[Σ_j s_j s_jᵀ / m] = F_z over m independent draws;
- random signs ξ ∈ {−1, +1}: E[(Lξ)(Lξ)ᵀ] = LLᵀ = F_z for any square root L, with one draw already
  weighing all labels;
- labels of the data: s sᵀ at the y that came with the example, which is *not* F_z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace

from ..backend import like, to_numpy
from ..errors import InvalidInputError
from ..model.outputs import OutputDistribution
from ..types import Array, FloatArray
from .draws import Draws
from .labels import LabelRoots


@runtime_checkable
class Sampleable(Protocol):
    """An output distribution that :class:`SampledLabels` can draw from."""

    def n_uniforms(self, width: int) -> int:
        """How many uniform numbers one draw takes for outputs of that width."""
        ...

    def sample(self, z: Array, uniforms: FloatArray) -> Array:
        """Labels y (n, ...) from uniform numbers (n, n_uniforms), as :meth:`log_prob` takes it."""
        ...


@runtime_checkable
class Probeable(Protocol):
    """An output distribution that multiplies its Fisher root without forming it."""

    def probe(self, z: Array, signs: Array) -> Array:
        """Rows L_i ξ_i (n, C) for signs ξ (n, C)."""
        ...


@dataclass(frozen=True, slots=True)
class SampledLabels:
    """``n`` labels drawn from the model for each example: rows ∇log p(ŷ)/√n.

    Unbiased for the true Fisher; the standard error falls as 1/√n. One backward pass a draw.

    Attributes
    ----------
    n : int
        Draws for each example.

    Raises
    ------
    InvalidInputError
        ``n`` < 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _check_number(self.n)

    @property
    def name(self) -> str:
        """Sampled."""
        return "sampled"

    def facts(self) -> dict[str, Any]:
        """The rule and its number of draws."""
        return {"labels": self.name, "draws": self.n}

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U (n, draws, C), rows ∇_z log p(ŷ)/√draws."""
        if not isinstance(output, Sampleable):
            raise InvalidInputError(
                f"SampledLabels was given for {output.name} outputs, which have no method sample; "
                "use ExactLabels() or ProbeLabels(n), or add sample and n_uniforms to them."
            )
        n = int(z.shape[0])
        u = draws.uniforms(n, self.n, output.n_uniforms(int(z.shape[1])))
        rows = [output.score(z, output.sample(z, u[:, j])) for j in range(self.n)]
        xp = array_namespace(z)
        return _all_kept(xp.stack(rows, axis=1) / self.n**0.5)


@dataclass(frozen=True, slots=True)
class ProbeLabels:
    """``n`` random sign probes for each example: rows Jᵀ L ξ/√n with LLᵀ the output's Fisher.

    Unbiased, E[row rowᵀ] = F; one backward pass a probe, however many classes there are.

    Attributes
    ----------
    n : int
        Probes for each example.

    Raises
    ------
    InvalidInputError
        ``n`` < 1.
    """

    n: int = 1

    def __post_init__(self) -> None:
        _check_number(self.n)

    @property
    def name(self) -> str:
        """Random sign probes."""
        return "random sign probes"

    def facts(self) -> dict[str, Any]:
        """The rule and its number of probes."""
        return {"labels": self.name, "draws": self.n}

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U (n, draws, C), rows Lξ/√draws."""
        xp = array_namespace(z)
        n = int(z.shape[0])
        if isinstance(output, Probeable):
            xi = _in(draws.signs(n, self.n, int(z.shape[1])), z)
            rows = xp.stack([output.probe(z, xi[:, j]) for j in range(self.n)], axis=1)
        else:
            U = output.fisher_root(z, reduced=False)
            rows = xp.matmul(_in(draws.signs(n, self.n, int(U.shape[1])), z), U)
        return _all_kept(rows / self.n**0.5)


@dataclass(frozen=True, slots=True)
class DataLabels:
    """The label that came with each example: the *empirical Fisher*, not the Fisher.

    F_emp = ∇log p(y|x) ∇log p(y|x)ᵀ at the data's y. It needs batches with labels: pairs
    (inputs, labels), or mappings with the key "labels".
    """

    @property
    def name(self) -> str:
        """Empirical Fisher."""
        return "empirical Fisher (labels of the data)"

    def facts(self) -> dict[str, Any]:
        """The rule by its name."""
        return {"labels": self.name}

    def roots(
        self, output: OutputDistribution, z: Array, draws: Draws, targets: Array | None = None
    ) -> LabelRoots:
        """U (n, 1, C), the score of the given label."""
        if targets is None:
            raise InvalidInputError(
                "DataLabels (the empirical Fisher) was given with data that hold no labels; give "
                "batches (inputs, labels) or mappings with the key 'labels', or use ExactLabels()."
            )
        xp = array_namespace(z)
        y = xp.asarray(like(targets, z), device=getattr(z, "device", None))
        if int(y.shape[0]) != int(z.shape[0]):
            raise InvalidInputError(
                f"{int(y.shape[0])} labels were given for {int(z.shape[0])} examples; one each."
            )
        if output.name == "categorical":
            _check_classes(y, int(z.shape[1]))
        return _all_kept(output.score(z, y)[:, None, :])


def _check_number(n: Any) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise InvalidInputError(f"n={n!r} was given; a whole number >= 1 is accepted.")


def _check_classes(y: Array, n_classes: int) -> None:
    values = to_numpy(y)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InvalidInputError(
            f"Labels of dtype {values.dtype} and shape {values.shape} were given; class numbers "
            "(n,) of an integer dtype are taken."
        )
    wrong = values[(values < 0) | (values >= n_classes)]
    if wrong.size:
        raise InvalidInputError(
            f"Label {int(wrong[0])} was given; the model has classes 0 to {n_classes - 1}."
        )


def _in(x: FloatArray, z: Array) -> Array:
    """``x`` in the library, dtype and device of ``z``."""
    xp = array_namespace(z)
    return xp.astype(like(x, z), z.dtype)


def _all_kept(values: Array) -> LabelRoots:
    n, k = int(values.shape[0]), int(values.shape[1])
    return LabelRoots(values=values, counts=np.full(n, k, dtype=np.int64), kept=np.ones(n))
