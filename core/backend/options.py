"""The options of kernels: which values are accepted, checked once for every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

from ..errors import InvalidInputError
from .kernel import Kernel
from .layout import dense_layout

ACTIVATIONS = ("relu", "tanh", "identity")
OUTPUTS = ("categorical", "gaussian")


def check_options(kernel: Kernel, arrays: Sequence[Any], options: dict[str, Any]) -> None:
    """Refuse options that the kernel does not know, that it misses, or whose value is wrong.

    Raises
    ------
    InvalidInputError
        Naming the option, the value given and those accepted.
    """
    spec = kernel.spec
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise InvalidInputError(
            f"{kernel} was given the options {unknown}; it takes {sorted(spec.options) or 'none'}."
        )
    missing = sorted(set(spec.required) - set(options))
    if missing:
        raise InvalidInputError(f"{kernel} was not given {missing}; these options are required.")
    for name, value in options.items():
        accepted = _ACCEPTED[name]
        if not accepted[1](value):
            raise InvalidInputError(
                f"{kernel} was given {name}={value!r}; {accepted[0]} is accepted."
            )
    if kernel is Kernel.SWEEP_CHAMBERS:
        _check_range(arrays[0], options)
    if "sizes" in options:
        _check_sizes(kernel, arrays, tuple(options["sizes"]))


def _check_range(rotated: Any, options: dict[str, Any]) -> None:
    """The level must exist, and the cells asked for must exist on it."""
    n, d = (int(s) for s in rotated.shape)
    level, start, count = (options[k] for k in ("level", "start", "count"))
    if level >= d:
        raise InvalidInputError(f"level={level} was given; 0 to {d - 1} is accepted for d = {d}.")
    cells = comb(n - 1, d - 1 - level)
    if start + count > cells:
        raise InvalidInputError(
            f"start={start}, count={count} were given; level {level} of {n} rows in {d} "
            f"dimensions has {cells} cells."
        )


def _check_sizes(kernel: Kernel, arrays: Sequence[Any], sizes: tuple[int, ...]) -> None:
    """``sizes`` must account for every entry of θ and for the width of the inputs."""
    theta, inputs = arrays[0], arrays[1]
    wanted = dense_layout(sizes)[-1].stop
    if theta.shape[0] != wanted or inputs.shape[1] != sizes[0]:
        raise InvalidInputError(
            f"{kernel} was given sizes={sizes}, so θ has {wanted} entries and the inputs have "
            f"{sizes[0]} columns; but θ with {int(theta.shape[0])} entries and inputs of shape "
            f"{tuple(int(s) for s in inputs.shape)} were given."
        )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sizes": (
        "a tuple (d0, ..., dL) of at least two whole numbers >= 1",
        lambda v: (
            isinstance(v, Sequence)
            and not isinstance(v, str)
            and len(v) >= 2
            and all(_is_count(d, 1) for d in v)
        ),
    ),
    "activation": (f"one of {', '.join(ACTIVATIONS)}", lambda v: v in ACTIVATIONS),
    "output": (f"one of {', '.join(OUTPUTS)}", lambda v: v in OUTPUTS),
    "reduced": ("True or False", lambda v: isinstance(v, bool)),
    "n_columns": ("a whole number >= 0", lambda v: _is_count(v, 0)),
    "level": ("a whole number >= 0", lambda v: _is_count(v, 0)),
    "start": ("a whole number >= 0", lambda v: _is_count(v, 0)),
    "count": ("a whole number >= 0", lambda v: _is_count(v, 0)),
    "sweeps": ("a whole number >= 0", lambda v: _is_count(v, 0)),
    "incumbent": (
        "a number, infinite for none",
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v == v,
    ),
    "tol": (
        "a number >= 0",
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0,
    ),
}
