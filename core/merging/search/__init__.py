"""Search of merging weights: spaces, optimisers, separate splits for choosing and reporting."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .optimisers import (
        Evolution as Evolution,
        Exhaustive as Exhaustive,
        ExpectedImprovement as ExpectedImprovement,
        SuccessiveHalving as SuccessiveHalving,
    )
    from .result import Difference as Difference, Trial as Trial, WeightSearch as WeightSearch
    from .scoring import nested_splits as nested_splits
    from .search import search_weights as search_weights
    from .soup import GreedySoup as GreedySoup, greedy_soup as greedy_soup
    from .spaces import (
        Dirichlet as Dirichlet,
        LogRatios as LogRatios,
        PairGrid as PairGrid,
        SimplexLattice as SimplexLattice,
        SobolSimplex as SobolSimplex,
    )

__getattr__, __dir__ = lazy_names(__name__, __file__)
