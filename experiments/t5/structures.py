"""Encoder-decoders, shared ones, language models and prefix language models: table 2."""

from __future__ import annotations

from ..studies import Rows, Summary, decide
from .conditions import Condition, axis_study, gap, table

BASELINE = "encoder-decoder"
CONDITIONS: dict[str, Condition] = {
    "encoder-decoder": Condition(paper=83.28),
    "shared encoder-decoder": Condition(changes={"arch": "encdec_shared"}, paper=82.81),
    "encoder-decoder, half the blocks": Condition(changes={"layers": 1}, paper=80.88),
    "language model": Condition(changes={"arch": "lm"}, paper=74.70),
    "prefix LM": Condition(changes={"arch": "prefix_lm"}, paper=81.82),
    "encoder-decoder, LM objective": Condition(changes={"objective": "prefix_lm"}, paper=79.56),
    "language model, LM objective": Condition(
        changes={"arch": "lm", "objective": "lm"}, paper=73.78
    ),
    "prefix LM, LM objective": Condition(
        changes={"arch": "prefix_lm", "objective": "prefix_lm"}, paper=79.68
    ),
}


def summarise(rows: Rows) -> Summary:
    """The order of the structures under denoising, and the two objectives."""
    with_lm = [name for name in CONDITIONS if name.endswith("LM objective")]
    denoised = [name.removesuffix(", LM objective") for name in with_lm]
    pairs = [
        ("language model", "prefix LM"),
        ("prefix LM", BASELINE),
        ("encoder-decoder, half the blocks", BASELINE),
    ]
    findings = [
        decide(f"transfer loss: {worse} minus {better}", gap(rows, worse, better), at_least=0.0)
        for worse, better in pairs
    ]
    findings.append(
        decide("transfer loss: LM objective minus denoising, mean of three structures",
               gap(rows, with_lm, denoised), at_least=0.0)
    )  # fmt: skip
    return Summary.of(
        findings,
        reason="The paper: the encoder-decoder under denoising is best, the language model worst.",
        tables=[table(rows, CONDITIONS, BASELINE, "table 2", "Structures and objectives")],
        notes=[
            "Denoising is span corruption here (mean span 3, rate 15 %). All structures but the "
            "halved one do about the same work a step: a single stack of two blocks reads inputs "
            "and targets one after the other."
        ],
    )


STUDY = axis_study(
    CONDITIONS,
    id="t5-structures",
    title="An encoder-decoder under denoising beats prefix LM and language model",
    question=(
        "Five structures with blocks of one size, pre-trained by span corruption or by language "
        "modelling and fine-tuned as in t5-objectives: which has the lowest held-out losses?"
    ),
    rule=(
        "Holds if over three seeds the transfer loss under denoising rises from encoder-decoder to "
        "prefix LM to language model, is higher with half the blocks, and is higher under the LM "
        "objective than under denoising on average over three structures (paired 95 % intervals)."
    ),
    history=(
        "Fixed before any model of another structure than the encoder-decoder had been trained."
    ),
    summarise=summarise,
    quick_seconds=8,
    full_minutes=8,
)
