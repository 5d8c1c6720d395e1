"""Synthesizers: attention weights that are made without comparing queries with keys."""

from typing import Literal, Self, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from fishertope.core.errors import InvalidInputError

from .attention import LayerCache
from .config import Seq2SeqConfig
from .layers import at_least_float32

Mode: TypeAlias = Literal[
    "dense", "dense_plus", "dense_plus_alpha", "factorized", "random", "random_plus",
    "random_plus_alpha",
]  # fmt: skip


class Synthesizer(nn.Module):
    """``softmax(S + bias) V`` with synthetic logits ``S`` in seven forms.

    ========================  =====================================================
    mode                      logits ``S[h, i, j]``
    ========================  =====================================================
    ``dense``                 ``sum_c ReLU(q[h, i, c]) P[c, j]``, one ``P`` for all heads
    ``dense_plus``            ``q k^T`` plus those of ``dense``
    ``dense_plus_alpha``      ``(1 - s) q k^T + s`` times those of ``dense``
    ``random``                ``R[h, i, j]``, learned
    ``factorized``            ``sum_r A[r, h, i] B[r, h, j]``
    ``random_plus``           ``q k^T + R``
    ``random_plus_alpha``     ``(1 - s) q k^T + s R``
    ========================  =====================================================

    with ``s = sigmoid(alpha)`` and ``alpha`` 0 at first: the half-half mix. ``i`` and ``j`` are
    places in the sequence, so that lengths end at ``max_length``. Forms without ``q k^T`` have no
    key matrix, and the random ones no query matrix either.

    Parameters
    ----------
    d_model, heads, d_kv, max_length, rank
        Sizes; ``rank`` is that of ``factorized``.
    mode
        See the table.
    dropout
        Of the attention weights.

    Notes
    -----
    ``(batch, n, d_model)`` in and out, self-attention only. Cost beyond the projections, in
    multiply-adds: ``n**2 inner`` for the values, as much for ``q k^T``, and for ``dense``
    ``n**2 inner``, for ``factorized`` ``rank heads n**2``. Sources: Tay et al., arXiv 2005.00743;
    Narang et al., arXiv 2102.11972, whose ``dense`` model shares keys and values.
    """

    def __init__(
        self, d_model: int, heads: int, d_kv: int, *, mode: Mode, max_length: int = 512,
        rank: int = 16, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if mode not in get_args(Mode):
            raise InvalidInputError(
                f"mode={mode!r}; accepted are {', '.join(map(repr, get_args(Mode)))}"
            )
        if min(d_model, heads, d_kv, max_length, rank) < 1:
            raise InvalidInputError("d_model, heads, d_kv, max_length and rank must be positive")
        self.mode, self.heads, self.d_kv, self.max_length = mode, heads, d_kv, max_length
        inner = heads * d_kv
        dense, plus = mode.startswith("dense"), "plus" in mode
        self.query = nn.Linear(d_model, inner, bias=False) if dense or plus else None
        self.key = nn.Linear(d_model, inner, bias=False) if plus else None
        self.value = nn.Linear(d_model, inner, bias=False)
        self.output = nn.Linear(inner, d_model, bias=False)
        self.table: nn.Parameter | None = None
        self.left: nn.Parameter | None = None
        self.right: nn.Parameter | None = None
        if dense:
            self.table = nn.Parameter(torch.empty(d_kv, max_length))
        elif mode == "factorized":
            self.left = nn.Parameter(torch.empty(rank, heads, max_length))
            self.right = nn.Parameter(torch.empty(rank, heads, max_length))
        else:
            self.table = nn.Parameter(torch.empty(heads, max_length, max_length))
        self.alpha = nn.Parameter(torch.empty(())) if mode.endswith("alpha") else None
        self.dropout = nn.Dropout(dropout)
        self.initialise()

    @classmethod
    def from_config(cls, config: Seq2SeqConfig, *, causal: bool = False) -> Self:
        """The layer that a configuration describes; ``causal`` is left to the mask."""
        return cls(
            config.d_model, config.heads, config.d_kv,
            mode=cast(Mode, config.mixer.removeprefix("synth_")),
            max_length=config.max_length, rank=config.synth_rank, dropout=config.dropout,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal matrices of variance ``1 / inputs`` (queries ``1 / (d_model d_kv)``).

        Tables of places have variance ``1 / max_length``, those of ``dense`` ``1 / d_kv``,
        factors ``1 / sqrt(rank max_length)`` each, so that their product has ``1 / max_length``.
        """
        for linear in (self.query, self.key, self.value, self.output):
            if linear is not None:
                std = linear.in_features**-0.5 * (self.d_kv**-0.5 if linear is self.query else 1)
                linear.weight.normal_(0.0, std, generator=generator)
        if self.table is not None:
            std = (self.d_kv if self.table.ndim == 2 else self.max_length) ** -0.5
            self.table.normal_(0.0, std, generator=generator)
        for factor in (self.left, self.right):
            if factor is not None:
                factor.normal_(0.0, (factor.shape[0] * self.max_length) ** -0.25,
                               generator=generator)  # fmt: skip
        if self.alpha is not None:
            self.alpha.zero_()

    @staticmethod
    def count(
        d_model: int, heads: int, d_kv: int, *, mode: Mode, max_length: int = 512, rank: int = 16
    ) -> int:
        """Number of parameters."""
        dense, plus = mode.startswith("dense"), "plus" in mode
        matrices = 4 if plus else 3 if dense else 2
        if dense:
            tables = d_kv * max_length
        elif mode == "factorized":
            tables = 2 * rank * heads * max_length
        else:
            tables = heads * max_length**2
        return matrices * d_model * heads * d_kv + tables + int(mode.endswith("alpha"))

    def new_cache(self) -> LayerCache:
        """A cache of keys (of width 0 where there are none) and values."""
        return LayerCache()

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.d_kv).transpose(1, 2)

    def _synthetic(self, query: Tensor | None, first: int, queries: int, keys: int) -> Tensor:
        """``S`` of places ``first ... first + queries`` and all keys, without ``q k^T``."""
        if self.left is not None and self.right is not None:
            rows = self.left[:, :, first : first + queries]
            return torch.einsum("rhi,rhj->hij", rows, self.right[:, :, :keys])
        assert self.table is not None
        if self.mode.startswith("dense"):
            assert query is not None
            return torch.relu(query) @ self.table[:, :keys]
        return self.table[:, first : first + queries, :keys]

    def forward(
        self, x: Tensor, *, source: Tensor | None = None, bias: Tensor | None = None,
        mask: Tensor | None = None, cache: LayerCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Mix ``(batch, n, d_model)`` along ``n``.

        Parameters
        ----------
        source
            Refused: places of another sequence have no synthetic logits.
        bias
            Added to the logits, ``(b, heads, n, keys)`` or broadcast to it; it closes what may
            not be seen.
        mask
            ``(b, n, keys)`` bool, for use without such a bias.
        cache
            Of :meth:`new_cache`; then ``x`` is new and follows what was given before.

        Raises
        ------
        InvalidInputError
            A sequence longer than ``max_length``, or a source.
        """
        if source is not None:
            raise InvalidInputError("a Synthesizer mixes one sequence; it cannot read a source")
        first = 0 if cache is None else cache.length
        length = first + x.shape[1]
        if length > self.max_length:
            raise InvalidInputError(
                f"the sequence has {length} places, this Synthesizer {self.max_length}; build it "
                f"with max_length={length} or cut the sequence"
            )
        query = None if self.query is None else self._split(self.query(x))
        values = self._split(self.value(x))
        keys = values[..., :0] if self.key is None else self._split(self.key(x))
        if cache is not None:
            keys, values = cache.append(keys, values)
        logits = self._synthetic(query, first, x.shape[1], length)
        if self.key is not None and query is not None:
            compared = query @ keys.transpose(-1, -2)
            if self.alpha is None:
                logits = logits + compared
            else:
                logits = torch.lerp(compared, logits, torch.sigmoid(self.alpha))
        if bias is not None:
            logits = logits + bias
        elif mask is not None:
            logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)
        weights = self.dropout(torch.softmax(at_least_float32(logits), -1).to(values.dtype))
        mixed = (weights @ values).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
        out: Tensor = self.output(mixed)
        return out
