"""Traces: contributions add up to the response, flows balance, edges cost what masking costs."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from fishertope.core.backend import to_numpy
from fishertope.core.errors import InvalidInputError
from fishertope.core.factorization import LowRankNPEFF, factorize, trace
from fishertope.core.fisher import LowRankFishers, per_example_fishers
from fishertope.core.model import Categorical, DenseNetwork, Gaussian, engine_for

torch = pytest.importorskip("torch")


def direction_of(engine, seed=0):
    """A factorization of one component over all parameters of an engine, made by hand."""
    p = engine.sites[-1].stop
    g = np.random.default_rng(seed).normal(size=p)
    rows = np.stack([g / np.linalg.norm(g), np.eye(p)[0]])[:, None, :]
    fishers = LowRankFishers.from_rows(rows, sites=engine.sites)
    found = factorize(fishers, LowRankNPEFF(2, n_starts=1), on_failure="return")
    return found.replace(components=rows[:, 0])


def response(engine, found, example):
    """(A_i g)_c from the engine's rows."""
    z = engine.predict(example)
    U = engine.output.fisher_root(z, reduced=not isinstance(engine.output, Categorical))
    return to_numpy(engine.rows(example, U))[0] @ found.components[0]


def balance(traced):
    """Largest difference between what enters and what leaves a node, as shares."""
    G = traced.graph()
    assert nx.is_directed_acyclic_graph(G)
    worst = 0.0
    for node, data in G.nodes(data=True):
        inflow = sum(d["value"] for *_, d in G.in_edges(node, data=True))
        outflow = sum(d["value"] for *_, d in G.out_edges(node, data=True))
        if node == "output":
            worst = max(worst, abs(inflow - 1.0))
        elif node != "parameters":
            passing = data["passing"]
            worst = max(worst, abs(inflow - passing), abs(outflow - passing))
    return worst


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.2 * torch.randn_like(p)
    return model


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=17, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, num_labels=3, max_position_embeddings=9,
    )  # fmt: skip
    model = seeded(lambda: transformers.BertForSequenceClassification(config))
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 4, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
    }
    return engine_for(model), batch, 5


def gpt2():
    transformers = pytest.importorskip("transformers")
    from fishertope.backends.torch_gpu.readout import LabelWords

    config = transformers.GPT2Config(
        vocab_size=17, n_embd=12, n_layer=2, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=1
    )
    model = seeded(lambda: transformers.GPT2LMHeadModel(config))
    batch = {"input_ids": torch.tensor([[2, 7, 9, 4, 3]])}
    return engine_for(model, outputs_of=LabelWords([3, 5, 6])), batch, 6


def t5():
    transformers = pytest.importorskip("transformers")
    from fishertope.backends.torch_gpu.readout import LabelWords

    config = transformers.T5Config(
        vocab_size=17, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = seeded(lambda: transformers.T5ForConditionalGeneration(config))
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 1]]),
        "decoder_input_ids": torch.tensor([[0, 5, 4]]),
    }
    words = LabelWords([3, 5], position=2)
    return engine_for(model, outputs_of=words, engine="functional"), batch, 14


def llama():
    transformers = pytest.importorskip("transformers")
    from fishertope.backends.torch_gpu.readout import LabelWords

    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=20, max_position_embeddings=9, pad_token_id=0,
    )  # fmt: skip
    model = seeded(lambda: transformers.LlamaForCausalLM(config))
    batch = {"input_ids": torch.tensor([[2, 7, 9, 4]])}
    return engine_for(model, outputs_of=LabelWords([3, 5])), batch, 6


class Answering(torch.nn.Module):
    """The project's own model with a few words as classes."""

    def __init__(self):
        super().__init__()
        from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig

        config = Seq2SeqConfig(vocab_size=17, d_model=12, d_ff=20, d_kv=6, heads=2, layers=2)
        self.model = Seq2Seq(config, torch.Generator().manual_seed(0))

    def forward(self, inputs, decoder_tokens):
        return self.model(inputs, decoder_tokens)[:, -1, :4]


def seq2seq():
    model = seeded(Answering)
    batch = {
        "inputs": torch.tensor([[2, 7, 9, 1]]),
        "decoder_tokens": torch.tensor([[0, 5]]),
    }
    return engine_for(model), batch, 14


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, dropout=0.0)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.encoder(x)[:, 0])


def torch_encoder():
    x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return engine_for(seeded(Encoder)), x, 4


FAMILIES = [bert, gpt2, t5, llama, seq2seq, torch_encoder]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_check_26_contributions_add_up_and_flows_balance(family):
    engine, example, n_blocks = family()
    found = direction_of(engine)
    traced = trace(engine, found, 0, example)
    expected = response(engine, found, example)
    # Llama's and T5's norms of transformers take their statistics in float32 whatever the dtype.
    close = 1e-8 if family not in (llama, t5) else 1e-5
    scale = np.abs(expected).max()
    assert np.abs(traced.totals - expected).max() <= close * scale
    assert np.abs(traced.explained - expected).max() <= close * scale
    assert traced.error <= close
    assert len(traced.blocks) == n_blocks
    assert balance(traced) <= close
    # The parameters of every part do something here, so the check is not one of zeros.
    assert all(np.abs(s).max() > 1e-8 for s in traced.shares[:-1])
    alone = trace(engine, found, 0, example, edges=False)
    assert not alone.flows.edges
    for a, b in zip(alone.shares, traced.shares, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


class Mixer(torch.nn.Module):
    """Mixes positions by a softmax of its own input, so that every edge exists."""

    def __init__(self, d):
        super().__init__()
        self.query = torch.nn.Linear(d, d)
        self.value = torch.nn.Linear(d, d)

    def forward(self, x):
        weights = torch.softmax(self.query(x) @ x.transpose(-1, -2), -1)
        return torch.tanh(weights @ self.value(x))


class Toy(torch.nn.Module):
    """Two residual blocks over positions; ``branch`` is added to the stream outside of itself."""

    def __init__(self, d=4):
        super().__init__()
        self.embed = torch.nn.Linear(3, d)
        self.branches = torch.nn.ModuleList([Mixer(d), Mixer(d)])
        self.head = torch.nn.Linear(d, 3)

    def forward(self, x):
        h = self.embed(x)
        for branch in self.branches:
            h = h + branch(h)
        return self.head(h.sum(1))


@pytest.fixture(scope="module")
def toy():
    model = seeded(Toy)
    x = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    engine = engine_for(model)
    found = direction_of(engine, seed=2)
    blocks = {"embed": "state", "branches.0": "branch", "branches.1": "branch"}
    return SimpleNamespace(model=model, x=x, engine=engine, found=found, blocks=blocks)


def linear_network(toy):
    """u_b (T, d), Jacobians of each branch (T, d, T, d), the head's (C, T, d) and own part (C,)."""
    from torch.autograd.functional import jacobian
    from torch.func import functional_call

    g = {
        s.name: torch.as_tensor(toy.found.components[0][s.start : s.stop]).reshape(s.shape)
        for s in toy.engine.sites
    }

    def own(module, prefix, h):
        """What a part's parameters change at its output while its input is held fixed."""
        parts = {n: p.detach() for n, p in module.named_parameters()}
        moves = {n: g[f"{prefix}.{n}"] for n in parts}
        step = 1e-6
        there, back = (
            functional_call(module, {n: p + s * moves[n] for n, p in parts.items()}, (h,))
            for s in (step, -step)
        )
        return ((there - back) / (2 * step)).detach()

    model = toy.model
    states = [model.embed(toy.x)]
    induced, jacobians = [own(model.embed, "embed", toy.x)[0]], []
    for i, branch in enumerate(model.branches):
        induced.append(own(branch, f"branches.{i}", states[-1])[0])
        jacobians.append(jacobian(branch, states[-1])[0, :, :, 0])
        states.append(states[-1] + branch(states[-1]))
    head = jacobian(lambda h: model.head(h.sum(1)), states[-1])[0, :, 0]
    readout = own(model.head, "head", states[-1].sum(1))[0]
    return induced, jacobians, head, readout


def masked(toy, parts, roots, *, no_induced=None, no_edge=None, no_residual=None):
    """U J g of the linearised network with one edge taken away."""
    induced, jacobians, head, readout = parts
    T = toy.x.shape[1]

    def u(b):
        keep = torch.ones(T, 1, dtype=torch.float64)
        if no_induced is not None and no_induced[0] == b:
            keep[no_induced[1]] = 0
        return induced[b] * keep

    h = u(0)
    for b, J in enumerate(jacobians, start=1):
        J, stay = J.clone(), torch.ones(T, 1, dtype=torch.float64)
        if no_edge is not None and no_edge[0] == b:
            J[no_edge[2], :, no_edge[1]] = 0
        if no_residual is not None and no_residual[0] == b:
            stay[no_residual[1]] = 0
        h = stay * h + u(b) + torch.einsum("tdse,se->td", J, h)
    return (roots @ (torch.einsum("ctd,td->c", head, h) + readout)).detach().numpy()


def test_check_26_edges_are_what_masking_them_costs(toy):
    traced = trace(toy.engine, toy.found, 0, toy.x, blocks=toy.blocks)
    assert balance(traced) <= 1e-8
    roots = Categorical().fisher_root(toy.engine.predict(toy.x), reduced=False)[0]
    parts = linear_network(toy)
    whole = masked(toy, parts, roots)
    close = {"atol": 1e-8 * np.abs(whole).max()}
    np.testing.assert_allclose(traced.totals, whole, **close)
    T = toy.x.shape[1]
    for b in range(3):
        for t in range(T):
            delta = whole - masked(toy, parts, roots, no_induced=(b, t))
            np.testing.assert_allclose(traced.flows.induced[b][:, t], delta, **close)
    seen = set()
    for e in traced.flows.edges:
        seen.add((e.source, e.target, e.kind))
        for t in range(T):
            if e.kind == "residual":
                delta = whole - masked(toy, parts, roots, no_residual=(e.target, t))
                np.testing.assert_allclose(e.values[:, t], delta, **close)
                continue
            for s in range(T):
                delta = whole - masked(toy, parts, roots, no_edge=(e.target, s, t))
                np.testing.assert_allclose(e.values[:, s, t], delta, **close)
    assert seen == {(b, b + 1, kind) for b in (0, 1) for kind in ("transformed", "residual")}


def test_any_cuts_give_the_same_sum(toy):
    whole = trace(toy.engine, toy.found, 0, toy.x, blocks=toy.blocks)
    for blocks in ({"embed": "state"}, {"branches.0.value": "branch"}, {"head": "state"}):
        other = trace(toy.engine, toy.found, 0, toy.x, blocks=blocks)
        np.testing.assert_allclose(other.explained, whole.totals, rtol=1e-10)
        assert other.error <= 1e-10
    assert toy.model.training is False
    assert not any(m._forward_hooks for m in toy.model.modules())


def test_a_trace_reads_well(toy):
    traced = trace(toy.engine, toy.found, 0, toy.x, blocks=toy.blocks, tokens=["a", "b", "c"])
    assert traced.positions == (("a", "b", "c"),) * 3
    assert traced.rows == ("class 0", "class 1", "class 2")
    assert "blocks=3" in repr(traced)
    total = sum(s.sum() for s in traced.shares) + traced.readout_share
    assert abs(total - 1) <= 1e-10
    few = trace(toy.engine, toy.found, 0, toy.x, blocks=toy.blocks, classes=[2])
    np.testing.assert_allclose(few.totals, traced.totals[2:])
    thin = traced.graph(minimum=0.05)
    assert 0 < thin.number_of_edges() < traced.graph().number_of_edges()
    assert min(abs(d["value"]) for *_, d in thin.edges(data=True)) >= 0.05
    assert traced.results()["blocks"][1]["name"] == "branches.0"


def test_dense_networks_are_traced_by_unit():
    rng = np.random.default_rng(0)
    net = DenseNetwork(
        [rng.normal(size=(6, 4)), rng.normal(size=(5, 6)), rng.normal(size=(3, 5))],
        [rng.normal(size=k) for k in (6, 5, 3)],
    )
    x = rng.normal(size=(30, 4))
    for output in (Categorical(), Gaussian()):
        engine = engine_for(net, output=output)
        found = factorize(per_example_fishers(engine, x), LowRankNPEFF(2), on_failure="return")
        traced = trace(engine, found, 0, x[3:4])
        np.testing.assert_allclose(traced.explained, response(engine, found, x[3:4]), rtol=1e-10)
        assert balance(traced) <= 1e-10
        assert [len(p) for p in traced.positions] == [6, 5, 3]


def test_bad_traces_are_named(toy):
    for options, words in (
        ({"classes": [7]}, "0 to 2"),
        ({"classes": []}, "0 to 2"),
        ({"blocks": {"nowhere": "state"}}, "nowhere"),
        ({"blocks": {"embed": "leaf"}}, "leaf"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            trace(toy.engine, toy.found, 0, toy.x, **({"blocks": toy.blocks} | options))
    with pytest.raises(InvalidInputError, match="register_blocks"):
        trace(toy.engine, toy.found, 0, toy.x)
    with pytest.raises(InvalidInputError, match="one is traced"):
        trace(toy.engine, toy.found, 0, toy.x.repeat(2, 1, 1), blocks=toy.blocks)


def test_families_can_be_added(toy, monkeypatch):
    from fishertope.backends.torch_gpu import blocks

    monkeypatch.setattr(blocks, "_FAMILIES", dict(blocks._FAMILIES))
    blocks.register_blocks("toy", [("embed", "state"), (r"branches\.\d+", "branch")])
    assert trace(toy.engine, toy.found, 0, toy.x).blocks == ("embed", "branches.0", "branches.1")
    with pytest.raises(InvalidInputError, match="malformed"):
        blocks.register_blocks("bad", [("(", "state")])
    with pytest.raises(InvalidInputError, match="'state' or 'branch'"):
        blocks.register_blocks("bad", [("x", "twig")])
