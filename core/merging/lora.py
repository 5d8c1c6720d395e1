"""Low-rank adapters as exact differences ΔW = s B A; A and B are never added by themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import InvalidInputError
from ..types import Array
from .inputs import check_weights
from .sources import read, write

_PREFIX = re.compile(r"^(base_model\.model\.|base_model\.)")
_FACTOR = re.compile(r"^(?P<name>.+)\.lora_(?P<which>[AB])(\.[^.]+)?(\.weight)?$")


@dataclass(frozen=True, slots=True, eq=False)
class LoRA:
    """ΔW = s B A of one linear layer.

    Attributes
    ----------
    A : array (r, i)
    B : array (o, r)
    scaling : float
        s: α/r, or α/√r with rank-stabilised scaling (arXiv:2312.03732).
    transposed : bool
        The weight is stored (i, o) (``fan_in_fan_out`` of transformers' Conv1D), so :meth:`delta`
        gives the transpose.

    Raises
    ------
    InvalidInputError
        Factors whose shapes do not fit, or a scaling that is not finite.

    Examples
    --------
    >>> one = LoRA.of(np.ones((2, 3)), np.ones((4, 2)), alpha=4)
    >>> one.scaling, one.delta().shape, float(one.delta()[0, 0])
    (2.0, (4, 3), 4.0)
    """

    A: Array
    B: Array
    scaling: float = 1.0
    transposed: bool = False

    def __post_init__(self) -> None:
        a, b = tuple(self.A.shape), tuple(self.B.shape)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise InvalidInputError(
                f"LoRA factors A {a} and B {b} were given; (r, i) and (o, r) are accepted."
            )
        if not np.isfinite(self.scaling):
            raise InvalidInputError(f"A LoRA scaling of {self.scaling} was given.")

    @classmethod
    def of(
        cls,
        A: Array,
        B: Array,
        *,
        alpha: float,
        rslora: bool = False,
        fan_in_fan_out: bool = False,
    ) -> LoRA:
        """From the factors and the settings of their training."""
        rank = int(A.shape[0])
        return cls(A, B, alpha / (rank**0.5 if rslora else rank), fan_in_fan_out)

    @property
    def rank(self) -> int:
        """R."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight as it is stored."""
        o, i = int(self.B.shape[0]), int(self.A.shape[1])
        return (i, o) if self.transposed else (o, i)

    def delta(self) -> Array:
        """S B A (o, i), or its transpose, in float64."""
        product = read(self.B) @ read(self.A) * self.scaling
        return product.T if self.transposed else product

    def projected(self, rank: int) -> LoRA:
        """The nearest ΔW of this rank in Frobenius norm, with s = 1; exact for rank ≥ r.

        From QR factors and an SVD of (r, r): O((o + i) r² + r³), no o × i matrix.

        Raises
        ------
        InvalidInputError
            If the rank is below 1.
        """
        if isinstance(rank, bool) or rank < 1:
            raise InvalidInputError(f"rank={rank} was given; a whole number >= 1 is accepted.")
        b, a = read(self.B) * self.scaling, read(self.A)
        if rank >= self.rank:
            return LoRA(_like(a, self.A), _like(b, self.B), 1.0, self.transposed)
        xp = array_namespace(a)
        q1, r1 = xp.linalg.qr(b)
        q2, r2 = xp.linalg.qr(a.T)
        u, s, vt = xp.linalg.svd(r1 @ r2.T, full_matrices=False)
        root = xp.sqrt(s[:rank])
        left, right = q1 @ (u[:, :rank] * root[None, :]), (q2 @ vt[:rank, :].T) * root[None, :]
        return LoRA(_like(right.T, self.A), _like(left, self.B), 1.0, self.transposed)


def merge_lora(
    adapters: Sequence[Mapping[str, LoRA]],
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
) -> dict[str, LoRA]:
    """Σ_i w_i ΔW_i layer by layer, as adapters.

    Parameters
    ----------
    adapters : sequence of mappings of layer name to LoRA
        Layers that an adapter does not have count as ΔW = 0.
    weights : sequence of float, optional
        w, of either sign; 1/n each by default. They are not normalised.
    rank : int, optional
        Of the result; by default Σ r_i, which loses nothing. A smaller rank gives the nearest
        matrices in Frobenius norm.

    Returns
    -------
    dict of str to LoRA
        With scaling 1 (α = r).

    Raises
    ------
    InvalidInputError
        Layers of different shapes, or one transposed and another not.

    Notes
    -----
    The factors are put side by side, A = [A_1; A_2; …] and B = [w_1 s_1 B_1, w_2 s_2 B_2, …].
    Weighted sums of A and of B by themselves would add the cross terms B_i A_j.
    A single adapter with weight 1 and all others 0 keeps its own factors: its ΔW is unchanged.

    Examples
    --------
    >>> one = {"q": LoRA(np.ones((1, 2)), np.ones((3, 1)), 2.0)}
    >>> two = {"q": LoRA(np.eye(2), np.ones((3, 2)), 1.0)}
    >>> merged = merge_lora([one, two], [0.5, 0.5])
    >>> merged["q"].rank, bool(np.allclose(merged["q"].delta(), 1.5))
    (3, True)
    """
    w = check_weights(weights, len(adapters), signed=True)
    names = list(dict.fromkeys(n for a in adapters for n in a))
    out: dict[str, LoRA] = {}
    for name in names:
        parts = [(float(v), a[name]) for v, a in zip(w, adapters, strict=True) if name in a]
        kinds = {(p.shape, p.transposed) for _, p in parts}
        if len(kinds) > 1:
            raise InvalidInputError(
                f"{name!r} has adapters of the shapes {sorted({k[0] for k in kinds})}, transposed "
                f"{sorted({k[1] for k in kinds})}; all must be for the same weight."
            )
        used = [(v, p) for v, p in parts if v != 0.0] or parts[:1]
        merged = used[0][1] if len(used) == 1 and used[0][0] == 1.0 else _side_by_side(used)
        out[name] = merged if rank is None else merged.projected(rank)
    return out


def _side_by_side(parts: Sequence[tuple[float, LoRA]]) -> LoRA:
    first = parts[0][1]
    xp = array_namespace(first.A)
    a = xp.concat([read(p.A, first.A) for _, p in parts], axis=0)
    b = xp.concat([v * p.scaling * read(p.B, first.B) for v, p in parts], axis=1)
    return LoRA(_like(a, first.A), _like(b, first.B), 1.0, first.transposed)


def _like(values: Array, like: Array) -> Array:
    return write("a LoRA factor", values, like)


def read_adapter(state: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, LoRA]:
    """Adapters by layer from a PEFT state dict and its ``adapter_config.json``.

    Parameters
    ----------
    state : mapping of str to array
        ``base_model.model.LAYER.lora_A.weight`` and ``…lora_B.weight``.
    config : mapping
        ``r``, ``lora_alpha``, ``use_rslora``, ``fan_in_fan_out``, ``rank_pattern``,
        ``alpha_pattern`` as PEFT writes them.

    Raises
    ------
    InvalidInputError
        Adapters that are no ΔW = s B A (DoRA, biases, convolutions, embeddings), or halves without
        their other half.
    """
    for key in ("use_dora", "lora_bias"):
        if config.get(key):
            raise InvalidInputError(
                f"The adapter has {key}=True and is not of the form ΔW = s B A alone. Merge it "
                "into its base model first and merge the full models."
            )
    halves: dict[str, dict[str, Array]] = {}
    for key, value in state.items():
        match = _FACTOR.match(_PREFIX.sub("", key))
        if match is None or len(value.shape) != 2:
            raise InvalidInputError(
                f"The adapter holds {key!r} of shape {tuple(value.shape)}; only lora_A and lora_B "
                "of linear layers are merged as adapters. Merge it into its base model first."
            )
        halves.setdefault(match["name"], {})[match["which"]] = value
    out: dict[str, LoRA] = {}
    for name, found in halves.items():
        if set(found) != {"A", "B"}:
            raise InvalidInputError(f"The adapter has only lora_{next(iter(found))} of {name!r}.")
        alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
        out[name] = LoRA.of(
            found["A"], found["B"], alpha=float(alpha), rslora=bool(config.get("use_rslora")),
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        )  # fmt: skip
    return out


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the layer's name or its end after a dot."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def applied(base: Mapping[str, Array], adapter: Mapping[str, LoRA]) -> dict[str, Array]:
    """The base's tensors with ΔW added to ``LAYER.weight``.

    Raises
    ------
    InvalidInputError
        Layers that the base does not have, or another shape.
    """
    out = dict(base)
    for name, lora in adapter.items():
        key = f"{name}.weight" if f"{name}.weight" in base else name
        if key not in base or tuple(base[key].shape) != lora.shape:
            given = tuple(base[key].shape) if key in base else "no such tensor"
            raise InvalidInputError(
                f"The adapter of {name!r} is for a weight {lora.shape}; the base has {given}."
            )
        own = read(base[key])
        out[key] = write(key, own + read(lora.delta(), own), base[key])
    return out
