"""Support function and sign patterns against all sign vectors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fishertope.core.backend import Kernel
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
