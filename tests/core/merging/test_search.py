"""Check 49 of the merging specification, and the search of weights around it."""

import numpy as np
import pytest
from scipy.stats import kstest

from fishertope.core.errors import InvalidInputError
from fishertope.core.merging import (
    Dirichlet,
    Evolution,
    ExpectedImprovement,
    LogRatios,
    PairGrid,
    SimplexLattice,
    SobolSimplex,
    SuccessiveHalving,
    greedy_soup,
    nested_splits,
    search_weights,
)

SPACES = [
    PairGrid(11), PairGrid(9, corners=False), SimplexLattice(7), Dirichlet(20), SobolSimplex(16),
    LogRatios(9),
]  # fmt: skip


class Counting:
    """Data that count how often they are read."""

    def __init__(self, values, log, name):
        self.values, self.log, self.name = values, log, name

    def read(self):
        self.log.append(self.name)
        return self.values


def squares(model, data):
    values = data.read() if isinstance(data, Counting) else data
    return -((values - model["w"][0]) ** 2)


SOURCES = [{"w": np.array([0.0])}, {"w": np.array([4.0])}]
RNG = np.random.default_rng(0)
CHOOSE, REPORT = RNG.normal(1.3, 1, 300), RNG.normal(1.3, 1, 300)


@pytest.mark.parametrize(
    "search",
    ["exhaustive", "gp", "evolution", SimplexLattice(5)],
    ids=["grid", "gp", "cma", "space"],
)
def test_merging_check_49_the_report_split_is_not_read_before_the_weights_are_chosen(search):
    log = []
    found = search_weights(
        SOURCES, squares, Counting(CHOOSE, log, "selection"), Counting(REPORT, log, "report"),
        search=search, callback=lambda t: log.append("trial"),
    )  # fmt: skip
    first = log.index("report")
    n = len(found.trials) + len(found.isotropic_trials)
    # All trials come before the first reading, nothing of the selection after it.
    assert log[:first].count("trial") == n == log[:first].count("selection")
    assert set(log[first:]) == {"report"}
    assert log.count("report") == len(found.report) == 5


def test_merging_check_49_no_report_split_means_no_report():
    log = []
    found = search_weights(SOURCES, squares, Counting(CHOOSE, log, "selection"))
    assert found.report == {}
    assert found.differences == {}
    assert set(log) == {"selection"}


def test_merging_check_49_a_leak_is_refused_or_recorded():
    X = RNG.normal(size=(50, 3))
    y = np.arange(50)
    both = [
        (CHOOSE, CHOOSE, "same object"),
        (CHOOSE, CHOOSE[10:], "share"),
        ((X, y), (X[:20], y[:20].copy()), "share"),
        ((X, y), (X[:20].copy(), y[:20].copy()), "every report example"),
        (np.arange(10), np.arange(5, 15), "5 indices in common"),
    ]
    for selection, report, why in both:
        with pytest.raises(InvalidInputError, match=why):
            search_weights(SOURCES, lambda m, d: 0.0, selection, report)
    found = search_weights(SOURCES, squares, CHOOSE, CHOOSE, allow_leak=True)
    assert found.leak
    assert "LEAK" in repr(found)
    assert found.to_dict()["leak"]
    assert "same object" in found.to_dict()["facts"]["leak"]
    fine = search_weights(SOURCES, squares, CHOOSE, REPORT, allow_leak=True)
    assert not fine.leak


def test_the_choice_the_baselines_and_the_intervals():
    found = search_weights(SOURCES, squares, CHOOSE, REPORT, search=PairGrid(41))
    best = CHOOSE.mean() / 4
    assert abs(found.weights[1] - best) <= 0.5 / 40 + 1e-12
    weights, scores = found.curve
    assert len(weights) == 41
    assert scores.max() == found.selection_score
    for name, value in (("source 0", 0.0), ("source 1", 4.0), ("isotropic (equal)", 2.0)):
        assert np.isclose(found.report[name], -((REPORT - value) ** 2).mean())
        gap = found.differences[name]
        assert gap.low <= gap.mean <= gap.high
        assert np.isclose(gap.mean, found.report["merged"] - found.report[name])
    # Its own search makes the isotropic merge the same here.
    assert found.differences["isotropic (searched)"].mean == 0.0
    losses = search_weights(
        SOURCES, lambda m, d: -squares(m, d), CHOOSE, REPORT, maximise=False, search=PairGrid(41)
    )
    np.testing.assert_array_equal(losses.weights, found.weights)


def test_the_bootstrap_interval_covers():
    hits, n = 0, 120
    rng = np.random.default_rng(1)
    for seed in range(n):
        report = rng.normal(1.3, 1, 60)
        found = search_weights(
            SOURCES, squares, CHOOSE, report, search=PairGrid(3, corners=False), isotropic=False,
            n_boot=400, seed=seed,
        )  # fmt: skip
        w = 4 * found.weights[1]
        truth = -((1.3 - w) ** 2) + (1.3 - 4) ** 2
        gap = found.differences["source 1"]
        hits += gap.low <= truth <= gap.high
    assert 0.85 * n <= hits <= n


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_points_lie_on_the_simplex(space, n):
    if isinstance(space, PairGrid) and n != 2:
        with pytest.raises(InvalidInputError, match="pair grid"):
            space.points(n, 0)
        return
    points = space.points(n, 5)
    assert points.shape[1] == n
    assert (points >= 0).all()
    np.testing.assert_allclose(points.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(points, space.points(n, 5))
    assert len(np.unique(points, axis=0)) == len(points)


def test_lattices_have_all_points_and_sobol_fills_the_simplex():
    assert len(SimplexLattice(6).points(3, 0)) == 28
    corners = SimplexLattice(6).points(3, 0)
    assert sum((corners == e).all(1).sum() for e in np.eye(3)) == 3
    with pytest.raises(InvalidInputError, match="limit"):
        SimplexLattice(100).points(8, 0)
    points = SobolSimplex(1024).points(3, 0)
    # Uniform on the simplex: each weight is Beta(1, 2).
    assert kstest(points[:, 0], lambda x: 1 - (1 - x) ** 2).pvalue > 0.05
    grid = LogRatios(5, width=2.0).points(2, 0)
    np.testing.assert_allclose(np.log(grid[:, 1] / grid[:, 0]), np.linspace(-2, 2, 5), atol=1e-12)


THREE = [{"w": np.array([0.0, 0.0])}, {"w": np.array([4.0, 0.0])}, {"w": np.array([0.0, 4.0])}]


def plane(model, data):
    return -((data - model["w"]) ** 2).sum(1)


@pytest.mark.parametrize("search", [ExpectedImprovement(n_steps=20), Evolution(generations=20)])
def test_gp_and_evolution_find_the_optimum_with_few_trials(search):
    data = np.random.default_rng(3).normal(size=(200, 2)) * 0.1 + [1.0, 2.0]
    found = search_weights(THREE, plane, data, search=search, isotropic=False, seed=2)
    target = data.mean(0)
    got = 4 * found.weights[1:]
    assert np.abs(got - target).max() < 0.15
    assert len(found.trials) <= 125
    again = search_weights(THREE, plane, data, search=search, isotropic=False, seed=2)
    assert again.trials == found.trials


def test_successive_halving_spends_less_and_ends_on_all_examples():
    data = np.random.default_rng(3).normal(size=(900, 2)) * 0.3 + [1.0, 2.0]
    spent = []

    def counted(model, part):
        spent.append(len(part))
        return plane(model, part)

    search = SuccessiveHalving(SimplexLattice(8), eta=3, first=30)
    found = search_weights(THREE, counted, data, search=search, isotropic=False)
    whole = 45 * 900
    assert sum(spent) < 0.4 * whole
    full = [t for t in found.trials if t.n_examples is None]
    assert 1 <= len(full) < 10
    exhaustive = search_weights(THREE, plane, data, search=SimplexLattice(8), isotropic=False)
    assert found.selection_score >= exhaustive.selection_score - 0.05
    with pytest.raises(InvalidInputError, match="length"):
        search_weights(SOURCES, squares, Counting(CHOOSE, [], "s"), search="halving")


def test_a_callback_stops_the_search_and_odd_scores_are_refused():
    seen = []

    def stop(trial):
        seen.append(trial)
        return len(seen) == 3

    found = search_weights(SOURCES, squares, CHOOSE, callback=stop, isotropic=False)
    assert len(found.trials) == 3
    for bad, match in (
        (lambda m, d: np.nan, "NaN"),
        (lambda m, d: {"a": 1.0, "b": 2.0}, "metric=None"),
        (lambda m, d: np.ones((2, 2)), "shape"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            search_weights(SOURCES, bad, CHOOSE)
    with pytest.raises(InvalidInputError, match="leave weights"):
        search_weights(SOURCES, squares, CHOOSE, weights=[0.5, 0.5])
    with pytest.raises(InvalidInputError, match="accepted: exhaustive"):
        search_weights(SOURCES, squares, CHOOSE, search="bayes")


def test_nested_splits_keep_groups_together():
    groups = np.repeat(np.arange(12), 5)
    seen = []
    for selection, report in nested_splits(60, 4, seed=1, groups=groups):
        assert not set(groups[selection]) & set(groups[report])
        seen += report.tolist()
    assert sorted(seen) == list(range(60))
    with pytest.raises(InvalidInputError, match="folds"):
        nested_splits(10, 1)


def test_merging_check_13_greedy_soup():
    rng = np.random.default_rng(0)
    models = [{"w": rng.normal(size=3)} for _ in range(6)]
    target = rng.normal(size=3) * 0.3

    def score(model, data):
        return -float(((model["w"] - data) ** 2).sum())

    found = greedy_soup(models, score, target)
    alone = [score(m, target) for m in models]
    soup = []
    best = -np.inf
    for i in np.argsort(alone)[::-1]:
        mean = np.mean([models[j]["w"] for j in [*soup, i]], axis=0)
        if score({"w": mean}, target) >= best:
            soup.append(int(i))
            best = score({"w": mean}, target)
    assert list(found.chosen) == soup
    assert len(soup) > 1
    np.testing.assert_allclose(
        found.solution.params["w"], np.mean([models[i]["w"] for i in soup], axis=0), rtol=1e-12
    )
    assert len(found.steps) == 6
