"""The regularised optimum, its certificate, the gated relaxation, and other losses."""

import warnings

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.core.zonotope import Zonotope
from fishertope.theory import (
    ReluProblem,
    ZonotopeOracle,
    certify,
    cone_split,
    detect_jump,
    flip_gains,
    gated_optimum,
    regularised_optimum,
    six_points,
    solve,
    solve_loss,
    widest_witness,
    with_bias,
)

LOSSES = ("squared", "logistic", "hinge")


def data(n, d, seed=0, loss="squared"):
    rng = np.random.default_rng(seed)
    x, y = with_bias(rng.normal(size=(n, d))), rng.normal(size=n)
    return x, (y if loss == "squared" else np.where(y > 0, 1.0, -1.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("n", "d", "penalty"), [(16, 2, 0.05), (12, 1, 0.3)])
def test_z1_check_11_column_generation_is_the_full_program(loss, n, d, penalty):
    x, y = data(n, d, 3, loss)
    found = regularised_optimum(x, y, penalty, loss=loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = regularised_optimum(x, y, penalty, loss=loss, all_patterns=True)
    assert found.objective == pytest.approx(whole.objective, abs=1e-7)
    assert 0 <= found.gap <= 1e-7
    assert found.lower_bound <= found.objective
    f = np.maximum(x @ found.weights.T, 0) @ found.outputs
    decay = 0.5 * penalty * ((found.weights**2).sum() + (found.outputs**2).sum())
    value = {
        "squared": lambda: 0.5 * ((f - y) ** 2).sum(),
        "logistic": lambda: np.log1p(np.exp(-y * f)).sum(),
        "hinge": lambda: np.maximum(0, 1 - y * f).sum(),
    }[loss]()
    assert value + decay == pytest.approx(found.objective, abs=1e-10)
    assert all(b[1] >= a[1] for a, b in zip(found.history, found.history[1:], strict=False))


def test_z1_check_11_no_trained_network_goes_below():
    """Sixty networks by L-BFGS from random starts, of several widths."""
    from scipy.optimize import minimize

    x, y = data(16, 2, 5)
    penalty = 0.05
    found = regularised_optimum(x, y, penalty)

    def objective(theta, m):
        u, a = theta[: m * 3].reshape(m, 3), theta[m * 3 :]
        hidden = np.maximum(x @ u.T, 0)
        r = hidden @ a - y
        back = np.outer(r, a) * (hidden > 0)
        gradient = np.concatenate([(back.T @ x + penalty * u).ravel(), hidden.T @ r + penalty * a])
        return 0.5 * r @ r + 0.5 * penalty * theta @ theta, gradient

    rng = np.random.default_rng(0)
    least = np.inf
    for start in range(60):
        m = (6, 12, 24)[start % 3]
        trained = minimize(
            objective, rng.normal(size=m * 4) / 2, args=(m,), jac=True, method="L-BFGS-B",
            options={"maxiter": 2000, "maxfun": 4000},
        )  # fmt: skip
        least = min(least, trained.fun)
        assert trained.fun >= found.lower_bound - 1e-9
    assert least < found.objective * 1.2  # they were trained in earnest


@pytest.mark.parametrize("loss", LOSSES)
def test_z1_check_11_the_certificate_is_checked_by_other_code(loss):
    x, y = data(15, 2, 7, loss)
    found = regularised_optimum(x, y, 0.1, loss=loss)
    proof = certify(found, x, y, loss=loss, penalty=0.1)
    assert proof.global_optimum
    assert proof.lower_bound == pytest.approx(found.lower_bound, abs=1e-7)
    assert proof.objective == pytest.approx(found.objective, abs=1e-10)
    if loss != "hinge":
        assert proof.local_minimum
    worse = (found.weights * 1.05, found.outputs)
    other = certify(worse, x, y, loss=loss, penalty=0.1, dual=found.dual)
    assert not other.global_optimum
    assert other.lower_bound == pytest.approx(proof.lower_bound)
    assert other.local_minimum is not True


def test_z1_check_11_gated_value_is_below():
    x, y = data(14, 2, 9)
    patterns = np.concatenate(list(Zonotope(x).patterns()))
    found = regularised_optimum(x, y, 0.1)
    gated = gated_optimum(x, y, patterns, penalty=0.1)
    assert gated.objective <= found.objective + 1e-8
    free = gated_optimum(x, y, patterns[:6])
    for how in ("closed", "smallest"):
        plus, minus = cone_split(x, free.patterns, free.weights, how=how)
        scale = np.abs(plus).max()
        assert (free.patterns * (plus @ x.T)).min() > -1e-8 * scale
        assert (free.patterns * (minus @ x.T)).min() > -1e-8 * scale
        f = np.maximum(x @ plus.T, 0).sum(axis=1) - np.maximum(x @ minus.T, 0).sum(axis=1)
        loss = 0.5 * ((f - y) ** 2).sum()
        assert loss == pytest.approx(free.objective, abs=1e-6 * max(1.0, scale))
    # Without penalty the gates' least squares is the ReLU program of the paired vertex.
    both = ReluProblem(inputs=x, targets=y, signs=[1] * 6 + [-1] * 6)
    paired = solve(both, np.vstack([free.patterns, free.patterns]))
    assert paired.loss == pytest.approx(free.objective, abs=1e-7)
    narrow = np.array([np.linalg.norm(cone_split(x, free.patterns, free.weights, how=h)[0])
                       for h in ("smallest", "closed")])  # fmt: skip
    assert narrow[0] <= narrow[1] * (1 + 1e-6)


def test_the_oracle_is_the_maximum_over_all_cones():
    from scipy.optimize import nnls

    x, _ = data(9, 2, 2)
    oracle = ZonotopeOracle(x)
    patterns = np.concatenate(list(Zonotope(x).patterns()))
    rng = np.random.default_rng(1)
    for nu in rng.normal(size=(20, len(x))):
        best = 0.0
        for s in patterns:
            g = ((s > 0) * nu) @ x
            mu, _ = nnls((s[:, None] * x).T, -g)
            best = max(best, float(np.linalg.norm(g + mu @ (s[:, None] * x))))
        found = oracle.maximise(nu)[0]
        assert found.value == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert nu @ np.maximum(x @ found.direction, 0) == pytest.approx(best, rel=1e-9, abs=1e-12)
        u = rng.normal(size=(500, 3))
        sampled = np.maximum(x @ (u / np.linalg.norm(u, axis=1, keepdims=True)).T, 0).T @ nu
        assert sampled.max() <= found.value + 1e-12


def test_z1_check_12_with_weight_decay_nothing_jumps():
    here, near = (
        regularised_optimum(six_points(e).inputs, six_points(e).targets, 1e-2).objective
        for e in (0.0, 1e-3)
    )
    assert abs(here - near) < 1e-3
    jump = detect_jump(six_points(), n_directions=1, sizes=(1e-2, 1e-3))
    assert jump.jumps
    assert jump.height == pytest.approx(1 / 32, abs=1e-5)
    assert jump.norms[1, 0] > 5 * jump.norms[0, 0]


def test_widest_witness_is_the_shortest():
    from importlib import import_module

    cp = import_module("cvxpy")
    x, _ = data(10, 2, 4)
    for s in Zonotope(x).sample(5, seed=0):
        w = widest_witness(x, s)
        u = cp.Variable(3)
        unit = s[:, None] * x / np.linalg.norm(x, axis=1, keepdims=True)
        cp.Problem(cp.Minimize(cp.sum_squares(u)), [unit @ u >= 1]).solve(solver="CLARABEL")
        assert np.linalg.norm(w) == pytest.approx(np.linalg.norm(u.value), rel=1e-6)
        assert (unit @ w).min() > 1 - 1e-9


@pytest.mark.parametrize(("loss", "penalty"), [("logistic", 0.01), ("hinge", 0.01), ("hinge", 0.0)])
def test_other_losses_price_flips_by_their_slopes(loss, penalty):
    """The flip rule holds with r = ∂ℓ/∂f; checked where the loss is smooth."""
    x, y = data(14, 2, 1, loss)
    problem = ReluProblem(inputs=x, targets=y, signs=[1, -1])
    rng = np.random.default_rng(2)
    checked = 0
    for _ in range(8):
        s = np.where(rng.normal(size=(2, 3)) @ x.T > 0, 1, -1)
        here = solve_loss(problem, s, loss=loss, penalty=penalty)
        assert here.kkt < 1e-5
        if loss == "hinge":
            continue
        flips = flip_gains(problem, here)
        for j, i in np.argwhere(np.abs(here.weights @ x.T) <= 1e-7 * np.abs(here.weights).max()):
            gain = here.multipliers[j, i] - problem.signs[j] * here.residual[i]
            if abs(gain) < 1e-4 or flips.dead.any():
                continue
            turned = s.copy()
            turned[j, i] *= -1
            other = solve_loss(problem, turned, loss=loss, penalty=penalty)
            assert (other.loss < here.loss - 1e-7) == (gain > 0)
            checked += 1
    assert checked >= 3 or loss == "hinge"


def test_z1_check_13_conditions_of_the_losses():
    x, y = data(10, 1, 0, "logistic")
    problem = ReluProblem(inputs=x, targets=y, signs=[1])
    with pytest.raises(InvalidInputError, match="infinity"):
        solve_loss(problem, np.ones((1, 10)), loss="logistic")
    with pytest.raises(InvalidInputError, match=r"Rows that are not: \[0, 1"):
        regularised_optimum(x, y + 0.5, 1.0, loss="hinge")
    with pytest.raises(InvalidInputError, match="penalty"):
        regularised_optimum(x, y, 0.0)
    with pytest.raises(InvalidInputError, match="max_patterns"):
        regularised_optimum(data(40, 3)[0], data(40, 3)[1], 1.0, max_patterns=100)
