"""Output distributions against their own log-probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.backend import to_numpy
from fishertope.core.model import Bernoulli, Categorical, Gaussian, OutputDistribution
from fishertope.core.testing.tolerances import tolerance

OUTPUTS = [Categorical(), Bernoulli(), Gaussian(2.5)]


def draw(output, rng, n, width):
    """Outputs z (n, C) and labels y as the distribution takes them."""
    z = 2.0 * rng.normal(size=(n, width))
    if output.name == "categorical":
        return z, rng.integers(width, size=n)
    if output.name == "bernoulli":
        return z, rng.integers(2, size=n if width == 1 else (n, width))
    return z, rng.normal(size=(n, width))


@pytest.mark.parametrize("output", OUTPUTS)
@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_score_is_the_slope_of_log_prob_and_vanishes_on_average(output, width, seed):
    assert isinstance(output, OutputDistribution)
    z, y = draw(output, np.random.default_rng(seed), 4, width)
    score, h = output.score(z, y), 1e-5
    assert score.shape == z.shape
    for c in range(width):
        step = h * np.eye(width)[c]
        slope = (output.log_prob(z + step, y) - output.log_prob(z - step, y)) / (2 * h)
        np.testing.assert_allclose(
            score[:, c], slope, atol=tolerance("finite_differences").relative
        )


@pytest.mark.parametrize("output", OUTPUTS[:2])
@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_fisher_root_is_the_mean_square_of_the_score_over_all_labels(output, width, seed):
    z, _ = draw(output, np.random.default_rng(seed), 3, width)
    if output.name == "categorical":
        labels = [np.full(3, c) for c in range(width)]
    else:
        grid = np.indices((2,) * width).reshape(width, -1).T
        labels = [np.tile(g, (3, 1))[:, 0] if width == 1 else np.tile(g, (3, 1)) for g in grid]
    p = np.exp([output.log_prob(z, y) for y in labels])
    scores = np.array([output.score(z, y) for y in labels])
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose(np.einsum("yn,ync->nc", p, scores), 0, atol=1e-12)
    expected = np.einsum("yn,ync,ynd->ncd", p, scores, scores)
    for reduced in (True, False):
        U = output.fisher_root(z, reduced=reduced)
        np.testing.assert_allclose(np.einsum("nkc,nkd->ncd", U, U), expected, atol=1e-12)
    best = np.array(labels)[p.argmax(0), np.arange(3)]
    assert np.array_equal(output.mode(z), best)


@pytest.mark.parametrize("output", OUTPUTS)
def test_nothing_is_likelier_than_the_mode(output):
    rng = np.random.default_rng(0)
    z, _ = draw(output, rng, 50, 3)
    best = output.log_prob(z, output.mode(z))
    for _ in range(20):
        assert (output.log_prob(z, draw(output, rng, 50, 3)[1]) <= best + 1e-12).all()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_says_the_same(output, dtype):
    torch = pytest.importorskip("torch")
    z, y = draw(output, np.random.default_rng(1), 6, 3)
    z = z.astype(dtype)
    y = y.astype(dtype) if output.name == "gaussian" else y
    tz, ty = torch.tensor(z), torch.tensor(y)
    rtol = tolerance("devices", dtype).relative
    for ours, theirs in (
        (output.score(z, y), output.score(tz, ty)),
        (output.log_prob(z, y), output.log_prob(tz, ty)),
        (output.kl(z, z[::-1].copy()), output.kl(tz, tz.flip(0))),
        (output.fisher_root(z), output.fisher_root(tz)),
    ):
        assert str(theirs.dtype) == f"torch.{dtype}"
        np.testing.assert_allclose(to_numpy(theirs), ours, rtol=rtol, atol=rtol)
    assert np.array_equal(to_numpy(output.mode(tz)), output.mode(z))


@pytest.mark.parametrize("output", OUTPUTS[:2])
def test_certain_answers_give_no_nan(output):
    z = np.array([[900.0, -900.0, 0.0], [0.0, 0.0, 1e300]])
    y = output.mode(z)
    for values in (
        output.fisher_root(z), output.log_prob(z, y), output.score(z, y), output.kl(z, z)
    ):  # fmt: skip
        assert np.isfinite(values).all()
