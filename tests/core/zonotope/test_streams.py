"""Streams in shards: in order, resumed after a kill, the same for any number of processes."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError, ResultsExistError
from fishertope.core.zonotope import (
    Zonotope,
    load_vertices,
    map_vertices,
    n_vertices,
    reverse_search,
    save_vertices,
    tree_blocks,
)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def as_set(rows):
    return {tuple(int(v) for v in r) for r in rows}


DEGENERATE = [
    np.array([[1.0, 0], [0, 1], [1, 1], [1, 1], [-2, -2], [1, -1]]),
    np.array([s for s in itertools.product((0, 1), repeat=3) if any(s)], dtype=float),
    np.hstack([normal(7, 2), np.zeros((7, 1))]),
    np.ones((4, 1)),
]


@pytest.mark.parametrize(
    ("n", "d"), [(6, 2), (7, 3), (9, 3), (8, 4), (9, 5), (4, 5), (3, 4), (1, 2), (5, 1)]
)
def test_z1_check_01_reverse_search_counts(n, d):
    x = normal(n, d, n + d)
    rows = list(reverse_search(x))
    assert len(rows) == len(as_set(rows)) == n_vertices(n, d)
    assert as_set(rows) == as_set(np.concatenate(list(tree_blocks(x))))


@pytest.mark.parametrize("x", DEGENERATE)
def test_z1_check_01_reverse_search_is_the_tree_on_any_rows(x):
    rows = list(reverse_search(x))
    assert len(rows) == len(as_set(rows))
    assert as_set(rows) == as_set(np.concatenate(list(tree_blocks(x))))
    assert as_set(rows) == as_set(np.concatenate(list(Zonotope(x).patterns(method="reverse"))))


@pytest.mark.parametrize("x", [normal(12, 3), *DEGENERATE])
def test_z7_the_tree_goes_on_after_any_pattern(x):
    whole = np.concatenate(list(tree_blocks(x)))
    for cut in range(len(whole)):
        rest = [b for b in tree_blocks(x, after=whole[cut])]
        assert np.array_equal(np.concatenate([whole[:0], *rest]), whole[cut + 1 :])


def test_z7_the_tree_refuses_a_pattern_of_other_rows():
    x = DEGENERATE[0]
    with pytest.raises(InvalidInputError, match="after"):
        list(tree_blocks(x, after=np.array([1, 1, -1, 1, 1, 1])))


def first_of(block):
    return int((block[:, 0] > 0).sum()), hashlib.sha256(block.tobytes()).hexdigest()


def test_z7_processes_give_the_same_stream():
    x = normal(24, 4)
    one = list(map_vertices(x, first_of, shard=1000))
    two = list(map_vertices(x, first_of, shard=1000, n_jobs=2))
    assert one == two
    assert [k for k, _ in one] == sorted(k for k, _ in one)
    assert sum(v[0] for _, v in one) == n_vertices(24, 4) // 2
    cut = one[2][0]
    assert list(map_vertices(x, first_of, start=cut, shard=1000)) == one[2:]
    with pytest.raises(InvalidInputError, match="n_jobs"):
        next(map_vertices(x, first_of, n_jobs=0))


@pytest.mark.parametrize(("x", "method"), [(normal(16, 4), "sweep"), (normal(14, 3), "tree")])
def test_z7_folders_hold_the_stream(tmp_path, x, method):
    whole = np.concatenate(list(Zonotope(x).patterns(method=method)))
    seen = []
    done = save_vertices(x, tmp_path / "a", method=method, shard=64, callback=seen.append)
    assert done["finished"]
    assert done["n_vertices"] == len(whole)
    assert np.array_equal(np.concatenate(list(load_vertices(tmp_path / "a"))), whole)
    assert len(seen) >= 2
    # Stopped after two shards, then resumed: the same bytes.
    count = iter(range(99))
    save_vertices(x, tmp_path / "b", method=method, shard=64, callback=lambda i: next(count) == 1)
    assert not (tmp_path / "b" / "manifest.json").exists()
    save_vertices(x, tmp_path / "b", method=method, shard=64, n_jobs=2)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    with pytest.raises(ResultsExistError, match="shard"):
        save_vertices(x, tmp_path / "b", method=method, shard=128)


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


JOB = """
import sys, time
import numpy as np
from fishertope.core.zonotope import save_vertices
def slowly(info):
    time.sleep(0.05)
x = np.random.default_rng(0).normal(size=(40, 4))
save_vertices(x, sys.argv[1], shard=1 << 10, method=sys.argv[2], callback=slowly)
"""


@pytest.mark.parametrize("method", ["sweep", "tree"])
def test_z7_a_killed_run_resumes_to_the_same_bytes(tmp_path, method):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", JOB, str(folder), method])

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("shard-*"))) < 4:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    again, whole = start(tmp_path / "killed"), start(tmp_path / "whole")
    assert again.wait() == whole.wait() == 0
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_uniform_draws_come_from_every_level():
    z = Zonotope(normal(40, 20))  # more vertices than a table would hold
    rows = z.sample(50, seed=0)
    assert rows.shape == (50, 40)
    for s in rows[:10]:
        assert z.rank(s) >= 0
    wide = Zonotope(normal(200, 40))  # more than 64 bits can number
    assert len(wide.sample(3, seed=1)) == 3
