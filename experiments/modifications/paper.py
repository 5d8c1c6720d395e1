"""Tables 1 and 2 of arXiv 2102.11972: what the paper measured, as a fixture.

The numbers were read from a copy whose digits had been recognised by machine; single digits may be
wrong. A check on the whole: Spearman's ρ of final loss with SuperGLUE, XSum and WebQuestions over
these rows is .872, .818 and .727 where the paper states .87, .80 and .69.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from ...core.types import FloatArray

SOURCE = "Narang et al. 2021, arXiv:2102.11972, Table 1 (52 rows) and Table 2 (positions)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """One row of the paper's tables.

    Attributes
    ----------
    name : str
        Of the variant in :mod:`.registry`.
    parameters : float
        Millions.
    operations : float
        10¹² a step.
    steps_per_second : float
    early, early_sd, final : float
        Held-out log-perplexity after 65,536 steps (five runs) and at the end (one run).
    superglue, xsum, web_questions, en_de : float
        Scores × 100; NaN where Table 2 has none.
    """

    name: str
    parameters: float
    operations: float
    steps_per_second: float
    early: float
    early_sd: float
    final: float
    superglue: float
    xsum: float
    web_questions: float
    en_de: float


TRANSFER = ("superglue", "xsum", "web_questions", "en_de")

_TABLE_1 = """
vanilla                        223   11.1 3.50 2.182 .005 1.838 71.66 17.78 23.02 26.62
gelu                           223   11.1 3.58 2.179 .003 1.838 75.79 17.86 25.13 26.47
swish                          223   11.1 3.62 2.186 .003 1.847 73.77 17.74 24.34 26.75
elu                            223   11.1 3.56 2.270 .007 1.932 67.83 16.73 23.02 26.08
glu                            223   11.1 3.59 2.174 .003 1.814 74.20 17.42 24.34 27.12
geglu                          223   11.1 3.55 2.130 .006 1.792 75.96 18.27 24.87 26.87
reglu                          223   11.1 3.57 2.145 .004 1.803 76.17 18.36 24.87 27.02
selu                           223   11.1 3.55 2.315 .004 1.948 68.76 16.76 22.75 25.99
swiglu                         223   11.1 3.53 2.127 .003 1.789 76.00 18.20 24.34 27.02
liglu                          223   11.1 3.59 2.149 .005 1.798 75.34 17.97 24.34 26.53
sigmoid                        223   11.1 3.63 2.291 .019 1.867 74.31 17.51 23.02 26.30
softplus                       223   11.1 3.47 2.207 .011 1.850 72.45 17.65 24.34 26.89
rms-norm                       223   11.1 3.68 2.167 .008 1.821 75.45 17.94 24.07 27.14
rezero                         223   11.1 3.51 2.262 .003 1.939 61.69 15.64 20.90 26.37
rezero-layer-norm              223   11.1 3.26 2.223 .006 1.858 70.42 17.58 23.02 26.29
rezero-rms-norm                223   11.1 3.34 2.221 .009 1.875 70.33 17.32 23.02 26.19
fixup                          223   11.1 2.95 2.382 .012 2.067 58.56 14.42 23.02 26.31
layers-24                      224   11.1 3.33 2.200 .007 1.843 74.89 17.75 25.13 26.89
layers-18                      223   11.1 3.38 2.185 .005 1.831 76.45 16.83 24.34 27.10
layers-8                       223   11.1 3.69 2.190 .005 1.847 74.58 17.69 23.28 26.85
layers-6                       223   11.1 3.70 2.201 .010 1.857 73.55 17.59 24.60 26.66
block-sharing                  65    11.1 3.91 2.497 .037 2.164 64.50 14.53 21.96 25.48
block-sharing-factorized       45    9.4  4.21 2.631 .305 2.183 60.84 14.00 19.84 25.27
block-sharing-factorized-tied  20    9.1  4.37 2.907 .313 2.385 53.95 11.37 19.84 25.19
encoder-sharing                170   11.1 3.68 2.298 .023 1.929 69.60 16.23 23.02 26.23
decoder-sharing                144   11.1 3.70 2.352 .029 2.082 67.93 16.13 23.81 26.08
factorized                     227   9.4  3.80 2.208 .006 1.855 70.41 15.92 22.75 26.50
factorized-tied                202   9.1  3.92 2.320 .010 1.952 68.69 16.33 22.22 26.44
tied-inputs                    248   11.1 3.55 2.192 .002 1.840 71.70 17.72 24.34 26.49
tied-decoder                   248   11.1 3.57 2.187 .007 1.827 74.86 17.74 24.87 26.67
untied                         273   11.1 3.53 2.195 .005 1.834 72.99 17.58 23.28 26.48
adaptive-input                 204   9.2  3.55 2.250 .002 1.899 66.57 16.21 24.07 26.66
adaptive-softmax               204   9.2  3.60 2.364 .005 1.982 72.91 16.67 21.16 25.56
adaptive-softmax-no-projection 223   10.8 3.43 2.229 .009 1.914 71.82 17.10 23.02 25.72
mixture-of-softmaxes           232   16.3 2.24 2.227 .017 1.821 76.77 17.62 22.75 26.82
transparent-attention          223   11.1 3.33 2.181 .014 1.874 54.31 10.40 21.16 26.80
dynamic-convolution            257   11.8 2.65 2.403 .009 2.047 58.30 12.67 21.16 17.03
lightweight-convolution        224   10.4 4.07 2.370 .010 1.989 63.07 14.86 23.02 24.73
evolved                        217   9.9  3.09 2.220 .003 1.863 73.67 10.76 24.07 26.58
synthesizer-dense              224   11.4 3.47 2.334 .021 1.962 61.03 14.27 16.14 26.63
synthesizer-dense-plus         243   12.6 3.22 2.191 .010 1.840 73.98 16.96 23.81 26.71
synthesizer-dense-plus-alpha   243   12.6 3.01 2.180 .007 1.828 74.25 17.02 23.28 26.61
synthesizer-factorized         207   10.1 3.94 2.341 .017 1.968 62.78 15.39 23.55 26.42
synthesizer-random             254   10.1 4.08 2.326 .012 2.009 54.27 10.35 19.56 26.44
synthesizer-random-plus        292   12.0 3.63 2.189 .004 1.842 73.32 17.04 24.87 26.43
synthesizer-random-plus-alpha  292   12.0 3.42 2.186 .007 1.828 75.24 17.08 24.08 26.39
universal                      84    40.0 0.88 2.406 .036 2.053 70.13 14.09 19.05 23.91
mixture-of-experts             648   11.7 3.20 2.148 .006 1.785 74.55 18.13 24.08 26.94
switch                         1100  11.7 3.18 2.135 .007 1.758 75.38 18.02 26.19 26.81
funnel                         223   1.9  4.30 2.288 .008 1.918 67.34 16.26 22.75 23.20
weighted                       280   71.0 0.59 2.378 .021 1.989 69.04 16.98 23.02 26.30
product-key-memory             421   386.6 0.25 2.155 .003 1.798 75.16 17.04 23.55 26.73
"""
# Of Table 2 losses, SuperGLUE, XSum and WebQuestions; the sd of these four was not transcribed.
_TABLE_2 = """
position-learned     nan nan nan 2.245 .005 1.865 69.72 16.94 24.60 nan
position-per-layer   nan nan nan 2.197 nan  1.832 74.06 17.63 24.87 nan
position-contextual  nan nan nan 2.189 nan  1.838 74.26 17.67 24.07 nan
position-sinusoidal  nan nan nan 2.278 nan  1.906 69.76 16.25 22.75 nan
"""


def _read(text: str) -> dict[str, PaperRow]:
    names = [f.name for f in fields(PaperRow)][1:]
    found = {}
    for line in text.strip().splitlines():
        name, *numbers = line.split()
        values = dict(zip(names, map(float, numbers), strict=True))
        found[name] = PaperRow(name=name, **values)
    return found


@cache
def table_1() -> dict[str, PaperRow]:
    """The 52 rows of Table 1, vanilla first, by the names of the registry."""
    return _read(_TABLE_1)


@cache
def table_2() -> dict[str, PaperRow]:
    """The four position variants that stand in Table 2 only.

    Table 2 measures them, and shared relative biases (2.194 there, 2.182 as Table 1's vanilla),
    beside learned absolute positions.
    """
    return _read(_TABLE_2)


def paper_row(name: str) -> PaperRow | None:
    """The paper's row of a variant, if it has one."""
    return table_1().get(name) or table_2().get(name)


def column(attribute: str, names: Sequence[str] | None = None) -> FloatArray:
    """One column of Table 1, in its order or that of ``names``.

    Examples
    --------
    >>> float(column("final", ["switch"])[0])
    1.758
    """
    rows = table_1()
    return np.array([getattr(rows[n], attribute) for n in (rows if names is None else names)])


def transfer_correlations() -> dict[str, float]:
    """Spearman's ρ of final loss (its sign turned, so that 1 is perfect) with each score.

    Examples
    --------
    >>> {k: round(v, 3) for k, v in transfer_correlations().items()}
    {'superglue': 0.872, 'xsum': 0.818, 'web_questions': 0.727, 'en_de': 0.784}
    """
    from scipy.stats import spearmanr

    loss = column("final")
    return {name: float(spearmanr(-loss, column(name)).statistic) for name in TRANSFER}
