"""Product-key memory: a large table of values that is read through two short lists of keys."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Seq2SeqConfig


def product_top_k(left: Tensor, right: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of all sums ``left[i] + right[j]``, without forming them all.

    The largest sums lie among those of the ``k`` largest entries of each side.

    Parameters
    ----------
    left, right
        ``(..., n)`` scores.

    Returns
    -------
    tuple of Tensor
        The sums, falling, and their places ``i * n + j``; both ``(..., k)``. Cost:
        ``O(n + k**2)`` instead of ``n**2`` a row.
    """
    n, short = right.shape[-1], min(k, right.shape[-1])
    left_best, left_at = left.topk(short, -1)
    right_best, right_at = right.topk(short, -1)
    sums = (left_best[..., :, None] + right_best[..., None, :]).flatten(-2)
    best, at = sums.topk(k, -1)
    place = left_at.gather(-1, at // short) * n + right_at.gather(-1, at % short)
    return best, place


class ProductKeyMemory(nn.Module):
    """``sum_heads sum_{m in top k} softmax(score)_m V_m`` over ``keys**2`` values.

    For each head the query ``q = LN(W x + b)`` of width ``key_size`` is cut into halves, which
    are compared with ``keys`` sub-keys each; the score of value ``m = i * keys + j`` is
    ``q1 . K1[i] + q2 . K2[j]``.

    Parameters
    ----------
    d_model, keys, heads, top, key_size
        Sizes; ``top`` values a head are read, at most ``keys**2``.

    Notes
    -----
    ``(..., d_model)`` in and out. Parameters: ``keys**2 d_model`` values, ``heads keys key_size``
    sub-keys, and the queries. Cost a token, in multiply-adds: ``heads key_size (d_model + keys)
    + heads top d_model``, and ``heads top`` rows fetched from memory, which is what takes the time.
    The released code of arXiv 2102.11972 trains the values with Adam at a constant rate; here they
    are parameters like others. Sources: Lample et al., arXiv 1907.05242 (with a batch norm of
    the query); Narang et al., arXiv 2102.11972.
    """

    def __init__(
        self, d_model: int, *, keys: int = 512, heads: int = 8, top: int = 32, key_size: int = 128
    ) -> None:
        super().__init__()
        if min(d_model, keys, heads, top, key_size) < 1 or key_size % 2 or top > keys**2:
            raise InvalidInputError(
                f"d_model={d_model}, keys={keys}, heads={heads}, top={top}, key_size={key_size}; "
                "all must be positive, key_size even, and top at most keys squared"
            )
        self.heads, self.top = heads, top
        self.query = nn.Linear(d_model, heads * key_size)
        self.norm = nn.LayerNorm(key_size, eps=1e-6)
        self.keys = nn.Parameter(torch.empty(heads, 2, keys, key_size // 2))
        self.values = nn.Parameter(torch.empty(keys**2, d_model))
        self.initialise()

    @classmethod
    def from_config(cls, config: Seq2SeqConfig) -> Self:
        """The layer that a configuration describes."""
        return cls(
            config.d_model, keys=config.memory_keys, heads=config.memory_heads,
            top=config.memory_top, key_size=config.memory_key_size,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal with variances ``1 / inputs``; values ``1 / d_model``; no biases."""
        self.query.weight.normal_(0.0, self.query.in_features**-0.5, generator=generator)
        self.query.bias.zero_()
        self.norm.weight.fill_(1.0)
        self.norm.bias.zero_()
        self.keys.normal_(0.0, self.keys.shape[-1] ** -0.5, generator=generator)
        self.values.normal_(0.0, self.values.shape[-1] ** -0.5, generator=generator)

    @staticmethod
    def count(d_model: int, *, keys: int, heads: int, key_size: int) -> int:
        """Number of parameters."""
        query = heads * key_size * (d_model + 1) + 2 * key_size
        return query + heads * keys * key_size + keys**2 * d_model

    def look_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and places of the values read for ``(tokens, d_model)``.

        Both ``(tokens, heads, top)``; the weights of a head sum to 1.
        """
        query = self.norm(self.query(x).view(x.shape[0], self.heads, -1))
        halves = query.view(x.shape[0], self.heads, 2, -1)
        scores = torch.einsum("thsc,hskc->thsk", halves, self.keys)
        best, place = product_top_k(scores[:, :, 0], scores[:, :, 1], self.top)
        return torch.softmax(best, -1), place

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Read the memory for ``(..., d_model)``; every token alone, so that no mask is needed."""
        weights, place = self.look_up(x.reshape(-1, x.shape[-1]))
        out = F.embedding_bag(
            place.flatten(1), self.values, per_sample_weights=weights.flatten(1), mode="sum"
        )
        return out.view_as(x)
