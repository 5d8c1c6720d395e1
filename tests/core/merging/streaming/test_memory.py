"""Memory budgets, in processes of their own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.storage.header import Place, encode

RUN = """
import sys
from fishertope.core.merging.plans import MergePlan
from fishertope.core.merging.streaming import MergeOptions, merge_checkpoints
plan = MergePlan.of({"method": "linear", "sources": sys.argv[2:4], "parameters": {"weight": 0.5}})
options = MergeOptions(memory=int(sys.argv[4]), workers=2, fsync=False, checksums=False)
report = merge_checkpoints(plan, sys.argv[1], options=options)
# Not ru_maxrss: it remembers the parent from before the program was started.
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0]) * 1024, report.facts["bytes_written"])
"""


def sparse(path, size):
    """A checkpoint of so many bytes of zeros that take no room on the disk."""
    rows = size // 2 // 4096 // 8
    places = {
        f"w{i}": Place(dtype="BF16", shape=(rows, 4096), start=i * rows * 8192,
                       stop=(i + 1) * rows * 8192) for i in range(8)
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(header := encode(places, {"format": "pt"}))
        file.truncate(len(header) + 8 * rows * 8192)
    return str(path)


@pytest.fixture(autouse=True)
def linux():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from Linux's /proc")


def merged(tmp_path, size, budget):
    paths = [sparse(tmp_path / f"{n}.safetensors", size) for n in "ab"]
    command = [sys.executable, "-c", RUN, str(tmp_path / "out"), *paths, str(budget)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    peak, written = map(int, run.stdout.split())
    return peak, written


def test_merging_check_40_a_budget_holds_for_the_whole_process(tmp_path):
    budget = 190 << 20
    peak, written = merged(tmp_path, 300 << 20, budget)
    assert written > 290 << 20
    assert peak <= 1.1 * budget, f"{peak / 2**20:.0f} MiB"


@pytest.mark.slow
def test_merging_check_40_a_model_of_twenty_budgets(tmp_path):
    budget = 190 << 20
    size = budget * (3 if os.environ.get("FISHERTOPE_QUICK") else 20)
    peak, written = merged(tmp_path, size, budget)
    assert written > 0.99 * size
    assert peak <= 1.1 * budget, f"{peak / 2**20:.0f} MiB"


def test_a_budget_that_cannot_hold_says_what_would(files):
    paths = [str(files.write(f"{i}.safetensors", files.model(i))) for i in range(2)]
    plan = {"method": "linear", "sources": paths, "parameters": {"weight": 0.5}}
    with pytest.raises(InvalidInputError, match=r"takes at least \d+ MiB") as caught:
        files.merge(plan, out="tight", memory=10 << 20)
    assert not (files.folder / "tight").exists()
    enough = int(re.search(r"at least (\d+) MiB", str(caught.value)).group(1)) + 64
    merged_ = files.read(files.merge(plan, memory=enough << 20))
    assert all(np.isfinite(v).all() for v in merged_.values())
