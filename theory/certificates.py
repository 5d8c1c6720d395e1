"""What can be proven about a given network on given data, by code that no solver uses.

Needs the weights and the data alone. Local minima: the loss is convex in each of the cones around a
point, so a point at which no direction descends is a minimum of all of them. Global bounds: the
dual of Pilanci & Ergen's program, with its own walk over all cones.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from ..core.errors import InvalidInputError
from ..core.types import Array, FloatArray, NumpyArray
from .losses import Loss, loss_of
from .networks import ShallowNetwork, as_shallow

_TIGHT = 1e-8
_CROWD = 12
# A loss below this share of that of no network is rounding.
_NOTHING = 1e-14


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        "local minimum", "global optimum" or "lower bound".
    holds : bool or None
        ``None``: open; ``detail`` says why.
    detail : str
    miss : float or None
        The largest relative violation that was met.
    """

    name: str
    holds: bool | None
    detail: str
    miss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    """The outcome of :func:`certify`.

    Attributes
    ----------
    objective : float
        Loss of the network itself, plus its weight decay.
    lower_bound : float
        No network of any width has a smaller objective.
    claims : tuple of Claim
    n_units, n_dead : int
    exact_loss : Fraction or None
        The loss of these float64 weights on this float64 data in rational numbers, where small.
    """

    objective: float
    lower_bound: float
    claims: tuple[Claim, ...]
    n_units: int
    n_dead: int
    exact_loss: Fraction | None = None

    def claim(self, name: str) -> Claim:
        """The claim of that name."""
        return next(c for c in self.claims if c.name == name)

    @property
    def local_minimum(self) -> bool | None:
        """Whether the weights are a local minimum; ``None`` if open."""
        return self.claim("local minimum").holds

    @property
    def global_optimum(self) -> bool | None:
        """Whether the objective is the smallest that any network can have; ``None`` if open."""
        return self.claim("global optimum").holds

    @property
    def gap(self) -> float:
        """(objective − lower bound) relative to the objective."""
        return (self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)

    def __str__(self) -> str:
        words = {True: "proven", False: "refuted", None: "open"}
        lines = [
            f"objective {self.objective:.10g}, at least {self.lower_bound:.10g} for any network"
        ]
        lines += [f"{c.name}: {words[c.holds]} - {c.detail}" for c in self.claims]
        return "\n".join(lines)

    def __repr__(self) -> str:
        held = ", ".join(c.name for c in self.claims if c.holds) or "nothing"
        return f"Certificate(objective={self.objective:.6g}, proven: {held})"


def certify(
    network: Any,
    inputs: Array,
    targets: Array,
    *,
    signs: Array | None = None,
    dual: Array | None = None,
    loss: str = "squared",
    penalty: float = 0.0,
    tol: float = 1e-7,
    max_cones: int = 4_000_000,
) -> Certificate:
    """Prove what can be proven of a network with one hidden ReLU layer and one output.

    Parameters
    ----------
    network : object
        See :func:`~fishertope.theory.networks.as_shallow`: arrays, results of this package, torch
        modules, scikit-learn networks.
    inputs : array (n, d)
        As the network takes them: with the constant column for arrays made with one, without it for
        modules whose layers have a bias.
    targets : array (n,)
    signs : array (m,), optional
        Output signs, for a ``ReluSolution``.
    dual : array (n,), optional
        ν from which the lower bound is made, as ``RegularisedOptimum.dual`` (taken by itself from a
        network that has it); otherwise −∂ℓ/∂f of the network. Any ν gives a true bound.
    loss : {"squared", "logistic", "hinge"}
    penalty : float
        λ of (λ/2) Σ_j (‖w_j‖² + a_j²); hidden biases count, the output's offset does not.
    tol : float
        Relative size of what counts as zero in an optimality condition.
    max_cones : int
        Above it the walk over all cones is not made and what needs it stays open.

    Returns
    -------
    Certificate

    Notes
    -----
    Local minimum: for unit j with products v_j = |a_j| w_j ≠ 0 and tight rows T, the directional
    derivative is D(δ) = α·δ + Σ_T c_i (x_i·δ)_+ with α = sign(a_j) Σ_on r_i x_i + λ v_j/‖v_j‖ and
    c_i = sign(a_j) r_i. D ≥ 0 is decided in every cone of the rows T. A dead unit needs
    max over ‖u‖ ≤ 1 of −sign(a_j) Σ r_i (x_i·u)_+ ≤ λ.
    """
    held = as_shallow(network, signs=signs)
    x = held.rows(inputs)
    chosen, y = loss_of(loss, targets)
    if y.shape != (len(x),):
        raise InvalidInputError(f"{len(y)} targets were given for {len(x)} rows.")
    if not (np.isfinite(penalty) and penalty >= 0):
        raise InvalidInputError(f"penalty={penalty} was given; a finite number >= 0 is accepted.")
    f = np.maximum(x @ held.weights.T, 0) @ held.outputs + held.offset
    decay = 0.5 * penalty * float((held.weights**2).sum() + (held.outputs**2).sum())
    objective = chosen.value(f, y) + decay
    given = getattr(network, "dual", None) if dual is None else dual
    nu = -chosen.slope(f, y) if given is None else np.asarray(given, dtype=np.float64)
    if nu.shape != y.shape or not np.isfinite(nu).all():
        raise InvalidInputError(f"A dual of shape {nu.shape} was given; {y.shape}, finite, is due.")
    v = np.abs(held.outputs)[:, None] * held.weights
    reach = float(np.linalg.norm(v, axis=1).max(initial=0.0))
    dead = np.linalg.norm(v, axis=1) <= 1e-9 * max(reach, 1e-300)
    walk = _Walk.over(x, max_cones)
    local = _local(held, x, f, y, chosen, penalty, tol, dead, walk)
    lower, bound = _bound(chosen, nu, y, penalty, held, walk)
    answer = _global(objective, lower, chosen, y, penalty, tol, bound)
    return Certificate(
        objective=objective,
        lower_bound=lower,
        claims=(local, answer, bound),
        n_units=len(v),
        n_dead=int(dead.sum()),
        exact_loss=_exact_loss(held, x, y) if loss == "squared" and x.size <= 2000 else None,
    )


def _local(
    held: ShallowNetwork,
    x: FloatArray,
    f: FloatArray,
    y: FloatArray,
    loss: Loss,
    lam: float,
    tol: float,
    dead: NumpyArray,
    walk: _Walk | None,
) -> Claim:
    name = "local minimum"
    r = loss.slope(f, y)
    if loss.name == "hinge" and (np.abs(1 - y * f) <= 1e-7).any():
        return Claim(name=name, holds=None, detail="examples lie on the hinge's kink")
    if lam == 0 and loss.value(f, y) <= _NOTHING * loss.value(np.zeros(len(y)), y):
        return Claim(name=name, holds=True, detail="the loss is 0 up to rounding", miss=0.0)
    scale = float(np.linalg.norm(x, axis=1).max()) * (
        float(np.linalg.norm(r)) + 1e-12 * float(np.linalg.norm(y))
    ) + max(lam, 1e-300)
    misses = [0.0]
    if held.has_offset:
        misses.append(abs(float(r.sum())) / (np.sqrt(len(r)) * (float(np.linalg.norm(r)) + 1e-300)))
        if float(np.abs(r).max()) <= 1e-12 * max(float(np.abs(y).max()), 1e-300):
            misses[-1] = 0.0
    for w, a, off in zip(held.weights, held.outputs, dead, strict=True):
        if off:
            continue
        if lam > 0:
            misses.append(abs(abs(float(a)) / float(np.linalg.norm(w)) - 1.0))
        miss = _unit_miss(x, r, float(np.sign(a)), w, lam, scale)
        if miss is None:
            return Claim(name=name, holds=None, detail="too many rows are tight at one unit")
        misses.append(miss)
    worst = max(misses)
    if worst > tol:
        detail = f"some direction descends (relative violation {worst:.1e}, above {tol:g})"
        return Claim(name=name, holds=False, detail=detail, miss=worst)
    if dead.any():
        if walk is None:
            detail = f"no live unit can move, but {int(dead.sum())} dead units were not looked at"
            return Claim(name=name, holds=None, detail=detail, miss=worst)
        for sign in {float(np.sign(a)) for a in held.outputs[dead]} | set():
            steep = max(walk.maximum(-s * r) for s in ([sign] if sign else [1.0, -1.0]))
            if steep > lam + tol * scale:
                detail = f"a dead unit can descend (slope {steep - lam:.1e})"
                return Claim(name=name, holds=False, detail=detail, miss=steep - lam)
    kinds = "no direction descends in any of the cones around the weights"
    return Claim(
        name=name, holds=True, detail=f"{kinds} (relative violation {worst:.1e})", miss=worst
    )


def _unit_miss(
    x: FloatArray, r: FloatArray, sign: float, w: FloatArray, lam: float, scale: float
) -> float | None:
    """How far D ≥ 0 is from holding for one unit, relative to ``scale``; ``None``: not decided."""
    from scipy.optimize import lsq_linear, nnls

    products = x @ w
    tight = np.abs(products) <= _TIGHT * np.linalg.norm(x, axis=1) * float(np.linalg.norm(w))
    on = (products > 0) & ~tight
    alpha = sign * (r[on] @ x[on]) + lam * w / float(np.linalg.norm(w))
    rows, c = x[tight], sign * r[tight]
    if len(rows) == 0:
        return float(np.abs(alpha).max()) / scale
    lengths = np.linalg.norm(rows, axis=1)
    rows, c = rows / lengths[:, None], c * lengths
    independent = len(rows) <= rows.shape[1] and np.linalg.svd(rows)[1][-1] > 1e-9
    if independent:
        beta = np.linalg.lstsq(rows.T, alpha, rcond=None)[0]
        rest = float(np.abs(alpha - rows.T @ beta).max())
        return max(rest, float(beta.max()), float((-c - beta).max())) / scale
    if (c >= 0).all():
        # D is convex: D ≥ 0 exactly if α = Σ β_i x_i with −c ≤ β ≤ 0.
        if (c == 0).all():
            return float(np.abs(alpha).max()) / scale
        answer = lsq_linear(rows.T, alpha, bounds=(-c - 1e-300, np.zeros(len(c))), tol=1e-14)
        return float(np.abs(alpha - rows.T @ answer.x).max()) / scale
    if len(rows) > _CROWD:
        return None
    worst = 0.0
    for signs in product((1.0, -1.0), repeat=len(rows)):
        s = np.array(signs)
        cone = s[:, None] * rows
        force = alpha + (c * (s > 0)) @ rows
        mu, _ = nnls(cone.T, force)
        worst = max(worst, float(np.abs(force - mu @ cone).max()))
    return worst / scale


def _bound(
    loss: Loss, nu: FloatArray, y: FloatArray, lam: float, held: ShallowNetwork, walk: _Walk | None
) -> tuple[float, Claim]:
    name = "lower bound"
    if lam == 0:
        detail = "without weight decay the loss can reach 0 for some width; that is the bound"
        return 0.0, Claim(name=name, holds=True, detail=detail)
    if held.has_offset:
        detail = "the output has an offset without weight decay, which the dual does not know"
        return 0.0, Claim(name=name, holds=None, detail=detail)
    if walk is None:
        return 0.0, Claim(name=name, holds=None, detail="too many cones for the walk (max_cones)")
    reach = max(walk.maximum(nu), walk.maximum(-nu))
    tau = min(1.0, lam / reach) if reach > 0 else 1.0
    lower = max(loss.dual(tau * nu, y), 0.0)
    detail = f"dual point ν with Ω(ν) = {reach:.8g} against λ = {lam:g}, over {walk.n_cones} cones"
    return lower, Claim(name=name, holds=True, detail=detail)


def _global(
    objective: float,
    lower: float,
    loss: Loss,
    y: FloatArray,
    lam: float,
    tol: float,
    bound: Claim,
) -> Claim:
    name = "global optimum"
    scale = loss.value(np.zeros(len(y)), y) or 1.0
    if lam == 0:
        if objective <= _NOTHING * scale:
            return Claim(name=name, holds=True, detail="the loss is 0 up to rounding", miss=0.0)
        detail = "without weight decay only a zero loss proves it; brute_force decides small cases"
        return Claim(name=name, holds=None, detail=detail)
    if bound.holds is None:
        return Claim(name=name, holds=None, detail=bound.detail)
    gap = (objective - lower) / max(objective, 1e-300)
    if gap <= max(tol, 1e-12):
        return Claim(name=name, holds=True, detail=f"relative duality gap {gap:.1e}", miss=gap)
    detail = f"relative duality gap {gap:.1e}: another network may be better by that, at most"
    return Claim(name=name, holds=None, detail=detail, miss=gap)


def _exact_loss(held: ShallowNetwork, x: FloatArray, y: FloatArray) -> Fraction:
    a = [Fraction(float(q)) for q in held.outputs]
    w = [[Fraction(float(q)) for q in unit] for unit in held.weights]
    total = Fraction(0)
    for row, goal in zip(x, y, strict=True):
        point = [Fraction(float(q)) for q in row]
        value = Fraction(float(held.offset)) - Fraction(float(goal))
        for unit, out in zip(w, a, strict=True):
            value += out * max(Fraction(0), sum(p * q for p, q in zip(unit, point, strict=True)))
        total += value * value
    return total / 2


@dataclass(slots=True)
class _Walk:
    """All cones of an arrangement, by its rays: every closed cone of full rank has one.

    A ray is tight at D − 1 independent rows; every choice of signs for the rows tight there counts.
    Choices that no direction has are harmless: their closed cones hold true directions only.
    """

    rows: FloatArray
    unit: FloatArray
    groups: list[tuple[NumpyArray, NumpyArray]]

    @classmethod
    def over(cls, x: FloatArray, max_cones: int) -> _Walk | None:
        """``None`` if there are too many."""
        kept = x[np.linalg.norm(x, axis=1) > 0]
        _, values, right = np.linalg.svd(kept, full_matrices=False)
        d = int((values > 1e-12 * values[0]).sum())
        n = len(x)
        if 2**d * comb(n, d - 1) > max_cones:
            return None
        rows = x @ right[:d].T
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(lengths > 0, lengths, 1.0)
        signs: dict[int, list[NumpyArray]] = {}
        places: dict[int, list[NumpyArray]] = {}
        subsets = np.array(list(combinations(range(n), d - 1)), dtype=np.int64)
        subsets = subsets.reshape(len(subsets), d - 1)
        for at in range(0, len(subsets), 4096):
            block = subsets[at : at + 4096]
            direction, small = np.ones((1, 1)), np.ones(1)
            if d > 1:
                _, sizes, basis = np.linalg.svd(unit[block])
                direction, small = basis[:, -1], sizes[:, -1]
            products = direction[small > 1e-9] @ unit.T
            tight = np.abs(products) <= 1e-9
            counts = tight.sum(axis=1)
            for t in np.unique(counts):
                if t > _CROWD:
                    return None
                chosen = counts == t
                signs.setdefault(int(t), []).append(np.where(products[chosen] > 0, 1, -1))
                where = np.nonzero(tight[chosen])[1].reshape(int(chosen.sum()), int(t))
                places.setdefault(int(t), []).append(where)
        groups = [
            (np.concatenate(signs[t]).astype(np.int8), np.concatenate(places[t]))
            for t in sorted(signs)
        ]
        return cls(rows, unit, groups)

    @property
    def n_cones(self) -> int:
        """Sign choices looked at (a cone is met at each of its rays)."""
        return sum(2 * len(s) * 2 ** t.shape[1] for s, t in self.groups)

    def maximum(self, nu: FloatArray) -> float:
        """The largest value over ‖u‖ ≤ 1 of Σ ν_i (x_i·u)_+."""
        weighted = nu[:, None] * self.rows
        best = 0.0
        queue: list[tuple[float, NumpyArray, FloatArray]] = []
        for signs, tight in self.groups:
            for at in range(0, len(signs), 4096):
                for side in (1, -1):
                    block, where = side * signs[at : at + 4096], tight[at : at + 4096]
                    for choice in product((1, -1), repeat=where.shape[1]):
                        best = self._look(block, where, choice, weighted, best, queue)
        queue.sort(key=lambda item: -item[0])
        for limit, s, g in queue:
            if limit <= best:
                break
            best = max(best, _distance_inside(g, s[:, None] * self.unit))
        return best

    def _look(
        self,
        block: NumpyArray,
        where: NumpyArray,
        choice: tuple[int, ...],
        weighted: FloatArray,
        best: float,
        queue: list[tuple[float, NumpyArray, FloatArray]],
    ) -> float:
        """Value of the cones whose gradient lies inside; the others go into ``queue``."""
        s = block.astype(np.float64)
        if where.shape[1]:
            np.put_along_axis(s, where, np.array(choice, dtype=np.float64)[None, :], axis=1)
        g = (s > 0) @ weighted
        sizes = np.linalg.norm(g, axis=1)
        kept = np.flatnonzero(sizes > best)
        s, g, sizes = s[kept], g[kept], sizes[kept]
        if len(kept) == 0:
            return best
        worst = np.maximum(-(s * (g @ self.unit.T)).min(axis=1), 0.0)
        inside = worst <= 1e-13 * sizes
        best = max(best, float(sizes[inside].max(initial=0.0)))
        bounds = np.sqrt(np.maximum(sizes**2 - worst**2, 0.0))
        for k in np.flatnonzero(~inside & (bounds > best)):
            queue.append((float(bounds[k]), s[k].astype(np.int8), g[k]))
        return best


def _distance_inside(g: FloatArray, cone: FloatArray) -> float:
    """‖Π g‖ for the cone {u : rows·u ≥ 0}."""
    from scipy.optimize import nnls

    scale = float(np.linalg.norm(g))
    mu, _ = nnls(cone.T, -g / scale, maxiter=30 * len(cone))
    return scale * float(np.linalg.norm(g / scale + mu @ cone))
