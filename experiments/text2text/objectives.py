"""Unsupervised objectives: which tokens are noise, and what stands for them on either side.

Source of all of them: Raffel et al., arXiv 1910.10683, section 3.3.
"""

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fishertope.core.errors import InvalidInputError

from .vocabulary import SentinelVocabulary

Tokens: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Objective: TypeAlias = Literal[
    "span_corruption", "replace_spans", "bert_style", "mass_style", "drop_tokens", "deshuffling",
    "prefix_lm",
]  # fmt: skip


def iid_mask(length: int, density: float, rng: np.random.Generator) -> Mask:
    """Each place is noise with probability ``density``, on its own."""
    return np.asarray(rng.random(length) < density)


def _composition(items: int, parts: int, rng: np.random.Generator) -> Tokens:
    """Uniform among the ways to write ``items`` as a sum of ``parts`` positive numbers."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [items]])).astype(np.int64)


def random_spans_mask(
    length: int, density: float, mean_span: float, rng: np.random.Generator
) -> Mask:
    """Noise in spans at random places; the numbers of noise tokens and of spans are fixed.

    ``noise = clamp(round(n * density), 1, n - 1)`` and ``spans = max(round(noise / mean), 1)``;
    both kinds are split uniformly and interleaved, kept first. So the mask starts with a kept
    token and ends with noise. Halves are rounded to even.
    """
    n = max(length, 2)
    noise = min(max(round(n * density), 1), n - 1)
    spans = min(max(round(noise / mean_span), 1), noise, n - noise)
    runs = np.stack([_composition(n - noise, spans, rng), _composition(noise, spans, rng)], 1)
    return np.repeat(np.tile([False, True], spans), runs.ravel())[:length]


def random_spans_lengths(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Longest raw length whose corrupted inputs fit, and its length of targets, both with EOS.

    ``kept + spans + 1 <= inputs_length``; the targets take ``noise + spans + 1``. At density 0.5
    the raw length is one shorter if the targets would be longer than the inputs.
    """
    if inputs_length < 3 or not 0 < density < 1 or mean_span < 1:
        raise InvalidInputError(
            f"inputs_length={inputs_length}, density={density}, mean_span={mean_span}; give at "
            "least 3, a number inside (0, 1), and at least 1"
        )

    def lengths(raw: int) -> tuple[int, int]:
        noise = round(raw * density)
        spans = round(noise / mean_span)
        return raw - noise + spans + 1, noise + spans + 1

    raw = 1
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    targets = lengths(raw)[1]
    if density == 0.5 and targets > lengths(raw)[0]:
        raw, targets = raw - 1, targets - 1
    return raw, targets


def replace_runs(tokens: Tokens, mask: Mask, vocabulary: SentinelVocabulary) -> Tokens:
    """Put one unique sentinel, counting from 0, in place of each run of true places.

    Raises
    ------
    InvalidInputError
        More runs than sentinels: their ids would run into ordinary tokens.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    runs = int(starts.sum())
    if runs > vocabulary.sentinels:
        vocabulary.sentinel(runs - 1)
    out = tokens.copy()
    out[starts] = vocabulary.size - 1 - np.arange(runs)
    kept: Tokens = out[starts | ~mask]
    return kept


def denoise(
    tokens: Tokens,
    objective: Objective,
    vocabulary: SentinelVocabulary,
    rng: np.random.Generator,
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
    closing_sentinel: bool = False,
) -> tuple[Tokens, Tokens]:
    """Inputs and targets of one raw sequence, both without EOS.

    Parameters
    ----------
    tokens
        int64 ``(n,)``, n >= 2.
    closing_sentinel
        End the targets of the unique-sentinel objectives with one sentinel more, as the figure
        of the paper does. The released code does not: there the targets end with a sentinel
        only where the sequence ends with kept tokens.

    Raises
    ------
    InvalidInputError
        An unknown objective, too short a sequence, or more runs than sentinels.
    """
    n = len(tokens)
    if n < 2:
        raise InvalidInputError(f"a sequence of {n} tokens; at least 2 are needed")
    if objective == "span_corruption" or objective == "replace_spans":
        if objective == "span_corruption":
            mask = random_spans_mask(n, density, mean_span, rng)
        else:
            mask = iid_mask(n, density, rng)
        targets = replace_runs(tokens, ~mask, vocabulary)
        if closing_sentinel and mask[-1]:
            used = int((targets >= vocabulary.size - vocabulary.sentinels).sum())
            targets = np.append(targets, vocabulary.sentinel(used))
        return replace_runs(tokens, mask, vocabulary), targets
    if objective == "prefix_lm":
        cut = int(rng.integers(1, n))
        return tokens[:cut], tokens[cut:]
    if objective == "deshuffling":
        return rng.permutation(tokens), tokens.copy()
    mask = iid_mask(n, density, rng)
    if objective == "drop_tokens":
        return tokens[~mask], tokens[mask]
    if objective not in ("bert_style", "mass_style"):
        raise InvalidInputError(
            f"objective={objective!r}; accepted are {', '.join(get_args(Objective))}"
        )
    inputs = np.where(mask, vocabulary.sentinel(0), tokens)
    if objective == "bert_style":
        last = vocabulary.size - vocabulary.sentinels
        random = rng.integers(vocabulary.first_ordinary, last, n)
        inputs = np.where(mask & (rng.random(n) < 0.1), random, inputs)
    return inputs, tokens.copy()


def reconstruct(inputs: Tokens, targets: Tokens, vocabulary: SentinelVocabulary) -> Tokens:
    """The raw sequence of a unique-sentinel objective; the inverse of :func:`denoise`.

    Where the sequence starts with noise, the targets start with raw tokens and their sentinel
    ``k`` marks the kept run after noise run ``k``; both cases are read.
    """
    border = vocabulary.size - vocabulary.sentinels
    parts = np.split(targets, np.flatnonzero(targets >= border))
    noise = [part[part < border] for part in parts]
    if len(noise[0]) == 0:
        noise = noise[1:]
    out: list[Tokens] = []
    for token in inputs:
        if token < border:
            out.append(np.asarray([token], dtype=np.int64))
            continue
        k = int(vocabulary.size - 1 - token)
        if k >= len(noise):
            raise InvalidInputError(
                f"the inputs hold sentinel {k}, the targets only {len(noise)} noise runs; give "
                "the two halves of one example"
            )
        out.append(noise[k])
    return np.concatenate(out) if out else targets[:0]
