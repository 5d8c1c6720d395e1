r"""Kronecker and EKFAC precisions against curvlinops' linear operators: values, then time.

    pip install -e ".[torch]"
    pip install --no-deps curvlinops-for-pytorch backpack-for-pytorch einconv einops \
        linear_operator unfoldNd
    python benchmarks/kronecker_factors.py --out kronecker_factors.json

Three networks in float64, exact over their classes: an MLP, a convolution, and a linear layer that
is used at every position of a sequence; "expand" and "reduce". Both sides' matrices are multiplied
with the same random displacements of all parameters. Then the time to the factors (curvlinops: a
product, which makes them on the way), samples of the two sides alternating.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dataset_diagonal import CLOCKS, Clock
from fisher_rows import compare
from rich.console import Console
from rich.table import Table
from torch import nn

from fishertope.core.backend import thread_facts, thread_limit
from fishertope.core.fisher import PrecisionTree, estimate_precision

AGREE = 1e-8
CLASSES = 10


class Positions(nn.Module):
    """A linear layer over every position, then the mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(32, 64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.each(x)).mean(1))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-256-10": (
        lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, CLASSES)), (784,),
    ),
    "Conv2d 3-16, 5×5": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, CLASSES)
        ),
        (3, 16, 16),
    ),
    "Linear over 16 positions": (Positions, (16, 32)),
}  # fmt: skip


def operator(model: nn.Module, data: Any, structure: str, sharing: str) -> Any:
    """What curvlinops calls the type-2 Fisher is the exact one of softmax and cross entropy."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    kind = KFACLinearOperator if structure == "kronecker" else EKFACLinearOperator
    return kind(
        model, nn.CrossEntropyLoss(reduction="mean"), list(model.parameters()), data,
        fisher_type="type-2", kfac_approx=sharing, separate_weight_and_bias=False,
        check_deterministic=False, num_data=sum(len(x) for x, _ in data),
        num_per_example_loss_terms=1,
    )  # fmt: skip


def deviation(model: nn.Module, tree: PrecisionTree, op: Any) -> float:
    """Largest difference of products with random displacements, by parameter."""
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for _ in range(3):
        d = {
            n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for n, p in model.named_parameters()
        }
        theirs = op @ list(d.values())
        ours = tree.apply({n: v.numpy() for n, v in d.items()})
        for name, t in zip(d, theirs, strict=True):
            off = float((torch.from_numpy(ours[name]) - t).abs().max())
            worst = max(worst, off / float(t.abs().max()))
    return worst


def line(
    name: str, structure: str, sharing: str, pairs: int, sample: float, clock: Clock
) -> dict[str, Any]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    batches = [(torch.randn(64, *shape).double(), torch.randint(CLASSES, (64,))) for _ in range(2)]
    x = [b for b, _ in batches]

    def ours() -> PrecisionTree:
        return estimate_precision(model, x, structure=structure, sharing=sharing)

    def theirs() -> Any:
        op = operator(model, batches, structure, sharing)
        return op @ [torch.zeros_like(p) for p in model.parameters()]

    found = deviation(model, ours(), operator(model, batches, structure, sharing))
    told = {"network": name, "structure": structure, "sharing": sharing, "deviation": found}
    if not found <= AGREE:
        raise SystemExit(f"{told}: the values deviate by more than {AGREE:.0e}")
    timed = compare(ours, theirs, pairs, sample, clock)
    return told | {("peer_seconds" if k == "peer" else k): v for k, v in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--sample", type=float, default=0.1, help="seconds a sample takes at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine too"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch|curvlinops|backpack")
    load = os.getloadavg()
    lines = []
    with thread_limit(args.threads):
        for name in NETWORKS:
            shares = ("expand",) if name.startswith("MLP") else ("expand", "reduce")
            for structure in ("kronecker", "ekfac"):
                for sharing in shares:
                    clock = CLOCKS[args.clock]
                    lines.append(line(name, structure, sharing, args.pairs, args.sample, clock))
        facts = thread_facts()
    shown = Table(title="ours / curvlinops: median ratio with its 95 % interval")
    for head in ("network", "structure", "sharing", "deviation", "ours", "theirs", "ratio"):
        shown.add_column(head)
    for one in lines:
        shown.add_row(
            one["network"], one["structure"], one["sharing"], f"{one['deviation']:.0e}",
            f"{one['ours'] * 1e3:.1f} ms", f"{one['peer_seconds'] * 1e3:.1f} ms",
            f"{one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
        )  # fmt: skip
    console = Console()
    console.print(shown)
    console.print(
        f"{args.clock} time; threads {facts}; load before {load}, after {os.getloadavg()}"
    )
    if args.out is not None:
        args.out.write_text(json.dumps({"lines": lines, "pairs": args.pairs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
