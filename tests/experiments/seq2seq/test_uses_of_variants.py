"""What the rest of the toolkit does with variants: training, folders, adapters, Fishers."""
# ruff: noqa: E402

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig, shift_right, token_loss
from fishertope.experiments.text2text import ByteVocabulary, Lengths, TaskStream
from fishertope.experiments.text2text.finetuning import add_adapters, unfreeze_gradually
from fishertope.experiments.text2text.folders import load_model, save_model
from fishertope.experiments.text2text.steps import batch_loss
from fishertope.experiments.text2text.streams import BatchStream

CONFIG = Seq2SeqConfig(
    vocab_size=300, d_model=16, d_ff=24, d_kv=8, heads=2, layers=2, norm="layer", ffn_bias=True,
    dropout=0.0, max_length=32,
)  # fmt: skip
CLUSTERS = {"clusters": (100, 120, 80), "cluster_inner": (16, 8, 4)}
SAME = 2e-5  # float32 sums in another order


def model_of(**change):
    config = dataclasses.replace(CONFIG, **change)
    return Seq2Seq(config, torch.Generator().manual_seed(0)).eval()


def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, 300, (3, 6), generator=generator)


@pytest.fixture(scope="module")
def batch():
    vocabulary, lengths = ByteVocabulary(sentinels=8), Lengths(inputs=20, targets=8)
    examples = [{"inputs": f"copy: {word}", "targets": word} for word in ("ab", "xyz")]
    stream = TaskStream(examples, vocabulary, lengths)
    return next(BatchStream(stream, lengths, batch_size=3, arch="encdec", packed=True))


@pytest.mark.parametrize("change", [
    {"softmax": "adaptive", **CLUSTERS},
    {"softmax": "mos", "softmax_components": 2},
    {"position": "learned"},
])  # fmt: skip
def test_a_batchs_loss_is_that_of_its_logits(change, batch):
    model = model_of(**change)
    loss = batch_loss(model, batch)
    with torch.no_grad():
        logits = model(*(torch.from_numpy(getattr(batch, n)) for n in ("inputs", "decoder_tokens")),
                       input_segments=torch.from_numpy(batch.input_segments),
                       target_segments=torch.from_numpy(batch.target_segments))  # fmt: skip
    expected = token_loss(
        logits, torch.from_numpy(batch.targets), weights=torch.from_numpy(batch.weights),
        reduction="sum",
    )  # fmt: skip
    assert loss.auxiliary is None
    torch.testing.assert_close(loss.total.detach(), expected, atol=SAME, rtol=SAME)


class Balanced(torch.nn.Module):
    def auxiliary_loss(self):
        return torch.tensor(0.25)


def test_auxiliary_losses_are_added_in_training_only(batch):
    model = model_of()
    assert model.auxiliary_loss() is None
    model.encoder.extra, model.decoder.extra = Balanced(), Balanced()
    assert float(model.auxiliary_loss()) == 0.5
    assert batch_loss(model, batch).auxiliary is None
    assert float(batch_loss(model.train(), batch).auxiliary) == 0.5


@pytest.mark.parametrize("change", [
    {},
    {"softmax": "adaptive", "share_blocks": "enc", **CLUSTERS},
    {"norm": "none", "residual": "fixup", "cross": "transparent", "position": "rel_contextual"},
])  # fmt: skip
def test_folders_hold_variants(change, tmp_path):
    model, vocabulary = model_of(**change), ByteVocabulary(sentinels=8)
    save_model(tmp_path, model, vocabulary, Lengths(inputs=20, targets=8))
    again = load_model(tmp_path).model
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(
            again(tokens(), shift_right(tokens())), model(tokens(), shift_right(tokens()))
        )


def test_check_14_closed_branches_let_gradients_reach_their_scalars_only():
    """At step 0 of ReZero; the encoder is behind the closed cross-attention."""
    model = model_of(norm="none", residual="rezero", scaling="explicit")
    model(tokens(), shift_right(tokens()), targets=tokens()).mean().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    joins = ("self_join", "cross_join", "feed_join")
    assert reached == {"embedding"} | {
        f"decoder.blocks.{i}.{join}.alpha" for i in range(2) for join in joins
    }


def test_adapters_and_unfreezing_of_shared_blocks():
    model = model_of(share_blocks="enc")
    before = model(tokens(), tokens())
    trained = unfreeze_gradually(model, 2)
    first = set(trained(1))
    assert {n for n in first if n.startswith("encoder.blocks.0.")}
    assert {n for n in first if n.startswith("decoder.blocks.1.")}
    assert not {n for n in first if n.startswith("decoder.blocks.0.")}
    names = add_adapters(model, 4)
    assert sum(name.endswith("adapter.up.weight") for name in names) == 3
    assert torch.equal(model(tokens(), tokens()), before)


class Ranking(torch.nn.Module):
    """Log-likelihoods of two labels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        from fishertope.experiments.seq2seq.decoding import label_log_likelihoods

        return label_log_likelihoods(self.model, inputs, torch.tensor([[4, 1], [150, 1]]))


@pytest.mark.parametrize("change", [
    {"norm": "rms"},
    {"norm": "rms", "gated": True, "activation": "gelu"},
    {"share_blocks": "both", "embedding": "tied_inputs"},
    {"residual": "rezero", "norm": "none"},
    {"softmax": "adaptive", **CLUSTERS},
    {"softmax": "mos", "softmax_components": 2},
    {"cross": "transparent", "position": "rel_contextual"},
])  # fmt: skip
def test_per_example_fishers_of_variants(change):
    """Rows over ranked labels have the sites of the model and the trace of autograd."""
    from fishertope import per_example_fishers

    module = Ranking(model_of(**change).double())
    inputs = tokens()
    fishers = per_example_fishers(module, inputs, batch_size=2)
    names = [site.name for site in fishers.sites]
    assert names == [name for name, _ in module.named_parameters()]
    p = torch.softmax(module(inputs[1:2])[0], -1).tolist()
    total = 0.0
    for c in range(2):
        module.zero_grad()
        torch.log_softmax(module(inputs[1:2])[0], -1)[c].backward()
        total += p[c] * sum(float(q.grad.square().sum()) for q in module.parameters()
                            if q.grad is not None)  # fmt: skip
    assert math.isclose(float(fishers.traces()[1]), total, rel_tol=1e-6)
