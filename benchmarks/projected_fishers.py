"""Projected Fishers of real sentences through MiniLM: time, memory, size of the store, Gram error.

    pip install -e ".[torch,hf]"
    python -m fishertope.experiments.data fetch minilm sentiment vader
    python benchmarks/projected_fishers.py --out projected_fishers.json

MiniLM fine-tuned on reviews (two classes; made and cached by the first run) reads sentences of
reviews and tweets, at most 48 tokens, in batches of 16. All parameters of the body count: 22.7 M,
the table of embeddings included. ``per_example_fishers`` writes a store with a projection to
``--dim`` columns; its peer is one forward and backward pass over the same sentences, which change
sides every 1/10 of them. Each side's peak memory is the resident peak of a process of its own
(Linux), and is taken again with four times as many sentences. The Gram entries ⟨a_i, a_j⟩ of
projected rows are compared with those of exact rows over the last encoder block.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fishertope.core.backend import thread_facts, thread_limit
from fishertope.core.fisher import FactoredProjection, RandomProjection, per_example_fishers
from fishertope.experiments._progress import Progress
from fishertope.experiments.finetune import encode, finetune, load_task

SOURCES = ("sentiment/amazon", "sentiment/imdb", "sentiment/yelp", "vader/tweets", "vader/amazon")
BATCH, LENGTH, PARTS = 16, 48, 10
BOUND, GROWTH = 6.0, 1.05


@dataclass(frozen=True)
class Sentences:
    """Batches made when they are asked for."""

    tokenizer: Any
    texts: tuple[str, ...]

    @property
    def dataset(self) -> tuple[str, ...]:
        return self.texts

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.texts), BATCH):
            yield encode(self.tokenizer, self.texts[start : start + BATCH], LENGTH)


def sentences(n: int) -> tuple[str, ...]:
    """Real sentences in an order that mixes their sources."""
    found = [text for name in SOURCES for text in parts_of(name)]
    if n > len(found):
        raise SystemExit(f"--sentences {n}: there are {len(found)}.")
    return tuple(found[i] for i in np.random.default_rng(0).permutation(len(found))[:n])


def parts_of(name: str) -> list[str]:
    data = load_task(name)
    return [text for part in (data.train, data.validation, data.test) for text in part.texts]


def prepared(n: int) -> tuple[Any, Sentences]:
    made = finetune("sentiment/yelp", progress=Progress(Console(stderr=True)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return made.model(), Sentences(made.tokenizer(), sentences(n))


def body(name: str) -> bool:
    return not name.startswith("classifier.")


def project(model: Any, data: Sentences, kind: str, dim: int, store: Path) -> None:
    reduce = FactoredProjection(dim) if kind == "factored" else RandomProjection(dim)
    per_example_fishers(
        model, data, params=body, reduce=reduce, store=store, batch_size=BATCH, seed=0
    )


def pass_over(model: Any, data: Sentences) -> None:
    """One forward and one backward pass, as a step of training without its update."""
    for batch in data:
        model.zero_grad()
        y = torch.zeros(len(batch["input_ids"]), dtype=torch.int64)
        torch.nn.functional.cross_entropy(model(**batch).logits, y).backward()


def one_side(side: str, n: int, dim: int) -> dict[str, float]:
    """What a process that does one side only takes."""
    model, data = prepared(n)
    with tempfile.TemporaryDirectory() as folder, thread_limit(1):
        store = Path(folder) / "store"
        began = time.perf_counter()
        if side == "pass":
            pass_over(model, data)
        else:
            project(model, data, side, dim, store)
        seconds = time.perf_counter() - began
        size = sum(p.stat().st_size for p in store.iterdir()) if store.exists() else 0
    # Unlike getrusage's, this peak does not begin with what the parent process had.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"seconds": seconds, "peak_mib": peak, "store_mib": size / 2**20}


def in_a_process(side: str, n: int, dim: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--sentences", str(n), "--dim", str(dim)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ratios(model: Any, data: Sentences, kind: str, dim: int) -> dict[str, Any]:
    """Ours over forward and backward, on one part of the sentences after another."""
    times = []
    cuts = np.linspace(0, len(data.texts), PARTS + 1).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, PARTS):  # the first part warms both sides
            at = max(number, 0)
            part = Sentences(data.tokenizer, data.texts[cuts[at] : cuts[at + 1]])
            took = {}
            for ours in (True, False) if number % 2 else (False, True):
                began = time.perf_counter()
                if ours:
                    project(model, part, kind, dim, Path(folder) / f"{number}")
                else:
                    pass_over(model, part)
                took[ours] = time.perf_counter() - began
            if number >= 0:
                times.append((took[True], took[False]))
    a, b = np.array(times).T
    low, high = interval(a / b)
    return {
        "seconds": float(a.sum()), "peer_seconds": float(b.sum()),
        "ratio": float(np.median(a / b)), "low": low, "high": high,
    }  # fmt: skip


def interval(found: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).integers(0, len(found), size=(5000, len(found)))
    low, high = np.percentile(np.median(found[drawn], axis=1), [2.5, 97.5])
    return float(low), float(high)


def gram_errors(model: Any, data: Sentences, dim: int, n: int) -> dict[str, dict[str, float]]:
    """|Ĝ_ij − G_ij| / √(G_ii G_jj) over the last encoder block, for each projection."""
    part = Sentences(data.tokenizer, data.texts[:n])
    last = f"bert.encoder.layer.{model.config.num_hidden_layers - 1}.*"
    exact = per_example_fishers(model, part, params=last, batch_size=BATCH).rows.numpy()
    gram = exact @ exact.T
    del exact
    size = np.sqrt(np.diag(gram))
    found = {}
    for kind in ("factored", "random"):
        reduce = FactoredProjection(dim) if kind == "factored" else RandomProjection(dim)
        rows = per_example_fishers(model, part, params=last, reduce=reduce, batch_size=BATCH).rows
        error = np.abs((rows @ rows.T).numpy() - gram) / np.outer(size, size)
        off = error[~np.eye(len(error), dtype=bool)]
        found[kind] = {
            "largest": float(error.max()), "rms": float(np.sqrt(np.mean(error**2))),
            "rms_off_diagonal": float(np.sqrt(np.mean(off**2))),
            "bound": 3 * math.sqrt(math.log(len(gram)) / dim),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--gram", type=int, default=256, help="sentences whose Gram is compared")
    parser.add_argument("--growth", type=int, default=4, help="times as many, for memory")
    parser.add_argument(
        "--only", nargs="+", choices=["ratio", "gram", "memory"],
        default=["ratio", "gram", "memory"], help="what --out holds of the rest is kept",
    )  # fmt: skip
    parser.add_argument("--side", choices=["pass", "factored", "random"])
    parser.add_argument("--out", type=Path, default=Path("projected_fishers.json"))
    args = parser.parse_args()
    n, dim = args.sentences, args.dim
    if args.side:
        print(json.dumps(one_side(args.side, n, dim)))
        return
    asked = {"sentences": n, "dim": dim, "gram": args.gram, "growth": args.growth}
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked}
    load = os.getloadavg()
    with thread_limit(1):
        threads = thread_facts()
        for part in args.only:
            if part == "memory":
                for side, count in sides(n, args.growth):
                    taken = found.setdefault("memory", {}).setdefault(side, {})
                    if str(count) not in taken:  # a stopped run goes on here
                        taken[str(count)] = in_a_process(side, count, dim)
                        args.out.write_text(json.dumps(found, indent=2) + "\n")
            else:
                found[part] = measured(part, n, dim, args.gram)
            args.out.write_text(json.dumps(found, indent=2) + "\n")
    show(found, n, dim)
    print(f"threads {threads}; load before {load}, after {os.getloadavg()}")


def sides(n: int, growth: int) -> list[tuple[str, int]]:
    """Processes whose memory is measured, the short ones first."""
    few = [(side, n) for side in ("pass", "factored", "random")]
    return [*few, ("factored", n * growth), ("random", n * growth)]


def measured(part: str, n: int, dim: int, gram: int) -> dict[str, Any]:
    model, data = prepared(n)
    if part == "gram":
        return gram_errors(model, data, dim, min(gram, n))
    return {kind: ratios(model, data, kind, dim) for kind in ("factored", "random")}


def show(found: dict[str, Any], n: int, dim: int) -> None:
    shown = Table(title=f"{n} sentences, {dim} columns, all parameters of MiniLM's body")
    shown.add_column("what")
    for kind in ("factored", "random"):
        shown.add_column(kind)

    def line(what: str, text: Any) -> None:
        shown.add_row(what, *(text(kind) for kind in ("factored", "random")))

    if "ratio" in found:
        by = found["ratio"]
        line("seconds, store written", lambda k: f"{by[k]['seconds']:.1f}")
        line("seconds, forward + backward", lambda k: f"{by[k]['peer_seconds']:.1f}")
        line("ratio", lambda k: "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**by[k]))
    if "memory" in found:
        few, many = (str(count) for count in (n, n * found["asked"]["growth"]))
        memory = found["memory"]
        line("peak MiB", lambda k: f"{memory[k][few]['peak_mib']:.0f}")
        line(f"peak MiB, {many} sentences", lambda k: f"{memory[k][many]['peak_mib']:.0f}")
        line("peak MiB of forward + backward", lambda k: f"{memory['pass'][few]['peak_mib']:.0f}")
        line("store MiB", lambda k: f"{memory[k][few]['store_mib']:.1f}")
    if "gram" in found:
        errors = found["gram"]
        for what in ("rms", "rms_off_diagonal", "largest", "bound"):
            line(f"Gram error, {what}", lambda k, w=what: f"{errors[k][w]:.4f}")
    console = Console(width=100)
    console.print(shown)
    if "memory" in found:
        for kind in ("factored", "random"):
            growth = memory[kind][many]["peak_mib"] / memory[kind][few]["peak_mib"]
            held = "held" if growth <= GROWTH else "not held"
            console.print(f"{kind}: peak with {many} sentences {growth:.3f} (≤ {GROWTH}): {held}")
    if "ratio" in found:
        held = "held" if by["factored"]["high"] <= BOUND * 1.05 else "not held"
        console.print(f"factored ≤ {BOUND:g} times forward and backward: {held}")


if __name__ == "__main__":
    main()
