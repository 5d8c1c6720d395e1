"""Fishers of single examples and of data sets."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .draws import Draws as Draws, draws_of as draws_of
    from .estimation import per_example_fishers as per_example_fishers
    from .implicit import fisher_products as fisher_products
    from .labels import ExactLabels as ExactLabels, LabelRoots as LabelRoots, LabelRule as LabelRule
    from .per_example import DiagonalFishers as DiagonalFishers, LowRankFishers as LowRankFishers
    from .precision import PrecisionTree as PrecisionTree
    from .precision_estimation import estimate_precision as estimate_precision
    from .random_labels import (
        DataLabels as DataLabels,
        ProbeLabels as ProbeLabels,
        SampledLabels as SampledLabels,
    )
    from .reduction import (
        FactoredProjection as FactoredProjection,
        RandomProjection as RandomProjection,
        ThinSVD as ThinSVD,
        TopK as TopK,
    )
    from .reference_files import ReferenceFishers as ReferenceFishers
    from .store import FisherStore as FisherStore, save_fishers as save_fishers
    from .structures import (
        EKFAC as EKFAC,
        DenseBlock as DenseBlock,
        Diagonal as Diagonal,
        Gram as Gram,
        Implicit as Implicit,
        Isotropic as Isotropic,
        Kronecker as Kronecker,
        LowRankDiagonal as LowRankDiagonal,
        Masked as Masked,
        Precision as Precision,
        Scaled as Scaled,
        SiteLayout as SiteLayout,
        Sum as Sum,
    )

__getattr__, __dir__ = lazy_names(__name__, __file__)
