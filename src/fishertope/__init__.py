"""fishertope: Fisher geometry and zonotope combinatorics of trained networks.

Per-example Fishers and their factorization (NPEFF), Fisher-weighted merging, and shallow ReLU
networks as zonotopes, written once and run on swappable solver backends. The names below are
stable; everything else is reached through the packages ``fishertope.core``,
``fishertope.backends``, ``fishertope.theory`` and ``fishertope.experiments``.
"""

from typing import TYPE_CHECKING

from .core.lazy import lazy_names

if TYPE_CHECKING:
    from .core.backend import (
        BackendInfo as BackendInfo,
        Kernel as Kernel,
        available_backends as available_backends,
        get_backend as get_backend,
        select_backend as select_backend,
        thread_limit as thread_limit,
        to_backend as to_backend,
        to_numpy as to_numpy,
    )
    from .core.factorization import (
        Checkpoint as Checkpoint,
        DiagonalNPEFF as DiagonalNPEFF,
        Factorization as Factorization,
        LowRankNPEFF as LowRankNPEFF,
        PerturbationReport as PerturbationReport,
        Stability as Stability,
        Trace as Trace,
        ambiguities as ambiguities,
        choose_n_components as choose_n_components,
        expand as expand,
        factorize as factorize,
        fisher_weighted_move as fisher_weighted_move,
        lift as lift,
        matched_cosines as matched_cosines,
        perturb as perturb,
        perturbation_report as perturbation_report,
        stability as stability,
        trace as trace,
        uniqueness as uniqueness,
    )
    from .core.fisher import (
        DiagonalFishers as DiagonalFishers,
        ExactLabels as ExactLabels,
        LowRankFishers as LowRankFishers,
        PrecisionTree as PrecisionTree,
        estimate_precision as estimate_precision,
        per_example_fishers as per_example_fishers,
    )
    from .core.merging import (
        Anchor as Anchor,
        Damping as Damping,
        MergeProblem as MergeProblem,
        MergeSolution as MergeSolution,
        WeightSearch as WeightSearch,
        merge as merge,
        search_weights as search_weights,
    )
    from .core.model import (
        Bernoulli as Bernoulli,
        Categorical as Categorical,
        DenseNetwork as DenseNetwork,
        Gaussian as Gaussian,
        ModelEngine as ModelEngine,
        register_engine as register_engine,
    )
    from .core.status import Status as Status, StepInfo as StepInfo
    from .core.testing import check_backend as check_backend

__getattr__, __dir__ = lazy_names(__name__, __file__)

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "BackendInfo",
    "Bernoulli",
    "Categorical",
    "Checkpoint",
    "Damping",
    "DenseNetwork",
    "DiagonalFishers",
    "DiagonalNPEFF",
    "ExactLabels",
    "Factorization",
    "Gaussian",
    "Kernel",
    "LowRankFishers",
    "LowRankNPEFF",
    "MergeProblem",
    "MergeSolution",
    "ModelEngine",
    "PerturbationReport",
    "PrecisionTree",
    "Stability",
    "Status",
    "StepInfo",
    "Trace",
    "WeightSearch",
    "__version__",
    "ambiguities",
    "available_backends",
    "check_backend",
    "choose_n_components",
    "estimate_precision",
    "expand",
    "factorize",
    "fisher_weighted_move",
    "get_backend",
    "lift",
    "matched_cosines",
    "merge",
    "per_example_fishers",
    "perturb",
    "perturbation_report",
    "register_engine",
    "search_weights",
    "select_backend",
    "stability",
    "thread_limit",
    "to_backend",
    "to_numpy",
    "trace",
    "uniqueness",
]
