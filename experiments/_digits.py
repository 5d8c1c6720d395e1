"""Handwritten digits that ship with scikit-learn, and a small network that reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import FloatArray, IntArray

N_IMAGES = 1797


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Digits:
    """Images of 8×8 pixels, split in two.

    Attributes
    ----------
    train_inputs, held_out_inputs : array (n, 64), from 0 (paper) to 1 (ink)
    train_labels, held_out_labels : int array (n,)
        The digit that was meant.
    """

    train_inputs: FloatArray
    train_labels: IntArray
    held_out_inputs: FloatArray
    held_out_labels: IntArray


def load_digits(n_train: int, n_held_out: int, rng: np.random.Generator) -> Digits:
    """A random split of the 1,797 images.

    Raises
    ------
    InvalidInputError
        If more images are asked for than there are.
    """
    if min(n_train, n_held_out) < 10 or n_train + n_held_out > N_IMAGES:
        raise InvalidInputError(
            f"{n_train} images to train on and {n_held_out} held out were asked for; at least 10 "
            f"of each and at most {N_IMAGES} in all are accepted."
        )
    from sklearn.datasets import load_digits as load

    bunch: Any = load()
    order = rng.permutation(N_IMAGES)
    train, rest = order[:n_train], order[n_train : n_train + n_held_out]
    inputs = np.asarray(bunch.data, dtype=np.float64) / 16.0
    labels = np.asarray(bunch.target, dtype=np.int64)
    return Digits(
        train_inputs=inputs[train],
        train_labels=labels[train],
        held_out_inputs=inputs[rest],
        held_out_labels=labels[rest],
    )


def train_network(
    digits: Digits,
    *,
    hidden: int,
    passes: int,
    seed: int,
    advance: Callable[[int, int], None],
) -> Any:
    """A fitted ``MLPClassifier`` 64-hidden-10 with ReLU, after a fixed number of passes.

    Parameters
    ----------
    digits : Digits
    hidden, passes, seed : int
    advance : callable
        Told how many passes are done, and of how many.
    """
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((hidden,), activation="relu", random_state=seed)
    for done in range(passes):
        # One pass a call: the number of passes is the stopping rule, so none is missed.
        network.partial_fit(digits.train_inputs, digits.train_labels, classes=np.arange(10))
        advance(done + 1, passes)
    return network
