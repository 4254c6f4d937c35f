"""Reasoning on its way through a client: it comes back as it went, and anything else is no reasoning."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.server.thoughts import MAX_CHARACTERS, SEALED, seal, sign, unseal


@given(st.text())
def test_what_was_sealed_is_read_again(text: str) -> None:
    assert unseal(seal(text)) == text


@given(st.text() | st.text().map(lambda text: SEALED + text) | st.text().map(sign))
def test_anything_else_is_no_reasoning(word: str) -> None:
    assert unseal(word) is None or word == seal(unseal(word) or "")


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_word_is_no_reasoning(cut: int) -> None:
    assert unseal(seal("It is long enough to be cut somewhere.")[:-cut]) is None


def test_a_word_that_unpacks_without_end_is_refused() -> None:
    bomb = SEALED + base64.b64encode(zlib.compress(bytes(8 * MAX_CHARACTERS))).decode()
    assert unseal(bomb) is None
