"""Sign patterns, packed, and the dictionary between directions, patterns and vertices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DegenerateDirection, InvalidInputError
from ..types import Array, FloatArray, NumpyArray

_LARGEST_EXACT = 1 << 53


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sign vector s in {−1, +1}^n in ⌈n/64⌉ words of 64 bits; hashable and ordered.

    Bit i of the whole (word i // 64, bit i % 64) is 1 where s_i = +1.

    Examples
    --------
    >>> Pattern.from_signs([1, -1, 1])
    Pattern('+-+')
    >>> -Pattern.from_signs([1, -1, 1]) == Pattern.from_signs([-1, 1, -1])
    True
    """

    n: int
    words: tuple[int, ...]

    @classmethod
    def from_signs(cls, signs: Array) -> Pattern:
        """Pack ``signs`` (n,) of −1 and +1."""
        s = check_signs(np.asarray(signs)[None])
        return cls(s.shape[1], tuple(int(w) for w in pack(s)[0]))

    @property
    def signs(self) -> NumpyArray:
        """The sign vector as int8 (n,)."""
        signs: NumpyArray = unpack(np.array([self.words], dtype=np.uint64), self.n)[0]
        return signs

    @property
    def active(self) -> NumpyArray:
        """Indices with s_i = +1."""
        return np.flatnonzero(self.signs > 0)

    def flipped(self, index: int) -> Pattern:
        """The pattern with the sign of ``index`` turned: the other end of an edge."""
        if not 0 <= index < self.n:
            raise InvalidInputError(f"index {index} was given; 0 to {self.n - 1} is accepted.")
        words = list(self.words)
        words[index // 64] ^= 1 << (index % 64)
        return Pattern(self.n, tuple(words))

    def __neg__(self) -> Pattern:
        return Pattern.from_signs(-self.signs)

    def __repr__(self) -> str:
        signs = self.signs
        text = "".join("+" if s > 0 else "-" for s in signs[:64])
        return f"Pattern('{text}{'…' if self.n > 64 else ''}')"


def pack(signs: NumpyArray) -> NumpyArray:
    """Signs (k, n) as uint64 words (k, ⌈n/64⌉)."""
    k, n = signs.shape
    words = -(-n // 64)
    bits = np.zeros((k, 8 * words), dtype=np.uint8)
    packed = np.packbits(signs > 0, axis=1, bitorder="little")
    bits[:, : packed.shape[1]] = packed
    return bits.view("<u8").astype(np.uint64, copy=False).reshape(k, words)


def unpack(words: NumpyArray, n: int) -> NumpyArray:
    """Words (k, ⌈n/64⌉) as int8 signs (k, n)."""
    raw = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, count=n, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8, copy=False)


def check_signs(signs: Array, n: int | None = None) -> NumpyArray:
    """``signs`` as int8 (k, n), or an error that says where an entry is not −1 or +1."""
    s = np.asarray(signs)
    if s.ndim != 2 or (n is not None and s.shape[1] != n):
        want = f"(k, {n})" if n is not None else "(k, n)"
        raise InvalidInputError(f"Patterns of shape {s.shape} were given; {want} is accepted.")
    bad = np.argwhere(~np.isin(s, (-1, 1)))
    if len(bad):
        at = tuple(int(v) for v in bad[0])
        raise InvalidInputError(
            f"Pattern entry {at} is {s[at]}; −1 and +1 are accepted. A direction that is "
            "orthogonal to a row has no pattern: move it a little."
        )
    return s.astype(np.int8)


def check_generators(generators: Array) -> FloatArray:
    """Generators as float64 (n, d), n, d ≥ 1, or an error that names the offending rows.

    Raises
    ------
    InvalidInputError
        Wrong shape, NaN or infinite entries, rows of zeros, integers that float64 cannot hold.
    """
    raw = np.asarray(generators)
    if raw.ndim != 2 or raw.shape[0] < 1 or raw.shape[1] < 1:
        raise InvalidInputError(
            f"Generators of shape {raw.shape} were given; (n, d) with n, d >= 1 is accepted."
        )
    if raw.dtype.kind not in "fiub":
        raise InvalidInputError(
            f"Generators of dtype {raw.dtype} were given; real numbers are accepted."
        )
    if raw.dtype.kind in "iu":
        outside = ((raw > _LARGEST_EXACT) | (raw < -_LARGEST_EXACT)).any(axis=1)
        _refuse_rows(outside, "hold integers beyond 2^53, which float64 rounds", "rescale them")
    x = raw.astype(np.float64)
    _refuse_rows(~np.isfinite(x).all(axis=1), "hold NaN or infinite entries", "drop or fix them")
    _refuse_rows(~x.any(axis=1), "are zero and generate nothing", "drop them")
    return x


def _refuse_rows(bad: Array, what: str, cure: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise InvalidInputError(f"Rows {rows[:8].tolist()}{more} {what}; {cure}.")


def equilibrate(x: FloatArray) -> tuple[FloatArray, NumpyArray]:
    """Rows and columns scaled by powers of two to a largest modulus in [1/2, 1): exact.

    Returns the scaled rows and the column exponents c: a direction u of the scaled rows is the
    direction ldexp(u, −c) of ``x``, up to a positive factor, with the same signs.
    """
    scaled = x.copy()
    columns = np.zeros(x.shape[1], dtype=np.int64)
    for _ in range(3):
        _, e = np.frexp(np.abs(scaled).max(axis=1))
        scaled = np.ldexp(scaled, -e[:, None])
        top = np.abs(scaled).max(axis=0)
        _, e = np.frexp(top)
        e = np.where(top > 0, e, 0)
        scaled = np.ldexp(scaled, -e)
        columns += e
    _, e = np.frexp(np.abs(scaled).max(axis=1))
    return np.ldexp(scaled, -e[:, None]), columns


def pattern_of_direction(generators: Array, direction: Array, *, tol: float = 1e-12) -> Pattern:
    """sign(Xw), the vertex at which w is largest over the zonotope; O(n d).

    Raises
    ------
    DegenerateDirection
        If |x_i·w| ≤ tol ‖x_i‖‖w‖ for some row, which the message names.
    """
    x = check_generators(generators)
    w = np.asarray(direction, dtype=np.float64)
    if w.shape != x.shape[1:] or not np.isfinite(w).all():
        raise InvalidInputError(f"A direction of shape {w.shape} was given; {x.shape[1:]} is due.")
    unit = x / np.abs(x).max(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    length = np.abs(w).max()
    products = unit @ (w / length) if length > 0 else np.zeros(len(x))
    close = np.flatnonzero(np.abs(products) <= tol * np.linalg.norm(w / (length or 1.0)))
    if len(close):
        raise DegenerateDirection(
            f"The direction is orthogonal to rows {close[:8].tolist()} within {tol:g}; its "
            "pattern is not defined. Move the direction a little."
        )
    return Pattern.from_signs(np.where(products > 0, 1, -1))


def vertex_of_pattern(generators: Array, signs: Array) -> FloatArray:
    """p_s = Σ_{s_i=+1} x_i for patterns (k, n); returns (k, d)."""
    x = check_generators(generators)
    s = check_signs(signs, len(x))
    return np.asarray((s > 0).astype(np.float64) @ x)
