"""Every language problem as a text in and a text out: tasks, objectives, training, decoding."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .batches import Batch as Batch, Lengths as Lengths, pack as pack
from .mixtures import Mixture as Mixture, mixing_rates as mixing_rates
from .objectives import (
    Objective as Objective,
    denoise as denoise,
    random_spans_lengths as random_spans_lengths,
    reconstruct as reconstruct,
)
from .streams import (
    BatchStream as BatchStream,
    CorpusStream as CorpusStream,
    MixtureStream as MixtureStream,
    TaskStream as TaskStream,
    tokenized as tokenized,
)
from .tasks import Task as Task, TaskRegistry as TaskRegistry
from .vocabulary import (
    ByteVocabulary as ByteVocabulary,
    SentencePieceVocabulary as SentencePieceVocabulary,
    Vocabulary as Vocabulary,
)

if TYPE_CHECKING:
    from .evaluation import Decoder as Decoder, evaluate as evaluate, generate as generate
    from .folders import TextModel as TextModel, load_model as load_model, save_model as save_model
    from .runs import finetune as finetune, pretrain as pretrain
    from .training import TrainingPlan as TrainingPlan, train as train

_WITH_TORCH = {
    "Decoder": "evaluation", "evaluate": "evaluation", "generate": "evaluation",
    "TextModel": "folders", "load_model": "folders", "save_model": "folders",
    "finetune": "runs", "pretrain": "runs", "TrainingPlan": "training", "train": "training",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Names that need torch are imported when they are used."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
