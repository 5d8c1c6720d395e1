"""The page of a training run: loss curve, scores, what was trained on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fishertope.core.report import Column, Page, Table, curves
from fishertope.core.report.page import key_facts, note


def run_page(results: Mapping[str, Any]) -> str:
    """One HTML page without network access for the results of a run."""
    facts = results["facts"]
    kind = "Pre-training" if facts["kind"] == "pretraining" else "Fine-tuning"
    on = ", ".join(facts["tasks"]) or str(facts.get("objective", "")).replace("_", " ")
    page = Page(f"{kind}: {on}", subtitle=f"{results['parameters']:,} parameters, "
                f"{results['config']['arch']}")  # fmt: skip
    log = results["log"]
    if results["status"] == "diverged":
        page.lead(f"The loss stopped being finite after step {results['steps']}; no model was "
                  "kept. A smaller rate or a warm-up usually helps.")  # fmt: skip
    elif log:
        page.lead(f"After {results['steps']:,} steps the training loss is {log[-1]['loss']:.3f} "
                  f"nats a token; it began at {log[0]['loss']:.3f}.")  # fmt: skip
    shown = {"steps": f"{results['steps']:,}"}
    if log:
        shown["tokens read"] = f"{log[-1]['tokens']:,}"
        shown["seconds"] = f"{log[-1]['seconds']:,.0f}"
    shown |= {name: f"{value:.2f}" for name, value in list(results["scores"].items())[:4]}
    page.add(key_facts(shown))
    if len(log) > 1:
        page.section("Loss", _losses(results))
    if results["scores"]:
        page.section("Scores", Table(
            columns=[Column(name="score", left=True), Column(name="value", format=".2f")],
            rows=[[k, float(v)] for k, v in results["scores"].items()],
        ).html())  # fmt: skip
    settings = {**results["plan"], **results["config"]}
    page.section("Settings", Table(
        columns=[Column(name="setting", left=True), Column(name="value", left=True)],
        rows=[[k, str(v)] for k, v in settings.items()],
    ).html())  # fmt: skip
    page.footer(note(f"Versions: {results['versions']}"))
    return page.render()


def _losses(results: Mapping[str, Any]) -> Any:
    log = results["log"]
    steps = np.array([e["step"] for e in log], dtype=np.float64)
    series = {"training": (steps, np.array([e["loss"] for e in log], dtype=np.float64))}
    held = [(e["step"], e["scores"]["held-out loss"]) for e in results["evaluations"]
            if "held-out loss" in e["scores"]]  # fmt: skip
    if len(held) > 1:
        x, y = (np.array(side, dtype=np.float64) for side in zip(*held, strict=True))
        series["held out"] = (x, y)
    return curves(series, label="Loss over the steps", x_label="step", y_label="nats a token")
