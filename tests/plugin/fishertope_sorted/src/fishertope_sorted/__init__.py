"""A backend that brings one kernel and borrows the rest from the reference."""

from fishertope.core.backend import BackendInfo, Kernel

INFO = BackendInfo(
    name="sorted",
    target="fishertope_sorted.kernels:KERNELS",
    requires=("numpy",),
    kernels=frozenset({Kernel.ZONOTOPE_SUPPORT}),
    fallback="reference",
)
