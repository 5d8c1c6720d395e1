"""A Transformer compiled by hand from known rules, each in heads and neurons of its own.

Every rule looks at a sequence of symbols after a start mark and, when it holds, adds to the logit
of one class. The weights are written down, not trained (compare RASP and Tracr, arXiv:2301.05062):
layer 1 knows each symbol's predecessor, layer 2 gathers one feature a head at the start mark, one
neuron a rule thresholds it, and the head adds up what the rules say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.types import IntArray, NumpyArray

SYMBOLS, LENGTH, CLASSES = 16, 10, 4
KINDS = ("contains", "first", "last", "twice", "both", "after")
SHARP = 12.0  # logits of a selecting head


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its kind, its symbols (1 to SYMBOLS), the class it speaks for, and how loudly."""

    kind: str
    symbols: tuple[int, ...]
    label: int
    strength: float

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.kind} {'-'.join(map(str, self.symbols))}"

    def holds(self, tokens: IntArray) -> NumpyArray:
        """On which sequences (n, 1 + LENGTH) it holds (n,)."""
        x, s = tokens[:, 1:], self.symbols
        if self.kind == "contains":
            return np.asarray((x == s[0]).any(axis=1))
        if self.kind == "first":
            return np.asarray(x[:, 0] == s[0])
        if self.kind == "last":
            return np.asarray(x[:, -1] == s[0])
        if self.kind == "twice":
            return np.asarray((x == s[0]).sum(axis=1) >= 2)
        if self.kind == "both":
            return np.asarray((x == s[0]).any(axis=1) & (x == s[1]).any(axis=1))
        return np.asarray(((x[:, :-1] == s[0]) & (x[:, 1:] == s[1])).any(axis=1))


def draw_rules(
    rng: np.random.Generator, kinds: tuple[str, ...] = (*KINDS, "contains", "after")
) -> list[Rule]:
    """Rules over disjoint symbols, two for each class."""
    symbols = iter((1 + rng.permutation(SYMBOLS)).tolist())
    labels = rng.permutation(np.arange(len(kinds)) % CLASSES).tolist()
    return [
        Rule(
            kind,
            tuple(next(symbols) for _ in range(2 if kind in ("both", "after") else 1)),
            label,
            float(rng.uniform(2.0, 4.0)),
        )
        for kind, label in zip(kinds, labels, strict=True)
    ]


def draw_sequences(rules: list[Rule], n: int, rng: np.random.Generator) -> IntArray:
    """Sequences (n, 1 + LENGTH) in which each rule holds now and then, and nearly holds too.

    Random symbols; then, with a chance for each rule, its pattern or half of it is written in.
    """
    tokens = np.zeros((n, 1 + LENGTH), dtype=np.int64)
    spoken = {s for rule in rules for s in rule.symbols}
    neutral = [s for s in range(1, SYMBOLS + 1) if s not in spoken] or [1]
    rare = rng.random((n, LENGTH)) < 0.15
    tokens[:, 1:] = np.where(
        rare, rng.integers(1, SYMBOLS + 1, (n, LENGTH)), rng.choice(neutral, (n, LENGTH))
    )
    for i in range(n):
        for rule in rules:
            if rng.random() < 0.16:
                _write(tokens[i], rule, rng)
    return tokens


def _write(x: IntArray, rule: Rule, rng: np.random.Generator) -> None:
    places = 1 + rng.permutation(LENGTH)
    if rule.kind == "first":
        x[1] = rule.symbols[0]
    elif rule.kind == "last":
        x[LENGTH] = rule.symbols[0]
    elif rule.kind == "twice":
        x[places[:2]] = rule.symbols[0]
    elif rule.kind == "after":
        at = rng.integers(1, LENGTH)
        x[at : at + 2] = rule.symbols
    else:
        x[places[: len(rule.symbols)]] = rule.symbols


class _Axes:
    """Named axes of the residual stream, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.width = 0

    def take(self, n: int) -> IntArray:
        axes = np.arange(self.width, self.width + n)
        self.width += n
        return axes


def compile_rules(rules: list[Rule]) -> object:
    """The network as a :class:`~.tiny_transformer.TinyTransformer` in float64."""
    import torch

    from .tiny_transformer import TinyTransformer

    axes = _Axes()
    symbol, place, one = axes.take(SYMBOLS + 1), axes.take(LENGTH + 1), axes.take(1)[0]
    before = axes.take(SYMBOLS + 1)
    pairs = [r for r in rules if r.kind == "after"]
    pair = {r: a for r, a in zip(pairs, axes.take(len(pairs)), strict=True)}
    gathered = [(r, s) for r in rules for s in (r.symbols if r.kind == "both" else (None,))]
    gather, said = axes.take(len(gathered)), axes.take(len(rules))
    size = max(SYMBOLS + 1, LENGTH + 1)
    model = TinyTransformer(
        SYMBOLS + 1, LENGTH + 1, axes.width, CLASSES,
        [(1, size, max(len(pairs), 1)), (len(gathered), 2, len(rules))],
    ).to(torch.float64)  # fmt: skip
    w: dict[str, NumpyArray] = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    w["tokens.weight"][:, symbol] = np.eye(SYMBOLS + 1)
    w["tokens.weight"][:, one] = 1.0
    w["places.weight"][:, place] = np.eye(LENGTH + 1)
    for i in range(1, LENGTH + 1):  # layer 1: place i looks at place i − 1
        w["blocks.0.attention.q.weight"][i, place[i]] = SHARP
        w["blocks.0.attention.k.weight"][i, place[i - 1]] = 1.0
    w["blocks.0.attention.v.weight"][range(SYMBOLS + 1), symbol] = 1.0
    w["blocks.0.attention.o.weight"][before, range(SYMBOLS + 1)] = 1.0
    for j, rule in enumerate(pairs):
        w["blocks.0.inner.weight"][j, [before[rule.symbols[0]], symbol[rule.symbols[1]]]] = 1.0
        w["blocks.0.inner.bias"][j] = -1.5
        w["blocks.0.outer.weight"][pair[rule], j] = 2.0
    for h, (rule, s) in enumerate(gathered):
        feature = pair.get(rule, symbol[s if s is not None else rule.symbols[0]])
        _gather(w, h, rule, feature, (symbol, place, one))
        w["blocks.1.attention.o.weight"][gather[h], 2 * h] = 1.0
    for j, rule in enumerate(rules):
        heads = [h for h, (owner, _) in enumerate(gathered) if owner is rule]
        scale = LENGTH + 1.0 if rule.kind == "twice" else 1.0
        enough = 1.5 if rule.kind in ("twice", "both") else 0.5
        w["blocks.1.inner.weight"][j, gather[heads]] = scale
        w["blocks.1.inner.bias"][j] = -enough
        w["blocks.1.outer.weight"][said[j], j] = 2.0
        w["head.weight"][rule.label, said[j]] = rule.strength
    model.load_state_dict({name: torch.from_numpy(value) for name, value in w.items()})
    return model.eval()


def _gather(
    w: dict[str, NumpyArray],
    h: int,
    rule: Rule,
    feature: int,
    axes: tuple[IntArray, IntArray, int],
) -> None:
    """Head h of layer 2: the start mark looks where the rule says and reads the feature there."""
    symbol, place, one = axes
    q, k, v = (w[f"blocks.1.attention.{part}.weight"] for part in "qkv")
    v[2 * h, feature] = 1.0
    if rule.kind == "twice":
        return  # looks everywhere alike: the share of the symbol
    q[2 * h, one] = 2 * SHARP
    if rule.kind in ("first", "last"):
        k[2 * h, place[1 if rule.kind == "first" else LENGTH]] = 1.0
    else:
        k[2 * h, feature] = 1.0
        k[2 * h, symbol[0]] = 0.5  # itself, where no place has the feature


@dataclass(frozen=True, slots=True, eq=False)
class Predicates:
    """All predicates of at most two literals over sequences.

    Attributes
    ----------
    names : list of str
    values : bool array (n, P)
    """

    names: list[str]
    values: NumpyArray


def literals(tokens: IntArray) -> Predicates:
    """Contains, first, last, twice for every symbol, and every pair in a row."""
    names, columns = [], []
    for s in range(1, SYMBOLS + 1):
        for kind in ("contains", "first", "last", "twice"):
            names.append(f"{kind} {s}")
            columns.append(Rule(kind, (s,), 0, 0.0).holds(tokens))
        for t in range(1, SYMBOLS + 1):
            names.append(f"after {s}-{t}")
            columns.append(Rule("after", (s, t), 0, 0.0).holds(tokens))
    return Predicates(names, np.stack(columns, axis=1))


def best_predicate(found: Predicates, top: NumpyArray) -> tuple[str, NumpyArray, float]:
    """The conjunction of at most two literals, perhaps negated, with the best F1 for ``top``.

    Returns
    -------
    name : str
    holds : bool array (n,)
    f1 : float
    """
    L = np.concatenate([found.values, ~found.values], axis=1).astype(np.float32)
    names = found.names + [f"not {n}" for n in found.names]
    hits = (L * top[:, None].astype(np.float32)).T @ L
    chosen = L.T @ L
    f1 = 2 * hits / np.maximum(chosen + top.sum(), 1)
    # One literal in place of two wherever it is as good.
    single = np.diag(f1)
    i = j = int(single.argmax())
    if f1.max() > single.max() + 1e-6:
        i, j = (int(a) for a in np.unravel_index(f1.argmax(), f1.shape))
    name = names[i] if i == j else " and ".join(sorted((names[i], names[j])))
    return name, np.asarray((L[:, i] * L[:, j]) > 0), float(f1[i, j])
