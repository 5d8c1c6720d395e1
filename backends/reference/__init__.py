"""NumPy, written to be read beside the paper: the oracle of the tests and the fallback."""

from ...core.backend import BackendInfo

INFO = BackendInfo(
    name="reference",
    target="fishertope.backends.reference.kernels:KERNELS",
    priority=10,
)
