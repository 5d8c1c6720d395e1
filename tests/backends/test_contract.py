"""Every registered backend keeps the public contract, on every device that is there."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from fishertope.core.backend import BackendInfo, registered_backends
from fishertope.core.testing import backend_checks


def required() -> set[str]:
    """Backends that this run promises to test."""
    return {n for n in os.environ.get("FISHERTOPE_REQUIRE_BACKENDS", "").split(",") if n}


CASES = [
    pytest.param(info, device, check, id=f"{info.name}-{device}-{name}")
    for info in registered_backends().values()
    for device in info.devices
    for name, check in backend_checks(info, device=device)
]


def skip_or_fail(info: BackendInfo, device: str) -> None:
    """Report what is not there; a job that claims to test a backend must not skip it."""
    missing = info.missing()
    if missing:
        message = f"backend {info.name!r} needs {', '.join(missing)}, which is not installed"
        if info.name in required():
            pytest.fail(f"{message}, but FISHERTOPE_REQUIRE_BACKENDS asks for it")
        pytest.skip(message)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")


@pytest.mark.parametrize(("info", "device", "check"), CASES)
def test_contract(info: BackendInfo, device: str, check: Callable[[], None]) -> None:
    skip_or_fail(info, device)
    check()


def test_required_backends_are_registered() -> None:
    unknown = required() - set(registered_backends())
    assert not unknown, f"FISHERTOPE_REQUIRE_BACKENDS names {unknown}, which nobody registers"


def test_a_required_backend_is_never_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = BackendInfo(name="absent", target="nowhere:X", requires=("surely_not_there",))
    with pytest.raises(pytest.skip.Exception, match="surely_not_there"):
        skip_or_fail(absent, "cpu")
    monkeypatch.setenv("FISHERTOPE_REQUIRE_BACKENDS", "numba,absent")
    with pytest.raises(pytest.fail.Exception, match="FISHERTOPE_REQUIRE_BACKENDS"):
        skip_or_fail(absent, "cpu")
