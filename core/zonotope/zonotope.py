"""The zonotope Z = Σ_i [0, x_i], with one method for each thing that can be asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from ..backend import Kernel, enter
from ..backend.select import BackendChoice
from ..errors import DegenerateArrangement, InvalidInputError
from ..types import Array, FloatArray, IntArray, NumpyArray, Seed
from .counting import n_vertices
from .pattern import check_generators, check_signs, vertex_of_pattern
from .position import GeneralPosition, general_position
from .reverse_search import reverse_search
from .skeleton import vertex_graph, walls
from .sweep import Sweep
from .tree import tree_blocks

METHODS = ("auto", "sweep", "tree", "reverse")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Containment:
    """Whether a point lies in the zonotope, with the reason.

    Attributes
    ----------
    inside : bool
    coefficients : array (n,) or None
        λ in [0, 1] with Σ λ_i x_i = p, if inside.
    direction : array (d,) or None
        w with p·w > h_Z(w), if outside.
    residual : float
        ‖Σ λ_i x_i − p‖ at the nearest point, relative to max(‖p‖, max_i ‖x_i‖).
    """

    inside: bool
    coefficients: FloatArray | None
    direction: FloatArray | None
    residual: float


class Zonotope:
    """Z = Σ_i [0, x_i] for generators x_i, the rows of an array (n, d).

    Its vertices p_s = Σ_{s_i=+1} x_i are the sign patterns s of directions: s is the activation
    pattern of a ReLU unit on data X (Matena & Raffel 2022, arXiv:2210.00176).

    Parameters
    ----------
    generators : array (n, d)
        No row may be zero.

    Examples
    --------
    >>> import numpy as np
    >>> z = Zonotope(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> z.n_vertices(), round(z.volume(), 12)
    (6, 3.0)
    """

    def __init__(self, generators: Array) -> None:
        self.generators: FloatArray = check_generators(generators)
        self._position: GeneralPosition | None = None

    def __repr__(self) -> str:
        n, d = self.generators.shape
        return f"Zonotope({n} generators in {d} dimensions)"

    @property
    def general_position(self) -> GeneralPosition:
        """What is known about the rows' position; looked at once."""
        if self._position is None:
            self._position = general_position(self.generators)
        return self._position

    def n_vertices(self) -> int:
        """The exact number of vertices.

        The formula where general position is proven; else a proven count by the tree.
        """
        if self.general_position.holds:
            return n_vertices(*self.generators.shape)
        return sum(map(len, tree_blocks(self.generators)))

    def patterns(
        self,
        *,
        method: str = "auto",
        start: int = 0,
        stop: int | None = None,
        backend: BackendChoice = "auto",
    ) -> Iterator[NumpyArray]:
        """Stream the vertices' patterns, each once, in blocks int8 (≤ 2^12, n).

        Parameters
        ----------
        method : {"auto", "sweep", "tree", "reverse"}
            "sweep" needs general position, "tree" takes any rows, "reverse" is the slow reference
            (Avis & Fukuda). "auto" sweeps if the rows are not known to be degenerate; a degenerate
            cell met on the way is an error, never a wrong count.
        start, stop : int
            Numbers of the vertices wanted. The sweep goes there at once, the tree counts up.
        backend : str or Backend

        Raises
        ------
        DegenerateArrangement
            From the sweep, naming the rows.
        """
        if method not in METHODS:
            raise InvalidInputError(f"method={method!r} was given; accepted: {', '.join(METHODS)}.")
        if method == "auto":
            method = "tree" if self.general_position.holds is False else "sweep"
        if method == "sweep":
            yield from Sweep.over(self.generators, backend=backend).blocks(start, stop)
            return
        number = 0
        every = (
            tree_blocks(self.generators, backend=backend)
            if method == "tree"
            else (s[None] for s in reverse_search(self.generators))
        )
        for block in every:
            part = block[max(0, start - number) : None if stop is None else max(0, stop - number)]
            if len(part):
                yield part
            number += len(block)
            if stop is not None and number >= stop:
                return

    def vertices(self, *, method: str = "auto") -> Iterator[FloatArray]:
        """Stream the vertices p_s in blocks (≤ 2^12, d), in the order of :meth:`patterns`."""
        for block in self.patterns(method=method):
            yield vertex_of_pattern(self.generators, block)

    def support(self, directions: Array, *, backend: BackendChoice = "auto") -> Array:
        """h_Z(w) = Σ_i max(x_i·w, 0) for directions (k, d); (k,)."""
        door = enter(directions, backend=backend, kernel=Kernel.ZONOTOPE_SUPPORT)
        (given,) = door.arrays
        rows = door.backend.xp.asarray(self.generators, dtype=given.dtype)
        if getattr(given, "device", None) is not None and door.backend.info.name != "numba":
            rows = rows if str(given.device) == "cpu" else rows.to(given.device)
        return door.out(door.backend[Kernel.ZONOTOPE_SUPPORT](rows, given))

    def contains(self, point: Array, *, tol: float = 1e-9) -> Containment:
        """Whether ``point`` (d,) lies in Z, with coefficients or a separating direction.

        Bounded least squares min ‖Σ λ_i x_i − p‖ over λ in [0, 1]^n. The gradient at the nearest
        point separates if the point is outside; that inequality is checked.

        Raises
        ------
        InvalidInputError
            If the point is within ``tol`` of the boundary from outside, so that neither answer is
            supported, or has the wrong shape.
        """
        from scipy.optimize import lsq_linear

        p = np.asarray(point, dtype=np.float64)
        if p.shape != self.generators.shape[1:] or not np.isfinite(p).all():
            raise InvalidInputError(
                f"A point of shape {p.shape} was given; "
                f"{self.generators.shape[1:]}, finite, is due."
            )
        scale = max(float(np.linalg.norm(p)), float(np.linalg.norm(self.generators, axis=1).max()))
        x = self.generators / scale
        answer = lsq_linear(x.T, p / scale, bounds=(0, 1), method="bvls", tol=1e-14)
        miss = p / scale - answer.x @ x
        residual = float(np.linalg.norm(miss))
        if residual <= tol:
            return Containment(
                inside=True, coefficients=answer.x, direction=None, residual=residual
            )
        if float(miss @ p) / scale > float(np.maximum(x @ miss, 0).sum()):
            return Containment(inside=False, coefficients=None, direction=miss, residual=residual)
        raise InvalidInputError(
            f"The point is {residual:.1e} (relative) away from the zonotope and no direction "
            "separates it at this precision. Raise tol."
        )

    def sample(self, size: int, *, how: str = "uniform", seed: Seed = 0) -> NumpyArray:
        """Patterns int8 (size, n) of random vertices.

        Parameters
        ----------
        how : {"uniform", "gaussian"}
            "uniform": every vertex is equally likely, exactly; needs general position.
            "gaussian": the pattern of a normal direction, so a vertex has the weight of the solid
            angle of its cone, as at a random initialisation.
        seed : int or numpy.random.Generator
        """
        rng = np.random.default_rng(seed)
        d = self.generators.shape[1]
        if how == "gaussian":
            lengths = np.linalg.norm(self.generators, axis=1, keepdims=True)
            products = rng.normal(size=(size, d)) @ (self.generators / lengths).T
            return np.where(products > 0, 1, -1).astype(np.int8)
        if how != "uniform":
            raise InvalidInputError(f"how={how!r} was given; 'uniform' or 'gaussian' is accepted.")
        if self.general_position.holds is False:
            raise DegenerateArrangement(
                f"{self.general_position.message} Uniform sampling needs general position; use "
                "how='gaussian', or choose among the patterns of method='tree'."
            )
        return Sweep.over(self.generators).draw(size, rng)

    def rank(self, signs: Array) -> int:
        """The number of a vertex in the order of the sweep."""
        return Sweep.over(self.generators).rank(signs)

    def unrank(self, number: int) -> NumpyArray:
        """The pattern of the vertex with this number in the order of the sweep."""
        return Sweep.over(self.generators).unrank(number)

    def walls(self, signs: Array, *, method: str = "flip") -> IntArray:
        """Rows whose sign can be turned alone at this vertex: see :func:`walls`."""
        return walls(self.generators, signs, method=method)

    def graph(self) -> Any:
        """The 1-skeleton as ``networkx.Graph``: see :func:`vertex_graph`."""
        blocks = list(self.patterns())
        return vertex_graph(self.generators, check_signs(np.concatenate(blocks)))

    def volume(self) -> float:
        """Σ over d-subsets of |det X_S| (McMullen; Shephard 1974); O(C(n, d) d³)."""
        n, d = self.generators.shape
        if comb(n, d) > 20_000_000:
            raise InvalidInputError(
                f"The volume is a sum of {comb(n, d)} determinants; up to 2e7 are accepted."
            )
        total = 0.0
        block: list[tuple[int, ...]] = []
        for subset in combinations(range(n), d):
            block.append(subset)
            if len(block) == 1 << 12:
                total += float(np.abs(np.linalg.det(self.generators[np.array(block)])).sum())
                block = []
        if block:
            total += float(np.abs(np.linalg.det(self.generators[np.array(block)])).sum())
        return total
