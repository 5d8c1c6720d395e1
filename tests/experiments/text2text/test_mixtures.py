"""Mixing rates by hand, in their limits, and as frequencies."""

import numpy as np
import pytest

from fishertope.core.errors import InvalidInputError
from fishertope.experiments.text2text.mixtures import Mixture, draw_tasks, mixing_rates

SIZES = {"a": 100, "b": 300, "c": 1600}


def test_f1_07_rates_by_hand():
    assert mixing_rates(SIZES) == pytest.approx({"a": 0.05, "b": 0.15, "c": 0.8})
    capped = mixing_rates(SIZES, cap=600)
    assert capped == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.6})
    roots = mixing_rates({"a": 100, "b": 400, "c": 1600}, temperature=2.0, cap=900)
    assert roots == pytest.approx({"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})
    # The factor acts before the cap: half of 1600 is still above 600.
    halved = mixing_rates(SIZES, cap=600, scale={"a": 0.5, "c": 0.5})
    assert halved == pytest.approx({"a": 50 / 950, "b": 300 / 950, "c": 600 / 950})


def test_f1_07_limits():
    equal = mixing_rates(SIZES, temperature=1e12)
    assert equal == pytest.approx(dict.fromkeys(SIZES, 1 / 3))
    assert mixing_rates(SIZES, cap=1e18) == mixing_rates(SIZES)


def test_f1_07_a_task_reached_twice():
    glue = Mixture(tasks={"rte": 1.0, "mnli": 3.0})
    superglue = Mixture(tasks={"rte": 1.0, "cb": 1.0})
    both = Mixture(tasks={"c4": 2.0}, parts=((glue, 4.0), (superglue, 2.0)))
    expected = {"c4": 2 / 8, "rte": (1 + 1) / 8, "mnli": 3 / 8, "cb": 1 / 8}
    assert both.rates() == pytest.approx(expected)
    rest = both.without("cb")
    assert rest == pytest.approx({name: expected[name] * 8 / 7 for name in ("c4", "rte", "mnli")})


def test_f1_07_frequencies():
    rates = mixing_rates(SIZES, cap=600)
    drawn = draw_tasks(rates, 20_000, np.random.default_rng(0))
    for name, rate in rates.items():
        deviation = (rate * (1 - rate) / 20_000) ** 0.5
        assert abs(drawn.count(name) / 20_000 - rate) < 4 * deviation


def test_refusals():
    for wrong in ({"cap": 0}, {"temperature": -1.0}, {"scale": {"z": 1.0}}):
        with pytest.raises(InvalidInputError, match="positive numbers"):
            mixing_rates(SIZES, **wrong)
    with pytest.raises(InvalidInputError, match="left out"):
        Mixture(tasks={"a": 1.0}).without("a")
