"""What ``fisher`` and ``estimate`` share: their options, and from these to model and data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import InvalidInputError
from ._checkpoint import Task, load_checkpoint, placed, read_config, task_of
from ._loaders import call_loader, is_loader, loaded_data
from ._records import open_records

BATCH_SIZE = 16


class Rule(StrEnum):
    """Label rules by name."""

    EXACT = "exact"
    SAMPLED = "sampled"
    PROBE = "probe"
    DATA = "data"


class Precision(StrEnum):
    """Dtypes in which a checkpoint is differentiated."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Hugging Face checkpoint folder (safetensors), or a Python loader module:function "
        "that returns a model.",
        show_default=False,
    ),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        help="Data file (.csv, .tsv, .jsonl, .parquet), or a Python loader module:function that "
        "returns arrays or batches.",
        show_default=False,
    ),
]
TextOption = Annotated[
    list[str] | None,
    typer.Option("--text", help="Column of texts; twice for pairs (or input and target)."),
]
LabelOption = Annotated[
    str | None,
    typer.Option("--label", help="Column of labels: class numbers or names. For --labels data."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Read so many rows at most.")]
TaskOption = Annotated[
    Task, typer.Option(help="What the checkpoint is; auto asks its config.json.")
]
WordOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label-word",
        help="Language models: the word of one class, given once for each class.",
    ),
]
HeadOption = Annotated[
    int | None,
    typer.Option(
        "--fresh-head", min=2,
        help="Put a random classification head of so many classes on an encoder without one.",
    ),
]  # fmt: skip
LengthOption = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Tokens of a text that are kept.")
]
RuleOption = Annotated[
    Rule,
    typer.Option(
        "--labels",
        help="exact: over all classes; sampled: drawn from the model; probe: random signs; data: "
        "the labels of --label (the empirical Fisher, which is not the Fisher).",
    ),
]
DrawsOption = Annotated[
    int, typer.Option(min=1, help="Draws an example, for --labels sampled and probe.")
]
TopOption = Annotated[
    int | None, typer.Option(min=1, help="--labels exact: the likeliest classes only.")
]
MinProbOption = Annotated[
    float, typer.Option("--min-prob", help="--labels exact: classes at least so likely only.")
]
ParamsOption = Annotated[
    list[str] | None,
    typer.Option("--params", help="Names or patterns of parameters, such as '*attention*'."),
]
EngineOption = Annotated[
    str, typer.Option(help="How a torch module is differentiated: auto, hooks, functional.")
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Examples at a time: memory and speed only.")
]
DtypeOption = Annotated[
    Precision, typer.Option("--dtype", help="In which a checkpoint is differentiated.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; where the model is otherwise.")
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", help="joblib's workers for a dense network of NumPy arrays; -1 for all."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides every random draw.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where model and data come from, as it was given on the command line."""

    model: str
    data: str
    text: tuple[str, ...]
    label: str | None
    limit: int | None
    task: Task
    label_words: tuple[str, ...]
    fresh_head: int | None
    max_length: int | None
    dtype: str
    device: str | None
    batch_size: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Model and data, with the options of ``per_example_fishers`` that follow from them."""

    model: Any
    data: Any
    options: dict[str, Any]


def label_rule(rule: Rule, draws: int, top: int | None, min_prob: float) -> Any:
    """The label rule of the options.

    Raises
    ------
    typer.BadParameter
        Options of one rule together with another.
    """
    from ..core.fisher import DataLabels, ExactLabels, ProbeLabels, SampledLabels

    if rule is not Rule.EXACT and (top is not None or min_prob):
        raise typer.BadParameter(
            f"--top and --min-prob belong to --labels exact; --labels {rule} was given."
        )
    if rule in (Rule.EXACT, Rule.DATA) and draws != 1:
        raise typer.BadParameter(
            f"--draws {draws} was given; it belongs to --labels sampled and probe, and --labels "
            f"{rule} draws nothing."
        )
    try:
        if rule is Rule.EXACT:
            return ExactLabels(top=top, min_prob=min_prob)
    except InvalidInputError as error:
        raise typer.BadParameter(f"--min-prob: {error}") from None
    if rule is Rule.DATA:
        return DataLabels()
    return SampledLabels(draws) if rule is Rule.SAMPLED else ProbeLabels(draws)


def prepare(source: Source, rule: Rule) -> Job:
    """Load model and data; whatever can be known to be wrong is said before anything is computed.

    Raises
    ------
    FishertopeError
        Naming what was given, what is accepted, and what to do.
    """
    folder = None if is_loader(source.model) else Path(source.model)
    file = None if is_loader(source.data) else Path(source.data)
    if rule is Rule.DATA and file is not None and source.label is None:
        raise InvalidInputError(
            "--labels data was given without --label COLUMN; name the column of the labels. (The "
            "Fisher itself needs none: --labels exact, sampled or probe.)"
        )
    if folder is None:
        return _loaded(source, file)
    config = read_config(folder)
    task = task_of(config, source.task, source.fresh_head, folder)
    if rule is Rule.EXACT and task in (Task.CAUSAL, Task.SEQ2SEQ) and not source.label_words:
        _refuse_vocabulary(folder, task, config)
    records = None
    if file is not None:
        records = open_records(file, text=source.text, label=source.label, limit=source.limit)
    else:
        _no_columns(source)
    own = load_checkpoint(
        folder, task=task, label_words=source.label_words, fresh_head=source.fresh_head,
        max_length=source.max_length, dtype=source.dtype, device=source.device, seed=source.seed,
    )  # fmt: skip
    if records is None:
        data = loaded_data(source.data)
    else:
        from ._batches import text_batches

        data = text_batches(records, own, source.batch_size, folder)
    options: dict[str, Any] = {"output": own.output}
    if own.outputs_of is not None:
        options["outputs_of"] = own.outputs_of
    return Job(model=own.model, data=data, options=options)


def _loaded(source: Source, file: Path | None) -> Job:
    if file is not None:
        raise InvalidInputError(
            f"The model comes from {source.model}, which has no tokenizer, and the data from the "
            f"file {file}. Give the data by a Python loader (module:function) too, in the form "
            "that the model takes."
        )
    given = {
        "--task": source.task is not Task.AUTO, "--label-word": bool(source.label_words),
        "--fresh-head": source.fresh_head is not None,
        "--max-length": source.max_length is not None,
        "--dtype": source.dtype != Precision.FLOAT32,
    }  # fmt: skip
    if any(given.values()):
        raise InvalidInputError(
            f"{', '.join(k for k, v in given.items() if v)} was given with a model that "
            f"{source.model} returns; these are for checkpoint folders. Leave them out."
        )
    _no_columns(source)
    model = placed(call_loader(source.model), source.device)
    return Job(model=model, data=loaded_data(source.data), options={})


def _no_columns(source: Source) -> None:
    given = {
        "--text": bool(source.text), "--label": source.label is not None,
        "--limit": source.limit is not None,
    }  # fmt: skip
    if any(given.values()):
        raise InvalidInputError(
            f"{', '.join(k for k, v in given.items() if v)} was given with data that "
            f"{source.data} returns; these are for data files. Leave them out."
        )


def _refuse_vocabulary(folder: Path, task: Task, config: dict[str, Any]) -> None:
    """Exact labels over a vocabulary cost a backward pass a word and position."""
    words = config.get("vocab_size")
    if not isinstance(words, int) or words < 2:
        return
    raise InvalidInputError(
        f"--labels exact was given for {folder}, a {task} with a vocabulary of {words:,} tokens: "
        f"{words - 1:,} backward passes for every position of every text ({32 * (words - 1):,} for "
        "a text of 32 tokens). Use --labels probe --draws 8 or --labels sampled --draws 8 "
        "(unbiased, one backward pass a draw), or ask about a few words only: --label-word yes "
        "--label-word no."
    )
