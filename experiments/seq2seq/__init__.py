"""Text-to-text Transformers whose every variant is a small change of one configuration."""

from .attention import Attention as Attention
from .config import PUBLISHED as PUBLISHED, Seq2SeqConfig as Seq2SeqConfig
from .conv import (
    DynamicConvolution as DynamicConvolution,
    LightweightConvolution as LightweightConvolution,
)
from .embeddings import (
    ClusteredEmbedding as ClusteredEmbedding,
    FactorizedEmbedding as FactorizedEmbedding,
)
from .evolved import (
    EvolvedDecoderBlock as EvolvedDecoderBlock,
    EvolvedEncoderBlock as EvolvedEncoderBlock,
)
from .funnel import FunnelEncoder as FunnelEncoder
from .layers import (
    FeedForward as FeedForward,
    GatedFeedForward as GatedFeedForward,
    PartialRMSNorm as PartialRMSNorm,
    RMSNorm as RMSNorm,
)
from .memory import ProductKeyMemory as ProductKeyMemory
from .model import (
    Seq2Seq as Seq2Seq,
    shift_right as shift_right,
    token_loss as token_loss,
    token_losses as token_losses,
)
from .moe import (
    MixtureOfExperts as MixtureOfExperts,
    SwitchFeedForward as SwitchFeedForward,
)
from .parameters import (
    count_parameters as count_parameters,
    parameter_counts as parameter_counts,
)
from .positions import (
    ContextualBias as ContextualBias,
    LearnedPositions as LearnedPositions,
    RelativeBias as RelativeBias,
    SinusoidalPositions as SinusoidalPositions,
    relative_buckets as relative_buckets,
)
from .residual import FixupResidual as FixupResidual, ReZero as ReZero
from .softmaxes import (
    AdaptiveSoftmax as AdaptiveSoftmax,
    MixtureOfSoftmaxes as MixtureOfSoftmaxes,
)
from .stack import (
    Block as Block,
    Cache as Cache,
    Stack as Stack,
    TransparentMixture as TransparentMixture,
)
from .synthesizer import Synthesizer as Synthesizer
from .universal import GatedResidual as GatedResidual, UniversalStack as UniversalStack
from .weighted import (
    WeightedAttention as WeightedAttention,
    freeze_branches as freeze_branches,
)
