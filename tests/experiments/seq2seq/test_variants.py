"""Variants of one configuration: what must hold for every one of them (checks 14 to 19)."""
# ruff: noqa: E402

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig, shift_right
from fishertope.experiments.seq2seq.decoding import greedy

VANILLA = Seq2SeqConfig(
    vocab_size=30, d_model=16, d_ff=24, d_kv=8, heads=2, layers=2, norm="layer", ffn_bias=True,
    dropout=0.0, max_length=32,
)  # fmt: skip
CLUSTERS = {"clusters": (8, 10, 12), "cluster_inner": (16, 8, 4)}
VARIANTS = {
    "vanilla": {},
    **{name: {"activation": name} for name in
       ("gelu", "swish", "elu", "selu", "sigmoid", "softplus")},
    **{f"gated_{name}": {"activation": name, "gated": True, "d_ff": 16} for name in
       ("sigmoid", "gelu", "relu", "swish", "linear")},
    "rms": {"norm": "rms"},
    "partial_rms": {"norm": "partial_rms", "norm_part": 0.2},
    "rezero": {"norm": "none", "residual": "rezero", "scaling": "explicit"},
    "rezero_ln": {"residual": "rezero", "scaling": "explicit"},
    "rezero_rms": {"norm": "rms", "residual": "rezero", "scaling": "explicit"},
    "fixup": {"norm": "none", "residual": "fixup", "ffn_bias": False, "scaling": "explicit"},
    "fixup_zero": {"norm": "none", "residual": "fixup", "ffn_bias": False, "fixup_cross": "zero"},
    "deep": {"layers": 4, "d_ff": 12, "heads": 1},
    "shared": {"share_blocks": "both", "embedding": "tied_inputs"},
    "shared_enc": {"share_blocks": "enc", "embedding": "tied_inputs"},
    "shared_dec": {"share_blocks": "dec", "embedding": "tied_inputs"},
    "factorized": {"embedding_form": "factorized", "embedding_inner": 4,
                   "embedding": "tied_inputs"},
    "factorized_tied": {"embedding_form": "factorized", "embedding_inner": 4},
    "tied_inputs": {"embedding": "tied_inputs"},
    "tied_dec": {"embedding": "tied_dec"},
    "untied": {"embedding": "untied"},
    "adaptive_input": {"embedding_form": "adaptive", **CLUSTERS},
    "adaptive_softmax": {"softmax": "adaptive", **CLUSTERS},
    "adaptive_noproj": {"softmax": "adaptive_noproj", "clusters": (8, 10, 12)},
    "mos": {"softmax": "mos", "softmax_components": 3},
    "transparent": {"cross": "transparent"},
    "rel_per_layer": {"position": "rel_per_layer"},
    "rel_contextual": {"position": "rel_contextual"},
    "rel_contextual_input": {"position": "rel_contextual", "contextual_from": "input"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
}  # fmt: skip
FLOAT32 = 2e-5  # sums of two orders in float32


def model_of(name, *, seed=0, wake=True, **change):
    config = dataclasses.replace(VANILLA, **(VARIANTS[name] | change))
    model = Seq2Seq(config, torch.Generator().manual_seed(seed)).eval()
    if wake:  # let branches that start closed speak
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
                        * 0.3
                    )
    return model


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(2, 30, (2, 9), generator=generator)
    inputs[0, 6:] = 0
    return inputs, torch.randint(2, 30, (2, 7), generator=generator)


@pytest.mark.parametrize("name", VARIANTS)
def test_check_14_shape_loss_gradients(name, rows):
    inputs, targets = rows
    model = model_of(name)
    logits = model(inputs, shift_right(targets))
    assert logits.shape == (2, 7, 30)
    losses = model(inputs, shift_right(targets), targets=targets)
    expected = -torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, expected, atol=FLOAT32, rtol=FLOAT32)
    losses.mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # Softmax over one value, a shift that a norm removes: no gradient but rounding.
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_check_14_causality_and_incremental_decoding(name, rows):
    inputs, targets = rows
    model, tokens = model_of(name), shift_right(targets)
    with torch.no_grad():
        extra = {"encoded": model.encode(inputs), "source_mask": model.source_mask(inputs)}
        full = model.decode(tokens, **extra)
        changed = tokens.clone()
        changed[:, 4] = changed[:, 4] % 28 + 2
        later = model.decode(changed, **extra)
        assert torch.equal(full[:, :4], later[:, :4])
        assert (full[:, 4] != later[:, 4]).any(-1).all()
        cache = model.new_cache()
        parts = [model.decode(tokens[:, :2], cache=cache, **extra)]
        for i in range(2, 7):
            if i == 4:
                cache.reorder(torch.tensor([1, 0]))
                cache.reorder(torch.tensor([1, 0]))
            parts.append(model.decode(tokens[:, i : i + 1], cache=cache, **extra))
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=FLOAT32, rtol=FLOAT32)
        assert greedy(model, inputs, max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_check_14_padding_is_unseen_and_packed_rows_are_separate(name, rows):
    inputs, targets = rows
    model, decoder = model_of(name), shift_right(targets)
    with torch.no_grad():
        short = model(inputs[:1, :6], decoder[:1])
        padded = model(inputs, decoder)
        torch.testing.assert_close(padded[:1], short, atol=FLOAT32, rtol=FLOAT32)
        other = model(inputs[1:], decoder[1:, :5])
        numbers = torch.tensor([[1] * 6 + [2] * 9, [0] * 15])[:1]
        packed = model(
            torch.cat([inputs[:1, :6], inputs[1:]], 1),
            torch.cat([decoder[:1], decoder[1:, :5]], 1),
            input_segments=numbers,
            target_segments=torch.tensor([[1] * 7 + [2] * 5]),
        )
    alone = torch.cat([short, other], 1)
    torch.testing.assert_close(packed, alone, atol=FLOAT32, rtol=FLOAT32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"softmax": "adaptive", "embedding": "untied", **CLUSTERS}, "tied_all"),
        ({"softmax": "adaptive", "clusters": (8, 10)}, "add up to the vocabulary"),
        ({"softmax": "adaptive", "clusters": (30,), "cluster_inner": (16,)}, "at least one tail"),
        ({"softmax": "mos", "embedding_form": "factorized"}, "one full matrix"),
        ({"embedding_form": "adaptive", "clusters": (30,), "cluster_inner": (17,)}, "d_model=16"),
        ({"residual": "fixup"}, "norm='none'"),
        ({"arch": "lm", "share_blocks": "enc"}, "'dec' or 'both'"),
        ({"arch": "encdec_shared", "share_blocks": "both"}, "share their layers"),
        ({"arch": "encdec_shared", "position": "rel_contextual"}, "both directions"),
        ({"arch": "lm", "cross": "transparent"}, "needs arch='encdec'"),
        ({"pool_blocks": 3}, "groups of one size"),
        ({"pool_blocks": 2, "cross": "transparent"}, "pool_blocks=1"),
        ({"recurrence": 2, "residual": "rezero"}, "its own sharing and residual"),
        ({"mixer": "lightconv", "arch": "prefix_lm"}, "whole prefix"),
        ({"mixer": "lightconv", "conv_width": 4}, "needs a middle"),
        ({"mixer": "weighted", "sparse": "moe", "sparse_layers": ((1,), ())}, "no feed-forward"),
        ({"block": "evolved", "mixer": "dynconv"}, "mixer='attention'"),
        ({"sparse": "moe"}, "name the blocks"),
        ({"sparse": "moe", "sparse_layers": ((2,), ())}, r"\[0, blocks\)"),
        ({"sparse_layers": ((1,), ())}, "sparse="),
        ({"sparse": "moe", "sparse_layers": (1, 3)}, r"as in \(\(3, 7\), \(3, 7\)\)"),
        ({"sparse": "pkm", "sparse_layers": ((), (1,)), "memory_keys": 4}, "at most all of them"),
        ({"norm_part": 0.0}, "part of the channels"),
        ({"d_model": 15, "position": "sinusoidal"}, "even"),
        ({"mixer": "rnn"}, "accepted are 'attention'"),
    ],
)
def test_check_14_pairs_without_meaning_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(VANILLA, **change)


def test_learned_positions_end():
    model = model_of("learned", max_length=8)
    with pytest.raises(InvalidInputError, match="max_length=8"):
        model.encode(torch.full((1, 9), 3))


def test_a_configuration_survives_json():
    import json

    config = dataclasses.replace(
        VANILLA, sparse="moe", sparse_layers=((1,), (0, 1)), softmax="adaptive", **CLUSTERS
    )
    again = Seq2SeqConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
