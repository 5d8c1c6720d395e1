"""Merging of models: one anchored quadratic, its solvers, and the named methods."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .agreement import Agreement as Agreement, agreement_test as agreement_test
    from .alignment import Alignment as Alignment, align as align
    from .anchors import Anchor as Anchor, Damping as Damping
    from .entry import merge as merge
    from .lora import (
        LoRA as LoRA,
        applied as applied,
        merge_lora as merge_lora,
        read_adapter as read_adapter,
    )
    from .methods import (
        DARE as DARE,
        DELLA as DELLA,
        METHODS as METHODS,
        OTA as OTA,
        TIES as TIES,
        WUDI as WUDI,
        BlockMethod as BlockMethod,
        Breadcrumbs as Breadcrumbs,
        DFMerge as DFMerge,
        Fisher as Fisher,
        GradientMatching as GradientMatching,
        Isotropic as Isotropic,
        MaTS as MaTS,
        ModelStock as ModelStock,
        Quadratic as Quadratic,
        RegMean as RegMean,
        RegMeanPlusPlus as RegMeanPlusPlus,
        Slerp as Slerp,
        TaskArithmetic as TaskArithmetic,
        UniformSoup as UniformSoup,
        WiSEFT as WiSEFT,
    )
    from .problem import MergeProblem as MergeProblem
    from .search import (
        Difference as Difference,
        Dirichlet as Dirichlet,
        Evolution as Evolution,
        Exhaustive as Exhaustive,
        ExpectedImprovement as ExpectedImprovement,
        GreedySoup as GreedySoup,
        LogRatios as LogRatios,
        PairGrid as PairGrid,
        SimplexLattice as SimplexLattice,
        SobolSimplex as SobolSimplex,
        SuccessiveHalving as SuccessiveHalving,
        Trial as Trial,
        WeightSearch as WeightSearch,
        greedy_soup as greedy_soup,
        nested_splits as nested_splits,
        search_weights as search_weights,
    )
    from .sites import SiteAction as SiteAction, SitePolicy as SitePolicy
    from .solution import MergeSolution as MergeSolution, SiteReport as SiteReport
    from .solvers.options import (
        PCG as PCG,
        Auto as Auto,
        Cholesky as Cholesky,
        ClosedForm as ClosedForm,
        Cvxpy as Cvxpy,
        TwoModelKronecker as TwoModelKronecker,
        Woodbury as Woodbury,
    )
    from .solving import solve as solve

__getattr__, __dir__ = lazy_names(__name__, __file__)
