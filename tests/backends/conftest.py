"""One fixture: every registered backend, called with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fishertope.core.backend import Kernel, get_backend, registered_backends, to_backend, to_numpy


@pytest.fixture(params=list(registered_backends()))
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``call(kernel, *numpy_arrays, **options)`` → NumPy arrays, on one backend after another."""
    missing = registered_backends()[request.param].missing()
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    backend = get_backend(request.param)

    def run(kernel: Kernel, *arrays: Any, **options: Any) -> Any:
        result = backend[kernel](*(to_backend(a, backend) for a in arrays), **options)
        if isinstance(result, tuple):
            return tuple(to_numpy(r) for r in result)
        return to_numpy(result)

    return run
