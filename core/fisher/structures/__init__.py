"""Precision structures: what is stored of a site's Fisher, and the algebra on it."""

from ...model import SiteLayout as SiteLayout
from .coordinatewise import Diagonal as Diagonal, Isotropic as Isotropic
from .factored import EKFAC as EKFAC, SHARINGS as SHARINGS, Gram as Gram, Kronecker as Kronecker
from .joint import DenseBlock as DenseBlock, LowRankDiagonal as LowRankDiagonal
from .protocol import (
    DAMPING_MODES as DAMPING_MODES,
    DENSE_LIMIT as DENSE_LIMIT,
    DampingMode as DampingMode,
    Precision as Precision,
)
from .wrappers import (
    Implicit as Implicit,
    Masked as Masked,
    Scaled as Scaled,
    Sum as Sum,
)
