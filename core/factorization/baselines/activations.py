"""Units of activations: a top-k sparse autoencoder, and a non-negative factorization."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ...backend import to_numpy
from ...errors import BackendUnavailable, InvalidInputError
from ...fisher.per_example import DiagonalFishers
from ...types import FloatArray
from ..factorize import factorize
from ..method import DiagonalNPEFF
from .units import Units, check_same_columns, check_units, one_row_each

# Steps without firing after which a latent counts as dead and is trained on what is left over.
DEAD_AFTER = 50


@dataclass(frozen=True, slots=True)
class SparseAutoencoder:
    """x̂ = D·topₖ(E(x − b) + e) + b with unit columns of D, trained on ‖x − x̂‖²; score: the latent.

    Latents that no longer fire are trained on the residual (auxiliary loss), so that few stay dead.

    Attributes
    ----------
    n_units : int
        Latents.
    active : int
        k, how many latents may fire at once.
    steps, batch_size : int
    learning_rate : float
        Of Adam.
    auxiliary : float
        Weight of the auxiliary loss.

    References
    ----------
    Makhzani & Frey 2013, "k-sparse autoencoders", arXiv:1312.5663; Gao et al. 2024, "Scaling and
    evaluating sparse autoencoders", arXiv:2406.04093.
    """

    n_units: int
    active: int = 4
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-3
    auxiliary: float = 1.0 / 32.0
    name: ClassVar[str] = "top-k sparse autoencoder of activations"
    data: ClassVar[str] = "activations"

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Train on activations (n, d).

        Raises
        ------
        InvalidInputError
            NaN, or more active latents than latents.
        BackendUnavailable
            torch is not installed.
        """
        check_units(self.n_units)
        if not 1 <= self.active <= self.n_units or self.steps < 1:
            raise InvalidInputError(
                f"active={self.active} of {self.n_units} latents and steps={self.steps} were "
                "given; 1 <= active <= n_units and steps >= 1 are accepted."
            )
        x = one_row_each(data, "activations")
        scale = float(np.sqrt(np.square(x - x.mean(axis=0)).sum(axis=1).mean()))
        parts, unexplained = self._trained(x / scale if scale > 0 else x, seed)
        encoder, offset, centre = parts

        def embed(new: Any) -> FloatArray:
            y = check_same_columns(one_row_each(new, "activations"), x.shape[1], "Activations")
            hidden = (y / (scale or 1.0) - centre) @ encoder.T + offset
            return _top(hidden, self.active)

        facts = {**asdict(self), "unexplained": unexplained}
        return Units(scores=embed(x), name=self.name, embed=embed, facts=facts)

    def _trained(
        self, x: FloatArray, seed: int
    ) -> tuple[tuple[FloatArray, FloatArray, FloatArray], float]:
        """Encoder, its offset and the centre, in float64; and the unexplained share."""
        try:
            import torch
        except ImportError:
            raise BackendUnavailable(
                "SparseAutoencoder needs torch: pip install 'fishertope[torch]'."
            ) from None
        draw = torch.Generator().manual_seed(seed)
        data = torch.as_tensor(x, dtype=torch.float32)
        D = torch.randn(self.n_units, data.shape[1], generator=draw)
        D = (D / D.norm(dim=1, keepdim=True)).requires_grad_()
        E = D.detach().clone().requires_grad_()
        e = torch.zeros(self.n_units, requires_grad=True)
        b = data.mean(0).clone().requires_grad_()
        adam = torch.optim.Adam([D, E, e, b], lr=self.learning_rate)
        idle = torch.zeros(self.n_units)
        for step in range(self.steps):
            if len(data) > self.batch_size:
                batch = data[torch.randint(len(data), (self.batch_size,), generator=draw)]
            else:
                batch = data
            for group in adam.param_groups:
                group["lr"] = self.learning_rate * min(1.0, 5.0 * (1.0 - step / self.steps))
            hidden = (batch - b) @ E.T + e
            values, places = hidden.relu().topk(self.active, dim=1)
            code = torch.zeros_like(hidden).scatter(1, places, values)
            rest = batch - b - code @ D
            loss = rest.square().sum(1).mean()
            idle += 1.0
            idle[(code.detach() > 0).any(0)] = 0.0
            dead = idle > DEAD_AFTER
            if bool(dead.any()):
                found = hidden.masked_fill(~dead, -torch.inf).topk(
                    min(self.active, int(dead.sum())), dim=1
                )
                revived = torch.zeros_like(hidden).scatter(1, found.indices, found.values)
                again = (rest.detach() - revived @ D).square().sum(1).mean()
                loss = loss + self.auxiliary * again
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                D /= D.norm(dim=1, keepdim=True).clamp_min(1e-12)
        wide = [to_numpy(t.detach()).astype(np.float64) for t in (E, e, b, D)]
        code_all = _top((x - wide[2]) @ wide[0].T + wide[1], self.active)
        left = float(np.square(x - wide[2] - code_all @ wide[3]).sum())
        whole = float(np.square(x - x.mean(axis=0)).sum())
        return (wide[0], wide[1], wide[2]), left / whole if whole > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ActivationNMF:
    """[x₊, x₋] ≈ W H with W, H ≥ 0: activations split into their two signs; score: W.

    Attributes
    ----------
    n_units : int
    max_steps : int
    tol : float
        As in :class:`DiagonalNPEFF`.
    """

    n_units: int
    max_steps: int = 500
    tol: float = 1e-7
    name: ClassVar[str] = "NMF of activations"
    data: ClassVar[str] = "activations"

    def fit(self, data: Any, *, seed: int = 0) -> Units:
        """Factorize activations (n, d).

        Raises
        ------
        InvalidInputError
            NaN, or nothing but zeros.
        """
        check_units(self.n_units)
        x = one_row_each(data, "activations")
        method = DiagonalNPEFF(
            self.n_units, normalize=False, max_steps=self.max_steps, tol=self.tol
        )
        found = factorize(_split(x), method, seed=seed, on_failure="return")

        def embed(new: Any) -> FloatArray:
            y = check_same_columns(one_row_each(new, "activations"), x.shape[1], "Activations")
            return np.asarray(found.transform(_split(y)), dtype=np.float64)

        facts = {
            **asdict(self), "unexplained": found.relative_loss, "status": str(found.status),
        }  # fmt: skip
        scores = np.asarray(to_numpy(found.coefficients), dtype=np.float64)
        return Units(scores=scores, name=self.name, embed=embed, facts=facts)


def _split(x: FloatArray) -> DiagonalFishers:
    """The positive and the negative parts side by side; columns without a sign stay zero."""
    return DiagonalFishers(values=np.hstack([np.maximum(x, 0.0), np.maximum(-x, 0.0)]))


def _top(hidden: FloatArray, k: int) -> FloatArray:
    """Positive entries among the k largest of each row, zero elsewhere."""
    kept = np.argpartition(-hidden, k - 1, axis=1)[:, :k]
    out = np.zeros_like(hidden)
    np.put_along_axis(out, kept, np.take_along_axis(hidden, kept, axis=1), axis=1)
    return np.maximum(out, 0.0)
