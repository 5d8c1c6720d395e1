"""The store: killed, cut, altered, shared between processes, and still right or refused."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fishertope.core.errors import (
    CorruptFileError,
    FishertopeError,
    ForeignFolderError,
    InvalidInputError,
    ResultsExistError,
)
from fishertope.core.fisher import (
    FisherStore,
    RandomProjection,
    SampledLabels,
    TopK,
    per_example_fishers,
    save_fishers,
)
from fishertope.core.model import DenseNetwork


def network(seed=0, sizes=(4, 5, 3)):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    return DenseNetwork(weights, [rng.normal(size=b) for b in sizes[1:]], "tanh")


def inputs(n=23):
    return np.random.default_rng(1).normal(size=(n, 4))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def make(folder, **options):
    options = {"shard_examples": 5, "batch_size": 3} | options
    return per_example_fishers(network(), inputs(), store=folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "diagonal"},
        {"kind": "diagonal", "reduce": TopK(4)},
        {"reduce": RandomProjection(8)},
        {"labels": SampledLabels(2), "params": "layers.1.*"},
    ],
)
def test_a_store_holds_the_fishers_that_memory_holds(tmp_path, options):
    options = {**options, "seed": 4}
    whole = per_example_fishers(network(), inputs(), batch_size=23, **options)
    store = make(tmp_path / "s", **options)
    assert len(store) == 23
    assert [len(b) for b in store.blocks()] == [5, 5, 5, 5, 3]
    loaded = store.load()
    assert loaded.sites == whole.sites == store.sites
    if options.get("kind") == "diagonal":
        a, b = loaded.values, whole.values
        if "reduce" in options:
            a, b = a.toarray(), b.toarray()
        np.testing.assert_allclose(a, b, atol=1e-12)
    else:
        np.testing.assert_allclose(loaded.rows, whole.rows, atol=1e-12)
        np.testing.assert_allclose(loaded.norms, whole.norms, atol=1e-10)
        assert np.array_equal(loaded.offsets, whole.offsets)
    block = next(store.blocks())
    array = block.values if options.get("kind") == "diagonal" else block.rows
    if "reduce" not in options:
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap) or isinstance(array, np.memmap)


def test_batches_may_straddle_shards(tmp_path):
    x = inputs()
    store = make(tmp_path / "a")
    cut = [x[i : i + 7] for i in range(0, 23, 7)]
    other = per_example_fishers(network(), cut, store=tmp_path / "b", shard_examples=5)
    np.testing.assert_allclose(other.load().rows, store.load().rows, atol=1e-12)


def test_b7_a_finished_store_is_left_as_it_is_and_other_work_is_refused(tmp_path):
    make(tmp_path / "s")
    before = contents(tmp_path / "s")
    make(tmp_path / "s")
    assert contents(tmp_path / "s") == before
    for changed, words in (({"seed": 1}, "seed"), ({"kind": "diagonal"}, "diagonal")):
        with pytest.raises(ResultsExistError, match=words):
            make(tmp_path / "s", **changed)
    with pytest.raises(ResultsExistError, match="model_sha256"):
        per_example_fishers(
            network(1), inputs(), store=tmp_path / "s", shard_examples=5, batch_size=3
        )
    with pytest.raises(ResultsExistError, match="data_sha256"):
        per_example_fishers(
            network(), inputs(20), store=tmp_path / "s", shard_examples=5, batch_size=3
        )
    assert contents(tmp_path / "s") == before
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine.txt").write_text("x")
    with pytest.raises(ForeignFolderError, match=r"mine\.txt"):
        make(tmp_path / "f")
    assert contents(tmp_path / "f") == {"mine.txt": b"x"}


def test_stopping_leaves_a_store_that_resumes(tmp_path):
    make(tmp_path / "whole")
    calls = []

    def stop(info):
        calls.append(info.step)
        return len(calls) == 5

    with pytest.raises(InvalidInputError, match="same call resumes"):
        make(tmp_path / "s", callback=stop)
    with pytest.raises(CorruptFileError, match="not finished"):
        FisherStore.open(tmp_path / "s")
    make(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


SCRIPT = """
import itertools, sys, time
import numpy as np
from fishertope.core.fisher import per_example_fishers
from fishertope.core.model import DenseNetwork
rng = np.random.default_rng(0)
sizes = (4, 5, 3)
weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
net = DenseNetwork(weights, [rng.normal(size=b) for b in sizes[1:]], "tanh")
x = np.random.default_rng(1).normal(size=(200, 4))
print("ready", flush=True)
def slowly(info):
    time.sleep(0.002)
per_example_fishers(net, x, store=sys.argv[1], shard_examples=4, batch_size=2, callback=slowly)
"""


def run(folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def shards(folder):
    return len(list(Path(folder).glob("shard-*")))


@pytest.mark.slow
def test_b7_killed_at_ten_random_moments_and_resumed_it_is_byte_identical(tmp_path):
    process = run(tmp_path / "whole")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    rng = np.random.default_rng(0)
    reached = set()
    for _ in range(10):
        process = run(tmp_path / "s")
        wanted = shards(tmp_path / "s") + rng.integers(1, 5)
        while process.poll() is None and shards(tmp_path / "s") < wanted:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        reached.add(shards(tmp_path / "s"))
    assert len(reached - {0, 50}) >= 5, "the kills did not come in the midst of the work"
    process = run(tmp_path / "s")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_b8_ranks_share_the_shards_and_a_killed_one_is_made_up_for(tmp_path):
    one = run(tmp_path / "one")
    _, err = one.communicate(timeout=60)
    assert one.returncode == 0, err
    pair = [run(tmp_path / "two", RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    for process in pair:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    killed = run(tmp_path / "s", RANK="1", WORLD_SIZE="2")
    killed.stdout.readline()
    time.sleep(0.03)
    killed.kill()
    killed.communicate()
    again = run(tmp_path / "s")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert contents(tmp_path / "s") == contents(tmp_path / "one")


def test_b7_a_write_refused_for_its_size_ends_with_a_message_and_a_store_that_resumes(tmp_path):
    resource = pytest.importorskip("resource")
    make(tmp_path / "whole", shard_examples=12)
    largest = max(p.stat().st_size for p in (tmp_path / "whole").glob("shard-*"))
    smallest = min(p.stat().st_size for p in (tmp_path / "whole").glob("shard-*"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((largest + smallest) // 2, limit[1]))
        with pytest.raises(FishertopeError, match="could not be written"):
            make(tmp_path / "s", shard_examples=12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "s").glob(".*partial"))
    make(tmp_path / "s", shard_examples=12)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program mount")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("already", [0, 3])
def test_b7_a_full_disk_ends_with_a_message_and_a_store_that_resumes(small_disk, tmp_path, already):
    def fill(folder=small_disk / "s"):
        # A stream, so that its length is not known before.
        stream = (inputs(40)[i : i + 8] for i in range(0, 40, 8))
        return per_example_fishers(network(), stream, store=folder, shard_examples=8)

    fill(tmp_path / "s")
    whole = contents(tmp_path / "s")
    shard = len(whole["shard-000000.safetensors"])
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(small_disk)
        left = room.f_bavail * room.f_bsize - already * (-(-shard // 4096) * 4096) - 4096
        file.write(b"0" * (left - (-(-len(whole["plan.json"]) // 4096) * 4096)))
    with pytest.raises(FishertopeError, match="No space left on device") as told:
        fill()
    assert "shard-" in str(told.value)
    assert "make room, and the same call resumes" in str(told.value)
    kept = [p.name for p in (small_disk / "s").glob("shard-*")]
    assert len(kept) < 5
    assert not list((small_disk / "s").glob(".*"))
    filler.unlink()
    fill()
    assert contents(small_disk / "s") == whole


def test_b7_the_store_of_another_model_is_refused_even_if_only_frozen_parts_differ(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    module.append(torch.nn.Linear(5, 3)).double()
    x = torch.as_tensor(inputs())

    def fill(**options):
        return per_example_fishers(module, x, params="2.*", store=tmp_path / "s", **options)

    fill()
    before = contents(tmp_path / "s")
    fill()
    for change in (lambda: module[0].weight.data.add_(1), lambda: module[1].running_mean.add_(1)):
        change()
        with pytest.raises(ResultsExistError, match="model_sha256"):
            fill()
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_b7_a_damaged_shard_is_named_and_nothing_else_touched(tmp_path, damage):
    store = make(tmp_path / "s")
    victim = tmp_path / "s" / "shard-000002.safetensors"
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[-20] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(data[:-8])
    else:
        victim.unlink()
    before = contents(tmp_path / "s")
    blocks = store.blocks()
    next(blocks)
    next(blocks)
    with pytest.raises(CorruptFileError, match="shard-000002"):
        next(blocks)
    with pytest.raises(CorruptFileError, match="shard-000002"):
        store.load()
    assert contents(tmp_path / "s") == before


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "s"
    save_fishers(folder, per_example_fishers(network(), inputs(4)), shard_examples=2)
    return folder


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(),
    st.lists(st.integers(), max_size=2), st.just("../../etc/passwd"), st.just({}),
)  # fmt: skip


def mutate(value, path, new):
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict) and value:
        name = sorted(value)[key % len(value)]
        return {**value, name: mutate(value[name], rest, new)}
    if isinstance(value, list) and value:
        at = key % len(value)
        return [*value[:at], mutate(value[at], rest, new), *value[at + 1 :]]
    return new


FUZZ = settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(path=st.lists(st.integers(0, 9), max_size=5), new=ODD)
def test_b9_hostile_manifests_give_our_errors_only(small, path, new):
    whole = json.loads((small / "manifest.json").read_text())
    hostile = small.parent / "m"
    if not hostile.exists():
        shutil.copytree(small, hostile)
    (hostile / "manifest.json").write_text(json.dumps(mutate(whole, path, new)))
    try:
        store = FisherStore.open(hostile)
        assert len(store.load()) == 4
    except FishertopeError:
        pass


@FUZZ
@given(data=st.data())
def test_b9_hostile_shards_give_our_errors_only(small, data):
    hostile = small.parent / "h"
    if not hostile.exists():
        shutil.copytree(small, hostile)
    name = "shard-000000.safetensors"
    whole = (small / name).read_bytes()
    # Mostly the header, where lengths and places stand.
    at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(whole) - 1)))
    patch = data.draw(st.binary(min_size=0, max_size=9))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole))))
    spoiled = (whole[:at] + patch + whole[at + len(patch) :])[:cut]
    (hostile / name).write_bytes(spoiled)
    manifest = json.loads((small / "manifest.json").read_text())
    import hashlib

    # The manifest agrees with the hostile shard, so that the shard itself must be distrusted.
    manifest["shards"][0] |= {
        "bytes": len(spoiled), "sha256": hashlib.sha256(spoiled).hexdigest()
    }  # fmt: skip
    (hostile / "manifest.json").write_text(json.dumps(manifest))
    try:
        found = FisherStore.open(hostile).load()
        assert spoiled == whole
        assert len(found) == 4
    except FishertopeError:
        assert spoiled != whole


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_shard_sizes_are_whole(tmp_path, value):
    with pytest.raises(InvalidInputError, match="shard_examples"):
        make(tmp_path / "s", shard_examples=value)
