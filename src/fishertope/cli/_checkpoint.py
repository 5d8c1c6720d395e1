"""A Hugging Face checkpoint folder as a model whose outputs have a meaning, and its tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BackendUnavailable, InvalidInputError

if TYPE_CHECKING:
    from ..core.model import OutputDistribution

DEFAULT_LENGTH = 128
# Models that number positions from padding_idx + 1, so that two places of their table are taken.
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


class Task(StrEnum):
    """What a checkpoint's outputs are."""

    AUTO = "auto"
    CLASSIFICATION = "classification"
    TOKENS = "tokens"
    CAUSAL = "causal-lm"
    SEQ2SEQ = "seq2seq-lm"


_AUTO_CLASSES = {
    Task.CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TOKENS: "AutoModelForTokenClassification",
    Task.CAUSAL: "AutoModelForCausalLM",
    Task.SEQ2SEQ: "AutoModelForSeq2SeqLM",
}
_ENDINGS = {
    "ForSequenceClassification": Task.CLASSIFICATION,
    "ForTokenClassification": Task.TOKENS,
    "ForCausalLM": Task.CAUSAL,
    "LMHeadModel": Task.CAUSAL,
    "ForConditionalGeneration": Task.SEQ2SEQ,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes
    ----------
    model, tokenizer : object
    task : Task
    output : OutputDistribution
    outputs_of : callable or None
        As :func:`per_example_fishers` takes it.
    classes : tuple of str
        Names of the classes; empty for regression and whole vocabularies.
    max_length : int
        Tokens of a text that are kept.
    words : tuple of int
        Tokens of the label words, if any.
    """

    model: Any
    tokenizer: Any
    task: Task
    output: OutputDistribution
    outputs_of: Callable[[Any, Any], Any] | None
    classes: tuple[str, ...]
    max_length: int
    words: tuple[int, ...] = ()


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder, after checking that the weights are safetensors.

    Raises
    ------
    InvalidInputError
        Naming what the folder lacks.
    """
    if not folder.is_dir():
        raise InvalidInputError(
            f"{folder} is no folder. Give a Hugging Face checkpoint folder (config.json, "
            "*.safetensors and the tokenizer's files), or a Python loader as module:function."
        )
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            f"{folder} has no config.json. Give the folder that save_pretrained wrote."
        )
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        why = f" ({pickled[0]} is a pickle, which could run code)" if pickled else ""
        raise InvalidInputError(
            f"{folder} holds no *.safetensors{why}. Save it with "
            "model.save_pretrained(folder, safe_serialization=True)."
        )
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{folder / 'config.json'} is not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise InvalidInputError(f"{folder / 'config.json'} is not a JSON object.")
    return found


def task_of(config: dict[str, Any], wanted: Task, fresh_head: int | None, folder: Path) -> Task:
    """The task asked for, or the one that the checkpoint's architecture names.

    Raises
    ------
    InvalidInputError
        The architecture has no outputs that mean a distribution.
    """
    if wanted is not Task.AUTO:
        return wanted
    if fresh_head is not None:
        return Task.CLASSIFICATION
    names = config.get("architectures") or []
    for name in names if isinstance(names, list) else []:
        for ending, task in _ENDINGS.items():
            if str(name).endswith(ending):
                return task
    raise InvalidInputError(
        f"{folder} is a checkpoint of {', '.join(map(str, names)) or 'an unnamed architecture'}, "
        "which has no outputs with a distribution over labels. Give a fine-tuned checkpoint, say "
        "what it is (--task), or put a random classification head of C classes on it "
        "(--fresh-head C)."
    )


def load_checkpoint(
    folder: Path,
    *,
    task: Task,
    label_words: Sequence[str] = (),
    fresh_head: int | None = None,
    max_length: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Load model and tokenizer from files alone: no network, no pickle, no code of the checkpoint.

    Raises
    ------
    InvalidInputError
        Files that are missing or do not fit the task; weights that the head lacks.
    BackendUnavailable
        transformers or torch is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendUnavailable(
            f"Checkpoint folders need {error.name}: pip install 'fishertope[hf]'."
        ) from None
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = read_config(folder)
    task = task_of(config, task, fresh_head, folder)
    if fresh_head is not None:
        _check_headless(config, task, fresh_head, folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    heads = {} if fresh_head is None else {"num_labels": fresh_head}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # decides a fresh head
            model, told = getattr(transformers, _AUTO_CLASSES[task]).from_pretrained(
                folder, use_safetensors=True, output_loading_info=True,
                dtype=getattr(torch, dtype), **heads, **options,
            )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = str(error).strip().split("\n")[0][:300]
        raise InvalidInputError(
            f"{folder} could not be loaded as a checkpoint for {task}: {reason}. Give a complete "
            "checkpoint folder with its tokenizer, or another --task."
        ) from error
    missing = sorted(told["missing_keys"])
    if missing and fresh_head is None:
        raise InvalidInputError(
            f"{folder} has no weights for {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}, which {task} needs. Give a fine-tuned "
            "checkpoint, another --task, or --fresh-head C for a random head of C classes."
        )
    model = placed(model.eval(), device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "right"
    words = tuple(_word_token(tokenizer, w, task) for w in label_words)
    output, outputs_of, classes = _meaning(model, task, words, tuple(label_words))
    return Checkpoint(
        model=model, tokenizer=tokenizer, task=task, output=output, outputs_of=outputs_of,
        classes=classes, max_length=_length(config, max_length), words=words,
    )  # fmt: skip


def _check_headless(config: dict[str, Any], task: Task, fresh_head: int, folder: Path) -> None:
    """A fresh head is for encoders that have none: a trained one must not be lost in silence."""
    if task is not Task.CLASSIFICATION:
        raise InvalidInputError(
            f"--fresh-head {fresh_head} was given with --task {task}; it puts a classification "
            "head on an encoder. Leave one of the two out."
        )
    names = [str(name) for name in config.get("architectures") or []]
    headed = [name for name in names if name.endswith("ForSequenceClassification")]
    if headed:
        classes = len(config.get("id2label") or {}) or 2
        raise InvalidInputError(
            f"--fresh-head {fresh_head} was given, but {folder} is a {headed[0]} that has a head "
            f"of {classes} classes. Leave --fresh-head out, or give the encoder alone."
        )


def placed(model: Any, device: str | None) -> Any:
    """The model on a device; under ``torchrun`` each process takes its own GPU.

    Raises
    ------
    InvalidInputError
        No such device here, or a model that cannot be moved.
    """
    if device is None:
        return model
    if not hasattr(model, "to"):
        raise InvalidInputError(
            f"--device {device} was given for a {type(model).__name__}; only a torch.nn.Module "
            "can be moved. Leave --device out."
        )
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise InvalidInputError(
            f"--device {device} cannot be used: {reason}. Accepted: cpu, cuda, cuda:0, ..."
        ) from None


def _meaning(
    model: Any, task: Task, words: tuple[int, ...], names: tuple[str, ...]
) -> tuple[OutputDistribution, Any, tuple[str, ...]]:
    """Output distribution, readout and class names."""
    from ..backends.torch_gpu.readout import EachToken, LabelWords
    from ..core.model import Bernoulli, Categorical, Gaussian, TokenCategorical

    config = model.config
    if task in (Task.CAUSAL, Task.SEQ2SEQ):
        if words:
            return Categorical(), LabelWords(words), names
        width = int(model.get_output_embeddings().weight.shape[0])
        return TokenCategorical(width), EachToken(following=task is Task.CAUSAL), ()
    if words:
        raise InvalidInputError(
            f"--label-word was given for {task}; label words are for language models (causal-lm, "
            "seq2seq-lm). Leave it out."
        )
    named = getattr(config, "id2label", None) or {}
    classes = tuple(str(named.get(i, i)) for i in range(config.num_labels))
    if task is Task.TOKENS:
        return TokenCategorical(config.num_labels), EachToken(), classes
    if config.problem_type == "regression" or config.num_labels == 1:
        return Gaussian(), None, ()
    if config.problem_type == "multi_label_classification":
        return Bernoulli(), None, ()
    return Categorical(), None, classes


def _word_token(tokenizer: Any, word: str, task: Task) -> int:
    """The one token of a label word; after a text it usually begins with a space."""
    tokens: list[int] = []
    for form in (word,) if task is Task.SEQ2SEQ else (f" {word}", word):
        tokens = tokenizer.encode(form, add_special_tokens=False)
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            return int(tokens[0])
    raise InvalidInputError(
        f"--label-word {word!r} is {len(tokens)} tokens of this tokenizer "
        f"({' '.join(map(str, tokenizer.convert_ids_to_tokens(tokens)))[:80]}); words of exactly "
        "one known token are taken. Choose other words."
    )


def _length(config: dict[str, Any], wanted: int | None) -> int:
    most = config.get("max_position_embeddings") or config.get("n_positions")
    room = most if isinstance(most, int) and config.get("model_type") != "t5" else None
    if room is not None and config.get("model_type") in _SHIFTED:
        room -= 2
    if wanted is not None and room is not None and wanted > room:
        raise InvalidInputError(
            f"--max-length {wanted} was given; this model takes at most {room} tokens."
        )
    return wanted or min(DEFAULT_LENGTH, room or DEFAULT_LENGTH)
