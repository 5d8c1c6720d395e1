"""Files that ``fishertope npeff`` reads and writes, and the options of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.backend import to_numpy
from ..core.errors import CorruptFileError, InvalidInputError
from ..core.factorization import (
    DiagonalNPEFF,
    Factorization,
    LowRankNPEFF,
    PerturbationReport,
    ReferenceDecomposition,
    matched_cosines,
    read_reference,
)
from ..core.fisher import DiagonalFishers, FisherStore, LowRankFishers, ReferenceFishers
from ..core.types import FloatArray

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.status import Callback

COEFFICIENTS = "npeff coefficients"
HDF5 = (".h5", ".hdf5")


def open_fishers(path: Path) -> Any:
    """A store (read shard by shard), or the Fishers of an HDF5 file of npeff_ref.

    Raises
    ------
    InvalidInputError
        A decomposition instead of Fishers, or nothing there.
    """
    if path.suffix.lower() in HDF5:
        found = read_reference(path)
        if isinstance(found, ReferenceDecomposition):
            raise InvalidInputError(f"{path} holds a decomposition; Fishers are taken here.")
        return found.fishers()
    if not path.is_dir():
        raise InvalidInputError(
            f"{path} is no store. Give the folder that `fishertope fisher` wrote, or an HDF5 file "
            f"of npeff_ref ({', '.join(HDF5)})."
        )
    return FisherStore.open(path)


def in_memory(fishers: Any) -> LowRankFishers | DiagonalFishers:
    """All of a store, or what is in memory already."""
    found: LowRankFishers | DiagonalFishers = (
        fishers.load() if isinstance(fishers, FisherStore) else fishers
    )
    return found


def load_found(path: Path) -> Factorization:
    """A decomposition: ours, or one of npeff_ref.

    Raises
    ------
    InvalidInputError
        Nothing there, or Fishers.
    """
    if not path.is_file():
        raise InvalidInputError(
            f"{path} is no file. Give the decomposition that `fishertope npeff fit` wrote."
        )
    if path.suffix.lower() not in HDF5:
        return Factorization.load(path)
    found = read_reference(path)
    if isinstance(found, ReferenceFishers):
        raise InvalidInputError(f"{path} holds Fishers; a decomposition is taken here.")
    return found.factorization()


def method_of(
    fishers: Any,
    components: int,
    solver: str,
    starts: int,
    max_steps: int | None,
    tol: float | None,
    normalize: bool,
) -> LowRankNPEFF | DiagonalNPEFF:
    """The method of the options, of the Fishers' kind.

    Raises
    ------
    InvalidInputError
        A solver of the other kind, or options out of range.
    """
    diagonal = isinstance(fishers, DiagonalFishers) or (
        isinstance(fishers, FisherStore) and "diagonal" in fishers.manifest["kind"]
    )
    accepted = ("hals", "mu") if diagonal else ("pals", "mu-gd")
    if solver not in ("auto", *accepted):
        raise InvalidInputError(
            f"--solver {solver} was given for {'diagonal' if diagonal else 'low-rank'} Fishers; "
            f"accepted: auto, {', '.join(accepted)}."
        )
    options: dict[str, Any] = {"normalize": normalize}
    if solver != "auto":
        options["solver"] = solver
    if max_steps is not None:
        options["max_steps"] = max_steps
    if tol is not None:
        options["tol"] = tol
    if diagonal:
        return DiagonalNPEFF(components, **options)
    return LowRankNPEFF(components, n_starts=starts, **options)


def stability_table(
    fishers: Any,
    method: Any,
    found: Factorization,
    subsets: int,
    seed: int,
    backend: str,
    console: Console | None,
) -> FloatArray | None:
    """Mean matched |cos| of each component over fits of random subsets (r,); None without them."""
    from ..core.factorization import factorize

    if subsets < 1:
        return None
    whole = in_memory(fishers)
    n, scores = len(whole), []
    for number in range(subsets):
        rng = np.random.default_rng([seed, number, n])
        part = np.sort(rng.choice(n, size=max(1, round(0.7 * n)), replace=False))
        with steps_bar(console, f"Subset {number + 1} of {subsets}") as callback:
            again = factorize(
                whole.select(part), method, seed=seed + number + 1, backend=backend,
                callback=callback, on_failure="return",
            )  # fmt: skip
        scores.append(matched_cosines(found.components, again.components)[0])
    return np.asarray(np.mean(scores, axis=0))


@contextmanager
def steps_bar(console: Console | None, what: str) -> Iterator[Callback | None]:
    """A callback for solvers: phase, steps, loss and residual; None without a console."""
    if console is None:
        yield None
        return
    from ..experiments._progress import Progress

    with Progress(console) as progress, progress.solver(what) as callback:
        yield callback


def coefficients_of(
    found: Factorization, store: Path, out: Path, backend: str, device: Any
) -> dict[str, Any]:
    """Fit the coefficients of a store's examples and write them."""
    from ..core.storage import save_arrays

    fishers = open_fishers(store)
    blocks = fishers.blocks() if isinstance(fishers, FisherStore) else [fishers]
    W = np.concatenate(
        [to_numpy(found.transform(block, backend=backend, device=device)) for block in blocks]
    )
    facts = {"examples": len(W), "components": found.n_components, "store": str(store)}
    save_arrays(out, {"coefficients": W}, facts, kind=COEFFICIENTS)
    return {**facts, "mean": W.mean(axis=0), "out": str(out)}


def check_file(out: Path, kind: str, overwrite: bool) -> None:
    """Refuse before the work what would be refused after it.

    Raises
    ------
    ForeignFolderError, ResultsExistError, WriteFailedError
        Something else, or a result without ``--overwrite``, is there; no such folder.
    """
    from ..core.errors import ForeignFolderError, ResultsExistError, WriteFailedError
    from ..core.storage import inspect_file

    if not out.parent.is_dir():
        raise WriteFailedError(f"There is no folder {out.parent} for {out.name}; create it first.")
    if not out.exists():
        return
    try:
        there = inspect_file(out)["kind"] if out.is_file() else None
    except CorruptFileError:
        there = None
    if there != kind:
        raise ForeignFolderError(
            f"{out} is there and is no {kind} of fishertope. It is left as it is; choose another "
            "--out."
        )
    if not overwrite:
        raise ResultsExistError(
            f"{out} holds a {kind} already. Choose another --out, or --overwrite to replace it."
        )


def magnitude_of(given: str) -> float | str:
    """A number, or "auto".

    Raises
    ------
    InvalidInputError
        Anything else.
    """
    if given == "auto":
        return given
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not (value >= 0 and np.isfinite(value)):
        raise InvalidInputError(
            f"--magnitude {given} was given; auto or a finite number >= 0 is accepted."
        )
    return value


@contextmanager
def write_results(
    out: Path | None, command: str, settings: dict[str, Any], overwrite: bool
) -> Iterator[Callable[[PerturbationReport], dict[str, Any]]]:
    """Numbers of a report of moves; into a folder of results too, if one is named."""
    from ..core.storage import OutputFolder

    def numbers(report: PerturbationReport) -> dict[str, Any]:
        ratios = ("kl", "predicted", "linearised", "random", "centroid")
        names = (*PerturbationReport.__dataclass_fields__, *(f"{name}_ratio" for name in ratios))
        return {name: getattr(report, name) for name in names}

    if out is None:
        yield numbers
        return
    folder = OutputFolder(
        out, command=command, settings=settings, overwrite=overwrite, resume=False
    )
    with folder as writing:

        def write(report: PerturbationReport) -> dict[str, Any]:
            found = numbers(report)
            writing.finish(found, seed=settings["seed"], backend=None)
            return found

        yield write
