"""Texts and images with labels, and splits that depend on nothing but the items themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import InvalidInputError
from ...core.types import FloatArray, IntArray, NumpyArray

HELD_OUT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextSet:
    """Labelled texts.

    Attributes
    ----------
    name : str
    texts : tuple of str
        n, all different.
    labels : int array (n,)
        Index into ``classes``.
    ids : tuple of str
        n, unique, the same for every seed and version of this package.
    groups : tuple of str
        n; texts of one group (sentences of one review, mails of one thread) stay together in
        every split.
    classes : tuple of str
    scores : float64 array (n,), optional
        The number that the label was made of, where there is one.
    """

    name: str
    texts: tuple[str, ...]
    labels: IntArray
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    scores: FloatArray | None = None

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> TextSet:
        """Those texts, in that order."""
        at = [int(i) for i in indices]
        return TextSet(
            name=self.name,
            texts=tuple(self.texts[i] for i in at),
            labels=self.labels[at],
            ids=tuple(self.ids[i] for i in at),
            groups=tuple(self.groups[i] for i in at),
            classes=self.classes,
            scores=None if self.scores is None else self.scores[at],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextSplit:
    """Texts to learn from and texts to judge by; no group is in both."""

    train: TextSet
    held_out: TextSet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled grey images.

    Attributes
    ----------
    name : str
    images : uint8 array (n, height, width)
    labels : int array (n,)
        Index into ``classes``.
    ids : tuple of str
    classes : tuple of str
    white : int
        Value of a full pixel.
    """

    name: str
    images: NumpyArray
    labels: IntArray
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    white: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def inputs(self, dtype: str = "float64") -> FloatArray:
        """The images as rows from 0 to 1: array (n, height · width)."""
        rows: FloatArray = self.images.reshape(len(self), -1).astype(dtype) / self.white
        return rows

    def take(self, indices: Iterable[int]) -> ImageSet:
        """Those images, in that order."""
        at = [int(i) for i in indices]
        return ImageSet(
            name=self.name,
            images=self.images[at],
            labels=self.labels[at],
            ids=tuple(self.ids[i] for i in at),
            classes=self.classes,
            white=self.white,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSplit:
    """Images to learn from and images to judge by."""

    train: ImageSet
    held_out: ImageSet


def split_texts(texts: TextSet, *, held_out: float = HELD_OUT, seed: int = 0) -> TextSplit:
    """Hold out the groups whose hash falls below ``held_out``.

    The side of a text depends on its group and the seed alone, so it does not change when other
    texts are added or dropped. The share held out is therefore near, not equal to, ``held_out``.

    Raises
    ------
    InvalidInputError
        If the share is outside (0, 1), or one side would be empty.
    """
    out = held_out_mask(texts.groups, held_out=held_out, seed=seed)
    return TextSplit(
        train=texts.take(np.flatnonzero(~out)), held_out=texts.take(np.flatnonzero(out))
    )


def held_out_mask(groups: Sequence[str], *, held_out: float, seed: int) -> NumpyArray:
    """Which items are held out: bool array (n,).

    Raises
    ------
    InvalidInputError
        As :func:`split_texts`.
    """
    if not 0 < held_out < 1:
        raise InvalidInputError(
            f"The share held out is {held_out}; a number between 0 and 1 is accepted, such as "
            f"{HELD_OUT}."
        )
    out = np.array([_unit(group, seed) < held_out for group in groups], dtype=bool)
    if out.size == 0 or out.all() or not out.any():
        raise InvalidInputError(
            f"Holding out {held_out} of {len(set(groups))} groups leaves one side empty. Take "
            "more items or another share."
        )
    return out


def _unit(group: str, seed: int) -> float:
    """A number in [0, 1) that looks drawn at random."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def without_repeats(texts: Sequence[str]) -> list[int]:
    """Indices of the first occurrence of each text, blank ones dropped.

    A text that is on both sides of a split would let a model be judged by what it has learned.
    Spaces and case do not make a text another one.
    """
    seen: set[str] = set()
    kept = []
    for i, text in enumerate(texts):
        key = " ".join(text.split()).casefold()
        if key and key not in seen:
            seen.add(key)
            kept.append(i)
    return kept
