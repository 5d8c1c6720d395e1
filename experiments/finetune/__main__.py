"""``python -m fishertope.experiments.finetune``: fine-tune classifiers, list tasks and bases."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ...core.errors import FishertopeError
from .._progress import Progress
from .bases import BASES
from .fine_tuned import FineTuned, finetune
from .tasks import TASKS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Text classifiers fine-tuned from one base: made once, kept in the user's cache as "
    "Hugging Face checkpoint folders.",
)


@app.command()
def run(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help=f"Of {', '.join(TASKS)}; or all.")
    ],
    base: Annotated[
        str, typer.Option(help=f"One of {', '.join(BASES)}, or a checkpoint folder.")
    ] = "minilm",
    seed: Annotated[int, typer.Option(min=0, help="Of the head, the order and dropout.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens of a text that are kept.")] = 48,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's, at its peak.")] = None,
    weight_decay: Annotated[float, typer.Option(help="AdamW's, on matrices.")] = 0.01,
    pull: Annotated[
        float, typer.Option(help="λ of the penalty (λ/2)‖θ − θ₀‖² towards the start.")
    ] = 0.0,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Pattern of parameters that stay, '*embeddings*'.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Fine-tune on each task (or find it in the cache); accuracy and folder of each."""
    errors = Console(file=sys.stderr)
    names = list(TASKS) if tasks == ["all"] else tasks
    made = []
    try:
        with Progress(errors) as progress:
            for task in names:
                made.append(
                    finetune(
                        task, base=base, seed=seed, steps=steps, batch_size=batch_size,
                        max_length=max_length, learning_rate=learning_rate,
                        weight_decay=weight_decay, pull=pull, freeze=tuple(freeze or ()),
                        threads=threads, progress=progress,
                    )
                )  # fmt: skip
    except FishertopeError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    Console(file=sys.stdout).print(_table(made))
    for one in made:
        typer.echo(f"{one.task}\t{one.folder}")


@app.command("list")
def list_() -> None:
    """Tasks and bases."""
    table = Table("task", "content", "archive")
    for task in TASKS.values():
        table.add_row(task.name, task.content, task.source)
    bases = Table("base", "content", "steps", "learning rate")
    for base in BASES.values():
        bases.add_row(base.name, base.content, str(base.steps), f"{base.learning_rate:g}")
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(bases)


def _table(made: list[FineTuned]) -> Table:
    table = Table("task", "base", "train", "validation", "test", "seconds")
    for one in made:
        found = one.metrics
        parts = [
            f"{found[part]['accuracy']:.3f} ± {found[part]['accuracy_se']:.3f}"
            for part in ("validation", "test")
        ]
        table.add_row(
            one.task, one.base, str(found["sizes"]["train"]), *parts, f"{found['seconds']:.0f}"
        )
    return table


if __name__ == "__main__":
    app(prog_name="python -m fishertope.experiments.finetune")
