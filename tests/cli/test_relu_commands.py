"""``fishertope relu`` on CSV files."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fishertope.cli import main  # noqa: F401
from fishertope.cli._app import app


@pytest.fixture
def points(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "points.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "y"])
        writer.writerows(rng.normal(size=(14, 3)).round(3).tolist())
    return path


def run(*words):
    return CliRunner().invoke(app, ["relu", *map(str, words)])


def as_json(*words):
    answer = run(*words, "--json")
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_enumerate_counts_and_writes(points, tmp_path):
    found = as_json("enumerate", points, "--feature", "a", "--feature", "b")
    assert found["patterns"] == 184
    assert found["general_position"] is True
    out = tmp_path / "patterns"
    again = as_json("enumerate", points, "-f", "a", "-f", "b", "--method", "tree", "--out", out)
    assert again["patterns"] == 184
    from fishertope.core.zonotope import load_vertices

    assert sum(map(len, load_vertices(out))) == 184


def test_select_greedy_and_certify(points, tmp_path):
    net = tmp_path / "net.safetensors"
    selected = as_json("select", points, "--out", net)
    assert selected["units"] == 10
    assert selected["mean_squared_error"] < 1e-20
    proof = as_json("certify", points, net)
    assert proof["global_optimum"] is True
    searched = as_json("greedy", points, "--units", 2, "--starts", 3, "--out", net)
    assert len(searched["losses_of_starts"]) == 3
    proof = as_json("certify", points, net)
    assert proof["objective"] == pytest.approx(searched["loss"])
    assert proof["local_minimum"] is True
    assert any("no direction descends" in p for p in proof["proven"])
    best = as_json("certify", points, "--penalty", 0.2)
    assert best["global_optimum"] is True
    assert best["lower_bound"] <= best["objective"]


def test_words_for_people(points):
    answer = run("greedy", points, "--units", 2, "--starts", 2, "--quiet")
    assert answer.exit_code == 0
    assert answer.stdout == ""
    answer = run("greedy", points, "--units", 2, "--starts", 2)
    assert "In words: no small change of the weights lowers the loss" in " ".join(
        answer.stdout.split()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,2\n3\n", "Line 3"),
        ("a,y\n1,2\nx,4\n", "column 'a': 'x'"),
        ("a,y\n1,nan\n", "no finite number"),
        ("a,a\n1,2\n", "name twice"),
        ("a,y\n", "no rows"),
        ("a,y\n1,2\n1,3\n", r"Rows [0, 1]"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    answer = run("select", path)
    assert answer.exit_code != 0
    assert message in str(answer.exception)


def test_networks_of_other_tables_are_refused(points, tmp_path):
    net = tmp_path / "net.safetensors"
    as_json("select", points, "--out", net)
    answer = run("certify", points, net, "--no-scale")
    assert "other rows or another --scale" in str(answer.exception)
    net.write_bytes(net.read_bytes()[:-3])
    assert "CorruptFileError" in repr(run("certify", points, net).exception)
    assert run("certify", points).exit_code == 2
