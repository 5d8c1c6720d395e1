"""What a fine-tuning starts from: a pretrained encoder, or small transformers from scratch."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...core.errors import BackendUnavailable, InvalidInputError
from ...core.storage import OutputFolder
from ..data import minilm_folder
from ..data._made import cached
from ..data.models import MINILM_FILES
from .tasks import load_task, task_of

_SCRATCH_TASKS = ("sentiment/amazon", "sentiment/imdb", "sentiment/yelp")
VOCABULARY = 2000
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A common start of fine-tunings.

    Attributes
    ----------
    name : str
    key : str
        Decides the weights and the tokenizer.
    folder : callable
        Returns the Hugging Face checkpoint folder; makes or unpacks it when needed.
    learning_rate, steps : float, int
        Used unless the caller says otherwise.
    content : str
    """

    name: str
    key: str
    folder: Callable[[], Path]
    learning_rate: float
    steps: int
    content: str


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


_TINY: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bert-tiny": {
            "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 256, "max_position_embeddings": 128,
        },
        "gpt2-tiny": {
            "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128,
        },
    }
)  # fmt: skip


def _scratch_key(name: str) -> str:
    tasks = [task_of(task).key for task in _SCRATCH_TASKS]
    return _digest([name, dict(_TINY[name]), VOCABULARY, tasks, 1])


def base_of(base: str | os.PathLike[str]) -> Base:
    """A base by its name, or a Hugging Face checkpoint folder with its tokenizer.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    if isinstance(base, str) and base in BASES:
        return BASES[base]
    folder = Path(base)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise InvalidInputError(
            f"base={os.fspath(base)!r} was given; one of {', '.join(BASES)} is accepted, or a "
            "checkpoint folder with config.json, model.safetensors and a tokenizer."
        )
    files = {}
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".txt")
    ):
        if path.name not in ("manifest.json", "results.json"):
            with path.open("rb") as file:
                files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    usual = BASES["minilm"]
    return Base(
        name=folder.resolve().name, key=_digest(files), folder=lambda: folder,
        learning_rate=usual.learning_rate, steps=usual.steps, content=str(folder),
    )  # fmt: skip


def need_transformers() -> Any:
    """The module transformers.

    Raises
    ------
    BackendUnavailable
        If it or torch is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise BackendUnavailable(
            f"Fine-tuning needs {error.name}: pip install 'fishertope[hf]'."
        ) from None
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No log lines about heads that are about to be trained; the level as before afterwards."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face checkpoint folder with its tokenizer, readable as other files are."""
    with quiet(need_transformers()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors writes files that the owner alone may read.
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode)


def _scratch(name: str) -> Path:
    """Checkpoint folder of a small transformer with random weights and its own vocabulary."""
    key = BASES[name].key
    return cached(f"{name}-{key[:12]}", key, lambda out: _write(name, out), command="finetune")


def _write(name: str, out: OutputFolder) -> dict[str, Any]:
    transformers = need_transformers()
    import torch

    texts = [text for task in _SCRATCH_TASKS for text in load_task(task).train.texts]
    tokenizer = word_pieces(texts, VOCABULARY)
    shape = dict(_TINY[name])
    config = transformers.AutoConfig.for_model(
        shape.pop("model_type"), vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, **shape,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
    save_checkpoint(model, tokenizer, out.working)
    return {"parameters": sum(p.numel() for p in model.parameters()), "tokens": len(tokenizer)}


def word_pieces(texts: list[str], size: int) -> Any:
    """A tokenizer of whole frequent words and single characters, as a ``transformers`` tokenizer.

    The same texts give the same vocabulary: words by falling frequency, then by spelling.

    Parameters
    ----------
    texts : list of str
    size : int
        Entries, special tokens and characters included.
    """
    transformers = need_transformers()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    plain = normalizers.BertNormalizer(lowercase=True)
    cut = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in cut.pre_tokenize_str(plain.normalize_str(text)))
    characters = sorted({c for word in words for c in word})
    entries = dict.fromkeys([*_SPECIAL, *characters, *(f"##{c}" for c in characters)])
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if len(entries) >= size:
            break
        entries[word] = None
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = plain
    core.pre_tokenizer = cut
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=128, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


BASES: Mapping[str, Base] = MappingProxyType(
    {
        "minilm": Base(
            name="minilm", key=_digest(MINILM_FILES), folder=minilm_folder,
            learning_rate=5e-5, steps=150,
            content="all-MiniLM-L6-v2, 6 layers of width 384, 22.7 M parameters, pretrained",
        ),
        **{
            name: Base(
                name=name, key=_scratch_key(name), folder=partial(_scratch, name),
                learning_rate=2e-3, steps=400,
                content=f"2 layers of width 64, {VOCABULARY} tokens, random weights ({family})",
            )
            for name, family in (("bert-tiny", "BERT"), ("gpt2-tiny", "GPT-2"))
        },
    }
)  # fmt: skip
