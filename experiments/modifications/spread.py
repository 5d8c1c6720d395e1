"""A study's units shared out over processes or machines that see one folder.

    torchrun --nproc-per-node 8 -m fishertope.experiments.modifications.spread \
        modifications-early --out /shared/early
    python -m fishertope.experiments.modifications.spread modifications-early --out /shared/early \
        --collect study-results/modifications-early
    fishertope experiment run modifications-early      # nothing is left to run: writes the report

Process k of n takes every n-th missing unit and keeps its rows in a file of its own; each uses the
GPU of its local number, if there are GPUs. Run again, with any number of processes, it goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ...core.fisher.ranks import Ranks
from ...core.storage import OutputFolder
from ..studies import Row, Study, find_study
from ..studies.rows import append_row, key_of, read_rows
from ..studies.run import ROWS, run_unit


def spread(study: Study, out: Path, *, quick: bool = False, ranks: Ranks | None = None) -> int:
    """Run this process's part of the units that have no row in ``out``; the number of new rows.

    Rows of all earlier runs count, whatever their number of processes was.
    """
    own = Ranks.of_environment() if ranks is None else ranks
    out.mkdir(parents=True, exist_ok=True)
    _own_gpu()
    place = out / f"{own.rank:04d}.jsonl"
    units = study.checked_units(quick)
    # Shared out before looking at rows: processes that start at other times see other rows.
    mine = units[own.rank :: own.world]
    done = collected(out)
    made = 0
    for settings in mine:
        if key_of(study.id, study.version, settings) not in done:
            append_row(place, run_unit(study, settings))
            made += 1
    return made


def _own_gpu() -> None:
    local = os.environ.get("LOCAL_RANK")
    if local is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def collected(out: Path) -> dict[str, Row]:
    """The rows of all processes."""
    found: dict[str, Row] = {}
    for place in sorted(out.glob("*.jsonl")):
        found |= read_rows(place)
    return found


def collect(study: Study, out: Path, results: Path, *, quick: bool = False) -> int:
    """Put the rows where ``fishertope experiment run`` takes up a run; their number."""
    folder = OutputFolder(
        results,
        command=f"experiment run {study.id}",
        settings={"study": study.id, "quick": quick},
        overwrite="same command",
        resume=True,
    )
    with folder as writing:
        target = writing.file(ROWS)
        there = read_rows(target)
        rows = [row for key, row in collected(out).items() if key not in there]
        for row in rows:
            append_row(target, row)
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the rows.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--collect", type=Path, help="A study's results folder: run nothing.")
    options = parser.parse_args(arguments)
    study = find_study(options.study)
    if options.collect is not None:
        print(f"{collect(study, options.out, options.collect, quick=options.quick)} rows")
        return
    made = spread(study, options.out, quick=options.quick)
    print(f"{made} new rows in {options.out}")


if __name__ == "__main__":
    main()
