"""The named methods: recipes on the quadratic, or block by block."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .averaging import (
        Isotropic as Isotropic,
        ModelStock as ModelStock,
        Slerp as Slerp,
        TaskArithmetic as TaskArithmetic,
        UniformSoup as UniformSoup,
        WiSEFT as WiSEFT,
    )
    from .base import BlockMethod as BlockMethod, Method as Method, Request as Request
    from .fisher import (
        OTA as OTA,
        DFMerge as DFMerge,
        Fisher as Fisher,
        GradientMatching as GradientMatching,
        Quadratic as Quadratic,
    )
    from .gram import (
        WUDI as WUDI,
        MaTS as MaTS,
        RegMean as RegMean,
        RegMeanPlusPlus as RegMeanPlusPlus,
    )
    from .registry import METHODS as METHODS, method_of as method_of
    from .sparse import (
        DARE as DARE,
        DELLA as DELLA,
        TIES as TIES,
        Breadcrumbs as Breadcrumbs,
    )

__getattr__, __dir__ = lazy_names(__name__, __file__)
