"""Lightweight and dynamic convolutions in the place of self-attention, and their cache."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Seq2SeqConfig


class WindowCache:
    """The last ``reach`` inputs of a causal convolution; zeros before the first one."""

    def __init__(self, reach: int) -> None:
        self.reach, self.length = reach, 0
        self._last: Tensor | None = None

    def extend(self, x: Tensor) -> Tensor:
        """``(batch, reach + new, width)``: what was kept, then ``x`` ``(batch, new, width)``."""
        if self._last is None:
            self._last = x.new_zeros((x.shape[0], self.reach, x.shape[2]))
        joined = torch.cat([self._last, x], 1)
        self._last = joined[:, joined.shape[1] - self.reach :]
        self.length += x.shape[1]
        return joined

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order."""
        if self._last is not None:
            self._last = self._last.index_select(0, rows)


def depthwise(padded: Tensor, kernel: Tensor) -> Tensor:
    """``y[t, c] = sum_j kernel[j, c] padded[t + j, c]``.

    ``padded`` ``(batch, n + width - 1, d)`` and ``kernel`` ``(width, d)`` give ``(batch, n, d)``:
    a convolution with one channel a group. Cost: ``width * d`` multiply-adds a position.
    """
    # As a two-dimensional convolution with the channels last, which needs no transposed copy.
    image = padded.transpose(1, 2)[:, :, None]
    weight = kernel.t()[:, None, None]
    return F.conv2d(image, weight, groups=kernel.shape[1])[:, :, 0].transpose(1, 2)


def windowed(padded: Tensor, weights: Tensor) -> Tensor:
    """``y[t, c] = sum_j weights[t, j, c] padded[t + j, c]``: a kernel for every position.

    ``padded`` ``(batch, n + width - 1, d)`` and ``weights`` ``(batch, n, width, d)`` give
    ``(batch, n, d)``.
    """
    return (padded.unfold(1, weights.shape[2], 1).transpose(2, 3) * weights).sum(2)


def visible_band(mask: Tensor, width: int, left: int) -> Tensor:
    """Column ``j`` of row ``t`` says whether position ``t`` may see ``t + j - left``.

    ``mask`` ``(b, q, k)`` bool, whose last query stands at its last key; ``(b, q, width)`` bool.
    """
    queries, keys = mask.shape[1:]
    device = mask.device
    wide = F.pad(mask, (left, width - 1 - left))
    place = torch.arange(queries, device=device)[:, None] + torch.arange(width, device=device)
    place = (place + keys - queries).expand(mask.shape[0], -1, -1)
    return wide.gather(2, place)


def sees_part(mask: Tensor, rows: int, *, causal: bool) -> bool:
    """Whether a mask ``(b, q, k)`` may hide more than padding and later positions.

    Such are the masks of packed rows; a window must then be cut position by position.
    """
    if mask.shape[1] == 1:
        return False
    return not causal or mask.shape[0] > 1 or rows == 1


class LightweightConvolution(nn.Module):
    """``W_o W_p conv(GLU(x))``: a depthwise convolution whose kernels are softmaxed over width.

    ``GLU(x) = (W_v x + b_v) * sigmoid(W_g x + b_g)``; channel ``c`` of the convolution is
    ``y[t, c] = sum_j softmax_j(K)[j, c] GLU(x)[t + j - left, c]``, with ``left = width - 1`` where
    it is causal and ``(width - 1) / 2`` elsewhere. Every channel has a kernel of its own, as in
    the released code of arXiv 2102.11972 (the text there speaks of shared kernels).

    Parameters
    ----------
    d_model, width
        Channels, and taps of each kernel.
    causal
        See only what is at or before a position. Otherwise the width must be odd.

    Notes
    -----
    ``(batch, n, d_model)`` in and out. Cost: ``4 d_model**2 + width d_model`` multiply-adds a
    position. A cache holds ``width - 1`` inputs. Sources: Wu et al., arXiv 1901.10430; Narang
    et al., arXiv 2102.11972.
    """

    def __init__(self, d_model: int, width: int = 9, *, causal: bool = False) -> None:
        super().__init__()
        if d_model < 1 or width < 1 or (not causal and width % 2 == 0):
            raise InvalidInputError(
                f"d_model={d_model}, width={width}, causal={causal}; both sizes must be positive, "
                "and the width odd where the window is centred"
            )
        self.width, self.causal = width, causal
        self.left = width - 1 if causal else (width - 1) // 2
        self.gated = nn.Linear(d_model, 2 * d_model)
        self._make_kernel(d_model)
        self.pointwise = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)
        self.initialise()

    @classmethod
    def from_config(cls, config: Seq2SeqConfig, *, causal: bool) -> Self:
        """The layer that a configuration describes."""
        return cls(config.d_model, config.conv_width, causal=causal)

    def _make_kernel(self, d_model: int) -> None:
        self.kernel = nn.Parameter(torch.empty(self.width, d_model))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of variance ``1 / inputs`` and kernels of ``1 / width``; no biases."""
        for linear in (self.gated, self.pointwise, self.output):
            linear.weight.normal_(0.0, linear.in_features**-0.5, generator=generator)
            linear.bias.zero_()
        self._reset_kernel(generator)

    def _reset_kernel(self, generator: torch.Generator | None) -> None:
        self.kernel.normal_(0.0, self.width**-0.5, generator=generator)

    @staticmethod
    def count(d_model: int, width: int) -> int:
        """Number of parameters."""
        return 4 * d_model * (d_model + 1) + width * d_model

    def new_cache(self) -> WindowCache:
        """A cache for one sequence; causal layers only."""
        if not self.causal:
            raise InvalidInputError("this convolution sees later inputs; only causal ones decode")
        return WindowCache(self.width - 1)

    def forward(
        self, x: Tensor, *, source: Tensor | None = None, bias: Tensor | None = None,
        mask: Tensor | None = None, cache: WindowCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Mix ``(batch, n, d_model)`` along ``n``.

        Parameters
        ----------
        source, bias
            Of attention; a source is refused, a position bias has no place here.
        mask
            ``(b, q, n)`` bool with ``b`` and ``q`` either full or 1, true where query ``q`` may
            see a position; what may not be seen counts as zero.
        cache
            Of :meth:`new_cache`; then ``x`` is new and follows what was given before.
        """
        if source is not None:
            raise InvalidInputError("a convolution mixes one sequence; it cannot read a source")
        value, gate = self.gated(x).chunk(2, -1)
        inner = value * torch.sigmoid(gate)
        band: Tensor | None = None
        if mask is not None and sees_part(mask, x.shape[0], causal=self.causal):
            band = visible_band(mask, self.width, self.left)[..., None]
        elif mask is not None:
            inner = inner * mask.any(1)[:, -x.shape[1] :, None]
        if cache is not None:
            padded = cache.extend(inner)
        else:
            padded = F.pad(inner, (0, 0, self.left, self.width - 1 - self.left))
        out: Tensor = self.output(self.pointwise(self._convolve(padded, inner, band)))
        return out

    def _convolve(self, padded: Tensor, inner: Tensor, band: Tensor | None) -> Tensor:
        kernel = torch.softmax(self.kernel, 0)
        if band is None:
            return depthwise(padded, kernel)
        return windowed(padded, kernel * band)


class DynamicConvolution(LightweightConvolution):
    """A lightweight convolution whose kernel at ``t`` is a linear map of the gated input at ``t``.

    ``y[t, c] = sum_j softmax_j(A g[t] + a)[j, c] g[t + j - left, c]`` with ``g = GLU(x)`` and
    ``A`` ``(width d_model, d_model)``. All else as in :class:`LightweightConvolution`.

    Notes
    -----
    Cost: ``(4 + width) d_model**2 + width d_model`` multiply-adds a position, and ``width *
    d_model`` kernel values a position in memory. Sources: Wu et al., arXiv 1901.10430; Narang
    et al., arXiv 2102.11972.
    """

    def _make_kernel(self, d_model: int) -> None:
        self.kernel_map = nn.Linear(d_model, self.width * d_model)

    def _reset_kernel(self, generator: torch.Generator | None) -> None:
        std = (self.width * self.kernel_map.in_features) ** -0.5
        self.kernel_map.weight.normal_(0.0, std, generator=generator)
        self.kernel_map.bias.zero_()

    @staticmethod
    def count(d_model: int, width: int) -> int:
        """Number of parameters."""
        return (4 + width) * d_model * (d_model + 1)

    def _convolve(self, padded: Tensor, inner: Tensor, band: Tensor | None) -> Tensor:
        kernels = self.kernel_map(inner).view(*inner.shape[:2], self.width, -1)
        weights = torch.softmax(kernels, 2)
        return windowed(padded, weights if band is None else weights * band)
