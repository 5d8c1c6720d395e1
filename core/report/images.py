"""Small pictures inside a page: PNG made here, enlarged by the browser."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from ..errors import InvalidInputError
from ..types import NumpyArray
from .markup import Content, Html, tag


def png(image: NumpyArray) -> bytes:
    """An 8-bit PNG of an array.

    Parameters
    ----------
    image : array (height, width) or (height, width, 3)
        uint8, or floats with 0 for black and 1 for white (clipped).

    Raises
    ------
    InvalidInputError
        For other shapes, or NaN.

    Examples
    --------
    >>> png(np.zeros((2, 2)))[1:4]
    b'PNG'
    """
    if image.ndim not in (2, 3) or 0 in image.shape or image.shape[2:] not in ((), (3,)):
        raise InvalidInputError(
            f"An image of shape {image.shape} was given; (height, width) or (height, width, 3) "
            "is taken."
        )
    if image.dtype != np.uint8:
        if not np.all(np.isfinite(image)):
            raise InvalidInputError("The image has NaN or infinite entries; finite ones are taken.")
        image = (np.clip(image, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    height, width = image.shape[:2]
    lines = image.reshape(height, -1)
    unfiltered = np.zeros((height, 1), dtype=np.uint8)
    data = zlib.compress(np.hstack([unfiltered, lines]).tobytes(), 9)
    colour = 2 if image.ndim == 3 else 0
    start = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", start), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def image_strip(
    images: Sequence[NumpyArray],
    captions: Sequence[Content] | None = None,
    *,
    alt: Sequence[str] | None = None,
    size: str = "2.6rem",
    marked: Sequence[bool] | None = None,
) -> Html:
    """Small images side by side, wrapping where the screen ends.

    Parameters
    ----------
    images : sequence of arrays
        See :func:`png`; few pixels are shown as squares, not blurred.
    captions : sequence, optional
        One under each.
    alt : sequence of str, optional
        What each shows, for those who cannot see it.
    size : str
        CSS width of one image.
    marked : sequence of bool, optional
        Draws a warning frame around some.

    Returns
    -------
    Html
        Self-contained.
    """
    cells = []
    for i, pixels in enumerate(images):
        source = "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")
        image = tag("img", src=source, alt=alt[i] if alt else "")
        picture = tag("span", image, style=f"width:{size}")
        caption = None if captions is None else tag("figcaption", captions[i])
        frame = "marked" if marked is not None and marked[i] else None
        cells.append(tag("figure", picture, caption, class_=frame))
    return tag("div", *cells, class_="strip")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
