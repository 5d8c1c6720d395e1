"""Greedy, beam and sampled decoding with a cache, and ranking of given answers."""

from typing import Literal

import torch
from torch import Tensor

from fishertope.core.errors import InvalidInputError

from .layers import at_least_float32
from .model import Seq2Seq, shift_right
from .prepared import PreparedDecoder, can_prepare

NEGATIVE = -1.0e9


class _Session:
    """A decoder that has read its inputs and gives the next log-probabilities."""

    def __init__(
        self, model: Seq2Seq, inputs: Tensor, copies: int = 1, *, room: int, prepare: bool = True
    ) -> None:
        config = model.config
        if inputs.ndim != 2 or inputs.shape[1] == 0:
            raise InvalidInputError(
                f"inputs have shape {tuple(inputs.shape)}; give (batch, length)"
            )
        self.model, self.cache = model, model.new_cache()
        self.encoded: Tensor | None = None
        self.source_mask: Tensor | None = None
        self.prefix: Tensor | None = None
        if config.has_encoder:
            self.encoded = model.encode(inputs).repeat_interleave(copies, 0)
            self.source_mask = model.source_mask(inputs).repeat_interleave(copies, 0)
            start = inputs.new_full((inputs.shape[0], 1), config.start_id)
        else:
            if bool((inputs == config.pad_id).any()):
                raise InvalidInputError(
                    "a single stack reads its inputs without gaps; decode rows of one length "
                    "together, without padding"
                )
            start = torch.cat([inputs.new_full((inputs.shape[0], 1), config.start_id), inputs], 1)
            if config.arch == "prefix_lm":
                self.prefix = torch.ones_like(start, dtype=torch.bool)
                self.prefix = self.prefix.repeat_interleave(copies, 0)
        self.start = start.repeat_interleave(copies, 0)
        self.prepared: PreparedDecoder | None = None
        if self.encoded is None or self.source_mask is None:
            return
        if prepare and can_prepare(model):
            self.prepared = PreparedDecoder(model, self.encoded, self.source_mask, room=room)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits ``(rows, vocab)`` after reading ``(rows, new)``."""
        if self.prepared is not None:
            return at_least_float32(self.prepared.step(tokens))
        prefix = self.prefix if self.cache.length == 0 else None
        logits = self.model.decode(
            tokens,
            encoded=self.encoded,
            source_mask=self.source_mask,
            prefix=prefix,
            cache=self.cache,
        )
        return at_least_float32(logits[:, -1])

    def reorder(self, rows: Tensor) -> None:
        """Continue from the given rows, each of which has the source of the one it replaces."""
        if self.prepared is not None:
            self.prepared.reorder(rows)
        else:
            self.cache.reorder(rows)


@torch.no_grad()
def greedy(model: Seq2Seq, inputs: Tensor, *, max_new_tokens: int) -> Tensor:
    """The most probable token at each step; ``(batch, <= max_new_tokens)``, padded after EOS."""
    return _one_by_one(model, inputs, max_new_tokens, None, 1.0, None)


@torch.no_grad()
def sample(
    model: Seq2Seq,
    inputs: Tensor,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Tokens drawn from ``softmax(logits / temperature)``, of the ``top_k`` largest only.

    Returns ``(batch, <= max_new_tokens)``, padded after EOS.
    """
    if temperature <= 0 or (top_k is not None and top_k < 1):
        raise InvalidInputError(
            f"temperature={temperature}, top_k={top_k}; the first must be positive, the second "
            "at least 1 or None"
        )
    return _one_by_one(model, inputs, max_new_tokens, generator, temperature, top_k)


def _one_by_one(
    model: Seq2Seq,
    inputs: Tensor,
    steps: int,
    generator: torch.Generator | None,
    temperature: float,
    top_k: int | None,
) -> Tensor:
    config = model.config
    session = _Session(model, inputs, room=steps)
    tokens, done = session.start, torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    out: list[Tensor] = []
    for _ in range(steps):
        logits = session.step(tokens)
        if generator is None:
            chosen = _most_probable(logits)
        else:
            if top_k is not None and top_k < logits.shape[-1]:
                least = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            weights = torch.softmax(logits / temperature, -1)
            chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        chosen = chosen.masked_fill(done, config.pad_id)
        out.append(chosen)
        done = done | (chosen == config.eos_id)
        if bool(done.all()):
            break
        tokens = chosen[:, None]
    return torch.stack(out, 1) if out else inputs.new_zeros((len(inputs), 0))


def _most_probable(logits: Tensor) -> Tensor:
    """The first largest entry of each row.

    On a CPU torch compares entry by entry; NumPy's vector instructions take a twentieth of that.
    """
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


@torch.no_grad()
def beam(
    model: Seq2Seq,
    inputs: Tensor,
    *,
    max_new_tokens: int,
    beams: int = 4,
    alpha: float = 0.6,
    penalty: Literal["paper", "power"] = "paper",
) -> Tensor:
    """Best sequence of a beam search with sets of alive and finished hypotheses.

    A finished one of length ``n`` scores ``log p / ((5 + n) / 6) ** alpha`` (``"paper"``) or
    ``log p / n ** alpha`` (``"power"``). Each step looks at ``2 * beams`` continuations, and a
    continuation may finish only among the best ``beams`` of them. The search of a row ends when
    no alive hypothesis at its present length could beat its worst finished one.

    Returns
    -------
    Tensor
        ``(batch, <= max_new_tokens)``, padded after EOS.

    References
    ----------
    Wu et al., arXiv 1609.08144; Raffel et al., arXiv 1910.10683, section 3.7.
    """
    if beams < 1 or max_new_tokens < 1:
        raise InvalidInputError(
            f"beams={beams}, max_new_tokens={max_new_tokens}; both must be >= 1"
        )

    def divisor(n: int) -> float:
        return float(((5 + n) / 6 if penalty == "paper" else n) ** alpha)

    config, device, batch = model.config, inputs.device, len(inputs)
    session = _Session(model, inputs, beams, room=max_new_tokens)
    row = torch.arange(batch, device=device)[:, None]
    alive = torch.full((batch, beams), NEGATIVE, device=device)
    alive[:, 0] = 0.0
    paths = inputs.new_full((batch, beams, max_new_tokens), config.pad_id)
    best = torch.full((batch, beams), NEGATIVE, device=device)
    best_paths = paths.clone()
    closed = torch.zeros(batch, dtype=torch.bool, device=device)
    tokens = session.start
    for n in range(1, max_new_tokens + 1):
        scores = torch.log_softmax(session.step(tokens), -1).view(batch, beams, -1)
        vocab = scores.shape[-1]
        top, place = (alive[:, :, None] + scores).view(batch, -1).topk(2 * beams, -1)
        source, chosen = place // vocab, place % vocab
        candidates = paths[row, source]
        candidates[:, :, n - 1] = chosen
        ends = (chosen == config.eos_id) | (n == max_new_tokens)
        may_finish = ends.clone()
        may_finish[:, beams:] = False
        finished = (top / divisor(n)).masked_fill(~may_finish | closed[:, None], NEGATIVE)
        best, order = torch.cat([best, finished], 1).topk(beams, -1)
        best_paths = torch.cat([best_paths, candidates], 1)[row, order]
        alive, order = top.masked_fill(ends, NEGATIVE).topk(beams, -1)
        paths = candidates[row, order]
        source = source[row, order]
        closed = closed | (best[:, -1] >= alive[:, 0] / divisor(n))
        if bool(closed.all()):
            break
        session.reorder((row * beams + source).view(-1))
        tokens = paths[:, :, n - 1].reshape(-1, 1)
    result = best_paths[:, 0]
    used = int((result != config.pad_id).any(0).nonzero().max()) + 1
    return result[:, :used]


def label_log_likelihoods(
    model: Seq2Seq, inputs: Tensor, labels: Tensor, *, normalise: bool = False
) -> Tensor:
    """Log-likelihood of each of ``(classes, length)`` labels given each input; differentiable.

    Returns ``(batch, classes)``; with ``normalise`` divided by the number of tokens of the label.
    ``softmax`` of it is the distribution of rank classification. Two-stack models only; the
    encoder runs once. Cost: ``batch * classes`` decoder passes.
    """
    config = model.config
    if not config.has_encoder:
        raise InvalidInputError(f"arch={config.arch!r}; ranking needs an encoder")
    batch, classes = len(inputs), len(labels)
    encoded = model.encode(inputs).repeat_interleave(classes, 0)
    mask = model.source_mask(inputs).repeat_interleave(classes, 0)
    goal = labels.repeat(batch, 1)
    logits = model.decode(shift_right(goal, config.start_id), encoded=encoded, source_mask=mask)
    picked = torch.log_softmax(at_least_float32(logits), -1).gather(-1, goal[..., None])[..., 0]
    real = (goal != config.pad_id).to(picked.dtype)
    total = (picked * real).sum(-1)
    if normalise:
        total = total / real.sum(-1)
    return total.view(batch, classes)


@torch.no_grad()
def rank_classify(
    model: Seq2Seq, inputs: Tensor, labels: Tensor, *, normalise: bool = False
) -> Tensor:
    """Index of the most probable label for each input, ``(batch,)``."""
    return label_log_likelihoods(model, inputs, labels, normalise=normalise).argmax(-1)
