"""English plurals: a transformer that hears a noun's phonemes and says which ending it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.types import IntArray, NumpyArray

ENDINGS = ("s", "z", "iz")
LENGTH = 10
VOICELESS = ("P", "T", "K", "F", "TH")
SIBILANT = ("S", "Z", "SH", "ZH", "CH", "JH")
# What the last phoneme can be, within the endings that it decides.
FEATURES: dict[str, tuple[str, ...]] = {
    "stop p": ("P",), "stop t": ("T",), "stop k": ("K",), "fricative f, th": ("F", "TH"),
    "s or z": ("S", "Z"), "sh, ch or j": ("SH", "ZH", "CH", "JH"),
    "vowel": ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH",
              "UW"),
    "nasal": ("M", "N", "NG"), "liquid": ("L", "R"), "voiced stop": ("B", "D", "G"),
    "voiced fricative": ("V", "DH"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nouns:
    """Tokens (n, 1 + LENGTH), the ending (n,), the last phoneme and the number of phonemes."""

    tokens: IntArray
    ending: IntArray
    last: NumpyArray
    length: IntArray
    symbols: int

    def take(self, index: Any) -> Nouns:
        """Some of them."""
        return Nouns(
            tokens=self.tokens[index], ending=self.ending[index], last=self.last[index],
            length=self.length[index], symbols=self.symbols,
        )  # fmt: skip


def load_nouns() -> Nouns:
    """Words of the CMU dictionary whose form with -s or -es is theirs and a plural's ending."""
    from ..data import load_pronunciations

    said = load_pronunciations()
    phonemes = sorted({p for sounds in said.values() for p in sounds})
    number = {p: i + 1 for i, p in enumerate(phonemes)}
    rows = []
    for word, sounds in said.items():
        if not (2 <= len(sounds) <= LENGTH and word.isalpha()):
            continue
        for plural in (word + "s", word + "es"):
            longer = said.get(plural, ())
            ending = "".join(longer[len(sounds) :])
            if longer[: len(sounds)] == sounds and ending in ("S", "Z", "IHZ", "AHZ"):
                rows.append((sounds, {"S": 0, "Z": 1}.get(ending, 2)))
                break
    # Same sounds, same example: none is on both sides of a split.
    rows = sorted(dict(rows).items())
    tokens = np.zeros((len(rows), 1 + LENGTH), dtype=np.int64)
    for i, (sounds, _) in enumerate(rows):
        tokens[i, 1 : 1 + len(sounds)] = [number[p] for p in sounds]
    return Nouns(
        tokens=tokens,
        ending=np.array([e for _, e in rows]),
        last=np.array([sounds[-1] for sounds, _ in rows]),
        length=np.array([len(sounds) for sounds, _ in rows]),
        symbols=1 + len(phonemes),
    )


def train_on_nouns(nouns: Nouns, seed: int, *, steps: int) -> Any:
    """A two-layer transformer, its batches even over the three endings."""
    import torch

    from .tiny_transformer import TinyTransformer, train

    rng = np.random.default_rng([seed, 1])
    model = TinyTransformer(nouns.symbols, 1 + LENGTH, 32, 3, [(4, 8, 48)] * 2)
    groups = [np.flatnonzero(nouns.ending == e) for e in range(3)]

    def batch(step: int) -> tuple[Any, Any]:
        picked = np.concatenate([rng.choice(g, 32) for g in groups])
        return torch.from_numpy(nouns.tokens[picked]), torch.from_numpy(nouns.ending[picked])

    train(model, batch, steps=steps, rate=3e-3)
    return model.eval()
