"""Check 8 of text_to_text: packing changes nothing, and the documented prefix-LM example."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text.batches import Lengths, convert, pack, to_single_stack
from fishertope.experiments.text2text.tasks import TokenExample

torch = pytest.importorskip("torch")

from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig  # noqa: E402
from fishertope.experiments.text2text.steps import batch_loss, batch_tensors  # noqa: E402


def example(inputs, targets):
    return TokenExample(inputs=np.array(inputs), targets=np.array(targets))


PAIRS = [example([7, 8, 5, 1], [3, 9, 1]), example([8, 4, 9, 3, 1], [4, 1])]


def test_check_8_prefix_lm_example_as_documented():
    """The packed pair of seqio's documentation, token by token."""
    batch = to_single_stack([PAIRS], Lengths(inputs=7, targets=8), prefix=True)
    assert batch.targets[0].tolist() == [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0]
    assert batch.decoder_tokens[0].tolist() == [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0]
    assert batch.weights[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]
    assert batch.target_segments[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]
    assert batch.prefix[0].astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_check_8_unpacked_prefix_lm_keeps_the_end_as_input():
    batch = to_single_stack([[example([9, 4, 6, 1], [3, 9, 1])]], Lengths(inputs=5, targets=4),
                            prefix=True)  # fmt: skip
    assert batch.decoder_tokens[0].tolist() == [0, 9, 4, 6, 1, 3, 9, 1, 0]
    assert batch.weights[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch.target_segments is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=12),
       st.booleans())  # fmt: skip
def test_packing_keeps_every_token_in_order(sizes, single):
    examples = [example(range(2, 2 + n), range(2, 2 + m)) for n, m in sizes]
    lengths = Lengths(inputs=9, targets=7)
    rows = list(pack(examples, lengths, single_stack=single))
    assert [e for row in rows for e in row] == examples
    arch = "lm" if single else "encdec"
    batch = convert(rows, lengths, arch)
    real = batch.targets[batch.targets > 0]
    if single:
        parts = [np.concatenate([e.inputs, e.targets]) for e in examples]
    else:
        parts = [e.targets for e in examples]
        assert np.array_equal(batch.inputs[batch.inputs > 0],
                              np.concatenate([e.inputs for e in examples]))  # fmt: skip
    assert np.array_equal(real, np.concatenate(parts))
    assert batch.weights.sum() == sum(len(e.targets) for e in examples)


@pytest.mark.parametrize("arch", ["encdec", "encdec_shared", "lm", "prefix_lm"])
def test_check_8_packed_rows_give_the_loss_and_logits_of_single_rows(arch):
    config = Seq2SeqConfig(
        vocab_size=40, d_model=16, d_ff=32, d_kv=8, heads=2, layers=2, arch=arch, dropout=0.0
    )
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).double().eval()
    rng = np.random.default_rng(0)
    examples = [
        example([*rng.integers(2, 40, n), 1], [*rng.integers(2, 40, m), 1])
        for n, m in [(5, 3), (2, 6), (7, 1), (3, 3)]
    ]
    lengths = Lengths(inputs=12, targets=12)
    together = convert([examples[:2], examples[2:]], lengths, arch)
    alone = convert([[e] for e in examples], lengths, arch)
    packed, single = batch_loss(model, together), batch_loss(model, alone)
    assert packed.total.item() == pytest.approx(single.total.item(), abs=1e-6)
    assert packed.tokens == single.tokens == together.weights.sum()
    joined = batch_tensors(together)
    logits = model(joined.pop("inputs"), joined.pop("decoder_tokens"), **joined)
    split = batch_tensors(alone)
    expected = model(split.pop("inputs"), split.pop("decoder_tokens"), **split)
    got = logits[torch.from_numpy(together.weights > 0)]
    wanted = expected[torch.from_numpy(alone.weights > 0)]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInputError, match="4 and 3 tokens does not fit"):
        list(pack(PAIRS, Lengths(inputs=3, targets=8)))
    with pytest.raises(InvalidInputError, match="the inputs are seen"):
        to_single_stack([PAIRS], Lengths(inputs=9, targets=9), prefix=True, loss_on="all")
    with pytest.raises(InvalidInputError, match="accepted are encdec"):
        convert([PAIRS], Lengths(inputs=9, targets=9), "decoder")
