"""Every family of layers as a classifier with a batch: small modules and padded transformers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fishertope.backends.torch_gpu.readout import LabelWords

from .families import FAMILIES, family
from .test_transformers import batch, language_model, make

WORDS = LabelWords([5, 9, 30])


@dataclass(frozen=True)
class Net:
    """A module, a batch, how its outputs are read, and the parameters that hooks can take."""

    module: nn.Module
    x: Any
    outputs_of: Any = None
    params: Any = None

    def alone(self, i: int) -> Any:
        """Example i in a batch of its own, without padding."""
        if not isinstance(self.x, dict):
            return self.x[i : i + 1]
        length = int(self.x["attention_mask"][i].sum())
        return {
            k: v[i : i + 1] if k.startswith("decoder") else v[i : i + 1, :length]
            for k, v in self.x.items()
        }

    def outputs(self, x: Any) -> torch.Tensor:
        """z (n, C), by calling the module as its own users do."""
        returned = self.module(**x) if isinstance(x, dict) else self.module(x)
        if self.outputs_of is not None:
            return self.outputs_of(returned, x)
        return returned if isinstance(returned, torch.Tensor) else returned.logits

    def chosen(self) -> list[torch.Tensor]:
        """Parameters that are differentiated, in the module's order."""
        wanted = self.params or (lambda name: True)
        named = self.module.named_parameters()
        return [p for name, p in named if p.requires_grad and wanted(name)]


class LowRankAddition(nn.Module):
    """LoRA around a layer of transformers' GPT-2, which stores (inputs, outputs)."""

    def __init__(self, base: Any, rank: int = 2):
        super().__init__()
        inputs, outputs = base.weight.shape
        self.base = base
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


def lora_gpt2() -> nn.Module:
    """All frozen but low-rank additions to the projections of attention, and the head."""
    model = make("gpt2")
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("score"))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for block in model.transformer.h:
            block.attn.c_attn = LowRankAddition(block.attn.c_attn)
    return model.double().eval()


def in_float64(model: nn.Module) -> nn.Module:
    """The model with root mean squares in float64.

    Those of transformers are taken in float32 whatever the dtype, so that they agree with no
    other way of computing them to 1e-10; test_transformers.py compares them as they are.
    """
    for module in list(model.modules()):
        for name, part in module.named_children():
            if type(part).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                norm = nn.RMSNorm(len(part.weight), eps=part.variance_epsilon).double()
                norm.weight = part.weight
                setattr(module, name, norm)
    return model


TRANSFORMERS = ("bert", "roberta", "gpt2", "llama", "t5")
PADDED = (*(f"padded {name}" for name in TRANSFORMERS), "padded gpt2 as language model",
          "padded gpt2 with LoRA")  # fmt: skip
NETS = (*FAMILIES, *PADDED)


def net(name: str) -> Net:
    """The net of that name, the same at every call, in float64."""
    if not name.startswith("padded "):
        module, x = family(name)
        return Net(module.eval(), x)
    kind = name.removeprefix("padded ")
    if kind == "gpt2 as language model":
        return Net(language_model(), batch(), WORDS)
    if kind == "gpt2 with LoRA":
        return Net(lora_gpt2(), batch())
    if kind == "t5":
        x = batch() | {"decoder_input_ids": torch.zeros(4, 1, dtype=torch.int64)}
        # Relative positions are no layer of examples; the function transforms take them.
        return Net(in_float64(make("t5")), x, WORDS, lambda n: "relative" not in n)
    return Net(in_float64(make(kind)), batch())
