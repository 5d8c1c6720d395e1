"""Engines: exact derivatives, and parameters that always come back."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest

from fishertope.core.backend import to_numpy
from fishertope.core.errors import ArrayTypeError, EngineNotFound, InvalidInputError
from fishertope.core.model import (
    Bernoulli,
    Categorical,
    DenseNetwork,
    Gaussian,
    ModelEngine,
    engine_for,
    register_engine,
)
from fishertope.core.testing.tolerances import tolerance

IDENTITY = tolerance("identity").relative
SIZES = (5, 7, 6, 4)


def dense(seed=0, activation="tanh"):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in itertools.pairwise(SIZES)]
    return DenseNetwork(weights, [0.3 * rng.normal(size=b) for b in SIZES[1:]], activation)


def as_torch(net):
    torch = pytest.importorskip("torch")
    return DenseNetwork(
        [torch.tensor(W) for W in net.weights], [torch.tensor(b) for b in net.biases],
        net.activation,
    )  # fmt: skip


def as_module(net):
    torch = pytest.importorskip("torch")
    phi = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "identity": torch.nn.Identity}
    layers = []
    for W, b in zip(net.weights, net.biases, strict=True):
        linear = torch.nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(W))
            linear.bias.copy_(torch.tensor(b))
        layers += [linear, phi[net.activation]()]
    return torch.nn.Sequential(*layers[:-1])


FORMS = {"numpy": lambda net: net, "torch": as_torch, "module": as_module}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture
def inputs():
    return np.random.default_rng(1).normal(size=(9, SIZES[0]))


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
def test_rows_are_the_jacobian_by_finite_differences(form, inputs, activation):
    engine = engine_for(form(dense(activation=activation)))
    n, C, p = len(inputs), SIZES[-1], engine.sites[-1].stop
    roots = np.tile(np.eye(C), (n, 1, 1))
    rows = to_numpy(engine.rows(inputs, _like(engine, roots)))
    assert rows.shape == (n, C, p)
    h = 1e-5
    for j in range(0, p, 7):
        step = np.zeros(p)
        step[j] = h
        with engine.patch(_like(engine, step)):
            up = to_numpy(engine.predict(inputs))
        with engine.patch(_like(engine, -step)):
            down = to_numpy(engine.predict(inputs))
        np.testing.assert_allclose(
            rows[:, :, j], (up - down) / (2 * h), atol=tolerance("finite_differences").relative
        )


def test_jvp_and_vjp_are_adjoint_and_agree_with_rows(form, inputs):
    engine = engine_for(form(dense()))
    rng = np.random.default_rng(2)
    p = engine.sites[-1].stop
    delta, u = rng.normal(size=p), rng.normal(size=(len(inputs), SIZES[-1]))
    forward = to_numpy(engine.jvp(inputs, _like(engine, delta)))
    reverse = to_numpy(engine.vjp(inputs, _like(engine, u)))
    assert abs((forward * u).sum() - reverse @ delta) <= IDENTITY * abs(reverse @ delta)
    rows = to_numpy(engine.rows(inputs, _like(engine, u[:, None, :])))[:, 0]
    np.testing.assert_allclose(rows.sum(0), reverse, atol=1e-12)
    np.testing.assert_allclose(rows @ delta, (forward * u).sum(1), atol=1e-12)


def test_all_engines_of_one_network_agree(inputs):
    net = dense(activation="relu")
    engines = [engine_for(f(net)) for f in FORMS.values()]
    roots = np.random.default_rng(3).normal(size=(len(inputs), 2, SIZES[-1]))
    first, *others = [to_numpy(e.rows(inputs, _like(e, roots))) for e in engines]
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12)
    for engine in engines:
        assert isinstance(engine, ModelEngine)
        np.testing.assert_allclose(to_numpy(engine.theta()), to_numpy(engines[0].theta()))


def test_rows_do_not_depend_on_who_else_is_in_the_batch(form, inputs):
    engine = engine_for(form(dense()))
    roots = np.random.default_rng(3).normal(size=(len(inputs), 2, SIZES[-1]))
    whole = to_numpy(engine.rows(inputs, _like(engine, roots)))
    single = [
        to_numpy(engine.rows(inputs[i : i + 1], _like(engine, roots[i : i + 1]))) for i in range(9)
    ]
    np.testing.assert_allclose(whole, np.concatenate(single), atol=1e-13)


@pytest.mark.parametrize("fails", [False, True])
def test_patch_restores_every_bit(form, inputs, fails):
    engine = engine_for(form(dense()))
    before = to_numpy(engine.theta()).copy()
    delta = _like(engine, np.full(len(before), 0.1))
    expected = pytest.raises(RuntimeError, match="stop") if fails else nullcontext()
    with expected, engine.patch(delta), engine.patch(delta):
        np.testing.assert_allclose(to_numpy(engine.theta()), before + 0.2)
        if fails:
            raise RuntimeError("stop")
    assert np.array_equal(to_numpy(engine.theta()), before)


def test_module_mode_and_random_state_are_as_before(inputs):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        as_module(dense()), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3, dtype=torch.float64)
    ).train()
    module[1].eval()
    engine = engine_for(module)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    z = engine.predict(inputs)
    rows = engine.rows(inputs, torch.ones(9, 1, 3, dtype=torch.float64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training
    assert not module[1].training
    assert torch.equal(z, engine.predict(inputs))
    assert all(p.grad is None for p in module.parameters())
    assert rows.shape == (9, 1, engine.sites[-1].stop)


def test_tied_and_frozen_parameters():
    torch = pytest.importorskip("torch")

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
            self.second = self.first
            self.last = torch.nn.Linear(4, 2, dtype=torch.float64)
            self.last.bias.requires_grad_(False)

        def forward(self, x):
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    engine = engine_for(Tied())
    assert [s.name for s in engine.sites] == ["first.weight", "last.weight"]
    x = np.random.default_rng(0).normal(size=(3, 4))
    u = torch.randn(3, 2, dtype=torch.float64)
    z = engine.module(torch.tensor(x))
    z.backward(u)
    expected = torch.cat(
        [engine.module.first.weight.grad.reshape(-1), engine.module.last.weight.grad.reshape(-1)]
    )
    np.testing.assert_allclose(to_numpy(engine.vjp(x, u)), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("how", ["one module twice", "one parameter in two modules"])
def test_a_module_with_ties_keeps_its_own_parameters(how):
    """An optimizer that was made before must still train the module afterwards."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 4, dtype=torch.float64), torch.nn.Tanh(),
        torch.nn.Linear(4, 4, dtype=torch.float64),
    )  # fmt: skip
    if how == "one module twice":
        net[2] = net[0]
    else:
        net[2].weight = net[0].weight
    before = [id(p) for p in net.parameters()]
    engine = engine_for(net)
    x = np.random.default_rng(0).normal(size=(3, 4))
    u = np.random.default_rng(1).normal(size=(3, 4))
    whole = to_numpy(engine.vjp(x, u))
    net(torch.tensor(x)).backward(torch.tensor(u))
    expected = torch.cat([p.grad.reshape(-1) for p in net.parameters()]).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    engine.jvp(x, np.ones(engine.sites[-1].stop))
    engine.rows(x, np.ones((3, 1, 4)))
    engine.predict(x)
    assert [id(p) for p in net.parameters()] == before
    assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in net.parameters())


def test_dict_batches_and_objects_with_logits():
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(11, 4, dtype=torch.float64)
            self.head = torch.nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, ids, mask):
            h = (self.table(ids) * mask[..., None]).sum(1)
            return SimpleNamespace(logits=self.head(torch.tanh(h)))

    engine = engine_for(Words())
    batch = {"ids": torch.randint(11, (5, 6)), "mask": torch.ones(5, 6, dtype=torch.float64)}
    assert engine.predict(batch).shape == (5, 3)
    rows = engine.rows(batch, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    u = torch.ones(5, 3, dtype=torch.float64)
    np.testing.assert_allclose(rows.sum((0, 1)).numpy(), engine.vjp(batch, u).numpy(), atol=1e-12)


def test_an_unknown_model_is_refused_and_a_registered_one_is_taken():
    class Mine:
        pass

    with pytest.raises(EngineNotFound, match="register_engine"):
        engine_for(Mine())
    register_engine(Mine.__module__, Mine.__qualname__, f"{__name__}:engine_of_mine")
    import sys

    sys.modules[__name__].engine_of_mine = lambda model, output=None: engine_for(dense())
    assert engine_for(Mine()).predict(np.zeros((1, 5))).shape == (1, 4)


@pytest.mark.parametrize(
    ("weights", "biases", "activation"),
    [
        ([], [], "relu"),
        ([np.ones((2, 3))], [], "relu"),
        ([np.ones((2, 3)), np.ones((2, 3))], [np.ones(2), np.ones(2)], "relu"),
        ([np.ones((2, 3))], [np.ones(3)], "relu"),
        ([np.ones((2, 3))], [np.ones(2)], "gelu"),
    ],
)
def test_networks_that_do_not_chain_are_refused(weights, biases, activation):
    with pytest.raises(InvalidInputError):
        DenseNetwork(weights, biases, activation)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda W, b: ([W[0].tolist(), W[1]], b),
        lambda W, b: ([W[0].astype(np.float32), W[1]], b),
        lambda W, b: ([w.astype(np.float16) for w in W], [v.astype(np.float16) for v in b]),
        lambda W, b: ([w.astype(int) for w in W], [v.astype(int) for v in b]),
        lambda W, b: ([pytest.importorskip("torch").tensor(W[0]), W[1]], b),
    ],
)
def test_weights_that_are_not_of_one_floating_kind_are_refused(spoil):
    net = dense()
    with pytest.raises(ArrayTypeError, match="taken"):
        DenseNetwork(*spoil(list(net.weights[:2]), list(net.biases[:2])))


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(InvalidInputError, match="layer 0: 1 of 6"):
        DenseNetwork([np.array([[1.0, np.nan, 1], [1, 1, 1]])], [np.zeros(2)])


def test_a_network_keeps_its_own_list_of_layers():
    weights = [np.ones((2, 3))]
    net = DenseNetwork(weights, [np.zeros(2)])
    weights[0] = np.ones((9, 9))
    assert net.sizes == (3, 2)


def test_foreign_vectors_are_converted_and_wrong_ones_named(inputs):
    torch = pytest.importorskip("torch")
    net = dense()
    ours, theirs = engine_for(net), engine_for(as_torch(net))
    rng = np.random.default_rng(5)
    delta = rng.normal(size=ours.n_parameters)
    roots = rng.normal(size=(len(inputs), 2, SIZES[-1]))
    np.testing.assert_allclose(
        to_numpy(theirs.jvp(torch.tensor(inputs), delta)), ours.jvp(inputs, delta), atol=1e-12
    )
    np.testing.assert_allclose(
        to_numpy(theirs.rows(inputs, roots)), ours.rows(inputs, torch.tensor(roots)), atol=1e-12
    )
    for call in (
        lambda: ours.jvp(inputs, delta[1:]),
        lambda: ours.vjp(inputs, roots[:, 0, :2]),
        lambda: ours.vjp(inputs, roots[:1, 0]),
        lambda: ours.rows(inputs, roots[:, :, :2]),
        lambda: ours.rows(inputs, roots[:1]),
        lambda: ours.patch(delta[1:]).__enter__(),
        lambda: ours.patch(delta * np.nan).__enter__(),
        lambda: ours.predict(inputs.astype(complex)),
        lambda: ours.predict(inputs.astype(object)),
        lambda: ours.predict(inputs.tolist()),
    ):
        with pytest.raises(InvalidInputError):
            call()
    np.testing.assert_array_equal(ours.theta(), to_numpy(theirs.theta()))


def test_read_only_weights_are_used_but_not_moved(inputs):
    net = dense()
    for W in net.weights:
        W.flags.writeable = False
    engine = engine_for(net)
    before = engine.theta()
    assert engine.predict(inputs).shape == (9, 4)
    with pytest.raises(InvalidInputError, match=r"layers\.0\.weight.*read-only"):
        engine.patch(np.ones(engine.n_parameters)).__enter__()
    assert np.array_equal(engine.theta(), before)


def test_tensors_that_record_gradients_are_moved_and_restored(inputs):
    torch = pytest.importorskip("torch")
    net = as_torch(dense())
    for x in (*net.weights, *net.biases):
        x.requires_grad_(True)
    engine = engine_for(net)
    before = [W.detach().clone() for W in net.weights]
    with engine.patch(torch.ones(engine.n_parameters)):
        assert torch.equal(net.weights[0], before[0] + 1)
        assert not engine.predict(torch.tensor(inputs, requires_grad=True)).requires_grad
    assert all(torch.equal(W, kept) for W, kept in zip(net.weights, before, strict=True))


def test_an_engine_has_its_own_output():
    engine = engine_for(dense(), output=Gaussian(2.0))
    assert engine_for(engine, output=Gaussian(2.0)) is engine
    with pytest.raises(InvalidInputError, match="has its own"):
        engine_for(engine, output=Categorical())
    with pytest.raises(InvalidInputError, match="has its own"):
        engine_for(engine, outputs_of=None)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros(5), np.full((3, 5), np.nan), "text"])
def test_inputs_that_do_not_fit_are_refused(bad):
    with pytest.raises(InvalidInputError):
        engine_for(dense()).predict(bad)


class TestScikitLearn:
    def fit(self, kind, y, **options):
        pytest.importorskip("sklearn")
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        x = np.random.default_rng(0).normal(size=(60, 3))
        cls = MLPClassifier if kind == "classifier" else MLPRegressor
        return cls(hidden_layer_sizes=(5,), solver="lbfgs", alpha=1.0, max_iter=500, **options).fit(
            x, y(x)
        ), x

    def test_multiclass(self):
        net, x = self.fit("classifier", lambda x: np.digitize(x[:, 0], [-0.5, 0.5]))
        engine = engine_for(net)
        assert isinstance(engine.output, Categorical)
        p = np.exp(engine.output.log_probs(engine.predict(x)))
        np.testing.assert_allclose(p, net.predict_proba(x), atol=1e-12)

    def test_binary_is_one_logit(self):
        net, x = self.fit("classifier", lambda x: x[:, 0] > 0, activation="tanh")
        engine = engine_for(net)
        assert isinstance(engine.output, Bernoulli)
        z = engine.predict(x)
        np.testing.assert_allclose(1 / (1 + np.exp(-z[:, 0])), net.predict_proba(x)[:, 1])

    def test_regression_and_a_patch_that_shows_in_the_model(self):
        net, x = self.fit("regressor", lambda x: x[:, 0] ** 2)
        engine = engine_for(net)
        assert isinstance(engine.output, Gaussian)
        before = net.predict(x)
        np.testing.assert_allclose(engine.predict(x)[:, 0], before, atol=1e-12)
        with engine.patch(np.full(engine.n_parameters, 0.1)):
            assert np.abs(net.predict(x) - before).max() > 1e-3
        assert np.array_equal(net.predict(x), before)

    def test_unfitted_and_logistic_are_refused(self):
        from sklearn.neural_network import MLPClassifier

        with pytest.raises(InvalidInputError, match="not fitted"):
            engine_for(MLPClassifier())
        net, _ = self.fit("classifier", lambda x: x[:, 0] > 0, activation="logistic")
        with pytest.raises(InvalidInputError, match="hidden activation 'logistic'"):
            engine_for(net)


def _like(engine, x):
    theta = engine.theta()
    if isinstance(theta, np.ndarray):
        return x
    import torch

    return torch.tensor(x, dtype=theta.dtype)
