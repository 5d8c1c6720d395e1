"""What NPEFF is compared with: clusters of gradients or Fishers, and units of activations.

Every method has ``fit(data, seed=...)`` and returns :class:`Units`: non-negative or signed scores
(n, u) of u units an example, and ``transform`` for other examples, as the coefficients W of a
factorization are. So one comparison (an AUROC a unit and label) serves them all.
"""

from .activations import ActivationNMF as ActivationNMF, SparseAutoencoder as SparseAutoencoder
from .clustering import (
    FisherKMeans as FisherKMeans,
    SpectralClustering as SpectralClustering,
    SphericalKMeans as SphericalKMeans,
)
from .sources import AnswerLabels as AnswerLabels, activations as activations
from .units import Baseline as Baseline, Units as Units

BASELINES = (SphericalKMeans, SpectralClustering, FisherKMeans, SparseAutoencoder, ActivationNMF)
"""All of them; ``data`` in each class tells what it is fitted to."""
