"""One frozen description of a text-to-text Transformer; a variant is a small change of it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fishertope.core.errors import InvalidInputError

Architecture: TypeAlias = Literal["encdec", "encdec_shared", "lm", "prefix_lm"]
Activation: TypeAlias = Literal[
    "relu", "gelu", "swish", "elu", "selu", "sigmoid", "softplus", "linear", "tanh"
]
Norm: TypeAlias = Literal["rms", "layer", "none"]
Position: TypeAlias = Literal["rel_shared", "rel_per_layer", "none"]
Embedding: TypeAlias = Literal["tied_all", "tied_inputs", "tied_dec", "untied"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "arch": ("encdec", "encdec_shared", "lm", "prefix_lm"),
    "activation": (
        "relu", "gelu", "swish", "elu", "selu", "sigmoid", "softplus", "linear", "tanh",
    ),
    "norm": ("rms", "layer", "none"),
    "position": ("rel_shared", "rel_per_layer", "none"),
    "embedding": ("tied_all", "tied_inputs", "tied_dec", "untied"),
}  # fmt: skip
_POSITIVE = ("vocab_size", "d_model", "d_ff", "d_kv", "heads", "layers", "buckets", "max_distance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqConfig:
    """Sizes and choices of a text-to-text Transformer (T5 v1.0 by default).

    Parameters
    ----------
    vocab_size, d_model, d_ff, d_kv, heads, layers
        Sizes; ``layers`` counts the blocks of the encoder, or of the only stack.
    decoder_layers
        Blocks of the decoder; ``None`` means ``layers``.
    arch
        ``"encdec"``; ``"encdec_shared"`` (each decoder block uses the self-attention, the
        feed-forward layer and their norms of the encoder block of the same depth);
        ``"lm"`` and ``"prefix_lm"`` (one stack over the concatenated sequence).
    activation, gated
        Of the feed-forward layer. ``gelu`` is the tanh form.
    norm, position, embedding, ffn_bias
        Normalisation, position information, which embedding matrices are one, and biases.
    scale_logits
        Multiply the last hidden state by ``d_model ** -0.5`` before the softmax matrix.
        ``None`` means: exactly if that matrix is also an embedding.

    Raises
    ------
    InvalidInputError
        An unknown choice, a size below one, or a pair that has no meaning.

    References
    ----------
    Raffel et al., arXiv 1910.10683; gated units: Shazeer, arXiv 2002.05202.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    d_kv: int
    heads: int
    layers: int
    decoder_layers: int | None = None
    arch: Architecture = "encdec"
    activation: Activation = "relu"
    gated: bool = False
    norm: Norm = "rms"
    position: Position = "rel_shared"
    embedding: Embedding = "tied_all"
    ffn_bias: bool = False
    scale_logits: bool | None = None
    dropout: float = 0.1
    norm_eps: float = 1e-6
    buckets: int = 32
    max_distance: int = 128
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0

    def __post_init__(self) -> None:
        for name, accepted in _CHOICES.items():
            given = getattr(self, name)
            if given not in accepted:
                raise InvalidInputError(
                    f"{name}={given!r}; accepted are {', '.join(map(repr, accepted))}"
                )
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)}; give a whole number >= 1")
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidInputError(f"dropout={self.dropout}; give a probability in [0, 1)")
        if self.buckets % 2 or self.buckets < 4 or self.max_distance <= self.buckets:
            raise InvalidInputError(
                f"buckets={self.buckets}, max_distance={self.max_distance}; buckets must be even, "
                "at least 4 and less than max_distance"
            )
        if not self.has_encoder and self.embedding in ("tied_inputs", "tied_dec"):
            raise InvalidInputError(
                f"embedding={self.embedding!r} speaks of two stacks, but arch={self.arch!r} has "
                "one; use 'tied_all' or 'untied'"
            )
        depth = self.layers if self.decoder_layers is None else self.decoder_layers
        if depth < 1 or (self.arch != "encdec" and depth != self.layers):
            raise InvalidInputError(
                f"decoder_layers={depth} with layers={self.layers} and arch={self.arch!r}; only "
                "'encdec' may have stacks of different depth, each of at least one block"
            )

    @property
    def has_encoder(self) -> bool:
        """Whether there are two stacks."""
        return self.arch in ("encdec", "encdec_shared")

    @property
    def inner(self) -> int:
        """Width of all heads together, ``heads * d_kv``."""
        return self.heads * self.d_kv

    @property
    def decoder_depth(self) -> int:
        """Number of blocks of the decoder, or of the only stack."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    @property
    def logits_scaled(self) -> bool:
        """Whether the last hidden state is scaled before the softmax matrix."""
        if self.scale_logits is None:
            return self.embedding in ("tied_all", "tied_dec")
        return self.scale_logits


def _published(d_model: int, d_ff: int, d_kv: int, heads: int, layers: int) -> Seq2SeqConfig:
    return Seq2SeqConfig(
        vocab_size=32_128, d_model=d_model, d_ff=d_ff, d_kv=d_kv, heads=heads, layers=layers
    )


PUBLISHED: dict[str, Seq2SeqConfig] = {
    "small": _published(512, 2_048, 64, 8, 6),
    "base": _published(768, 3_072, 64, 12, 12),
    "large": _published(1_024, 4_096, 64, 16, 24),
    "3b": _published(1_024, 16_384, 128, 32, 24),
    "11b": _published(1_024, 65_536, 128, 128, 24),
}
"""The five sizes of arXiv 1910.10683, with the released vocabulary."""
