"""Merging of checkpoints on disk, in bounded memory."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .checkpoint import Checkpoint as Checkpoint
    from .engine import Progress as Progress, StoppedByCallback as StoppedByCallback
    from .estimate import estimate_merge as estimate_merge
    from .merge import (
        MergeOptions as MergeOptions,
        MergeReport as MergeReport,
        merge_checkpoints as merge_checkpoints,
    )
    from .search import (
        CheckpointSearch as CheckpointSearch,
        search_checkpoints as search_checkpoints,
    )

__getattr__, __dir__ = lazy_names(__name__, __file__)
