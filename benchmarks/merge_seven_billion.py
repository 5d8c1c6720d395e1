"""A pair of seven billion parameters: a dry run on its headers, then the merge inside a budget.

    python benchmarks/merge_seven_billion.py --folder /tmp/seven --memory 200MB

The headers are those of a Llama of 6.7e9 parameters in bfloat16, in 14 shards. Four shards of each
model hold random numbers, the others are sparse (zeros that take no room), so that 8 GB are written
to make the pair and 13.5 GB by the merge. Prints the estimate, then what the merge took, and checks
entries of every real shard against the formula.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from fishertope.core.merging.streaming import Checkpoint
from fishertope.core.storage.header import Place, encode
from fishertope.core.storage.numbers import decode, encode as rounded

SHARDS, REAL = 14, 4


def shapes():
    found = {"model.embed_tokens.weight": (32000, 4096)}
    for i in range(32):
        head = f"model.layers.{i}"
        found |= {f"{head}.self_attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"}
        found |= {f"{head}.mlp.{p}_proj.weight": (11008, 4096) for p in ("gate", "up")}
        found |= {f"{head}.mlp.down_proj.weight": (4096, 11008)}
        names = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{head}.{n}.weight": (4096,) for n in names}
    return found | {"model.norm.weight": (4096,), "lm_head.weight": (32000, 4096)}


def make(folder, seed):
    """One model: real headers, random numbers in the first four shards."""
    folder.mkdir(parents=True)
    tensors, index = shapes(), {}
    share = sum(2 * int(np.prod(s)) for s in tensors.values()) / SHARDS
    groups, size = [[] for _ in range(SHARDS)], 0
    for name, shape in tensors.items():
        groups[min(SHARDS - 1, int(size / share))].append(name)
        size += 2 * int(np.prod(shape))
    numbers = np.random.default_rng(seed).normal(size=(1 << 20) + 7)
    data = rounded(numbers, "BF16").tobytes()
    for i, names in enumerate(groups):
        places, at = {}, 0
        for name in names:
            stop = at + 2 * int(np.prod(tensors[name]))
            places[name] = Place(dtype="BF16", shape=tensors[name], start=at, stop=stop)
            at = stop
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        index |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as out:
            header = encode(places, {"format": "pt"})
            out.write(header)
            left = at if i < REAL else 0
            while left:
                out.write(data[: min(left, len(data))])
                left -= min(left, len(data))
            out.truncate(len(header) + at)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def sample(folder, entries=1 << 16):
    """The first entries of the first tensor of each real shard."""
    with Checkpoint(folder) as found:
        out = []
        for shard in range(REAL):
            name = next(
                n for n, t in found.tensors.items() if t.shard == shard and t.size > entries
            )
            stored = np.empty(entries, dtype=np.uint16)
            found.read(name, 1000, stored)
            out.append(decode(stored, "BF16"))
        return np.concatenate(out)


def run(arguments):
    """Standard output and peak MiB of ``fishertope merge``."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); usage = "
        "resource.getrusage(resource.RUSAGE_CHILDREN); print(usage.ru_maxrss // 1024, "
        "file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "fishertope", "merge", *arguments]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout), int(done.stderr.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="22 GB of room; emptied")
    parser.add_argument("--memory", default="200MB")
    given = parser.parse_args()
    folder = given.folder
    folder.mkdir()
    try:
        for seed, name in enumerate("ab"):
            make(folder / name, seed)
        models = [str(folder / n) for n in "ab"]
        plan = [*models, "--weights", "0.3,0.7", "--out", str(folder / "out"),
                "--memory", given.memory]  # fmt: skip
        told, peak = run([*plan, "--dry-run"])
        keys = ("parameters", "bytes_read", "bytes_written", "memory_mib", "seconds", "workers")
        print("dry run:", {k: told[k] for k in keys}, f"peak {peak} MiB", flush=True)
        facts, peak = run([*plan, "--no-fsync"])
        keys = ("parameters", "bytes_written", "seconds", "bytes_per_second", "workers")
        print("merge:", {k: facts[k] for k in keys}, f"peak {peak} MiB", flush=True)
        a, b, merged = (sample(p) for p in (*models, folder / "out"))
        right = decode(rounded(0.3 * a + 0.7 * b, "BF16"), "BF16")
        print(f"entries rounded otherwise than in float64: {(merged != right).mean():.1e}")
        print(f"peak of {given.memory}: {peak * 2**20 / 1e6:.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
