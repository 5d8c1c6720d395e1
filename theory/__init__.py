"""Exact optimisation of shallow ReLU networks as a search over zonotope vertices."""

from .brute_force import Exhaustion as Exhaustion, brute_force as brute_force
from .flips import Flips as Flips, flip_gains as flip_gains
from .greedy import greedy_search as greedy_search
from .program import (
    ReluProblem as ReluProblem,
    ReluSolution as ReluSolution,
    solve as solve,
    solve_batch as solve_batch,
    solve_with_cvxpy as solve_with_cvxpy,
    with_bias as with_bias,
)
from .selection import SelectedVertex as SelectedVertex, select_vertices as select_vertices
