"""The merging kernels for NumPy arrays: adapters around the compiled loops.

One call runs on one thread: whoever streams a checkpoint shares the blocks out. Beside float32
and float64, sources may be as checkpoints store them: float16, or bfloat16 as its bits in uint16.
"""

from __future__ import annotations

import numpy as np

from ...core.types import FloatArray, IntArray, NumpyArray
from ._kept_code import Files, kept_code

# Two or three terms in float32 decide a bfloat16's rounding wrongly less often than 1e-4.
_FEW_SOURCES = 3


def merge_linear(
    sources: NumpyArray, weights: FloatArray, totals: FloatArray, *, out: NumpyArray | None = None
) -> tuple[NumpyArray, IntArray]:
    """S_k x_r + Σ_i w_ki (x_i − x_r) (k, p) in the dtype of the sources, and counts (k,).

    The sums go into ``out`` where one is given.
    """
    work = _work(sources, few=len(sources) <= _FEW_SOURCES)
    w = np.array(weights, dtype=work, order="C")
    references = np.argmax(np.abs(w), axis=1)
    x = _ready(sources)
    out = _room(out, (len(w), x.shape[1]), x.dtype)
    bad = np.zeros(len(w), dtype=np.int64)
    s = np.array(totals, dtype=work)
    if x.dtype == np.uint16 and len(x) == 2 and _linear_pairs(x, w, s, references, out):
        return out, bad
    from ._merge_kernels import linear

    linear(x, w, s, references, out, bad)
    return _stored(out, sources.dtype, bad)


def linear_from_files(
    files: Files, weights: FloatArray, totals: FloatArray, room: NumpyArray, size: int
) -> bool:
    """:func:`merge_linear` of two bfloat16 tensors from file to file; false if not everything went.

    Parameters
    ----------
    files : three pairs (descriptor, bytes)
        The two sources in their order and the result, with the place of the first entry in each.
    weights, totals : float64 arrays (1, 2), (1,)
    room : uint16 array (3, step)
        The step in which entries are read.
    size : int
        Entries.
    """
    code = kept_code()
    if code is None:
        return False
    r = int(np.argmax(np.abs(weights[0].astype(np.float32))))
    numbers = float(np.float32(weights[0, 1 - r])), float(np.float32(totals[0]))
    return code.linear_files((files[r], files[1 - r], files[2]), numbers, room, size)


def _linear_pairs(
    x: NumpyArray, w: FloatArray, s: FloatArray, references: IntArray, out: NumpyArray
) -> bool:
    """The merge of two sources in bfloat16 bits; false where a result is not finite."""
    code = kept_code()
    for k, r in enumerate(references):
        numbers = float(w[k, 1 - r]), float(s[k])
        if code is not None:
            done = code.linear(x[r], x[1 - r], *numbers, out[k])
        else:
            from ._merge_kernels import linear_pair

            weight, total = (np.float32(v) for v in numbers)
            done = linear_pair(x[r], x[1 - r], weight, total, out[k], out.shape[1])
        if not done:
            return False
    return True


def merge_diagonal(
    sources: NumpyArray,
    precisions: NumpyArray,
    weights: FloatArray,
    ridges: FloatArray,
    floors: FloatArray,
    *,
    out: NumpyArray | None = None,
) -> tuple[NumpyArray, IntArray, IntArray, IntArray]:
    """x_r + Σ_i p_i (x_i − x_r) / Σ_i p_i (k, p), with three counts (k,); into ``out`` if given."""
    narrow = precisions.dtype in (np.uint16, np.float32) and len(sources) <= _FEW_SOURCES
    work = _work(sources, few=narrow)
    w, ridge, floor = (np.array(a, dtype=work, order="C") for a in (weights, ridges, floors))
    x, f = _ready(sources), _ready(precisions)
    out = _room(out, (len(w), x.shape[1]), x.dtype)
    counts = np.zeros((3, len(w)), dtype=np.int64)
    pair = x.dtype == np.uint16 and len(x) == 2 and work is np.float32
    if pair and _diagonal_pairs(x, f, w, ridge, floor, out):
        return out, counts[0], counts[1], counts[2]
    from ._merge_kernels import diagonal

    diagonal(x, f, w, ridge, floor, out, counts)
    merged, bad = _stored(out, sources.dtype, counts[0])
    return merged, bad, counts[1], counts[2]


def _diagonal_pairs(
    x: NumpyArray,
    f: NumpyArray,
    w: FloatArray,
    ridge: FloatArray,
    floor: FloatArray,
    out: NumpyArray,
) -> bool:
    """The merge of two sources in bfloat16 bits; false where it needs a closer look."""
    code = kept_code()
    for k in range(len(w)):
        numbers = tuple(float(v) for v in (*w[k], *ridge[k], *floor))
        if code is not None:
            done = code.diagonal(x, f, numbers, out[k])
        else:
            from ._merge_kernels import diagonal_pair

            w0, w1, r0, r1, f0, f1 = (np.float32(v) for v in numbers)
            done = diagonal_pair(
                x[0], x[1], f[0], f[1], w0, w1, r0, r1, f0, f1, out[k], out.shape[1]
            )
        if not done:
            return False
    return True


def _room(
    out: NumpyArray | None, shape: tuple[int, int], dtype: np.dtype[np.generic]
) -> NumpyArray:
    """``out`` where it fits: float16 is merged in a wider dtype first."""
    if out is None or out.dtype != dtype or out.shape != shape:
        return np.empty(shape, dtype=dtype)
    return out


def _work(sources: NumpyArray, *, few: bool) -> type[np.floating]:
    """The dtype of the arithmetic: float64, unless few bfloat16 are added."""
    return np.float32 if sources.dtype == np.uint16 and few else np.float64


def _ready(x: NumpyArray) -> NumpyArray:
    """Contiguous and writable (numba compiles again for others); float16, which it lacks, wider."""
    wide = x.astype(np.float64) if x.dtype == np.float16 else x
    return np.require(wide, requirements=["C", "W"])


def _stored(
    out: NumpyArray, dtype: np.dtype[np.generic], bad: IntArray
) -> tuple[NumpyArray, IntArray]:
    """The results in the dtype of the sources; what overflows on the way is counted."""
    if out.dtype == dtype:
        return out, bad
    with np.errstate(over="ignore"):
        half = out.astype(dtype)
    return half, np.count_nonzero(~np.isfinite(half), axis=1).astype(np.int64)


def diagonal_from_files(
    files: Files,
    weights: FloatArray,
    ridges: FloatArray,
    floors: FloatArray,
    room: NumpyArray,
    size: int,
) -> bool:
    """:func:`merge_diagonal` of two bfloat16 tensors with float32 precisions, from file to file.

    ``files``: the sources, their precisions, the result; ``room`` (7, step). The rest as in
    :func:`linear_from_files`; false too where a precision is negative or none is positive.
    """
    code = kept_code()
    if code is None:
        return False
    numbers = np.concatenate([weights[0], ridges[0], floors]).astype(np.float32)
    return code.diagonal_files(files, tuple(float(v) for v in numbers), room, size)


# Whoever streams checkpoints asks the kernels for it.
merge_linear.from_files = linear_from_files  # type: ignore[attr-defined]
merge_diagonal.from_files = diagonal_from_files  # type: ignore[attr-defined]
