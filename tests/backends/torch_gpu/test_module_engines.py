"""Hooks and function transforms against a loop over examples and classes."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.backends.torch_gpu.engine import ModuleEngine  # noqa: E402
from fishertope.backends.torch_gpu.hooks import HooksEngine, module_engine  # noqa: E402
from fishertope.core.errors import ConversionWarning, InvalidInputError  # noqa: E402
from fishertope.core.fisher import per_example_fishers  # noqa: E402
from fishertope.core.model import ModelEngine  # noqa: E402
from fishertope.core.testing.tolerances import tolerance  # noqa: E402

from .families import FAMILIES, Behind, Mixing, family  # noqa: E402

IDENTITY = tolerance("identity").relative


def by_loop(module, x, roots):
    """U_i J_i by one backward pass an example and root."""
    module.eval()
    chosen = [p for p in module.parameters() if p.requires_grad]
    out = []
    for i in range(len(roots)):
        one = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]
        z = module(**one).logits if isinstance(x, dict) else module(one)
        for u in roots[i]:
            g = torch.autograd.grad(z[0] @ u, chosen, retain_graph=True, allow_unused=True)
            zero = [torch.zeros_like(p) if a is None else a for a, p in zip(g, chosen, strict=True)]
            out.append(torch.cat([a.reshape(-1) for a in zero]))
    return torch.stack(out).reshape(len(roots), roots.shape[1], -1)


def random_roots(n, C, k=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, k, C, generator=generator, dtype=torch.float64)


def close(actual, expected):
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= IDENTITY * scale


def padding(engine):
    """Where θ holds the row of a padding token, which is never trained."""
    out = np.zeros(engine.sites[-1].stop, dtype=bool)
    by = {s.name: s for s in engine.sites}
    for name, m in engine.module.named_modules():
        if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None:
            start = by[f"{name}.weight"].start + m.padding_idx * m.embedding_dim
            out[start : start + m.embedding_dim] = True
    return out


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", [HooksEngine, ModuleEngine])
def test_rows_and_squares_equal_the_loop(name, kind):
    module, x = family(name)
    engine = kind(module)
    C = engine.predict(x).shape[1]
    roots = random_roots(len(x), C)
    expected = by_loop(module, x, roots)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(engine.rows(x, roots), expected)
        close(engine.diagonal(x, roots), expected.square().sum(1))
        close(engine.diagonal_sum(x, roots)[0], expected.square().sum((0, 1)))
        for size in (1, 4):
            parts = [
                engine.diagonal_sum(x[i : i + size], roots[i : i + size])[0]
                for i in range(0, len(x), size)
            ]
            close(sum(parts), expected.square().sum((0, 1)))
    assert isinstance(engine, ModelEngine)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_equal_finite_differences(name):
    module, x = family(name, n=3)
    engine = module_engine(module)
    assert engine.explanation.startswith("hooks")
    C, p = engine.predict(x).shape[1], engine.sites[-1].stop
    rows = engine.rows(x, torch.eye(C, dtype=torch.float64).expand(3, C, C))
    h = 1e-5
    free = np.flatnonzero(~padding(engine))
    for j in np.random.default_rng(0).choice(free, size=8, replace=False):
        step = torch.zeros(p, dtype=torch.float64)
        step[j] = h
        with engine.patch(step):
            up = engine.predict(x)
        with engine.patch(-step):
            down = engine.predict(x)
        # A rectifier's kink may lie between the two points.
        if "twice" in name and bool((rows[:, :, j] - (up - down) / (2 * h)).abs().max() > 1e-3):
            continue
        np.testing.assert_allclose(rows[:, :, j], (up - down) / (2 * h), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_jvp_and_vjp_are_adjoint(name):
    module, x = family(name)
    engine = module_engine(module)
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(engine.predict(x).shape, generator=generator, dtype=torch.float64)
    delta = torch.randn(engine.sites[-1].stop, generator=generator, dtype=torch.float64)
    delta[padding(engine)] = 0.0
    forward, reverse = (engine.jvp(x, delta) * u).sum(), engine.vjp(x, u) @ delta
    assert abs(forward - reverse) <= IDENTITY * abs(reverse)
    close(engine.rows(x, u[:, None]).sum((0, 1)), engine.vjp(x, u))


@pytest.mark.parametrize("kind", [HooksEngine, ModuleEngine])
def test_the_module_is_as_before_whatever_happens(kind):
    module, x = family("conv2d")
    module.train()
    module[1].eval()
    next(module.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    buffers = [b.clone() for b in module.buffers()]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    engine = kind(module)

    def unchanged():
        assert [p.requires_grad for p in module.parameters()] == flags
        assert [m.training for m in module.modules()] == modes
        assert all(p.grad is None for p in module.parameters())
        assert all(torch.equal(a, b) for a, b in zip(module.buffers(), buffers, strict=True))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())

    engine.rows(x, random_roots(6, 3))
    engine.diagonal_sum(x, random_roots(6, 3))[0]
    unchanged()
    for bad in (x[:, :1], x[:, :, :1]):
        with pytest.raises((RuntimeError, InvalidInputError)):
            engine.rows(bad, random_roots(6, 3))
        unchanged()
    with pytest.raises((RuntimeError, InvalidInputError, ValueError)):
        engine.rows(x, random_roots(5, 3))
    unchanged()


@pytest.mark.parametrize(("make", "words"), [(Behind, "outside the calls"), (Mixing, "first axis")])
def test_gradients_that_the_layers_do_not_tell_are_noticed(make, words):
    torch.manual_seed(0)
    module = make().double()
    x = torch.randint(6, (5, 3)) if make is Behind else torch.randn(5, 5, 4, dtype=torch.float64)
    C = module(x).shape[1]
    roots = random_roots(5, C)
    with pytest.raises(InvalidInputError, match=words):
        HooksEngine(module).rows(x, roots)
    engine = module_engine(module)
    with pytest.warns(ConversionWarning, match=words):
        rows = engine.rows(x, roots)
    close(rows, by_loop(module, x, roots))
    assert words in engine.explanation
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(engine.diagonal(x, roots), rows.square().sum(1))


def test_auto_explains_its_choice_and_makes_it_anew_for_some_parameters():
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])

    module = Net().double()
    engine = module_engine(module)
    assert engine.explanation == "functional: 'attention' (MultiheadAttention) has no rule"
    with pytest.raises(InvalidInputError, match="MultiheadAttention"):
        module_engine(module, engine="hooks")
    with pytest.raises(InvalidInputError, match="accepted"):
        module_engine(module, engine="fast")
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    roots = random_roots(4, 3)
    close(engine.rows(x, roots), by_loop(module, x, roots))
    head = engine.restricted(["head.weight"])
    assert head.explanation.startswith("hooks")
    site = next(s for s in engine.sites if s.name == "head.weight")
    close(head.rows(x, roots), engine.rows(x, roots)[:, :, site.start : site.stop])
    # Called as a layer it is not: its gradient must not silently be zero.
    out = engine.restricted(["attention.out_proj.weight"])
    with pytest.warns(ConversionWarning, match="out_proj"):
        rows = out.rows(x, roots)
    site = next(s for s in engine.sites if s.name == "attention.out_proj.weight")
    close(rows, by_loop(module, x, roots)[:, :, site.start : site.stop])
    with pytest.raises(InvalidInputError, match="tail"):
        engine.restricted(["tail"])


def test_modules_that_cannot_be_mapped_are_looped_with_one_warning():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return torch.tanh(x * self.scale) if bool(x.sum() > 0) else x * self.scale**2

    module = Branching()
    x = torch.randn(5, 4, dtype=torch.float64)
    roots = random_roots(5, 4)
    engine = module_engine(module)
    with pytest.warns(ConversionWarning, match="Branching"):
        rows = engine.rows(x, roots)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.rows(x, roots)
    close(rows, by_loop(module, x, roots))


@pytest.mark.parametrize("engine", ["hooks", "functional"])
def test_fishers_of_some_parameters_by_either_engine(engine):
    module, x = family("attention")
    whole = per_example_fishers(module, x, engine=engine)
    part = per_example_fishers(module, x, params="qkv.*", engine=engine)
    assert [s.name for s in part.sites] == ["qkv.weight", "qkv.bias"]
    by = {s.name: s for s in whole.sites}
    columns = np.concatenate([np.arange(by[s.name].start, by[s.name].stop) for s in part.sites])
    close(part.rows, whole.rows[:, columns])
    diagonal = per_example_fishers(module, x, kind="diagonal", params="qkv.*", engine=engine)
    close(diagonal.values, part.rows.reshape(6, 2, -1).square().sum(1))
    assert engine in part.facts["engine"]
