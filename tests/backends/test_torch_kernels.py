"""What only the torch backend has: autograd, devices, other kinds of tensors."""

from __future__ import annotations

import numpy as np
import pytest

from fishertope.core.backend import Kernel, get_backend, to_backend
from fishertope.core.errors import ArrayTypeError
from fishertope.core.testing import deviation, problems, tolerance

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kernel", list(Kernel))
def test_tensors_that_require_a_gradient_are_read_as_constants(kernel: Kernel) -> None:
    problem = problems(kernel)[0]
    run = get_backend("torch")[kernel]
    plain = [to_backend(a, "torch") for a in problem.arrays]
    tracked = [t.clone().requires_grad_(t.is_floating_point()) for t in plain]
    expected, results = run(*plain, **problem.options), run(*tracked, **problem.options)
    for a, b in zip(
        expected if isinstance(expected, tuple) else (expected,),
        results if isinstance(results, tuple) else (results,),
        strict=True,
    ):
        assert torch.equal(a, b)
        assert not b.requires_grad
    assert all(t.grad is None for t in tracked)


def test_autograd_agrees_with_the_rows() -> None:
    """√p_c ∇ log p_c by backward passes through an nn.Module."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5), torch.nn.Tanh(),
        torch.nn.Linear(5, 3),
    ).double()  # fmt: skip
    x = torch.randn(4, 4, dtype=torch.float64)
    theta = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    rows = get_backend("torch")[Kernel.DENSE_FISHER_ROWS](
        theta, x, sizes=(4, 6, 5, 3), activation="tanh", output="categorical", reduced=False
    )
    for i in range(len(x)):
        log_p = torch.log_softmax(net(x[i]), dim=-1)
        for c in range(3):
            gradients = torch.autograd.grad(log_p[c], list(net.parameters()), retain_graph=True)
            score = torch.cat([g.flatten() for g in gradients])
            expected = (log_p[c] / 2).exp().detach() * score
            assert deviation(rows[i, c], expected) < tolerance("identity").relative


def test_the_default_dtype_does_not_matter() -> None:
    problem = problems(Kernel.DENSE_FISHER_ROWS)[0]
    run = get_backend("torch")[Kernel.DENSE_FISHER_ROWS]
    given = [to_backend(a, "torch") for a in problem.arrays]
    expected = run(*given, **problem.options)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(run(*given, **problem.options), expected)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64", "bool"])
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    x = torch.ones((2, 2)).to(getattr(torch, dtype))
    with pytest.raises(ArrayTypeError, match=f"dtype {dtype} was given; .*float32, float64"):
        get_backend("torch")[Kernel.ZONOTOPE_SUPPORT](x, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", list(Kernel))
def test_cuda_agrees_with_the_cpu(kernel: Kernel, dtype: str) -> None:
    run = get_backend("torch")[kernel]
    for problem in problems(kernel, dtype):
        if problem.options.get("sweeps", 0) > 100:
            continue  # where a stopping rule decides, the devices may stop a sweep apart
        results = [
            run(*(to_backend(a, "torch", device=d) for a in problem.arrays), **problem.options)
            for d in ("cpu", "cuda")
        ]
        cpu, cuda = (r if isinstance(r, tuple) else (r,) for r in results)
        for a, b in zip(cpu, cuda, strict=True):
            assert b.device.type == "cuda"
            assert deviation(np.asarray(b.cpu()), a) <= tolerance("devices", dtype).relative
