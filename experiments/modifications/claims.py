"""The paper's findings that a small setting can test, each as a difference of mean losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.types import FloatArray
from ..studies import Finding, Interval, decide, t_interval
from .paper import paper_row
from .registry import GATED
from .statistics import over_seeds, power

SHARING = ("block-sharing", "block-sharing-factorized", "block-sharing-factorized-tied",
           "encoder-sharing", "decoder-sharing")  # fmt: skip
WITHOUT_PRODUCTS = ("synthesizer-dense", "synthesizer-factorized", "synthesizer-random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Mean early loss of ``left`` minus that of ``right``.

    Attributes
    ----------
    what : str
    left, right : tuple of str
        Variants.
    sign : int
        −1 where the paper finds a gain (a smaller loss), 1 where it finds a loss.
    margin : float
        What still counts as no difference.
    """

    what: str
    left: tuple[str, ...]
    right: tuple[str, ...] = ("vanilla",)
    sign: int = -1
    margin: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Of each variant's loss."""
        found = dict.fromkeys(self.left, 1 / len(self.left))
        return found | dict.fromkeys(self.right, -1 / len(self.right))

    @property
    def in_paper(self) -> float:
        """The same difference in the paper's early losses.

        Positions are measured beside other positions, in Table 2, whose shared relative biases
        (2.194) take the place of vanilla.
        """
        table_2 = any(name.startswith("position-") for name in self.left + self.right)
        total = 0.0
        for name, weight in self.weights.items():
            row = paper_row(name)
            assert row is not None, "every variant has a row"
            total += weight * (2.194 if table_2 and name == "vanilla" else row.early)
        return total


CONTRASTS = (
    Contrast(what="gated units against ReLU", left=GATED),
    Contrast(what="ELU, SeLU and sigmoid against ReLU", left=("elu", "selu", "sigmoid"), sign=1),
    Contrast(what="RMS norm against LayerNorm: no worse", left=("rms-norm",), margin=0.01),
    Contrast(what="Rezero (three forms) against vanilla, by Adam",
             left=("rezero", "rezero-layer-norm", "rezero-rms-norm"), sign=1),
    Contrast(what="Fixup against vanilla, by Adam", left=("fixup",), sign=1),
    Contrast(what="sharing of blocks against none", left=SHARING, sign=1),
    Contrast(what="sharing with a factorized, tied embedding against other sharing",
             left=("block-sharing-factorized-tied",),
             right=tuple(n for n in SHARING if n != "block-sharing-factorized-tied"), sign=1),
    Contrast(what="sharing in the decoder against sharing in the encoder",
             left=("decoder-sharing",), right=("encoder-sharing",), sign=1),
    Contrast(what="learned positions against relative biases", left=("position-learned",), sign=1),
    Contrast(what="sinusoidal against learned positions", left=("position-sinusoidal",),
             right=("position-learned",), sign=1),
    Contrast(what="convolutions against attention",
             left=("dynamic-convolution", "lightweight-convolution"), sign=1),
    Contrast(what="Synthesizers without q·k against attention", left=WITHOUT_PRODUCTS, sign=1),
    Contrast(what="mixture of experts and Switch against dense",
             left=("mixture-of-experts", "switch")),
    Contrast(what="24 and 18 layers against 8 and 6", left=("layers-24", "layers-18"),
             right=("layers-8", "layers-6")),
)  # fmt: skip
"""The last one is doubtful at two layers a stack, where it compares four and three with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A contrast with what came out.

    Attributes
    ----------
    finding : Finding or None
        ``None`` where fewer than two seeds have all of its variants.
    p : float
        Of the paired t test that the difference is zero.
    power : float
        Chance of finding the paper's difference with this noise and these seeds.
    """

    contrast: Contrast
    finding: Finding | None
    p: float
    power: float


def contrasts_of(values: Mapping[str, Mapping[int, float]]) -> list[Tested]:
    """All contrasts on losses by variant and seed; each seed gives one difference."""
    return [_tested(contrast, over_seeds(values, contrast.weights)) for contrast in CONTRASTS]


def _tested(contrast: Contrast, differences: FloatArray) -> Tested:
    if len(differences) < 2:
        return Tested(contrast=contrast, finding=None, p=float("nan"), power=float("nan"))
    from scipy.stats import t

    measured: Interval = t_interval(differences)
    target: dict[str, Any] = (
        {"at_most": contrast.margin} if contrast.sign < 0 else {"at_least": 0.0 - contrast.margin}
    )
    error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    dof = len(differences) - 1.0
    p = float(2 * t.sf(abs(measured.mean) / error, dof)) if error else 0.0
    return Tested(
        contrast=contrast,
        finding=decide(contrast.what, measured, **target),
        p=p,
        power=power(contrast.in_paper, error, dof),
    )
