"""Written-out gradients against autograd's, in float64 and float32."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch")

from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig, shift_right, token_loss
from fishertope.experiments.seq2seq.attention import additive
from fishertope.experiments.seq2seq.fused import root_mean_square, tied_cross_entropy


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_root_mean_square_has_autograds_gradients():
    x, w = draw(3, 4, 8).requires_grad_(), draw(8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: root_mean_square(x, w, 1e-3), (x, w))
    due = w * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3)
    torch.testing.assert_close(root_mean_square(x, w, 1e-3), due, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_tied_cross_entropy_has_autograds_gradients(z_loss):
    h, E = draw(2, 3, 5).requires_grad_(), draw(7, 5, seed=1).requires_grad_()
    targets = torch.tensor([[0, 6, 3], [2, 2, 1]])
    weights = draw(2, 3, seed=2).abs()
    due = token_loss(h @ E.t(), targets, z_loss=z_loss, weights=weights, reduction="sum")
    expected = torch.autograd.grad(due, (h, E))
    found = (tied_cross_entropy(h, E, targets, z_loss) * weights).sum()
    assert float(found.detach()) == pytest.approx(float(due.detach()), rel=1e-14)
    for a, b in zip(torch.autograd.grad(found, (h, E), retain_graph=True), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(found, (h, E))


@pytest.mark.parametrize("embedding", ["tied_all", "tied_inputs"])
def test_training_takes_the_written_out_way_and_evaluation_the_plain_one(embedding):
    config = Seq2SeqConfig(
        vocab_size=30, d_model=8, d_ff=12, d_kv=4, heads=2, layers=2, dropout=0.0,
        embedding=embedding,
    )  # fmt: skip
    model = Seq2Seq(config, torch.Generator().manual_seed(0)).double()
    inputs = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    targets = torch.tensor([[9, 4, 1], [3, 1, 0]])
    weights = (targets > 0).double()
    found = []
    for training in (True, False):
        model.train(training).zero_grad()
        losses = model(inputs, shift_right(targets), targets=targets, z_loss=1e-3)
        assert ("TiedCrossEntropy" in _operations(losses)) == training
        assert ("RootMeanSquare" in _operations(losses)) == training
        (losses * weights).sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def _operations(losses):
    names, todo = set(), [losses.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in names:
            names.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return " ".join(node.name() for node in names)


def test_an_open_mask_adds_nothing():
    bias = draw(1, 2, 3, 3)
    assert additive(torch.ones(4, 1, 3, dtype=torch.bool), bias, torch.float64) is bias
    closed = torch.ones(4, 1, 3, dtype=torch.bool)
    closed[2, 0, 1] = False
    out = additive(closed, bias, torch.float64)
    assert out.shape == (4, 2, 3, 3)
    assert (out[2, :, :, 1] < -1e300).all()
    assert torch.equal(out[0], bias[0])
