"""The checks in front of a kernel: who may come in, and what is said to those who may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ArrayTypeError, InvalidInputError
from .info import Backend
from .kernel import Argument, Kernel
from .options import check_options


@dataclass(frozen=True, slots=True)
class Guarded:
    """A kernel that checks its arguments against its :class:`KernelSpec`; picklable.

    Raises
    ------
    ArrayTypeError
        Arrays of another library, mixed or unsupported dtypes, mixed devices.
    InvalidInputError
        Wrong number of dimensions, sizes that disagree, NaN or infinite entries, negative
        entries where none are allowed, offsets that do not fit, unknown, missing or wrong options.
    """

    backend: Backend
    kernel: Kernel

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        """Check, then run."""
        check_call(self.backend, self.kernel, arrays, options)
        return self.backend.raw(self.kernel)(*arrays, **options)


def check_call(
    backend: Backend, kernel: Kernel, arrays: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Raise the documented error if these arguments do not fit the kernel's contract."""
    spec = kernel.spec
    if len(arrays) != len(spec.arguments):
        wanted = ", ".join(f"{a.name} ({a.shape})" for a in spec.arguments)
        raise InvalidInputError(
            f"{kernel} was given {len(arrays)} arrays; it takes {len(spec.arguments)}: {wanted}."
        )
    sizes: dict[str, tuple[int, str]] = {}
    floats: list[tuple[Argument, Any]] = []
    for argument, array in zip(spec.arguments, arrays, strict=True):
        where = f"{kernel}, argument {argument.name!r}"
        if not backend.info.takes(array):
            wanted = " or ".join(f"{m}.{c}" for m, c in backend.info.array_types)
            raise ArrayTypeError(
                f"{where}: a {_type_name(array)} was given; the backend {backend.name!r} takes "
                f"{wanted}. Convert it with fishertope.to_backend(x, {backend.name!r})."
            )
        _check_shape(where, argument, array, sizes)
        dtype = dtype_name(array)
        if argument.integer:
            if dtype != "int64":
                raise ArrayTypeError(f"{where}: dtype {dtype} was given; int64 is taken.")
            if not argument.below:
                check_offsets(where, array, sizes)
            continue
        if dtype not in backend.info.dtypes:
            raise ArrayTypeError(
                f"{where}: dtype {dtype} was given; the backend {backend.name!r} takes "
                f"{', '.join(backend.info.dtypes)}. Convert the array first."
            )
        floats.append((argument, array))
        check_finite(where, array, backend.xp, nonnegative=argument.nonnegative)
    for name in spec.nonempty:
        if sizes[name][0] == 0:
            raise InvalidInputError(
                f"{kernel} was given {sizes[name][1]!r} with {name} = 0; at least one is needed."
            )
    check_options(kernel, arrays, options)
    for argument, array in zip(spec.arguments, arrays, strict=True):
        if argument.below:
            end = sizes[argument.below][0] if argument.below in sizes else options[argument.below]
            check_indices(f"{kernel}, argument {argument.name!r}", array, end)
    if len({dtype_name(a) for _, a in floats}) > 1:
        given = ", ".join(f"{g.name}: {dtype_name(a)}" for g, a in floats)
        raise ArrayTypeError(f"{kernel} was given mixed dtypes ({given}); give all the same one.")
    devices = {str(getattr(a, "device", "cpu")) for a in arrays}
    if len(devices) > 1:
        raise ArrayTypeError(
            f"{kernel} was given arrays on {', '.join(sorted(devices))}; put all on one device."
        )


def dtype_name(array: Any) -> str:
    """The dtype as a bare word, for NumPy ("float64") and torch ("torch.float64") alike."""
    return str(array.dtype).rsplit(".", 1)[-1]


def check_finite(where: str, array: Any, xp: Any, *, nonnegative: bool = False) -> None:
    """Refuse NaN, infinite and (if asked) negative entries, and say how many there are."""
    if 0 in array.shape:
        return
    if not bool(xp.all(xp.isfinite(array))):
        bad = int(xp.sum(xp.astype(~xp.isfinite(array), xp.int64)))
        raise InvalidInputError(
            f"{where}: {bad} of {_size(array)} entries are NaN or infinite; finite entries are "
            "taken. Look for examples whose model output overflows, and drop or fix them."
        )
    if nonnegative and bool(xp.any(array < 0)):
        raise InvalidInputError(
            f"{where}: the smallest entry is {float(xp.min(array)):.3g}; entries must be >= 0."
        )


def check_offsets(where: str, offsets: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """Offsets start at 0, never decrease, and end at the number of rows."""
    rows = sizes.get("h", (None, ""))[0]
    last = int(offsets[-1])
    if int(offsets[0]) != 0 or last != rows or bool((offsets[1:] < offsets[:-1]).any()):
        raise InvalidInputError(
            f"{where}: offsets must start at 0, never decrease and end at the number of rows "
            f"({rows}); these run from {int(offsets[0])} to {last}."
        )


def check_indices(where: str, indices: Any, end: int) -> None:
    """Indices lie in [0, end)."""
    if 0 not in indices.shape and (int(indices.min()) < 0 or int(indices.max()) >= end):
        raise InvalidInputError(
            f"{where}: indices from {int(indices.min())} to {int(indices.max())} were given; "
            f"0 to {end - 1} are accepted."
        )


def _check_shape(
    where: str, argument: Argument, array: Any, sizes: dict[str, tuple[int, str]]
) -> None:
    names = argument.shape.split()
    shape = tuple(int(s) for s in array.shape)
    if len(shape) != len(names):
        raise InvalidInputError(
            f"{where}: shape {shape} was given; {len(names)} axes are taken ({argument.shape})."
        )
    for name, size in zip(names, shape, strict=True):
        base, extra = (name[:-2], 1) if name.endswith("+1") else (name, 0)
        if size < extra:
            raise InvalidInputError(f"{where}: shape {shape} was given; {name} must be >= {extra}.")
        known = sizes.setdefault(base, (size - extra, argument.name))
        if known[0] != size - extra:
            raise InvalidInputError(
                f"{where}: shape {shape} was given, so {base} = {size - extra}; but {base} = "
                f"{known[0]} from {known[1]!r}. The sizes must agree."
            )


def _type_name(array: Any) -> str:
    return f"{type(array).__module__.split('.')[0]}.{type(array).__qualname__}"


def _size(array: Any) -> int:
    size = 1
    for s in array.shape:
        size *= int(s)
    return size
