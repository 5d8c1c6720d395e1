"""Pictures of the theory: chambers, zonotopes, and paths of a search over their vertices."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from ...core.report import Html, figure_svg
from ...core.report.figures import COLOURS, FAINT, INK
from ...core.types import FloatArray, NumpyArray
from ...core.zonotope import tree_patterns, vertex_graph
from ...theory import ReluProblem, greedy_search, solve_batch, with_bias
from ...theory.program import losses_of

# Five points in general position, and what one unit with output +1 is to fit there.
POINTS = np.array([(-1.2, 0.4), (-0.5, -0.9), (0.3, 1.1), (0.9, -0.3), (1.4, 0.8)])
TARGETS = np.array([1.0, -0.3, 0.2, 0.9, -0.4])
_BOX = 3.2
# The direction from which zonohedra are looked at, and up.
_VIEW = np.array([0.55, -0.75, 0.42])


def five_points() -> ReluProblem:
    """The example of the pictures: N = 5, d = 2, one unit."""
    return ReluProblem(inputs=with_bias(POINTS), targets=TARGETS, signs=np.ones(1))


@cache
def _vertices() -> tuple[NumpyArray, FloatArray]:
    """Patterns (V, n) of the five points and the loss of the best unit on each's cone."""
    problem = five_points()
    patterns = np.array(list(tree_patterns(problem.inputs)), dtype=np.int8)
    weights, _ = solve_batch(problem, patterns[:, None])
    return patterns, losses_of(problem, weights)


def _colours(values: FloatArray) -> Any:
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    low, high = float(values.min()), float(values.max())
    scale = mpl.colormaps["viridis"]
    return [to_hex(scale(0.05 + 0.9 * (v - low) / (high - low))) for v in values]


def _clipped(corners: FloatArray, normal: FloatArray) -> FloatArray:
    """The part of a convex polygon (k, 2) with normal·(w, 1) ≥ 0."""
    kept = []
    height = corners @ normal[:2] + normal[2]
    for k in range(len(corners)):
        a, b, ha, hb = corners[k - 1], corners[k], height[k - 1], height[k]
        if (ha > 0) != (hb > 0):
            kept.append(a + (b - a) * ha / (ha - hb))
        if hb > 0:
            kept.append(b)
    return np.array(kept).reshape(-1, 2)


def data() -> Html:
    """The five points."""

    def draw(axes: Any) -> None:
        axes.scatter(*POINTS.T, color=COLOURS[0], zorder=3)
        for i, (p, y) in enumerate(zip(POINTS, TARGETS, strict=True)):
            axes.annotate(f"x{i + 1}, y = {y:g}", p, xytext=(5, 5), textcoords="offset points")
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set(xlim=(-1.9, 2.3), ylim=(-1.4, 1.7), aspect="equal")

    return figure_svg(draw, width=4.2, height=3.2, label="Five points in the plane")


def chambers() -> Html:
    """The slice w₃ = 1 of a unit's weights, cut by the five examples."""
    patterns, losses = _vertices()
    colours = _colours(losses)
    x = five_points().inputs
    box = np.array([(-_BOX, -_BOX), (_BOX, -_BOX), (_BOX, _BOX), (-_BOX, _BOX)])

    def draw(axes: Any) -> None:
        for signs, loss, colour in zip(patterns, losses, colours, strict=True):
            part = box
            for s, row in zip(signs, x, strict=True):
                part = _clipped(part, s * row) if len(part) else part
            if len(part) < 3:
                continue
            axes.fill(*part.T, color=colour, linewidth=0)
            area = np.ptp(part, axis=0).min()
            if area > 0.55:
                axes.text(*part.mean(axis=0), f"{loss:.2f}", color="white", fontsize=8,
                          ha="center", va="center")  # fmt: skip
        for i, (a, b, _) in enumerate(x):
            line = np.array([-4 * _BOX, 4 * _BOX])
            if abs(b) > abs(a):
                axes.plot(line, -(a * line + 1) / b, color=INK, linewidth=1.0)
            else:
                axes.plot(-(b * line + 1) / a, line, color=INK, linewidth=1.0)
            foot = -np.array([a, b]) / (a * a + b * b)
            axes.annotate(f"x{i + 1}", foot, fontsize=9, color=INK,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
        axes.set(xlim=(-_BOX, _BOX), ylim=(-_BOX, _BOX), aspect="equal", xlabel="w₁", ylabel="w₂")

    return figure_svg(draw, width=4.6, height=4.3, label="Chambers of a unit's weights")


def _frame() -> FloatArray:
    """Two orthonormal axes of the picture plane and the direction towards the eye."""
    eye = _VIEW / np.linalg.norm(_VIEW)
    right = np.cross((0.0, 0.0, 1.0), eye)
    right /= np.linalg.norm(right)
    return np.array([right, np.cross(eye, right), eye])


def _is_seen(place: FloatArray) -> bool:
    """Whether a point of the boundary, in the frame of the picture, has nothing before it.

    A step towards the eye leaves the zonotope {z : |n·z| ≤ ½ Σ_k |n·x_k| for all normals n}.
    """
    x = five_points().inputs @ _frame().T
    first, second = np.triu_indices(len(x), 1)
    normals = np.cross(x[first], x[second])
    bound = 0.5 * np.abs(normals @ x.T).sum(axis=1)
    step = place + np.array((0.0, 0.0, 1e-6))
    return bool((np.abs(normals @ step) > bound * (1 + 1e-9)).any())


def _draw_zonohedron(axes: Any) -> dict[bytes, FloatArray]:
    """Edges and loss-coloured vertices; where each pattern's vertex is on the picture."""
    patterns, losses = _vertices()
    x = five_points().inputs
    graph = vertex_graph(x, patterns)
    centre = x.sum(axis=0) / 2
    places = {node: _frame() @ (data["vertex"] - centre) for node, data in graph.nodes.items()}
    for a, b in graph.edges:
        p, q = places[a], places[b]
        front = _is_seen((p + q) / 2)
        axes.plot(
            (p[0], q[0]), (p[1], q[1]), color=INK, alpha=1.0 if front else 0.4,
            linewidth=1.1 if front else 0.8, linestyle="-" if front else ":", zorder=2,
        )  # fmt: skip
    where = {}
    vertices = (patterns > 0).astype(float) @ x
    flat = (vertices - centre) @ _frame().T
    for signs, place, colour in zip(patterns, flat, _colours(losses), strict=True):
        axes.scatter(*place[:2], color=colour, s=46 if _is_seen(place) else 20, zorder=3,
                     edgecolors=INK, linewidths=0.5)  # fmt: skip
        where[signs.tobytes()] = place
    axes.set_aspect("equal")
    axes.axis("off")
    return where


def zonohedron() -> Html:
    """The zonotope of the five homogenised points, its vertices coloured by their loss."""

    def draw(axes: Any) -> None:
        _draw_zonohedron(axes)

    return figure_svg(draw, width=4.6, height=4.0, label="The zonotope of five points")


def greedy_path() -> Html:
    """Vertices that a greedy search visits, from the worst one it can start at."""
    problem = five_points()
    patterns, losses = _vertices()
    start = _longest_path(problem, patterns, losses)

    def draw(axes: Any) -> None:
        where = _draw_zonohedron(axes)
        visited = visited_patterns(problem, start)
        points = np.array([where[s[0].tobytes()] for s in visited])
        for k, (p, q) in enumerate(pairwise(points)):
            axes.annotate("", q[:2], p[:2], zorder=5,
                          arrowprops={"arrowstyle": "-|>", "color": COLOURS[1],
                                      "linewidth": 2.0, "shrinkA": 3, "shrinkB": 3})  # fmt: skip
            axes.annotate(f"{k + 1}", (p[:2] + q[:2]) / 2, xytext=(4, 4), zorder=6,
                          textcoords="offset points", color=COLOURS[1])  # fmt: skip

    return figure_svg(draw, width=4.6, height=4.0, label="A greedy search on the zonotope")


def visited_patterns(problem: ReluProblem, start: NumpyArray) -> list[NumpyArray]:
    """Patterns (m, n) after 0, 1, 2, … steps of one search."""
    visited = [start]
    for steps in range(1, 100):
        found = greedy_search(problem, patterns=start, max_steps=steps, seed=0)
        if len(found.history) == len(visited):
            break
        visited.append(found.patterns)
    return visited


def _longest_path(problem: ReluProblem, patterns: NumpyArray, losses: FloatArray) -> NumpyArray:
    """The start whose search takes the most steps; among them that with the largest loss."""
    order = np.argsort(-losses, kind="stable")
    lengths = [
        len(greedy_search(problem, patterns=patterns[k][None], seed=0).history) for k in order
    ]
    return np.asarray(patterns[order[int(np.argmax(lengths))]][None])
