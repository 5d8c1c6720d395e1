"""Streaming merges against pure reading and writing, and against mergekit.

    python benchmarks/merge_streaming.py copy --folder /dev/shm/x --megabytes 500 --out copy.json
    python benchmarks/merge_streaming.py mergekit --folder /tmp/x --python VENV/bin/python
    python benchmarks/merge_streaming.py gram --folder /tmp/x --memory 600MB

``copy``: one process, JIT warm. A merge of two bfloat16 checkpoints (linear, and the diagonal
Fisher merge with float32 Fishers) against reading the same inputs and writing a file of the
output's size with as many threads, in blocks of 256 KiB or 1 MiB, whichever is faster; checksums
and fsync off, then both on. ``mergekit``: whole processes, imports included, page cache warm, of
``fishertope merge`` and ``mergekit-pytorch`` (a pair of single files) or ``mergekit-yaml`` (a
Llama-shaped pair in four shards each); mergekit's graph time is that of its executor alone, and a
process that imports numpy and only reads and writes the same bytes on two threads is timed too.
Both sides' results are compared before anything is timed, and earlier results are removed outside
of the clock; samples of the two sides alternate, and
the median of the pairs' ratios is reported with its quartiles. ``gram``: whole processes that
merge a pair by RegMean's Gram precisions (float32): 12 weights (2048, 2048) with biases, and an
embedding, in float32, about ``--megabytes`` in all; wall, processor time and peak memory. ``--clock
cpu`` counts the processor time of all threads instead of the wall's, for machines that others use
too.
"""

import argparse
import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import yaml

from fishertope.core.backend import thread_facts
from fishertope.core.fisher import PrecisionTree
from fishertope.core.fisher.structures import Gram, Isotropic
from fishertope.core.merging.plans import MergePlan, save_plan
from fishertope.core.merging.streaming import Checkpoint, MergeOptions, merge_checkpoints
from fishertope.core.model import SiteLayout
from fishertope.core.storage.header import Place, encode
from fishertope.core.storage.numbers import decode, stored_dtype

BLOCKS = (1 << 18, 1 << 20)

MERGEKIT = """
import json, sys, time
start = time.perf_counter()
import mergekit.graph as graph
import mergekit.merge
from mergekit.scripts import merge_raw_pytorch, run_yaml
spent = [0.0]
clock = time.process_time if sys.argv.pop(1) == "cpu" else time.perf_counter
run = graph.Executor.run
def timed(self, *args, **kwargs):
    since = clock()
    for found in run(self, *args, **kwargs):
        yield found
    spent[0] += clock() - since
graph.Executor.run = timed
tool = {"pytorch": merge_raw_pytorch, "yaml": run_yaml}[sys.argv[1]]
tool.main(sys.argv[2:], standalone_mode=False)
print(json.dumps({"graph": spent[0]}))
"""


def shapes(parameters):
    """145 tensors like those of a Llama of about so many parameters."""
    width = int(np.sqrt(parameters / (12 * 16 + 16))) // 64 * 64
    found = {"model.embed_tokens.weight": (16 * width, width)}
    for i in range(16):
        head = f"model.layers.{i}"
        found |= {f"{head}.self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
        found |= {f"{head}.mlp.{p}_proj.weight": (8 * width // 3, width) for p in ("gate", "up")}
        found |= {f"{head}.mlp.down_proj.weight": (width, 8 * width // 3)}
        names = ("input_layernorm", "post_attention_layernorm")
        found |= {f"{head}.{n}.weight": (width,) for n in names}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (16 * width, width)}


def write(path, tensors, code, seed):
    """A checkpoint of random numbers, made from one million of them."""
    size = {"BF16": 2, "F32": 4}[code]
    places, at = {}, 0
    for name, shape in tensors.items():
        stop = at + size * int(np.prod(shape))
        places[name] = Place(dtype=code, shape=shape, start=at, stop=stop)
        at = stop
    numbers = np.random.default_rng(seed).normal(size=(1 << 20) + 7).astype(np.float32)
    data = (numbers.view(np.uint32) >> 16).astype(np.uint16) if code == "BF16" else numbers**2
    with path.open("wb") as file:
        file.write(encode(places, {"format": "pt"}))
        left = at
        while left:
            part = data.tobytes()[: min(left, data.nbytes)]
            file.write(part)
            left -= len(part)


def read_and_write(inputs, out, threads, fsync=False, block=BLOCKS[-1]):
    """Only the bytes: all inputs read, a file of the first one's size written."""
    fds = [os.open(p, os.O_RDONLY) for p in inputs]
    sizes = [os.fstat(fd).st_size for fd in fds]
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(target, sizes[0])
    todo, lock = iter(range(0, sizes[0], block)), threading.Lock()

    def work():
        buffers = [bytearray(block * s // sizes[0] + 1) for s in sizes]
        while True:
            with lock:
                at = next(todo, None)
            if at is None:
                return
            for fd, size, buffer in zip(fds, sizes, buffers, strict=True):
                os.preadv(fd, [buffer], at * size // sizes[0])
            os.pwrite(target, memoryview(buffers[0])[: min(block, sizes[0] - at)], at)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    if fsync:
        os.fsync(target)
    for fd in (*fds, target):
        os.close(fd)
    os.unlink(out)


def write_shards(folder, tensors, seed, parts=4):
    """The same in several files with an index."""
    names, index = list(tensors), {}
    step = -(-len(names) // parts)
    for i in range(parts):
        mine = {n: tensors[n] for n in names[i * step : (i + 1) * step]}
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        write(folder / file, mine, "BF16", seed)
        index |= dict.fromkeys(mine, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def bare_copy(inputs, out):
    """A script with numpy that only reads and writes, on two threads."""
    head = f"import os, threading, numpy\nBLOCKS = {BLOCKS[:1]}\n"
    call = f"read_and_write({inputs!r}, {out!r}, 2)\n"
    return head + inspect.getsource(read_and_write) + call


def best_block(inputs, out, threads):
    """The block size with which reading and writing alone is faster."""
    seconds = []
    for block in BLOCKS:
        took = []
        for _ in range(3):
            since = time.perf_counter()
            read_and_write(inputs, out, threads, block=block)
            took.append(time.perf_counter() - since)
        seconds.append(min(took))
    return BLOCKS[int(np.argmin(seconds))]


def pairs(ours, theirs, count, clock=time.perf_counter):
    """Seconds of both sides, one after the other, and the ratio's median and quartiles."""
    left, right = [], []
    for i in range(count):
        for side, run in [(left, ours), (right, theirs)][:: 1 if i % 2 else -1]:
            since = clock()
            extra = run()
            side.append(extra if isinstance(extra, float) else clock() - since)
    ratios = np.array(left) / np.array(right)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "ours": left,
        "theirs": right,
        "ratio": float(middle),
        "quartiles": [float(low), float(high)],
    }


def sample(path, names, entries=4096):
    with Checkpoint(path) as found:
        out = []
        for name in names:
            tensor = found.tensors[name]
            stored = np.empty(min(entries, tensor.size), dtype=stored_dtype(tensor.dtype))
            found.read(name, 0, stored)
            out.append(decode(stored, tensor.dtype))
        return np.concatenate(out)


def verify(plan, out, names):
    """The merge's first entries are those of the formula, up to a last bit."""
    x = [sample(s.model, names) for s in plan.sources]
    f = [sample(s.precision, names) if s.precision else np.ones_like(x[0]) for s in plan.sources]
    total = np.sum(f, axis=0)
    right = np.sum(np.array(x) * f, axis=0) / np.where(total == 0, 1.0, total)
    wrong = np.abs(sample(out, names) - right) > 2.0**-8 * np.abs(right) + 1e-9
    if wrong.any():
        raise SystemExit(f"{int(wrong.sum())} entries are not those of the formula")


def against_copies(given):
    """Ratios to reading and writing alone."""
    folder, found = Path(given.folder), {}
    tensors = shapes(given.megabytes * 2**20 // 2)
    kinds = [("a", "BF16"), ("b", "BF16"), ("fa", "F32"), ("fb", "F32")]
    files = {name: folder / f"{name}.safetensors" for name, _ in kinds}
    for seed, (name, code) in enumerate(kinds if "fisher" in given.methods else kinds[:2]):
        write(files[name], tensors, code, seed)
    models = [str(files["a"]), str(files["b"])]
    linear = MergePlan.of({"method": "linear", "sources": models, "parameters": {"weight": 0.5}})
    fisher = MergePlan.of({"method": "fisher", "sources": [
        {"model": m, "precision": str(files[f]), "parameters": {"weight": 0.5}}
        for m, f in zip(models, ("fa", "fb"), strict=True)]})  # fmt: skip
    cases = {"linear": (linear, "a b"), "fisher": (fisher, "a b fa fb")}
    for name in given.methods:
        plan, inputs = cases[name]
        read = [files[n] for n in inputs.split()]
        for safe in (False, True):
            for workers in given.workers:
                options = MergeOptions(checksums=safe, fsync=safe, workers=workers)

                def ours(plan=plan, options=options):
                    merge_checkpoints(plan, folder / "out", options=options, overwrite=True)

                block = best_block(read, folder / "copy.bin", workers)

                def theirs(read=read, workers=workers, safe=safe, block=block):
                    read_and_write(read, folder / "copy.bin", workers, fsync=safe, block=block)

                ours()
                verify(plan, folder / "out", list(tensors)[:4])
                case = f"{name}, {'checksums and fsync' if safe else 'neither'}, {workers} threads"
                clock = {"wall": time.perf_counter, "cpu": time.process_time}[given.clock]
                found[case] = pairs(ours, theirs, given.pairs, clock)
                print(f"{case:42} ratio {found[case]['ratio']:.2f} {found[case]['quartiles']}"
                      f" ours {np.median(found[case]['ours']):.2f} s, theirs"
                      f" {np.median(found[case]['theirs']):.2f} s in blocks of {block >> 10} KiB",
                      flush=True)  # fmt: skip
        shutil.rmtree(folder / "out")
    return found


def process(command, clock="wall"):
    """Seconds (of the wall, or of all its threads) and output of a process."""
    since, before = time.perf_counter(), os.times()
    # Bytecode is kept, as where pip has installed both tools.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    if run.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{run.stderr[-2000:]}")
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    return (spent if clock == "cpu" else time.perf_counter() - since), run.stdout


def against_mergekit(given):
    """Ratios of whole processes."""
    folder, found = Path(given.folder), {}
    tensors = shapes(given.megabytes * 2**20 // 2)
    single, sharded = [folder / "a", folder / "b"], [folder / "a4", folder / "b4"]
    for seed, place in enumerate([*single, *sharded]):
        place.mkdir(exist_ok=True)
        if place in single:
            write(place / "model.safetensors", tensors, "BF16", seed)
        else:
            write_shards(place, tensors, seed)
        width = tensors["model.norm.weight"][0]
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                  "hidden_size": width, "intermediate_size": 8 * width // 3,
                  "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 8,
                  "vocab_size": 16 * width, "dtype": "bfloat16",
                  "tie_word_embeddings": False}  # fmt: skip
        (place / "config.json").write_text(json.dumps(config))
    for tool in given.tools:
        places = single if tool == "pytorch" else sharded
        suffix = "/model.safetensors" if tool == "pytorch" else ""
        plan = {"merge_method": "linear", "dtype": "bfloat16", "models": [
            {"model": str(p) + suffix, "parameters": {"weight": w}}
            for p, w in zip(places, (0.3, 0.7), strict=True)]}  # fmt: skip
        file = folder / f"{tool}.yaml"
        file.write_text(yaml.safe_dump(plan))
        theirs_out, ours_out = folder / f"{tool}-theirs", folder / f"{tool}-ours"
        peer = [given.python, "-c", MERGEKIT, given.clock, tool, str(file), str(theirs_out)]
        peer += ["--no-copy-tokenizer"] if tool == "yaml" else []
        fast = ["--no-checksums", "--no-fsync", "--quiet"]
        command = [sys.executable, "-m", "fishertope", "merge", str(file), "--out", str(ours_out)]
        graphs = []

        def theirs(peer=peer, out=theirs_out, graphs=graphs):
            shutil.rmtree(out, ignore_errors=True)
            seconds, text = process(peer, given.clock)
            graphs.append(json.loads(text.strip().split("\n")[-1])["graph"])
            return seconds

        def ours(run, out=ours_out):
            shutil.rmtree(out, ignore_errors=True)
            return process(run, given.clock)[0]

        theirs()
        ours([*command, *fast])
        names = list(tensors)[:6]
        apart = np.abs(sample(ours_out, names) - sample(theirs_out, names))
        print(f"{tool}: largest difference {apart.max():.1e}, "
              f"{(apart > 0).mean():.1%} of entries rounded otherwise", flush=True)  # fmt: skip
        graphs.clear()
        for name, options in (("neither", fast), ("checksums and fsync", fast[2:])):
            case = f"{tool}, {name}"
            run = [*command, *options]
            found[case] = pairs(lambda run=run, ours=ours: ours(run), theirs, given.pairs)
            middle = float(np.median(found[case]["ours"]))
            found[case] |= {"graph": list(graphs), "to_graph": middle / float(np.median(graphs))}
            line = f"{case:28} ratio {found[case]['ratio']:.3f} {found[case]['quartiles']}, to the"
            print(f"{line} graph {found[case]['to_graph']:.2f}, ours {middle:.2f} s", flush=True)
            graphs.clear()
            if given.quick:
                break
        copied = folder / "bare.bin"
        bare = [sys.executable, "-c",
                bare_copy([str(p / "model.safetensors") for p in single], str(copied))]  # fmt: skip
        seconds = []
        for _ in range(given.pairs + 1):
            copied.unlink(missing_ok=True)
            seconds.append(process(bare, given.clock)[0])
        found[f"{tool}, a process that only reads and writes"] = seconds[1:]
        alone = np.median(found[f"{tool}, a process that only reads and writes"])
        print(f"{tool}: a process that only reads and writes takes {alone:.2f} s", flush=True)
        shutil.rmtree(ours_out)
        found[f"{tool}, peak MiB of ours"] = peak(command, fast)
        print(f"{tool}: peak {found[f'{tool}, peak MiB of ours']:.0f} MiB", flush=True)
        shutil.rmtree(theirs_out, ignore_errors=True)
        shutil.rmtree(ours_out, ignore_errors=True)
    return found


GRAM_WIDTH, GRAM_SITES = 2048, 12


def write_gram_pair(folder, megabytes):
    """Two checkpoints with 12 square sites, biases and an embedding, their precisions, a plan."""
    d = GRAM_WIDTH
    layouts, tensors = {}, {}
    for k in range(GRAM_SITES):
        layouts[f"layers.{k}.weight"] = SiteLayout(
            weight=f"layers.{k}.weight", weight_shape=(d, d), bias=f"layers.{k}.bias",
            outputs="first",
        )  # fmt: skip
        tensors |= {f"layers.{k}.bias": (d,), f"layers.{k}.weight": (d, d)}
    rest = (megabytes << 20) // 4 - sum(int(np.prod(s)) for s in tensors.values())
    tensors["embed.weight"] = (max(1, rest // d), d)
    sources = []
    for seed in range(2):
        model, mark = folder / f"m{seed}.safetensors", folder / f"p{seed}.safetensors"
        write(model, tensors, "F32", seed)
        rng = np.random.default_rng(seed)
        inputs = rng.normal(size=(2 * d, d + 1)).astype(np.float32) * (0.1 + rng.random(d + 1))
        A = (inputs.T @ inputs / len(inputs)).astype(np.float32)
        # Other factors at every site, at the price of one.
        sites = {n: Gram((A + A.T) * np.float32(0.5 + k), d) for k, n in enumerate(layouts)}
        sites["embed.weight"] = Isotropic(1.0 + seed, tensors["embed.weight"])
        PrecisionTree(
            sites=sites, n_examples=2 * d, layouts=layouts,
            trace_errors=dict.fromkeys(sites, 0.0),
        ).save(mark)  # fmt: skip
        sources.append({"model": str(model), "precision": str(mark)})
    plan = MergePlan.of({"method": "fisher", "sources": sources, "parameters": {"weight": 0.5}})
    save_plan(plan, folder / "plan.yaml")


def gram_merges(given):
    """Wall, processor seconds and peak MiB of `fishertope merge` by Gram precisions."""
    folder = Path(given.folder)
    write_gram_pair(folder, given.megabytes)
    out = folder / "out"
    found = {"wall": [], "cpu": [], "peak_mib": []}
    command = [sys.executable, "-m", "fishertope", "merge", str(folder / "plan.yaml"),
               "--out", str(out), "--quiet"]  # fmt: skip
    command += ["--memory", given.memory] if given.memory else []
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "u = resource.getrusage(resource.RUSAGE_CHILDREN); "
            "print(u.ru_utime + u.ru_stime, u.ru_maxrss)")  # fmt: skip
    for _ in range(given.pairs):
        shutil.rmtree(out, ignore_errors=True)
        since = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", code, *command], check=True,
                             capture_output=True, text=True)  # fmt: skip
        found["wall"].append(time.perf_counter() - since)
        cpu, kib = run.stdout.split()[-2:]
        found["cpu"].append(float(cpu))
        found["peak_mib"].append(float(kib) / 1024)
        print({k: round(v[-1], 2) for k, v in found.items()}, flush=True)
    return {k: float(np.median(v)) for k, v in found.items()}


def peak(command, options):
    """Largest resident memory of one run of ours."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")  # fmt: skip
    run = [sys.executable, "-c", code, *command, *options]
    return float(process(run)[1].split()[-1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("copy", "mergekit", "gram"))
    parser.add_argument("--folder", required=True, help="room for a few GB; emptied at the end")
    parser.add_argument("--python", help="of an environment with mergekit==0.1.5")
    parser.add_argument("--megabytes", type=int, default=1000, help="of each model")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=["linear", "fisher"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tools", nargs="+", default=["pytorch", "yaml"])
    parser.add_argument("--quick", action="store_true", help="without checksums and fsync only")
    parser.add_argument("--memory", help="budget of the Gram merges")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    Path(given.folder).mkdir(parents=True)
    try:
        kinds = {"copy": against_copies, "mergekit": against_mergekit, "gram": gram_merges}
        found = kinds[given.what](given)
    finally:
        shutil.rmtree(given.folder)
    facts = {"load": os.getloadavg(), "cpus": os.cpu_count(), "threads": thread_facts(),
             "megabytes": given.megabytes, "clock": given.clock,
             "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps({"facts": facts, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
