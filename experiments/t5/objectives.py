"""Which unsupervised objective transfers best: tables 1, 4, 5 and 7 of the paper."""

from __future__ import annotations

from ..studies import Rows, Summary, decide
from .conditions import Condition, axis_study, gap, table

BASELINE = "replace spans"
CONDITIONS: dict[str, Condition] = {
    "no pre-training": Condition(fresh=True, paper=66.22),
    "prefix language model": Condition(changes={"objective": "prefix_lm"}, paper=80.69),
    "deshuffling": Condition(changes={"objective": "deshuffling"}, paper=73.17),
    "BERT-style": Condition(changes={"objective": "bert_style"}, paper=82.96),
    "drop tokens": Condition(changes={"objective": "drop_tokens"}, paper=84.44),
    "replace spans": Condition(changes={"objective": "replace_spans"}, paper=83.28),
    "span corruption": Condition(paper=83.49),
}
DENOISING = ("BERT-style", "drop tokens", "replace spans", "span corruption")


def summarise(rows: Rows) -> Summary:
    """Denoising against the rest."""
    others = ("no pre-training", "prefix language model", "deshuffling")
    findings = [
        decide(f"transfer loss: {name} minus the mean of the denoising objectives",
               gap(rows, name, DENOISING), at_least=0.0)
        for name in others
    ]  # fmt: skip
    return Summary.of(
        findings,
        reason="The paper: denoising objectives transfer best, deshuffling worst.",
        tables=[table(rows, CONDITIONS, BASELINE, "tables 1, 4, 5 and 7",
                      "Objectives, each pre-trained for the same number of steps")],
    )  # fmt: skip


STUDY = axis_study(
    CONDITIONS,
    id="t5-objectives",
    title="Denoising objectives transfer better than language modelling and deshuffling",
    question=(
        "Encoder-decoders of 0.30 M parameters (2+2 blocks, width 64) are pre-trained on WordNet's "
        "texts for 400 steps of 16 texts of about 64 tokens under each objective, and fine-tuned "
        "for 100 steps (sentiment 200) of 16 examples on three tasks: which "
        "objective gives the lowest held-out losses?"
    ),
    rule=(
        "Holds if over three seeds no pre-training, the prefix language model and deshuffling each "
        "have a higher transfer loss than the mean of the four denoising objectives (paired 95 % "
        "intervals)."
    ),
    history=(
        "Sizes were set by machine time; the three tasks, which are not those tried first, and the "
        "rates by one seed that is not part of the study, without pre-training, with span "
        "corruption, deshuffling and the prefix language model for 300 steps. There deshuffling "
        "was ahead of span corruption. A run was stopped after three seeds without pre-training "
        "and its rows left out, as one of the fine-tunings diverged; the rate of fine-tuning was "
        "lowered from 0.03 to 0.01. The rule follows the paper and was not changed by any of this."
    ),
    summarise=summarise,
    quick_seconds=8,
    full_minutes=8,
)
