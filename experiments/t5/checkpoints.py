"""Released models: written in Hugging Face's form, read by transformers, made again bit by bit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.report import Column, Table
from ...core.report.figures import bars
from ..studies import Figure, Rows, Study, Summary, decide, grid, t_interval
from ..studies.study import Settings
from . import corpora
from .conditions import NEEDS
from .recipes import Recipe, make
from .tasks import ROWS, examples

SEEDS = 5
TEXTS = 20


def units(quick: bool) -> list[dict[str, Any]]:
    """One model a seed."""
    seeds, size = (range(2), "pico") if quick else (range(SEEDS), "nano")
    return grid(seeds, size=[size])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Train twice, write both, read one with transformers and with our own reader."""
    import torch

    from ..text2text.folders import load_model

    recipe = Recipe(size=settings["size"], seed=settings["seed"], longer=0.1)
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("one", "two")]
        for folder in folders:
            make(recipe, folder)
        same = len({_hash(folder / "model.safetensors") for folder in folders}) == 1
        ours, theirs = load_model(folders[0]).model.eval(), _theirs(folders[0])
        inputs = _inputs(recipe)
        start = torch.zeros((len(inputs), 1), dtype=torch.long)
        with torch.no_grad():
            apart = []
            made = theirs.generate(inputs, max_new_tokens=12, do_sample=False, num_beams=1)
            for tokens in (start, made):
                a = ours(inputs, tokens)
                b = theirs(
                    input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=tokens
                ).logits
                apart.append(float((a - b).abs().max()))
            from fishertope.experiments.seq2seq.decoding import greedy

            own = greedy(ours, inputs, max_new_tokens=12)
    equal = [_row(own[i].tolist()) == _row(made[i, 1:].tolist()) for i in range(len(inputs))]
    return {
        "made again bit by bit": float(same),
        "largest difference of logits": float(np.max(apart)),
        "same decoded texts": float(np.mean(equal)),
        "bytes": float(sum(p.numel() * 4 for p in ours.parameters())),
    }


def _row(ids: Sequence[int]) -> list[int]:
    """Up to the end."""
    kept = list(ids)
    return kept[: kept.index(1)] if 1 in kept else [i for i in kept if i != 0]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _theirs(folder: Path) -> Any:
    from ..finetune.bases import need_transformers, quiet

    transformers = need_transformers()
    with quiet(transformers):
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    return model.eval()


def _inputs(recipe: Recipe) -> Any:
    from ..text2text.evaluation import _padded
    from ..text2text.tasks import tokenize

    words = corpora.vocabulary(recipe.facts.vocabulary)
    rows = [
        tokenize(e, words, inputs_length=ROWS["topic"].inputs, targets_length=1).inputs
        for e in examples("topic", "test")[:TEXTS]
    ]
    return _padded(rows, recipe.model())


def summarise(rows: Rows) -> Summary:
    """Equal in all respects."""
    names = ("made again bit by bit", "same decoded texts")
    findings = [
        decide(f"share: {name}", t_interval(rows.values(name)), at_least=1.0) for name in names
    ]
    findings.append(
        decide("largest difference of logits from transformers",
               t_interval(rows.values("largest difference of logits")), at_most=1e-4,
               format=".1e")
    )  # fmt: skip
    table = Table(
        title="Checkpoints",
        columns=[Column(name="seed"), *(Column(name=n, format=".2f") for n in names),
                 Column(name="largest difference of logits", format=".1e"),
                 Column(name="bytes", format=",.0f")],
        rows=[
            [r["seed"], *(r[n] for n in (*names, "largest difference of logits", "bytes"))]
            for r in rows
        ],
        note=f"Decoded greedily: {TEXTS} definitions, 12 tokens each.",
    )  # fmt: skip
    return Summary.of(
        findings,
        reason="Models are safetensors folders of transformers' T5, made again from their recipe.",
        tables=[table],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """Differences by seed."""
    found = rows.values("largest difference of logits")
    picture = bars(found * 1e6, [f"seed {r['seed']}" for r in rows],
                   label="difference of logits", axis="millionths")  # fmt: skip
    return [Figure(picture=picture, caption="Largest difference of logits from transformers.")]


STUDY = Study(
    id="t5-checkpoints",
    title="Models are files that transformers reads, and can be made again",
    claims=(4,),
    question=(
        "A model is pre-trained twice, for 40 steps, and written as a Hugging Face folder: are "
        "the files the same bits, and does transformers' T5 compute and decode the same from them?"
    ),
    rule=(
        "Holds if for each of five seeds the weights are the same bits both times, the decoded "
        "texts equal transformers', and no logit differs by more than 1e-4."
    ),
    history="Logits had been compared before, on random weights; trained models had not.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=(*NEEDS, "transformers"),
    quick_seconds=8,
    full_minutes=1,
)
