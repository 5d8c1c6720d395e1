"""Interrupted merges: nothing under the final name, and the same bytes after resuming."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fishertope.core.errors import FishertopeError, ResultsExistError, WriteFailedError
from fishertope.core.merging.plans import MergePlan, save_plan
from fishertope.core.merging.streaming import StoppedByCallback, writing
from fishertope.core.storage import verify_folder

QUICK = bool(os.environ.get("FISHERTOPE_QUICK"))
RUN = """
import sys
from fishertope.core.merging.plans import load_plan
from fishertope.core.merging.streaming import MergeOptions, merge_checkpoints
print("ready", flush=True)
merge_checkpoints(load_plan(sys.argv[1]), sys.argv[2], options=MergeOptions(
    fsync=sys.argv[3] == "1", workers=2, block_entries=1024))
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    from .conftest import Files

    files = Files(tmp_path_factory.mktemp("big"))
    shapes = {f"model.layers.{i}.w": (128, 1024) for i in range(8)} | {"bias": (5,)}
    a = files.shards("a", files.model(0, shapes), 3, code="BF16")
    b = files.write("b.safetensors", files.model(1, shapes), code="BF16")
    plan = MergePlan.of({"method": "linear", "sources": [str(a), str(b)],
                         "parameters": {"weight": 0.5}})  # fmt: skip
    save_plan(plan, files.folder / "plan.yaml")
    return files, plan, files.merge(plan, out="whole", block_entries=1024)


def start(files, out, *, fsync=False):
    command = [sys.executable, "-c", RUN, str(files.folder / "plan.yaml"), str(out),
               str(int(fsync))]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    return run


def killed_and_resumed(big, digest, trials, seed):
    files, plan, whole = big
    expected, rng = digest(whole), np.random.default_rng(seed)
    since = time.monotonic()
    with start(files, files.folder / f"timed-{seed}") as run:
        run.communicate()
    longest, interrupted = time.monotonic() - since, 0
    for trial in range(trials):
        out, fsync = files.folder / f"killed-{seed}-{trial}", trial % 4 == 0
        with start(files, out, fsync=fsync) as run:
            try:
                run.wait(timeout=float(rng.uniform(0.0, 0.9 * longest)))
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
        if not out.exists():
            interrupted += 1
            files.merge(plan, out=out.name, block_entries=1024, fsync=fsync)
        assert digest(out) == expected
        verify_folder(out)
        shutil.rmtree(out)
    assert interrupted, "no run was interrupted, so nothing was shown"


def test_merging_check_41_killed_at_random_moments_then_resumed(big, digest):
    killed_and_resumed(big, digest, 3, seed=1)


@pytest.mark.slow
def test_d4_killed_at_twenty_random_moments_then_resumed(big, digest):
    killed_and_resumed(big, digest, 5 if QUICK else 20, seed=0)


def test_d4_killed_twice_and_resumed_with_the_journal(big, digest):
    """Every block that the journal calls done is left alone; the others are merged."""
    files, plan, whole = big
    seen = []

    def stop_after(limit):
        def watch(step):
            seen.append(step)
            return step.phase == "merging" and step.done > limit

        return watch

    out, total = "stopped", sum(p.stat().st_size for p in whole.rglob("*.safetensors"))
    slow = writing.OutputFile.write

    def slowly(self, data, offset):
        time.sleep(0.002)
        slow(self, data, offset)

    writing.OutputFile.write = slowly
    try:
        for limit in (total * 0.2, total * 0.5):
            with pytest.raises(StoppedByCallback):
                files.merge(plan, out=out, block_entries=1024, watch=stop_after(limit))
            assert not (files.folder / out).exists()
    finally:
        writing.OutputFile.write = slow
    seen.clear()
    done = files.merge(plan, out=out, block_entries=1024, watch=seen.append)
    assert seen[-1].resumed > total * 0.4
    assert seen[-1].done == seen[-1].total
    assert digest(done) == digest(whole)
    recorded = verify_folder(done)["files"]
    assert {n: f["sha256"] for n, f in recorded.items() if n.endswith(".safetensors")} == digest(
        done
    )


def test_another_cutting_or_changed_sources_do_not_resume_wrongly(big, digest):
    files, plan, whole = big
    copy = files.folder / "copy"
    shutil.copytree(files.folder / "a", copy)
    changed = MergePlan.of({**plan.to_dict(), "sources": [str(copy), plan.sources[1].model],
                            "parameters": {"weight": 0.5}})  # fmt: skip

    def stop(step):
        return step.phase == "merging" and step.done > 0

    for _ in range(2):
        with pytest.raises(StoppedByCallback):
            files.merge(changed, out="cut", block_entries=256, watch=stop)
    again = files.merge(changed, out="cut", block_entries=1024)  # cut otherwise: starts anew
    assert digest(again) == digest(whole)
    with pytest.raises(StoppedByCallback):
        files.merge(changed, out="changed", block_entries=256, watch=stop)
    os.utime(copy / "model-00001-of-00003.safetensors", ns=(1, 1))
    with pytest.raises(ResultsExistError, match="other settings"):
        files.merge(changed, out="changed", block_entries=256)


def full_disk(monkeypatch, after):
    """The system refuses to write once so many bytes are written."""
    real, left = os.pwrite, [after]

    def pwrite(fd, data, offset):
        if len(data) > 512:
            left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_merging_check_42_and_d4_a_full_disk_leaves_nothing_and_is_resumed(
    big, digest, monkeypatch
):
    files, plan, whole = big
    with monkeypatch.context() as patch:
        full_disk(patch, 300_000)
        with pytest.raises(WriteFailedError, match="No space left") as caught:
            files.merge(plan, out="full", block_entries=1024)
    assert "Nothing was left under that name" in str(caught.value)
    assert not (files.folder / "full").exists()
    assert digest(files.merge(plan, out="full", block_entries=1024)) == digest(whole)


def test_d4_the_kernel_refuses_to_write_more(big, digest):
    """A real refusal: the file size limit of a process."""
    files, _, _ = big
    out = files.folder / "limited"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    command = [sys.executable, "-m", "fishertope", "merge", str(files.folder / "plan.yaml"),
               "--out", str(out), "--quiet", "--no-fsync"]  # fmt: skip
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "could not be written" in run.stderr
    assert "Traceback" not in run.stderr
    assert not out.exists()


def test_d4_too_little_room_is_said_before_a_byte_is_written(big, monkeypatch):
    files, plan, _ = big
    usage = shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WriteFailedError, match="more bytes"):
        files.merge(plan, out="small")
    assert not (files.folder / "small").exists()
    assert not list(files.folder.glob(".small*"))


def test_merging_check_42_an_error_in_a_late_block_leaves_nothing(files):
    good = files.model(0)
    bad = {k: v.copy() for k, v in files.model(1).items()}
    bad["scalar"] = np.float32("nan")
    paths = [files.write("a.safetensors", good), files.write("b.safetensors", bad)]
    plan = {"method": "linear", "sources": [str(p) for p in paths], "parameters": {"weight": 0.5}}
    with pytest.raises(FishertopeError, match="'scalar' of source 1"):
        files.merge(plan, out="nan")
    assert not (files.folder / "nan").exists()


def test_finished_results_are_kept_unless_overwriting_is_asked_for(big, digest):
    files, plan, whole = big
    with pytest.raises(ResultsExistError):
        files.merge(plan, out="whole")
    assert digest(files.folder / "whole") == digest(whole)
    record = json.loads((whole / "manifest.json").read_text())
    assert record["command"] == "merge"


def test_without_checksums_the_manifest_keeps_sizes(big):
    files, plan, _ = big
    out = files.merge(plan, out="unhashed", checksums=False)
    recorded = verify_folder(out)["files"]
    weights = {n: f for n, f in recorded.items() if n.endswith(".safetensors")}
    assert all(f["sha256"] is None and f["bytes"] > 0 for f in weights.values())
    place = out / next(iter(weights))
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(FishertopeError, match="altered"):
        verify_folder(out)
