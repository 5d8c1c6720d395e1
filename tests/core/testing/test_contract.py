"""The contract suite catches what it claims to catch: one broken kernel for each check."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fishertope.core.backend import Backend, BackendInfo, Kernel, get_backend
from fishertope.core.errors import BackendNotFound, InvalidInputError
from fishertope.core.testing import (
    ContractViolation,
    backend_checks,
    check_backend,
    deviation,
    problems,
    tolerance,
)

KERNEL = Kernel.ZONOTOPE_SUPPORT
right = get_backend("reference").raw(KERNEL)


def backend_with(kernel: Callable[..., Any], **facts: Any) -> Backend:
    info = BackendInfo(name="broken", target="nowhere:X", kernels=frozenset({KERNEL}), **facts)
    return Backend(info=info, kernels={KERNEL: kernel})


def wrong_by_a_little(generators: Any, directions: Any) -> Any:
    return right(generators, directions) * (1 + 1e-4)


def wrong_for_one_column(generators: Any, directions: Any) -> Any:
    return right(generators, directions) + (generators.shape[1] == 1)


def wrong_dtype(generators: Any, directions: Any) -> Any:
    return right(generators, directions).astype(np.float64)


def wrong_shape(generators: Any, directions: Any) -> Any:
    return right(generators, directions)[:, None]


def wrong_type(generators: Any, directions: Any) -> Any:
    return right(generators, directions).tolist()


def writes_into_its_input(generators: Any, directions: Any) -> Any:
    generators += 0
    return right(generators, directions)


def returns_its_input(generators: Any, directions: Any) -> Any:
    out = directions[:, 0]
    if out.flags.writeable:
        out[...] = right(generators, directions)
    return out


def trusts_the_memory_order(generators: Any, directions: Any) -> Any:
    flat = np.ndarray(generators.shape, generators.dtype, np.asarray(generators).tobytes("A"))
    return right(flat, directions)


def never_the_same(generators: Any, directions: Any) -> Any:
    noise = np.random.default_rng().normal(size=len(directions)) * 1e-15
    result = right(generators.astype(float), directions.astype(float)) * (1 + noise)
    return result.astype(generators.dtype)


_shared: dict[str, Any] = {}


def keeps_its_work_in_a_global(generators: Any, directions: Any) -> Any:
    _shared["x"] = 0 * directions[:, 0]
    for x in generators:
        _shared["x"] = _shared["x"] + np.maximum(directions @ x, 0)
        time.sleep(1e-5)
    return _shared["x"].astype(generators.dtype)


@pytest.mark.parametrize(
    ("kernel", "caught_by"),
    [
        (wrong_by_a_little, "agrees_with_reference"),
        (wrong_for_one_column, "agrees_with_reference"),
        (wrong_dtype, "agrees_with_reference"),
        (wrong_shape, "agrees_with_reference"),
        (wrong_type, "agrees_with_reference"),
        (writes_into_its_input, "leaves_inputs_alone"),
        (returns_its_input, "leaves_inputs_alone"),
        (trusts_the_memory_order, "takes_any_layout"),
        (never_the_same, "repeats_exactly"),
        (wrong_for_one_column, "obeys_relations"),
        (keeps_its_work_in_a_global, "works_from_four_threads"),
    ],
)
def test_a_broken_kernel_is_caught(kernel: Callable[..., Any], caught_by: str) -> None:
    failed = set()
    for name, check in backend_checks(backend_with(kernel)):
        if caught_by in name:
            try:
                check()
            except (ContractViolation, ValueError, AttributeError):
                failed.add(name)
    assert failed


def test_inputs_that_change_are_noticed_in_other_libraries_too() -> None:
    """A library without read-only arrays cannot refuse the write; the values tell."""
    pytest.importorskip("torch")

    def spoil(generators: Any, directions: Any) -> Any:
        result = (directions @ generators.T).clamp(min=0).sum(1)
        generators.mul_(2.0)
        return result

    backend = backend_with(
        spoil, array_types=(("torch", "Tensor"),), namespace="array_api_compat.torch"
    )
    with pytest.raises(ContractViolation, match="an input was changed"):
        dict(backend_checks(backend))[f"{KERNEL}/leaves_inputs_alone[float64]"]()


def test_a_kernel_that_cannot_be_pickled_is_caught() -> None:
    backend = backend_with(lambda generators, directions: right(generators, directions))
    with pytest.raises(ContractViolation, match=r"pickles: .*lambda"):
        check_backend(backend)


def test_a_false_announcement_is_caught() -> None:
    info = BackendInfo(name="boaster", target="nowhere:X")
    boaster = Backend(info=info, kernels={KERNEL: right})
    with pytest.raises(ContractViolation, match="announces"):
        dict(backend_checks(boaster))["tells_the_truth"]()


def test_the_report_and_the_expected_failures() -> None:
    good = backend_with(right)
    report = check_backend(good)
    assert (
        repr(report)
        == f"ContractReport('broken', passed={len(report.passed)}, expected_failures=0)"
    )
    assert len(report.passed) == len(backend_checks(good))

    slightly = backend_with(wrong_by_a_little)
    with pytest.raises(ContractViolation, match=r"breaks \d+ of its promises") as caught:
        check_backend(slightly)
    ids = [line[2:].split(": ")[0] for line in str(caught.value).splitlines()[1:]]
    assert all(i.startswith("zonotope_support/") for i in ids)
    again = check_backend(slightly, expected_failures=dict.fromkeys(ids, "known"))
    assert set(again.expected_failures) == set(ids)

    with pytest.raises(ContractViolation, match="was expected to fail"):
        check_backend(good, expected_failures={ids[0]: "mended since"})
    with pytest.raises(ContractViolation, match="there is no such check"):
        check_backend(good, expected_failures={"zonotope_support/no": "typo"})


def test_a_backend_that_is_not_registered_is_named() -> None:
    with pytest.raises(BackendNotFound, match="'cupy'"):
        backend_checks("cupy")


@pytest.mark.parametrize("kernel", list(Kernel))
def test_problems_are_the_same_every_time_and_exact_in_float32(kernel: Kernel) -> None:
    for a, b, c in zip(
        problems(kernel), problems(kernel), problems(kernel, "float32"), strict=True
    ):
        assert a.name == b.name
        for x, y, z in zip(a.arrays, b.arrays, c.arrays, strict=True):
            assert np.array_equal(x, y)
            assert np.array_equal(x, z)
    names = [p.name for p in problems(kernel)]
    assert len(set(names)) == len(names)


def test_deviation_is_relative_and_sees_shapes_and_nan() -> None:
    assert deviation([2.0, 0.0], [2.0, 1e-3]) == pytest.approx(5e-4)
    assert deviation([1e-3], [0.0]) == 1e-3
    assert deviation([], []) == 0.0
    assert deviation([1.0], [[1.0]]) == np.inf
    assert deviation([np.nan], [1.0]) == np.inf


def test_every_kernel_has_a_tolerance_with_a_reason() -> None:
    for kernel in Kernel:
        for dtype in ("float32", "float64"):
            assert tolerance(str(kernel), dtype).reason
    with pytest.raises(InvalidInputError, match=r"'nothing' in float64.*finite_differences"):
        tolerance("nothing")


def test_the_suite_runs_without_pytest() -> None:
    code = (
        "from fishertope.core.testing import backend_checks\n"
        "for name, check in backend_checks('reference'):\n"
        "    if name.startswith('sign_patterns'): check()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
