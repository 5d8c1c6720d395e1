"""Which parameters a fine-tuning trains: all, adapters only, or layers unfrozen from the top.

Source: Raffel et al., arXiv 1910.10683, section 3.5.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import torch

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.seq2seq import Seq2Seq
from fishertope.experiments.seq2seq.adapter import Adapter
from fishertope.experiments.seq2seq.config import StackName
from fishertope.experiments.seq2seq.model import BaseBlock


def add_adapters(model: Seq2Seq, width: int, *, seed: int = 0) -> list[str]:
    """Put an adapter at the end of every block; returns the names to train.

    These are the adapters and all norms of the model. The function of the model does not change
    until they are trained. Cost: ``2 * d_model * width`` parameters a block.

    Raises
    ------
    InvalidInputError
        If the model has adapters already.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [module for module in model.modules() if isinstance(module, BaseBlock)]
    if any(block.adapter is not None for block in blocks):
        raise InvalidInputError("the model has adapters already; begin with one that has none")
    like = next(model.parameters())
    for block in blocks:
        block.adapter = Adapter(model.config, width, generator).to(like.device, like.dtype)
    return adapter_names(model)


def adapter_names(model: Seq2Seq) -> list[str]:
    """Parameters of adapters and of norms."""
    pattern = re.compile(r"(^|\.)(adapter|(\w+_)?norm)\.")
    return [name for name, _ in model.named_parameters() if pattern.search(name)]


def unfreeze_gradually(model: Seq2Seq, steps: int) -> Callable[[int], Collection[str]]:
    """Names that each step trains: one more block of both stacks in each of equal episodes.

    As many episodes as blocks. In the first one the top blocks are trained, and in every one
    the embeddings, the softmax matrix and the last norms; the position tables belong to the
    lowest block.

    Parameters
    ----------
    steps
        Of the whole fine-tuning; at least one an episode.
    """
    depth = max(model.config.layers, model.config.decoder_depth)
    if steps < depth:
        raise InvalidInputError(
            f"{steps} steps for {depth} episodes, one a block; take at least as many steps"
        )
    names = [name for name, _ in model.named_parameters()]

    def lowest(name: str) -> int:
        """Number of the episode, from 0, in which a parameter is first trained."""
        match = re.match(r"(encoder|decoder)\.(blocks\.(\d+)|position)\.", name)
        if match is None:
            return 0
        stack: StackName = "encoder" if match[1] == "encoder" else "decoder"
        if match[3] is not None and model.config.shares_blocks(stack):
            return 0  # the one block is the top one too
        return model.config.depth(stack) - 1 - int(match[3] or 0)

    first = {name: lowest(name) for name in names}

    def trainable(step: int) -> Collection[str]:
        episode = min((step - 1) * depth // steps, depth - 1)
        return [name for name in names if first[name] <= episode]

    return trainable
