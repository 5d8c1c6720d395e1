"""How a sublayer's output joins the stream, and the scalars of Fixup."""

import torch
from torch import Tensor, nn

from .config import Seq2SeqConfig


class Shift(nn.Module):
    """``x + b`` with one learned scalar, zero at first. Source: Zhang et al., arXiv 1901.09321."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Shift an array of any shape."""
        return x + self.bias


class Scale(nn.Module):
    """``s x`` with one learned scalar, one at first. Source: Zhang et al., arXiv 1901.09321."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale an array of any shape."""
        return x * self.weight


class PlainResidual(nn.Module):
    """``h + y``."""

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Join two arrays of one shape."""
        return h + y


class ReZero(nn.Module):
    """``h + α y`` with one learned scalar, zero at first, so that each layer starts as identity.

    Source: Bachlechner et al., arXiv 2003.04887.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Join two arrays of one shape."""
        return h + self.alpha * y


class FixupResidual(nn.Module):
    """``h + s y`` with one learned scalar, one at first.

    The sublayer reads ``h + b`` (:class:`Shift`) and its last matrix starts at zero. Source: Zhang
    et al., arXiv 1901.09321.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Join two arrays of one shape."""
        scaled: Tensor = self.scale(y)
        return h + scaled


def fixup_end(config: Seq2SeqConfig, *, encoder: bool) -> nn.Module:
    """In place of a stack's last norm: a shift, and in an encoder a scale as well."""
    return nn.Sequential(Shift(), Scale()) if encoder else Shift()
