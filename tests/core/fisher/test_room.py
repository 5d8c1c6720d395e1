"""Stores of wide rows: shards that fit in memory, and a disk that is too small is told at once."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError, WriteFailedError
from fishertope.core.fisher import RandomProjection, estimation, per_example_fishers

from .test_store import contents, inputs, network


def test_b7_a_disk_that_is_too_small_is_told_after_the_first_batch(tmp_path, monkeypatch):
    free = SimpleNamespace(total=0, used=0, free=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(WriteFailedError, match="23 examples") as told:
        per_example_fishers(network(), inputs(), store=tmp_path / "s", batch_size=5)
    for word in ("RandomProjection", "--reduce projection:2048", "params", "another folder"):
        assert word in str(told.value)
    assert not list((tmp_path / "s").glob("shard*"))
    # 23 examples of two rows of four float64 columns: 1,472 bytes.
    reduced = {"reduce": RandomProjection(4)}
    store = per_example_fishers(network(), inputs(), store=tmp_path / "t", batch_size=5, **reduced)
    assert len(store) == 23


def test_b7_what_is_there_already_needs_no_room(tmp_path, monkeypatch):
    calls = []
    with pytest.raises(InvalidInputError, match="asked to stop"):
        per_example_fishers(
            network(), inputs(), store=tmp_path / "s", shard_examples=5, batch_size=5,
            callback=lambda info: calls.append(info.step) or len(calls) == 4,
        )  # fmt: skip
    assert len(list((tmp_path / "s").glob("shard*"))) >= 3
    row = 2 * 8 * (4 * 5 + 5 + 5 * 3 + 3)
    free = SimpleNamespace(total=0, used=0, free=9 * row)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    resumed = per_example_fishers(
        network(), inputs(), store=tmp_path / "s", shard_examples=5, batch_size=5
    )
    assert len(resumed) == 23
    assert "manifest.json" in contents(tmp_path / "s")


def test_shards_of_wide_rows_hold_fewer_examples():
    assert estimation._shard_examples(None, 2048) == 256
    assert estimation._shard_examples(None, 22_713_986) == 1
    assert 1 < estimation._shard_examples(None, 100_000) < 256
    assert estimation._shard_examples(7, 22_713_986) == 7
    with pytest.raises(InvalidInputError, match="shard_examples"):
        estimation._shard_examples(0, 10)


def test_kinds_and_stores_have_types_of_their_own(tmp_path):
    x = inputs()
    assert per_example_fishers(network(), x).rows.shape == (46, 43)
    assert per_example_fishers(network(), x, kind="diagonal").values.shape == (23, 43)
    assert per_example_fishers(network(), x, store=tmp_path / "s").sites[0].name
    assert np.isfinite(per_example_fishers(network(), x).norms).all()
