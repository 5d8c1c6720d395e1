"""Bytes as tokens: padding, end, unknown, 256 bytes, then the sentinels."""

from collections.abc import Iterable
from dataclasses import dataclass

from fishertope.core.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteVocabulary:
    """UTF-8 bytes at ids 3 to 258; sentinel ``k`` has the id ``size - 1 - k``.

    ``pad_id`` 0, ``eos_id`` 1, ``unk_id`` 2.
    """

    sentinels: int = 100
    pad_id: int = 0
    eos_id: int = 1
    unk_id: int = 2

    @property
    def size(self) -> int:
        """Number of ids."""
        return 259 + self.sentinels

    @property
    def first_ordinary(self) -> int:
        """Smallest id that is neither padding, end nor unknown."""
        return 3

    def sentinel(self, k: int) -> int:
        """Id of sentinel ``k``; raises where the block of sentinels has no such one."""
        if not 0 <= k < self.sentinels:
            raise InvalidInputError(
                f"sentinel {k} of a vocabulary with {self.sentinels}; use fewer or longer noise "
                "spans, shorter sequences, or more sentinels"
            )
        return self.size - 1 - k

    def encode(self, text: str) -> list[int]:
        """Ids of the UTF-8 bytes of a text, without an end."""
        return [3 + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end; padding is skipped, sentinels are written ``<extra_id_k>``."""
        out = bytearray()
        for token in ids:
            if token == self.eos_id:
                break
            if token >= 259:
                out += f"<extra_id_{self.size - 1 - token}>".encode()
            elif token >= 3:
                out.append(token - 3)
            elif token == self.unk_id:
                out += "\N{REPLACEMENT CHARACTER}".encode()
        return out.decode(errors="replace")
