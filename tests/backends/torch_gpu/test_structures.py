"""Structures of torch modules against gradients of single examples and positions by autograd."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError  # noqa: E402
from fishertope.core.fisher import (  # noqa: E402
    DataLabels,
    Diagonal,
    Isotropic,
    Kronecker,
    ProbeLabels,
    SampledLabels,
    estimate_precision,
)
from fishertope.core.model import Categorical  # noqa: E402
from fishertope.core.testing.tolerances import deviation, tolerance  # noqa: E402

from .families import FAMILIES, family  # noqa: E402
from .test_module_engines import by_loop  # noqa: E402

IDENTITY = tolerance("identity").relative
MATRICES = ("gram", "kronecker", "ekfac")
ROWS = ("block", "lowrank+diagonal")


def close(found, expected):
    assert deviation(found, expected) <= IDENTITY


def roots_of(module, x):
    module.eval()
    with torch.no_grad():
        z = module(**x).logits if isinstance(x, dict) else module(x)
    return Categorical().fisher_root(z, reduced=False)


def site_rows(module, x, tree):
    """Gradients (n, k, *site shape) of every site, by a loop over examples and classes."""
    rows = by_loop(module, x, roots_of(module, x)).numpy()
    named, start = {}, 0
    for name, p in module.named_parameters():
        if p.requires_grad:
            named[name] = rows[:, :, start : start + p.numel()].reshape(*rows.shape[:2], *p.shape)
            start += p.numel()
    return {name: layout.join(named) for name, layout in tree.layouts.items()}


def positions(module, x):
    """Inputs (T, i) and output gradients (k, T, o) of every weight, example by example.

    By hooks on the layers; the products Σ_t δ_t a_tᵀ are compared with autograd's gradients.
    """
    tables = {m.weight for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    layers = {
        n: m for n, m in module.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d)
        or type(m).__name__ == "Conv1D"
        if m.weight.requires_grad and getattr(m, "groups", 1) == 1 and m.weight not in tables
    }  # fmt: skip
    kept: dict = {}
    roots = roots_of(module, x)

    def keep(name):
        def hook(_, args, z):
            call = [args[0].detach().clone(), None]
            kept.setdefault(name, []).append(call)
            # Not retain_grad: what follows may change z in place.
            z.register_hook(lambda grad: call.__setitem__(1, grad.clone()))

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in layers.items()]
    found: dict = {}
    for i in range(len(roots)):
        one = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]
        for u in roots[i]:
            kept.clear()
            module.zero_grad()
            z = module(**one).logits if isinstance(x, dict) else module(one)
            (z[0] @ u).backward()
            for name, calls in kept.items():
                layer = layers[name]
                pairs = [pair(layer, a, d) for a, d in calls if d is not None]
                a = torch.cat([p[0] for p in pairs])
                d = torch.cat([p[1] for p in pairs])
                grad = (d.T @ a).reshape(-1)
                w = layer.weight.grad
                w = w.T if type(layer).__name__ == "Conv1D" else w
                assert float((grad - w.reshape(-1)).abs().max()) <= 1e-10 * (
                    1e-12 + float(w.abs().max())
                )
                if layer.bias is not None:
                    a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
                found.setdefault(f"{name}.weight".lstrip("."), [[] for _ in roots])[i].append(
                    (a.detach(), d.detach())
                )
    for h in handles:
        h.remove()
    return {
        name: [(ks[0][0].numpy(), torch.stack([d for _, d in ks]).numpy()) for ks in examples]
        for name, examples in found.items()
    }


def pair(layer, a, d):
    """Inputs (T, i) and output gradients (T, o) of one call with one example."""
    if isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        flat = isinstance(layer, torch.nn.Conv1d)
        two = (lambda v, lead: (lead, v[0])) if flat else (lambda v, lead: tuple(v))
        patches = torch.nn.functional.unfold(
            a.unsqueeze(2) if flat else a, two(layer.kernel_size, 1), two(layer.dilation, 1),
            two(layer.padding, 0), two(layer.stride, 1),
        )  # fmt: skip
        return patches[0].T, d[0].flatten(1).T
    return a.reshape(-1, a.shape[-1]), d.reshape(-1, d.shape[-1])


def factors(examples, sharing):
    """A and B by their definitions."""
    n = len(examples)
    if sharing == "reduce":
        A = sum(np.outer(a.mean(0), a.mean(0)) for a, _ in examples) / n
        B = sum(d.sum(1).T @ d.sum(1) for _, d in examples) / n
    else:
        A = sum(a.T @ a for a, _ in examples) / sum(len(a) for a, _ in examples)
        B = sum(np.einsum("kto,ktp->op", d, d) for _, d in examples) / n
    return B, A


CONVOLVED = {
    "conv2d, one group": (
        lambda: torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
            torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(3),
        ),
        lambda n: torch.randn(n, 2, 4, 7, dtype=torch.float64),
    )
}  # fmt: skip


def any_family(name):
    if name not in CONVOLVED:
        return family(name)
    FAMILIES[name] = CONVOLVED[name]
    try:
        return family(name)
    finally:
        del FAMILIES[name]


NAMES = [*FAMILIES, *CONVOLVED]


@pytest.mark.parametrize("engine", ["hooks", "functional"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_equal_a_loop_over_examples_and_classes(name, engine):
    module, x = any_family(name)
    tree = estimate_precision(module, x, structure="block", engine=engine, batch_size=4)
    assert set(tree.parameters) == {n for n, p in module.named_parameters() if p.requires_grad}
    for site, rows in site_rows(module, x, tree).items():
        flat = rows.reshape(*rows.shape[:2], -1)
        P = np.einsum("nkp,nkq->pq", flat, flat) / len(x)
        if isinstance(tree[site], Diagonal):
            P = np.diag(np.diag(P))
        scale = max(np.abs(P).max(), 1e-12)
        assert np.abs(tree[site].to_dense() - P).max() <= IDENTITY * scale
        traces = (flat**2).sum((1, 2))
        assert np.isclose(tree[site].trace(), traces.mean(), rtol=IDENTITY, atol=1e-14)
        error = traces.std(ddof=1) / len(x) ** 0.5
        assert np.isclose(tree.trace_errors[site], error, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", NAMES)
def test_kronecker_factors_equal_their_definitions(name, sharing):
    module, x = any_family(name)
    tree = estimate_precision(module, x, structure="kronecker", sharing=sharing, batch_size=4)
    shown, rows = positions(module, x), site_rows(module, x, tree)
    matrices = 0
    for site, found in tree.items():
        if isinstance(found, Kronecker):
            matrices += 1
            if site not in shown:  # a layer that the outputs do not depend on
                assert found.trace() == 0
                continue
            B, A = factors(shown[site], sharing)
            close(found.input_factor, A)
            close(found.output_factor, B)
            assert found.sharing == sharing
        else:
            close(found.diagonal(), (rows[site] ** 2).sum(1).mean(0))
    assert matrices >= 1


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", NAMES)
def test_ekfac_scales_are_the_squares_of_gradients_in_the_eigenbasis(name, sharing):
    module, x = any_family(name)
    tree = estimate_precision(module, x, structure="ekfac", sharing=sharing, batch_size=4)
    kron = estimate_precision(module, x, structure="kronecker", sharing=sharing)
    block = estimate_precision(module, x, structure="block")
    for site, rows in site_rows(module, x, tree).items():
        found = tree[site]
        if isinstance(found, Diagonal):
            close(found.values, (rows**2).sum(1).mean(0))
            continue
        U, V = found.output_basis, found.input_basis
        turned = np.einsum("oj,nkoi,il->nkjl", U, rows, V)
        expected = (turned**2).sum(1).mean(0)
        assert np.abs(found.scales - expected).max() <= IDENTITY * max(expected.max(), 1e-12)
        B = kron[site].output_factor
        assert np.abs(U.T @ B @ U - np.diag(np.diag(U.T @ B @ U))).max() <= 1e-10 * (B.max() + 1e-9)
        # The eigenbasis' own scales are nearest to the block among all scales.
        P = block[site].to_dense()
        near = np.linalg.norm(found.to_dense() - P)
        assert near <= np.linalg.norm(kron[site].to_dense() - P) + 1e-12
        assert np.isclose(found.trace(), np.trace(P), rtol=1e-9, atol=1e-14)
        traces = (rows**2).sum((1, 2, 3))
        error = traces.std(ddof=1) / len(x) ** 0.5
        assert np.isclose(tree.trace_errors[site], error, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_low_rank_precisions_are_exact_up_to_their_rank_and_below_the_block_otherwise(name):
    module, x = any_family(name)
    block = estimate_precision(module, x, structure="block")
    exact = estimate_precision(module, x, structure="lowrank+diagonal", rank=40)
    coarse = estimate_precision(module, x, structure="lowrank+diagonal", rank=2)
    for site, P in ((s, p.to_dense()) for s, p in block.items()):
        scale = max(np.abs(P).max(), 1e-12)
        assert np.abs(exact[site].to_dense() - P).max() <= 1e-8 * scale
        assert np.abs(coarse[site].diagonal().ravel() - np.diag(P)).max() <= IDENTITY * scale
        if isinstance(coarse[site], Diagonal):
            continue
        assert coarse[site].rank <= 2
        flat = coarse[site].rows.reshape(coarse[site].rank, len(P))
        left = P - flat.T @ flat
        assert np.linalg.eigvalsh(left).min() >= -1e-9 * scale
        # No direction of rank two leaves less than the third eigenvalue; the sketch leaves little
        # more.
        values = np.linalg.eigvalsh(P)
        best = values[-3] if len(values) > 2 else 0.0
        assert np.linalg.norm(left, 2) <= 2 * best + 1e-9 * scale


@pytest.mark.parametrize("structure", [*MATRICES, *ROWS])
@pytest.mark.parametrize("name", ["mlp", "conv2d, one group", "tied", "transformers' Conv1D"])
@pytest.mark.parametrize("rule", [None, SampledLabels(2), ProbeLabels(2), "data"])
def test_merging_check_24_the_batch_size_changes_nothing(name, structure, rule):
    module, x = any_family(name)
    data = x
    if rule == "data":
        rule, data = DataLabels(), (x, torch.arange(len(x)) % 3)
    engines = ["hooks", "functional"] if structure in ROWS else ["hooks"]
    whole = estimate_precision(
        module, data, structure=structure, labels=rule, batch_size=len(x), seed=3, engine="hooks"
    )
    for engine in engines:
        for size in (1, 7, 4):
            part = estimate_precision(
                module, data, structure=structure, labels=rule, batch_size=size, seed=3,
                engine=engine,
            )  # fmt: skip
            for site, expected in whole.items():
                close(part[site].to_dense(), expected.to_dense())
                error = whole.trace_errors[site]
                assert np.isclose(part.trace_errors[site], error, rtol=1e-8, atol=1e-13)


def test_merging_check_30_gram_equals_xtx_over_t_with_masked_tokens_dropped():
    pytest.importorskip("transformers")
    from .test_transformers import batch, make

    model, x = make("bert"), batch()
    tree = estimate_precision(model, x, structure="gram", batch_size=3)
    kept = {}
    name = "bert.encoder.layer.1.attention.self.query"
    hook = model.get_submodule(name).register_forward_hook(
        lambda m, a, z: kept.setdefault("a", a[0].detach())
    )
    with torch.no_grad():
        model(**x)
    hook.remove()
    X = kept["a"][x["attention_mask"].bool()].numpy()
    found = tree[f"{name}.weight"].input_factor
    close(found[:-1, :-1], X.T @ X / len(X))
    close(found[:-1, -1], X.mean(0))
    assert np.isclose(found[-1, -1], 1.0, rtol=IDENTITY)
    assert tree.facts["n_positions"] == len(X)
    assert tree.facts["normalisation"] == "per position"
    assert tree.facts["labels"] == "none"
    norm = tree["bert.encoder.layer.0.output.LayerNorm.weight"]
    assert isinstance(norm, Isotropic)
    assert norm.scale == 1.0
    # Without the mask the padding would count.
    padded = kept["a"].reshape(-1, 16).numpy()
    assert deviation(found[:-1, :-1], padded.T @ padded / len(padded)) > 1e-3


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_padded_batches_have_the_factors_of_unpadded_examples(sharing):
    pytest.importorskip("transformers")
    from .test_transformers import batch, make

    model, x = make("bert"), batch()
    together = estimate_precision(model, x, structure="ekfac", sharing=sharing)
    alone = []
    for i, length in enumerate(x["attention_mask"].sum(1).tolist()):
        alone.append({k: v[i : i + 1, :length] for k, v in x.items()})
    each = estimate_precision(model, alone, structure="ekfac", sharing=sharing)
    kron = [
        estimate_precision(model, data, structure="kronecker", sharing=sharing)
        for data in (x, alone)
    ]
    largest = max(float(np.abs(p.diagonal()).max()) for p in each.values())
    for site in each:
        for a, b in ((together, each), kron):
            off = np.abs(a[site].diagonal() - b[site].diagonal()).max()
            assert off <= 1e-9 * largest
        if isinstance(kron[0][site], Kronecker):
            close(kron[0][site].input_factor, kron[1][site].input_factor)


def test_float32_models_give_the_float64_numbers_to_their_precision():
    module, x = family("linear over sequences")
    for structure in (*MATRICES, *ROWS):
        wide = estimate_precision(module.double(), x, structure=structure)
        single = estimate_precision(module.float(), x.float(), structure=structure)
        for site in wide:
            dense = single[site].to_dense()
            assert dense.dtype == np.float64
            assert deviation(dense, wide[site].to_dense()) < 1e-3


def test_merging_check_25_sampled_blocks_are_unbiased():
    module, x = family("mlp", n=3)
    exact = estimate_precision(module, x, structure="block")

    def draws(rule):
        trees = [
            estimate_precision(module, x, structure="block", labels=rule, seed=s)
            for s in range(150)
        ]
        return {site: np.stack([t[site].matrix for t in trees]) for site in exact}

    for few, many in ((SampledLabels(1), SampledLabels(4)), (ProbeLabels(1), ProbeLabels(4))):
        one, four = draws(few), draws(many)
        for site, P in ((s, p.matrix) for s, p in exact.items()):
            error = one[site].std(0, ddof=1) / 150**0.5
            assert np.all(np.abs(one[site].mean(0) - P) <= 4.5 * error + 1e-12)
            live = error > 1e-9
            ratio = four[site].std(0)[live] / one[site].std(0)[live]
            assert 0.4 < np.median(ratio) < 0.6


def test_merging_check_29_the_model_is_left_as_it_was():
    for structure in (*MATRICES, *ROWS):
        module, x = family("embedding, layer norm")
        module.train()
        module.head.eval()
        frozen = next(iter(module.parameters())).requires_grad_(False)
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
        state = torch.random.get_rng_state()
        before = [p.clone() for p in module.parameters()]
        tree = estimate_precision(module, x, structure=structure)
        assert module.training
        assert not module.head.training
        assert not frozen.requires_grad
        assert "table.weight" not in tree.parameters
        assert hooks == [
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()
        ]
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
        assert all(p.grad is None for p in module.parameters())


def test_models_without_layers_are_refused_with_the_reason():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))

        def forward(self, x):
            return x @ self.weight.T

    x = torch.randn(5, 4, dtype=torch.float64)
    for structure in MATRICES:
        with pytest.raises(InvalidInputError, match="has no rule"):
            estimate_precision(Odd(), x, structure=structure)
    assert estimate_precision(Odd(), x, structure="block")["weight"].shape == (3, 4)
    with pytest.raises(InvalidInputError, match="reads the data twice"):
        estimate_precision(family("mlp")[0], iter([x]), structure="ekfac")
    big = torch.nn.Linear(300, 40).double()
    with pytest.raises(InvalidInputError, match="12040 parameters"):
        estimate_precision(big, torch.randn(2, 300).double(), structure="block")
