"""Where transformers can be cut: the block outputs of a module, found by the names of its parts.

A *state* cut is a tensor that is the whole residual stream at its place (as BERT's layer outputs,
or any embedding); a *branch* cut is one that is added to the stream afterwards (as the attention
and feed-forward outputs of GPT-2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from ...core.errors import InvalidInputError

STATE, BRANCH = "state", "branch"

# Family of models -> (pattern of a submodule's name, kind of cut).
_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "bert": (
        (r"embeddings", STATE),
        (r"layer\.\d+\.attention\.output", STATE),
        (r"layer\.\d+\.output", STATE),
    ),
    "distilbert": (
        (r"embeddings", STATE),
        (r"layer\.\d+\.(sa|output)_layer_norm", STATE),
    ),
    "gpt2": (
        (r"drop", STATE),
        (r"h\.\d+\.(attn|mlp)", BRANCH),
        (r"ln_f", STATE),
    ),
    "llama": (
        (r"embed_tokens", STATE),
        (r"layers\.\d+\.(self_attn|mlp)", BRANCH),
        (r"norm", STATE),
    ),
    "t5": (
        (r"(encoder|decoder)\.dropout", STATE),
        (r"block\.\d+\.layer\.\d+", STATE),
    ),
    "fishertope seq2seq": (
        (r"(encoder|decoder)\.dropout", STATE),
        (r"blocks\.\d+\.(self_attention|cross_attention|feed_forward)", BRANCH),
    ),
    "torch.nn, norm last": ((r"layers\.\d+\.norm[123]", STATE),),
}


def register_blocks(family: str, patterns: Sequence[tuple[str, str]]) -> None:
    """Teach tracing a family of models.

    Parameters
    ----------
    family : str
        A name; an old one is replaced.
    patterns : sequence of (str, {"state", "branch"})
        Regular expressions for the end of a submodule's dotted name, at whole parts of it, and the
        kind of the tensor that the submodule returns.

    Raises
    ------
    InvalidInputError
        Another kind, or a pattern that is no regular expression.
    """
    for pattern, kind in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidInputError(f"The pattern {pattern!r} is malformed: {error}.") from None
        if kind not in (STATE, BRANCH):
            raise InvalidInputError(f"kind={kind!r} was given; 'state' or 'branch' is accepted.")
    _FAMILIES[family] = tuple(patterns)


def find_blocks(module: nn.Module, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Submodules to cut behind, name to kind.

    Parameters
    ----------
    module : nn.Module
    given : mapping of str to {"state", "branch"}, optional
        Names of submodules; found by the family whose patterns match most of them otherwise.

    Raises
    ------
    InvalidInputError
        Unknown submodules or kinds, or a model of no known family.
    """
    names = [name for name, _ in module.named_modules() if name]
    if given is not None:
        unknown = sorted(set(given) - set(names))
        kinds = set(given.values()) - {STATE, BRANCH}
        if unknown or kinds or not given:
            raise InvalidInputError(
                f"blocks={dict(given)!r} was given; names of submodules are taken, each with "
                f"'state' or 'branch'. Not known: {', '.join(unknown + sorted(kinds)) or 'none'}."
            )
        return dict(given)
    best: dict[str, str] = {}
    for patterns in _FAMILIES.values():
        found = {}
        for name in names:
            for pattern, kind in patterns:
                if re.fullmatch(rf"(.*\.)?({pattern})", name):
                    found[name] = kind
        # Without a numbered block it is no match: an "embeddings" alone is found in many models.
        if len(found) > len(best) and any(re.search(r"\.\d+\.", f".{n}.") for n in found):
            best = found
    if not best:
        raise InvalidInputError(
            f"The blocks of this {type(module).__name__} are not known (its parts are called "
            f"{', '.join(names[:6])}, ...). Give blocks={{'name of a submodule': 'state' or "
            "'branch', ...}, or teach the family with register_blocks."
        )
    return best


def stacks_of(names: Sequence[str]) -> list[str]:
    """Encoder or decoder for each cut, where a model has both; else one name for all."""
    sides = []
    for name in names:
        parts = name.split("#")[0].split(".")
        sides.append(next((p for p in parts if p in ("encoder", "decoder")), ""))
    if {"encoder", "decoder"} <= set(sides):
        return [side or "decoder" for side in sides]
    return ["stack"] * len(names)
