"""Exact optimisation of shallow ReLU networks as a search over zonotope vertices."""

from .brute_force import Exhaustion as Exhaustion, brute_force as brute_force
from .certificates import Certificate as Certificate, Claim as Claim, certify as certify
from .convex import solve_loss as solve_loss
from .exact import ExactProgram as ExactProgram, verify_exactly as verify_exactly
from .flips import Flips as Flips, flip_gains as flip_gains
from .gated import (
    GatedOptimum as GatedOptimum,
    cone_split as cone_split,
    gated_optimum as gated_optimum,
    widest_witness as widest_witness,
)
from .greedy import greedy_search as greedy_search
from .networks import ShallowNetwork as ShallowNetwork, as_shallow as as_shallow
from .oracle import Maximiser as Maximiser, ZonotopeOracle as ZonotopeOracle
from .outputs import OutputsNetwork as OutputsNetwork, fit_outputs as fit_outputs
from .polish import Polished as Polished, polish as polish
from .program import (
    ReluProblem as ReluProblem,
    ReluSolution as ReluSolution,
    solve as solve,
    solve_batch as solve_batch,
    solve_with_cvxpy as solve_with_cvxpy,
    with_bias as with_bias,
)
from .regularised import (
    RegularisedOptimum as RegularisedOptimum,
    regularised_optimum as regularised_optimum,
)
from .selection import (
    SelectedVertex as SelectedVertex,
    random_paired_vertex as random_paired_vertex,
    select_vertices as select_vertices,
)
from .sensitivity import (
    Continuity as Continuity,
    Jump as Jump,
    continuity as continuity,
    detect_jump as detect_jump,
    rank_drops as rank_drops,
    six_points as six_points,
)

# The name that the architecture gives to the program of a vertex and its data.
VertexProgram = ReluProblem
