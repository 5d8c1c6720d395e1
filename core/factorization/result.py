"""What a factorization found, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np

from ..backend import BackendChoice, to_numpy
from ..display import Shown
from ..errors import CorruptFileError, InvalidInputError
from ..fisher.per_example import DiagonalFishers, LowRankFishers
from ..fisher.store import FisherStore
from ..model.sites import Site
from ..status import Status
from ..storage.arrays import load_arrays, save_arrays
from ..types import Array, Device, FloatArray, IntArray, NumpyArray
from .history import History
from .method import DiagonalNPEFF, LowRankNPEFF

KIND = "factorization"
METHODS: dict[str, type[LowRankNPEFF] | type[DiagonalNPEFF]] = {
    "LowRankNPEFF": LowRankNPEFF,
    "DiagonalNPEFF": DiagonalNPEFF,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factorization(Shown):
    """F_i/‖F_i‖_F ≈ Σ_k W_ik g_k g_kᵀ, or for diagonals f_i/‖f_i‖₂ ≈ Σ_k W_ik h_k.

    Attributes
    ----------
    coefficients : array (n, r)
        W ≥ 0: how much of component k is in example i.
    components : array (r, m)
        G: unit-norm pseudo-Fisher vectors g_k; the largest entry is positive; ordered by Σ_i W_ik.
    norms : float64 array (n,)
        ν_i = ‖F_i‖_F of the Fishers before normalisation.
    sites : tuple of Site
        The parameters behind the columns of G.
    method : LowRankNPEFF or DiagonalNPEFF
    status : Status
    loss, total : float
        L and T = Σ_i ‖F_i/ν_i‖²_F of the kept rows; ``relative_loss`` is their ratio.
    residual, kkt : float
        ‖∇_G L‖/‖4(W̃∘B)ᵀA‖ and the relative KKT residual of W at the result.
    history : History
    products : float
        Data products used, in full-size equivalents; starts, compression and checks included.
    backend : str
    seed : int or None
    facts : mapping
        Threads, provenance of the Fishers.
    """

    coefficients: Array
    components: Array
    norms: FloatArray
    sites: tuple[Site, ...]
    method: LowRankNPEFF | DiagonalNPEFF
    status: Status
    loss: float
    total: float
    residual: float
    kkt: float
    history: History
    products: float
    backend: str
    seed: int | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_components(self) -> int:
        """R."""
        return int(self.components.shape[0])

    @property
    def n_examples(self) -> int:
        """N."""
        return int(self.coefficients.shape[0])

    @property
    def relative_loss(self) -> float:
        """L / T: 0 is a perfect fit, 1 explains nothing."""
        return self.loss / self.total

    @property
    def shares(self) -> FloatArray:
        """Share of the explained Fisher mass (r,).

        Σ_i W_ik tr(g_kg_kᵀ) = Σ_i W_ik over the sum of all; for diagonals Σ_i W_ik Σ_j h_kj.
        """
        mass = to_numpy(self.coefficients).sum(axis=0, dtype=np.float64)
        if isinstance(self.method, DiagonalNPEFF):
            mass = mass * to_numpy(self.components).sum(axis=1, dtype=np.float64)
        whole = mass.sum()
        return np.asarray(mass / whole if whole > 0 else mass)

    def top_examples(self, k: int) -> IntArray:
        """Examples with the largest coefficients of each component, the largest first (r, k)."""
        if k < 1:
            raise InvalidInputError(f"k={k} was given; a whole number >= 1 is accepted.")
        W = to_numpy(self.coefficients)
        order = np.argsort(-W, axis=0, kind="stable")[: min(k, len(W))]
        return np.asarray(order.T, dtype=np.int64)

    def component(self, k: int) -> dict[str, NumpyArray]:
        """g_k by parameter name, each in the parameter's shape.

        Raises
        ------
        InvalidInputError
            If the columns are not parameters, or ``k`` is out of range.
        """
        from ..model.sites import unflatten

        if not self.sites:
            raise InvalidInputError("The columns of this factorization are not model parameters.")
        if not 0 <= k < self.n_components:
            raise InvalidInputError(
                f"component {k} was asked for; there are 0 to {self.n_components - 1}."
            )
        return unflatten(to_numpy(self.components)[k], self.sites)

    def transform(
        self,
        fishers: LowRankFishers | DiagonalFishers | FisherStore,
        *,
        backend: BackendChoice = "auto",
        device: Device = None,
        tol: float = 1e-10,
    ) -> Array:
        """Coefficients of new examples for these components: argmin_{W≥0} L(W, G) with G fixed.

        Parameters
        ----------
        fishers : LowRankFishers, DiagonalFishers or FisherStore
            Of the fitted kind, with the same columns; normalised as the fitted ones were.
        tol : float
            The coordinate descent that finds the positive coefficients stops when none of an
            example moves by more than this share of its largest; block pivoting then solves for
            them exactly.

        Returns
        -------
        array (n', r) ≥ 0
            Zero for examples whose Fisher is zero. One data product.
        """
        diagonal = isinstance(self.method, DiagonalNPEFF)
        if isinstance(fishers, FisherStore):
            options: dict[str, Any] = {"backend": backend, "device": device, "tol": tol}
            parts = [to_numpy(self.transform(block, **options)) for block in fishers.blocks()]
            return np.concatenate(parts) if parts else np.zeros((0, self.n_components))
        if isinstance(fishers, DiagonalFishers) is not diagonal:
            kind = "DiagonalFishers" if diagonal else "LowRankFishers"
            raise InvalidInputError(f"{fishers} were given; this factorization takes {kind}.")
        if fishers.n_columns != self.components.shape[1]:
            raise InvalidInputError(
                f"Fishers with {fishers.n_columns} columns were given; these components have "
                f"{self.components.shape[1]}. Use the same parameters and the same reduction."
            )
        from .transform import new_coefficients

        return new_coefficients(
            fishers,
            self.components,
            normalize=self.method.normalize,
            backend=backend,
            device=device,
            tol=tol,
        )

    def expand(
        self, fishers: LowRankFishers | FisherStore, n_new: int, **options: Any
    ) -> Factorization:
        """More components for what these leave unexplained; see :func:`expand`."""
        from .expansion import expand

        return expand(self, fishers, n_new, **options)

    def prune(self, fishers: Any, **options: Any) -> Factorization:
        """Some components only, with exact coefficients; see :func:`prune`."""
        from .revise import prune

        return prune(self, fishers, **options)

    def merge(self, fishers: Any, groups: Any, **options: Any) -> Factorization:
        """Groups of components made one, with exact coefficients; see :func:`merge`."""
        from .revise import merge

        return merge(self, fishers, groups, **options)

    def lift(self, source: Any, data: Any = None, **options: Any) -> Factorization:
        """The components over all parameters, after a fit of projected rows; see :func:`lift`."""
        from .lift import lift

        return lift(self, source, data, **options)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file, atomically: arrays, history, method, provenance."""
        arrays = {
            "coefficients": to_numpy(self.coefficients),
            "components": to_numpy(self.components),
            "norms": self.norms,
            "history.loss": self.history.loss,
            "history.residual": self.history.residual,
            "history.products": self.history.products,
            "history.seconds": self.history.seconds,
            "history.phase": self.history.phase,
        }
        names = ("loss", "total", "residual", "kkt", "products", "backend", "seed")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names}
        facts |= {
            "kind": type(self.method).__name__,
            "method": asdict(self.method),
            "status": str(self.status),
            "phases": list(self.history.phases),
            "sites": [asdict(s) for s in self.sites],
            "facts": dict(self.facts),
        }
        save_arrays(path, arrays, facts, kind=KIND)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Factorization:
        """Read what :meth:`save` wrote; arrays come back as NumPy.

        Raises
        ------
        CorruptFileError
            If the file is truncated or altered.
        InvalidInputError
            If it is a sound file of another kind.
        """
        arrays, facts = load_arrays(path, kind=KIND)
        try:
            history = History(
                **{
                    name: arrays[f"history.{name}"]
                    for name in ("loss", "residual", "products", "seconds", "phase")
                },
                phases=tuple(facts["phases"]),
            )
            sites = tuple(
                Site(s["name"], tuple(s["shape"]), s["start"], s["stop"]) for s in facts["sites"]
            )
            method = METHODS[facts["kind"]](**facts["method"])
            W, G, norms = (arrays[k] for k in ("coefficients", "components", "norms"))
            if W.ndim != 2 or G.ndim != 2 or W.shape[1] != len(G) or norms.shape != (len(W),):
                raise ValueError(f"shapes {W.shape}, {G.shape} and {norms.shape} do not fit")
            values: dict[str, Any] = {name: facts[name] for name in ("backend", "seed", "facts")}
            # Infinite numbers are text in JSON.
            numbers = ("loss", "total", "residual", "kkt", "products")
            values |= {name: float(facts[name]) for name in numbers}
            if not 0 < values["total"] < float("inf"):
                raise ValueError(f"total={values['total']} is not a finite number > 0")
            return cls(
                coefficients=W,
                components=G,
                norms=norms,
                sites=sites,
                method=method,
                status=Status(facts["status"]),
                history=history,
                **values,
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as exc:
            raise CorruptFileError(
                f"{path}: the contents are not a factorization of ours ({exc}). Write the file "
                "again with Factorization.save."
            ) from exc

    def replace(self, **changes: Any) -> Factorization:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        return (
            f"Factorization(n={self.n_examples}, r={self.n_components}, "
            f"m={self.components.shape[1]}, relative_loss={max(self.relative_loss, 0.0):.4f}, "
            f"status={str(self.status)!r})"
        )


def gauge_fixed(W: NumpyArray, G: NumpyArray, *, power: int = 2) -> tuple[NumpyArray, NumpyArray]:
    """(W, G) with unit-norm g_k, positive largest entries, and Σ_i W_ik in decreasing order.

    (W_k, g_k) and (W_k/s², ±s g_k) describe the same component (with ``power`` = 1, of diagonals,
    (W_k/s, s h_k)); this fixes the choice. Components with g_k = 0 come last, with zero
    coefficients.
    """
    norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in G])
    live = norms > 0
    scale = np.where(live, norms, 1.0)
    W = W.astype(np.float64) * np.where(live, norms**power, 0.0)
    order = np.argsort(-W.sum(axis=0), kind="stable")
    out = np.empty_like(G, order="C")
    for new, old in enumerate(order):  # a row at a time: components may be much of the memory
        g = G[old] / G.dtype.type(scale[old])
        out[new] = -g if g[np.abs(g).argmax()] < 0 else g
    return np.ascontiguousarray(W[:, order].astype(G.dtype)), out
