"""Support function and sign patterns against all sign vectors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fishertope.core.backend import Kernel, get_backend
from fishertope.core.testing import deviation, tolerance

Call = Callable[..., Any]


@pytest.mark.parametrize("n", [0, 1, 5, 10])
@pytest.mark.parametrize("d", [1, 3])
def test_support_is_the_maximum_over_all_sums_of_generators(call: Call, n: int, d: int) -> None:
    rng = np.random.default_rng(n + d)
    generators, directions = rng.normal(size=(n, d)), rng.normal(size=(6, d))
    points = [np.array(chosen) @ generators for chosen in product((0.0, 1.0), repeat=n)]
    brute = (np.array(points) @ directions.T).max(axis=0)
    found = call(Kernel.ZONOTOPE_SUPPORT, generators, directions)
    assert deviation(found, brute) < tolerance("zonotope_support").relative


def test_support_is_attained_at_the_vertex_of_the_pattern(call: Call) -> None:
    rng = np.random.default_rng(1)
    generators, directions = rng.normal(size=(40, 3)), rng.normal(size=(7, 3))
    signs = call(Kernel.SIGN_PATTERNS, generators, directions)
    vertices = (signs > 0).astype(float) @ generators
    found = call(Kernel.ZONOTOPE_SUPPORT, generators, directions)
    assert deviation(np.sum(vertices * directions, axis=1), found) < 1e-12


def test_support_adds_many_small_terms_in_float64(call: Call) -> None:
    """2²⁰ terms of one size in float32: a sum in float32, one by one, would lose digits."""
    generators = np.full((1 << 20, 1), 0.1, dtype=np.float32)
    found = call(Kernel.ZONOTOPE_SUPPORT, generators, np.ones((1, 1), dtype=np.float32))
    assert deviation(found, np.float64(generators[0]) * (1 << 20)) < 1e-6


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    n=st.integers(0, 12), d=st.integers(1, 4), k=st.integers(0, 5), seed=st.integers(0, 2**32 - 1)
)
def test_patterns_of_integers_are_exact(call: Call, n: int, d: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    generators, directions = rng.integers(-9, 10, (n, d)), rng.integers(-9, 10, (k, d))
    for dtype in (np.float32, np.float64):
        found = call(Kernel.SIGN_PATTERNS, generators.astype(dtype), directions.astype(dtype))
        assert found.dtype == np.int8
        assert np.array_equal(found, np.sign(directions @ generators.T))


@pytest.mark.parametrize(
    ("n", "d", "m", "integer"), [(12, 2, 3, False), (16, 2, 6, False), (8, 3, 4, False),
                                 (30, 2, 2, False), (10, 2, 3, True)],
)  # fmt: skip
def test_no_better_neighbour_is_priced_out(n: int, d: int, m: int, integer: bool) -> None:
    """Every single flip of solved programs, dead units and degenerate rows among them."""
    backend = get_backend("numba")
    programs, neighbours = (
        backend.raw(k) for k in (Kernel.VERTEX_PROGRAMS, Kernel.NEIGHBOUR_PROGRAMS)
    )
    v = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
    units, rows = np.divmod(np.arange(m * n), n)
    better = 0
    for seed in range(6):
        rng = np.random.default_rng([seed, n])
        x = rng.integers(-2, 3, (n, d)) + 0.0 if integer else rng.normal(size=(n, d))
        x, y = np.column_stack([x, np.ones(n)]), rng.normal(size=n)
        s = np.where(rng.normal(size=(m, d + 1)) @ x.T > 0, 1, -1).astype(np.int8)
        (w,), (mu,) = programs(x, y, v, s[None])
        here = _misfit(x, y, v, s, w)
        every = np.repeat(s[None], m * n, axis=0)
        every[np.arange(m * n), units, rows] *= -1
        cold = [
            _misfit(x, y, v, p, u) for p, u in zip(every, programs(x, y, v, every)[0], strict=True)
        ]
        limit = here * (1 - 1e-9)
        _, warm = neighbours(x, y, v, s + 0.0, mu, units, rows, incumbent=limit)
        for c, found in zip(cold, warm, strict=True):
            if here > 1e-12 and c < limit * (1 - 1e-7):
                better += 1
                assert found == pytest.approx(c, rel=1e-7, abs=1e-9)
            elif np.isfinite(found):
                assert found >= limit * (1 - 1e-6)
    assert better > 10


def _misfit(x: Any, y: Any, v: Any, s: Any, w: Any) -> float:
    return 0.5 * float(((v @ ((s > 0) * (w @ x.T)) - y) ** 2).sum())
