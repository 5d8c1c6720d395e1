"""PyTorch: one code for the CPU and for CUDA."""

from ...core.backend import BackendInfo, Kernel

INFO = BackendInfo(
    name="torch",
    target="fishertope.backends.torch_gpu.kernels:KERNELS",
    requires=("torch",),
    array_types=(("torch", "Tensor"),),
    namespace="array_api_compat.torch",
    devices=("cpu", "cuda"),
    priority=100,
    kernels=frozenset(Kernel)
    - {Kernel.CHAMBERS_AT, Kernel.SPLIT_CHAMBERS, Kernel.NEIGHBOUR_PROGRAMS},
    fallback="reference",
    extra="torch",
)
