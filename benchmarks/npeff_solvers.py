"""Low-rank NPEFF: data products and seconds to within 1 % of the best loss seen, pals and mu-gd.

Run:  python benchmarks/npeff_solvers.py [--problem digits] [--seeds 5] [--out results.json]

--problem digits: all 1,797 digits, 10 classes, a 64-32-10 network, 32 components. --problem
planted: 1,000 examples that each mix 3 of 24 unit vectors in 500 dimensions, with noise.
--problem hard: 30 vectors in 40 dimensions, and how many of them are found from the default
starts and from random starts alone. Both solvers get the same Fishers, the same normalisation,
backend, dtype and threads, in one process. Counted on both sides: every start, compression,
projection and loss evaluation. A product of the rows projected to d of m columns counts d/m. "mu-
gd" runs at each step size of a grid, and its best one is compared, seed by seed; a run that does
not arrive within its budget counts as the whole budget, which favours it.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from seed_by_seed import add_options, rows_of

from fishertope.core.backend import thread_limit
from fishertope.core.factorization import LowRankNPEFF, factorize, matched_cosines
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


def planted_fishers(seed, dtype, *, n, m, r, active, noise):
    """Σ_k W_ik g_k g_kᵀ as rows turned at random, plus noise; and the g_k."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(r, m))
    G /= np.linalg.norm(G, axis=1, keepdims=True)
    blocks = []
    for _ in range(n):
        chosen = rng.choice(r, size=active, replace=False)
        rows = np.sqrt(rng.uniform(0.2, 1.0, active))[:, None] * G[chosen]
        rows = np.linalg.qr(rng.normal(size=(active, active)))[0] @ rows
        blocks.append((rows + noise * rng.normal(size=rows.shape) / m**0.5).astype(dtype))
    return LowRankFishers.from_rows(blocks), G


def problem(name, seed, dtype):
    """Fishers, how many components to look for, and the planted ones where there are any."""
    if name == "digits":
        return digits_fishers(seed, dtype), COMPONENTS, None
    if name == "planted":
        sizes = {"n": 1000, "m": 500, "r": 24, "active": 3, "noise": 0.5}
    else:
        sizes = {"n": 300, "m": 40, "r": 30, "active": 3, "noise": 0.1}
    fishers, G = planted_fishers(seed, dtype, **sizes)
    return fishers, sizes["r"], G


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
    parser.add_argument("--problem", default="digits", choices=["digits", "planted", "hard"])
    add_options(parser)
    parser.add_argument("--budget", type=int, default=1500, help="data products of a mu-gd run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--backend", default="numba")
    options = parser.parse_args()
    console = Console()
    with thread_limit(options.threads):
        rows = rows_of(options, lambda seed: compare(seed, options, console))
    short = {
        "seed": "seed", "found": "found", "found_random_starts": "random starts",
        "pals_loss": "pals loss", "mu_gd_loss": "mu-gd loss", "products_ratio": "products ratio",
        "seconds_ratio": "time ratio",
    }  # fmt: skip
    chosen = {key: head for key, head in short.items() if key in rows[0]}
    table = Table(*chosen.values(), title=f"{options.problem}: to within 1 % of the best loss")
    for row in rows:
        cells = (row[key] for key in chosen)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells))
    console.print(table)
    for name in ("products_ratio", "seconds_ratio"):
        values = [row[name] for row in rows]
        console.print(
            f"median {name}: {np.median(values):.4f} (range {min(values):.4f} to {max(values):.4f})"
        )


def compare(seed, options, console):
    """One seed: the network, the starts and both solvers."""
    fishers, components, planted = problem(options.problem, seed, np.dtype(options.dtype))
    settings = {"backend": options.backend, "on_failure": "return", "seed": seed}
    factorize(fishers.select(range(40)), LowRankNPEFF(4, max_steps=2), **settings)  # warm the JIT
    pals = factorize(fishers, LowRankNPEFF(components), **settings)
    verified(pals, fishers)
    runs = {}
    for eta in STEP_SIZES:
        method = LowRankNPEFF(
            components, solver="mu-gd", step_size=eta, max_steps=options.budget // 2 - 100
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
    found = {}
    if planted is not None:
        random = factorize(fishers, LowRankNPEFF(components, start="random"), **settings)
        for name, run in (("found", pals), ("found_random_starts", random), ("found_mu_gd",
                          runs[chosen])):  # fmt: skip
            cosines = matched_cosines(planted, run.components)[0]
            found[name] = f"{int((cosines >= 0.99).sum())} of {components}"
    return {
        "seed": seed,
        **found,
        "best_loss": best,
        "pals_loss": pals.loss,
        "mu_gd_loss": min(r.loss for r in runs.values() if np.isfinite(r.loss)),
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
