"""Numba kernels for the CPU: compiled on first use, cached, threaded where order cannot matter."""

from ...core.backend import BackendInfo

INFO = BackendInfo(
    name="numba",
    target="fishertope.backends.numba_cpu.table:KERNELS",
    requires=("numba",),
    priority=100,
    half_bits=True,
    fallback="reference",
)
