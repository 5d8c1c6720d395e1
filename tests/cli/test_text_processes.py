"""``fishertope text`` in the processes of ``torchrun``: one speaks and writes, all end together."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fishertope.core.errors import InvalidInputError, RankLostError, StoppedError

torch = pytest.importorskip("torch")

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMON = ("--corpus", "corpus.txt", "--vocabulary", "bytes", "--steps", "3", "--batch-size", "4",
          "--device", "cpu")  # fmt: skip


def run(folder, *words, world=2):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, *(LAUNCHER if world > 1 else ()), "-m", "fishertope", "text", *words],
        cwd=folder, env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def errors(err):
    return [line for line in err.splitlines() if line.startswith("Error: ")]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    lines = [f"The number {i} is followed by {i + 1}." for i in range(200)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    code, out, err = run(folder, "pretrain", "--out", "base", *COMMON, "--json", "--parallel",
                         request.param)  # fmt: skip
    assert code == 0, err
    return folder, out, err


def test_one_document_one_report_one_model(trained):
    folder, out, err = trained
    told = json.loads(out)  # one document and nothing else
    assert (told["status"], told["steps"], told["processes"]) == ("finished", 3, 2)
    assert told["parallel"] == folder.name.rstrip("0123456789")
    kept = json.loads((folder / "base" / "results.json").read_text())
    assert {k: v for k, v in kept.items() if k in told} == told
    assert sorted(p.name for p in (folder / "base").iterdir()) == [
        "model", "report.html", "results.json", "training",
    ]  # fmt: skip
    training = folder / "base" / "training"
    assert sorted(p.name for p in training.iterdir()) == [
        "checkpoint-000000003.safetensors", "log.jsonl", "plan.json",
    ]  # fmt: skip
    steps = [json.loads(line)["step"] for line in (training / "log.jsonl").read_text().splitlines()]
    assert steps == [3, 3]  # one line of the loss, one of the scores
    assert "Warning" not in err


def test_the_model_is_that_of_one_process(trained):
    folder, _, _ = trained
    code, out, err = run(folder, "pretrain", "--out", "alone", *COMMON, "--json", world=1)
    assert code == 0, err
    told, other = json.loads(out), json.loads(trained[1])
    assert told["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert told["scores"] == pytest.approx(other["scores"], rel=1e-5)


def test_what_process_0_refuses_ends_all_of_them_with_one_message(trained):
    folder, _, _ = trained
    before = {p: p.read_bytes() for p in (folder / "base").rglob("*") if p.is_file()}
    began = time.monotonic()
    code, out, err = run(folder, "pretrain", "--out", "base", *COMMON, "--density", "0.3")
    assert (code, out) == (1, "")
    assert time.monotonic() - began < 60
    assert len(errors(err)) == 1
    assert err.count("holds another training run") == 1
    assert {p: p.read_bytes() for p in (folder / "base").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "corpus.txt/inside"), "corpus.txt"),  # the system's error, in process 0
        (("--out", "new", "--batch-size", "3"), "give a multiple of their number"),
    ],
)
def test_what_cannot_be_done_is_told_once(trained, words, message):
    folder, _, _ = trained
    if folder.name.startswith("fsdp"):
        pytest.skip("does not depend on what the processes hold")
    code, out, err = run(folder, "pretrain", *COMMON, *words)
    assert (code, out) == (1, "")
    (told,) = errors(err)
    assert message in told
    assert not (folder / "new").exists()


def test_processes_share_what_is_evaluated(trained):
    folder, _, _ = trained
    words = ("evaluate", "base", "--task", "copy", "--most", "5", "--json", "--device", "cpu")
    code, out, err = run(folder, *words)
    assert code == 0, err
    assert json.loads(out) == json.loads(run(folder, *words, world=1)[1])


class Store:
    """A meeting point at which process 0 said something, or nothing."""

    def __init__(self, said):
        self.said = said

    def check(self, keys):
        return self.said is not None

    def get(self, key):
        return self.said.encode()


@pytest.mark.parametrize(
    ("said", "error", "silent"),
    [
        ("no room", InvalidInputError("no room"), True),
        ("no room", InvalidInputError("another"), False),
        ("no room", RankLostError("process 0 is gone"), True),
        ("no room", StoppedError("Stopped by SIGTERM."), True),  # torchrun ends the others
        (None, StoppedError("Stopped by SIGTERM."), False),
    ],
)
def test_a_process_that_only_follows_another_says_nothing(monkeypatch, said, error, silent):
    from fishertope.cli import _processes
    from fishertope.core.fisher import ranks

    monkeypatch.setattr(ranks, "meeting_point", lambda shared: Store(said))
    monkeypatch.setattr(_processes, "_SECONDS", 0.3)
    shared = ranks.Ranks(rank=1, world=2)
    assert _processes._said_by_first(shared, error) is silent


def test_sigterm_neither_adds_a_message_nor_ends_who_waits_for_process_0(monkeypatch):
    from fishertope.cli import _processes
    from fishertope.cli._long_runs import ending_with
    from fishertope.core.fisher import ranks

    store = Store(None)

    def check(keys):  # torchrun's signal comes before process 0's word is seen
        os.kill(os.getpid(), signal.SIGTERM)
        store.said = "no room"
        return True

    monkeypatch.setattr(store, "check", check)
    monkeypatch.setattr(ranks, "meeting_point", lambda shared: store)
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with ending_with("Later."):
        shared = ranks.Ranks(rank=1, world=2)
        assert _processes._said_by_first(shared, InvalidInputError("no room"))
    assert time.monotonic() - began < _processes._SECONDS
    assert signal.getsignal(signal.SIGTERM) is before
