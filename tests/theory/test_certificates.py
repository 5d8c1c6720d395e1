"""Certificates against perturbations and rationals; polish on real data; exact programs."""

import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fishertope.core.errors import ArrayTypeError, InvalidInputError
from fishertope.theory import (
    ReluProblem,
    as_shallow,
    certify,
    continuity,
    fit_outputs,
    greedy_search,
    polish,
    random_paired_vertex,
    rank_drops,
    regularised_optimum,
    select_vertices,
    six_points,
    solve,
    verify_exactly,
    with_bias,
)


def made(n, d, m, seed=0):
    rng = np.random.default_rng(seed)
    return ReluProblem(
        inputs=with_bias(rng.normal(size=(n, d))),
        targets=rng.normal(size=n),
        signs=np.where(np.arange(m) % 2 == 0, 1.0, -1.0),
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_claimed_local_minimum_has_no_way_down(seed):
    problem = made(18, 2, 3, seed)
    found = greedy_search(problem, neighbourhood="tight", seed=seed)
    proof = certify(found, problem.inputs, problem.targets, signs=problem.signs)
    rng = np.random.default_rng(seed)
    size = 1e-6 * np.abs(found.weights).max()
    steps = rng.normal(size=(400, *found.weights.shape))
    lowest = min(
        problem.loss(found.weights + size * s / np.linalg.norm(s)) - found.loss for s in steps
    )
    if proof.local_minimum:
        assert lowest > -1e-10
    moved = found.weights + 1e-2 * rng.normal(size=found.weights.shape)
    other = certify((moved, problem.signs), problem.inputs, problem.targets)
    assert other.local_minimum is False


def test_certify_refutes_where_a_flip_helps():
    """A cell optimum whose neighbour is better is no local minimum, and certify sees it."""
    from fishertope.theory import flip_gains

    refuted = 0
    for seed in range(30):
        problem = made(16, 2, 2, seed)
        rng = np.random.default_rng(seed)
        s = np.where(rng.normal(size=(2, 3)) @ problem.inputs.T > 0, 1, -1)
        here = solve(problem, s)
        flips = flip_gains(problem, here)
        if flips.dead.any():
            continue
        proof = certify(here, problem.inputs, problem.targets, signs=problem.signs)
        assert proof.local_minimum is not (flips.gains > 1e-5).any()
        refuted += proof.local_minimum is False
    assert refuted > 5


def test_certify_sees_that_a_dead_unit_can_help():
    problem = made(12, 1, 1)
    dead = certify((np.zeros((1, 2)), np.ones(1)), problem.inputs, np.ones(12))
    assert dead.local_minimum is False
    assert "dead unit" in str(dead)
    stays = certify((np.zeros((1, 2)), np.ones(1)), problem.inputs, -np.ones(12))
    assert stays.local_minimum is True
    assert stays.n_dead == 1


def test_the_exact_loss_is_that_of_the_float_weights():
    problem = made(8, 1, 2)
    found = greedy_search(problem)
    proof = certify(found, problem.inputs, problem.targets, signs=problem.signs)
    assert isinstance(proof.exact_loss, Fraction)
    assert float(proof.exact_loss) == pytest.approx(found.loss, rel=1e-12)


def test_zero_loss_is_a_global_optimum():
    problem = made(20, 2, 2)
    vertex = select_vertices(problem.inputs, problem.targets)
    assert certify(vertex, problem.inputs, problem.targets).global_optimum


def test_programs_are_verified_in_rationals():
    proven = 0
    for seed in range(8):
        problem = made(14, 2, 2, seed)
        rng = np.random.default_rng(seed)
        s = np.where(rng.normal(size=(2, 3)) @ problem.inputs.T > 0, 1, -1)
        here = solve(problem, s)
        exact = verify_exactly(problem, here)
        if not exact.proven:
            assert exact.reason
            continue
        proven += 1
        assert float(exact.loss) == pytest.approx(here.loss, rel=1e-12, abs=1e-14)
        w = np.array([[float(v) for v in unit] for unit in exact.weights])
        assert np.abs(w - here.weights).max() < 1e-9 * max(1.0, np.abs(w).max())
    assert proven >= 5
    with pytest.raises(InvalidInputError, match="max_size"):
        verify_exactly(made(14, 4, 10), greedy_search(made(14, 4, 10)))


def test_a_wrong_pattern_is_not_verified():
    problem = made(14, 2, 2, 1)
    rng = np.random.default_rng(1)
    s = np.where(rng.normal(size=(2, 3)) @ problem.inputs.T > 0, 1, -1)
    here = solve(problem, s)
    other = verify_exactly(problem, replace(here, patterns=-here.patterns))
    if other.proven:  # then it is the optimum of −s, and its loss is
        assert float(other.loss) == pytest.approx(solve(problem, -s).loss, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(50, 3), (200, 10), (30, 2), (2000, 9)])
def test_z1_check_09_without_a_bias(n, d):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    vertex = select_vertices(x, y)
    assert len(vertex.signs) == 2 * (-(-n // d) + 1)
    assert ((np.maximum(x @ vertex.weights.T, 0) @ vertex.signs - y) ** 2).mean() < 1e-10
    assert (vertex.patterns * (vertex.weights @ x.T)).min() > 0


def test_z1_check_09_multiples_without_a_bias_need_multiples_as_targets():
    x = np.array([[1.0, 2.0], [2.0, 4.0], [1.0, -1.0]])
    vertex = select_vertices(x, [1.0, 2.0, 3.0])
    assert vertex.mse < 1e-20
    with pytest.raises(InvalidInputError, match=r"Rows \[0, 1\] are multiples"):
        select_vertices(x, [1.0, 3.0, 3.0])


def test_random_pairs_fit_or_say_why():
    problem = made(60, 5, 2)
    vertex = random_paired_vertex(problem.inputs, problem.targets, n_gates=14)
    assert vertex.mse < 1e-18
    assert (vertex.patterns * (vertex.weights @ problem.inputs.T)).min() > 0
    with pytest.raises(InvalidInputError, match="rank"):
        random_paired_vertex(problem.inputs, problem.targets, n_gates=5)


def test_several_outputs():
    rng = np.random.default_rng(0)
    x, y = with_bias(rng.normal(size=(30, 2))), rng.normal(size=(30, 3))
    fitted = fit_outputs(x, y)
    assert fitted.weights.shape == (3 * 20, 3)
    assert np.abs(fitted.predict(x) - y).max() < 1e-7
    greedy = fit_outputs(x, y, method="greedy", signs=(1, -1, 1))
    for k in range(3):
        alone = greedy_search(ReluProblem(inputs=x, targets=y[:, k], signs=[1, -1, 1]))
        assert greedy.losses[k] < 0.5 * (y[:, k] ** 2).sum()
        assert alone.loss < 0.5 * (y[:, k] ** 2).sum()
        assert "minimum" in greedy.certificates[k] or "open" in greedy.certificates[k]


def test_conditions_of_continuity_and_drops_of_rank():
    assert continuity(six_points()).general_position is True
    assert not continuity(six_points()).proven
    assert continuity(six_points(), penalty=0.1).proven
    assert rank_drops(six_points())
    moved = six_points(1e-2)
    assert not rank_drops(moved)


def test_networks_are_read_from_many_things():
    from sklearn.neural_network import MLPRegressor

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    model = MLPRegressor(hidden_layer_sizes=(6,), max_iter=3000, random_state=0, tol=1e-3).fit(x, y)
    held = as_shallow(model)
    assert np.abs(held.predict(x) - model.predict(x)).max() < 1e-10
    assert certify(model, x, y).local_minimum is False
    with pytest.raises(ArrayTypeError, match="one hidden"):
        as_shallow(
            MLPRegressor(hidden_layer_sizes=(6, 4), max_iter=3000, random_state=0, tol=1e-2).fit(
                x, y
            )
        )
    with pytest.raises(ArrayTypeError, match="accepted"):
        as_shallow("a network")


def real_data(n=200):
    """Standardised columns of the diabetes data, rounded to a binary grid."""
    from sklearn.datasets import load_diabetes

    raw = load_diabetes()
    x = np.round(raw.data[:n, [2, 3, 8]] / raw.data.std(axis=0)[0] * 256) / 256
    y = (raw.target[:n] - raw.target.mean()) / raw.target.std()
    return x, y


def trained(torch, x, y, outputs=1, offset=True, dtype="float32"):
    torch.manual_seed(0)
    made_by = getattr(torch, dtype)
    net = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], 5), torch.nn.ReLU(), torch.nn.Linear(5, outputs, bias=offset)
    ).to(made_by)
    xs, ys = torch.as_tensor(x, dtype=made_by), torch.as_tensor(y, dtype=made_by)
    step = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(400):
        step.zero_grad()
        ((net(xs).reshape(ys.shape) - ys) ** 2).mean().backward()
        step.step()
    return net, xs, ys


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_z6_polish_lowers_the_loss_of_a_network_trained_on_real_data(offset, dtype):
    torch = pytest.importorskip("torch")
    x, y = real_data()
    net, xs, ys = trained(torch, x, y, offset=offset, dtype=dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    done = polish(net, xs, ys)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert done.loss_after < done.loss_before * (1 - 1e-4)
    again = 0.5 * ((done.module(xs).double().squeeze(1) - ys.double()) ** 2).sum().item()
    assert again == pytest.approx(done.loss_after, rel=1e-6)
    assert type(done.module) is type(net)
    assert {k: (v.shape, v.dtype) for k, v in done.module.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in before.items()
    }
    assert done.certificate.local_minimum
    assert done.module.training == net.training
    twice = polish(done.module, xs, ys)
    assert twice.loss_after <= done.loss_after
    assert twice.loss_after > done.loss_after * (1 - 1e-3)


def test_z6_polish_with_several_outputs():
    torch = pytest.importorskip("torch")
    x, y = real_data(120)
    targets = np.column_stack([y, y**2])
    net, xs, ys = trained(torch, x, targets, outputs=2)
    done = polish(net, xs, ys)
    assert done.loss_after < done.loss_before
    assert all(b <= a * (1 + 1e-12) for a, b in zip(done.history, done.history[1:], strict=False))
    assert done.module(xs).shape == net(xs).shape


def test_polish_takes_only_what_it_understands():
    torch = pytest.importorskip("torch")
    x, y = real_data(30)
    for bad in (
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)),
        torch.nn.Linear(3, 1),
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1)),
    ):
        with pytest.raises(ArrayTypeError):
            polish(bad, x, y)
    good = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with pytest.raises(InvalidInputError, match="due"):
        polish(good, x[:, :2], y)
    with pytest.raises(InvalidInputError, match=r"Rows \[3\]"):
        polish(good, x, np.where(np.arange(30) == 3, np.nan, y))


@pytest.mark.slow
def test_z5_certified_global_optimum_on_real_data():
    """Diabetes, two columns of 120 patients: degenerate data, the optimum over any width."""
    from scipy.optimize import minimize
    from sklearn.datasets import load_diabetes

    n = 50 if os.environ.get("FISHERTOPE_QUICK") else 120
    raw = load_diabetes(scaled=False)
    columns = np.round(raw.data[:n, [2, 8]] * [10, 100])
    x = with_bias(columns / [64, 128] - [4.0, 3.5])
    y = (raw.target[:n] - raw.target[:n].mean()) / raw.target[:n].std()
    found = regularised_optimum(x, y, 1.0, tol=1e-8)
    assert found.gap <= 1e-6
    proof = certify(found, x, y, penalty=1.0)
    assert proof.global_optimum
    assert proof.local_minimum
    assert proof.lower_bound == pytest.approx(found.lower_bound, rel=1e-8)

    def objective(theta, m):
        u, a = theta[: m * 3].reshape(m, 3), theta[m * 3 :]
        hidden = np.maximum(x @ u.T, 0)
        r = hidden @ a - y
        back = np.outer(r, a) * (hidden > 0)
        gradient = np.concatenate([(back.T @ x + u).ravel(), hidden.T @ r + a])
        return 0.5 * r @ r + 0.5 * theta @ theta, gradient

    rng = np.random.default_rng(0)
    for start in range(60):
        m = (5, 10, 20)[start % 3]
        trained = minimize(
            objective, rng.normal(size=m * 4) / 2, args=(m,), jac=True, method="L-BFGS-B",
            options={"maxiter": 1000},
        )  # fmt: skip
        assert trained.fun >= found.lower_bound - 1e-9
