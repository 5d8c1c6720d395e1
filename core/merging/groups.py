"""Groups of parameters that one precision couples: a tensor, or a layer's [W|b]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InvalidInputError
from ..fisher.structures import SiteLayout
from ..fisher.structures.coordinatewise import Diagonal, Isotropic
from ..fisher.structures.protocol import Precision
from ..types import Array

Tree = Mapping[str, Precision]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are solved for together.

    Attributes
    ----------
    name : str
        Of the weight, as in precision trees.
    layout : SiteLayout
        How they make up the array that precisions act on.
    """

    name: str
    layout: SiteLayout

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return self.layout.parameters


def layouts_of(tree: Tree) -> dict[str, SiteLayout]:
    """Layouts of the sites of a tree; of a plain mapping, each site is the tensor of its name."""
    given: Mapping[str, SiteLayout] = getattr(tree, "layouts", {})
    return {
        name: given.get(name) or SiteLayout(weight=name, weight_shape=tuple(p.shape))
        for name, p in tree.items()
    }


def parameters_of(tree: Tree) -> frozenset[str]:
    """Names of the tensors that a tree has precisions for."""
    return frozenset(p for layout in layouts_of(tree).values() for p in layout.parameters)


def groups_of(
    trees: Iterable[Tree], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Group, ...]:
    """Groups that cover ``names``, in their order: the widest that any tree asks for.

    Raises
    ------
    InvalidInputError
        If two trees ask for different matrices of one weight, or a group is torn apart because
        only some of its tensors are merged.
    """
    wide: dict[str, SiteLayout] = {}
    for tree in trees:
        for layout in layouts_of(tree).values():
            if layout.outputs is None:
                continue
            known = wide.get(layout.weight)
            if known is None or known.bias is None:
                wide[layout.weight] = layout
            elif layout.bias is not None and layout != known:
                raise InvalidInputError(
                    f"{layout.weight!r} is grouped as {known} and as {layout}; estimate the "
                    "precisions of all sources with the same grouping."
                )
    chosen = set(names)
    biases = {layout.bias for layout in wide.values() if layout.bias is not None}
    out: list[Group] = []
    for name in names:
        if name in wide:
            layout = wide[name]
            torn = [p for p in layout.parameters if p not in chosen]
            if torn:
                raise InvalidInputError(
                    f"{name!r} and {torn[0]!r} share a precision, but only one of them is to be "
                    "merged. Give both the same rule, or a diagonal precision."
                )
            out.append(Group(name, layout))
        elif name not in biases:
            out.append(Group(name, SiteLayout(weight=name, weight_shape=shapes[name])))
    return tuple(out)


def precision_in(tree: Tree, group: Group, like: Array) -> Precision:
    """The precision of a group in a tree whose own sites may be finer (diagonals are joined).

    Raises
    ------
    InvalidInputError
        If the tree couples other parameters than the group, or shapes differ.
    """
    layouts = layouts_of(tree)
    if group.name in layouts and layouts[group.name] == group.layout:
        return tree[group.name]
    parts: dict[str, Array] = {}
    scales: set[float] = set()
    for name in group.parameters:
        p = tree.get(name)
        layout = layouts.get(name)
        plain = layout is not None and layout.outputs is None
        wanted = group.layout.shapes[name]
        if p is None or not plain or not isinstance(p, (Diagonal, Isotropic)):
            raise InvalidInputError(
                f"The precision of {group.name!r} covers "
                f"{'none' if layout is None else ' and '.join(layout.parameters)}, but "
                f"{' and '.join(group.parameters)} are merged together; give all sources the same "
                "grouping, or diagonal precisions."
            )
        if tuple(p.shape) != wanted:
            raise InvalidInputError(
                f"The precision of {name!r} has the shape {tuple(p.shape)}; the tensor has "
                f"{wanted}."
            )
        if isinstance(p, Isotropic):
            scales.add(p.scale)
        parts[name] = p.diagonal()
    if len(scales) == 1 and all(isinstance(tree[n], Isotropic) for n in group.parameters):
        return Isotropic(scales.pop(), group.layout.shape)
    return Diagonal(group.layout.join(parts))
