"""Vertex programs in batches: a primal-dual interior-point method with one Cholesky a step."""

from __future__ import annotations

import torch

Tensor = torch.Tensor
RIDGE = 1e-11
_STEPS = 50
_GAP = 1e-14


@torch.no_grad()
def vertex_programs(
    generators: Tensor, targets: Tensor, unit_signs: Tensor, patterns: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights (b, m, d) and multipliers (b, m, n), all programs at once.

    Mehrotra's predictor-corrector for min ½wᵀHw − qᵀw, Gw = s ≥ 0: with D = diag(μ/s) a step solves
    (H + GᵀDG) Δw = −(Hw − q − Gᵀμ) − GᵀD(Gw − s) + Gᵀ(τ − μs)/s; GᵀDG has one d × d block a unit.
    The working set that it ends with, μ > s, is then solved with equalities.
    """
    dtype = generators.dtype
    x, y, v, s = (t.to(torch.float64) for t in (generators, targets, unit_signs, patterns))
    (n, d), (b, m) = x.shape, s.shape[:2]
    if b == 0:
        return generators.new_zeros((0, m, d)), generators.new_zeros((0, m, n))
    top = x.abs().amax(dim=0)
    power = torch.where(top > 0, torch.exp2(torch.ceil(torch.log2(top.clamp_min(1e-300)))), 1.0)
    x = x / power
    height = y.norm().clamp_min(1e-300)
    size = x.norm(dim=1).clamp_min(1e-300)
    phi = ((s > 0).to(x) * v[:, None])[..., None] * x  # (b, m, n, d)
    phi = phi.permute(0, 2, 1, 3).reshape(b, n, m * d)
    h = phi.mT @ phi
    scale = h.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-300)
    h = h / scale[:, None, None] + RIDGE * torch.eye(m * d, dtype=x.dtype, device=x.device)
    q = (phi.mT @ (y / height)) / scale[:, None].sqrt()
    cone = s[..., None] * (x / size[:, None])  # rows of unit length (b, m, n, d)
    w, mu = _interior(h, q, cone)
    w, mu = _polished(h, q, cone, w, mu)
    w = w * (height / scale.sqrt())[:, None, None] / power
    mu = mu * (height * scale.sqrt())[:, None, None] / size
    return w.to(dtype), mu.to(dtype)


def _interior(h: Tensor, q: Tensor, cone: Tensor) -> tuple[Tensor, Tensor]:
    b, m, n, d = cone.shape
    w = q.new_zeros((b, m, d))
    slack, mu = q.new_ones((b, m, n)), q.new_ones((b, m, n))
    for _ in range(_STEPS):
        dual = (h @ w.reshape(b, -1, 1))[..., 0] - q - _pull(cone, mu)
        primal = _push(cone, w) - slack
        gap = (mu * slack).mean(dim=(1, 2))
        done = (gap < _GAP) & (dual.abs().amax(dim=1) < 1e-11)
        if bool(done.all()):
            break
        ratio = mu / slack
        root = _factor(h, cone, ratio)

        state = (root, cone, dual, primal, ratio, slack)
        _, ds, dmu = _step(*state, -mu * slack)
        reach = torch.minimum(_reach(slack, ds), _reach(mu, dmu))[:, None, None]
        after = ((slack + reach * ds) * (mu + reach * dmu)).mean(dim=(1, 2))
        center = (after / gap.clamp_min(1e-300)).pow(3).clamp(max=1.0) * gap
        dw, ds, dmu = _step(*state, center[:, None, None] - mu * slack - ds * dmu)
        reach = 0.995 * torch.minimum(_reach(slack, ds), _reach(mu, dmu))[:, None, None]
        reach = torch.where(done[:, None, None], 0.0, reach)
        w, slack, mu = w + reach * dw, slack + reach * ds, mu + reach * dmu
        slack, mu = slack.clamp_min(1e-300), mu.clamp_min(1e-300)
    return w, torch.where(mu > slack, mu, 0.0)


def _step(
    root: Tensor,
    cone: Tensor,
    dual: Tensor,
    primal: Tensor,
    ratio: Tensor,
    slack: Tensor,
    goal: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes of w, s and μ towards μ∘s moved by ``goal``."""
    right = -dual - _pull(cone, ratio * primal - goal / slack)
    dw = torch.cholesky_solve(right[..., None], root)[..., 0].reshape(len(cone), cone.shape[1], -1)
    ds = _push(cone, dw) + primal
    return dw, ds, goal / slack - ratio * ds


def _polished(h: Tensor, q: Tensor, cone: Tensor, w: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the working set by a penalty that grows into equality; kept where it helps."""
    b = len(w)
    active = (mu > 0).to(w)
    heavy = 1e8 * active
    root = _factor(h, cone, heavy)
    u, force = w, mu
    for _ in range(3):  # multiplier steps: u minimises with + ½ρ‖G_A u‖² − force·G_A u
        right = q + _pull(cone, force)
        u = torch.cholesky_solve(right[..., None], root)[..., 0].reshape(w.shape)
        force = force - heavy * _push(cone, u)
    old, new = (_misses(h, q, cone, *p) for p in ((w, mu), (u, force)))
    better = ((new <= old) & u.isfinite().all(dim=(1, 2))).reshape(b, 1, 1)
    return torch.where(better, u, w), torch.where(better, force.clamp_min(0.0), mu)


def _misses(h: Tensor, q: Tensor, cone: Tensor, w: Tensor, mu: Tensor) -> Tensor:
    """The largest violation of any optimality condition, for each program."""
    b = len(w)
    dual = (h @ w.reshape(b, -1, 1))[..., 0] - q - _pull(cone, mu)
    slack = _push(cone, w)
    parts = [dual.abs().amax(dim=1)]
    parts += [t.amax(dim=(1, 2)) for t in (-slack, -mu, (mu * slack).abs())]
    return torch.stack(parts).amax(dim=0)


def _push(cone: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bmnd,bmd->bmn", cone, w)


def _pull(cone: Tensor, mu: Tensor) -> Tensor:
    return torch.einsum("bmnd,bmn->bmd", cone, mu).flatten(1)


def _factor(h: Tensor, cone: Tensor, ratio: Tensor) -> Tensor:
    """Cholesky of H + GᵀDG; the ridge grows where rounding has made it indefinite."""
    b, m, _, d = cone.shape
    blocks = torch.einsum("bmn,bmni,bmnj->bmij", ratio, cone, cone)
    matrix = h.clone().reshape(b, m, d, m, d)
    for j in range(m):
        matrix[:, j, :, j] += blocks[:, j]
    matrix = matrix.reshape(b, m * d, m * d)
    root, info = torch.linalg.cholesky_ex(matrix)
    lift = 1e-15
    while bool((info != 0).any()) and lift < 1e-3:
        lift *= 10
        size = matrix.diagonal(dim1=1, dim2=2)
        shift = torch.where(info[:, None] != 0, lift * size.amax(dim=1, keepdim=True), 0.0)
        root, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(shift.expand_as(size)))
    return root


def _reach(value: Tensor, change: Tensor) -> Tensor:
    """The largest step in (0, 1] that keeps value + step·change ≥ 0."""
    ratio = torch.where(change < 0, -value / change, torch.inf)
    return ratio.amin(dim=(1, 2)).clamp(max=1.0)
