"""Checkpoints: a run that was killed anywhere ends with the bits of one that was not."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from scipy import sparse

from fishertope.core.backend import available_backends
from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.factorization import Checkpoint, DiagonalNPEFF, LowRankNPEFF, factorize
from fishertope.core.fisher import DiagonalFishers
from fishertope.core.status import Status

from .planted import planted

QUIET = {"on_failure": "return"}


class Killed(Exception):
    pass


def killer(step):
    seen = 0

    def callback(info):
        nonlocal seen
        seen += 1
        if seen == step:
            raise Killed

    return callback


def diagonals(dense):
    rng = np.random.default_rng(0)
    X = rng.random((60, 4)) @ (rng.random((4, 50)) * (rng.random((4, 50)) < 0.4))
    return DiagonalFishers(values=X if dense else sparse.csr_array(X))


CASES = {
    "pals in a subspace": (
        lambda: planted(1, n=60, m=130, noise=0.4)[0],
        LowRankNPEFF(4, max_steps=4, n_starts=2, compress="none"),
    ),
    "pals compressed": (
        lambda: planted(2, n=30, m=300, noise=0.4)[0],
        LowRankNPEFF(4, max_steps=3, n_starts=2, compress="gram"),
    ),
    "pals without a subspace": (
        lambda: planted(3, n=60, m=20, noise=0.4)[0],
        LowRankNPEFF(4, max_steps=2, subspace=False, n_starts=2),
    ),
    "mu-gd": (
        lambda: planted(4, n=40, m=20, noise=0.4)[0],
        LowRankNPEFF(3, solver="mu-gd", components_only_steps=50, max_steps=80),
    ),
    "stiefel": (
        lambda: planted(9, n=40, m=20, noise=0.4)[0],
        LowRankNPEFF(3, solver="stiefel", n_starts=2, max_steps=3, tol=1e-9),
    ),
    "online batches": (
        lambda: planted(10, n=60, m=30, noise=0.4)[0],
        LowRankNPEFF(3, batch_examples=13, max_steps=8, tol=1e-9, orthogonality=0.1),
    ),
    "hals": (lambda: diagonals(True), DiagonalNPEFF(4, max_steps=12, tol=0.0)),
    "mu, sparse": (
        lambda: diagonals(False),
        DiagonalNPEFF(4, solver="mu", max_steps=12, tol=0.0, start="random"),
    ),
}


def assert_same(a, b):
    assert np.array_equal(a.coefficients, b.coefficients)
    assert np.array_equal(a.components, b.components)
    assert (a.loss, a.status, a.residual, a.kkt) == (b.loss, b.status, b.residual, b.kkt)
    assert np.array_equal(a.history.loss, b.history.loss)
    assert a.history.phases == b.history.phases
    assert abs(a.products - b.products) <= 1e-9 * b.products


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("name", CASES)
def test_check_21_a_resumed_fit_equals_an_uninterrupted_one_bitwise(name, backend, tmp_path):
    make, method = CASES[name]
    fishers = make()
    whole = factorize(fishers, method, seed=7, backend=backend, **QUIET)
    steps = len(whole.history)
    rng = np.random.default_rng(len(name))
    for trial, step in enumerate(rng.integers(1, steps + 1, 2 if backend == "reference" else 1)):
        path = tmp_path / f"fit-{trial}"
        run = {"seed": 7, "backend": backend, "checkpoint": Checkpoint(path, 0.0), **QUIET}
        with pytest.raises(Killed):
            factorize(fishers, method, callback=killer(step), **run)
        if trial == 1 and path.exists():  # and once more, later on
            late = killer(int(rng.integers(1, steps + 1)))
            with contextlib.suppress(Killed):
                factorize(fishers, method, callback=late, **run)
        seen = []
        resumed = factorize(fishers, method, callback=seen.append, **run)
        assert_same(resumed, whole)
        assert len(seen) <= steps
        again = factorize(fishers, method, callback=killer(1), **run)  # finished: nothing to do
        assert_same(again, whole)


def test_check_21_a_generator_as_seed_and_a_start_resume_too(tmp_path):
    fishers, _, _ = planted(5, n=50, m=100, noise=0.4)
    rng = np.random.default_rng(0)
    init = rng.random((50, 4)), rng.normal(size=(4, 100))
    for options in ({}, {"init": init}):
        path = tmp_path / f"fit-{len(options)}"
        method = LowRankNPEFF(4, max_steps=4)
        whole = factorize(fishers, method, seed=np.random.default_rng(3), **options, **QUIET)
        with pytest.raises(Killed):
            factorize(
                fishers, method, seed=np.random.default_rng(3), callback=killer(30),
                checkpoint=Checkpoint(path, 0.0), **options, **QUIET,
            )  # fmt: skip
        resumed = factorize(
            fishers, method, seed=np.random.default_rng(3), checkpoint=path, **options, **QUIET
        )
        assert_same(resumed, whole)


def test_check_21_kill_minus_nine_at_a_random_moment_and_resume(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        from planted import planted
        from fishertope import Checkpoint, LowRankNPEFF, factorize
        fishers, _, _ = planted(6, n=150, m=200, noise=0.6)
        method = LowRankNPEFF(8, max_steps=12, tol=1e-9, compress="none")
        print("ready", flush=True)
        options = {"checkpoint": Checkpoint(sys.argv[2], 0.0)} if len(sys.argv) > 2 else {}
        found = factorize(fishers, method, seed=1, on_failure="return", backend="reference",
                          **options)
        print(found.coefficients.tobytes().hex()[:64], found.loss.hex(), len(found.history))
        """
    )
    here = os.path.dirname(__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def start(*more):
        return subprocess.Popen(
            [sys.executable, "-c", script, here, *more], stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    whole = start().communicate(timeout=120)[0].split("\n")[1]
    path = str(tmp_path / "fit")
    rng = np.random.default_rng(1)
    for _ in range(2):
        process = start(path)
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.2, 1.0)))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
    resumed = start(path).communicate(timeout=120)[0].split("\n")[1]
    assert resumed == whole


def test_a_stopped_fit_goes_on(tmp_path):
    fishers, _, _ = planted(7, n=60, m=100, noise=0.4)
    method = LowRankNPEFF(4, max_steps=5)
    whole = factorize(fishers, method, **QUIET)
    count = iter(range(1000))
    stopped = factorize(
        fishers, method, checkpoint=tmp_path / "fit", callback=lambda info: next(count) == 40,
        **QUIET,
    )  # fmt: skip
    assert stopped.status is Status.STOPPED
    assert_same(factorize(fishers, method, checkpoint=tmp_path / "fit", **QUIET), whole)


def test_checkpoints_of_another_fit_and_damaged_ones_are_refused(tmp_path):
    fishers, _, _ = planted(8, n=30, m=20)
    path = tmp_path / "fit"
    factorize(fishers, LowRankNPEFF(3, max_steps=2), checkpoint=path, **QUIET)
    before = path.read_bytes()
    other = fishers.select(range(29))
    for call in (
        lambda: factorize(fishers, LowRankNPEFF(4, max_steps=2), checkpoint=path),
        lambda: factorize(other, LowRankNPEFF(3, max_steps=2), checkpoint=path),
        lambda: factorize(fishers, LowRankNPEFF(3, max_steps=2), seed=1, checkpoint=path),
    ):
        with pytest.raises(InvalidInputError, match="checkpoint of another fit"):
            call()
    assert path.read_bytes() == before
    for length in (0, 10, len(before) // 2, len(before) - 1):
        path.write_bytes(before[:length])
        with pytest.raises(CorruptFileError):
            factorize(fishers, LowRankNPEFF(3, max_steps=2), checkpoint=path, **QUIET)
    with pytest.raises(InvalidInputError, match="Checkpoint"):
        factorize(fishers, LowRankNPEFF(3), checkpoint=5)
    with pytest.raises(InvalidInputError, match="accepted"):
        Checkpoint(path, -1.0)
