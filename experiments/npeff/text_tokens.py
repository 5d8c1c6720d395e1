"""Token attributions put back on the text that the tokens came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.types import FloatArray


def spans(
    tokenizer: Any, text: str, values: FloatArray, max_length: int
) -> list[tuple[str, float]]:
    """Pieces of the text, word by word, each with its spaces and the value of its tokens.

    A word takes the value of its tokens that is largest in size; pieces together are the text as
    far as it was read. Tokenizers without offsets give their tokens' own texts.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    text : str
    values : array (T,)
        One a token, special tokens included.
    max_length : int
        As the text was cut.
    """
    options: dict[str, Any] = {"truncation": True, "max_length": max_length}
    if not getattr(tokenizer, "is_fast", False):
        ids = tokenizer(text, **options)["input_ids"]
        names = tokenizer.convert_ids_to_tokens(ids)
        return [(f"{n} ", float(v)) for n, v in zip(names, values, strict=False)]
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    words: Sequence[int | None] = encoded.word_ids()
    offsets = encoded["offset_mapping"]
    pieces: list[tuple[int, int, float]] = []
    last: int | None = None
    for word, (start, stop), value in zip(words, offsets, values, strict=False):
        if word is None:
            continue
        if word == last and pieces:
            before = pieces[-1]
            strongest = max(before[2], float(value), key=abs)
            pieces[-1] = (before[0], stop, strongest)
        else:
            pieces.append((start, stop, float(value)))
        last = word
    starts = [0, *(p[0] for p in pieces[1:])]
    ends = [*starts[1:], pieces[-1][1]] if pieces else []
    return [
        (text[a:b], float(np.clip(p[2], -1.0, 1.0)))
        for a, b, p in zip(starts, ends, pieces, strict=True)
    ]
