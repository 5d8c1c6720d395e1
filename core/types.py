"""Names for the types that cross the seams."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""An array of any library that has a registered backend (NumPy, torch, a plug-in's)."""

NumpyArray: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.int64]
Device: TypeAlias = Any
Seed: TypeAlias = "int | np.random.Generator"
