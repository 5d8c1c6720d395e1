"""A training step, cached decoding and the input pipeline against transformers' T5.

    pip install -e ".[torch,hf]"
    python benchmarks/text_to_text.py --scales nano tiny small --threads 1 --out text_to_text.json

Both sides have the same weights and the same batch; loss, gradients and greedy tokens are compared
before anything is timed, and samples of the two sides alternate. A step is forward, backward and
Adafactor (torch's, the same object settings on both sides). Decoding is greedy with a cache, a
fixed number of tokens: the whole, encoder included, what a further token costs (96 tokens less 16),
and what the matrix products of a token, with keys and values, cost alone. Memory is what training
adds to the resident peak, in processes of their own for each side in turns (Linux). The pipeline is
span corruption of the manual that ships with Python, in tokens a second, beside the tokens that a
step of the tiny size reads in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fisher_rows import compare, ratio_of, seconds
from rich.console import Console
from rich.table import Table

from fishertope.core.backend import thread_limit
from fishertope.core.storage import versions
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig, shift_right
from fishertope.experiments.seq2seq.checkpoints import save_pretrained
from fishertope.experiments.seq2seq.decoding import greedy
from fishertope.experiments.text2text.optimizers import adafactor

SCALES = {
    "nano": ((64, 256, 16, 4, 2), 1_024, 64, 14),
    "tiny": ((128, 512, 32, 4, 4), 4_096, 128, 29),
    "small": ((256, 1_024, 32, 8, 4), 4_096, 128, 29),
}
BATCH = 32
NEW_TOKENS, FEW_TOKENS = 96, 16


def both(scale: str) -> tuple[Seq2Seq, Any, torch.Tensor, torch.Tensor]:
    """Our model and theirs with the same weights, and a batch."""
    import tempfile

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    (d, ff, kv, heads, layers), vocab, n, m = SCALES[scale]
    config = Seq2SeqConfig(
        vocab_size=vocab, d_model=d, d_ff=ff, d_kv=kv, heads=heads, layers=layers, dropout=0.0
    )
    generator = torch.Generator().manual_seed(0)
    ours = Seq2Seq(config, generator)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(ours, folder)
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    inputs = torch.randint(2, vocab, (BATCH, n), generator=generator)
    targets = torch.randint(2, vocab, (BATCH, m), generator=generator)
    return ours, theirs, inputs, targets


def stepper(model: Any, loss: Any) -> Any:
    optimizer = adafactor(model.parameters(), rate=1e-6)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def losses(ours: Seq2Seq, theirs: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
    shifted = shift_right(targets)
    mask = torch.ones_like(inputs)

    def mine() -> torch.Tensor:
        return ours(inputs, shifted, targets=targets).mean()

    def other() -> torch.Tensor:
        loss: torch.Tensor = theirs(input_ids=inputs, attention_mask=mask, labels=targets).loss
        return loss

    return mine, other


def verified(ours: Seq2Seq, theirs: Any, inputs: Any, targets: Any) -> float:
    """The larger of the two differences, of the loss and (relative) of the gradients."""
    mine, other = losses(ours.train(), theirs.train(), inputs, targets)
    values, slopes = [], []
    for model, loss, table in ((ours, mine, "embedding"), (theirs, other, "shared.weight")):
        value = loss()
        value.backward()
        values.append(float(value.detach()))
        grads = {name: p.grad for name, p in model.named_parameters()}
        whole = torch.stack([g.square().sum() for g in grads.values() if g is not None]).sum()
        slopes.append((grads[table], whole.sqrt()))
        model.zero_grad(set_to_none=True)
    (mine_table, mine_norm), (table, norm) = slopes
    gap = max(
        abs(values[0] - values[1]), float((mine_table - table).norm() / table.norm()),
        abs(float(mine_norm / norm) - 1.0),
    )  # fmt: skip
    ours.eval()
    theirs.eval()
    made = greedy(ours, inputs[:4], max_new_tokens=8)
    made_there = theirs.generate(inputs[:4], max_new_tokens=8, do_sample=False)[:, 1:]
    width = min(made.shape[1], made_there.shape[1])
    if gap > 1e-4 or not torch.equal(made[:, :width], made_there[:, :width]):
        raise SystemExit(f"the two sides differ: loss or gradients by {gap:.1e}, or greedy tokens")
    return gap


def further(made: Callable[[int], Any], sample: float) -> float:
    """Seconds of one more token: many less few, without encoder and preparation."""
    long = seconds(lambda: made(NEW_TOKENS), sample, time.perf_counter)
    short = seconds(lambda: made(FEW_TOKENS), sample, time.perf_counter)
    return (long - short) / (NEW_TOKENS - FEW_TOKENS)


def bare(ours: Seq2Seq, source: int, places: int) -> Callable[[], None]:
    """The products of one token alone, after ``source`` inputs and ``places`` tokens.

    With the weights, and with all keys and values, for every row. No norms, no softmax, no residual
    sums, nothing is kept: not a decoder, but what none that reads keys and values can do without.
    """
    c, inner = ours.config, ours.config.heads * ours.config.d_kv
    x, hidden = torch.randn(BATCH, c.d_model), torch.randn(BATCH, c.d_ff)
    mixed, query = torch.randn(BATCH, inner), torch.randn(BATCH * c.heads, 1, c.d_kv)
    weights, caches = [], []
    for _ in range(c.layers):
        weights += [(x, torch.randn(c.d_model, 3 * inner)), (mixed, torch.randn(inner, c.d_model)),
                    (x, torch.randn(c.d_model, inner)), (mixed, torch.randn(inner, c.d_model)),
                    (x, torch.randn(c.d_model, c.d_ff)),
                    (hidden, torch.randn(c.d_ff, c.d_model))]  # fmt: skip
        for n in (places, source):
            caches.append((torch.randn(BATCH * c.heads, c.d_kv, n),
                           torch.randn(BATCH * c.heads, n, c.d_kv),
                           torch.rand(BATCH * c.heads, 1, n)))  # fmt: skip
    weights.append((x, torch.randn(c.d_model, c.vocab_size)))

    def token() -> None:
        for a, w in weights:
            torch.mm(a, w)
        for keys, values, shares in caches:
            torch.bmm(query, keys)
            torch.bmm(shares, values)

    return token


def lines(scale: str, threads: int, pairs: int, sample: float) -> list[dict[str, Any]]:
    ours, theirs, inputs, targets = both(scale)
    gap = verified(ours, theirs, inputs, targets)
    out = []
    mine, other = losses(ours, theirs, inputs, targets)
    found = compare(stepper(ours, mine), stepper(theirs, other), pairs, sample)
    out.append({"what": "training step", "bound": 1.0, **found})
    ours.eval()
    theirs.eval()
    # Ours ends when every row has ended, theirs not before so many tokens.
    made = greedy(ours, inputs, max_new_tokens=NEW_TOKENS).shape[1]
    if made != NEW_TOKENS:
        raise SystemExit(f"our rows ended after {made} tokens; take another seed")

    def ours_made(count: int = NEW_TOKENS) -> Any:
        return greedy(ours, inputs, max_new_tokens=count)

    def theirs_made(count: int = NEW_TOKENS) -> Any:
        with torch.no_grad():
            return theirs.generate(
                inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False
            )

    found = compare(ours_made, theirs_made, pairs, sample)
    out.append({"what": f"encoder and {NEW_TOKENS} tokens", "bound": 0.5, **found})
    products = bare(ours, inputs.shape[1], (FEW_TOKENS + NEW_TOKENS) // 2)
    mine_s, theirs_s, bare_s = [], [], []
    for _ in range(max(pairs, 7)):
        mine_s.append(further(ours_made, sample))
        bare_s.append(seconds(products, sample, time.perf_counter))
        theirs_s.append(further(theirs_made, sample))
    for what, side in (("greedy, a further token", mine_s), ("a token's products alone", bare_s)):
        found = ratio_of(list(zip(side, theirs_s, strict=True)))
        out.append({"what": what, "bound": 0.5, **found})
    ends = {"load": os.getloadavg()[0], "versions": versions()}
    return [{"scale": scale, "threads": threads, "gap": gap, **line, **ends} for line in out]


MEMORY = """
import re, sys
from pathlib import Path
import torch
sys.path.insert(0, "benchmarks")
import text_to_text as b
torch.set_num_threads(1)
ours, theirs, x, y = b.both({scale!r})
mine, other = b.losses(ours, theirs, x, y)
step = b.stepper(*((ours, mine) if {side!r} == "ours" else (theirs, other)))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = status("VmRSS")
for _ in range(5):
    step()
print((status("VmHWM") - before) / 1024)
"""


def memories(scale: str, pairs: int = 7) -> dict[str, Any]:
    """Peaks of training on both sides in turns, and their ratio."""
    times = [(memory(scale, "ours"), memory(scale, "theirs")) for _ in range(pairs)]
    return {"scale": scale, "threads": 1, "what": "memory of training", "bound": 1.0,
            "mib": times, **ratio_of(times)}  # fmt: skip


def memory(scale: str, side: str) -> float:
    """Peak of resident memory in MiB of five training steps above what was there before."""
    code = MEMORY.format(scale=scale, side=side)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def pipeline(seconds: float = 3.0) -> dict[str, Any]:
    """Tokens a second of the input pipeline, one thread."""
    from fishertope.experiments.data import load_manual
    from fishertope.experiments.text2text import ByteVocabulary
    from fishertope.experiments.text2text.batches import Lengths
    from fishertope.experiments.text2text.streams import BatchStream, CorpusStream, tokenized

    vocabulary, lengths = ByteVocabulary(), Lengths(inputs=128, targets=29)
    stream = CorpusStream(tokenized(load_manual(), vocabulary), vocabulary, lengths)
    batches = BatchStream(stream, lengths, batch_size=BATCH)
    next(batches)
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        tokens += next(batches).n_tokens
    return {"tokens_a_second": tokens / (time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--sample", type=float, default=0.5, help="Least seconds of a sample.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found, table = [], Table("size", "threads", "what", "ours / theirs", "interval", "bound")
    for threads in options.threads:
        with thread_limit(threads):
            torch.set_num_threads(threads)
            for scale in options.scales:
                found += lines(scale, threads, options.pairs, options.sample)
    found += [memories(scale, options.pairs) for scale in options.scales]
    for line in found:
        interval = f"{line['low']:.3f} to {line['high']:.3f}"
        table.add_row(line["scale"], str(line["threads"]), line["what"], f"{line['ratio']:.3f}",
                      interval, f"{line['bound']:.2f}")  # fmt: skip
    torch.set_num_threads(1)
    flow = pipeline()
    step = [x for x in found if x["scale"] == "tiny" and x["what"] == "training step"]
    console = Console()
    console.print(table)
    if step:
        eaten = BATCH * (128 + 29) / float(step[0]["ours"])
        console.print(f"pipeline {flow['tokens_a_second']:,.0f} tokens/s, tiny training "
                      f"{eaten:,.0f}: {flow['tokens_a_second'] / eaten:.0f} times")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps({"lines": found, "pipeline": flow}))


if __name__ == "__main__":
    main()
