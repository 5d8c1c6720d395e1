"""Counts, streams, ranks and samples against brute force over all sign vectors."""

import itertools
import json
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from fishertope.core.errors import (
    DegenerateArrangement,
    DegenerateDirection,
    InfeasiblePattern,
    InvalidInputError,
)
from fishertope.core.zonotope import (
    Pattern,
    Sweep,
    Zonotope,
    decide,
    general_position,
    n_edges,
    n_vertices,
    pattern_of_direction,
    tree_patterns,
    verify,
    vertex_graph,
    vertex_of_pattern,
    walls,
    witness_of,
)
from fishertope.core.zonotope.exact import dependency, gordan, integer_rows, rank

SIZES = [(6, 2), (7, 3), (9, 3), (8, 4), (10, 4), (9, 5), (4, 5), (3, 4), (12, 3)]


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def resonance(n):
    return np.array([s for s in itertools.product((0, 1), repeat=n) if any(s)], dtype=float)


def as_set(blocks):
    return {tuple(int(v) for v in row) for block in blocks for row in np.atleast_2d(block)}


def rational_chambers(x):
    """Every feasible sign vector, by row reduction in rationals only (Fourier–Motzkin)."""
    rows = [[Fraction(float(v)) for v in r] for r in x]
    return {
        s
        for s in itertools.product((1, -1), repeat=len(rows))
        if eliminate([[v * q for v in r] for r, q in zip(rows, s, strict=True)])
    }


def eliminate(rows):
    """Whether some w has rows·w > 0, by Fourier–Motzkin elimination of strict inequalities."""
    while rows and rows[0]:
        up = [r for r in rows if r[0] > 0]
        down = [r for r in rows if r[0] < 0]
        flat = [r[1:] for r in rows if r[0] == 0]
        mixed = [
            [a * -v[0] + b * u[0] for a, b in zip(u[1:], v[1:], strict=True)]
            for u in up
            for v in down
        ]
        rows = [list(r) for r in {tuple(_scaled(r)) for r in flat + mixed}]
    return not rows


def _scaled(row):
    top = next((abs(v) for v in row if v), Fraction(1))
    return [v / top for v in row]


@pytest.mark.parametrize(("n", "d"), SIZES)
def test_z1_check_01_counts_and_no_duplicates(n, d):
    x = normal(n, d)
    blocks = list(Sweep.over(x).blocks())
    rows = np.concatenate(blocks)
    assert len(rows) == len(as_set(blocks)) == n_vertices(n, d)
    assert as_set(blocks) == as_set(tree_patterns(x))
    assert as_set([-rows]) == as_set(blocks)
    graph = vertex_graph(x, rows)
    assert graph.number_of_edges() == n_edges(n, d)
    assert nx.is_connected(graph)
    for a, b, row in graph.edges(data="row"):
        step = graph.nodes[a]["vertex"] - graph.nodes[b]["vertex"]
        assert min(np.abs(step - x[row]).max(), np.abs(step + x[row]).max()) < 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_z1_check_01_ten_more(seed):
    rng = np.random.default_rng(100 + seed)
    n, d = int(rng.integers(1, 10)), int(rng.integers(2, 5))
    x = rng.normal(size=(n, d))
    found = as_set(Sweep.over(x).blocks())
    assert len(found) == n_vertices(n, d)
    assert found == as_set(tree_patterns(x))


@pytest.mark.parametrize(("n", "count"), [(3, 32), (4, 370)])
def test_z1_check_01_resonance(n, count):
    x = resonance(n)
    assert len(as_set(tree_patterns(x))) == count
    with pytest.raises(DegenerateArrangement, match="Rows"):
        list(Sweep.over(x).blocks())


@pytest.mark.slow
def test_z1_check_01_resonance_five():
    assert sum(1 for _ in tree_patterns(resonance(5))) == 11292


@pytest.mark.parametrize(("n", "d"), [(6, 2), (8, 3), (9, 4), (5, 5), (12, 3)])
def test_z1_check_02_brute_force(n, d):
    x = normal(n, d, 3)
    found = as_set(Sweep.over(x).blocks())
    by_oracle = {s for s in itertools.product((1, -1), repeat=n) if decide(x, np.array(s)).feasible}
    assert found == by_oracle
    directions = np.random.default_rng(4).normal(size=(2000, d))
    assert as_set([np.where(directions @ x.T > 0, 1, -1)]) <= found
    for s in found:
        w = witness_of(x, np.array(s))
        assert (np.array(s) * (x @ w) > 0).all()


def test_z1_check_02_certificates_both_ways():
    rng = np.random.default_rng(5)
    seen = {True: 0, False: 0}
    for _ in range(200):
        n, d = int(rng.integers(3, 14)), int(rng.integers(2, 6))
        x = rng.normal(size=(n, d))
        s = rng.choice([-1, 1], size=n)
        if rng.random() < 0.3:
            s = np.where(x @ rng.normal(size=d) > 0, 1, -1)
        answer = decide(x, s)
        assert verify(x, s, answer)
        seen[answer.feasible] += 1
        if not answer.feasible:
            assert 2 <= len(answer.support) <= d + 1
            balance = (answer.certificate * s) @ (x / np.linalg.norm(x, axis=1, keepdims=True))
            assert np.isfinite(balance).all()
    assert min(seen.values()) > 30


def test_a_false_proof_is_not_believed():
    x, s = normal(8, 3), np.ones(8, dtype=int)
    yes = decide(x, np.where(x @ np.ones(3) > 0, 1, -1))
    assert not verify(x, s, yes) or (x @ yes.witness > 0).all()
    contradiction = np.vstack([x[:1], x[:1]])
    no = decide(contradiction, [1, -1])
    assert not no.feasible
    assert verify(contradiction, [1, -1], no)
    assert not verify(contradiction, [1, 1], no)


def test_z1_check_03_uniform_sampler_is_uniform_and_unrank_inverts_rank():
    from scipy.stats import chi2

    x = normal(8, 3)
    sweep = Sweep.over(x)
    rows = np.concatenate(list(sweep.blocks()))
    for number, s in enumerate(rows):
        assert sweep.rank(s) == number
        assert np.array_equal(sweep.unrank(number), s)
    draws = Zonotope(x).sample(60_000, seed=1)
    where = {tuple(s): i for i, s in enumerate(rows.tolist())}
    counts = np.bincount([where[tuple(s)] for s in draws.tolist()], minlength=len(rows))
    expected = len(draws) / len(rows)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(rows) - 1) > 1e-3


def test_gaussian_sampling_gives_feasible_patterns():
    x = normal(9, 3)
    assert as_set([Zonotope(x).sample(500, how="gaussian", seed=2)]) <= as_set(
        Sweep.over(x).blocks()
    )


def test_z1_check_04_four_ways_to_the_walls():
    rng = np.random.default_rng(6)
    for _ in range(25):
        n, d = int(rng.integers(6, 12)), int(rng.integers(3, 5))
        x = rng.normal(size=(n, d))
        for s in Zonotope(x).sample(4, seed=rng):
            first, *others = (
                walls(x, s, method=m).tolist() for m in ("flip", "cone", "linprog", "hull")
            )
            assert all(other == first for other in others)
            assert len(first) >= min(n, d)


@pytest.mark.parametrize(("n", "d"), [(7, 3), (5, 5), (30, 2), (9, 1)])
def test_z7_a_stream_that_was_cut_goes_on(n, d):
    x = normal(n, d)
    whole = np.concatenate(list(Zonotope(x).patterns()))
    total = len(whole)
    for cut in {0, 1, total // 3, total // 2 + 1, total - 1, total}:
        cursor = json.loads(json.dumps({"start": cut}))  # the cursor is one number
        parts = [*Zonotope(x).patterns(stop=cut), *Zonotope(x).patterns(**cursor)]
        assert np.array_equal(np.concatenate(parts), whole)
    shards = [
        b
        for k in range(3)
        for b in Zonotope(x).patterns(start=total * k // 3, stop=total * (k + 1) // 3)
    ]
    assert np.array_equal(np.concatenate(shards), whole)


def test_backends_stream_the_same():
    x = normal(10, 4)
    streams = [
        np.concatenate(list(Sweep.over(x, backend=b).blocks())) for b in ("reference", "numba")
    ]
    assert np.array_equal(*streams)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(1, 3)),
        elements=st.integers(-3, 3).map(float)
        | st.sampled_from([1e-12, -1e-12, 1e12, 1 + 1e-12, 0.1, 1 / 3]),
    )
)
def test_z3_proven_or_refused(x):
    """Duplicates, dependent rows, bad scales: the true patterns, or a refusal naming rows."""
    if not x.any(axis=1).all():
        with pytest.raises(InvalidInputError, match="Rows"):
            Zonotope(x)
        return
    truth = rational_chambers(x)
    position = general_position(x)
    size = min(x.shape)
    exact = integer_rows(x)
    dependent = any(
        rank([exact[i] for i in s]) < size for s in itertools.combinations(range(len(x)), size)
    )
    assert position.holds is (not dependent)
    found, refusal = tried(lambda: as_set(tree_patterns(x)), DegenerateDirection)
    assert found == truth or "row" in refusal
    found, refusal = tried(lambda: as_set(Sweep.over(x).blocks()), DegenerateArrangement)
    assert (found == truth and len(truth) == n_vertices(*x.shape)) or "Rows" in refusal


def tried(work, error):
    """What ``work`` returns and no refusal, or nothing and the message of the refusal."""
    try:
        return work(), ""
    except error as refusal:
        return None, str(refusal)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(-3, 3)
    )
)
def test_gordan_in_rationals_is_always_right(rows):
    whole = [[int(v) for v in r] for r in rows]
    feasible, proof = gordan(whole)
    assert feasible is eliminate([[Fraction(v) for v in r] for r in whole])
    if feasible:
        assert all(sum(a * b for a, b in zip(r, proof, strict=True)) > 0 for r in whole)
    else:
        assert min(proof) >= 0
        assert sum(proof) == 1
        assert all(
            sum(m * r[k] for m, r in zip(proof, whole, strict=True)) == 0
            for k in range(len(whole[0]))
        )


def test_patterns_pack_and_unpack():
    rng = np.random.default_rng(7)
    for n in (1, 63, 64, 65, 200):
        s = rng.choice([-1, 1], size=n)
        p = Pattern.from_signs(s)
        assert np.array_equal(p.signs, s)
        assert len(p.words) == -(-n // 64)
        turned = -p
        assert -turned == p
        assert p.flipped(n - 1) != p
        assert p.flipped(n - 1).flipped(n - 1) == p
        assert np.array_equal(p.active, np.flatnonzero(s > 0))
    with pytest.raises(InvalidInputError, match="entry"):
        Pattern.from_signs([1, 0, -1])


def test_dictionary_of_directions_and_vertices():
    x, rng = normal(9, 3), np.random.default_rng(8)
    zonotope = Zonotope(x)
    for w in rng.normal(size=(50, 3)):
        p = pattern_of_direction(x, w)
        (vertex,) = vertex_of_pattern(x, p.signs[None])
        assert vertex @ w == pytest.approx(zonotope.support(w[None])[0], rel=1e-12)
    with pytest.raises(DegenerateDirection, match=r"\[4\]"):
        pattern_of_direction(x, np.linalg.svd(x[4:5])[2][2])


def test_containment_has_a_reason():
    x = normal(9, 3)
    zonotope = Zonotope(x)
    center = x.sum(axis=0) / 2
    for direction in np.random.default_rng(9).normal(size=(30, 3)):
        direction /= np.linalg.norm(direction)
        # The boundary along a ray from the centre: a linear program by another route.
        from scipy.optimize import linprog

        ray = linprog(
            np.r_[np.zeros(9), -1.0],
            A_eq=np.c_[x.T, -direction],
            b_eq=center,
            bounds=[(0, 1)] * 9 + [(0, None)],
        )
        inside = zonotope.contains(center + 0.999 * ray.x[-1] * direction)
        assert inside.inside
        assert np.abs(inside.coefficients @ x - center - 0.999 * ray.x[-1] * direction).max() < 1e-8
        outside = zonotope.contains(center + 1.001 * ray.x[-1] * direction)
        assert not outside.inside
        point = center + 1.001 * ray.x[-1] * direction
        assert point @ outside.direction > zonotope.support(outside.direction[None])[0]


def test_volume_is_that_of_the_hull():
    from scipy.spatial import ConvexHull

    for n, d in ((6, 2), (7, 3), (6, 4)):
        zonotope = Zonotope(normal(n, d))
        corners = np.concatenate(list(zonotope.vertices()))
        assert zonotope.volume() == pytest.approx(ConvexHull(corners).volume, rel=1e-10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 0)), "n, d >= 1"),
        (np.zeros((0, 2)), "n, d >= 1"),
        (np.ones(3), "n, d >= 1"),
        ([[1.0, np.nan], [1.0, 2.0]], r"Rows \[0\] hold NaN"),
        ([[1.0, 1.0], [0.0, 0.0]], r"Rows \[1\] are zero"),
        (np.array([[1, 2**53 + 1], [1, 1]]), r"Rows \[0\] hold integers beyond"),
        ([["a", "b"]], "real numbers"),
    ],
)
def test_z1_check_13_refusals_name_rows(rows, message):
    with pytest.raises(InvalidInputError, match=message):
        Zonotope(rows)


def test_z1_check_13_infeasible_and_degenerate():
    x = np.vstack([normal(5, 3), normal(5, 3)[2:3]])
    s = np.where(x @ np.ones(3) > 0, 1, -1)
    s[5] = -s[2]
    with pytest.raises(InfeasiblePattern, match=r"\[2, 5\]"):
        witness_of(x, s)
    with pytest.raises(DegenerateArrangement, match=r"\[2, 5\]"):
        list(Zonotope(x).patterns(method="sweep"))
    assert general_position(x).holds is False
    assert set(general_position(x).dependent) >= {2, 5}
    with pytest.raises(DegenerateArrangement):
        Zonotope(x).sample(3)


def test_general_position_is_honest_about_samples():
    answer = general_position(normal(40, 4), max_minors=100, n_samples=50)
    assert answer.holds is None
    assert not answer.exhaustive
    assert "not proof" in answer.message


def test_dependency_is_unique_or_none():
    assert dependency([[1, 0], [0, 1], [1, 1]]) in ([1, 1, -1], [-1, -1, 1])
    assert dependency([[1, 0], [0, 1]]) is None
    assert dependency([[1, 0], [2, 0], [3, 0]]) is None
