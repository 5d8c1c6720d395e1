"""A Fisher store four times larger than the memory that the process may have, factorized.

Run:  python benchmarks/npeff_out_of_core.py [--seeds 5] [--out results.json]

The Fishers of planted problems (low rank, ragged) lie in a store. A child process lowers its
RLIMIT_DATA, which bounds anonymous memory, to a quarter of the store's bytes above what it has
after importing, and factorizes the store twice: by passes over the shards ("streamed") and online
by batches with running sums ("online"). Its peak of anonymous memory (VmData and RssAnon) is
reported. The loss of the same Fishers loaded into memory by another process is the measure.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from seed_by_seed import add_options, rows_of

from fishertope.core.backend import thread_limit
from fishertope.core.factorization import LowRankNPEFF, factorize
from fishertope.core.fisher import FisherStore, LowRankFishers
from fishertope.core.fisher.store import LOW_RANK
from fishertope.core.storage.shards import ShardWriter

COMPONENTS = 12
MIB = 1 << 20


def written(folder, seed, megabytes, columns):
    """A store of planted Fishers with noise, made shard by shard; 1 to 3 rows an example."""
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((COMPONENTS, columns), dtype=np.float32)
    G /= np.linalg.norm(G, axis=1, keepdims=True)
    size = 100
    n = int(megabytes * MIB / (2 * columns * 4) // size * size)
    identity = {"benchmark": "out of core", "seed": seed, "shard_examples": size, "sites": []}
    writer = ShardWriter(folder, identity, kind=LOW_RANK)
    for number in range(n // size):
        blocks = []
        for _ in range(size):
            k = int(rng.integers(1, 4))
            picked = rng.choice(COMPONENTS, size=k, replace=False)
            rows = np.sqrt(rng.uniform(0.2, 1.0, k).astype(np.float32))[:, None] * G[picked]
            noise = rng.standard_normal(rows.shape, dtype=np.float32)
            blocks.append(rows + 0.6 * noise / np.float32(columns**0.5))
        fishers = LowRankFishers.from_rows(blocks)
        arrays = {"rows": fishers.rows, "offsets": fishers.offsets, "norms": fishers.norms}
        writer.write(number, arrays, {"shard": number})
    writer.finish(n // size, {"n": n})
    return FisherStore.open(folder)


def methods(options):
    """The two ways of reading, by name."""
    return {
        "streamed": LowRankNPEFF(COMPONENTS),
        "online": LowRankNPEFF(COMPONENTS, batch_examples=options.batch),
    }


def status(name):
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}; this benchmark needs Linux")


def child(folder, name, limit, options):
    """Lower the limit, factorize, print what was found and the peak of anonymous memory."""
    store = FisherStore.open(folder)
    warm = LowRankFishers.from_rows(np.random.default_rng(0).random((40, 2, 300), np.float32))
    factorize(warm, LowRankNPEFF(2, max_steps=1), on_failure="return")
    peaks = {"VmData": 0, "RssAnon": 0}
    before = status("VmData")
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (before + limit, before + limit))
        try:  # the limit bites
            np.ones(2 * limit, dtype=np.uint8)
        except MemoryError:
            pass
        else:
            raise SystemExit("RLIMIT_DATA does not bound this process")

    def look(info):
        for key in peaks:
            peaks[key] = max(peaks[key], status(key))

    began = time.perf_counter()
    source = store if name != "loaded" else store.load()
    method = methods(options)["streamed" if name == "loaded" else name]
    with thread_limit(options.threads):
        found = factorize(source, method, seed=0, on_failure="return", callback=look)
    look(None)
    print(
        json.dumps(
            {
                "loss": found.loss, "total": found.total, "status": str(found.status),
                "seconds": time.perf_counter() - began, "products": found.products,
                "anonymous_above_start": peaks["VmData"] - before,
                "resident_anonymous": peaks["RssAnon"],
            }
        )
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--megabytes", type=int, default=1024, help="size of the store")
    parser.add_argument("--columns", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "NAME", "LIMIT"))
    options = parser.parse_args()
    if options.child:
        folder, name, limit = options.child
        child(Path(folder), name, int(limit), options)
        return
    console = Console()

    def measure(seed):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "store"
            written(folder, seed, options.megabytes, options.columns)
            size = sum(p.stat().st_size for p in folder.iterdir())
            row = {"seed": seed, "store_bytes": size, "limit_bytes": size // 4}
            for name in ("loaded", "streamed", "online"):
                limit = 0 if name == "loaded" else size // 4
                command = [
                    sys.executable, __file__, "--child", str(folder), name, str(limit),
                    "--batch", str(options.batch), "--threads", str(options.threads),
                ]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
                row[name] = json.loads(done.stdout)
            for name in ("streamed", "online"):
                row[f"{name}_loss_ratio"] = row[name]["loss"] / row["loaded"]["loss"]
            console.print(row)
            return row

    rows = rows_of(options, measure)
    for name in ("streamed", "online"):
        ratio = [r[f"{name}_loss_ratio"] for r in rows]
        peak = [r[name]["anonymous_above_start"] / r["store_bytes"] for r in rows]
        console.print(
            f"{name}: loss over that in memory, median {np.median(ratio):.6f}, worst "
            f"{max(ratio):.6f}; anonymous memory above the start, worst {max(peak):.3f} of the "
            f"store's bytes ({max(r[name]['anonymous_above_start'] for r in rows) / MIB:.0f} MiB)"
        )


if __name__ == "__main__":
    main()
