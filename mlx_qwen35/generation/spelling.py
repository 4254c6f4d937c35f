"""A tag that has a token of its own, spelled out in other tokens: where it would be completed, and by which.

What reads the text later cannot tell the two apart, so a guide that gives the token a meaning rules the spelling out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_qwen35.generation.guides import bits_of


class Spelling:
    """One tag over one vocabulary. A text's end is known by how many bytes of the tag it holds, 0 to begin with."""

    def __init__(self, tag: bytes, token: int | None, pieces: Sequence[bytes]) -> None:
        """token: the tag's own, which is no spelling   pieces: the bytes of every token, by id"""
        assert tag.count(tag[:1]) == 1, "two beginnings of the tag at a time are not followed"
        self._tag, self._pieces, self._token = tag, pieces, token
        completing: list[list[int]] = [[] for _ in tag]
        # A token completes the tag after its first `at` bytes if it begins with the others.
        rests = [(at, tag[at:]) for at in range(1, len(tag))]
        beginnings = {rest[0] for _, rest in rests}
        for i, piece in enumerate(pieces):
            if i == token or not piece or (piece[0] not in beginnings and tag not in piece):
                continue
            for at, found in enumerate(completing):
                if tag in piece or (at and piece.startswith(rests[at - 1][1])):
                    found.append(i)
        self._completing = [bits_of(found, len(pieces)) if found else None for found in completing]

    def without(self, bits: np.ndarray, held: int) -> np.ndarray:
        """A mask's bits without the tokens that would complete the tag."""
        completing = self._completing[held]
        return bits if completing is None else bits & ~completing

    def after(self, held: int, token: int) -> int:
        """How many bytes of the tag the text ends with, once `token` follows an end that holds `held`."""
        if token == self._token:
            return 0
        end = (self._tag[:held] + self._pieces[token])[-len(self._tag) + 1 :]
        return next((n for n in range(len(end), 0, -1) if end.endswith(self._tag[:n])), 0)
