"""Tables and networks of ``fishertope relu``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import CorruptFileError, DataMissingError, InvalidInputError
from ..core.storage import load_arrays, save_arrays
from ..core.types import FloatArray
from ..theory import with_bias

KIND = "shallow ReLU network"
_LARGEST = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Numbers of a CSV file.

    Attributes
    ----------
    inputs : array (n, d)
        With the constant column, if there is one.
    targets : array (n,)
    features : tuple of str
    target : str
    shift, spread : arrays
        What the columns were centred and divided by.
    bias : bool
    """

    inputs: FloatArray
    targets: FloatArray
    features: tuple[str, ...]
    target: str
    shift: FloatArray
    spread: FloatArray
    bias: bool


def read_table(
    path: Path,
    target: str | None,
    features: list[str] | None,
    *,
    bias: bool,
    scale: bool,
    need_target: bool = True,
) -> Table:
    """Read columns of a CSV file.

    Raises
    ------
    DataMissingError
        No such file.
    InvalidInputError
        Unknown columns, cells that are no finite numbers (with line and column), no rows.
    """
    names, rows = _cells(path)
    goal = names[-1] if target is None and need_target else target
    chosen = features or [n for n in names if n != goal]
    for name in [*chosen, *([goal] if goal else [])]:
        if name not in names:
            raise InvalidInputError(
                f"There is no column {name!r} in {path}; there are: {', '.join(names)}."
            )
    if not chosen:
        raise InvalidInputError(f"{path} has no column beside the target {goal!r}.")
    x = np.array([[row[names.index(n)] for n in chosen] for row in rows])
    y = np.array([row[names.index(goal)] for row in rows]) if goal else np.zeros(len(rows))
    shift, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if scale:
        shift, deviation = x.mean(axis=0), x.std(axis=0)
        spread = np.where(deviation > 0, deviation, 1.0)
        x = (x - shift) / spread
    return Table(
        inputs=with_bias(x) if bias else x,
        targets=y,
        features=tuple(chosen),
        target=goal or "",
        shift=shift,
        spread=spread,
        bias=bias,
    )


def _cells(path: Path) -> tuple[list[str], list[list[float]]]:
    if not path.is_file():
        raise DataMissingError(f"There is no file {path}; give a CSV file with a header.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = [n.strip() for n in next(reader, [])]
        if not names or len(set(names)) != len(names):
            raise InvalidInputError(
                f"{path} has no header, or a name twice: {', '.join(names) or 'nothing'}. The "
                "first line must name the columns."
            )
        rows: list[list[float]] = []
        for cells in reader:
            if not cells:
                continue
            rows.append(_numbers(path, reader.line_num, names, cells))
            if len(rows) * len(names) > _LARGEST:
                raise InvalidInputError(f"{path} has more than {_LARGEST} numbers; give fewer.")
    if not rows:
        raise InvalidInputError(f"{path} has a header and no rows.")
    return names, rows


def _numbers(path: Path, line: int, names: list[str], cells: list[str]) -> list[float]:
    if len(cells) != len(names):
        raise InvalidInputError(
            f"Line {line} of {path} has {len(cells)} cells; the header has {len(names)}."
        )
    values = []
    for name, cell in zip(names, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise InvalidInputError(
                f"Line {line} of {path}, column {name!r}: {cell[:40]!r} is no finite number. Drop "
                "the row, or choose columns with --feature and --target after removing text."
            )
        values.append(value)
    return values


def save_network(path: Path, weights: FloatArray, outputs: FloatArray, table: Table) -> None:
    """Write a network with the columns and the scaling that it belongs to."""
    facts = {"features": list(table.features), "target": table.target, "bias": table.bias}
    arrays = {
        "weights": np.asarray(weights, dtype=np.float64),
        "outputs": np.asarray(outputs, dtype=np.float64),
        "shift": table.shift,
        "spread": table.spread,
    }
    save_arrays(path, arrays, facts, kind=KIND)


def load_network(path: Path, table: Table) -> tuple[FloatArray, FloatArray]:
    """Weights and outputs for the rows of ``table``.

    Raises
    ------
    InvalidInputError
        The network belongs to other columns or another scaling.
    CorruptFileError
        The file is damaged or no network.
    """
    arrays, facts = load_arrays(path, kind=KIND)
    if {"weights", "outputs", "shift", "spread"} - set(arrays):
        raise CorruptFileError(f"{path} is no network of `fishertope relu`: arrays are missing.")
    held = {"features": list(table.features), "bias": table.bias}
    for name, value in held.items():
        if facts.get(name) != value:
            raise InvalidInputError(
                f"{path} was made with {name} = {facts.get(name)}, now {value}; give the same "
                "options as then."
            )
    if not all(np.array_equal(arrays[n], getattr(table, n)) for n in ("shift", "spread")):
        raise InvalidInputError(
            f"{path} was made with other rows or another --scale; the columns' centres differ. "
            "Give the same file and options."
        )
    return np.asarray(arrays["weights"]), np.asarray(arrays["outputs"])
