"""From the arguments of ``fishertope npeff`` to Fishers, models, texts and reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.backend import to_numpy
from ..core.errors import InvalidInputError
from ..core.factorization import (
    Factorization,
    PerturbationReport,
    perturbation_report,
)
from ..core.model import engine_for
from ..core.report import DecompositionReport, Examples, decomposition_report
from . import _job
from ._npeff_files import open_fishers
from ._records import open_records, read_columns

if TYPE_CHECKING:
    from rich.console import Console

    from ..experiments.npeff.text_report import Effort, TextModel

MOST_METADATA = 24
"""Columns that are compared unless they are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A decomposition with the model and the data that it came from, as far as they are given.

    Attributes
    ----------
    found : Factorization
    source : Source
    job : Job or None
        Model and data; None without a model.
    """

    found: Factorization
    source: _job.Source
    job: _job.Job | None

    @classmethod
    def prepare(cls, source: _job.Source, found: Factorization) -> Explained:
        """Load what is given.

        Raises
        ------
        InvalidInputError
            A model without data.
        """
        if not source.model:
            return cls(found=found, source=source, job=None)
        if not source.data:
            raise InvalidInputError(
                "--model was given without data; give the data file that the Fishers came from."
            )
        # Label words are the classes, so that exact labels are never over a vocabulary here.
        return cls(found=found, source=source, job=_job.prepare(source, _job.Rule.PROBE))

    @property
    def engine(self) -> Any:
        """Engine of the model, with the meaning of its outputs."""
        job = self._job
        options = dict(job.options)
        return engine_for(job.model, output=options.pop("output", None), **options)

    @property
    def _job(self) -> _job.Job:
        if self.job is None:
            raise InvalidInputError("A model is needed for this; give one.")
        return self.job

    def lifted(self, store: Path | None, console: Console | None) -> Factorization:
        """The decomposition over the model's parameters; as it is if it is so already."""
        if self.found.sites:
            return self.found
        from ._long_runs import bar

        job, facts = self._job, dict(self.found.facts.get("fishers", {}))
        options = dict(job.options)
        if "parameters" in facts:
            options["params"] = list(facts["parameters"])
        fitted = None if store is None else open_fishers(store)
        with bar(console, "Lift") as callback:
            return self.found.lift(
                job.model, job.data, fitted=fitted, batch_size=self.source.batch_size,
                callback=callback, **options,
            )  # fmt: skip

    def moved(
        self,
        components: Sequence[int] | None,
        store: Path | None,
        options: dict[str, Any],
        console: Console | None,
    ) -> PerturbationReport:
        """Move the model along components, one after another."""
        from ..experiments._progress import Progress
        from ..experiments.npeff.text_report import Inputs, joined_reports

        found = self.lifted(store, console)
        texts = self._texts()
        inputs = self._arrays()[0] if texts is None else Inputs(texts)
        engine = self.engine
        chosen = components if components else range(found.n_components)
        parts = []
        with Progress(console) as shown, shown.step("Move the model", len(chosen)) as advance:
            for done, k in enumerate(chosen, start=1):
                parts.append(perturbation_report(engine, found, inputs, components=k, **options))
                advance(done, len(chosen))
        return joined_reports(parts)

    def report(
        self,
        metadata: Sequence[str] | None,
        image_shape: str | None,
        store: Path | None,
        effort: Effort,
        options: dict[str, Any],
        console: Console | None,
    ) -> DecompositionReport:
        """The report of what is given."""
        from ..experiments._progress import Progress

        if "stability" in self.found.facts:
            options = {**options, "stability": self.found.facts["stability"]}
        if self.job is None:
            return self._of_data_alone(metadata, options)
        found = self.lifted(store, console)
        texts = self._texts()
        with Progress(console) as shown:
            if texts is None:
                return self._of_arrays(found, image_shape, effort, options, shown)
            from ..experiments.npeff.text_report import text_report

            labels, classes = self._labels()
            return text_report(
                texts, found, labels=labels, classes=classes,
                metadata=self._metadata(metadata, len(texts.texts)), effort=effort,
                progress=shown, seed=self.source.seed, **options,
            )  # fmt: skip

    def _of_data_alone(
        self, metadata: Sequence[str] | None, options: dict[str, Any]
    ) -> DecompositionReport:
        if not self.source.data:
            return decomposition_report(self.found, **options)
        records = self._records()
        rows = list(records)
        labels = None if records.label is None else [str(label) for _, label in rows]
        examples = Examples(
            texts=[" ∥ ".join(texts) for texts, _ in rows], labels=labels,
            metadata=self._metadata(metadata, len(rows)),
        )  # fmt: skip
        return decomposition_report(self.found, examples, seed=self.source.seed, **options)

    def _of_arrays(
        self,
        found: Factorization,
        image_shape: str | None,
        effort: Effort,
        options: dict[str, Any],
        shown: Any,
    ) -> DecompositionReport:
        engine = self.engine
        x, y = self._arrays()
        moved = None
        if found.sites and effort.moved_top:
            with shown.step("Move the model"):
                moved = perturbation_report(
                    engine, found, x, n_top=effort.moved_top, n_baseline=effort.moved_baseline,
                    n_random=effort.n_random, target_kl=effort.target_kl, seed=self.source.seed,
                )  # fmt: skip
        z = np.asarray(to_numpy(engine.predict(x)), dtype=np.float64)
        probabilities = None
        if hasattr(engine.output, "log_probs"):
            probabilities = np.exp(np.asarray(engine.output.log_probs(z), dtype=np.float64))
        examples = Examples(
            images=_images(x, image_shape), labels=None if y is None else to_numpy(y),
            probabilities=probabilities,
        )  # fmt: skip
        return decomposition_report(
            found, examples, perturbation=moved, n_top=effort.n_top, seed=self.source.seed,
            **options,
        )  # fmt: skip

    def _records(self) -> Any:
        source = self.source
        return open_records(
            Path(source.data), text=source.text, label=source.label, limit=source.limit
        )

    def _texts(self) -> TextModel | None:
        """Texts of a checkpoint with its tokenizer; None for arrays of a Python loader."""
        from ..experiments.npeff.text_report import TextModel
        from ._batches import TextBatches

        data = self._job.data
        if not isinstance(data, TextBatches):
            return None
        rows = list(data.records)
        n = self.found.n_examples
        if len(rows) != n:
            raise InvalidInputError(
                f"{self.source.data} holds {len(rows)} examples; the decomposition has {n}. Give "
                "the data that the Fishers came from, with the same --limit."
            )

        def encode(examples: Sequence[int]) -> dict[str, Any]:
            batch = data._batch([rows[i][0] for i in examples], [rows[i][1] for i in examples])
            return {name: value for name, value in batch.items() if name != "labels"}

        return TextModel(
            engine=self.engine, tokenizer=data.checkpoint.tokenizer,
            texts=[texts for texts, _ in rows], encode=encode,
            max_length=data.checkpoint.max_length,
        )  # fmt: skip

    def _labels(self) -> tuple[Any, Sequence[str] | None]:
        data = self._job.data
        classes = data.checkpoint.classes or None
        if data.records.label is None:
            return None, classes
        return np.array([label for _, label in data.records]), classes

    def _arrays(self) -> tuple[Any, Any]:
        from ..core.fisher.batches import split_batch

        x, y = split_batch(self._job.data)
        if not hasattr(x, "shape"):
            raise InvalidInputError(
                f"{self.source.data} gives a {type(x).__name__}; an array of inputs or a pair of "
                "arrays is taken here."
            )
        return x, y

    def _metadata(self, names: Sequence[str] | None, n: int) -> dict[str, list[Any]]:
        """Columns of the data file beside text and label, numbers as numbers."""
        source = self.source
        records = self._records()
        columns = read_columns(records.path, records.n)
        others = [c for c in columns if c not in (*records.text, records.label)]
        unknown = [c for c in names or () if c not in columns]
        if unknown:
            raise InvalidInputError(
                f"--metadata {unknown[0]} was given; {source.data} has the columns "
                f"{', '.join(columns)}."
            )
        found: dict[str, list[Any]] = {}
        for name in names or others[:MOST_METADATA]:
            values = [_number(v) for v in columns[name]]
            if not all(isinstance(v, float) for v in values):
                values = [str(v) for v in columns[name]]
                if names is None and len(set(values)) > max(20, n // 10):
                    continue  # an identifier, not a property
            found[name] = values
        return found


def _number(value: Any) -> Any:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return value
    return found if np.isfinite(found) else value


def _images(x: Any, shape: str | None) -> Any:
    """Arrays as images, where they are or are said to be."""
    values = to_numpy(x)
    if shape is None:
        return values if values.ndim == 3 or (values.ndim == 4 and values.shape[3] == 3) else None
    sizes = [int(s) for s in re.findall(r"\d+", shape)]
    if len(sizes) not in (2, 3) or int(np.prod(sizes)) != int(np.prod(values.shape[1:])):
        raise InvalidInputError(
            f"--image-shape {shape} was given for inputs of shape {values.shape[1:]}; two or three "
            "sizes such as 28x28 or 32x32x3 with as many entries are taken."
        )
    return values.reshape(len(values), *sizes)


def write_report(report: DecompositionReport, out: Path, overwrite: bool) -> None:
    """The folder of a report."""
    report.save(out, overwrite=overwrite)
