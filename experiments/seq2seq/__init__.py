"""Text-to-text Transformers whose every variant is a small change of one configuration."""

from .attention import Attention, RelativeBias, relative_buckets
from .config import PUBLISHED, Seq2SeqConfig
from .layers import FeedForward, GatedFeedForward, RMSNorm
from .model import Cache, Seq2Seq, shift_right, token_loss
