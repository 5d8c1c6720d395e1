"""The model seam: engines by model type, output distributions, named parameters."""

from .dense import DenseEngine as DenseEngine, DenseNetwork as DenseNetwork
from .engine import (
    ModelEngine as ModelEngine,
    engine_for as engine_for,
    register_engine as register_engine,
)
from .layer_terms import LayerTerm as LayerTerm
from .layout import SiteLayout as SiteLayout
from .outputs import (
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    Gaussian as Gaussian,
    OutputDistribution as OutputDistribution,
)
from .sites import Site as Site, sites_of as sites_of, unflatten as unflatten
from .tokens import TokenCategorical as TokenCategorical
