"""Training: exact resumption, fine-tuning methods, learning, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fishertope.core.errors import CorruptFileError, InvalidInputError, ResultsExistError  # noqa: E402
from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig  # noqa: E402
from fishertope.experiments.text2text import ByteVocabulary, finetuning  # noqa: E402
from fishertope.experiments.text2text.batches import Lengths  # noqa: E402
from fishertope.experiments.text2text.evaluation import Decoder, evaluate, generate  # noqa: E402
from fishertope.experiments.text2text.formats import to_class  # noqa: E402
from fishertope.experiments.text2text.metrics import accuracy, exact_text  # noqa: E402
from fishertope.experiments.text2text.streams import TaskStream  # noqa: E402
from fishertope.experiments.text2text.tasks import Task, TaskRegistry  # noqa: E402
from fishertope.experiments.text2text.training import TrainingPlan, train  # noqa: E402

HERE = Path(__file__).parent
VOCABULARY = ByteVocabulary(sentinels=5)
LENGTHS = Lengths(inputs=16, targets=8)
EXAMPLES = [{"inputs": f"say {i}", "targets": str(i)} for i in range(20)]


def small(arch="encdec", dropout=0.1, layers=2):
    config = Seq2SeqConfig(
        vocab_size=VOCABULARY.size, d_model=16, d_ff=32, d_kv=8, heads=2, arch=arch,
        dropout=dropout, layers=layers,
    )  # fmt: skip
    return Seq2Seq(config, torch.Generator().manual_seed(0))


def plan(**changes):
    return TrainingPlan(
        **{"steps": 12, "batch_size": 4, "lengths": LENGTHS, "log_every": 3, "save_every": 4,
           "seed": 1} | changes
    )  # fmt: skip


def stream():
    return TaskStream(EXAMPLES, VOCABULARY, LENGTHS, seed=2)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adam", "rate": 1e-3, "warmup": 5, "decay": True}, {"pull": 0.1}]
)
def test_stopped_and_resumed_gives_the_bits_of_an_uninterrupted_run(tmp_path, changes):
    whole = small()
    expected = train(whole, stream(), plan(**changes), folder=tmp_path / "whole",
                     evaluate=lambda m: {"w": float(m.embedding.sum())})  # fmt: skip
    parts = small()
    first = train(parts, stream(), plan(**changes), folder=tmp_path / "parts",
                  callback=lambda r: r.step == 7)  # fmt: skip
    assert (first.status, first.step) == ("stopped", 7)
    resumed = small()
    again = train(resumed, stream(), plan(**changes), folder=tmp_path / "parts",
                  evaluate=lambda m: {"w": float(m.embedding.sum())})  # fmt: skip
    assert (again.status, again.step) == ("finished", 12)
    assert_same(parameters(resumed), parameters(whole))
    assert [e["loss"] for e in again.log] == [e["loss"] for e in expected.log]
    assert again.evaluations == expected.evaluations
    logged = [json.loads(x) for x in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in logged] == [3, 6, 9, 12, 12]


def test_two_runs_of_one_seed_are_one_and_the_caller_is_left_alone():
    models = [small(), small()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for model in models:
        model.eval()
        model.embedding.requires_grad_(True)
        train(model, stream(), plan())
        assert not model.training
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(before, torch.get_rng_state())
    assert_same(*map(parameters, models))


@pytest.mark.slow
def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path):
    script = HERE / "train_script.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rounds = 2 if os.environ.get("FISHERTOPE_QUICK") else 6

    def start(folder):
        return subprocess.Popen([sys.executable, script, folder], env=environment)

    assert start(tmp_path / "whole").wait() == 0
    rng = np.random.default_rng(0)
    for k in range(rounds):
        folder = tmp_path / f"killed-{k}"
        child = start(folder)
        while child.poll() is None and not list(folder.glob("checkpoint-*")):
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.4)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert start(folder).wait() == 0
        one, other = (sorted(f.glob("checkpoint-*"))[-1] for f in (tmp_path / "whole", folder))
        from fishertope.core.storage import load_arrays

        a, b = (load_arrays(f, kind="training checkpoint")[0] for f in (one, other))
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path):
    from fishertope.core.storage import load_arrays

    script, environment = HERE / "train_script.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in {
        "one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }.items():  # fmt: skip
        subprocess.run([sys.executable, *launcher, script, tmp_path / name, "0"],
                       env=environment, check=True, timeout=300)  # fmt: skip
    one, two = (
        load_arrays(next((tmp_path / n).glob("checkpoint-*")), kind="training checkpoint")[0]
        for n in ("one", "two")
    )
    for name, value in one.items():
        if name.startswith("parameter."):
            np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_another_run_or_a_damaged_checkpoint_is_refused(tmp_path):
    train(small(), stream(), plan(), folder=tmp_path)
    with pytest.raises(ResultsExistError, match="holds another training run"):
        train(small(), stream(), plan(rate=1e-3), folder=tmp_path)
    with pytest.raises(ResultsExistError, match="another training run"):
        train(small(), stream(), plan(), folder=tmp_path, identity={"data": "other"})
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    data = bytearray(checkpoint.read_bytes())
    data[-3] ^= 1
    checkpoint.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError):
        train(small(), stream(), plan(steps=20), folder=tmp_path)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    train(small(), stream(), plan(steps=6), folder=tmp_path)
    longer, whole = small(), small()
    train(longer, stream(), plan(), folder=tmp_path)
    train(whole, stream(), plan())
    assert_same(parameters(longer), parameters(whole))


def test_a_loss_that_is_not_finite_ends_the_run():
    model = small()
    with torch.no_grad():
        model.embedding[:, 0] = float("nan")
    run = train(model, stream(), plan())
    assert (run.status, run.step) == ("diverged", 0)


def test_check_11_adapters_change_nothing_and_only_they_and_the_norms_are_trained():
    model = small(dropout=0.0).eval()
    inputs = torch.tensor([[5, 6, 7, 1]])
    targets = torch.tensor([[0, 8, 9]])
    before = model(inputs, targets)
    names = finetuning.add_adapters(model, 4)
    assert torch.equal(model(inputs, targets), before)
    start = parameters(model)
    train(model, stream(), plan(steps=3), trainable=lambda _: names)
    after = parameters(model)
    changed = {n for n in after if not torch.equal(after[n], start[n])}
    assert changed <= set(names)
    assert any(n.endswith("adapter.up.weight") for n in changed)
    assert {n.split(".")[-2] for n in names} == {
        "down", "up", "norm", "self_norm", "cross_norm", "feed_norm", "final_norm",
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match="adapters already"):
        finetuning.add_adapters(model, 4)


def test_check_11_unfreezing_trains_the_right_layers():
    model = small(layers=3)
    trainable = finetuning.unfreeze_gradually(model, steps=9)

    def blocks(step):
        names = trainable(step)
        assert {"embedding", "encoder.final_norm.weight", "decoder.final_norm.weight"} <= set(names)
        return {".".join(n.split(".")[:3]) for n in names if ".blocks." in n}

    top = {"encoder.blocks.2", "decoder.blocks.2"}
    assert [blocks(s) for s in (1, 2, 3)] == [top] * 3
    assert blocks(4) == top | {"encoder.blocks.1", "decoder.blocks.1"}
    assert set(trainable(7)) == set(trainable(9)) == {n for n, _ in model.named_parameters()}
    assert "encoder.position.weight" not in trainable(6)
    start = parameters(model)
    train(model, stream(), plan(steps=2), trainable=trainable)
    after = parameters(model)
    changed = {n for n in after if not torch.equal(after[n], start[n])}
    assert changed <= set(trainable(1))
    assert "decoder.blocks.2.feed_forward.wo.weight" in changed
    with pytest.raises(InvalidInputError, match="2 steps for 3 episodes"):
        finetuning.unfreeze_gradually(model, steps=2)


def number_task():
    def source(split):
        return [{"n": i} for i in range(4)] if split != "test" else []

    return Task(
        name="numbers", source=source,
        format=lambda r: [{"inputs": f"say {r['n']}", "targets": "even" if r["n"] % 2 == 0
                           else "odd"}],
        postprocess=lambda text, example: to_class(("even", "odd"))(text),
        metrics=(accuracy,), labels=("even", "odd"),
    )  # fmt: skip


@pytest.mark.parametrize("how", ["greedy", "beam", "sample", "rank"])
def test_a_task_is_learned_and_evaluated(how):
    task, model = number_task(), small(dropout=0.0)
    examples = task.examples("train")
    train(model, TaskStream(examples, VOCABULARY, LENGTHS), plan(steps=150, rate=3e-2))
    decoder = Decoder(how=how, temperature=0.2)
    found = evaluate(model, task, VOCABULARY, lengths=LENGTHS, decoder=decoder, batch_size=3)
    assert found.scores == {"accuracy": 100.0}
    assert found.predictions == ["even", "odd", "even", "odd"]


@pytest.mark.parametrize("arch", ["lm", "prefix_lm"])
def test_single_stacks_generate_in_the_order_of_the_texts(arch):
    model = small(arch=arch, dropout=0.0)
    texts = ["say 1", "say 12", "say 3", "no", "say 44"]
    together = generate(model, texts, VOCABULARY, lengths=LENGTHS)
    alone = [generate(model, [t], VOCABULARY, lengths=LENGTHS)[0] for t in texts]
    assert together == alone


def test_registries_and_bad_evaluations_say_why():
    registry = TaskRegistry([number_task()])
    assert list(registry) == ["numbers"]
    with pytest.raises(InvalidInputError, match="take another name"):
        registry.add(number_task())
    with pytest.raises(InvalidInputError, match="there are numbers"):
        registry["letters"]
    with pytest.raises(InvalidInputError, match="no examples in its split 'test'"):
        evaluate(small(), number_task(), VOCABULARY, lengths=LENGTHS, split="test")
    with pytest.raises(InvalidInputError, match="accepted are 'greedy'"):
        generate(small(), ["a"], VOCABULARY, lengths=LENGTHS, decoder=Decoder(how="loud"))
    with pytest.raises(InvalidInputError, match="needs label words"):
        generate(small(), ["a"], VOCABULARY, lengths=LENGTHS, decoder=Decoder(how="rank"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_f4_check_13_bytes_are_copied_and_reversed():
    """At least 99 % exact match on new words in at most two CPU-minutes."""
    rng = np.random.default_rng(0)

    def words(n):
        return ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 7))) for _ in range(n)]

    def examples(texts):
        return [
            {"inputs": f"{kind} {text}", "targets": text if kind == "copy" else text[::-1]}
            for text in texts for kind in ("copy", "reverse")
        ]  # fmt: skip

    lengths = Lengths(inputs=16, targets=8)
    config = Seq2SeqConfig(
        vocab_size=VOCABULARY.size, d_model=64, d_ff=256, d_kv=16, heads=4, layers=2, dropout=0.0
    )
    model = Seq2Seq(config, torch.Generator().manual_seed(0))
    train_words, held_out = words(4000), words(200)
    seen = set(train_words)
    fresh = [w for w in held_out if w not in seen]
    began, threads = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(model, TaskStream(examples(train_words), VOCABULARY, lengths, seed=1),
              TrainingPlan(steps=1500, batch_size=64, lengths=lengths, rate=1e-2))  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    seconds = time.process_time() - began
    test = examples(fresh)
    made = generate(model, [e["inputs"] for e in test], VOCABULARY, lengths=lengths)
    score = exact_text([e["targets"] for e in test], made)["exact_match"]
    print(f"exact match {score:.1f} on {len(test)} new words after {seconds:.0f} CPU seconds")
    assert len(test) >= 100
    assert score >= 99
