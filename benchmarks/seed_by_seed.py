"""Rows of a benchmark, a seed at a time, kept in its results file: the same command goes on."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from fishertope.core.backend import thread_facts

# Options that say how much is done and where it goes, not what is measured.
FREE = {"seeds", "first_seed", "out", "store"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--seeds``, ``--first-seed`` and ``--out``."""
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="to measure in several sittings")
    parser.add_argument("--out", help="results as JSON; seeds that it has are not measured again")


def rows_of(
    options: argparse.Namespace, measure: Callable[[int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The row of every seed: those that ``--out`` has, and ``measure(seed)`` of the others.

    Raises
    ------
    SystemExit
        The file is of other options.
    """
    asked = {k: str(v) for k, v in vars(options).items() if k not in FREE}
    found: dict[str, Any] = {"options": asked, "rows": []}
    if options.out and os.path.exists(options.out):
        with open(options.out) as file:
            found = json.load(file)
        if found.get("options") != asked:
            raise SystemExit(f"{options.out} was measured with {found.get('options')}, not {asked}")
    done = {row["seed"] for row in found["rows"]}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        if seed in done:
            continue
        row = measure(seed)
        row |= {"threads": thread_facts(), "load": os.getloadavg()}
        found["rows"] = sorted([*found["rows"], row], key=lambda r: r["seed"])
        if options.out:
            with open(options.out + ".part", "w") as file:
                json.dump(found, file, indent=1)
            os.replace(options.out + ".part", options.out)
    return list(found["rows"])
