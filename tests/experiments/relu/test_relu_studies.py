"""What the ReLU studies measure with: peers, equal time, and pictures."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fishertope.experiments.relu import descent, gallery, pictures
from fishertope.experiments.relu.greedy import TASKS, _compared, made, not_above
from fishertope.experiments.studies import Interval, Outcome
from fishertope.theory import ReluProblem

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def problem():
    return made("teacher", "12,2,2", 0)


def test_z4_batched_adam_is_torchs_adam_start_by_start(problem, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(descent, "STEPS", 40)
    begin = descent.starts(problem, 3, np.random.default_rng(0))
    rates = np.array([1e-2, 3e-2, 1e-1])
    together, seconds = descent.adam(problem, begin, rates)
    assert seconds >= 0
    x, y, v = (torch.tensor(a) for a in (problem.inputs, problem.targets, problem.signs))
    for k in range(3):
        w = torch.tensor(begin[k], requires_grad=True)
        optimiser = torch.optim.Adam([w], lr=rates[k], eps=1e-12)
        for step in range(1, 41):
            optimiser.param_groups[0]["lr"] = rates[k] * 0.5 * (1 + np.cos(np.pi * step / 40))
            optimiser.zero_grad()
            loss = 0.5 * ((torch.relu(x @ w.T) @ v - y) ** 2).mean()
            loss.backward()
            optimiser.step()
        alone = ((torch.relu(x @ w.T) @ v - y) ** 2).mean().item()
        assert together[k] == pytest.approx(alone, rel=1e-7)


def test_z4_peers_descend(problem):
    pytest.importorskip("torch")
    begin = descent.starts(problem, 2, np.random.default_rng(1))
    before = [2 * problem.loss(w) / len(problem.targets) for w in begin]
    assert (descent.lbfgs(problem, begin)[0] < before).all()


def test_z4_a_rate_that_diverges_gives_no_nan(problem, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(descent, "STEPS", 200)
    begin = descent.starts(problem, 1, np.random.default_rng(1))
    assert descent.sgd(problem, begin, np.array([1e6]))[0] > 0.5  # a NaN would not be


@pytest.mark.parametrize(("peer_seconds", "peers", "own"), [(1.0, 20, 2), (4.0, 2, 4)])
def test_z4_at_equal_time_the_faster_goes_on(peer_seconds, peers, own):
    """Greedy's starts end at 1, 2, 3, 4 seconds; the peer's two took ``peer_seconds``."""
    calls = []

    def more(k):
        calls.append(k)
        return np.full(k, 0.25), 0.05 * k

    found = _compared(
        "P", more, np.array([0.5, 1.0]), peer_seconds, np.array([0.4, 0.6, 0.1, 0.7]),
        np.array([1.0, 2.0, 3.0, 4.0]), 2,
    )  # fmt: skip
    assert found["P mean gain"] == pytest.approx(0.25)
    assert found["P best gain"] == pytest.approx(0.1)
    assert found["P timed greedy starts"] == own
    assert found["P timed starts"] >= min(peers, 4)
    assert (found["P timed starts"] > 2) == bool(calls)
    best = 0.1 if own == 4 else 0.4
    assert found["P timed best gain"] == pytest.approx((0.25 if calls else 0.5) - best)


def test_z4_not_above_fails_only_beyond_the_interval():
    assert not_above("", Interval(0.1, -0.1, 0.3, 9)).outcome is Outcome.HOLDS
    assert not_above("", Interval(-0.1, -0.3, 0.1, 9)).outcome is Outcome.HOLDS
    assert not_above("", Interval(-0.1, -0.3, -0.05, 9)).outcome is Outcome.FAILS


@pytest.mark.parametrize(("task", "size"), [(t, s) for t, s, _ in TASKS])
def test_z4_every_row_has_fewer_weights_than_examples(task, size):
    if task not in ("teacher", "noise"):
        pytest.importorskip("sklearn")
    n, d, m = (int(v) for v in size.split(","))
    problem = made(task, size, 0)
    assert isinstance(problem, ReluProblem)
    assert problem.sizes == (n, d + 1, m)
    assert m * (d + 1) < n
    assert not np.array_equal(made(task, size, 1).targets, problem.targets)


def test_z8_the_chambers_of_the_picture_tile_the_slice():
    patterns, losses = pictures._vertices()
    assert len(patterns) == len(losses) == 22
    box = np.array([(-3.0, -3.0), (3.0, -3.0), (3.0, 3.0), (-3.0, 3.0)])
    total = 0.0
    for signs in patterns:
        part = box
        for s, row in zip(signs, pictures.five_points().inputs, strict=True):
            part = pictures._clipped(part, s * row) if len(part) else part
        if len(part) >= 3:
            x, y = part.T
            total += 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
    assert total == pytest.approx(36.0)


def test_z8_the_path_of_the_picture_descends():
    problem = pictures.five_points()
    patterns, losses = pictures._vertices()
    loss_of = {p.tobytes(): loss for p, loss in zip(patterns, losses, strict=True)}
    start = pictures._longest_path(problem, patterns, losses)
    path = [loss_of[s[0].tobytes()] for s in pictures.visited_patterns(problem, start)]
    assert len(path) >= 3
    assert (np.diff(path) < 0).all()


def test_z8_the_page_of_pictures_is_what_the_command_writes():
    names = [(h, t, [n for n, _ in figures]) for h, t, figures in gallery.chapters(DOCS)]
    text = (DOCS / gallery.PAGE).read_text()
    assert text == gallery.markdown_page(names)
    files = re.findall(r"\]\((pictures/relu-[a-z]+\.svg)\)", text)
    assert len(files) == len(set(files)) == sum(len(n) for _, _, n in names)
    for name in files:
        svg = (DOCS / name).read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(" not in svg
