"""Closed-form parameter counts against built models, T5's published sizes and Table 1."""
# ruff: noqa: E402

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from fishertope.experiments.seq2seq import PUBLISHED, Seq2Seq
from fishertope.experiments.seq2seq.parameters import count_parameters, parameter_counts

PAPER = dataclasses.replace(PUBLISHED["base"], norm="layer", ffn_bias=True)
GATED = {"gated": True, "d_ff": 2_048}
FACTORS = {"embedding_form": "factorized", "embedding_inner": 128}
# Change of vanilla; Table 1 of arXiv 2102.11972 in millions; exact number of the definitions.
TABLE_1 = {
    "vanilla": ({}, 223, 223_043_328),
    "gelu": ({"activation": "gelu"}, 223, 223_043_328),
    "swiglu": ({"activation": "swish", **GATED}, 223, 223_067_904),
    "rms norm": ({"norm": "partial_rms"}, 223, 222_995_712),
    "rezero": ({"norm": "none", "residual": "rezero"}, 223, 222_948_156),
    "rezero + layer norm": ({"residual": "rezero"}, 223, 223_043_388),
    "rezero + rms norm": ({"norm": "rms", "residual": "rezero"}, 223, 222_995_772),
    "fixup": ({"norm": "none", "residual": "fixup", "ffn_bias": False}, 223, 222_856_083),
    "24 layers": ({"layers": 24, "d_ff": 1_536, "heads": 6}, 224, 223_153_536),
    "18 layers": ({"layers": 18, "d_ff": 2_048, "heads": 8}, 223, 223_098_368),
    "8 layers": ({"layers": 8, "d_ff": 4_608, "heads": 18}, 223, 223_006_848),
    "6 layers": ({"layers": 6, "d_ff": 6_144, "heads": 24}, 223, 222_988_800),
    "block sharing": ({"share_blocks": "both", "embedding": "tied_inputs"}, 65, 65_882_880),
    "block sharing, factorized": (
        {"share_blocks": "both", "embedding": "tied_inputs", **FACTORS}, 45, 45_419_264),
    "block sharing, factorized & shared": (
        {"share_blocks": "both", **FACTORS}, 20, 20_744_960),
    "encoder sharing": ({"share_blocks": "enc", "embedding": "tied_inputs"}, 170, 169_784_832),
    "decoder sharing": ({"share_blocks": "dec", "embedding": "tied_inputs"}, 144, 143_815_680),
    "factorized": ({"embedding": "tied_inputs", **FACTORS}, 227, 227_254_016),
    "factorized & shared": (FACTORS, 202, 202_579_712),
    "tied inputs": ({"embedding": "tied_inputs"}, 248, 247_717_632),
    "tied decoder": ({"embedding": "tied_dec"}, 248, 247_717_632),
    "untied": ({"embedding": "untied"}, 273, 272_391_936),
    "adaptive input": (
        {"embedding_form": "adaptive", "clusters": (2_500, 6_000, 23_628),
         "cluster_inner": (768, 256, 64)}, 204, 203_582_976),
    "adaptive softmax": (
        {"softmax": "adaptive", "clusters": (2_500, 6_000, 23_500, 128),
         "cluster_inner": (768, 256, 64, 768)}, 204, 203_675_392),
    "adaptive softmax, no projection": (
        {"softmax": "adaptive_noproj", "clusters": (2_500, 6_000, 23_500, 128)},
        223, 223_045_632),
    "mixture of softmaxes": ({"softmax": "mos"}, 232, 231_902_208),
    "transparent": ({"cross": "transparent"}, 223, 223_043_484),
}  # fmt: skip


def built(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Seq2Seq(config).parameters())


@pytest.mark.parametrize("name", TABLE_1)
def test_check_15_paper_size_is_table_1(name):
    change, table, exact = TABLE_1[name]
    config = dataclasses.replace(PAPER, **change)
    assert built(config) == count_parameters(config) == exact
    assert abs(exact / 1e6 - table) <= 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_check_15_published_t5_sizes(name):
    config = PUBLISHED[name]
    d, i, f, n = config.d_model, config.inner, config.d_ff, config.layers
    expected = (
        config.vocab_size * d + n * (4 * d * i + 2 * d * f + 2 * d) + d
        + n * (8 * d * i + 2 * d * f + 3 * d) + d + 2 * 32 * config.heads
    )  # fmt: skip
    assert count_parameters(config) == expected


def test_check_15_other_axes():
    """Pairs of axes that no row of the table has."""
    small = dataclasses.replace(
        PAPER, vocab_size=40, d_model=24, d_ff=20, d_kv=4, heads=3, layers=2, max_length=16
    )
    clusters = {"clusters": (8, 12, 20), "cluster_inner": (12, 24, 5)}
    for change in (
        {"arch": "encdec_shared"},
        {"arch": "encdec_shared", "residual": "rezero", "position": "rel_per_layer"},
        {"arch": "lm", "embedding": "untied", "share_blocks": "both"},
        {"arch": "prefix_lm", "norm": "none", "residual": "fixup", "gated": True},
        {"position": "learned", "decoder_layers": 3},
        {"position": "sinusoidal"},
        {"position": "rel_contextual"},
        {"position": "rel_contextual", "contextual_from": "input", "share_blocks": "enc"},
        {"position": "rel_per_layer", "share_blocks": "dec"},
        {"embedding": "untied", **FACTORS},
        {"embedding_form": "adaptive", "embedding": "tied_dec", **clusters},
        {"softmax": "adaptive", "embedding": "tied_dec", **clusters},
        {"softmax": "mos", "embedding": "untied", "softmax_components": 2},
        {"cross": "transparent", "layers": 3, "decoder_layers": 1},
    ):
        config = dataclasses.replace(small, **change)
        assert built(config) == count_parameters(config), change


def test_parts_by_place():
    counts = parameter_counts(dataclasses.replace(PAPER, embedding="untied"))
    assert counts["embeddings"] == 2 * counts["softmax"] == 2 * 32_128 * 768
    assert counts["decoder"] - counts["encoder"] == 12 * (4 * 768**2 + 2 * 768)
