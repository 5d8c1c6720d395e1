"""Several processes on one store or one mean: same numbers, and clear ends when one is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fishertope.core.errors import CorruptFileError, InvalidInputError, RankLostError
from fishertope.core.fisher import (
    FisherStore,
    PrecisionTree,
    SampledLabels,
    estimate_precision,
    per_example_fishers,
)
from fishertope.core.fisher.ranks import Ranks, await_ranks, heartbeat, in_order
from fishertope.core.fisher.store import StoreRun

from .test_store import contents, inputs, network

LOADERS = """
import itertools, os, signal, time
import numpy as np
from fishertope.core.model import DenseNetwork

def net():
    rng = np.random.default_rng(0)
    sizes = (4, 5, 3)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    return DenseNetwork(weights, [rng.normal(size=b) for b in sizes[1:]], "tanh")

def batches():
    x = np.random.default_rng(1).normal(size=(61, 4))
    doomed = os.environ.get("DOOMED") == os.environ.get("RANK", "0")
    for i in range(0, len(x), 3):
        if doomed and i >= 24:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("PAUSE", "0")))
        yield x[i : i + 3]

if __name__ == "__main__":
    import sys
    from fishertope.core.fisher import SampledLabels, estimate_precision, per_example_fishers
    out = sys.argv[1]
    if "store" in sys.argv:
        per_example_fishers(net(), batches(), store=out + "/s", shard_examples=4, seed=3)
    tree = estimate_precision(net(), batches(), labels=SampledLabels(2), seed=3)
    tree.save(f"{out}/p{os.environ.get('RANK', 'alone')}.safetensors")
    if "structures" in sys.argv:
        for structure in ("gram", "kronecker", "ekfac", "block", "lowrank+diagonal"):
            data = list(batches())
            tree = estimate_precision(net(), data, structure=structure, rank=2, seed=3)
            tree.save(f"{out}/{structure}{os.environ.get('RANK', 'alone')}.safetensors")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "shared_loaders.py"
    path.write_text(LOADERS)
    return path


def start(*arguments, folder, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=folder, text=True,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process, timeout=90):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def torchrun(*arguments, folder, **environment):
    pytest.importorskip("torch")
    options = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return start(*options, *arguments, folder=folder, **environment)


def test_b8_two_ranks_write_the_store_and_the_precision_of_one(tmp_path, script):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    code, _, err = ended(start(script, tmp_path / "one", "store", folder=tmp_path))
    assert code == 0, err
    code, _, err = ended(torchrun(script, tmp_path / "two", "store", folder=tmp_path))
    assert code == 0, err
    assert contents(tmp_path / "two" / "s") == contents(tmp_path / "one" / "s")
    one = PrecisionTree.load(tmp_path / "one" / "palone.safetensors")
    both = [PrecisionTree.load(tmp_path / "two" / f"p{r}.safetensors") for r in range(2)]
    for two in both:
        assert two.n_examples == one.n_examples == 61
        for name in one:
            np.testing.assert_allclose(two[name].values, one[name].values, rtol=1e-10, atol=0)
            assert two.trace_errors[name] == pytest.approx(one.trace_errors[name], rel=1e-10)
    first, second = ((tmp_path / "two" / f"p{r}.safetensors").read_bytes() for r in range(2))
    assert first == second


def test_b8_two_ranks_make_every_structure_of_one(tmp_path, script):
    code, _, err = ended(start(script, tmp_path, "structures", folder=tmp_path))
    assert code == 0, err
    code, _, err = ended(torchrun(script, tmp_path, "structures", folder=tmp_path))
    assert code == 0, err
    for structure in ("gram", "kronecker", "ekfac", "block", "lowrank+diagonal"):
        one, *two = (
            PrecisionTree.load(tmp_path / f"{structure}{who}.safetensors")
            for who in ("alone", "0", "1")
        )
        for name in one:
            dense = one[name].to_dense()
            for tree in two:
                off = np.abs(tree[name].to_dense() - dense).max()
                assert off <= 1e-10 * np.abs(dense).max()
                assert tree.trace_errors[name] == pytest.approx(one.trace_errors[name], rel=1e-8)


def test_b8_a_killed_rank_ends_the_run_with_a_message_and_it_resumes(tmp_path, script):
    command = ("fisher", "shared_loaders:net", "shared_loaders:batches", "--shard-examples", "4",
               "--quiet", "--out")  # fmt: skip
    code, _, err = ended(start("-m", "fishertope", *command, "whole", folder=tmp_path))
    assert code == 0, err
    began = time.monotonic()
    code, _, err = ended(
        torchrun("-m", "fishertope", *command, "s", folder=tmp_path, DOOMED="1", PAUSE="0.3")
    )
    assert code != 0
    assert time.monotonic() - began < 60
    assert "Stopped by SIGTERM" in err
    assert "the same command resumes" in err
    with pytest.raises(CorruptFileError, match="not finished"):
        FisherStore.open(tmp_path / "s")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("shard-*")}
    assert kept
    code, _, err = ended(start("-m", "fishertope", *command, "s", folder=tmp_path))
    assert code == 0, err
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    for name, when in kept.items():
        assert (tmp_path / "s" / name).stat().st_mtime_ns == when


def test_b8_a_rank_killed_before_the_sum_ends_the_others(tmp_path, script):
    pytest.importorskip("torch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DOOMED": "1"}
    pair = [start(script, tmp_path, folder=tmp_path, RANK=str(r), **shared) for r in range(2)]
    assert ended(pair[1])[0] == -signal.SIGKILL
    code, _, err = ended(pair[0])
    assert code == 1
    assert "RankLostError" in err
    assert "Process 0 of 2 lost the others" in err


def test_b8_sigterm_ends_with_a_message_and_the_same_command_resumes(tmp_path, script):
    command = ("-m", "fishertope", "fisher", "shared_loaders:net", "shared_loaders:batches",
               "--shard-examples", "4", "--out")  # fmt: skip
    process = start(*command, "s", folder=tmp_path, PAUSE="0.1")
    until = time.monotonic() + 60
    while not list((tmp_path / "s").glob("shard-*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.terminate()
    code, out, err = ended(process)
    assert (code, out) == (1, "")
    assert "Stopped by SIGTERM. Finished shards are kept in s" in " ".join(err.split())
    assert not list((tmp_path / "s").glob(".*"))
    assert ended(start(*command, "s", folder=tmp_path))[0] == 0
    assert ended(start(*command, "whole", folder=tmp_path))[0] == 0
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def fill(folder, ranks, patience=0.4):
    run = StoreRun(
        path=folder, identity={}, kind="low_rank", shard_examples=2, ranks=ranks, patience=patience
    )
    whole = per_example_fishers(network(), inputs(8))

    def compute(pieces):
        return [(stop, whole.select(range(start, stop))) for start, stop, _ in pieces]

    return run.fill([(i, i + 2, None) for i in range(0, 8, 2)], compute, lambda parts: parts[0])


def test_b8_a_rank_that_never_comes_is_named(tmp_path):
    with pytest.raises(RankLostError, match="process 1 of 2") as told:
        fill(tmp_path / "s", Ranks(rank=0, world=2))
    assert "2 shards" in str(told.value)
    assert "Run the same command again" in str(told.value)
    assert sorted(contents(tmp_path / "s")) == [
        "plan.json", "shard-000000.safetensors", "shard-000002.safetensors",
    ]  # fmt: skip
    fill(tmp_path / "s", Ranks())
    fill(tmp_path / "whole", Ranks())
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_b8_a_slow_rank_that_lives_is_waited_for(tmp_path):
    folder, second = tmp_path / "s", Ranks(rank=1, world=2)

    def slow():
        with heartbeat(folder, second, every=0.05):
            time.sleep(1.5)
            fill(folder, second)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        store = fill(folder, Ranks(rank=0, world=2), patience=0.5)
    finally:
        thread.join()
    assert len(store) == 8
    fill(tmp_path / "whole", Ranks())
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_complete_store_whose_last_writer_died_is_finished_by_another(tmp_path):
    began = time.monotonic()
    two = Ranks(rank=0, world=2)
    assert await_ranks(tmp_path, two, list, lambda: False, patience=0.2) is False
    assert 0.2 <= time.monotonic() - began < 5
    assert await_ranks(tmp_path, two, lambda: [1], lambda: True, patience=0.2) is True


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "RANK='0'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE='2'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK='a'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=''"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
)
def test_b8_numbers_of_processes_that_do_not_fit_are_refused(
    tmp_path, monkeypatch, environment, words
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match="torchrun") as told:
        per_example_fishers(network(), inputs(), store=tmp_path / "s")
    assert words in str(told.value)
    with pytest.raises(InvalidInputError, match="torchrun"):
        estimate_precision(network(), inputs())
    assert not (tmp_path / "s").exists()


def test_the_stopping_rule_is_for_one_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match="relative_error"):
        estimate_precision(network(), inputs(), relative_error=0.1)


def test_b2_workers_change_nothing(tmp_path):
    x = np.random.default_rng(1).normal(size=(40, 4))
    options = {"seed": 2, "labels": SampledLabels(2), "batch_size": 3}
    alone = per_example_fishers(network(), x, **options)
    shared = per_example_fishers(network(), x, n_jobs=2, **options)
    assert np.array_equal(alone.rows, shared.rows)
    assert np.array_equal(alone.norms, shared.norms)
    for n_jobs, name in ((None, "one"), (2, "two")):
        per_example_fishers(
            network(), x, n_jobs=n_jobs, store=tmp_path / name, shard_examples=8, **options
        )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    one = estimate_precision(network(), x, **options)
    two = estimate_precision(network(), x, n_jobs=2, **options)
    for name in one:
        assert np.array_equal(one[name].values, two[name].values)


def test_workers_that_cannot_be_are_refused():
    for n_jobs in (0, 1.5, True):
        with pytest.raises(InvalidInputError, match="n_jobs"):
            per_example_fishers(network(), inputs(), n_jobs=n_jobs)
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidInputError, match="torchrun"):
        per_example_fishers(torch.nn.Linear(2, 2), torch.zeros(3, 2), n_jobs=2)


def test_an_error_in_a_worker_is_the_error(tmp_path):
    def fails(i):
        raise InvalidInputError(f"number {i}")

    with pytest.raises(InvalidInputError, match="number 0"):
        list(in_order(fails, iter([(0,)]), 2))
