"""Fishers of single examples and of data sets."""

from .per_example import DiagonalFishers as DiagonalFishers, LowRankFishers as LowRankFishers
