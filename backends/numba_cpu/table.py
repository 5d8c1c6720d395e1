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


class _Later:
    """The function of a kernel in :mod:`.kernels`, looked up when it is first called; pickles."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.__name__ = self.__qualname__ = str(kernel)
        self._found: Callable[..., Any] | None = None

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        found = self._found
        if found is None:
            found = self._found = getattr(import_module(f"{__package__}.kernels"), str(self.kernel))
        return found(*arrays, **options)

    def __reduce__(self) -> tuple[type[_Later], tuple[Kernel]]:
        return _Later, (self.kernel,)


KERNELS: dict[Kernel, Callable[..., Any]] = {
    **{kernel: _Later(kernel) for kernel in Kernel},
    Kernel.MERGE_LINEAR: merge_linear,
    Kernel.MERGE_DIAGONAL: merge_diagonal,
}
