"""Zonotopes: patterns, feasibility with proofs, enumeration, sampling and the vertex graph."""

from .counting import n_edges as n_edges, n_vertices as n_vertices
from .feasibility import (
    Feasibility as Feasibility,
    decide as decide,
    verify as verify,
    witness_of as witness_of,
)
from .pattern import (
    Pattern as Pattern,
    pattern_of_direction as pattern_of_direction,
    vertex_of_pattern as vertex_of_pattern,
)
from .position import GeneralPosition as GeneralPosition, general_position as general_position
from .reverse_search import reverse_search as reverse_search
from .skeleton import vertex_graph as vertex_graph, walls as walls
from .stream import (
    load_vertices as load_vertices,
    map_vertices as map_vertices,
    save_vertices as save_vertices,
)
from .sweep import Sweep as Sweep
from .tree import tree_blocks as tree_blocks, tree_patterns as tree_patterns
from .zonotope import Containment as Containment, Zonotope as Zonotope
