"""One run of one variant in the shared setting: its losses, its size, its cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from .flops import training_flops
from .registry import OptimizerName, Variant, variant
from .setting import Setting

if TYPE_CHECKING:
    from ..seq2seq import Seq2Seq
    from ..text2text.training import StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A trained model and what is recorded of its training.

    Attributes
    ----------
    model : Seq2Seq
    row : dict
        ``status``, ``step``; ``early`` and ``final`` held-out loss a token (``None`` where the
        run did not come so far); ``parameters`` and their ``closed_form``; ``flops`` a step;
        ``seconds_per_step`` of one thread.
    """

    model: Seq2Seq
    row: dict[str, Any]


def pretrain(
    chosen: str | Variant, seed: int, *, setting: Setting, steps: int,
    optimizer: OptimizerName | None = None,
) -> Pretrained:  # fmt: skip
    """Pre-train a variant from scratch; a run that diverges is stopped and says so.

    The seed decides the initial weights and the order of the text, which is the same for all
    variants: two of them with one seed are a pair.
    """
    import torch

    from ..seq2seq import Seq2Seq
    from ..seq2seq.parameters import count_parameters
    from ..text2text.steps import mean_loss
    from ..text2text.training import train

    own = variant(chosen) if isinstance(chosen, str) else chosen
    chosen_optimizer = optimizer or own.optimizer
    config = setting.config(own, chosen_optimizer)
    model = Seq2Seq(config, torch.Generator().manual_seed(seed))
    batches = setting.held_out_batches()
    watch = Watch(bound=log(config.vocab_size))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    run = train(
        model, setting.stream(seed),
        setting.plan(steps=steps, optimizer=chosen_optimizer, seed=seed),
        evaluate=lambda m: {"loss": mean_loss(m, batches, device)},
        callback=watch, device=device,
    )  # fmt: skip
    model.eval()
    losses = {int(e["step"]): float(e["scores"]["loss"]) for e in run.evaluations}
    finished = run.status == "finished" and np.isfinite(list(losses.values())).all()
    row = {
        "status": "finished" if finished else "diverged",
        "step": run.step,
        "early": losses.get(setting.early) if finished else None,
        "final": losses.get(steps) if finished else None,
        "curve": [[int(e["step"]), round(float(e["loss"]), 4)] for e in run.log],
        "parameters": sum(p.numel() for p in model.parameters()),
        "closed_form": count_parameters(config),
        "flops": training_flops(model, batches[0]),
        "seconds_per_step": watch.seconds_per_step,
    }
    return Pretrained(model=model, row=row)


@dataclass
class Watch:
    """Told of every step: stops a run whose loss climbs, and takes the processor's time.

    A run has diverged when its loss is not finite, or when it is, after the first steps, above
    both where it began and ``bound`` (that of guessing) by one or more.
    """

    bound: float
    patience: int = 20
    first: float = float("nan")
    times: list[float] = field(default_factory=list)

    def __call__(self, report: StepReport) -> bool:
        """Whether to stop."""
        self.times.append(time.process_time())
        if report.step == 1:
            self.first = report.loss
        return report.step > self.patience and report.loss > max(self.first, self.bound) + 1.0

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps; evaluations in between do not count."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 2 else float("nan")
