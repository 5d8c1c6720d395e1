"""One frozen description of a text-to-text Transformer; a variant is a small change of it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Architecture: TypeAlias = Literal["encdec", "encdec_shared", "lm", "prefix_lm"]
Activation: TypeAlias = Literal[
    "relu", "gelu", "swish", "elu", "selu", "sigmoid", "softplus", "linear", "tanh"
]
Norm: TypeAlias = Literal["rms", "partial_rms", "layer", "none"]
Residual: TypeAlias = Literal["plain", "rezero", "fixup"]
Position: TypeAlias = Literal[
    "rel_shared", "rel_per_layer", "rel_contextual", "learned", "sinusoidal", "none"
]
Sharing: TypeAlias = Literal["none", "enc", "dec", "both"]
Embedding: TypeAlias = Literal["tied_all", "tied_inputs", "tied_dec", "untied"]
EmbeddingForm: TypeAlias = Literal["full", "factorized", "adaptive"]
Softmax: TypeAlias = Literal["plain", "adaptive", "adaptive_noproj", "mos"]
MixerKind: TypeAlias = Literal[
    "attention", "lightconv", "dynconv", "synth_dense", "synth_dense_plus",
    "synth_dense_plus_alpha", "synth_factorized", "synth_random", "synth_random_plus",
    "synth_random_plus_alpha", "weighted",
]  # fmt: skip
Sparse: TypeAlias = Literal["none", "moe", "switch", "pkm"]
StackName: TypeAlias = Literal["encoder", "decoder"]


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
    activation, gated, ffn_bias
        Of the feed-forward layer. ``gelu`` is the tanh form.
    norm
        ``"rms"``, ``"layer"``, ``"none"``, or ``"partial_rms"``: the mean square of the first
        ``norm_part`` of the channels only.
    residual
        ``"plain"`` ``h + f``, ``"rezero"`` ``h + α f`` with α = 0 at first, ``"fixup"`` (scalar
        shifts and scales, output matrices zero at first; needs ``norm="none"``).
    fixup_cross
        ``"released"``: cross-attention keeps the ordinary initial weights, as in the released
        code of arXiv 2102.11972; ``"zero"``: it starts as the other sublayers do, as in
        arXiv 1901.09321.
    position
        Relative biases (one table a stack, or one a layer), ``"rel_contextual"`` (a bias that
        depends on ``contextual_from``: the query, or the layer's input), or vectors added to the
        embedded tokens, for at most ``max_length`` places (also the length of Synthesizers).
    share_blocks
        In which stacks one block, with its norms, is used at every depth.
    embedding, embedding_form
        Which embedding matrices are one, and what they are: one matrix, a product of two with
        ``embedding_inner`` in between, or ``clusters`` of ids with widths ``cluster_inner``.
        A softmax matrix that is no embedding is always one matrix.
    softmax
        ``"adaptive"`` takes ``clusters`` too, the first being the head; ``"adaptive_noproj"``
        gives all of them the full width; ``"mos"`` mixes ``softmax_components``.
    cross
        ``"transparent"``: each decoder block reads its own mixture of all encoder layers.
    mixer, conv_width, synth_rank
        What stands in place of self-attention.
    block
        ``"evolved"``: the double blocks of the Evolved Transformer; ``layers`` counts them.
    sparse, sparse_layers
        What stands in place of the feed-forward layer in the blocks ``sparse_layers``, which are
        ``(indices in the encoder, indices in the decoder)``.
    experts, expert_ff, capacity_factor, auxiliary_weight
        Number and width (``None``: ``d_ff``) of experts, tokens each may take as a multiple of
        the even share (``None``: all), and the coefficient of the auxiliary loss.
    memory_keys, memory_heads, memory_top, memory_key_size
        Of product-key memory: ``memory_keys ** 2`` values.
    recurrence
        Steps of a Universal Transformer, 0 for none.
    pool_blocks
        Funnel: groups of encoder blocks, each after the first at half the length.
    scaling
        ``"folded"``: attention has no ``d_kv ** -0.5``, embeddings start with scale one (for
        Adafactor). ``"explicit"``: attention has the factor, embeddings start with scale
        ``d_model ** -0.5`` and are multiplied by ``d_model ** 0.5``, logits are not scaled (for
        Adam). Both give the same function at the start.
    scale_logits
        Multiply the last hidden state by ``d_model ** -0.5`` before the softmax matrix.
        ``None`` means: exactly if that matrix is also an embedding and ``scaling="folded"``.

    Raises
    ------
    InvalidInputError
        An unknown choice, a size below one, or a pair that has no meaning.

    References
    ----------
    Raffel et al., arXiv 1910.10683; gated units: Shazeer, arXiv 2002.05202; the variants:
    Narang et al., arXiv 2102.11972.
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
    norm_part: float = 0.0675
    residual: Residual = "plain"
    fixup_cross: Literal["released", "zero"] = "released"
    position: Position = "rel_shared"
    contextual_from: Literal["query", "input"] = "query"
    max_length: int = 512
    share_blocks: Sharing = "none"
    embedding: Embedding = "tied_all"
    embedding_form: EmbeddingForm = "full"
    embedding_inner: int = 128
    clusters: tuple[int, ...] = ()
    cluster_inner: tuple[int, ...] = ()
    softmax: Softmax = "plain"
    softmax_components: int = 15
    cross: Literal["plain", "transparent"] = "plain"
    mixer: MixerKind = "attention"
    conv_width: int = 9
    synth_rank: int = 16
    block: Literal["standard", "evolved"] = "standard"
    sparse: Sparse = "none"
    sparse_layers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    experts: int = 32
    expert_ff: int | None = None
    capacity_factor: float | None = None
    auxiliary_weight: float = 1e-2
    memory_keys: int = 512
    memory_heads: int = 8
    memory_top: int = 32
    memory_key_size: int = 128
    recurrence: int = 0
    pool_blocks: int = 1
    ffn_bias: bool = False
    scaling: Literal["folded", "explicit"] = "folded"
    scale_logits: bool | None = None
    dropout: float = 0.1
    norm_eps: float = 1e-6
    buckets: int = 32
    max_distance: int = 128
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0

    def __post_init__(self) -> None:
        from .config_checks import as_tuples, check

        for name, value in as_tuples(self).items():
            object.__setattr__(self, name, value)
        check(self)

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
    def sublayers(self) -> int:
        """Residual branches of the whole model (Fixup's number of blocks)."""
        if not self.has_encoder:
            return 2 * self.decoder_depth
        return 2 * self.layers + 3 * self.decoder_depth

    @property
    def logits_scaled(self) -> bool:
        """Whether the last hidden state is scaled before the softmax matrix."""
        if self.scale_logits is None:
            return self.embedding in ("tied_all", "tied_dec") and self.scaling == "folded"
        return self.scale_logits

    @property
    def attention_scale(self) -> float:
        """Factor of the attention logits; Fixup's initial weights always need the explicit one."""
        explicit = self.scaling == "explicit" or self.residual == "fixup"
        return self.d_kv**-0.5 if explicit else 1.0

    @property
    def cluster_widths(self) -> tuple[int, ...]:
        """Width of each cluster of ids, empty without clusters."""
        if self.softmax == "adaptive_noproj":
            return (self.d_model,) * len(self.clusters)
        return self.cluster_inner

    def depth(self, stack: StackName) -> int:
        """Number of blocks of a stack."""
        return self.layers if stack == "encoder" else self.decoder_depth

    def shares_blocks(self, stack: StackName) -> bool:
        """Whether one block is used at every depth of a stack."""
        return self.share_blocks in ("both", "enc" if stack == "encoder" else "dec")


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
