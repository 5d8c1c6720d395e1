"""Which configurations have a meaning, and what to say about those that have none."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

from fishertope.core.errors import InvalidInputError

from . import config as names

if TYPE_CHECKING:
    from .config import Seq2SeqConfig

_CHOICES: dict[str, tuple[str, ...]] = {
    "arch": typing.get_args(names.Architecture),
    "activation": typing.get_args(names.Activation),
    "norm": typing.get_args(names.Norm),
    "residual": typing.get_args(names.Residual),
    "fixup_cross": ("released", "zero"),
    "position": typing.get_args(names.Position),
    "contextual_from": ("query", "input"),
    "share_blocks": typing.get_args(names.Sharing),
    "embedding": typing.get_args(names.Embedding),
    "embedding_form": typing.get_args(names.EmbeddingForm),
    "softmax": typing.get_args(names.Softmax),
    "cross": ("plain", "transparent"),
    "mixer": typing.get_args(names.MixerKind),
    "block": ("standard", "evolved"),
    "sparse": typing.get_args(names.Sparse),
    "scaling": ("folded", "explicit"),
}
_POSITIVE = (
    "vocab_size", "d_model", "d_ff", "d_kv", "heads", "layers", "buckets", "max_distance",
    "max_length", "embedding_inner", "softmax_components", "conv_width", "synth_rank", "experts",
    "memory_keys", "memory_heads", "memory_top", "memory_key_size", "pool_blocks",
)  # fmt: skip


def as_tuples(config: Seq2SeqConfig) -> dict[str, Any]:
    """The fields that are tuples, made so (a file gives lists)."""
    try:
        encoder, decoder = (tuple(indices) for indices in config.sparse_layers)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"sparse_layers={config.sparse_layers!r}; give (indices in the encoder, indices in the "
            "decoder), as in ((3, 7), (3, 7))"
        ) from None
    return {
        "clusters": tuple(config.clusters),
        "cluster_inner": tuple(config.cluster_inner),
        "sparse_layers": (encoder, decoder),
    }


def check(config: Seq2SeqConfig) -> None:
    """Raise InvalidInputError if the configuration has no meaning."""
    _values(config)
    _stacks(config)
    _vocabulary(config)
    _blocks(config)
    _feed_forward(config)


def _refuse(given: str, why: str) -> None:
    raise InvalidInputError(f"{given}: {why}")


def _values(c: Seq2SeqConfig) -> None:
    for name, accepted in _CHOICES.items():
        given = getattr(c, name)
        if given not in accepted:
            raise InvalidInputError(
                f"{name}={given!r}; accepted are {', '.join(map(repr, accepted))}"
            )
    for name in _POSITIVE:
        if getattr(c, name) < 1:
            raise InvalidInputError(f"{name}={getattr(c, name)}; give a whole number >= 1")
    if not 0.0 <= c.dropout < 1.0:
        raise InvalidInputError(f"dropout={c.dropout}; give a probability in [0, 1)")
    if not 0.0 < c.norm_part <= 1.0:
        raise InvalidInputError(f"norm_part={c.norm_part}; give a part of the channels in (0, 1]")
    if c.buckets % 2 or c.buckets < 4 or c.max_distance <= c.buckets:
        raise InvalidInputError(
            f"buckets={c.buckets}, max_distance={c.max_distance}; buckets must be even, "
            "at least 4 and less than max_distance"
        )
    if c.recurrence < 0:
        raise InvalidInputError(f"recurrence={c.recurrence}; give a number of steps, or 0")


def _stacks(c: Seq2SeqConfig) -> None:
    if not c.has_encoder and c.embedding in ("tied_inputs", "tied_dec"):
        raise InvalidInputError(
            f"embedding={c.embedding!r} speaks of two stacks, but arch={c.arch!r} has "
            "one; use 'tied_all' or 'untied'"
        )
    depth = c.decoder_depth
    if depth < 1 or (c.arch != "encdec" and depth != c.layers):
        raise InvalidInputError(
            f"decoder_layers={depth} with layers={c.layers} and arch={c.arch!r}; only "
            "'encdec' may have stacks of different depth, each of at least one block"
        )
    if c.share_blocks == "enc" and not c.has_encoder:
        _refuse(f"share_blocks='enc' with arch={c.arch!r}", "a single stack takes 'dec' or 'both'")
    plain = {
        "share_blocks": "none", "cross": "plain", "mixer": "attention", "block": "standard",
        "recurrence": 0, "pool_blocks": 1,
    }  # fmt: skip
    if c.arch == "encdec_shared":
        _only(c, plain, "arch='encdec_shared'", "whose stacks share their layers")
        if c.position == "rel_contextual":
            _refuse(
                "arch='encdec_shared' with position='rel_contextual'",
                "a table inside the shared attention cannot serve both directions; use another",
            )
    if c.cross == "transparent":
        rest = {"arch": "encdec", "recurrence": 0, "pool_blocks": 1}
        _only(c, rest, "cross='transparent'", "which mixes encoder layers of one length")
    if c.recurrence:
        rest = {
            "arch": "encdec", "share_blocks": "none", "residual": "plain", "block": "standard",
            "pool_blocks": 1, "sparse": "none",
        }  # fmt: skip
        _only(c, rest, f"recurrence={c.recurrence}", "which has its own sharing and residual")
    if c.pool_blocks > 1:
        rest = {
            "arch": "encdec", "share_blocks": "none", "mixer": "attention", "block": "standard",
            "sparse": "none",
        }  # fmt: skip
        _only(c, rest, f"pool_blocks={c.pool_blocks}", "a funnel of attention blocks")
        if c.layers % c.pool_blocks:
            _refuse(
                f"pool_blocks={c.pool_blocks} with layers={c.layers}",
                "the encoder's blocks must fall into groups of one size",
            )


def _only(c: Seq2SeqConfig, allowed: dict[str, Any], given: str, why: str) -> None:
    """Refuse every listed field that has another value than the allowed one."""
    wrong = [f"{name}={getattr(c, name)!r}" for name, v in allowed.items() if getattr(c, name) != v]
    if wrong:
        right = ", ".join(f"{name}={value!r}" for name, value in allowed.items())
        _refuse(f"{given} ({why}) does not go with {', '.join(wrong)}", f"it needs {right}")


def _vocabulary(c: Seq2SeqConfig) -> None:
    adaptive = c.softmax in ("adaptive", "adaptive_noproj")
    if adaptive and c.embedding not in ("tied_all", "tied_dec"):
        _refuse(
            f"softmax={c.softmax!r} with embedding={c.embedding!r}",
            "an adaptive softmax shares its clusters with the decoder's embedding; use 'tied_all' "
            "or 'tied_dec'",
        )
    if adaptive and c.embedding_form == "factorized":
        _refuse(
            f"softmax={c.softmax!r} with embedding_form='factorized'",
            "the clusters are the embedding; leave embedding_form as it is",
        )
    if c.softmax == "mos" and c.embedding_form != "full":
        _refuse(
            f"softmax='mos' with embedding_form={c.embedding_form!r}",
            "a mixture of softmaxes needs one full matrix",
        )
    if not adaptive and c.embedding_form != "adaptive":
        return
    widths = c.cluster_widths
    if sum(c.clusters) != c.vocab_size or len(widths) != len(c.clusters):
        _refuse(
            f"clusters={c.clusters}, cluster_inner={c.cluster_inner}, vocab_size={c.vocab_size}",
            "give the sizes of the clusters, which add up to the vocabulary, and one width each",
        )
    if min(*c.clusters, *widths) < 1 or max(widths) > c.d_model:
        _refuse(
            f"clusters={c.clusters} of widths {widths}",
            f"sizes must be at least 1, widths between 1 and d_model={c.d_model}",
        )
    if adaptive and len(c.clusters) < 2:
        _refuse(f"clusters={c.clusters}", "an adaptive softmax needs a head and at least one tail")


def _blocks(c: Seq2SeqConfig) -> None:
    if c.residual == "fixup" and c.norm != "none":
        _refuse(
            f"residual='fixup' with norm={c.norm!r}", "Fixup replaces the norms; give norm='none'"
        )
    if c.position == "sinusoidal" and c.d_model % 2:
        _refuse(f"position='sinusoidal' with d_model={c.d_model}", "d_model must be even")
    if c.mixer in ("lightconv", "dynconv"):
        if c.arch == "prefix_lm":
            _refuse(
                f"mixer={c.mixer!r} with arch='prefix_lm'",
                "a causal convolution cannot see a whole prefix; use 'lm' or 'encdec'",
            )
        if c.conv_width % 2 == 0:
            _refuse(f"conv_width={c.conv_width}", "an encoder's window needs a middle; give odd")
    if c.mixer == "weighted" and c.sparse != "none":
        _refuse(f"mixer='weighted' with sparse={c.sparse!r}", "it has no feed-forward layers")
    if c.block == "evolved":
        rest = {"arch": "encdec", "mixer": "attention", "sparse": "none", "residual": "plain"}
        _only(c, rest, "block='evolved'", "which has its own layers")


def _feed_forward(c: Seq2SeqConfig) -> None:
    if c.sparse == "none":
        if c.sparse_layers != ((), ()):
            _refuse(f"sparse_layers={c.sparse_layers}", "name what stands there with sparse=")
        return
    for indices, depth in zip(
        c.sparse_layers, (c.layers if c.has_encoder else 0, c.decoder_depth), strict=True
    ):
        if len(set(indices)) != len(indices) or any(not 0 <= i < depth for i in indices):
            _refuse(
                f"sparse_layers={c.sparse_layers}",
                "give (indices in the encoder, indices in the decoder), each in [0, blocks) once",
            )
    if c.sparse_layers == ((), ()):
        _refuse(f"sparse={c.sparse!r}", "name the blocks with sparse_layers=(encoder, decoder)")
    if c.share_blocks != "none":
        _refuse(
            f"sparse={c.sparse!r} with share_blocks={c.share_blocks!r}",
            "a shared block has one feed-forward layer for all depths",
        )
    if c.sparse == "moe" and c.experts < 2:
        _refuse(f"sparse='moe' with experts={c.experts}", "each token goes to two of them")
    if c.capacity_factor is not None and c.capacity_factor <= 0:
        _refuse(f"capacity_factor={c.capacity_factor}", "give a positive number, or None for all")
    if c.sparse == "pkm" and (c.memory_key_size % 2 or c.memory_top > c.memory_keys):
        _refuse(
            f"memory_key_size={c.memory_key_size}, memory_top={c.memory_top}, "
            f"memory_keys={c.memory_keys}",
            "keys are split in two equal halves, and at most all of them can be taken",
        )
