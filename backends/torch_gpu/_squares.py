"""Sums of squared gradients over the examples of a batch, without a gradient an example kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ._layer_calls import Call, chosen
from ._layer_rules import Grads, Squares, TableRows

Pooled: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Squares]
# Per-example gradients that are only squared and summed take at most this many bytes at a time.
BLOCK_BYTES = 32 << 20


class SquareSums:
    """Σ over examples and roots of the squared gradients of some parameters."""

    def __init__(self, names: Mapping[Tensor, str], calls: Sequence[Call]) -> None:
        self._names = names
        self._groups = [
            members
            for members in groups_of(names, calls)
            if any(p in names for m in members for p in calls[m].layer.parameters(recurse=False))
        ]
        self._dense: Grads = {}
        self._rows: dict[str, list[TableRows]] = {}
        self._norms: Grads = {}
        # By layer of one position an example: Σ over roots of δ∘δ (n, o).
        self._pools: dict[int, tuple[Call, Pooled, Tensor]] = {}

    def finish(self) -> tuple[dict[str, Tensor | TableRows], Grads]:
        """What was added.

        Returns
        -------
        sums : dict of str to Tensor or TableRows
            By parameter; of tables only the rows that were used.
        norms : dict of str to Tensor (n,)
            The same summed over the entries instead of the examples.
        """
        for call, pooled, pool in self._pools.values():
            self._tell_layer(call, pooled(call.layer, call.ready(), pool))
        self._pools = {}
        return self._sums(), self._norms

    def _sums(self) -> dict[str, Tensor | TableRows]:
        found: dict[str, Tensor | TableRows] = dict(self._dense)
        for name, parts in self._rows.items():
            rows, values = (torch.cat([getattr(p, k) for p in parts]) for k in ("rows", "values"))
            table = TableRows(rows, values).merged()
            if name in self._dense:  # another use of the table, whose squares are dense
                self._dense[name].index_add_(0, table.rows, table.values)
            else:
                found[name] = table
        self._rows = {n: [t] for n, t in found.items() if isinstance(t, TableRows)}
        return found

    def add(self, calls: Sequence[Call], deltas: Sequence[Tensor | None]) -> None:
        """Some roots more."""
        for members in self._groups:
            own = [(calls[m], deltas[m]) for m in members]
            if len(members) > 1 or not self._short_way(members[0], *own[0]):
                self._long_way(own)

    def _tell(
        self, name: str, total: Tensor | TableRows, norms: Tensor, part: slice, n: int
    ) -> None:
        if name not in self._norms:
            self._norms[name] = norms.new_zeros(n)
        self._norms[name][part] += norms
        if isinstance(total, TableRows):
            self._rows.setdefault(name, []).append(total)
        elif name in self._dense:
            self._dense[name] += total
        else:
            self._dense[name] = total.contiguous()

    def _tell_layer(self, call: Call, found: Squares) -> None:
        sums, norms = found
        for name, parameter in call.layer.named_parameters(recurse=False):
            full = self._names.get(parameter)
            if full is not None and name in sums:
                self._tell(full, sums[name], norms[name], slice(None), call.shape[0])

    def _short_way(self, number: int, call: Call, delta: Tensor | None) -> bool:
        """By the layer's own rule for sums of squares, where it has one."""
        if delta is None:
            return True
        pooled = call.rule.pooled
        if pooled is not None and len(call.shape) == 2:
            pool = self._pools[number][2] if number in self._pools else None
            for one in delta:
                pool = one.square() if pool is None else pool.addcmul_(one, one)
            if pool is not None:
                self._pools[number] = call, pooled, pool
            return True
        found = call.rule.squares and call.rule.squares(call.layer, call.ready(), delta)
        if not found:
            return False
        self._tell_layer(call, found)
        return True

    def _long_way(self, members: Sequence[tuple[Call, Tensor | None]]) -> None:
        """Gradients of a few examples at a time, squared and added."""
        n = members[0][0].shape[0]
        size = sum(p.numel() * p.element_size() for c, _ in members for p in c.layer.parameters())
        step = max(1, BLOCK_BYTES // max(1, size))
        k = next((len(d) for _, d in members if d is not None), 0)
        for j in range(k):
            for start in range(0, n, step):
                part = slice(start, start + step)
                found = (
                    (name, start, g)
                    for call, delta in members
                    if delta is not None
                    for name, g in chosen(
                        self._names,
                        call.layer,
                        call.rule.per_example(call.layer, call.ready()[part], delta[j, part]),
                    )
                )
                for name, _, g in summed(found):
                    squares = g.square_()
                    self._tell(name, squares.sum(0), squares.flatten(1).sum(1), part, n)


def groups_of(names: Mapping[Tensor, str], calls: Sequence[Call]) -> list[list[int]]:
    """Calls that share a named parameter, together; calls without any, alone."""
    owner: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        own = [n for p in call.layer.parameters(recurse=False) if (n := names.get(p)) is not None]
        joined = [i]
        for group in {id(owner[n]): owner[n] for n in own if n in owner}.values():
            joined = group + joined
        for c in joined:
            for p in calls[c].layer.parameters(recurse=False):
                owner[names.get(p, "")] = joined
    owner.pop("", None)
    return list({id(g): g for g in owner.values()}.values())


def summed(grads: Iterable[tuple[str, int, Tensor]]) -> list[tuple[str, int, Tensor]]:
    """Gradients of several uses of one parameter added."""
    sums: dict[tuple[str, int], Tensor] = {}
    for name, start, g in grads:
        key = name, start
        sums[key] = sums[key] + g if key in sums else g
    return [(name, start, g) for (name, start), g in sums.items()]
