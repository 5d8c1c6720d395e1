"""What a merge says of itself: numbers for machines, a model card for people."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ...storage.facts import peak_memory_mib
from .engine import Cut
from .prepare import Prepared
from .recipes import Counts

_MOST = 20


def report_facts(found: Prepared, counts: Counts, seconds: float, cut: Cut) -> dict[str, Any]:
    """Numbers of a finished merge."""
    layout = found.layout
    jobs = found.jobs.values()
    kinds: dict[str, int] = {}
    for decision in found.decisions.values():
        kinds[decision.kind] = kinds.get(decision.kind, 0) + 1
    written = layout.bytes * found.results
    read = sum(j.read_bytes for j in jobs)
    return {
        "method": found.plan.method,
        "tensors": len(found.jobs),
        "parameters": sum(prod(j.entry.shape) for j in jobs),
        "decisions": kinds,
        "not_merged": {
            d.name: f"{d.kind}: {d.why}" for d in found.decisions.values() if d.kind != "merge"
        },
        "results": found.results,
        "bytes_read": read,
        "bytes_written": written,
        "seconds": round(seconds, 3),
        "bytes_per_second": round((read + written) / seconds) if seconds > 0 else None,
        "entries_not_finite": counts.nonfinite,
        "entries_without_precision": counts.empty,
        "workers": cut.workers,
        "buffer_bytes_per_worker": cut.buffer,
        "peak_memory_mib": peak_memory_mib(),
        "solved_sites": [
            {"name": r.name, "solver": r.solver, "residual": r.residual, "fallback": r.fallback}
            for g in found.groups.values() for r in g.reports
        ],
        "notes": [*found.notes, *([found.plan.comment] if found.plan.comment else [])],
    }  # fmt: skip


def model_card(found: Prepared, facts: Mapping[str, Any], k: int) -> str:
    """A README for the merged checkpoint."""
    from ..plans.files import plan_text

    plan = found.plan
    family = plan.family
    models = [s.model for s in plan.sources]
    lines = ["---", "tags:", "- merge", "- fishertope"]
    lines += ["base_model:", *(f"- {_yaml(m)}" for m in _named(plan.base_model, models)), "---", ""]
    lines += [
        f"# {_title(models)}",
        "",
        f"Merged with fishertope: **{family.name}**, {family.about}.",
    ]
    if plan.grid:
        lines += ["", f"Weights of this result: {list(plan.grid[k])}."]
    lines += ["", "| source | model | precision |", "| --- | --- | --- |"]
    for i, source in enumerate(plan.sources):
        lines.append(f"| {i} | `{source.model}` | {source.precision or ''} |")
    if plan.base_model is not None:
        lines.append(f"| base | `{plan.base_model}` | |")
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(facts["decisions"].items()))
    lines += ["", f"{facts['parameters']:,} parameters in {facts['tensors']} tensors ({kinds})."]
    odd = facts["not_merged"]
    if odd:
        lines += ["", "Not merged by the method:", ""]
        lines += [f"- `{name}`: {why}" for name, why in list(odd.items())[:_MOST]]
        lines += [f"- and {len(odd) - _MOST} more"] if len(odd) > _MOST else []
    for note in facts["notes"]:
        lines += ["", f"Note: {note}."]
    lines += [
        "",
        "The plan, for `fishertope merge`:",
        "",
        "```yaml",
        plan_text(plan).strip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _named(base: str | None, models: list[str]) -> list[str]:
    return list(dict.fromkeys([*([base] if base else []), *models]))


def _title(models: list[str]) -> str:
    names = [Path(m).name or m for m in models[:3]]
    return " + ".join(names) + (f" and {len(models) - 3} more" if len(models) > 3 else "")


def _yaml(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
