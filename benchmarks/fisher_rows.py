"""Fisher rows and diagonals of the digits network: numba kernels against torch.func and BackPACK.

The network is scikit-learn's MLP 64-32-10 trained on its digits; all sides get the same weights,
inputs, dtype and number of threads. Every result is checked against the peer's before anything is
timed. A sample is the mean of as many calls in a row as fill ``--sample`` seconds; samples of the
two sides alternate, and the ratio is taken within each pair.

    pip install -e ".[torch,sklearn]"
    pip install --no-deps backpack-for-pytorch unfoldNd einops
    python benchmarks/fisher_rows.py --out fisher_rows.json

Peers
-----
rows      ``torch.func``: ``vmap(grad)`` of log p_c, one class after another; timed once up to the
          per-parameter gradients ("gradients"), and once up to the same (n, C, p) array of rows
          √p_c ∇ log p_c that the kernel's rows are equivalent to ("rows"). "filling" is the floor:
          writing one constant into a new array of the size of the kernel's result. Where the
          kernel is near it, memory decides, and the ratio to torch.func shrinks with the batch.
diagonals BackPACK's ``BatchDiagGGNExact`` (per example) and ``DiagGGNExact`` (data set), forward
          and backward pass included, their per-parameter results not joined.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.func import functional_call, grad, vmap

from fishertope.core.backend import Kernel, get_backend, thread_facts, thread_limit
from fishertope.core.testing import deviation, tolerance

SIZES = (64, 32, 10)
OPTIONS = {"sizes": SIZES, "activation": "relu", "output": "categorical"}
HOW_TO_INSTALL = "pip install --no-deps backpack-for-pytorch unfoldNd einops"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison: seconds a call, and ours / peer within pairs."""

    comparison: str
    dtype: str
    batch: int
    threads: int
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Digits network and one batch, for both sides, in one dtype."""

    theta: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    module: torch.nn.Sequential

    @property
    def x(self) -> torch.Tensor:
        return torch.from_numpy(self.inputs)


def train() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights W_1, b_1, W_2, b_2 of a trained network, and the digits."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few dozen epochs are enough here
        net = MLPClassifier((SIZES[1],), max_iter=40, random_state=0).fit(images, labels)
    weights: list[np.ndarray] = []
    for w, b in zip(net.coefs_, net.intercepts_, strict=True):
        weights += [w.T, b]
    return weights, images, labels


def setting(trained: Any, batch: int, dtype: str) -> Setting:
    weights, images, labels = trained
    module = torch.nn.Sequential(
        torch.nn.Linear(SIZES[0], SIZES[1]), torch.nn.ReLU(), torch.nn.Linear(SIZES[1], SIZES[2])
    ).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter, w in zip(module.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(w))
    return Setting(
        theta=np.concatenate([w.ravel() for w in weights]).astype(dtype),
        inputs=np.ascontiguousarray(images[:batch], dtype=dtype),
        labels=labels[:batch],
        module=module,
    )


def func_gradients(s: Setting) -> list[dict[str, torch.Tensor]]:
    """∇ log p_c of every example, class by class, a tensor for each parameter."""
    parameters = {k: v.detach() for k, v in s.module.named_parameters()}

    def log_prob(parameters: Any, x: torch.Tensor, c: int) -> torch.Tensor:
        z = functional_call(s.module, parameters, (x,))
        return torch.log_softmax(z, dim=-1)[c]

    return [
        vmap(partial(grad(log_prob), c=c), in_dims=(None, 0))(parameters, s.x)
        for c in range(SIZES[-1])
    ]


def func_rows(s: Setting) -> torch.Tensor:
    """√p_c ∇ log p_c as one tensor (n, C, p)."""
    with torch.no_grad():
        root = torch.softmax(s.module(s.x), dim=-1).sqrt()
    rows = [
        torch.cat([g.flatten(1) for g in gradients.values()], dim=1) * root[:, c, None]
        for c, gradients in enumerate(func_gradients(s))
    ]
    return torch.stack(rows, dim=1)


def backpack_diagonal(s: Setting, extension: Any, reduction: str) -> Callable[[], list[Any]]:
    """A call that gives BackPACK's diagonals, a tensor for each parameter."""
    from backpack import backpack, extend

    model = extend(copy.deepcopy(s.module))  # its hooks do not go together with torch.func
    loss = extend(torch.nn.CrossEntropyLoss(reduction=reduction))
    x, y = s.x, torch.from_numpy(s.labels)

    def call() -> list[Any]:
        model.zero_grad()
        value = loss(model(x), y)
        with backpack(extension):
            value.backward()
        return [getattr(p, extension.savefield) for p in model.parameters()]

    return call


def comparisons(s: Setting, dtype: str) -> dict[str, tuple[Callable, Callable, float]]:
    """(ours, peer, deviation between them) by name; raises if they disagree."""
    numba = get_backend("numba")

    def kernel(name: Kernel, **more: bool) -> Callable[[], np.ndarray]:
        return partial(numba.raw(name), s.theta, s.inputs, **OPTIONS, **more)

    def checked(name: Kernel, ours: np.ndarray, peer: np.ndarray) -> float:
        found, accepted = deviation(ours, peer), tolerance(str(name), dtype).relative
        if not found <= accepted:
            raise SystemExit(f"{name} deviates by {found:.2e} from its peer (> {accepted:.0e})")
        return found

    rows = kernel(Kernel.DENSE_FISHER_ROWS)
    theirs = func_rows(s).numpy()
    found = checked(
        Kernel.DENSE_FISHER_ROWS, kernel(Kernel.DENSE_FISHER_ROWS, reduced=False)(), theirs
    )
    # The C − 1 rows that are timed give the same Fishers as the C rows of the peer.
    for a, b in zip(rows()[:20], theirs[:20], strict=True):
        checked(Kernel.DENSE_FISHER_DIAGONAL, a.T @ a, b.T @ b)
    made: dict[str, tuple[Callable, Callable, float]] = {
        "rows / torch.func gradients": (rows, partial(func_gradients, s), found),
        "rows / torch.func rows": (rows, partial(func_rows, s), found),
        "rows / filling an array": (rows, partial(np.full, rows().shape, 1, dtype), 0.0),
    }
    try:
        from backpack.extensions import BatchDiagGGNExact, DiagGGNExact
    except ImportError:
        Console(stderr=True).print(f"BackPACK is not installed; left out. {HOW_TO_INSTALL}")
        return made
    for name, label, extension, reduction, join in (
        (
            Kernel.DENSE_FISHER_DIAGONAL,
            "diagonals / BatchDiagGGNExact",
            BatchDiagGGNExact(),
            "sum",
            1,
        ),
        (
            Kernel.DENSE_FISHER_DIAGONAL_MEAN,
            "mean diagonal / DiagGGNExact",
            DiagGGNExact(),
            "mean",
            0,
        ),
    ):
        ours, peer = kernel(name), backpack_diagonal(s, extension, reduction)
        joined = torch.cat([t.flatten(join) for t in peer()], dim=join).numpy()
        made[label] = (ours, peer, checked(name, ours(), joined))
    return made


def seconds(
    call: Callable[[], Any], at_least: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Mean seconds of a call, over as many calls in a row as take ``at_least`` seconds."""
    calls, start = 0, clock()
    while True:
        call()
        calls += 1
        taken = clock() - start
        if taken >= at_least:
            return taken / calls


def compare(
    ours: Callable,
    peer: Callable,
    pairs: int,
    sample: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Interleaved samples; the order within a pair alternates.

    On a machine that others use, ``time.process_time`` (one thread a side) counts the work alone.
    """
    for call in (ours, peer):  # warm: compiled, allocated, cached
        seconds(call, sample, clock)
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            second = seconds(peer, sample, clock)
            times.append((seconds(ours, sample, clock), second))
        else:
            first = seconds(ours, sample, clock)
            times.append((first, seconds(peer, sample, clock)))
    return ratio_of(times)


def ratio_of(times: list[tuple[float, float]]) -> dict[str, float]:
    """Median ratio of pairs (ours, peer), with its bootstrapped interval."""
    a, b = np.array(times).T
    ratios, pairs = a / b, len(times)
    drawn = np.random.default_rng(0).integers(0, pairs, size=(5000, pairs))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return {
        "ours": float(np.median(a)),
        "peer": float(np.median(b)),
        "ratio": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
    }


def table(lines: list[Line]) -> Table:
    shown = Table(title="seconds a call (median); ratio = ours / peer with its 95 % interval")
    for head in ("comparison", "dtype", "batch", "threads", "ours", "peer", "ratio", "faster"):
        shown.add_column(head, justify="left" if head in ("comparison", "dtype") else "right")
    for line in lines:
        shown.add_row(
            line.comparison,
            line.dtype,
            str(line.batch),
            str(line.threads),
            f"{line.ours * 1e3:.3f} ms",
            f"{line.peer * 1e3:.3f} ms",
            f"{line.ratio:.4f} [{line.low:.4f}, {line.high:.4f}]",
            f"{1 / line.ratio:.1f}×",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128, 512, 1797])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--sample", type=float, default=0.1, help="seconds a sample takes at least")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.pairs < 7:
        parser.error("at least 7 pairs are needed for an interval of the median")
    console, trained, lines = Console(), train(), []
    load_before = os.getloadavg()
    for threads in dict.fromkeys(args.threads):
        with thread_limit(threads):
            facts = thread_facts()
            for dtype in args.dtype:
                for batch in args.batch:
                    s = setting(trained, batch, dtype)
                    for name, (ours, peer, found) in comparisons(s, dtype).items():
                        result = compare(ours, peer, args.pairs, args.sample)
                        lines.append(
                            Line(
                                comparison=name,
                                dtype=dtype,
                                batch=len(s.inputs),
                                threads=threads,
                                deviation=found,
                                **result,
                            )
                        )
                        console.print(
                            f"{lines[-1].comparison}, {dtype}, {batch}: {1 / lines[-1].ratio:.1f}x",
                            highlight=False,
                        )
            console.print(f"threads in force: {facts}")
    load_after = os.getloadavg()
    console.print(table(lines))
    console.print(f"load average before {load_before}, after {load_after}; {os.cpu_count()} CPUs")
    if args.out is not None:
        packages = ("fishertope", "numpy", "numba", "torch", "backpack-for-pytorch", "scikit-learn")
        report = {
            "lines": [asdict(line) for line in lines],
            "pairs": args.pairs,
            "sample_seconds": args.sample,
            "load_before": load_before,
            "load_after": load_after,
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": {name: installed(name) for name in packages},
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except Exception:  # not installed, or run from a source tree without metadata
        return None


if __name__ == "__main__":
    main()
