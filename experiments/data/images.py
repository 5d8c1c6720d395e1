"""Loaders of small labelled images."""

from __future__ import annotations

import gzip
import io
import math

import numpy as np

from ...core.errors import BackendUnavailable, CorruptFileError
from ...core.types import NumpyArray
from ._archives import MAX_MEMBER, deb_data, tar_members
from ._sources import archive
from .records import HELD_OUT, ImageSet, ImageSplit, held_out_mask

CLOTHING = (
    "t-shirt or top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load_fashion_mnist() -> ImageSplit:
    """60,000 and 10,000 images of clothing, 28×28 pixels, 10 classes; the authors' split.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747, from the Debian package
    ``dataset-fashion-mnist`` (MIT).

    Raises
    ------
    DataMissingError
        If it has not been fetched; says how.
    CorruptFileError
        If the fetched archive has other bytes than the pinned ones.
    """
    files = {
        name.rpartition("/")[2]: data
        for name, data in tar_members(
            deb_data(archive("fashion_mnist")),
            prefix="usr/share/datasets/fashion-mnist/",
            suffix="-ubyte.gz",
        )
    }
    return ImageSplit(train=_clothing(files, "train"), held_out=_clothing(files, "t10k"))


def load_digits(*, held_out: float = HELD_OUT, seed: int = 0) -> ImageSplit:
    """1,797 handwritten digits, 8×8 pixels with values from 0 to 16.

    Source: Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits" (test part), as it
    ships with scikit-learn (BSD-3-Clause); nothing is fetched.

    Raises
    ------
    BackendUnavailable
        If scikit-learn is not installed.
    InvalidInputError
        If the share is outside (0, 1).
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise BackendUnavailable(
            "The digits ship with scikit-learn, which is not installed. Install it with: "
            "pip install 'fishertope[data]'"
        ) from error
    images, labels = load(return_X_y=True)
    ids = tuple(f"digits/{i}" for i in range(len(labels)))
    whole = ImageSet(
        name="digits",
        images=np.asarray(images, dtype=np.uint8).reshape(-1, 8, 8),
        labels=np.asarray(labels, dtype=np.int64),
        ids=ids,
        classes=tuple("0123456789"),
        white=16,
    )
    out = held_out_mask(ids, held_out=held_out, seed=seed)
    return ImageSplit(
        train=whole.take(np.flatnonzero(~out)), held_out=whole.take(np.flatnonzero(out))
    )


def read_idx(data: bytes, name: str) -> NumpyArray:
    """An array of bytes in the IDX format of MNIST, compressed with gzip.

    Format: two zero bytes, the type (8: unsigned byte), the number d of dimensions, d big-endian
    32-bit sizes, then the elements in C order.

    Returns
    -------
    uint8 array of the shape in the header

    Raises
    ------
    CorruptFileError
        If the header is not of this kind or disagrees with the number of bytes.
    """
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            plain = stream.read(MAX_MEMBER + 1)
    except (OSError, EOFError, ValueError) as error:
        raise CorruptFileError(f"{name} cannot be unpacked: {error}.") from error
    if len(plain) < 4 or plain[:3] != b"\0\0\x08" or len(plain) < 4 + 4 * plain[3]:
        raise CorruptFileError(f"{name} does not start as an IDX file of unsigned bytes.")
    begin = 4 + 4 * plain[3]
    shape = tuple(int(n) for n in np.frombuffer(plain[4:begin], dtype=">u4"))
    if math.prod(shape) != len(plain) - begin:
        raise CorruptFileError(
            f"{name} says that its shape is {shape}, but holds {len(plain) - begin} elements."
        )
    return np.frombuffer(plain, dtype=np.uint8, offset=begin).reshape(shape).copy()


def _clothing(files: dict[str, bytes], part: str) -> ImageSet:
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{part}-{kind}-ubyte.gz"
        if name not in files:
            raise CorruptFileError(f"The package of Fashion-MNIST holds no {name}.")
        arrays.append(read_idx(files[name], name))
    images, labels = arrays
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max() > 9:
        raise CorruptFileError(
            f"Fashion-MNIST's {part} images have the shape {images.shape} and its labels "
            f"{labels.shape}."
        )
    return ImageSet(
        name="fashion_mnist",
        images=images,
        labels=labels.astype(np.int64),
        ids=tuple(f"{part}/{i}" for i in range(len(labels))),
        classes=CLOTHING,
        white=255,
    )
