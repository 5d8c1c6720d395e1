"""``fishertope text``: pre-train, fine-tune, evaluate and use text-to-text models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import JsonOption, QuietOption, print_json, print_page, stderr, stdout
from ._long_runs import bar, ending_with, only_first
from ._processes import DeviceOption, ParallelOption, together

if TYPE_CHECKING:
    from ..experiments.text2text.runs import TextRun
    from ..experiments.text2text.tasks import Task
    from ..experiments.text2text.training import StepReport

group = typer.Typer(
    help="Text-to-text models: every task is a text in and a text out.", no_args_is_help=True
)
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")]
ModelArgument = Annotated[
    Path, typer.Argument(help="A folder `fishertope text` wrote (its model/), or a T5 checkpoint.")
]
TaskOption = Annotated[
    list[str],
    typer.Option(
        "--task", "-t",
        help="A task's name (several: a mixture), or a JSON-lines file of inputs and targets.",
    ),
]  # fmt: skip
StepsOption = Annotated[int, typer.Option(min=1, help="Updates.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a batch.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides every random draw.")]
DecodeOption = Annotated[
    str, typer.Option("--decode", help="greedy, beam, sample, or rank (among the label words).")
]
_LATER = "The newest checkpoint is kept; the same command goes on from there."


@group.command("pretrain")
def pretrain(
    out: OutOption,
    corpus: Annotated[
        str, typer.Option(help="wordnet, manual, or a text file with a document a line.")
    ] = "wordnet",
    scale: Annotated[str, typer.Option(help="nano, micro, tiny, mini or small.")] = "nano",
    objective: Annotated[
        str,
        typer.Option(
            help="span_corruption, replace_spans, bert_style, mass_style, drop_tokens, "
            "deshuffling, prefix_lm or lm."
        ),
    ] = "span_corruption",
    arch: Annotated[str, typer.Option(help="encdec, encdec_shared, lm or prefix_lm.")] = "encdec",
    vocabulary: Annotated[str, typer.Option(help="pieces or bytes.")] = "pieces",
    density: Annotated[float, typer.Option(help="Share of tokens that is noise.")] = 0.15,
    mean_span: Annotated[float, typer.Option(help="Mean length of a noise span.")] = 3.0,
    steps: StepsOption = 400,
    batch_size: BatchOption = 32,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    parallel: ParallelOption = "ddp",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pre-train a model from scratch.

    In several processes: torchrun --standalone --nproc-per-node 2 -m fishertope text pretrain ...
    """
    from ..experiments.text2text import runs

    with ending_with(_LATER), together(device) as place, _steps(json, quiet) as tell:
        documents, held_out = _documents(corpus)
        done = runs.pretrain(
            out, documents, held_out=held_out, scale=scale, objective=objective, density=density,
            mean_span=mean_span, vocabulary=vocabulary, steps=steps, batch_size=batch_size,
            seed=seed, config={"arch": arch}, plan={"save_every": save_every}, callback=tell,
            device=place, parallel=parallel,  # type: ignore[arg-type]
        )  # fmt: skip
    _show(done, json, quiet)


@group.command("finetune")
def finetune(
    model: ModelArgument,
    out: OutOption,
    task: TaskOption,
    method: Annotated[str, typer.Option(help="all, adapters or unfreeze.")] = "all",
    adapter_width: Annotated[int, typer.Option(min=1, help="Width of the adapters.")] = 16,
    rate: Annotated[float, typer.Option(help="Relative rate of Adafactor.")] = 1e-3,
    steps: StepsOption = 300,
    batch_size: BatchOption = 32,
    cap: Annotated[
        float | None, typer.Option(help="Mixtures: count no task's examples beyond this.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Mixtures: 1 is proportional.")] = 1.0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    decode: DecodeOption = "greedy",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    parallel: ParallelOption = "ddp",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a model on a task or a mixture, and score it on the validation examples.

    In several processes: torchrun --standalone --nproc-per-node 2 -m fishertope text finetune ...
    """
    from ..experiments.text2text import runs
    from ..experiments.text2text.evaluation import Decoder
    from ..experiments.text2text.folders import load_model

    with ending_with(_LATER), together(device) as place, _steps(json, quiet) as tell:
        start = load_model(_model_folder(model))
        done = runs.finetune(
            out, start, [_task(name) for name in task], steps=steps, batch_size=batch_size,
            rate=rate, method=method, adapter_width=adapter_width, cap=cap,  # type: ignore[arg-type]
            temperature=temperature, seed=seed, plan={"save_every": save_every},
            decoder=Decoder(how=decode), callback=tell,  # type: ignore[arg-type]
            device=place, parallel=parallel,  # type: ignore[arg-type]
        )  # fmt: skip
    _show(done, json, quiet)


@group.command("evaluate")
def evaluate(
    model: ModelArgument,
    task: TaskOption,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    decode: DecodeOption = "greedy",
    most: Annotated[int | None, typer.Option(min=1, help="Score this many examples only.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Print this many predictions.")] = 3,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Predict the examples of tasks and score the predictions.

    The processes of torchrun share the examples.
    """
    from ..core.report import Column, Table
    from ..experiments.text2text.evaluation import Decoder, evaluate as score
    from ..experiments.text2text.folders import load_model

    with together(device) as place:
        loaded = load_model(_model_folder(model))
        loaded.model.to(place)
        found = [
            score(loaded.model, _task(name), loaded.vocabulary, lengths=loaded.lengths,
                  split=split, decoder=Decoder(how=decode), most=most,  # type: ignore[arg-type]
                  shared=True)
            for name in task
        ]  # fmt: skip
    if not only_first():
        return
    if json:
        print_json([{"task": e.task, "split": e.split, "n": len(e.examples), **e.scores}
                    for e in found])  # fmt: skip
        return
    console = stdout()
    for e in found:
        console.print(Table(
            title=f"{e.task}, {len(e.examples)} {e.split} examples",
            columns=[Column(name="score", left=True), Column(name="value", format=".2f")],
            rows=[[k, v] for k, v in e.scores.items()],
        ))  # fmt: skip
        for example, text in list(zip(e.examples, e.predictions, strict=True))[:show]:
            console.print(f"{example['inputs']}\n  → {text}   (target: {example['targets']})",
                          markup=False, highlight=False)  # fmt: skip


@group.command("generate")
def generate(
    model: ModelArgument,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT...]", help="Default: lines of stdin.")
    ] = None,
    decode: DecodeOption = "greedy",
    beams: Annotated[int, typer.Option(min=1)] = 4,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """A text for each text given."""
    import sys

    from ..experiments.text2text.evaluation import Decoder, generate as make
    from ..experiments.text2text.folders import load_model

    if not only_first():
        return
    loaded = load_model(_model_folder(model))
    given = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    decoder = Decoder(
        how=decode, beams=beams, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    made = make(loaded.model, given, loaded.vocabulary, lengths=loaded.lengths, decoder=decoder)
    if json:
        print_json([{"inputs": a, "output": b} for a, b in zip(given, made, strict=True)])
        return
    for text in made:
        typer.echo(text)


@group.command("tasks")
def tasks(json: JsonOption = False) -> None:
    """The tasks there are."""
    from ..core.report import Column, Table
    from ..experiments.text2text.suite import suite

    registry = suite()
    rows = [[name, ", ".join(registry[name].labels)] for name in registry]
    if json:
        print_json([{"name": name, "labels": labels} for name, labels in rows])
        return
    columns = [Column(name="task", left=True), Column(name="label words", left=True)]
    stdout().print(Table(columns=columns, rows=rows))


def _model_folder(path: Path) -> Path:
    """The folder itself, or the ``model`` of a run's folder."""
    inner = path / "model"
    return inner if not (path / "text2text.json").exists() and inner.is_dir() else path


def _documents(corpus: str) -> tuple[list[str], list[str]]:
    """Documents to learn from and to judge by."""
    from ..experiments.text2text.suite import corpus as load, file_corpus

    path = Path(corpus)
    if path.suffix or path.exists():
        return file_corpus(path)
    return load(corpus), load(corpus, held_out=True)


def _task(name: str) -> Task:
    from ..experiments.text2text.suite import file_task, suite

    path = Path(name)
    return file_task(path) if path.suffix == ".jsonl" else suite()[name]


def _steps(json: bool, quiet: bool) -> Any:
    """A bar of the training's steps."""
    from contextlib import contextmanager

    @contextmanager
    def shown() -> Any:
        silent = json or quiet or not only_first()
        with bar(None if silent else stderr(), "training", "steps") as advance:
            yield _teller(advance)

    return shown()


def _teller(advance: Callable[..., Any]) -> Callable[[StepReport], None]:
    from ..core.status import StepInfo

    nothing = float("nan")

    def tell(report: StepReport) -> None:
        advance(
            StepInfo(phase="training", step=report.step, max_steps=report.steps, loss=report.loss,
                     relative_loss=nothing, residual=nothing, products=nothing)
        )  # fmt: skip

    return tell


def _show(done: TextRun, json: bool, quiet: bool) -> None:
    if not only_first():
        pass
    elif json:
        print_json({k: v for k, v in done.results.items() if k not in ("log", "evaluations")})
    elif not quiet:
        console = stdout()
        scores = ", ".join(f"{k} {v:.2f}" for k, v in done.results["scores"].items())
        console.print(
            f"{done.results['status']} after {done.training.step} steps, loss "
            f"{done.training.last_loss:.3f}" + (f"; {scores}" if scores else "") + f"\n"
            f"Model: {done.folder / 'model'}",
            markup=False, highlight=False,
        )  # fmt: skip
        print_page(done.folder / "report.html")
    if done.results["status"] == "diverged":
        raise typer.Exit(1)
