"""Pre-training and fine-tuning from a name or a folder, with everything they leave behind.

A run's folder holds ``model/`` (the trained model with its vocabulary), ``results.json``,
``report.html`` and, in ``training/``, the log and the checkpoint from which it is resumed.

Within a process group (:func:`~fishertope.experiments.text2text.processes.process_group`) all
processes make the same call: they share the training and the examples that are scored, process 0
writes, and all return the same model. What process 0 refuses or cannot write, all of them raise.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fishertope.core.errors import InvalidInputError
from fishertope.core.storage import peak_memory_mib, versions, write_json, write_text
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig

from .batches import Lengths
from .evaluation import Decoder, evaluate
from .finetuning import add_adapters, unfreeze_gradually
from .folders import TextModel, save_model
from .mixtures import mixing_rates
from .parallel import Parallel
from .processes import first, ranks
from .steps import mean_loss
from .streams import BatchStream, CorpusStream, MixtureStream, Stream, TaskStream, tokenized
from .tasks import Task
from .training import Evaluate, StepReport, Trainable, TrainingPlan, TrainingRun, train
from .vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary

Method = Literal["all", "adapters", "unfreeze"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Sizes of a model, its vocabulary and its rows."""

    d_model: int
    d_ff: int
    heads: int
    d_kv: int
    layers: int
    vocab_size: int
    lengths: Lengths

    def config(self, **changes: Any) -> Seq2SeqConfig:
        """The configuration of a T5 of this size."""
        own = {k: v for k, v in asdict(self).items() if k != "lengths"}
        return Seq2SeqConfig(**{**own, **changes})


_NANO = Lengths(inputs=64, targets=14)
_WIDE = Lengths(inputs=128, targets=29)
SCALES: dict[str, Scale] = {
    "nano": Scale(d_model=64, d_ff=256, heads=4, d_kv=16, layers=2, vocab_size=1_024,
                  lengths=_NANO),
    "micro": Scale(d_model=128, d_ff=512, heads=4, d_kv=32, layers=2, vocab_size=2_048,
                   lengths=_WIDE),
    "tiny": Scale(d_model=128, d_ff=512, heads=4, d_kv=32, layers=4, vocab_size=4_096,
                  lengths=_WIDE),
    "mini": Scale(d_model=192, d_ff=768, heads=6, d_kv=32, layers=4, vocab_size=4_096,
                  lengths=_WIDE),
    "small": Scale(d_model=256, d_ff=1_024, heads=8, d_kv=32, layers=4, vocab_size=4_096,
                   lengths=_WIDE),
}  # fmt: skip
"""Sizes that a CPU trains in minutes to an hour: 0.30, 1.18, 2.36, 4.92 and 8.39 M parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRun:
    """What a run returns; its folder holds the same."""

    folder: Path
    text_model: TextModel
    training: TrainingRun
    results: dict[str, Any]


def make_vocabulary(kind: str, scale: Scale, documents: Sequence[str]) -> Vocabulary:
    """``"bytes"``, or ``"pieces"``: a SentencePiece model of the scale's size on the documents.

    Of several processes the first trains it and sends the model.
    """
    if kind == "bytes":
        return ByteVocabulary()
    if kind == "pieces":

        def model() -> str:
            own = SentencePieceVocabulary.train(documents, size=scale.vocab_size)
            return b64encode(own.model).decode()

        return SentencePieceVocabulary(model=b64decode(first(model)))
    raise InvalidInputError(f"vocabulary={kind!r}; accepted are 'pieces' and 'bytes'")


def pretrain(
    out: str | Path,
    documents: Sequence[str],
    *,
    held_out: Sequence[str] = (),
    scale: Scale | str = "nano",
    objective: str = "span_corruption",
    density: float = 0.15,
    mean_span: float = 3.0,
    vocabulary: Vocabulary | str = "pieces",
    steps: int = 400,
    batch_size: int = 32,
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    tasks: Sequence[Task] = (),
    cap: float | None = None,
    callback: Callable[[StepReport], bool | None] | None = None,
    device: torch.device | str = "cpu",
    parallel: Parallel = "ddp",
) -> TextRun:
    """Pre-train a model from scratch on documents, and on tasks mixed in where given.

    Parameters
    ----------
    out
        The run's folder; the same call resumes what an interrupted one left.
    held_out
        Documents on which the loss of the objective is measured at the end (and as ``plan``
        says in between).
    scale
        One of ``SCALES``, or sizes of your own.
    plan, config
        Changes of :class:`TrainingPlan` and of the model's configuration.
    tasks, cap
        Multi-task pre-training, examples-proportional with the limit ``cap``.
    device, parallel
        As for :func:`~fishertope.experiments.text2text.training.train`.
    """
    size = SCALES[_known(scale, SCALES)] if isinstance(scale, str) else scale
    words = (
        make_vocabulary(vocabulary, size, documents) if isinstance(vocabulary, str) else vocabulary
    )
    model_config = size.config(
        vocab_size=max(size.vocab_size, words.size), **{"dropout": 0.0, **(config or {})}
    )
    model = Seq2Seq(model_config, torch.Generator().manual_seed(seed)).to(device)
    noise = {"objective": objective, "density": density, "mean_span": mean_span}

    def corpus(texts: Sequence[str], seed: int) -> CorpusStream:
        return CorpusStream(
            tokenized(texts, words), words, size.lengths, seed=seed, **noise  # type: ignore[arg-type]
        )  # fmt: skip

    stream: Stream = corpus(documents, seed)
    if tasks:
        stream = _mixed(stream, tasks, words, size.lengths, cap=cap, seed=seed)
    judge = None
    if held_out:
        judge = _held_out_loss(corpus(held_out, 0), size.lengths, model_config.arch, device)
    chosen = TrainingPlan(
        **{"steps": steps, "batch_size": batch_size, "lengths": size.lengths, "seed": seed,
           "loss_on": "all" if objective == "lm" else "targets", **(plan or {})}
    )  # fmt: skip
    facts = {"kind": "pretraining", "scale": asdict(size), "tasks": [t.name for t in tasks],
             "vocabulary": words.facts(), **noise}  # fmt: skip
    text_model = TextModel(model=model, vocabulary=words, lengths=size.lengths, facts=facts)
    return _run(Path(out), text_model, stream, chosen, judge, callback, None, device, parallel)


def finetune(
    out: str | Path,
    start: TextModel,
    tasks: Task | Sequence[Task],
    *,
    steps: int = 300,
    batch_size: int = 32,
    rate: float = 1e-3,
    method: Method = "all",
    adapter_width: int = 16,
    lengths: Lengths | None = None,
    cap: float | None = None,
    temperature: float = 1.0,
    leave_out: str | None = None,
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    decoder: Decoder | None = None,
    most: int | None = 500,
    callback: Callable[[StepReport], bool | None] | None = None,
    device: torch.device | str = "cpu",
    parallel: Parallel = "ddp",
) -> TextRun:
    """Fine-tune a model on a task, or on a mixture of tasks; ``start`` itself is not changed.

    Parameters
    ----------
    method
        "all" parameters; "adapters" of ``adapter_width`` and the norms; "unfreeze" one block
        after the other from the top.
    lengths
        Of rows; ``None`` keeps those of the model.
    cap, temperature, leave_out
        Of the mixing rates of several tasks.
    most
        Validation examples of each task that are scored at the end.
    device, parallel
        As for :func:`~fishertope.experiments.text2text.training.train`.
    """
    chosen_tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    kept = [t for t in chosen_tasks if t.name != leave_out]
    if not kept or (leave_out is not None and len(kept) == len(chosen_tasks)):
        raise InvalidInputError(
            f"tasks {[t.name for t in chosen_tasks]} without {leave_out!r}; name one of several"
        )
    model = Seq2Seq(start.model.config)
    model.load_state_dict(start.model.state_dict())
    model.to(device)
    rows = start.lengths if lengths is None else lengths
    trainable: Trainable | None = None
    if method == "adapters":
        names = add_adapters(model, adapter_width, seed=seed)
        trainable = lambda step: names  # noqa: E731
    elif method == "unfreeze":
        trainable = unfreeze_gradually(model, steps)
    elif method != "all":
        raise InvalidInputError(f"method={method!r}; accepted are 'all', 'adapters' and 'unfreeze'")
    streams = {t.name: TaskStream(t.examples("train"), start.vocabulary, rows, seed=seed)
               for t in kept}  # fmt: skip
    sizes = {name: float(len(s)) for name, s in streams.items()}
    rates = mixing_rates(sizes, cap=cap, temperature=temperature)
    stream: Stream = MixtureStream(streams, rates, seed=seed)
    training_plan = TrainingPlan(
        **{"steps": steps, "batch_size": batch_size, "lengths": rows, "rate": rate, "seed": seed,
           **(plan or {})}
    )  # fmt: skip
    facts = {"kind": "finetuning", "tasks": [t.name for t in kept], "method": method,
             "rates": rates, "before": dict(start.facts)}  # fmt: skip
    text_model = TextModel(model=model, vocabulary=start.vocabulary, lengths=rows, facts=facts)

    def judge(m: Any) -> Mapping[str, float]:
        return {
            f"{task.name} {name}": value
            for task in chosen_tasks if task.metrics
            for name, value in evaluate(m, task, start.vocabulary, lengths=rows, decoder=decoder,
                                        most=most, shared=True).scores.items()
        }  # fmt: skip

    return _run(
        Path(out), text_model, stream, training_plan, judge, callback, trainable, device, parallel
    )


def _held_out_loss(
    stream: Stream, lengths: Lengths, arch: str, device: torch.device | str
) -> Evaluate:
    """The loss a token of the first eight batches of a stream."""
    judged = BatchStream(stream, lengths, batch_size=32, arch=arch)
    batches = [next(judged) for _ in range(8)]
    return lambda model: {"held-out loss": mean_loss(model, batches, device)}


def _known(name: str, choices: Mapping[str, Any]) -> str:
    if name not in choices:
        raise InvalidInputError(f"scale={name!r}; accepted are {', '.join(choices)}")
    return name


def _mixed(
    unsupervised: Stream, tasks: Sequence[Task], words: Vocabulary, lengths: Lengths, *,
    cap: float | None, seed: int,
) -> MixtureStream:  # fmt: skip
    """The corpus and the tasks, by their numbers of examples up to the cap."""
    streams: dict[str, Stream] = {
        t.name: TaskStream(t.examples("train"), words, lengths, seed=seed) for t in tasks
    }
    sizes = {name: float(len(s)) for name, s in streams.items()}  # type: ignore[arg-type]
    streams["unsupervised"] = unsupervised
    sizes["unsupervised"] = float(len(unsupervised))  # type: ignore[arg-type]
    return MixtureStream(streams, mixing_rates(sizes, cap=cap), seed=seed)


def _run(
    out: Path, text_model: TextModel, stream: Stream, plan: TrainingPlan, judge: Any,
    callback: Callable[[StepReport], bool | None] | None, trainable: Trainable | None,
    device: torch.device | str, parallel: Parallel,
) -> TextRun:  # fmt: skip
    model = text_model.model
    facts = dict(text_model.facts)
    done = train(
        model, stream, plan, folder=out / "training", evaluate=judge, callback=callback,
        trainable=trainable, identity=facts, device=device, parallel=parallel,
    )  # fmt: skip
    model.eval()
    results: dict[str, Any] = {
        "status": done.status, "steps": done.step, "loss": done.last_loss,
        "scores": done.evaluations[-1]["scores"] if done.evaluations else {},
        "parameters": sum(p.numel() for p in model.parameters()), "plan": asdict(plan),
        "config": asdict(model.config), "facts": facts, "log": done.log,
        "evaluations": done.evaluations, "threads": torch.get_num_threads(),
        "processes": ranks()[1], "parallel": parallel, "device": str(device),
        "peak_memory_mib": peak_memory_mib(), "versions": versions(),
    }  # fmt: skip
    results = {k: None if v != v else v for k, v in results.items()}
    trained = replace(text_model, facts={**facts, "steps": done.step, "scores": results["scores"]})

    def write() -> None:
        from .page import run_page

        if done.status != "diverged":
            save_model(out / "model", model, trained.vocabulary, trained.lengths, trained.facts)
        write_json(out / "results.json", results)
        write_text(out / "report.html", run_page(results))

    first(write)
    return TextRun(folder=out, text_model=trained, training=done, results=results)
