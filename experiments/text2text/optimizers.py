"""Adafactor with the published rates; Raffel et al., arXiv 1910.10683, section 3.1.2."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fishertope.core.errors import InvalidInputError


def adafactor(parameters: Iterable[Tensor], *, rate: float = 1e-2) -> torch.optim.Adafactor:
    """Adafactor whose step ``n`` has the relative rate ``min(rate, 1 / sqrt(n))``.

    With the default that is ``1 / sqrt(max(n, 10**4))``, the schedule of pre-training. A constant
    fine-tuning rate of 1e-3 is ``rate=1e-3``, which the other bound reaches after a million steps
    only. The rate is multiplied by ``max(1e-3, rms(parameter))``, updates are clipped to rms 1,
    the decay of the second moment is ``1 - n ** -0.8``; no momentum, no weight decay. Matrices of
    every size are factored.

    References
    ----------
    Shazeer and Stern, arXiv 1804.04235.
    """
    if not 0 < rate <= 1:
        raise InvalidInputError(f"rate={rate}; give a number in (0, 1]")
    return torch.optim.Adafactor(
        parameters, lr=rate, beta2_decay=-0.8, eps=(1e-30, 1e-3), d=1.0, weight_decay=0.0
    )
