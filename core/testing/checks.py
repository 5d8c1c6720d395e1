"""The single checks of the contract; each raises :class:`ContractViolation` or an error."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Backend, Kernel, get_backend, to_backend, to_numpy
from ..backend.guard import dtype_name
from ..errors import ArrayTypeError, FishertopeError, InvalidInputError
from ..types import Device, NumpyArray
from .metamorphic import relations
from .problems import Problem, problems
from .tolerances import deviation, tolerance


class ContractViolation(FishertopeError, AssertionError):
    """A backend breaks its contract; the message says which promise, and how."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The backend under test and the device that its arrays lie on."""

    backend: Backend
    device: Device = None

    def give(self, x: NumpyArray) -> Any:
        """``x`` as an array of the backend."""
        return to_backend(x, self.backend, device=self.device)

    def call(self, problem: Problem) -> tuple[Any, ...]:
        """The guarded kernel's results, always as a tuple."""
        kernel = self.backend[problem.kernel]
        result = kernel(*(self.give(a) for a in problem.arrays), **problem.options)
        return result if isinstance(result, tuple) else (result,)

    def numpy(self, kernel: Kernel, *arrays: NumpyArray, **options: Any) -> Any:
        """The guarded kernel on NumPy arrays; NumPy arrays come back."""
        result = self.backend[kernel](*(self.give(a) for a in arrays), **options)
        if isinstance(result, tuple):
            return tuple(to_numpy(r) for r in result)
        return to_numpy(result)


def agrees_with_reference(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """Same values, shapes and dtypes as the NumPy reference in float64 on the same inputs.

    The problems include empty and single examples, one column, ragged and empty rows.
    """
    reference = get_backend("reference").raw(kernel)
    for problem in problems(kernel, dtype):
        exact = problem.astype("float64")
        expected = reference(*exact.arrays, **exact.options)
        expected = expected if isinstance(expected, tuple) else (expected,)
        results = subject.call(problem)
        if len(results) != len(expected):
            _fail(problem, f"{len(results)} arrays came back, {len(expected)} are due")
        for result, right in zip(results, expected, strict=True):
            wanted = right.dtype.name if right.dtype.kind == "i" else dtype
            _same_kind(subject, problem, result, right.shape, wanted)
            _close(problem, to_numpy(result), right, dtype, "against the reference")


def leaves_inputs_alone(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """Inputs keep their values, and a NumPy backend takes read-only ones."""
    problem = problems(kernel, dtype)[0]
    arrays = [a.copy() for a in problem.arrays]
    numpy_in = subject.backend.info.takes(arrays[0])
    for array in arrays:
        array.setflags(write=not numpy_in)
    given = [array if numpy_in else subject.give(array) for array in arrays]
    results = subject.backend[kernel](*given, **problem.options)
    for array, original in zip(given, problem.arrays, strict=True):
        if not np.array_equal(to_numpy(array), original):
            _fail(problem, "an input was changed")
    results = results if isinstance(results, tuple) else (results,)
    if numpy_in and any(np.shares_memory(r, a) for r in results for a in given):
        _fail(problem, "a result shares memory with an input")


def takes_any_layout(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """Fortran order, every other entry of a larger array, and axes that run backwards."""
    problem = problems(kernel, dtype)[0]
    expected = subject.call(problem)
    for name, view in _LAYOUTS.items():
        arrays = tuple(view(a) for a in problem.arrays)
        again = subject.call(
            Problem(kernel=kernel, name=name, arrays=arrays, options=problem.options)
        )
        for result, right in zip(again, expected, strict=True):
            _close(problem, to_numpy(result), to_numpy(right), dtype, f"layout {name}")


def refuses_nonfinite(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """One NaN or infinity in any float argument is an ``InvalidInputError``."""
    problem = problems(kernel, dtype)[0]
    for position, array in enumerate(problem.arrays):
        for bad in (np.nan, np.inf, -np.inf) if array.dtype.kind == "f" else ():
            spoiled = array.copy()
            spoiled.flat[spoiled.size // 2] = bad
            arrays = [*problem.arrays]
            arrays[position] = spoiled
            given = [subject.give(a) for a in arrays]
            _raises(subject, problem, given, InvalidInputError, f"{bad} in argument {position}")


def refuses_foreign_arrays(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """Lists, objects of other libraries, integers, half precision and mixed dtypes."""
    problem = problems(kernel, dtype)[0]
    given = [subject.give(a) for a in problem.arrays]
    for position, array in enumerate(problem.arrays):
        strangers = [array.tolist(), _Foreign(array)]
        if not subject.backend.info.takes(array):
            strangers.append(array)
        if array.dtype.kind == "f":
            other = "float64" if dtype == "float32" else "float32"
            strangers += [subject.give(array.astype(t)) for t in ("int64", "float16")]
            if sum(a.dtype.kind == "f" for a in problem.arrays) > 1:
                strangers.append(subject.give(array.astype(other)))
        else:
            strangers.append(subject.give(array.astype("int32")))
        for stranger in strangers:
            arrays: list[Any] = [*given]
            arrays[position] = stranger
            what = f"{type(stranger).__name__} {getattr(stranger, 'dtype', '')} as {position}"
            _raises(subject, problem, arrays, ArrayTypeError, what)


def refuses_wrong_shapes(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """An axis too many, one row too many, an argument or option too many, too few examples."""
    problem = problems(kernel, dtype)[0]
    given = [subject.give(a) for a in problem.arrays]
    _raises(subject, problem, given[:-1], InvalidInputError, "one argument too few")
    for position, array in enumerate(problem.arrays):
        arrays = [*given]
        arrays[position] = subject.give(array[None])
        _raises(subject, problem, arrays, InvalidInputError, "an axis too many")
    *others, last = (a.shape.split() for a in kernel.spec.arguments)
    if any(last[-1] in shape for shape in others):  # else that size is free
        arrays = [*given]
        arrays[-1] = subject.give(np.concatenate([problem.arrays[-1]] * 2, axis=-1))
        _raises(subject, problem, arrays, InvalidInputError, "a last axis twice as long")
    _raises(subject, problem, given, InvalidInputError, "an unknown option", no_such_option=1)
    for name in problem.options:
        _raises(subject, problem, given, InvalidInputError, f"{name}=None", **{name: None})
    for size in kernel.spec.nonempty:
        empty = [
            subject.give(a[:0] if argument.shape.split()[0] == size else a)
            for argument, a in zip(kernel.spec.arguments, problem.arrays, strict=True)
        ]
        _raises(subject, problem, empty, InvalidInputError, f"{size} = 0")


def repeats_exactly(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """The same input twice gives the same bits."""
    for problem in _ordinary_and_large(kernel, dtype):
        first, second = subject.call(problem), subject.call(problem)
        for a, b in zip(first, second, strict=True):
            if not np.array_equal(to_numpy(a), to_numpy(b)):
                _fail(problem, "two equal calls gave different results")


def works_from_four_threads(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """Eight calls on four Python threads agree with one call."""
    for problem in _ordinary_and_large(kernel, dtype):
        expected = subject.call(problem)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(subject.call, problem) for _ in range(8)]
            for future in waiting:
                for result, right in zip(future.result(), expected, strict=True):
                    _close(problem, to_numpy(result), to_numpy(right), dtype, "on four threads")


def obeys_relations(subject: Subject, kernel: Kernel, dtype: str) -> None:
    """What permuted, scaled, doubled and negated inputs must give: see ``metamorphic``."""
    limit = 20 * tolerance(str(kernel), dtype).relative  # the right-hand sides are rounded too
    for problem in problems(kernel, dtype):
        if problem.options.get("sweeps", 0) > 100:
            continue  # where a stopping rule decides, related inputs may stop a sweep apart
        for what, actual, expected in relations(kernel, subject.numpy, problem):
            found = deviation(actual, expected)
            if found > limit:
                _fail(problem, f"{what}: deviation {found:.2e}, accepted is {limit:.0e}")


def pickles(subject: Subject) -> None:
    """``backend[kernel]`` survives pickle and runs in two joblib worker processes."""
    import joblib

    chosen = [problems(kernel, dtype)[0] for kernel, dtype in _offered(subject)]
    copies = [pickle.loads(pickle.dumps(subject.backend[p.kernel])) for p in chosen]
    given = [[subject.give(a) for a in p.arrays] for p in chosen]
    for problem, copy, arrays in zip(chosen, copies, given, strict=True):
        _same_results(subject, problem, copy(*arrays, **problem.options))
    if subject.device is not None and not str(subject.device).startswith("cpu"):
        return  # tensors on an accelerator are not for another process
    jobs = (
        joblib.delayed(subject.backend[p.kernel])(*arrays, **p.options)
        for p, arrays in zip(chosen, given, strict=True)
    )
    for problem, result in zip(chosen, joblib.Parallel(n_jobs=2)(jobs), strict=True):
        _same_results(subject, problem, result)


def tells_the_truth(subject: Subject) -> None:
    """The kernels found are those that ``BackendInfo.kernels`` announces."""
    announced, found = subject.backend.info.kernels, set(subject.backend.kernels)
    if announced != found:
        raise ContractViolation(
            f"BackendInfo.kernels announces {sorted(announced)}, but the target holds "
            f"{sorted(found)}. Make them equal."
        )


KERNEL_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        agrees_with_reference,
        leaves_inputs_alone,
        takes_any_layout,
        refuses_nonfinite,
        refuses_foreign_arrays,
        refuses_wrong_shapes,
        repeats_exactly,
        works_from_four_threads,
        obeys_relations,
    )
}

BACKEND_CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check for check in (tells_the_truth, pickles)
}


class _Foreign:
    """An array of a library that nobody registered."""

    def __init__(self, array: NumpyArray) -> None:
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim


def _strided(x: NumpyArray) -> NumpyArray:
    wide = np.zeros([2 * s for s in x.shape], dtype=x.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def _reversed(x: NumpyArray) -> NumpyArray:
    backwards = tuple(slice(None, None, -1) for _ in x.shape)
    return x[backwards].copy()[backwards]


_LAYOUTS: dict[str, Callable[[NumpyArray], NumpyArray]] = {
    "Fortran": np.asfortranarray,
    "strided": _strided,
    "backwards": _reversed,
}


def _offered(subject: Subject) -> Iterator[tuple[Kernel, str]]:
    for kernel in Kernel:
        if kernel in subject.backend or subject.backend.info.fallback is not None:
            yield kernel, subject.backend.info.dtypes[-1]


def _ordinary_and_large(kernel: Kernel, dtype: str) -> tuple[Problem, ...]:
    made = problems(kernel, dtype)
    return made[0], max(made, key=lambda p: sum(a.size for a in p.arrays))


def _same_kind(
    subject: Subject, problem: Problem, result: Any, shape: tuple[int, ...], dtype: str
) -> None:
    if not subject.backend.info.takes(result):
        _fail(problem, f"a {type(result).__name__} came back, not an array of the backend")
    given = (tuple(int(s) for s in result.shape), dtype_name(result))
    if given != (shape, dtype):
        _fail(problem, f"shape and dtype {given} came back; {(shape, dtype)} are due")
    where, home = (str(getattr(x, "device", "")) for x in (result, subject.give(problem.arrays[0])))
    if where != home:
        _fail(problem, f"the result is on {where}, the inputs are on {home}")


def _same_results(subject: Subject, problem: Problem, results: Any) -> None:
    results = results if isinstance(results, tuple) else (results,)
    dtype = subject.backend.info.dtypes[-1]
    for result, right in zip(results, subject.call(problem), strict=True):
        _close(problem, to_numpy(result), to_numpy(right), dtype, "after pickling")


def _close(
    problem: Problem, actual: NumpyArray, expected: NumpyArray, dtype: str, what: str
) -> None:
    accepted, found = tolerance(str(problem.kernel), dtype), deviation(actual, expected)
    if found > accepted.relative:
        _fail(
            problem,
            f"{what}: deviation {found:.2e}, accepted is {accepted.relative:.0e} "
            f"({accepted.reason})",
        )


def _raises(
    subject: Subject,
    problem: Problem,
    arrays: list[Any],
    error: type[Exception],
    what: str,
    **changed: Any,
) -> None:
    options = {**problem.options, **changed}
    try:
        subject.backend[problem.kernel](*arrays, **options)
    except error:
        return
    except Exception as other:
        _fail(problem, f"{what}: {type(other).__name__} ({other}) instead of {error.__name__}")
    _fail(problem, f"{what}: accepted, although {error.__name__} is promised")


def _fail(problem: Problem, message: str) -> None:
    raise ContractViolation(f"{problem.kernel}, problem {problem.name!r}: {message}.")
