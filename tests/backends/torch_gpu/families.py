"""Small modules of every family of layers, in float64, with a batch for each."""

import torch
from torch import nn
from torch.nn import functional as F


class Words(nn.Module):
    """Embedding with repeated and padded tokens, then a norm over sequences."""

    def __init__(self, norm):
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0)
        self.places = nn.Embedding(5, 4)
        self.norm = norm
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        places = torch.arange(ids.shape[1])[None]
        h = self.norm(self.table(ids) + self.places(places))
        return self.head(torch.tanh(h).mean(1))


class Attention(nn.Module):
    """A pre-norm block with heads, written with matrix products."""

    def __init__(self, d=4, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.head = nn.Linear(d, 3)

    def forward(self, x):
        n, T, d = x.shape
        parts = self.qkv(self.norm(x)).reshape(n, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts
        h = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        x = x + self.out(h.transpose(1, 2).reshape(n, T, d))
        return self.head(x[:, 0])


class TiedTokens(nn.Module):
    """The table of the inputs is the matrix of the outputs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.mix(self.table(ids)).sum(1)))


class Twice(nn.Module):
    """One layer called two times, once on vectors changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.act(self.layer(self.act(self.layer(x)))))


class Lora(nn.Module):
    """A frozen layer with a low-rank addition."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3).requires_grad_(False)
        self.a = nn.Linear(4, 2, bias=False)
        self.b = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.b(self.a(x))


class Transposed(nn.Module):
    """The linear layer of transformers that stores (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.layer = Conv1D(5, 4)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)).sum(1))


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def images():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.GroupNorm(2, 4), nn.Tanh(),
        nn.Conv2d(4, 3, (2, 1), dilation=(1, 2), bias=False), nn.BatchNorm2d(3), nn.Flatten(),
        nn.LazyLinear(3),
    )  # fmt: skip


def signals():
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
    )


def _real(*shape):
    return lambda n: torch.randn(n, *shape, dtype=torch.float64)


def _tokens(top, length):
    return lambda n: torch.randint(top, (n, length))


FAMILIES = {
    "mlp": (mlp, _real(4)),
    "linear over sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
        _real(3, 4),
    ),
    "conv2d": (images, _real(2, 6, 5)),
    "conv1d": (signals, _real(2, 7)),
    "embedding, layer norm": (lambda: Words(nn.LayerNorm(4)), _tokens(7, 5)),
    "embedding, rms norm": (lambda: Words(nn.RMSNorm(4, eps=1e-6)), _tokens(7, 5)),
    "attention": (Attention, _real(5, 4)),
    "tied": (TiedTokens, _tokens(6, 5)),
    "called twice": (Twice, _real(4)),
    "lora": (Lora, _real(4)),
    "transformers' Conv1D": (Transposed, _real(3, 4)),
}


def family(name, n=6):
    """A module in float64 and a batch of n examples, the same at every call."""
    if "transformers" in name:
        import pytest

        pytest.importorskip("transformers")
    make, batch = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
        x = batch(n)
        module = module.double()
        module(x)  # fills lazy layers and running statistics
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return module, x


class Behind(nn.Module):
    """Uses the weight of a layer without calling it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6)

    def forward(self, ids):
        h = self.head(torch.tanh(self.table(ids)).sum(1))
        return h + F.linear(torch.tanh(h[:, :4]), self.table.weight)


class Mixing(nn.Module):
    """A table of relative positions, whose first axis happens to be as long as the batch."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Embedding(9, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        T = x.shape[1]
        far = torch.arange(T)[:, None] - torch.arange(T)[None, :] + 4
        h = torch.softmax(self.bias(far).squeeze(-1)[None] + x @ x.transpose(1, 2), -1) @ x
        return self.head(h.mean(1))
