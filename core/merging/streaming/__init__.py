"""Merging of checkpoints on disk, in bounded memory."""

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
