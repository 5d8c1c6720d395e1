"""Non-negative factorization of per-example Fishers (NPEFF)."""

from .attribution import token_attributions as token_attributions
from .checkpoint import Checkpoint as Checkpoint
from .compare import matched_cosines as matched_cosines
from .effect import (
    PerturbationReport as PerturbationReport,
    perturbation_report as perturbation_report,
)
from .expansion import expand as expand
from .factorize import factorize as factorize
from .history import History as History
from .lift import lift as lift
from .method import DiagonalNPEFF as DiagonalNPEFF, LowRankNPEFF as LowRankNPEFF
from .perturbation import component_direction as component_direction, perturb as perturb
from .reference_files import (
    ReferenceDecomposition as ReferenceDecomposition,
    read_reference as read_reference,
)
from .result import Factorization as Factorization
from .revise import merge as merge, prune as prune, refit as refit
from .sparseness import sparseness as sparseness
from .stability import (
    Stability as Stability,
    choose_n_components as choose_n_components,
    stability as stability,
)
from .tracing import Trace as Trace, trace as trace
from .uniqueness import (
    Ambiguity as Ambiguity,
    Uniqueness as Uniqueness,
    ambiguities as ambiguities,
    uniqueness as uniqueness,
)
from .weighted_move import fisher_weighted_move as fisher_weighted_move
