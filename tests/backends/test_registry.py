"""Names, errors, the rule of choice, and conversion at the door."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fishertope.core.backend import (
    Backend,
    BackendInfo,
    Kernel,
    available_backends,
    enter,
    get_backend,
    like,
    registered_backends,
    registry,
    select_backend,
    to_backend,
    to_numpy,
)
from fishertope.core.errors import (
    ArrayTypeError,
    BackendNotFound,
    BackendUnavailable,
    FishertopeError,
    InvalidInputError,
    KernelUnsupported,
)

ABSENT = BackendInfo(name="absent", target="nowhere:X", requires=("surely_not_there",))


def register(monkeypatch: pytest.MonkeyPatch, *infos: object) -> None:
    """Let these infos appear as entry points of installed packages."""
    module = SimpleNamespace(**{f"INFO{i}": info for i, info in enumerate(infos)})
    monkeypatch.setitem(sys.modules, "a_plugin", module)  # type: ignore[arg-type]
    points = [(f"p{i}", f"a_plugin:INFO{i}") for i in range(len(infos))]
    monkeypatch.setattr(registry, "_plugins", lambda path: points)


def one_kernel(name: str = "partial", *, fallback: str | None = None) -> Backend:
    info = BackendInfo(
        name=name,
        target="nowhere:X",
        kernels=frozenset({Kernel.ZONOTOPE_SUPPORT}),
        fallback=fallback,
    )
    kernel = get_backend("reference").raw(Kernel.ZONOTOPE_SUPPORT)
    return Backend(info=info, kernels={Kernel.ZONOTOPE_SUPPORT: kernel})


def test_our_three_backends_are_registered_and_the_preferred_come_first() -> None:
    assert {"reference", "numba", "torch"} <= set(registered_backends())
    names = available_backends()
    assert "reference" in names
    priorities = [registered_backends()[n].priority for n in names]
    assert priorities == sorted(priorities, reverse=True)


def test_listing_the_backends_imports_none_of_them() -> None:
    code = (
        "import sys; from fishertope.core.backend import available_backends; available_backends();"
        "loaded = {'torch', 'numba', 'joblib'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_contract_suite_imports_no_backend_and_no_test_framework() -> None:
    code = (
        "import sys; import fishertope.core.testing as t; list(t.backend_checks('torch'));"
        "loaded = {'torch', 'numba', 'joblib', 'pytest'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        BackendNotFound, match=r"There is no backend 'jax'.*numba.*reference.*torch"
    ):
        get_backend("jax")
    assert issubclass(BackendNotFound, ValueError)


def test_a_missing_package_is_named_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ABSENT)
    with pytest.raises(BackendUnavailable, match=r"needs surely_not_there.*pip install surely_not"):
        get_backend("absent")
    assert issubclass(BackendUnavailable, ImportError)
    assert "absent" not in available_backends()
    with pytest.raises(BackendUnavailable, match=r"pip install 'fishertope\[torch\]'"):
        replace(ABSENT, extra="torch").load()


def test_a_kernel_that_nobody_has() -> None:
    backend = one_kernel()
    assert Kernel.ZONOTOPE_SUPPORT in backend
    with pytest.raises(KernelUnsupported, match=r"no kernel 'nnls_gram' .*zonotope_support"):
        backend.raw(Kernel.NNLS_GRAM)
    with pytest.raises(KernelUnsupported):
        select_backend(np.zeros(1), backend=backend, kernel=Kernel.NNLS_GRAM)
    assert issubclass(KernelUnsupported, NotImplementedError)


def test_a_name_taken_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, replace(ABSENT, name="reference"))
    with pytest.raises(FishertopeError, match="'reference', which is taken"):
        registered_backends()


def test_an_entry_point_that_is_no_backend_info_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, {"name": "mine"})
    with pytest.raises(FishertopeError, match=r"gives a dict.*BackendInfo"):
        registered_backends()


class TestAuto:
    """The table in the docstring of select_backend, line by line."""

    def test_numpy_goes_to_numba(self) -> None:
        pytest.importorskip("numba")
        assert select_backend(np.zeros(3), np.zeros(2)).name == "numba"

    def test_torch_goes_to_torch(self) -> None:
        torch = pytest.importorskip("torch")
        assert select_backend(torch.zeros(3)).name == "torch"

    def test_numpy_goes_to_the_reference_where_numba_is_missing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "fishertope.core.backend.info.find_spec", lambda name: None if name == "numba" else 1
        )
        assert select_backend(np.zeros(3)).name == "reference"

    def test_a_kernel_decides_among_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        proud = replace(one_kernel("proud").info, priority=1000)
        register(monkeypatch, proud)
        assert select_backend(np.zeros(3), kernel=Kernel.NNLS_GRAM).name in {"numba", "reference"}

    def test_sizes_do_not_matter(self) -> None:
        names = {select_backend(np.zeros(n)).name for n in (0, 1, 100_000)}
        assert len(names) == 1

    @pytest.mark.parametrize("arrays", [(), ([1.0, 2.0],), (np.zeros(2), [1.0])])
    def test_lists_and_nothing_are_refused(self, arrays: tuple[object, ...]) -> None:
        with pytest.raises(ArrayTypeError, match="goes by the arrays' type"):
            select_backend(*arrays)

    def test_mixed_libraries_are_refused_by_name(self) -> None:
        torch = pytest.importorskip("torch")
        with pytest.raises(ArrayTypeError, match=r"numpy\.ndarray, torch\.Tensor"):
            select_backend(np.zeros(2), torch.zeros(2))

    def test_a_subclass_counts_as_its_parent(self) -> None:
        torch = pytest.importorskip("torch")
        assert select_backend(torch.nn.Parameter(torch.zeros(2))).name == "torch"
        assert select_backend(np.zeros(3).view(np.recarray)).name in {"numba", "reference"}


def test_a_backend_object_and_a_name_are_used_as_given() -> None:
    backend = one_kernel()
    assert select_backend(np.zeros(1), backend=backend) is backend
    assert select_backend(np.zeros(1), backend="reference").name == "reference"
    assert get_backend("reference") is get_backend("reference")


def test_a_borrowed_kernel_gives_the_lenders_answer_in_our_arrays() -> None:
    torch = pytest.importorskip("torch")
    torch_like = replace(
        registered_backends()["torch"],
        name="torch-like",
        kernels=frozenset(),
        fallback="reference",
    )
    backend = Backend(info=torch_like, kernels={})
    assert Kernel.SIGN_PATTERNS not in backend
    generators, directions = torch.eye(2, dtype=torch.float32), -torch.ones((1, 2))
    signs = backend[Kernel.SIGN_PATTERNS](generators, directions)
    assert isinstance(signs, torch.Tensor)
    assert signs.dtype == torch.int8
    assert signs.tolist() == [[-1, -1]]
    rows = torch.ones((3, 2))
    products, sums = backend[Kernel.LOWRANK_PRODUCTS](rows, torch.tensor([0, 3]), rows[:1])
    assert products.tolist() == [[2.0]] * 3
    assert sums.tolist() == [[12.0]]


class TestDoor:
    def test_in_and_out_again(self) -> None:
        torch = pytest.importorskip("torch")
        door = enter(np.arange(3.0), np.ones((2, 2)), backend="torch")
        assert all(isinstance(a, torch.Tensor) for a in door.arrays)
        assert door.arrays[0].dtype == torch.float64
        back = door.out(door.arrays[1] * 2)
        assert isinstance(back, np.ndarray)
        assert back.tolist() == [[2.0, 2.0], [2.0, 2.0]]

    def test_torch_to_numpy_backend_and_back(self) -> None:
        torch = pytest.importorskip("torch")
        door = enter(torch.ones(3, requires_grad=True), backend="reference")
        assert isinstance(door.arrays[0], np.ndarray)
        assert isinstance(door.out(door.arrays[0]), torch.Tensor)

    def test_nothing_is_copied_where_nothing_changes(self) -> None:
        x = np.zeros(3)
        assert enter(x, backend="reference").arrays[0] is x
        assert to_numpy(x) is x
        assert like(x, x) is x

    @pytest.mark.parametrize("make", ["reversed", "read-only"])
    def test_views_that_torch_refuses_are_copied(self, make: str) -> None:
        pytest.importorskip("torch")
        x = np.arange(4.0)
        if make == "reversed":
            x = x[::-1]
        else:
            x.setflags(write=False)
        assert to_backend(x, "torch").tolist() == x.tolist()

    def test_a_foreign_array_is_named(self) -> None:
        with pytest.raises(ArrayTypeError, match=r"builtins\.list was given"):
            to_numpy([1.0])
        with pytest.raises(ArrayTypeError, match="range is not an array"):
            like(np.zeros(2), range(2))

    def test_a_device_that_the_backend_lacks(self) -> None:
        with pytest.raises(ArrayTypeError, match=r"'reference' runs on cpu.*backend='torch'"):
            enter(np.zeros(2), backend="reference", device="cuda")
        with pytest.raises(ArrayTypeError, match="'quantum'"):
            enter(np.zeros(2), backend="reference", device="quantum")

    def test_cuda_where_there_is_none(self) -> None:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
        with pytest.raises(ArrayTypeError, match=r"sees no CUDA device.*device='cpu'"):
            enter(np.zeros(2), backend="torch", device="cuda")


DENSE = (np.zeros(8), np.zeros((1, 3)))
OPTIONS = {"sizes": (3, 2), "activation": "relu", "output": "gaussian"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": (3, 3)}, r"θ has 12 entries.*θ with 8 entries"),
        ({"sizes": (2, 2)}, "the inputs have 2 columns"),
        ({"sizes": (3,)}, "at least two whole numbers"),
        ({"sizes": (3, 2.0)}, "at least two whole numbers"),
        ({"sizes": (3, 0)}, "at least two whole numbers"),
        ({"activation": "gelu"}, r"activation='gelu'; one of relu, tanh, identity"),
        ({"output": "poisson"}, r"one of categorical, gaussian"),
        ({"reduced": 1}, "True or False"),
        ({"sweeps": 3}, r"the options \['sweeps'\]; it takes"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_accepted(
    changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        get_backend("reference")[Kernel.DENSE_FISHER_ROWS](*DENSE, **{**OPTIONS, **changed})


def test_a_missing_option_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"not given \['activation', 'output', 'sizes'\]"):
        get_backend("reference")[Kernel.DENSE_FISHER_ROWS](*DENSE)


@pytest.mark.parametrize("bad", [{"sweeps": -1}, {"sweeps": True}, {"tol": -1.0}, {"tol": None}])
def test_wrong_numbers_for_nnls(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="is accepted"):
        get_backend("reference")[Kernel.NNLS_GRAM](
            np.eye(2), np.ones((1, 2)), np.ones((1, 2)), **bad
        )


@pytest.mark.parametrize("offsets", [[1, 2], [0, 1], [0, 2, 1, 2], []])
def test_offsets_that_do_not_fit(offsets: list[int]) -> None:
    kernel = get_backend("reference")[Kernel.LOWRANK_PRODUCTS]
    with pytest.raises(InvalidInputError, match=r"offsets|n\+1 must be >= 1"):
        kernel(np.ones((2, 2)), np.array(offsets, dtype=np.int64), np.ones((1, 2)))
