"""Running a study: units that are missing, one thread each, their rows kept as they come."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.backend.threads import thread_facts, thread_limit
from ...core.errors import (
    BackendUnavailable,
    InvalidInputError,
    SolveFailedError,
    StoppedError,
)
from ...core.storage import OutputFolder, peak_memory_mib, plain, versions
from .rows import Row, Rows, append_row, key_of, read_rows
from .study import Settings, Study, Summary

ROWS = "rows.jsonl"
DEFAULT_FOLDER = Path("study-results")

Progress = Callable[[int, int], None]
"""``progress(done, total)``: units finished, of all."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """How far a study came, and what it says when it is complete.

    Attributes
    ----------
    study : Study
    quick : bool
    done, total : int
        Units with a row, of all.
    summary : Summary or None
        ``None`` while units are missing, unless the study copes with that.
    rows : Rows
    folder : Path
        Where the results are, or will be.
    """

    study: Study
    quick: bool
    done: int
    total: int
    summary: Summary | None
    rows: Rows
    folder: Path

    @property
    def complete(self) -> bool:
        """Whether every unit has its row."""
        return self.done == self.total

    @property
    def results(self) -> dict[str, Any]:
        """The numbers, as ``results.json`` has them."""
        facts: dict[str, Any] = {
            "study": self.study.id,
            "version": self.study.version,
            "quick": self.quick,
            "claims": list(self.study.claims),
            "units": {"done": self.done, "total": self.total},
            "seconds_of_units": round(self.rows.seconds, 1),
        }
        if self.summary is not None:
            facts |= {
                "verdict": self.summary.outcome,
                "reason": self.summary.reason,
                "findings": list(self.summary.findings),
                "tables": [
                    {"title": t.title, "columns": [c.name for c in t.columns], "rows": t.rows}
                    for t in self.summary.tables
                ],
            }
        return facts


def results_folder(study: Study, quick: bool) -> Path:
    """Where a study's results go unless told otherwise."""
    return DEFAULT_FOLDER / (study.id + ("-quick" if quick else ""))


def run_study(
    study: Study,
    *,
    quick: bool = False,
    out: Path | None = None,
    jobs: int = 1,
    budget_minutes: float | None = None,
    fresh: bool = False,
    progress: Progress = lambda done, total: None,
) -> StudyRun:
    """Run the units that have no row yet; when all have one, write the results folder.

    Rows are kept in ``.NAME.partial/rows.jsonl`` beside the folder until the study is complete.
    Those of an interrupted run, and of a finished one with the same settings and version, are
    taken up: a run that was killed and run again gives what an uninterrupted one gives.

    Parameters
    ----------
    study : Study
    quick : bool
        The small units.
    out : path, optional
        ``study-results/ID``, with ``-quick`` for the small units.
    jobs : int
        Processes, of one thread each.
    budget_minutes : float, optional
        No unit is begun after this time; those under way are finished.
    fresh : bool
        Forget earlier rows.
    progress : callable
        Told ``(done, total)`` after each unit.

    Raises
    ------
    BackendUnavailable
        If a module that the study needs is not installed.
    ForeignFolderError
        If ``out`` holds something that is not a run of this study.
    SolveFailedError
        If units failed, with the first one's traceback; rows of the others are kept.
    """
    _check(study, jobs, budget_minutes)
    units = study.checked_units(quick)
    keys = [key_of(study.id, study.version, s) for s in units]
    place = results_folder(study, quick) if out is None else out
    folder = OutputFolder(
        place,
        command=f"experiment run {study.id}",
        settings={"study": study.id, "quick": quick},
        overwrite="same command",
        resume=not fresh,
    )
    with folder as writing:
        store = writing.file(ROWS)
        if not fresh and not store.exists():
            for row in read_rows(folder.path / ROWS).values():
                if row.key in keys:
                    append_row(store, row)
        found = read_rows(store)
        missing = [s for s, key in zip(units, keys, strict=True) if key not in found]
        failures: list[str] = []
        progress(len(units) - len(missing), len(units))
        for outcome in _results(study, missing, jobs, budget_minutes):
            if isinstance(outcome, str):
                failures.append(outcome)
                continue
            row = outcome
            append_row(store, row)
            found[row.key] = row
            progress(sum(key in found for key in keys), len(units))
        if failures:
            raise SolveFailedError(
                f"{len(failures)} units of {study.id} failed; the rows of the others are kept, and "
                f"a further run tries the failed ones again. The first:\n{failures[0]}"
            )
        rows = Rows(found[key] for key in keys if key in found)
        run = StudyRun(
            study=study,
            quick=quick,
            done=len(rows),
            total=len(units),
            summary=_summary(study, rows, len(units)),
            rows=rows,
            folder=folder.path,
        )
        if run.complete:
            _finish(writing, run)
    return run


def rewrite(study: Study, quick: bool, place: Path) -> StudyRun:
    """Write a finished run's page again from its rows, without running anything.

    Raises
    ------
    InvalidInputError
        If rows are missing there.
    """
    run = summarised(study, quick, read_rows(place / ROWS), place)
    if not run.complete:
        raise InvalidInputError(
            f"{place} has {run.done} of {run.total} rows of {study.id} version {study.version}. "
            f"Finish it with: fishertope experiment run {study.id}{' --quick' * quick}"
        )
    return run_study(study, quick=quick, out=place)


def summarised(study: Study, quick: bool, rows: Mapping[str, Row], folder: Path) -> StudyRun:
    """What rows that are there already say, without running anything."""
    units = study.checked_units(quick)
    keys = [key_of(study.id, study.version, s) for s in units]
    own = Rows(rows[key] for key in keys if key in rows)
    return StudyRun(
        study=study,
        quick=quick,
        done=len(own),
        total=len(units),
        summary=_summary(study, own, len(units)),
        rows=own,
        folder=folder,
    )


def _summary(study: Study, rows: Rows, total: int) -> Summary | None:
    """Of a complete study, or of what there is of one that copes with that."""
    complete = len(rows) == total
    return study.summarise(rows) if complete or (study.partial and len(rows)) else None


def _finish(writing: OutputFolder, run: StudyRun) -> None:
    from .report import study_page

    # In the order of the units, without rows of older versions: the same whatever came between.
    lines = b"".join(row.line() for row in run.rows)
    writing.write_text(ROWS, lines.decode())
    writing.write_text("report.html", study_page(run))
    writing.finish(run.results, seed=None, backend=None)


def _check(study: Study, jobs: int, budget_minutes: float | None) -> None:
    missing = [name for name in study.needs if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"The study {study.id} needs {', '.join(missing)}, which is not installed. The test "
            "install has everything: pip install -c constraints.txt -e "
            "'.[torch,hf,parquet,sklearn,test]'"
        )
    if jobs < 1:
        raise InvalidInputError(f"jobs={jobs} was given; a whole number >= 1 is accepted.")
    if budget_minutes is not None and not budget_minutes > 0:
        raise InvalidInputError(
            f"budget_minutes={budget_minutes} was given; a number > 0 is accepted."
        )


def _results(
    study: Study, units: list[Settings], jobs: int, budget_minutes: float | None
) -> Iterator[Row | str]:
    """Rows, or the tracebacks of failed units, as they come."""
    end = None if budget_minutes is None else time.monotonic() + 60.0 * budget_minutes
    left = _until(units, end)
    # Workers get the one function that they need, so a study may hold anything else.
    job = (study.id, study.version, study.needs, study.unit)
    if jobs == 1 or len(units) < 2:
        yield from (_run(*job, s) for s in left)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
        options: dict[str, Any] = {"pre_dispatch": jobs, "batch_size": 1}
        pool: Any = Parallel(return_as="generator_unordered", **options)
        yield from pool(delayed(_run)(*job, s) for s in left)


def _until(units: Iterable[Settings], end: float | None) -> Iterator[Settings]:
    for settings in units:
        if end is not None and time.monotonic() >= end:
            return
        yield settings


def run_unit(study: Study, settings: Settings) -> Row:
    """One unit by itself, as a run of the study would do it.

    Raises
    ------
    SolveFailedError
        With the unit's traceback.
    """
    row = _run(study.id, study.version, study.needs, study.unit, settings)
    if isinstance(row, str):
        raise SolveFailedError(row)
    return row


def _run(
    name: str,
    version: int,
    needs: tuple[str, ...],
    unit: Callable[[Settings], Mapping[str, Any]],
    settings: Settings,
) -> Row | str:
    """Its row, or the traceback."""
    settings = plain(settings)
    key = key_of(name, version, settings)
    start = time.perf_counter()
    try:
        for module in needs:
            import_module(module)
        with thread_limit(1), _seeded_torch("torch" in needs, int(key, 16) % 2**63):
            result = plain(dict(unit(settings)))
            threads = thread_facts()
    except StoppedError:
        raise
    except Exception:
        return f"{name} with {settings}:\n{traceback.format_exc()}"
    run = {
        "seconds": round(time.perf_counter() - start, 3),
        "threads": max([1, *threads.values()]),
        "versions": versions(),
        "peak_memory_mib": peak_memory_mib(),
    }
    return Row(key=key, settings=settings, result=result, run=run)


@contextmanager
def _seeded_torch(used: bool, seed: int) -> Iterator[None]:
    """Torch's own generator set by the unit, whichever process runs it and whatever ran before."""
    if not used:
        yield
        return
    torch: Any = sys.modules["torch"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
