"""Training from a stream of examples: checkpoints, exact resumption, a log, several processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fishertope.core.errors import InvalidInputError, ResultsExistError
from fishertope.core.storage import read_json, write_json, write_text

from . import _training_state as state
from .batches import Lengths, LossOn
from .optimizers import make_optimizer
from .parallel import Holding, Parallel, Shards, hold
from .processes import check_agreement, explained, first, ranks, summed
from .steps import batch_loss
from .streams import BatchStream, Stream

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Trainable = Callable[[int], Collection[str] | None]
"""Names of the parameters that step ``n`` trains; ``None`` for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """What decides the result of a training run, apart from model and stream.

    Parameters
    ----------
    steps, batch_size
        Number of updates; rows of a batch over all processes.
    lengths
        Of a row.
    rate
        Adafactor: relative step ``min(rate, 1/√n)``; 1e-2 for pre-training, 1e-3 for fine-tuning.
        Adam: ``rate · min(1, n/warmup)``, then ``· √(warmup/n)`` where ``decay``.
    z_loss
        Coefficient of (log Z)².
    packed, loss_on
        As in :class:`~fishertope.experiments.text2text.streams.BatchStream`.
    pull
        Coefficient of ½‖θ − θ_start‖², added to the loss (an anchor for later merging).
    seed
        Of the dropout masks; every step draws from (seed, step) alone.
    log_every, evaluate_every, save_every
        In steps; ``None`` means at the end only.
    """

    steps: int
    batch_size: int
    lengths: Lengths
    optimizer: Literal["adafactor", "adam"] = "adafactor"
    rate: float = 1e-2
    warmup: int = 0
    decay: bool = False
    z_loss: float = 1e-4
    packed: bool = False
    loss_on: LossOn = "targets"
    pull: float = 0.0
    seed: int = 0
    log_every: int = 10
    evaluate_every: int | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        counts = {k: getattr(self, k) for k in ("steps", "batch_size", "log_every")}
        optional = {k: getattr(self, k) for k in ("evaluate_every", "save_every")}
        counts |= {k: v for k, v in optional.items() if v is not None}
        bad = {k: v for k, v in counts.items() if v < 1}
        if bad or self.warmup < 0 or self.z_loss < 0 or self.pull < 0:
            raise InvalidInputError(
                f"{bad or self}; counts must be >= 1, warmup, z_loss and pull >= 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What a callback is told after a step; returning ``True`` stops the run."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """Outcome of a run.

    Attributes
    ----------
    status : {"finished", "stopped", "diverged"}
    step : int
        Last completed step.
    log : list of dict
        One entry every ``log_every`` steps: step, loss a token, tokens read so far, seconds.
    evaluations : list of dict
        Step and scores.
    """

    status: Literal["finished", "stopped", "diverged"]
    step: int
    log: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def last_loss(self) -> float:
        """The last logged loss, NaN without any."""
        return float(self.log[-1]["loss"]) if self.log else float("nan")


def train(
    model: nn.Module,
    stream: Stream,
    plan: TrainingPlan,
    *,
    folder: str | Path | None = None,
    evaluate: Evaluate | None = None,
    callback: Callable[[StepReport], bool | None] | None = None,
    trainable: Trainable | None = None,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    parallel: Parallel = "ddp",
) -> TrainingRun:
    """Train ``model`` in place.

    Parameters
    ----------
    model
        A text-to-text model of ``experiments.seq2seq``.
    folder
        Keeps ``plan.json``, ``log.jsonl`` and the newest checkpoint. A folder of the same run
        is resumed: a run killed at any moment and resumed gives the bits of one that was not.
    evaluate
        Called with the model in evaluation mode and gradients off; its scores are logged.
    trainable
        Which parameters each step trains.
    identity
        Facts that tell this run from another (data, vocabulary, base model); kept with the plan.
    device
        Where the model lies.
    parallel
        In several processes, what each of them holds: ``"ddp"`` all parameters, ``"fsdp"`` a part
        of each parameter, gradient and optimizer state (FSDP2). No part of the run's identity.

    Raises
    ------
    ResultsExistError
        If the folder holds another run.
    InvalidInputError
        If a step trains no parameter, processes begin with different models, or their number does
        not divide the batch.
    CorruptFileError
        If the checkpoint is damaged or of another model.
    RankLostError
        If another process ended.

    Notes
    -----
    Within a process group (:func:`~fishertope.experiments.text2text.processes.process_group`)
    each process reads its rows of every batch and gradients are summed, so the result does not
    depend on the number of processes or on ``parallel`` but for rounding, dropout masks and what
    is said of a batch as a whole (the balance loss of experts); with the same number it is the
    same to the bit. A checkpoint of any number resumes under any other. Process 0 alone writes;
    all of them call ``evaluate`` (with the whole model) and ``callback``, any of which may stop
    the run.

    Under ``"fsdp"`` the caller's model has no values but during ``evaluate`` and after the end;
    it is left without any by an error.
    """
    rank, world = ranks()
    if plan.batch_size % world:
        raise InvalidInputError(
            f"batch_size={plan.batch_size} was given to {world} processes, which share the rows "
            "equally; give a multiple of their number"
        )
    arch = str(getattr(getattr(model, "config", None), "arch", "encdec"))
    batches = BatchStream(
        stream, plan.lengths, batch_size=plan.batch_size, arch=arch, packed=plan.packed,
        loss_on=plan.loss_on if arch == "lm" else "targets", shard=rank, shards=world,
    )  # fmt: skip
    facts = _identity(model, plan, identity) if folder is not None or world > 1 else {}
    if world > 1:
        check_agreement(json.dumps(facts, sort_keys=True), "training")
    was = model.training
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    # Dropout draws from the device's generator, which is the caller's.
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    try:
        holding = hold(model, parallel, device)
        loop = _Loop(callers=model, holding=holding, batches=batches, plan=plan, device=device)
        with explained(), torch.random.fork_rng(devices=devices):
            if folder is not None:
                loop.open(Path(folder), facts)
            status = loop.run(evaluate, callback, trainable)
            if isinstance(holding, Shards):
                holding.give_back()
    finally:
        model.train(was)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
    return TrainingRun(status=status, step=loop.step, log=loop.log, evaluations=loop.evaluations)


def _identity(
    model: nn.Module, plan: TrainingPlan, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The facts of a run; saving and logging more often does not make it another run."""
    free = ("log_every", "evaluate_every", "save_every", "steps")
    facts = {k: v for k, v in asdict(plan).items() if k not in free}
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    start = state.fingerprint(model)
    return {"plan": facts, "parameters": shapes, "start": start, "given": dict(given or {})}


class _Loop:
    """The state of a run between two steps."""

    def __init__(
        self, *, callers: nn.Module, holding: Holding, batches: BatchStream, plan: TrainingPlan,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        self.callers, self.holding, self.batches, self.plan = callers, holding, batches, plan
        self.model, self.names = holding.model, holding.names
        names = self.names
        self.device = device
        self.optimizer, self.scheduler = make_optimizer(
            plan.optimizer, names, rate=plan.rate, warmup=plan.warmup, decay=plan.decay,
            sharded=isinstance(holding, Shards),
        )  # fmt: skip
        self.start: dict[str, Tensor] = {}
        if plan.pull:
            self.start = {name: p.detach().clone() for name, p in names.items()}
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.log: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.folder: Path | None = None

    def open(self, folder: Path, identity: dict[str, Any]) -> None:
        """Take a new folder, or go on from the checkpoint of an old one."""
        self.folder = folder
        newest = first(lambda: _opened(folder, identity))
        if newest is None:
            return
        checkpoint = folder / str(newest)
        loaded = state.load(checkpoint, self.holding, self.optimizer, self.scheduler)
        self.step, self.tokens = loaded["step"], loaded["tokens"]
        self.seconds = loaded["seconds"]
        self.batches.restore(loaded["stream"])
        for line in first(lambda: _rewound(folder / "log.jsonl", self.step)):
            (self.evaluations if "scores" in line else self.log).append(line)

    def run(
        self, evaluate: Evaluate | None, callback: Callable[[StepReport], bool | None] | None,
        trainable: Trainable | None,
    ) -> Literal["finished", "stopped", "diverged"]:  # fmt: skip
        """Steps until the end, a stop, or a loss that is not finite."""
        plan, world = self.plan, ranks()[1]
        self.model.train()
        while self.step < plan.steps:
            began = time.perf_counter()
            self._select(trainable)
            loss, tokens = self._update()
            if not loss < float("inf"):
                return "diverged"
            self.step += 1
            self.tokens += tokens
            self.seconds += time.perf_counter() - began
            last = self.step == plan.steps
            if last or self.step % plan.log_every == 0:
                self._note(self.log, {"loss": loss, "tokens": self.tokens,
                                      "seconds": round(self.seconds, 3)})  # fmt: skip
            if evaluate and (last or _due(self.step, plan.evaluate_every)):
                self._score(evaluate)
            stop = callback is not None and callback(
                StepReport(step=self.step, steps=plan.steps, loss=loss, tokens=self.tokens,
                           seconds=self.seconds)
            ) is True  # fmt: skip
            if callback is not None and world > 1:
                stop = summed(float(stop))[0] > 0
            if last or stop or _due(self.step, plan.save_every):
                self.save()
            if stop:
                return "stopped"
        return "finished"

    def _select(self, trainable: Trainable | None) -> None:
        """Let exactly the parameters of the coming step be trained."""
        chosen = None if trainable is None else trainable(self.step + 1)
        if chosen is None:
            return
        unknown = sorted(set(chosen) - set(self.names))
        if not chosen or unknown:
            raise InvalidInputError(
                f"step {self.step + 1} trains {len(chosen)} parameters, unknown are "
                f"{unknown[:5]}; name at least one parameter of the model"
            )
        for name, parameter in self.names.items():
            parameter.requires_grad_(name in chosen)

    def _update(self) -> tuple[float, int]:
        """One batch: gradients of the mean loss a counted token, summed over processes."""
        batch = next(self.batches)
        torch.manual_seed(state.step_seed(self.plan.seed, self.step, ranks()[0]))
        loss = batch_loss(self.model, batch, z_loss=self.plan.z_loss, device=self.device)
        counted, total, read = summed(
            loss.tokens, float(loss.total.detach()), float(batch.n_tokens)
        )
        objective = loss.total / max(counted, 1.0)
        if loss.auxiliary is not None:
            objective = objective + loss.auxiliary * (loss.tokens / max(counted, 1.0))
        torch.autograd.backward(objective)
        self.holding.sum_gradients()
        if self.plan.pull:
            for name, parameter in self.names.items():
                if parameter.grad is not None:
                    away = parameter.detach() - self.start[name]
                    parameter.grad.add_(away, alpha=self.plan.pull)
        mean = total / max(counted, 1.0)
        if mean < float("inf"):
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean, int(read)

    def _score(self, evaluate: Evaluate) -> None:
        model = self.callers
        unseen = torch.random.fork_rng(devices=[])
        with self.holding.whole(), _evaluating(model), torch.no_grad(), unseen:
            scores = {k: float(v) for k, v in evaluate(model).items()}
        self._note(self.evaluations, {"scores": scores})

    def _note(self, where: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        entry = {"step": self.step, **facts}
        where.append(entry)
        if self.folder is not None:
            path = self.folder / "log.jsonl"
            first(lambda: _append(path, json.dumps(entry) + "\n"))

    def save(self) -> None:
        """Write a checkpoint and drop the one before."""
        if self.folder is None:
            return
        facts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds,
                 "stream": self.batches.state()}  # fmt: skip
        state.save(self.folder, self.step, self.holding, self.optimizer, self.scheduler, facts)


def _opened(folder: Path, identity: dict[str, Any]) -> str | None:
    """Name of the newest checkpoint of this run; a new folder is made the run's own."""
    found = folder / "plan.json"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(found, identity)
    elif read_json(found) != json.loads(json.dumps(identity)):
        raise ResultsExistError(
            f"{folder} holds another training run (its plan.json differs); choose another "
            "folder, or delete that one"
        )
    newest = state.newest(folder)
    return None if newest is None else newest.name


def _rewound(path: Path, step: int) -> list[dict[str, Any]]:
    """Entries of a log up to a step; the others are removed from the file."""
    entries = sorted(_lines(path, step), key=lambda entry: int(entry["step"]))
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return entries


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


def _lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Entries of a log up to a step; a torn last line is left out."""
    found: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                    found.append(entry)
    return [entry for entry in found if entry["step"] <= step]
