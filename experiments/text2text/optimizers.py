"""Adafactor and Adam with the published rates.

Raffel et al., arXiv 1910.10683, section 3.1.2; Narang et al., arXiv 2102.11972, section 3.1.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fishertope.core.errors import InvalidInputError

EPS1, EPS2 = 1e-18, 1e-3
"""Adafactor's bounds of what it divides by, and of a parameter's rms."""


def adafactor(parameters: Iterable[Tensor], *, rate: float = 1e-2) -> torch.optim.Adafactor:
    """Adafactor whose step ``n`` has the relative rate ``min(rate, 1 / sqrt(n))``.

    With the default that is ``1 / sqrt(max(n, 10**4))``, the schedule of pre-training. A constant
    fine-tuning rate of 1e-3 is ``rate=1e-3``, which the other bound reaches after a million steps
    only. The rate is multiplied by ``max(1e-3, rms(parameter))``, updates are clipped to rms 1,
    the decay of the second moment is ``1 - n ** -0.8``; no momentum, no weight decay. Matrices of
    every size are factored. The clamp is ``eps1 = 1e-18``: its square must not round to 0 in
    float32, or a row without gradient becomes NaN.

    References
    ----------
    Shazeer and Stern, arXiv 1804.04235.
    """
    if not 0 < rate <= 1:
        raise InvalidInputError(f"rate={rate}; give a number in (0, 1]")
    return torch.optim.Adafactor(
        parameters, lr=rate, beta2_decay=-0.8, eps=(EPS1, EPS2), d=1.0, weight_decay=0.0
    )


def make_optimizer(
    kind: Literal["adafactor", "adam"],
    parameters: Mapping[str, Tensor],
    *,
    rate: float,
    warmup: int = 0,
    decay: bool = False,
    sharded: bool = False,
) -> tuple[torch.optim.Optimizer, LambdaLR | None]:
    """An optimizer over named parameters, and the schedule of its rate where it has one.

    Adafactor's rate is that of :func:`adafactor`, with a linear warm-up if asked for. Adam's is
    ``rate · min(1, n/warmup)``, and with ``decay`` from then on ``rate · √(warmup/n)``; Adam with
    ``rate=5e-4, warmup=4000, decay=True`` is scaled like the published 0.05 · min(1, n/4000) /
    √max(n, 10⁴). ``sharded`` parameters are those of ``fully_shard``.
    """
    if kind not in ("adafactor", "adam"):
        raise InvalidInputError(f"optimizer={kind!r}; accepted are 'adafactor' and 'adam'")
    if not 0 < rate <= 1 or warmup < 0 or (decay and kind == "adafactor"):
        raise InvalidInputError(
            f"rate={rate}, warmup={warmup}, decay={decay} for {kind}; the rate must be in (0, 1], "
            "the warm-up >= 0, and Adafactor decays by itself"
        )
    values = list(parameters.values())
    optimizer: torch.optim.Optimizer
    if kind == "adam":
        optimizer = torch.optim.Adam(values, lr=rate)
    elif sharded:
        from .sharded_adafactor import ShardedAdafactor

        optimizer = ShardedAdafactor(values, rate=rate)
    else:
        optimizer = adafactor(values, rate=rate)
    if not warmup and not decay:
        return optimizer, None

    def factor(done: int) -> float:
        n = done + 1
        if warmup and n < warmup:
            return n / warmup
        return (max(warmup, 1) / n) ** 0.5 if decay else 1.0

    return optimizer, LambdaLR(optimizer, factor)
