"""Fits of stores that stay on the disk, and fits that several processes share."""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fishertope.core.backend import available_backends
from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import DiagonalNPEFF, LowRankNPEFF, factorize, matched_cosines
from fishertope.core.factorization.streamed import StreamedProblem
from fishertope.core.fisher import DiagonalFishers, LowRankFishers, save_fishers

from .planted import planted, ragged

QUIET = {"on_failure": "return"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    fishers, _, G = planted(0, n=150, m=160, r=5, noise=0.3)
    blocks = [fishers.block(i) for i in range(150)]
    blocks[20], blocks[149] = blocks[20][:1], blocks[149][:0]
    fishers = LowRankFishers.from_rows(blocks)
    store = save_fishers(tmp_path_factory.mktemp("s") / "store", fishers, shard_examples=37)
    return fishers, store, G


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize(
    "method",
    [
        LowRankNPEFF(5),
        LowRankNPEFF(5, compress="gram"),
        LowRankNPEFF(5, compress="projected gram", projection_dim=120),
        LowRankNPEFF(25, max_steps=1, n_starts=1),
        LowRankNPEFF(4, solver="mu-gd", components_only_steps=10, max_steps=20),
    ],
)
def test_check_20_a_fit_in_chunks_equals_the_fit_in_memory(case, method, backend):
    fishers, store, _ = case
    a = factorize(fishers, method, seed=2, backend=backend, **QUIET)
    b = factorize(store, method, seed=2, backend=backend, **QUIET)
    assert abs(a.loss - b.loss) <= 1e-8 * a.total
    assert matched_cosines(a.components, b.components)[0].min() >= 1 - 1e-6
    np.testing.assert_allclose(a.norms, b.norms)
    if method.solver == "pals" and method.n_components == 5:
        np.testing.assert_allclose(b.transform(store), b.transform(fishers), atol=1e-10)
    assert b.facts["fishers"]["n"] == 150


def test_a_streamed_problem_has_the_products_of_the_rows(case, monkeypatch):
    from fishertope.core.backend import get_backend
    from fishertope.core.factorization import streamed
    from fishertope.core.factorization.problem import LowRankProblem

    fishers, store, _ = case
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 10_000)  # several blocks a shard
    options = {"n_components": 3, "normalize": True, "backend": get_backend("reference")}
    lazy = StreamedProblem.from_store(store, **options)
    whole = LowRankProblem.from_fishers(fishers, **options)
    assert len(lazy.blocks) > 8
    rng = np.random.default_rng(0)
    W, G, D = rng.random((150, 3)), rng.normal(size=(3, 160)), rng.normal(size=(3, 160))
    B = whole.products(G)[0]
    pairs = [
        *zip(lazy.products(G), whole.products(G), strict=True),
        *zip(lazy.line(B, D), whole.line(B, D), strict=True),
        (lazy.pullback(W, B), whole.pullback(W, B)),
        (lazy.row_gram(), whole.row_gram()),
        (lazy.column_gram(), whole.column_gram()),
        (lazy.mix_rows(B.T), whole.mix_rows(B.T)),
        (lazy.restrict(G).rows, whole.restrict(G).rows),
        (lazy.loaded().rows, whole.rows),
        (lazy.example_rows(21), whole.example_rows(21)),
        (lazy.take_rows(np.array([7, 3, 250])), whole.take_rows(np.array([7, 3, 250]))),
        (lazy.squares, whole.squares),
    ]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert abs(lazy.total - whole.total) <= 1e-12 * whole.total


def test_diagonals_from_a_store(tmp_path):
    X = np.random.default_rng(0).random((40, 12))
    store = save_fishers(tmp_path / "s", DiagonalFishers(values=X), shard_examples=9)
    a, b = (
        factorize(f, DiagonalNPEFF(3, max_steps=20), **QUIET)
        for f in (DiagonalFishers(values=X), store)
    )
    assert np.array_equal(a.components, b.components)
    with pytest.raises(InvalidInputError, match="diagonals"):
        factorize(store, LowRankNPEFF(3))


SCRIPT = textwrap.dedent(
    """
    import sys
    import numpy as np
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from planted import planted, ragged
    from fishertope import Checkpoint, DiagonalFishers, DiagonalNPEFF, LowRankNPEFF, factorize
    from fishertope.core.fisher import FisherStore

    out = {}
    fishers, _, _ = planted(0, n=150, m=160, r=5, noise=0.3)
    quiet = {"on_failure": "return", "seed": 2}
    def keep(name, found):
        out[name + ".W"], out[name + ".G"] = (np.asarray(x) for x in
                                              (found.coefficients, found.components))
        out[name + ".loss"] = np.array([found.loss, found.total, found.kkt])
        out[name + ".norms"] = found.norms
    cases = {
        "pals": (fishers, LowRankNPEFF(5, tol=1e-6)),
        "whole steps": (fishers, LowRankNPEFF(4, subspace=False, compress="none")),
        "gram": (fishers, LowRankNPEFF(4, compress="gram")),
        "projected": (fishers, LowRankNPEFF(4, compress="projected gram", projection_dim=100)),
        "ragged": (ragged(3, n=31, m=30, most=2), LowRankNPEFF(4, tol=1e-6)),
        "mu-gd": (fishers, LowRankNPEFF(4, solver="mu-gd", max_steps=40)),
        "stiefel": (fishers, LowRankNPEFF(4, solver="stiefel", max_steps=30, tol=1e-7)),
        "online": (fishers, LowRankNPEFF(4, batch_examples=150, max_steps=9)),
        "penalty": (fishers, LowRankNPEFF(4, orthogonality=0.5, max_steps=3)),
        "store": (FisherStore.open(sys.argv[2]), LowRankNPEFF(5, tol=1e-6)),
    }
    X = np.random.default_rng(0).random((51, 4)) @ np.random.default_rng(1).random((4, 30))
    X[:, 7:20] *= np.random.default_rng(2).random((51, 13)) < 0.2
    cases["hals"] = (DiagonalFishers(values=X), DiagonalNPEFF(4, max_steps=40))
    cases["mu"] = (DiagonalFishers(values=X), DiagonalNPEFF(3, solver="mu", start="random",
                                                            l1_coefficients=0.01, max_steps=40))
    wanted = sys.argv[6].split(",")
    for name, (data, method) in cases.items():
        if name in wanted or wanted == ["all"]:
            keep(name, factorize(data, method, backend=sys.argv[5], **quiet))

    class Killed(Exception):
        pass
    def kill(info):
        if info.phase == "solve" and info.step == 20:
            raise Killed
    method = LowRankNPEFF(5, tol=1e-7, max_steps=4, n_starts=2)
    for name in ("uninterrupted", "resumed"):
        options = {**quiet, "backend": sys.argv[5]}
        if name == "resumed":
            options["checkpoint"] = Checkpoint(sys.argv[4], 0.0)
            try:
                factorize(fishers, method, callback=kill, **options)
            except Killed:
                pass
        keep(name, factorize(fishers, method, **options))
    np.savez(sys.argv[3], **out)
    """
)


def run(tmp_path, world, store, backend, cases):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    processes = []
    for rank in range(world):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if world > 1:
            environment |= {
                "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
        name = f"{backend}-{world}-{rank}"
        arguments = [os.path.dirname(__file__), str(store), str(tmp_path / name),
                     str(tmp_path / f"checkpoint-{backend}-{world}"), backend, cases]  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments], env=environment,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for process in processes:
        try:
            _, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, err
    return [dict(np.load(tmp_path / f"{backend}-{world}-{r}.npz")) for r in range(world)]


@pytest.mark.parametrize(
    ("backend", "cases"),
    [
        ("reference", "store,hals"),
        pytest.param("reference", "all", marks=pytest.mark.slow),
        pytest.param("torch", "all", marks=pytest.mark.slow),
    ],
)
def test_c5_two_processes_find_what_one_finds_and_resume_bitwise(case, tmp_path, backend, cases):
    pytest.importorskip("torch")
    if cases == "all" and os.environ.get("FISHERTOPE_QUICK"):
        cases = "pals,mu-gd,stiefel,online"
    fishers, _, _ = planted(0, n=150, m=160, r=5, noise=0.3)
    save_fishers(tmp_path / "store", fishers, shard_examples=37)
    (one,) = run(tmp_path, 1, tmp_path / "store", backend, cases)
    two = run(tmp_path, 2, tmp_path / "store", backend, cases)
    for name in two[0]:
        assert np.array_equal(two[0][name], two[1][name]), name  # both ranks hold the whole result
        if name.endswith(".loss"):
            assert np.abs(two[0][name][:2] - one[name][:2]).max() <= 1e-6 * one[name][1], name
        else:
            np.testing.assert_allclose(two[0][name], one[name], atol=1e-6, err_msg=name)
    for runs in (one, two[0]):
        for part in ("W", "G", "loss"):
            assert np.array_equal(runs[f"resumed.{part}"], runs[f"uninterrupted.{part}"])


def test_ragged_helper_gives_examples_without_rows():
    assert 0 in ragged(3, n=31, m=30, most=2).ranks
