"""Low-rank NPEFF on digits: data products and seconds to within 1 % of the best loss seen.

Run:  python benchmarks/npeff_solvers.py [--seeds 5] [--out results.json]

Both solvers get the same Fishers (all 1,797 digits, 10 classes, a 64-32-10 network), the same
normalisation, backend, dtype and threads, in one process. Counted on both sides: every start,
compression, projection and loss evaluation. A product of the rows projected to d of m columns
counts d/m. "mu-gd" runs at each step size of a grid, and its best one is compared, seed by seed;
a run that does not arrive within its budget counts as the whole budget, which favours it.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fishertope.core.backend import thread_facts, thread_limit
from fishertope.core.factorization import LowRankNPEFF, factorize
from fishertope.core.fisher import LowRankFishers

STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3)
COMPONENTS = 32


def digits_fishers(seed, dtype):
    """Exact Fishers of a small network on all digits; the network is trained on half of them."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    net = MLPClassifier((32,), max_iter=60, random_state=seed)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 60 epochs are meant to be few
        net.fit(x[:900], y[:900])
    from fishertope.core.fisher import per_example_fishers

    fishers = per_example_fishers(net, x)
    return LowRankFishers.from_rows(
        [fishers.block(i).astype(dtype) for i in range(len(fishers))], norms=fishers.norms
    )


def first_arrival(result, target):
    """(products, seconds) at the first step with loss ≤ target, or ``None``."""
    reached = np.flatnonzero(result.history.loss <= target)
    if not len(reached):
        return None
    i = reached[0]
    return float(result.history.products[i]), float(result.history.seconds[i])


def verified(result, fishers):
    """Recompute the loss from the final arrays by the definition, in float64."""
    used = fishers.normalized()
    W, G = result.coefficients.astype(float), result.components.astype(float)
    rows = used.rows.astype(float)
    loss = 0.0
    for i in range(len(used)):
        A = rows[used.offsets[i] : used.offsets[i + 1]]
        inside = A @ G.T
        loss += np.linalg.norm(A @ A.T) ** 2 - 2 * (W[i] * (inside**2).sum(0)).sum()
    loss += ((W.T @ W) * (G @ G.T) ** 2).sum()
    if abs(loss - result.loss) > 1e-4 * result.total:
        raise SystemExit(f"the reported loss {result.loss} is not the loss {loss} of the result")
    return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=1500, help="data products of a mu-gd run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console()
    with thread_limit(options.threads):
        rows = [compare(seed, options, console) for seed in range(options.seeds)]
        facts = {"threads": thread_facts(), "load": os.getloadavg(), "cpu": platform.processor()}
    table = Table(
        "seed",
        "best loss",
        "pals products",
        "pals s",
        "mu-gd η",
        "mu-gd products",
        "mu-gd s",
        "products ratio",
        "time ratio",
        title="to within 1 % of the best loss",
    )
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    for name in ("products_ratio", "seconds_ratio"):
        values = [row[name] for row in rows]
        console.print(
            f"median {name}: {np.median(values):.4f} (range {min(values):.4f} to {max(values):.4f})"
        )
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, **facts}, indent=1))


def compare(seed, options, console):
    """One seed: the network, the starts and both solvers."""
    fishers = digits_fishers(seed, np.dtype(options.dtype))
    settings = {"backend": options.backend, "on_failure": "return", "seed": seed}
    factorize(fishers.select(range(40)), LowRankNPEFF(4, max_steps=2), **settings)  # warm the JIT
    pals = factorize(fishers, LowRankNPEFF(COMPONENTS), **settings)
    verified(pals, fishers)
    runs = {}
    for eta in STEP_SIZES:
        method = LowRankNPEFF(
            COMPONENTS, solver="mu-gd", step_size=eta, max_steps=options.budget // 2 - 100
        )
        with np.errstate(all="ignore"):
            run = factorize(
                fishers,
                method,
                # Nothing below the best loss of the other solver is needed to know the arrival.
                callback=lambda info: info.loss <= 1.005 * pals.loss,
                **settings,
            )
        if np.isfinite(run.loss):
            verified(run, fishers)
        runs[eta] = run
        console.print(
            f"seed {seed}, mu-gd η={eta:g}: {run.loss:.2f} after {run.products:.0f} products"
        )
    best = min([pals.loss, *(r.loss for r in runs.values() if np.isfinite(r.loss))])
    target = 1.01 * best
    arrivals = {eta: first_arrival(run, target) for eta, run in runs.items()}
    budget = {eta: (run.products, float(run.history.seconds[-1])) for eta, run in runs.items()}
    chosen = min(runs, key=lambda eta: (arrivals[eta] or (np.inf,))[0])
    if arrivals[chosen] is None:  # none arrives: the whole budget of the one that came closest
        chosen = min(
            runs, key=lambda eta: runs[eta].loss if np.isfinite(runs[eta].loss) else np.inf
        )
    theirs = arrivals[chosen] or budget[chosen]
    ours = first_arrival(pals, target)
    if ours is None:
        raise SystemExit(f"pals ended at {pals.loss}, above the target {target}")
    return {
        "seed": seed,
        "best_loss": best,
        "pals_products": ours[0],
        "pals_seconds": ours[1],
        "step_size": chosen if arrivals[chosen] else f"{chosen:g} (not reached)",
        "mu_gd_products": theirs[0],
        "mu_gd_seconds": theirs[1],
        "products_ratio": ours[0] / theirs[0],
        "seconds_ratio": ours[1] / theirs[1],
    }


if __name__ == "__main__":
    main()
