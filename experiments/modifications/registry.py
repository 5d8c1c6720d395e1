"""Every variant of arXiv 2102.11972 as a difference of one configuration, at any scale.

Where paper, released configuration and tables disagree, ``docs/modifications.md`` says which
reading is taken; the other ones are in :mod:`.readings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from ...core.errors import InvalidInputError

if TYPE_CHECKING:
    from ..seq2seq import Seq2SeqConfig

Group: TypeAlias = Literal[
    "baseline", "activations", "normalisation", "depth", "sharing", "embeddings", "softmax",
    "architecture", "positions",
]  # fmt: skip
OptimizerName: TypeAlias = Literal["adafactor", "adam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of a scale that only some variants have.

    Attributes
    ----------
    max_length : int
        Longest sequence that learned positions and Synthesizer matrices are made for.
    clusters : tuple of float
        Shares of the vocabulary in the clusters of adaptive embeddings, by falling frequency.
    """

    conv_width: int
    synth_rank: int
    max_length: int
    softmaxes: int
    experts: int
    sparse_every: int
    pool_blocks: int
    memory_keys: int
    memory_heads: int
    memory_top: int
    memory_key_size: int
    sentinels: int = 100
    clusters: tuple[float, float] = (0.08, 0.19)


SIZES: dict[str, Sizes] = {
    "nano": Sizes(conv_width=5, synth_rank=4, max_length=64, softmaxes=4, experts=4,
                  sparse_every=2, pool_blocks=2, memory_keys=16, memory_heads=2, memory_top=4,
                  memory_key_size=16),
    "tiny": Sizes(conv_width=5, synth_rank=4, max_length=128, softmaxes=4, experts=4,
                  sparse_every=4, pool_blocks=2, memory_keys=32, memory_heads=4, memory_top=8,
                  memory_key_size=32),
    "paper": Sizes(conv_width=9, synth_rank=16, max_length=512, softmaxes=15, experts=32,
                   sparse_every=4, pool_blocks=3, memory_keys=512, memory_heads=8, memory_top=32,
                   memory_key_size=128, sentinels=128),
}  # fmt: skip

Change: TypeAlias = Callable[["Seq2SeqConfig", Sizes], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A modification.

    Attributes
    ----------
    name, title : str
        In code, and as the paper prints it.
    group : str
    change : callable
        ``change(vanilla, sizes)``: the fields of the configuration that differ.
    optimizer : {"adafactor", "adam"}
    kinds : frozenset
        Of the three that the paper finds helpful: "minor", "costly" (more parameters or slower),
        "same code" (invented in the code base that the paper used).
    revision : int
        Raised when the variant's own code changes what a run gives; part of a row's key.
    """

    name: str
    title: str
    group: Group
    change: Change
    optimizer: OptimizerName = "adafactor"
    kinds: frozenset[str] = frozenset()
    revision: int = 1


def vanilla(scale: str = "nano", *, vocab_size: int | None = None) -> Seq2SeqConfig:
    """The paper's baseline at a scale: LayerNorm, biases in the feed-forward layers, ReLU.

    Parameters
    ----------
    scale : {"nano", "tiny", "paper"}
    vocab_size : int, optional
        Of a vocabulary that is not the scale's own.
    """
    from ..seq2seq import PUBLISHED
    from ..text2text.runs import SCALES

    if scale not in SIZES:
        raise InvalidInputError(f"scale={scale!r} was given; there are {', '.join(SIZES)}.")
    common: dict[str, Any] = {"norm": "layer", "ffn_bias": True, "dropout": 0.0}
    if vocab_size is not None:
        common["vocab_size"] = vocab_size
    if scale == "paper":
        return dataclasses.replace(PUBLISHED["base"], **common)
    found: Any = SCALES[scale].config(**common)
    return cast("Seq2SeqConfig", found)


def variant(name: str) -> Variant:
    """The variant of that name.

    Raises
    ------
    InvalidInputError
        Naming the known ones.
    """
    if name not in VARIANTS:
        raise InvalidInputError(
            f"The variant {name!r} was asked for; there are {', '.join(VARIANTS)}."
        )
    return VARIANTS[name]


def config_of(
    name: str | Variant, scale: str = "nano", *, vocab_size: int | None = None
) -> Seq2SeqConfig:
    """The configuration of a variant: vanilla's with its change.

    Raises
    ------
    InvalidInputError
        For an unknown variant or scale.
    InvalidInputError
        If the models do not have what the variant needs.
    """
    chosen = variant(name) if isinstance(name, str) else name
    base = vanilla(scale, vocab_size=vocab_size)
    change = dict(chosen.change(base, SIZES[scale]))
    missing = sorted(set(change) - {f.name for f in dataclasses.fields(base)})
    if missing:
        raise InvalidInputError(
            f"The variant {chosen.name!r} is not built: the configuration has no "
            f"{', '.join(missing)}."
        )
    return dataclasses.replace(base, **change)


def difference(name: str, scale: str = "paper") -> dict[str, Any]:
    """What a variant changes, for people and for tables."""
    return dict(variant(name).change(vanilla(scale), SIZES[scale]))


def _fixed(**changes: Any) -> Change:
    return lambda base, sizes: changes


def _gated(activation: str) -> Change:
    """Two thirds of the width, so that three matrices have the parameters of two."""
    return lambda base, sizes: {
        "activation": activation, "gated": True, "d_ff": round(base.d_ff * 2 / 3),
    }  # fmt: skip


def _depth(share: float) -> Change:
    """A multiple of the depth at the same number of parameters.

    Where the depth is no whole number the decoder gets the larger part, and the width of the
    heads takes up what the number of heads cannot.
    """

    def change(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
        blocks = round(2 * base.layers * share)
        encoder = max(blocks // 2, 1)
        decoder = max(blocks - encoder, 1)
        inner = 12 * base.layers * base.inner / (4 * encoder + 8 * decoder)
        heads, kv = base.heads, round(inner / base.heads)
        if inner == round(inner) and round(inner) % base.d_kv == 0:
            heads, kv = round(inner) // base.d_kv, base.d_kv
        return {
            "layers": encoder, "decoder_layers": decoder, "heads": heads, "d_kv": kv,
            "d_ff": round(2 * base.layers * base.d_ff / (encoder + decoder)),
        }  # fmt: skip

    return change


def _factorized(**changes: Any) -> Change:
    return lambda base, sizes: {
        "embedding_form": "factorized", "embedding_inner": round(base.d_model / 6), **changes,
    }  # fmt: skip


def _clusters(base: Seq2SeqConfig, sizes: Sizes) -> tuple[int, int]:
    """Sizes of the first two clusters of the vocabulary, which is sorted by frequency."""
    if base.vocab_size == 32_128:
        return (2_500, 6_000)
    return tuple(round(base.vocab_size * share) for share in sizes.clusters)  # type: ignore[return-value]


def _adaptive_input(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
    d, (first, second) = base.d_model, _clusters(base, sizes)
    return {
        "embedding_form": "adaptive", "cluster_inner": (d, d // 3, d // 12),
        "clusters": (first, second, base.vocab_size - first - second),
    }  # fmt: skip


def _adaptive_softmax(kind: str) -> Change:
    """The last cluster holds the sentinels, at full width."""

    def change(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
        d, (first, second) = base.d_model, _clusters(base, sizes)
        third = base.vocab_size - first - second - sizes.sentinels
        widths = {} if kind == "adaptive_noproj" else {"cluster_inner": (d, d // 3, d // 12, d)}
        return {"softmax": kind, "clusters": (first, second, third, sizes.sentinels), **widths}

    return change


def _synthesizer(kind: str) -> Change:
    return lambda base, sizes: {
        "mixer": f"synth_{kind}", "max_length": sizes.max_length, "synth_rank": sizes.synth_rank,
    }  # fmt: skip


def _last_of_every(layers: int, every: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Block numbers in the encoder and in the decoder."""
    places = tuple(range(every - 1, layers, every))
    return (places, places)


def _experts(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
    return {
        "sparse": "moe", "experts": sizes.experts, "expert_ff": base.d_ff // 2,
        "capacity_factor": 2.0, "sparse_layers": _last_of_every(base.layers, sizes.sparse_every),
    }  # fmt: skip


def _switch(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
    return {
        "sparse": "switch", "experts": sizes.experts, "expert_ff": base.d_ff,
        "capacity_factor": 1.2, "sparse_layers": _last_of_every(base.layers, sizes.sparse_every),
    }  # fmt: skip


def _memory(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
    """In the block before the decoder's last, as the released configuration has it."""
    return {
        "sparse": "pkm", "memory_keys": sizes.memory_keys, "memory_heads": sizes.memory_heads,
        "memory_top": sizes.memory_top, "memory_key_size": sizes.memory_key_size,
        "sparse_layers": ((), (base.layers - 2,)),
    }  # fmt: skip


def _dynamic(base: Seq2SeqConfig, sizes: Sizes) -> Mapping[str, Any]:
    return {
        "mixer": "dynconv", "conv_width": sizes.conv_width, "d_ff": round(base.d_ff / 6),
    }  # fmt: skip


def _variants() -> list[Variant]:
    def made(
        name: str, title: str, group: Group, change: Change, *kinds: str,
        optimizer: OptimizerName = "adafactor",
    ) -> Variant:  # fmt: skip
        return Variant(name=name, title=title, group=group, change=change,
                       optimizer=optimizer, kinds=frozenset(kinds))  # fmt: skip

    minor, costly, same = "minor", "costly", "same code"
    activations = [
        made(name, title, "activations", _fixed(activation=name), minor)
        for name, title in (
            ("gelu", "GeLU"), ("swish", "Swish"), ("elu", "ELU"), ("selu", "SeLU"),
            ("sigmoid", "Sigmoid"), ("softplus", "Softplus"),
        )
    ]  # fmt: skip
    gated = [
        made(name, title, "activations", _gated(activation), minor)
        for name, title, activation in (
            ("glu", "GLU", "sigmoid"), ("geglu", "GeGLU", "gelu"), ("reglu", "ReGLU", "relu"),
            ("swiglu", "SwiGLU", "swish"), ("liglu", "LiGLU", "linear"),
        )
    ]  # fmt: skip
    norms: list[Variant] = [
        made("rms-norm", "RMS Norm", "normalisation", _fixed(norm="partial_rms"), minor),
        made("rezero", "Rezero", "normalisation", _fixed(norm="none", residual="rezero"),
             optimizer="adam"),
        made("rezero-layer-norm", "Rezero + LayerNorm", "normalisation",
             _fixed(residual="rezero"), optimizer="adam"),
        made("rezero-rms-norm", "Rezero + RMS Norm", "normalisation",
             _fixed(norm="rms", residual="rezero"), optimizer="adam"),
        made("fixup", "Fixup", "normalisation",
             _fixed(norm="none", residual="fixup", ffn_bias=False), optimizer="adam"),
    ]  # fmt: skip
    depths = [
        made(f"layers-{n}", f"{n} layers", "depth", _depth(n / 12), *([costly] if n > 12 else []))
        for n in (24, 18, 8, 6)
    ]
    both: dict[str, Any] = {"share_blocks": "both"}
    sharing = [
        made("block-sharing", "Block sharing", "sharing", _fixed(**both, embedding="tied_inputs")),
        made("block-sharing-factorized", "+ Factorized embeddings", "sharing",
             _factorized(**both, embedding="tied_inputs")),
        made("block-sharing-factorized-tied", "+ Factorized & shared embeddings", "sharing",
             _factorized(**both)),
        made("encoder-sharing", "Encoder only block sharing", "sharing",
             _fixed(share_blocks="enc", embedding="tied_inputs")),
        made("decoder-sharing", "Decoder only block sharing", "sharing",
             _fixed(share_blocks="dec", embedding="tied_inputs")),
    ]  # fmt: skip
    embeddings = [
        made("factorized", "Factorized embedding", "embeddings",
             _factorized(embedding="tied_inputs")),
        made("factorized-tied", "Factorized & shared embeddings", "embeddings", _factorized()),
        made("tied-inputs", "Tied encoder/decoder input embeddings", "embeddings",
             _fixed(embedding="tied_inputs"), minor),
        made("tied-decoder", "Tied decoder input and output embeddings", "embeddings",
             _fixed(embedding="tied_dec"), minor),
        made("untied", "Untied embeddings", "embeddings", _fixed(embedding="untied"), minor),
        made("adaptive-input", "Adaptive input embeddings", "embeddings", _adaptive_input),
    ]  # fmt: skip
    softmaxes = [
        made("adaptive-softmax", "Adaptive softmax", "softmax", _adaptive_softmax("adaptive")),
        made("adaptive-softmax-no-projection", "Adaptive softmax without projection", "softmax",
             _adaptive_softmax("adaptive_noproj")),
        made("mixture-of-softmaxes", "Mixture of softmaxes", "softmax",
             lambda base, sizes: {"softmax": "mos", "softmax_components": sizes.softmaxes},
             costly),
    ]  # fmt: skip
    synthesizers = [
        made(f"synthesizer-{kind.replace('_', '-')}", title, "architecture", _synthesizer(kind),
             same)
        for kind, title in (
            ("dense", "Synthesizer (dense)"), ("dense_plus", "Synthesizer (dense plus)"),
            ("dense_plus_alpha", "Synthesizer (dense plus alpha)"),
            ("factorized", "Synthesizer (factorized)"), ("random", "Synthesizer (random)"),
            ("random_plus", "Synthesizer (random plus)"),
            ("random_plus_alpha", "Synthesizer (random plus alpha)"),
        )
    ]  # fmt: skip
    architecture = [
        made("transparent-attention", "Transparent attention", "architecture",
             _fixed(cross="transparent")),
        made("dynamic-convolution", "Dynamic convolution", "architecture", _dynamic),
        made("lightweight-convolution", "Lightweight convolution", "architecture",
             lambda base, sizes: {"mixer": "lightconv", "conv_width": sizes.conv_width}),
        made("evolved", "Evolved Transformer", "architecture",
             lambda base, sizes: {"block": "evolved", "layers": base.layers // 2}),
        *synthesizers,
        made("universal", "Universal Transformer", "architecture",
             lambda base, sizes: {"layers": 1, "recurrence": 2 * base.layers,
                                  "embedding": "tied_inputs"}),
        made("mixture-of-experts", "Mixture of experts", "architecture", _experts, costly, same),
        made("switch", "Switch Transformer", "architecture", _switch, costly, same),
        made("funnel", "Funnel Transformer", "architecture",
             lambda base, sizes: {"pool_blocks": sizes.pool_blocks}),
        made("weighted", "Weighted Transformer", "architecture", _fixed(mixer="weighted")),
        made("product-key-memory", "Product key memory", "architecture", _memory, costly),
    ]  # fmt: skip
    positions = [
        made("position-learned", "Learned absolute positions", "positions",
             lambda base, sizes: {"position": "learned", "max_length": sizes.max_length}),
        made("position-per-layer", "Relative biases of each layer", "positions",
             _fixed(position="rel_per_layer")),
        made("position-contextual", "Contextual relative positions", "positions",
             _fixed(position="rel_contextual")),
        made("position-sinusoidal", "Sinusoidal positions", "positions",
             lambda base, sizes: {"position": "sinusoidal", "max_length": sizes.max_length}),
    ]  # fmt: skip
    return [
        made("vanilla", "Vanilla Transformer", "baseline", _fixed()), *activations, *gated,
        *norms, *depths, *sharing, *embeddings, *softmaxes, *architecture, *positions,
    ]  # fmt: skip


VARIANTS: dict[str, Variant] = {v.name: v for v in _variants()}
"""Vanilla, the 51 variants of Table 1 and the four position variants of Table 2."""

GATED = ("glu", "geglu", "reglu", "swiglu", "liglu")


def groups() -> dict[Group, list[str]]:
    """Names of the variants of each group, vanilla left out."""
    found: dict[Group, list[str]] = {}
    for v in VARIANTS.values():
        if v.group != "baseline":
            found.setdefault(v.group, []).append(v.name)
    return found
