"""text_to_text.md checks 14 and 15 for every variant, and the runs of the harness (check 20)."""
# ruff: noqa: E402

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.modifications import harness
from fishertope.experiments.modifications.harness import Watch, pretrain
from fishertope.experiments.modifications.paper import table_1
from fishertope.experiments.modifications.registry import VARIANTS, config_of, vanilla
from fishertope.experiments.modifications.setting import Setting
from fishertope.experiments.seq2seq import Seq2Seq, shift_right
from fishertope.experiments.seq2seq.parameters import count_parameters
from fishertope.experiments.text2text.training import StepReport

VOCABULARY = 256
# Where a step leaves parameters alone, and why. At α = 0 ReZero's branches have no gradient, and
# nothing before Fixup's zero matrices has; the test moves all parameters away from their start.
UNCHOSEN = {"switch": "experts", "moe": "experts", "pkm": "values that were not chosen"}


def small(name):
    config = config_of(name, "nano", vocab_size=VOCABULARY)
    if config.sparse in ("moe", "switch"):
        config = dataclasses.replace(config, capacity_factor=None)
    return config


def made(name, seed=0):
    config = small(name)
    return config, Seq2Seq(config, torch.Generator().manual_seed(seed))


def batch(config, rows=2, source=9, target=6):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(3, config.vocab_size, (rows, source), generator=generator)
    inputs[-1, -2:] = config.pad_id
    targets = torch.randint(3, config.vocab_size, (rows, target), generator=generator)
    return inputs, targets


@pytest.mark.parametrize("name", VARIANTS)
def test_check_14_15_constructs_counts_trains_is_causal_and_decodes_step_by_step(name):
    config, model = made(name)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    inputs, targets = batch(config)
    read = shift_right(targets)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.train()
    losses = model(inputs, read, targets=targets)
    assert losses.shape == targets.shape
    assert torch.isfinite(losses).all()
    total = losses.sum()
    extra = model.auxiliary_loss()
    torch.autograd.backward(total if extra is None else total + extra)
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if config.sparse in UNCHOSEN:
        without = [n for n in without if "expert" not in n and "value" not in n]
    assert not without
    model.eval()
    with torch.no_grad():
        whole = model(inputs, read)
        assert whole.shape == (*targets.shape, config.vocab_size)
        changed = read.clone()
        changed[:, 4] = (changed[:, 4] + 1) % config.vocab_size
        assert torch.allclose(model(inputs, changed)[:, :4], whole[:, :4], atol=1e-5)
        encoded, mask, cache = model.encode(inputs), model.source_mask(inputs), model.new_cache()
        steps = [
            model.decode(read[:, i : i + 1], encoded=encoded, source_mask=mask, cache=cache)
            for i in range(read.shape[1])
        ]
        assert torch.allclose(torch.cat(steps, 1), whole, atol=2e-4)  # sums in another order


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Seq2Seq(config).parameters())


SYNTHESIZERS = [n for n in VARIANTS if n.startswith("synthesizer")]


@pytest.mark.parametrize("name", [n for n in table_1() if n not in SYNTHESIZERS])
def test_check_15_parameters_at_the_papers_size_are_its_tables(name):
    # The table rounds or truncates to millions.
    assert parameters(config_of(name, "paper")) / 1e6 == pytest.approx(
        table_1()[name].parameters, abs=1.0
    )


def test_check_16_gated_units_have_vanillas_parameters():
    base = parameters(vanilla("nano"))
    for name in ("glu", "geglu", "reglu", "swiglu", "liglu"):
        assert parameters(config_of(name, "nano")) == pytest.approx(base, rel=0.01)


def test_an_unknown_variant_and_what_the_models_lack_are_named(monkeypatch):
    with pytest.raises(InvalidInputError, match="'tanh' was asked for; there are vanilla, gelu"):
        config_of("tanh")
    with pytest.raises(InvalidInputError, match="scale='huge'"):
        config_of("gelu", "huge")
    ghost = dataclasses.replace(VARIANTS["gelu"], change=lambda base, sizes: {"ghost": 1})
    with pytest.raises(InvalidInputError, match="not built: the configuration has no ghost"):
        config_of(ghost)


SMALL = Setting(corpus="manual", words="bytes", batch_size=4, held_out=2, early=2)


def test_check_20_two_identical_seeds_give_identical_rows():
    one, two = (pretrain("geglu", 3, setting=SMALL, steps=4).row for _ in range(2))
    other = pretrain("geglu", 4, setting=SMALL, steps=4).row
    times = "seconds_per_step"
    assert {k: v for k, v in one.items() if k != times} == {
        k: v for k, v in two.items() if k != times
    }
    assert one["early"] != one["final"]
    assert one["early"] != other["early"]
    assert one["flops"] > 1e6


def test_the_early_loss_of_a_longer_run_is_that_of_a_short_one():
    short = pretrain("vanilla", 0, setting=SMALL, steps=2).row
    longer = pretrain("vanilla", 0, setting=SMALL, steps=4).row
    assert short["early"] == short["final"] == longer["early"]


def test_adam_goes_with_its_own_scales_and_starts_at_the_same_function():
    one, two = SMALL.config("vanilla", "adafactor"), SMALL.config("vanilla", "adam")
    assert (one.scaling, two.scaling) == ("folded", "explicit")
    models = [Seq2Seq(c, torch.Generator().manual_seed(0)).eval() for c in (one, two)]
    inputs, targets = batch(one)
    with torch.no_grad():
        a, b = (m(inputs, shift_right(targets)) for m in models)
    assert torch.allclose(a, b, atol=1e-4)


def test_a_run_that_diverges_is_stopped_and_says_so(monkeypatch):
    monkeypatch.setattr(
        Setting, "optimizer_options",
        lambda self, optimizer, share=1.0: {"optimizer": "adam", "rate": 1.0},
    )  # fmt: skip
    row = pretrain("vanilla", 0, setting=SMALL, steps=60).row
    assert row["status"] == "diverged"
    assert row["step"] < 60
    assert row["final"] is None
    assert row["early"] is None


def test_a_watch_waits_and_knows_what_guessing_costs():
    watch = Watch(bound=5.0, patience=3)
    told = [
        watch(StepReport(step=i + 1, steps=9, loss=loss, tokens=1, seconds=0.0))
        for i, loss in enumerate([4.0, 9.0, 9.0, 5.9, 6.1])
    ]
    assert told == [False, False, False, False, True]
    assert watch.seconds_per_step >= 0


def test_flops_are_the_hand_count_for_a_vanilla_step():
    from fishertope.experiments.modifications.flops import training_flops

    config = SMALL.config("vanilla", "adafactor")
    model = Seq2Seq(config, torch.Generator().manual_seed(0))
    held_out = SMALL.held_out_batches()[0]
    b, s = held_out.inputs.shape
    t = held_out.targets.shape[1]
    d, i, f, v = config.d_model, config.inner, config.d_ff, config.vocab_size
    encoder = b * (s * (4 * d * i + 2 * d * f) + 2 * s * s * i)
    decoder = b * (t * (4 * d * i + 2 * d * f) + 2 * t * t * i)
    cross = b * (t * 2 * d * i + s * 2 * d * i + 2 * s * t * i)
    forward = 2 * (2 * encoder + 2 * (decoder + cross) + b * t * d * v)
    assert training_flops(model, held_out) == pytest.approx(3 * forward, rel=1e-3)
    assert harness.variant("vanilla").optimizer == "adafactor"


def test_depthwise_convolutions_are_counted_by_their_groups():
    from torch.utils.flop_counter import FlopCounterMode

    from fishertope.experiments.modifications.flops import _convolution, _convolution_backward

    aten = torch.ops.aten
    mapping = {aten.convolution: _convolution, aten.convolution_backward: _convolution_backward}
    x = torch.randn(2, 6, 10, requires_grad=True)
    for groups in (1, 6):
        weight = torch.randn(6, 6 // groups, 3, requires_grad=True)
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            torch.nn.functional.conv1d(x, weight, groups=groups, padding=1).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 2 * 6 * 10 * 3 * (6 // groups)
