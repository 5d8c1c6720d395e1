"""Means of models and of differences from a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from ...errors import InvalidInputError
from ...types import Array, FloatArray
from ..draws import SiteDraws
from ..elementwise import linear, model_stock_ratio, slerp_weights, task_arithmetic
from ..solution import MergeSolution
from ..solving import solve
from ..statistics import gram
from .base import BlockMethod, Request, SiteView, Stats, with_method


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotropic:
    """θ = Σ λ_i θ_i / Σ λ_i: every posterior is a unit Gaussian.

    The baseline of arXiv:2111.09832 (its section 3), and with equal weights the uniform soup of
    arXiv:2203.05482. Precisions that were given are left aside.
    """

    name: ClassVar[str] = "isotropic"
    reference: ClassVar[str] = "arXiv:2111.09832"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with P_i = I."""
        return with_method(solve(request.problem(precisions=None), request.solver), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformSoup:
    """θ = (1/n) Σ θ_i, whatever the weights (arXiv:2203.05482)."""

    name: ClassVar[str] = "uniform_soup"
    reference: ClassVar[str] = "arXiv:2203.05482"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with P_i = I and equal weights."""
        n = len(request.sources)
        problem = request.problem(precisions=None, weights=[1.0 / n] * n)
        return with_method(solve(problem, request.solver), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WiSEFT(BlockMethod):
    """θ = (1 − α) θ_0 + α θ_1 of a base and one fine-tuned model (arXiv:2109.01903).

    Attributes
    ----------
    alpha : float
        α; 0 is the base (``anchor``), 1 the fine-tuned model.
    """

    alpha: float = 0.5
    name: ClassVar[str] = "wise_ft"
    reference: ClassVar[str] = "arXiv:2109.01903"
    uses_base: ClassVar[bool] = True

    def check(self, weights: FloatArray) -> None:
        """One fine-tuned model, a finite α."""
        if len(weights) != 1 or not np.isfinite(self.alpha):
            raise InvalidInputError(
                f"WiSE-FT takes one fine-tuned source and a base (anchor=...); {len(weights)} "
                f"sources and alpha={self.alpha} were given."
            )

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """(1 − α) x_0 + α x_1."""
        pair = array_namespace(x).stack([base, x[0, ...]])
        return linear(pair, [1.0 - self.alpha, self.alpha], 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArithmetic(BlockMethod):
    """θ = θ_0 + s Σ α_i (θ_i − θ_0), α_i of either sign (arXiv:2212.04089).

    In the quadratic: P_i = I, λ_i = s α_i, and an anchor of weight 1 − s Σ α_i.

    Attributes
    ----------
    scale : float
        s.
    normalize : bool
        Divide by Σ α_i.
    """

    scale: float = 1.0
    normalize: bool = False
    name: ClassVar[str] = "task_arithmetic"
    reference: ClassVar[str] = "arXiv:2212.04089"
    signed_weights: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """x_0 + s Σ α_i (x_i − x_0)."""
        scaled = [self.scale * w for w in weights]
        if self.normalize:
            whole = sum(weights)
            scaled = [w / whole if abs(whole) > 1e-8 else w for w in scaled]
        return task_arithmetic(x, base, scaled)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStock(BlockMethod):
    """θ = t θ̄ + (1 − t) θ_0 tensor by tensor (arXiv:2403.19522).

    θ̄ is the plain mean of k fine-tuned models and t = k c / (1 + (k − 1) c), with c the mean cosine
    between their differences from θ_0. Weights are left aside.
    """

    name: ClassVar[str] = "model_stock"
    reference: ClassVar[str] = "arXiv:2403.19522"
    uses_base: ClassVar[bool] = True

    def statistics(self, view: SiteView) -> Stats:
        """T of this tensor."""
        return {"t": model_stock_ratio(gram(view.differences()))}

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """x_0 + (t/k) Σ (x_i − x_0)."""
        k = int(x.shape[0])
        return task_arithmetic(x, base, [stats["t"] / k] * k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slerp(BlockMethod):
    """Spherical interpolation of two models, tensor by tensor (Shoemake 1985).

    sin((1−t)φ)/sin φ θ_1 + sin(tφ)/sin φ θ_2 with φ the angle between the two tensors and
    t = λ_2/(λ_1 + λ_2); linear where abs(cos φ) > ``threshold``.

    Attributes
    ----------
    threshold : float
    """

    threshold: float = 0.9995
    name: ClassVar[str] = "slerp"
    reference: ClassVar[str] = "doi:10.1145/325165.325242"

    def check(self, weights: FloatArray) -> None:
        """Two sources."""
        if len(weights) != 2:
            raise InvalidInputError(
                f"slerp takes two sources; {len(weights)} were given. Merge more with 'isotropic'."
            )

    def statistics(self, view: SiteView) -> Stats:
        """Inner products of the two tensors."""
        return {"gram": gram(view.values())}

    def block(
        self, x: Array, base: Array | None, weights: Sequence[float], stats: Stats,
        draws: SiteDraws, start: int, row: int,
    ) -> Array:  # fmt: skip
        """A x_1 + b x_2."""
        if len(weights) == 1:
            return x[0, ...]
        t = weights[1] / (weights[0] + weights[1])
        a, b = slerp_weights(np.asarray(stats["gram"]), t, self.threshold)
        return linear(x, [a, b], 1.0 if (a, b) == (1.0 - t, t) else None)
