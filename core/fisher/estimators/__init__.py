"""From batches to the sums of which each precision structure is made."""

from .factors import (
    EKFACEstimator as EKFACEstimator,
    GramEstimator as GramEstimator,
    KroneckerEstimator as KroneckerEstimator,
)
from .plan import BatchSum as BatchSum, Estimator as Estimator, Plan as Plan, plan_of as plan_of
from .rows import BlockEstimator as BlockEstimator, LowRankEstimator as LowRankEstimator
from .running import RunningMoments as RunningMoments
from .squares import DiagonalEstimator as DiagonalEstimator
