"""A merged encoder as Hugging Face checkpoints, one a task: each task's head on the common body.

``python -m fishertope.experiments.merging.sentence_checkpoints --out merged`` merges MiniLM
fine-tuned on four tasks (made on the first call, about four minutes of one core).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...core.backend import thread_limit
from ...core.merging import merge
from ...core.storage import OutputFolder
from .encoders import TASKS, Task, tuned

PRECISIONS = {"isotropic": None, "fisher": "diagonal", "regmean": "gram"}


def write_checkpoints(
    out: Path,
    *,
    method: str = "regmean",
    tasks: tuple[str, ...] = TASKS,
    base: str = "minilm",
    steps: int = 60,
    examples: int = 64,
    seed: int = 20,
) -> dict[str, Path]:
    """Merge the fine-tunings' bodies, and write each task's classifier.

    Parameters
    ----------
    out : Path
        Gets a folder a task (``sentiment-yelp``), which
        ``AutoModelForSequenceClassification.from_pretrained`` opens; replaces its own earlier one.
    method : {"regmean", "fisher", "isotropic"}
    tasks, base, steps, seed
        Of the fine-tunings; see :func:`~.encoders.tuned`.
    examples : int
        Training texts of each task for its precision.

    Returns
    -------
    dict of str to Path
    """
    settings: dict[str, Any] = {
        "method": method, "tasks": list(tasks), "base": base, "steps": steps,
        "examples": examples, "seed": seed,
    }  # fmt: skip
    with thread_limit(1):
        found = [tuned(t, seed, base=base, steps=steps, name=base) for t in tasks]
        own = [Task(f, seed, texts=200) for f in found]
        structure = PRECISIONS[method]
        options: dict[str, Any] = {"normalize": True} if method == "fisher" else {}
        trees = None
        if structure is not None:
            trees = [t.precision(examples, structure=structure) for t in own]
        body = merge([t.body for t in own], trees, method=method, **options).params
        names = {t.name: t.name.replace("/", "-") for t in own}
        with OutputFolder(
            out, command="sentence checkpoints", settings=settings, overwrite=True, resume=False
        ) as folder:
            scores = {}
            for task in own:
                place = folder.working / names[task.name]
                place.mkdir()
                task.save(body, place)
                scores[task.name] = task.score(body).accuracy
            folder.finish({"accuracy": scores}, seed=seed, backend="torch")
    return {name: out / place for name, place in names.items()}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")] = "regmean",
) -> None:
    """Merge MiniLM fine-tuned on four tasks, and write a checkpoint for each of them."""
    if method not in PRECISIONS:
        raise typer.BadParameter(f"{method} was given; one of {', '.join(PRECISIONS)} is taken.")
    for name, folder in write_checkpoints(out, method=method).items():
        typer.echo(f"{name}\t{folder}")


if __name__ == "__main__":
    typer.run(main)
