"""Fishers of single examples and of data sets."""

from .estimation import per_example_fishers as per_example_fishers
from .labels import ExactLabels as ExactLabels, LabelRoots as LabelRoots, LabelRule as LabelRule
from .per_example import DiagonalFishers as DiagonalFishers, LowRankFishers as LowRankFishers
