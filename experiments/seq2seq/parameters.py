"""Closed forms: how many parameters a configuration has, without building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import cast

from .config import Seq2SeqConfig, StackName


def count_parameters(config: Seq2SeqConfig) -> int:
    """Number of parameters of ``Seq2Seq(config)``; those used in several places count once.

    For T5 v1.0 it is ``V d + [L (4 d i + 2 d f + 2 d) + d] + [L (8 d i + 2 d f + 3 d) + d] +
    2 · 32 H`` with ``i = H d_kv``: 60,506,624 for T5-Small.
    """
    return sum(parameter_counts(config).values())


def parameter_counts(config: Seq2SeqConfig) -> dict[str, int]:
    """The same by place: ``embeddings``, ``encoder``, ``decoder``, ``softmax``."""
    c = config
    own_input = c.has_encoder and c.embedding in ("tied_dec", "untied")
    own_head = c.embedding in ("tied_inputs", "untied")
    return {
        "embeddings": _table(c) * (2 if own_input else 1),
        "encoder": _stack(c, "encoder") if c.has_encoder else 0,
        "decoder": _stack(c, "decoder"),
        "softmax": (c.vocab_size * c.d_model if own_head else 0) + _head(c),
    }


def _count(module: str, name: str) -> Callable[..., int]:
    """The closed form that a layer brings itself."""
    found = getattr(import_module(f".{module}", __package__), name)
    return cast(Callable[..., int], found.count)


def _table(c: Seq2SeqConfig) -> int:
    """One embedding: full, two factors, or clusters with a factor where they are narrower."""
    d = c.d_model
    if c.softmax in ("adaptive", "adaptive_noproj") or c.embedding_form == "adaptive":
        pairs = zip(c.clusters, c.cluster_widths, strict=True)
        return sum(n * w + (w * d if w < d else 0) for n, w in pairs)
    if c.embedding_form == "factorized":
        return c.embedding_inner * (c.vocab_size + d)
    return c.vocab_size * d


def _head(c: Seq2SeqConfig) -> int:
    """A node for each tail of an adaptive softmax; contexts and priors of a mixture."""
    if c.softmax in ("adaptive", "adaptive_noproj"):
        return (len(c.clusters) - 1) * c.cluster_widths[0]
    if c.softmax == "mos":
        return c.softmax_components * c.d_model * (c.d_model + 1)
    return 0


def _norm(c: Seq2SeqConfig) -> int:
    """Scale and bias, scale, or the one shift of Fixup."""
    if c.residual == "fixup":
        return 1
    return {"layer": 2, "rms": 1, "partial_rms": 1, "none": 0}[c.norm] * c.d_model


def _join(c: Seq2SeqConfig) -> int:
    """One scalar of ReZero and of Fixup, the maps of a gated residual."""
    if c.recurrence:
        return _count("universal", "GatedResidual")(c.d_model)
    return 0 if c.residual == "plain" else 1


def _attention(c: Seq2SeqConfig, *, cross: bool = False) -> int:
    """Four matrices, and a layer's own contextual table."""
    table = 0
    if c.position == "rel_contextual" and not cross:
        width = c.d_kv if c.contextual_from == "query" else c.d_model
        table = c.heads * c.buckets * width
    return 4 * c.d_model * c.inner + table


def _mixer(c: Seq2SeqConfig, *, cross: bool = False) -> int:
    if c.mixer == "weighted":
        whole = _count("weighted", "WeightedAttention")
        feed = whole(c.d_model, c.d_ff, c.heads, c.d_kv, ffn_bias=c.ffn_bias)
        return feed - 4 * c.d_model * c.inner + _attention(c, cross=cross)
    if c.mixer == "attention" or cross:
        return _attention(c, cross=cross)
    if c.mixer.startswith("synth_"):
        return _count("synthesizer", "Synthesizer")(
            c.d_model, c.heads, c.d_kv, mode=c.mixer.removeprefix("synth_"),
            max_length=c.max_length, rank=c.synth_rank,
        )  # fmt: skip
    kind = "LightweightConvolution" if c.mixer == "lightconv" else "DynamicConvolution"
    return _count("conv", kind)(c.d_model, c.conv_width)


def _feed(c: Seq2SeqConfig) -> int:
    """Two matrices, three if gated, their biases, and Fixup's shift."""
    inward = 2 if c.gated else 1
    biases = inward * c.d_ff + c.d_model if c.ffn_bias else 0
    return (inward + 1) * c.d_model * c.d_ff + biases + int(c.residual == "fixup")


def _feed_forward(c: Seq2SeqConfig, stack: StackName, index: int) -> int:
    """That of one block, with its norm and residual."""
    if c.mixer == "weighted":
        return 0
    own = _feed(c)
    if c.sparse != "none" and index in c.sparse_layers[stack == "decoder"]:
        if c.sparse == "pkm":
            own = _count("memory", "ProductKeyMemory")(
                c.d_model, keys=c.memory_keys, heads=c.memory_heads, key_size=c.memory_key_size
            )
        else:
            own = _count("moe", "MixtureOfExperts")(c.d_model, c.expert_ff or c.d_ff, c.experts)
    return own + _norm(c) + _join(c)


def _block(c: Seq2SeqConfig, stack: StackName, index: int) -> int:
    table = c.buckets * c.heads if c.position == "rel_per_layer" and _biased(c) else 0
    if c.block == "evolved":
        return _evolved(c, stack) + table
    cross = 0
    if stack == "decoder" and c.has_encoder:
        cross = _mixer(c, cross=True) + _norm(c) + _join(c)
    if stack == "decoder" and c.arch == "encdec_shared":
        return cross + 2 * _join(c) + table
    return _mixer(c) + _norm(c) + _join(c) + cross + _feed_forward(c, stack, index) + table


def _evolved(c: Seq2SeqConfig, stack: StackName) -> int:
    if stack == "encoder":
        names = ("GatedLinearUnit", "EvolvedEncoderConvolution")
        convolutions = sum(_count("evolved", name)(c.d_model) for name in names)
        return convolutions + _attention(c) + _feed(c) + 4 * _norm(c)
    wide = _attention(dataclasses.replace(c, heads=2 * c.heads))
    attention = wide + _attention(c) + 2 * _attention(c, cross=True)
    convolution = _count("evolved", "EvolvedDecoderConvolution")(c.d_model)
    return convolution + attention + _feed(c) + 5 * _norm(c)


def _biased(c: Seq2SeqConfig) -> bool:
    return c.mixer not in ("lightconv", "dynconv")


def _stack(c: Seq2SeqConfig, stack: StackName) -> int:
    blocks = range(1 if c.shares_blocks(stack) else c.depth(stack))
    total = sum(_block(c, stack, i) for i in blocks)
    if c.position == "rel_shared" and _biased(c):
        total += c.buckets * c.heads
    if c.position == "learned":
        total += c.max_length * c.d_model
    if c.cross == "transparent" and stack == "decoder":
        total += (c.layers + 1) * c.decoder_depth
    if c.recurrence:
        total += c.recurrence * c.d_model  # a vector of each step
    if c.residual == "fixup":
        return total + (2 if stack == "encoder" else 1)
    return total + _norm(c)
