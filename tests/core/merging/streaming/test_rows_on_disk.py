"""Gram merges that are killed, damaged, or given little memory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.fisher import PrecisionTree
from fishertope.core.fisher.structures import Gram
from fishertope.core.merging import MergeProblem, solve
from fishertope.core.merging.plans import MergePlan, save_plan
from fishertope.core.merging.solvers import rows
from fishertope.core.merging.streaming import (
    MergeOptions,
    StoppedByCallback,
    estimate_merge,
    merge,
    precisions as precisions_module,
    row_groups,
)
from fishertope.core.merging.streaming.engine import resident_bytes
from fishertope.core.model import SiteLayout
from fishertope.core.storage import inspect_file, load_arrays, save_arrays
from fishertope.core.storage.header import Place, encode

from .conftest import Files
from .gram_sites import LAYOUTS, SHAPES, gram, plan_of, trees

QUICK = bool(os.environ.get("FISHERTOPE_QUICK"))
KIND = "precision tree"
BUDGET = 440 << 20
RUN = """
import os, signal, sys, time
from fishertope.core.merging.plans import load_plan
from fishertope.core.merging.solvers import rows
from fishertope.core.merging.streaming import MergeOptions, merge_checkpoints, row_groups
rows.PANEL, rows.LEAST_ROWS = 1, 128
panel, left = row_groups.RowGroup._panel, [int(sys.argv[4])]
def counted(self, a, b):
    left[0] -= 1
    if left[0] < 0:
        time.sleep(0.3)  # the other worker goes on, and the journal is written
        os.kill(os.getpid(), signal.SIGKILL)
    return panel(self, a, b)
row_groups.RowGroup._panel = counted
merge_checkpoints(load_plan(sys.argv[1]), sys.argv[2], options=MergeOptions(
    fsync=sys.argv[3] == "1", workers=2, block_entries=1500))
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Six sites of four panels each with biases, and their merge."""
    files = Files(tmp_path_factory.mktemp("many"))
    shapes, layouts = {}, {}
    for k in range(6):
        name, last = f"layers.{k}.w", k % 3 == 2
        shapes[f"layers.{k}.b"], shape = (400,), (39, 400) if last else (400, 39)
        shapes[name] = shape
        layouts[name] = SiteLayout(weight=name, weight_shape=shape, bias=f"layers.{k}.b",
                                   outputs="last" if last else "first")  # fmt: skip
    rng, models, precisions = np.random.default_rng(0), [], []
    for seed in (1, 2):
        models.append(files.model(seed, shapes))
        sites = {n: gram(rng, (400, 40)) for n in layouts}
        precisions.append(
            PrecisionTree(sites=sites, n_examples=1, layouts=layouts,
                          trace_errors=dict.fromkeys(sites, 0.0))
        )  # fmt: skip
    plan = MergePlan.of(plan_of(files, models, precisions, code="BF16"))
    save_plan(plan, files.folder / "plan.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PANEL", 1)
        patch.setattr(rows, "LEAST_ROWS", 128)
        yield files, plan, files.merge(plan, out="whole", block_entries=1500)


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_merging_check_41_a_gram_merge_killed_at_random_blocks_then_resumed(many, digest, trials):
    files, plan, whole = many
    expected, rng = digest(whole), np.random.default_rng(trials)
    count = sum(len(rows.panels((400, 40))) for _ in range(6))
    for trial in range(4 if QUICK and trials > 4 else trials):
        out, fsync = files.folder / f"killed-{trials}-{trial}", trial % 2 == 0
        command = [sys.executable, "-c", RUN, str(files.folder / "plan.yaml"), str(out),
                   str(int(fsync)), str(rng.integers(1, count))]  # fmt: skip
        run = subprocess.run(command, check=False)
        assert run.returncode == -signal.SIGKILL
        assert not out.exists()
        files.merge(plan, out=out.name, block_entries=1500, fsync=fsync)
        assert digest(out) == expected
        shutil.rmtree(out)


def test_stopped_anywhere_and_resumed_without_the_sites_that_are_done(many, digest, monkeypatch):
    """Sites whose blocks are done are not read again, and nobody waits for their last block."""
    files, plan, whole = many
    panel = row_groups.RowGroup._panel
    for count in (3, 5, 6):
        solved, looked = [], threading.Event()

        def counted(self, a, b, solved=solved, looked=looked, count=count):
            solved.append((self.key, a))
            if len(solved) >= count:  # until the watcher has looked
                looked.wait(30)
                time.sleep(0.05)
            return panel(self, a, b)

        def stop(step, solved=solved, looked=looked, count=count):
            if len(solved) >= count:
                looked.set()
            return looked.is_set()

        monkeypatch.setattr(row_groups.RowGroup, "_panel", counted)
        with pytest.raises(StoppedByCallback):
            files.merge(plan, out="stopped", block_entries=1500, watch=stop)
        assert not (files.folder / "stopped").exists()
    monkeypatch.setattr(row_groups.RowGroup, "_panel", panel)
    loaded = []
    load = row_groups.RowGroup._load
    monkeypatch.setattr(row_groups.RowGroup, "_load", lambda g: loaded.append(g.key) or load(g))
    out = files.merge(plan, out="stopped", block_entries=1500)
    assert digest(out) == digest(whole)
    assert 0 < len(loaded) < 6


def damaged(path, change):
    """The file written again with other arrays or facts, its checksums right."""
    arrays, facts = load_arrays(path, kind=KIND)
    arrays = {k: v.copy() for k, v in arrays.items()}
    change(arrays, facts)
    save_arrays(path, arrays, facts, kind=KIND)


def altered(path, key):
    """One byte of an array changed, its checksum left."""
    facts, data = inspect_file(path), bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    start = json.loads(data[8:header])[key]["data_offsets"][0]
    assert facts["kind"] == KIND
    data[header + start + 9] ^= 1
    path.write_bytes(data)


def test_d4_a_damaged_site_is_named_and_leaves_nothing(files):
    models, sound = [files.model(k, SHAPES, np.float64) for k in (1, 2, 3)], trees(0)
    place = files.folder / "p1.safetensors"

    def put(key, entry, value):
        return lambda arrays, facts: arrays[key].__setitem__(entry, value)

    A = "conv.weight/input_factor"
    for what, change, words in (
        ("nan", put(A, (2, 2), np.nan), "not finite"),
        ("inf", put(A, (2, 2), np.inf), "not finite"),
        ("skew", put(A, (2, 3), 99.0), "not symmetric"),
        ("negative", put(A, (2, 2), -5.0), "diagonal"),
    ):
        plan = plan_of(files, models, sound)
        damaged(place, change)
        with pytest.raises(CorruptFileError, match=rf"p1.*'conv\.weight'.*{words}"):
            files.merge(plan, out=what)
        assert not (files.folder / what).exists()
    plan = plan_of(files, models, sound)
    altered(place, A)
    with pytest.raises(CorruptFileError, match=r"p1.*'conv\.weight'.*SHA-256"):
        files.merge(plan, out="altered")
    plan = plan_of(files, models, sound)
    opened = precisions_module.PrecisionFile.site

    def shortened(self, key):
        if key == "conv.weight" and self.path.name == "p1.safetensors":
            os.truncate(place, place.stat().st_size - 900)
        return opened(self, key)

    with pytest.MonkeyPatch.context() as patch:  # cut short after it was opened
        patch.setattr(precisions_module.PrecisionFile, "site", shortened)
        with pytest.raises(CorruptFileError, match=r"p1.*'z\.weight'.*ended while"):
            files.merge(plan, out="short")
    assert not any((files.folder / name).exists() for name in ("altered", "short"))


def test_d4_what_a_header_tells_is_checked_before_a_byte_is_written(files):
    models, sound = [files.model(k, SHAPES, np.float64) for k in (1, 2, 3)], trees(0)
    place, site = files.folder / "p2.safetensors", LAYOUTS["z.weight"]

    def claimed_twice(arrays, facts):
        del arrays["z.weight/input_factor"]
        facts["sites"]["z.weight"]["input_factor"] = "conv.weight/input_factor"

    def with_shape(arrays, facts):
        arrays["z.weight/input_factor"] = np.eye(3)

    for what, change in {
        "twice": claimed_twice,
        "unknown": lambda arrays, facts: arrays.update(extra=np.zeros(2)),
        "missing": lambda arrays, facts: arrays.pop("z.weight/input_factor"),
        "integers": lambda arrays, facts: arrays.update(
            {"z.weight/input_factor": np.eye(site.shape[1], dtype=np.int64)}
        ),
        "shape": with_shape,
        "outputs": lambda arrays, facts: facts["sites"]["z.weight"].update(outputs=3),
        "field": lambda arrays, facts: facts["sites"]["z.weight"].update(more=3),
        "owner": lambda arrays, facts: facts["layouts"]["z.weight"].update(weight="a.weight"),
        "errors": lambda arrays, facts: facts["trace_errors"].pop("z.weight"),
        "examples": lambda arrays, facts: facts.update(n_examples=0),
    }.items():
        plan = plan_of(files, models, sound)
        damaged(place, change)
        with pytest.raises(CorruptFileError, match=r"p2.*precision tree"):
            files.merge(plan, out=f"x-{what}")
        with pytest.raises(CorruptFileError, match=r"p2.*precision tree"):
            PrecisionTree.load(place)
        assert not list(files.folder.glob(f"*x-{what}*"))
    plan = plan_of(files, models, sound)
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match="p2"):
        files.merge(plan, out="cut")
    assert not list(files.folder.glob("*cut*"))


MEASURED = """
import sys
from fishertope.core.merging.plans import load_plan
from fishertope.core.merging.streaming import MergeOptions, merge_checkpoints
options = MergeOptions(memory=int(sys.argv[3]), workers=2, fsync=False, checksums=False)
report = merge_checkpoints(load_plan(sys.argv[1]), sys.argv[2], options=options)
# Not ru_maxrss: it remembers the parent from before the program was started.
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0]) * 1024, report.facts["bytes_read"])
"""


def sites_of_zeros(files, sites, shape):
    """A pair of checkpoints of zeros that take no room on the disk, with Gram precisions."""
    rows, width = shape
    layouts = {
        f"w{k}": SiteLayout(weight=f"w{k}", weight_shape=shape, outputs="first")
        for k in range(sites)
    }
    size = 2 * rows * width
    places = {n: Place(dtype="BF16", shape=shape, start=k * size, stop=(k + 1) * size)
              for k, n in enumerate(layouts)}  # fmt: skip
    sources = []
    for k in range(2):
        model, mark = (files.folder / f"{what}{k}.safetensors" for what in "mp")
        with model.open("wb") as file:
            file.write(header := encode(places, {"format": "pt"}))
            file.truncate(len(header) + sites * size)
            # One entry of every panel moves, so that every panel is solved.
            for start in range(0, sites * rows, 64):
                file.seek(len(header) + start * 2 * width)
                file.write((0x3F80 + k).to_bytes(2, "little"))
        A = np.eye(width, dtype=np.float32) + 0.01 * (k + 1)
        PrecisionTree(
            sites={n: Gram(A, rows) for n in layouts}, n_examples=1, layouts=layouts,
            trace_errors=dict.fromkeys(layouts, 0.0),
        ).save(mark)  # fmt: skip
        sources.append({"model": str(model), "precision": str(mark)})
    plan = MergePlan.of({"method": "fisher", "sources": sources, "parameters": {"weight": 0.5}})
    save_plan(plan, files.folder / "plan.yaml")
    return plan


def in_budget(files, budget):
    command = [sys.executable, "-c", MEASURED, str(files.folder / "plan.yaml"),
               str(files.folder / "out"), str(budget)]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return map(int, run.stdout.split())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_merging_check_40_a_budget_holds_for_gram_sites(files):
    budget = BUDGET
    sites_of_zeros(files, 8, (1024, 1024))
    peak, _ = in_budget(files, budget)
    assert peak <= 1.1 * budget, f"{peak / 2**20:.0f} MiB"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_merging_check_40_gram_sites_of_twenty_budgets(files):
    budget, times = BUDGET, 3 if QUICK else 20
    sites_of_zeros(files, times * budget // (12 << 20) + 1, (1024, 1024))
    peak, read = in_budget(files, budget)
    assert read > times * budget
    assert peak <= 1.1 * budget, f"{peak / 2**20:.0f} MiB"


def test_a_budget_that_cannot_hold_a_sites_factors_says_what_would(files):
    plan = sites_of_zeros(files, 2, (512, 1500))
    merge._warm_up_sites()
    tight = resident_bytes() + (100 << 20)
    with pytest.raises(InvalidInputError, match=r"at least \d+ MiB.*'w\d' takes \d+ MiB") as caught:
        files.merge(plan, out="tight", memory=tight)
    assert not list(files.folder.glob("*tight*"))
    with pytest.raises(InvalidInputError, match="at least"):
        estimate_merge(plan, files.folder / "tight", options=MergeOptions(memory=tight))
    need = int(re.search(r"at least (\d+) MiB", str(caught.value)).group(1))
    factors = 8 * 1500**2 * (2 + 2 + 6)
    assert need << 20 > resident_bytes() + factors
    told = estimate_merge(plan, files.folder / "none",
                          options=MergeOptions(memory=(need + 64) << 20))  # fmt: skip
    assert told["memory_mib"] <= need + 64
    out = files.merge(plan, memory=(need + 64) << 20)
    models = [files.read(s.model) for s in plan.sources]
    loaded = [PrecisionTree.load(s.precision) for s in plan.sources]
    exact = solve(MergeProblem(sources=models, precisions=loaded, weights=[0.5, 0.5]))
    for name, values in files.read(out).items():
        np.testing.assert_allclose(values, exact.params[name], atol=2**-8)
