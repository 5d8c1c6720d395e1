"""Several processes train the model of one: replicated and sharded, killed, resumed by another."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import InvalidInputError, ResultsExistError  # noqa: E402
from fishertope.core.storage import load_arrays  # noqa: E402
from fishertope.core.testing import tolerance  # noqa: E402
from fishertope.experiments.text2text import processes  # noqa: E402
from fishertope.experiments.text2text.training import train  # noqa: E402

SCRIPT = Path(__file__).with_name("parallel_script.py")
CLOSE = tolerance("identity")


def script():
    spec = importlib.util.spec_from_file_location("parallel_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = script()


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def start_ranks(*arguments, world=2):
    """The processes of one training, without an agent that looks after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)], text=True, stderr=subprocess.PIPE,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(world)
    ]  # fmt: skip


def ended(children, timeout=120):
    try:
        told = [child.communicate(timeout=timeout)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], told


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, in a folder."""
    out = tmp_path_factory.mktemp("two")
    codes, told = ended(start_ranks("cases", out))
    assert codes == [0, 0], told
    return out


@pytest.fixture(scope="module")
def found(two):
    ranks = [dict(np.load(two / f"found-{rank}.npz")) for rank in range(2)]
    for name, value in ranks[0].items():  # all processes end with one model, to the bit
        np.testing.assert_array_equal(ranks[1][name], value, err_msg=name)
    return ranks[0]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", list(cases.CASES))
def test_two_processes_train_the_model_of_one(found, name, parallel):
    values, losses, done = cases.run_case(
        name, "ddp", plan={"evaluate_every": 4}, evaluate=cases.total
    )
    key = f"{parallel}/{name}"
    for parameter, value in values.items():
        np.testing.assert_allclose(
            found[f"{key}/parameter.{parameter}"], value, rtol=CLOSE.relative,
            atol=CLOSE.relative, err_msg=parameter,
        )  # fmt: skip
    np.testing.assert_allclose(found[f"{key}/losses"], losses, rtol=CLOSE.relative)
    scores = [e["scores"]["sum"] for e in done.evaluations]
    assert len(scores) == 2
    np.testing.assert_allclose(found[f"{key}/scores"], scores, rtol=CLOSE.relative)


def test_the_branches_are_used_by_one_process_only():
    """The case is what it says: gradients that only one half of the batch has, and none."""
    model = cases.make(None)
    used = []
    for row in cases.TURNS:
        model.zero_grad()
        tokens = torch.tensor([cases.VOCABULARY.encode(row["inputs"])])
        model(tokens, tokens).sum().backward()
        used.append({n for n, p in model.named_parameters() if p.grad is not None})
    assert used == [{"table", "out"}, {"table", "out", "branch", "shift"}]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_stopped_and_resumed_by_as_many_is_the_same_to_the_bit(found, parallel):
    own = {n: v for n, v in found.items() if n.startswith(f"resumed/{parallel}/")}
    assert own
    for name, value in own.items():
        whole = found[f"{parallel}/plain/{name.split('/')[-1]}"]
        np.testing.assert_array_equal(value, whole, err_msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_folder_of_two_processes_is_resumed_by_one(two, found, parallel, tmp_path):
    folder = two / f"half-{parallel}"
    (held,) = folder.glob("checkpoint-*")
    arrays, facts = load_arrays(held, kind="training checkpoint")
    model = cases.make({})
    for name, parameter in model.named_parameters():
        assert arrays[f"parameter.{name}"].shape == tuple(parameter.shape)
    assert facts["step"] == 3
    # The file has the names and shapes of one that a single process writes.
    cases.run_case("plain", "ddp", tmp_path, callback=lambda r: r.step == 3)
    (own,) = tmp_path.glob("checkpoint-*")
    shapes = {n: a.shape for n, a in load_arrays(own, kind="training checkpoint")[0].items()}
    assert {n: a.shape for n, a in arrays.items()} == shapes
    assert (folder / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    values, losses, _ = cases.run_case("plain", "ddp", folder)
    for name, value in values.items():
        np.testing.assert_allclose(
            value, found[f"{parallel}/plain/parameter.{name}"], rtol=CLOSE.relative,
            atol=CLOSE.relative, err_msg=name,
        )  # fmt: skip
    np.testing.assert_allclose(losses, found[f"{parallel}/plain/losses"], rtol=CLOSE.relative)


def test_processes_predict_what_one_predicts(two, tmp_path):
    cases.scores(tmp_path)
    one = json.loads((tmp_path / "scores-0.json").read_text())
    for rank in range(2):
        assert json.loads((two / f"scores-{rank}.json").read_text()) == one


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path, parallel):
    """Both processes die at once at a random step; two resume to the bit, one to rounding."""

    def run(folder, dropout):
        return start_ranks("run", tmp_path / folder, parallel, dropout)

    def last(folder):
        newest = sorted((tmp_path / folder).glob("checkpoint-*"))[-1]
        assert newest.name == "checkpoint-000000024.safetensors"
        return load_arrays(newest, kind="training checkpoint")[0]

    rng = np.random.default_rng(int(parallel == "fsdp"))
    codes, told = ended(run("whole", 0.1))
    assert codes == [0, 0], told
    children = run("killed", 0.1)
    while not list((tmp_path / "killed").glob("checkpoint-*")):
        assert all(child.poll() is None for child in children)
        time.sleep(0.02)
    time.sleep(float(rng.uniform(0, 0.4)))
    for child in children:
        child.send_signal(signal.SIGKILL)
    ended(children)
    codes, told = ended(run("killed", 0.1))
    assert codes == [0, 0], told
    one, other = last("whole"), last("killed")
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_that_dies_ends_the_others_with_a_message(tmp_path, parallel):
    children = start_ranks("run", tmp_path / "run", parallel, 0.0)
    while not list((tmp_path / "run").glob("checkpoint-*")):
        assert all(child.poll() is None for child in children)
        time.sleep(0.02)
    children[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes, told = ended(children)
    assert time.monotonic() - began < 20
    assert codes[0] not in (0, -signal.SIGKILL)
    assert "Process 0 of 2 lost the others" in told[0]


def test_without_a_group_nothing_is_told_to_anybody():
    assert processes.ranks() == (0, 1)
    assert processes.summed(1.5, 2.0) == [1.5, 2.0]
    assert processes.gathered({"a": 1}) == [{"a": 1}]
    with pytest.raises(ResultsExistError):
        processes.first(lambda: (_ for _ in ()).throw(ResultsExistError("there")))
    with processes.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()
    with pytest.raises(InvalidInputError, match="Accepted are auto, cpu, cuda"):
        processes.computing_device("tpu")
    with pytest.raises(InvalidInputError, match="accepted are 'ddp' and 'fsdp'"):
        train(cases.make({}), cases.stream(), cases.plan(), parallel="zero")
