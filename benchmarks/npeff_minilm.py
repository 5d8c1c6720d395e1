"""Low-rank NPEFF on a text encoder: `pals` against `mu-gd` where parameters outnumber rows.

Run:  python benchmarks/npeff_minilm.py [--seeds 5] [--store FOLDER] [--out results.json]
Needs:  python -m fishertope.experiments.data fetch minilm sentiment

500 reviews, two classes, the 1.77 M parameters of MiniLM's last encoder block after fine-tuning,
so that A is 500 × 1,774,464; the Fishers lie in a store and both sides read them from there. Ours
is timed from opening the store to the components over all parameters: norms, compression, all
starts, lift and final checks. `mu-gd` has the same Fishers, dtype, kernels and threads, and the
best of four step sizes for every seed. Its steps are counted exactly and timed as follows. Its
trajectory depends on A and G through AAᵀ, AGᵀ and GGᵀ alone, so it is followed to its arrival in
500 + r columns; the time of a step at full size is the lower of two, and the loss after ten real
steps is compared with the followed one.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from seed_by_seed import add_options, rows_of

from fishertope.core.backend import get_backend, thread_limit
from fishertope.core.factorization import LowRankNPEFF, factorize
from fishertope.core.factorization.compress import gram_compression
from fishertope.core.factorization.streamed import StreamedProblem
from fishertope.core.fisher import FisherStore, LowRankFishers, per_example_fishers

STEP_SIZES = (3e-4, 1e-3, 3e-3, 1e-2)
COMPONENTS_ONLY = 100


def fishers_of_minilm(folder, examples):
    """A store of the Fishers of the last encoder block; computed once."""
    from fishertope.experiments.finetune import finetune
    from fishertope.experiments.finetune.training import token_batches

    if (folder / "manifest.json").is_file():
        return FisherStore.open(folder)
    found = finetune("sentiment/yelp", base="minilm", seed=0)
    model, data = found.model(), found.data()
    texts = data.train.take(range(examples))
    batches = token_batches(found.tokenizer(), texts, batch_size=16, max_length=found.max_length)
    return per_example_fishers(
        model, batches, params="*encoder.layer.5.*", store=folder, shard_examples=50
    )


def followed(small, W, G_inside, rest, eta, target, most):
    """mu-gd in d + r columns from the same start: the arrival's step, or None, and ten steps."""
    rows = np.asarray(small.problem.rows, dtype=np.float64)
    wide = np.concatenate([rows, np.zeros((len(rows), len(rest)))], axis=1)
    offsets = np.asarray(small.problem.offsets)
    fishers = LowRankFishers(
        rows=wide, offsets=offsets, norms=np.sqrt(np.asarray(small.problem.squares))
    )
    method = LowRankNPEFF(
        len(G_inside), solver="mu-gd", normalize=False, step_size=eta, max_steps=most,
        components_only_steps=COMPONENTS_ONLY,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        run = factorize(
            fishers, method, init=(W, np.concatenate([G_inside, rest], axis=1)),
            backend="numba", on_failure="return", callback=lambda info: info.loss <= target,
        )  # fmt: skip
    losses = run.history.loss
    reached = np.flatnonzero(losses <= target)
    # A loss every tenth step, of which it costs one more product.
    steps = 10 * (int(reached[0]) + 1) if len(reached) else None
    finite = losses[np.isfinite(losses)]
    # A run that diverges at once has no loss to show.
    first = float(losses[0]) if len(losses) else np.inf
    return steps, float(finite.min(initial=np.inf)), first


def full_step(problem, W, G):
    """Seconds of a step of mu-gd: one product each way, and 4mr² flops on G."""
    began = time.perf_counter()
    B, _ = problem.products(G)
    pulled = problem.pullback(W.astype(np.float32), B)
    moved = G - 1e-3 * ((G @ G.T) @ G - pulled)
    seconds = time.perf_counter() - began
    if moved.shape != G.shape:
        raise SystemExit("a step changed the shape of G")
    return seconds


def one_seed(seed, store, options, console):
    """Both solvers from one seed."""
    r = options.components
    began = time.perf_counter()
    found = factorize(store, LowRankNPEFF(r), seed=seed, backend="numba", on_failure="return")
    ours = time.perf_counter() - began
    problem = StreamedProblem.from_store(
        store, n_components=r, normalize=True, backend=get_backend("numba")
    )
    _, N = problem.products(found.components)
    W = found.coefficients.astype(np.float64)
    S = (found.components @ found.components.T).astype(np.float64)
    loss = problem.total - 2 * (W * N).sum() + ((W.T @ W) * S**2).sum()
    if abs(loss - found.loss) > 1e-4 * found.total:
        raise SystemExit(f"the reported loss {found.loss} is not the loss {loss} of the result")
    rng = np.random.default_rng(seed)
    start_W = 1.0 - rng.random((problem.n_examples, r))
    start_G = rng.normal(0.0, (2.0 / (r * problem.n_columns)) ** 0.5, (r, problem.n_columns))
    start_G = start_G.astype(np.float32)
    small = gram_compression(problem)
    inside = np.asarray(small.project(start_G), dtype=np.float64)
    outside = (start_G @ start_G.T).astype(np.float64) - inside @ inside.T
    values, vectors = np.linalg.eigh(outside)
    rest = vectors * np.sqrt(np.maximum(values, 0.0))
    step_seconds = min(full_step(problem, start_W, start_G) for _ in range(2))
    runs = {
        eta: followed(small, start_W, inside, rest, eta, 1.01 * found.loss, options.budget)
        for eta in STEP_SIZES
    }
    lowest = min([found.loss, *(low for _, low, _ in runs.values())])
    target = 1.01 * lowest
    if target < found.loss:
        raise SystemExit(f"pals ended at {found.loss}, above the target {target}")
    eta = min(runs, key=lambda e: runs[e][0] or np.inf)
    steps = runs[eta][0] or COMPONENTS_ONLY + options.budget
    if seed == 0:  # the followed trajectory is the real one
        method = LowRankNPEFF(
            r, solver="mu-gd", step_size=eta, components_only_steps=10, max_steps=1
        )
        real = factorize(
            store, method, init=(start_W, start_G), backend="numba", on_failure="return",
            callback=lambda info: True,
        )  # fmt: skip
        if abs(real.history.loss[0] - runs[eta][2]) > 1e-3 * real.total:
            raise SystemExit(f"ten real steps: {real.history.loss[0]}, followed: {runs[eta][2]}")
        console.print(f"ten real steps {real.history.loss[0]:.4f}, followed {runs[eta][2]:.4f}")
    products = 2.1 * steps
    row = {
        "seed": seed, "loss": found.loss, "lowest_mu_gd": min(low for _, low, _ in runs.values()),
        "total": found.total, "pals_seconds": ours, "pals_products": found.products,
        "step_size": eta, "reached": runs[eta][0] is not None, "mu_gd_steps": steps,
        "mu_gd_step_seconds": step_seconds, "mu_gd_seconds": 1.05 * steps * step_seconds,
        "products_ratio": found.products / products,
        "seconds_ratio": ours / (1.05 * steps * step_seconds),
    }  # fmt: skip
    console.print(row)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--budget", type=int, default=1000, help="joint steps of a mu-gd run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, thread_limit(options.threads):
        store = fishers_of_minilm(options.store or Path(scratch) / "store", options.examples)
        console.print(store)
        warm = LowRankFishers.from_rows(np.random.default_rng(0).random((9, 1, 40), np.float32))
        factorize(warm, LowRankNPEFF(2), backend="numba", on_failure="return")  # warm the JIT
        rows = rows_of(options, lambda seed: one_seed(seed, store, options, console))
    for name in ("seconds_ratio", "products_ratio"):
        values = [row[name] for row in rows]
        console.print(
            f"median {name}: {np.median(values):.4f} (range {min(values):.4f} to {max(values):.4f})"
        )


if __name__ == "__main__":
    main()
