"""Where a token stands: relative buckets and biases, and vectors added to embedded tokens."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Seq2SeqConfig
from .layers import normal


def relative_buckets(
    relative: Tensor, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Bucket of each relative position ``key - query``.

    With ``nb`` buckets a side and ``m = nb / 2``, a distance ``n < m`` has its own bucket and a
    larger one ``min(nb - 1, m + floor(ln(n/m) / ln(max_distance/m) * (nb - m)))``. Bidirectional
    use gives each side half of the buckets; causal use puts all later keys into bucket 0.

    Parameters
    ----------
    relative
        Whole numbers of any shape.

    Returns
    -------
    Tensor
        int64 of the same shape, in ``[0, buckets)``.

    References
    ----------
    Raffel et al., arXiv 1910.10683, section 2.1.
    """
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        offset = torch.zeros_like(relative)
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def _distances(queries: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """``key - query`` for queries that begin at place ``offset``; ``(queries, keys)`` int64."""
    key = torch.arange(keys, device=device)
    query = torch.arange(offset, offset + queries, device=device)
    return key[None, :] - query[:, None]


class RelativeBias(nn.Module):
    """One learned scalar for each (bucket, head), added to self-attention logits."""

    def __init__(self, config: Seq2SeqConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.bidirectional = bidirectional
        self.max_distance = config.max_distance
        self.std = config.d_model**-0.5

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the table anew."""
        normal(self.weight, self.std, generator)

    def forward(self, queries: int, keys: int, offset: int = 0) -> Tensor:
        """Bias ``(1, heads, queries, keys)``; the first query stands at place ``offset``."""
        bucket = relative_buckets(
            _distances(queries, keys, offset, self.weight.device),
            bidirectional=self.bidirectional,
            buckets=self.weight.shape[0],
            max_distance=self.max_distance,
        )
        return self.weight[bucket].permute(2, 0, 1)[None]


class ContextualBias(nn.Module):
    """Bias of each (query, key) that depends on the query: ``x_i · A[bucket(j - i)]`` a head.

    ``x`` is the head's own query (Shaw et al.; the code of arXiv 2102.11972), or the layer's input,
    as in earlier versions of that code. Parameters: ``buckets * heads * width``, in every layer.
    Cost for ``n`` queries: ``n * buckets * heads * width`` multiply-adds. Sources: Shaw et al.,
    arXiv 1803.02155; buckets of arXiv 1910.10683.
    """

    def __init__(self, config: Seq2SeqConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.from_query = config.contextual_from == "query"
        width = config.d_kv if self.from_query else config.d_model
        self.weight = nn.Parameter(torch.empty(config.heads, config.buckets, width))
        self.bidirectional = bidirectional
        self.max_distance = config.max_distance

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the table anew."""
        normal(self.weight, self.weight.shape[-1] ** -0.5, generator)

    def forward(self, x: Tensor, query: Tensor, keys: int) -> Tensor:
        """Bias ``(b, heads, q, keys)``; the queries are the last places of the keys.

        ``x`` is ``(b, q, d_model)``, ``query`` ``(b, heads, q, d_kv)``.
        """
        read = query if self.from_query else x[:, None]
        values = read @ self.weight.transpose(-1, -2)
        places = query.shape[2]
        bucket = relative_buckets(
            _distances(places, keys, keys - places, x.device),
            bidirectional=self.bidirectional,
            buckets=self.weight.shape[1],
            max_distance=self.max_distance,
        )
        return values.gather(-1, bucket.expand(*values.shape[:2], -1, -1))


class LearnedPositions(nn.Module):
    """A learned vector for each place, added to the embedded tokens.

    Parameters: ``max_length * d_model``, in each stack. Source: Gehring et al., arXiv 1705.03122.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_length, config.d_model))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the table anew, with the scale of the token embeddings."""
        normal(self.weight, 1.0, generator)

    def forward(self, places: Tensor) -> Tensor:
        """``(..., d_model)`` for places ``(...)`` int64; all must be below ``max_length``."""
        return F.embedding(places, self.weight)


class SinusoidalPositions(nn.Module):
    """``[sin(p w_k), cos(p w_k)]``, ``w_k = 10000 ** (-k / (d/2 - 1))``, added to the tokens.

    No parameters. Source: Vaswani et al., arXiv 1706.03762 (all sines first, as in released code).
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.frequencies = config.d_model // 2

    def forward(self, places: Tensor) -> Tensor:
        """``(..., d_model)`` for places ``(...)`` int64."""
        k = torch.arange(self.frequencies, device=places.device)
        frequency = torch.exp(-math.log(10_000.0) / max(self.frequencies - 1, 1) * k)
        angle = places[..., None] * frequency
        return torch.cat([angle.sin(), angle.cos()], -1)


def absolute_positions(config: Seq2SeqConfig) -> nn.Module | None:
    """The vectors that the configuration adds to embedded tokens, if any."""
    if config.position == "learned":
        return LearnedPositions(config)
    if config.position == "sinusoidal":
        return SinusoidalPositions(config)
    return None


def places_in_segments(segments: Tensor) -> Tensor:
    """Place of each token within its segment of a packed row; ``(batch, length)`` int64."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    new = torch.ones_like(segments, dtype=torch.bool)
    new[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(new, index, 0).cummax(1).values
    return index - first


def check_length(config: Seq2SeqConfig, length: int) -> None:
    """Refuse more places than there are position vectors."""
    if config.position == "learned" and length > config.max_length:
        raise InvalidInputError(
            f"{length} places, but learned positions end at max_length={config.max_length}; give "
            "shorter sequences, or a configuration with a larger max_length"
        )
