"""From a model, its tokenizer and a decomposition of its Fishers to the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.backend import to_numpy
from ...core.errors import InvalidInputError
from ...core.factorization import (
    Factorization,
    PerturbationReport,
    Stability,
    Trace,
    perturbation_report,
    token_attributions,
    trace,
)
from ...core.report import DecompositionReport, Examples, decomposition_report, spans
from ...core.types import FloatArray, NumpyArray
from .._progress import Progress

SPECIAL = ("[PAD]", "<pad>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A model of texts with the texts themselves.

    Attributes
    ----------
    engine : ModelEngine
        With its output distribution.
    tokenizer : object
    texts : sequence of tuples of str
        One text an example, or a pair.
    encode : callable
        A list of examples' numbers to a batch of the model's inputs, without labels.
    max_length : int
    """

    engine: Any
    tokenizer: Any
    texts: Sequence[tuple[str, ...]]
    encode: Callable[[Sequence[int]], Mapping[str, Any]]
    max_length: int

    def shown(self) -> list[str]:
        """Each example as one text."""
        return [" ∥ ".join(parts) for parts in self.texts]

    def predictions(self, batch_size: int = 32) -> FloatArray:
        """Outputs z (n, C)."""
        parts = []
        for start in range(0, len(self.texts), batch_size):
            batch = self.encode(range(start, min(start + batch_size, len(self.texts))))
            parts.append(np.asarray(to_numpy(self.engine.predict(batch)), dtype=np.float64))
        return np.concatenate(parts)


class Inputs(Mapping[str, Any]):
    """All examples as one mapping of arrays, encoded when they are asked for.

    What moves a model along components asks for a few dozen of them, again and again; each time
    they are padded to the longest among them only.
    """

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._names = list(model.encode([0]))

    def __getitem__(self, name: str) -> Any:
        return _Column(self._model, name)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Column:
    """One argument of the model for all examples."""

    def __init__(self, model: TextModel, name: str) -> None:
        self._model, self._name = model, name

    def __len__(self) -> int:
        return len(self._model.texts)

    def __getitem__(self, examples: NumpyArray) -> Any:
        return self._model.encode([int(i) for i in examples])[self._name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is computed for a report.

    Attributes
    ----------
    n_top : int
        Examples shown of each component, with their tokens.
    n_traces : int
        Components traced in their strongest example, the largest shares first.
    moved_top, moved_baseline, n_random : int
        As :func:`perturbation_report`; ``moved_top`` = 0 moves nothing.
    target_kl : float
    attributions : bool
    """

    n_top: int = 6
    n_traces: int = 16
    moved_top: int = 20
    moved_baseline: int = 40
    n_random: int = 2
    target_kl: float = 0.1
    attributions: bool = True


def text_report(
    model: TextModel,
    factorization: Factorization,
    *,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    metadata: Mapping[str, Sequence[Any]] | None = None,
    stability: Stability | FloatArray | None = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    **options: Any,
) -> DecompositionReport:
    """Move the model along the components, hide tokens, trace, and compare with features.

    Parameters
    ----------
    model : TextModel
    factorization : Factorization
        Over the model's parameters (lifted, if the Fishers were projected); without them only the
        coefficients are compared with what is known of the texts.
    labels, classes, metadata
        As :class:`Examples`.
    stability : Stability, optional
    effort : Effort, optional
    progress : Progress, optional
    seed : int
    **options
        Passed to :func:`decomposition_report` (title, command, ...).
    """
    work, shown = effort or Effort(), progress or Progress(None)
    with shown.step("Ask the model"):
        z = model.predictions()
    probabilities = _probabilities(model.engine, z)
    answers = to_numpy(model.engine.output.mode(z)) if probabilities is not None else None
    moved, traces = None, {}
    attributions: dict[tuple[int, int], Sequence[tuple[str, float]]] = {}
    if factorization.sites:
        moved = _moved(model, factorization, work, seed, shown)
        attributions = _attributions(model, factorization, work, shown)
        traces = _traces(model, factorization, work, shown)
    examples = Examples(
        texts=model.shown(), labels=labels, predictions=answers, probabilities=probabilities,
        classes=classes, metadata=dict(metadata or {}),
    )  # fmt: skip
    with shown.step("Compare with features"):
        return decomposition_report(
            factorization, examples, perturbation=moved, stability=stability, traces=traces,
            attributions=attributions, n_top=work.n_top, seed=seed, **options,
        )  # fmt: skip


def _probabilities(engine: Any, z: FloatArray) -> FloatArray | None:
    """Of the classes, where the outputs are classes."""
    if not hasattr(engine.output, "log_probs"):
        return None
    return np.exp(np.asarray(engine.output.log_probs(z), dtype=np.float64))


def _moved(
    model: TextModel, found: Factorization, work: Effort, seed: int, shown: Progress
) -> PerturbationReport | None:
    if work.moved_top < 1:
        return None
    parts: list[PerturbationReport] = []
    with shown.step("Move the model", found.n_components) as advance:
        for k in range(found.n_components):
            parts.append(
                perturbation_report(
                    model.engine, found, Inputs(model), components=k, n_top=work.moved_top,
                    n_baseline=work.moved_baseline, n_random=work.n_random,
                    target_kl=work.target_kl, seed=seed + k,
                )
            )  # fmt: skip
            advance(k + 1, found.n_components)
    return joined_reports(parts)


def joined_reports(parts: Sequence[PerturbationReport]) -> PerturbationReport:
    """Reports of single components as one."""
    values: dict[str, Any] = {}
    for name in PerturbationReport.__dataclass_fields__:
        each = [getattr(part, name) for part in parts]
        values[name] = None if each[0] is None else np.concatenate(each)
    return PerturbationReport(**values)


def _attributions(
    model: TextModel, found: Factorization, work: Effort, shown: Progress
) -> dict[tuple[int, int], Sequence[tuple[str, float]]]:
    out: dict[tuple[int, int], Sequence[tuple[str, float]]] = {}
    if not work.attributions or "attention_mask" not in model.encode([0]):
        return out
    top = found.top_examples(work.n_top)
    with shown.step("Hide tokens", top.size) as advance:
        for k in range(found.n_components):
            for i in top[k].tolist():
                values = token_attributions(model.engine, found, k, model.encode([i]))
                out[k, i] = spans(
                    model.tokenizer, model.texts[i], values, max_length=model.max_length
                )
                advance(len(out), top.size)
    return out


def _traces(
    model: TextModel, found: Factorization, work: Effort, shown: Progress
) -> dict[int, Trace]:
    out: dict[int, Trace] = {}
    chosen = np.argsort(-found.shares, kind="stable")[: work.n_traces].tolist()
    top = found.top_examples(1)
    with shown.step("Trace", len(chosen)) as advance:
        for done, k in enumerate(chosen, start=1):
            example = model.encode([int(top[k, 0])])
            try:
                out[k] = trace(
                    model.engine, found, k, example, tokens=_tokens(model.tokenizer, example)
                )
            except InvalidInputError:
                return out  # a model whose blocks are not known has no picture
            advance(done, len(chosen))
    return out


def _tokens(tokenizer: Any, example: Mapping[str, Any]) -> dict[str, list[str]]:
    names = {}
    for stack, argument in (
        ("stack", "input_ids"), ("encoder", "input_ids"), ("decoder", "decoder_input_ids"),
    ):  # fmt: skip
        if argument in example:
            ids = to_numpy(example[argument])[0].tolist()
            tokens = tokenizer.convert_ids_to_tokens(ids)
            names[stack] = [str(t).replace("Ġ", "").replace("▁", "") for t in tokens]
    return names
