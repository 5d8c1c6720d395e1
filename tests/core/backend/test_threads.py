"""Thread counts: where they come from, how long they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from threading import Event

import pytest

from fishertope.core.backend import current_threads, default_threads, thread_facts, thread_limit
from fishertope.core.backend.threads import serial_blas
from fishertope.core.errors import InvalidInputError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numba", "torch"):  # they read the variables when they are loaded
        with suppress(ImportError):
            import_module(name)
    monkeypatch.delenv("FISHERTOPE_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_the_order_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    monkeypatch.setenv("FISHERTOPE_NUM_THREADS", "5")
    assert default_threads() == 5
    assert current_threads() == 5
    with thread_limit(2):
        assert current_threads() == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_nonsense_in_our_variable_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FISHERTOPE_NUM_THREADS", text)
    with pytest.raises(InvalidInputError, match="whole number >= 1"):
        default_threads()


def test_nonsense_in_the_variable_of_others_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert default_threads() == len(os.sched_getaffinity(0))


def test_every_library_is_limited_and_restored() -> None:
    numba, torch = pytest.importorskip("numba"), pytest.importorskip("torch")
    before = (thread_facts(), numba.get_num_threads(), torch.get_num_threads(), current_threads())

    def limit_and_fail() -> None:
        with thread_limit(1) as count:
            assert count == 1
            assert numba.get_num_threads() == torch.get_num_threads() == current_threads() == 1
            assert set(thread_facts().values()) == {1}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        limit_and_fail()
    after = (thread_facts(), numba.get_num_threads(), torch.get_num_threads(), current_threads())
    assert after == before


def test_limits_nest_and_belong_to_their_thread() -> None:
    with thread_limit(3):
        with thread_limit(1):
            assert current_threads() == 1
        assert current_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_threads).result() == default_threads()


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="0 threads"), thread_limit(0):
        pass


def blas_threads() -> set[int]:
    from threadpoolctl import threadpool_info

    # A solver's package may carry a BLAS that was built without threads.
    return {
        pool["num_threads"]
        for pool in threadpool_info()
        if pool["user_api"] == "blas" and pool.get("threading_layer") != "disabled"
    }


def test_serial_blas_nests_and_restores() -> None:
    with thread_limit(2):
        with serial_blas():
            assert blas_threads() == {1}
            with serial_blas():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_a_limit_set_while_another_thread_is_serial_is_kept_and_undone_rightly() -> None:
    """The single thread of the moment must not be taken for the count to go back to."""
    inside, leave = Event(), Event()

    def stay_serial() -> None:
        with serial_blas():
            inside.set()
            leave.wait(timeout=60)

    with thread_limit(3), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stay_serial)
        assert inside.wait(timeout=60)
        with thread_limit(2):
            assert blas_threads() == {1}
            leave.set()
            waiting.result()
            assert blas_threads() == {2}
        assert blas_threads() == {3}


def test_serial_blas_holds_for_libraries_that_are_loaded_later() -> None:
    """SciPy brings a BLAS of its own, which is not there yet when NumPy's is first limited."""
    code = (
        "import numpy; from threadpoolctl import threadpool_info\n"
        "from fishertope.core.backend.threads import serial_blas\n"
        "with serial_blas(): pass\n"
        "before = len(threadpool_info()); import scipy.linalg\n"
        "with serial_blas(): inside = [p['num_threads'] for p in threadpool_info()]\n"
        "after = [p['num_threads'] for p in threadpool_info()]\n"
        "print(set(inside), set(after), len(inside) - before)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    inside, after, new = run.stdout.rsplit(maxsplit=2)
    assert inside == "{1}"
    if int(new):  # where SciPy was built with a BLAS of its own
        assert after == "{2}"
