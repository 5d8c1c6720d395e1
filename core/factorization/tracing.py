"""Where in a network a component acts on one example, as a graph of flows.

The response of example i to component k is A_i g_k, one number a class row c: (A_i g)_c =
√p_c ∇log p_c · g. It is linear in g, so it splits exactly into what each (block, position)
contributes: Σ_{b,t} a_bt·u_bt = (A_i g)_c, with u the tangent that g induces there and a the
adjoint of the row. One tangent pass gives all u, one backward pass a row all a.

Source: mmatena's NPEFF tracer propagates one edge after another, with frozen moments and without
the first-order path through the attention logits; the exact identity by tangents and adjoints is
ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..display import Shown
from ..errors import InvalidInputError
from ..model import Categorical, OutputDistribution, engine_for
from ..model.tracing import EdgeFlow, TracedFlows
from ..types import FloatArray
from .perturbation import component_direction, scatter, unit_vector
from .result import Factorization

MAX_ROWS = 64
PARAMETERS, OUTPUT = "parameters", "output"
"""Nodes of the graph where flows begin and end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace(Shown):
    """How the response of one example to a component is made up.

    Attributes
    ----------
    component : int
    rows : tuple of str
        The class rows.
    flows : TracedFlows
        Contributions (R, T_b) of each block and position, and along the edges.
    positions : tuple of tuples of str
        What stands at the positions of each block (tokens, or numbers).
    """

    component: int
    rows: tuple[str, ...]
    flows: TracedFlows
    positions: tuple[tuple[str, ...], ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks in the order of computation."""
        return tuple(self.flows.blocks)

    @property
    def totals(self) -> FloatArray:
        """(A_i g)_c (R,)."""
        return self.flows.totals

    @property
    def explained(self) -> FloatArray:
        """Σ of all contributions (R,); equal to :attr:`totals` but for rounding."""
        parts = [values.sum(axis=1) for values in self.flows.induced]
        return np.asarray(np.sum([*parts, self.flows.readout], axis=0))

    @property
    def error(self) -> float:
        """Max |explained − totals| / max |totals|."""
        scale = float(np.abs(self.totals).max(initial=0.0))
        gap = float(np.abs(self.explained - self.totals).max(initial=0.0))
        return gap / scale if scale > 0 else gap

    def share(self, values: FloatArray) -> FloatArray:
        """Contributions (R, ...) as signed shares of Σ_c (A_i g)_c², which add up to one.

        Whatever the sign of g, a positive share strengthens the response.
        """
        size = float(self.totals @ self.totals)
        if size == 0.0:
            return np.zeros(values.shape[1:])
        return np.asarray(np.tensordot(self.totals, values, axes=1) / size)

    @property
    def shares(self) -> tuple[FloatArray, ...]:
        """Share of each (block, position) (T_b,)."""
        return tuple(self.share(values) for values in self.flows.induced)

    @property
    def readout_share(self) -> float:
        """Share of the parameters behind the last block."""
        return float(self.share(self.flows.readout))

    def graph(self, minimum: float = 0.0) -> Any:
        """The flows as a ``networkx.MultiDiGraph``, which is acyclic.

        Nodes are "parameters", "output" and (block number, position), with their name, label and
        ``passing`` (share that passes through). Edges have ``kind`` ("induced", "transformed",
        "residual", "readout"), ``value`` (share of the response) and ``rows`` (one number a row).
        Flows balance at every node but the two ends.

        Parameters
        ----------
        minimum : float
            Leave out edges with a smaller |value|.
        """
        import networkx as nx

        G = nx.MultiDiGraph(component=self.component, rows=list(self.rows))
        G.add_node(PARAMETERS, label=PARAMETERS)
        G.add_node(OUTPUT, label=OUTPUT)
        flows = self.flows
        for b, name in enumerate(flows.blocks):
            through = self.share(flows.passing[b])
            for t, label in enumerate(self.positions[b]):
                G.add_node((b, t), block=name, label=label, passing=float(through[t]))

        def edge(a: Any, b: Any, kind: str, rows: FloatArray) -> None:
            value = float(self.share(rows[:, None])[0])
            if abs(value) >= minimum and np.any(rows != 0):
                G.add_edge(a, b, key=kind, kind=kind, value=value, rows=rows.tolist())

        for b, values in enumerate(flows.induced):
            for t in range(values.shape[1]):
                edge(PARAMETERS, (b, t), "induced", values[:, t])
        for e in flows.edges:
            for source, target, rows in _single_edges(e):
                edge((e.source, source), (e.target, target), e.kind, rows)
        edge(PARAMETERS, OUTPUT, "readout", flows.readout)
        if len(flows.blocks):
            last = len(flows.blocks) - 1
            for t in range(flows.passing[last].shape[1]):
                edge((last, t), OUTPUT, "readout", flows.passing[last][:, t])
        return G

    def results(self) -> dict[str, Any]:
        """Plain values: contributions, shares and the check of their sum."""
        return {
            "component": self.component,
            "rows": list(self.rows),
            "totals": self.totals,
            "error": self.error,
            "readout_share": self.readout_share,
            "blocks": [
                {"name": name, "positions": list(at), "shares": share, "contributions": values}
                for name, at, share, values in zip(
                    self.blocks, self.positions, self.shares, self.flows.induced, strict=True
                )
            ],
        }

    def __repr__(self) -> str:
        return (
            f"Trace(component={self.component}, rows={len(self.rows)}, "
            f"blocks={len(self.blocks)}, error={self.error:.1e})"
        )


def trace(
    model: Any,
    factorization: Factorization,
    component: int,
    example: Any,
    *,
    classes: Sequence[int] | None = None,
    tokens: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    blocks: Mapping[str, str] | None = None,
    direction: Any = "component",
    edges: bool = True,
    output: OutputDistribution | None = None,
    outputs_of: Any = None,
) -> Trace:
    """Contribution of every (block, position) to the response of an example to a component.

    Parameters
    ----------
    model, factorization, component
        As :func:`perturb`.
    example : array (1, ...) or mapping of arrays (1, ...)
        A batch of one.
    classes : sequence of int, optional
        Which class rows; all of at most 64 otherwise. For other than categorical outputs the rows
        of the root of their Fisher.
    tokens : sequence of str, or mapping of stack to sequence, optional
        What stands at the positions ({"encoder": [...], "decoder": [...]} where there are two).
    blocks : mapping of str to {"state", "branch"}, optional
        Submodules behind which the network is cut. Found by name for models built as BERT, GPT-2,
        T5, Llama, ``torch.nn.TransformerEncoder`` or ``experiments.seq2seq`` are;
        ``fishertope.backends.torch_gpu.blocks.register_blocks`` adds families. Dense networks
        are cut at every layer, positions being their units.
    direction
        As :func:`perturb`.
    edges : bool
        Also what flows from position to position: one more pass, over as many copies of the
        example as it has positions.
    output, outputs_of
        As :func:`per_example_fishers`.

    Returns
    -------
    Trace

    Raises
    ------
    InvalidInputError
        Several examples, unknown classes or blocks, more than 64 rows, or components that are not
        parameters of this model (lift them first).

    Notes
    -----
    Cost: one tangent pass with cuts, one without, one backward pass a row; with ``edges`` one
    tangent pass over T copies.

    Examples
    --------
    >>> import numpy as np
    >>> from fishertope import DenseNetwork, LowRankNPEFF, factorize, per_example_fishers
    >>> rng = np.random.default_rng(0)
    >>> W = [rng.normal(size=(5, 4)), rng.normal(size=(3, 5))]
    >>> net = DenseNetwork(W, [np.ones(5), np.ones(3)])
    >>> x = rng.normal(size=(20, 4))
    >>> found = factorize(per_example_fishers(net, x), LowRankNPEFF(2), on_failure="return")
    >>> traced = trace(net, found, 0, x[:1])
    >>> whole = sum(s.sum() for s in traced.shares) + traced.readout_share
    >>> traced.error < 1e-12, bool(abs(whole - 1) < 1e-12)
    (True, True)
    """
    options = {} if outputs_of is None else {"outputs_of": outputs_of}
    engine: Any = engine_for(model, output=output, **options)
    if not hasattr(engine, "traced"):
        raise InvalidInputError(
            f"A {type(engine).__name__} cannot be traced; give a torch.nn.Module or a dense "
            "network, or an engine with a method traced()."
        )
    if isinstance(direction, str):
        g = component_direction(factorization, component, direction=direction)
    else:
        g = unit_vector(direction, int(factorization.components.shape[1]))
    delta = scatter(engine, factorization.sites, g)
    roots, rows = _rows(engine, example, classes)
    flows = engine.traced(example, delta, roots, blocks=blocks, edges=edges)
    wide = TracedFlows(
        blocks=flows.blocks,
        stacks=flows.stacks,
        induced=[_wide(v) for v in flows.induced],
        passing=[_wide(v) for v in flows.passing],
        readout=_wide(flows.readout),
        totals=_wide(flows.totals),
        edges=[
            EdgeFlow(source=e.source, target=e.target, kind=e.kind, values=_wide(e.values))
            for e in flows.edges
        ],
    )
    positions = tuple(
        _labels(tokens, stack, values.shape[1])
        for stack, values in zip(wide.stacks, wide.induced, strict=True)
    )
    return Trace(component=int(component), rows=rows, flows=wide, positions=positions)


def _rows(engine: Any, example: Any, classes: Sequence[int] | None) -> tuple[Any, tuple[str, ...]]:
    """Roots U (R, C) of the class rows, and their names."""
    z = engine.predict(example)
    if len(z) != 1:
        raise InvalidInputError(
            f"{len(z)} examples were given; one is traced at a time. Give a batch of one."
        )
    width = int(z.shape[1])
    if classes is not None:
        bad = [c for c in classes if not 0 <= int(c) < width]
        if bad or not len(classes):
            raise InvalidInputError(
                f"classes={list(classes)} were given; numbers from 0 to {width - 1} are taken."
            )
    elif width > MAX_ROWS:
        raise InvalidInputError(
            f"This model has {width} outputs, and each is a row with a backward pass of its own; "
            f"at most {MAX_ROWS} are traced unasked. Name those wanted by classes=."
        )
    reduced = not isinstance(engine.output, Categorical)
    U = engine.output.fisher_root(z, reduced=reduced)[0]
    chosen = list(range(int(U.shape[0]))) if classes is None else [int(c) for c in classes]
    return U[chosen], tuple(f"class {c}" for c in chosen)


def _single_edges(e: EdgeFlow) -> list[tuple[int, int, FloatArray]]:
    if e.kind == "residual":
        return [(t, t, e.values[:, t]) for t in range(e.values.shape[1])]
    _, S, T = e.values.shape
    return [(s, t, e.values[:, s, t]) for s in range(S) for t in range(T)]


def _labels(tokens: Any, stack: str, length: int) -> tuple[str, ...]:
    given = tokens.get(stack) if isinstance(tokens, Mapping) else tokens
    if given is None or len(given) < length:
        return tuple(str(t) for t in range(length))
    return tuple(str(t) for t in given[:length])


def _wide(values: Any) -> FloatArray:
    return np.asarray(to_numpy(values), dtype=np.float64)
