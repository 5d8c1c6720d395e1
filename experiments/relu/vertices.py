"""Patterns are vertices, and optimising a network is a search over them: counted and exhausted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.types import FloatArray, NumpyArray
from ...core.zonotope import n_edges, n_vertices, tree_patterns
from ...core.zonotope.pattern import pack
from ...theory import ReluProblem, brute_force, greedy_search, solve_batch, with_bias
from ...theory.program import losses_of
from ..studies import Figure, Interval, Rows, Study, Summary, decide
from ..studies.study import Settings
from .descent import starts

# N,d,m; m = 0: counted only.
SIZES = ("8,1,2", "10,2,2", "9,3,2", "40,3,0", "24,5,0")
STARTS, DIRECTIONS = 100, 20_000


def units(quick: bool) -> list[dict[str, Any]]:
    """Every size with five data sets."""
    sizes = SIZES[:1] + SIZES[3:4] if quick else SIZES
    return [{"size": size, "seed": seed} for size in sizes for seed in range(1 if quick else 5)]


def unit(settings: Settings) -> Mapping[str, Any]:
    """Counts by the tree, which knows no formula; for small networks, optimum and descents."""
    n, d, m = (int(v) for v in settings["size"].split(","))
    rng = np.random.default_rng([settings["seed"], n, d])
    x = with_bias(rng.normal(size=(n, d)))
    found = np.array(list(tree_patterns(x)), dtype=np.int8)
    words = np.unique(pack(found)[:, 0])
    bit = np.uint64(1)
    turned = [np.isin(words ^ (bit << np.uint64(i)), words).sum() for i in range(n)]
    edges = int(np.sum(turned)) // 2
    drawn = np.where(rng.normal(size=(DIRECTIONS, d + 1)) @ x.T > 0, 1, -1).astype(np.int8)
    out = {
        "vertices": len(words),
        "vertices over the formula": len(words) / n_vertices(n, d + 1),
        "edges over the formula": edges / n_edges(n, d + 1),
        "mean degree": 2 * edges / len(words),
        "directions in the set": float(np.isin(pack(drawn)[:, 0], words).mean()),
    }
    return out | (_descents(x, m, rng) if m else {})


def _descents(x: FloatArray, m: int, rng: np.random.Generator) -> dict[str, Any]:
    """The optimum by exhaustion against networks trained by L-BFGS and greedy search."""
    from scipy.optimize import minimize

    y = rng.normal(size=len(x))
    problem = ReluProblem(inputs=x, targets=y, signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0))
    best = brute_force(problem)
    v = problem.signs

    def value(flat: FloatArray) -> tuple[float, FloatArray]:
        z = flat.reshape(m, -1) @ x.T
        r = v @ np.maximum(z, 0.0) - y
        return 0.5 * float(r @ r), (((z > 0) * r * v[:, None]) @ x).ravel()

    trained = np.array([
        minimize(value, w.ravel(), jac=True, method="L-BFGS-B").x.reshape(m, -1)
        for w in starts(problem, STARTS, rng)
    ])  # fmt: skip
    losses = losses_of(problem, trained)
    own = losses_of(problem, solve_batch(problem, _patterns(x, trained))[0])
    greedy = np.array([greedy_search(problem, seed=s).loss for s in rng.spawn(STARTS)])
    optimum = best.solution.loss
    return {
        "cells": best.n_cells,
        "optimum": optimum,
        "trained below the optimum by": float((optimum - losses.min()) / optimum),
        "greedy below the optimum by": float((optimum - greedy.min()) / optimum),
        "trained below their vertex by": float(((own - losses) / optimum).max()),
        "share of L-BFGS at the optimum": float((losses <= optimum * (1 + 1e-6)).mean()),
        "share of greedy at the optimum": float((greedy <= optimum * (1 + 1e-6)).mean()),
        "best L-BFGS over the optimum": float(losses.min() / optimum),
        "best greedy over the optimum": float(greedy.min() / optimum),
    }


def _patterns(x: FloatArray, weights: FloatArray) -> NumpyArray:
    """Signs (k, m, n) of networks (k, m, d); a product of 0 counts as off."""
    return np.where(np.einsum("nd,kmd->kmn", x, weights) > 0, 1, -1).astype(np.int8)


def _range(values: FloatArray) -> Interval:
    return Interval(float(values.mean()), float(values.min()), float(values.max()), len(values))


def summarise(rows: Rows) -> Summary:
    """Exact counts, and that nothing lies below the optimum over vertices."""
    small = [r for r in rows if "optimum" in r.result]
    counted, optima = [], []
    for size in rows.distinct("size"):
        own = rows.where(size=size)
        n, d, m = (int(v) for v in size.split(","))
        counted.append([
            f"{n},{d}", f"{n_vertices(n, d + 1)}", f"{own.values('vertices').mean():.0f}",
            f"{own.values('edges over the formula').mean():g}",
            f"{own.values('mean degree').mean():.3f}", f"{2 * d}",
        ])  # fmt: skip
        if m:
            optima.append([
                size, f"{own.values('cells').mean():.0f}", f"{own.values('optimum').mean():.4f}",
                *(f"{own.values(f'share of {k} at the optimum').mean():.3f}"
                  for k in ("greedy", "L-BFGS")),
                *(f"{own.values(f'best {k} over the optimum').mean():.4f}"
                  for k in ("greedy", "L-BFGS")),
            ])  # fmt: skip

    def every(name: str) -> Interval:
        return _range(np.array([r.result[name] for r in rows if name in r.result]))

    findings = [
        decide("vertices found over the formula", every("vertices over the formula"),
               at_least=1.0),
        decide("the same, at most", every("vertices over the formula"), at_most=1.0),
        decide("edges found over the formula", every("edges over the formula"), at_least=1.0),
        decide("the same, at most", every("edges over the formula"), at_most=1.0),
        decide("share of random directions whose pattern is a vertex found",
               every("directions in the set"), at_least=1.0),
    ]  # fmt: skip
    if small:
        findings += [
            decide(f"largest relative amount by which {what}", every(name), at_most=1e-8,
                   format=".1e")
            for what, name in (
                ("a trained network is below the optimum over vertices",
                 "trained below the optimum by"),
                ("greedy search is below the optimum over vertices",
                 "greedy below the optimum by"),
                ("a trained network is below its own vertex's program",
                 "trained below their vertex by"),
            )
        ]  # fmt: skip
    return Summary.of(
        findings,
        reason=(
            "Counts, edges and 20,000 directions a data set agree with the vertices at every size; "
            "no network trained from 100 starts lies below the optimum over vertices, nor below "
            "the optimum of its own vertex."
        ),
        tables=[_counts(counted), _optima(optima)],
        notes=["Intervals are the smallest and largest value over data sets: the rule is exact."],
    )


def _counts(lines: list[list[str]]) -> Table:
    return Table(
        title="Vertices and edges of the zonotope, by the tree (five data sets a size)",
        columns=[
            Column(name="N,d", left=True), Column(name="V(N, d+1)"), Column(name="vertices found"),
            Column(name="edges over N·V(N−1, d)"), Column(name="mean degree"),
            Column(name="its limit 2d"),
        ],
        rows=lines,
    )  # fmt: skip


def _optima(lines: list[list[str]]) -> Table:
    return Table(
        title=f"Global optimum by exhaustion, and {STARTS} starts of two searches",
        columns=[
            Column(name="N,d,m", left=True), Column(name="cells"), Column(name="optimal loss"),
            Column(name="share of greedy starts at it"),
            Column(name="share of L-BFGS starts at it"),
            Column(name="best greedy over it"), Column(name="best L-BFGS over it"),
        ],
        rows=lines,
    )  # fmt: skip


def figures(rows: Rows) -> Sequence[Figure]:
    """Five points, their chambers and their zonotope."""
    from .pictures import chambers, zonohedron

    del rows
    return [
        Figure(picture=chambers(), caption="The slice w₃ = 1, coloured by the loss of each cone."),
        Figure(picture=zonohedron(), caption="The zonotope, vertices in the same colours."),
    ]


STUDY = Study(
    id="relu-vertices",
    title="Patterns are the vertices of a zonotope, and the optimum lies over one of them",
    claims=(1,),
    question=(
        "Are the activation patterns of normal data exactly the vertices that the formula counts? "
        "Is the smallest loss over all tuples of vertices, one convex program each, below every "
        "network that gradient descent finds from 100 starts?"
    ),
    history=(
        "Fixed before the run; the counting formulas are Cover's and Zaslavsky's, and exhaustion "
        "had been compared with other solvers at two of the sizes."
    ),
    rule=(
        "Holds if at every size and data set the numbers of vertices and edges equal the formulas, "
        "no direction has a pattern beyond them, and no network is below the optimum over vertices "
        "or below the optimum of its own vertex, beyond 1e-8 of the optimum."
    ),
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    quick_seconds=5.0,
    full_minutes=2.0,
)
