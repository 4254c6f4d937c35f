"""The yardstick of the prefix benchmark, on sequences small enough to count by hand."""

from __future__ import annotations

import pytest

from examples.benchmarks.reuse_truth import Reuse, new_messages_at, shared_tokens, total


def test_only_tokens_that_lie_wholly_in_the_common_text_are_shared() -> None:
    prompt = [b"one", b" two", b" three"]
    assert shared_tokens(prompt, [b"one two thr", b"on"]) == 2
    assert shared_tokens(prompt, [b"one two three four"]) == 3
    assert shared_tokens(prompt, []) == 0


def test_a_respelled_answer_is_shared_all_the_same() -> None:
    assert shared_tokens([b"val", b"leys", b" end"], [b"valleys en"]) == 2


def test_new_messages_begin_at_the_last_user_block_with_its_line_break() -> None:
    start, user, line = 7, 8, 0
    prompt = [start, user, 5, line, start, 6, 5, line, start, user, 5, line, start, 6]
    assert new_messages_at(prompt, [start, user]) == 7
    assert new_messages_at([start, 6], [start, user]) == 0


def test_the_cold_first_turn_does_not_hide_the_others() -> None:
    turns = [
        Reuse(prompt=100, shared=0, rerendered=0, cached=0),
        Reuse(prompt=120, shared=100, rerendered=0, cached=80),
    ]
    sums = total(turns)
    assert sums.ratio == pytest.approx(140 / 120)
    assert sums.ratio_after_first == pytest.approx(40 / 20)
    assert sums.worst_turn == pytest.approx(2)


def test_a_prompt_that_was_seen_whole_counts_one_token() -> None:
    assert Reuse(prompt=50, shared=50, rerendered=0, cached=49).ratio == 1
