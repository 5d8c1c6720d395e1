"""Sparse feed-forward layers: a mixture of experts (two a token) and Switch (one a token)."""

from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishertope.core.errors import InvalidInputError

from .config import Activation, Seq2SeqConfig
from .layers import activate, at_least_float32

SecondPolicy: TypeAlias = Literal["random", "all", "threshold", "none"]
Dispatch: TypeAlias = Literal["sorted", "dense"]
LEAST_CAPACITY = 4


def expert_capacity(tokens: int, experts: int, factor: float) -> int:
    """``max(min(S, floor(S factor / E)), 4)`` tokens of a group of ``S`` for each expert."""
    return max(min(tokens, int(tokens * factor / experts)), LEAST_CAPACITY)


def split_into_groups(tokens: int, largest: int) -> int:
    """The smallest number of equal groups of at most ``largest`` tokens."""
    groups = -(-tokens // largest)
    while tokens % groups:
        groups += 1
    return groups


def within_capacity(choices: Tensor, experts: int, capacity: int) -> Tensor:
    """Which choices find room: those whose place in the queue of their expert is below capacity.

    ``choices`` ``(groups, queue)`` are expert numbers in the order of the queue, or ``experts``
    for none (never room). The place is the exclusive cumulative count of the same number.
    """
    chosen = F.one_hot(choices, experts + 1)
    place = (chosen.cumsum(1) - chosen).gather(2, choices[..., None])[..., 0]
    return (place < capacity) & (choices < experts)


def balance_loss(probabilities: Tensor, first: Tensor, real: Tensor) -> Tensor:
    """``E**2 mean_e(fraction_e * p_e)``, the mean of all groups; 1 where both are uniform.

    Parameters
    ----------
    probabilities
        ``(groups, tokens, E)`` of the router; ``p_e`` is their mean over the real tokens.
    first
        ``(groups, tokens)``, each token's first choice; ``fraction_e`` counts these.
    real
        ``(groups, tokens)`` bool.
    """
    experts = probabilities.shape[-1]
    weight = real.to(probabilities.dtype)
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1))[..., None]
    fraction = (F.one_hot(first, experts) * weight).sum(1)
    mean = (probabilities * weight).sum(1)
    return experts**2 * (fraction * mean).mean()


class _Experts(nn.Module):
    """``E`` feed-forward layers without biases, a router, groups, and capacity."""

    choices: int
    routes = True
    """Tells a block that there is a mask to be given."""

    def __init__(
        self, d_model: int, d_ff: int, experts: int, *, activation: Activation = "relu",
        capacity_factor: float | None = None, capacity_factor_eval: float | None = None,
        group_size: int | None = 1024, loss_weight: float = 1e-2, init_scale: float = 0.1,
        dropout: float = 0.0, dispatch: Dispatch = "sorted",
    ) -> None:  # fmt: skip
        super().__init__()
        factors = [f for f in (capacity_factor, capacity_factor_eval) if f is not None]
        if min(d_model, d_ff, experts, *factors, group_size or 1) <= 0 or experts < self.choices:
            raise InvalidInputError(
                f"d_model={d_model}, d_ff={d_ff}, experts={experts}, capacity_factor="
                f"{capacity_factor}, group_size={group_size}; all must be positive (a factor or "
                f"group size may be None), with at least {self.choices} experts"
            )
        self.experts = experts
        self.activation: Activation = activation
        self.capacity_factor = capacity_factor
        self.capacity_factor_eval = capacity_factor_eval
        self.group_size, self.loss_weight = group_size, loss_weight
        self.init_scale, self.dispatch = init_scale, dispatch
        self.router = nn.Linear(d_model, experts, bias=False)
        self.wi = nn.Parameter(torch.empty(experts, d_ff, d_model))
        self.wo = nn.Parameter(torch.empty(experts, d_model, d_ff))
        self.dropout = nn.Dropout(dropout)
        self._loss: Tensor | None = None
        self.initialise()

    @classmethod
    def from_config(cls, config: Seq2SeqConfig) -> Self:
        """The layer that a configuration describes."""
        return cls(
            config.d_model, config.expert_ff or config.d_ff, config.experts,
            activation=config.activation, capacity_factor=config.capacity_factor,
            loss_weight=config.auxiliary_weight, dropout=config.dropout,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """Without the last loss, whose graph can be neither copied nor stored."""
        return {**self.__dict__, "_loss": None}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Normal with variance ``init_scale / inputs``, the router too."""
        for weight in (self.router.weight, self.wi, self.wo):
            weight.normal_(0.0, (self.init_scale / weight.shape[-1]) ** 0.5, generator=generator)

    @staticmethod
    def count(d_model: int, d_ff: int, experts: int) -> int:
        """Number of parameters."""
        return experts * (2 * d_model * d_ff + d_model)

    def auxiliary_loss(self) -> Tensor | None:
        """``loss_weight`` times the balance loss of the last pass if that was in training."""
        return self._loss

    def capacity(self, tokens: int) -> int | None:
        """Tokens of a group of ``tokens`` that each expert takes now; None is no limit."""
        factor = self.capacity_factor
        if not self.training and self.capacity_factor_eval is not None:
            factor = self.capacity_factor_eval
        return None if factor is None else expert_capacity(tokens, self.experts, factor)

    def route(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router probabilities, choices and gates of ``(groups, tokens, d_model)``.

        Choices and gates are ``(groups, tokens, choices)``; a choice equal to the number of
        experts is none.
        """
        raise NotImplementedError

    def probabilities(self, x: Tensor) -> Tensor:
        """``softmax(W_r x)`` in float32 or wider."""
        wide = at_least_float32(x)
        return torch.softmax(F.linear(wide, self.router.weight.to(wide.dtype)), -1)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map ``(batch, n, d_model)`` to the same shape.

        ``mask`` ``(batch, n)`` is true at real tokens; others go to no expert and give zero.
        """
        rows, n, width = x.shape
        groups = rows if self.group_size is None else split_into_groups(rows * n, self.group_size)
        grouped = x.reshape(groups, -1, width)
        if mask is None:
            real = torch.ones(grouped.shape[:2], dtype=torch.bool, device=x.device)
        else:
            real = mask.expand(rows, n).reshape(groups, -1)
        probabilities, choices, gates = self.route(grouped, real)
        self._loss = None
        if self.loss_weight and self.training:
            first = probabilities.argmax(-1)
            self._loss = self.loss_weight * balance_loss(probabilities, first, real)
        choices = choices.masked_fill(~real[..., None], self.experts)
        capacity = self.capacity(grouped.shape[1])
        if capacity is None:
            kept = choices < self.experts
        else:  # second choices queue behind all first ones
            queue = choices.transpose(1, 2).flatten(1)
            kept = within_capacity(queue, self.experts, capacity)
            kept = kept.view(groups, self.choices, -1).transpose(1, 2)
        arguments = (
            grouped.reshape(-1, width),
            choices.masked_fill(~kept, self.experts).flatten(0, 1),
            gates.flatten(0, 1).to(x.dtype),
        )
        out = self._sorted(*arguments) if self.dispatch == "sorted" else self._dense(*arguments)
        return out.view_as(x)

    def _sorted(self, x: Tensor, choices: Tensor, gates: Tensor) -> Tensor:
        """Tokens gathered by expert, so that each expert is two products."""
        order = choices.flatten().argsort(stable=True)
        counts: list[int] = choices.flatten().bincount(minlength=self.experts + 1).tolist()
        order = order[: order.shape[0] - counts[-1]]
        token = order // self.choices
        parts = torch.split(x.index_select(0, token), counts[:-1])
        results = [
            F.linear(self.dropout(activate(self.activation, F.linear(part, into))), back)
            for part, into, back in zip(parts, self.wi.unbind(), self.wo.unbind(), strict=True)
        ]
        scaled = torch.cat(results) * gates.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, token, scaled)

    def _dense(self, x: Tensor, choices: Tensor, gates: Tensor) -> Tensor:
        """All experts for all tokens; shapes do not depend on values, as ``torch.vmap`` needs."""
        chosen = choices[..., None] == torch.arange(self.experts, device=x.device)
        weight = (chosen * gates[..., None]).sum(1)
        hidden = activate(self.activation, torch.einsum("td,efd->etf", x, self.wi))
        out = self.dropout(hidden) @ self.wo.transpose(1, 2)
        return torch.einsum("etd,te->td", out, weight)


class MixtureOfExperts(_Experts):
    """``g1 FFN_a(x) + g2 FFN_b(x)`` with the two most probable experts of each token.

    ``p = softmax(W_r x)`` in float32; ``g1`` and ``g2`` are the two largest entries divided by
    their sum; experts are ``W_o act(W_i x)`` without biases. The second expert is used with
    probability ``min(1, g2 / second_threshold)``.

    Parameters
    ----------
    d_model, d_ff, experts
        Sizes; ``d_ff`` is that of one expert.
    capacity_factor, capacity_factor_eval
        An expert takes ``max(min(S, floor(S factor / E)), 4)`` tokens of a group of ``S``; second
        choices queue behind all first choices of the group, and what finds no room is dropped
        (its gate is not given to the other expert). ``None`` is no limit (for evaluation: the
        factor of training). With a limit the output of a token depends on the other tokens of
        its group, later ones and other examples included: causality, cached decoding and
        per-example gradients need ``None``.
    group_size
        Tokens of the batch are cut into equal groups of at most so many; ``None`` makes every
        row a group.
    loss_weight
        Factor of the balance loss ``E**2 mean_e(fraction_e * mean p_e)``.
    init_scale
        Weights have variance ``init_scale / inputs``.
    second_policy, second_policy_eval
        ``"random"`` as above, ``"all"`` always, ``"threshold"`` where ``g2`` exceeds the
        threshold, ``"none"`` never. The released code draws in evaluation too; here evaluation
        repeats itself unless told otherwise.
    dispatch
        ``"sorted"`` computes each expert on its tokens; ``"dense"`` all on all, for ``torch.vmap``.

    Notes
    -----
    Parameters: ``E (2 d_model d_ff + d_model)``. Cost a token: ``4 d_model d_ff + E d_model``
    multiply-adds. Sources: Shazeer et al., arXiv 1701.06538; Lepikhin et al., arXiv 2006.16668;
    Narang et al., arXiv 2102.11972.
    """

    choices = 2

    def __init__(
        self, d_model: int, d_ff: int, experts: int, *, activation: Activation = "relu",
        capacity_factor: float | None = None, capacity_factor_eval: float | None = None,
        group_size: int | None = 1024, loss_weight: float = 1e-2, init_scale: float = 0.1,
        dropout: float = 0.0, dispatch: Dispatch = "sorted",
        second_policy: SecondPolicy = "random", second_policy_eval: SecondPolicy = "all",
        second_threshold: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(
            d_model, d_ff, experts, activation=activation, capacity_factor=capacity_factor,
            capacity_factor_eval=capacity_factor_eval, group_size=group_size,
            loss_weight=loss_weight, init_scale=init_scale, dropout=dropout, dispatch=dispatch,
        )  # fmt: skip
        for policy in (second_policy, second_policy_eval):
            if policy not in ("random", "all", "threshold", "none"):
                raise InvalidInputError(
                    f"second policy {policy!r}; accepted are 'random', 'all', 'threshold', 'none'"
                )
        self.second_policy, self.second_policy_eval = second_policy, second_policy_eval
        self.second_threshold = second_threshold

    def route(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two choices a token, with gates that sum to 1."""
        probabilities = self.probabilities(x)
        gates, choices = probabilities.topk(2, -1)
        gates = gates / gates.sum(-1, keepdim=True)
        second = gates[..., 1].detach()
        policy = self.second_policy if self.training else self.second_policy_eval
        if policy == "random":
            used = torch.rand_like(second) < second / self.second_threshold
        elif policy == "threshold":
            used = second > self.second_threshold
        else:
            used = torch.full_like(second, policy == "all", dtype=torch.bool)
        wanted = torch.stack([torch.ones_like(used), used], -1)
        return probabilities, choices.masked_fill(~wanted, self.experts), gates


class SwitchFeedForward(_Experts):
    """``p_e FFN_e(x)`` with the most probable expert ``e`` of each token.

    ``p = softmax(W_r x)`` in float32, in training with each entry of ``x`` multiplied by a number
    uniform in ``1 - jitter ... 1 + jitter``. A token's place in the queue of its expert is the
    exclusive cumulative count in the order of tokens; from the capacity on, the output is zero.

    Parameters
    ----------
    d_model, d_ff, experts, capacity_factor, capacity_factor_eval, group_size, loss_weight
        As for :class:`MixtureOfExperts`; so are ``init_scale`` and ``dispatch``.
    jitter
        See above.

    Notes
    -----
    Parameters: ``E (2 d_model d_ff + d_model)``. Cost a token: ``2 d_model d_ff + E d_model``
    multiply-adds. Sources: Fedus et al., arXiv 2101.03961; Narang et al., arXiv 2102.11972.
    """

    choices = 1

    def __init__(
        self, d_model: int, d_ff: int, experts: int, *, activation: Activation = "relu",
        capacity_factor: float | None = None, capacity_factor_eval: float | None = None,
        group_size: int | None = 1024, loss_weight: float = 1e-2, init_scale: float = 0.1,
        dropout: float = 0.0, dispatch: Dispatch = "sorted", jitter: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(
            d_model, d_ff, experts, activation=activation, capacity_factor=capacity_factor,
            capacity_factor_eval=capacity_factor_eval, group_size=group_size,
            loss_weight=loss_weight, init_scale=init_scale, dropout=dropout, dispatch=dispatch,
        )  # fmt: skip
        if not 0.0 <= jitter < 1.0:
            raise InvalidInputError(f"jitter={jitter}; give a number in [0, 1)")
        self.jitter = jitter

    def route(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One choice a token, with its probability as the gate."""
        if self.training and self.jitter:
            wide = at_least_float32(x)
            x = wide * torch.empty_like(wide).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        probabilities = self.probabilities(x)
        gates, choices = probabilities.max(-1, keepdim=True)
        return probabilities, choices, gates
