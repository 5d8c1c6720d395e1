"""What each result shows of itself in notebooks and terminals."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from ..factorization import Factorization, PerturbationReport
from ..fisher import DiagonalFishers, LowRankFishers, PrecisionTree
from .figures import bars
from .markup import Html
from .show import repr_html, rich_panel
from .tables import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 12


def html_of(result: Any) -> str:
    """Facts, a table and a small picture, as HTML that carries its own style."""
    return repr_html(type(result).__name__, facts_of(result), *pictures_of(result),
                     *(t.html() for t in tables_of(result)))  # fmt: skip


def rich_of(result: Any) -> RenderableType:
    """Facts and tables for a terminal."""
    return rich_panel(type(result).__name__, facts_of(result), *tables_of(result))


@singledispatch
def facts_of(result: Any) -> dict[str, Cell]:
    """What is worth knowing at first sight."""
    return {"result": repr(result)}


@singledispatch
def tables_of(result: Any) -> tuple[Table, ...]:
    """Rows to look at."""
    return ()


@singledispatch
def pictures_of(result: Any) -> tuple[Html, ...]:
    """A small picture, where one says more."""
    return ()


@facts_of.register
def _(result: Factorization) -> dict[str, Cell]:
    return {
        "examples": result.n_examples,
        "components": result.n_components,
        "columns": int(result.components.shape[1]),
        "relative loss": max(result.relative_loss, 0.0),
        "relative gradient": float(result.residual),
        "status": f"{result.status}: {result.status.message}",
        "solver": f"{result.method.solver} on {result.backend}",
        "data products": float(result.products),
    }


@tables_of.register
def _(result: Factorization) -> tuple[Table, ...]:
    shares = result.shares[:MOST_ROWS]
    top = result.top_examples(5)
    rows: list[list[Cell]] = [
        [k, float(share), ", ".join(str(i) for i in top[k])] for k, share in enumerate(shares)
    ]
    title = "Components"
    if result.n_components > MOST_ROWS:
        title += f" (the first {MOST_ROWS} of {result.n_components})"
    columns = [
        Column(name="k"),
        Column(name="share of Fisher mass", format=".1%"),
        Column(name="top examples", left=True),
    ]
    return (Table(columns=columns, rows=rows, title=title),)


@pictures_of.register
def _(result: Factorization) -> tuple[Html, ...]:
    shares = result.shares[:MOST_ROWS]
    names = [str(k) for k in range(len(shares))]
    return (bars(shares, names, label="Share of the Fisher mass by component", percent=True),)


@facts_of.register
def _(result: PerturbationReport) -> dict[str, Cell]:
    ratio = result.kl_ratio
    moved = np.isfinite(ratio).any()
    return {
        "components": len(ratio),
        "median KL-ratio": float(np.nanmedian(ratio)) if moved else None,
        "median predicted ratio": float(np.nanmedian(result.predicted_ratio)) if moved else None,
        "median ratio of random directions": float(np.nanmedian(result.random_ratio))
        if moved
        else None,
    }


@tables_of.register
def _(result: PerturbationReport) -> tuple[Table, ...]:
    columns = [
        Column(name="k"),
        Column(name="ε", format=".3g"),
        Column(name="KL top", format=".3g"),
        Column(name="KL base", format=".3g"),
        Column(name="ratio", format=".3g"),
        Column(name="predicted", format=".3g"),
        Column(name="random", format=".3g"),
        Column(name="centroid", format=".3g"),
    ]
    values = (
        result.magnitudes,
        result.kl_top.max(axis=1),
        result.kl_baseline.max(axis=1),
        result.kl_ratio,
        result.predicted_ratio,
        result.random_ratio.mean(axis=1),
        result.centroid_ratio,
    )
    rows: list[list[Cell]] = [
        [int(k), *(_finite(v[i]) for v in values)] for i, k in enumerate(result.components)
    ]
    return (Table(columns=columns, rows=rows, title="Moves along components"),)


@facts_of.register
def _(result: LowRankFishers) -> dict[str, Cell]:
    ranks = result.ranks
    return {
        "examples": len(result),
        "rows": int(result.rows.shape[0]),
        "rows an example": f"{ranks.min()} to {ranks.max()}" if len(ranks) else "–",
        "columns": result.n_columns,
        "dtype": str(result.rows.dtype),
        "labels": str(result.facts.get("labels", "not told")),
        "median ‖F‖": float(np.median(result.norms)) if len(result) else None,
    }


@facts_of.register
def _(result: DiagonalFishers) -> dict[str, Cell]:
    traces = result.traces()
    return {
        "examples": len(result),
        "parameters": int(result.values.shape[1]),
        "dtype": str(result.values.dtype),
        "labels": str(result.facts.get("labels", "not told")),
        "median trace": float(np.median(traces)) if len(traces) else None,
    }


@facts_of.register
def _(result: PrecisionTree) -> dict[str, Cell]:
    return {
        "structure": result.structure,
        "examples": result.n_examples,
        "sites": len(result),
        "trace": result.trace(),
        "labels": str(result.facts.get("labels", "not told")),
    }


@tables_of.register
def _(result: PrecisionTree) -> tuple[Table, ...]:
    whole = result.trace() or 1.0
    traces = {name: p.trace() for name, p in result.items()}
    ranked = sorted(traces.items(), key=lambda item: -item[1])[:MOST_ROWS]
    rows: list[list[Cell]] = [
        [name, result[name].kind, trace, _finite(result.trace_errors[name]), trace / whole]
        for name, trace in ranked
    ]
    columns = [
        Column(name="site", left=True),
        Column(name="structure", left=True),
        Column(name="trace", format=".3g"),
        Column(name="± standard error", format=".2g"),
        Column(name="share", format=".1%"),
    ]
    title = f"Sites of largest trace ({len(rows)} of {len(result)})"
    return (Table(columns=columns, rows=rows, title=title),)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# Registers what merges show; it needs the functions above.
from . import merging as merging  # noqa: E402
