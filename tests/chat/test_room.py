"""Texts that are far too long are told in time that the context bounds; none that fits is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.chat.room import PIECE, require_few, require_room
from mlx_qwen35.errors import TooLongError


def words(text: str) -> list[int]:
    """A tokenizer that makes a token of every word."""
    return [0] * len(text.split())


@given(st.lists(st.integers(1, 3 * PIECE), min_size=1, max_size=6), st.integers(1, 8))
def test_what_fits_is_never_refused(lengths: list[int], spare: int) -> None:
    text = " ".join("x" * length for length in lengths)
    require_room(text, len(lengths) + spare, words)


def test_what_cannot_fit_is_refused_before_all_of_it_is_read() -> None:
    read = 0

    def encode(text: str) -> list[int]:
        nonlocal read
        read += len(text)
        return words(text)

    with pytest.raises(TooLongError, match="more than 1,000 tokens"):
        require_room("word " * 1_000_000, 1_000, encode)
    assert read <= PIECE


def test_more_messages_than_tokens_are_refused() -> None:
    require_few([{}] * 24, 100)
    with pytest.raises(TooLongError):
        require_few([{}] * 25, 100)
