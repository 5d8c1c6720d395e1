"""The loops of a pair in machine code: the same bits as through numba, and only whole files."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fishertope.backends.numba_cpu import _kept_code, merging, table
from fishertope.core.backend import Kernel


def bits(x):
    return (np.asarray(x, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def inputs(n=3001):
    rng = np.random.default_rng(3)
    x = bits(rng.normal(size=(2, n)))
    x[:, :4] = 0x8000  # minus zero in both
    f = (rng.normal(size=(2, n)) ** 2).astype(np.float32)
    w, zeros = np.array([[0.3, 0.7], [1.0, 0.0]]), np.zeros((2, 2))
    return x, f, w, zeros


def results():
    x, f, w, zeros = inputs()
    return [
        merging.merge_linear(x, w, np.ones(2)),
        merging.merge_diagonal(x, f, w, zeros, np.zeros(2)),
        merging.merge_diagonal(x, bits(f), w, zeros, np.zeros(2)),
    ]


def test_machine_code_gives_the_bits_of_numba(monkeypatch):
    assert _kept_code.kept_code() is not None, "loops fell back to numba without a word"
    kept = results()
    monkeypatch.setattr(merging, "kept_code", lambda: None)
    for one, other in zip(kept, results(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_not_finite_entries_go_to_the_careful_loop():
    x, f, w, zeros = inputs()
    x[1, 7] = 0x7FC0
    found, bad = merging.merge_linear(x, w, np.ones(2))
    assert bad.tolist() == [1, 1] or bad.tolist() == [1, 0]
    assert found[0, 7] == 0x7FC0
    assert merging.merge_diagonal(x, f, w, zeros, np.zeros(2))[1][0] == 1


def test_damaged_and_foreign_files_are_not_loaded(tmp_path):
    place = tmp_path / "code.o"
    _kept_code._write(place, b"whole")
    assert _kept_code._read(place) == b"whole"
    place.write_bytes(place.read_bytes()[:-1])
    assert _kept_code._read(place) is None
    assert _kept_code._read(tmp_path / "missing") is None
    _kept_code._write(tmp_path / "file" / "x", b"")
    blocked = tmp_path / "plain"
    blocked.write_text("no folder")
    _kept_code._write(blocked / "x.o", b"code")  # it cannot be kept: no error


def loaded(folder, **more):
    """Whether a process with this cache has the loops, and what it imported for them."""
    code = (
        "import sys; from fishertope.backends.numba_cpu import _kept_code; "
        "print(_kept_code.kept_code() is not None, *(n for n in ('numba', 'llvmlite') "
        "if n in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **more},
    )  # fmt: skip
    return run.stdout.split()


def test_a_second_process_merges_without_numba(tmp_path):
    assert loaded(tmp_path, PATH="") == ["True", "numba", "llvmlite"]
    assert [p.suffix for p in tmp_path.glob("merge-*")] == [".o"]
    assert loaded(tmp_path) == ["True", "llvmlite"]


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("ld") is None, reason="there is no linker here"
)
def test_a_shared_library_is_loaded_without_llvm_and_only_if_whole(tmp_path):
    assert loaded(tmp_path) == ["True", "numba", "llvmlite"]
    (library,) = tmp_path.glob("merge-*.so")
    assert loaded(tmp_path) == ["True"]
    whole = library.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        library.write_bytes(damaged)
        assert loaded(tmp_path) == ["True", "llvmlite"]
    _kept_code._write(library, b"whole, and no library")
    assert loaded(tmp_path) == ["True", "llvmlite"]


def test_the_object_file_gives_the_bits_of_the_library(tmp_path, monkeypatch):
    kept = results()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    _kept_code.kept_code.cache_clear()
    try:
        assert _kept_code.kept_code() is not None
        assert [p.suffix for p in tmp_path.glob("merge-*")] == [".o"]
        for one, other in zip(kept, results(), strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        _kept_code.kept_code.cache_clear()


def test_every_kernel_is_in_the_table():
    from fishertope.backends.numba_cpu import kernels

    assert set(table.KERNELS) == set(Kernel)
    for kernel, function in table.KERNELS.items():
        assert function.__name__ == str(kernel)
        where = merging if str(kernel).startswith("merge_") else kernels
        assert callable(getattr(where, str(kernel)))
