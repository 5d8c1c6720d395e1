"""Merging of models: one anchored quadratic, its solvers, and the named methods."""

from .anchors import Anchor as Anchor, Damping as Damping
from .merge import merge as merge
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
from .sites import SiteAction as SiteAction, SitePolicy as SitePolicy
from .solution import MergeSolution as MergeSolution, SiteReport as SiteReport
from .solve import solve as solve
from .solvers.options import (
    PCG as PCG,
    Auto as Auto,
    Cholesky as Cholesky,
    ClosedForm as ClosedForm,
    Cvxpy as Cvxpy,
    TwoModelKronecker as TwoModelKronecker,
    Woodbury as Woodbury,
)
