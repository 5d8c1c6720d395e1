"""Fishers of every family end to end: the definition, differences, batches, draws, KL."""

import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fishertope.backends.torch_gpu.hooks import module_engine  # noqa: E402
from fishertope.core.errors import ConversionWarning  # noqa: E402
from fishertope.core.fisher import (  # noqa: E402
    FactoredProjection,
    FisherStore,
    ProbeLabels,
    RandomProjection,
    SampledLabels,
    estimate_precision,
    per_example_fishers,
)
from fishertope.core.testing.tolerances import deviation, tolerance  # noqa: E402

from .nets import NETS, PADDED, net  # noqa: E402

IDENTITY = tolerance("identity").relative
ENGINES = ("hooks", "functional")


def fishers(own, engine="auto", **options):
    """Masked transformers cannot be mapped over examples; the functional engine says so."""
    with warnings.catch_warnings():
        if engine == "functional":
            warnings.simplefilter("ignore", ConversionWarning)
        else:
            warnings.simplefilter("error")
        return per_example_fishers(
            own.module,
            own.x,
            engine=engine,
            outputs_of=own.outputs_of,
            params=own.params,
            **options,
        )


def by_definition(own, i):
    """√p_c ∇log p_c for each class, one backward pass each, of example i alone."""
    log_p = torch.log_softmax(own.outputs(own.alone(i))[0], 0)
    rows = []
    for value in log_p:
        found = torch.autograd.grad(value, own.chosen(), retain_graph=True, allow_unused=True)
        parts = zip(found, own.chosen(), strict=True)
        g = torch.cat([torch.zeros_like(p).reshape(-1) if a is None else a.reshape(-1)
                       for a, p in parts])  # fmt: skip
        rows.append(g * value.detach().exp().sqrt())
    return torch.stack(rows)


def moved(own, delta, step):
    """log p of every example alone at θ + step · δ; the module comes back to its bits."""
    before = [p.detach().clone() for p in own.chosen()]
    try:
        with torch.no_grad():
            start = 0
            for p in own.chosen():
                p += step * delta[start : start + p.numel()].reshape(p.shape)
                start += p.numel()
            n = len(own.x["input_ids"]) if isinstance(own.x, dict) else len(own.x)
            return torch.cat([torch.log_softmax(own.outputs(own.alone(i)), 1) for i in range(n)])
    finally:
        with torch.no_grad():
            for p, old in zip(own.chosen(), before, strict=True):
                p.copy_(old)


def direction(own):
    """A unit direction that leaves rows of padding tokens alone, which are never trained."""
    generator = torch.Generator().manual_seed(4)
    parts = []
    tables = {
        m.weight: m.padding_idx
        for m in own.module.modules()
        if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None
    }
    for p in own.chosen():
        part = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for table, row in tables.items():
            if p is table:
                part[row] = 0
        parts.append(part.reshape(-1))
    whole = torch.cat(parts)
    return whole / whole.norm()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETS)
def test_b1_both_engines_equal_the_loop_over_examples_and_classes(name, engine):
    own = net(name)
    rows, squares = fishers(own, engine), fishers(own, engine, kind="diagonal").values
    generator = torch.Generator().manual_seed(1)
    probes = torch.randn(rows.n_columns, 4, generator=generator, dtype=torch.float64)
    for i in range(len(rows)):
        A, B = by_definition(own, i), rows.block(i)
        assert len(B) == len(A) - 1, "rank C − 1"
        assert deviation(B.T @ (B @ probes), A.T @ (A @ probes)) <= IDENTITY
        assert deviation(squares[i], A.square().sum(0)) <= IDENTITY


@pytest.mark.parametrize("name", NETS)
def test_b1_the_fisher_equals_finite_differences_of_the_log_probabilities(name):
    own, h = net(name), 1e-5
    delta = direction(own)
    rows = fishers(own)
    found = [float((rows.block(i) @ delta).square().sum()) for i in range(len(rows))]
    p = moved(own, delta, 0.0).exp()
    slopes = (moved(own, delta, h) - moved(own, delta, -h)) / (2 * h)
    np.testing.assert_allclose(found, (p * slopes**2).sum(1), rtol=1e-5)


def test_b1_only_the_low_rank_additions_when_the_rest_is_frozen():
    own = net("padded gpt2 with LoRA")
    names = [s.name for s in fishers(own).sites]
    assert sorted({n.split(".")[-2] for n in names}) == ["a", "b", "score"]
    chosen = per_example_fishers(own.module, own.x, params=["*.a.*", "*.b.*"])
    assert [s.name for s in chosen.sites] == [n for n in names if n != "score.weight"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "diagonal"},
        {"labels": SampledLabels(2)},
        {"labels": ProbeLabels(2), "reduce": RandomProjection(16)},
        {"reduce": FactoredProjection(16)},
    ],
    ids=["rows", "diagonal", "sampled", "probes, projected", "factored"],
)
@pytest.mark.parametrize("name", ["conv2d", "attention", "padded bert"])
def test_b2_batches_of_1_7_and_all_write_the_same_store(tmp_path, name, options, dtype):
    own = net(name)
    module = own.module.to(getattr(torch, dtype))
    n, stores = len(own.alone(0)) and (4 if isinstance(own.x, dict) else len(own.x)), []
    x = own.x if isinstance(own.x, dict) else own.x.to(getattr(torch, dtype))
    for size in (1, 7, n):
        folder = tmp_path / str(size)
        per_example_fishers(module, x, store=folder, shard_examples=3, batch_size=size, **options)
        stores.append(FisherStore.open(folder))
    first, *others = (s.load() for s in stores)
    bound = 1e-12 if dtype == "float64" else tolerance("identity", dtype).relative
    for other in others:
        if options.get("kind") == "diagonal":
            assert deviation(other.values, first.values) <= bound
        else:
            assert np.array_equal(other.offsets, first.offsets)
            assert deviation(other.rows, first.rows) <= bound
            assert deviation(other.norms, first.norms) <= bound
    assert {s.manifest["facts"]["n"] for s in stores} == {n}


@pytest.mark.parametrize("labels", [None, SampledLabels(2)], ids=["exact", "sampled"])
@pytest.mark.parametrize("name", ["conv2d", "attention", "padded bert"])
def test_b2_batches_of_1_7_and_all_give_the_same_precision(name, labels):
    own = net(name)
    trees = [
        estimate_precision(own.module, own.x, labels=labels, batch_size=size) for size in (1, 7, 64)
    ]
    first, largest = trees[0], max(p.values.max() for p in trees[0].values())
    for tree in trees[1:]:
        for site in tree:
            # The bias of the keys has no gradient; what rounding leaves of it is not compared.
            moved = np.abs(tree[site].values - first[site].values).max()
            assert moved <= 1e-10 * max(first[site].values.max(), 1e-12 * largest)
            scale = max(first.trace_errors[site], 1e-12 * max(first.trace_errors.values()))
            assert abs(tree.trace_errors[site] - first.trace_errors[site]) <= 1e-10 * scale


def test_b2_workers_of_a_data_loader_write_the_same_bytes(tmp_path):
    own = net("attention")
    data = torch.utils.data.TensorDataset(own.x)
    written = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers)
        per_example_fishers(own.module, loader, store=folder, shard_examples=4)
        written.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert written[0] == written[1]


CHOSEN = ["classifier.*", "*layer.1.output.dense.bias"]


def copies(own, n):
    """One sentence n times: every copy has draws of its own."""
    return {k: v[1:2].expand(n, -1) for k, v in own.x.items()}


@pytest.mark.parametrize("rule", [SampledLabels, ProbeLabels], ids=lambda r: r.__name__)
def test_b3_the_mean_of_10000_draws_is_the_fisher(rule):
    own = net("padded bert")
    A = per_example_fishers(own.module, copies(own, 1), params=CHOSEN).rows.numpy()
    drawn = per_example_fishers(
        own.module, copies(own, 2500), labels=rule(4), params=CHOSEN, batch_size=500
    )
    B = 2 * drawn.rows.numpy()  # each of the four rows carries 1/√4
    products = np.einsum("rj,rk->rjk", B[:, ::3], B[:, ::5])
    assert len(products) == 10_000
    error = products.std(0, ddof=1) / 100
    # Entries that are zero for every label are zero in every draw.
    assert np.all(np.abs(products.mean(0) - A[:, ::3].T @ A[:, ::5]) <= 4 * error + 1e-14)


@pytest.mark.parametrize("rule", [SampledLabels, ProbeLabels], ids=lambda r: r.__name__)
def test_b3_four_times_the_draws_halve_the_standard_error(rule):
    own = net("padded bert")

    def spread(draws):
        return per_example_fishers(
            own.module, copies(own, 4000), labels=rule(draws), params="classifier.*",
            batch_size=1000,
        ).traces().std()  # fmt: skip

    # Two standard deviations of 4,000 values each: their ratio is known to about 2 %.
    assert 1.85 <= spread(2) / spread(8) <= 2.15


@pytest.mark.parametrize("rule", [SampledLabels, ProbeLabels], ids=lambda r: r.__name__)
def test_b3_seeds_repeat_bitwise(rule):
    own = net("padded bert")
    first, same, other = (
        per_example_fishers(own.module, own.x, labels=rule(3), seed=seed).rows for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", PADDED)
def test_b4_kl_is_half_the_quadratic_form_and_the_error_halves(name):
    own = net(name)
    rows, delta = fishers(own), direction(own)
    half = np.array([0.5 * float((rows.block(i) @ delta).square().sum()) for i in range(len(rows))])
    log_p = moved(own, delta, 0.0)
    errors = []
    for eps in (8e-3, 4e-3, 2e-3, 1e-3):
        log_q = moved(own, delta, eps)
        kl = (log_p.exp() * (log_p - log_q)).sum(1).numpy()
        errors.append(np.abs(kl / eps**2 - half).max() / half.max())
    for larger, smaller in itertools.pairwise(errors):
        assert 1.8 <= larger / smaller <= 2.2
    assert errors[-1] < 0.05


def test_engines_say_which_way_they_went():
    for name in PADDED:
        own = net(name)
        engine = module_engine(own.module, outputs_of=own.outputs_of)
        if own.params is not None:
            engine = engine.restricted([s.name for s in engine.sites if own.params(s.name)])
        assert engine.explanation.startswith("hooks"), name
