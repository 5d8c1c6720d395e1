"""Time and memory of a training step of every variant against vanilla, at tiny scale.

    pip install -e ".[torch]"
    python benchmarks/modifications.py time --out modifications.jsonl      # one thread, 6 minutes
    python benchmarks/modifications.py memory --out modifications.jsonl
    python benchmarks/modifications.py table --out modifications.jsonl

A step is forward, backward and the variant's optimizer on a batch of 32 rows of 128 and 29 random
tokens. Time is the processor's, in samples of the variant and of vanilla that alternate; its bound
is 1.5 times the ratio of floating-point operations (``flops.training_flops``), which count matrix
products alone. EXCEPTIONS names, before any measurement, the variants that are bound by something
that those operations do not count. Memory is what three steps add to the resident peak of a process
of their own (Linux); its bound is 1.2 times parameters, gradients, optimizer state (Adafactor's row
and column factors, Adam's two moments) and what autograd keeps for the backward pass: each storage
once, as the model's hooks see it. There, glibc maps every larger array by itself, so that what is
freed is given back and the peak is that of live arrays. Lines that are in the file already are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fisher_rows import compare
from rich.console import Console
from rich.table import Table

from fishertope.core.backend import thread_limit
from fishertope.experiments.modifications.flops import training_flops
from fishertope.experiments.modifications.registry import VARIANTS, config_of, variant
from fishertope.experiments.modifications.setting import Setting
from fishertope.experiments.seq2seq import Seq2Seq
from fishertope.experiments.text2text.batches import Batch
from fishertope.experiments.text2text.optimizers import make_optimizer
from fishertope.experiments.text2text.steps import batch_loss

SCALE, ROWS = "tiny", 32
FLOP_BOUND, MEMORY_BOUND = 1.5, 1.2
EXCEPTIONS = {
    "universal": "gates element by element in every step",
    "evolved": "many small operators: separable convolutions, several norms a block",
    "dynamic-convolution": "a softmax over the width for each channel, element by element",
    "lightweight-convolution": "a depthwise convolution does two operations a number it reads",
    "mixture-of-softmaxes": "four softmaxes over the vocabulary, element by element",
    "adaptive-softmax": "selects rows by cluster; small products",
    "adaptive-softmax-no-projection": "selects rows by cluster",
    "adaptive-input": "looks up every cluster at every place",
    "mixture-of-experts": "gathers and scatters tokens; small products",
    "switch": "gathers and scatters tokens; small products",
    "product-key-memory": "gathers rows of a table",
    "weighted": "one feed-forward pass a head, small operators",
    "fixup": "scalar shifts and scales around every layer",
    "rezero": "few operations to save: the optimizer (Adam) is part of the step",
    "rezero-layer-norm": "the optimizer (Adam) is part of the step",
    "rezero-rms-norm": "the optimizer (Adam) is part of the step",
    "layers-24": "twice as many operators, each of half the size",
    "funnel": "a third of the operations, but all of the decoder's small operators",
    "block-sharing-factorized": "fewer operations in the embedding alone, which are large products",
}


def batch(vocab: int, lengths: Any) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randint(3, vocab, (ROWS, n), generator=generator).numpy()
        for n in (lengths.inputs, lengths.targets)
    )
    shifted = targets.copy()
    shifted[:, 1:], shifted[:, 0] = targets[:, :-1], 0
    return Batch(
        inputs=inputs, decoder_tokens=shifted, targets=targets,
        weights=(targets > 0).astype("float32"),
    )  # fmt: skip


def prepared(name: str) -> tuple[Seq2Seq, Batch, Any]:
    """A model, a batch, and a step."""
    setting, own = Setting(scale=SCALE), variant(name)
    config = config_of(name, SCALE)
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).train()
    optimizer, _ = make_optimizer(
        own.optimizer, dict(model.named_parameters()), rate=1e-6
    )  # fmt: skip
    data = batch(config.vocab_size, setting.lengths)

    def step() -> None:
        loss = batch_loss(model, data, z_loss=1e-4)
        torch.autograd.backward(loss.total / loss.tokens)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, data, step


def times(name: str, pairs: int, sample: float) -> dict[str, Any]:
    model, data, step = prepared(name)
    base, base_data, base_step = prepared("vanilla")
    found = compare(step, base_step, pairs, sample, time.process_time)
    flops = training_flops(model, data) / training_flops(base, base_data)
    return {"what": "time", "variant": name, "flops": flops, **found}


def kept_bytes(model: Seq2Seq, data: Batch) -> int:
    """Bytes that autograd keeps between forward and backward, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = batch_loss(model, data, z_loss=1e-4)
    total = sum(seen.values())
    del loss
    return total


def state_bytes(model: Seq2Seq, optimizer: str) -> int:
    """Adam: two moments; Adafactor: a row and a column of each matrix, vectors whole."""
    if optimizer == "adam":
        return 8 * sum(p.numel() for p in model.parameters())
    return 4 * sum(
        p.numel() if p.ndim < 2 else p.numel() // p.shape[-1] + p.numel() // p.shape[-2]
        for p in model.parameters()
    )


MEMORY = """
import re, sys
from pathlib import Path
import torch
sys.path.insert(0, "benchmarks")
import modifications as b
torch.set_num_threads(1)
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
b.prepared("layers-6")[2]()  # loads what a first step loads
import gc, ctypes
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = status("VmRSS")
model, data, step = b.prepared({name!r})
for _ in range(3):
    step()
print((status("VmHWM") - before) * 1024)
"""


def memory(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(name=name)], capture_output=True, text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    model, data, _ = prepared(name)
    weights = sum(p.numel() for p in model.parameters()) * 4
    form = 2 * weights + state_bytes(model, variant(name).optimizer) + kept_bytes(model, data)
    return {
        "what": "memory", "variant": name, "measured": float(done.stdout.split()[-1]),
        "form": form, "weights": weights,
    }  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def measure(what: str, out: Path, names: list[str], pairs: int, sample: float) -> None:
    done = {(x["what"], x["variant"]) for x in read(out)}
    for name in names:
        if (what, name) in done:
            continue
        line = times(name, pairs, sample) if what == "time" else memory(name)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def show(lines: list[dict[str, Any]]) -> None:
    table = Table("variant", "FLOPs", "time", "interval", "time / FLOPs", "bound 1.5",
                  "memory, MiB", "closed form", "ratio", "bound 1.2")  # fmt: skip
    time_of = {x["variant"]: x for x in lines if x["what"] == "time"}
    memory_of = {x["variant"]: x for x in lines if x["what"] == "memory"}
    for name in VARIANTS:
        t, m = time_of.get(name), memory_of.get(name)
        cells = ["–"] * 9
        if t is not None:
            ratio = t["ratio"] / t["flops"]
            met = "met" if ratio <= FLOP_BOUND else "exception" if name in EXCEPTIONS else "MISSED"
            interval = f"{t['low']:.2f}–{t['high']:.2f}"
            cells[:5] = [f"{t['flops']:.2f}", f"{t['ratio']:.2f}", interval, f"{ratio:.2f}", met]
        if m is not None:
            share = m["measured"] / m["form"]
            cells[5:] = [f"{m['measured'] / 2**20:.0f}", f"{m['form'] / 2**20:.0f}", f"{share:.2f}",
                         "met" if share <= MEMORY_BOUND else "MISSED"]  # fmt: skip
        table.add_row(VARIANTS[name].title, *cells)
    console = Console(width=160)
    console.print(table)
    console.print("Exceptions, named beforehand:")
    for name, reason in EXCEPTIONS.items():
        console.print(f"  {VARIANTS[name].title}: {reason}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "memory", "table"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sample", type=float, default=0.4, help="Least seconds of a sample.")
    parser.add_argument("--out", type=Path, default=Path("modifications.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with thread_limit(1):
        if options.what != "table":
            measure(options.what, options.out, options.variants, options.pairs, options.sample)
    show(read(options.out))


if __name__ == "__main__":
    main()
