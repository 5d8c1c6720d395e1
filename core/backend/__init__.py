"""The kernel seam: kernels by name, backends by entry point, one rule of choice."""

from .convert import like as like, to_backend as to_backend, to_numpy as to_numpy
from .info import Backend as Backend, BackendInfo as BackendInfo
from .kernel import Argument as Argument, Kernel as Kernel, KernelSpec as KernelSpec
from .registry import (
    available_backends as available_backends,
    get_backend as get_backend,
    registered_backends as registered_backends,
)
from .select import (
    BackendChoice as BackendChoice,
    Door as Door,
    enter as enter,
    select_backend as select_backend,
)
from .threads import (
    current_threads as current_threads,
    default_threads as default_threads,
    thread_facts as thread_facts,
    thread_limit as thread_limit,
)
