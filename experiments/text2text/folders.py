"""A model with its vocabulary and lengths in one folder.

A model that a Hugging Face T5 folder can express is written as one; others keep their
configuration in ``seq2seq.json``. No pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fishertope.core.errors import CorruptFileError, InvalidInputError
from fishertope.core.storage import load_arrays, read_json, save_arrays, write_bytes, write_json
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig
from fishertope.experiments.seq2seq.checkpoints import (
    config_to_hf,
    from_pretrained,
    save_pretrained,
)

from .batches import Lengths
from .vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary

KIND = "seq2seq model"
FACTS = "text2text.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextModel:
    """A model and what is needed to give it texts."""

    model: Seq2Seq
    vocabulary: Vocabulary
    lengths: Lengths
    facts: Mapping[str, Any]


def save_model(
    folder: str | Path, model: Seq2Seq, vocabulary: Vocabulary, lengths: Lengths,
    facts: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write model, vocabulary, lengths and facts; adapters must be merged or removed first.

    Raises
    ------
    InvalidInputError
        If the vocabulary has more ids than the model.
    """
    path = Path(folder)
    if vocabulary.size > model.config.vocab_size:
        raise InvalidInputError(
            f"the vocabulary has {vocabulary.size} ids, the model {model.config.vocab_size}; give "
            "the vocabulary that the model was made for"
        )
    path.mkdir(parents=True, exist_ok=True)
    form = "t5"
    try:
        config_to_hf(model.config)
    except InvalidInputError:
        form = "fishertope"
    if form == "t5" and not _has_adapters(model):
        save_pretrained(model, path)
    else:
        form = "fishertope"
        arrays = {n: p.detach().cpu().numpy() for n, p in model.named_parameters()}
        save_arrays(path / "seq2seq.safetensors", arrays, kind=KIND)
        write_json(path / "seq2seq.json", asdict(model.config) | {"adapters": _widths(model)})
    if isinstance(vocabulary, SentencePieceVocabulary):
        write_bytes(path / "spiece.model", vocabulary.model)
    write_json(
        path / FACTS,
        {"form": form, "vocabulary": vocabulary.facts(), "lengths": asdict(lengths),
         "facts": dict(facts or {})},
    )  # fmt: skip


def _has_adapters(model: Seq2Seq) -> bool:
    return bool(_widths(model))


def _widths(model: Seq2Seq) -> int:
    """Width of the adapters, 0 without any."""
    for name, parameter in model.named_parameters():
        if name.endswith("adapter.down.weight"):
            return int(parameter.shape[0])
    return 0


def load_model(folder: str | Path) -> TextModel:
    """Read what :func:`save_model` wrote, or a Hugging Face T5 folder with a ``spiece.model``.

    Raises
    ------
    InvalidInputError
        If the folder is neither.
    CorruptFileError
        If a file is damaged, or the parts do not fit together.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InvalidInputError(f"{path} is no folder; give one that a training wrote")
    if not (path / FACTS).exists():
        return _foreign(path)
    facts = read_json(path / FACTS)
    try:
        lengths = Lengths(**facts["lengths"])
        kind, sentinels = facts["vocabulary"]["kind"], int(facts["vocabulary"]["sentinels"])
        form, given = facts["form"], dict(facts["facts"])
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path / FACTS} is not one of ours ({error})") from error
    vocabulary: Vocabulary
    if kind == "bytes":
        vocabulary = ByteVocabulary(sentinels=sentinels)
    else:
        vocabulary = SentencePieceVocabulary.load(path / "spiece.model", sentinels=sentinels)
        if vocabulary.facts() != facts["vocabulary"]:
            raise CorruptFileError(f"{path / 'spiece.model'} is not the one that {FACTS} names")
    model = from_pretrained(path) if form == "t5" else _own(path)
    return TextModel(model=model, vocabulary=vocabulary, lengths=lengths, facts=given)


def _own(path: Path) -> Seq2Seq:
    from .finetuning import add_adapters

    fields = read_json(path / "seq2seq.json")
    arrays, _ = load_arrays(path / "seq2seq.safetensors", kind=KIND)
    try:
        width = int(fields.pop("adapters"))
        model = Seq2Seq(Seq2SeqConfig(**fields))
        if width:
            add_adapters(model, width)
        own = dict(model.named_parameters())
        if set(own) != set(arrays):
            raise ValueError(f"parameters {sorted(set(own) ^ set(arrays))[:5]} are not in both")
        with torch.no_grad():
            for name, parameter in own.items():
                if tuple(arrays[name].shape) != tuple(parameter.shape):
                    raise ValueError(f"{name} has shape {arrays[name].shape}")
                parameter.copy_(torch.from_numpy(arrays[name]))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: configuration and weights do not fit ({error})") from error
    return model.eval()


def _foreign(path: Path) -> TextModel:
    if not (path / "spiece.model").exists() or not (path / "config.json").exists():
        raise InvalidInputError(
            f"{path} has neither {FACTS} nor a Hugging Face T5 model with its spiece.model; give a "
            "folder that `fishertope text` wrote, or such a checkpoint"
        )
    model = from_pretrained(path)
    return TextModel(
        model=model,
        vocabulary=SentencePieceVocabulary.load(path / "spiece.model"),
        lengths=Lengths(inputs=512, targets=128),
        facts={},
    )
