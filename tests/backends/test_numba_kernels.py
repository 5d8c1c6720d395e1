"""What only the numba backend has: shared work, blocks, small products, layouts."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from fishertope.backends.numba_cpu import _split, kernels
from fishertope.core.backend import Kernel, get_backend, thread_limit
from fishertope.core.testing import deviation, problems, tolerance


@pytest.mark.parametrize("kernel", list(Kernel))
def test_threads_and_blocks_do_not_change_the_answer(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    run = get_backend("numba").raw(kernel)
    for problem in problems(kernel):
        expected = run(*problem.arrays, **problem.options)
        with monkeypatch.context() as patch:
            patch.setattr(_split, "_GRAIN", 1)
            with thread_limit(3):
                shared = run(*problem.arrays, **problem.options)
            patch.setattr(kernels, "_BLOCK", 7)
            blocked = run(*problem.arrays, **problem.options)
        expected, shared, blocked = (
            r if isinstance(r, tuple) else (r,) for r in (expected, shared, blocked)
        )
        for a, b, c in zip(expected, shared, blocked, strict=True):
            assert deviation(b, a) <= tolerance(str(kernel)).relative
            assert deviation(c, a) <= tolerance(str(kernel)).relative


def test_split_covers_every_index_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_split, "_GRAIN", 10)
    for n in (0, 1, 2, 7, 100):
        for threads in (1, 2, 5):
            seen: list[tuple[int, int]] = []
            with thread_limit(threads):
                _split.split(lambda a, b, seen: seen.append((a, b)), n, seen, work=1000)
            assert sorted(i for a, b in seen for i in range(a, b)) == list(range(n))
            assert len(seen) == max(1, min(threads, n))


def test_split_passes_on_an_error_of_any_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_split, "_GRAIN", 1)

    def fail(start: int, stop: int) -> None:
        if stop == 10:
            raise ZeroDivisionError

    with thread_limit(2), pytest.raises(ZeroDivisionError):
        _split.split(fail, 10, work=100)


def test_read_only_and_strided_inputs_compile_nothing_new() -> None:
    from fishertope.backends.numba_cpu._factor_kernels import descend

    run = get_backend("numba")[Kernel.NNLS_GRAM]
    problem = problems(Kernel.NNLS_GRAM)[0]
    run(*problem.arrays)
    before = len(descend.signatures)
    views = []
    for array in problem.arrays:
        view = np.asfortranarray(array)
        view.setflags(write=False)
        views.append(view)
    run(*views)
    assert len(descend.signatures) == before


def _in_a_fork(queue: Any) -> None:
    problem = problems(Kernel.NNLS_GRAM)[-1]
    queue.put(get_backend("numba")[Kernel.NNLS_GRAM](*problem.arrays).sum())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_can_run_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's own OpenMP layer would end such a process."""
    monkeypatch.setattr(_split, "_GRAIN", 1)
    monkeypatch.setenv("FISHERTOPE_NUM_THREADS", "2")
    problem = problems(Kernel.NNLS_GRAM)[-1]
    expected = get_backend("numba")[Kernel.NNLS_GRAM](*problem.arrays).sum()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_fork, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(timeout=60)
    assert child.exitcode == 0


def test_the_mean_diagonal_never_holds_an_array_of_n_by_p() -> None:
    """Peak memory stays below one float64 for every example and parameter."""
    import tracemalloc

    sizes, n = (100, 50, 3), 2000
    p = 100 * 50 + 50 + 50 * 3 + 3
    rng = np.random.default_rng(0)
    theta, inputs = rng.normal(size=p), rng.normal(size=(n, 100))
    run = get_backend("numba").raw(Kernel.DENSE_FISHER_DIAGONAL_MEAN)
    options = {"sizes": sizes, "activation": "relu", "output": "categorical"}
    run(theta, inputs[:2], **options)
    tracemalloc.start()
    run(theta, inputs, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * p * 8 / 4
