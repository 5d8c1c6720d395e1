"""Which module stands in each place of the model; the only file that knows all of them.

The contract of what can be plugged in:

*Mixer* (in place of self-attention): ``forward(x, *, source=None, bias=None, mask=None,
cache=None)`` maps ``x`` ``(b, q, d_model)`` to the same shape. ``bias`` broadcasts to
``(b, heads, q, k)``, holds position biases, and is hugely negative wherever ``mask``
(bool, broadcasts to ``(b, q, k)``) is false: attention needs the bias only, a convolution the mask
only. ``mask`` says everything about visibility: padding, causality, segments of packed rows. With
a cache (of ``new_cache()``; it has ``reorder(rows)``), ``x`` holds the new places only, and
``mask`` has a column for every place up to the last of them, so that ``k - q`` were read before.

*Feed-forward layer*: ``forward(x)`` maps ``(..., d_model)`` to the same shape. One with a true
attribute ``routes`` takes ``mask=`` too, ``(b, n)`` bool, false at padding.

*Residual*: ``forward(h, y)`` joins a sublayer's output to the stream.

*Block*: a :class:`~.stack.BaseBlock`. *Stack*: a :class:`~.stack.Stack`, or a class with its
``forward``, ``new_cache``, ``output_mask`` and ``blocks``.

Every module that owns weights has ``initialise(generator)``, which draws its own weights and those
of its plain children anew, but not those of children that have ``initialise`` themselves. A module
with a loss of its own has ``auxiliary_loss()``, which gives that of its last call in training mode,
times its coefficient, or None.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from fishertope.core.errors import InvalidInputError

from .attention import Attention
from .config import Seq2SeqConfig, StackName
from .layers import FeedForward, GatedFeedForward
from .residual import FixupResidual, PlainResidual, ReZero

if TYPE_CHECKING:
    from .positions import RelativeBias
    from .stack import BaseBlock, Stack

_MIXERS = {
    "lightconv": ("conv", "LightweightConvolution"),
    "dynconv": ("conv", "DynamicConvolution"),
    "synth_dense": ("synthesizer", "Synthesizer"),
    "synth_dense_plus": ("synthesizer", "Synthesizer"),
    "synth_dense_plus_alpha": ("synthesizer", "Synthesizer"),
    "synth_factorized": ("synthesizer", "Synthesizer"),
    "synth_random": ("synthesizer", "Synthesizer"),
    "synth_random_plus": ("synthesizer", "Synthesizer"),
    "synth_random_plus_alpha": ("synthesizer", "Synthesizer"),
    "weighted": ("weighted", "WeightedAttention"),
}
_SPARSE = {
    "moe": ("moe", "MixtureOfExperts"),
    "switch": ("moe", "SwitchFeedForward"),
    "pkm": ("memory", "ProductKeyMemory"),
}


def _late(axis: str, value: object, module: str, name: str) -> Any:
    """A class of a module that is loaded when it is used."""
    if find_spec(f".{module}", __package__) is not None:
        found = getattr(import_module(f".{module}", __package__), name, None)
        if found is not None:
            return found
    raise InvalidInputError(
        f"{axis}={value!r} is not implemented in this version; leave {axis} at its default"
    )


def reads_biases(config: Seq2SeqConfig) -> bool:
    """Whether the mixers add a position bias to their logits."""
    return config.mixer not in ("lightconv", "dynconv")


def make_mixer(config: Seq2SeqConfig, *, causal: bool, cross: bool = False) -> nn.Module:
    """What mixes places: a layer's self-attention or what stands for it, or its cross-attention."""
    if config.mixer == "attention" or (cross and config.mixer != "weighted"):
        return Attention(config, causal=causal, cross=cross)
    found = _late("mixer", config.mixer, *_MIXERS[config.mixer])
    if config.mixer == "weighted":
        return cast(nn.Module, found(config, causal=causal, cross=cross))
    return cast(nn.Module, found.from_config(config, causal=causal))


def make_feed_forward(config: Seq2SeqConfig, *, stack: StackName, index: int) -> nn.Module | None:
    """The feed-forward layer of a block; None where the mixers have it inside."""
    if config.mixer == "weighted":
        return None
    if config.sparse != "none" and index in config.sparse_layers[stack == "decoder"]:
        found = _late("sparse", config.sparse, *_SPARSE[config.sparse])
        return cast(nn.Module, found.from_config(config))
    return GatedFeedForward(config) if config.gated else FeedForward(config)


def make_residual(config: Seq2SeqConfig) -> nn.Module:
    """How the output of each sublayer joins the stream."""
    if config.recurrence:
        found = _late("recurrence", config.recurrence, "universal", "GatedResidual")
        return cast(nn.Module, found.from_config(config))
    if config.residual == "rezero":
        return ReZero()
    return FixupResidual() if config.residual == "fixup" else PlainResidual()


def make_block(
    config: Seq2SeqConfig, *, stack: StackName, index: int, own_position: RelativeBias | None,
    shared: nn.Module | None,
) -> BaseBlock:  # fmt: skip
    """One block of a stack; ``shared`` is the encoder's block whose layers it uses."""
    from .stack import Block

    if config.block == "evolved":
        name = "EvolvedEncoderBlock" if stack == "encoder" else "EvolvedDecoderBlock"
        found = _late("block", config.block, "evolved", name)
        return cast("BaseBlock", found(config, own_position=own_position))
    return Block(
        config, stack=stack, index=index, own_position=own_position,
        shared=cast("Block | None", shared),
    )  # fmt: skip


def make_stack(config: Seq2SeqConfig, *, stack: StackName, shared: Stack | None = None) -> Stack:
    """The encoder, or the decoder or only stack; ``shared`` is an encoder whose layers it uses."""
    from .stack import Stack

    if config.recurrence:
        found = _late("recurrence", config.recurrence, "universal", "UniversalStack")
        return cast(Stack, found(config, stack=stack))
    if config.pool_blocks > 1 and stack == "encoder":
        found = _late("pool_blocks", config.pool_blocks, "funnel", "FunnelEncoder")
        return cast(Stack, found(config))
    return Stack(config, stack=stack, shared=shared)
