"""Small residual layers put into a trained model, which is left as it is otherwise."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Seq2SeqConfig
from .layers import make_norm


class Adapter(nn.Module):
    """``h + W_up relu(W_down norm(h))``, shape ``(..., d_model)`` in and out.

    ``W_up`` starts at zero, so that a new adapter changes nothing. Parameters:
    ``2 * d_model * width`` and those of the norm.

    References
    ----------
    Houlsby et al., arXiv 1902.00751; Raffel et al., arXiv 1910.10683, section 3.5.1.
    """

    def __init__(self, config: Seq2SeqConfig, width: int, generator: torch.Generator) -> None:
        super().__init__()
        if width < 1:
            raise InvalidInputError(f"an adapter of width {width}; give at least 1")
        self.norm = make_norm(config)
        self.down = nn.Linear(config.d_model, width, bias=False)
        self.up = nn.Linear(width, config.d_model, bias=False)
        with torch.no_grad():
            self.down.weight.normal_(0.0, config.d_model**-0.5, generator=generator)
            self.up.weight.zero_()

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to the same shape."""
        out: Tensor = h + self.up(F.relu(self.down(self.norm(h))))
        return out
