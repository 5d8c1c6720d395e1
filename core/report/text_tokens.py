"""Token attributions put back on the text that the tokens came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types import FloatArray

BETWEEN = " ∥ "
"""Stands between the two texts of a pair."""


def spans(
    tokenizer: Any, texts: str | Sequence[str], values: FloatArray, *, max_length: int
) -> list[tuple[str, float]]:
    """Pieces of the text, word by word, each with its spaces and the value of its tokens.

    A word takes the value of its tokens that is largest in size; pieces together are the text as
    far as it was read. Tokenizers without offsets give their tokens' own texts.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
    texts : str, or a pair of them
    values : array (T,)
        One a token, special tokens included.
    max_length : int
        As the text was cut.
    """
    parts = (texts,) if isinstance(texts, str) else tuple(texts)
    options: dict[str, Any] = {"truncation": True, "max_length": max_length}
    if not getattr(tokenizer, "is_fast", False):
        names = tokenizer.convert_ids_to_tokens(tokenizer(*parts, **options)["input_ids"])
        return [(f"{n} ", float(v)) for n, v in zip(names, values, strict=False)]
    encoded = tokenizer(*parts, return_offsets_mapping=True, **options)
    words, sides = encoded.word_ids(), encoded.sequence_ids()
    found: list[list[tuple[int, int, float]]] = [[] for _ in parts]
    last = None
    rows = zip(words, sides, encoded["offset_mapping"], values, strict=False)
    for word, side, (start, stop), value in rows:
        if word is None or side is None or stop <= start:
            continue
        own = found[side]
        if (side, word) == last and own:
            own[-1] = (own[-1][0], stop, max(own[-1][2], float(value), key=abs))
        else:
            own.append((start, stop, float(value)))
        last = (side, word)
    pieces: list[tuple[str, float]] = []
    for text, own in zip(parts, found, strict=True):
        if pieces:
            pieces.append((BETWEEN, 0.0))
        starts = [0, *(start for start, _, _ in own[1:])]
        ends = [*starts[1:], own[-1][1]] if own else []
        pieces += [
            (text[a:b], float(np.clip(value, -1.0, 1.0)))
            for a, b, (_, _, value) in zip(starts, ends, own, strict=False)
        ]
    return pieces
