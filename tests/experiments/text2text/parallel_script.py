"""Trainings in one or several processes: all cases in one start, or one run that is killed.

Usage: ``parallel_script.py cases OUT`` or ``parallel_script.py run FOLDER PARALLEL DROPOUT``.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig
from fishertope.experiments.text2text import ByteVocabulary, finetuning
from fishertope.experiments.text2text.batches import Lengths
from fishertope.experiments.text2text.evaluation import Decoder, evaluate
from fishertope.experiments.text2text.metrics import accuracy
from fishertope.experiments.text2text.processes import process_group, ranks
from fishertope.experiments.text2text.streams import TaskStream
from fishertope.experiments.text2text.tasks import Task
from fishertope.experiments.text2text.training import TrainingPlan, train

VOCABULARY, LENGTHS = ByteVocabulary(sentinels=5), Lengths(inputs=16, targets=8)
EXAMPLES = [{"inputs": f"say {i}", "targets": str(i)} for i in range(20)]
TURNS = [{"inputs": "aa", "targets": "b"}, {"inputs": "zz", "targets": "c"}]
STEPS = 6
CASES = {
    "plain": ({}, {}),
    "adam": ({}, {"optimizer": "adam", "rate": 1e-3, "warmup": 2, "decay": True}),
    "pull": ({}, {"pull": 0.1, "packed": True}),
    "decoder only": ({"arch": "lm"}, {}),
    "shared stacks": ({"arch": "encdec_shared"}, {}),
    "shared blocks": ({"share_blocks": "both"}, {}),
    "position tables": ({"position": "rel_per_layer"}, {}),
    "numbers": ({"mixer": "synth_dense_plus_alpha", "max_length": 32}, {}),
    "funnel": ({"pool_blocks": 2}, {}),
    "adapters": ({}, {}),
    "unfreezing": ({}, {}),
    "branches": (None, {"batch_size": 2}),
}  # fmt: skip


class Branches(nn.Module):
    """Logits through parameters of which some are used by some inputs, and one by none."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def matrix(*shape):
            return nn.Parameter(0.1 * torch.randn(shape, generator=generator, dtype=torch.double))

        self.table, self.out = matrix(VOCABULARY.size, 6), matrix(6, VOCABULARY.size)
        self.branch, self.shift, self.idle = matrix(6, 6), matrix(6), matrix(6, 6)

    def forward(self, inputs, decoder_tokens):
        h = self.table[decoder_tokens] + self.table[inputs].mean(1, keepdim=True)
        chosen = (inputs == VOCABULARY.encode("z")[0]).any(1)
        if chosen.any():
            more = torch.relu(h @ self.branch) + self.shift
            h = h + chosen[:, None, None] * more
        return h @ self.out


def make(changes, dropout=0.0):
    if changes is None:
        return Branches()
    config = Seq2SeqConfig(
        **{"vocab_size": VOCABULARY.size, "d_model": 16, "d_ff": 33, "d_kv": 8, "heads": 2,
           "dropout": dropout, "layers": 2} | changes
    )  # fmt: skip
    return Seq2Seq(config, torch.Generator().manual_seed(0)).double()


def plan(**changes):
    return TrainingPlan(
        **{"steps": STEPS, "batch_size": 4, "lengths": LENGTHS, "log_every": 1, "seed": 1} | changes
    )


def stream(turns=False):
    return TaskStream(TURNS if turns else EXAMPLES, VOCABULARY, LENGTHS, seed=2, shuffle=not turns)


def run_case(name, parallel, folder=None, **options):
    """Train one case; its parameters, its losses and the scores of the model in between."""
    changes, given = CASES[name]
    model, trainable = make(changes), None
    if name == "adapters":
        names = finetuning.add_adapters(model, 4)
        trainable = lambda step: names  # noqa: E731
    elif name == "unfreezing":
        trainable = finetuning.unfreeze_gradually(model, STEPS)
    done = train(
        model, stream(changes is None), plan(**given, **options.pop("plan", {})), folder=folder,
        parallel=parallel, trainable=trainable, **options,
    )  # fmt: skip
    values = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    return values, [e["loss"] for e in done.log], done


def total(model):
    return {"sum": float(sum(p.abs().sum() for p in model.parameters()))}


def all_cases(out):
    rank, _ = ranks()
    found = {}
    for parallel in ("ddp", "fsdp"):
        for name in CASES:
            values, losses, done = run_case(
                name, parallel, plan={"evaluate_every": 4}, evaluate=total
            )
            key = f"{parallel}/{name}"
            found |= {f"{key}/parameter.{n}": v for n, v in values.items()}
            found[f"{key}/losses"] = np.array(losses)
            found[f"{key}/scores"] = np.array([e["scores"]["sum"] for e in done.evaluations])
        # Stopped and resumed in this number of processes; and a folder for another number.
        stopped = out / f"stopped-{parallel}"
        for stop in (3, None):
            values, losses, _ = run_case(
                "plain", parallel, stopped, callback=lambda r, stop=stop: r.step == stop
            )
        found |= {f"resumed/{parallel}/parameter.{n}": v for n, v in values.items()}
        run_case("plain", parallel, out / f"half-{parallel}", callback=lambda r: r.step == 3)
    np.savez(out / f"found-{rank}.npz", **found)


def scores(out):
    """Predictions of several processes for more and for fewer examples than there are processes."""
    model = make({})
    train(model, stream(), plan(steps=2))
    task = Task(
        name="say", source=lambda split: EXAMPLES, format=lambda r: [r], metrics=(accuracy,),
        postprocess=lambda text, example: text, labels=("1", "2"),
    )  # fmt: skip
    found = [
        evaluate(model, task, VOCABULARY, lengths=LENGTHS, shared=True, most=most,
                 decoder=Decoder(how=how, max_new_tokens=3))
        for how, most in (("greedy", None), ("greedy", 1), ("rank", 7), ("sample", 5))
    ]  # fmt: skip
    (out / f"scores-{ranks()[0]}.json").write_text(
        json.dumps([[list(e.predictions), e.scores] for e in found])
    )


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    with process_group("cpu"):
        if what == "cases":
            all_cases(folder)
            scores(folder)
        else:
            train(
                make({}, dropout=float(sys.argv[4])), stream(),
                plan(steps=24, save_every=1), folder=folder, parallel=sys.argv[3],
            )  # fmt: skip


if __name__ == "__main__":
    main()
