"""A model of ours and transformers' T5, trained by one loop on the same batches, end alike."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.experiments.seq2seq import Seq2Seq  # noqa: E402
from fishertope.experiments.seq2seq.checkpoints import config_to_hf  # noqa: E402
from fishertope.experiments.text2text import ByteVocabulary, SentencePieceVocabulary  # noqa: E402
from fishertope.experiments.text2text.runs import SCALES  # noqa: E402
from fishertope.experiments.text2text.steps import mean_loss  # noqa: E402
from fishertope.experiments.text2text.streams import (  # noqa: E402
    BatchStream,
    CorpusStream,
    tokenized,
)
from fishertope.experiments.text2text.suite import corpus  # noqa: E402
from fishertope.experiments.text2text.training import TrainingPlan, train  # noqa: E402

QUICK = bool(os.environ.get("FISHERTOPE_QUICK"))
STEPS, BATCH = (16, 8) if QUICK else (400, 32)
NANO = SCALES["nano"]


class Theirs(torch.nn.Module):
    """transformers' T5 behind the arguments of our ``forward``."""

    def __init__(self, config, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.t5 = transformers.T5ForConditionalGeneration(
                transformers.T5Config(**config_to_hf(config))
            )

    def forward(self, inputs, decoder_tokens):
        return self.t5(
            input_ids=inputs, attention_mask=(inputs != 0).long(),
            decoder_input_ids=decoder_tokens, use_cache=False,
        ).logits  # fmt: skip


@pytest.fixture(scope="module")
def text(need_data):
    """Vocabulary, and the token ids to learn from and to judge by."""
    need_data("wordnet")
    parts = [corpus("wordnet", held_out=held_out) for held_out in (False, True)]
    if QUICK:
        words = ByteVocabulary()
        parts = [[document[:3_000] for document in side] for side in parts]
    else:
        pytest.importorskip("sentencepiece")
        lines = [line for document in parts[0] for line in document.splitlines()]
        words = SentencePieceVocabulary.train(lines[::10], size=NANO.vocab_size)
    return words, *(tokenized(side, words) for side in parts)


def held_out_loss(model, seed, words, learn, judge):
    plan = TrainingPlan(
        steps=STEPS, batch_size=BATCH, lengths=NANO.lengths, rate=1e-2, seed=seed, log_every=STEPS
    )
    run = train(model, CorpusStream(learn, words, NANO.lengths, seed=seed), plan)
    assert run.status == "finished"
    judged = BatchStream(CorpusStream(judge, words, NANO.lengths), NANO.lengths, batch_size=32)
    return mean_loss(model, [next(judged) for _ in range(2 if QUICK else 8)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_f4_span_corruption_loss_is_that_of_transformers_trained_identically(kind, text):
    """Within two standard deviations over seeds, each library with its own initial draw.

    The batches, Adafactor, the loss (with z-loss) and the number of steps are the same; no dropout.
    """
    words = text[0]
    gated = {"activation": "gelu", "gated": True, "d_ff": 171} if kind == "gated" else {}
    config = NANO.config(vocab_size=words.size, dropout=0.0, **gated)
    losses = {"ours": [], "theirs": []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for seed in range(3):
            ours = Seq2Seq(config, torch.Generator().manual_seed(seed))
            theirs = Theirs(config, seed)
            sizes = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
            assert sizes[0] == sizes[1]
            losses["ours"].append(held_out_loss(ours, seed, *text))
            losses["theirs"].append(held_out_loss(theirs, seed, *text))
    finally:
        torch.set_num_threads(threads)
    sd = np.sqrt(np.mean([np.var(v, ddof=1) for v in losses.values()]))
    apart = abs(np.mean(losses["ours"]) - np.mean(losses["theirs"]))
    print(f"{kind}: {losses}, means {apart:.4f} apart, sd {sd:.4f}")
    untrained = Seq2Seq(config, torch.Generator().manual_seed(0))
    judged = BatchStream(CorpusStream(text[2], words, NANO.lengths), NANO.lengths, batch_size=32)
    assert max(losses["ours"]) < mean_loss(untrained, [next(judged)]) - (0.5 if QUICK else 2.0)
    assert apart <= 2 * sd
