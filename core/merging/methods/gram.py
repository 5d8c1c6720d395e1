"""Methods whose precisions are Grams of a layer's inputs, or of the differences themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from ...errors import InvalidInputError
from ...fisher.structures import Gram, Kronecker, Precision
from ...types import Array
from ..groups import Tree, layouts_of
from ..solution import MergeSolution, SiteReport
from ..solving import solve
from ..sources import Source, read
from .base import Request, with_method
from .fisher import Sites


def shrunk(gram: Gram, factor: float) -> Gram:
    """The Gram with its off-diagonal entries multiplied by ``factor``."""
    A = gram.input_factor
    xp = array_namespace(A)
    eye = xp.eye(int(A.shape[0]), dtype=A.dtype, device=getattr(A, "device", None))
    return Gram(A * factor + (1.0 - factor) * A * eye, gram.outputs)


def input_grams(tree: Tree) -> Sites:
    """The Grams of a tree: of Gram sites themselves, of Kronecker sites the input factors."""
    out: dict[str, Precision] = {}
    for name, p in tree.items():
        if isinstance(p, Gram):
            out[name] = p
        elif isinstance(p, Kronecker):
            out[name] = Gram(p.input_factor, int(p.output_factor.shape[0]))
    layouts = {n: v for n, v in layouts_of(tree).items() if n in out}
    return Sites(out, layouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegMean:
    """W = (Σ λ_i W_i G_i)(Σ λ_i G_i)⁻¹, G_i = X_iᵀX_i/tokens (arXiv:2212.09849).

    Least squares of every linear layer against its own inputs and outputs: the quadratic with Gram
    precisions. Tensors without a Gram are averaged, as in the paper.

    Attributes
    ----------
    offdiagonal : float
        The off-diagonal entries of G_i are multiplied by this (0.9 in the paper, down to 0.1 for
        some models): a damping that leaves the diagonal.
    """

    offdiagonal: float = 0.9
    name: ClassVar[str] = "regmean"
    reference: ClassVar[str] = "arXiv:2212.09849"
    signed_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.offdiagonal <= 1:
            raise InvalidInputError(
                f"offdiagonal={self.offdiagonal} was given; a number in [0, 1] is accepted."
            )

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with shrunk Grams."""
        trees = [self.precisions(t) for t in request.trees(self.name)]
        return with_method(solve(request.problem(precisions=trees), request.solver), self)

    def precisions(self, tree: Tree) -> Sites:
        """The shrunk Grams of a tree.

        Raises
        ------
        InvalidInputError
            If it has none.
        """
        grams = input_grams(tree)
        if not grams:
            raise InvalidInputError(
                "RegMean needs Grams of layer inputs; this precision has "
                f"{sorted({p.kind for p in tree.values()})}. Estimate it with "
                "structure='gram' or 'kronecker'."
            )
        return Sites(
            {n: shrunk(p, self.offdiagonal) for n, p in grams.items() if isinstance(p, Gram)},
            grams.layouts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegMeanPlusPlus:
    """RegMean layer by layer, on the inputs that the merged layers give (arXiv:2508.03121).

    Attributes
    ----------
    data : sequence
        Inputs of each source's task, as :func:`estimate_precision` takes them.
    offdiagonal : float
        As in :class:`RegMean`.
    gram_of : callable, optional
        (model, data, weight name) → the tree with that layer's Gram. By default
        ``estimate_precision(model, data, structure="gram", params=...)``.
    """

    data: Sequence[Any] = ()
    offdiagonal: float = 0.9
    gram_of: Callable[[Any, Any, str], Tree] | None = None
    name: ClassVar[str] = "regmean++"
    reference: ClassVar[str] = "arXiv:2508.03121"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """One quadratic a layer, from the first to the last."""
        n = len(request.sources)
        if len(self.data) != n:
            raise InvalidInputError(
                f"RegMean++ was given {len(self.data)} data sets for {n} sources; give one each: "
                "method=RegMeanPlusPlus(data=[inputs_a, inputs_b])."
            )
        from ..sources import model_like
        from .sequential import layer_gram, linear_layers

        gram_of = self.gram_of or layer_gram
        regmean = RegMean(offdiagonal=self.offdiagonal)
        merged: dict[str, Array] = {}
        sites: list[dict[str, Precision]] = [{} for _ in range(n)]
        layouts: dict[str, Any] = {}
        for weight in linear_layers(request.sources[0]):
            grams = []
            for i, source in enumerate(request.sources):
                # Layers before this one are the merged ones, this and later ones the source's own.
                model = model_like(source.template, {**source.arrays, **merged})
                grams.append(regmean.precisions(gram_of(model, self.data[i], weight)))
            for i, tree in enumerate(grams):
                sites[i] |= tree
                layouts |= tree.layouts
            step = solve(request.problem(precisions=[Sites(dict(t), t.layouts) for t in grams]))
            merged |= {
                p: step.params[p] for layout in grams[0].layouts.values() for p in layout.parameters
            }
        trees = [Sites(s, layouts) for s in sites]
        found = solve(request.problem(precisions=trees), request.solver)
        return with_method(found, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WUDI:
    """min_τ Σ ‖(τ − τ_i) τ_iᵀ‖² / ‖τ_i‖² for every matrix, without data (arXiv:2503.08099).

    This is RegMean with G_i = τ_iᵀτ_i/‖τ_i‖², so the optimum has a closed form; what no difference
    determines stays at θ_0. The published method takes 300 Adam steps from Σ τ_i, far from the
    optimum: ``iterations`` gives that early-stopped iterate instead. Other tensors are averaged.

    Attributes
    ----------
    iterations : int, optional
        Adam steps; None for the closed form.
    learning_rate : float
        Of Adam.
    params : sequence of str
        Patterns of the names of the matrices; all with two axes by default.
    """

    iterations: int | None = None
    learning_rate: float = 1e-5
    params: tuple[str, ...] = ("*",)
    name: ClassVar[str] = "wudi"
    reference: ClassVar[str] = "arXiv:2503.08099"
    signed_weights: ClassVar[bool] = False

    def run(self, request: Request) -> MergeSolution:
        """The quadratic with Grams of differences, or some steps on it."""
        base = request.base
        names = self._matrices(request)
        trees: list[Tree] = [
            {name: difference_gram(source, base, name) for name in names}
            for source in request.sources
        ]
        weights = [1.0] * len(trees)
        problem = request.problem(precisions=trees, weights=weights)
        if self.iterations is None:
            return with_method(solve(problem, request.solver), self)
        return self._iterated(request, problem, names, self.iterations)

    def _matrices(self, request: Request) -> list[str]:
        from fnmatch import fnmatchcase

        source = request.sources[0]
        return [
            name
            for name in source.arrays
            if len(source.shape(name)) == 2
            and source.floating(name)
            and request.sites.action(name).kind == "merge"
            and any(fnmatchcase(name, p) for p in self.params)
        ]

    def _iterated(
        self, request: Request, problem: Any, names: Sequence[str], iterations: int
    ) -> MergeSolution:
        from ..sources import write

        found = solve(problem, "pcg" if not names else request.solver)
        params = dict(found.params)
        reports = {s.name: s for s in found.sites}
        objective = 0.0
        for group in problem.groups:
            system = problem.system(group)
            theta = adam(system, iterations, self.learning_rate)
            params[group.name] = write(group.name, theta, request.sources[0].arrays[group.name])
            right = system.right_side()
            xp = array_namespace(right)
            rest = system.apply(theta - system.center) - right
            size = float(xp.sum(right * right)) ** 0.5 or 1.0
            reports[group.name] = replace(
                reports[group.name], solver="adam", converged=False, steps=iterations,
                why=f"{iterations} steps from the sum, as published",
                residual=float(xp.sum(rest * rest)) ** 0.5 / size,
            )  # fmt: skip
            objective += system.objective(theta)
        sites: tuple[SiteReport, ...] = tuple(reports[s.name] for s in found.sites)
        found = replace(found, params=params, sites=sites, objective=objective)
        return with_method(found, self, closed_form=False)


def difference_gram(source: Source, base: Source, name: str) -> Gram:
    """τᵀτ/‖τ‖² of τ = x − x_0; zero where the difference is."""
    x = read(source.arrays[name])
    tau = x - read(base.arrays[name], x)
    xp = array_namespace(tau)
    size = float(xp.sum(tau * tau))
    return Gram(tau.T @ tau / (size if size > 0 else 1.0), int(tau.shape[0]))


def adam(system: Any, steps: int, rate: float) -> Array:
    """Adam (0.9, 0.999) on Q from d = Σ (θ_i − c)."""
    xp = array_namespace(system.center)
    theta = system.center + xp.sum(system.sources - system.center[None, ...], axis=0)
    m, v = xp.zeros_like(theta), xp.zeros_like(theta)
    for t in range(1, steps + 1):
        g = system.gradient(theta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta - rate * (m / (1 - 0.9**t)) / (xp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


@dataclass(frozen=True, slots=True, kw_only=True)
class MaTS:
    """Conjugate gradients on Σ λ_i P_i θ = Σ λ_i P_i θ_i, stopped early (arXiv:2312.04339).

    With Kronecker, Gram, diagonal or block precisions. The number of steps and the start are
    hyper-parameters of the published method and act as a regulariser; ``iterations=None`` solves
    to the end with whatever solver fits.

    Attributes
    ----------
    iterations : int, optional
        CG steps a site (10 to 100 as published).
    initial : {"average", "anchor", "task_arithmetic"}
        Where the iteration starts: the weighted mean, the base, or θ_0 + s Σ τ_i.
    scale : float
        s for "task_arithmetic".
    precondition : bool
        With the diagonal of the sum; the published method does not.
    """

    iterations: int | None = 100
    initial: str = "average"
    scale: float = 0.3
    precondition: bool = False
    name: ClassVar[str] = "mats"
    reference: ClassVar[str] = "arXiv:2312.04339"
    signed_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.initial not in ("average", "anchor", "task_arithmetic"):
            raise InvalidInputError(
                f"initial={self.initial!r} was given; 'average', 'anchor' or 'task_arithmetic' is "
                "accepted."
            )

    def run(self, request: Request) -> MergeSolution:
        """PCG on the quadratic."""
        from ..solvers.options import PCG
        from .averaging import Isotropic, TaskArithmetic

        problem = request.problem(precisions=request.trees(self.name))
        if self.iterations is None:
            return with_method(solve(problem, request.solver), self)
        start: Any = None
        if self.initial == "average":
            start = Isotropic().run(request).params
        elif self.initial == "anchor":
            start = request.base.arrays
        else:
            ones = np.ones(len(request.sources))
            start = TaskArithmetic(scale=self.scale).run(replace(request, weights=ones)).params
        solver = PCG(
            max_steps=self.iterations, early_stop=True, initial=start,
            precondition=self.precondition,
        )  # fmt: skip
        found = solve(problem, solver)
        return with_method(found, self, iterations=self.iterations, initial=self.initial)
