"""Exact optimisation of shallow ReLU networks as a search over zonotope vertices."""
