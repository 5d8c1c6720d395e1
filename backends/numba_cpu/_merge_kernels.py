"""Compiled loops of the merging kernels, over chunks that stay in the cache.

Sources may be float32, float64, or bfloat16 as its bits in uint16, decoded by a shift. The dtype
of the weights is that of the arithmetic. Every entry's sum runs over the sources in their order,
so the result does not depend on how the entries are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

CHUNK = 2048
# Numba widens integers after every operation; only narrowed again do they fill the vector units.
_u32 = np.uint32
_OPTIONS: Any = {"cache": True, "nogil": True, "error_model": "numpy"}


@intrinsic
def _fused(typingctx, a, b, c):  # type: ignore
    """a·b + c rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


def _added(total, weight, difference):  # type: ignore[no-untyped-def]
    """``total + weight * difference``; in float32 rounded once, so that fewer ties are missed."""
    raise NotImplementedError


@overload(_added, jit_options=_OPTIONS)
def _added_overload(total, weight, difference):  # type: ignore[no-untyped-def]
    if total == types.float32:
        return lambda total, weight, difference: _fused(weight, difference, total)  # type: ignore
    return lambda total, weight, difference: total + weight * difference


def _decode(row, source):  # type: ignore[no-untyped-def]
    """``row`` = the numbers of ``source``, of the same length."""
    raise NotImplementedError


def _encode(target, values):  # type: ignore[no-untyped-def]
    """``target`` = values, rounded to nearest, ties to even; how many of them are not finite."""
    raise NotImplementedError


@overload(_decode, jit_options=_OPTIONS)
def _decode_overload(row, source):  # type: ignore[no-untyped-def]
    if source.dtype.name != "uint16":

        def numbers(row, source):  # type: ignore[no-untyped-def]
            for j in range(len(row)):
                row[j] = source[j]

        return numbers

    def bits(row, source):  # type: ignore[no-untyped-def]
        wide = np.empty(len(row), dtype=np.uint32)
        for j in range(len(row)):
            wide[j] = _u32(_u32(source[j]) << _u32(16))
        values = wide.view(np.float32)
        for j in range(len(row)):
            row[j] = values[j]

    def bits_in_place(row, source):  # type: ignore[no-untyped-def]
        wide = row.view(np.uint32)
        for j in range(len(row)):
            wide[j] = _u32(_u32(source[j]) << _u32(16))

    return bits_in_place if row.dtype.name == "float32" else bits


@overload(_encode, jit_options=_OPTIONS)
def _encode_overload(target, values):  # type: ignore[no-untyped-def]
    if target.dtype.name != "uint16":

        def numbers(target, values):  # type: ignore[no-untyped-def]
            for j in range(len(target)):
                target[j] = values[j]
            zero = target.dtype.type(0)
            odd = zero
            for j in range(len(target)):
                odd = odd if abs(target[j]) < np.inf else zero + 1
            wrong = 0
            if odd != zero:
                for j in range(len(target)):
                    wrong += not np.isfinite(target[j])
            return wrong

        return numbers

    def bits(target, values):  # type: ignore[no-untyped-def]
        near = values.astype(np.float32)
        wide = near.view(np.uint32)
        worst = np.uint32(0)
        for j in range(len(target)):
            b = wide[j]
            code = _u32(_u32(b + _u32(0x7FFF)) + _u32(_u32(b >> _u32(16)) & _u32(1)))
            target[j] = np.uint16(_u32(code >> _u32(16)))
            # An infinity stays one when rounded; a NaN of many ones can wrap around.
            worst = max(worst, _u32(b & _u32(0x7F800000)), _u32(code & _u32(0x7F800000)))
        wrong = 0
        if worst == _u32(0x7F800000):
            for j in range(len(target)):
                if np.isnan(near[j]):  # it must not round to an infinity or to zero
                    target[j] = np.uint16(0x7FC0)
                wrong += (target[j] & np.uint16(0x7F80)) == np.uint16(0x7F80)
        return wrong

    return bits


@njit(**_OPTIONS)
def linear(sources, weights, totals, references, out, bad):  # type: ignore[no-untyped-def]
    """Linear merge (n, p) → (k, p); ``bad`` (k): results that are not finite."""
    n, n_out = sources.shape[0], weights.shape[0]
    decoded = np.empty((n, CHUNK), dtype=weights.dtype)
    sums = np.empty(CHUNK, dtype=weights.dtype)
    for at in range(0, sources.shape[1], CHUNK):
        length = min(CHUNK, sources.shape[1] - at)
        total = sums[:length]
        for i in range(n):
            _decode(decoded[i, :length], sources[i, at : at + length])
        for k in range(n_out):
            r = references[k]
            scale, base = totals[k], decoded[r, :length]
            for j in range(length):
                total[j] = scale * base[j]
            for i in range(n):
                if i != r:
                    w, x = weights[k, i], decoded[i, :length]
                    for j in range(length):
                        total[j] = _added(total[j], w, x[j] - base[j])
            # Where nothing moved the entry keeps its bits, the sign of zero among them.
            for j in range(length):
                total[j] = base[j] if total[j] == base[j] else total[j]
            bad[k] += _encode(out[k, at : at + length], total)


def _smallest_bits(x):  # type: ignore[no-untyped-def]
    """The smallest of the entries' bits as whole numbers: < 0 for a sign bit, 0 for a zero.

    Their order is that of the floats where these are positive, and it is found faster.
    """
    raise NotImplementedError


@overload(_smallest_bits, jit_options=_OPTIONS)
def _smallest_bits_overload(x):  # type: ignore[no-untyped-def]
    whole = np.int32 if x.dtype.name == "float32" else np.int64

    def smallest(x):  # type: ignore[no-untyped-def]
        bits = x.view(whole)
        least = whole(1)
        for j in range(len(bits)):
            least = min(least, bits[j])
        return least

    return smallest


@njit(**_OPTIONS)
def _begin(x, f, w, ridge, floor, base, best, total, low, high):  # type: ignore[no-untyped-def]
    """The first source: its value, its p, and its value as the range where p > 0."""
    zero, nan = base.dtype.type(0), base.dtype.type(np.nan)
    for j in range(len(x)):
        value = x[j]
        p = w * (floor if f[j] < floor else f[j]) + ridge
        base[j] = value
        best[j] = p
        total[j] = p
        value = value if p > zero else nan
        low[j] = value
        high[j] = value


@njit(**_OPTIONS)
def _weigh(x, f, w, ridge, floor, base, best, total, low, high):  # type: ignore[no-untyped-def]
    """Add one source: the value of the largest p, the sum of p, the range where p > 0."""
    zero = base.dtype.type(0)
    # Everything is loaded first, so that the compiler can choose without jumping.
    for j in range(len(x)):
        value, least, most, mean, peak = x[j], low[j], high[j], base[j], best[j]
        p = w * (floor if f[j] < floor else f[j]) + ridge
        better = p > peak
        base[j] = value if better else mean
        best[j] = p if better else peak
        total[j] += p
        lower = least if value >= least else value
        upper = most if value <= most else value
        low[j] = lower if p > zero else least
        high[j] = upper if p > zero else most


@njit(**_OPTIONS)
def _pull(x, f, w, ridge, floor, base, moment):  # type: ignore[no-untyped-def]
    """Add p (x − base)."""
    for j in range(len(x)):
        p = w * (floor if f[j] < floor else f[j]) + ridge
        moment[j] += p * (x[j] - base[j])


@njit(**_OPTIONS)
def _settle(base, moment, total, low, high):  # type: ignore[no-untyped-def]
    """``moment`` becomes base + moment / total, held inside the range."""
    for j in range(len(base)):
        value, least, most = base[j] + moment[j] / total[j], low[j], high[j]
        value = least if value < least else value
        value = most if value > most else value
        moment[j] = base[j] if value == base[j] else value


@njit(**_OPTIONS)
def diagonal(sources, precisions, weights, ridges, floors, out, counts):  # type: ignore[no-untyped-def]
    """Diagonal merge (n, p) → (k, p).

    ``counts`` (3, k): results that are not finite, entries without precision, precisions below 0.
    The mean is taken from the source with the largest precision at each entry.
    """
    n, n_out = sources.shape[0], weights.shape[0]
    values = np.empty((n, CHUNK), dtype=weights.dtype)
    given = np.empty((n, CHUNK), dtype=weights.dtype)
    # Five arrays, not five rows of one: the compiler sees that they do not overlap.
    base_, moment_, total_ = (
        np.empty(CHUNK, weights.dtype),
        np.empty(CHUNK, weights.dtype),
        np.empty(CHUNK, weights.dtype),
    )
    low_, high_ = np.empty(CHUNK, weights.dtype), np.empty(CHUNK, weights.dtype)
    zero, one = weights.dtype.type(0), weights.dtype.type(1)
    for at in range(0, sources.shape[1], CHUNK):
        length = min(CHUNK, sources.shape[1] - at)
        base, moment, total = base_[:length], moment_[:length], total_[:length]
        low, high = low_[:length], high_[:length]
        negative = 0
        for i in range(n):
            f = given[i, :length]
            _decode(values[i, :length], sources[i, at : at + length])
            _decode(f, precisions[i, at : at + length])
            if _smallest_bits(f) < 0:
                for j in range(length):
                    negative += f[j] < zero
        for k in range(n_out):
            counts[2, k] += negative
            _begin(
                values[0, :length], given[0, :length], weights[k, 0], ridges[k, 0], floors[0],
                base, moment, total, low, high,
            )  # fmt: skip
            for i in range(1, n):
                _weigh(
                    values[i, :length], given[i, :length], weights[k, i], ridges[k, i], floors[i],
                    base, moment, total, low, high,
                )  # fmt: skip
            for j in range(length):
                moment[j] = zero
            for i in range(n):
                _pull(
                    values[i, :length], given[i, :length], weights[k, i], ridges[k, i], floors[i],
                    base, moment,
                )  # fmt: skip
            if _smallest_bits(total) <= 0:
                for j in range(length):
                    if total[j] == zero:
                        total[j] = one
                        counts[1, k] += 1
            _settle(base, moment, total, low, high)
            counts[0, k] += _encode(out[k, at : at + length], moment)


def _number(stored):  # type: ignore[no-untyped-def]
    """One stored entry as float32."""
    raise NotImplementedError


@overload(_number, jit_options=_OPTIONS)
def _number_overload(stored):  # type: ignore[no-untyped-def]
    if stored.name == "uint16":

        def bits(stored):  # type: ignore[no-untyped-def]
            return np.uint32(_u32(stored) << _u32(16)).view(np.float32)

        return bits

    def number(stored):  # type: ignore[no-untyped-def]
        return np.float32(stored)

    return number


@njit(**_OPTIONS)
def _rounded(value):  # type: ignore[no-untyped-def]
    """A float32 as bfloat16 bits, and the larger exponent of before and after, as bits."""
    b = np.float32(value).view(np.uint32)
    code = _u32(_u32(b + _u32(0x7FFF)) + _u32(_u32(b >> _u32(16)) & _u32(1)))
    return np.uint16(_u32(code >> _u32(16))), max(
        _u32(b & _u32(0x7F800000)), _u32(code & _u32(0x7F800000))
    )


@njit(**_OPTIONS)
def linear_pair(base, other, weight, total, out, size):  # type: ignore[no-untyped-def]
    """:func:`linear` for two sources in bfloat16 bits, in registers; false if not finite.

    Arrays or addresses of ``size`` entries.
    """
    worst = _u32(0)
    for j in range(size):
        x = _number(base[j])
        value = _added(total * x, weight, _number(other[j]) - x)
        # Where nothing moved the entry keeps its bits, the sign of zero among them.
        code, exponent = _rounded(x if value == x else value)
        out[j] = code
        worst = max(worst, exponent)
    return worst < _u32(0x7F800000)


@njit(**_OPTIONS)
def diagonal_pair(x, y, f, g, w0, w1, r0, r1, floor0, floor1, out, size):  # type: ignore[no-untyped-def]
    """:func:`diagonal` for two sources in bfloat16 bits, in registers; whether it may stay so.

    Arrays or addresses of ``size`` entries; weights, ridges and floors of the two. It must be
    redone where a result is not finite, a precision negative, or none positive.
    """
    worst, signs, least = _u32(0), np.int32(0), np.int32(1)
    for j in range(size):
        a, b, fa, fb = _number(x[j]), _number(y[j]), _number(f[j]), _number(g[j])
        p = w0 * (floor0 if fa < floor0 else fa) + r0
        q = w1 * (floor1 if fb < floor1 else fb) + r1
        total = p + q
        better = q > p
        base, other, rest = (b if better else a), (a if better else b), (p if better else q)
        value = base + rest * (other - base) / total
        low, high = (a if a < b else b), (b if a < b else a)
        value = low if value < low else value
        value = high if value > high else value
        code, exponent = _rounded(base if value == base else value)
        out[j] = code
        worst = max(worst, exponent, _u32(np.float32(total).view(np.uint32) & _u32(0x7F800000)))
        signs = np.int32(signs | np.float32(fa).view(np.int32) | np.float32(fb).view(np.int32))
        least = min(least, np.float32(total).view(np.int32))
    return worst < _u32(0x7F800000) and signs >= 0 and least > 0


# Entries lie in files: positional reads and writes of the system, with the interpreter's lock free.
_pread = types.ExternalFunction(
    "pread", types.int64(types.int32, types.CPointer(types.uint16), types.int64, types.int64)
)
_pwrite = types.ExternalFunction(
    "pwrite", types.int64(types.int32, types.CPointer(types.uint16), types.int64, types.int64)
)


@njit(**_OPTIONS)
def linear_files(base, at, other, to, weight, total, target, place, x, y, out, step, size):  # type: ignore[no-untyped-def]
    """:func:`linear_pair` from two files into a third, ``step`` entries at a time; true if done.

    Descriptors with places in bytes, and room for ``step`` entries each at ``x``, ``y``, ``out``.
    """
    done = 0
    while done < size:
        length = min(step, size - done)
        bytes_ = 2 * length
        if _pread(base, x, bytes_, at + 2 * done) != bytes_:
            return False
        if _pread(other, y, bytes_, to + 2 * done) != bytes_:
            return False
        if not linear_pair(x, y, weight, total, out, length):
            return False
        if _pwrite(target, out, bytes_, place + 2 * done) != bytes_:
            return False
        done += length
    return True


@njit(**_OPTIONS)
def diagonal_files(  # type: ignore[no-untyped-def]
    base, at, other, to, first, f_at, second, g_at, w0, w1, r0, r1, floor0, floor1,
    target, place, x, y, out, f_room, g_room, f, g, step, size,
):  # fmt: skip
    """:func:`diagonal_pair` as :func:`linear_files`, with two files of precisions in float32.

    ``f`` and ``f_room`` are one address, as numbers and as what is read into; so are the others.
    """
    done = 0
    while done < size:
        length = min(step, size - done)
        bytes_ = 2 * length
        if _pread(base, x, bytes_, at + 2 * done) != bytes_:
            return False
        if _pread(other, y, bytes_, to + 2 * done) != bytes_:
            return False
        if _pread(first, f_room, 2 * bytes_, f_at + 4 * done) != 2 * bytes_:
            return False
        if _pread(second, g_room, 2 * bytes_, g_at + 4 * done) != 2 * bytes_:
            return False
        if not diagonal_pair(x, y, f, g, w0, w1, r0, r1, floor0, floor1, out, length):
            return False
        if _pwrite(target, out, bytes_, place + 2 * done) != bytes_:
            return False
        done += length
    return True
