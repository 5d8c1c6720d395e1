"""Linear algebra in exact integers: float64 numbers are dyadic rationals, so nothing is rounded.

Rows are scaled by powers of two, which changes no sign of x·w; a sign that these functions return
is a proof, not an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd

import numpy as np

from ..types import NumpyArray

IntegerRow = list[int]


def integer_rows(x: NumpyArray) -> list[IntegerRow]:
    """Each row of ``x`` (n, d) times a positive rational that makes it a primitive integer row."""
    return [_primitive([Fraction(float(v)) for v in row]) for row in x]


def _primitive(row: Sequence[Fraction]) -> IntegerRow:
    denominator = max((v.denominator for v in row), default=1)
    whole = [int(v * denominator) for v in row]
    divisor = gcd(*whole) if whole else 1
    return [v // divisor for v in whole] if divisor > 1 else whole


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    """a·b, exactly."""
    return sum(p * q for p, q in zip(a, b, strict=True))


def echelon(rows: Sequence[Sequence[int]]) -> tuple[list[IntegerRow], list[int]]:
    """Fraction-free reduced echelon form and its pivot columns; the rank is their number."""
    work = [list(r) for r in rows]
    pivots: list[int] = []
    width = len(work[0]) if work else 0
    top = 0
    for column in range(width):
        found = next((i for i in range(top, len(work)) if work[i][column]), None)
        if found is None:
            continue
        work[top], work[found] = work[found], work[top]
        lead = work[top]
        for i, row in enumerate(work):
            if i != top and row[column]:
                a, b = lead[column], row[column]
                mixed = [a * q - b * p for p, q in zip(lead, row, strict=True)]
                divisor = gcd(*mixed)
                work[i] = [v // divisor for v in mixed] if divisor > 1 else mixed
        pivots.append(column)
        top += 1
    return work[:top], pivots


def rank(rows: Sequence[Sequence[int]]) -> int:
    """Rank over the rationals."""
    return len(echelon(rows)[1])


def dependency(rows: Sequence[Sequence[int]]) -> IntegerRow | None:
    """The integers c, unique up to scale, with Σ c_i rows_i = 0; ``None`` unless unique."""
    n = len(rows)
    columns = [list(c) for c in zip(*rows, strict=True)]
    reduced, pivots = echelon(columns)
    if len(pivots) != n - 1:
        return None
    free = next(j for j in range(n) if j not in pivots)
    values = [Fraction(0)] * n
    values[free] = Fraction(1)
    for row, pivot in zip(reduced, pivots, strict=True):
        values[pivot] = Fraction(-row[free], row[pivot])
    common = 1
    for v in values:
        common = common * v.denominator // gcd(common, v.denominator)
    return [int(v * common) for v in values]


def gordan(rows: Sequence[Sequence[int]]) -> tuple[bool, list[Fraction]]:
    """Decide in rationals whether some w has rows_i·w > 0 for all i (Gordan's alternative).

    Returns
    -------
    feasible : bool
    certificate : list of Fraction
        If feasible, such a w; else μ ≥ 0, Σμ = 1, with Σ μ_i rows_i = 0.

    Notes
    -----
    Phase one of the simplex method on Σ μ_i rows_i = 0, Σ μ_i = 1 with Bland's rule, which ends on
    every input. Each pivot costs O(n d) rational operations.
    """
    n, d = len(rows), len(rows[0])
    # Tableau rows: d balance equations and the normalisation; artificial variables are the basis.
    table = [[Fraction(r[k]) for r in rows] for k in range(d)] + [[Fraction(1)] * n]
    for k, row in enumerate(table):
        row.extend(Fraction(int(k == j)) for j in range(d + 1))
        row.append(Fraction(int(k == d)))
    basis = [n + k for k in range(d + 1)]
    cost = [-sum((row[j] for row in table), Fraction(0)) for j in range(n)]
    cost += [Fraction(0)] * (d + 1) + [Fraction(-1)]
    while True:
        enter = next((j for j in range(n) if cost[j] < 0), None)
        if enter is None:
            break
        ratios = [
            (row[-1] / row[enter], basis[k], k) for k, row in enumerate(table) if row[enter] > 0
        ]
        leave = min(ratios)[2]
        lead = [v / table[leave][enter] for v in table[leave]]
        table[leave] = lead
        for k, row in enumerate(table):
            if k != leave and row[enter]:
                factor = row[enter]
                table[k] = [v - factor * p for v, p in zip(row, lead, strict=True)]
        factor = cost[enter]
        cost = [v - factor * p for v, p in zip(cost, lead, strict=True)]
        basis[leave] = enter
    if cost[-1] == 0:
        mu = [Fraction(0)] * n
        for k, j in enumerate(basis):
            if j < n:
                mu[j] = table[k][-1]
        return False, mu
    # Reduced costs of the artificial variables are 1 − π, with π·column ≤ 0 for every real column.
    prices = [1 - cost[n + k] for k in range(d + 1)]
    return True, [-p for p in prices[:d]]


def primitive(values: Sequence[Fraction]) -> IntegerRow:
    """Positive multiple of a rational vector with integer entries."""
    common = 1
    for v in values:
        common = common * v.denominator // gcd(common, v.denominator)
    return [int(v * common) for v in values]


def as_floats(values: Sequence[int] | Sequence[Fraction]) -> NumpyArray:
    """A positive multiple as float64, the largest modulus being 1; zeros stay zeros."""
    given = [Fraction(v) for v in values]
    top = max((abs(v) for v in given), default=Fraction(1)) or Fraction(1)
    return np.array([float(v / top) for v in given])
