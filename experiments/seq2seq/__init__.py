"""Text-to-text Transformers whose every variant is a small change of one configuration."""

from .attention import (
    Attention as Attention,
    RelativeBias as RelativeBias,
    relative_buckets as relative_buckets,
)
from .config import PUBLISHED as PUBLISHED, Seq2SeqConfig as Seq2SeqConfig
from .layers import (
    FeedForward as FeedForward,
    GatedFeedForward as GatedFeedForward,
    RMSNorm as RMSNorm,
)
from .model import (
    Cache as Cache,
    Seq2Seq as Seq2Seq,
    shift_right as shift_right,
    token_loss as token_loss,
)
