"""``fishertope merge``: a plan or a few folders in, one checkpoint out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import (
    BackendOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    print_json,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.merging.plans import MergePlan
    from ..core.merging.streaming import MergeOptions, Progress

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def _size(text: str | None) -> int | None:
    """Bytes of "200MB", "5GiB", "1e9"."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found or found.group(2) == "i" or not 0 < float(found.group(1)) < 1e18:
        raise typer.BadParameter(f"{text!r} was given; a size such as 500MB, 2GiB or 1e9 is taken.")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


PlanArgument = Annotated[
    list[Path],
    typer.Argument(
        help="A plan (.yaml of fishertope or mergekit), or the models themselves: checkpoint "
        "folders, .safetensors files, LoRA adapters.",
        show_default=False,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the result.")]
MethodOption = Annotated[
    str | None, typer.Option("--method", "-m", help="For models: linear, fisher, ties, slerp, ...")
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", "-w", help="For models: one number each, as 0.3,0.7."),
]
PrecisionOption = Annotated[
    list[Path] | None,
    typer.Option("--precision", "-p", help="For models: one file each (fishertope estimate)."),
]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="For models: their common ancestor.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="For models: a parameter, as --set density=0.2; may be repeated."),
]
TakeOption = Annotated[
    list[str] | None,
    typer.Option("--site", help="A rule by name, as --site 'classifier.*=take:0'; repeatable."),
]
MemoryOption = Annotated[
    str | None, typer.Option(help="The process stays below it, such as 200MB; see --dry-run.")
]
ShardOption = Annotated[
    str | None, typer.Option("--shard-size", help="Largest file of weights, such as 5GB.")
]


def merge(
    what: PlanArgument,
    out: OutOption,
    method: MethodOption = None,
    weights: WeightsOption = None,
    precision: PrecisionOption = None,
    base: BaseOption = None,
    set_: SetOption = None,
    site: TakeOption = None,
    out_dtype: Annotated[
        str | None, typer.Option("--out-dtype", help="float32, bfloat16, float16 or float64.")
    ] = None,
    memory: MemoryOption = None,
    shard_size: ShardOption = None,
    backend: BackendOption = "auto",
    device: Annotated[str | None, typer.Option(help="For --backend torch: cpu, cuda, ...")] = None,
    threads: ThreadsOption = None,
    checksums: Annotated[
        bool, typer.Option("--checksums/--no-checksums", help="SHA-256 of the weights.")
    ] = True,
    fsync: Annotated[
        bool, typer.Option("--fsync/--no-fsync", help="Flush to the disk before it is called done.")
    ] = True,
    check_models: Annotated[
        bool,
        typer.Option("--check-models/--no-check-models", help="Compare precisions' model hash."),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all, show sizes and time; write nothing."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier result of fishertope.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge checkpoints on disk into one, in bounded memory.

    An interrupted merge goes on where it was when the same command is given again.

    Example: fishertope merge plan.yaml --out merged
    Example: fishertope merge model-a model-b --weights 0.3,0.7 --out merged
    """
    from ..core.merging.streaming.merge import MergeOptions, merge_checkpoints
    from ._long_runs import ending_with

    plan = plan_of(
        what, method=method, weights=weights, precision=precision or [], base=base,
        settings=set_ or [], sites=site or [], out_dtype=out_dtype,
    )  # fmt: skip
    options = MergeOptions(
        backend=backend, device=device, workers=threads, memory=_size(memory),
        shard_bytes=_size(shard_size), checksums=checksums, fsync=fsync, check_models=check_models,
    )  # fmt: skip
    if dry_run:
        show_estimate(plan, out, options, json=json, quiet=quiet)
        return
    said = f"Nothing is under {out}; the same command resumes the merge."
    with ending_with(said), byte_bar(None if quiet or json else stderr()) as watch:
        report = merge_checkpoints(plan, out, options=options, overwrite=overwrite, watch=watch)
    if json:
        print_json({"path": str(report.path), **report.facts})
    elif not quiet:
        show_facts(report.facts, f"{report.path}: merged by {plan.method}", stdout())


def plan_of(
    what: list[Path], *, method: str | None, weights: str | None, precision: list[Path],
    base: Path | None, settings: list[str], sites: list[str], out_dtype: str | None,
) -> MergePlan:  # fmt: skip
    """The plan of a file, or of models and options.

    Raises
    ------
    typer.BadParameter
        Options of models together with a plan, or that do not fit the models.
    """
    from ..core.merging.plans import MergePlan, PlanSource, load_plan

    rules = dict(_pair("--site", s) for s in sites)
    if len(what) == 1 and what[0].suffix.lower() in (".yaml", ".yml"):
        given = {
            "--method": method, "--weights": weights, "--precision": precision, "--base": base,
            "--set": settings,
        }  # fmt: skip
        odd = [k for k, v in given.items() if v]
        if odd:
            raise typer.BadParameter(
                f"{', '.join(odd)} was given with a plan; write it into {what[0].name}, or give "
                "the models instead of the plan."
            )
        plan = load_plan(what[0])
        changes: dict[str, Any] = {}
        if rules:
            changes["sites"] = {**rules, **plan.sites}
        if out_dtype is not None:
            changes["out_dtype"] = out_dtype
        return MergePlan.of({**plan.to_dict(), **changes}) if changes else plan
    if any(p.suffix.lower() in (".yaml", ".yml") for p in what):
        raise typer.BadParameter("One plan is taken, or models; a plan among models was given.")
    if precision and len(precision) != len(what):
        raise typer.BadParameter(
            f"{len(precision)} precisions were given for {len(what)} models; give one for each, in "
            "their order."
        )
    chosen = method or ("fisher" if precision else "linear")
    numbers = _numbers(weights, len(what))
    parameters = dict(_pair("--set", s) for s in settings)
    sources = []
    for i, path in enumerate(what):
        own: dict[str, Any] = {} if numbers is None else {"weight": numbers[i]}
        file = str(precision[i]) if precision else None
        sources.append(PlanSource(model=str(path), precision=file, parameters=own))
    plan_: dict[str, Any] = {
        "method": chosen, "sources": sources, "sites": rules, "out_dtype": out_dtype,
        "base_model": None if base is None else str(base),
        "parameters": {k: _typed(v) for k, v in parameters.items()},
    }  # fmt: skip
    if numbers is None and chosen not in ("slerp", "model_stock", "wise_ft"):
        default = 1.0 if chosen not in ("linear", "fisher") else 1.0 / len(what)
        plan_["parameters"] = {"weight": default, **plan_["parameters"]}
    return MergePlan.of(plan_)


def _numbers(text: str | None, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise typer.BadParameter(
            f"--weights {text} was given for {count} models; {count} numbers with commas are taken."
        )
    return found


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise typer.BadParameter(f"{option} {text} was given; NAME=VALUE is taken.")
    return key, value


def _typed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def show_estimate(
    plan: MergePlan, out: Path, options: MergeOptions, *, json: bool, quiet: bool
) -> None:
    """Sizes, memory and time, with nothing written."""
    from ..core.merging.streaming import estimate_merge

    found = estimate_merge(plan, out, options=options)
    if json:
        print_json(found)
    elif not quiet:
        show_facts(found, f"{out}: nothing was written (--dry-run)", stdout())


def show_facts(facts: Mapping[str, Any], line: str, console: Console) -> None:
    """A short table."""
    from ..core.report import Column, Table

    rows: list[list[str | int]] = []
    for key, value in facts.items():
        if value in (None, [], {}) or key in ("not_merged", "solved_sites"):
            continue
        name = key.replace("_", " ")
        if "bytes" in key and isinstance(value, int | float):
            rows.append([name, readable(value)])
        elif isinstance(value, Mapping):
            rows.append([name, ", ".join(f"{k} {v}" for k, v in value.items())])
        elif isinstance(value, list):
            rows.append([name, "; ".join(map(str, value))[:300]])
        else:
            rows.append([name, f"{value:,}" if isinstance(value, int) else str(value)])
    console.print(line, markup=False, highlight=False)
    columns = [Column(name="fact", left=True), Column(name="value", left=True)]
    console.print(Table(columns=columns, rows=rows))
    odd = facts.get("not_merged") or {}
    for name, why in list(odd.items())[:10]:
        console.print(f"  {name}: {why}", markup=False, highlight=False)
    if len(odd) > 10:
        console.print(f"  and {len(odd) - 10} more", markup=False, highlight=False)


def readable(size: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> readable(13_476_000_000), readable(512)
    ('13.5 GB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} TB"


@contextmanager
def byte_bar(console: Console | None) -> Iterator[Callable[[Progress], Any]]:
    """A callback that shows how far a merge is, at which rate, and the time left."""
    if console is None:
        yield lambda step: None
        return
    state = _Rate()
    if not console.is_terminal:

        def line(step: Progress) -> None:
            if state.due(30.0):
                console.print(state.text(step), markup=False, highlight=False)

        yield line
        return
    from rich.progress import BarColumn, Progress as Bars, TextColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}", markup=False),
    ]  # fmt: skip
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("Merge", total=None, detail="")

        def advance(step: Progress) -> None:
            bars.update(
                task, completed=step.done, total=step.total or None, detail=state.text(step),
                description=step.phase.capitalize(),
            )  # fmt: skip

        yield advance


class _Rate:
    """Rate and time left of the phase that runs."""

    def __init__(self) -> None:
        self._phase, self._since, self._first = "", time.monotonic(), 0
        self._last = time.monotonic()

    def due(self, seconds: float) -> bool:
        if time.monotonic() - self._last < seconds:
            return False
        self._last = time.monotonic()
        return True

    def text(self, step: Progress) -> str:
        from ._long_runs import clock

        now = time.monotonic()
        if step.phase != self._phase:
            self._phase, self._since, self._first = step.phase, now, step.done
        elapsed, done = now - self._since, step.done - self._first
        speed = done / elapsed if elapsed > 0 else 0.0
        if step.phase == "measuring":
            return f"{step.done} of {step.total} tensors"
        text = f"{readable(step.done)} of {readable(step.total)}"
        if speed <= 0:
            return text
        return f"{text}, {readable(speed)}/s, {clock((step.total - step.done) / speed)} left"
