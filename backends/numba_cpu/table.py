"""Which function is which kernel; numba is imported with the first one that needs it.

The merging kernels of a pair of checkpoints run without numba (:mod:`._kept_code`), and a command
that only merges must not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ...core.backend import Kernel
from .merging import merge_diagonal, merge_linear


def _later(kernel: Kernel) -> Callable[..., Any]:
    """The function of that name in :mod:`.kernels`, looked up when it is first called."""
    found: list[Callable[..., Any]] = []

    def call(*arrays: Any, **options: Any) -> Any:
        if not found:
            module = import_module(f"{__package__}.kernels")
            found.append(getattr(module, str(kernel)))
        return found[0](*arrays, **options)

    call.__name__ = call.__qualname__ = str(kernel)
    return call


KERNELS: dict[Kernel, Callable[..., Any]] = {
    **{kernel: _later(kernel) for kernel in Kernel},
    Kernel.MERGE_LINEAR: merge_linear,
    Kernel.MERGE_DIAGONAL: merge_diagonal,
}
