"""Networks that several studies look into, each with its examples and what is known of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import ConvergenceWarning
from ...core.factorization import Factorization, LowRankNPEFF, factorize
from ...core.fisher import per_example_fishers
from ...core.types import IntArray, NumpyArray

SUBJECTS = ("digits", "known rules", "two factors")
COMPONENTS = {"digits": 20, "known rules": 16, "two factors": 24}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A network with examples.

    Attributes
    ----------
    model : object
    inputs : array (n, ...)
        Examples that it was not trained on.
    classes : int array (n,)
        The right answers.
    labels : bool array (n, K)
        What is known of the examples: pairs of digits, rules, factors.
    names : tuple of str
        Of the labels.
    """

    model: Any
    inputs: Any
    classes: IntArray
    labels: NumpyArray
    names: tuple[str, ...]


def make_subject(name: str, seed: int, n: int, *, steps: int = 1000) -> Subject:
    """The network of that name, made from the seed."""
    makers = {"digits": _digits, "known rules": _rules, "two factors": _two_factors}
    return makers[name](seed, n, steps)


def fit(fishers: Any, r: int, seed: int, **options: Any) -> Factorization:
    """Factorize with the settings that the studies share, without a warning at the step limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = {"tol": 1e-3, "max_steps": 60} | options
        return factorize(fishers, LowRankNPEFF(r, **options), seed=seed)


def fishers_of(subject: Subject, **options: Any) -> Any:
    """Exact low-rank Fishers of the subject's examples."""
    return per_example_fishers(subject.model, subject.inputs, **options)


def _digits(seed: int, n: int, steps: int) -> Subject:
    """Digits: a 64-32-10 perceptron, and the pairs of likeliest digits that occur often."""
    from .._digits import load_digits, train_network

    digits = load_digits(500, n, np.random.default_rng(seed))
    passes = min(300, steps)
    model = train_network(digits, hidden=32, passes=passes, seed=seed, advance=lambda i, of: None)
    probabilities = np.asarray(model.predict_proba(digits.held_out_inputs))
    pairs = np.sort(np.argsort(-probabilities, axis=1)[:, :2], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    common = found[counts >= max(10, n // 40)]
    labels = np.stack([(pairs == pair).all(axis=1) for pair in common], axis=1)
    return Subject(
        model=model,
        inputs=digits.held_out_inputs,
        classes=digits.held_out_labels,
        labels=labels,
        names=tuple(f"{a} or {b}" for a, b in common),
    )


def _rules(seed: int, n: int, steps: int) -> Subject:
    import torch

    from .compiled_rules import compile_rules, draw_rules, draw_sequences

    rng = np.random.default_rng(seed)
    rules = draw_rules(rng)
    tokens = draw_sequences(rules, n, rng)
    compiled: Any = compile_rules(rules)
    model, inputs = compiled.float(), torch.from_numpy(tokens)
    with torch.no_grad():
        answers = model(inputs).argmax(1).numpy()
    return Subject(
        model=model,
        inputs=inputs,
        classes=answers,
        labels=np.stack([rule.holds(tokens) for rule in rules], axis=1),
        names=tuple(rule.name for rule in rules),
    )


def _two_factors(seed: int, n: int, steps: int) -> Subject:
    import torch

    from .two_factor_network import RULES, TASKS, draw_examples, train_two_factor

    model = train_two_factor("transformer", seed, steps=steps)
    data = draw_examples(n, np.random.default_rng(seed))
    names = [f"task {i}" for i in range(TASKS)] + [f"rule {i}" for i in range(RULES)]
    return Subject(
        model=model,
        inputs=torch.from_numpy(data.inputs("transformer")),
        classes=data.answers,
        labels=data.factors,
        names=tuple(names),
    )
