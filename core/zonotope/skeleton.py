"""Walls of a chamber and the graph of vertices and edges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..types import Array, FloatArray, IntArray
from .feasibility import decide, witness_of
from .pattern import check_generators, check_signs, pack, unpack

WALL_METHODS = ("flip", "cone", "linprog", "hull")


def walls(generators: Array, signs: Array, *, method: str = "flip") -> IntArray:
    """Rows whose sign can be turned alone: the edges at the vertex p_s.

    Parameters
    ----------
    generators : array (n, d)
    signs : array (n,)
        A feasible pattern.
    method : {"flip", "cone", "linprog", "hull"}
        "flip": the oracle on each turned pattern, proven in integers, for any rows. The others are
        float64: s_i x_i outside the cone of the others (a non-negative least squares each);
        min s_i x_i·w over the box with the others' signs kept; extreme points of
        s_i x_i / (s_i x_i·w) in the slice of a witness w (Qhull; d ≥ 3).

    Raises
    ------
    InfeasiblePattern
        If the pattern has no direction.
    """
    x = check_generators(generators)
    s = check_signs(np.asarray(signs)[None], len(x))[0]
    if method not in WALL_METHODS:
        raise InvalidInputError(
            f"method={method!r} was given; accepted: {', '.join(WALL_METHODS)}."
        )
    w = witness_of(x, s)
    rows = x * s[:, None] / np.linalg.norm(x, axis=1, keepdims=True)
    if method == "hull":
        return _by_hull(rows, w)
    found = [i for i in range(len(x)) if _is_wall(x, s, rows, i, method)]
    return np.array(found, dtype=np.int64)


def _is_wall(x: FloatArray, s: Any, rows: FloatArray, i: int, method: str) -> bool:
    if method == "flip":
        turned = s.copy()
        turned[i] = -turned[i]
        return decide(x, turned).feasible
    others = np.delete(rows, i, axis=0)
    if method == "cone":
        from scipy.optimize import nnls

        return len(others) == 0 or float(nnls(others.T, rows[i])[1]) > 1e-7
    from scipy.optimize import linprog

    answer = linprog(rows[i], A_ub=-others, b_ub=np.zeros(len(others)), bounds=(-1, 1))
    return answer.fun is not None and float(answer.fun) < -1e-7


def _by_hull(rows: FloatArray, w: FloatArray) -> IntArray:
    from scipy.spatial import ConvexHull

    n, d = rows.shape
    if d < 3 or n <= d:
        raise InvalidInputError(
            f"method='hull' was given with n={n}, d={d}; it takes d >= 3 and n > d. Use 'flip'."
        )
    points = rows / (rows @ w)[:, None]
    basis = np.linalg.svd(w[None])[2][1:]
    return np.sort(ConvexHull(points @ basis.T).vertices).astype(np.int64)


def vertex_graph(generators: Array, patterns: Iterable[Array] | None = None) -> Any:
    """The 1-skeleton as a ``networkx.Graph``.

    Nodes are :class:`~fishertope.core.zonotope.Pattern` with the attribute ``vertex`` (d,); edges
    carry ``row``, the generator that they are parallel to.

    Parameters
    ----------
    generators : array (n, d)
    patterns : iterable of array (n,), optional
        All feasible patterns; without them they are enumerated by the tree, for any rows.

    Notes
    -----
    O(V n) look-ups of turned patterns. In memory: for up to some 1e5 vertices.
    """
    import networkx as nx

    from .pattern import Pattern
    from .tree import tree_patterns

    x = check_generators(generators)
    rows = list(tree_patterns(x) if patterns is None else patterns)
    signs = check_signs(np.array(rows), len(x))
    words = pack(signs)
    nodes = [Pattern(len(x), tuple(int(v) for v in w)) for w in words]
    known = set(nodes)
    if len(known) != len(nodes):
        raise InvalidInputError("Some patterns were given twice; give each one once.")
    graph = nx.Graph()
    vertices = (unpack(words, len(x)) > 0).astype(np.float64) @ x
    for node, vertex in zip(nodes, vertices, strict=True):
        graph.add_node(node, vertex=vertex)
    for node in nodes:
        for i in range(len(x)):
            other = node.flipped(i)
            if other in known and not graph.has_edge(node, other):
                graph.add_edge(node, other, row=i)
    return graph
