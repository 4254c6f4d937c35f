"""What may come next: the protocol of constraints, and how their masks are put on logits. Knows no grammar.

A guide follows one answer. It is asked for masks before a draw and told afterwards which tokens came to stay:

    logits = constrain(logits, guide.masks(drafts))   # [1 + drafts, V]
    ...
    guide.accept(tokens_that_stay)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

WORD = 32  # tokens a word of a mask


@dataclass(frozen=True, eq=False)
class Mask:
    """What one position allows.

    bits: uint32, token t is bit t % 32 of word t // 32; tokens past its end are not allowed
    moved: (ids, id): the probability of `ids` counts for `id`
    """

    bits: np.ndarray
    moved: tuple[tuple[int, ...], int] | None = None

    def allows(self, token: int) -> bool:
        """Whether the token may be drawn."""
        word = token // WORD
        return word < self.bits.size and bool(int(self.bits[word]) >> (token % WORD) & 1)


class Guide(Protocol):
    """Constrains one answer."""

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask | None]:
        """A mask for the next position, and one after each drafted token; None allows everything.

        Fewer where a drafted token is not allowed: none after it. Does not change what the guide remembers.
        Raises RequestError where a constraint turns out to be too complex.
        """
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """These tokens came to stay. RequestError as `masks`."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that must come next, as far as they are known; the masks allow no other."""
        ...

    def fork(self) -> Guide:
        """Another one that goes its own way from here."""
        ...

    @property
    def steady(self) -> bool:
        """Whether the next masks do not depend on the token that comes next, so that it need not be read first."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing may follow, where no token says so."""
        ...


def bits_of(tokens: Iterable[int], size: int) -> np.ndarray:
    """uint32 words for ids 0 to size - 1, with the bits of `tokens` set."""
    flags = np.zeros(-(-size // WORD) * WORD, np.uint8)
    flags[list(tokens)] = 1
    return np.packbits(flags, bitorder="little").view(np.uint32)


def all_but(tokens: Iterable[int], size: int) -> np.ndarray:
    """uint32 words that allow ids 0 to size - 1, without `tokens`."""
    return bits_of(range(size), size) & ~bits_of(tokens, size)


def constrain(logits: mx.array, masks: Sequence[Mask | None]) -> mx.array:
    """logits: [n, V], a mask for each row -> [n, V], with -inf where a token is not allowed. Rows of None stay."""
    if not any(masks):
        return logits
    words = -(-logits.shape[-1] // WORD)
    bits = np.full((len(masks), words), 0xFFFFFFFF, np.uint32)
    for row, mask in zip(bits, masks):
        if mask is not None:
            row[:] = 0
            row[: mask.bits.size] = mask.bits[:words]
    return _masked(_moved(logits, masks), mx.array(bits))


@mx.compile
def _masked(logits: mx.array, bits: mx.array) -> mx.array:
    allowed = (bits[..., None] >> mx.arange(WORD, dtype=mx.uint32)) & 1  # [n, words, 32]
    allowed = allowed.reshape(bits.shape[0], -1)[:, : logits.shape[-1]]
    return mx.where(allowed.astype(mx.bool_), logits, mx.array(-mx.inf, logits.dtype))


def _moved(logits: mx.array, masks: Sequence[Mask | None]) -> mx.array:
    moves = [(row, *mask.moved) for row, mask in enumerate(masks) if mask is not None and mask.moved is not None]
    if moves:
        logits = mx.array(logits)  # what follows writes into it
    for row, ids, target in moves:
        logits[row, target] = mx.logsumexp(logits[row][mx.array([*ids, target])])
    return logits
